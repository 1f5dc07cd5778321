"""A closed form of log Z, and exact samples."""

from __future__ import annotations

import abc
from typing import Any

from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.spaces import State


class Normalised(Energy):
    """An energy with log Z in closed form and exact samples: what annealing, tilting and noise-contrastive learning start from."""

    @abc.abstractmethod
    def log_normaliser(self) -> Array:
        """log Z, in nats."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples (n, *shape)."""


def require_normalised(energy: Any, what: str) -> Normalised:
    """The object as an energy with log Z and samples. Raises ValueError, whose message begins with `what`, for any other object."""
    found = energy.offers(Normalised) if isinstance(energy, Energy) else None
    if found is None:
        raise ValueError(
            f"{what} must have a closed form of log Z and exact samples, but {type(energy).__name__} offers neither: use lnz.Gaussian, "
            "lnz.Independent or lnz.Uniform, or inherit from lnz.capabilities.Normalised (`log_normaliser` and `sample`)"
        )
    return found
