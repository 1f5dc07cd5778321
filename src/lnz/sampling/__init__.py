"""Markov kernels."""
