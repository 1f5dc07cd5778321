"""The product of two tables, reduced to some of their variables: axes are classified first, then one of three kernels is used.

Most of the time of an exact sum is spent here. Small products are one call of einsum. Large ones are matrix products where enough is summed, and
broadcast products otherwise, in few long axes and in blocks that stay in a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lnz._graphs.broadcast import long_tail, merged_axes
from lnz._graphs.contraction_plan import SMALL, Scope, is_product

CHUNK = 2**14  # entries of a block that stays in a processor's cache


class Algebra(NamedTuple):
    """How entries are combined and how a variable is removed."""

    combine: np.ufunc
    reduce: np.ufunc


SUM = Algebra(np.multiply, np.add)
LOG_SUM = Algebra(np.add, np.logaddexp)
MAX = Algebra(np.add, np.maximum)


class Factor(NamedTuple):
    """An array and the variables of its axes."""

    values: np.ndarray
    scope: Scope


class _Roles(NamedTuple):
    """The roles of the variables of two tables in their product.

    Attributes:
        summed: in both, and summed out.
        both: in both, and kept.
        left, right: in the first alone, and in the second alone; all kept.
        kept: those of the first that are kept, in its order.
    """

    summed: Scope
    both: Scope
    left: Scope
    right: Scope
    kept: Scope


def reduce_product(
    algebra: Algebra, a: np.ndarray, a_scope: Scope, b: np.ndarray, b_scope: Scope, out: Scope, sizes: Sequence[int]
) -> Factor:
    """Two tables combined, and reduced to the variables of `out`, in an order that spares copies."""
    small = _small(a, a_scope, b, b_scope, out, sizes) if algebra is SUM else None
    if small is not None:
        return small
    first = _without_private(algebra, Factor(a, a_scope), {*out, *b_scope})
    second = _without_private(algebra, Factor(b, b_scope), {*out, *a_scope})
    if second.values.size > first.values.size:
        first, second = second, first
    roles = _roles(first.scope, second.scope, set(out))
    m, n, k = (math.prod([sizes[v] for v in group]) for group in (roles.left, roles.right, roles.summed))
    if algebra is SUM and is_product(m, n, k):
        made = _matrix_product(first, second, roles, sizes)
    else:
        made = _broadcast_product(algebra, first, second, roles, sizes)
    if len(made.scope) == len(out):
        return made
    rest = tuple(v for v in out if v not in made.scope)  # variables in neither table
    wide = made.values.reshape(*made.values.shape, *(1 for _ in rest))
    scope = made.scope + rest
    return Factor(np.broadcast_to(wide, [sizes[v] for v in scope]), scope)


def _small(
    a: np.ndarray, a_scope: Scope, b: np.ndarray, b_scope: Scope, out: Scope, sizes: Sequence[int]
) -> Factor | None:
    """A small product, in one call of einsum; None for a larger one."""
    if a.size * b.size > SMALL**2:
        return None
    place = {v: axis for axis, v in enumerate(dict.fromkeys(a_scope + b_scope))}
    if math.prod([sizes[v] for v in place]) > SMALL or not all(v in place for v in out):
        return None
    x, y, z = ([place[v] for v in scope] for scope in (a_scope, b_scope, out))
    return Factor(np.einsum(a, x, b, y, z), out)


def _without_private(algebra: Algebra, table: Factor, kept: set[int]) -> Factor:
    """The table reduced over its variables that are not kept."""
    values, scope = table
    axes = tuple(axis for axis, v in enumerate(scope) if v not in kept)
    if not axes:
        return table
    rest = [axis for axis in range(len(scope)) if axis not in axes]
    moved = values.transpose(*axes, *rest).reshape(-1, *(values.shape[axis] for axis in rest))
    return Factor(algebra.reduce.reduce(moved, axis=0), tuple(scope[axis] for axis in rest))


def _roles(first: Scope, second: Scope, wanted: set[int]) -> _Roles:
    in_first, in_second = set(first), set(second)
    kept = tuple(v for v in first if v in wanted)
    return _Roles(
        summed=tuple(v for v in first if v in in_second and v not in wanted),
        both=tuple(v for v in kept if v in in_second),
        left=tuple(v for v in kept if v not in in_second),
        right=tuple(v for v in second if v not in in_first),
        kept=kept,
    )


def _matrix_product(first: Factor, second: Factor, roles: _Roles, sizes: Sequence[int]) -> Factor:
    x = _matrices(first, roles.both, roles.left, roles.summed, sizes)
    y = _matrices(second, roles.both, roles.right, roles.summed, sizes)
    scope = (*roles.both, *roles.left, *roles.right)
    return Factor(np.matmul(x, y.swapaxes(1, 2)).reshape([sizes[v] for v in scope]), scope)


def _matrices(table: Factor, both: Scope, own: Scope, summed: Scope, sizes: Sequence[int]) -> np.ndarray:
    """The table as a stack of matrices (both, own, summed): copied only where its axes are mixed, and then along its last axis."""
    values, scope = table
    m, k = math.prod(sizes[v] for v in own), math.prod(sizes[v] for v in summed)
    if scope and scope[-1] in own:
        return permuted(values, scope, (*both, *summed, *own)).reshape(-1, k, m).swapaxes(1, 2)
    return permuted(values, scope, (*both, *own, *summed)).reshape(-1, m, k)


def _broadcast_product(algebra: Algebra, first: Factor, second: Factor, roles: _Roles, sizes: Sequence[int]) -> Factor:
    scope = (*roles.right, *roles.kept)  # the larger table stays in one piece
    x, y = (_aligned(table, roles.summed, scope, sizes) for table in (first, second))
    shape, k = [sizes[v] for v in scope], len(x)
    if k * math.prod(shape) <= 1024:
        made = algebra.combine(x[0], y[0]) if k == 1 else algebra.reduce.reduce(algebra.combine(x, y), axis=0)
        return Factor(made, scope)
    return Factor(_sum_of_products(algebra, *_in_few_axes(x, y)).reshape(shape), scope)


def _aligned(table: Factor, summed: Scope, present: Scope, sizes: Sequence[int]) -> np.ndarray:
    """The table with its summed variables as one axis in front, then one axis per variable of the result, of length 1 where it lacks it."""
    inside = set(table.scope)
    values = permuted(table.values, table.scope, [*summed, *(v for v in present if v in inside)])
    front = math.prod(sizes[v] for v in summed)
    return values.reshape([front, *(sizes[v] if v in inside else 1 for v in present)])


def _in_few_axes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two with as few axes as possible, and a last axis that is long enough for a vector loop."""
    shape = [max(i, j) for i, j in zip(x.shape[1:], y.shape[1:], strict=True)]
    tail, most = long_tail(shape), len(x) * math.prod(shape) // 4
    x, y = _repeated(x, shape, tail, most), _repeated(y, shape, tail, most)
    kinds = [(i > 1, j > 1) for i, j in zip(x.shape[1:], y.shape[1:], strict=True)]
    lengths, kinds = merged_axes(shape, kinds)
    return (
        x.reshape([len(x), *(length if one else 1 for length, (one, _) in zip(lengths, kinds, strict=True))]),
        y.reshape([len(y), *(length if other else 1 for length, (_, other) in zip(lengths, kinds, strict=True))]),
    )


def _repeated(x: np.ndarray, shape: Sequence[int], tail: int, most: int) -> np.ndarray:
    """The table with its last axes repeated to their full lengths where it has some of them, unless that takes too many entries."""
    inner, run = x.shape[1 + tail :], math.prod(shape[tail:])
    has = math.prod(inner)
    if 1 < has < run and x.size * (run // has) <= most:
        return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[: 1 + tail], *shape[tail:])))
    return x


def _sum_of_products(algebra: Algebra, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_k x[k] y[k], with broadcasting."""
    combine, reduce = algebra
    k = len(x)
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


def permuted(table: np.ndarray, scope: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """The table with its axes in another order of its variables."""
    if len(order) == len(scope) and all(map(int.__eq__, scope, order)):
        return table
    place = {v: axis for axis, v in enumerate(scope)}
    return np.transpose(table, [place[v] for v in order])


def spread(table: np.ndarray, scope: Scope, wide: Scope) -> np.ndarray:
    """The table with one axis per variable of `wide`, in its order, of length 1 for those that it lacks."""
    length = dict(zip(scope, table.shape, strict=True))
    inside = permuted(table, scope, [v for v in wide if v in length])
    return inside.reshape([length.get(v, 1) for v in wide])
