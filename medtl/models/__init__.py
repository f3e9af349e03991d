"""BACKBONES AND THEIR WEIGHTS -> CLASSIFIER: what is transferred, where it comes from, what it costs."""
