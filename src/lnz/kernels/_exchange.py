"""Replica exchange: replicas on neighbouring rungs of a ladder swap their states, even pairs and odd pairs in turn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def swap_neighbours(
    key: PRNGKeyArray, replicas: Any, log_ratios: Float[Array, "K n"], steps: Int[Array, ""]
) -> tuple[Any, Bool[Array, " K"]]:
    """The replicas of K + 1 rungs after the swaps of one step, and which of the K pairs of neighbours were proposed.

    Even and odd pairs alternate, rather than at random, so that replicas travel in one direction along the ladder: the number of steps from one end
    to the other grows with the number of rungs, not with its square.

    Args:
        replicas: a pytree of leaves (K + 1, n, *shape).
        log_ratios: log p_k(x_{k+1}) p_{k+1}(x_k) / p_k(x_k) p_{k+1}(x_{k+1}) of rungs k and k + 1; those of pairs not proposed are not used.
        steps: the number of steps so far; its parity selects even or odd pairs.

    Source: Swendsen & Wang 1986; Geyer 1991; Okabe, Kawata, Okamoto & Mikami 2001 (in turn); Syed, Bouchard-Côté, Deligiannidis & Doucet 2022,
    "Non-reversible parallel tempering".
    """
    pairs, n = log_ratios.shape
    rung = jnp.arange(pairs + 1, dtype=jnp.int32)
    mate = rung + 1 - 2 * ((rung + steps) % 2)
    mate = jnp.where((mate >= 0) & (mate <= pairs), mate, rung)
    accepted = jax.random.uniform(key, (pairs, n), log_ratios.dtype) < swap_probability(log_ratios)
    swaps = accepted[jnp.minimum(jnp.minimum(rung, mate), pairs - 1)] & (mate != rung)[:, None]

    def exchanged(leaf: Array) -> Array:
        return jnp.where(swaps.reshape(pairs + 1, n, *(1,) * (leaf.ndim - 2)), leaf[mate], leaf)

    return jax.tree.map(exchanged, replicas), mate[:-1] == rung[:-1] + 1


def swap_probability(log_ratios: Float[Array, "K n"]) -> Float[Array, "K n"]:
    """min(1, exp(log ratio)). A replica that is impossible under its own rung (∞ - ∞: a start outside the support) never swaps."""
    return jnp.where(jnp.isnan(log_ratios), 0, jnp.exp(jnp.minimum(log_ratios, 0)))
