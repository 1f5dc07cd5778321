"""Product grids of one to three dimensions, and integrals on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.energy import Energy
from lnz._core.numerics import log_sum_exp
from lnz._core.spaces import Box, Real, State

_REACH = 800.0  # range of the final grid on a line, in units of its scale
_EDGE = 0.1  # width of the outer zone at each open end of the mapped range (-1, 1); the next zone is as wide
_SLOW = 0.98  # ratio of the outermost zone to the next, above which a tail has no integral
_NEGLIGIBLE = 30.0  # nats below log Z
_LOST = 1e-6  # share of E|f|


class Place(NamedTuple):
    """Where the mass is: its centre, its axes (orthonormal columns), and the scale along each."""

    centre: Float[Array, " d"]
    axes: Float[Array, "d d"]
    scales: Float[Array, " d"]


class Rule(NamedTuple):
    """Nodes of one dimension, their log weights, and their zones: 2 is the outermost at an open end, 1 the next, 0 the rest."""

    nodes: Float[Array, " n"]
    log_weights: Float[Array, " n"]
    zones: Any


def turns(space: Any) -> bool:
    return isinstance(space, Real)


def states_of(space: Any, place: Place, nodes: Array) -> Array:
    """The states (m, *shape) of the nodes (m, d) of a grid at this place."""
    x = place.centre[None] + (nodes * place.scales[None]) @ place.axes.T if turns(space) else nodes
    return x.reshape(-1, *space.shape)


def log_volume(space: Any, place: Place) -> Array:
    """What the log weight of every node gains because its coordinates are in units of the scales."""
    return jnp.sum(jnp.log(place.scales)) if turns(space) else jnp.zeros((), place.centre.dtype)


def grids_of(space: Any, n: int, place: Place, reach: Array | float, uneven: bool = False) -> list[Rule]:
    """The rule of every dimension; in a real space, along the axes in units of the scales. Uneven grids have more points in later dimensions,
    so that no diagonal goes through node after node."""
    low, high = (limit.reshape(-1) for limit in space.limits)
    counts = [n + 16 * i * uneven for i in range(low.size)]
    if isinstance(space, Box) and space.bounded:
        return [_panels(a, b, m) for a, b, m in zip(low, high, counts, strict=True)]
    centre, scale = place.centre, place.scales
    if turns(space):
        centre, scale = jnp.zeros_like(centre), jnp.ones_like(scale)
    return [
        _rule(float(a), float(b), m, centre[i], scale[i], reach)
        for i, (a, b, m) in enumerate(zip(low, high, counts, strict=True))
    ]


def _panels(low: Any, high: Any, n: int) -> Rule:
    """Composite Gauss-Legendre panels between finite bounds, which may be traced."""
    dtype = jnp.result_type(float)
    order = min(16, n)
    panels = max(1, n // order)
    x, w = np.polynomial.legendre.leggauss(order)
    nodes = (np.arange(panels)[:, None] + (1 + x) / 2).ravel() / panels  # on (0, 1)
    log_w = np.log(np.tile(w, panels) / (2 * panels))
    low, high = (jnp.asarray(limit, dtype) for limit in (low, high))
    return Rule(
        low + (high - low) * jnp.asarray(nodes, dtype),
        jnp.log(high - low) + jnp.asarray(log_w, dtype),
        jnp.zeros(nodes.size, jnp.int32),
    )


def _rule(low: float, high: float, n: int, centre: Array, scale: Array, reach: Array | float) -> Rule:
    dtype = jnp.result_type(float)
    if math.isfinite(low) and math.isfinite(high):
        return _panels(low, high, n)
    # x = c + s R sinh(a t) / sinh(a) on the line, x = low + exp(…) on a half-line; equal steps in t.
    t = np.linspace(-1, 1, n)
    step = t[1] - t[0]
    zone = jnp.asarray((np.abs(t) > 1 - 2 * _EDGE).astype(np.int32) + (np.abs(t) > 1 - _EDGE))
    xp: Any = np if isinstance(reach, float) else jnp
    far = _REACH * reach
    a = xp.log(far)
    line = centre + scale * jnp.asarray(far * xp.sinh(a * t) / xp.sinh(a), dtype)
    log_line = jnp.log(scale) + jnp.asarray(xp.log(far * a * xp.cosh(a * t) / xp.sinh(a) * step), dtype)
    if not math.isfinite(low) and not math.isfinite(high):
        return Rule(line, log_line, zone)
    sign, end = (1.0, low) if math.isfinite(low) else (-1.0, high)
    # Exponential-sinh: x - end = s · exp(k sinh(u)); it reaches 0 and ∞ doubly exponentially fast.
    # In float32 it stops where squares would overflow: an energy that is then infinite would hide a heavy tail.
    u_max = (4.4 if dtype == jnp.dtype("float64") else 3.9) + 0.3 * xp.log(xp.minimum(reach, 1.0))
    log_y = 0.5 * np.pi * xp.sinh(u_max * t)
    distance = jnp.maximum(jnp.abs(centre - end), scale)
    log_x = jnp.log(distance) + jnp.asarray(log_y, dtype)
    # There are no nodes nearer to the end than rounding can resolve.
    nearest = 64 / xp.minimum(reach, 1.0) ** 4 * float(jnp.finfo(dtype).eps) * abs(end)
    limit = 300.0 if dtype == jnp.dtype("float64") else 80.0
    inside = (jnp.abs(log_x) < limit) & (log_x > (xp.log(nearest) if end else -math.inf))
    log_jacobian = log_x + jnp.asarray(xp.log(0.5 * np.pi * xp.cosh(u_max * t) * u_max * step), dtype)
    nodes = end + sign * jnp.exp(jnp.where(inside, log_x, 0))
    # Mass that is narrow compared with its distance from the end uses the grid of the line.
    beyond = sign * (line - end) > 0
    narrow = distance > 120 * scale
    nodes = jnp.where(narrow, jnp.where(beyond, line, centre), nodes)
    log_w = jnp.where(narrow, jnp.where(beyond, log_line, -jnp.inf), jnp.where(inside, log_jacobian, -jnp.inf))
    return Rule(nodes, log_w, zone)


class Integral(NamedTuple):
    """log ∫ e^-E, the mean of f under p, the shares of the three zones, those of |f| and of f (…, 3), whether part of E|f| is beyond the
    range of floats, and what states of unknown energy add to log Z: 0, NaN or ∞."""

    log_z: Array
    mean: Any
    zones: Array
    sizes: Any
    signed: Any
    lost: Any
    broken: Array


def no_values(x: State) -> tuple[()]:
    return ()


def beyond_range(zones: Array) -> tuple[Array, Array]:
    """Whether an integral still grows at the ends of the range, and what lies beyond if it continues to fall at the same rate: zones (…, 3)."""
    total, inner, outer = zones.sum(-1), zones[..., 1], zones[..., 2]
    endless = (outer > 0.01 * total) & (outer > _SLOW * inner)
    fall = jnp.minimum(outer / jnp.where(inner > 0, inner, 1), _SLOW)
    return endless, outer * fall / (1 - fall)


def integral_on(energy: Energy, f: Callable[[State], Any], rules: list[Rule], place: Place) -> Integral:
    """The integral, one block of the first dimension after the other."""
    space, dtype = energy.space, jnp.result_type(float)
    first, rest = rules[0], rules[1:]
    inner = [jnp.ravel(g) for g in jnp.meshgrid(*(rule.nodes for rule in rest), indexing="ij")]
    inner_log_w = jnp.zeros((1,), dtype) + log_volume(space, place)
    inner_zone = jnp.zeros((1,), jnp.int32)
    for rule in rest:
        inner_log_w = (inner_log_w[:, None] + rule.log_weights[None]).reshape(-1)
        inner_zone = jnp.maximum(inner_zone[:, None], rule.zones[None]).reshape(-1)

    def block(x0: Array, log_w0: Array, zone0: Array) -> tuple[Any, Any]:
        columns = [jnp.repeat(x0, inner_log_w.size)] + [jnp.tile(column, x0.size) for column in inner]
        states = states_of(space, place, jnp.stack(columns, axis=-1))
        log_w = (log_w0[:, None] + inner_log_w[None]).reshape(-1)
        energies = jax.vmap(energy)(states).astype(dtype)
        unknown = _not_a_density(energies) & (log_w > -jnp.inf)
        logits = jnp.where((log_w > -jnp.inf) & ~unknown, log_w - energies, -jnp.inf)
        instead = jnp.where(unknown, log_w - _nearer(energy, states, unknown, place), -jnp.inf)
        doubt = (
            jnp.max(jnp.nan_to_num(instead, nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)),
            jnp.isnan(instead).any(),
        )
        log_b = log_sum_exp(logits)
        safe = jnp.where(log_b > -jnp.inf, log_b, 0)
        weights = jnp.exp(logits - safe)
        zone = jax.nn.one_hot(jnp.maximum(zone0[:, None], inner_zone[None]).reshape(-1), 3, dtype=dtype)
        values = jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(dtype), jax.vmap(f)(states)
        )
        by_zone = functools.partial(_average, weights[:, None] * zone)
        hidden = jax.tree.map(lambda x: _hidden(logits, weights, x), values)
        values = jax.tree.map(lambda x: jnp.where(jnp.isinf(x), 0, x), values)
        signed = jax.tree.map(by_zone, values)
        return (log_b, doubt, hidden), (
            _average(weights, zone),
            jax.tree.map(lambda x: by_zone(jnp.abs(x)), values),
            signed,
        )

    per_block = max(1, min(first.nodes.size, 2**14 // inner_log_w.size))
    blocks = -(-first.nodes.size // per_block)
    pad = blocks * per_block - first.nodes.size
    x0 = jnp.pad(first.nodes, (0, pad), mode="edge").reshape(blocks, per_block)
    log_w0 = jnp.pad(first.log_weights, (0, pad), constant_values=-jnp.inf).reshape(blocks, per_block)
    zone0 = jnp.pad(first.zones, (0, pad)).reshape(blocks, per_block)
    (logs, (doubts, undefined), hidden), sums = jax.lax.map(lambda b: block(*b), (x0, log_w0, zone0))
    log_z = log_sum_exp(logs)
    shares = jnp.exp(logs - jnp.where(log_z > -jnp.inf, log_z, 0))
    doubt = jnp.max(doubts)
    broken = jnp.where(doubt > log_z - _NEGLIGIBLE, jnp.where(doubt == jnp.inf, jnp.inf, jnp.nan), 0.0)
    broken = jnp.where(undefined.any(), jnp.nan, broken)
    zones, sizes, signed = jax.tree.map(functools.partial(_average, shares), sums)

    def out_of_sight(logs_hidden: Array, blocks: Array, size: Array) -> Array:
        lost = jnp.where(_column(shares > 0, blocks), 0, blocks).sum(-1)
        log_lost = jnp.where(lost > 0, jnp.log(jnp.where(lost > 0, lost, 1)) + _column(logs, lost), -jnp.inf)
        found = log_sum_exp(jnp.logaddexp(logs_hidden, jax.lax.stop_gradient(log_lost)), axis=0) - log_z
        return found > jnp.log(_LOST * size.sum(-1) + jnp.finfo(dtype).tiny)

    lost = jax.tree.map(out_of_sight, hidden, sums[1], sizes)
    mean = jax.tree.map(lambda x: x.sum(-1), signed)
    return Integral(log_z, mean, zones, sizes, signed, lost, broken)


def _hidden(logits: Array, weights: Array, values: Array) -> Array:
    """The log of what |f| e^-E adds at nodes where either factor, but not the product, is too small or too large for a float."""
    sizes = jnp.abs(jax.lax.stop_gradient(values))
    outside = (_column(weights == 0, sizes) & (sizes > 0)) | (sizes == jnp.inf)
    log_sizes = jnp.log(jnp.clip(sizes, jnp.finfo(sizes.dtype).tiny, jnp.finfo(sizes.dtype).max))
    return log_sum_exp(jnp.where(outside, log_sizes + _column(jax.lax.stop_gradient(logits), sizes), -jnp.inf), axis=0)


def _column(x: Array, like: Array) -> Array:
    """A vector along the first axis of another array."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _nearer(energy: Energy, states: Array, unknown: Array, place: Place) -> Array:
    """The energies of the unknown states after as many steps half-way to the centre as it takes until they are numbers; NaN or -inf after 12."""
    fixed = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, energy)
    states, centre = jax.lax.stop_gradient((states, place.centre.reshape(energy.space.shape)))

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        i, energies = carry
        nearer = jax.vmap(fixed)(centre[None] + (states - centre[None]) * 0.5**i).astype(energies.dtype)
        return i + 1, jnp.where(_not_a_density(energies), nearer, energies)

    start = jnp.ones((), states.dtype), jnp.where(unknown, jnp.nan, jnp.zeros(unknown.shape, states.dtype))
    return jax.lax.while_loop(lambda carry: (carry[0] <= 12) & _not_a_density(carry[1]).any(), step, start)[1]


def _not_a_density(energies: Array) -> Array:
    return jnp.isnan(energies) | (energies == -jnp.inf)


def _average(weights: Array, values: Array) -> Array:
    """Σ_i w_i x_i over the first axis, for weights (n,) or several columns of them (n, k), which come last; values of zero weight are ignored,
    even infinite ones."""
    w = weights.astype(values.dtype).reshape(weights.shape[0], *(1,) * (values.ndim - 1), *weights.shape[1:])
    values = values.reshape(*values.shape, *(1,) * (weights.ndim - 1))
    return jnp.sum(jnp.where(w > 0, w * jnp.where(w > 0, values, 0), 0), axis=0)
