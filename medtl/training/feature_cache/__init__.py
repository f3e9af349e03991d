"""The output of frozen layers, computed once: whether it pays (plan), where it lies (store), how it is read (cache)."""
