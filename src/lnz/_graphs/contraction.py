"""Sums, gradients and maxima over a binary contraction tree, in NumPy and float64.

Tables are kept as numbers times a scale while their entries stay inside the range of a float, and as logarithms where they do not, so that no
possible configuration is rounded to zero. Zeros stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs.contraction_plan import ContractionPlan, Scope
from lnz._graphs.table_products import LOG_SUM, MAX, SUM, permuted, reduce_product

RANGE = 690.0  # e^±690 is an ordinary float64
DOWN = 3.0  # time of the downward pass over that of the upward one, at most

Done = Callable[[float], None]


class ScaledTable(NamedTuple):
    """Entries e^scale · values, where every positive value lies in [e^low, e^high]; or, where `logs`, their logarithms scale + values.

    `scope` names the variables of the axes, in any order. `batch` is the one that numbers the members of a batch of
    models, or -1: no step sums it out, and every member has a scale of its own. Complex values carry derivatives (`batched_elimination`).
    """

    values: np.ndarray
    scope: Scope
    scale: Any = 0.0
    low: float = 0.0
    high: float = 0.0
    logs: bool = False
    batch: int = -1


def from_logs(logs: np.ndarray, scope: Scope, scale: Any = 0.0, batch: int = -1) -> ScaledTable:
    """A table from log entries: as numbers where their range allows it, which is much quicker, and as logarithms elsewhere.

    The numbers are centred in a float's range, so that products of many tables stay inside it for as long as possible.
    """
    bottom, top = _span(np.real(logs), scope, batch, -math.inf)
    half = 0.5 * (top - bottom)
    widest = half if batch < 0 else float(half.max())
    if widest > RANGE:
        return ScaledTable(logs - top, scope, scale + _flat(top), logs=True, batch=batch)
    middle = 0.5 * (top + bottom)
    return ScaledTable(np.exp(logs - middle), scope, scale + _flat(middle), -widest, widest, batch=batch)


def _span(values: np.ndarray, scope: Scope, batch: int, nothing: float) -> tuple[Any, Any]:
    """The logarithms of the least and the largest entry above `nothing`: of every member, in axes that broadcast. Zero where there is none."""
    if batch < 0:
        top = values.max(initial=nothing)
        if top == nothing:
            return 0.0, 0.0
        bottom = values.min(initial=np.inf, where=values > nothing)
        return (bottom, top) if nothing else (math.log(bottom), math.log(top))
    axes = _own_axes(scope, batch)
    top = values.max(axis=axes, initial=nothing, keepdims=True)
    bottom = values.min(axis=axes, initial=np.inf, where=values > nothing, keepdims=True)
    bottom, top = (np.where(top > nothing, x, 0.0 if nothing else 1.0) for x in (bottom, top))
    return (bottom, top) if nothing else (np.log(bottom), np.log(top))


def _own_axes(scope: Scope, batch: int) -> tuple[int, ...]:
    return tuple(axis for axis, v in enumerate(scope) if v != batch)


def _flat(scale: Any) -> Any:
    """A number, or one number per member."""
    return scale.reshape(-1) if isinstance(scale, np.ndarray) else scale


def to_logs(table: ScaledTable) -> ScaledTable:
    """The same table with logarithms for entries."""
    if table.logs:
        return table
    with np.errstate(divide="ignore"):
        return table._replace(values=np.log(table.values), logs=True)


def log_total(table: ScaledTable) -> Any:
    """The logarithm of the tree's result, a scalar: of every member."""
    root = to_logs(table)
    return np.real(root.values) + root.scale


def _centred(table: ScaledTable) -> ScaledTable:
    """The same table with its range measured and its values in the middle of a float's range."""
    bottom, top = _span(np.real(table.values), table.scope, table.batch, 0.0)
    middle, half = 0.5 * (top + bottom), 0.5 * (top - bottom)
    widest = half if table.batch < 0 else float(half.max())
    values = table.values * (math.exp(-middle) if table.batch < 0 else np.exp(-middle))
    scale = table.scale + _flat(middle)
    return table._replace(values=values, scale=scale, low=-widest, high=widest)


def compatible(a: ScaledTable, b: ScaledTable, terms: float) -> tuple[ScaledTable, ScaledTable]:
    """Both tables as numbers whose products stay in a float's range, and sums of e^terms of them; or both as logarithms."""
    if not a.logs and not b.logs:
        if a.low + b.low < -RANGE or a.high + b.high + terms > RANGE:
            a, b = _centred(a), _centred(b)
        if a.low + b.low >= -RANGE and a.high + b.high + terms <= RANGE:
            return a, b
    if np.iscomplexobj(a.values) or np.iscomplexobj(b.values):
        raise ValueError(
            "second derivatives are not supported where the entries of a table differ by more than a factor e^1380: make the log-potentials "
            "smaller, or write -inf for what is impossible"
        )
    return to_logs(a), to_logs(b)


def contract(a: ScaledTable, b: ScaledTable, out: Scope, sizes: Sequence[int]) -> ScaledTable:
    """The product of two tables, summed over the variables that `out` does not name. The result's axes may come in any order."""
    gone = {*a.scope, *b.scope}.difference(out)
    terms, batch = sum(math.log(sizes[v]) for v in gone), max(a.batch, b.batch)
    a, b = compatible(a, b, terms)
    values, scope = reduce_product(LOG_SUM if a.logs else SUM, a.values, a.scope, b.values, b.scope, out, sizes)
    if a.logs:
        return from_logs(values, scope, a.scale + b.scale, batch)
    return ScaledTable(values, scope, a.scale + b.scale, a.low + b.low, a.high + b.high + terms, batch=batch)


def upward(
    plan: ContractionPlan, leaves: Sequence[ScaledTable], sizes: Sequence[int], *, keep: bool, done: Done | None = None
) -> list[Any]:
    """The tables of all nodes of the tree, the last one a scalar: Z. Without `keep`, tables are freed once they are used.

    `done` receives the predicted seconds of every finished step.
    """
    return _upward(plan, leaves, lambda a, b, out: contract(a, b, out, sizes), keep, done)


def upward_max(
    plan: ContractionPlan, leaves: Sequence[np.ndarray], sizes: Sequence[int], *, done: Done | None = None
) -> list[ScaledTable]:
    """As `upward`, with maxima instead of sums: from tables of log-potentials to the largest total, at the root."""
    tables = [ScaledTable(table, scope, logs=True) for table, scope in zip(leaves, plan.scopes, strict=False)]
    return _upward(plan, tables, lambda a, b, out: _contract_max(a, b, out, sizes), True, done)


def _upward(
    plan: ContractionPlan,
    leaves: Sequence[ScaledTable],
    combine: Callable[[ScaledTable, ScaledTable, Scope], ScaledTable],
    keep: bool,
    done: Done | None,
) -> list[Any]:
    nodes: list[Any] = list(leaves)
    for (i, j, out, _), seconds in zip(plan.steps, plan.step_seconds, strict=True):
        nodes.append(combine(nodes[i], nodes[j], out))
        if not keep:
            nodes[i] = nodes[j] = None
        if done is not None:
            done(seconds)
    return nodes


def _contract_max(a: ScaledTable, b: ScaledTable, out: Scope, sizes: Sequence[int]) -> ScaledTable:
    return ScaledTable(*reduce_product(MAX, a.values, a.scope, b.values, b.scope, out, sizes), logs=True)


def downward(
    plan: ContractionPlan, nodes: list[Any], sizes: Sequence[int], *, done: Done | None = None
) -> list[np.ndarray]:
    """The belief of every leaf, P(x_scope), by reverse mode over the same tree: ∂Z/∂left is ∂Z/∂out times right. All zero where Z is.

    The tables of inner nodes are dropped from the list once they have been used. `done` receives the predicted seconds of every finished
    step, DOWN times those of the upward pass.
    """
    leaves = plan.leaves
    outer: list[Any] = [None] * len(nodes)
    outer[-1] = ScaledTable(np.ones(()), ())
    for s in reversed(range(len(plan.steps))):
        i, j, _, _ = plan.steps[s]
        above = outer[leaves + s]
        outer[leaves + s] = None
        outer[i] = contract(above, nodes[j], plan.scopes[i], sizes)
        outer[j] = contract(above, nodes[i], plan.scopes[j], sizes)
        for child in (i, j):
            if child >= leaves:
                nodes[child] = None
        if done is not None:
            done(DOWN * plan.step_seconds[s])
    return [_belief(above, leaf) for above, leaf in zip(outer[:leaves], nodes[:leaves], strict=True)]


def _belief(outer: ScaledTable, leaf: ScaledTable) -> np.ndarray:
    """outer times leaf over its sum, of every member."""
    outer = outer._replace(values=permuted(outer.values, outer.scope, leaf.scope))
    beyond = outer.low + leaf.low < -RANGE or outer.high + leaf.high > RANGE
    if outer.logs or leaf.logs or beyond:
        logs = to_logs(outer).values + to_logs(leaf).values
        values = np.exp(logs - _span(np.real(logs), leaf.scope, leaf.batch, -math.inf)[1])
    else:
        values = outer.values * leaf.values
    if leaf.batch < 0:
        total = values.sum()
        return values / total if total else np.zeros(values.shape)
    total = values.sum(axis=_own_axes(leaf.scope, leaf.batch), keepdims=True)
    total[total == 0] = 1
    return values / total


def check_possible(log_z: float) -> None:
    """Raise ValueError where Z = 0."""
    if log_z == -math.inf:
        raise ValueError("no state is possible: Z = 0. Check the evidence and the tables' zeros")
