"""The sum over the even subgraphs of a planar graph of the products of their edges' weights, as a Pfaffian."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from lnz.routes._exact.nested_dissection import Part, dissected, eliminated, inverse_blocks
from lnz.routes._exact.planar_embedding import chained, check_planar, kasteleyn_signs, orbits

_CHAIN = 6  # vertices with more neighbours are expanded into a chain, so that the matrix stays sparse


class Summed(NamedTuple):
    """The results of one pass up and down the dissection.

    Attributes:
        log_total: log Σ_{even subgraphs} Π w.
        used: for every edge the share of the sum from subgraphs with it, w ∂ log_total / ∂w.
        rounding: a rough and generous estimate of the rounding error of log_total.
    """

    log_total: float
    used: np.ndarray
    rounding: float


@dataclasses.dataclass(frozen=True, eq=False)
class EvenSubgraphs:
    """A graph in the plane, its signs, and the order of elimination.

    For every even subgraph the matrix X + W S has one positive term: X joins the halves of an edge with a sign ±1 that satisfies Kasteleyn's
    condition at every face, S joins the half-edges of a vertex, +1 above the diagonal in the order around it and -1 below, W is the
    weight of a half-edge's edge. Its determinant is the square of the sum. Any set of whole edges has a principal minor that is the same
    sum over fewer edges, at least 1 where weights are positive, so that blocks of edges can be eliminated in any order.

    Attributes:
        edges: the number of edges with weights; those that expand vertices come after them.
        vertex, place: of every half-edge its vertex, and its place in the order around it.
        sign: the sign of every edge.
        parts: the dissection.
    """

    edges: int
    vertex: np.ndarray
    place: np.ndarray
    sign: np.ndarray
    parts: tuple[Part, ...]

    def total(self, log_weight: np.ndarray) -> Summed:
        """The sum for positive weights exp(log_weight), one per edge, and every edge's share in it. NaN where rounding leaves nothing."""
        own = np.zeros(len(self.sign))
        own[: self.edges] = log_weight
        # The two rows of an edge are divided by the larger of 1 and w, so that nothing overflows.
        cross = np.repeat(np.exp(np.minimum(0, -own)), 2) * np.stack([self.sign, -self.sign], axis=1).ravel()
        weight = np.repeat(np.exp(np.minimum(0, own)), 2)
        log_total = float(np.maximum(own, 0).sum())
        steps = eliminated(self.parts, lambda part: self._entries(part, weight, cross))
        if steps is None:
            return Summed(np.nan, np.full(self.edges, np.nan), np.inf)
        for step in steps:
            log_total += 0.5 * step.log_determinant
        used, moved = np.zeros(2 * len(self.sign)), 0.0
        for part, step, inverse in inverse_blocks(self.parts, steps):
            # ∂ log det / ∂ entry is the inverse's entry, transposed; roundings of the entries count as independent.
            moved += float(np.sum((np.abs(inverse.T) * step.size) ** 2))
            if not part.children:
                rows = part.rows
                used[rows] = weight[rows] * np.einsum("ab,ba->a", self._within(rows), inverse)
        share = 0.5 * (used[::2] + used[1::2])[: self.edges]
        rounding = moved**0.5 + np.abs(log_weight).max(initial=0) + abs(log_total)
        return Summed(log_total, share, 4 * np.finfo(np.float64).eps * rounding)

    def _within(self, rows: np.ndarray) -> np.ndarray:
        """S: the signs between half-edges of one vertex."""
        same = self.vertex[rows][:, None] == self.vertex[rows][None]
        return np.where(same, np.sign(self.place[rows][None] - self.place[rows][:, None]), 0).astype(float)

    def _entries(self, part: Part, weight: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """W S of a part's vertices, where it has no children, and X of its inside."""
        rows = part.rows
        entries = np.zeros((len(rows),) * 2) if part.children else weight[rows][:, None] * self._within(rows)
        inside = np.arange(len(part.inside))
        entries[inside, inside ^ 1] += cross[part.inside]
        return entries


def even_subgraphs(after: np.ndarray) -> EvenSubgraphs:
    """The even subgraphs of a graph in the plane, given its rotations (see `planar_embedding`).

    Raises ValueError where the rotations are not those of a graph in the plane.
    """
    edges = len(after) // 2
    after = chained(np.asarray(after, np.int64), _CHAIN)
    check_planar(after)
    vertex, place = orbits(after)
    return EvenSubgraphs(edges, vertex, place, kasteleyn_signs(after), dissected(vertex))
