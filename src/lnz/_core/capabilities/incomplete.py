"""Energies whose data contain only a part of the observed state."""

from __future__ import annotations

import abc
from collections.abc import Callable

from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities.marginal import Marginal, free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Space, State


class Incomplete(Marginal):
    """An energy whose data contain only a part of the observed state, and the rest has no closed sum (deep Boltzmann machines)."""

    @property
    @abc.abstractmethod
    def data_space(self) -> Space:
        """The space of the data: the part of the observed space that they contain."""

    @abc.abstractmethod
    def data_energy(self, v: State) -> Array:
        """-log Σ exp(-E) over all that one observation leaves open, in nats, or an upper bound of it."""

    @abc.abstractmethod
    def complete(self, key: PRNGKeyArray, v: State) -> State:
        """Observed states that agree with the data (n, *shape): what the data leave open is drawn from an approximation of its distribution."""

    @abc.abstractmethod
    def visible_part(self, x: State) -> State:
        """The part of observed states (*batch, *shape) that data contain."""


def data_space(energy: Energy) -> Space:
    """The space of an energy's data: the observed space, or the part of it that data contain."""
    incomplete = energy.offers(Incomplete)
    return observed_space(energy) if incomplete is None else incomplete.data_space


def data_energy_of(energy: Energy) -> Callable[[State], Array]:
    """-log Σ exp(-E) over all that one observation leaves open, or an upper bound of it, in nats, as a function of the observation."""
    incomplete = energy.offers(Incomplete)
    return free_energy_of(energy) if incomplete is None else incomplete.data_energy


def complete(energy: Energy, key: PRNGKeyArray, v: State) -> State:
    """Observed states that agree with the data (n, *shape): the data themselves, unless they leave something open."""
    incomplete = energy.offers(Incomplete)
    return v if incomplete is None else incomplete.complete(key, v)


def visible_part(energy: Energy, x: State) -> State:
    """The part of observed states (*batch, *shape) that data contain."""
    incomplete = energy.offers(Incomplete)
    return x if incomplete is None else incomplete.visible_part(x)
