"""Departures from maximum likelihood that stabilise the learning of neural energies, each off by default."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Real, State


@dataclasses.dataclass(frozen=True)
class Regularisers:
    """Regularisers of maximum likelihood that prevent the runaway of a neural energy; by default none.

    They change the result or the updates of learning. Others are elsewhere: fresh restarts in `ReplayBuffer`, colder noise in
    `UnadjustedLangevin`, weight decay and schedules in the optimiser.

    Attributes:
        energy_penalty: α of α (E_data[F²] + E_chains[F²]), which keeps energies near 0. (A constant in the energy is arbitrary, so this is mild.)
        data_noise: the standard deviation of normal noise on every example at every use, in the units of x: the model becomes that of noisy
            data. For `Real` states only.
        clip: the largest norm of an update's gradient; longer gradients are scaled to it.

    Raises:
        ValueError: for numbers that are negative or NaN, or a `clip` of 0.

    Example:
        >>> import lnz
        >>> lnz.learning.Regularisers(energy_penalty=0.1)
        Regularisers(energy_penalty=0.1, data_noise=0.0, clip=inf)

    Source: Du & Mordatch 2019, "Implicit generation and modeling with energy-based models" (the penalty); Nijkamp, Hill, Han, Zhu & Wu 2020, "On
    the anatomy of MCMC-based maximum likelihood learning of energy-based models" (the noise).
    """

    energy_penalty: float = 0.0
    data_noise: float = 0.0
    clip: float = math.inf

    def __post_init__(self) -> None:
        for name in ("energy_penalty", "data_noise", "clip"):
            x = getattr(self, name)
            if not isinstance(x, int | float | np.floating) or not x >= 0 or (x == math.inf and name != "clip"):
                raise ValueError(f"{name} must be a number of at least 0, but is {x!r}")
        if self.clip == 0:
            raise ValueError("clip = 0 would leave no gradient: leave it out, or give a number above 0")

    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why the regularisers do not support the energy, as a sentence, or None."""
        if self.data_noise and not isinstance(observed_space(energy), Real):
            return f"data_noise needs a Real space, not {observed_space(energy)}"
        if self.energy_penalty and data_space(energy) != observed_space(energy):
            return f"energy_penalty needs the energy of the data, whose hidden units in {type(energy).__name__} have no closed sum"
        return None

    def noisy(self, data: State, key: PRNGKeyArray) -> State:
        """The data, with noise if `data_noise` is not 0."""
        if not self.data_noise:
            return data
        return data + self.data_noise * jax.random.normal(key, data.shape, data.dtype)

    def clipped(self, gradient: Any, norm: Array) -> Any:
        """A gradient of this norm, scaled to `clip` where it is longer."""
        if self.clip == math.inf:
            return gradient
        factor = jnp.minimum(1, self.clip / jnp.where(norm > 0, norm, 1))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)
