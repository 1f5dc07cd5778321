"""Inverse temperatures from 0 to 1: fixed, or placed by pilot chains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel
from lnz.kernels._resampling import systematic
from lnz.routes._annealing.path import Path, first_log_step, fitted_log_step, has_step, move

Schedule = Literal["linear", "sigmoid", "quadratic", "adaptive", "barrier", "friction"] | tuple[float, ...]
FIXED = ("linear", "sigmoid", "quadratic")
FITTED = ("adaptive", "barrier", "friction")

_CHAINS = 128
_MOST = 4096  # the most steps of the pilot


def checked_schedule(schedule: Any) -> Schedule:
    """The schedule as a name or a tuple of numbers. Raises ValueError unless it rises from 0 to 1, or has a known name."""
    if isinstance(schedule, str):
        if schedule not in (*FIXED, *FITTED):
            raise ValueError(
                f"unknown schedule {schedule!r}: choose one of {', '.join((*FIXED, *FITTED))}, or give numbers from 0 to 1"
            )
        return schedule
    betas = np.asarray(schedule, np.float64)
    if betas.ndim != 1 or betas.size < 2 or betas[0] != 0 or betas[-1] != 1 or not (np.diff(betas) > 0).all():
        raise ValueError(
            "a schedule is a list of inverse temperatures that rise from 0 to 1, both included; "
            f"got {np.array2string(betas.ravel(), threshold=6, precision=4)}: put 0 first, 1 last, and the rest in order"
        )
    return tuple(betas.tolist())


def fixed_betas(schedule: str | Sequence[float], temperatures: int) -> Float[Array, " K+1"]:
    """The inverse temperatures 0 = β_0 < … < β_K = 1 of a schedule that needs no pilot."""
    if not isinstance(schedule, str):
        return jnp.asarray(schedule, jnp.result_type(float))
    t = jnp.linspace(0, 1, temperatures + 1)
    if schedule == "quadratic":
        return t**2
    if schedule == "sigmoid":
        s = jax.nn.sigmoid(8 * (t - 0.5))
        return (s - s[0]) / (s[-1] - s[0])
    return t


class Pilot(eqx.Module):
    """Figures of pilot chains on their way from the base to the energy, at every stop β_j; the last one is repeated to the end of the arrays.

    Attributes:
        betas: the stops, from 0 to 1.
        steps: the number of steps between stops.
        barrier: the swaps that would have been rejected between neighbouring stops, summed up to each stop.
        log_step: the logarithm of the step size fitted at each stop, for kernels that have one.
    """

    betas: Float[Array, " M"]
    steps: Int[Array, ""]
    barrier: Float[Array, " M"]
    log_step: Float[Array, " M"]

    def placed(self, schedule: str, temperatures: int) -> Float[Array, " K+1"]:
        """K steps, each with the same share of the pilot's steps (`adaptive`), or of the rejections (`barrier`)."""
        share = jnp.arange(self.betas.size, dtype=self.betas.dtype)
        if schedule == "barrier":
            share = self.barrier + 0.01 * self.barrier[-1] * self.betas  # so that it rises where no swap was rejected
        last = share[self.steps]
        wanted = jnp.linspace(0, 1, temperatures + 1).astype(share.dtype) * last
        betas = jnp.interp(wanted, jnp.minimum(share, last), self.betas)
        return betas.at[0].set(0).at[-1].set(1)

    def log_steps(self, betas: Float[Array, " n"]) -> Float[Array, " n"]:
        """The logarithms of the fitted step sizes at these inverse temperatures."""
        return jnp.interp(betas, self.betas, self.log_step)


def conditional_ess(log_gains: Float[Array, " n"]) -> Float[Array, ""]:
    """(Σ w)² / (n Σ w²), the conditional effective sample size of equally weighted chains as a share of those that can gain at all.

    Source: Zhou, Johansen & Aston 2016, "Toward automatic model comparison: an adaptive sequential Monte Carlo approach".
    """
    alive = log_gains > -jnp.inf
    w = jnp.where(alive, jnp.exp(log_gains - jnp.max(log_gains, where=alive, initial=-jnp.inf)), 0)
    return jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(alive.astype(w.dtype)) * jnp.sum(w**2), jnp.finfo(w.dtype).tiny)


def pilot(path: Path, kernel: Kernel, key: PRNGKeyArray, *, conditional: float = 0.9, sweeps: int = 1) -> Pilot:
    """Anneal a population of pilot chains along the path, with steps that keep the conditional effective sample size at `conditional`.

    They are independent of the chains of the estimate, so that an estimate with their schedule stays unbiased. After 4,096 such steps the rest
    of the path is one step.
    """
    start_key, settle_key, key = jax.random.split(key, 3)
    dtype = jnp.result_type(float)
    nothing = jnp.zeros((_MOST + 1,), dtype)

    def adapted(energy: Energy, carry: tuple[State, Array], key: PRNGKeyArray) -> tuple[State, Array]:
        v, log_step = carry
        v, acceptance = move(kernel, energy, key, v, log_step)
        return v, fitted_log_step(log_step, acceptance)

    v, log_step = path.start(start_key, _CHAINS), first_log_step(path.energy)
    if has_step(kernel):
        start, keys = path.at(jnp.zeros((), dtype)), jax.random.split(settle_key, 16)
        (v, log_step), _ = jax.lax.scan(lambda c, key: (adapted(start, c, key), None), (v, log_step), keys)

    def going(carry: Any) -> Array:
        return (carry[0] < _MOST) & (carry[1] < 1)

    def stride(carry: Any) -> Any:
        k, beta, before, v, log_step, found = carry
        resample_key, move_key = jax.random.split(jax.random.fold_in(key, k))
        glance = jnp.minimum(before, 1 - beta)
        slope = path.gain(v, beta, beta + glance) / glance
        step = _stride(slope, conditional, 3 * before)
        step = jnp.maximum(step, 8 * jnp.finfo(dtype).eps * beta)
        after = jnp.where((beta + step > 1 - 1e-6) | (k == _MOST - 1), 1, beta + step)
        gain = path.gain(v, beta, after)
        kept = systematic(resample_key, jnp.where(jnp.max(gain) == -jnp.inf, 0, gain))
        new = jax.tree.map(lambda x: x[kept], v)

        moves = jax.random.split(move_key, max(sweeps, 3) if has_step(kernel) else sweeps)
        (new, log_step), _ = jax.lax.scan(
            lambda c, key: (adapted(path.at(after), c, key), None), (new, log_step), moves
        )
        far = jax.tree.map(lambda x: jnp.roll(x, _CHAINS // 2, axis=0), new)
        swap = jnp.exp(jnp.minimum(gain - path.gain(far, beta, after), 0))
        rejected = 1 - jnp.mean(jnp.where(jnp.isnan(swap), 0, swap))
        betas, barrier, log_steps = found
        found = (
            betas.at[k + 1].set(after),
            barrier.at[k + 1].set(barrier[k] + rejected),
            log_steps.at[k + 1].set(log_step),
        )
        return k + 1, after, step, new, log_step, found

    zero = jnp.zeros((), dtype)
    begin = (jnp.zeros((), jnp.int32), zero, zero + 1e-3, v, log_step, (nothing, nothing, nothing.at[0].set(log_step)))
    steps, *_, (betas, barrier, log_steps) = jax.lax.while_loop(going, stride, begin)
    seen = jnp.minimum(jnp.arange(_MOST + 1, dtype=steps.dtype), steps)
    return Pilot(betas[seen], steps, barrier[seen], log_steps[seen])


def _stride(slope: Float[Array, " n"], conditional: float, longest: Array) -> Array:
    """The longest step, up to `longest`, whose weights exp(step · slope) have the wanted conditional effective sample size."""

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        poor = conditional_ess(middle * slope) < conditional
        return jnp.where(poor, low, middle), jnp.where(poor, middle, high)

    low, _ = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(longest), longest))
    return jnp.where(conditional_ess(longest * slope) < conditional, low, longest)
