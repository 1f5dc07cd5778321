"""Structures of conditional models: the nodes, and the edges and factors that join them. Static and hashable, without values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Edges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Structure:
    """Nodes, ordered pairs of nodes [from, to] in groups, and factors of any arity. Edges are ordered by group."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a labelling."""
        raise NotImplementedError

    @property
    def edges(self) -> np.ndarray:
        """The pairs (from, to), integers (E, 2); nodes are numbered in C order."""
        raise NotImplementedError

    @property
    def group_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape in which tables of the edges of every group may be given; its product is the number of edges."""
        return ((len(self.edges),),)

    @property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        """The scopes of further factors."""
        return ()

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return math.prod(self.shape)

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of edges of every group."""
        return tuple(map(math.prod, self.group_shapes))

    def at_ends(self, x: Array) -> tuple[Array, Array]:
        """Rows of an array (nodes, …) at the first and at the second end of every edge: two arrays (E, …)."""
        i, j = self.edges.T
        return x[i], x[j]

    def collected(self, first: Array, second: Array) -> Array:
        """The values of edges at their first and at their second ends, two arrays (E, …), summed at every node: (nodes, …)."""
        rows = _incidence(self)
        values = jnp.concatenate([first, second, jnp.zeros((1, *first.shape[1:]), first.dtype)])
        if rows is None:
            places = np.append(self.edges.T.ravel(), 0)
            return jnp.zeros((self.nodes, *first.shape[1:]), first.dtype).at[places].add(values)
        return jnp.sum(values[rows], axis=1)

    @property
    def colours(self) -> np.ndarray:
        """A colour number for every node, such that no two nodes of one colour share an edge or a factor."""
        return _colours(self)

    @property
    def by_arity(self) -> tuple[np.ndarray, ...]:
        """The numbers of the factors of every arity, the smallest arity first."""
        arities = np.array(list(map(len, self.factors)), int)
        return tuple(np.flatnonzero(arities == r) for r in np.unique(arities))

    @property
    def scopes_by_arity(self) -> tuple[np.ndarray, ...]:
        """The scopes of the factors of every arity, arrays (F, arity)."""
        return tuple(np.asarray([self.factors[f] for f in numbers], np.int32) for numbers in self.by_arity)


@dataclasses.dataclass(frozen=True)
class Grid(Structure):
    """A grid of any dimension, whose nodes p and p + offset are joined for every offset: one group of edges [p, p + offset] per offset.

    Args:
        shape: the shape of the grid.
        offsets: vectors of integers; by default one step along every axis (in two dimensions: down and right).

    Raises:
        ValueError: for an offset that is zero, is listed twice, has another number of dimensions, or joins no two nodes of the grid.

    Example:
        >>> import lnz
        >>> lnz.crf.Grid((2, 3)).edges.tolist()  # down, then right
        [[0, 3], [1, 4], [2, 5], [0, 1], [1, 2], [3, 4], [4, 5]]
        >>> lnz.crf.Grid((2, 3), [(1, -1)]).edges.tolist()
        [[1, 3], [2, 4]]
    """

    size: tuple[int, ...]
    offsets: tuple[tuple[int, ...], ...]

    def __init__(self, shape: Sequence[int], offsets: Sequence[Sequence[int]] | None = None):
        size = tuple(integers(shape, "the shape of a grid"))
        if not size or min(size) < 1:
            raise ValueError(f"a grid needs at least one node along every axis, but its shape is {size}")
        unit = np.eye(len(size), dtype=int).tolist()
        steps = [s for s, n in zip(unit, size, strict=True) if n > 1] if offsets is None else offsets
        steps = tuple(tuple(integers(step, "an offset")) for step in steps)
        for step in steps:
            if len(step) != len(size) or not any(step):
                raise ValueError(
                    f"an offset of this grid must be a vector of {len(size)} integers, not all 0, but one is {step}"
                )
            if any(abs(d) >= n for d, n in zip(step, size, strict=True)):
                raise ValueError(f"the offset {step} reaches beyond a grid of shape {size}: it joins no two nodes")
        if len(set(steps)) < len(steps):
            raise ValueError(f"an offset is listed twice in {steps}: list it once, with the sum of its tables")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "offsets", steps)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size

    @property
    def edges(self) -> np.ndarray:
        return _grid_edges(self)

    @property
    def group_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(n - abs(d) for n, d in zip(self.size, step, strict=True)) for step in self.offsets)

    def at_ends(self, x: Array) -> tuple[Array, Array]:
        whole, rest = x.reshape(*self.size, *x.shape[1:]), x.shape[1:]
        sides: tuple[list[Array], list[Array]] = [], []
        for step in self.offsets:
            for side, slices in zip(sides, _windows(self.size, step), strict=True):
                side.append(whole[slices].reshape(-1, *rest))
        empty = jnp.zeros((0, *rest), x.dtype)
        first, second = (jnp.concatenate([empty, *side]) if len(side) != 1 else side[0] for side in sides)
        return first, second

    def collected(self, first: Array, second: Array) -> Array:
        rest = first.shape[1:]
        total, begin = jnp.zeros((*self.size, *rest), first.dtype), 0
        for step, shape in zip(self.offsets, self.group_shapes, strict=True):
            end = begin + math.prod(shape)
            for rows, window in zip((first, second), _windows(self.size, step), strict=True):
                margin = [(s.start, n - s.stop) for s, n in zip(window, self.size, strict=True)]
                total = total + jnp.pad(rows[begin:end].reshape(*shape, *rest), [*margin, *((0, 0) for _ in rest)])
            begin = end
        return total.reshape(-1, *rest)


@dataclasses.dataclass(frozen=True)
class Chain(Grid):
    """A chain of n nodes, each joined to the next: one group of edges. `lnz.LinearChain` also supports lengths, start, end, and linked holes."""

    def __init__(self, nodes: int):
        super().__init__((nodes,))


@dataclasses.dataclass(frozen=True)
class Graph(Structure):
    """Any graph: edges [from, to], in groups if tables are shared within groups, and factors of any arity.

    Args:
        nodes: the number of nodes.
        edges: pairs (from, to) of nodes, ordered by group.
        factors: the nodes of every further factor, in the order of its table's axes.
        groups: the number of edges of every group; by default all edges are one group.

    Raises:
        ValueError: for a node that does not exist, an edge from a node to itself, or groups whose numbers of edges do not add up.

    Example:
        >>> import lnz
        >>> lnz.crf.Graph(4, [(0, 1), (1, 2), (2, 0)], factors=[(1, 2, 3)]).nodes
        4
        >>> lnz.crf.Graph.complete(6).groups
        (15,)
    """

    size: int
    pairs: Edges
    scopes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]

    def __init__(
        self,
        nodes: int,
        edges: Any,
        factors: Sequence[Sequence[int]] = (),
        *,
        groups: Sequence[int] | None = None,
    ):
        (size,) = integers([nodes], "the number of nodes")
        pairs = tuple(_scope(edge, size, "an edge") for edge in np.asarray(edges).tolist())
        for pair in pairs:
            if len(pair) != 2:
                raise ValueError(f"an edge must be a pair of nodes, but one is {pair}: give it as a factor")
        counts = (len(pairs),) if groups is None else tuple(integers(groups, "the numbers of edges of the groups"))
        if sum(counts) != len(pairs) or min(counts, default=0) < 0:
            raise ValueError(f"groups must be numbers of edges that add up to {len(pairs)}, but are {counts}")
        for name, value in (
            ("size", size),
            ("pairs", pairs),
            ("scopes", tuple(_scope(scope, size, "a factor") for scope in factors)),
            ("counts", counts),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def complete(cls, nodes: int, **given: Any) -> Graph:
        """All pairs i < j."""
        return cls(nodes, list(itertools.combinations(range(nodes), 2)), **given)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def edges(self) -> np.ndarray:
        return np.asarray(self.pairs, np.int32).reshape(-1, 2)

    @property
    def group_shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple((count,) for count in self.counts)

    @property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        return self.scopes


@dataclasses.dataclass(frozen=True)
class Tree(Structure):
    """A tree or a forest given by the parent of every node; edges go from parent to child, in the order of the children.

    Args:
        parents: the parent of every node, -1 for a root.

    Raises:
        ValueError: for a parent that does not exist, or a cycle.

    Example:
        >>> import lnz
        >>> lnz.crf.Tree([-1, 0, 0, 1]).edges.tolist()
        [[0, 1], [0, 2], [1, 3]]
    """

    parents: tuple[int, ...]

    def __init__(self, parents: Sequence[int]):
        parents = tuple(integers(parents, "parents"))
        n = len(parents)
        for node, parent in enumerate(parents):
            if not -1 <= parent < n:
                raise ValueError(f"node {node} has the parent {parent}, but nodes are 0 … {n - 1}, and -1 means root")
        state = [0] * n  # 0 unseen, 1 on the present path, 2 known to reach a root
        for start in range(n):
            node, path = start, []
            while node >= 0 and not state[node]:
                state[node] = 1
                path.append(node)
                node = parents[node]
            if node >= 0 and state[node] == 1:
                cycle = path[path.index(node) :]
                raise ValueError(
                    f"a tree must not have a cycle, but the parents of {' → '.join(map(str, [*cycle, node]))} form one"
                )
            for seen in path:
                state[seen] = 2
        object.__setattr__(self, "parents", parents)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parents),)

    @property
    def edges(self) -> np.ndarray:
        pairs = [(parent, child) for child, parent in enumerate(self.parents) if parent >= 0]
        return np.asarray(pairs, np.int32).reshape(-1, 2)


def integers(numbers: Any, name: str) -> list[int]:
    """A list of integers; ValueError for anything else."""
    numbers = list(numbers)
    for n in numbers:
        if not isinstance(n, int | np.integer) or isinstance(n, bool):
            raise ValueError(f"{name} must be integers, but got {n!r}")
    return [int(n) for n in numbers]


def _scope(nodes: Any, n: int, name: str) -> tuple[int, ...]:
    scope = tuple(integers(nodes, name))
    if any(not 0 <= i < n for i in scope):
        raise ValueError(f"{name}, {scope}, names a node outside 0 … {n - 1}")
    if not scope or len(set(scope)) < len(scope):
        raise ValueError(f"{name}, {scope}, must join different nodes")
    return scope


def _windows(size: tuple[int, ...], step: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The positions of p and of p + step, as windows of the grid."""
    first = tuple(slice(max(0, -d), n - max(0, d)) for n, d in zip(size, step, strict=True))
    second = tuple(slice(max(0, d), n - max(0, -d)) for n, d in zip(size, step, strict=True))
    return first, second


@functools.lru_cache(maxsize=256)
def _grid_edges(grid: Grid) -> np.ndarray:
    number = np.arange(math.prod(grid.size), dtype=np.int32).reshape(grid.size)
    pairs = [np.zeros((0, 2), np.int32)]
    for step in grid.offsets:
        first, second = _windows(grid.size, step)
        pairs.append(np.stack([number[first].ravel(), number[second].ravel()], axis=1))
    return np.concatenate(pairs)


@functools.lru_cache(maxsize=256)
def _incidence(structure: Structure) -> np.ndarray | None:
    """For every node the rows that it receives, out of all first ends and all second ends, padded with the number of these rows.

    None if one node has so many more edges than most that such a table would be mostly empty.
    """
    places = structure.edges.T.ravel()
    degrees = np.bincount(places, minlength=structure.nodes)
    wide = int(degrees.max(initial=0))
    if structure.nodes * wide > 4 * len(places) + 64:
        return None
    order = np.argsort(places, kind="stable")
    starts = np.cumsum(degrees) - degrees
    rows = np.full((structure.nodes, wide), len(places), np.int32)
    rows[places[order], np.arange(len(places)) - starts[places[order]]] = order
    return rows


@functools.lru_cache(maxsize=256)
def _colours(structure: Structure) -> np.ndarray:
    near: list[set[int]] = [set() for _ in range(structure.nodes)]
    for scope in itertools.chain(structure.edges.tolist(), structure.factors):
        for i in scope:
            near[i].update(scope)
    colour = [-1] * structure.nodes
    for i, others in enumerate(near):
        used = {colour[j] for j in others if j != i}
        colour[i] = next(c for c in itertools.count() if c not in used)
    return np.asarray(colour, np.int32)
