"""Independent runs of a stochastic route, repeated until their joint interval is narrow enough or time runs out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import is_traced
from lnz.routes._annealing.annealing_route import AnnealingRoute, from_weights
from lnz.routes._annealing.saved_runs import Rounds, mark_of


def repeat_until(
    energy: Energy,
    route: AnnealingRoute,
    key: PRNGKeyArray,
    *,
    within: float,
    max_seconds: float,
    resume: str | Path | None = None,
    progress: Callable[[int, Estimate], None] | None = None,
) -> Estimate:
    """log Z in nats from all chains of the repeated runs together: see `lnz.log_partition_to_accuracy`.

    The certified lower bound holds at any number of runs, because it is a betting bound (see `certificate.lower_bound`).
    """
    if not route.unbiased:
        raise ValueError(
            f"{type(route).__name__} gives no weights with mean Z, so its runs cannot be combined: use lnz.routes.AnnealedImportanceSampling or "
            "lnz.routes.SequentialMonteCarlo, or call lnz.log_partition"
        )
    if route.not_joined is not None:
        raise ValueError(
            f"runs of {type(route).__name__} are not joined to a narrower interval, since {route.not_joined}"
        )
    if any(is_traced(leaf) for leaf in jax.tree.leaves((energy, key))):
        raise ValueError(
            "log_partition_to_accuracy runs on the host and cannot be traced: call it outside jit, vmap and grad"
        )
    if not (within > 0 and max_seconds > 0):
        raise ValueError(f"within and max_seconds must be above 0, but are {within} and {max_seconds}")
    # Modes are looked for once: false alarms would add up.
    plain: Any = dataclasses.replace(cast("Any", route), mode_probes=0) if hasattr(route, "mode_probes") else route
    file, rounds, mark = None if resume is None else Path(resume), Rounds(), ""
    if file is not None:
        mark = mark_of(energy, route, key)
        rounds = Rounds.load(file, mark) if file.exists() else rounds
    begun = time.perf_counter() - rounds.seconds
    parts, estimate = rounds.log_weights, None
    target = 1 << (max(1, len(parts)) - 1).bit_length()  # the interval is evaluated after 1, 2, 4, … runs
    while True:
        while len(parts) < target and not (parts and time.perf_counter() - begun > max_seconds):
            run = (plain if parts else route).run(energy, jax.random.fold_in(key, len(parts)))
            weights = np.asarray(run.log_weights)
            mean = np.logaddexp.reduce(weights, axis=1) - weights.dtype.type(math.log(weights.shape[1]))
            rounds.add(mean, run.estimate.flags, run.estimate.route)
            rounds.seconds = time.perf_counter() - begun
            if file is not None:
                rounds.save(file, mark)
            if progress is not None and estimate is not None:
                progress(len(parts), estimate)
        estimate = _weighed(np.concatenate(parts), route.confidence, route.path(energy).by_default)
        if progress is not None:
            progress(len(parts), estimate)
        spent = time.perf_counter() - begun
        wide = not float(estimate.upper - estimate.lower) <= within
        if not wide or spent > max_seconds or math.isnan(float(estimate.value)):
            break
        target *= 2
    raised = {code: jnp.asarray(flag) for code, flag in rounds.raised.items()}
    # Warnings that both raise count for all runs together.
    flags = raised | estimate.flags | {EstimateWarning.OUT_OF_TIME: jnp.asarray(wide)}
    diagnostics = estimate.diagnostics | {"runs": jnp.asarray(len(parts)), "seconds": jnp.asarray(spent)}
    return dataclasses.replace(
        estimate, route=f"{len(parts):,} runs of {rounds.name}", flags=flags, diagnostics=diagnostics
    )


def _weighed(log_weights: np.ndarray, confidence: float, base_by_default: bool) -> Estimate:
    return from_weights(
        log_weights,
        confidence=confidence,
        route="",
        assumption="the chains reach every mode",
        base_by_default=base_by_default,
        diagnostics={},
        flags={},
    )
