"""Batches along the last axis: `jax.vmap` of a loop over nodes, with sequences in the lanes of the processor's registers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_UNROLLED = 32  # products with tables of at most so many rows are unrolled
_CHUNK = 10  # rows whose sum stays in registers


def side_by_side(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of arrays whose last axis is that of sequences (or 1 where all share them), such that `jax.vmap` extends that axis.

    By itself `jax.vmap` puts the sequences first, where neighbours in memory are labels, and sums over labels cannot be vectorised.
    All results of f have an entry for every sequence.
    """
    lanes = jax.custom_batching.custom_vmap(f)

    @lanes.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        width = max(x.shape[-1] for x in jax.tree.leaves(arguments))
        merge = functools.partial(_merged, size=size, width=width)
        found = lanes(*jax.tree.map(merge, arguments, tuple(batched)))
        parted = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(*x.shape[:-1], size, width), -2, 0), found)
        return parted, jax.tree.map(lambda _: True, found)

    return lanes


def _merged(x: Array, several: bool, *, size: int, width: int) -> Array:
    """An array with axis 0 (where it has several entries) and the last axis as one last axis; 1 stays 1 where all share it."""
    if not several and x.shape[-1] == 1:
        return x
    x = jnp.moveaxis(x, 0, -2) if several else x[..., None, :]
    return jnp.broadcast_to(x, (*x.shape[:-2], size, width)).reshape(*x.shape[:-2], size * width)


def product(table: Float[Array, "J K #lanes"], a: Float[Array, "J lanes"]) -> Float[Array, "K lanes"]:
    """Σ_j table(j, k) a(j) of every lane.

    For few labels it is unrolled term by term: a matrix product of such a size costs more to call than to compute.
    """
    rows, _, lanes = table.shape
    if rows > _UNROLLED:
        if lanes == 1 and a.shape[1] == 1:
            return jnp.matmul(a[:, 0], table[:, :, 0], precision=jax.lax.Precision.HIGHEST)[:, None]
        if lanes == 1:
            return jnp.matmul(table[:, :, 0].T, a, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(table * a[:, None], axis=0)
    total = None
    for first in range(0, rows, _CHUNK):
        terms = [table[j] * a[j][None] for j in range(first, min(first + _CHUNK, rows))]
        terms = terms if total is None else [total, *terms]
        total = jax.lax.optimization_barrier(functools.reduce(operator.add, terms))
    assert total is not None
    return total


def alone(f: Callable[..., Any], *arguments: Any) -> Any:
    """The results for a single sequence of a function of batches along the last axis."""
    found = f(*jax.tree.map(lambda x: x[..., None], arguments))
    return jax.tree.map(lambda x: x[..., 0], found)
