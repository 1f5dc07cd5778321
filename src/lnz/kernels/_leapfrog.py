"""Metropolis moves along leapfrog steps, on R^n or in a box with reflecting walls: Langevin moves are one step long."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
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

    At the walls of a box v is reflected and p changes sign. Such a flow preserves volume and is reversible, so that the acceptance rule stays
    the same. If moves across a wall were rejected, chains in n dimensions could hardly make steps of more than 1/n of the box.

    Gradients are carried from one move to the next.

    Args:
        v: states (n, *shape) of a `Real` space or a `Box`.
        step_size: ε, one for all chains or one per chain; it may be traced.

    Returns:
        The states, and the mean acceptance of chains at points that are possible: others (of weight zero, in annealing) are not evidence about
        the step size.

    Source: Roberts & Tweedie 1996; Neal 2011, "MCMC using Hamiltonian dynamics" (random lengths, walls).
    """
    dtype, n = v.dtype, v.shape[0]
    width = (n,) + (1,) * (v.ndim - 1)
    delta = jnp.sqrt(2 * jnp.broadcast_to(step_size.astype(dtype), (n,))).reshape(width)
    at = jax.vmap(jax.value_and_grad(free_energy_of(energy)))
    wide = jnp.result_type(float)

    def kinetic(p: Array) -> Array:
        return 0.5 * jnp.sum(p.reshape(n, math.prod(v.shape[1:])) ** 2, axis=1).astype(wide)

    def once(carry: tuple[Array, Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array, Array], Array]:
        v, f, slope = carry
        noise_key, accept_key, length_key = jax.random.split(key, 3)
        share = 1 if leapfrogs == 1 else jax.random.uniform(length_key, delta.shape, dtype, 0.5, 1)
        step = share * delta
        p = jax.random.normal(noise_key, v.shape, dtype)
        begun = f.astype(wide) + kinetic(p)

        def leap(_: Any, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            x, p, _, slope = state
            p = p - 0.5 * step * slope
            x, p = bounced(observed_space(energy), x + step * p, p)
            f, slope = at(x)
            return x, p - 0.5 * step * slope, f, slope

        state = (v, p, f, slope)
        x, p, new, new_slope = leap(0, state) if leapfrogs == 1 else jax.lax.fori_loop(0, leapfrogs, leap, state)
        log_ratio = begun - new.astype(wide) - kinetic(p)
        chance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
        accepted = jax.random.uniform(accept_key, (n,), wide) < chance
        possible = f < jnp.inf
        rate = jnp.sum(jnp.where(possible, chance, 0)) / jnp.maximum(jnp.sum(possible), 1).astype(wide)
        taken = accepted.reshape(width)
        return (jnp.where(taken, x, v), jnp.where(accepted, new, f), jnp.where(taken, new_slope, slope)), rate

    begin = (v, *at(v))
    if moves == 1:
        (v, *_), rate = once(begin, key)
        return v, rate
    (v, *_), rates = jax.lax.scan(once, begin, jax.random.split(key, moves))
    return v, jnp.mean(rates)


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
