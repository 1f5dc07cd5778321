"""Systematic resampling of weighted particles, in a program and on the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

_FEW = 256  # particles up to which all pairs are compared: that is quick, and quicker to compile


def systematic(key: PRNGKeyArray, log_weights: Float[Array, "*R n"]) -> Int[Array, "*R n"]:
    """The particles kept of n, in proportion to their weights, in each of R populations: floor or ceiling of n times the share of each.

    A particle of weight zero is never kept.

    Source: Kitagawa 1996; Douc, Cappé & Moulines 2005.
    """
    if log_weights.ndim > 1:
        return jax.vmap(systematic)(jax.random.split(key, log_weights.shape[0]), log_weights)
    n = log_weights.size
    share = jax.nn.softmax(log_weights)
    few = n <= _FEW
    place = np.arange(n)
    total = jnp.sum(jnp.where(place[:, None] >= place, share, 0), axis=1) if few else jnp.cumsum(share)
    u = jax.random.uniform(key, ()).astype(total.dtype)
    places = (jnp.arange(n, dtype=total.dtype) + u) / jnp.asarray(n, total.dtype)
    places = jnp.minimum(places, 1 - jnp.finfo(total.dtype).epsneg)
    method = "compare_all" if few else "scan"
    return jnp.searchsorted(total / total[-1], places, side="right", method=method).astype(jnp.int32)


def systematic_on_host(source: np.random.Generator, log_weights: Float[np.ndarray, "R n"]) -> Int[np.ndarray, "R n"]:
    """`systematic` in NumPy, which compiles nothing. In a population without weight all particles are kept."""
    replicates, n = log_weights.shape
    top = log_weights.max(axis=1, keepdims=True)
    weights = np.exp(log_weights - np.where(np.isfinite(top), top, 0), dtype=np.float64)
    weights = np.where((weights.sum(axis=1, keepdims=True) > 0) & np.isfinite(weights), weights, 1.0)
    total = np.cumsum(weights, axis=1)
    places = (np.arange(n) + source.random((replicates, 1))) / n
    places = np.minimum(places, 1 - np.finfo(np.float64).epsneg)
    shares = zip(total / total[:, -1:], places, strict=True)
    return np.stack([np.searchsorted(share, place, side="right") for share, place in shares])
