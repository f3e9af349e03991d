"""Benchmarks that compare medtl with the alternatives side by side."""
