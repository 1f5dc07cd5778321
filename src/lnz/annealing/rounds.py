"""Rounds of growing work, until the interval of log Z is as narrow as asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lnz.estimate import Estimate
from lnz.route import Route

_GROWTH = 4
_GROWS = {
    "AnnealedImportanceSampling": "temperatures",
    "BidirectionalAIS": "temperatures",
    "SequentialMonteCarlo": "particles",
    "ParallelTempering": "iterations",
}


def rounds_within(
    measure: Callable[[Route, Any], Estimate], route: Any, key: Any, *, within: float, max_seconds: float
) -> Estimate:
    """Estimates of growing work until one has limits `within` nats of each other, or the next round would not end in time.

    Round k = 1, 2, … takes four times the work of the one before, with random numbers of its own, and limits that fail with probability
    δ / 2^k: so whichever round is the last, its limits hold with probability 1 - δ. The last estimate is returned; where it is wider than
    asked for, its warnings say so.

    Args:
        measure: takes a route and a key to an estimate of log Z.
        route: a route with samples, at the size of the first round; its confidence is 1 - δ.
        key: a random key.
        within: of the interval, in nats.
        max_seconds: for all rounds together.
    """
    if not within > 0 or not max_seconds > 0:
        raise ValueError(f"within and max_seconds must be above 0, but are {within} and {max_seconds}")
    began, doubt, k = time.perf_counter(), 1 - route.confidence, 0
    while True:
        k += 1
        started = time.perf_counter()
        estimate = measure(dataclasses.replace(route, confidence=1 - doubt / 2**k), jax.random.fold_in(key, k))
        took = time.perf_counter() - started
        near = bool(np.asarray(estimate.upper) - np.asarray(estimate.lower) <= within)
        if near or time.perf_counter() - began + _GROWTH * took > max_seconds:
            words = f"the interval is wider than the {within:g} nats asked for: allow more time, or take another route"
            flags = {**estimate.flags, words: not near}
            return dataclasses.replace(estimate, flags=flags, confidence=1 - doubt)
        route = _grown(route)


def _grown(route: Any) -> Any:
    name = _GROWS[type(route).__name__]
    if name == "temperatures" and not isinstance(route.schedule, str):  # the user's own temperatures stay
        name = "chains"
    return dataclasses.replace(route, **{name: _GROWTH * getattr(route, name)})
