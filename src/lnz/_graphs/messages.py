"""Factor graphs prepared for local methods: tables merged by scope, impossible values pruned, factors in blocks of one shape."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lnz._graphs.contraction_plan import Scope
from lnz._graphs.preprocess import possible_values

if TYPE_CHECKING:  # this module imports no JAX
    from lnz._models.factor_graph import FactorGraph


class FactorLayout(NamedTuple):
    """The place of every factor of a graph after variables of one value are dropped and factors over the same variables are merged.

    Attributes:
        scopes: the merged scopes of two and more variables, sorted.
        home: for every factor its merged table; -1 for a factor of one variable, -2 for a constant.
        live: for every factor its variables of two and more values, in its own order.
    """

    scopes: tuple[Scope, ...]
    home: tuple[int, ...]
    live: tuple[Scope, ...]


@functools.lru_cache(maxsize=64)
def layout(cardinalities: tuple[int, ...], scopes: tuple[Scope, ...]) -> FactorLayout:
    """The layout of a graph's factors."""
    live = tuple(tuple(i for i in scope if cardinalities[i] > 1) for scope in scopes)
    number: dict[Scope, int] = {}
    home = [number.setdefault(tuple(sorted(s)), len(number)) if len(s) > 1 else len(s) - 2 for s in live]
    return FactorLayout(tuple(number), tuple(home), live)


class Model(NamedTuple):
    """Log-potentials in float64: Σ_f tables[f] + Σ_i unary[i] + constant.

    Attributes:
        unary: (n, K), -inf beyond a variable's values and at values that some factor forbids.
        scopes, tables: factors of two and more variables. Each value that `unary` leaves occurs in some possible row of each table.
        constant: what is added to log Z.
        possible: False where some variable has no value left: Z = 0.
    """

    unary: np.ndarray
    scopes: tuple[Scope, ...]
    tables: list[np.ndarray]
    constant: float
    possible: bool


def model(graph: FactorGraph, flat: np.ndarray) -> Model:
    """The merged and pruned log-potentials of a graph."""
    ends = np.append(graph.offsets, len(flat))
    pieces = [np.asarray(flat[a:b], np.float64) for a, b in itertools.pairwise(ends)]
    tables = [pieces[t].reshape(graph.shapes[t]) for t in graph.table_of]
    return merged(graph.cardinalities, graph.scopes, tables)


def merged(cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]) -> Model:
    """The merged and pruned log-potentials of factors.

    Args:
        cardinalities: the number of values of each variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor in nats, -inf where a configuration is impossible.
    """
    where = layout(tuple(cardinalities), tuple(scopes))
    k = np.array(cardinalities, int)
    unary = np.where(np.arange(k.max(initial=1))[None] < k[:, None], 0.0, -np.inf)
    total = [np.zeros([cardinalities[i] for i in scope]) for scope in where.scopes]
    constant, hard = 0.0, False
    for live, home, table in zip(where.live, where.home, tables, strict=True):
        hard = hard or bool((table == -np.inf).any())
        piece = table.reshape([cardinalities[i] for i in live])
        if home >= 0:
            total[home] += piece.transpose(np.argsort(live))
        elif home == -1:
            unary[live[0], : len(piece)] += piece
        else:
            constant += float(piece)
    found = Model(unary, where.scopes, total, constant, True)
    return _pruned(found, cardinalities) if hard else found


class Live(NamedTuple):
    """A model's possible values alone: factors of one variable first, one for each, then the others.

    Attributes:
        domains: the possible values of every variable.
        sizes: how many they are.
        scopes, tables: the factors over them, in nats.
    """

    domains: list[np.ndarray]
    sizes: tuple[int, ...]
    scopes: tuple[Scope, ...]
    tables: list[np.ndarray]


def live(found: Model) -> Live:
    """The possible values of a model in which every variable has one."""
    domains = [np.flatnonzero(row > -np.inf) for row in found.unary]
    tables = [row[domain] for row, domain in zip(found.unary, domains, strict=True)]
    for scope, table in zip(found.scopes, found.tables, strict=True):
        tables.append(table[np.ix_(*(domains[i] for i in scope))])
    scopes = (*((i,) for i in range(len(domains))), *found.scopes)
    return Live(domains, tuple(map(len, domains)), scopes, tables)


def restored(found: Model, domains: list[np.ndarray], beliefs: Sequence[np.ndarray]) -> tuple[Any, list[np.ndarray]]:
    """Beliefs of the factors of `live(found)`, of variables (n, K) and of factors, with zeros at impossible values."""
    variables, factors = np.zeros(found.unary.shape), [np.zeros(table.shape) for table in found.tables]
    for i, domain in enumerate(domains):
        variables[i, domain] = beliefs[i]
    for scope, factor, belief in zip(found.scopes, factors, beliefs[len(domains) :], strict=True):
        factor[np.ix_(*(domains[i] for i in scope))] = belief
    return variables, factors


def _pruned(found: Model, cardinalities: Sequence[int]) -> Model:
    """Values that no row of some table allows get -inf."""
    n, unary = len(cardinalities), np.full(found.unary.shape, -np.inf)
    rows = [row[:k] for row, k in zip(found.unary, cardinalities, strict=True)]
    domains, possible = possible_values(
        cardinalities, [*((i,) for i in range(n)), *found.scopes], [*rows, *found.tables]
    )
    for i, domain in enumerate(domains):
        unary[i, domain] = found.unary[i, domain]
    return found._replace(unary=unary, possible=possible and found.constant > -np.inf)


class FactorBlock(NamedTuple):
    """Factors of one shape: their numbers (F,), variables (F, arity), edges (F, arity), and tables (F, *shape)."""

    numbers: np.ndarray
    variables: np.ndarray
    edges: np.ndarray
    tables: np.ndarray


def blocks(found: Model, classes: Iterable[Iterable[int]]) -> list[list[FactorBlock]]:
    """For every class of factors its blocks, one per shape. Edge e belongs to place e - Σ_{g<f} arity(g) of factor f."""
    first = np.cumsum([0, *map(len, found.scopes)])
    result = []
    for members in classes:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for f in members:
            by_shape.setdefault(found.tables[f].shape, []).append(f)
        result.append(
            [
                FactorBlock(
                    np.array(numbers),
                    np.array([found.scopes[f] for f in numbers]),
                    first[numbers][:, None] + np.arange(len(shape))[None],
                    np.stack([found.tables[f] for f in numbers]),
                )
                for shape, numbers in by_shape.items()
            ]
        )
    return result


def colours(scopes: Sequence[Scope]) -> list[list[int]]:
    """Classes of factors of which no two share a variable, greedily."""
    used: dict[int, int] = {}
    classes: list[list[int]] = []
    for f, scope in enumerate(scopes):
        taken = 0
        for i in scope:
            taken |= used.get(i, 0)
        colour = (~taken & (taken + 1)).bit_length() - 1
        for i in scope:
            used[i] = used.get(i, 0) | (1 << colour)
        if colour == len(classes):
            classes.append([])
        classes[colour].append(f)
    return classes


@functools.lru_cache(maxsize=8)
def forest_layers(scopes: tuple[Scope, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The factors by their distance from the roots, nearest first; None where the factor graph has a cycle."""
    of: dict[int, list[int]] = {}
    for f, scope in enumerate(scopes):
        for i in scope:
            of.setdefault(i, []).append(f)
    seen: set[int] = set()
    layers: list[list[int]] = []
    for root in of:
        if root in seen:
            continue
        seen.add(root)
        front, depth = [(root, -1)], 0
        while front:
            following = []
            for i, above in front:
                for f in of[i]:
                    if f == above:
                        continue
                    if depth == len(layers):
                        layers.append([])
                    layers[depth].append(f)
                    for j in scopes[f]:
                        if j == i:
                            continue
                        if j in seen:
                            return None
                        seen.add(j)
                        following.append((j, f))
            front, depth = following, depth + 1
    return tuple(map(tuple, layers))


def others(a: int, arity: int) -> tuple[int, ...]:
    """The axes of a block's tables other than a."""
    return tuple(b + 1 for b in range(arity) if b != a)


def spread(values: np.ndarray, a: int, arity: int) -> np.ndarray:
    """Values (F, k) of axis a, shaped to be added to tables (F, *shape)."""
    return values.reshape(len(values), *(values.shape[1] if b == a else 1 for b in range(arity)))


def log_sum(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """log Σ e^x along axes; -inf where all are -inf."""
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    shift = np.where(top == -np.inf, 0, top)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - shift).sum(axis=axis)) + np.squeeze(shift, axis=axis)


class Messages:
    """Reweighted sum-product on a graph: m_f→i(x_i) = log Σ exp(φ_f/ρ_f + Σ_{j≠i} (b_j - m_f→j)) with b_i = φ_i + Σ_f ρ_f m_f→i.

    With all ρ = 1 it is belief propagation. Classes of factors are updated in turn, each as a whole. The largest entry of a message is 0;
    on a cycle of impossible values others may decrease for ever, so a finite `floor` keeps differences exact. It applies to messages, not
    to the model.
    """

    def __init__(self, found: Model, classes: Iterable[Iterable[int]], weights: np.ndarray | None = None):
        self.found = found
        self.weights = np.ones(len(found.scopes)) if weights is None else weights
        self.classes = blocks(found, classes)
        for members in self.classes if weights is not None else []:
            for b in members:
                b.tables[...] /= self.weights[b.numbers].reshape(-1, *(1,) * (b.tables.ndim - 1))
        self.floor = -np.inf
        self.messages = np.zeros((sum(map(len, found.scopes)), found.unary.shape[1]))
        self.beliefs = found.unary.copy()

    def settle(self) -> None:
        """Recompute the beliefs from the messages, so that rounding errors do not add up."""
        self.beliefs = self.found.unary.copy()
        for block in self.distinct():
            for a in range(block.variables.shape[1]):
                rho = self.weights[block.numbers][:, None]
                np.add.at(self.beliefs, block.variables[:, a], rho * self.messages[block.edges[:, a]])

    def distinct(self) -> Iterable[FactorBlock]:
        """Every block once, even if a schedule visits it twice."""
        seen: set[int] = set()
        for members in self.classes:
            for block in members:
                if int(block.numbers[0]) not in seen:
                    seen.add(int(block.numbers[0]))
                    yield block

    def joint(self, block: FactorBlock) -> tuple[np.ndarray, list[np.ndarray]]:
        """φ_f/ρ_f plus the incoming messages of its variables, (F, *shape), and these messages, (F, k) of each."""
        arity, total = block.variables.shape[1], block.tables
        incoming = []
        for a in range(arity):
            k = block.tables.shape[a + 1]
            incoming.append(self.beliefs[block.variables[:, a], :k] - self.messages[block.edges[:, a], :k])
            total = total + spread(incoming[-1], a, arity)
        return total, incoming

    def sweep(self, damping: float = 0.0) -> float:
        """Update every message; the largest change, before damping."""
        self.settle()
        worst = 0.0
        for block in (b for members in self.classes for b in members):
            total, incoming = self.joint(block)
            for a in range(block.variables.shape[1]):
                change = self._change(block, total, incoming, a)
                worst = max(worst, float(np.abs(change).max(initial=0)))
                self._take(block, a, (1 - damping) * change)
        return worst

    def largest_first(self, damping: float, share: float) -> float:
        """Update the share of the factors whose messages would change most; the largest change of all, before damping."""
        self.settle()
        changes, sizes = [], np.zeros(len(self.found.scopes))
        for block in self.distinct():
            total, incoming = self.joint(block)
            arity = block.variables.shape[1]
            changes.append((block, [self._change(block, total, incoming, a) for a in range(arity)]))
            for change in changes[-1][1]:
                sizes[block.numbers] = np.maximum(sizes[block.numbers], np.abs(change).max(axis=1))
        if not sizes.size:
            return 0.0
        place = min(len(sizes) - 1, int((1 - share) * len(sizes)))
        least = np.partition(sizes, place)[place]
        for block, of_axes in changes:
            taken = (sizes[block.numbers] >= least)[:, None] * (1 - damping)
            for a, change in enumerate(of_axes):
                self._take(block, a, taken * change)
        return float(sizes.max())

    def _change(self, block: FactorBlock, total: np.ndarray, incoming: list[np.ndarray], a: int) -> np.ndarray:
        """The change by which an update would alter the messages of a block to the variables on axis a, (F, k)."""
        arity, k = block.variables.shape[1], total.shape[a + 1]
        possible = incoming[a] > -np.inf
        new = log_sum(total, others(a, arity)) - np.where(possible, incoming[a], 0)
        new = np.where(possible, new - new.max(axis=1, keepdims=True), 0)
        return np.maximum(new, self.floor) - self.messages[block.edges[:, a], :k]

    def _take(self, block: FactorBlock, a: int, change: np.ndarray) -> None:
        k = change.shape[1]
        self.messages[block.edges[:, a], :k] += change
        place: Any = (block.variables[:, a], slice(k))
        np.add.at(self.beliefs, place, self.weights[block.numbers][:, None] * change)

    def log_z(self, of_variables: Any = 1.0, of_factors: Any = 1.0) -> float:
        """The Bethe free energy, negated: Σ_f log Z_f + Σ_i (1 - d_i) log Z_i; log Z itself on a forest. Terms may be weighted."""
        degree, total = np.zeros(len(self.beliefs)), 0.0
        shares = np.broadcast_to(of_factors, len(self.found.scopes))
        for block in self.distinct():
            terms, _ = self.joint(block)
            total += float(log_sum(terms, tuple(range(1, terms.ndim))) @ shares[block.numbers])
            np.add.at(degree, block.variables, 1)
        return total + float(np.sum(of_variables * (1 - degree) * log_sum(self.beliefs, (1,))))

    def marginals(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The beliefs of variables (n, K) and factors, normalised."""
        factors: list[np.ndarray] = [np.zeros(0)] * len(self.found.scopes)
        for block in self.distinct():
            terms, _ = self.joint(block)
            for f, belief in zip(block.numbers, normalised(terms, tuple(range(1, terms.ndim))), strict=True):
                factors[f] = belief
        return normalised(self.beliefs, (1,)), factors


def normalised(logs: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """e^logs, divided by its sum along axes."""
    weights = np.exp(logs - logs.max(axis=axis, keepdims=True))
    return weights / weights.sum(axis=axis, keepdims=True)


def passed_on_forest(found: Model) -> Messages | None:
    """Exact messages, by one pass up and one down; None where the factor graph has a cycle."""
    layers = forest_layers(found.scopes)
    if layers is None:
        return None
    passed = Messages(found, [*layers[::-1], *layers])
    passed.sweep()
    passed.settle()
    return passed


def pulled(graph: FactorGraph, variables: np.ndarray, factors: Sequence[np.ndarray]) -> np.ndarray:
    """Beliefs of variables and merged factors as one array like `log_potentials`, summed over factors that share a table."""
    where = layout(graph.cardinalities, graph.scopes)
    total = [np.zeros(math.prod(shape)) for shape in graph.shapes]
    for live, home, t in zip(where.live, where.home, graph.table_of, strict=True):
        if home >= 0:
            total[t] += factors[home].transpose(np.argsort(np.argsort(live))).ravel()
        elif home == -1:
            total[t] += variables[live[0], : len(total[t])]
        else:
            total[t] += 1
    return np.concatenate([np.zeros(0), *total])
