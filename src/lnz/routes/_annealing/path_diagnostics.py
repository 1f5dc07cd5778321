"""Diagnostics along an annealing path, for plots: energies, effective sample sizes, and the works of both directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.ais import AnnealedImportanceSampling, planned
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.bidirectional import reverse_chains
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.schedule import MAIN, Ladder
from lnz.routes._exact.exact_samples import exact_sampler

_STOPS = 50


class AlongPath(NamedTuple):
    """Figures of forward chains at stops between the base and the model, and the log weights of both directions, all in nats.

    Attributes:
        betas: (S+1,), the stops.
        mean: (S+1,), the weighted mean of F_0 - F_1, the base's energy less the model's.
        sd: (S+1,), its standard deviation.
        effective: (S+1,), the effective sample size so far, as a share of the chains.
        forward: (n,), log weights of the forward chains, with mean Z.
        reverse: (n,), minus the log weights of the reverse chains: their distribution crosses that of `forward` at log Z (Crooks 1999).
        exact: whether the reverse chains started at exact samples; otherwise at the forward chains' ends, drawn by their weights.
    """

    betas: Float[Array, " levels"]
    mean: Float[Array, " levels"]
    sd: Float[Array, " levels"]
    effective: Float[Array, " levels"]
    forward: Float[Array, " n"]
    reverse: Float[Array, " n"]
    exact: bool


def along_path(energy: Energy, route: AnnealedImportanceSampling, key: Any) -> AlongPath:
    """Anneal once in each direction and record figures at every stop. The number of temperatures is rounded up to a multiple of the stops."""
    path, kernel = route.path(energy), default_kernel(energy)
    per_stop = -(-route.temperatures // _STOPS)
    schedule: Any = route.schedule if isinstance(route.schedule, str) else "linear"  # a list need not fall on the stops
    ladder = planned(path, kernel, key, schedule, per_stop * _STOPS, route.sweeps)
    options: Any = {"kernel": kernel, "sweeps": route.sweeps}
    along = _walk(path, key, ladder, on_host(_cut, ladder, per_stop=per_stop), chains=route.chains, **options)
    back, _ = reverse_chains(path, key, along.ends, ladder.reversed(), **options)
    figures = [jnp.asarray(x) for x in (ladder.betas, *along.figures, along.log_weights, -back)]
    betas, mean, sd, effective, forward, reverse = figures
    stops = betas[: per_stop * _STOPS + 1 : per_stop]
    return AlongPath(stops, mean, sd, effective, forward, reverse, exact=exact_sampler(energy) is not None)


def _cut(ladder: Ladder, *, per_stop: int) -> Ladder:
    """The ladder from stop to stop; neighbours share an end."""
    at = np.arange(_STOPS)[:, None] * per_stop + np.arange(per_stop + 1)
    return Ladder(ladder.betas[at], ladder.log_steps[at], np.full(_STOPS, per_stop))


class _Along(NamedTuple):
    figures: tuple[Array, ...]
    log_weights: Array
    ends: State  # where reverse chains start


@program
def _walk(
    path: Path, key: PRNGKeyArray, ladder: Ladder, stretches: Ladder, *, kernel: Kernel, chains: int, sweeps: int
) -> _Along:
    start_key, key, end_key = jax.random.split(jax.random.fold_in(fast_key(key), MAIN), 3)

    def look(v: Any, log_w: Array) -> tuple[Array, Array, Array]:
        share = jax.nn.softmax(log_w)
        slope = path.gain(v, jnp.zeros((), log_w.dtype), jnp.ones((), log_w.dtype))
        seen = (share > 0) & jnp.isfinite(slope)
        mean = jnp.sum(jnp.where(seen, share * jnp.where(seen, slope, 0), 0))
        variance = jnp.sum(jnp.where(seen, share * jnp.square(jnp.where(seen, slope, 0) - mean), 0))
        return mean, jnp.sqrt(variance), 1 / (share.size * jnp.sum(share**2))

    def stretch(carry: tuple[Any, Array], inputs: tuple[Ladder, Array]) -> Any:
        (v, log_w), (ladder, key) = carry, inputs
        ran = annealed(path, kernel, key, v, ladder, sweeps=sweeps)
        log_w = jnp.where(log_w == -jnp.inf, log_w, log_w + ran.log_weights)
        return (ran.states, log_w), look(ran.states, log_w)

    v, log_w = path.start(start_key, chains), jnp.zeros((chains,), jnp.result_type(float))
    first = look(v, log_w)
    (v, log_w), seen = jax.lax.scan(stretch, (v, log_w), (stretches, jax.random.split(key, _STOPS)))
    figures = tuple(jnp.concatenate([a[None], b]) for a, b in zip(first, seen, strict=True))
    sampler = exact_sampler(path.energy)
    if sampler is None:
        chosen = jax.random.categorical(end_key, log_w, shape=(chains,))
        ends = jax.tree.map(lambda x: x[chosen], v)
    else:
        ends = sampler.draw(end_key, chains)
    return _Along(figures, log_w + path.log_z0(), ends)
