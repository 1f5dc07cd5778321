"""Inverse temperatures placed by the autocovariance of pilot chains' works: denser where the path is slow, not only where it is steep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz.kernels._kernels import Kernel
from lnz.routes._annealing.path import Path, walk
from lnz.routes._annealing.schedule import Pilot, fixed_betas

_STRETCHES = 50
_CHAINS = 64
_SHARE = 20  # the second pilot uses one in so many of the requested temperatures
_LEAST, _MOST = 2, 20  # temperatures of a segment
_EVENLY = 0.1  # of the steps, approximately, are spread evenly over all segments


def friction_betas(
    path: Path, kernel: Kernel, key: PRNGKeyArray, found: Pilot, temperatures: int, sweeps: int
) -> Float[Array, " K+1"]:
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
    steps, going = per_stretch * _STRETCHES, walk(path, kernel, sweeps=sweeps)
    both = [fixed_betas("linear", steps // 2)[:-1], found.placed("barrier", steps - steps // 2 + 1)[1:]]
    betas = jnp.sort(jnp.concatenate(both)).at[0].set(0).at[-1].set(1)
    start_key, key = jax.random.split(key)

    def step(x: Any, inputs: tuple[Array, ...]) -> tuple[Any, Array]:
        before, beta, log_step, key = inputs
        gain = going.gain(x, before, beta)
        return going.move(key, beta, x, log_step)[0], gain

    inputs = (betas[:-1], betas[1:], found.log_steps(betas)[1:], jax.random.split(key, steps))
    _, gains = jax.lax.scan(step, going.pack(path.start(start_key, _CHAINS)), inputs)
    gains = jnp.where(
        jnp.isfinite(gains), gains, 0
    )  # chains that the model excludes carry no information about where it is slow
    works = jnp.sum(gains.reshape(_STRETCHES, per_stretch, -1), axis=1)
    works = works - jnp.mean(works, axis=1, keepdims=True)
    covariance = jnp.mean(works * jnp.sum(works, axis=0, keepdims=True), axis=1)
    padded = jnp.pad(covariance, 1, mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    density = jnp.sqrt(jnp.maximum(smooth, jnp.mean(jnp.square(works), axis=1)))
    density = density + _EVENLY * jnp.mean(density) + jnp.finfo(density.dtype).tiny
    share = jnp.concatenate([jnp.zeros((1,), density.dtype), jnp.cumsum(jnp.repeat(density, per_stretch))])
    wanted = jnp.linspace(0, 1, temperatures + 1).astype(share.dtype) * share[-1]
    return jnp.interp(wanted, share, betas).at[0].set(0).at[-1].set(1)
