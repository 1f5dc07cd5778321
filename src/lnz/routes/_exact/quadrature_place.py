"""Where the mass of a continuous energy is: the centre, the axes and the scales of a grid that resolves it."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lnz._core.energy import Energy
from lnz._core.numerics import log_sum_exp
from lnz._core.spaces import Box
from lnz.routes._exact.quadrature_grid import (
    Place,
    Rule,
    beyond_range,
    grids_of,
    integral_on,
    no_values,
    states_of,
    turns,
)

_WIDE = 12.5  # range of the first grid, as a multiple
_ROUNDS = 12  # of the search for the axes
_GOOD = 0.01  # nats between two grids that resolve the mass
_SHARE = 0.05  # of the mass at one node, above which a grid does not resolve it
_OBLONG = 3.0  # ratio of the scales along two directions between the axes, above which the axes are turned


def locate(energy: Energy, n: int) -> Place:
    """Centre and scale of each dimension from the mass on coarser grids, starting wide. Only unbounded dimensions use them.

    The scale is half the geometric mean of |x - centre|, a quarter of the standard deviation of a normal distribution, and unmoved by heavy tails.
    Where grids along the coordinates disagree, those of a real space are laid along the scatter of the mass, if they agree better.
    """
    energy = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, energy)
    size = math.prod(energy.space.shape)
    dtype = jnp.result_type(float)
    start = Place(jnp.zeros((size,), dtype), jnp.eye(size, dtype=dtype), jnp.ones((size,), dtype))
    if isinstance(energy.space, Box) and energy.space.bounded:
        return start

    place = _closer(energy, _WIDE, n, start)
    place = jax.lax.fori_loop(0, 7, lambda i, place: _closer(energy, _reach(i, 10), n // 2, place), place)
    if size == 1 or not turns(energy.space):
        return place
    turned = jax.lax.fori_loop(0, _ROUNDS, lambda i, place: _turned(energy, _reach(i, 1), n // 4, place), start)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), place, turned)
    trouble = jax.lax.map(lambda place: _trouble(energy, n, place), both)
    better = (trouble[0] > _GOOD) & (trouble[1] < 0.5 * trouble[0])
    return jax.tree.map(lambda old, new: jnp.where(better, new, old), place, turned)


def _reach(i: Array, divisor: int) -> Array:
    """The range of grid i of a search: wide at first, and 1 from the third on."""
    return jnp.maximum(_WIDE / divisor / 10.0 ** i.astype(float), 1.0)


def _closer(energy: Energy, reach: Array | float, points: int, place: Place) -> Place:
    """Refined centre and scale of each dimension, from those of the grid."""
    centre, axes, scale = place

    def moments(x: Array) -> tuple[Array, Array]:
        x = x.reshape(-1)
        return x, jnp.log(jnp.maximum(jnp.abs(x - centre), 1e-6 * scale))

    rules = grids_of(energy.space, max(33, points | 1), place, reach)
    mean, log_size = integral_on(energy, moments, rules, place).mean
    spread = 0.5 * jnp.exp(log_size)
    good = jnp.isfinite(mean) & jnp.isfinite(spread)
    # A mode narrower than the grid looks like a point, so the scale shrinks by at most a factor of 20 at once.
    new = jnp.where(good, jnp.clip(spread, scale / 20, scale * 1e4), scale)
    return Place(jnp.where(good, mean, centre), axes, new)


def _trouble(energy: Energy, n: int, place: Place) -> Array:
    """How far two grids at this place disagree about log Z, in nats; 0 where the integral grows at the ends of the range, which is an answer."""
    fine, rough = (
        integral_on(energy, no_values, grids_of(energy.space, m | 1, place, 1.0, uneven=True), place)
        for m in (n // 2, n // 3)
    )
    apart = jnp.abs(fine.log_z - rough.log_z)
    return jnp.where(beyond_range(fine.zones)[0], 0, jnp.where(jnp.isnan(apart), jnp.inf, apart))


def _turned(energy: Energy, reach: Array | float, points: int, place: Place) -> Place:
    """A better place, from the mass on the grid at the given one; tempered where the mass is narrower than the grid.

    The axes turn along the scatter of directions (Tyler's estimate of shape, which needs no moments).
    """
    space, size = energy.space, place.centre.size
    rules = grids_of(space, max(33, points | 1), place, reach)
    nodes = jnp.stack([x.reshape(-1) for x in jnp.meshgrid(*(rule.nodes for rule in rules), indexing="ij")], axis=-1)
    log_w = jnp.stack(jnp.meshgrid(*(rule.log_weights for rule in rules), indexing="ij")).sum(axis=0).reshape(-1)
    energies = jax.vmap(energy)(states_of(space, place, nodes)).astype(log_w.dtype)
    p, resolved = _tempered_mass(log_w, jnp.where(energies > -jnp.inf, energies, jnp.inf))
    middle = jnp.where(resolved, p @ nodes, _medians(p, rules))
    away = nodes - middle[None]

    def sizes(x: Array, largest: Any) -> Array:
        return jnp.clip(jnp.exp(p @ jnp.log(jnp.maximum(jnp.abs(x), 1e-6))), 0.1, largest)

    along_axes = sizes(away, jnp.where(resolved, 200.0, 1.0))  # heavy tails, tempered, have their mass at the ends
    scales, axes = 0.5 * place.scales * along_axes, place.axes
    away = away / along_axes[None]
    direction = away / jnp.maximum(jnp.linalg.norm(away, axis=1, keepdims=True), 1e-30)
    shape, turned = jnp.linalg.eigh((direction * p[:, None]).T @ direction)
    shape = jnp.maximum(size * shape, 1e-3)
    turn = (turned * shape[None]) @ turned.T
    turn = turn * sizes(jnp.linalg.solve(turn, away.T).T, 10.0)[None]
    principal = jnp.linalg.svd(axes @ (scales[:, None] * turn))
    oblong = shape[-1] > _OBLONG * shape[0]
    axes, scales = jnp.where(oblong, principal[0], axes), jnp.where(oblong, principal[1], scales)
    centre = place.centre + place.axes @ (place.scales * middle)
    # Beyond this, rounding of the axes leaves a valley before it ends.
    good = jnp.isfinite(centre).all() & jnp.isfinite(axes).all() & (jnp.max(scales) < 1e-3 / jnp.finfo(p.dtype).eps)
    new = Place(centre, axes, scales)
    return jax.tree.map(lambda old, found: jnp.where(good, found, old), place, new)


def _tempered_mass(log_w: Array, energies: Array) -> tuple[Array, Array]:
    """The shares of the nodes in the mass of p^β, with the largest β up to 1 that the grid resolves, and whether that is 1."""

    def mass(beta: Array) -> Array:
        logits = jnp.where(energies == jnp.inf, -jnp.inf, log_w - beta * energies)
        return jnp.exp(logits - log_sum_exp(logits))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        fine = jnp.max(mass(jnp.exp(middle))) <= _SHARE
        return jnp.where(fine, middle, low), jnp.where(fine, high, middle)

    zero = jnp.zeros((), log_w.dtype)
    resolved = ~(jnp.max(mass(zero + 1)) > _SHARE)
    log_beta = jnp.where(resolved, 0, jax.lax.fori_loop(0, 12, halve, (zero - 80, zero))[0])
    return mass(jnp.exp(log_beta)), resolved


def _medians(p: Array, rules: list[Rule]) -> Array:
    """The median of every coordinate."""
    table = p.reshape(tuple(rule.nodes.size for rule in rules))

    def median(i: int, nodes: Array) -> Array:
        marginal = table.sum(axis=tuple(j for j in range(len(rules)) if j != i))
        below = jnp.searchsorted(jnp.cumsum(marginal), 0.5 * jnp.sum(marginal))
        return nodes[jnp.minimum(below, nodes.size - 1)]

    return jnp.stack([median(i, rule.nodes) for i, rule in enumerate(rules)])
