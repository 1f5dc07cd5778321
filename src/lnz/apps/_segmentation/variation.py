"""Random variations of images and their labels, for data augmentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz.apps._segmentation.neural_potentials import Architecture
from lnz.apps._segmentation.reading import VOID

# Sizes of the random variations: brightness and contrast, as a share of a colour's spread; size, as a logarithm; angle; position, as a share
# of the shorter side.
_JITTER, _SIZES, _TURN, _MOVE = 0.1, 0.25, 0.15, 0.1


def varied(x: Array, y: Array, key: PRNGKeyArray, a: Architecture) -> tuple[Array, Array]:
    """Images mirrored, shifted, scaled, rotated and varied in brightness and contrast at random, with their labels (void beyond the edge)."""
    where, bright, contrast = jax.random.split(key, 3)
    x, y = jax.vmap(_moved)(x, y, jax.random.split(where, len(x)))
    spread = jnp.asarray(a.spread, jnp.float32)[None, None, None]
    centre = jnp.asarray(a.centre, jnp.float32)[None, None, None]
    shift = _JITTER * jax.random.normal(bright, (len(x), 1, 1, 1), jnp.float32)
    factor = 1 + _JITTER * jax.random.normal(contrast, (len(x), 1, 1, 1), jnp.float32)
    return centre + (x - centre) * factor + shift * spread, y


def _moved(x: Array, y: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    """One image and its labels under a random affine map."""
    height, width, _ = x.shape
    mirror, size, turn, move = jax.random.split(key, 4)
    sign = jnp.where(jax.random.bernoulli(mirror), -1.0, 1.0).astype(jnp.float32)
    scale = jnp.exp(_SIZES * jax.random.uniform(size, (), jnp.float32, -1, 1))
    angle = _TURN * jax.random.uniform(turn, (), jnp.float32, -1, 1)
    shift = _MOVE * min(height, width) * jax.random.uniform(move, (2,), jnp.float32, -1, 1)
    rows = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[:, None]
    columns = sign * (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2)[None]
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    r = cos * rows + sin * columns + (height - 1) / 2 + shift[0]
    c = cos * columns - sin * rows + (width - 1) / 2 + shift[1]
    top, left = (jnp.clip(jnp.floor(v), 0, m - 2) for v, m in ((r, height), (c, width)))
    down, across = (jnp.clip(v - first, 0, 1)[..., None] for v, first in ((r, top), (c, left)))
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = x[i, j] * (1 - across) + x[i, j + 1] * across
    lower = x[i + 1, j] * (1 - across) + x[i + 1, j + 1] * across
    near_r, near_c = jnp.round(r).astype(jnp.int32), jnp.round(c).astype(jnp.int32)
    inside = (near_r >= 0) & (near_r < height) & (near_c >= 0) & (near_c < width)
    labels = y[jnp.clip(near_r, 0, height - 1), jnp.clip(near_c, 0, width - 1)]
    return upper * (1 - down) + lower * down, jnp.where(inside, labels, VOID)
