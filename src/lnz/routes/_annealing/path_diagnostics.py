"""Diagnostics along an annealing path, for plots: energies, effective sample sizes, and the works of both directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lnz._core.energy import Energy
from lnz._core.random import fast_key
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.ais import AnnealedImportanceSampling, annealed, planned
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

    betas: Float[Array, " S+1"]
    mean: Float[Array, " S+1"]
    sd: Float[Array, " S+1"]
    effective: Float[Array, " S+1"]
    forward: Float[Array, " n"]
    reverse: Float[Array, " n"]
    exact: bool


def along_path(energy: Energy, route: AnnealedImportanceSampling, key: Any) -> AlongPath:
    """Anneal once in each direction and record figures at every stop. The number of temperatures is rounded up to a multiple of the stops."""
    return AlongPath(*_walk(energy, route, key), exact=exact_sampler(energy) is not None)


@eqx.filter_jit
def _walk(energy: Energy, route: AnnealedImportanceSampling, key: Any) -> tuple[Array, ...]:
    sampler: Any = exact_sampler(energy)
    per_stop = -(-route.temperatures // _STOPS)
    path, kernel = route.path(energy), default_kernel(energy)
    pilot_key, start_key, key, pick_key, sample_key, reverse_key = jax.random.split(fast_key(key), 6)
    given = isinstance(route.schedule, str)
    schedule: Any = route.schedule if given else "linear"  # a list of temperatures need not fall on the stops
    betas, log_steps = planned(path, kernel, pilot_key, schedule, per_stop * _STOPS, route.sweeps)

    def look(v: Any, log_w: Array) -> tuple[Array, Array, Array]:
        share = jax.nn.softmax(log_w)
        slope = path.gain(v, jnp.zeros((), log_w.dtype), jnp.ones((), log_w.dtype))
        seen = (share > 0) & jnp.isfinite(slope)
        mean = jnp.sum(jnp.where(seen, share * jnp.where(seen, slope, 0), 0))
        variance = jnp.sum(jnp.where(seen, share * jnp.square(jnp.where(seen, slope, 0) - mean), 0))
        return mean, jnp.sqrt(variance), 1 / (share.size * jnp.sum(share**2))

    def stretch(carry: tuple[Any, Array], inputs: Any) -> Any:
        v, log_w = carry
        betas, log_steps, key = inputs
        gain, v, _ = annealed(path, kernel, key, v, betas, log_steps, sweeps=route.sweeps)
        log_w = jnp.where(log_w == -jnp.inf, log_w, log_w + gain)
        return (v, log_w), look(v, log_w)

    def cut(x: Array) -> Array:  # (stops, per_stop + 1): neighbours share an end
        return jnp.concatenate([x[:-1].reshape(_STOPS, per_stop), x[per_stop::per_stop, None]], axis=1)

    v = path.start(start_key, route.chains)
    log_w = jnp.zeros((route.chains,), jnp.result_type(float))
    first = look(v, log_w)
    (v, log_w), seen = jax.lax.scan(stretch, (v, log_w), (cut(betas), cut(log_steps), jax.random.split(key, _STOPS)))
    if sampler is None:
        chosen = jax.random.categorical(pick_key, log_w, shape=(route.chains,))
        end = jax.tree.map(lambda x: x[chosen], v)
    else:
        end = path.compact(sampler.draw(sample_key, route.chains))
    back, _, _ = annealed(
        path, kernel, reverse_key, end, betas[::-1], log_steps[::-1], sweeps=route.sweeps, reverse=True
    )
    mean, sd, effective = (jnp.concatenate([a[None], b]) for a, b in zip(first, seen, strict=True))
    log_z0 = path.log_z0()
    return betas[::per_stop], mean, sd, effective, log_w + log_z0, log_z0 - back
