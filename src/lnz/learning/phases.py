"""The log-likelihood gradient in two phases: positive (data) and negative (model)."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz.energy import Energy, as_energy
from lnz.route import Route
from lnz.spaces import State


class Phases(NamedTuple):
    """The two halves of ∇_θ log p_θ(data) per datum = positive - negative, each a pytree like the energy's float arrays."""

    positive: Any
    negative: Any

    @property
    def gradient(self) -> Any:
        """The log-likelihood gradient per datum, in nats: positive - negative."""
        return jax.tree.map(jnp.subtract, self.positive, self.negative)


def phases(
    energy: Any, data: State, negative: Route | State, *, weights: Array | None = None, key: PRNGKeyArray | None = None
) -> Phases:
    """The positive phase E_data[-∂_θ F_θ(v)] and the negative phase E_{v ~ p_θ}[-∂_θ F_θ(v)] = ∇_θ log Z, apart.

    Args:
        energy: an `Energy`, or any callable with a `space`. Latent variables are summed out in closed form (T6).
        data: observed states (n, *shape).
        negative: a route, such as `lnz.Enumeration()`, or states of chains (m, *shape) that stand for the model.
        weights: of the data, shape (n,); by default all equal.
        key: for a route that draws samples.

    Raises:
        ValueError: if the data or the chains are outside the energy's observed space.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> rbm = lnz.RBM(visible=4, hidden=2, key=jax.random.key(0))
        >>> halves = lnz.phases(rbm, jnp.ones((10, 4)), lnz.Enumeration())
        >>> halves.positive.visible_bias
        Array([1., 1., 1., 1.], dtype=float32)
    """
    energy = as_energy(energy)
    energy.observed.validate(data, batch=True)
    positive = mean_negative_gradient(energy, data, weights)
    if isinstance(negative, Route):
        negative.require(energy, key)
        return Phases(positive, negative.mean_gradient(energy, key))
    energy.observed.validate(negative, batch=True)
    return Phases(positive, mean_negative_gradient(energy, negative, None))


def mean_negative_gradient(energy: Energy, v: State, weights: Array | None) -> Any:
    """Σ_i w_i (-∂_θ F_θ(v_i)) / Σ_i w_i over a batch of observed states, by one reverse pass."""
    return eqx.filter_grad(lambda e: -mean_free_energy(e, v, weights))(energy)


def mean_free_energy(energy: Energy, v: State, weights: Array | None) -> Array:
    """Σ_i w_i F_θ(v_i) / Σ_i w_i, in nats. A weight of zero leaves a state out altogether, even where its energy is infinite."""
    free = jax.vmap(energy.free_energy)(v)
    if weights is None:
        return jnp.mean(free)
    weights = weights.astype(free.dtype)
    return jnp.sum(jnp.where(weights > 0, weights * free, 0)) / jnp.sum(weights)
