"""Sequence tagging by a chain CRF: sparse features of a window of words, training, metrics."""
