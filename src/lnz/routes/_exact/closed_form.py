"""log Z by a formula, for energies that have one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Normalised, observed_space, require_normalised
from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.routes._exact.enumeration import Enumeration
from lnz.routes._exact.quadrature import Quadrature


def _log_normaliser(energy: Energy) -> Array:
    return require_normalised(energy, "an energy of this route").log_normaliser()


def _with_gradient(energy: Energy) -> tuple[Any, Any]:
    gradient = eqx.filter_grad(_log_normaliser)(energy)
    return eqx.filter(energy, eqx.is_inexact_array), gradient


@dataclasses.dataclass(frozen=True)
class ClosedForm(Route):
    """log Z by the energy's own formula, `log_normaliser()` of a `Normalised` energy. Exact; its gradient is the formula's derivative.

    Expectations of other functions are computed where the observed states can be enumerated or integrated on a grid.
    """

    def unsupported_reason(self, energy: Energy) -> str | None:
        return f"{type(energy).__name__} has no closed form of log Z" if energy.offers(Normalised) is None else None

    def cost(self, energy: Energy) -> float:
        return 1.0

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        energy = widen(energy)
        value = _log_normaliser(energy)
        # The change by a relative rounding of every parameter (the terms of a formula may cancel), and of the value itself.
        fixed = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, energy)
        parts = jax.tree.map(lambda t, g: jnp.sum(jnp.abs(jnp.where(g == 0, 0, t * g))), *_with_gradient(fixed))
        scale = 1 + jnp.abs(value) + sum(part.astype(value.dtype) for part in jax.tree.leaves(parts))
        rounding = jax.lax.stop_gradient(16 * jnp.finfo(value.dtype).eps * scale)
        return exact(value, rounding=rounding, route="a closed form")

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        return eqx.filter_grad(lambda e: _log_normaliser(widen(e)))(energy)

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        route = Enumeration() if observed_space(energy).discrete else Quadrature()
        route.require(energy, key)
        return route.expectation(energy, f, key)
