"""Energy discrepancy: the energy of an example against that of states reached by a perturbation and back."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.numerics import check_whole_number, log_sum_exp
from lnz._core.objective import Objective
from lnz._core.spaces import Binary, Categorical, Real, Spin
from lnz.learning._objectives.score_matching import above_zero, required


@dataclasses.dataclass(frozen=True)
class EnergyDiscrepancy(Objective):
    """log (w/M + 1/M Σ_j exp(E(x) - E(x'_j))), in nats: x is perturbed once, and the result M times, to x'_1 … x'_M. No gradient in x, no chains.

    The perturbation is N(x, σ² I) for `Real` states; for bits, spins and categories every unit changes to one of its other values with
    probability σ. As M grows it is E_data[E(x)] - E_data E_{y|x}[-log Σ_x' q(y|x') e^-E(x')], which is smallest for the distribution of the
    data, whatever the perturbation: it is consistent as M grows, with a bias of about Var(weights) / 2M. Small σ approaches score matching
    (and is as insensitive to the weights of distant modes), large σ maximum likelihood, with more variance.

    Attributes:
        noise: σ: the standard deviation of a normal perturbation, in the units of x; or the probability that a unit changes.
        samples: M, the number of perturbed states per example.
        stabiliser: w, a count that bounds the logarithm from below, whose effect vanishes as M grows; 0 for none.

    Source: Schröder, Ou, Lim, Li, Vollmer & Duncan 2023, "Energy discrepancies: a score-independent loss for energy-based models" (w = 1).

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> objective = lnz.learning.EnergyDiscrepancy(noise=0.1, stabiliser=0)
        >>> float(objective.loss(lnz.Independent(jnp.zeros(3), lnz.Binary(3)), jnp.ones(3), key=jax.random.key(0)))
        0.0
    """

    noise: float
    samples: int = 16
    stabiliser: float = 1.0

    def __post_init__(self) -> None:
        above_zero("noise", self.noise)
        check_whole_number("samples", self.samples)
        if not isinstance(self.stabiliser, int | float | np.floating) or not 0 <= self.stabiliser < math.inf:
            raise ValueError(f"stabiliser must be finite and not negative, but is {self.stabiliser!r}")

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        first, *keys = jax.random.split(required(key, self), 1 + self.samples)
        x = jnp.asarray(state)
        y = self._perturbed(observed_space(energy), first, x)
        back = jax.vmap(lambda key: self._perturbed(observed_space(energy), key, y))(jnp.stack(keys))
        gaps = free_energy_of(energy)(x)[None] - jax.vmap(free_energy_of(energy))(back)
        if self.stabiliser:
            gaps = jnp.append(gaps, jnp.full((1,), math.log(self.stabiliser), gaps.dtype))
        return log_sum_exp(gaps) - math.log(self.samples)

    def _perturbed(self, space: Any, key: PRNGKeyArray, x: Array) -> Array:
        if isinstance(space, Real):
            return x + self.noise * jax.random.normal(key, x.shape, x.dtype)
        change_key, value_key = jax.random.split(key)
        changed = jax.random.uniform(change_key, x.shape, jnp.float32) < self.noise
        if isinstance(space, Categorical):
            others = max(2, space.k)
            other = (x + jax.random.randint(value_key, x.shape, 1, others, x.dtype)) % jnp.asarray(others, x.dtype)
        else:
            other = -x if isinstance(space, Spin) else 1 - x
        return jnp.where(changed, other, x)

    def unsupported_reason(self, energy: Any) -> str | None:
        space = observed_space(energy)
        if not isinstance(space, Real | Binary | Spin | Categorical):
            return f"the perturbation needs a Real, Binary, Spin or Categorical space, not {space}"
        if not isinstance(space, Real) and self.noise >= 1:
            return f"noise is the probability that a unit changes, so it must be below 1, but is {self.noise:g}"
        if isinstance(space, Categorical) and space.k < 2:
            return "units of one category cannot change"
        return None
