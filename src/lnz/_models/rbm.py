"""Restricted Boltzmann machines: binary or categorical visibles, and Gaussian visibles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Annealable, Blockwise, Conditional, Factored, Marginal, TwoLayer
from lnz._core.energy import Energy
from lnz._core.given import given_array
from lnz._core.numerics import check_whole_number, softplus
from lnz._core.spaces import ArrayLike, Binary, Categorical, Product, Real, Space, Spin, State
from lnz._models import units
from lnz._models.factor_graph import FactorGraph, pairwise_graph
from lnz._models.independent import Gaussian, Independent, as_float
from lnz._models.layers import BilinearLayers, both_layers, initial_weights

_UNITS = 64  # the number of units whose conditionals are computed at once


class RBM(BilinearLayers, Factored, Conditional):
    """A restricted Boltzmann machine with binary hidden units: E(v, h) = -b · φ(v) - c · h - φ(v)ᵀ W h.

    φ(v) is v for binary or spin visibles and the flattened indicator onehot(v) for categorical ones (Potts visibles). The hidden units
    are summed out in closed form: F(v) = -b · φ(v) - Σ_j softplus(c_j + φ(v)ᵀ W_j).

    Args:
        visible: the number of binary visible units, or a `Binary`, `Spin` or `Categorical` space of shape (n,).
        hidden: the number of hidden units.
        key: random key of the initial weights, N(0, scale²); the biases start at 0.
        scale: standard deviation of the initial weights.
        dtype: the dtype of the parameters.

    Attributes:
        weights: W, shape (visible features, hidden).
        visible_bias: b, shape (visible features,).
        hidden_bias: c, shape (hidden,).

    Source: Smolensky 1986; Hinton 2012, "A practical guide to training restricted Boltzmann machines" (the initial values).

    Example:
        >>> import jax, lnz
        >>> lnz.RBM(visible=6, hidden=3, key=jax.random.key(0)).weights.shape
        (6, 3)
    """

    weights: Float[Array, "features hidden"]
    visible_bias: Float[Array, " features"]
    hidden_bias: Float[Array, " hidden"]
    visible: Space = eqx.field(static=True)

    def __init__(
        self, visible: int | Space, hidden: int, *, key: PRNGKeyArray, scale: float = 0.01, dtype: Any = jnp.float32
    ):
        self.visible = _visible_space(visible)
        features = math.prod(units.feature_shape(self.visible))
        self.weights = initial_weights(key, scale, (features, _hidden_count(hidden)), dtype)
        self.visible_bias = jax.device_put(np.zeros((features,), dtype))
        self.hidden_bias = jax.device_put(np.zeros((hidden,), dtype))

    @classmethod
    def from_parameters(
        cls, weights: ArrayLike, visible_bias: ArrayLike, hidden_bias: ArrayLike, *, visible: Space | None = None
    ) -> RBM:
        """The machine with these parameters: W (features, hidden), b (features,), c (hidden,)."""
        weights, visible_bias, hidden_bias = (as_float(p) for p in (weights, visible_bias, hidden_bias))
        if weights.ndim != 2 or visible_bias.shape != weights.shape[:1] or hidden_bias.shape != weights.shape[1:]:
            raise ValueError(
                f"an RBM needs weights (features, hidden), visible_bias (features,) and hidden_bias (hidden,), but got "
                f"{weights.shape}, {visible_bias.shape} and {hidden_bias.shape}"
            )
        space = Binary(weights.shape[0]) if visible is None else visible
        # The structure alone: initial weights would be a program for every shape.
        rbm = eqx.filter_eval_shape(
            lambda key: cls(space, weights.shape[1], key=key, dtype=weights.dtype), jax.random.key(0)
        )
        if rbm.weights.shape != weights.shape:
            raise ValueError(
                f"{space} has {rbm.weights.shape[0]} features, but the weights have {weights.shape[0]} rows"
            )
        return eqx.tree_at(
            lambda r: (r.weights, r.visible_bias, r.hidden_bias), rbm, (weights, visible_bias, hidden_bias)
        )

    @classmethod
    def from_data(
        cls,
        data: ArrayLike,
        hidden: int,
        *,
        key: PRNGKeyArray,
        visible: Space | None = None,
        scale: float = 0.01,
        dtype: Any = jnp.float32,
    ) -> RBM:
        """An initial machine for learning: small random weights, and the visible bias of independent units fitted to the data.

        Args:
            data: observed states (n, features).
            visible: their space; by default `Binary`.

        Source: Hinton 2012, section 8 (the visible bias at the data's log odds; here with one count added to each value).
        """
        data = given_array(data)
        space = Binary(np.shape(data)[1:]) if visible is None else visible
        rbm = cls(space, hidden, key=key, scale=scale, dtype=dtype)
        bias = np.asarray(Independent.from_data(data, rbm.visible).potentials).reshape(-1).astype(dtype)
        return eqx.tree_at(lambda r: r.visible_bias, rbm, jax.device_put(bias))

    @property
    def observed(self) -> Space:
        return self.visible

    def biases(self) -> tuple[Array, Array]:
        return self.visible_bias, self.hidden_bias

    def up(self, phi: Array) -> Array:
        return phi @ self.weights

    def down(self, h: Array) -> Array:
        return h @ self.weights.T

    def conditionals(self, v: Array) -> Float[Array, "units values"]:
        """log p(v_i | the other visible units) of every unit and value, up to a constant per unit, from one product φ(v)ᵀ W for all."""
        own, inputs = self._features(v), self.hidden_bias + self._features(v) @ self.weights
        bias, rows = self._unit_potentials()
        own = own.reshape(len(rows), -1)
        if not isinstance(self.visible, Categorical):
            own = jax.nn.one_hot((own[:, 0] > 0).astype(jnp.int32), 2, dtype=own.dtype)

        @jax.checkpoint
        def of_unit(unit: tuple[Array, Array, Array]) -> Array:
            own, bias, rows = unit
            return bias + jnp.sum(softplus((inputs - own @ rows)[None] + rows), axis=1)

        return jax.lax.map(of_unit, (own, bias, rows), batch_size=min(_UNITS, len(rows)))

    def _unit_potentials(self) -> tuple[Array, Array]:
        """The contributions of every value of every visible unit: to the score (units, values), and to the hidden inputs (units, values, hidden)."""
        n, hidden = math.prod(self.visible.shape), self.hidden_bias.size
        if isinstance(self.visible, Categorical):
            return self.visible_bias.reshape(n, -1), self.weights.reshape(n, -1, hidden)
        values = jnp.asarray([0, 1] if isinstance(self.visible, Binary) else [-1, 1], self.weights.dtype)
        return self.visible_bias[:, None] * values[None], self.weights[:, None, :] * values[None, :, None]

    @property
    def least_width(self) -> int:
        return min(math.prod(self.visible.shape), self.hidden_bias.size)

    def factors(self) -> FactorGraph:
        """One factor φ(v_i) W_ij h_j for every pair of units, and one for every unit: the visible ones first."""
        hidden, dtype = self.hidden_bias.size, self.weights.dtype
        on = jnp.asarray([0, 1], dtype)
        bias, weights = self._unit_potentials()
        n, k = bias.shape
        pairs = (weights.transpose(0, 2, 1)[..., None] * on[None, None, None]).reshape(n * hidden, k, 2)
        edges = np.indices((n, hidden)).reshape(2, -1).T + np.array([0, n])
        return pairwise_graph([k] * n + [2] * hidden, edges, pairs, [bias, self.hidden_bias[:, None] * on[None]])

    def collapsed(self) -> Energy:
        features_log_size = self.visible.log_size
        return HiddenEnergy(self) if self.hidden_bias.size * math.log(2) < features_log_size else super().collapsed()


class HiddenEnergy(Blockwise):
    """The marginal of an RBM's hidden layer: E(h) = -c · h - Σ_i log Σ_{v_i} exp((b + W h)_i · φ(v_i)). Z is that of the RBM."""

    rbm: RBM

    @property
    def space(self) -> Space:
        return Binary(self.rbm.hidden_bias.size)

    def __call__(self, x: State) -> Array:
        h = x.astype(self.rbm.weights.dtype)
        potentials = self.rbm.visible_potentials(h[None])[0]
        return -jnp.dot(h, self.rbm.hidden_bias) - jnp.sum(units.log_partition(self.rbm.visible, potentials))

    def block_energies(self, size: int) -> Callable[[Array], Array]:
        """Energies of 2^k consecutive states, for binary visibles in float64 by products of exponentials.

        The low bits' potentials are exponentiated once; the high bits multiply them. Σ_i log(1 + e^{z_i}) is computed as logarithms of
        products of eight factors, which cannot overflow while every |z_i| ≤ 80; otherwise softplus is summed.
        """
        rbm, low = self.rbm, size.bit_length() - 1
        high = rbm.hidden_bias.size - low
        bits = Binary(low).decode(jnp.arange(size, dtype=jnp.uint32)).astype(rbm.weights.dtype)
        shared = rbm.weights[:, high:] @ bits.T  # (features, size): states last, so that they fill the vector lanes
        gain = bits @ rbm.hidden_bias[high:]

        def potentials(first: Array) -> tuple[Array, Array]:
            h = first[:high].astype(rbm.weights.dtype)
            return rbm.visible_bias + rbm.weights[:, :high] @ h, gain + jnp.dot(rbm.hidden_bias[:high], h)

        def directly(first: Array) -> Array:
            pulled, gained = potentials(first)
            per_unit = (pulled[:, None] + shared).T.reshape(size, *units.feature_shape(rbm.visible))
            return -gained - jnp.sum(units.log_partition(rbm.visible, per_unit).reshape(size, -1), axis=1)

        if not isinstance(rbm.visible, Binary) or rbm.weights.dtype != jnp.dtype("float64"):
            return directly
        group = 8
        padding = -rbm.visible_bias.size % group
        factors = jnp.pad(jnp.exp(shared), ((0, padding), (0, 0))).reshape(group, -1, size)
        small = jnp.max(jnp.abs(rbm.visible_bias) + jnp.sum(jnp.abs(rbm.weights), axis=1)) < 80

        def by_products(first: Array) -> Array:
            pulled, gained = potentials(first)
            scale = jnp.pad(jnp.exp(pulled), (0, padding)).reshape(group, -1)
            product = 1 + factors[0] * scale[0, :, None]
            for i in range(1, group):
                product = product * (1 + factors[i] * scale[i, :, None])
            return -gained - jnp.sum(jnp.log(product), axis=0)

        return lambda first: jax.lax.cond(small, by_products, directly, first)


class GaussianRBM(TwoLayer, Marginal, Annealable):
    """A restricted Boltzmann machine with Gaussian visibles and binary hidden units.

    E(v, h) = Σ_i (v_i - b_i)² / (2 σ_i²) - c · h - Σ_ij (v_i / σ_i²) W_ij h_j, so that p(v|h) = N(b + W h, σ²) and
    p(h_j = 1|v) = logistic(c_j + Σ_i v_i W_ij / σ_i²). Summing out h: F(v) = Σ_i (v_i - b_i)² / (2 σ_i²) - Σ_j softplus(c_j + (v/σ²)ᵀ W_j).

    Args:
        visible: the number of visible units.
        hidden: the number of hidden units.
        key: random key of the initial weights, N(0, scale²); biases and log σ start at 0.
        scale: standard deviation of the initial weights.
        dtype: the dtype of the parameters.

    Source: Cho, Ilin & Raiko 2011, "Improved learning of Gaussian-Bernoulli restricted Boltzmann machines" (this parametrisation).
    """

    weights: Float[Array, "visible hidden"]
    visible_bias: Float[Array, " visible"]
    hidden_bias: Float[Array, " hidden"]
    log_scale: Float[Array, " visible"]

    def __init__(self, visible: int, hidden: int, *, key: PRNGKeyArray, scale: float = 0.01, dtype: Any = jnp.float32):
        self.weights = initial_weights(key, scale, (_hidden_count(visible), _hidden_count(hidden)), dtype)
        self.visible_bias, self.log_scale = (jax.device_put(np.zeros((visible,), dtype)) for _ in range(2))
        self.hidden_bias = jax.device_put(np.zeros((hidden,), dtype))

    @property
    def space(self) -> Space:
        return Product(self.observed, Binary(self.hidden_bias.size))

    @property
    def observed(self) -> Space:
        return Real(self.visible_bias.shape)

    def _precision(self) -> Array:
        return jnp.exp(-2 * self.log_scale)

    def _quadratic(self, v: Array) -> Array:
        return 0.5 * jnp.sum(jnp.square(v - self.visible_bias) * self._precision())

    def _hidden_input(self, v: Array) -> Array:
        return self.hidden_bias + (v * self._precision()) @ self.weights

    def __call__(self, x: State) -> Array:
        v, h = (part.astype(self.weights.dtype) for part in both_layers(self, x))
        return self._quadratic(v) - jnp.dot(self._hidden_input(v), h)

    def free_energy(self, v: State) -> Array:
        v = v.astype(self.weights.dtype)
        return self._quadratic(v) - jnp.sum(softplus(self._hidden_input(v)))

    def collapsed(self) -> Energy:
        return GaussianHiddenEnergy(self)

    def sample_hidden(self, key: PRNGKeyArray, v: Array) -> Array:
        potentials = self.hidden_bias[None] + (v.astype(self.weights.dtype) * self._precision()[None]) @ self.weights
        return units.sample(Binary(self.hidden_bias.size), key, potentials)

    def sample_visible(self, key: PRNGKeyArray, h: Array) -> Array:
        mean = self.visible_bias[None] + h.astype(self.weights.dtype) @ self.weights.T
        return mean + jax.random.normal(key, mean.shape, mean.dtype) * jnp.exp(self.log_scale)[None]

    def base(self) -> Energy:
        return Gaussian(self.visible_bias, self._precision())

    def tempered(self, base: Energy, beta: ArrayLike) -> Energy:
        if isinstance(base, Gaussian) and base.precision.ndim == 1:
            return TemperedGaussianRBM(self, base, jnp.asarray(beta, self.weights.dtype))
        return super().tempered(base, beta)


class TemperedGaussianRBM(TwoLayer, Annealable):
    """A `GaussianRBM` at inverse temperature β, on the geometric path from independent normal visibles."""

    rbm: GaussianRBM
    start: Gaussian
    beta: Array

    @property
    def space(self) -> Space:
        return self.rbm.observed

    @property
    def log_latent_volume(self) -> float:
        return self.rbm.hidden_bias.size * math.log(2)

    def __call__(self, x: State) -> Array:
        v = x.astype(self.rbm.weights.dtype)
        quadratic = (1 - self.beta) * self.start(v).astype(v.dtype) + self.beta * self.rbm._quadratic(v)
        return quadratic - jnp.sum(softplus(self.beta * self.rbm._hidden_input(v)))

    def sample_hidden(self, key: PRNGKeyArray, v: Array) -> Array:
        rbm = self.rbm
        inputs = rbm.hidden_bias[None] + (v.astype(rbm.weights.dtype) * rbm._precision()[None]) @ rbm.weights
        return units.sample(Binary(rbm.hidden_bias.size), key, self.beta * inputs)

    def sample_visible(self, key: PRNGKeyArray, h: Array) -> Array:
        rbm, h = self.rbm, h.astype(self.rbm.weights.dtype)
        warm, cold = (1 - self.beta) * self.start.precision.astype(h.dtype), self.beta * rbm._precision()
        precision, pull = warm + cold, cold[None] * (rbm.visible_bias[None] + h @ rbm.weights.T)
        mean = (warm * self.start.mean.astype(h.dtype))[None] + pull
        noise = jax.random.normal(key, mean.shape, h.dtype)
        return mean / precision[None] + noise / jnp.sqrt(precision)[None]


class GaussianHiddenEnergy(Energy):
    """The marginal of a Gaussian RBM's hidden layer, a pairwise model of bits. Z is that of the RBM.

    E(h) = -c · h - Σ_i (b_i u_i + u_i²/2) / σ_i² - Σ_i log(σ_i √(2π)) with u = W h.
    """

    rbm: GaussianRBM

    @property
    def space(self) -> Space:
        return Binary(self.rbm.hidden_bias.size)

    def __call__(self, x: State) -> Array:
        rbm = self.rbm
        h = x.astype(rbm.weights.dtype)
        shift = rbm.weights @ h
        gain = jnp.sum((rbm.visible_bias * shift + 0.5 * jnp.square(shift)) * rbm._precision())
        return -jnp.dot(h, rbm.hidden_bias) - gain - jnp.sum(rbm.log_scale + 0.5 * np.log(2 * np.pi))


def _visible_space(visible: int | Space) -> Space:
    space = Binary(visible) if isinstance(visible, int | np.integer) else visible
    if isinstance(space, Real):
        raise ValueError(
            "an RBM needs discrete visible units; for real ones use lnz.GaussianRBM(visible=n, hidden=m, key=key)"
        )
    if not isinstance(space, Binary | Spin | Categorical) or len(space.shape) != 1 or space.shape[0] < 1:
        raise ValueError(
            f"an RBM needs a number of visible units, or a Binary, Spin or Categorical space of shape (n,), but got {visible!r}"
        )
    return space


def _hidden_count(n: int) -> int:
    check_whole_number("the number of units", n)
    return int(n)
