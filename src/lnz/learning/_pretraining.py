"""Greedy pretraining of a deep Boltzmann machine as a stack of two-layer machines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.spaces import ArrayLike, Binary, Space
from lnz._models.deep_boltzmann_machine import DeepBoltzmannMachine
from lnz._models.independent import Independent
from lnz._models.layers import BilinearLayers
from lnz.learning._fit import fit
from lnz.learning._negative import ContrastiveDivergence, NegativePhase

if TYPE_CHECKING:
    import optax

_ROWS = 4096  # rows that are propagated to the next layer at once


class TwinLayers(BilinearLayers):
    """Two layers of bits, each with one or two copies and shared weights between all copies, for pretraining one pair of layers.

    Two copies of the visible layer double its input to the hidden units, which stands for the input from the layer above in the stack.
    """

    weights: Float[Array, "visible hidden"]
    visible_bias: Float[Array, " visible"]
    hidden_bias: Float[Array, " hidden"]
    below: int = eqx.field(static=True)
    above: int = eqx.field(static=True)

    @property
    def observed(self) -> Space:
        return Binary(self.below * self.visible_bias.size)

    def biases(self) -> tuple[Array, Array]:
        return jnp.tile(self.visible_bias, self.below), jnp.tile(self.hidden_bias, self.above)

    def up(self, phi: Array) -> Array:
        return self._copied(self._summed(phi, self.below) @ self.weights, self.above)

    def down(self, h: Array) -> Array:
        return self._copied(self._summed(h, self.above) @ self.weights.T, self.below)

    def _summed(self, x: Array, copies: int) -> Array:
        return x if copies == 1 else x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]

    def _copied(self, x: Array, copies: int) -> Array:
        return x if copies == 1 else jnp.concatenate([x, x], axis=-1)


def pretrained(
    data: ArrayLike,
    hidden: int | Sequence[int],
    *,
    epochs: float | Sequence[float] = 5,
    optimizer: optax.GradientTransformation | None = None,
    negative_phase: NegativePhase | None = None,
    batch_size: int = 100,
    scale: float = 0.01,
    dtype: Any = jnp.float32,
    key: PRNGKeyArray,
) -> DeepBoltzmannMachine:
    """A pretrained deep Boltzmann machine, whose layers are learned greedily from below, each as a two-layer machine.

    In the stack a unit between two layers receives input from both; in a pair alone it receives input from one, which therefore has two
    copies: the lower layer of every pair but the highest, and the upper layer of every pair but the lowest. States drawn from one pair are the
    data of the next. The biases of a layer between two others are the mean of those learned from below and from above.

    The distribution of the stack is some distance from the data, and its chains mix slowly. Continue training with several sweeps per update,
    such as `PersistentChains(sweeps=10)`: with one, the likelihood first falls far below the stack's.

    Args:
        data: bits (n, visible).
        hidden: the numbers of units of the hidden layers, from below.
        epochs: epochs of every layer; one number for all, or one per layer.
        optimizer: any optax gradient transformation; by default `optax.sgd(0.05)`.
        negative_phase: by default `ContrastiveDivergence()`, which is sufficient for pretraining.
        batch_size: examples per update.
        scale: standard deviation of the initial weights.
        dtype: dtype of the parameters.
        key: random key.

    Raises:
        ValueError: for invalid data or layers.

    Source: Salakhutdinov & Hinton 2009, "Deep Boltzmann machines", section 3.1.

    Example:
        >>> import jax, lnz
        >>> data = lnz.Binary(6).uniform(jax.random.key(0), 200)
        >>> lnz.learning.pretrained(data, (4, 3), epochs=1, key=jax.random.key(1)).sizes
        (6, 4, 3)
    """
    import optax

    space = Binary(np.shape(data)[1:])
    space.validate(data, batch=True)
    machine = DeepBoltzmannMachine(space.size, hidden, key=key, scale=scale, dtype=dtype)
    depth = len(machine.weights)
    lengths = [epochs] * depth if isinstance(epochs, int | float) else list(epochs)
    if len(lengths) != depth:
        raise ValueError(
            f"epochs must be one number, or one per layer of the {depth} hidden layers, but are {epochs!r}"
        )
    optimizer = optax.sgd(0.05) if optimizer is None else optimizer
    phase = ContrastiveDivergence() if negative_phase is None else negative_phase
    rows, learned = data, []
    for i, weights in enumerate(machine.weights):
        low = Independent.from_data(rows, Binary(weights.shape[0])).potentials.astype(dtype)
        layers = TwinLayers(
            weights, low, machine.layer_biases[i + 1], 1 if depth == 1 or i == depth - 1 else 2, 1 if i == 0 else 2
        )
        fit_key, draw_key = jax.random.split(jax.random.fold_in(key, i))
        seen = np.concatenate([np.asarray(rows)] * layers.below, axis=1)
        layers = fit(
            layers,
            seen,
            negative_phase=phase,
            optimizer=optimizer,
            epochs=lengths[i],
            batch_size=batch_size,
            evaluate_every=lengths[i],
            key=fit_key,
        ).energy
        learned.append(layers)
        if i < depth - 1:
            rows = _drawn(layers, seen, draw_key)
    biases = [learned[0].visible_bias]
    biases += [(lower.hidden_bias + upper.visible_bias) / 2 for lower, upper in itertools.pairwise(learned)]
    biases.append(learned[-1].hidden_bias)
    return DeepBoltzmannMachine.from_parameters([layers.weights for layers in learned], biases)


def _drawn(layers: Any, rows: np.ndarray, key: PRNGKeyArray) -> np.ndarray:
    """One copy of the hidden units (n, hidden), drawn given every row."""
    draw = eqx.filter_jit(lambda layers, key, v: layers.sample_hidden(key, v))
    parts = [
        np.asarray(
            draw(layers, jax.random.fold_in(key, start), jnp.asarray(rows[start : start + _ROWS]).astype(layers.dtype))
        )
        for start in range(0, len(rows), _ROWS)
    ]
    return np.concatenate(parts)[:, : layers.hidden_bias.size]
