"""Parallel tempering: a ladder of chains between the base and the model that swap their states, even pairs and odd pairs in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz.kernels._exchange import swap_neighbours, swap_probability
from lnz.routes._annealing.path import Path, Walk


class Tempered(eqx.Module):
    """The state of R independent ladders of K + 1 rungs.

    Attributes:
        states: packed, (K + 1, R, …) in every leaf, from the base to the model.
        last_end: (K + 1, R), the end that the walker now on the rung visited last: 1 the base, -1 the model, 0 neither yet.
        round_trips: (R,), the number of round trips of walkers from the base to the model and back.
        steps: the number of steps so far; its parity determines which pairs swap next.
    """

    states: Any
    last_end: Int[Array, "levels R"]
    round_trips: Int[Array, " R"]
    steps: Int[Array, ""]


class Swaps(NamedTuple):
    """The figures of one step, before its swaps.

    Attributes:
        up: (K, R), F_k - F_{k+1} at the state of rung k: the log weight of moving it one rung up.
        down: (K, R), F_{k+1} - F_k at the state of rung k + 1.
        swapped: (K, R), min(1, exp(up + down)), the probability of a swap.
        acceptance: (K, R), the acceptance of the moves on every rung but the base; (K,) ones for kernels without a step size.
    """

    up: Float[Array, "K R"]
    down: Float[Array, "K R"]
    swapped: Float[Array, "K R"]
    acceptance: Float[Array, "*K"]


def init_tempering(x: Any, rungs: int, ladders: int) -> Tempered:
    """Ladders whose chains (rungs · ladders, *shape) are all at exact samples of the base."""
    none = jnp.zeros((rungs, ladders), jnp.int32)
    states = jax.tree.map(lambda leaf: leaf.reshape(rungs, ladders, *leaf.shape[1:]), x)
    return Tempered(states, none, none[0], jnp.zeros((), jnp.int32))


def tempering_step(
    going: Walk,
    path: Path,
    betas: Float[Array, " levels"],
    log_steps: Float[Array, " levels"],
    key: PRNGKeyArray,
    state: Tempered,
) -> tuple[Tempered, Swaps]:
    """Moves on every rung (the base is sampled anew), then swaps between the pairs whose turn it is (see `swap_neighbours`).

    Args:
        going: how chains move, in rows.
        path: from the base to the model.
        betas: the ladder, 0 = β_0 < … < β_K = 1; it may be traced.
        log_steps: logarithms of the step sizes on every rung, for kernels that have one.
        key: a random key.
        state: from `init_tempering`, or the last step.
    """
    rungs, ladders = state.last_end.shape
    base_key, move_key, swap_key = jax.random.split(key, 3)

    def moved(beta: Array, log_step: Array, key: PRNGKeyArray, x: Any) -> tuple[Any, Array]:
        return going.move(key, beta, x, log_step)

    others = jax.tree.map(lambda x: x[1:], state.states)
    others, acceptance = jax.vmap(moved)(betas[1:], log_steps[1:], jax.random.split(move_key, rungs - 1), others)
    fresh = going.pack(path.start(base_key, ladders))
    x = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), fresh, others)
    gain = jax.vmap(going.gain)
    up = gain(jax.tree.map(lambda leaf: leaf[:-1], x), betas[:-1], betas[1:])
    down = gain(jax.tree.map(lambda leaf: leaf[1:], x), betas[1:], betas[:-1])
    (x, last_end), _ = swap_neighbours(swap_key, (x, state.last_end), up + down, state.steps)
    home = (last_end[0] == -1).astype(jnp.int32)
    rung = np.arange(rungs)[:, None]
    last_end = jnp.where(rung == 0, 1, jnp.where(rung == rungs - 1, -jnp.abs(last_end), last_end))
    after = Tempered(x, last_end, state.round_trips + home, state.steps + 1)
    return after, Swaps(up, down, swap_probability(up + down), acceptance)


def equal_rejections(betas: Float[Array, " levels"], rejected: Float[Array, " K"]) -> Float[Array, " levels"]:
    """The ladder with as many rungs whose swaps would all be rejected equally often: equal shares of the barrier Λ = Σ_k r_k.

    Source: Syed et al. 2022, section 5: the barrier is interpolated between the rungs (here linearly) and inverted.
    """
    # A little is added, so that the barrier rises where nothing was rejected, and no gap between rungs becomes too wide.
    widths, k = jnp.diff(betas), np.arange(rejected.size)
    rejected = rejected + 0.05 * (jnp.sum(rejected) + 1e-3) * widths
    # Comparisons of all with all are quicker to compile than a search.
    barrier = jnp.sum(jnp.where(k[:, None] > k, rejected[None], 0), axis=1)
    wanted = np.linspace(0, 1, betas.size)[1:-1, None].astype(betas.dtype) * jnp.sum(rejected)
    share = jnp.clip((wanted - barrier[None]) / jnp.maximum(rejected, jnp.finfo(rejected.dtype).tiny)[None], 0, 1)
    return jnp.concatenate([betas[:1], jnp.sum(share * widths[None], axis=1), betas[-1:]])
