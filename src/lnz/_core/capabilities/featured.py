"""Energies as smooth functions of the units' features."""

from __future__ import annotations

import abc

from jaxtyping import Array

from lnz._core.energy import Energy


class Featured(Energy):
    """A discrete energy that is a smooth function of its units' features, for kernels that follow its gradient."""

    @abc.abstractmethod
    def feature_energy(self, phi: Array) -> Array:
        """The (free) energy of features φ, which need not be those of a state: x itself, or the indicators of categories (*shape, k)."""
