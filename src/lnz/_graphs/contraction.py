"""Sums, gradients, maxima and samples over a binary contraction tree, in NumPy and float64.

Tables are kept as numbers times a scale while their entries stay inside the range of a float, and as logarithms where they do not, so that no
possible configuration is rounded to impossible. Zeros stay zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs.contraction_plan import SMALL, ContractionPlan, Scope, is_product

LIMIT = 690.0  # e^±690 is an ordinary float64
DOWN = 3.0  # the downward pass over the upward one, in time, at most
CHUNK = 2**14  # entries of a block that stays in a processor's cache

Done = Callable[[float], None]


class Algebra(NamedTuple):
    """How entries are combined and how a variable is removed."""

    combine: np.ufunc
    reduce: np.ufunc


SUM = Algebra(np.multiply, np.add)
LOG_SUM = Algebra(np.add, np.logaddexp)
MAX = Algebra(np.add, np.maximum)


class Table(NamedTuple):
    """Entries e^scale · values, where every positive value lies in [e^low, e^high]; or, where `logs`, their logarithms scale + values.

    `scope` names the variables of the axes, in whatever order they came out. `batch` is the one that numbers the members of a batch of
    models, or -1: no step sums it out, and every member has a scale of its own. Complex values carry derivatives (see `batch`).
    """

    values: np.ndarray
    scope: Scope
    scale: Any = 0.0
    low: float = 0.0
    high: float = 0.0
    logs: bool = False
    batch: int = -1


def from_logs(logs: np.ndarray, scope: Scope, scale: Any = 0.0, batch: int = -1) -> Table:
    """A table from log entries: as numbers where their range allows it. The values are centred in the range of a float."""
    bottom, top = _span(np.real(logs), scope, batch, -math.inf)
    half = 0.5 * (top - bottom)
    widest = half if batch < 0 else float(half.max())
    if widest > LIMIT:
        return Table(logs - top, scope, scale + _flat(top), logs=True, batch=batch)
    middle = 0.5 * (top + bottom)
    return Table(np.exp(logs - middle), scope, scale + _flat(middle), -widest, widest, batch=batch)


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
    """A number, or one for every member."""
    return scale.reshape(-1) if isinstance(scale, np.ndarray) else scale


def to_logs(table: Table) -> Table:
    if table.logs:
        return table
    with np.errstate(divide="ignore"):
        return table._replace(values=np.log(table.values), logs=True)


def log_total(table: Table) -> Any:
    """The logarithm of the tree's result, a scalar: of every member."""
    root = to_logs(table)
    return np.real(root.values) + root.scale


def _centred(table: Table) -> Table:
    """The same table with its range measured and its values in the middle of a float's range."""
    bottom, top = _span(np.real(table.values), table.scope, table.batch, 0.0)
    middle, half = 0.5 * (top + bottom), 0.5 * (top - bottom)
    widest = half if table.batch < 0 else float(half.max())
    values = table.values * (math.exp(-middle) if table.batch < 0 else np.exp(-middle))
    scale = table.scale + _flat(middle)
    return table._replace(values=values, scale=scale, low=-widest, high=widest)


def compatible(a: Table, b: Table, terms: float) -> tuple[Table, Table]:
    """Both tables as numbers whose products stay in a float's range, and sums of e^terms of them; or both as logarithms."""
    if not a.logs and not b.logs:
        if a.low + b.low < -LIMIT or a.high + b.high + terms > LIMIT:
            a, b = _centred(a), _centred(b)
        if a.low + b.low >= -LIMIT and a.high + b.high + terms <= LIMIT:
            return a, b
    if np.iscomplexobj(a.values) or np.iscomplexobj(b.values):
        raise ValueError(
            "second derivatives are not served where the entries of a table differ by more than a factor e^1380: make the log-potentials "
            "smaller, or write -inf for what is impossible"
        )
    return to_logs(a), to_logs(b)


def contract(a: Table, b: Table, out: Scope, sizes: Sequence[int]) -> Table:
    """The product of two tables, summed over the variables that `out` does not name. The order of the result's axes is its own."""
    gone = {*a.scope, *b.scope}.difference(out)
    terms, batch = sum(math.log(sizes[v]) for v in gone), max(a.batch, b.batch)
    a, b = compatible(a, b, terms)
    values, scope = reduce_product(LOG_SUM if a.logs else SUM, a.values, a.scope, b.values, b.scope, out, sizes)
    if a.logs:
        return from_logs(values, scope, a.scale + b.scale, batch)
    return Table(values, scope, a.scale + b.scale, a.low + b.low, a.high + b.high + terms, batch=batch)


def reduce_product(
    algebra: Algebra, a: np.ndarray, a_scope: Scope, b: np.ndarray, b_scope: Scope, out: Scope, sizes: Sequence[int]
) -> tuple[np.ndarray, Scope]:
    """Two tables combined, and reduced to the variables of `out`, in an order that spares copies: the table and its variables."""
    if algebra is SUM and a.size * b.size <= SMALL**2:
        place = {v: axis for axis, v in enumerate(dict.fromkeys(a_scope + b_scope))}
        if math.prod([sizes[v] for v in place]) <= SMALL and all(v in place for v in out):
            x, y, z = ([place[v] for v in scope] for scope in (a_scope, b_scope, out))
            return np.einsum(a, x, b, y, z), out
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
    out = np.empty(shape, np.result_type(x, y))
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
    term = np.empty_like(out)
    for i in range(1, len(x)):
        combine(x[i], y[i], out=term)
        reduce(out, term, out=out)


def upward(
    plan: ContractionPlan, leaves: Sequence[Table], sizes: Sequence[int], *, keep: bool, done: Done | None = None
) -> list[Any]:
    """The tables of all nodes of the tree, the last one a scalar: Z. Without `keep`, tables are freed once they are used.

    `done` is told the predicted seconds of every step that has been made.
    """
    nodes: list[Any] = list(leaves)
    for (i, j, out, _), seconds in zip(plan.steps, plan.step_seconds, strict=True):
        nodes.append(contract(nodes[i], nodes[j], out, sizes))
        if not keep:
            nodes[i] = nodes[j] = None
        if done is not None:
            done(seconds)
    return nodes


def downward(
    plan: ContractionPlan, nodes: list[Any], sizes: Sequence[int], *, done: Done | None = None
) -> list[np.ndarray]:
    """The belief of every leaf, P(x_scope), by reverse mode over the same tree: ∂Z/∂left is ∂Z/∂out times right. All zero where Z is.

    The tables of inner nodes are dropped from the list once they have been used. `done` is told the predicted seconds of every step that
    has been made, DOWN times those of the way up.
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
        if done is not None:
            done(DOWN * plan.step_seconds[s])
    beliefs = []
    for a, b in zip(outer[:leaves], nodes[:leaves], strict=True):
        a = a._replace(values=permuted(a.values, a.scope, b.scope))
        if a.logs or b.logs or a.low + b.low < -LIMIT or a.high + b.high > LIMIT:
            logs = to_logs(a).values + to_logs(b).values
            values = np.exp(logs - _span(np.real(logs), b.scope, b.batch, -math.inf)[1])
        else:
            values = a.values * b.values
        if b.batch < 0:
            total = values.sum()
        else:
            total = values.sum(axis=_own_axes(b.scope, b.batch), keepdims=True)
            total[total == 0] = 1
        beliefs.append(values / total if total.all() else np.zeros(values.shape))
    return beliefs


def upward_max(
    plan: ContractionPlan, leaves: Sequence[np.ndarray], sizes: Sequence[int], *, done: Done | None = None
) -> list[Table]:
    """As `upward`, of maxima: tables of log-potentials in, the largest total at the root."""
    nodes = [Table(table, scope, logs=True) for table, scope in zip(leaves, plan.scopes, strict=False)]
    for (i, j, out, _), seconds in zip(plan.steps, plan.step_seconds, strict=True):
        a, b = nodes[i], nodes[j]
        values, scope = reduce_product(MAX, a.values, a.scope, b.values, b.scope, out, sizes)
        nodes.append(Table(values, scope, logs=True))
        if done is not None:
            done(seconds)
    return nodes


def descend(
    plan: ContractionPlan,
    nodes: Sequence[Table],
    sizes: Sequence[int],
    count: int,
    pick: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Labels (count, variables), top down: given a node's own variables, `pick` takes the joint value of those it summed out.

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
        row, step = row.reshape(-1), max(1, 2**22 // grid.shape[1])
        for start in range(0, len(first), step):  # blocks of different rows
            rows = first[start : start + step]
            weights = _log_weights((nodes[i], nodes[j]), out, removed, grid, labels[rows], sizes)
            members = np.flatnonzero((row >= start) & (row < start + len(rows)))
            labels[members[:, None], list(removed)] = grid[:, pick(weights, row[members] - start)].T
    return labels


def descend_best(
    plan: ContractionPlan, nodes: Sequence[Table], sizes: Sequence[int], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n most probable configurations, best first: labels (rows, variables) and their log-weights. Fewer where fewer are possible.

    Top down, what stands below the root says exactly how good the best completion of a partial configuration is: its total, less what every
    choice so far gave away. So the n best partial configurations of every step are enough.

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
        step, made, values = max(1, 2**22 // grid.shape[1]), [labels[:0]], [totals[:0]]
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
    """Where the n largest values above -inf are, the largest first."""
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
    """All of them (variables, joint values)."""
    return np.indices([sizes[v] for v in variables]).reshape(len(variables), -1)


def _log_weights(
    children: tuple[Table, Table],
    out: Scope,
    removed: Scope,
    grid: np.ndarray,
    labels: np.ndarray,
    sizes: Sequence[int],
) -> np.ndarray:
    """Of the joint values that a step removed, given the labels of its own variables: (rows, joint values)."""
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


def refuse_impossible(log_z: float) -> None:
    if log_z == -math.inf:
        raise ValueError("no state is possible: Z = 0. Check the evidence and the tables' zeros")
