"""The log-likelihood gradient in two phases: positive (data) and negative (model)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz.energy import Energy, as_energy
from lnz.frozen import is_traced
from lnz.route import Route
from lnz.spaces import Product, State

if TYPE_CHECKING:
    from lnz.learning.negative import NegativePhase


class Phases(NamedTuple):
    """The two halves of ∇_θ log p_θ(data) per datum = positive - negative, each a pytree like the energy's float arrays."""

    positive: Any
    negative: Any

    @property
    def gradient(self) -> Any:
        """The log-likelihood gradient per datum, in nats: positive - negative."""
        return jax.tree.map(jnp.subtract, self.positive, self.negative)


def phases(
    energy: Any,
    data: State,
    negative: Route | NegativePhase | State,
    *,
    weights: Any = None,
    key: PRNGKeyArray | None = None,
) -> Phases:
    """The positive phase E_data[-∂_θ F_θ(v)] and the negative phase E_{v ~ p_θ}[-∂_θ F_θ(v)] = ∇_θ log Z, apart.

    Where data show a part of the observed state (a deep Boltzmann machine), the positive phase is that of `energy.data_energy`, by mean field.

    Args:
        energy: an `Energy`, or any callable with a `space`. Latent variables are summed out in closed form (T6).
        data: observed states (n, *shape).
        negative: a route, such as `lnz.Enumeration()`, states of chains (m, *shape) that stand for the model, or a negative phase, such as
            `lnz.CoupledChains()`, of which one update is drawn from a fresh start.
        weights: of the data, shape (n,), not negative; by default all equal.
        key: for a route that draws samples, and for a negative phase.

    Raises:
        NotMet: where coupled chains have not met.
        ValueError: if the data or the chains are outside the energy's observed space, the weights are not finite, negative or all zero, or the
            route or the negative phase cannot serve the energy or lacks a key.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> rbm = lnz.RBM(visible=4, hidden=2, key=jax.random.key(0))
        >>> halves = lnz.phases(rbm, jnp.ones((10, 4)), lnz.Enumeration())
        >>> halves.positive.visible_bias.round(3)
        Array([1., 1., 1., 1.], dtype=float32)
    """
    energy = as_energy(energy)
    if energy.observed.moving:
        raise ValueError("the limits of this energy's box are parameters: the two phases miss the boundary term (T4)")
    data = as_arrays(energy, data)
    energy.data_space.validate(data, batch=True)
    weights = None if weights is None else as_weights(weights, jax.tree.leaves(data)[0].shape[0])
    positive = _data_gradient(energy, data, weights)
    if isinstance(negative, Route):
        negative.require(energy, key)
        return Phases(positive, _route_gradient(negative, energy, key))
    from lnz.learning.negative import NegativePhase

    if isinstance(negative, NegativePhase):
        return Phases(positive, _phase_gradient(negative, energy, data, weights, key))
    negative = as_arrays(energy, negative)
    energy.observed.validate(negative, batch=True)
    return Phases(positive, _mean_gradient(energy, negative, None))


@eqx.filter_jit
def _data_gradient(energy: Energy, v: State, weights: Array | None) -> Any:
    return data_mean_and_gradient(energy, cast(energy, v), weights)[1]


@eqx.filter_jit
def _mean_gradient(energy: Energy, v: State, weights: Array | None) -> Any:
    return mean_and_gradient(energy, cast(energy, v), weights)[1]


@eqx.filter_jit
def _route_gradient(route: Route, energy: Energy, key: PRNGKeyArray | None) -> Any:
    return route.mean_gradient(energy, key)


def _phase_gradient(phase: NegativePhase, energy: Energy, data: State, weights: Array | None, key: Any) -> Any:
    """E_{p_θ}[-∂F] by one update of a phase from a fresh start."""
    from lnz.sampling.coupled import NotMet

    if key is None:
        raise ValueError(f"{type(phase).__name__} draws samples: pass key=jax.random.key(0), or any other")
    reason = phase.refusal(energy)
    if reason is not None:
        raise ValueError(f"{type(phase).__name__} cannot serve {type(energy).__name__}: {reason}")
    gradient, figures = _drawn_gradient(phase, energy, data, weights, key)
    problem = phase.problem(figures)
    if problem is not None:
        raise NotMet(problem)
    return gradient


@eqx.filter_jit
def _drawn_gradient(phase: NegativePhase, energy: Energy, data: State, weights: Array | None, key: PRNGKeyArray) -> Any:
    start_key, key = jax.random.split(key)
    data = cast(energy, data)
    state = phase.init(energy, start_key, jax.tree.leaves(data)[0].shape[0])
    _, gradient, _, figures = phase.gradient(energy, state, data, weights, key)
    return gradient, figures


Term = Callable[[Any], Callable[[State], Array]]


def mean_and_gradient(
    energy: Energy,
    v: State,
    weights: Array | None,
    *,
    term: Term = lambda energy: energy.free_energy,
    penalty: float = 0.0,
) -> tuple[Array, Any]:
    """Mean F_θ(v) of a batch of observed states in nats, and the mean of -∂_θ (F_θ(v) + penalty F_θ(v)²), by one reverse pass.

    `term` names what takes the place of F: it maps an energy to a function of one state.
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
    """The same of a batch of data, which may show a part of the observed state alone, by `energy.data_energy`."""
    return mean_and_gradient(energy, v, weights, term=lambda energy: energy.data_energy)


def mean_free_energy(
    energy: Energy, v: State, weights: Array | None, *, term: Term = lambda energy: energy.free_energy
) -> Array:
    """Σ_i w_i F_θ(v_i) / Σ_i w_i, in nats."""
    return weighted_mean(lambda v: jax.vmap(term(energy))(v), v, weights)


def weighted_mean(of_batch: Callable[[State], Array], v: State, weights: Array | None) -> Array:
    """Σ_i w_i f_i / Σ_i w_i of the numbers f (n,) that a function makes of a batch; without weights, their mean."""
    if weights is None:
        return jnp.mean(of_batch(v))
    total = weighted_sum(of_batch, v, weights)
    return total / jnp.sum(weights.astype(total.dtype))


def weighted_sum(of_batch: Callable[[State], Array], v: State, weights: Array) -> Array:
    """Σ_i w_i f_i for weights of either sign. A weight of zero leaves a state out altogether, even where its f is infinite."""
    # A state that is left out is replaced by one that is not, so that 0 · ∞ cannot arise in the gradient.
    kept, first = weights != 0, jnp.argmax(weights != 0)
    shown = lambda leaf: jnp.where(kept.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, leaf[first][None])  # noqa: E731
    values = of_batch(jax.tree.map(shown, v))
    return jnp.sum(weights.astype(values.dtype) * values)


def as_arrays(energy: Energy, v: State) -> State:
    """Observed states as arrays (lists and data frames become NumPy arrays), for a product space a tuple of them."""
    array = lambda part: part if isinstance(part, jax.Array) else np.asarray(part)  # noqa: E731
    return tuple(map(array, v)) if isinstance(energy.observed, Product) and isinstance(v, tuple) else array(v)


def as_weights(weights: Any, n: int) -> Array:
    """The weights of n data as an array. Raises ValueError unless they are finite, not negative and not all zero (where Python can see)."""
    if np.shape(weights) != (n,):
        raise ValueError(f"weights need shape ({n},), one a datum, but got {np.shape(weights)}")
    if is_traced(weights):
        return weights
    seen = np.asarray(weights, jnp.result_type(float))
    if not np.isfinite(seen).all() or (seen < 0).any() or not (seen > 0).any():
        raise ValueError("weights must be finite, not negative, and not all zero: check them for NaN and overflow")
    return jnp.asarray(seen)


def cast(energy: Energy, v: State) -> State:
    """Observed states in the dtype of the energy's parameters (int32 for categories), whatever dtype they are stored in."""
    dtype = parameter_dtype(energy)

    def one(struct: jax.ShapeDtypeStruct, leaf: Array) -> Array:
        return jnp.asarray(leaf).astype(dtype if jnp.issubdtype(struct.dtype, jnp.floating) else struct.dtype)

    return jax.tree.map(one, energy.observed.struct, v)


def parameter_dtype(energy: Energy) -> jnp.dtype:
    """The widest floating-point dtype among an energy's parameters; JAX's default where it has none."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(energy) if eqx.is_inexact_array(leaf)]
    return max(dtypes, key=lambda dtype: dtype.itemsize) if dtypes else jnp.result_type(float)
