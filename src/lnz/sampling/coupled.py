"""Coupled chains: two chains that move by the same law, meet, and stay together; expectations without the bias of a finite run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lnz.energy import Energy
from lnz.estimate import Estimate
from lnz.random import fast_key
from lnz.sampling.kernels import Kernel, Langevin, default_kernel
from lnz.spaces import State


class NotMet(RuntimeError):
    """Some pairs of coupled chains did not meet in the moves they were given."""


def coupling_refusal(kernel: Kernel, energy: Energy) -> str | None:
    """Why two chains of this kernel cannot be made to meet, in words, or None."""
    reason = kernel.refusal(energy)
    if reason is not None or energy.observed.discrete or isinstance(kernel, Langevin):
        return reason
    return (
        f"two chains of {type(kernel).__name__} on {energy.observed} come near each other but never meet: use lnz.Langevin, whose proposals "
        "are coupled by reflection"
    )


def coupled_step(energy: Energy, kernel: Kernel, key: PRNGKeyArray, x: State, y: State) -> tuple[State, State]:
    """One move of pairs of chains (n, *shape), each by the kernel's law, so that they meet, and never part again.

    Discrete kernels use the same random numbers for both. Of a Gibbs sweep that is the maximal coupling of every bit's or spin's
    conditional law; categories are drawn with common Gumbel noise, whose chance of agreeing is at least (1 - TV) / (1 + TV). Langevin
    proposals are coupled maximally by reflection, and accepted by the same uniform.
    """
    if energy.observed.discrete:
        return kernel.step(energy, key, x)[0], kernel.step(energy, key, y)[0]
    assert isinstance(kernel, Langevin)
    step = jnp.asarray(kernel.step_size, x.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    move = lambda key, x, y: _reflected_langevin(energy, key, x, y, step)  # noqa: E731
    return jax.vmap(move)(jax.random.split(key, x.shape[0]), x, y)  # pyright: ignore[reportAttributeAccessIssue]


def _reflected_langevin(
    energy: Energy, key: PRNGKeyArray, x: Float[Array, "*shape"], y: Float[Array, "*shape"], step: Array
) -> tuple[Array, Array]:
    """A Metropolis-adjusted Langevin move of either chain; the proposals are equal as often as two normal laws allow.

    With z the distance of the two drifted means in units of the noise, and ξ normal, both take x's proposal where
    u < φ(ξ + z) / φ(ξ); elsewhere y's noise is ξ reflected at the plane between the means.
    """
    noise_key, meet_key, accept_key = jax.random.split(key, 3)
    low, high = (jnp.asarray(limit, x.dtype) for limit in energy.observed.limits)  # pyright: ignore[reportAttributeAccessIssue]

    def log_density(x: Array) -> Array:
        return jnp.where(jnp.all((x >= low) & (x <= high)), -energy.free_energy(x), -jnp.inf).astype(x.dtype)

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


def unbiased_expectation(
    energy: Energy,
    f: Callable[[State], Any],
    key: PRNGKeyArray,
    *,
    kernel: Kernel | None = None,
    burn_in: int = 10,
    length: int = 20,
    estimates: int = 1000,
    batch: int = 1000,
    max_moves: int = 10_000,
    confidence: float = 0.99,
) -> Estimate:
    """E_p[f(v)] from coupled chains, without the bias of chains that have not yet converged.

    X and Y start independently at the energy's base, X one move ahead; they meet at τ, when X_t = Y_{t-1}. With k = `burn_in` and
    m = k + `length` - 1, each pair gives

        H = 1/(m-k+1) Σ_{t=k}^{m} f(X_t) + Σ_{t=k+1}^{τ-1} min(1, (t-k)/(m-k+1)) [f(X_t) - f(Y_{t-1})],   E[H] = E_p[f].

    The value is the mean of the H of independent pairs, and its standard error comes from their spread. With f(v) = -∂F(v) it is ∇ log Z.

    Args:
        f: of one observed state, to a pytree of numbers.
        kernel: by default Gibbs sweeps, or Langevin moves for continuous states; see `coupled_step` for those that can be coupled.
        burn_in: k. It costs moves and spares variance: no choice of it makes a bias.
        length: m - k + 1, the states that are averaged; likewise.
        estimates: independent pairs of chains, at least 2.
        batch: pairs at a time.
        max_moves: a pair that has not met by then is an error.

    Returns:
        An estimate whose `diagnostics` have `meeting_times` τ (estimates,) and the number of kernel `moves` of both chains of all pairs.

    Raises:
        ValueError: where the kernel refuses the energy or its chains cannot meet, or a number is out of range.
        NotMet: where a pair has not met after `max_moves`: leaving it out would bring the bias back.
        FloatingPointError: where f is NaN or infinite at a state of a chain.

    Example:
        >>> import jax, lnz
        >>> ring = lnz.Ising.lattice((4,), 0.3, 0.2, periodic=True)
        >>> found = lnz.unbiased_expectation(ring, lambda s: s.mean(), jax.random.key(0), estimates=500)
        >>> bool(abs(found.value - lnz.expectation(ring, lambda s: s.mean()).value) < 5 * found.standard_error)
        True

    Source: Jacob, O'Leary & Atchadé 2020, "Unbiased Markov chain Monte Carlo methods with couplings"; Qiu, Zhang & Wang 2020,
    "Unbiased contrastive divergence algorithm", for RBMs.
    """
    for name, n, least in (
        ("burn_in", burn_in, 0),
        ("length", length, 1),
        ("estimates", estimates, 2),
        ("batch", batch, 1),
    ):
        if not isinstance(n, int | np.integer) or n < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, but is {n!r}")
    last = burn_in + length - 1
    if max_moves < last:
        raise ValueError(f"max_moves must be at least burn_in + length - 1 = {last}, but is {max_moves}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {confidence}")
    kernel = kernel or default_kernel(energy)
    reason = coupling_refusal(kernel, energy)
    if reason is not None:
        raise ValueError(reason)
    run = _pairs(f, kernel, int(burn_in), int(length), int(max_moves), min(int(batch), int(estimates)))
    keys = jax.random.split(fast_key(key), -(-estimates // batch))
    times, total, square, count, moves = [], None, None, 0, 0
    for key in keys:
        take = min(batch, estimates - count)
        found, met, at, reached = run(energy, key)
        if not np.asarray(met)[:take].all():
            waiting = int((~np.asarray(met)[:take]).sum())
            raise NotMet(
                f"{waiting} of {take} pairs of chains had not met after {max_moves} moves: allow more by max_moves, or take a kernel that mixes "
                "faster"
            )
        found = jax.tree.map(lambda h, take=take: np.asarray(h, np.float64)[:take], found)
        if not all(np.isfinite(h).all() for h in jax.tree.leaves(found)):
            raise FloatingPointError(
                "f is NaN or infinite at a state of a chain: look at f, and at the energy's parameters"
            )
        sums = jax.tree.map(lambda h: h.sum(axis=0), found), jax.tree.map(lambda h: (h**2).sum(axis=0), found)
        total = sums[0] if total is None else jax.tree.map(np.add, total, sums[0])
        square = sums[1] if square is None else jax.tree.map(np.add, square, sums[1])
        times.append(np.asarray(at)[:take])
        moves += take * (2 * int(reached) - 1)
        count += take
    mean = jax.tree.map(lambda s: s / count, total)
    error = jax.tree.map(lambda q, m: np.sqrt(np.maximum(q / count - m**2, 0) / (count - 1)), square, mean)
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    as_array = lambda tree: jax.tree.map(jnp.asarray, tree)  # noqa: E731
    return Estimate(
        value=as_array(mean),
        standard_error=as_array(error),
        lower=as_array(jax.tree.map(lambda m, e: m - z * e, mean, error)),
        upper=as_array(jax.tree.map(lambda m, e: m + z * e, mean, error)),
        known="conditional",
        route=f"coupled chains ({count:,} pairs, {type(kernel).__name__})",
        confidence=confidence,
        assumption="the pairs are many enough for a normal limit",
        diagnostics={"meeting_times": jnp.asarray(np.concatenate(times)), "moves": jnp.asarray(float(moves))},
        quantity="E[f]",
    )


def _pairs(
    f: Callable[[State], Any], kernel: Kernel, k: int, length: int, max_moves: int, n: int
) -> Callable[[Energy, PRNGKeyArray], tuple[Any, Bool[Array, " n"], Int[Array, " n"], Array]]:
    """A compiled batch of n pairs: H, whether they met, their meeting times, and the moves until all had met."""
    last = k + length - 1

    @jax.jit
    def run(energy: Energy, key: PRNGKeyArray) -> Any:
        x_key, y_key, key = jax.random.split(key, 3)
        start: Any = energy.base()
        x, y = start.sample(x_key, n), start.sample(y_key, n)
        x, y = jax.tree.map(lambda leaf, s: leaf.astype(s.dtype), (x, y), (energy.observed.struct,) * 2)
        many = jax.vmap(f)

        def values(v: State) -> Any:
            return jax.tree.map(
                lambda h: h.astype(jnp.result_type(float)) if not jnp.issubdtype(h.dtype, jnp.inexact) else h, many(v)
            )

        def added(total: Any, part: Any, weight: Array) -> Any:
            """total + weight · part, where a weight of zero leaves its part out, be it infinite; one weight a pair or one for all."""

            def leaf(t: Array, h: Array) -> Array:
                w = jnp.broadcast_to(weight, (n,)).astype(h.dtype).reshape(n, *(1,) * (h.ndim - 1))
                return t + jnp.where(w > 0, w * jnp.where(w > 0, h, 0), 0)

            return jax.tree.map(leaf, total, part)

        def equal(x: State, y: State) -> Array:
            same = [
                jnp.all((a == b).reshape(n, -1), axis=1)
                for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
            ]
            return jnp.all(jnp.stack(same), axis=0)

        def averaged(t: Array) -> Array:
            return jnp.where((t >= k) & (t <= last), 1 / length, 0.0)

        def going(state: Any) -> Array:
            t, _, _, met, _, _ = state
            return ((t < last) | ~jnp.all(met)) & (t < max_moves)

        def move(state: Any) -> Any:
            """From X_t, Y_{t-1} to X_{t+1}, Y_t."""
            t, x, y, met, time, total = state
            new_x, new_y = coupled_step(energy, kernel, jax.random.fold_in(key, t), x, y)
            t = t + 1
            # A pair that has met goes on as one, whatever rounding says.
            new_y = jax.tree.map(lambda a, b: jnp.where(met.reshape(n, *(1,) * (a.ndim - 1)), a, b), new_x, new_y)
            now = equal(new_x, new_y)
            time = jnp.where(now & ~met, t, time)
            met = met | now
            h = values(new_x)
            total = added(total, h, averaged(t))
            weight = jnp.where(met | (t <= k), 0.0, jnp.minimum(1.0, (t - k) / length))
            difference = jax.tree.map(jnp.subtract, h, values(new_y))
            return t, new_x, new_y, met, time, added(total, difference, weight)

        h = values(x)
        total = added(jax.tree.map(jnp.zeros_like, h), h, averaged(jnp.asarray(0)))
        # X alone makes the first move; t = 1 then compares X_1 with Y_0.
        first = coupled_step(energy, kernel, jax.random.fold_in(key, max_moves), x, x)[0]
        met = equal(first, y)
        total = added(total, values(first), averaged(jnp.asarray(1)))
        weight = jnp.where(met | (k >= 1), 0.0, jnp.minimum(1.0, (1 - k) / length))
        total = added(total, jax.tree.map(jnp.subtract, values(first), values(y)), weight)
        one = jnp.asarray(1, jnp.int32)
        state = (one, first, y, met, jnp.where(met, one, max_moves).astype(jnp.int32), total)
        t, _, _, met, time, total = jax.lax.while_loop(going, move, state)
        return total, met, time, t

    return run
