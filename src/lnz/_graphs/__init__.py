"""Algorithms on factor graphs, in NumPy."""
