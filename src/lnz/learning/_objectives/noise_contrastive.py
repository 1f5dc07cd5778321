"""Noise-contrastive estimation: log Z as a parameter of a classifier of data against noise."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space, require_normalised
from lnz._core.energy import as_energy
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number, softplus
from lnz._core.objective import Objective
from lnz._models.self_normalised import SelfNormalised
from lnz.learning._gradients import cast
from lnz.learning._objectives.score_matching import required


@dataclasses.dataclass(frozen=True)
class NoiseContrastive(Objective):
    """-log P(data | x) - Σ_k log P(noise | y_k), in nats, for an example x and ν samples y_k of noise.

    P(data | x) = 1 / (1 + ν e^-G(x)) with G(x) = log p_θ(x) - log p_noise(x). The model must be self-normalised: `lnz.SelfNormalised(energy)`
    has a parameter for log Z, which is fitted with the others. Consistent for any noise that covers the data; as ν grows it becomes maximum
    likelihood. Noise far from the data is classified too easily, and gives little information.

    Attributes:
        noise: any energy on the data's space with a closed form and exact samples, such as `lnz.Gaussian`, `lnz.Independent` or `lnz.Mixture`;
            it is not trained.
        samples: ν, the number of noise samples per example.

    Source: Gutmann & Hyvärinen 2010, "Noise-contrastive estimation: a new estimation principle for unnormalized statistical models".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> model = lnz.SelfNormalised(lnz.Gaussian([0.0], [1.0]), log_z=0.5)
        >>> objective = lnz.learning.NoiseContrastive(lnz.Gaussian([0.0], [0.5]))
        >>> objective.loss(model, jnp.asarray([0.3]), key=jax.random.key(0)).shape
        ()
    """

    noise: Any
    samples: int = 1

    def __post_init__(self) -> None:
        check_whole_number("samples", self.samples)
        noise = as_energy(self.noise.value if isinstance(self.noise, Frozen) else self.noise)
        noise = require_normalised(noise, "the noise")
        object.__setattr__(self, "noise", Frozen(noise))

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        noise = jax.tree.map(jnp.asarray, self.noise.value)
        y = cast(energy, noise.sample(required(key, self), self.samples))
        log_noise, dtype = noise.log_normaliser(), jnp.result_type(float)

        def evidence(x: Any) -> Array:
            """log [P(data | x) / P(noise | x)]."""
            log_q = -free_energy_of(noise)(x).astype(dtype) - log_noise.astype(dtype)
            return -free_energy_of(energy)(x).astype(dtype) - log_q - math.log(self.samples)

        return softplus(-evidence(state)) + jnp.sum(softplus(jax.vmap(evidence)(y)))

    def unsupported_reason(self, energy: Any) -> str | None:
        noise = self.noise.value
        if observed_space(noise) != observed_space(energy):
            return f"the noise is on {observed_space(noise)}, but the data are on {observed_space(energy)}"
        if not isinstance(energy, SelfNormalised):
            return "it learns log Z as a parameter: wrap the energy as lnz.SelfNormalised(energy)"
        return None
