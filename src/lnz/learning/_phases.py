"""The log-likelihood gradient in two phases: positive (data) and negative (model)."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy, Gradient, ModelLike, as_energy
from lnz._core.route import Route
from lnz._core.spaces import ArrayLike, State
from lnz.kernels._coupled import NotMet
from lnz.learning._gradients import as_arrays, as_weights, cast, data_mean_and_gradient, mean_and_gradient
from lnz.learning._negative import NegativePhase


class Phases(NamedTuple):
    """The two terms of ∇_θ log p_θ(data) = positive - negative per example, each a pytree like the energy's float arrays."""

    positive: Any
    negative: Any

    @property
    def gradient(self) -> Gradient:
        """The log-likelihood gradient per example, in nats: positive - negative."""
        return jax.tree.map(jnp.subtract, self.positive, self.negative)


def phases(
    energy: ModelLike,
    data: State,
    negative: Route | NegativePhase | State,
    *,
    weights: ArrayLike = None,
    key: PRNGKeyArray | None = None,
) -> Phases:
    """The positive phase E_data[-∂_θ F_θ(v)] and the negative phase E_{v ~ p_θ}[-∂_θ F_θ(v)] = ∇_θ log Z, separately.

    Where data are a part of the observed state (a deep Boltzmann machine), the positive phase is that of its `data_energy`, by mean field.

    Args:
        energy: an `Energy`, or any callable with a `space`. Latent variables are summed out in closed form (T6).
        data: observed states (n, *shape).
        negative: a route, such as `lnz.routes.Enumeration()`, states of chains (m, *shape) that represent the model, or a negative phase, such
            as `lnz.learning.CoupledChains()`, of which one update is drawn from a fresh start.
        weights: weights of the data, shape (n,), not negative; by default all equal.
        key: for a route that draws samples, and for a negative phase.

    Raises:
        NotMet: where coupled chains have not met.
        ValueError: if the data or the chains are outside the energy's observed space, the weights are not finite, negative or all zero, or the
            route or the negative phase does not support the energy or lacks a key.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> rbm = lnz.RBM(visible=4, hidden=2, key=jax.random.key(0))
        >>> halves = lnz.learning.phases(rbm, jnp.ones((10, 4)), lnz.routes.Enumeration())
        >>> halves.positive.visible_bias.round(3)
        Array([1., 1., 1., 1.], dtype=float32)
    """
    energy = as_energy(energy)
    if observed_space(energy).moving:
        raise ValueError("the bounds of this energy's box are parameters: the two phases lack the boundary term (T4)")
    data = as_arrays(energy, data)
    data_space(energy).validate(data, batch=True)
    weights = None if weights is None else as_weights(weights, jax.tree.leaves(data)[0].shape[0])
    positive = _data_gradient(energy, data, weights)
    if isinstance(negative, Route):
        negative.require(energy, key)
        return Phases(positive, _route_gradient(negative, energy, key))
    if isinstance(negative, NegativePhase):
        return Phases(positive, _phase_gradient(negative, energy, data, weights, key))
    negative = as_arrays(energy, negative)
    observed_space(energy).validate(negative, batch=True)
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
    if key is None:
        raise ValueError(f"{type(phase).__name__} draws samples: pass key=jax.random.key(0), or any other")
    reason = phase.unsupported_reason(energy)
    if reason is not None:
        raise ValueError(f"{type(phase).__name__} does not support {type(energy).__name__}: {reason}")
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
