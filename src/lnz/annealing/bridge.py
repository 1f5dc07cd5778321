"""Bridges between laws: the ratio of two normalisers, or of many, from samples of each (BAR, MBAR), and how far the laws overlap."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz.mathematics import log_sum_exp


def bar(forward: Float[Array, " n"], reverse: Float[Array, " m"]) -> Float[Array, ""]:
    """log Z_1 - log Z_0 by Bennett's acceptance ratio, in nats: the estimate of least variance from works in both directions.

    It solves Σ_i σ(M + a_i - c) = Σ_j σ(c + b_j - M) for c, with M = log(m/n) and σ the logistic function, by bisection: the left side falls
    and the right side rises with c.

    Args:
        forward: a, log weights with E[e^a] = Z_1 / Z_0: of samples of the first law, or of annealing runs from it to the second.
        reverse: b, log weights with E[e^b] = Z_0 / Z_1: the same the other way, with every move reversed.

    Source: Bennett 1976; Shirts, Bair, Hooker & Pande 2003 (maximum likelihood); Meng & Wong 1996 (bridge sampling).

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> float(lnz.bar(jnp.asarray([0.0, 1.0]), jnp.asarray([-1.0, 0.0])))
        0.5
    """
    shift = jnp.asarray(math.log(reverse.size / forward.size), forward.dtype)
    both = jnp.concatenate([forward, -reverse])
    finite = jnp.isfinite(both)
    low = jnp.min(both, where=finite, initial=jnp.inf) - abs(shift) - 1
    high = jnp.max(both, where=finite, initial=-jnp.inf) + abs(shift) + 1

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = jnp.sum(jax.nn.sigmoid(shift + forward - middle)) > jnp.sum(jax.nn.sigmoid(middle + reverse - shift))
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    broken = jnp.any(jnp.isnan(both)) | ~jnp.any(finite)
    return jnp.where(broken, jnp.nan, jnp.where(jnp.max(forward) == -jnp.inf, -jnp.inf, 0.5 * (low + high)))


def overlap(forward: Float[Array, " n"], reverse: Float[Array, " m"], log_ratio: Float[Array, ""]) -> Float[Array, ""]:
    """How far two laws overlap, ∫ 2 p q / (p + q), from 0 to 1, by the samples of either that say less.

    Args:
        forward: log weights of samples of the first law, as for `bar`.
        reverse: those of samples of the second.
        log_ratio: log Z_1 - log Z_0.
    """
    first = jnp.mean(2 * jax.nn.sigmoid(forward - log_ratio))
    second = jnp.mean(2 * jax.nn.sigmoid(reverse + log_ratio))
    return jnp.minimum(first, second)
