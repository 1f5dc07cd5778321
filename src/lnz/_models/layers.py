"""Two layers of units, independent given each other: their conditional distributions, closed sums and annealing paths."""

from __future__ import annotations

import abc
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Annealable, Featured, Marginal, TwoLayer
from lnz._core.energy import Energy
from lnz._core.frozen import same_structure
from lnz._core.numerics import softplus
from lnz._core.random import fast_key
from lnz._core.spaces import ArrayLike, Binary, Product, Space, State
from lnz._models import units
from lnz._models.independent import Independent


@functools.partial(jax.jit, static_argnums=(2, 3))
def initial_weights(key: PRNGKeyArray, scale: Any, shape: tuple[int, int], dtype: Any) -> Array:
    """Weights from N(0, scale²), by one program."""
    return scale * jax.random.normal(fast_key(key), shape, dtype)


class BilinearLayers(TwoLayer, Marginal, Featured, Annealable):
    """Binary hidden units and discrete observed ones: E(v, h) = -b · φ(v) - c · h - φ(v)ᵀ W h; a subclass defines the products with W.

    The hidden units are summed out in closed form: F(v) = -b · φ(v) - Σ_j softplus(c_j + (φ(v)ᵀ W)_j).
    """

    @abc.abstractmethod
    def biases(self) -> tuple[Array, Array]:
        """b, shape (features,), and c, shape (hidden,)."""

    @abc.abstractmethod
    def up(self, phi: Array) -> Array:
        """φᵀ W of features (*batch, features): shape (*batch, hidden)."""

    @abc.abstractmethod
    def down(self, h: Array) -> Array:
        """W h of hidden values (*batch, hidden): shape (*batch, features)."""

    @property
    def space(self) -> Space:
        return Product(self.observed, Binary(self.biases()[1].size))

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the parameters."""
        return self.biases()[0].dtype

    def _features(self, v: Array) -> Array:
        """φ(v), flattened: shape (*batch, features)."""
        batch = v.shape[: v.ndim - len(self.observed.shape)]
        return units.features(self.observed, v, self.dtype).reshape(*batch, self.biases()[0].size)

    def __call__(self, x: State) -> Array:
        (b, c), (v, h) = self.biases(), both_layers(self, x)
        phi, h = self._features(v), h.astype(self.dtype)
        return -jnp.dot(phi, b) - jnp.dot(h, c) - jnp.dot(self.up(phi), h)

    def free_energy(self, v: State) -> Array:
        return self.feature_energy(self._features(v))

    def feature_energy(self, phi: Array) -> Array:
        """F of the features φ(v), flattened or not, which need not be those of a state."""
        (b, c), phi = self.biases(), phi.reshape(-1)
        return -jnp.dot(phi, b) - jnp.sum(softplus(c + self.up(phi)))

    def hidden_potentials(self, v: Array) -> Array:
        """The log odds c + φ(v)ᵀ W of the hidden units given a batch of states (n, *visible): shape (n, hidden)."""
        return self.biases()[1][None] + self.up(self._features(v))

    def visible_potentials(self, h: Array) -> Array:
        """The log-potentials b + W h of the observed units given a batch (n, hidden): shape (n, *feature shape)."""
        potentials = self.biases()[0][None] + self.down(h.astype(self.dtype))
        return potentials.reshape(h.shape[0], *units.feature_shape(self.observed))

    def hidden_mean(self, v: Array) -> Array:
        """E[h | v] of a batch of states (n, *visible): shape (n, hidden)."""
        return jax.nn.sigmoid(self.hidden_potentials(v))

    def visible_mean(self, h: Array) -> Array:
        """E[φ(v) | h] of a batch (n, hidden): shape (n, *feature shape)."""
        return units.mean(self.observed, self.visible_potentials(h))

    def sample_hidden(self, key: PRNGKeyArray, v: Array) -> Array:
        potentials = self.hidden_potentials(v)
        return units.sample(Binary(potentials.shape[1]), key, potentials)

    def sample_visible(self, key: PRNGKeyArray, h: Array) -> Array:
        return units.sample(self.observed, key, self.visible_potentials(h))

    def base(self) -> Energy:
        shape = units.feature_shape(self.observed)
        return Independent(jnp.reshape(self.biases()[0], shape) * 0, self.observed)

    def tempered(self, base: Energy, beta: ArrayLike) -> Energy:
        if isinstance(base, Independent):
            start = base.potentials.reshape(-1).astype(self.dtype)
            return TemperedLayers(self, start, jnp.asarray(beta, self.dtype))
        if same_structure(base, self):  # E is linear in the parameters: the path of the joint energies
            beta = jnp.asarray(beta, self.dtype)
            return jax.tree.map(lambda a, b: (1 - beta) * a.astype(b.dtype) + beta * b, base, self)
        return super().tempered(base, beta)


def both_layers(energy: Any, x: Any) -> tuple[Any, Any]:
    """A state (v, h). ValueError for anything else, such as v alone."""
    if not isinstance(x, tuple | list) or len(x) != 2:
        name = type(energy).__name__
        raise ValueError(
            f"the energy of a {name} is of a state (v, h) of both layers. Of v alone use {name}.free_energy(v)"
        )
    return x[0], x[1]


class TemperedLayers(TwoLayer, Featured, Annealable):
    """Two bilinear layers at inverse temperature β, on the geometric path of the joint energy from independent visibles with log-potentials η.

    E_β(v, h) = -((1 - β) η + β b) · φ(v) - β (c · h + φ(v)ᵀ W h); the hidden units have a closed sum at every β. Scaling after the matrix
    product lets the compiler share the product between temperatures.

    Source: Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief networks"; Salakhutdinov & Hinton 2009, "Deep Boltzmann
    machines" (every second layer summed out).
    """

    layers: BilinearLayers
    start: Float[Array, " features"]
    beta: Array

    @property
    def space(self) -> Space:
        return self.layers.observed

    @property
    def log_latent_volume(self) -> float:
        return self.layers.biases()[1].size * math.log(2)

    def _bias(self) -> Array:
        return (1 - self.beta) * self.start + self.beta * self.layers.biases()[0]

    def __call__(self, x: State) -> Array:
        return self.feature_energy(self.layers._features(x))

    def feature_energy(self, phi: Array) -> Array:
        """E_β of the features φ(v), flattened or not."""
        phi = phi.reshape(-1)
        inputs = self.layers.biases()[1] + self.layers.up(phi)
        return -jnp.dot(phi, self._bias()) - jnp.sum(softplus(self.beta * inputs))

    def sample_hidden(self, key: PRNGKeyArray, v: Array) -> Array:
        potentials = self.beta * self.layers.hidden_potentials(v)
        return units.sample(Binary(potentials.shape[1]), key, potentials)

    def sample_visible(self, key: PRNGKeyArray, h: Array) -> Array:
        layers = self.layers
        potentials = self._bias()[None] + self.beta * layers.down(h.astype(layers.dtype))
        return units.sample(layers.observed, key, potentials.reshape(h.shape[0], *units.feature_shape(layers.observed)))
