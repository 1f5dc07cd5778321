"""Coupled chains: pairs of chains with the same transition kernel that meet and stay together; expectations without the bias of a finite run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space, require_normalised
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State, limits_of
from lnz._models.independent import base_of
from lnz.kernels._kernels import Kernel, Langevin, default_kernel


class NotMet(RuntimeError):
    """Some pairs of coupled chains did not meet in the moves they were given."""


def not_met(max_moves: int, pairs: str = "some pairs of coupled chains") -> str:
    """The message for pairs of chains that have not met."""
    return f"{pairs} had not met after {max_moves:,} moves: increase max_moves, use a kernel that mixes faster"


def coupling_refusal(kernel: Kernel, energy: Energy) -> str | None:
    """Why two chains of this kernel cannot be made to meet, in words, or None."""
    reason = kernel.unsupported_reason(energy)
    if reason is not None or observed_space(energy).discrete or isinstance(kernel, Langevin):
        return reason
    return (
        f"two chains of {type(kernel).__name__} on {observed_space(energy)} approach each other but never meet: use lnz.kernels.Langevin, whose "
        "proposals are coupled by reflection"
    )


def coupled_step(energy: Energy, kernel: Kernel, key: PRNGKeyArray, x: State, y: State) -> tuple[State, State]:
    """One move of pairs of chains (n, *shape), each by the kernel's transition distribution, so that they meet and then stay together.

    Discrete kernels use the same random numbers for both. For a Gibbs sweep that is the maximal coupling of every bit's or spin's
    conditional distribution; categories are drawn with common Gumbel noise, whose chance of agreeing is at least (1 - TV) / (1 + TV). Langevin
    proposals are coupled maximally by reflection, and accepted by the same uniform; proposals outside a box are rejected, not reflected, which
    leaves the same distribution invariant.
    """
    if observed_space(energy).discrete:
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), x, y)
        moved = jax.vmap(lambda v: kernel.step(energy, key, v)[0])(both)
        return jax.tree.map(lambda leaf: leaf[0], moved), jax.tree.map(lambda leaf: leaf[1], moved)
    assert isinstance(kernel, Langevin)
    step = jnp.asarray(kernel.step_size, x.dtype)
    keys = jax.random.split(key, x.shape[0])
    return jax.vmap(lambda key, x, y: _reflected_langevin(energy, key, x, y, step))(keys, x, y)


def _reflected_langevin(
    energy: Energy, key: PRNGKeyArray, x: Float[Array, "*shape"], y: Float[Array, "*shape"], step: Array
) -> tuple[Array, Array]:
    """A Metropolis-adjusted Langevin move of both chains; the proposals are equal as often as two normal distributions allow.

    With z the distance of the two drifted means in units of the noise, and ξ normal, both take x's proposal where
    u < φ(ξ + z) / φ(ξ); elsewhere y's noise is ξ reflected at the plane between the means.
    """
    noise_key, meet_key, accept_key = jax.random.split(key, 3)
    low, high = (jnp.asarray(bound, x.dtype) for bound in limits_of(observed_space(energy)))

    def log_density(x: Array) -> Array:
        return jnp.where(jnp.all((x >= low) & (x <= high)), -free_energy_of(energy)(x), -jnp.inf).astype(x.dtype)

    scale = jnp.sqrt(2 * step)
    at = jax.value_and_grad(log_density)
    (p_x, slope_x), (p_y, slope_y) = at(x), at(y)
    mean_x, mean_y = x + step * slope_x, y + step * slope_y
    z = (mean_x - mean_y) / scale
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    square = jnp.sum(z**2)
    together = jnp.log(jax.random.uniform(meet_key, (), x.dtype)) < -jnp.sum(z * noise) - square / 2
    turned = noise - 2 * z * jnp.sum(z * noise) / jnp.where(square > 0, square, 1)
    to_x = mean_x + scale * noise
    to_y = jnp.where(together, to_x, mean_y + scale * turned)

    def log_ratio(start: Array, mean: Array, p_start: Array, end: Array) -> Array:
        p_end, slope = at(end)
        back = jnp.sum((start - end - step * slope) ** 2)
        forth = jnp.sum((end - mean) ** 2)
        return p_end - p_start + (forth - back) / (4 * step)

    level = jnp.log(jax.random.uniform(accept_key, (), x.dtype))
    moved_x = jnp.where(level < log_ratio(x, mean_x, p_x, to_x), to_x, x)
    moved_y = jnp.where(level < log_ratio(y, mean_y, p_y, to_y), to_y, y)
    return moved_x, jnp.where(jnp.all(x == y), moved_x, moved_y)


class Run(NamedTuple):
    """The result of n pairs of coupled chains.

    Attributes:
        total: the sum that `add` accumulated over all states and weights.
        last: X after the last move, states (n, *shape).
        met: (n,), whether the pair met.
        times: (n,), the meeting times τ; `max_moves` where a pair did not meet.
        moves: the number of moves of every X; Y made `lag` fewer.
    """

    total: Any
    last: State
    met: Bool[Array, " n"]
    times: Int[Array, " n"]
    moves: Int[Array, ""]


def run_coupled(
    energy: Energy,
    kernel: Kernel,
    key: PRNGKeyArray,
    x: State,
    y: State,
    *,
    burn_in: int,
    length: int,
    lag: int,
    max_moves: int,
    total: Any,
    add: Callable[[Any, State, Float[Array, " 2n"]], Any],
) -> Run:
    """Coupled chains from x and y, X `lag` moves ahead, until all pairs have met: states with signed weights that stand for p without bias.

    With k = `burn_in`, m = k + `length` - 1 and L = `lag`, pairs meet at τ = min {t ≥ L: X_t = Y_{t-L}}, and

        H = 1/(m-k+1) { Σ_{t=k}^{m} f(X_t) + Σ_{t=k+L}^{τ-1} v_t [f(X_t) - f(Y_{t-L})] },   v_t = ⌊(t-k)/L⌋ - ⌈max(L, t-m)/L⌉ + 1

    has mean E_p[f] wherever the chains start, as long as x and y have the same distribution, or are the same states.

    Args:
        x, y: states (n, *shape).
        total: the initial total.
        add: maps (total, states (2n, *shape), weights (2n,)) to total + Σ weight · f(state); X's states first, then Y's. It is not called
            where all weights are 0.

    Source: Jacob, O'Leary & Atchadé 2020; the lag is that of Biswas, Jacob & Vanetti 2019, "Estimating convergence of Markov chains with L-lag
    couplings".
    """
    n, last = jax.tree.leaves(x)[0].shape[0], burn_in + length - 1

    def put(total: Any, t: Array, x: State, y: State, met: Array) -> Any:
        averaged = jnp.where((t >= burn_in) & (t <= last), 1 / length, 0.0)
        times = (t - burn_in) // lag + jnp.minimum(-lag, last - t) // lag + 1  # -⌈a/L⌉ = ⌊-a/L⌋
        paid = jnp.where(met | (t < burn_in + lag), 0.0, times / length)
        weights = jnp.concatenate([averaged + paid, -paid])
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)
        return jax.lax.cond(jnp.any(weights != 0), lambda: add(total, both, weights), lambda: total)

    def going(state: Any) -> Array:
        t, _, _, met, _, _ = state
        return ((t < last) | ~jnp.all(met)) & (t < max_moves)

    def move(state: Any) -> Any:
        """From X_t, Y_{t-L} to X_{t+1}, Y_{t+1-L}; Y waits while t < L."""
        t, x, y, met, times, total = state
        new_x, new_y = coupled_step(energy, kernel, jax.random.fold_in(key, t), x, y)
        t = t + 1
        # A pair that has met continues as one chain, regardless of rounding.
        new_y = jax.tree.map(
            lambda a, b, old: jnp.where(t <= lag, old, jnp.where(met.reshape(n, *(1,) * (a.ndim - 1)), a, b)), new_x, new_y, y
        )  # fmt: skip
        now = _equal(new_x, new_y) & (t >= lag)
        times, met = jnp.where(now & ~met, t, times), met | now
        return t, new_x, new_y, met, times, put(total, t, new_x, new_y, met)

    none = jnp.zeros((n,), bool)
    zero = jnp.zeros((), jnp.int32)
    if burn_in == 0:
        total = put(total, zero, x, y, none)
    state = (zero, x, y, none, jnp.full((n,), max_moves, jnp.int32), total)
    t, x, _, met, times, total = jax.lax.while_loop(going, move, state)
    return Run(total, x, met, times, t)


def _equal(x: State, y: State) -> Bool[Array, " n"]:
    """Whether the states of two chains are equal in every entry."""
    same = [
        jnp.all((a == b).reshape(a.shape[0], -1), axis=1) for a, b in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    ]
    return jnp.all(jnp.stack(same), axis=0)


def unbiased_expectation(
    energy: Energy,
    f: Callable[[State], Any],
    key: PRNGKeyArray,
    *,
    kernel: Kernel | None = None,
    burn_in: int = 10,
    length: int = 20,
    lag: int = 1,
    estimates: int = 1000,
    batch: int = 1000,
    max_moves: int = 10_000,
    confidence: float = 0.99,
) -> Estimate:
    """E_p[f(v)] from coupled chains, without the bias of chains that have not yet converged.

    X and Y start independently at the energy's base, X `lag` moves ahead, and meet at τ. The states of X from move `burn_in` on are averaged,
    and their bias is corrected by the differences of X and Y until τ: `run_coupled` has the formula. The value is the mean over
    independent pairs, and its standard error comes from their spread. With f(v) = -∂F(v) it is ∇ log Z.

    Args:
        f: a function of one observed state that returns a pytree of numbers.
        kernel: by default Gibbs sweeps, or Langevin moves for continuous states; see `coupled_step` for those that can be coupled.
        burn_in: k. It costs moves and reduces variance; no choice of it causes a bias.
        length: m - k + 1, the number of states that are averaged; likewise.
        lag: L, the number of moves by which X is ahead. A larger one needs fewer differences and more moves.
        estimates: the number of independent pairs of chains, at least 2.
        batch: the number of pairs that run at a time.
        max_moves: the most moves of a pair; one that has not met by then is an error.

    Returns:
        An estimate whose `diagnostics` have `meeting_times` τ (estimates,) and the number of kernel `moves` of both chains of all pairs.

    Raises:
        ValueError: if the kernel does not support the energy, its chains cannot meet, or a number is out of range.
        NotMet: if a pair has not met after `max_moves`: leaving it out would reintroduce the bias.
        FloatingPointError: if f is NaN or infinite at a state of a chain.

    Example:
        >>> import jax, lnz
        >>> ring = lnz.Ising.lattice((4,), 0.3, 0.2, periodic=True)
        >>> found = lnz.kernels.unbiased_expectation(ring, lambda s: s.mean(), jax.random.key(0), estimates=500)
        >>> bool(abs(found.value - lnz.expectation(ring, lambda s: s.mean()).value) < 5 * found.standard_error)
        True

    Source: Jacob, O'Leary & Atchadé 2020, "Unbiased Markov chain Monte Carlo methods with couplings"; Qiu, Zhang & Wang 2020,
    "Unbiased contrastive divergence algorithm", for RBMs.
    """
    for name, n, least in (
        ("burn_in", burn_in, 0),
        ("length", length, 1),
        ("lag", lag, 1),
        ("estimates", estimates, 2),
        ("batch", batch, 1),
    ):
        check_whole_number(name, n, least)
    last = burn_in + length - 1
    if max_moves < max(last, lag):
        raise ValueError(f"max_moves must be at least burn_in + length - 1 = {last}, and lag, but is {max_moves}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {confidence}")
    kernel = kernel or default_kernel(energy)
    reason = coupling_refusal(kernel, energy)
    if reason is not None:
        raise ValueError(reason)
    run = _pairs(f, kernel, int(burn_in), int(length), int(lag), int(max_moves), min(int(batch), int(estimates)))
    keys = jax.random.split(fast_key(key), -(-estimates // batch))
    times, total, square, count, moves = [], None, None, 0, 0
    for key in keys:
        take = min(batch, estimates - count)
        found, _, met, at, reached = run(energy, key)
        if not np.asarray(met)[:take].all():
            waiting = int((~np.asarray(met)[:take]).sum())
            raise NotMet(not_met(max_moves, f"{waiting:,} of {take:,} pairs of chains") + ", or use a smaller batch")
        found = jax.tree.map(lambda h, take=take: np.asarray(h, np.float64)[:take], found)
        if not all(np.isfinite(h).all() for h in jax.tree.leaves(found)):
            raise FloatingPointError("f is NaN or infinite at a state of a chain: check f, and the energy's parameters")
        sums = jax.tree.map(lambda h: h.sum(axis=0), found), jax.tree.map(lambda h: (h**2).sum(axis=0), found)
        total = sums[0] if total is None else jax.tree.map(np.add, total, sums[0])
        square = sums[1] if square is None else jax.tree.map(np.add, square, sums[1])
        times.append(np.asarray(at)[:take])
        moves += take * (2 * int(reached) - lag)
        count += take
    mean = jax.tree.map(lambda s: s / count, total)
    error = jax.tree.map(lambda q, m: np.sqrt(np.maximum(q / count - m**2, 0) / (count - 1)), square, mean)
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    return Estimate(
        value=jax.tree.map(jnp.asarray, mean),
        standard_error=jax.tree.map(jnp.asarray, error),
        lower=jax.tree.map(lambda m, e: jnp.asarray(m - z * e), mean, error),
        upper=jax.tree.map(lambda m, e: jnp.asarray(m + z * e), mean, error),
        guarantee="conditional",
        route=f"coupled chains ({count:,} pairs, {type(kernel).__name__})",
        confidence=confidence,
        assumption="the pairs are many enough for a normal approximation",
        diagnostics={"meeting_times": jnp.asarray(np.concatenate(times)), "moves": jnp.asarray(float(moves))},
        quantity="E[f]",
    )


def _as_inexact(h: Array) -> Array:
    return h if jnp.issubdtype(h.dtype, jnp.inexact) else h.astype(jnp.result_type(float))


def _pairs(
    f: Callable[[State], Any], kernel: Kernel, k: int, length: int, lag: int, max_moves: int, n: int
) -> Callable[[Energy, PRNGKeyArray], Run]:
    """A compiled batch of n pairs, whose `total` is H."""

    @jax.jit
    def run(energy: Energy, key: PRNGKeyArray) -> Any:
        x_key, y_key, key = jax.random.split(key, 3)
        start = require_normalised(base_of(energy), "the base of the chains")
        x, y = start.sample(x_key, n), start.sample(y_key, n)
        x, y = jax.tree.map(lambda leaf, s: leaf.astype(s.dtype), (x, y), (observed_space(energy).struct,) * 2)

        def values(v: State) -> Any:
            return jax.tree.map(_as_inexact, jax.vmap(f)(v))

        def add(total: Any, v: State, weights: Array) -> Any:
            def leaf(t: Array, h: Array) -> Array:
                h = h.reshape(2, *t.shape)
                w = weights.astype(h.dtype).reshape(2, n, *(1,) * (t.ndim - 1))
                return t + jnp.sum(jnp.where(w == 0, 0, w * h), axis=0)  # values without weight may be infinite

            return jax.tree.map(leaf, total, values(v))

        nothing = jax.tree.map(lambda h: jnp.zeros(h.shape, h.dtype), jax.eval_shape(values, x))
        return run_coupled(
            energy, kernel, key, x, y, burn_in=k, length=length, lag=lag, max_moves=max_moves, total=nothing, add=add
        )

    return run
