"""How fast chains mix, from snapshots of them while learning goes on. NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_NOISE = 0.05  # an autocorrelation below this counts as none


def split_r_hat(values: np.ndarray) -> float:
    """Split R̂ of one quantity: values (draws, chains). 1 where all chains tell the same, +inf where they stand still at different values.

    Source: Gelman et al. 2013, Bayesian Data Analysis, section 11.4.
    """
    half = len(values) // 2
    parts = np.concatenate([values[:half], values[-half:]], axis=1).astype(np.float64)
    within, between = parts.var(axis=0, ddof=1).mean(), parts.mean(axis=0).var(ddof=1)
    if within == 0:
        return math.inf if between > 0 else 1.0
    return math.sqrt((half - 1) / half + between / within)


def autocorrelation_time(steps: Sequence[int], states: np.ndarray) -> tuple[float, bool]:
    """The integrated autocorrelation time τ = 1 + 2 Σ_t C(t) of the states' entries together, in updates, and whether it is only a lower limit.

    C(t) = Σ_i Cov(x_i(s), x_i(s + t)) / Σ_i Var(x_i), with means over all chains and snapshots: chains that stay apart count as slow. The sum is
    taken between the lags at hand by the trapezoidal rule, and the tail as exponential.

    Args:
        steps: the updates after which the snapshots were taken, increasing.
        states: shape (snapshots, chains, entries).
    """
    x = states.astype(np.float64)
    x = (x - x.mean(axis=(0, 1))).reshape(len(states), -1)
    products = x @ x.T
    if not products.any():
        return 1.0, False
    c_of = products / np.diagonal(products).mean()
    sums: dict[int, list[float]] = {}
    for j, after in enumerate(steps):
        for i in range(j):
            sums.setdefault(after - steps[i], []).append(float(c_of[i, j]))
    lags = [0, *sorted(sums)]
    c = [1.0, *(float(np.mean(sums[lag])) for lag in lags[1:])]
    total = 0.0
    for k in range(1, len(lags)):
        low = max(c[k], 0.0)
        total += 0.5 * (c[k - 1] + low) * (lags[k] - lags[k - 1])
        if c[k] < _NOISE:
            return max(1.0, 2 * total), False
    rate = -math.log(min(c[-1], 1 - 1e-3)) / lags[-1]
    return 2 * (total + c[-1] / rate), True


def nearest_distances(states: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The number of entries in which each state (n, entries) differs from the datum nearest to it (m, entries): shape (n,)."""
    return np.concatenate(
        [
            (block[:, None] != data[None]).sum(axis=2).min(axis=1)
            for block in np.array_split(states, -(-len(states) // 32))
        ]
    )
