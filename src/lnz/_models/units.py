"""Independent discrete units given their log-potentials: features, sums, means and samples of spins, bits and categories.

A unit's log-potential η multiplies its features φ(x): p(x) ∝ exp(η · φ(x)).

- `Binary`: φ(x) = x, η one number per unit.
- `Spin`: φ(x) = x, η one number per unit.
- `Categorical`: φ(x) = onehot(x), η one number per category: a trailing axis of length k.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.given import given_array
from lnz._core.numerics import softplus
from lnz._core.spaces import Binary, Categorical, MixedCategorical, Space, Spin


def feature_shape(space: Space) -> tuple[int, ...]:
    """The shape of φ(x) for one state of the space. Raises TypeError for a space without such units."""
    if isinstance(space, Binary | Spin):
        return space.shape
    if isinstance(space, Categorical):
        return (*space.shape, space.k)
    raise TypeError(f"independent discrete units need a Binary, Spin or Categorical space, not {space}")


def value_counts(space: Binary | Spin | Categorical | MixedCategorical) -> np.ndarray:
    """The number of values of every unit, in flat order: shape (units,)."""
    counts = space.cardinalities if isinstance(space, MixedCategorical) else space.categories
    return np.broadcast_to(np.asarray(counts), (space.size,))


def features(space: Space, x: Array, dtype: jnp.dtype) -> Array:
    """φ(x), in the given dtype: shape (*batch, *feature_shape)."""
    if isinstance(space, Categorical):
        return jax.nn.one_hot(x.astype(jnp.int32), space.k, dtype=dtype)
    return jnp.asarray(given_array(x)).astype(dtype)


def log_partition(space: Space, potentials: Array) -> Array:
    """log Σ_x exp(η · φ(x)) of every unit, in nats: shape (*batch, *space.shape)."""
    if isinstance(space, Binary):
        return softplus(potentials)
    if isinstance(space, Spin):
        return softplus(2 * potentials) - potentials
    return jax.nn.logsumexp(potentials, axis=-1)


def mean(space: Space, potentials: Array) -> Array:
    """E[φ(x)] of every unit: shape (*batch, *feature_shape)."""
    if isinstance(space, Binary):
        return jax.nn.sigmoid(potentials)
    if isinstance(space, Spin):
        return jnp.tanh(potentials)
    return jax.nn.softmax(potentials, axis=-1)


def sample(space: Space, key: PRNGKeyArray, potentials: Array) -> Array:
    """One draw of every unit: booleans for `Binary`, ±1 in the potentials' dtype for `Spin`, int32 for `Categorical`.

    Shape (*batch, *space.shape). Booleans are the fastest to compare and to carry; callers cast where they need numbers.
    """
    if isinstance(space, Categorical):
        return jax.random.categorical(key, potentials, axis=-1).astype(jnp.int32)
    uniform = jax.random.uniform(key, potentials.shape, potentials.dtype)
    if isinstance(space, Binary):
        return uniform < jax.nn.sigmoid(potentials)
    one = jnp.ones((), potentials.dtype)
    return jnp.where(uniform < jax.nn.sigmoid(2 * potentials), one, -one)


def sample_first_axis(key: PRNGKeyArray, potentials: Array) -> Array:
    """One draw of every categorical unit from log-potentials (k, *batch), values first: int32, shape (*batch,).

    It uses one uniform per unit and running sums, which for a loop of many small draws is several times as fast as a Gumbel number per value. A
    value of log-potential -inf is never drawn; at least one value must be possible.
    """
    if potentials.shape[0] > 64:
        return jax.random.categorical(key, potentials, axis=0).astype(jnp.int32)
    weights = jnp.exp(potentials - jnp.max(potentials, axis=0, keepdims=True))
    sums = list(itertools.accumulate(weights))
    # A uniform is below 1 by more than a rounding error, so that the level is below the last sum.
    level = jax.random.uniform(key, sums[-1].shape, sums[-1].dtype) * sums[-1]
    passed = [(sum_ <= level).astype(jnp.int32) for sum_ in sums[:-1]]
    return functools.reduce(jnp.add, passed, jnp.zeros(level.shape, jnp.int32))
