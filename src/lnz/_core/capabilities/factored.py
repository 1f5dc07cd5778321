"""Energies that are sums of tables over few variables."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from lnz._core.energy import Energy

if TYPE_CHECKING:
    from lnz._models.factor_graph import FactorGraph


class Factored(Energy):
    """A discrete energy that is a sum of tables over few variables: for elimination, messages and bounds."""

    @abc.abstractmethod
    def factors(self) -> FactorGraph:
        """A factor graph over the entries of the space, its tables differentiable functions of θ."""

    @property
    def least_width(self) -> int:
        """A lower bound of the graph's width, known without building the graph."""
        return 0

    @property
    def arrays_are_data(self) -> bool:
        """Whether the boolean and integer arrays may be traced and batched under every route, since no compiled program depends on them."""
        return False


def factors_of(energy: Energy) -> FactorGraph:
    """The factor graph of an energy that has one. Raises ValueError for another."""
    factored = energy.offers(Factored)
    if factored is None:
        raise ValueError(
            f"{type(energy).__name__} has no factors: inherit from lnz.capabilities.Factored to define them"
        )
    return factored.factors()


def least_width(energy: Energy) -> int:
    """A lower bound of the width of the energy's graph, known without building the graph."""
    factored = energy.offers(Factored)
    return 0 if factored is None else factored.least_width


def arrays_are_data(energy: Energy) -> bool:
    """Whether the energy's boolean and integer arrays may be traced and batched under every route."""
    factored = energy.offers(Factored)
    return factored is not None and factored.arrays_are_data
