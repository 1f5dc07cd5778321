"""Ratios of normalisers of two or more distributions from samples of each (BAR, MBAR), and the overlap of two distributions."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lnz._core.frozen import is_traced
from lnz._core.spaces import ArrayLike
from lnz.routes._annealing.programs import on_host

_LITTLE_OVERLAP = 0.03  # of two distributions, below which hardly a sample tells their ratio


def bar(forward: ArrayLike, reverse: ArrayLike) -> Float[Array, ""]:
    """log Z_1 - log Z_0 by Bennett's acceptance ratio, in nats: the estimate of least variance from works in both directions.

    It solves Σ_i σ(M + a_i - c) = Σ_j σ(c + b_j - M) for c, with M = log(m/n) and σ the logistic function: the left side falls and the right
    side rises with c. Both are compared as logarithms, which tell them apart also where the works hardly overlap.

    Args:
        forward: a, log weights with E[e^a] = Z_1 / Z_0: of samples of the first distribution, or of annealing runs from it to the second.
            -inf is a weight of 0, of a sample that is impossible under the second; it counts in n.
        reverse: b, log weights with E[e^b] = Z_0 / Z_1: the same the other way, with every move reversed.

    Returns:
        The ratio; -inf where every forward weight is 0, +inf where every reverse weight is, and NaN where both are or a log weight is NaN or +inf.

    Source: Bennett 1976; Shirts, Bair, Hooker & Pande 2003 (maximum likelihood); Meng & Wong 1996 (bridge sampling).

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> round(float(lnz.routes.bar(jnp.asarray([0.0, 1.0]), jnp.asarray([-1.0, 0.0]))), 4)
        0.5
    """
    return on_host(bar_of, _log_weights("forward", forward), _log_weights("reverse", reverse))


def bar_of(forward: np.ndarray, reverse: np.ndarray) -> np.ndarray:
    """`bar` in NumPy: Newton steps, or halves of the bracket where those leave it."""
    works = np.concatenate([forward, reverse])
    some_a, some_b = np.isfinite(forward).sum(), np.isfinite(reverse).sum()
    if np.isnan(works).any() or (works == np.inf).any() or not (some_a or some_b):
        return np.asarray(np.nan)
    if not (some_a and some_b):
        return np.asarray(np.inf if some_a else -np.inf)
    shift = math.log(reverse.size / forward.size)
    a, b = forward[np.isfinite(forward)], reverse[np.isfinite(reverse)]
    # Where all finite arguments of the left side are at least s and of the right side at most -s, the left side is the larger, as e^2s > m/n.
    room = 1 + abs(shift) + abs(math.log(some_b) - math.log(some_a))
    low, high = min(a.min(), -b.max()) - room, max(a.max(), -b.min()) + room
    c = 0.5 * (low + high)
    for _ in range(100):
        (left, fall), (right, rise) = _log_sigmoid_sum(a + shift - c), _log_sigmoid_sum(c - shift + b)
        low, high = (c, high) if left > right else (low, c)
        step = (left - right) / max(fall + rise, 1e-300)
        new = c + step if low < c + step < high else 0.5 * (low + high)
        done, c = abs(new - c) <= 1e-12 * (1 + abs(c)), new
        if done:
            break
    return np.asarray(c)


def _log_sigmoid_sum(x: np.ndarray) -> tuple[float, float]:
    """log Σ σ(x_i), and its derivative with respect to a shift of x."""
    terms = np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))
    top = terms.max()
    weights = np.exp(terms - top)
    return top + math.log(weights.sum()), float(1 - np.exp(terms) @ weights / weights.sum())


def _log_weights(name: str, x: Any) -> Array:
    x = jnp.asarray(x)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"the {name} log weights are one array of at least one number, but got shape {x.shape}")
    return x.astype(jnp.result_type(float))


def overlap(forward: Any, reverse: Any, log_ratio: Any) -> np.ndarray:
    """The overlap of two distributions, ∫ 2 p q / (p + q), from 0 to 1, in NumPy: the smaller estimate of those from either's samples.

    Args:
        forward: log weights of samples of the first distribution, as for `bar`.
        reverse: those of samples of the second.
        log_ratio: log Z_1 - log Z_0.
    """
    return np.minimum(*(np.mean(2 / (1 + np.exp(x))) for x in (log_ratio - forward, -log_ratio - reverse)))


class MBAR(NamedTuple):
    """Normalisers of K distributions from samples of all of them.

    Attributes:
        log_z: (K,), log Z_k - log Z_0 in nats.
        overlap: (K, K), the probability by its weights that a sample of distribution i came from distribution j; rows sum to 1. Where it falls
            into blocks, the ratios between blocks rest on few samples, whatever an error formula gives.
        converged: whether the equations were solved: what a further Newton step would change is below what rounding changes, and no two blocks
            of distributions are so far apart that the step itself is lost in rounding.
    """

    log_z: Float[Array, " K"]
    overlap: Float[Array, "K K"]
    converged: Bool[Array, ""]

    @property
    def poor_overlap(self) -> Bool[Array, ""]:
        """Whether the distributions fall into blocks that share hardly any samples."""
        k = len(self.log_z)
        joined = jnp.maximum(self.overlap, self.overlap.T) > 2 * _LITTLE_OVERLAP / max(k, 2)
        reached = (joined | jnp.eye(k, dtype=bool)).astype(jnp.float32)
        for _ in range(max(k - 1, 1).bit_length()):
            reached = (reached @ reached > 0).astype(jnp.float32)
        return jnp.any(reached == 0)


def mbar(energies: ArrayLike, counts: ArrayLike) -> MBAR:
    """The multistate Bennett acceptance ratio: log Z_k - log Z_0 of K distributions, by maximum likelihood from samples of all.

    It solves Z_k = Σ_n exp(-u_k(x_n)) / Σ_j N_j exp(-u_j(x_n)) / Z_j: by Newton steps on the convex objective, and by substitution where those
    would leave a larger residual. The residual of k compares, as logarithms, the probability that flows to k from samples that are most likely
    of other distributions with what flows out of those that are most likely of k: it does not go flat where distributions hardly overlap.
    Outside transformations, distributions that hardly overlap and equations that were not solved give a warning (`RuntimeWarning`).

    Args:
        energies: u, the energy of every one of the N pooled samples under every distribution, in nats; +inf where impossible.
        counts: N_k, the number of samples of each distribution, at least 1; they add up to N.

    Raises:
        ValueError: where shapes do not fit, a distribution has no samples, or counts do not add up to N. Traced counts are not checked.

    Source: Shirts & Chodera 2008; Geyer 1994 (reverse logistic regression).

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> u = jnp.asarray([[0.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 1.0]])
        >>> float(abs(lnz.routes.mbar(u, jnp.asarray([2, 2])).log_z[1])) < 1e-6
        True
    """
    energies = jnp.asarray(energies).astype(jnp.result_type(float))
    _check_counts(energies.shape, counts)
    found = _mbar(energies, jnp.asarray(counts).astype(energies.dtype))
    if not is_traced(found.log_z):
        words = None
        if not found.converged:
            words = "MBAR did not converge: no samples tell the ratio of some distributions"
        elif found.poor_overlap:
            words = "some distributions hardly overlap, so their ratio rests on few samples"
        if words is not None:
            warnings.warn(f"{words}. Add distributions between them, or more samples", RuntimeWarning, stacklevel=2)
    return found


def _check_counts(shape: tuple[int, ...], counts: Any) -> None:
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"the energies of N samples under K distributions have shape (K, N), but got {shape}")
    if np.shape(counts) != shape[:1]:
        raise ValueError(f"{shape[0]} distributions need as many counts, but got shape {np.shape(counts)}")
    if is_traced(counts):
        return
    numbers = np.asarray(counts)
    if not (numbers >= 1).all() or (numbers != np.floor(numbers)).any():
        raise ValueError(f"every distribution needs at least one sample, but counts are {numbers.tolist()}")
    if numbers.astype(float).sum() != shape[1]:
        raise ValueError(f"counts add up to {numbers.astype(float).sum():.0f}, but there are {shape[1]} samples")


class _Flows(NamedTuple):
    """Of the shares p_kn with which sample n came from distribution k, as logarithms; a_n is the k of the largest.

    Attributes:
        shares: log p, (K, N).
        into: of Σ p_kn over samples with a_n ≠ k, plus what #{a_n = k} exceeds N_k.
        out: of Σ (1 - p_kn) over samples with a_n = k, plus what N_k exceeds #{a_n = k}. The equations say that both are equal.
        objective: the convex function whose minimum solves them, a sample; flat where no sample is between two distributions.
    """

    shares: Float[Array, "K N"]
    into: Float[Array, " K"]
    out: Float[Array, " K"]
    objective: Float[Array, ""]

    @property
    def residual(self) -> Array:
        return jnp.max(jnp.abs(self.into - self.out))


class _Best(NamedTuple):
    """The state of the iteration."""

    number: Array
    f: Array  # -log Z
    shares: Array
    steps: tuple[Array, Array]  # Newton steps to try next
    change: Array  # the size of the first; infinite where it is not known
    least: Array  # the least residual so far
    idle: Array  # for how many steps it has not become less


@jax.jit
def _mbar(energies: Float[Array, "K N"], n: Float[Array, " K"]) -> MBAR:
    k, dtype = len(energies), energies.dtype
    eps, log_n = float(jnp.finfo(dtype).eps), jnp.log(n)[:, None]

    def flows(f: Array) -> _Flows:
        logits = log_n + f[:, None] - energies
        whole = jax.nn.logsumexp(logits, axis=0)
        likely = jax.nn.one_hot(jnp.argmax(logits, 0), k, axis=0, dtype=bool)
        shares = logits - whole[None]
        rest = jax.nn.logsumexp(jnp.where(likely, -jnp.inf, logits), axis=0) - whole
        excess = jnp.sum(likely, axis=1, dtype=dtype) - n
        into = jax.nn.logsumexp(jnp.where(likely, -jnp.inf, shares), axis=1)
        out = jax.nn.logsumexp(jnp.where(likely, rest[None], -jnp.inf), axis=1)
        more, less = jnp.log(jnp.maximum(excess, 0)), jnp.log(jnp.maximum(-excess, 0))
        objective = jnp.mean(whole) - jnp.sum(n * f) / jnp.sum(n)
        return _Flows(shares, jnp.logaddexp(into, more), jnp.logaddexp(out, less), objective)

    def substituted(f: Array) -> Array:
        weight = jax.nn.logsumexp(log_n + f[:, None] - energies, axis=0)
        new = -jax.nn.logsumexp(-energies - weight[None], axis=1)
        return new - new[0]

    def newton(at: _Flows) -> tuple[Array, Array, Array]:
        """Two steps, and whether the first says how far the solution is.

        The Hessian is a graph's Laplacian with weights W_jk = Σ_n p_jn p_kn. It is scaled to a unit diagonal, and its diagonal is a sum of
        weights, so that neither small weights nor differences of large numbers lose their digits.
        """
        shared = jax.lax.map(lambda row: jax.nn.logsumexp(at.shares + row[None], axis=1), at.shares)
        shared = jnp.where(jnp.eye(k, dtype=bool), -jnp.inf, shared)
        degree = jax.nn.logsumexp(shared, axis=1)
        half, level = 0.5 * degree, 0.5 * jnp.max(degree)
        laplacian = jnp.eye(k, dtype=dtype) - jnp.exp(shared - half[:, None] - half[None])
        values, vectors = jnp.linalg.eigh(laplacian)
        inverse = jnp.where(jnp.arange(k) == 0, 0, 1 / values)  # f + c is the same for every c

        def solved(scaled: Array) -> Array:
            with jax.default_matmul_precision("highest"):
                step = jnp.exp(level - half) * (vectors @ (inverse * (vectors.T @ scaled)))
            return step - step[0]

        gap = jnp.exp(at.into - half - level) - jnp.exp(at.out - half - level)
        log_gap = 0.5 * jnp.exp(half - level) * (at.into - at.out)
        return solved(-gap), solved(-log_gap), values[1] > 64 * k * eps

    def improve(best: _Best) -> _Best:
        shorter = [best.f + scale * step for scale in (1, 0.3, 0.1, 0.01) for step in best.steps]
        tried = jnp.stack([*shorter, substituted(best.f)])
        objectives, left = jax.lax.map(lambda f: (flows(f).objective, flows(f).residual), tried)
        flat = objectives <= jnp.nanmin(objectives) + 4 * eps * (1 + jnp.max(jnp.abs(best.f)))  # as rounding has it
        f = tried[jnp.argmin(jnp.where(flat & ~jnp.isnan(left), left, jnp.inf))]
        at = flows(f)
        step, other, known = newton(at)
        far = jnp.max(jnp.abs(step))
        idle = jnp.where(at.residual < best.least, 0, best.idle + 1)
        change = jnp.where(known & jnp.isfinite(far), far, jnp.inf)
        return _Best(best.number + 1, f, at.shares, (step, other), change, jnp.minimum(best.least, at.residual), idle)

    def going(best: _Best) -> Array:
        return (best.number < 200) & (best.change > 16 * eps * (1 + jnp.max(jnp.abs(best.f)))) & (best.idle < 10)

    f = substituted(jnp.zeros((k,), dtype))
    if k == 1:
        return MBAR(f, jnp.ones((1, 1), dtype), jnp.all(jnp.isfinite(f)))
    none, far = jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, dtype)
    best = jax.lax.while_loop(going, improve, _Best(none, f, jnp.zeros_like(energies), (0 * f, 0 * f), far, far, none))
    p = jnp.exp(best.shares)
    converged = best.change <= 1024 * eps * (1 + jnp.max(jnp.abs(best.f)))
    return MBAR(-best.f, (p / n[:, None]) @ p.T, converged)
