"""Latent variables that are summed out in closed form."""

from __future__ import annotations

import abc
from collections.abc import Callable

from jaxtyping import Array

from lnz._core.energy import Energy
from lnz._core.spaces import Space, State


class Marginal(Energy):
    """An energy whose latent variables have a closed sum (T6): the marginal of the observed part is p(v) = exp(-F(v)) / Z with the same Z."""

    @property
    @abc.abstractmethod
    def observed(self) -> Space:
        """The space of chains and data: the space without the latent variables."""

    @abc.abstractmethod
    def free_energy(self, v: State) -> Array:
        """F_θ(v) = -log Σ_h exp(-E_θ(v, h)) of one observed state, in nats."""

    def collapsed(self) -> Energy:
        """An equivalent energy with some variables summed out; the same Z(θ) for every θ."""
        return FreeEnergy(self)


class FreeEnergy(Energy):
    """The marginal of an energy's observed part: E(v) = F_θ(v), the same log Z."""

    energy: Energy

    @property
    def space(self) -> Space:
        return observed_space(self.energy)

    def __call__(self, x: State) -> Array:
        return free_energy_of(self.energy)(x)


def observed_space(energy: Energy) -> Space:
    """The space of an energy's chains: its space without the latent variables that have a closed sum."""
    marginal = energy.offers(Marginal)
    return energy.space if marginal is None else marginal.observed


def free_energy_of(energy: Energy) -> Callable[[State], Array]:
    """F_θ as a function of one observed state, in nats; without latent variables, the energy itself."""
    marginal = energy.offers(Marginal)
    return energy if marginal is None else marginal.free_energy


def collapsed(energy: Energy) -> Energy:
    """The equivalent energy on the smallest known space; the same Z(θ) for every θ."""
    marginal = energy.offers(Marginal)
    return energy if marginal is None else marginal.collapsed()
