"""Colour classes: sites of one class do not interact, so that a Gibbs sweep can draw all of them at once."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lnz._core.frozen import Frozen

Blocks = Sequence[Sequence[int] | np.ndarray]


@functools.lru_cache(maxsize=64)
def colour_classes(edges: Frozen, n: int) -> tuple[np.ndarray, ...]:
    """Classes of the sites 0 … n-1 without an edge (m, 2) inside a class; single sites are moved to even out the sizes."""
    import networkx

    ends = edges.value.reshape(-1, 2)
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, j) for i, j in ends.tolist() if i != j)
    colour = networkx.greedy_color(graph, strategy="DSATUR" if n <= 2000 else "largest_first")
    number = np.array([colour[i] for i in range(n)], int)
    sizes = np.bincount(number, minlength=1)
    for i in range(n):
        free = sizes + n * np.isin(np.arange(len(sizes)), number[list(graph[i])])
        least = int(free.argmin())
        if sizes[number[i]] > free[least] + 1:
            sizes[number[i]] -= 1
            sizes[least] += 1
            number[i] = least
    return tuple(np.flatnonzero(number == c) for c in range(len(sizes)))


def lattice_colours(shape: tuple[int, ...], closed: tuple[bool, ...]) -> np.ndarray:
    """A colour for every site of a hypercubic lattice: two colours, or three where a closed axis is odd.

    An odd ring is coloured 0 1 0 1 … 2; the sum of the axes' colours modulo 3 differs wherever one of them does.
    """
    odd = [c and length % 2 == 1 for c, length in zip(closed, shape, strict=True)]
    axes = [np.arange(length) % 2 for length in shape]
    for axis, colour in zip(odd, axes, strict=True):
        colour[-1] = 2 if axis else colour[-1]
    total = functools.reduce(np.add.outer, axes)
    return total % (3 if any(odd) else 2)


def block_problem(blocks: Blocks, edges: np.ndarray, n: int) -> str | None:
    """Why these blocks cannot be drawn one after the other, the sites of each in parallel, in words, or None."""
    sites = np.concatenate([np.zeros(0, int), *(np.asarray(block, int) for block in blocks)])
    if len(sites) and (sites.min() < 0 or sites.max() >= n):
        return f"a block names site {sites[(sites < 0) | (sites >= n)][0]}, but the sites are 0 … {n - 1}"
    counts = np.bincount(sites, minlength=n)
    if (counts != 1).any():
        site = int(np.flatnonzero(counts != 1)[0])
        return f"site {site} is in {counts[site] or 'no'} block{'s' if counts[site] > 1 else ''}: every site must be in one"
    block_of = np.empty(n, int)
    block_of[sites] = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    ends = edges.reshape(-1, 2)
    inside = ends[(block_of[ends[:, 0]] == block_of[ends[:, 1]]) & (ends[:, 0] != ends[:, 1])]
    if len(inside):
        i, j = sorted(map(int, inside[0]))
        return (
            f"sites {i} and {j} are neighbours, but both are in block {block_of[i]}: drawn in parallel they would not "
            "follow the model. Put them into different blocks, or leave the blocks out"
        )
    return None
