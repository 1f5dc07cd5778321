"""L-BFGS with an explicit state, so that a run can be saved between any two iterations and resume bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Objective = Callable[[Float[np.ndarray, " n"]], tuple[float, Float[np.ndarray, " n"]]]

_PAIRS = 6  # of steps and changes of the gradient that approximate the curvature
_EVALUATIONS = 10  # at most, in a line search
_DECREASE, _CURVATURE = 1e-3, 0.9  # of the strong Wolfe conditions
_NARROW = 0.1  # a bracket of this relative width ends a line search
_LEAST_GRADIENT = 1e-6  # the minimisation has converged where the largest entry is smaller


class LBFGSState(NamedTuple):
    """The state of a minimisation.

    Attributes:
        x, value, gradient: the point, and the objective there.
        steps, changes: the last differences of points and of gradients, the newest in the last row.
        pairs: the number of rows in use.
        iteration: the number of iterations made.
        converged: whether no further decrease is possible.
    """

    x: Float[np.ndarray, " n"]
    value: Float[np.ndarray, ""]
    gradient: Float[np.ndarray, " n"]
    steps: Float[np.ndarray, "pairs n"]
    changes: Float[np.ndarray, "pairs n"]
    pairs: Int[np.ndarray, ""]
    iteration: Int[np.ndarray, ""]
    converged: np.ndarray

    @classmethod
    def start(cls, objective: Objective, x: Float[np.ndarray, " n"], pairs: int = _PAIRS) -> LBFGSState:
        """The state at an initial point, with room for so many pairs."""
        value, gradient = objective(x)
        none = np.zeros((pairs, len(x)))
        return cls(
            x, np.asarray(value), gradient, none, none, np.asarray(0), np.asarray(0), np.asarray(_flat(gradient))
        )


def lbfgs_iteration(objective: Objective, state: LBFGSState) -> LBFGSState:
    """One iteration: the direction by the two-loop recursion, then a line search for the strong Wolfe conditions.

    Where the search fails, it restarts along the gradient; where that fails as well, the state has converged.

    Source: Liu & Nocedal 1989, "On the limited memory BFGS method for large scale optimization"; with the first step, the conditions and the
    restarts of Zhu, Byrd, Lu, Nocedal 1997, "Algorithm 778: L-BFGS-B".
    """
    found, pairs = None, int(state.pairs)
    while found is None:
        direction = -inverse_hessian_times(state, state.gradient, pairs)
        slope = float(direction @ state.gradient)
        first = 1.0 if int(state.iteration) else min(1.0, 1 / float(np.linalg.norm(direction)))
        if slope < 0:
            found = _line_search(objective, state, direction, slope, first)
        if found is None and pairs == 0:
            return state._replace(converged=np.asarray(True))
        pairs = 0 if found is None else pairs
    length, value, gradient = found
    step = np.multiply(length, direction)
    converged = _flat(gradient) or value >= float(state.value)
    return moved(state, step, value, gradient, pairs, -np.finfo(float).eps * length * slope, converged)


def moved(
    state: LBFGSState, step: np.ndarray, value: float, gradient: np.ndarray, pairs: int, least: float, converged: bool
) -> LBFGSState:
    """The state after a step, with its pair, where the curvature along it is above the least, among the last ones."""
    change = gradient - state.gradient
    steps, changes = state.steps, state.changes
    if step @ change > least:
        steps, changes = np.vstack([steps[1:], step]), np.vstack([changes[1:], change])
        pairs = min(pairs + 1, len(steps))
    return LBFGSState(
        state.x + step,
        np.asarray(value),
        gradient,
        steps,
        changes,
        np.asarray(pairs),
        np.asarray(state.iteration + 1),
        np.asarray(converged),
    )


def _flat(gradient: np.ndarray) -> bool:
    return float(np.max(np.abs(gradient))) <= _LEAST_GRADIENT


def inverse_hessian_times(state: LBFGSState, gradient: np.ndarray, pairs: int) -> np.ndarray:
    """The inverse Hessian of the last pairs times a gradient, by the two-loop recursion."""
    found, shares = gradient, []
    rows = [(s, y, float(s @ y)) for s, y in zip(state.steps, state.changes, strict=True)][len(state.steps) - pairs :]
    for s, y, curvature in reversed(rows):
        shares.append(float(s @ found) / curvature)
        found = found - shares[-1] * y
    if rows:
        _, y, curvature = rows[-1]
        found = found * (curvature / float(y @ y))
    for (s, y, curvature), share in zip(rows, reversed(shares), strict=True):
        found = found + (share - float(y @ found) / curvature) * s
    return found


class _Point(NamedTuple):
    """A step length with the value and the slope there."""

    at: float
    value: float
    slope: float


def _line_search(
    objective: Objective, state: LBFGSState, direction: np.ndarray, slope: float, length: float
) -> tuple[float, float, np.ndarray] | None:
    """A step length with value and gradient, by the search of Moré & Thuente 1994; None where ten evaluations find none."""
    start = float(state.value)
    best = other = _Point(0.0, start, slope)
    bracketed, lifted = False, True  # lifted: it minimises the value above the line of sufficient decrease
    widths = (math.inf, math.inf)
    low, high = 0.0, 5 * length
    for _ in range(_EVALUATIONS):
        value, gradient = objective(state.x + length * direction)
        point = _Point(length, value, float(gradient @ direction))
        allowed = start + length * _DECREASE * slope
        lifted = lifted and not (value <= allowed and point.slope >= 0)
        narrow = bracketed and (not low < length < high or high - low <= _NARROW * high)
        if narrow or (value <= allowed and abs(point.slope) <= -_CURVATURE * slope):
            return length, value, gradient
        tilt = _DECREASE * slope if lifted and allowed < value <= best.value else 0.0
        best, other, bracketed, length = _trial(
            *(_Point(p.at, p.value - tilt * p.at, p.slope - tilt) for p in (best, other, point)), bracketed, low, high
        )
        best, other = (_Point(p.at, p.value + tilt * p.at, p.slope + tilt) for p in (best, other))
        if bracketed:
            width = abs(other.at - best.at)
            if width >= 0.66 * widths[1]:
                length = best.at + 0.5 * (other.at - best.at)
            widths = (width, widths[0])
            low, high = sorted((best.at, other.at))
            if not low < length < high or high - low <= _NARROW * high:
                length = best.at
        else:
            low, high = length + 1.1 * (length - best.at), length + 4 * (length - best.at)
    return None


def _trial(
    best: _Point, other: _Point, point: _Point, bracketed: bool, low: float, high: float
) -> tuple[_Point, _Point, bool, float]:
    """The bracket updated by a new point, and the next step length to try."""
    to, back = point.at, best.at - point.at
    if point.value > best.value:  # a minimum lies between them
        cubic = _cubic_minimum(best, point)
        bend = (point.value - best.value) / back + best.slope
        quadratic = best.at - best.slope / bend / 2 * back
        nearer = abs(cubic - best.at) < abs(quadratic - best.at)
        return best, point, True, cubic if nearer else cubic + (quadratic - cubic) / 2
    cubic = _cubic_minimum(point, best)
    secant = to + point.slope / (point.slope - best.slope) * back if point.slope != best.slope else math.inf
    nearer, farther = sorted((cubic, secant), key=lambda at: abs(at - to))
    if point.slope * best.slope < 0:  # likewise
        return point, best, True, farther
    if abs(point.slope) < abs(best.slope):  # the slope flattens
        if bracketed:
            most = to + 0.66 * (other.at - to)
            return point, other, True, min(most, nearer) if back < 0 else max(most, nearer)
        if (cubic - to) * back >= 0:
            return point, other, False, high if back < 0 else low
        return point, other, False, min(max(farther, low), high)
    return point, other, bracketed, _cubic_minimum(point, other) if bracketed else high if back < 0 else low


def _cubic_minimum(a: _Point, b: _Point) -> float:
    """The minimiser of the cubic with the values and slopes of two points."""
    third = 3 * (a.value - b.value) / (b.at - a.at) + a.slope + b.slope
    scale = max(abs(third), abs(a.slope), abs(b.slope))
    root = scale * math.sqrt(max(0.0, (third / scale) ** 2 - a.slope / scale * (b.slope / scale)))
    root = math.copysign(root, b.at - a.at)
    return a.at + (root - a.slope + third) / (2 * root - a.slope + b.slope) * (b.at - a.at)
