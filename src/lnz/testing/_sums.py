"""Sums over the list of all states, in NumPy: what the checks compare with."""

from __future__ import annotations

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Product, Real, Space, State

STATES = 2**14
"""The most states that a check lists."""

UNLIKELY = 1e-6
"""The p-value below which a check of samples fails."""


class Sums:
    """Sums over all states of an energy, latent variables included, at parameters that are one vector, `flat`."""

    def __init__(self, energy: Energy):
        parameters, self._constants = eqx.partition(energy, eqx.is_inexact_array)
        self.flat, self._unravel = ravel_pytree(parameters)
        self.energy = energy

    @functools.cached_property
    def states(self) -> Any:
        """All states, latent variables included, in the order of their numbers."""
        return listed(self.energy.space)

    @functools.cached_property
    def observed(self) -> Any:
        return listed(observed_space(self.energy))

    def at(self, flat: Any) -> Energy:
        """The energy with these parameters."""
        return eqx.combine(self._unravel(flat), self._constants)

    @functools.cached_property
    def _both(self) -> Any:
        """Energies of all states and their derivatives, compiled once."""

        def one(flat: Any, x: State) -> Any:
            return jax.value_and_grad(lambda flat: self.at(flat)(x))(flat)

        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    def energies(self, flat: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """E (states,) and ∂E (states, parameters)."""
        values, slopes = self._both(self.flat if flat is None else jnp.asarray(flat, self.flat.dtype), self.states)
        return np.asarray(values, float), np.asarray(slopes, float).reshape(len(values), -1)

    def log_z(self, flat: Any = None) -> float:
        return float(log_sum(-self.energies(flat)[0]))

    def gradient(self, flat: Any = None) -> np.ndarray:
        """∇ log Z = E[-∂E] (T3). A state of probability zero is left out, be its derivative what it may."""
        values, slopes = self.energies(flat)
        p = np.exp(-values - log_sum(-values))
        return -p[p > 0] @ slopes[p > 0]

    @functools.cached_property
    def free_energies(self) -> np.ndarray:
        """F of every observed state, by the energy's own `free_energy`."""
        return np.asarray(jax.jit(jax.vmap(free_energy_of(self.energy)))(self.observed), float)

    @property
    def chances(self) -> np.ndarray:
        """p(v) of every observed state."""
        return np.exp(-self.free_energies - log_sum(-self.free_energies))


def log_sum(x: Any, axis: int | None = None) -> Any:
    """log Σ exp(x), -inf where every x is."""
    top = np.max(x, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.sum(np.exp(x - top), axis=axis)) + np.squeeze(top, axis)


def listed(space: Space) -> Any:
    """Every state of a discrete space, in the order of its numbers."""
    return jax.vmap(space.decode)(jnp.arange(space.count, dtype=jnp.uint32))


def draw(space: Space, key: PRNGKeyArray, n: int) -> Any:
    """Some states (n, *shape) of any space."""
    if isinstance(space, Product):
        keys = jax.random.split(key, len(space.spaces))
        return tuple(draw(part, key, n) for part, key in zip(space.spaces, keys, strict=True))
    return jax.random.normal(key, (n, *space.shape)) if isinstance(space, Real) else space.uniform(key, n)


def small(space: Space) -> bool:
    return bool(space.discrete and space.log_size <= np.log(STATES))


def rows_of(states: Any) -> np.ndarray:
    """States as rows of numbers."""
    parts = [np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in jax.tree.leaves(states)]
    return np.concatenate(parts, axis=1)


def frequencies(states: Any, drawn: Any) -> np.ndarray | None:
    """How often each of the listed states was drawn; None where a draw is not one of them."""
    number = {row.tobytes(): i for i, row in enumerate(rows_of(states))}
    found = [number.get(row.tobytes()) for row in rows_of(drawn)]
    return None if None in found else np.bincount(np.asarray(found, int), minlength=len(number))


def p_value(counts: np.ndarray, chances: np.ndarray) -> float:
    """Of a chi-square test of counts against the exact distribution. Cells of fewer than five expected counts are put together."""
    from scipy import stats

    expected = chances / chances.sum() * counts.sum()
    if counts[expected == 0].any():
        return 0.0
    few = expected < 5
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    keep = expected > 0
    statistic = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep])
    return float(stats.chi2.sf(statistic, max(keep.sum() - 1, 1)))


def difference(found: Any, wanted: Any) -> float:
    """The largest difference of two arrays, relative to the larger of 1 and the largest finite entry wanted; infinities must agree."""
    found, wanted = np.asarray(found, float), np.asarray(wanted, float)
    if found.shape != wanted.shape:
        return np.inf
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    if np.any(~same & ~(np.isfinite(found) & np.isfinite(wanted))):
        return np.inf
    size = max(1.0, np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
    return float(np.abs(found[~same] - wanted[~same]).max(initial=0)) / size


def tolerance(dtype: Any) -> float:
    """What rounding may do to a sum of some thousand terms."""
    return 1e3 * float(jnp.finfo(dtype).eps) ** 0.9
