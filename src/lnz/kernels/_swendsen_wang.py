"""Cluster moves: Swendsen and Wang's kernel for Ising and Potts models, with fields."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.spaces import Categorical, Spin, State
from lnz._models import units
from lnz._models.pairwise import DenseCouplings, Ising, Potts, SparseCouplings
from lnz.kernels._kernels import Kernel


@dataclasses.dataclass(frozen=True)
class SwendsenWang(Kernel):
    """Swendsen-Wang moves: bonds freeze at random, and every connected cluster of sites is drawn again as one.

    Ising: a bond with J s s' > 0 freezes with probability 1 - exp(-2|J|), and each cluster is flipped or not, with odds exp(2 Σ h s) against
    flipping. Couplings of either sign are allowed; in a frustrated model clusters soon become too large to help. Potts: a bond of two equal
    states freezes with probability 1 - exp(-J), and a cluster gets the state a with probability ∝ exp(Σ h(a)); couplings must be at least 0.

    Raises:
        ValueError: by `run_chains`, for other models, coupling tables, and negative Potts couplings. Negative ones that are traced fail in
            the compiled program.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> critical = lnz.Ising.lattice((16, 16), 0.4407, periodic=True)
        >>> lnz.kernels.run_chains(critical, lnz.kernels.SwendsenWang(), jnp.ones((2, 16, 16)), jax.random.key(0), 10).shape
        (2, 16, 16)

    Source: Swendsen & Wang 1987, "Nonuniversal critical dynamics in Monte Carlo simulations"; fields as in Edwards & Sokal 1988.
    """

    def unsupported_reason(self, energy: Energy) -> str | None:
        if not isinstance(energy, Ising | Potts):
            return f"Swendsen-Wang moves are for Ising and Potts models, not for a {type(energy).__name__}"
        strength = energy.couplings.strength
        if isinstance(energy, Ising):
            return None
        if not _one_per_pair(energy):
            return "Swendsen-Wang moves need one coupling per pair: with tables J_ij(a, b), use Gibbs"
        if not is_traced(strength) and (np.asarray(strength) < 0).any():
            return (
                "Swendsen-Wang moves of a Potts model need couplings of at least 0: where some are negative, use Gibbs"
            )
        return None

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        model: Any = energy
        edges, strength = model.couplings.pairs()
        dtype, spins = model.fields.dtype, isinstance(energy, Ising)
        if not spins:
            strength = eqx.error_if(
                strength, strength < 0, "a Swendsen-Wang move met a negative Potts coupling: use Gibbs"
            )
        scale = 2 * jnp.abs(strength) if spins else strength
        chance = -jnp.expm1(-scale).astype(dtype)
        n = int(np.prod(model.couplings.sites))
        first, second = (jnp.asarray(ends, jnp.int32) for ends in edges.T)
        fields = model.fields.reshape(n, *model.fields.shape[len(model.couplings.sites) :])

        def move(key: PRNGKeyArray, x: Array) -> Array:
            bond_key, draw_key = jax.random.split(key)
            flat = x.reshape(n).astype(jnp.int32)
            a, b = flat[first], flat[second]
            satisfied = (a * b).astype(strength.dtype) * strength > 0 if spins else a == b
            frozen = satisfied & (jax.random.uniform(bond_key, chance.shape, dtype) < chance)
            cluster = components(first, second, frozen, n)
            phi = units.features(Spin(n), flat, dtype) if spins else jnp.ones((n, 1), dtype)
            pull = jax.ops.segment_sum(fields * phi, cluster, num_segments=n)
            kind = Spin(n) if spins else Categorical(n, fields.shape[-1])
            new = units.sample(kind, draw_key, pull)[cluster].astype(jnp.int32)
            return (flat * new if spins else new).reshape(x.shape).astype(x.dtype)

        return jax.vmap(move)(jax.random.split(key, v.shape[0]), v), {}


def components(
    first: Int[Array, " edges"], second: Int[Array, " edges"], present: Bool[Array, " edges"], n: int
) -> Int[Array, " sites"]:
    """The smallest site of every site's connected component: labels spread along edges, and each jumps to its label's own label."""

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        least = jnp.where(present, jnp.minimum(label[first], label[second]), n)
        new = label.at[first].min(least).at[second].min(least)
        # If a site's label has a smaller one, all sites with that label get it.
        new = new.at[label].min(new)
        new = new[new]
        return new, jnp.any(new != label)

    start = jnp.arange(n, dtype=jnp.int32)
    return jax.lax.while_loop(lambda state: state[1], spread, (start, jnp.asarray(True)))[0]


def _one_per_pair(energy: Potts) -> bool:
    """Whether couplings are numbers, and not tables of two states."""
    couplings = energy.couplings
    if isinstance(couplings, DenseCouplings | SparseCouplings):
        return couplings.strength.ndim == (2 if isinstance(couplings, DenseCouplings) else 1)
    return True
