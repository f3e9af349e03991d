"""Side-by-side measurements against what users would pick instead."""
