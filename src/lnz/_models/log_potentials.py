"""Conversions and checks of log-potentials for several models of labels."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.frozen import is_traced
from lnz._core.given import given_array


def floats(x: Any) -> Array:
    """An array of floating-point numbers, in its own precision if it has one."""
    x = jnp.asarray(given_array(x, "log-potentials"))
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def wide_integers(x: Any) -> Array:
    """Lengths or labels in int32, or int64 where they came so: sums and products of narrower integers would wrap around."""
    x = jnp.asarray(x)
    return x if x.dtype in (jnp.int32, jnp.int64) else x.astype(jnp.int32)


def booleans(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """An array of booleans of this shape; ValueError for anything else."""
    values = jnp.asarray(given_array(values, name))
    if values.dtype != bool or values.shape != shape:
        raise ValueError(f"{name} must be booleans of shape {shape}, but got {values.dtype} of shape {values.shape}")
    return values


def check_labels(labels: Array, k: int, mask: Array | None) -> None:
    """Raise ValueError if a node that exists has a label outside 0 … k - 1, unless labels or mask are traced."""
    if is_traced(labels) or is_traced(mask):
        return
    numbers = np.asarray(labels)
    wrong = (numbers < 0) | (numbers >= k)
    wrong = wrong if mask is None else wrong & np.asarray(mask)
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        node = place if wrong.ndim > 1 else place[0]
        raise ValueError(
            f"labels must be in [0, {k - 1}], but node {node} has label {int(numbers[place])}; mask the node or fix the label"
        )


def check_log_potentials(name: str, values: Array | None) -> None:
    """Raise ValueError if a log-potential is NaN or +inf, unless they are traced."""
    if values is None or is_traced(values):
        return
    numbers = np.asarray(values.astype(jnp.result_type(float)))
    bad = np.argwhere(np.isnan(numbers) | (numbers == np.inf))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise ValueError(
            f"{name} hold {numbers[place]} at {place}: log-potentials must be finite, or -inf where a label is impossible"
        )
