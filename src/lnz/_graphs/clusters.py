"""Structured mean field in NumPy: a product of clusters of variables, each of them summed exactly, for a lower limit of log Z."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lnz._graphs.buckets import Buckets, Scope


class Part(NamedTuple):
    """One factor of a product of clusters seen from one of them: the cluster's variables in it."""

    factor: int
    inside: Scope


class Clusters:
    """q(x) = Π_c q_c(x_c), where every q_c is summed exactly: log Z ≥ Σ_f E_q[φ_f] + Σ_c H(q_c).

    Clusters are taken such that each can be eliminated in tables of at most `entries`; K² for variables of K values makes them trees. Given
    the others, the best q_c ∝ exp(Σ_f E[φ_f | x_c]) is a model of its own, so that every step goes up. Starts from a product of variables, and
    so ends no lower than naive mean field from there.
    """

    def __init__(self, sizes: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray], entries: float):
        self.scopes, self.tables = list(scopes), list(tables)
        self.parts = parts = partition(sizes, scopes, entries)
        of = {v: c for c, order in enumerate(parts) for v in order}
        touching: list[list[Part]] = [[] for _ in parts]
        self.held: list[list[tuple[int, Scope]]] = []
        for f, scope in enumerate(scopes):
            mine: dict[int, list[int]] = {}
            for v in scope:
                mine.setdefault(of[v], []).append(v)
            self.held.append([(c, tuple(inside)) for c, inside in mine.items()])
            for c, inside in mine.items():
                touching[c].append(Part(f, tuple(inside)))
        self.touching = touching
        self.models = [
            Buckets(sizes, [part.inside for part in mine], order, entries=math.inf)
            for mine, order in zip(touching, parts, strict=True)
        ]
        self.beliefs: dict[tuple[int, int], np.ndarray] = {}
        self.entropies = np.zeros(len(parts))

    def start(self, q: Sequence[np.ndarray]) -> float:
        """Begin at a product of variables, q_i (k_i,); the limit there."""
        for c, mine in enumerate(self.touching):
            members = (q[v] for v in self.parts[c])
            self.entropies[c] = sum(float(-(p * np.log(np.where(p > 0, p, 1))).sum()) for p in members)
            for f, inside in mine:
                product = np.ones(())
                for v in inside:
                    product = product[..., None] * q[v]
                self.beliefs[f, c] = product
        return self.limit()

    def sweep(self) -> float:
        """Every cluster once; the limit."""
        for c, (mine, model) in enumerate(zip(self.touching, self.models, strict=True)):
            tables = [self._expected(f, c) for f, _ in mine]
            model.put(tables)
            log_z = model.forward(0.0)
            if log_z == -np.inf:
                continue
            beliefs = model.backward()
            energy = 0.0
            for (f, _), table, belief in zip(mine, tables, beliefs, strict=True):
                self.beliefs[f, c] = belief
                energy += float((belief * np.where(belief > 0, table, 0)).sum())
            self.entropies[c] = log_z - energy
        return self.limit()

    def climb(
        self, q: Sequence[np.ndarray], max_sweeps: int, tolerance: float, until: float = math.inf
    ) -> tuple[float, float, int]:
        """The limit after sweeps from a product of variables until it stands still, its last change, and their number.

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
        for f, (scope, held) in enumerate(zip(self.scopes, self.held, strict=True)):
            product, axes = np.ones(()), []
            for c, inside in held:
                product = np.multiply.outer(product, self.beliefs[f, c])
                axes += [scope.index(v) for v in inside]
            found.append(product.transpose(np.argsort(axes).astype(int)))
        return found

    def limit(self) -> float:
        """Σ_f E_q[φ_f] + Σ_c H(q_c); -inf where q takes an impossible row."""
        total = float(self.entropies.sum())
        for f, held in enumerate(self.held):
            if held:
                c = held[0][0]
                belief, table = self.beliefs[f, c], self._expected(f, c)
                total += float((belief * np.where(belief > 0, table, 0)).sum())
            else:
                total += float(self.tables[f])
        return total

    def _expected(self, f: int, c: int) -> np.ndarray:
        """E[φ_f | x_c]: the factor averaged over the other clusters."""
        held = self.held[f]
        if len(held) == 1:
            return self.tables[f]
        weights, axes = np.ones(()), []
        for other, inside in held:
            if other != c:
                weights = np.multiply.outer(weights, self.beliefs[f, other])
                axes += [self.scopes[f].index(v) for v in inside]
        kept = [a for a in range(len(self.scopes[f])) if a not in axes]
        table = self.tables[f].transpose(kept + axes)
        inner = tuple(range(len(kept), table.ndim))
        hard = table == -np.inf
        if not hard.any():
            return np.tensordot(table, weights, axes=(inner, tuple(range(weights.ndim))))
        mean = (np.where(hard | (weights == 0), 0, table) * weights).sum(axis=inner)
        return np.where((hard & (weights > 0)).any(axis=inner), -np.inf, mean)


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
    graph, order, limit = {v: set(u) for v, u in graph.items()}, [], math.log2(entries) + 1e-9
    logs = [math.log2(k) for k in sizes]
    while graph:
        v = min(graph, key=lambda v: len(graph[v]))
        around = graph[v]
        if logs[v] + sum(logs[u] for u in around) > limit and around:
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
