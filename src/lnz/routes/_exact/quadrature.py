"""log Z and expectations of continuous energies in one to three dimensions, by product quadrature with an error estimate."""

from __future__ import annotations

import dataclasses
import functools
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
from lnz._core.numerics import log_sum_exp
from lnz._core.route import Route
from lnz._core.spaces import Box, Real, State

_POINTS = {1: 2**16 + 1, 2: 1025, 3: 161}
_REACH = 800.0  # range of the final grid on a line, in units of its scale
_WIDE = 12.5  # range of the first grid, as a multiple
_EDGE = 0.1  # width of the outer zone at each open end of the mapped range (-1, 1); the next zone is as wide
_ROUNDING = 2048  # units in the last place: a block of the sum has 2^14 terms or more


@dataclasses.dataclass(frozen=True)
class Quadrature(Route):
    """The integral on a product grid, for at most three real dimensions.

    A bounded dimension uses composite Gauss-Legendre panels. An unbounded one is mapped to (-1, 1), or to half of it, centred and
    scaled by the mass on coarser grids, and uses the trapezium rule in the mapped variable, which converges faster than any power
    for smooth integrands. The error is twice the larger difference to two rules with fewer points and, where a dimension is unbounded, a
    smaller range, and of the tail beyond the range if it continues to decay at the same rate. It assumes that the grids resolve the energy, so
    the estimate is `approximate`. In one dimension they miss a mode that is narrower than about 1/10,000 of its distance from the rest;
    in two and three, than about 1/100 and 1/10.

    An integral that still grows at the open ends of the range (the outermost zone there holds at least as much as the next one) is
    infinite, or its tails are too heavy for this rule: log Z is +inf with the integral over the range as its lower bound, and
    expectations are NaN; where the value is not traced, both raise.

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
        return self._integrate(energy, lambda x: ())[0]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        return self._integrate(energy, f)[1]

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
        n = self._points(math.prod(energy.space.shape))
        grids = grids_of(energy.space, n, jnp.zeros(()), jnp.ones(()), 1.0)
        log_z = _fold(energy, lambda x: (), grids)[0]

        def density(i: int, limit: Array) -> Array:
            face = (limit.reshape(1).astype(log_z.dtype), jnp.zeros((1,), log_z.dtype), jnp.zeros((1,), jnp.int32))
            return jnp.exp(
                _fold(energy, lambda x: (), [face if j == i else grid for j, grid in enumerate(grids)])[0] - log_z
            )

        space: Any = energy.space
        sides = [limit.reshape(-1) for limit in space.limits]
        low, high = (jnp.stack([density(i, limit) for i, limit in enumerate(side)]) for side in sides)
        return low, high

    def _integrate(self, energy: Energy, f: Callable[[State], Any]) -> tuple[Estimate, Estimate]:
        energy = FreeEnergy(widen(energy))
        space, n = energy.space, self._points(math.prod(energy.space.shape))
        centre, scale = locate(energy, n)
        *fine, zones = _fold(energy, f, grids_of(space, n, centre, scale, 1.0))
        rough = _fold(energy, f, grids_of(space, 2 * n // 3 | 1, centre, scale, 0.5))[:2]
        coarse = _fold(energy, f, grids_of(space, n // 2 | 1, centre, scale, 0.25))[:2]
        endless = (zones[2] > 0.01) & (zones[2] > 0.98 * zones[1])
        fall = jnp.minimum(zones[2] / jnp.where(zones[1] > 0, zones[1], 1), 0.98)
        unseen = jax.lax.stop_gradient(
            jnp.log1p(zones[2] * fall / (1 - fall))
        )  # a tail that continues to decay at the same rate
        route = f"quadrature on {n}^{math.prod(space.shape)} points"

        log_z = _compared(route, fine[0], rough[0], coarse[0], unseen)
        log_z = dataclasses.replace(
            log_z,
            value=jnp.where(endless, jnp.inf, log_z.value),
            standard_error=jnp.where(endless, jnp.inf, log_z.standard_error),
            upper=jnp.where(endless, jnp.inf, log_z.upper),
        )
        known = jax.tree.map(lambda value: jnp.where(endless, jnp.nan, value), fine[1])
        return log_z, _compared(route, known, rough[1], coarse[1])


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


def locate(energy: Energy, n: int) -> tuple[Array, Array]:
    """Centre and scale of each dimension from the mass on coarser grids, starting wide. Only unbounded dimensions use them.

    The scale is half the geometric mean of |x - centre|, a quarter of the standard deviation of a normal distribution, and unmoved by heavy tails.
    """
    energy = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, energy)
    size = math.prod(energy.space.shape)
    dtype = jnp.result_type(float)
    start = jnp.zeros((size,), dtype), jnp.ones((size,), dtype)
    if isinstance(energy.space, Box) and energy.space.bounded:
        return start

    place = _closer(energy, _WIDE / 10, n // 2, _closer(energy, _WIDE, n, start))
    return jax.lax.fori_loop(0, 6, lambda _, place: _closer(energy, 1.0, n // 2, place), place)


def _closer(energy: Energy, reach: float, points: int, place: tuple[Array, Array]) -> tuple[Array, Array]:
    """Refined centre and scale of each dimension, from those of the grid."""
    centre, scale = place

    def moments(x: Array) -> tuple[Array, Array]:
        x = x.reshape(-1)
        return x, jnp.log(jnp.maximum(jnp.abs(x - centre), 1e-6 * scale))

    grids = grids_of(energy.space, max(33, points | 1), centre, scale, reach)
    mean, log_size = _fold(energy, moments, grids)[1]
    spread = 0.5 * jnp.exp(log_size)
    good = jnp.isfinite(mean) & jnp.isfinite(spread)
    # A mode narrower than the grid looks like a point, so the scale shrinks by at most a factor of 20 at once.
    return jnp.where(good, mean, centre), jnp.where(good, jnp.clip(spread, scale / 20, scale * 1e4), scale)


def grids_of(space: Any, n: int, centre: Array, scale: Array, reach: float) -> list[tuple[Array, Array, Array]]:
    """Nodes, log weights and zones of every dimension. Zone 2 is the outermost at an open end, 1 the next, 0 the rest."""
    low, high = (limit.reshape(-1) for limit in space.limits)
    if isinstance(space, Box) and space.bounded:
        return [_panels(a, b, n) for a, b in zip(low, high, strict=True)]
    return [
        _rule(float(a), float(b), n, centre[i], scale[i], reach) for i, (a, b) in enumerate(zip(low, high, strict=True))
    ]


def _panels(low: Any, high: Any, n: int) -> tuple[Array, Array, Array]:
    """Composite Gauss-Legendre panels between finite bounds, which may be traced."""
    dtype = jnp.result_type(float)
    order = min(16, n)
    panels = max(1, n // order)
    x, w = np.polynomial.legendre.leggauss(order)
    nodes = (np.arange(panels)[:, None] + (1 + x) / 2).ravel() / panels  # on (0, 1)
    log_w = np.log(np.tile(w, panels) / (2 * panels))
    low, high = (jnp.asarray(limit, dtype) for limit in (low, high))
    return (
        low + (high - low) * jnp.asarray(nodes, dtype),
        jnp.log(high - low) + jnp.asarray(log_w, dtype),
        jnp.zeros(nodes.size, jnp.int32),
    )


def _rule(low: float, high: float, n: int, centre: Array, scale: Array, reach: float) -> tuple[Array, Array, Array]:
    dtype = jnp.result_type(float)
    if math.isfinite(low) and math.isfinite(high):
        return _panels(low, high, n)
    # x = c + s R sinh(a t) / sinh(a) on the line, x = low + exp(…) on a half-line; equal steps in t.
    t = np.linspace(-1, 1, n)
    step = t[1] - t[0]
    zone = jnp.asarray((np.abs(t) > 1 - 2 * _EDGE).astype(np.int32) + (np.abs(t) > 1 - _EDGE))
    far = _REACH * reach
    a = math.log(far)
    line = centre + scale * jnp.asarray(far * np.sinh(a * t) / np.sinh(a), dtype)
    log_line = jnp.log(scale) + jnp.asarray(np.log(far * a * np.cosh(a * t) / np.sinh(a) * step), dtype)
    if not math.isfinite(low) and not math.isfinite(high):
        return line, log_line, zone
    sign, end = (1.0, low) if math.isfinite(low) else (-1.0, high)
    # Exponential-sinh: x - end = s · exp(k sinh(u)); it reaches 0 and ∞ doubly exponentially fast.
    u_max = 4.4 + 0.3 * math.log(min(reach, 1.0))
    log_y = 0.5 * np.pi * np.sinh(u_max * t)
    distance = jnp.maximum(jnp.abs(centre - end), scale)
    log_x = jnp.log(distance) + jnp.asarray(log_y, dtype)
    # There are no nodes nearer to the end than rounding can resolve.
    nearest = 64 / min(reach, 1.0) ** 4 * float(jnp.finfo(dtype).eps) * abs(end)
    limit = 300.0 if dtype == jnp.dtype("float64") else 80.0
    inside = (jnp.abs(log_x) < limit) & (log_x > (math.log(nearest) if nearest > 0 else -math.inf))
    log_jacobian = log_x + jnp.asarray(np.log(0.5 * np.pi * np.cosh(u_max * t) * u_max * step), dtype)
    nodes = end + sign * jnp.exp(jnp.where(inside, log_x, 0))
    # Mass that is narrow compared with its distance from the end uses the grid of the line.
    beyond = sign * (line - end) > 0
    narrow = distance > 120 * scale
    nodes = jnp.where(narrow, jnp.where(beyond, line, centre), nodes)
    log_w = jnp.where(narrow, jnp.where(beyond, log_line, -jnp.inf), jnp.where(inside, log_jacobian, -jnp.inf))
    return nodes, log_w, zone


def _fold(
    energy: Energy, f: Callable[[State], Any], grids: list[tuple[Array, Array, Array]]
) -> tuple[Array, Any, Array]:
    """log ∫ e^-E, the mean of f under p and the shares of the three zones, one block of the first dimension after the other."""
    shape, dtype = energy.space.shape, jnp.result_type(float)
    first, rest = grids[0], grids[1:]
    inner = [jnp.ravel(g) for g in jnp.meshgrid(*(nodes for nodes, _, _ in rest), indexing="ij")]
    inner_log_w, inner_zone = jnp.zeros((1,), dtype), jnp.zeros((1,), jnp.int32)
    for _, log_w, zone in rest:
        inner_log_w = (inner_log_w[:, None] + log_w[None]).reshape(-1)
        inner_zone = jnp.maximum(inner_zone[:, None], zone[None]).reshape(-1)

    def block(x0: Array, log_w0: Array, zone0: Array) -> tuple[Array, Any]:
        columns = [jnp.repeat(x0, inner_log_w.size)] + [jnp.tile(column, x0.size) for column in inner]
        states = jnp.stack(columns, axis=-1).reshape(-1, *shape)
        log_w = (log_w0[:, None] + inner_log_w[None]).reshape(-1)
        energies = jax.vmap(energy)(states).astype(dtype)
        logits = jnp.where(log_w > -jnp.inf, log_w - energies, -jnp.inf)
        log_b = log_sum_exp(logits)
        safe = jnp.where(log_b > -jnp.inf, log_b, 0)
        weights = jnp.exp(logits - safe)
        zone = jnp.maximum(zone0[:, None], inner_zone[None]).reshape(-1)
        values = jax.vmap(f)(states), jax.nn.one_hot(zone, 3, dtype=dtype)
        return log_b, jax.tree.map(functools.partial(_average, weights), values)

    per_block = max(1, min(first[0].size, 2**14 // inner_log_w.size))
    blocks = -(-first[0].size // per_block)
    pad = blocks * per_block - first[0].size
    x0 = jnp.pad(first[0], (0, pad), mode="edge").reshape(blocks, per_block)
    log_w0 = jnp.pad(first[1], (0, pad), constant_values=-jnp.inf).reshape(blocks, per_block)
    zone0 = jnp.pad(first[2], (0, pad)).reshape(blocks, per_block)
    logs, means = jax.lax.map(lambda b: block(*b), (x0, log_w0, zone0))
    log_z = log_sum_exp(logs)
    shares = jnp.exp(logs - jnp.where(log_z > -jnp.inf, log_z, 0))
    mean, zones = jax.tree.map(lambda m: jnp.tensordot(shares.astype(m.dtype), m, axes=1), means)
    return log_z, mean, zones


def _average(weights: Array, values: Array) -> Array:
    """Σ_i w_i x_i over the first axis; values of zero weight are ignored, even infinite ones."""
    values = values if jnp.issubdtype(values.dtype, jnp.inexact) else values.astype(weights.dtype)
    w = weights.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(w > 0, w * jnp.where(w > 0, values, 0), 0), axis=0)
