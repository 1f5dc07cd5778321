"""R-hat, effective sample size and autocorrelation time of several chains, the threshold of R-hat, and the shape of a tail."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lnz._core.frozen import is_traced

R_HAT_THRESHOLD = 1.05  # above it chains are called unmixed, unless they are so short that chance alone exceeds it
_FALSE_ALARM = 1e-3  # the rate at which chains of independent draws may exceed the threshold
_NOISE = 0.05  # an autocorrelation below this counts as zero


def r_hat(samples: Any) -> Any:
    """Rank-normalised split R-hat of every entry of the states of several chains: near 1 if the chains agree.

    Every chain is cut in halves, values are replaced by the normal scores of their ranks among all, and R-hat compares the variance between the
    half chains with that within. The larger of two values is returned: that of the values, which detects chains in different places, and that of
    their distance from the median, which detects chains of different spread.

    Args:
        samples: (chains, draws, *shape), at least 4 draws. They may be traced; if not, NumPy computes, in double precision.

    Returns:
        An array of this shape. +inf for chains that are stuck at different values, NaN where all states are the same or one is NaN.

    Raises:
        ValueError: for other shapes.

    Example:
        >>> import numpy as np, lnz
        >>> noise = np.random.default_rng(0).normal(size=(4, 500))
        >>> width = np.array([[1], [1], [4], [4]])
        >>> bool(lnz.diagnostics.r_hat(noise) < 1.01), bool(lnz.diagnostics.r_hat(width * noise) > 1.1)
        (True, True)

    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization, folding, and localization: an improved R̂".
    """
    xp = jnp if is_traced(samples) else np
    halves = _halves(samples, xp)
    with np.errstate(invalid="ignore"):  # the distance from an infinite median is NaN
        folded = xp.abs(halves - xp.median(halves, axis=(0, 1), keepdims=True))
    return xp.fmax(*(_r_hat_of(_normal_scores(x, xp), xp) for x in (halves, folded)))


def r_hat_threshold(chains: int, draws: int, quantities: int = 1) -> float:
    """The R-hat above which chains are called unmixed: 1.05, or more for chains so short that independent draws would often exceed it.

    For normal draws, n in each of m half chains, n R-hat² - (n - 1) has the F distribution with m - 1 and m (n - 1) degrees of freedom. The
    threshold leaves at most one false alarm in a thousand for the largest R-hat of `quantities` independent quantities.
    """
    from scipy.special import fdtri

    m, n = 2 * chains, draws // 2
    tail = 0.5 * _FALSE_ALARM / max(quantities, 1)  # of the values, and of their distances from the median
    return max(R_HAT_THRESHOLD, math.sqrt((n - 1 + float(fdtri(m - 1, m * (n - 1), 1 - tail))) / n))


def ess(samples: Any) -> np.ndarray:
    """Bulk effective sample size of every entry of the states of several chains: the number of independent draws that are worth as much.

    It is the number of draws of all chains, divided by their autocorrelation time τ = 1 + 2 Σ_t ρ_t. The correlations ρ_t are of the normal scores of
    all half chains together, so that chains which stay apart count as slow. They are summed up to the first pair with ρ_2k + ρ_2k+1 ≤ 0, and no pair
    counts for more than the one before it.

    Args:
        samples: (chains, draws, *shape), at least 4 draws.

    Returns:
        An array of this shape. 0 for chains that are stuck at different values, NaN where all states are the same or one is NaN.

    Raises:
        ValueError: for other shapes.

    Source: Geyer 1992, "Practical Markov chain Monte Carlo"; of several chains, Vehtari et al. 2021.
    """
    z = _normal_scores(_halves(samples, np), np)
    m, n = z.shape[:2]
    means = z.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(z - means, n=2 * n, axis=1)  # padded with zeros, so that the ends do not wrap around
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n, axis=1)[:, :n].mean(axis=0) / n
    within, between = covariance[0] * n / (n - 1), means.var(axis=(0, 1), ddof=0) * m / (m - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1 - (within - covariance) / (covariance[0] + between)
    rho[0] = 1
    pairs = rho[: n - n % 2].reshape(n // 2, 2, *z.shape[2:]).sum(axis=1)
    positive = np.logical_and.accumulate(pairs > 0, axis=0)
    left_out = np.concatenate([rho, 0 * rho])  # zeros where all pairs are positive
    tail = np.maximum(np.take_along_axis(left_out, 2 * positive.sum(axis=0)[None], axis=0)[0], 0)
    pairs = np.minimum.accumulate(np.where(positive, pairs, 0), axis=0)
    tau = np.maximum(2 * pairs.sum(axis=0) - 1 + tail, 1 / math.log10(m * n))
    return np.where(
        _constant(z, np), np.where(between > 0, 0.0, np.nan), np.where(np.isnan(within), np.nan, m * n / tau)
    )


def autocorrelation_time(steps: Sequence[int], states: np.ndarray) -> tuple[float, bool]:
    """The autocorrelation time τ = 1 + 2 Σ_t C(t) of all entries together, from snapshots at unequal distances, and whether it is only a lower bound.

    C(t) = Σ_i Cov(x_i(s), x_i(s + t)) / Σ_i Var(x_i), with means over all chains and snapshots: chains that stay apart count as slow. The sum is
    computed between the available lags by the trapezoidal rule, with an exponential tail. (Unlike `ess`, it does not need every step of the chains.)

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


def _halves(samples: Any, xp: Any) -> Any:
    """Twice as many chains of half the length (2 chains, draws // 2, *shape); an odd draw in the middle is left out."""
    x = xp.asarray(samples)
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1] < 4:
        raise ValueError(f"samples must have shape (chains, draws, *shape) with at least 4 draws, but have {x.shape}")
    half = x.shape[1] // 2
    halves = xp.concatenate([x[:, :half], x[:, x.shape[1] - half :]])
    return halves if xp.issubdtype(halves.dtype, xp.floating) else halves.astype(xp.result_type(float))


def _normal_scores(x: Any, xp: Any) -> Any:
    """The normal scores of the ranks among all chains and draws, entry by entry; ties share their mean rank."""
    if xp is np:
        from scipy import special

        rank = _mean_ranks
    else:
        from jax.scipy import special, stats

        rank = functools.partial(stats.rankdata, axis=0)
    n = x.shape[0] * x.shape[1]
    ranks = rank(x.reshape(n, -1))
    return special.ndtri((ranks - 0.375) / (n + 0.25)).reshape(x.shape)


def _mean_ranks(x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """The ranks 1 … n in every column, where ties share their mean; NaN in a column with NaN. (SciPy's takes a second to import.)"""
    order, places = np.argsort(x, axis=0), np.arange(len(x))[:, None]
    ordered, edge = np.take_along_axis(x, order, axis=0), np.ones((1, x.shape[1]), bool)
    begins = np.concatenate([edge, ordered[1:] != ordered[:-1]])
    first = np.maximum.accumulate(np.where(begins, places, 0))
    ends = np.concatenate([begins[1:], edge])
    last = np.minimum.accumulate(np.where(ends, places, len(x))[::-1])[::-1]
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=0)
    return np.where(np.isnan(x).any(axis=0), np.nan, ranks)


def _r_hat_of(z: Any, xp: Any) -> Any:
    """R-hat of the half chains z (m, n, *shape) themselves."""
    n = z.shape[1]
    within, between = xp.mean(xp.var(z, axis=1, ddof=1), axis=0), xp.var(xp.mean(z, axis=1), axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = xp.sqrt((n - 1) / n + between / within)
    return xp.where(_constant(z, xp), xp.where(xp.all(z == z[:1], axis=(0, 1)), xp.nan, xp.inf), ratio)


def _constant(z: Any, xp: Any) -> Any:
    """Where every half chain is constant: decided by equality, since rounding leaves a variance."""
    return xp.all(z == z[:, :1], axis=(0, 1))


def pareto_tail(n: int) -> int:
    """The number of largest values of n to which `pareto_shape` fits a distribution."""
    return int(min(0.2 * n, 3 * math.sqrt(n)))


def pareto_shape(values: np.ndarray) -> float:
    """The shape k of a generalised Pareto distribution fitted to the largest of n values (n,): moments of order 1/k and above do not exist.

    NaN for fewer than 125 values, and -1 where the largest are nearly constant.

    Source: Zhang & Stephens 2009; Vehtari et al. 2024 (the length of the tail, the weak prior towards 0.5).
    """
    m = pareto_tail(values.size)
    if m < 25:
        return math.nan
    values = np.sort(values)
    cut, x = values[-m - 1], values[-m:] - values[-m - 1]
    quartile = x[int(m / 4 + 0.5) - 1]
    if x[-1] <= 1e-9 * max(abs(cut), 1e-300) or x[m // 4] <= 0 or quartile <= 0:
        return -1.0
    grid = 30 + int(math.sqrt(m))
    spread = 1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))
    b = spread / (3 * quartile) + 1 / x[-1]
    k = np.log1p(-b[:, None] * x[None]).mean(axis=1)
    length = m * (np.log(-b / k) - k - 1)
    w = np.exp(length - length.max())
    b = np.sum(b * w) / w.sum()
    k = float(np.log1p(-b * x).mean())
    return (k * m + 5) / (m + 10)
