"""Systematic resampling of weighted particles."""

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
