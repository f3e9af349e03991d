"""The output of frozen layers, computed once: whether that pays, where it lies, how it is read."""
