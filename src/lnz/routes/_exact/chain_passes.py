"""The passes of forward-backward with scaled probabilities, for many sequences side by side.

Shapes: nodes (T, K, lanes), pairs (K, K, lanes) or (T-1, K, K, lanes), joined and mask (T, lanes); lanes are 1 where all sequences share
an array. Messages, weights and emissions are at most 1, each message is divided by its sum c_t, and Σ_k a_t(k) β_t(k) = 1 everywhere.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lnz._core.numerics import peak_of
from lnz.routes._exact.vmap_last_axis import product, side_by_side


class Forward(NamedTuple):
    log_z: Array
    messages: Array  # (T, K, lanes): P(y_t | what comes before and at t)


class Both(NamedTuple):
    worst: Array  # the largest β_t(k) / c_t
    log_z: Array
    nodes: Array  # (T, K, lanes): P(y_t = k), 0 at masked nodes
    pairs: Array  # expected numbers, or probabilities of each pair


class _Rows(NamedTuple):
    """What belongs to the nodes."""

    nodes: Array
    joined: Array
    mask: Array | None
    place: Array

    @classmethod
    def of(cls, nodes: Array, joined: Array, mask: Array | None) -> _Rows:
        return cls(nodes, joined[:, None], None if mask is None else mask[:, None], jnp.arange(len(nodes)))


class _Weights(NamedTuple):
    tables: Array  # exp(pairs), the largest entry 1
    peak: Array  # the logarithm of their divisor

    @classmethod
    def of(cls, pairs: Array) -> _Weights:
        peak = peak_of(pairs.reshape(-1, pairs.shape[-1]), 0)
        return cls(jnp.exp(pairs - peak.reshape((1,) * (pairs.ndim - 1) + (-1,))), peak)

    def at(self, place: Array) -> Array:
        """The table of the pair that ends at a node."""
        if self.tables.ndim == 3:
            return self.tables
        if not len(self.tables):  # a single node, which no pair joins
            return jnp.zeros(self.tables.shape[1:], self.tables.dtype)
        return jax.lax.dynamic_index_in_dim(self.tables, jnp.maximum(place - 1, 0), keepdims=False)


_State = tuple[Array, Array]  # a message, and the reciprocal of its sum


def _start(nodes: Array) -> _State:
    _, k, lanes = nodes.shape
    return jnp.full((k, lanes), 1 / k, nodes.dtype), jnp.ones((1, lanes), nodes.dtype)


class _Steps(NamedTuple):
    """The pass forward over some nodes."""

    emitted: Array  # exp(nodes), the largest entry of each row 1
    after: Array  # the outgoing message of each node, times c_t
    scale: Array  # (T, lanes): c_t
    log_z: Array


def _forward(rows: _Rows, weights: _Weights, start: _State) -> tuple[_State, _Steps]:
    top = peak_of(rows.nodes, 1)
    emitted = jnp.exp(rows.nodes - top[:, None])

    def step(state: _State, x: Any) -> tuple[_State, tuple[Array, Array]]:
        a, inverse = state
        e, joined, exists, place = x
        s = go_on(a * inverse, product(weights.at(place), a) * inverse, jnp.ones_like(a), joined, exists) * e
        c = jnp.sum(s, axis=0, keepdims=True)
        return (s, _inverse(c)), (s, c[0])

    end, (after, c) = jax.lax.scan(step, start, rows._replace(nodes=emitted))
    scales = c if rows.mask is None else jnp.where(rows.mask[:, 0], c, 1)
    joints = jnp.sum(rows.joined[:, 0], 0, dtype=c.dtype)
    return end, _Steps(emitted, after, c, jnp.sum(jnp.log(scales), 0) + jnp.sum(top, 0) + weights.peak * joints)


def _backward(rows: _Rows, weights: _Weights, start: _State, steps: _Steps, beta: Array) -> tuple[Array, Any]:
    """The backward pass over nodes whose forward pass is known: β before them, and the fields of `Both`, with pairs as a and q."""
    inverse = _inverse(steps.scale)[:, None]
    emitted = steps.emitted * inverse

    def step(beta: Array, x: Any) -> tuple[Array, Array]:
        e, joined, exists, place = x
        q = jax.lax.optimization_barrier(e * beta)
        below = product(jnp.swapaxes(weights.at(place), 0, 1), q)
        return go_on(beta, below, jnp.ones_like(beta), joined, exists), beta

    first, betas = jax.lax.scan(step, beta, rows._replace(nodes=emitted), reverse=True)
    a = steps.after * inverse
    nodes = a * betas if rows.mask is None else jnp.where(rows.mask, a * betas, 0)
    before = jnp.concatenate([(start[0] * start[1])[None], a[:-1]])[: len(a)]
    q = jnp.where(rows.joined, emitted * betas, 0)
    return first, (jnp.max(betas * inverse, (0, 1), initial=0), nodes, before, q)


def _together(before: Array, q: Array) -> Array:
    """Σ_t a_{t-1}(j) q_t(k)."""
    return jnp.einsum("tjb,tkb->jkb", before, q, precision=jax.lax.Precision.HIGHEST)


@side_by_side
def forward(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> Forward:
    """The pass from left to right."""
    steps = _forward(_Rows.of(nodes, joined, mask), _Weights.of(pairs), _start(nodes))[1]
    return Forward(steps.log_z, steps.after * _inverse(steps.scale)[:, None])


def both_apart(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> Both:
    """Both passes, for sequences that `jax.vmap` keeps separate: faster where each has tables of its own, which would otherwise all be transposed."""
    rows, weights = _Rows.of(nodes, joined, mask), _Weights.of(pairs)
    start = _start(nodes)
    steps = _forward(rows, weights, start)[1]
    worst, found, before, q = _backward(rows, weights, start, steps, jnp.ones(nodes.shape[1:], nodes.dtype))[1]
    own = pairs.ndim == 4
    numbers = before[1:, :, None] * q[1:, None] if own else _together(before, q)
    return Both(worst, steps.log_z, found, weights.tables * numbers)


both = side_by_side(both_apart)


@side_by_side
def both_recomputed(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> Both:
    """Both passes over a chain of one table, keeping the messages of every √T-th node; those between are recomputed in the backward pass.

    Source: Griewank 1992, "Achieving logarithmic growth of temporal and spatial complexity in reverse automatic differentiation"; here with
    one level of checkpoints.
    """
    t, k, lanes = nodes.shape
    size, weights = _block_size(t), _Weights.of(pairs)
    rows = _Rows.of(nodes, joined, jnp.ones_like(joined) if mask is None else mask)
    blocks = jnp.arange(0, t, size)

    def block(begin: Array) -> tuple[Array, _Rows]:
        """The last block overlaps the one before, and skips the shared nodes."""
        at = jnp.minimum(begin, t - size)
        cut = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size), rows)
        fresh = (cut.place >= begin)[:, None, None]
        nodes = jnp.where(fresh, cut.nodes, 0)
        return at, _Rows(nodes, cut.joined & fresh, cut.mask & fresh, cut.place)

    def ahead(state: _State, begin: Array) -> tuple[_State, Any]:
        after, steps = _forward(block(begin)[1], weights, state)
        return after, (state, steps.log_z)

    def back(carry: Any, x: Any) -> Any:
        beta, worst, pairs, nodes = carry
        begin, start = x
        at, rows = block(begin)
        beta, (here, found, before, q) = _backward(rows, weights, start, _forward(rows, weights, start)[1], beta)
        # Where this block overlaps the one before, that one overwrites the shared nodes.
        nodes = jax.lax.dynamic_update_slice_in_dim(nodes, found, at, 0)
        return (beta, jnp.maximum(worst, here), pairs + _together(before, q), nodes), None

    _, (starts, log_z) = jax.lax.scan(ahead, _start(nodes), blocks)
    none = functools.partial(jnp.zeros, dtype=nodes.dtype)
    start = jnp.ones((k, lanes), nodes.dtype), none((lanes,)), none((k, k, lanes)), none(nodes.shape)
    (_, worst, numbers, found), _ = jax.lax.scan(back, start, (blocks, starts), reverse=True)
    return Both(worst, jnp.sum(log_z, 0), found, weights.tables * numbers)


def _block_size(t: int) -> int:
    return math.isqrt(t - 1) + 1 if t else 0


def in_blocks(rows: Any) -> Any:
    """Arrays of T rows cut into about √T blocks of about √T rows; missing rows at the end are 0, or False."""
    t = len(jax.tree.leaves(rows)[0])
    size = _block_size(t)

    def blocks(x: Array) -> Array:
        return jnp.pad(x, [(0, -t % size), *[(0, 0)] * (x.ndim - 1)]).reshape(-1, size, *x.shape[1:])

    return jax.tree.map(blocks, rows)


def go_on(message: Array, below: Array, apart: Array, joined: Array, exists: Array | None) -> Array:
    """The message at the next node: from a pair, at the first node of a sequence, or the same across a masked node."""
    return jnp.where(joined, below, apart if exists is None else jnp.where(exists, apart, message))


def _inverse(c: Array) -> Array:
    return jnp.where(c > 0, 1 / c, 0)
