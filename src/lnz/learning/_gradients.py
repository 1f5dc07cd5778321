"""Weighted means of energies over batches of states, and their gradients, which both phases use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.capabilities import data_energy_of, free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.given import given_array
from lnz._core.spaces import Product, State

Term = Callable[[Any], Callable[[State], Array]]


def mean_and_gradient(
    energy: Energy,
    v: State,
    weights: Array | None,
    *,
    term: Term = free_energy_of,
    penalty: float = 0.0,
) -> tuple[Array, Any]:
    """Mean F_θ(v) of a batch of observed states in nats, and the mean of -∂_θ (F_θ(v) + penalty F_θ(v)²), by one reverse pass.

    `term`, which maps an energy to a function of one state, can take the place of F.
    """

    def mean(energy: Energy) -> tuple[Array, Array]:
        free = mean_free_energy(energy, v, weights, term=term)
        if not penalty:
            return free, free
        square = weighted_mean(lambda v: jnp.square(jax.vmap(term(energy))(v)), v, weights)
        return free + penalty * square, free

    (_, free), gradient = eqx.filter_value_and_grad(mean, has_aux=True)(energy)
    return free, jax.tree.map(jnp.negative, gradient)


def data_mean_and_gradient(energy: Energy, v: State, weights: Array | None) -> tuple[Array, Any]:
    """`mean_and_gradient` of a batch of data, which can be a part of the observed state, by the energy's `data_energy`."""
    return mean_and_gradient(energy, v, weights, term=data_energy_of)


def mean_free_energy(energy: Energy, v: State, weights: Array | None, *, term: Term = free_energy_of) -> Array:
    """Σ_i w_i F_θ(v_i) / Σ_i w_i, in nats."""
    return weighted_mean(lambda v: jax.vmap(term(energy))(v), v, weights)


def weighted_mean(of_batch: Callable[[State], Array], v: State, weights: Array | None) -> Array:
    """Σ_i w_i f_i / Σ_i w_i of the values f (n,) of a function of a batch; without weights, their mean."""
    if weights is None:
        return jnp.mean(of_batch(v))
    total = weighted_sum(of_batch, v, weights)
    return total / jnp.sum(weights.astype(total.dtype))


def weighted_sum(of_batch: Callable[[State], Array], v: State, weights: Array) -> Array:
    """Σ_i w_i f_i for weights of either sign. A weight of zero leaves a state out, even where its f is infinite."""
    # A state of weight zero is replaced by one of nonzero weight, so that 0 · ∞ cannot arise in the gradient.
    kept, first = weights != 0, jnp.argmax(weights != 0)

    def shown(leaf: Any) -> Array:
        return jnp.where(kept.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, leaf[first][None])

    values = of_batch(jax.tree.map(shown, v))
    return jnp.sum(weights.astype(values.dtype) * values)


def as_arrays(energy: Energy, v: State) -> State:
    """Observed states as arrays (lists and data frames become NumPy arrays), for a product space a tuple of them."""
    parts = isinstance(observed_space(energy), Product) and isinstance(v, tuple)
    return tuple(map(given_array, v)) if parts else given_array(v)


def as_weights(weights: Any, n: int) -> Array:
    """The weights of n data as an array. Raises ValueError unless they are finite, not negative and not all zero (if not traced)."""
    weights = given_array(weights, "weights")
    if np.shape(weights) != (n,):
        raise ValueError(f"weights must have shape ({n},), one per example, but got {np.shape(weights)}")
    if is_traced(weights):
        return weights
    seen = np.array(weights, jnp.result_type(float))
    if not np.isfinite(seen).all() or (seen < 0).any() or not (seen > 0).any():
        raise ValueError("weights must be finite, not negative, and not all zero: check them for NaN and overflow")
    return jax.device_put(seen)


def cast(energy: Energy, v: State) -> State:
    """Observed states of any dtype, cast to the dtype of the energy's parameters (int32 for categories)."""
    dtype = parameter_dtype(energy)

    def one(struct: jax.ShapeDtypeStruct, leaf: Array) -> Array:
        return jnp.asarray(leaf).astype(dtype if jnp.issubdtype(struct.dtype, jnp.floating) else struct.dtype)

    return jax.tree.map(one, observed_space(energy).struct, v)


def parameter_dtype(energy: Energy) -> jnp.dtype:
    """The widest floating-point dtype among an energy's parameters; JAX's default where it has none."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(energy) if eqx.is_inexact_array(leaf)]
    return max(dtypes, key=lambda dtype: dtype.itemsize) if dtypes else jnp.result_type(float)
