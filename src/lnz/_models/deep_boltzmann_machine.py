"""Deep Boltzmann machines: layers of bits, each coupled to its neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Factored, Incomplete
from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.given import given_array
from lnz._core.numerics import softplus
from lnz._core.spaces import ArrayLike, Binary, Space
from lnz._models import units
from lnz._models.factor_graph import FactorGraph, pairwise_graph
from lnz._models.independent import Independent, as_float
from lnz._models.layers import BilinearLayers, initial_weights
from lnz._models.rbm import RBM

_ITERATIONS, _TOLERANCE = 200, 1e-4  # the defaults of mean field


class DeepBoltzmannMachine(BilinearLayers, Incomplete, Factored):
    """A deep Boltzmann machine of bits: E(x_0, …, x_L) = -Σ_l b_l · x_l - Σ_l x_lᵀ W_l x_{l+1}, with the visible units x_0 = v.

    Given the odd layers the even ones are independent, and the other way round. So it is a machine of two layers: `observed` states are the even
    layers x_0, x_2, … side by side, `latent` ones the odd layers, and those are summed out in closed form. Routes, kernels, annealing and negative
    phases work on even states. With one hidden layer it is the RBM.

    Data contain x_0 alone (`data_space`). With two or more hidden layers, log p(v) has no closed form: `data_energy` is the variational bound by
    mean field, and `given(v)` the distribution of the hidden layers, whose log Z is the missing sum.

    Args:
        visible: the number of visible units.
        hidden: the numbers of units of the hidden layers, from below; or one number, for one layer.
        key: random key of the initial weights, N(0, scale²); the biases start at 0.
        scale: standard deviation of the initial weights.
        dtype: the dtype of the parameters.

    Attributes:
        weights: W_0, …, W_{L-1}, of shapes (units of layer l, units of layer l + 1).
        layer_biases: b_0, …, b_L.

    Raises:
        ValueError: if there is no hidden layer, or a number of units is not an integer of at least 1.

    Source: Salakhutdinov & Hinton 2009, "Deep Boltzmann machines".

    Example:
        >>> import jax, lnz
        >>> dbm = lnz.DeepBoltzmannMachine(visible=784, hidden=(12, 30), key=jax.random.key(0))
        >>> lnz.log_partition(dbm).route  # the larger of even and odd layers is summed in closed form
        'enumeration of 4,096 states of Binary(12)'
    """

    weights: tuple[Float[Array, "below above"], ...]
    layer_biases: tuple[Float[Array, " units"], ...]

    def __init__(
        self,
        visible: int,
        hidden: int | Sequence[int],
        *,
        key: PRNGKeyArray,
        scale: float = 0.01,
        dtype: Any = jnp.float32,
    ):
        sizes = _sizes(visible, hidden)
        keys = [key] if len(sizes) == 2 else jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        self.weights = tuple(initial_weights(k, scale, (below, above), dtype) for k, below, above in pairs)
        self.layer_biases = tuple(jax.device_put(np.zeros((n,), dtype)) for n in sizes)

    @classmethod
    def from_parameters(cls, weights: Sequence[Any], biases: Sequence[Any]) -> DeepBoltzmannMachine:
        """The machine with these parameters: W_0, …, W_{L-1} and b_0, …, b_L.

        Raises ValueError for shapes that do not match, and for values that are NaN or infinite.
        """
        matrices, vectors = tuple(map(as_float, weights)), tuple(map(as_float, biases))
        shapes = [w.shape for w in matrices], [b.shape for b in vectors]
        sizes = [b.size for b in vectors]
        wanted = list(itertools.pairwise(sizes)), [(n,) for n in sizes]
        if len(vectors) < 2 or shapes != wanted or 0 in sizes:
            raise ValueError(
                "a deep Boltzmann machine needs weights (units below, units above) for every pair of neighbouring layers and biases (units,) for "
                f"every layer, at least two layers, but got weights {shapes[0]} and biases {shapes[1]}"
            )
        for name, part in [*(("weights", w) for w in matrices), *(("biases", b) for b in vectors)]:
            if not is_traced(part) and not np.isfinite(np.asarray(part)).all():
                raise ValueError(f"the {name} contain NaN or infinite values: check where they come from")
        made = cls(sizes[0], sizes[1:], key=jax.random.key(0))
        dtype = (
            jnp.result_type(*matrices, *vectors)
            if len({p.dtype for p in (*matrices, *vectors)}) == 1
            else jnp.result_type(float)
        )
        matrices, vectors = (tuple(p.astype(dtype) for p in parts) for parts in (matrices, vectors))
        return eqx.tree_at(lambda e: (e.weights, e.layer_biases), made, (matrices, vectors))

    @classmethod
    def from_data(
        cls,
        data: ArrayLike,
        hidden: int | Sequence[int],
        *,
        key: PRNGKeyArray,
        scale: float = 0.01,
        dtype: Any = jnp.float32,
    ) -> DeepBoltzmannMachine:
        """An initial machine for learning: small random weights, and the visible bias of independent units fitted to data (n, visible)."""
        data = given_array(data)
        space = Binary(np.shape(data)[1:])
        made = cls(space.size, hidden, key=key, scale=scale, dtype=dtype)
        return eqx.tree_at(
            lambda e: e.layer_biases[0], made, Independent.from_data(data, space).potentials.astype(dtype)
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of units of the layers, the visible one first."""
        return tuple(b.size for b in self.layer_biases)

    @property
    def observed(self) -> Space:
        return Binary(sum(self.sizes[::2]))

    @property
    def data_space(self) -> Space:
        return Binary(self.sizes[0])

    def biases(self) -> tuple[Array, Array]:
        return jnp.concatenate(self.layer_biases[::2]), jnp.concatenate(self.layer_biases[1::2])

    def split(self, even: Array, odd: Array) -> tuple[Array, ...]:
        """The layers x_0, …, x_L from the even ones (*batch, even units) and the odd ones (*batch, odd units), each side by side."""
        parts = {0: _parted(even, self.sizes[::2]), 1: _parted(odd, self.sizes[1::2])}
        return tuple(parts[i % 2][i // 2] for i in range(len(self.sizes)))

    def join(self, *layers: Array) -> tuple[Array, Array]:
        """The even and the odd layers, side by side, from the layers x_0, …, x_L (*batch, units): a state of `space`."""
        return jnp.concatenate(layers[::2], axis=-1), jnp.concatenate(layers[1::2], axis=-1)

    def up(self, phi: Array) -> Array:
        even = _parted(phi, self.sizes[::2])
        return jnp.concatenate([self._pull(even, i) for i in range(1, len(self.sizes), 2)], axis=-1)

    def down(self, h: Array) -> Array:
        odd = _parted(h, self.sizes[1::2])
        return jnp.concatenate([self._pull(odd, i) for i in range(0, len(self.sizes), 2)], axis=-1)

    def _pull(self, others: list[Array], i: int) -> Array:
        """The contribution of the neighbours of layer i, which are among the layers of the other parity, to its potentials."""
        below, above = (i - 1) // 2, (i + 1) // 2
        terms = [others[below] @ self.weights[i - 1]] if i > 0 else []
        terms += [others[above] @ self.weights[i].T] if i + 1 < len(self.sizes) else []
        return sum(terms[1:], start=terms[0])

    def _as_rbm(self) -> RBM:
        """The same machine with one block matrix of weights: even layers are rows, odd ones columns."""
        rows = []
        for i in range(0, len(self.sizes), 2):
            blocks = [jnp.zeros((self.sizes[i], m), self.dtype) for m in self.sizes[1::2]]
            if i > 0:
                blocks[i // 2 - 1] = self.weights[i - 1].T
            if i + 1 < len(self.sizes):
                blocks[i // 2] = self.weights[i]
            rows.append(jnp.concatenate(blocks, axis=1))
        return RBM.from_parameters(jnp.concatenate(rows), *self.biases())

    def collapsed(self) -> Energy:
        return self._as_rbm().collapsed()

    @property
    def least_width(self) -> int:
        return max(map(min, self.sizes[:-1], self.sizes[1:]))

    def factors(self) -> FactorGraph:
        """One factor for every pair of units in neighbouring layers, and one for every unit: even layers first."""
        sizes = self.sizes
        starts = np.cumsum([0, *sizes[::2], *sizes[1::2]])
        first = [int(starts[i // 2 + (i % 2) * len(sizes[::2])]) for i in range(len(sizes))]
        on = jnp.asarray([0, 1], self.dtype)
        edges, pairs = [], []
        for i, w in enumerate(self.weights):
            edges.append(np.indices(w.shape).reshape(2, -1).T + np.array([first[i], first[i + 1]]))
            pairs.append(w.reshape(-1, 1, 1) * (on[:, None] * on[None])[None])
        even, odd = self.biases()
        fields = [bias[:, None] * on[None] for bias in (even, odd)]
        return pairwise_graph([2] * sum(sizes), np.concatenate(edges), jnp.concatenate(pairs), fields)

    # ------------------------------------------------------------------------------------------------ given an observation

    def given(self, v: Array) -> BilinearLayers | Independent:
        """The distribution of the hidden layers given one observation v: a machine without x_0, with log Z = log Σ_h exp(-E(v, h)) - b_0 · v.

        With one hidden layer, independent units.
        """
        bias = self.layer_biases[1] + v.astype(self.dtype) @ self.weights[0]
        if len(self.sizes) == 2:
            return Independent(bias, Binary(bias.size))
        values = self.weights[1:], (bias, *self.layer_biases[2:])
        return eqx.tree_at(lambda e: (e.weights, e.layer_biases), self, values)

    def mean_field(
        self, v: Array, *, iterations: int | Array = _ITERATIONS, tolerance: float = _TOLERANCE
    ) -> tuple[Array, ...]:
        """The means of the hidden layers in the mean-field approximation q(h) = Π_l q(x_l) for one observation v: (units of layer l,), l = 1, …, L.

        Odd and even hidden layers are set in turns to the optimum given the others, starting from an upward pass with doubled weights. Every step
        raises the lower bound of log p(v), so no damping is needed. It stops when no mean changes by more than `tolerance`, or after `iterations`.
        """
        if len(self.sizes) == 2:
            return (jax.nn.sigmoid(self.hidden_potentials(v[None])[0]),)
        means = self.fixed_point(v, iterations=iterations, tolerance=tolerance)
        hidden: Any = self.given(v)
        return hidden.split(jax.nn.sigmoid(hidden.visible_potentials(means[None])[0]), means)

    def fixed_point(self, v: Array, *, iterations: int | Array = _ITERATIONS, tolerance: float = _TOLERANCE) -> Array:
        """The means of x_2, x_4, … side by side at the mean-field fixed point, without a derivative; for two or more hidden layers."""
        dbm, v = jax.lax.stop_gradient((self, v.astype(self.dtype)))
        hidden: Any = dbm.given(v)
        even, odd = hidden.biases()
        climbed, x = [], v
        for i, w in enumerate(dbm.weights):
            top = i == len(dbm.weights) - 1
            x = jax.nn.sigmoid(dbm.layer_biases[i + 1] + (1 if top else 2) * (x @ w))
            climbed.append(x)

        def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            y, _, t = carry
            x = jax.nn.sigmoid(even + hidden.down(y))
            moved = jax.nn.sigmoid(odd + hidden.up(x))
            return moved, jnp.max(jnp.abs(moved - y)), t + 1

        def unsettled(carry: tuple[Array, Array, Array]) -> Array:
            _, change, t = carry
            return (change > tolerance) & (t < iterations)

        start = jnp.concatenate(climbed[1::2]), jnp.ones((), dbm.dtype), jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(unsettled, step, start)[0]

    def data_energy(self, v: Array, *, iterations: int | Array = _ITERATIONS, tolerance: float = _TOLERANCE) -> Array:
        """An upper bound of -log Σ_h exp(-E(v, h)) for one observation, in nats: min_q E_q[E(v, h)] - H(q) over product distributions q (mean field).

        Exact for one hidden layer. Its derivative is E_q[∂E] with q held fixed.

        Source: Salakhutdinov & Hinton 2009, section 2.1.
        """
        if len(self.sizes) == 2:
            return self.free_energy(v)
        return self.limit(v, self.fixed_point(v, iterations=iterations, tolerance=tolerance))

    def limit(self, v: Array, means: Array) -> Array:
        """The variational bound E_q[E(v, h)] - H(q) for one observation, in nats: x_2, x_4, … have the given means, x_1, x_3, … the optimal ones."""
        hidden: Any = self.given(v)
        even, odd = hidden.biases()
        inner = jnp.dot(odd, means) + jnp.sum(softplus(even + hidden.down(means)))
        inner = inner + jnp.sum(entr(means) + entr(1 - means))
        return -jnp.dot(self.layer_biases[0], v.astype(self.dtype)) - inner

    def visible_part(self, x: Array) -> Array:
        return x[..., : self.sizes[0]]

    def complete(self, key: PRNGKeyArray, v: Array) -> Array:
        if len(self.sizes) == 2:
            return v
        return self.drawn(key, v, jax.vmap(self.fixed_point)(v))

    def drawn(self, key: PRNGKeyArray, v: Array, means: Array) -> Array:
        """Even states (n, even units): x_0 from the data, x_2, x_4, … drawn with these means (n, units), side by side."""
        bits = jax.random.uniform(key, means.shape, means.dtype) < means
        return jnp.concatenate([v, bits.astype(v.dtype)], axis=1)

    def gibbs_given(self, key: PRNGKeyArray, x: Array) -> Array:
        """One sweep of block Gibbs over the hidden layers of a batch of even states (n, even units), with x_0 held fixed."""
        odd_key, even_key = jax.random.split(key)
        potentials = self.visible_potentials(self.sample_hidden(odd_key, x))[:, self.sizes[0] :]
        drawn = units.sample(Binary(potentials.shape[1]), even_key, potentials)
        return jnp.concatenate([self.visible_part(x), drawn.astype(x.dtype)], axis=1)


def _sizes(visible: Any, hidden: Any) -> list[int]:
    """The numbers of units of all layers. Raises ValueError for invalid ones."""
    above = [hidden] if isinstance(hidden, int | np.integer) else list(hidden)
    sizes = [visible, *above]
    if not above or not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 1 for n in sizes):
        raise ValueError(
            "a deep Boltzmann machine needs a number of visible units and numbers of units of one hidden layer or more, such as hidden=(500, 1000), "
            f"all at least 1, but got visible={visible!r} and hidden={hidden!r}"
        )
    return [int(n) for n in sizes]


def _parted(x: Array, sizes: Sequence[int]) -> list[Array]:
    """The parts of the last axis, of these sizes."""
    ends = np.cumsum(sizes)
    return [x[..., end - n : end] for end, n in zip(ends.tolist(), sizes, strict=True)]
