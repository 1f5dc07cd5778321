"""Energies with a parameter that stands for their log Z."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from lnz._core.capabilities import Annealable, Marginal, free_energy_of, observed_space
from lnz._core.energy import Energy, ModelLike, as_energy
from lnz._core.spaces import ArrayLike, Space, State
from lnz._models.independent import as_float, base_of


class SelfNormalised(Marginal, Annealable):
    """E(x) + c, where the parameter c stands for log Z, so that exp(-E(x) - c) becomes a probability once c is learned.

    Its own log Z is that of E minus c: 0 where c is right. Learn it by `NoiseContrastive`; the fitted model is `.energy`.

    Args:
        energy: any energy.
        log_z: the initial c, in nats.

    Example:
        >>> import lnz
        >>> model = lnz.SelfNormalised(lnz.Gaussian([0.0], [1.0]), log_z=0.9)
        >>> round(float(lnz.log_partition(model).value), 4)  # ½ log 2π - 0.9
        0.0189
    """

    energy: Energy
    log_z: Float[Array, ""]

    def __init__(self, energy: ModelLike, log_z: ArrayLike = 0.0):
        number = jnp.asarray(log_z, jnp.result_type(float)) if isinstance(log_z, int | float) else as_float(log_z)
        self.energy, self.log_z = as_energy(energy), number
        if self.log_z.shape != ():
            raise ValueError(f"log_z must be one number, but got an array of shape {self.log_z.shape}")

    @property
    def space(self) -> Space:
        return self.energy.space

    @property
    def observed(self) -> Space:
        return observed_space(self.energy)

    def __call__(self, x: State) -> Array:
        return self._shifted(self.energy(x))

    def free_energy(self, v: State) -> Array:
        return self._shifted(free_energy_of(self.energy)(v))

    def base(self) -> Energy:
        return base_of(self.energy)

    def _shifted(self, e: Array) -> Array:
        return e + self.log_z.astype(e.dtype)
