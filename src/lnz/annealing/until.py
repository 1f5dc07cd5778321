"""A stochastic log Z to a wanted accuracy: further independent runs of a route until the interval is narrow enough, or time is out."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz.annealing.weighted import AnnealingRoute, from_weights
from lnz.energy import Energy
from lnz.estimate import Estimate
from lnz.frozen import is_traced
from lnz.mathematics import log_mean_exp


def log_partition_until(
    energy: Energy, route: AnnealingRoute, key: PRNGKeyArray, *, within: float = 0.1, max_seconds: float = 60.0
) -> Estimate:
    """log Z in nats by as many runs of the route as make the interval `within` wide, and one weighing of all their chains.

    What `lnz.log_partition(energy, route=…, key=…, within=…, max_seconds=…)` calls. The number of runs doubles between looks at the interval.
    The certified lower limit holds whenever one stops: it is the reach of a gambler's capital, which Ville's inequality bounds at all times
    at once (see `certificate.lower_limit`).

    Args:
        energy: the model.
        route: one whose weights have mean Z: `AnnealedImportanceSampling` or `SequentialMonteCarlo`.
        key: a random key.
        within: the width of the interval to stop at, in nats.
        max_seconds: the time to stop at; the run that has begun is finished.

    Raises:
        ValueError: for another route, under `jit`, `vmap` or `grad`, or where `within` or `max_seconds` is not above 0.
    """
    if not route.unbiased:
        raise ValueError(
            f"{type(route).__name__} gives no weights with mean Z that further runs could join: take lnz.AnnealedImportanceSampling or "
            "lnz.SequentialMonteCarlo, or leave out within and max_seconds"
        )
    if any(is_traced(leaf) for leaf in jax.tree.leaves((energy, key))):
        raise ValueError(
            "log_partition(within=…) runs on the host and cannot be traced: call it outside jit, vmap and grad"
        )
    if not (within > 0 and max_seconds > 0):
        raise ValueError(f"within and max_seconds must be above 0, but are {within} and {max_seconds}")
    begun, runs, name, wide = time.perf_counter(), 0, "", True
    parts: list[np.ndarray] = []
    raised: dict[str, Any] = {}
    while True:
        for run in range(runs, max(1, 2 * runs)):
            if parts and time.perf_counter() - begun > max_seconds:
                break
            log_weights, once = _run(route, energy, jax.random.fold_in(key, run))
            parts.append(np.asarray(log_weights))
            raised = {words: flag | raised.get(words, False) for words, flag in once.flags.items()}
            name = once.route
        runs = len(parts)
        estimate = _weighed(jnp.asarray(np.concatenate(parts)), route.confidence)
        spent = time.perf_counter() - begun
        wide = not float(estimate.upper - estimate.lower) <= within
        if not wide or spent > max_seconds or math.isnan(float(estimate.value)):
            break
    flags = raised | estimate.flags | {_WIDE: jnp.asarray(wide)}  # of the same words, those of all runs together count
    diagnostics = estimate.diagnostics | {"runs": jnp.asarray(runs), "seconds": jnp.asarray(spent)}
    return dataclasses.replace(estimate, route=f"{runs:,} runs of {name}", flags=flags, diagnostics=diagnostics)


_WIDE = "time ran out before the interval was as narrow as asked: give more max_seconds, or a route with longer runs"


@eqx.filter_jit
def _run(route: AnnealingRoute, energy: Energy, key: PRNGKeyArray) -> tuple[Float[Array, " n"], Estimate]:
    """Independent weights with mean Z: of every chain, or population."""
    run = route.run(energy, key)
    return jax.vmap(log_mean_exp)(run.log_weights), run.estimate


@eqx.filter_jit
def _weighed(log_weights: Float[Array, " n"], confidence: float) -> Estimate:
    return from_weights(
        log_weights,
        confidence=confidence,
        route="",
        assumption="the chains reach every mode; the lower limit alone is certified",
        diagnostics={},
        flags={},
    )
