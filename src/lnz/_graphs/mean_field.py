"""Mean field in NumPy: lower bounds of log Z from a product of single variables, or of clusters that are each summed exactly.

log Z ≥ Σ_f E_q[φ_f] + H(q) for every q. Naive mean field runs several starts side by side, updating one class of variables without a common
factor after another. Structured mean field starts from its result and sums trees, or wider clusters of variables, by elimination.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs import messages
from lnz._graphs.buckets import BucketTree, backward, bucket_tree, forward
from lnz._graphs.contraction_plan import Scope


class Climbed(NamedTuple):
    """The best product of variables: its bound, q (n, K), the last change of a probability, and the number of sweeps."""

    value: float
    q: np.ndarray
    residual: float
    sweeps: int


def climb(
    found: messages.Model, *, restarts: int, max_sweeps: int, tolerance: float, seed: int, until: float = math.inf
) -> Climbed:
    """Coordinate ascent from one uniform and some random starts; where some states are impossible, the starts are possible states.

    Args:
        found: a model in which every variable has a possible value.
        until: the time, by `time.perf_counter`, after which no further sweep begins.
    """
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.5, size=(restarts, *found.unary.shape)) + 1e-6
    weights[0] = 1
    weights *= found.unary[None] > -np.inf
    q = weights / weights.sum(axis=2, keepdims=True)
    ascent = _Ascent(found)
    if ascent.hard:
        q = ascent.possible_states(q, rng)
    residual, sweeps = np.inf, 0
    while residual > tolerance and sweeps < max_sweeps and (sweeps == 0 or time.perf_counter() < until):
        residual, q = ascent.sweep(q)
        sweeps += 1
    bounds = ascent.bounds(q)
    best = int(np.argmax(bounds))
    return Climbed(float(bounds[best]), q[best], residual, sweeps)


class _Class(NamedTuple):
    """Variables without a common factor, and the factors at them, each with the axis on which it has one."""

    members: np.ndarray
    factors: list[tuple[int, messages.FactorBlock]]


class _Ascent:
    """Coordinate ascent on several q (restarts, n, K) at once."""

    def __init__(self, found: messages.Model):
        self.unary = found.unary
        self.blocks = messages.blocks(found, [range(len(found.scopes))])[0]
        self.hard = any((block.tables == -np.inf).any() for block in self.blocks)
        size = max((float(np.abs(b.tables[b.tables > -np.inf]).max(initial=0)) for b in self.blocks), default=0.0)
        self.penalty = 10 * (1 + size + float(np.abs(found.unary[found.unary > -np.inf]).max(initial=0)))
        colour = _colours(len(found.unary), found.scopes)
        self.classes = [
            _Class(
                np.flatnonzero(colour == c),
                [
                    (a, messages.FactorBlock(*(part[rows] for part in block)))
                    for block in self.blocks
                    for a, rows in enumerate((colour[block.variables] == c).T)
                    if rows.any()
                ],
            )
            for c in range(colour.max(initial=-1) + 1)
        ]

    def sweep(self, q: np.ndarray, penalty: float | None = None) -> tuple[float, np.ndarray]:
        """Update every variable once; the largest change, and the new q. A penalty is a finite cost of impossible rows."""
        q, worst = q.copy(), 0.0
        for each in self.classes:
            pull = self._pull(q, each, penalty)
            top = pull.max(axis=2, keepdims=True)
            new = np.where(top == -np.inf, 1.0, np.exp(pull - np.where(top == -np.inf, 0, top)))
            new = new / new.sum(axis=2, keepdims=True)
            worst = max(worst, float(np.abs(new - q[:, each.members]).max(initial=0)))
            q[:, each.members] = new
        return worst, q

    def possible_states(self, q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """States, as q of zeros and ones, with as few impossible rows as a local search finds."""
        for _ in range(10):
            _, q = self.sweep(q, self.penalty)
        x = q + 1e-9 * rng.random(q.shape)
        x = (x == x.max(axis=2, keepdims=True)).astype(float)
        clean = np.zeros(len(x), bool)
        for _ in range(50):
            for each in self.classes:
                pull = self._pull(x, each, self.penalty)
                pull += np.where(clean, 0.0, 0.3 * self.penalty)[:, None, None] * rng.random(pull.shape)
                best = (pull == pull.max(axis=2, keepdims=True)).astype(float)
                x[np.ix_(~clean, each.members)] = best[~clean]
            clean |= self.bounds(x) > -np.inf
            if clean.all():
                break
        return x

    def bounds(self, q: np.ndarray) -> np.ndarray:
        """Σ_f E_q[φ_f] + Σ_i H(q_i) of every q; -inf where it gives an impossible row some probability."""
        log_q = np.log(np.where(q > 0, q, 1))
        total = (q * (np.where(q > 0, self.unary[None], 0) - log_q)).sum(axis=(1, 2))
        for block in self.blocks:
            mean, lost = _averaged(block, q, None)
            total += np.where(lost.any(axis=1), -np.inf, mean.sum(axis=1))
        return total

    def _pull(self, q: np.ndarray, each: _Class, penalty: float | None) -> np.ndarray:
        """E_q[Σ_f φ_f | x_i] of a class's variables: (restarts, members, K)."""
        total = np.repeat(self.unary[None], len(q), axis=0)
        for a, block in each.factors:
            mean, lost = _averaged(block, q, a)
            mean = np.where(lost > 0, -np.inf, mean) if penalty is None else mean - penalty * lost
            place: Any = (slice(None), block.variables[:, a], slice(mean.shape[2]))
            np.add.at(total, place, mean)
        return total[:, each.members]


def _colours(n: int, scopes: Iterable[Scope]) -> np.ndarray:
    """A greedy colouring: the class of every variable, different for any two variables of a scope."""
    neighbours: list[set[int]] = [set() for _ in range(n)]
    for scope in scopes:
        for i in scope:
            neighbours[i].update(scope)
    colour: list[int] = []
    for i in range(n):
        taken = {colour[j] for j in neighbours[i] if j < i}
        colour.append(next(c for c in itertools.count() if c not in taken))
    return np.array(colour, int)


def _averaged(block: messages.FactorBlock, q: np.ndarray, free: int | None) -> tuple[np.ndarray, np.ndarray]:
    """E_q[φ_f] over all axes but a free one, (restarts, F, k) or (restarts, F), of the finite rows; and the mass of the impossible ones."""
    impossible = block.tables == -np.inf
    if not impossible.any():
        mean = _mean(block.tables, block, q, free)
        return mean, np.zeros(mean.shape)
    return _mean(np.where(impossible, 0, block.tables), block, q, free), _mean(impossible.astype(float), block, q, free)


def _mean(tables: np.ndarray, block: messages.FactorBlock, q: np.ndarray, free: int | None) -> np.ndarray:
    table, axis = tables[None], 2
    for b, k in enumerate(tables.shape[1:]):
        if b == free:
            axis = 3
            continue
        share = q[:, block.variables[:, b], :k]
        left = np.moveaxis(table, axis, -1)
        share = share.reshape(*share.shape[:2], *(1,) * (left.ndim - 3), k)
        table = (left * share).sum(axis=-1)
    return np.broadcast_to(table, (len(q), *table.shape[1:]))


class Clusters:
    """q(x) = Π_c q_c(x_c), where every q_c is summed exactly: log Z ≥ Σ_f E_q[φ_f] + Σ_c H(q_c).

    Clusters are chosen such that each can be eliminated in tables of at most `entries`; K² for variables of K values makes them trees. Given
    the others, the best q_c ∝ exp(Σ_f E[φ_f | x_c]) is a model of its own, so no step lowers the bound. It starts from a product of variables,
    and so ends no lower than naive mean field from there.
    """

    def __init__(self, sizes: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray], entries: float):
        self.scopes = list(scopes)
        self.tables = list(tables)
        self.orders = partition(sizes, scopes, entries)
        of = {v: c for c, order in enumerate(self.orders) for v in order}
        self.parts: list[dict[int, Scope]] = []  # for every factor its variables in each cluster
        self.factors: list[list[int]] = [[] for _ in self.orders]  # for every cluster the factors at it
        for f, scope in enumerate(scopes):
            inside: dict[int, Scope] = {}
            for v in scope:
                inside[of[v]] = (*inside.get(of[v], ()), v)
            self.parts.append(inside)
            for c in inside:
                self.factors[c].append(f)
        self.trees: list[BucketTree] = [
            bucket_tree(sizes, [self.parts[f][c] for f in factors], order, entries=math.inf)
            for c, (factors, order) in enumerate(zip(self.factors, self.orders, strict=True))
        ]
        self.splits = [tree.even(upper=True) for tree in self.trees]  # no bucket is split: the clusters' sums are exact
        self.beliefs: dict[tuple[int, int], np.ndarray] = {}
        self.entropies = np.zeros(len(self.orders))

    def start(self, q: Sequence[np.ndarray]) -> float:
        """Start from a product of variables, q_i (k_i,); the bound there."""
        for c, factors in enumerate(self.factors):
            members = (q[v] for v in self.orders[c])
            self.entropies[c] = sum(float(-(p * np.log(np.where(p > 0, p, 1))).sum()) for p in members)
            for f in factors:
                self.beliefs[f, c] = outer([q[v] for v in self.parts[f][c]])
        return self.bound()

    def sweep(self) -> float:
        """Update every cluster once; the bound."""
        for c, (factors, tree) in enumerate(zip(self.factors, self.trees, strict=True)):
            tables = [self._expected(f, c) for f in factors]
            run = forward(tree, tree.arranged(tables), self.splits[c])
            if run.value == -np.inf:
                continue
            energy = 0.0
            for f, table, belief in zip(factors, tables, backward(tree, run).beliefs, strict=True):
                self.beliefs[f, c] = belief
                energy += _mean_energy(belief, table)
            self.entropies[c] = run.value - 2 * run.rounding - energy  # the sum rounded down: `value` is rounded up
        return self.bound()

    def climb(
        self, q: Sequence[np.ndarray], max_sweeps: int, tolerance: float, until: float = math.inf
    ) -> tuple[float, float, int]:
        """The bound after sweeps from a product of variables until it converges, its last change, and the number of sweeps.

        Args:
            until: the time, by `time.perf_counter`, after which no further sweep begins.
        """
        value, change, sweeps = self.start(q), math.inf, 0
        while sweeps < max_sweeps and change > tolerance and time.perf_counter() < until and value > -np.inf:
            new = self.sweep()
            value, change, sweeps = new, abs(new - value), sweeps + 1
        return value, 0.0 if value == -np.inf else change, sweeps

    def factor_beliefs(self) -> list[np.ndarray]:
        """q over the variables of every factor, the axes as in its scope."""
        found = []
        for f, scope in enumerate(self.scopes):
            product, axes = self._joint(f, but=None)
            found.append(product.transpose(np.argsort([scope.index(v) for v in axes]).astype(int)))
        return found

    def bound(self) -> float:
        """Σ_f E_q[φ_f] + Σ_c H(q_c); -inf where q gives an impossible row some probability."""
        total = float(self.entropies.sum())
        for f, inside in enumerate(self.parts):
            first = next(iter(inside), None)
            total += (
                float(self.tables[f])
                if first is None
                else _mean_energy(self.beliefs[f, first], self._expected(f, first))
            )
        return total

    def _joint(self, f: int, *, but: int | None) -> tuple[np.ndarray, Scope]:
        """q over a factor's variables outside of one cluster, and these variables."""
        product, axes = np.ones(()), ()
        for c, inside in self.parts[f].items():
            if c != but:
                product = np.multiply.outer(product, self.beliefs[f, c])
                axes += inside
        return product, axes

    def _expected(self, f: int, c: int) -> np.ndarray:
        """E[φ_f | x_c]: the factor averaged over the other clusters."""
        if len(self.parts[f]) == 1:
            return self.tables[f]
        weights, others = self._joint(f, but=c)
        scope = self.scopes[f]
        kept = [a for a, v in enumerate(scope) if v not in others]
        table = self.tables[f].transpose(kept + [scope.index(v) for v in others])
        inner = tuple(range(len(kept), table.ndim))
        hard = table == -np.inf
        if not hard.any():
            return np.tensordot(table, weights, axes=(inner, tuple(range(weights.ndim))))
        mean = (np.where(hard | (weights == 0), 0, table) * weights).sum(axis=inner)
        return np.where((hard & (weights > 0)).any(axis=inner), -np.inf, mean)


def _mean_energy(belief: np.ndarray, table: np.ndarray) -> float:
    """E[φ], in which impossible rows of zero probability count as 0."""
    return float((belief * np.where(belief > 0, table, 0)).sum())


def outer(rows: Iterable[np.ndarray]) -> np.ndarray:
    """The outer product Π_a rows[a], one axis per row."""
    product = np.ones(())
    for row in rows:
        product = product[..., None] * row
    return product


def partition(sizes: Sequence[int], scopes: Iterable[Scope], entries: float) -> list[list[int]]:
    """Clusters of variables, each an order in which it is eliminated in tables of at most `entries`."""
    around: list[set[int]] = [set() for _ in sizes]
    for scope in scopes:
        for v, u in itertools.permutations(scope, 2):
            around[v].add(u)
    left, found = set(range(len(sizes))), []
    while left:
        order = _eliminable(sizes, {v: around[v] & left for v in left}, entries)
        rank = {v: r for r, v in enumerate(order)}
        seen: set[int] = set()
        for v in order:
            if v in seen:
                continue
            members, seen = [v], seen | {v}
            for u in members:
                for w in around[u]:
                    if w in rank and w not in seen:
                        seen.add(w)
                        members.append(w)
            found.append(sorted(members, key=rank.__getitem__))
        left -= set(order)
    return found


def _eliminable(sizes: Sequence[int], graph: dict[int, set[int]], entries: float) -> list[int]:
    """An order by least degree; where a table would be too large, the variable of most neighbours is left out instead."""
    graph = {v: set(u) for v, u in graph.items()}
    logs = [math.log2(k) for k in sizes]
    most, order = math.log2(entries) + 1e-9, []
    while graph:
        v = min(graph, key=lambda v: len(graph[v]))
        around = graph[v]
        if logs[v] + sum(logs[u] for u in around) > most and around:
            v = max(graph, key=lambda v: len(graph[v]))
            around = graph[v]
        else:
            order.append(v)
            for u in around:
                graph[u] |= around
                graph[u].discard(u)
        for u in around:
            graph[u].discard(v)
        del graph[v]
    return order
