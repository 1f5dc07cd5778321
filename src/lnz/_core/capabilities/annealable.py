"""The base that annealing starts from, and the path from there to the energy."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from lnz._core.capabilities.marginal import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Space, State


class Annealable(Energy):
    """An energy with a base of its own, or a path of its own from a base. Each member has a default, which is what other energies get."""

    def base(self) -> Energy | None:
        """A reference with a closed form and exact samples (`Normalised`), or None for the default one of the observed space."""
        return None

    def tempered(self, base: Energy, beta: ArrayLike) -> Energy:
        """The energy at inverse temperature beta on the path from `base` (0) to this energy (1): by default the geometric one."""
        return Tempered(base, self, beta)

    @property
    def tempers_free_energy(self) -> bool:
        """Whether the free energy of `tempered(base, beta)` is (1 - beta) F_0 + beta F_1 for every base."""
        return type(self).tempered is Annealable.tempered

    def slope(self, base: Energy) -> Energy | None:
        """E - E_base as an energy whose `gibbs_sweep` also computes energies, so that chains stay in its layout; None by default."""
        return None

    @property
    def log_latent_volume(self) -> float:
        """For an energy made by `tempered`: log Z at beta = 0 minus the base's own log Z, in nats.

        n log 2 where the path runs through the joint energy of n binary latent variables, 0 where it is that of the free energy.
        """
        return 0.0


class Tempered(Energy):
    """The geometric path between two energies: E_β = (1 - β) E_0 + β E_1, at one β in [0, 1].

    At β = 0 the other end is left out altogether, so that 0 · ∞ never arises where p̃_1 = 0.
    """

    start: Energy
    end: Energy
    beta: ArrayLike

    @property
    def space(self) -> Space:
        return observed_space(self.end)

    def __call__(self, x: State) -> Array:
        start, end = free_energy_of(self.start)(x), free_energy_of(self.end)(x)
        return mixed(start, end.astype(start.dtype), self.beta)


def mixed(start: Array, end: Array, beta: Any) -> Array:
    """(1 - β) start + β end, of one dtype; at β = 0 and 1 without the other end, whatever it is."""
    beta = jnp.asarray(beta, start.dtype)
    cold = jnp.where(beta > 0, beta * jnp.where(beta > 0, end, 0), 0)
    warm = jnp.where(beta < 1, (1 - beta) * jnp.where(beta < 1, start, 0), 0)
    return cold + warm


def tempered(energy: Energy, base: Energy, beta: ArrayLike) -> Energy:
    """The energy at inverse temperature beta on its path from `base` (0) to itself (1): the geometric one, unless it has its own."""
    annealable = energy.offers(Annealable)
    return Tempered(base, energy, beta) if annealable is None else annealable.tempered(base, beta)


def tempers_free_energy(energy: Energy) -> bool:
    """Whether the free energy of `tempered(energy, base, beta)` is (1 - beta) F_0 + beta F_1 for every base."""
    annealable = energy.offers(Annealable)
    return annealable is None or annealable.tempers_free_energy


def slope(energy: Energy, base: Energy) -> Energy | None:
    """E - E_base as an energy whose sweeps also compute energies, or None."""
    annealable = energy.offers(Annealable)
    return None if annealable is None else annealable.slope(base)


def log_latent_volume(energy: Energy) -> float:
    """For an energy made by `tempered`: log Z at beta = 0 minus the base's own log Z, in nats."""
    annealable = energy.offers(Annealable)
    return 0.0 if annealable is None else annealable.log_latent_volume
