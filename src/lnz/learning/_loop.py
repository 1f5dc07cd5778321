"""The compiled loop over the batches of some epochs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._core.spaces import State
from lnz.learning._trainer import Trainer, TrainState

_ORDER, _MEASURE = 0x6F726465, 0x6D656173  # beyond any number of updates, whose keys are fold_in(key, t)


def orders(key: PRNGKeyArray, first: int, count: int, n: int, batch: int) -> Int[Array, " padded"]:
    """The rows of the data in the order of `count` epochs of the run with this key, each padded with row 0 to whole batches."""
    return _orders(key, jnp.asarray(first, jnp.int32), count, n, batch)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _orders(key: PRNGKeyArray, first: Array, count: int, n: int, batch: int) -> Array:
    def one(epoch: Array) -> Array:
        order_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
        return jnp.pad(jax.random.permutation(order_key, n).astype(jnp.int32), (0, -n % batch))

    return jax.lax.map(one, first + jnp.arange(count, dtype=jnp.int32)).reshape(-1)


def measure_key(key: PRNGKeyArray, step: int) -> PRNGKeyArray:
    """The key of the likelihood measured after some updates of the run with this key."""
    return jax.random.fold_in(jax.random.fold_in(key, _MEASURE), step)


@functools.lru_cache(maxsize=16)
def compiled_loop(trainer: Trainer, batch: int, n: int) -> Callable[..., Any]:
    """A compiled loop over the batches first … stop - 1 of some epochs over n data, one after another, for any first and stop.

    It maps (state, sums, data, weights, order, first, stop) to the new state, the sums with every update's figures added in order, and
    the first batch whose update met a NaN or an infinity in the energies, the gradient or the new parameters (-1: none did).

    A short last batch is padded with rows of weight zero. `weights` have mean 1 over the data; a batch's gradient is scaled by its
    mean weight, so that its expectation over orders is the gradient of all data.
    """

    def loop(
        state: TrainState, sums: Any, data: State, weights: Array | None, order: Array, first: Array, stop: Array
    ) -> Any:
        arrays, rest = eqx.partition(state, eqx.is_array)

        def update(i: Array, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
            rows = jax.lax.dynamic_slice(order, (i * batch,), (batch,))
            present = i % -(-n // batch) * batch + jnp.arange(batch, dtype=jnp.int32) < n
            w, scale = None, None
            if weights is not None:
                w = jnp.where(present, weights[rows], 0)
                scale = jnp.sum(w) / jnp.sum(present).astype(w.dtype)
            elif n % batch:
                w = present.astype(jnp.float32)
            return trainer.update(state, jax.tree.map(lambda leaf: leaf[rows], data), w, scale)

        def body(i: Array, carry: Any) -> Any:
            arrays, sums, bad = carry
            state, figures = update(i, eqx.combine(arrays, rest))
            fine = _finite((figures, eqx.filter(state.energy, eqx.is_inexact_array)))
            sums = {name: total + figures[name].astype(jnp.float32) for name, total in sums.items()}
            return eqx.filter(state, eqx.is_array), sums, jnp.where((bad < 0) & ~fine, i, bad)

        arrays, sums, bad = jax.lax.fori_loop(first, stop, body, (arrays, sums, jnp.asarray(-1, jnp.int32)))
        return eqx.combine(arrays, rest), sums, bad

    compiled = eqx.filter_jit(loop)

    def run(
        state: TrainState, sums: Any, data: State, weights: Array | None, order: Array, first: int, stop: int
    ) -> Any:
        return compiled(state, sums, data, weights, order, jnp.asarray(first, jnp.int32), jnp.asarray(stop, jnp.int32))

    return run


def _finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
