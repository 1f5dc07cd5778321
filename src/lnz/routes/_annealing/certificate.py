"""Bounds on log Z from independent unbiased estimates of Z, with no assumption about their distribution."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Array, Float

from lnz.routes._annealing.programs import on_host

_BETS = np.concatenate([[1.0], np.exp(-np.linspace(0.25, 8.0, 23))])
_LOG_BET, _LOG_REST = np.log(_BETS), np.log1p(-_BETS[1:])


def lower_bound(log_weights: Float[Array, " n"], *, confidence: float = 0.99) -> Float[Array, ""]:
    """A lower bound on log Z that holds with probability `confidence`, whatever the weights' distribution.

    The weights w_i ≥ 0 must be independent with E[w_i] = Z. If Z were at most z, then for any fixed bet 0 ≤ λ ≤ 1 the capital
    Π_i (1 - λ + λ w_i / z) would have expectation at most 1, and so would its average over a fixed set of bets. By Markov's inequality it
    exceeds 1/δ with probability at most δ. The bound is the largest z whose capital does. The bet λ = 1 alone gives
    log Z ≥ mean_i log w_i - log(1/δ)/n, which is already no worse than min_i log w_i - log(1/δ)/n; smaller bets come within
    √(2 log(1/δ)/n) times the relative spread of the weights, as a normal interval does.

    Args:
        log_weights: log w_i, in nats; -inf is a weight of zero.
        confidence: 1 - δ.

    Returns:
        The bound, in nats; -inf if all weights are zero.

    Source: Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting" (one-sided, non-negative);
    Gogate & Dechter 2011 for the use on partition functions.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {confidence}")
    return on_host(lower_bound_of, log_weights, confidence=confidence)


def lower_bound_of(log_weights: np.ndarray, *, confidence: float) -> np.ndarray:
    """`lower_bound` in NumPy."""
    top = log_weights.max()
    if not math.isfinite(top):
        return np.where(np.isnan(top), np.nan, -np.inf)
    relative = log_weights - top
    target = math.log(1 / (1 - confidence)) + math.log(len(_BETS))

    def excess(log_z: float) -> tuple[float, float]:
        """The logarithm of the capital less what is needed, convex and falling in log z; and its derivative."""
        ratio = relative - log_z
        won = _LOG_BET[1:, None] + ratio
        capital = np.logaddexp(_LOG_REST[:, None], won)
        each = np.concatenate([[ratio.sum()], capital.sum(axis=1)])
        slopes = np.concatenate([[ratio.size], np.exp(won - capital).sum(axis=1)])
        whole = np.logaddexp.reduce(each)
        return whole - target, -float(np.exp(each - whole) @ slopes)

    log_mean = np.logaddexp.reduce(relative) - math.log(relative.size)
    low, width = log_mean - 1, 1.0
    while excess(low)[0] < 0:
        width *= 2
        low = log_mean - width
        if width > 1e4:
            return np.asarray(-np.inf)
    for _ in range(60):  # Newton steps from below stay below
        above, slope = excess(low)
        step = -above / slope
        if not step > 1e-10 * (1 + abs(low)):
            break
        low = low + step
    return np.asarray(low + top)


def upper_bound(log_weights: Float[Array, " n"], *, confidence: float = 0.99) -> Float[Array, ""]:
    """An upper bound on log Z that holds if the upper half of the log weights looks normal, or their mean has settled.

    The larger of two: the normal bound on the mean weight, and that of a log-normal distribution whose median and spread s are those of the
    upper half of log w, which guards against a mean that depends on weights not sampled yet:

        median + s²/2 + √(t² (π/2) s²/n + (s²/2)² (ν/χ²_ν - 1)²),   s² = mean of (log w - median)² over the upper half,   ν = n/2.

    Neither accounts for modes that no chain has reached.

    Source: Zou, Huo & Taleban 2009, "Simple confidence intervals for lognormal means and their differences", with the upper half's median and
    spread in the place of all weights' mean and variance.
    """
    return on_host(upper_bound_of, log_weights, confidence=confidence)


def upper_bound_of(log_weights: np.ndarray, *, confidence: float) -> np.ndarray:
    """`upper_bound` in NumPy."""
    from scipy.special import chdtri, stdtrit

    n, top = log_weights.size, log_weights.max()
    if not math.isfinite(top):
        return np.where(np.isnan(top), np.nan, np.inf)
    t = float(stdtrit(max(n - 1, 1), confidence))  # Student's t: the spread is itself estimated from n weights
    relative = log_weights - top
    weights = np.exp(relative)
    mean, sd = weights.mean(), weights.std(ddof=1) if n > 1 else np.inf
    settled = np.log(mean) + np.log1p(t * sd / (mean * math.sqrt(n)))
    median, upper = np.quantile(relative, 0.5), max(n / 2, 1.0)
    half = np.square(np.maximum(relative - median, 0)).sum() / upper / 2
    excess = upper / float(chdtri(upper, confidence)) - 1
    fitted = median + half + np.sqrt(t**2 * math.pi * half / n + np.square(half * excess))
    return top + max(settled, fitted if np.isfinite(fitted) else settled)
