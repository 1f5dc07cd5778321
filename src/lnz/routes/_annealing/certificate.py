"""Bounds on log Z from independent unbiased estimates of Z, with no assumption about their distribution."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_BETS = np.concatenate([[1.0], np.exp(-np.linspace(0.25, 8.0, 23))])


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
    target = math.log(1 / (1 - confidence))
    n = log_weights.size
    bets = jnp.asarray(_BETS, log_weights.dtype)
    top = jnp.max(log_weights)
    shift = jnp.where(jnp.isfinite(top), top, 0)
    relative = log_weights - shift
    log_bet, log_rest = jnp.log(bets), jnp.log1p(-bets)

    def log_capital(log_z: Array) -> Array:
        def one(log_bet: Array, log_rest: Array) -> Array:
            return jnp.sum(jnp.logaddexp(log_rest, log_bet + relative - log_z))

        return jax.nn.logsumexp(jax.lax.map(lambda b: one(*b), (log_bet, log_rest))) - math.log(len(_BETS))

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = log_capital(middle) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    log_mean = jax.nn.logsumexp(relative) - math.log(n)
    low, _ = jax.lax.fori_loop(0, 64, halve, (log_mean - 1e4, log_mean))
    found = (low > log_mean - 9.9e3) & jnp.isfinite(top)
    return jnp.where(found, low + shift, -jnp.inf)


def upper_bound(log_weights: Float[Array, " n"], *, confidence: float = 0.99) -> Float[Array, ""]:
    """An upper bound on log Z that holds if the upper half of the log weights looks normal, or their mean has settled.

    The larger of two: the normal bound on the mean weight, and that of a log-normal distribution whose median and spread s are those of the
    upper half of log w, which guards against a mean that depends on weights not sampled yet:

        median + s²/2 + √(t² (π/2) s²/n + (s²/2)² (ν/χ²_ν - 1)²),   s² = mean of (log w - median)² over the upper half,   ν = n/2.

    Neither accounts for modes that no chain has reached.

    Source: Zou, Huo & Taleban 2009, "Simple confidence intervals for lognormal means and their differences", with the upper half's median and
    spread in the place of all weights' mean and variance.
    """
    from scipy.special import chdtri, stdtrit

    n = log_weights.size
    t = float(stdtrit(max(n - 1, 1), confidence))  # Student's t: the spread is itself estimated from n weights
    top = jnp.max(log_weights)
    relative = log_weights - jnp.where(jnp.isfinite(top), top, 0)
    weights = jnp.exp(relative)
    mean, sd = jnp.mean(weights), jnp.std(weights, ddof=1) if n > 1 else jnp.asarray(jnp.inf, weights.dtype)
    settled = jnp.log(mean) + jnp.log1p(t * sd / (mean * math.sqrt(n)))
    median, upper = jnp.quantile(relative, 0.5), max(n / 2, 1.0)
    half = jnp.sum(jnp.square(jnp.maximum(relative - median, 0))) / upper / 2
    excess = upper / float(chdtri(upper, confidence)) - 1
    fitted = median + half + jnp.sqrt(t**2 * math.pi * half / n + jnp.square(half * excess))
    return jnp.where(
        jnp.isfinite(top), top + jnp.maximum(settled, jnp.where(jnp.isfinite(fitted), fitted, settled)), jnp.inf
    )
