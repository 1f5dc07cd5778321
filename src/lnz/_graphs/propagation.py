"""Schedules of belief propagation: sweeps over classes of factors, or the messages that would change most first."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np

from lnz._graphs import messages

Schedule = Literal["classes", "residual"]
SHARE = 0.25  # of the factors that one step of the residual schedule updates


def propagated(
    found: messages.Model,
    start: messages.Messages | None = None,
    *,
    damping: float,
    max_sweeps: int,
    tolerance: float,
    schedule: Schedule = "classes",
    until: float = float("inf"),
) -> tuple[messages.Messages, float, int]:
    """Messages on a graph with cycles after sweeps until they converge, their last change, and the number of sweeps.

    "classes": factors that share no variable are updated at once, class after class. "residual": all messages are computed, and the quarter
    of the factors whose messages would change most are updated. No further sweep begins after the time `until` of `time.perf_counter`.
    """
    everything = [range(len(found.scopes))] if schedule == "residual" else messages.colours(found.scopes)
    passed = messages.Messages(found, everything) if start is None else start
    passed.floor = -1e5 * (1 + max((float(np.abs(t[t > -np.inf]).max(initial=0)) for t in found.tables), default=0.0))
    residual, sweeps = float("inf"), 0
    while sweeps < max_sweeps and residual > tolerance and (sweeps == 0 or time.perf_counter() < until):
        residual = passed.sweep(damping) if schedule == "classes" else passed.largest_first(damping, SHARE)
        sweeps += 1
    passed.settle()
    return passed, residual, sweeps
