"""Restricted Boltzmann machines padded with free units, so that small models of many sizes are learned by one compiled program.

A free unit has no bias and no weights, and learning leaves it so: what the other units do has the distribution that it has without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from lnz._models.rbm import RBM, GaussianRBM
from lnz.sklearn._visible_units import VisibleUnits, gaussian_rbm, padded_count

if TYPE_CHECKING:
    import optax

_Machine = RBM | GaussianRBM


def padded_machine(energy: _Machine, units: VisibleUnits) -> _Machine:
    """The machine with free units after its own."""
    visible = energy.observed.shape[0]
    more = units.per_unit() * (padded_count(visible) - visible)
    hidden = energy.hidden_bias.size
    w = np.pad(np.asarray(energy.weights), ((0, more), (0, padded_count(hidden) - hidden)))
    b, c = (
        np.pad(np.asarray(energy.visible_bias), (0, more)),
        np.pad(np.asarray(energy.hidden_bias), (0, w.shape[1] - hidden)),
    )
    if isinstance(energy, GaussianRBM):
        return gaussian_rbm(w, b, c, np.pad(np.asarray(energy.log_scale), (0, more)))
    space: Any = energy.observed
    shape = (padded_count(visible),)
    wider = type(space)(shape, space.k) if units.per_unit() > 1 else type(space)(shape)
    return RBM.from_parameters(w, b, c, visible=wider)


def machine_inside(energy: Any, like: _Machine) -> _Machine:
    """The machine without its padding, of the structure of another."""

    def part(whole: jax.Array, wanted: jax.Array) -> jax.Array:
        return jax.device_put(np.asarray(whole)[tuple(slice(n) for n in wanted.shape)])

    arrays = [part(a, b) for a, b in zip(_arrays(energy), _arrays(like), strict=True)]
    return eqx.tree_at(_arrays, like, arrays)


def padded_states(states: np.ndarray, energy: Any) -> np.ndarray:
    """States with value 0 for the free units of a padded machine."""
    return np.pad(states, ((0, 0), (0, energy.observed.shape[0] - states.shape[1])))


def learned_part(energy: Any, inside: _Machine) -> Any:
    """For every parameter of a padded machine, 1 where it is learned and 0 where it belongs to a free unit."""
    ones = [np.zeros(a.shape, np.float32) for a in _arrays(energy)]
    for array, own in zip(ones, _arrays(inside), strict=True):
        array[tuple(slice(n) for n in own.shape)] = 1
    whole = eqx.tree_at(_arrays, energy, [jax.device_put(array) for array in ones])
    return eqx.filter(whole, eqx.is_inexact_array)


def ascent(learning_rate: float, learned: Any) -> optax.GradientTransformation:
    """Plain gradient ascent of the learned part. It is the optimiser's state, so that machines of all sizes share one program."""
    import optax

    def init(params: Any) -> Any:
        return learned

    def masked(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda u, m: u * m.astype(u.dtype), updates, state), state

    return optax.chain(optax.GradientTransformation(init, masked), optax.sgd(learning_rate))


def _arrays(energy: Any) -> list[Any]:
    found = [energy.weights, energy.visible_bias, energy.hidden_bias]
    return [*found, energy.log_scale] if isinstance(energy, GaussianRBM) else found
