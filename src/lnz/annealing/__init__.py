"""Stochastic estimates of log Z."""
