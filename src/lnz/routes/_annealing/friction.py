"""Inverse temperatures placed by the autocovariance of pilot chains' works: denser where the path is slow, not only where it is steep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.random import fast_key
from lnz.kernels._kernels import Kernel
from lnz.routes._annealing.path import Path, walk
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.schedule import PILOT, Ladder, Pilot, Rung, fixed_betas, ladder_of

_STRETCHES = 50
_CHAINS = 64
_SHARE = 20  # the second pilot uses one in so many of the requested temperatures
_LEAST, _MOST = 2, 20  # temperatures of a segment
_EVENLY = 0.1  # of the steps, approximately, are spread evenly over all segments


def friction_ladder(
    path: Path, kernel: Kernel, key: PRNGKeyArray, found: Pilot, temperatures: int, sweeps: int
) -> Ladder:
    """K steps from 0 to 1 whose number in each segment s is in proportion to √c_s, c_s = Cov(W_s, W): of the segment's work with the whole work.

    With n_s steps in a segment the log weight's variance is Σ_s c_s / n_s up to a constant, least for n_s ∝ √c_s. The covariance with the
    whole work, unlike the variance of W_s, is large where chains decorrelate slowly: at β where they no longer change modes. A second
    pilot finds it, 64 chains along half a linear schedule and half one by the barrier.

    Args:
        path: from the base to the model.
        kernel: how chains move.
        key: a random key.
        found: the first pilot, for the barrier and the step sizes.
        temperatures: K.
        sweeps: moves at each temperature.

    Source: Sivak & Crooks 2012, "Thermodynamic metrics and optimal paths" (friction is the summed autocovariance of the slope).
    """
    per_stretch = min(max(temperatures // (_SHARE * _STRETCHES), _LEAST), _MOST)
    steps = per_stretch * _STRETCHES
    ladder = on_host(_tried, found, steps=steps)
    gains = _gains(path, key, ladder, kernel=kernel, sweeps=sweeps, steps=steps)
    return on_host(_by_friction, found, ladder, gains, per_stretch=per_stretch, temperatures=temperatures)


def _tried(found: Pilot, *, steps: int) -> Ladder:
    """Half a linear schedule and half one by the barrier."""
    both = [fixed_betas("linear", steps // 2)[:-1], found.placed("barrier", steps - steps // 2 + 1)[1:]]
    return ladder_of(np.sort(np.concatenate(both)), found)


@program
def _gains(
    path: Path, key: PRNGKeyArray, ladder: Ladder, *, kernel: Kernel, sweeps: int, steps: int
) -> Float[Array, "steps n"]:
    """The gains of pilot chains at every step."""
    going = walk(path, kernel, sweeps=sweeps)
    start_key, key = jax.random.split(jax.random.fold_in(jax.random.fold_in(fast_key(key), PILOT), 1))

    def step(k: Array, rung: Rung, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        x, gains = carry
        gains = gains.at[k].set(going.gain(x, rung.before, rung.beta))
        return going.move(jax.random.fold_in(key, k), rung.beta, x, rung.log_step)[0], gains

    x = going.pack(path.start(start_key, _CHAINS))
    gains = jnp.zeros((steps, _CHAINS), jnp.result_type(float))
    return ladder.climb(step, (x, gains))[1]


def _by_friction(found: Pilot, ladder: Ladder, gains: np.ndarray, *, per_stretch: int, temperatures: int) -> Ladder:
    gains = np.where(np.isfinite(gains), gains, 0)  # chains that the model excludes do not know where it is slow
    works = gains.reshape(_STRETCHES, per_stretch, -1).sum(axis=1)
    works = works - works.mean(axis=1, keepdims=True)
    covariance = (works * works.sum(axis=0)).mean(axis=1)
    padded = np.pad(covariance, 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    density = np.sqrt(np.maximum(smooth, np.square(works).mean(axis=1)))
    density = density + _EVENLY * density.mean() + np.finfo(np.float32).tiny
    share = np.concatenate([[0], np.cumsum(np.repeat(density, per_stretch))])
    wanted = np.linspace(0, 1, temperatures + 1) * share[-1]
    betas = np.interp(wanted, share, ladder.betas[: share.size])
    betas[[0, -1]] = 0, 1
    return ladder_of(betas, found)
