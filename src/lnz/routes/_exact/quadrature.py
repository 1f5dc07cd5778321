"""log Z and expectations of continuous energies in one to three dimensions, by product quadrature with an error estimate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import FreeEnergy, observed_space
from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.route import Route
from lnz._core.spaces import Box, Real, State
from lnz.routes._exact.quadrature_grid import Integral, Place, Rule, beyond_range, grids_of, integral_on, no_values
from lnz.routes._exact.quadrature_place import locate

_POINTS = {1: 2**16 + 1, 2: 1025, 3: 161}
_COARSE = 0.05  # nats, or as a share of E|f|: errors above it are warned about
_ROUNDING = 2048  # units in the last place: a block of the sum has 2^14 terms or more


@dataclasses.dataclass(frozen=True)
class Quadrature(Route):
    """The integral on a product grid, for at most three real dimensions.

    A bounded dimension uses composite Gauss-Legendre panels. An unbounded one is mapped to (-1, 1), or to half of it, centred and
    scaled by the mass on coarser grids, and uses the trapezium rule in the mapped variable, which converges faster than any power
    for smooth integrands. In a real space the grid is laid along the scatter of the mass, so that a narrow ridge in any direction is resolved.
    The error is twice the larger difference to two rules with fewer points and, where a dimension is unbounded, a smaller range, and of the tail
    beyond the range if it continues to decay at the same rate. It assumes that the grids resolve the energy, so the estimate is `approximate`;
    where they disagree it carries a warning. In one dimension they miss a mode that is narrower than about 1/10,000 of its distance from the
    rest; in two and three, than about 1/100 and 1/10.

    An integral that still grows at the open ends of the range (the outermost zone there holds at least as much as the next one) is
    infinite, or its tails are too heavy for this rule: log Z is +inf with the integral over the range as its lower bound, and
    expectations are NaN; where the value is not traced, both raise. The same test is made of |f| e^-E for every expectation: where it has no
    integral, E[f] is ±inf if f has one sign there and NaN otherwise; NaN too where |f| e^-E matters beyond the range of floats.

    An energy that is NaN or -inf far out, where overflows meet, counts as a large one if it is large half-way, or nearer, to the centre.

    Attributes:
        points: points per dimension; by default 65537, 1025 and 161 for one, two and three dimensions.
    """

    points: int | None = None

    def __post_init__(self) -> None:
        if self.points is not None and (not isinstance(self.points, int | np.integer) or self.points < 9):
            raise ValueError(f"points must be an integer of at least 9, but is {self.points!r}")

    def unsupported_reason(self, energy: Energy) -> str | None:
        space = observed_space(energy)
        if not isinstance(space, Real | Box):
            return f"{space} is not continuous" if space.discrete else f"{space} is not a plain real space or box"
        size = math.prod(space.shape)
        return None if 1 <= size <= 3 else f"{size} dimensions, but quadrature supports one to three"

    def cost(self, energy: Energy) -> float:
        size = math.prod(observed_space(energy).shape)
        return float(self._points(size)) ** size

    def _points(self, dimensions: int) -> int:
        return self.points or _POINTS.get(dimensions, 1)

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        return self.integrate(energy, no_values)[0]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        return self.integrate(energy, f)[1]

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂_θ E], and where the bounds of a box are parameters the boundary term (T4): Σ p(face) ∂bound/∂θ, outwards."""
        mean = super().mean_gradient(energy, key)
        if not observed_space(energy).moving:
            return mean
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

        def limits_of(p: Any) -> Any:
            space: Any = observed_space(eqx.combine(p, constants))
            return space.limits

        limits, pull_back = jax.vjp(limits_of, parameters)
        low, high = self._faces(energy)
        (boundary,) = pull_back(
            tuple(
                side.reshape(limit.shape).astype(limit.dtype) for side, limit in zip((-low, high), limits, strict=True)
            )
        )
        return jax.tree.map(lambda m, b: m + b.astype(m.dtype), mean, boundary)

    def _faces(self, energy: Energy) -> tuple[Array, Array]:
        """The marginal density at the lower and the upper face of every dimension: p(x_i = bound_i)."""
        energy = FreeEnergy(widen(energy))
        size = math.prod(energy.space.shape)
        place = self.place(energy)  # of a bounded box: no search
        grids = grids_of(energy.space, self._points(size), place, 1.0)
        log_z = integral_on(energy, no_values, grids, place).log_z

        def density(i: int, limit: Array) -> Array:
            zero = jnp.zeros((1,), log_z.dtype)
            face = Rule(limit.reshape(1).astype(log_z.dtype), zero, jnp.zeros((1,), jnp.int32))
            sides = [face if j == i else grid for j, grid in enumerate(grids)]
            return jnp.exp(integral_on(energy, no_values, sides, place).log_z - log_z)

        space: Any = energy.space
        sides = [limit.reshape(-1) for limit in space.limits]
        low, high = (jnp.stack([density(i, limit) for i, limit in enumerate(side)]) for side in sides)
        return low, high

    def place(self, energy: Energy) -> Place:
        """Where the mass is, for `integrate`."""
        energy = FreeEnergy(widen(energy))
        return locate(energy, self._points(math.prod(energy.space.shape)))

    def integrate(
        self, energy: Energy, f: Callable[[State], Any], place: Place | None = None
    ) -> tuple[Estimate, Estimate]:
        """log Z and E[f], from grids at a place that is known, or is looked for."""
        place = self.place(energy) if place is None else place
        energy = FreeEnergy(widen(energy))
        space, n = energy.space, self._points(math.prod(energy.space.shape))
        fine = integral_on(energy, f, grids_of(space, n, place, 1.0), place)
        rough = integral_on(energy, f, grids_of(space, 2 * n // 3 | 1, place, 0.5, uneven=True), place)
        coarse = integral_on(
            energy, _with_noise(energy, f), grids_of(space, n // 2 | 1, place, 0.25, uneven=True), place
        )
        mean, noise = coarse.mean
        endless, unseen = beyond_range(fine.zones)
        unseen = jax.lax.stop_gradient(jnp.log1p(unseen))
        route = f"quadrature on {n}^{math.prod(space.shape)} points"

        values = fine.log_z + fine.broken, rough.log_z, coarse.log_z
        log_z = _compared(route, *values, unseen + noise)
        unresolved = {EstimateWarning.UNRESOLVED_INTEGRAL: ~endless & ~(log_z.standard_error <= _COARSE)}
        log_z = dataclasses.replace(
            log_z,
            value=jnp.where(endless, jnp.inf, log_z.value),
            lower=jnp.where(endless, values[1], log_z.lower),
            standard_error=jnp.where(endless, jnp.inf, log_z.standard_error),
            upper=jnp.where(endless, jnp.inf, log_z.upper),
            flags=unresolved,
        )
        known = jax.tree.map(lambda v: jnp.where(endless | (fine.broken != 0), jnp.nan, v), fine.mean)
        means = _compared(route, known, rough.mean, mean)
        return log_z, _with_tails(dataclasses.replace(means, flags=unresolved), fine, unseen)


def _with_noise(energy: Energy, f: Callable[[State], Any]) -> Callable[[State], Any]:
    """f, and the change of the energy when every coordinate moves by a rounding, in turns up and down."""

    def both(x: State) -> tuple[Any, Array]:
        flat = x.reshape(-1)
        turns = jnp.where(jnp.arange(flat.size) % 2 == 0, 1, -1).astype(flat.dtype)
        moved = (flat * (1 + turns * jnp.finfo(flat.dtype).eps)).reshape(x.shape)
        return f(x), jax.lax.stop_gradient(jnp.abs(energy(moved) - energy(x)))

    return both


def _with_tails(means: Estimate, fine: Integral, unseen: Array) -> Estimate:
    """Expectations with the error of what lies beyond the range; infinite, or NaN, where |f| e^-E has no integral."""

    def claim(value: Array, error: Array, sizes: Array, signed: Array, lost: Array) -> tuple[Array, Array, Array]:
        endless, beyond = beyond_range(jax.lax.stop_gradient(sizes))
        error = error + 2 * (beyond + jnp.abs(jax.lax.stop_gradient(value)) * jnp.expm1(unseen))
        outer = jax.lax.stop_gradient(signed)[..., 2]
        sign = jnp.where(jnp.abs(outer) > 0.99 * sizes[..., 2], jnp.sign(outer), jnp.nan)
        coarse = jnp.any(~endless & ~(error <= _COARSE * (sizes.sum(-1) + _ROUNDING * jnp.finfo(error.dtype).eps)))
        value = jnp.where(lost, jnp.nan, jnp.where(endless, sign * jnp.inf, value))
        return value, jnp.where(endless, jnp.inf, error), coarse

    claims = jax.tree.map(claim, means.value, means.standard_error, fine.sizes, fine.signed, fine.lost)
    value, error, coarse = (jax.tree.map(lambda _, c, i=i: c[i], means.value, claims) for i in range(3))
    unresolved = jax.tree.reduce(jnp.logical_or, coarse, means.flags[EstimateWarning.UNRESOLVED_INTEGRAL])
    return dataclasses.replace(
        means,
        value=value,
        standard_error=error,
        lower=jax.tree.map(lambda v, m, e: jnp.where(jnp.isposinf(v), m, v - e), value, fine.mean, error),
        upper=jax.tree.map(lambda v, m, e: jnp.where(jnp.isneginf(v), m, v + e), value, fine.mean, error),
        flags={EstimateWarning.UNRESOLVED_INTEGRAL: unresolved},
    )


def _compared(route: str, fine: Any, rough: Any, coarse: Any, beyond: Array | float = 0.0) -> Estimate:
    """The values on the finest grid, with an error from their differences to those on the others, and from the tails beyond all grids."""

    def error(a: Array, b: Array, c: Array) -> Array:
        apart = jnp.maximum(_difference(a, b), _difference(a, c))
        rounding = _ROUNDING * jnp.finfo(a.dtype).eps * (1 + jnp.abs(a))
        return jax.lax.stop_gradient(2 * (apart + beyond) + rounding)

    size = jax.tree.map(error, fine, rough, coarse)
    lower = jax.tree.map(lambda v, e: v - e, fine, size)
    upper = jax.tree.map(lambda v, e: v + e, fine, size)
    return Estimate(fine, size, lower, upper, guarantee="approximate", route=route)


def _difference(a: Array, b: Array) -> Array:
    return jnp.where(jnp.isfinite(a) | jnp.isfinite(b), jnp.abs(a - b), 0)
