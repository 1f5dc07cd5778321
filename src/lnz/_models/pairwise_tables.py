"""Pairwise log-potentials of random fields from few parameters: Potts, low rank, Gaussian kernels of features."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lnz._core.spaces import ArrayLike
from lnz._models.log_potentials import floats
from lnz._models.structures import Structure


def potts_tables(strength: Any, labels: int) -> Float[Array, "... K K"]:
    """Potts tables: `strength` nats for equal labels, 0 for others. Attractive where it is positive.

    Args:
        strength: a number, or one per group or edge, shape (…).
        labels: K.

    Source: Potts 1952.

    Example:
        >>> import lnz
        >>> lnz.crf.potts_tables([0.5, -1.0], 2).tolist()  # one table for each of two groups
        [[[0.5, 0.0], [0.0, 0.5]], [[-1.0, -0.0], [-0.0, -1.0]]]
    """
    strength = floats(strength)
    same = jnp.eye(labels, dtype=strength.dtype)
    return strength[..., None, None] * same.reshape(*(1,) * strength.ndim, labels, labels)


def low_rank_tables(first: Any, second: Any) -> Float[Array, "... K K"]:
    """Tables of rank r: table[j, k] = Σ_s first[j, s] · second[k, s], such as a network's embeddings of labels at both ends.

    Args:
        first, second: arrays of shape (…, K, r); leading axes are those of groups or edges.

    Raises:
        ValueError: if their shapes differ.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> lnz.crf.low_rank_tables(jnp.asarray([[1.0], [2.0]]), jnp.asarray([[1.0], [-1.0]])).tolist()
        [[1.0, -1.0], [2.0, -2.0]]
    """
    first, second = floats(first), floats(second)
    if first.shape != second.shape or first.ndim < 2:
        raise ValueError(f"both ends must have the same shape (…, K, r), but got {first.shape} and {second.shape}")
    return first @ jnp.swapaxes(second, -1, -2)


def gaussian_tables(
    features: Float[ArrayLike, "*nodes F"],
    structure: Structure,
    bandwidths: Float[ArrayLike, " F"] | float,
    compatibility: Float[ArrayLike, "K K"],
) -> Float[Array, "E K K"]:
    """A table for every edge, larger the more similar its ends are: exp(-½ Σ_f ((x_if - x_jf) / bandwidth_f)²) · compatibility, in nats.

    Args:
        features: the features of every node, such as position and colour, shape (*structure.shape, F).
        structure: the structure whose edges join the nodes.
        bandwidths: one per feature, or one for all; positive.
        compatibility: log-potentials of label pairs [from, to] at identical ends, shape (K, K), such as `lnz.crf.potts_tables(w, K)`.

    Raises:
        ValueError: if shapes do not match.

    Source: Krähenbühl, Koltun 2011, "Efficient inference in fully connected CRFs with Gaussian edge potentials".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> brightness = jnp.asarray([[[0.0], [0.0], [1.0]]])
        >>> tables = lnz.crf.gaussian_tables(brightness, lnz.crf.Grid((1, 3)), 0.5, lnz.crf.potts_tables(2.0, 2))
        >>> [round(float(t), 3) for t in tables[:, 0, 0]]
        [2.0, 0.271]
    """
    features, compatibility = floats(features), floats(compatibility)
    bandwidths = floats(bandwidths)
    if features.ndim != len(structure.shape) + 1 or features.shape[:-1] != structure.shape:
        raise ValueError(f"features must have shape {(*structure.shape, 'F')}, but got {features.shape}")
    if bandwidths.shape not in ((), features.shape[-1:]):
        raise ValueError(f"bandwidths must be one number, or {features.shape[-1]}, but have shape {bandwidths.shape}")
    if compatibility.ndim != 2 or compatibility.shape[0] != compatibility.shape[1]:
        raise ValueError(f"the compatibility of labels must have shape (K, K), but got {compatibility.shape}")
    scaled = features.reshape(-1, features.shape[-1]) / jnp.broadcast_to(bandwidths, (1, features.shape[-1]))
    first, second = structure.at_ends(scaled)
    alike = jnp.exp(-jnp.sum((first - second) ** 2, axis=1) / 2)
    return alike[:, None, None] * compatibility[None]
