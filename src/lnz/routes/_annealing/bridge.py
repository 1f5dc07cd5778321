"""Ratios of normalisers of two or more distributions from samples of each (BAR, MBAR), and the overlap of two distributions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def bar(forward: Float[Array, " n"], reverse: Float[Array, " m"]) -> Float[Array, ""]:
    """log Z_1 - log Z_0 by Bennett's acceptance ratio, in nats: the estimate of least variance from works in both directions.

    It solves Σ_i σ(M + a_i - c) = Σ_j σ(c + b_j - M) for c, with M = log(m/n) and σ the logistic function, by bisection: the left side falls
    and the right side rises with c.

    Args:
        forward: a, log weights with E[e^a] = Z_1 / Z_0: of samples of the first distribution, or of annealing runs from it to the second.
        reverse: b, log weights with E[e^b] = Z_0 / Z_1: the same the other way, with every move reversed.

    Source: Bennett 1976; Shirts, Bair, Hooker & Pande 2003 (maximum likelihood); Meng & Wong 1996 (bridge sampling).

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> round(float(lnz.routes.bar(jnp.asarray([0.0, 1.0]), jnp.asarray([-1.0, 0.0]))), 4)
        0.5
    """
    shift = jnp.asarray(math.log(reverse.size / forward.size), forward.dtype)
    both = jnp.concatenate([forward, -reverse])
    finite = jnp.isfinite(both)
    low = jnp.min(both, where=finite, initial=jnp.inf) - abs(shift) - 1
    high = jnp.max(both, where=finite, initial=-jnp.inf) + abs(shift) + 1

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = jnp.sum(jax.nn.sigmoid(shift + forward - middle)) > jnp.sum(jax.nn.sigmoid(middle + reverse - shift))
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    broken = jnp.any(jnp.isnan(both)) | ~jnp.any(finite)
    return jnp.where(broken, jnp.nan, jnp.where(jnp.max(forward) == -jnp.inf, -jnp.inf, 0.5 * (low + high)))


def overlap(forward: Float[Array, " n"], reverse: Float[Array, " m"], log_ratio: Float[Array, ""]) -> Float[Array, ""]:
    """The overlap of two distributions, ∫ 2 p q / (p + q), from 0 to 1: the smaller estimate of those from either's samples.

    Args:
        forward: log weights of samples of the first distribution, as for `bar`.
        reverse: those of samples of the second.
        log_ratio: log Z_1 - log Z_0.
    """
    first = jnp.mean(2 * jax.nn.sigmoid(forward - log_ratio))
    second = jnp.mean(2 * jax.nn.sigmoid(reverse + log_ratio))
    return jnp.minimum(first, second)


class MBAR(NamedTuple):
    """Normalisers of K distributions from samples of all of them.

    Attributes:
        log_z: (K,), log Z_k - log Z_0 in nats.
        overlap: (K, K), the probability by its weights that a sample of distribution i came from distribution j; rows sum to 1. Where it falls
            into blocks, the ratios between blocks are unknown, whatever an error formula gives.
    """

    log_z: Float[Array, " K"]
    overlap: Float[Array, "K K"]


def mbar(energies: Float[Array, "K N"], counts: Int[Array, " K"]) -> MBAR:
    """The multistate Bennett acceptance ratio: log Z_k - log Z_0 of K distributions, by maximum likelihood from samples of all.

    It solves Z_k = Σ_n exp(-u_k(x_n)) / Σ_j N_j exp(-u_j(x_n)) / Z_j: by Newton steps on the convex objective, and by substitution where those
    would leave a larger residual.

    Args:
        energies: u, the energy of every one of the N pooled samples under every distribution, in nats; +inf where impossible.
        counts: N_k, the number of samples of each distribution.

    Source: Shirts & Chodera 2008; Geyer 1994 (reverse logistic regression).

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> u = jnp.asarray([[0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 1.0]])
        >>> float(abs(lnz.routes.mbar(u, jnp.asarray([2, 2])).log_z[1])) < 1e-6
        True
    """
    dtype = energies.dtype
    n = counts.astype(dtype)
    log_n = jnp.log(n)[:, None]
    tolerance = 64 * float(jnp.finfo(dtype).eps)

    def shares(f: Array) -> Array:
        """(K, N): the probability that each pooled sample came from each distribution."""
        return jax.nn.softmax(log_n + f[:, None] - energies, axis=0)

    def residual(f: Array) -> Array:
        return jnp.max(jnp.abs(jnp.sum(shares(f), axis=1) - n)) / jnp.sum(n)

    def substituted(f: Array) -> Array:
        weight = jax.nn.logsumexp(log_n + f[:, None] - energies, axis=0)
        new = -jax.nn.logsumexp(-energies - weight[None], axis=1)
        return new - new[0]

    def newton(f: Array) -> Array:
        p = shares(f)
        total = jnp.sum(p, axis=1)
        hessian = jnp.diag(total) - p @ p.T
        return f.at[1:].add(-jnp.linalg.lstsq(hessian[1:, 1:], (total - n)[1:])[0])

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, f, _ = carry
        near, far = substituted(f), newton(f)
        near_left, far_left = residual(near), residual(far)
        better = far_left < near_left  # false where the Newton step is NaN
        return i + 1, jnp.where(better, far, near), jnp.where(better, far_left, near_left)

    def going(carry: tuple[Array, Array, Array]) -> Array:
        return (carry[0] < 500) & (carry[2] > tolerance)

    f = jnp.zeros(n.shape, dtype)
    _, f, _ = jax.lax.while_loop(going, improve, (jnp.zeros((), jnp.int32), f, jnp.asarray(jnp.inf, dtype)))
    p = shares(f)
    return MBAR(-f, (p / n[:, None]) @ p.T)
