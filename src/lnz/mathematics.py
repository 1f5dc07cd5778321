"""Small pieces of arithmetic that are safe at -∞ and fast on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array


def softplus(x: Array) -> Array:
    """log(1 + e^x) as max(x, 0) + log(1 + e^-|x|): the form that XLA vectorises best, accurate for every x.

    Its derivative is the logistic function, also at x = 0.
    """
    return _softplus(x)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * t


def log_sum_exp(x: Array) -> Array:
    """log Σ_i e^{x_i} over all entries; -inf where all are -inf, with zero gradient at every -inf, whatever x depends on."""
    return _log_sum_exp(x)


@jax.custom_jvp
def _log_sum_exp(x: Array) -> Array:
    top = jax.lax.stop_gradient(jnp.max(x, initial=-jnp.inf))
    shift = jnp.where(jnp.isfinite(top), top, 0)
    return jnp.log(jnp.sum(jnp.exp(x - shift))) + shift


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    out = _log_sum_exp(x)
    possible = x != -jnp.inf
    shares = jnp.exp(jnp.where(possible, x - jnp.where(out == -jnp.inf, 0, out), -jnp.inf))
    return out, jnp.sum(shares * jnp.where(possible, t, 0))


def log_mean_exp(x: Array) -> Array:
    """log of the mean of e^{x_i} over all entries."""
    return log_sum_exp(x) - jnp.log(jnp.asarray(x.size, x.dtype))
