"""Composite Gauss-Legendre quadrature in log space, for one-dimensional reference integrals."""

import numpy as np
from jaxtyping import Float


def composite_legendre(
    edges: Float[np.ndarray, " edges"], order: int = 16
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Nodes and weights of Gauss-Legendre quadrature of `order` points on each panel between increasing `edges`."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges)[:, None] / 2
    centre = (edges[1:] + edges[:-1])[:, None] / 2
    return (centre + half * nodes).ravel(), (half * weights).ravel()


def log_weighted_sum(log_values: Float[np.ndarray, " points"], weights: Float[np.ndarray, " points"]) -> float:
    """log Σ_k w_k exp(f_k) with the largest f_k taken out; weights may be negative as long as the sum is positive."""
    peak = float(np.max(log_values))
    if peak == -np.inf:
        return -np.inf
    return peak + float(np.log(np.sum(weights * np.exp(log_values - peak))))
