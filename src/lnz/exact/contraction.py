"""Sums, gradients, maxima and samples over a binary contraction tree, in NumPy and float64.

Tables are kept as numbers times a scale while their entries stay inside the range of a float, and as logarithms where they do not, so that no
possible configuration is rounded to impossible. Zeros stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz.exact.orders import Plan, Scope, is_product

LIMIT = 690.0  # e^±690 is an ordinary float64
CHUNK = 2**14  # entries of a block that stays in a processor's cache


class Algebra(NamedTuple):
    """How entries are combined and how a variable is removed."""

    combine: np.ufunc
    reduce: np.ufunc


SUM = Algebra(np.multiply, np.add)
LOG_SUM = Algebra(np.add, np.logaddexp)
MAX = Algebra(np.add, np.maximum)


class Table(NamedTuple):
    """Entries e^scale · values, where every positive value lies in [e^low, e^high]; or, where `logs`, their logarithms scale + values.

    `scope` names the variables of the axes, in whatever order they came out.
    """

    values: np.ndarray
    scope: Scope
    scale: float = 0.0
    low: float = 0.0
    high: float = 0.0
    logs: bool = False


def from_logs(logs: np.ndarray, scope: Scope, scale: float = 0.0) -> Table:
    """A table from log entries: as numbers where their range allows it. The values are centred in the range of a float."""
    top = logs.max(initial=-np.inf)
    if top == -np.inf:
        return Table(np.zeros(logs.shape), scope, scale)
    bottom = logs.min(initial=np.inf, where=logs > -np.inf)
    middle = 0.5 * (top + bottom)
    half = 0.5 * (top - bottom)
    if half > LIMIT:
        return Table(logs - top, scope, scale + top, logs=True)
    return Table(np.exp(logs - middle), scope, scale + middle, -half, half)


def to_logs(table: Table) -> Table:
    if table.logs:
        return table
    with np.errstate(divide="ignore"):
        return Table(np.log(table.values), table.scope, table.scale, logs=True)


def log_total(table: Table) -> float:
    """The logarithm of the sum of all entries."""
    if table.logs:
        return float(np.logaddexp.reduce(table.values, axis=None)) + table.scale
    total = float(table.values.sum())
    return math.log(total) + table.scale if total > 0 else -math.inf


def _centred(table: Table) -> Table:
    """The same table with its range measured and its values in the middle of a float's range."""
    values = table.values
    top = float(values.max(initial=0.0))
    if top == 0:
        return Table(values, table.scope, table.scale)
    low, high = math.log(values.min(initial=np.inf, where=values > 0)), math.log(top)
    middle = 0.5 * (low + high)
    return Table(values * math.exp(-middle), table.scope, table.scale + middle, low - middle, high - middle)


def compatible(a: Table, b: Table, terms: float) -> tuple[Table, Table]:
    """Both tables as numbers whose products stay in a float's range, and sums of e^terms of them; or both as logarithms."""
    if not a.logs and not b.logs:
        if a.low + b.low < -LIMIT or a.high + b.high + terms > LIMIT:
            a, b = _centred(a), _centred(b)
        if a.low + b.low >= -LIMIT and a.high + b.high + terms <= LIMIT:
            return a, b
    return to_logs(a), to_logs(b)


def contract(a: Table, b: Table, out: Scope, sizes: Sequence[int]) -> Table:
    """The product of two tables, summed over the variables that `out` does not name. The order of the result's axes is its own."""
    gone = {*a.scope, *b.scope}.difference(out)
    terms = sum(math.log(sizes[v]) for v in gone)
    a, b = compatible(a, b, terms)
    algebra = LOG_SUM if a.logs else SUM
    values, scope = reduce_product(algebra, a.values, a.scope, b.values, b.scope, out, sizes)
    if a.logs:
        return from_logs(values, scope, a.scale + b.scale)
    return Table(values, scope, a.scale + b.scale, a.low + b.low, a.high + b.high + terms)


def reduce_product(
    algebra: Algebra, a: np.ndarray, a_scope: Scope, b: np.ndarray, b_scope: Scope, out: Scope, sizes: Sequence[int]
) -> tuple[np.ndarray, Scope]:
    """Two tables combined, and reduced to the variables of `out`, in an order that spares copies: the table and its variables."""
    wanted = set(out)
    a, a_scope = _without_private(algebra, a, a_scope, wanted.union(b_scope))
    b, b_scope = _without_private(algebra, b, b_scope, wanted.union(a_scope))
    if b.size > a.size:
        a, a_scope, b, b_scope = b, b_scope, a, a_scope
    in_a, in_b = set(a_scope), set(b_scope)
    shared = [v for v in a_scope if v in in_b and v not in wanted]
    right = [v for v in b_scope if v not in in_a]
    kept = [v for v in a_scope if v in wanted]
    n, k = (math.prod(sizes[v] for v in group) for group in (right, shared))
    left = [v for v in kept if v not in in_b]
    if algebra is SUM and is_product(math.prod(sizes[v] for v in left), n, k):
        batch = [v for v in kept if v in in_b]
        x, y = (
            _matrices(a, a_scope, batch, left, shared, sizes),
            _matrices(b, b_scope, batch, right, shared, sizes),
        )
        present = (*batch, *left, *right)
        made = np.matmul(x, y.swapaxes(1, 2)).reshape([sizes[v] for v in present])
    else:
        present = (*right, *kept)  # the larger table stays in one piece
        x, y = _aligned(a, a_scope, shared, present, sizes), _aligned(b, b_scope, shared, present, sizes)
        if k * math.prod(sizes[v] for v in present) <= 1024:
            made = algebra.combine(x[0], y[0]) if k == 1 else algebra.reduce.reduce(algebra.combine(x, y), axis=0)
        else:
            x, y = _merged(x, y, k)
            made = _sum_of_products(algebra, x, y, k).reshape([sizes[v] for v in present])
    rest = tuple(v for v in out if v not in in_a and v not in in_b)  # variables of neither table
    if not rest:
        return made, present
    wide = made.reshape(*made.shape, *(1 for _ in rest))
    return np.broadcast_to(wide, [sizes[v] for v in (*present, *rest)]), present + rest


def _matrices(
    table: np.ndarray,
    scope: Scope,
    batch: Sequence[int],
    own: Sequence[int],
    shared: Sequence[int],
    sizes: Sequence[int],
) -> np.ndarray:
    """The table as a stack of matrices (batch, own, shared): copied only where its axes are mixed, and then along its last axis."""
    m, k = math.prod(sizes[v] for v in own), math.prod(sizes[v] for v in shared)
    if scope and scope[-1] in own:
        return permuted(table, scope, (*batch, *shared, *own)).reshape(-1, k, m).swapaxes(1, 2)
    return permuted(table, scope, (*batch, *own, *shared)).reshape(-1, m, k)


def _without_private(algebra: Algebra, table: np.ndarray, scope: Scope, kept: set[int]) -> tuple[np.ndarray, Scope]:
    axes = tuple(axis for axis, v in enumerate(scope) if v not in kept)
    if not axes:
        return table, scope
    rest = [axis for axis in range(len(scope)) if axis not in axes]
    moved = table.transpose(*axes, *rest).reshape(-1, *(table.shape[axis] for axis in rest))
    return algebra.reduce.reduce(moved, axis=0), tuple(scope[axis] for axis in rest)


def permuted(table: np.ndarray, scope: Sequence[int], order: Sequence[int]) -> np.ndarray:
    if len(order) == len(scope) and all(map(int.__eq__, scope, order)):
        return table
    place = {v: axis for axis, v in enumerate(scope)}
    return np.transpose(table, [place[v] for v in order])


def spread(table: np.ndarray, scope: Scope, wide: Scope) -> np.ndarray:
    """The table with an axis for every variable of `wide`, in its order: of length 1 for those that it has not."""
    length = dict(zip(scope, table.shape, strict=True))
    inside = permuted(table, scope, [v for v in wide if v in length])
    return inside.reshape([length.get(v, 1) for v in wide])


def _aligned(
    table: np.ndarray, scope: Scope, shared: Sequence[int], present: Sequence[int], sizes: Sequence[int]
) -> np.ndarray:
    """The table with its shared variables as one axis in front, then one axis for every variable of the result, of length 1 where it has none."""
    inside = set(scope)
    table = permuted(table, scope, [*shared, *(v for v in present if v in inside)])
    front = math.prod(sizes[v] for v in shared)
    return table.reshape([front, *(sizes[v] if v in inside else 1 for v in present)])


def _merged(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The two with as few axes as possible, and a last axis that is long enough for a vector loop."""
    shape = [max(i, j) for i, j in zip(x.shape[1:], y.shape[1:], strict=True)]
    size, run, tail = k * math.prod(shape), 1, len(shape)
    while tail and run < 64:
        tail -= 1
        run *= shape[tail]
    run = math.prod(shape[tail:])

    def spread(t: np.ndarray) -> np.ndarray:
        inner = t.shape[1 + tail :]
        ragged = any(length > 1 for length in inner) and math.prod(inner) < run
        if ragged and t.size * (run // math.prod(inner)) <= size // 4:
            return np.ascontiguousarray(np.broadcast_to(t, (*t.shape[: 1 + tail], *shape[tail:])))
        return t

    x, y = spread(x), spread(y)
    kinds = [(i > 1, j > 1) for i, j in zip(x.shape[1:], y.shape[1:], strict=True)]
    lengths: list[list[int]] = []
    last = None
    for length, kind in zip(shape, kinds, strict=True):
        if length == 1:
            continue
        if kind == last:
            lengths[-1][0] *= length
        else:
            lengths.append([length, *kind])
            last = kind
    return (
        x.reshape([k, *(length if one else 1 for length, one, _ in lengths)]),
        y.reshape([k, *(length if other else 1 for length, _, other in lengths)]),
    )


def _sum_of_products(algebra: Algebra, x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    combine, reduce = algebra
    if k == 1:
        return combine(x[0], y[0])
    shape = np.broadcast_shapes(x.shape[1:], y.shape[1:])
    size = math.prod(shape)
    if k * size <= 4 * CHUNK:
        return reduce.reduce(combine(x, y), axis=0)
    out = np.empty(shape)
    if size <= 2 * CHUNK:
        _accumulate(algebra, x, y, out)
        return out
    step = max(1, CHUNK * shape[0] // size)  # blocks of the first axis
    for start in range(0, shape[0], step):
        piece = slice(start, start + step)
        xs, ys = (t if t.shape[1] == 1 else t[:, piece] for t in (x, y))
        _accumulate(algebra, xs, ys, out[piece])
    return out


def _accumulate(algebra: Algebra, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    combine, reduce = algebra
    if out.size < CHUNK // 4:  # many terms, a small result: several terms at a time
        block = max(1, 4 * CHUNK // max(out.size, 1))
        for start in range(0, len(x), block):
            terms = reduce.reduce(combine(x[start : start + block], y[start : start + block]), axis=0)
            out[...] = terms if start == 0 else reduce(out, terms)
        return
    combine(x[0], y[0], out=out)
    term = np.empty(out.shape)
    for i in range(1, len(x)):
        combine(x[i], y[i], out=term)
        reduce(out, term, out=out)


def upward(plan: Plan, leaves: Sequence[Table], sizes: Sequence[int], *, keep: bool) -> list[Any]:
    """The tables of all nodes of the tree, the last one a scalar: Z. Without `keep`, tables are freed once they are used."""
    nodes: list[Any] = list(leaves)
    for i, j, out, _ in plan.steps:
        nodes.append(contract(nodes[i], nodes[j], out, sizes))
        if not keep:
            nodes[i] = nodes[j] = None
    return nodes


def downward(plan: Plan, nodes: list[Any], sizes: Sequence[int]) -> list[np.ndarray]:
    """The belief of every leaf, P(x_scope), by reverse mode over the same tree: ∂Z/∂left is ∂Z/∂out times right. All zero where Z is.

    The tables of inner nodes are dropped from the list once they have been used.
    """
    leaves = plan.leaves
    outer: list[Any] = [None] * len(nodes)
    outer[-1] = Table(np.ones(()), ())
    for s in reversed(range(len(plan.steps))):
        i, j, _, _ = plan.steps[s]
        above = outer[leaves + s]
        outer[leaves + s] = None
        outer[i] = contract(above, nodes[j], plan.scopes[i], sizes)
        outer[j] = contract(above, nodes[i], plan.scopes[j], sizes)
        for child in (i, j):
            if child >= leaves:
                nodes[child] = None
    beliefs = []
    for a, b in zip(outer[:leaves], nodes[:leaves], strict=True):
        a = a._replace(values=permuted(a.values, a.scope, b.scope))
        if a.logs or b.logs or a.low + b.low < -LIMIT or a.high + b.high > LIMIT:
            logs = to_logs(a).values + to_logs(b).values
            values = np.exp(logs - logs.max()) if logs.max() > -np.inf else np.zeros(logs.shape)
        else:
            values = a.values * b.values
        total = values.sum()
        beliefs.append(values / total if total > 0 else np.zeros(values.shape))
    return beliefs


def upward_max(plan: Plan, leaves: Sequence[np.ndarray], sizes: Sequence[int]) -> list[Table]:
    """As `upward`, of maxima: tables of log-potentials in, the largest total at the root."""
    nodes = [Table(table, scope, logs=True) for table, scope in zip(leaves, plan.scopes, strict=False)]
    for i, j, out, _ in plan.steps:
        a, b = nodes[i], nodes[j]
        values, scope = reduce_product(MAX, a.values, a.scope, b.values, b.scope, out, sizes)
        nodes.append(Table(values, scope, logs=True))
    return nodes


def descend(
    plan: Plan,
    nodes: Sequence[Table],
    sizes: Sequence[int],
    count: int,
    pick: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Labels (count, variables), top down: given a node's own variables, `pick` takes the joint value of those it summed out.

    Args:
        nodes: the tables of `upward` or `upward_max`.
        pick: from log weights (rows, joint values) and the row of every state, the position of its joint value.
    """
    labels = np.zeros((count, len(sizes)), np.int64)

    def strides(scope: Scope) -> dict[int, int]:
        found, stride = {}, 1
        for v in reversed(scope):
            found[v] = stride
            stride *= sizes[v]
        return found

    for s in reversed(range(len(plan.steps))):
        i, j, out, removed = plan.steps[s]
        if not removed:
            continue
        shape = [sizes[v] for v in removed]
        grid = np.indices(shape).reshape(len(shape), -1)
        own = strides(out)
        position = sum((labels[:, v] * own[v] for v in out), np.zeros(count, np.int64))
        _, first, row = np.unique(position, return_index=True, return_inverse=True)
        row, step = row.reshape(-1), max(1, 2**22 // grid.shape[1])
        for start in range(0, len(first), step):  # blocks of different rows
            rows = first[start : start + step]
            weights = np.zeros((len(rows), grid.shape[1]))
            for child in (i, j):
                stride = strides(nodes[child].scope)
                outer = sum((labels[rows, v] * stride[v] for v in out if v in stride), np.zeros(len(rows), np.int64))
                inner = sum(
                    (grid[p] * stride[v] for p, v in enumerate(removed) if v in stride),
                    np.zeros(grid.shape[1], np.int64),
                )
                entries = nodes[child].values.reshape(-1)[outer[:, None] + inner[None]]
                with np.errstate(divide="ignore"):
                    weights += entries if nodes[child].logs else np.log(entries)
            members = np.flatnonzero((row >= start) & (row < start + len(rows)))
            chosen = pick(weights, row[members] - start)
            for p, v in enumerate(removed):
                labels[members, v] = grid[p, chosen]
    return labels


def largest(weights: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The best joint value of every row."""
    return np.argmax(weights, axis=1)[row]


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


def refuse_impossible(log_z: float) -> None:
    if log_z == -math.inf:
        raise ValueError("no state is possible: Z = 0. Check the evidence and the tables' zeros")
