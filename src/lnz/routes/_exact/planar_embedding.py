"""Planar embeddings, given by the order of the edges around every vertex.

Edge k has the half-edges 2k and 2k + 1, each at its own vertex; `after[h]` is the half-edge that follows h around its vertex.
"""

from __future__ import annotations

import numpy as np


def orbits(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cycles of a permutation: for every element its cycle's number and its place in it, from the cycle's smallest element on."""
    number, place = [-1] * len(step), [0] * len(step)
    following, count = step.tolist(), 0
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


def check_planar(after: np.ndarray) -> None:
    """Raise ValueError where the rotations are not those of a graph in the plane."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    vertex, face = orbits(after)[0], orbits(dual(after))[0]
    n, faces = int(vertex.max(initial=-1)) + 1, int(face.max(initial=-1)) + 1
    edges = len(after) // 2
    graph = coo_array((np.ones(edges), (vertex[::2], vertex[1::2])), shape=(n, n))
    components = connected_components(graph, directed=False, return_labels=False) if n else 0
    if n - edges + faces != 2 * components:
        raise ValueError("the rotations are not those of a graph in the plane: Euler's formula does not hold")


def chained(after: np.ndarray, most: int) -> np.ndarray:
    """The same graph with vertices of more than `most` edges expanded into chains.

    The new edges come last; with weight 1 they leave every sum over even subgraphs unchanged.
    """
    vertex, place = orbits(after)
    result, new = after.tolist(), len(after)
    order = np.lexsort((place, vertex))
    for around in np.split(order, np.flatnonzero(np.diff(vertex[order])) + 1):
        if len(around) <= most:
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


def kasteleyn_signs(after: np.ndarray) -> np.ndarray:
    """One sign per edge, so that along every face the signs of the steps multiply to -1.

    An edge between two faces changes the product of both. So from the leaves of a spanning tree of the faces inwards, the edge to the parent
    corrects each face in turn.

    Source: Kasteleyn 1963, "Dimer statistics and phase transitions".
    """
    h = np.arange(len(after))
    out = after[h ^ 1]
    face, place = orbits(out)[0], orbits(after)[1]
    wraps = place[out] <= place[h ^ 1]
    right = np.bincount(face, weights=wraps + h % 2, minlength=1).astype(int) % 2 == 1
    wrong, sign = (~right).tolist(), np.ones(len(after) // 2)
    for f, parent, k in reversed(_spanning_forest(face.reshape(-1, 2), len(wrong))):
        if wrong[f]:
            sign[k] = -1
            wrong[parent] = not wrong[parent]
    return sign


def _spanning_forest(ends: np.ndarray, n: int) -> list[tuple[int, int, int]]:
    """(node, parent, edge) of every node but the roots, each after its parent."""
    beside: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for k, (a, b) in enumerate(ends.tolist()):
        beside[a].append((b, k))
        beside[b].append((a, k))
    seen, found = [False] * n, []
    for root in range(n):
        if seen[root]:
            continue
        seen[root], queue = True, [root]
        for f in queue:
            for g, k in beside[f]:
                if not seen[g]:
                    seen[g] = True
                    queue.append(g)
                    found.append((g, f, k))
    return found
