"""The change of log p̃ by every change of a single unit of a discrete state, for objectives that use conditional distributions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import Conditional, free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Binary, Categorical, MixedCategorical, Spin, State
from lnz._models import units

_STATES = 64  # the number of energies computed at once for an energy without conditionals of its own


def single_changes(energy: Energy, v: State) -> Float[Array, "sites others"]:
    """log p̃(v with unit i at its j-th next value, cyclically) - log p̃(v), in nats: one column for bits and spins, k - 1 for k categories.

    Computed from the energy's `conditionals` where it has them, otherwise from the energies of all changed states, in chunks whose intermediate
    values are recomputed for the derivative. -inf where the change is impossible, and where a unit has fewer values; +inf where v is impossible.

    Raises:
        ValueError: for an energy whose observed states are not discrete units.
    """
    reason = units_refusal(energy)
    if reason is not None:
        raise ValueError(reason)
    space: Any = observed_space(energy)
    counts = units.value_counts(space)
    # Numbers of the values: the present one of each unit, and the next ones.
    number = jnp.asarray(v).reshape(-1)
    number = (number > 0) if isinstance(space, Binary | Spin) else number
    number = number.astype(jnp.int32)
    steps = jnp.arange(1, max(2, counts.max(initial=1)), dtype=jnp.int32)
    next_ = (number[:, None] + steps[None]) % jnp.asarray(counts, jnp.int32)[:, None]
    exists = np.arange(1, 1 + len(steps)) < counts[:, None]
    conditional = energy.offers(Conditional)
    if conditional is not None:
        rows = conditional.conditionals(v)
        here, there = jnp.take_along_axis(rows, number[:, None], 1), jnp.take_along_axis(rows, next_, 1)
    else:
        values = (2 * next_ - 1 if isinstance(space, Spin) else next_).astype(v.dtype)
        flat, sites, free_energy = v.reshape(-1), jnp.arange(space.size, dtype=jnp.int32), free_energy_of(energy)

        @jax.checkpoint
        def changed(change: tuple[Array, Array]) -> Array:
            site, value = change
            return -free_energy(flat.at[site].set(value).reshape(v.shape))

        here = -free_energy(v)[None, None]
        each = (jnp.repeat(sites, len(steps)), values.reshape(-1))
        there = jax.lax.map(changed, each, batch_size=min(_STATES, each[0].size)).reshape(values.shape)
    impossible = here == -jnp.inf
    gains = there - jnp.where(impossible, 0, here)
    return jnp.where(exists, jnp.where(impossible, jnp.inf, gains), -jnp.inf)


def units_refusal(energy: Energy) -> str | None:
    """Why the observed states are not discrete units, in words, or None."""
    space = observed_space(energy)
    if isinstance(space, Binary | Spin | Categorical | MixedCategorical) and math.prod(space.shape) > 0:
        return None
    return f"conditionals of single units need a Binary, Spin, Categorical or MixedCategorical space, not {space}"
