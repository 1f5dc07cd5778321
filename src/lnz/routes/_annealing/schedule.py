"""Inverse temperatures from 0 to 1: fixed, or placed by pilot chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import observed_space
from lnz._core.random import Keys, parted
from lnz.kernels._kernels import Kernel
from lnz.kernels._resampling import systematic
from lnz.routes._annealing.path import Path, first_log_step, fitted_log_step, has_step, walk
from lnz.routes._annealing.programs import brief, on_host, room

Schedule = Literal["linear", "sigmoid", "quadratic", "adaptive", "barrier", "friction"] | tuple[float, ...]
FIXED = ("linear", "sigmoid", "quadratic")
FITTED = ("adaptive", "barrier", "friction")

MAIN, PILOT, PROBES, EXACT, REVERSE = range(5)  # what is folded into the key of a run: streams for its parts

_CHAINS = 128
_MOST = 4096  # the most steps of the pilot
_HOPELESS = 32  # strides after which one without a possible state ends
_SETTLING = 5  # steps at the base
_TRIED = np.exp2(-np.arange(64)[::-1] / 4)  # of the longest step


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


T = TypeVar("T")


class Rung(NamedTuple):
    """A step up a ladder: from the inverse temperature `before` to `beta`, with moves of this step size."""

    before: Array
    beta: Array
    log_step: Array


class Ladder(NamedTuple):
    """Inverse temperatures from one end of the path to the other, and the logarithms of the step sizes there.

    The last of each is repeated to the end of the arrays (see `programs.room`), so that programs do not depend on their number.

    Attributes:
        betas: β_0, …, β_K, and so on.
        log_steps: for kernels that have a step size.
        steps: K.
    """

    betas: Any  # arrays, of NumPy on the host
    log_steps: Any
    steps: Any

    def reversed(self) -> Ladder:
        """The ladder from its other end."""
        return on_host(_reversed, self)

    def climb(self, step: Callable[[Array, Rung, T], T], begin: T) -> T:
        """What `step(k, rung, carry)` makes of `begin` over all K rungs; K may be traced.

        A rung is looked up before its step begins: XLA fuses a look-up with the moves, and then does not vectorise these.
        """

        def rung(k: Any) -> Rung:
            return Rung(self.betas[k], self.betas[k + 1], self.log_steps[k + 1])

        def one(k: Array, carry: tuple[Rung, T]) -> tuple[Rung, T]:
            return rung(k + 1), step(k, *carry)

        return jax.lax.fori_loop(0, self.steps, one, (rung(0), begin))[1]


def _reversed(ladder: Ladder) -> Ladder:
    k = ladder.steps
    return _ladder(ladder.betas[k::-1], ladder.log_steps[k::-1], ladder.betas.size)


def _ladder(betas: np.ndarray, log_steps: np.ndarray, size: int = 0) -> Ladder:
    more = (size or room(betas.size)) - betas.size
    return Ladder(np.pad(betas, (0, more), "edge"), np.pad(log_steps, (0, more), "edge"), np.asarray(betas.size - 1))


def fixed_betas(schedule: str | Sequence[float], temperatures: int) -> np.ndarray:
    """The inverse temperatures 0 = β_0 < … < β_K = 1 of a schedule that needs no pilot."""
    if not isinstance(schedule, str):
        return np.asarray(schedule)
    t = np.linspace(0, 1, temperatures + 1)
    if schedule == "quadratic":
        return t**2
    if schedule == "sigmoid":
        s = 1 / (1 + np.exp(-8 * (t - 0.5)))
        return (s - s[0]) / (s[-1] - s[0])
    return t


def fixed_ladder(betas: np.ndarray) -> Ladder:
    """The ladder of these inverse temperatures, for kernels without a step size."""
    return on_host(_ladder, betas, np.zeros_like(betas))


class Pilot(NamedTuple):
    """Figures of pilot chains on their way from the base to the energy, at every stop β_j; the last one is repeated to the end of the arrays.

    Attributes:
        betas: the stops, from 0 to 1.
        steps: the number of steps between stops.
        barrier: the swaps that would have been rejected between neighbouring stops, summed up to each stop.
        log_step: the logarithm of the step size fitted at each stop, for kernels that have one.
    """

    betas: Any  # arrays, of NumPy on the host
    steps: Any
    barrier: Any
    log_step: Any

    def ladder(self, schedule: Schedule, temperatures: int) -> Ladder:
        """The ladder of K temperatures: given or fixed ones, or of the pilot's."""
        return on_host(_ladder_of, self, schedule=schedule, temperatures=temperatures)

    def placed(self, schedule: str, temperatures: int) -> np.ndarray:
        """K steps, each with the same share of the pilot's steps (`adaptive`), or of the rejections (`barrier`); of a pilot in NumPy."""
        share = np.arange(self.betas.size, dtype=np.float64)
        if schedule == "barrier":
            share = self.barrier + 0.01 * self.barrier[-1] * self.betas  # so that it rises where no swap was rejected
        last = share[self.steps]
        betas = np.interp(np.linspace(0, 1, temperatures + 1) * last, np.minimum(share, last), self.betas)
        betas[[0, -1]] = 0, 1
        return betas


def _ladder_of(found: Pilot, schedule: Schedule, temperatures: int) -> Ladder:
    fitted = isinstance(schedule, str) and schedule in FITTED
    betas = found.placed(str(schedule), temperatures) if fitted else fixed_betas(schedule, temperatures)
    return ladder_of(betas, found)


def ladder_of(betas: np.ndarray, found: Pilot) -> Ladder:
    """The ladder of these inverse temperatures with a pilot's step sizes, in NumPy."""
    return _ladder(betas, np.interp(betas, found.betas, found.log_step))


def conditional_ess(log_gains: Float[Array, " n"]) -> Float[Array, ""]:
    """(Σ w)² / (n Σ w²), the conditional effective sample size of equally weighted chains as a share of those that can gain at all.

    Source: Zhou, Johansen & Aston 2016, "Toward automatic model comparison: an adaptive sequential Monte Carlo approach".
    """
    alive = log_gains > -jnp.inf
    w = jnp.where(alive, jnp.exp(log_gains - jnp.max(log_gains, where=alive, initial=-jnp.inf)), 0)
    return jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(alive.astype(w.dtype)) * jnp.sum(w**2), jnp.finfo(w.dtype).tiny)


def pilot(path: Path, key: PRNGKeyArray, conditional: Any, *, kernel: Kernel, sweeps: int = 1) -> Pilot:
    """Anneal a population of pilot chains along the path, with steps that keep the conditional effective sample size at `conditional`.

    They are independent of the chains of the estimate, so that an estimate with their schedule stays unbiased. After 4,096 such steps the rest
    of the path is one step.
    """
    return _pilot(path, parted(key, 2, PILOT), conditional, kernel=kernel, sweeps=sweeps)


@brief
def _pilot(path: Path, keys: Keys, conditional: Any, *, kernel: Kernel, sweeps: int) -> Pilot:
    start_key, key = keys
    dtype, going = jnp.result_type(float), walk(path, kernel, rows=True)
    nothing, fitted = jnp.zeros((_MOST + 1,), dtype), has_step(kernel)
    some = max(sweeps, 3) if fitted else sweeps

    def moved(x: Any, beta: Any, log_step: Array, key: PRNGKeyArray, n: int) -> tuple[Any, Array]:
        def once(carry: tuple[Any, Array], key: PRNGKeyArray) -> tuple[tuple[Any, Array], None]:
            x, log_step = carry
            x, chances = going.move(key, beta, x, log_step)
            return (x, fitted_log_step(space, log_step, chances) if fitted else log_step), None

        return jax.lax.scan(once, (x, log_step), jax.random.split(key, n))[0] if n > 1 else once((x, log_step), key)[0]

    settling, space = _SETTLING if fitted else 0, observed_space(path.energy)

    def unfinished(carry: Any) -> Array:
        return (carry[0] < _MOST) & (carry[1] < 1)

    def stride(carry: Any) -> Any:
        k, beta, before, x, log_step, found = carry
        resample_key, move_key = jax.random.split(jax.random.fold_in(key, k + settling))
        glance = jnp.minimum(before, 1 - beta)
        slope = going.gain(x, beta, beta + glance) / glance
        step = _stride(slope, conditional.astype(dtype), 3 * before)
        step = jnp.where(k < 0, 0, jnp.maximum(step, 8 * jnp.finfo(dtype).eps * beta))
        # After that many moves no state is possible, and none will be: the rest is one step, at the end of which all weights are zero.
        hopeless = (k == _HOPELESS) & (jnp.max(slope) == -jnp.inf)
        after = jnp.where((beta + step > 1 - 1e-6) | (k == _MOST - 1) | hopeless, 1, beta + step)
        gain = going.gain(x, beta, after)
        kept = systematic(resample_key, jnp.where(jnp.max(gain) == -jnp.inf, 0, gain))
        new, log_step = moved(jax.tree.map(lambda leaf: leaf[kept], x), after, log_step, move_key, some)
        far = jax.tree.map(lambda leaf: jnp.roll(leaf, _CHAINS // 2, axis=0), new)
        swap = jnp.exp(jnp.minimum(gain - going.gain(far, beta, after), 0))
        rejected = 1 - jnp.mean(jnp.where(jnp.isnan(swap), 0, swap))
        betas, barrier, log_steps = found
        stop = jnp.maximum(k + 1, 0)
        found = (
            betas.at[stop].set(after),
            barrier.at[stop].set(jnp.where(k < 0, 0, barrier[k] + rejected)),
            log_steps.at[stop].set(log_step),
        )
        return k + 1, after, jnp.where(k < 0, before, step), new, log_step, found

    zero = jnp.zeros((), dtype)
    x, log_step = going.pack(path.start(start_key, _CHAINS)), first_log_step(path.energy)
    # Before the first stride, moves at the base fit the step size there.
    begin = (jnp.asarray(-settling, jnp.int32), zero, zero + 1e-3, x, log_step, (nothing, nothing, nothing + log_step))
    steps, *_, (betas, barrier, log_steps) = jax.lax.while_loop(unfinished, stride, begin)
    seen = jnp.minimum(jnp.arange(_MOST + 1, dtype=steps.dtype), steps)
    return Pilot(betas[seen], steps, barrier[seen], log_steps[seen])


def _stride(slope: Float[Array, " n"], conditional: Array, longest: Array) -> Array:
    """The longest of some steps up to `longest` whose weights exp(step · slope) have the wanted conditional effective sample size."""
    steps = longest * jnp.asarray(_TRIED, longest.dtype)
    good = jax.vmap(lambda step: conditional_ess(step * slope) >= conditional)(steps)
    return jnp.max(jnp.where(good, steps, steps[0]))
