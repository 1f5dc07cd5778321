"""Labellings of a linear chain: the most probable ones, and exact samples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.numerics import peak_of
from lnz._core.random import fast_key
from lnz._models.linear_chain import ChainPotentials
from lnz.routes._exact.chain_passes import go_on
from lnz.routes._exact.forward_backward import filtered, table_at


def best_path(p: ChainPotentials) -> tuple[Int[Array, " T"], Float[Array, ""]]:
    """The most probable labelling, 0 at masked nodes, and a score that is -inf where no labelling is possible.

    The forward pass keeps only the maxima; their origins are recomputed for the chosen labels.

    Source: Viterbi 1967, "Error bounds for convolutional codes".
    """
    t, k = p.nodes.shape

    def step(alpha: Array, x: Any) -> tuple[Array, Array]:
        e, joined, exists, place = x
        below = jnp.max(alpha[:, None] + table_at(p.pairs, place), axis=0)
        after = go_on(alpha, below, jnp.broadcast_to(jnp.max(alpha), (k,)), joined, exists) + e
        after = after - peak_of(after)
        return after, after

    start = jnp.zeros((k,), p.nodes.dtype)
    last, alphas = jax.lax.scan(step, start, (p.nodes, p.joined, p.mask, jnp.arange(t)))
    return _walk_back(p, alphas, lambda logits, _: jnp.argmax(logits).astype(jnp.int32), None), jnp.max(last)


def sampled_paths(p: ChainPotentials, key: PRNGKeyArray, n: int) -> Int[Array, "n T"]:
    """Exact samples: messages forward, labels drawn from the last to the first."""
    uniforms = jax.random.uniform(fast_key(key), (len(p.nodes), n), p.nodes.dtype)
    messages = filtered(p)
    return jax.vmap(lambda u: _walk_back(p, messages, drawn, u), in_axes=1)(uniforms)


def drawn(logits: Array, u: Array) -> Array:
    """An index drawn from unnormalised log-probabilities, by a uniform number."""
    cumulative = jnp.cumsum(jnp.exp(logits - peak_of(logits)))
    last = jnp.sum(cumulative < cumulative[-1], dtype=jnp.int32)  # where u was rounded up to the total
    return jnp.minimum(jnp.sum(cumulative <= u * cumulative[-1], dtype=jnp.int32), last)


def _walk_back(p: ChainPotentials, messages: Array, pick: Any, noise: Any) -> Int[Array, " T"]:
    """Labels from right to left: each picked from its message plus the pair's log-potential with the label after it."""
    t, k = p.nodes.shape

    def step(after: Array, x: Any) -> tuple[Array, Array]:
        message, joined, exists, place, noise = x
        label = pick(message + after, noise)
        before = jnp.where(joined, table_at(p.pairs, place)[:, label], 0)
        if exists is None:
            return before, label
        return jnp.where(exists, before, after), jnp.where(exists, label, 0)

    start = jnp.zeros((k,), p.nodes.dtype)
    return jax.lax.scan(step, start, (messages, p.joined, p.mask, jnp.arange(t), noise), reverse=True)[1]


def best_paths(p: ChainPotentials, n: int) -> tuple[Int[Array, "n T"], Float[Array, " n"]]:
    """The n most probable labellings, best first, and their scores in nats: -inf where there are no more.

    Every node keeps the n best scores of every label.

    Source: Seshadri, Sundberg 1994, "List Viterbi decoding algorithms" (the parallel form).
    """
    t, k = p.nodes.shape

    def step(alpha: Array, x: Any) -> tuple[Array, tuple[Array, Array]]:
        e, joined, exists, place = x
        bonus = jnp.where(joined, table_at(p.pairs, place).T, 0)  # [to, from]
        values, origin = jax.lax.top_k((alpha[None] + bonus[:, :, None]).reshape(k, k * n), n)
        after = values + e[:, None]
        if exists is not None:
            after = jnp.where(exists, after, alpha)
            origin = jnp.where(exists, origin, jnp.arange(k * n, dtype=origin.dtype).reshape(k, n))
        top = peak_of(after)
        return after - top, (origin, top)

    def back(state: Array, x: Any) -> tuple[Array, Array]:
        origin, exists = x
        labels = state // n
        return origin.reshape(-1)[state], labels if exists is None else jnp.where(exists, labels, 0)

    start = jnp.where(jnp.arange(k * n) == 0, jnp.zeros((k * n,), p.nodes.dtype), -jnp.inf).reshape(k, n)
    alpha, (origins, tops) = jax.lax.scan(step, start, (p.nodes, p.joined, p.mask, jnp.arange(t)))
    scores, state = jax.lax.top_k(alpha.reshape(-1), n)
    labels = jax.lax.scan(back, state, (origins, p.mask), reverse=True)[1]
    return jnp.where(scores[:, None] > -jnp.inf, labels.T, 0), scores + jnp.sum(tops)
