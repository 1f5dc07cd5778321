"""Elimination over the possible configurations alone: tables as keys and values, joined on what they share. NumPy alone.

Where most configurations are impossible, a table's support can be far smaller than the product of its variables' sizes, and with it the work.
How small is known only once it is computed, so the limits are kept while it runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lnz.exact import contraction
from lnz.exact.contraction import LOG_SUM, MAX, SUM, Algebra
from lnz.exact.orders import Plan, Scope

BLOCK = 2**21  # rows of a join that are held at one time
WORD = 62  # bits of a key
ROW_BYTES = 16  # of one entry: its key and its value


class Table(NamedTuple):
    """The possible entries of a table.

    Attributes:
        keys: sorted and different. Every variable has a field of bits, the first variable of the scope the lowest.
        entries: their values (n,), or logarithms, and the scope.
    """

    keys: np.ndarray
    entries: contraction.Table


class TooDear(ValueError):
    """The supports grow beyond the limits."""


class Sums:
    """Sums, marginals, maxima and samples over a contraction tree, of sparse tables.

    Args:
        plan: the tree.
        sizes: the number of values of every variable.
        most: entries that all tables together may have.
        seconds: time after which the pass gives up.

    Every method raises TooDear where the limits are passed.
    """

    def __init__(self, plan: Plan, sizes: Sequence[int], *, most: float, seconds: float):
        self.plan, self.most, self.until = plan, most, time.perf_counter() + seconds
        self.bits = [max(1, (k - 1).bit_length()) for k in sizes]
        self.entries = 0

    def leaf(self, logs: np.ndarray, scope: Scope) -> Table:
        """The possible entries of a table of log-potentials, its axes in the scope's order."""
        flat = logs.transpose().ravel()  # the first variable varies fastest, as in the keys
        places = np.flatnonzero(flat > -np.inf)
        keys, shift, rest = np.zeros(len(places), np.int64), 0, places
        for axis, v in enumerate(scope):
            rest, label = np.divmod(rest, logs.shape[axis])
            keys |= label << shift
            shift += self.bits[v]
        return Table(keys, contraction.from_logs(flat[places], scope))

    def upward(self, leaves: Sequence[np.ndarray], *, keep: bool) -> list[Table | None]:
        """The tables of all nodes, the last one a scalar. Without `keep`, tables are freed once they are used."""
        nodes: list[Table | None] = [
            self.leaf(table, scope) for table, scope in zip(leaves, self.plan.scopes, strict=False)
        ]
        for i, j, out, _ in self.plan.steps:
            a, b = nodes[i], nodes[j]
            assert a is not None and b is not None
            nodes.append(self._contract(a, b, out))
            if not keep:
                self._free(a, b)
                nodes[i] = nodes[j] = None
        return nodes

    def upward_max(self, leaves: Sequence[np.ndarray]) -> list[Table]:
        """As `upward`, of maxima of log-potentials."""
        nodes = [self.leaf(table, scope) for table, scope in zip(leaves, self.plan.scopes, strict=False)]
        nodes = [Table(keys, contraction.to_logs(entries)) for keys, entries in nodes]
        for i, j, out, _ in self.plan.steps:
            a, b = nodes[i], nodes[j]
            keys, values = self._reduced(MAX, a, b, out)
            scale = a.entries.scale + b.entries.scale
            nodes.append(Table(keys, contraction.Table(values, out, scale, logs=True)))
        return nodes

    def beliefs(self, nodes: Sequence[Table]) -> list[np.ndarray]:
        """The probability of every possible entry of every leaf, from the tables of `upward`."""
        found: list[np.ndarray] = [np.zeros(0)] * len(nodes)
        found[-1] = np.ones(len(nodes[-1].keys))
        for s in reversed(range(len(self.plan.steps))):
            i, j, out, _ = self.plan.steps[s]
            above, a, b = nodes[self.plan.leaves + s], nodes[i], nodes[j]
            belief = found[self.plan.leaves + s]
            mine, other = np.zeros(len(a.keys)), np.zeros(len(b.keys))
            for ia, ib, keys in self._rows(a, b, out):
                place = np.searchsorted(above.keys, keys)
                p = belief[place] * np.exp(_logs(a, ia) + _logs(b, ib) - _logs(above, place))
                mine += np.bincount(ia, p, len(mine))
                other += np.bincount(ib, p, len(other))
            found[i], found[j] = mine, other
            found[self.plan.leaves + s] = np.zeros(0)
        return found[: self.plan.leaves]

    def dense(self, table: Table, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Values of a table's possible entries in their places, and zeros."""
        whole = np.zeros(shape)
        whole[tuple(self._labels(table.keys, table.entries.scope))] = values
        return whole

    def descend(
        self, nodes: Sequence[Table], variables: int, count: int, pick: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Labels (count, variables), top down.

        Args:
            nodes: the tables of `upward` or `upward_max`.
            pick: from log weights and the row of every weight's group, in order, a function of groups: positions of the weights chosen for
                every state; see `largest` and `drawn`.
        """
        labels = np.zeros((count, variables), np.int64)
        for i, j, out, removed in reversed(self.plan.steps):
            if not removed:
                continue
            a, b = nodes[i], nodes[j]
            wanted, group = np.unique(self._keys(labels, out), return_inverse=True)
            found: list[tuple[np.ndarray, ...]] = []
            for ia, ib, keys in self._rows(a, b, out):
                place = np.searchsorted(wanted, keys).clip(max=len(wanted) - 1)
                hit = np.flatnonzero(wanted[place] == keys)
                found.append((place[hit], ia[hit], ib[hit]))
            place, ia, ib = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.argsort(place, kind="stable")
            place, ia, ib = place[order], ia[order], ib[order]
            starts = np.searchsorted(place, np.arange(len(wanted) + 1))
            chosen = pick(_logs(a, ia) + _logs(b, ib), starts)(group.reshape(-1))
            for table, rows in ((a, ia[chosen]), (b, ib[chosen])):
                scope = table.entries.scope
                for v, values in zip(scope, self._labels(table.keys[rows], scope), strict=True):
                    if v in removed:
                        labels[:, v] = values
        return labels

    def _contract(self, a: Table, b: Table, out: Scope) -> Table:
        terms = math.log(max(1, min(len(a.keys), len(b.keys)))) + 1e-9
        gone = {*a.entries.scope, *b.entries.scope}.difference(out)
        terms = min(terms + math.log(max(1, len(a.keys), len(b.keys))), sum(self.bits[v] for v in gone) * math.log(2))
        x, y = contraction.compatible(a.entries, b.entries, terms)
        a, b, scale = Table(a.keys, x), Table(b.keys, y), x.scale + y.scale
        keys, values = self._reduced(LOG_SUM if x.logs else SUM, a, b, out)
        self.entries += len(keys)
        if x.logs:
            return Table(keys, contraction.from_logs(values, out, scale))
        return Table(keys, contraction.Table(values, out, scale, x.low + y.low, x.high + y.high + terms))

    def _reduced(self, algebra: Algebra, a: Table, b: Table, out: Scope) -> tuple[np.ndarray, np.ndarray]:
        """The join of two tables, reduced to `out`: sorted keys and values."""
        width = sum(self.bits[v] for v in out)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        pending = 0
        for ia, ib, keys in self._rows(a, b, out):
            values = algebra.combine(a.entries.values[ia], b.entries.values[ib])
            parts.append(_grouped(algebra, keys, values, width))
            pending += len(parts[-1][0])
            if len(parts) > 1 and pending > 4 * BLOCK and pending > 2 * len(parts[0][0]):
                parts = [_grouped(algebra, *(np.concatenate(p) for p in zip(*parts, strict=True)), width)]
                pending = len(parts[0][0])
            if self.entries + pending > self.most:
                raise TooDear("memory")
        if len(parts) == 1:
            return parts[0]
        return _grouped(algebra, *(np.concatenate(p) for p in zip(*parts, strict=True)), width)

    def _rows(self, a: Table, b: Table, out: Scope) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of the pairs of entries that agree on the variables of both: their positions, and the keys of `out`."""
        swapped = len(b.keys) > len(a.keys)
        if swapped:
            a, b = b, a
        a_scope, b_scope = a.entries.scope, b.entries.scope
        if sum(self.bits[v] for v in out) > WORD:
            raise TooDear("more variables than a key holds")
        shared = tuple(v for v in a_scope if v in b_scope)
        mine, theirs = self._moved(a.keys, a_scope, shared), self._moved(b.keys, b_scope, shared)
        order = np.argsort(theirs, kind="stable")
        theirs = theirs[order]
        width = sum(self.bits[v] for v in shared)
        if 1 << width <= 4 * len(mine) + 2**12:
            starts = np.searchsorted(theirs, np.arange((1 << width) + 1))
            first, last = starts[mine], starts[mine + 1]
        else:
            first, last = np.searchsorted(theirs, mine), np.searchsorted(theirs, mine, side="right")
        key_a = self._moved(a.keys, a_scope, out)
        key_b = self._moved(b.keys, b_scope, tuple(out), without=shared)[order]
        ends = np.cumsum(last - first)
        begin = done = 0
        while True:
            if time.perf_counter() > self.until:
                raise TooDear("time")
            end = max(begin + 1, int(np.searchsorted(ends, done + BLOCK, side="right"))) if begin < len(ends) else begin
            counts = (last - first)[begin:end]
            total = int(counts.sum())
            ia = np.repeat(np.arange(begin, end), counts)
            offset = first[begin:end] - (np.cumsum(counts) - counts)
            ib = np.repeat(offset, counts) + np.arange(total)
            keys = key_a[ia] | key_b[ib]
            yield (order[ib], ia, keys) if swapped else (ia, order[ib], keys)
            if end >= len(ends):
                return
            begin, done = end, int(ends[end - 1])

    def _moved(self, keys: np.ndarray, scope: Scope, out: Scope, without: Scope = ()) -> np.ndarray:
        """Keys over `scope` as keys over `out`: fields of variables that it has not, or that are in `without`, are zero."""
        places, shift = {}, 0
        for v in out:
            places[v] = shift
            shift += self.bits[v]
        runs: list[list[int]] = []  # from, length, to
        shift = 0
        for v in scope:
            if v in places and v not in without:
                if runs and runs[-1][0] + runs[-1][1] == shift and runs[-1][2] + runs[-1][1] == places[v]:
                    runs[-1][1] += self.bits[v]
                else:
                    runs.append([shift, self.bits[v], places[v]])
            shift += self.bits[v]
        found = np.zeros(len(keys), np.int64)
        for start, length, to in runs:
            found |= ((keys >> start) & ((1 << length) - 1)) << to
        return found

    def _labels(self, keys: np.ndarray, scope: Scope) -> list[np.ndarray]:
        found, shift = [], 0
        for v in scope:
            found.append((keys >> shift) & ((1 << self.bits[v]) - 1))
            shift += self.bits[v]
        return found

    def _keys(self, labels: np.ndarray, scope: Scope) -> np.ndarray:
        keys, shift = np.zeros(len(labels), np.int64), 0
        for v in scope:
            keys |= labels[:, v] << shift
            shift += self.bits[v]
        return keys

    def _free(self, *tables: Table) -> None:
        self.entries -= sum(len(table.keys) for table in tables)


def log_total(table: Table) -> float:
    """The logarithm of the sum of all entries."""
    return contraction.log_total(table.entries) if len(table.keys) else -math.inf


def _logs(table: Table, rows: np.ndarray) -> np.ndarray:
    values = table.entries.values[rows]
    return (values if table.entries.logs else np.log(values)) + table.entries.scale


def _grouped(algebra: Algebra, keys: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Different keys, sorted, and their values reduced."""
    if algebra is SUM and 1 << width <= 2 * len(keys) + 64:
        sums = np.bincount(keys, values, 1 << width)
        found = np.flatnonzero(sums)
        return found, sums[found]
    if len(keys) < 2:
        return keys, values
    if not (keys[1:] >= keys[:-1]).all():
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
    new = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    if len(new) == len(keys):
        return keys, values
    return keys[new], algebra.reduce.reduceat(values, new)


def largest(weights: np.ndarray, starts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The largest weight of every group."""
    top = np.maximum.reduceat(weights, starts[:-1])
    best = np.flatnonzero(weights == np.repeat(top, np.diff(starts)))
    first = best[np.searchsorted(best, starts[:-1])]
    return lambda group: first[group]


def drawn(rng: np.random.Generator) -> Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """Weights drawn in proportion to their exponentials, within every group."""

    def pick(weights: np.ndarray, starts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        sizes = np.diff(starts)
        shares = np.exp(weights - np.repeat(np.maximum.reduceat(weights, starts[:-1]), sizes))
        shares /= np.repeat(np.add.reduceat(shares, starts[:-1]), sizes)
        # One increasing list for all groups: the shares of group g lie in (g, g + 1].
        whole = np.cumsum(shares)
        before = np.repeat(whole[starts[:-1]] - shares[starts[:-1]], sizes)
        number = np.repeat(np.arange(len(sizes)), sizes)
        list_of = number + np.minimum(whole - before, 1.0)
        last = starts[1:] - 1
        list_of[last] = np.arange(1, len(sizes) + 1)

        def draw(group: np.ndarray) -> np.ndarray:
            return np.searchsorted(list_of, group + (1 - rng.random(len(group))))

        return draw

    return pick
