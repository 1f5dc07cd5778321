"""Metropolis moves along leapfrog steps, on R^n or in a box with reflecting walls: Langevin moves are one step long."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Box, Space


def leapfrog_moves(
    energy: Energy,
    key: PRNGKeyArray,
    v: Float[Array, " n *shape"],
    step_size: Float[Array, ""] | Float[Array, " n"],
    *,
    moves: int = 1,
    leapfrogs: int = 1,
) -> tuple[Float[Array, " n *shape"], Float[Array, ""]]:
    """Moves of n chains that leave exp(-F) invariant, and their mean acceptance.

    A move draws a normal momentum p, makes `leapfrogs` steps of length δ = √(2ε) in time,

        p ← p - δ/2 ∇F(v),   v ← v + δ p,   p ← p - δ/2 ∇F(v),

    and is accepted with chance min(1, exp(F + |p|²/2 before - the same after)). One step is the Metropolis-adjusted Langevin move
    v' = v - ε ∇F(v) + √(2ε) ξ. With several steps, every chain draws a fraction of δ, uniform between ½ and 1, for every move: after half a
    period of the model the energy returns to its value, and trajectories of that one length do not mix (log Z of a normal distribution in 64
    dimensions was 10 nats too low).

    At the walls of a box v is reflected and p changes sign. A step is at most as long as the box is wide, in every direction: longer ones would
    go no further, and lose their digits. Such a flow preserves volume and is reversible, so that the acceptance rule stays
    the same. If moves across a wall were rejected, chains in n dimensions could hardly make steps of more than 1/n of the box.

    Gradients are carried from one move to the next.

    Args:
        v: states (n, *shape) of a `Real` space or a `Box`.
        step_size: ε, one for all chains or one per chain; it may be traced.

    Returns:
        The states, and the mean acceptance (see `mean_chance`).

    Source: Roberts & Tweedie 1996; Neal 2011, "MCMC using Hamiltonian dynamics" (random lengths, walls).
    """
    at = jax.vmap(jax.value_and_grad(free_energy_of(energy)))
    space = observed_space(energy)
    v, _, chances = leapfrog_chains(
        at, lambda here: here, space, key, v, at(v), step_size, moves=moves, leapfrogs=leapfrogs
    )
    return v, mean_chance(chances)


def leapfrog_chains(
    at: Callable[[Array], Any],
    force: Callable[[Any], tuple[Array, Array]],
    space: Space,
    key: PRNGKeyArray,
    v: Float[Array, " n *shape"],
    here: Any,
    step_size: Float[Array, ""] | Float[Array, " n"],
    *,
    moves: int = 1,
    leapfrogs: int = 1,
) -> tuple[Float[Array, " n *shape"], Any, Float[Array, " n"]]:
    """`leapfrog_moves` where what was evaluated at the states is kept with them.

    Args:
        at: what is evaluated at states (n, *shape): a pytree of arrays with n rows.
        force: from what was evaluated to F (n,) and ∇F (n, *shape).
        here: at(v).

    Returns:
        The states, what was evaluated there, and every chain's chance of acceptance, NaN where it is at an impossible point.
    """
    dtype, n = v.dtype, v.shape[0]
    width = (n,) + (1,) * (v.ndim - 1)
    delta = jnp.sqrt(2 * jnp.broadcast_to(step_size.astype(dtype), (n,))).reshape(width)
    if isinstance(space, Box):
        delta = jnp.minimum(delta, jnp.asarray(box_widths(space), dtype)[None])
    wide = jnp.result_type(float)

    def kinetic(p: Array) -> Array:
        return 0.5 * jnp.sum(p.reshape(n, math.prod(v.shape[1:])) ** 2, axis=1).astype(wide)

    def once(carry: tuple[Array, Any], key: PRNGKeyArray) -> tuple[tuple[Array, Any], Array]:
        v, here = carry
        f = force(here)[0]
        noise_key, accept_key, length_key = jax.random.split(key, 3)
        share = 1 if leapfrogs == 1 else jax.random.uniform(length_key, width, dtype, 0.5, 1)
        step = share * delta
        p = jax.random.normal(noise_key, v.shape, dtype)
        begun = f.astype(wide) + kinetic(p)

        def leap(_: Any, state: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
            x, p, there = state
            p = p - 0.5 * step * force(there)[1]
            x, p = bounced(space, x + step * p, p)
            there = at(x)
            return x, p - 0.5 * step * force(there)[1], there

        state = (v, p, here)
        x, p, there = leap(0, state) if leapfrogs == 1 else jax.lax.fori_loop(0, leapfrogs, leap, state)
        log_ratio = begun - force(there)[0].astype(wide) - kinetic(p)
        chance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
        accepted = jax.random.uniform(accept_key, (n,), wide) < chance

        def taken(new: Array, old: Array) -> Array:
            return jnp.where(accepted.reshape(n, *(1,) * (new.ndim - 1)), new, old)

        after = jax.tree.map(taken, (x, there), (v, here))
        return after, jnp.where(f < jnp.inf, chance, jnp.nan)

    if moves == 1:
        (v, here), chances = once((v, here), key)
        return v, here, chances
    (v, here), chances = jax.lax.scan(once, (v, here), jax.random.split(key, moves))
    return v, here, jnp.nanmean(chances, axis=0)


def mean_chance(chances: Float[Array, "*n"]) -> Float[Array, ""]:
    """The mean acceptance of chains at possible points, 0 where there are none: others are not evidence about the step size."""
    possible = ~jnp.isnan(chances)
    return jnp.sum(jnp.where(possible, chances, 0)) / jnp.maximum(jnp.sum(possible), 1).astype(chances.dtype)


def box_widths(space: Box) -> np.ndarray:
    """The width of a box in every direction; infinite where there is one wall or none."""
    low, high = (np.asarray(bound, np.float64) for bound in space.limits)
    return np.broadcast_to(high - low, space.shape)


def bounced(space: Space, x: Float[Array, " n *shape"], p: Float[Array, " n *shape"]) -> tuple[Array, Array]:
    """Points after a straight move, reflected at the walls of a box as often as they cross one, and their momenta."""
    if not isinstance(space, Box):
        return x, p
    low, high = (jnp.asarray(bound, x.dtype)[None] for bound in space.limits)
    both, above = jnp.isfinite(low) & jnp.isfinite(high), jnp.isfinite(low)
    wall = jnp.where(above, low, high)
    width = jnp.where(both, high - low, 1)
    round_trip = jnp.mod(x - low, 2 * width)
    inside = jnp.clip(low + jnp.minimum(round_trip, 2 * width - round_trip), low, high)
    far = jnp.where(above, x < low, x > high)  # of one wall
    x = jnp.where(both, inside, jnp.where(far, 2 * wall - x, x))
    turned = jnp.where(both, round_trip > width, far)
    return x, jnp.where(turned, -p, p)
