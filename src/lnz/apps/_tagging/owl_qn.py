"""L-BFGS for an objective with an L1 penalty: the orthant-wise method, with the state of L-BFGS."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lnz.apps._tagging.lbfgs import LBFGSState, Objective, inverse_hessian_times, moved

_DECREASE, _SHRINK = 1e-4, 0.5  # of the sufficient decrease, and of the step in a backtracking search
_EVALUATIONS = 20  # at most, in a search


def pseudo_gradient(state: LBFGSState, l1: float) -> Float[np.ndarray, " n"]:
    """The steepest descent of f(x) + l1 ‖x‖₁, negated: at x_i = 0 the one-sided derivative that decreases it, or 0."""
    at_zero = np.sign(state.gradient) * np.maximum(np.abs(state.gradient) - l1, 0)
    return np.where(state.x == 0, at_zero, state.gradient + l1 * np.sign(state.x))


def owl_qn_iteration(objective: Objective, state: LBFGSState, l1: float) -> LBFGSState:
    """One iteration for f(x) + l1 ‖x‖₁; `state.value` and `state.gradient` are those of f alone.

    The quasi-Newton direction keeps the entries that descend, and the search by backtracking stays in the orthant of x, in which the penalty is
    linear: entries that would change their sign become 0. Where the search fails, the state has converged.

    Source: Andrew & Gao 2007, "Scalable training of L1-regularized log-linear models".
    """
    slope, pairs = pseudo_gradient(state, l1), int(state.pairs)
    direction = -inverse_hessian_times(state, slope, pairs)
    direction = np.where(direction * slope < 0, direction, 0)
    orthant = np.where(state.x == 0, -np.sign(slope), np.sign(state.x))
    before = float(state.value) + l1 * float(np.abs(state.x).sum())
    length = 1.0 if pairs else min(1.0, 1 / max(float(np.linalg.norm(direction)), 1e-300))
    for _ in range(_EVALUATIONS):
        x = state.x + length * direction
        x = np.where(x * orthant > 0, x, 0)
        value, gradient = objective(x)
        step = x - state.x
        after = value + l1 * float(np.abs(x).sum())
        if after <= before + _DECREASE * float(step @ slope):
            return moved(state, step, value, gradient, pairs, 0.0, after >= before)
        length *= _SHRINK
    return state._replace(converged=np.asarray(True))
