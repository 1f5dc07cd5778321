"""Stochastic routes: annealing, tempering and sequential Monte Carlo."""
