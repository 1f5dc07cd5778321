"""Directions in which an energy of real numbers hardly grows: where Z = ∞ would show."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST = 256  # dimensions up to which the curvature is computed
_STEPS = 200


def flattest(energy: Callable[[Array], Array], x: Float[Array, " d"], spread: Array | float) -> Float[Array, "k d"]:
    """Unit vectors along which the energy grows least as seen from x: eight or fewer and their opposites.

    They are the eigenvectors of the smallest eigenvalues of the second differences over `spread` and over 1,000 times as much. Random directions
    miss a flat one in all but few dimensions.
    """
    slope = jax.grad(lambda u: energy(u).astype(u.dtype))
    axes = jnp.eye(x.size, dtype=x.dtype)

    def curvature(step: Array) -> Array:
        rows = jax.vmap(lambda u: (slope(x + step * u) - slope(x - step * u)) / (2 * step))(axes)
        rows = jnp.where(jnp.isfinite(rows), rows, 0)
        return 0.5 * (rows + rows.T)

    def least(step: Array) -> Array:
        values, vectors = jnp.linalg.eigh(curvature(step))
        picked = jnp.concatenate([jnp.arange(min(2, x.size)), jnp.argsort(jnp.abs(values))[:2]])
        return vectors[:, picked].T

    steps = jnp.asarray(spread, x.dtype) * jnp.asarray([1.0, 1e3], x.dtype)
    found = jax.vmap(least)(steps).reshape(-1, x.size)
    return jnp.concatenate([found, -found])


def lowest(energy: Callable[[Array], Array], rays: Float[Array, "k d"], radius: Array | float) -> Float[Array, "k d"]:
    """Directions of low energy on a sphere around 0, by descent from given directions."""

    def descend(u: Array) -> Array:
        def step(i: Array, u: Array) -> Array:
            gradient = jax.grad(lambda u: energy(radius * u))(u)
            norm = jnp.linalg.norm(gradient)
            fine = jnp.isfinite(norm) & (norm > 0)
            new = u - 0.3 * 0.97**i * jnp.where(fine, gradient / jnp.where(fine, norm, 1), 0)
            return new / jnp.linalg.norm(new)

        return jax.lax.fori_loop(0, _STEPS, step, u)

    return jax.vmap(descend)(rays)
