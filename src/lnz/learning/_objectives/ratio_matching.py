"""Ratio matching of the probabilities of states that differ in one bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import observed_space
from lnz._core.objective import Objective
from lnz._core.spaces import Binary, Spin
from lnz._models.single_site import single_changes


@dataclasses.dataclass(frozen=True)
class RatioMatching(Objective):
    """Σ_i P(x_i flipped | x_-i)²: the expected squared distance between the model's and the data's ratios of neighbours, up to a constant.

    With g(u) = 1 / (1 + u) it is E_data Σ_i g(p(x) / p(x with bit i flipped))², dimensionless, between 0 and the number of bits. Z cancels in the
    ratios. It is consistent, as pseudo-likelihood is; a tiny conditional contributes at most 1 here, and is unbounded there.

    For `Binary` and `Spin` states. Energies that offer `conditionals` need about one evaluation per state, others one per bit.

    Source: Hyvärinen 2007, "Some extensions of score matching".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> ring = lnz.Ising.lattice((4,), 0.5, periodic=True)
        >>> round(float(lnz.learning.RatioMatching().loss(ring, jnp.ones(4))), 4)  # 4 / (1 + e²)²
        0.0568
    """

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        return jnp.sum(jnp.square(jax.nn.sigmoid(single_changes(energy, state))))

    def unsupported_reason(self, energy: Any) -> str | None:
        space = observed_space(energy)
        return None if isinstance(space, Binary | Spin) else f"ratio matching needs a Binary or Spin space, not {space}"
