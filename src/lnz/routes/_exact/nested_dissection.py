"""Determinant and inverse of a sparse matrix by nested dissection, in NumPy, with an estimate of the rounding error.

The rows of the matrix are the half-edges of a graph: edge k has the rows 2k and 2k + 1. Rows are joined where their half-edges are at one vertex, or
belong to one edge. Blocks of whole edges are eliminated, so every block of whole edges must be regular.

Source: Lipton, Rose, Tarjan 1979, "Generalized nested dissection"; Erisman, Tinney 1975 for the entries of the inverse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

_LEAF = 12  # vertices whose edges are eliminated at once


class Part(NamedTuple):
    """A part of the dissection.

    Attributes:
        inside: rows that are eliminated here: the edges that lie within the part, but within none of its children.
        boundary: rows that remain: the part's halves of the edges that leave it.
        children: indices of the parts of which it consists.
        places: the positions of each child's boundary in this part's `rows`.
    """

    inside: np.ndarray
    boundary: np.ndarray
    children: tuple[int, ...]
    places: tuple[np.ndarray, ...]

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([self.inside, self.boundary])


class Step(NamedTuple):
    """A part's block [[A, B], [C, D]] over (inside, boundary) after A is eliminated.

    Attributes:
        inverse: A⁻¹.
        onto: A⁻¹ B.
        back: C A⁻¹.
        rest: D - C A⁻¹ B, which is added to the parent.
        log_determinant: log |det A|.
        size: for every entry of the block, the sum of magnitudes of its terms: its rounding error in units of the machine's precision.
    """

    inverse: np.ndarray
    onto: np.ndarray
    back: np.ndarray
    rest: np.ndarray
    log_determinant: float
    size: np.ndarray


def dissected(vertex: np.ndarray) -> tuple[Part, ...]:
    """Nested dissection of a graph, given the vertex of every half-edge: children first.

    The vertices are halved; edges between the halves are eliminated after those within.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n, ends = int(vertex.max(initial=-1)) + 1, vertex.reshape(-1, 2)
    if not n:
        return ()
    graph = csr_array((np.ones(2 * len(ends)), (ends.ravel(), ends[:, ::-1].ravel())), shape=(n, n))
    rows_of = np.split(np.argsort(vertex, kind="stable"), np.cumsum(np.bincount(vertex, minlength=n))[:-1])
    parts: list[Part] = []
    label = connected_components(graph, directed=False)[1]
    for members in np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1]):
        _dissect(graph, rows_of, members, parts)
    return tuple(parts)


def _dissect(graph: Any, rows_of: Sequence[np.ndarray], members: np.ndarray, parts: list[Part]) -> int:
    """Append the parts of these vertices, and return the index of the last, which has them all."""
    if len(members) > _LEAF:
        children = tuple(_dissect(graph, rows_of, half, parts) for half in _halves(graph, members))
        rows = np.concatenate([parts[child].boundary for child in children])
    else:
        children, rows = (), np.concatenate([rows_of[v] for v in members])
    within = np.isin(rows ^ 1, rows)
    part = Part(np.sort(rows[within]), rows[~within], children, ())
    order = np.argsort(part.rows)
    places = (order[np.searchsorted(part.rows, parts[child].boundary, sorter=order)] for child in children)
    parts.append(part._replace(places=tuple(places)))
    return len(parts) - 1


def _halves(graph: Any, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearer and the farther half of some vertices, by distance from one at their rim, with few edges between the halves."""
    from scipy.sparse.csgraph import breadth_first_order

    sub = graph[members][:, members]
    order = breadth_first_order(sub, 0, return_predecessors=False)
    order = breadth_first_order(sub, order[-1], return_predecessors=False)
    order = np.concatenate([order, np.setdiff1d(np.arange(len(members)), order)])
    half = len(members) // 2
    return members[order[:half]], members[order[half:]]


def eliminated(parts: Sequence[Part], entries: Callable[[Part], np.ndarray]) -> list[Step] | None:
    """One step per part, children first, or None where a block is singular.

    Args:
        entries: the entries of the matrix that a part adds: all over the rows of a part without children, and for others those over the inside
            that join its children. It returns a new array over the part's rows.
    """
    steps: list[Step] = []
    for part in parts:
        front = entries(part)
        for child, places in zip(part.children, part.places, strict=True):
            front[np.ix_(places, places)] += steps[child].rest
            steps[child] = steps[child]._replace(rest=np.zeros(0))
        step = _eliminate(front, len(part.inside))
        if step is None:
            return None
        steps.append(step)
    return steps


def inverse_blocks(parts: Sequence[Part], steps: list[Step]) -> Iterator[tuple[Part, Step, np.ndarray]]:
    """Every part, its step, and the block of the inverse over its rows; parents first. The list of steps is consumed, to free memory."""
    outer_of: dict[int, np.ndarray] = {}
    for number in range(len(parts) - 1, -1, -1):
        part, step = parts[number], steps.pop()
        outer = outer_of.pop(number, np.zeros((len(part.boundary),) * 2))
        onto, back = step.onto, step.back
        whole = np.block([[step.inverse + onto @ outer @ back, -onto @ outer], [-outer @ back, outer]])
        for child, places in zip(part.children, part.places, strict=True):
            outer_of[child] = whole[np.ix_(places, places)]
        yield part, step, whole


@functools.cache
def _lapack() -> tuple[Any, Any]:
    from scipy.linalg import get_lapack_funcs

    getrf, getrs = get_lapack_funcs(("getrf", "getrs"), dtype=np.float64)
    return getrf, getrs


def _eliminate(front: np.ndarray, m: int) -> Step | None:
    """The step of a block whose first m rows are inside; None where they are singular."""
    size, log_determinant = np.abs(front), 0.0
    solved = np.concatenate([np.eye(m), front[:m, m:]], axis=1)
    if m:
        getrf, getrs = _lapack()
        factors, swaps, failed = getrf(front[:m, :m])
        if failed:
            return None
        lower, upper = np.tril(factors, -1) + np.eye(m), np.triu(factors)
        log_determinant = float(np.log(np.abs(factors.diagonal())).sum())
        solved = getrs(factors, swaps, solved)[0]
        size[_rows_in_order(swaps), :m] = np.abs(lower) @ np.abs(upper)
    inverse, onto = solved[:, :m], solved[:, m:]
    size[m:, m:] += np.abs(front[m:, :m]) @ np.abs(onto)
    rest = front[m:, m:] - front[m:, :m] @ onto
    return Step(inverse, onto, front[m:, :m] @ inverse, rest, log_determinant, size)


def _rows_in_order(swaps: np.ndarray) -> np.ndarray:
    """The permutation of rows by LAPACK's exchanges."""
    rows = np.arange(len(swaps))
    for i, j in enumerate(swaps):
        rows[i], rows[j] = rows[j], rows[i]
    return rows
