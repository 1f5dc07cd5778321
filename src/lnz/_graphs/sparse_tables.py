"""Elimination over the possible configurations alone: tables as keys and values, joined on shared variables. NumPy alone.

Where most configurations are impossible, a table's support can be far smaller than the product of its variables' sizes, and with it the work.
How small is known only once it is computed, so the budget is checked while it runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs import contraction, orders, table_products
from lnz._graphs.contraction_plan import ContractionPlan, Scope
from lnz._graphs.table_products import LOG_SUM, MAX, SUM, Algebra

BLOCK = 2**21  # rows of a join held at one time
WORD = 62  # bits of a key
ENTRY_BYTES = 64  # per entry: key, value, and copies while it is sorted and joined
FIRST = 2**17  # the most entries of the first trials
FACTOR = 8  # growth of that from round to round
TRIES = 5  # trials per round


class SparseTable(NamedTuple):
    """The possible entries of a table.

    Attributes:
        keys: sorted and different. Every variable has a field of bits, the first variable of the scope the lowest.
        entries: their values (n,), or logarithms, and the scope.
    """

    keys: np.ndarray
    entries: contraction.ScaledTable


Pick = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class TooExpensive(ValueError):
    """The supports exceed the budget."""


class SparseSums:
    """Sums, marginals, maxima and samples over a contraction tree of sparse tables.

    Args:
        plan: the tree.
        scopes, tables: the log-potentials.
        sizes: the number of values of every variable.
        most: the most entries of all tables together.
        seconds: time after which the pass gives up.

    Every method raises TooExpensive where the budget is exceeded.
    """

    def __init__(
        self,
        plan: ContractionPlan,
        scopes: Sequence[Scope],
        tables: Sequence[np.ndarray],
        sizes: Sequence[int],
        *,
        most: float,
        seconds: float,
    ):
        self.plan = plan
        self.scopes = scopes
        self.sizes = sizes
        self.most = most
        self.until = time.perf_counter() + seconds
        self.leaves = [
            table_products.permuted(table, *pair) for table, *pair in zip(tables, scopes, plan.scopes, strict=False)
        ]
        self.block = int(min(BLOCK, max(most, 64)))
        self.bits = [max(1, (k - 1).bit_length()) for k in sizes]
        self.entries = 0  # held now
        self.peak = 0  # the most held
        self.made = 0  # in all
        self.rows = 0  # of all joins

    def leaf(self, logs: np.ndarray, scope: Scope) -> SparseTable:
        """The possible entries of a table of log-potentials, its axes in the scope's order."""
        flat = logs.transpose().ravel()  # the first variable varies fastest, as in the keys
        places = np.flatnonzero(flat > -np.inf)
        keys, shift, rest = np.zeros(len(places), np.int64), 0, places
        for axis, v in enumerate(scope):
            rest, label = np.divmod(rest, logs.shape[axis])
            keys |= label << shift
            shift += self.bits[v]
        return SparseTable(keys, contraction.from_logs(flat[places], scope))

    def upward(self, *, keep: bool) -> list[Any]:
        """The tables of all nodes, the last one a scalar. Without `keep`, tables are freed once they are used."""
        nodes: list[Any] = [self.leaf(*pair) for pair in zip(self.leaves, self.plan.scopes, strict=False)]
        for i, j, out, _ in self.plan.steps:
            nodes.append(self._contract(nodes[i], nodes[j], out))
            if not keep:
                self.entries -= sum(len(nodes[child].keys) for child in (i, j) if child >= self.plan.leaves)
                nodes[i] = nodes[j] = None
        return nodes

    def log_total(self) -> float:
        """The logarithm of the sum over all configurations."""
        return _log_total(self.upward(keep=False)[-1])

    def beliefs(self) -> tuple[float, list[np.ndarray]]:
        """The logarithm of the sum over all configurations, and P(x_scope) for every table: all zero where none is possible."""
        nodes = self.upward(keep=True)
        log_z = _log_total(nodes[-1])
        found: list[np.ndarray] = [np.zeros(0)] * len(nodes)
        found[-1] = np.ones(len(nodes[-1].keys))
        for s in reversed(range(len(self.plan.steps))):
            i, j, out, _ = self.plan.steps[s]
            top = self.plan.leaves + s
            above, a, b, belief = nodes[top], nodes[i], nodes[j], found[top]
            found[i], found[j] = np.zeros(len(a.keys)), np.zeros(len(b.keys))
            for ia, ib, keys in self._rows(a, b, out):
                place = np.searchsorted(above.keys, keys)
                # The share of a pair of entries in the entry to which they contribute.
                p = belief[place] * np.exp(_logs(a, ia) + _logs(b, ib) - _logs(above, place))
                found[i] += np.bincount(ia, p, len(a.keys))
                found[j] += np.bincount(ib, p, len(b.keys))
            nodes[top], found[top] = None, np.zeros(0)
        whole = []
        for leaf, scope in enumerate(self.scopes):
            keys, entries = nodes[leaf]
            table = np.zeros(self.leaves[leaf].shape)
            table[tuple(self._labels(keys, entries.scope)) or ...] = found[leaf] if scope else found[leaf].sum()
            whole.append(table_products.permuted(table, entries.scope, scope))
        return log_z, whole

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Independent exact samples: labels (count, variables). Raises ValueError where no configuration is possible."""
        return self._descend(self.upward(keep=True), count, _drawn(rng))

    def most_probable(self) -> np.ndarray:
        """The labels (1, variables) of the largest product. Raises ValueError where no configuration is possible."""
        nodes = [self.leaf(*pair) for pair in zip(self.leaves, self.plan.scopes, strict=False)]
        nodes = [SparseTable(keys, contraction.to_logs(entries)) for keys, entries in nodes]
        for i, j, out, _ in self.plan.steps:
            a, b = nodes[i], nodes[j]
            keys, values = self._reduced(MAX, a, b, out)
            self.entries += len(keys)
            scale = a.entries.scale + b.entries.scale
            nodes.append(SparseTable(keys, contraction.ScaledTable(values, out, scale, logs=True)))
        return self._descend(nodes, 1, _largest)

    def _descend(self, nodes: Sequence[SparseTable], count: int, pick: Pick) -> np.ndarray:
        """Labels (count, variables), top down: given a node's own variables, `pick` chooses one of the pairs of entries that contribute to them."""
        labels = np.zeros((count, len(self.sizes)), np.int64)
        contraction.check_possible(_log_total(nodes[-1]))
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
            chosen = pick(_logs(a, ia) + _logs(b, ib), starts, group.reshape(-1))
            for table, rows in ((a, ia[chosen]), (b, ib[chosen])):
                scope = table.entries.scope
                for v, values in zip(scope, self._labels(table.keys[rows], scope), strict=True):
                    if v in removed:
                        labels[:, v] = values
        return labels

    def _contract(self, a: SparseTable, b: SparseTable, out: Scope) -> SparseTable:
        terms = math.log(max(1, min(len(a.keys), len(b.keys)))) + 1e-9
        gone = {*a.entries.scope, *b.entries.scope}.difference(out)
        terms = min(terms + math.log(max(1, len(a.keys), len(b.keys))), sum(self.bits[v] for v in gone) * math.log(2))
        x, y = contraction.compatible(a.entries, b.entries, terms)
        a, b, scale = SparseTable(a.keys, x), SparseTable(b.keys, y), x.scale + y.scale
        keys, values = self._reduced(LOG_SUM if x.logs else SUM, a, b, out)
        self.entries += len(keys)
        self.made += len(keys)
        if x.logs:
            return SparseTable(keys, contraction.from_logs(values, out, scale))
        return SparseTable(keys, contraction.ScaledTable(values, out, scale, x.low + y.low, x.high + y.high + terms))

    def _reduced(self, algebra: Algebra, a: SparseTable, b: SparseTable, out: Scope) -> tuple[np.ndarray, np.ndarray]:
        """The join of two tables, reduced to `out`: sorted keys and values."""
        width = sum(self.bits[v] for v in out)
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        pending = 0
        for ia, ib, keys in self._rows(a, b, out):
            values = algebra.combine(a.entries.values[ia], b.entries.values[ib])
            parts.append(_grouped(algebra, keys, values, width))
            pending += len(parts[-1][0])
            if len(parts) > 1 and pending > 4 * self.block and pending > 2 * len(parts[0][0]):
                parts = [_merged(algebra, parts, width)]
                pending = len(parts[0][0])
            self.rows += len(keys)
            self.peak = max(self.peak, self.entries + pending)
            if self.peak > self.most:
                raise TooExpensive("the possible entries do not fit")
        return _merged(algebra, parts, width)

    def _rows(self, a: SparseTable, b: SparseTable, out: Scope) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Blocks of the pairs of entries that agree on the variables of both: their positions, and the keys of `out`."""
        swapped = len(b.keys) > len(a.keys)
        if swapped:
            a, b = b, a
        a_scope, b_scope = a.entries.scope, b.entries.scope
        if sum(self.bits[v] for v in out) > WORD:
            raise TooExpensive(f"tables of more than {WORD} bits")
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
                raise TooExpensive("the time is over")
            end = (
                max(begin + 1, int(np.searchsorted(ends, done + self.block, side="right")))
                if begin < len(ends)
                else begin
            )
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
        """Keys over `scope` as keys over `out`: fields of variables that it lacks, or that are in `without`, are zero."""
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


def searched(
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    sizes: Sequence[int],
    *,
    memory: float,
    seconds: float,
    seed: int,
) -> ContractionPlan:
    """A search for a tree along which the supports stay small, with the figures of a trial run.

    Trees differ by orders of magnitude in their supports, and estimates rank them only roughly. So the most promising are tried with a
    small budget of entries, then the best of more trees with a larger one, and so on.

    Raises:
        TooExpensive: where none was found within the budget.
    """
    begun, most = time.perf_counter(), memory / ENTRY_BYTES
    counts = [math.log2(max(1, np.count_nonzero(table > -np.inf))) for table in tables]
    trees, pool, reason = orders.candidates(scopes, sizes, seed), [], "no trial was made"
    allowed = min(FIRST, most)
    while True:
        for plan in itertools.islice(trees, 2 * TRIES):
            pool.append((estimated(plan, counts, sizes), len(pool), plan))
            if time.perf_counter() - begun > seconds / 3:
                break
        pool.sort()
        for _, _, plan in pool[:TRIES]:
            left = seconds - (time.perf_counter() - begun)
            sums, trial = SparseSums(plan, scopes, tables, sizes, most=allowed, seconds=left), time.perf_counter()
            try:
                sums.upward(keep=False)
            except TooExpensive as error:
                reason = str(error)
                if time.perf_counter() > sums.until:
                    raise
                continue
            return dataclasses.replace(
                plan,
                log10_flops=math.log10(max(1, sums.rows)),
                peak_bytes=float(ENTRY_BYTES * sums.peak),
                all_bytes=float(ENTRY_BYTES * sums.made),
                seconds=time.perf_counter() - trial,
                supports=True,
            )
        if allowed >= most:
            raise TooExpensive(reason)
        allowed = min(FACTOR * allowed, most)


def estimated(plan: ContractionPlan, counts: Sequence[float], sizes: Sequence[int]) -> float:
    """log2 of the rows of all joins, if the shared variables of two tables were independent of the others."""
    logs = [math.log2(k) for k in sizes]
    found, total = list(counts), 0.0
    for i, j, out, _ in plan.steps:
        both = sum(logs[v] for v in set(plan.scopes[i]).intersection(plan.scopes[j]))
        rows = max(0.0, found[i] + found[j] - min(both, max(found[i], found[j])))
        found.append(min(rows, sum(logs[v] for v in out)))
        total += 2.0**rows
    return math.log2(total) if total else 0.0


def _log_total(table: SparseTable) -> float:
    return contraction.log_total(table.entries).item() if len(table.keys) else -math.inf


def _logs(table: SparseTable, rows: np.ndarray) -> np.ndarray:
    values = table.entries.values[rows]
    return (values if table.entries.logs else np.log(values)) + table.entries.scale


def _grouped(algebra: Algebra, keys: np.ndarray, values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys, sorted, and their values reduced."""
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


def _merged(algebra: Algebra, parts: list[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    keys, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _grouped(algebra, keys, values, width)


def _largest(weights: np.ndarray, starts: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The position of the largest log weight in the group of every state; group g's weights begin at starts[g]."""
    top = np.maximum.reduceat(weights, starts[:-1])
    best = np.flatnonzero(weights == np.repeat(top, np.diff(starts)))
    return best[np.searchsorted(best, starts[:-1])][group]


def _drawn(rng: np.random.Generator) -> Pick:
    """A position in the group of every state, drawn in proportion to the weights."""

    def pick(weights: np.ndarray, starts: np.ndarray, group: np.ndarray) -> np.ndarray:
        sizes = np.diff(starts)
        shares = np.exp(weights - np.repeat(np.maximum.reduceat(weights, starts[:-1]), sizes))
        shares /= np.repeat(np.add.reduceat(shares, starts[:-1]), sizes)
        whole = np.cumsum(shares)
        within = np.minimum(whole - np.repeat(whole[starts[:-1]] - shares[starts[:-1]], sizes), 1.0)
        within[starts[1:] - 1] = 1.0
        # One increasing list for all groups: the shares of group g lie in (g, g + 1].
        ladder = np.repeat(np.arange(len(sizes)), sizes) + within
        return np.searchsorted(ladder, group + (1 - rng.random(len(group))))

    return pick
