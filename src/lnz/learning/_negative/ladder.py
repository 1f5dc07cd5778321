"""Replicas on a ladder of models, with moves at every rung and swaps of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lnz._core.capabilities import free_energy_of
from lnz._core.energy import Energy
from lnz._core.spaces import State
from lnz.kernels._exchange import swap_neighbours, swap_probability
from lnz.kernels._kernels import Kernel, moved_chains


def rounds(
    rung: Callable[[Any], Energy],
    points: Any,
    kernel: Kernel,
    key: PRNGKeyArray,
    replicas: State,
    first: Int[Array, ""],
    sweeps: int,
) -> tuple[State, Float[Array, " pairs"], Bool[Array, " pairs"], dict[str, Array]]:
    """Make `sweeps` rounds of one move of every replica under its rung, and swaps of the pairs (0, 1), (2, 3), … or (1, 2), (3, 4), … in turns.

    The swaps are those of `swap_neighbours`. Each leaves the distribution p_i(x_i) p_j(x_j) invariant, with free energies: latent units are
    summed out at both rungs.

    Args:
        rung: the energy at a point of the ladder.
        points: the points, stacked along axis 0: k rungs, from the one that mixes by itself to the model.
        replicas: observed states (k, n, *shape).
        first: the number of previous rounds, whose parity selects the pairs that come first.

    Returns:
        The replicas, the mean swap probability of each pair, which pairs were tried (in one round every second), and the
        means of the kernel's figures at the last rung.
    """
    k = jax.tree.leaves(points)[0].shape[0]

    def move(point: Any, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        return moved_chains(rung(point), kernel, key, v, 1)

    def one(carry: tuple[State, Array, Array], inputs: tuple[PRNGKeyArray, Array]) -> Any:
        replicas, rates, tried = carry
        key, number = inputs
        swap_key, move_key = jax.random.split(key)
        replicas, figures = jax.vmap(move)(points, jax.random.split(move_key, k), replicas)
        replicas, rate, pairs = swapped(rung, points, swap_key, replicas, number)
        return (replicas, rates + rate, tried + pairs), jax.tree.map(lambda leaf: leaf[-1], figures)

    numbers = first + jnp.arange(sweeps, dtype=first.dtype)
    none = jnp.zeros((k - 1,), jnp.float32)
    (replicas, rates, tried), figures = jax.lax.scan(
        one, (replicas, none, none), (jax.random.split(key, sweeps), numbers)
    )
    return replicas, rates / jnp.maximum(tried, 1), tried > 0, jax.tree.map(jnp.mean, figures)


def swapped(
    rung: Callable[[Any], Energy], points: Any, key: PRNGKeyArray, replicas: State, number: Int[Array, ""]
) -> tuple[State, Float[Array, " pairs"], Float[Array, " pairs"]]:
    """The replicas after the swaps of one round, the mean swap probability of each pair tried, and which pairs were (1 or 0)."""
    k = jax.tree.leaves(replicas)[0].shape[0]
    place = jnp.arange(k, dtype=jnp.int32)
    mate = place + 1 - 2 * ((place + number) % 2)
    mate = jnp.where((mate >= 0) & (mate < k), mate, place)
    gain = gains(rung, points, replicas, mate)
    log_ratios = (gain + gain[mate])[:-1]
    after, turn = swap_neighbours(key, replicas, log_ratios, number)
    pairs = turn.astype(jnp.float32)
    return after, pairs * mean_probability(log_ratios), pairs


def gains(rung: Callable[[Any], Energy], points: Any, replicas: State, mate: Int[Array, " k"]) -> Float[Array, "k n"]:
    """F_i(x_i) - F_j(x_i) of the replicas at every rung i, with j its mate."""

    def free(point: Any, v: State) -> Array:
        return jax.vmap(free_energy_of(rung(point)))(v)

    return jax.vmap(free)(points, replicas) - jax.vmap(free)(jax.tree.map(lambda p: p[mate], points), replicas)


def mean_probability(log_ratios: Float[Array, "k n"]) -> Float[Array, " k"]:
    """The mean probability of swaps with these log ratios."""
    return jnp.mean(swap_probability(log_ratios), axis=1).astype(jnp.float32)
