"""Energies of many consecutive states at once."""

from __future__ import annotations

import abc
from collections.abc import Callable

from jaxtyping import Array

from lnz._core.energy import Energy


class Blockwise(Energy):
    """An energy of bits or spins whose values at consecutive states share work, for enumeration."""

    @abc.abstractmethod
    def block_energies(self, size: int) -> Callable[[Array], Array]:
        """A function of the first state of an aligned block of `size` = 2^k consecutive states: the energies of all of them."""
