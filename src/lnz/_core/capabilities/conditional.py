"""Conditional distributions of single units, all at once."""

from __future__ import annotations

import abc

from jaxtyping import Array

from lnz._core.energy import Energy
from lnz._core.spaces import State


class Conditional(Energy):
    """An energy of discrete units that computes the conditional distributions of all units at a lower cost than one energy per value."""

    @abc.abstractmethod
    def conditionals(self, v: State) -> Array:
        """log p(v_i | the other units) of every unit and value, up to a constant per unit: shape (units, values)."""
