"""Σ over the even subgraphs of a graph in the plane, of the product of their edges' weights: a Pfaffian, by nested dissection."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Parts of this many vertices are eliminated at once.
_LEAF = 12
# Vertices of more neighbours are drawn out into a chain, so that the matrix stays sparse.
_CHAIN = 6


class Summed(NamedTuple):
    """What one pass up and down the tree gives.

    Attributes:
        log_total: log Σ_{even subgraphs} Π w.
        used: for every edge the share of the sum whose subgraphs have it, w ∂ log_total / ∂w.
        rounding: what float64 may have changed log_total by, roughly and rather more than less.
    """

    log_total: float
    used: np.ndarray
    rounding: float


class _Part(NamedTuple):
    """A part of the dissection: its half-edges in the order (eliminated, left over), and where its children's stand in that order."""

    inside: np.ndarray
    boundary: np.ndarray
    children: tuple[int, ...]
    places: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Dissected:
    """A graph in the plane, its signs, and the order of elimination. Edge k has the half-edges 2k and 2k + 1, each at its own vertex.

    For every even subgraph the matrix X + W S has one positive term: X joins the halves of an edge with a sign ±1 that makes every face
    come out right (Kasteleyn), S joins the half-edges of a vertex, +1 above the diagonal in the order around it and -1 below, W is the
    weight of a half-edge's edge. Its determinant is the square of the sum. Any set of whole edges has a principal minor that is the same
    sum over fewer edges, at least 1 where weights are positive, so that blocks of edges can be eliminated in any order.
    """

    edges: int
    vertex: np.ndarray
    place: np.ndarray
    sign: np.ndarray
    parts: tuple[_Part, ...]

    def total(self, log_weight: np.ndarray) -> Summed:
        """The sum for positive weights exp(log_weight), one an edge, and every edge's share in it. NaN where rounding leaves nothing."""
        from scipy.linalg import get_lapack_funcs

        getrf, getrs = get_lapack_funcs(("getrf", "getrs"), dtype=np.float64)
        own = np.zeros(len(self.sign))
        own[: self.edges] = log_weight
        # Rows are divided by the larger of 1 and w, so that nothing overflows.
        cross = np.repeat(np.exp(np.minimum(0, -own)), 2) * np.stack([self.sign, -self.sign], axis=1).ravel()
        weight = np.repeat(np.exp(np.minimum(0, own)), 2)
        log_total, eps = float(np.maximum(own, 0).sum()), np.finfo(np.float64).eps
        kept: list[tuple[np.ndarray, ...]] = []
        left: list[np.ndarray] = []
        for part in self.parts:
            front = self._front(part, left, weight, cross)
            m = len(part.inside)
            noise, solved = np.abs(front), np.concatenate([np.eye(m), front[:m, m:]], axis=1)
            if m:
                factors, swaps, failed = getrf(front[:m, :m])
                if failed:
                    return Summed(np.nan, np.full(self.edges, np.nan), np.inf)
                lower, upper = np.tril(factors, -1) + np.eye(m), np.triu(factors)
                log_total += 0.5 * float(np.log(np.abs(factors.diagonal())).sum())
                solved = getrs(factors, swaps, solved)[0]
                noise[_rows(swaps), :m] = np.abs(lower) @ np.abs(upper)
            inverse, onto = solved[:, :m], solved[:, m:]
            back = front[m:, :m] @ inverse
            left.append(front[m:, m:] - front[m:, :m] @ onto)
            noise[m:, m:] += np.abs(front[m:, :m]) @ np.abs(onto)
            kept.append((inverse, onto, back, noise))
        used, moved = np.zeros(2 * len(self.sign)), 0.0
        below: dict[int, np.ndarray] = {}
        for number in range(len(self.parts) - 1, -1, -1):
            part, (inverse, onto, back, noise) = self.parts[number], kept[number]
            outer = below.pop(number, np.zeros((len(part.boundary),) * 2))
            whole = np.block([[inverse + onto @ outer @ back, -onto @ outer], [-outer @ back, outer]])
            moved += float(np.sum((np.abs(whole.T) * noise) ** 2))
            for child, places in zip(part.children, part.places, strict=True):
                below[child] = whole[np.ix_(places, places)]
            if not part.children:
                here = np.concatenate([part.inside, part.boundary])
                used[here] = weight[here] * np.einsum("ab,ba->a", self._within(here), whole)
            kept[number] = ()
        share = 0.5 * (used[::2] + used[1::2])[: self.edges]
        return Summed(log_total, share, 4 * eps * (moved**0.5 + np.abs(log_weight).max(initial=0) + abs(log_total)))

    def _within(self, here: np.ndarray) -> np.ndarray:
        """S: the signs between half-edges of one vertex."""
        same = self.vertex[here][:, None] == self.vertex[here][None]
        return np.where(same, np.sign(self.place[here][None] - self.place[here][:, None]), 0).astype(float)

    def _front(self, part: _Part, left: list[np.ndarray], weight: np.ndarray, cross: np.ndarray) -> np.ndarray:
        here = np.concatenate([part.inside, part.boundary])
        if part.children:
            front = np.zeros((len(here), len(here)))
            for child, places in zip(part.children, part.places, strict=True):
                front[np.ix_(places, places)] = left[child]
                left[child] = np.zeros(0)
        else:
            front = weight[here][:, None] * self._within(here)
        rows = np.arange(len(part.inside))
        front[rows, rows ^ 1] += cross[part.inside]
        return front


def _rows(swaps: np.ndarray) -> np.ndarray:
    """The rows that LAPACK's exchanges bring into order."""
    rows = np.arange(len(swaps))
    for i, j in enumerate(swaps):
        rows[i], rows[j] = rows[j], rows[i]
    return rows


def dissect(after: np.ndarray) -> Dissected:
    """Signs and order for a graph in the plane: `after[h]` is the half-edge that follows h around its vertex.

    Raises ValueError where the rotations are not those of a graph in the plane.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = len(after) // 2
    after = _chained(np.asarray(after, np.int64))
    vertex, place = orbits(after)
    n, faces = (int(x.max(initial=-1)) + 1 for x in (vertex, orbits(dual(after))[0]))
    graph = coo_array((np.ones(len(after) // 2), (vertex[::2], vertex[1::2])), shape=(n, n))
    components = connected_components(graph, directed=False, return_labels=False) if n else 0
    if n - len(after) // 2 + faces != 2 * components:
        raise ValueError("the rotations are not those of a graph in the plane: Euler's formula does not hold")
    sign = _signs(after, place)
    return Dissected(edges, vertex, place, sign, tuple(_parts(vertex)))


def orbits(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation: for every element its cycle's number and its place in it, from the cycle's smallest element on."""
    number, place, following = [-1] * len(step), [0] * len(step), step.tolist()
    count = 0
    for start in range(len(step)):
        h, i = start, 0
        while number[h] < 0:
            number[h], place[h] = count, i
            h, i = following[h], i + 1
        count += i > 0
    return np.array(number, np.int64), np.array(place, np.int64)


def dual(after: np.ndarray) -> np.ndarray:
    """The rotations of the dual graph, whose vertices are the faces: edge k crosses edge k."""
    return after[np.arange(len(after)) ^ 1]


def _chained(after: np.ndarray) -> np.ndarray:
    """The same graph with its large vertices drawn out into chains by edges of weight 1, which leaves the sum as it is."""
    vertex, place = orbits(after)
    result, new = after.tolist(), len(after)
    order = np.lexsort((place, vertex))
    for around in np.split(order, np.flatnonzero(np.diff(vertex[order])) + 1):
        if len(around) <= _CHAIN:
            continue
        groups = [around[i : i + 2].tolist() for i in range(0, len(around), 2)]
        for i in range(len(groups) - 1):
            groups[i].append(new + 2 * i)
            groups[i + 1].insert(0, new + 2 * i + 1)
        result.extend([0] * (2 * len(groups) - 2))
        new += 2 * len(groups) - 2
        for group in groups:
            for h, following in zip(group, group[1:] + group[:1], strict=True):
                result[h] = following
    return np.array(result, np.int64)


def _signs(after: np.ndarray, place: np.ndarray) -> np.ndarray:
    """One sign an edge, so that along every face the signs of the steps multiply to -1."""
    h = np.arange(len(after))
    out = after[h ^ 1]
    face, _ = orbits(out)
    wraps = place[out] <= place[h ^ 1]
    right = np.bincount(face, weights=wraps + h % 2, minlength=1).astype(int) % 2 == 1
    wrong, sign = (~right).tolist(), np.ones(len(after) // 2)
    beside: list[list[tuple[int, int]]] = [[] for _ in wrong]
    for k, (a, b) in enumerate(face.reshape(-1, 2).tolist()):
        beside[a].append((b, k))
        beside[b].append((a, k))
    seen = [False] * len(wrong)
    for root in range(len(wrong) if len(after) else 0):
        if seen[root]:
            continue
        seen[root], tree = True, [(root, -1, -1)]
        for f, _, _ in tree:
            for g, k in beside[f]:
                if not seen[g]:
                    seen[g] = True
                    tree.append((g, f, k))
        for f, parent, k in reversed(tree[1:]):
            if wrong[f]:
                sign[k], wrong[f], wrong[parent] = -1, False, not wrong[parent]
    return sign


def _parts(vertex: np.ndarray) -> list[_Part]:
    """Nested dissection: halves of the vertices, of which the edges between them are eliminated after those within. Children first."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    n, ends = int(vertex.max(initial=-1)) + 1, vertex.reshape(-1, 2)
    graph = csr_array((np.ones(2 * len(ends)), (ends.ravel(), ends[:, ::-1].ravel())), shape=(n, n))
    at = np.split(np.argsort(vertex, kind="stable"), np.cumsum(np.bincount(vertex, minlength=n))[:-1])
    where, parts = np.full(len(vertex), -1), []

    def place_of(part: _Part, halves: np.ndarray) -> np.ndarray:
        where[np.concatenate([part.inside, part.boundary])] = np.arange(len(part.inside) + len(part.boundary))
        return where[halves].copy()

    def build(members: np.ndarray) -> int:
        children: Sequence[int] = ()
        if len(members) > _LEAF:
            sub = graph[members][:, members]
            order = breadth_first_order(sub, 0, return_predecessors=False)
            order = breadth_first_order(sub, order[-1], return_predecessors=False)
            order = np.concatenate([order, np.setdiff1d(np.arange(len(members)), order)])
            half = len(members) // 2
            children = build(members[order[:half]]), build(members[order[half:]])
            halves = np.concatenate([parts[child].boundary for child in children])
        else:
            halves = np.concatenate([at[v] for v in members])
        here = np.isin(halves ^ 1, halves)
        part = _Part(np.sort(halves[here]), halves[~here], tuple(children), ())
        part = part._replace(places=tuple(place_of(part, parts[child].boundary) for child in children))
        parts.append(part)
        return len(parts) - 1

    if n:
        _, label = connected_components(graph, directed=False)
        for members in np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1]):
            build(members)
    return parts
