"""Exact samples and the most probable configurations, by a pass from the root of a contraction tree to its leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lnz._graphs.contraction import ScaledTable
from lnz._graphs.contraction_plan import ContractionPlan, Scope

BLOCK = 2**22  # log weights held at one time


def descend(
    plan: ContractionPlan,
    nodes: Sequence[ScaledTable],
    sizes: Sequence[int],
    count: int,
    pick: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Labels (count, variables), top down: given a node's own variables, `pick` chooses the joint value of those it summed out.

    Args:
        nodes: the tables of `upward`.
        pick: from log weights (rows, joint values) and the row of every state, the position of its joint value.
    """
    labels = np.zeros((count, len(sizes)), np.int64)
    for i, j, out, removed in reversed(plan.steps):
        if not removed:
            continue
        grid, own = _joint_values(removed, sizes), _strides(out, sizes)
        position = sum((labels[:, v] * own[v] for v in out), np.zeros(count, np.int64))
        _, first, row = np.unique(position, return_index=True, return_inverse=True)
        row, step = row.reshape(-1), max(1, BLOCK // grid.shape[1])
        for start in range(0, len(first), step):  # blocks of different rows
            rows = first[start : start + step]
            weights = _log_weights((nodes[i], nodes[j]), out, removed, grid, labels[rows], sizes)
            members = np.flatnonzero((row >= start) & (row < start + len(rows)))
            labels[members[:, None], list(removed)] = grid[:, pick(weights, row[members] - start)].T
    return labels


def descend_best(
    plan: ContractionPlan, nodes: Sequence[ScaledTable], sizes: Sequence[int], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n most probable configurations, best first: labels (rows, variables) and their log-weights. Fewer where fewer are possible.

    Top down, the tables give the exact weight of the best completion of a partial configuration, so it suffices to keep the n best partial
    configurations of every step.

    Args:
        nodes: the tables of `upward_max`.
    """
    totals = nodes[-1].values.reshape(1)
    labels = np.zeros((1, len(sizes)), np.int64)[totals > -np.inf]
    totals = totals[totals > -np.inf]
    for i, j, out, removed in reversed(plan.steps):
        if not removed:
            continue
        grid = _joint_values(removed, sizes)
        step, made, values = max(1, BLOCK // grid.shape[1]), [labels[:0]], [totals[:0]]
        for start in range(0, len(labels), step):
            part = labels[start : start + step]
            weights = _log_weights((nodes[i], nodes[j]), out, removed, grid, part, sizes)
            weights += totals[start : start + step, None] - weights.max(axis=1, keepdims=True)
            kept = best_first(weights.reshape(-1), n)
            row, chosen = np.divmod(kept, grid.shape[1])
            part = part[row]
            part[:, removed] = grid[:, chosen].T
            made.append(part)
            values.append(weights[row, chosen])
        labels, totals = np.concatenate(made), np.concatenate(values)
        order = best_first(totals, n)
        labels, totals = labels[order], totals[order]
    return labels, totals


def best_first(values: np.ndarray, n: int) -> np.ndarray:
    """The positions of the n largest values above -inf, the largest first."""
    places = np.flatnonzero(values > -np.inf)
    if len(places) > 4 * n:
        places = places[np.argpartition(-values[places], n - 1)[:n]]
    return places[np.argsort(-values[places], kind="stable")][:n]


def _strides(scope: Scope, sizes: Sequence[int]) -> dict[int, int]:
    found, stride = {}, 1
    for v in reversed(scope):
        found[v] = stride
        stride *= sizes[v]
    return found


def _joint_values(variables: Scope, sizes: Sequence[int]) -> np.ndarray:
    """All joint values of the variables (variables, joint values)."""
    return np.indices([sizes[v] for v in variables]).reshape(len(variables), -1)


def _log_weights(
    children: tuple[ScaledTable, ScaledTable],
    out: Scope,
    removed: Scope,
    grid: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[int],
) -> np.ndarray:
    """Log weights of the joint values that a step summed out, given the labels of its own variables: (rows, joint values)."""
    weights = np.zeros((len(labels), grid.shape[1]))
    for child in children:
        stride = _strides(child.scope, sizes)
        outer = sum((labels[:, v] * stride[v] for v in out if v in stride), np.zeros(len(labels), np.int64))
        inner = sum(
            (grid[p] * stride[v] for p, v in enumerate(removed) if v in stride), np.zeros(grid.shape[1], np.int64)
        )
        entries = child.values.reshape(-1)[outer[:, None] + inner[None]]
        with np.errstate(divide="ignore"):
            weights += entries if child.logs else np.log(entries)
    return weights


def drawn(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Joint values drawn in proportion to the weights."""

    def pick(weights: np.ndarray, row: np.ndarray) -> np.ndarray:
        chances = np.exp(weights - weights.max(axis=1, keepdims=True))
        cumulative = np.cumsum(chances, axis=1)
        # One sorted list for all rows: row r's shares lie in (r, r + 1].
        cumulative /= cumulative[:, -1:]
        u = 1 - rng.random(len(row))  # in (0, 1]
        chosen = np.empty(len(row), np.int64)
        order = np.argsort(row, kind="stable")
        bounds = np.searchsorted(row[order], np.arange(len(weights) + 1))
        for r in range(len(weights)):
            mine = order[bounds[r] : bounds[r + 1]]
            chosen[mine] = np.searchsorted(cumulative[r], u[mine], side="left")
        return chosen

    return pick
