"""Anytime bounds of log Z: exact where that is affordable, otherwise bounds that tighten until time runs out. Does not import JAX."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from lnz._graphs import messages
from lnz._graphs.buckets import EPS, BucketTree, bucket_tree
from lnz._graphs.buckets import tighten as tighten_buckets
from lnz._graphs.contraction_plan import Scope
from lnz._graphs.mean_field import Clusters, climb
from lnz._graphs.orders import least_fill
from lnz._graphs.propagation import propagated
from lnz._graphs.solver import EliminationBudget, Solver, first_plan

MEMORY = 2.0**32  # bytes, by default
SWEEPS = 12.0  # planned for each bound within its share of the time
ENTRY_SECONDS, CLUSTER_SECONDS = 3e-8, 8e-5  # per entry and per mini-bucket, of one sweep up and down
LEAST_LEVEL = 8  # tables of 2^8 entries: smaller ones make more mini-buckets, which take as long
ENTRY_BYTES = 14.0  # a sweep keeps one table of shares, and works on one more at a time
DENSE = 64.0  # mean number of factors per variable above which a search for an order takes too long
HOPE = 50.0  # a longer search is tried only if the first plan takes at most this multiple of the time
LOSSES = 2  # structured mean field is given up after so many rounds in a row without a better bound


@dataclasses.dataclass
class Interval:
    """Bounds of log Z in nats, found so far.

    Attributes:
        lower, upper: bounds that always hold.
        value: log Z where it is exact; otherwise the Bethe approximation where it converged between the bounds, or their middle.
        exact: whether the bounds differ by rounding alone.
        lower_by, upper_by, value_by: the methods that gave them, in words.
        seconds: the time since the start.
        timed_out: whether time ran out before the interval was as narrow as wanted.
        history: (seconds, lower, upper) whenever one of them moved.
    """

    lower: float = -math.inf
    upper: float = math.inf
    value: float = 0.0
    exact: bool = False
    lower_by: str = "nothing yet"
    upper_by: str = "nothing yet"
    value_by: str = "the middle of the bounds"
    seconds: float = 0.0
    timed_out: bool = False
    history: list[tuple[float, float, float]] = dataclasses.field(default_factory=list)

    @property
    def width(self) -> float:
        """upper - lower, in nats; 0 where both are -inf."""
        return 0.0 if self.lower == self.upper else self.upper - self.lower

    def sentence(self) -> str:
        """The methods behind each bound in words, and whether time ran out."""
        if self.exact:
            return self.lower_by
        text = f"lower bound by {self.lower_by}, upper bound by {self.upper_by}, value: {self.value_by}"
        return text + (
            f"; stopped after {self.seconds:.3g} s with a gap of {self.width:.3g} nats" if self.timed_out else ""
        )


def tighten(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    *,
    within: float = 0.1,
    max_seconds: float = 60.0,
    max_memory: float | None = None,
    seed: int = 0,
    exact_first: bool = True,
    watch: Callable[[Interval], None] | None = None,
) -> Interval:
    """Bounds of log Z = log Σ_x exp Σ_f φ_f(x), until they are `within` nats of each other or time runs out.

    Elimination gives log Z where its predicted time is at most half of the time left. Otherwise weighted mini-buckets tighten both sides, in
    rounds of doubled time, each with larger tables and another order; structured mean field competes for the lower bound as long as it improves it.

    Args:
        cardinalities: the number of values of each variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor in nats, -inf where a configuration is impossible.
        within: the width at which to stop, in nats.
        max_seconds: the time at which to stop. A sweep that has begun is finished.
        max_memory: bytes that tables may take; by default 4 GiB.
        seed: for the orders and the starting points.
        exact_first: whether to try elimination.
        watch: called whenever a bound has moved.

    Raises:
        ValueError: where `within` or `max_seconds` is not above 0, or a log-potential is NaN.
    """
    for name, number in (("within", within), ("max_seconds", max_seconds), ("max_memory", max_memory)):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be a number above 0, but is {number!r}")
    if any(np.isnan(table).any() for table in tables):
        raise ValueError("log Z is NaN: a log-potential is NaN. Check the parameters")
    search = _Tightening(cardinalities, scopes, tables, within, max_seconds, max_memory or MEMORY, seed, watch)
    if not (exact_first and search.exactly()) and search.solver.reduced.possible:
        search.approximately()
        number = 0
        while not search.met() and search.left() > 0:
            search.round(number)
            number += 1
    return search.closed()


class _Tightening:
    """The state of `tighten`."""

    def __init__(
        self,
        cardinalities: Sequence[int],
        scopes: Sequence[Scope],
        tables: Sequence[np.ndarray],
        within: float,
        max_seconds: float,
        memory: float,
        seed: int,
        watch: Callable[[Interval], None] | None,
    ):
        self.begun = time.perf_counter()
        self.within = within
        self.max_seconds = max_seconds
        self.memory = memory
        self.seed = seed
        self.watch = watch
        self.found = Interval()
        self.bethe = math.nan
        self.solver = Solver(cardinalities, scopes, tables, EliminationBudget(memory, max_seconds, 0.0, seed))
        model = self.solver.reduced
        self.constant = model.constant
        free = set(model.free)  # counted in the constant
        self.sizes = tuple(1 if v in free else k for v, k in enumerate(model.sizes))
        self.scopes = tuple(scope for scope in model.scopes if scope)
        self.tables = [table for scope, table in zip(model.scopes, model.tables, strict=True) if scope]
        largest = max((float(np.abs(t[t > -np.inf]).max(initial=0)) for t in tables), default=0.0)
        # Rounding error of merging tables, per unit of log Z.
        self.rounding = EPS * (32 + math.sqrt(len(scopes))) * (1 + largest)
        self.level = LEAST_LEVEL
        self.slowness = 1.0
        self.lost = 0
        self.start: list[np.ndarray] = []

    def left(self) -> float:
        return self.max_seconds - (time.perf_counter() - self.begun)

    def met(self) -> bool:
        return self.found.exact or self.found.width <= self.within

    def exactly(self) -> bool:
        """Compute log Z, and so both bounds, by elimination if that takes at most half of the time. Returns whether it did."""
        if not self.solver.reduced.possible:
            self._equal(-math.inf, "no configuration is possible")
            return True
        if self._density() > DENSE:
            return False
        for search in (min(0.5, 0.05 * self.max_seconds), min(10.0, 0.15 * self.max_seconds)):
            self.solver.budget = budget = EliminationBudget(self.memory, 0.5 * self.max_seconds, search, self.seed)
            try:
                plan = self.solver.plan()
            except ValueError:
                try:
                    if first_plan(budget, self.solver.reduced).seconds > HOPE * self.max_seconds:
                        return False
                except ValueError:
                    return False
            else:
                self._equal(self.solver.log_partition(), f"elimination, width {plan.width}")
                return True
        return False

    def approximately(self) -> None:
        """First bounds: from above by the largest entries, from below by naive mean field; and the Bethe approximation by belief propagation."""
        largest = math.fsum(float(table.max()) for table in self.tables)
        states = math.fsum(math.log(self.sizes[v]) for v in {v for scope in self.scopes for v in scope})
        self._above(largest + states + self.constant, "the largest entry of every factor")
        model = messages.merged(self.sizes, self.scopes, self.tables)
        until = time.perf_counter() + 0.1 * self.left()
        best = climb(model, restarts=4, max_sweeps=100, tolerance=1e-4, seed=self.seed, until=until)
        self.start = [row[:k] for row, k in zip(best.q, self.sizes, strict=True)]
        self._below(best.value + model.constant + self.constant, "mean field")
        until = time.perf_counter() + 0.1 * self.left()
        passed, residual, _ = propagated(model, damping=0.1, max_sweeps=300, tolerance=1e-4, until=until)
        if residual <= 1e-4:
            self.bethe = passed.log_z() + model.constant + self.constant

    def round(self, number: int) -> None:
        """One round: mini-buckets on both sides along another order, with tables sized for half of the elapsed time, then mean field on clusters."""
        share = max(0.25, 0.75 * (self.max_seconds - self.left()))
        share = self.left() if self.left() < 1.5 * share else share
        tree = self._sized(self._order(self.seed + number), share / 2)
        potentials = tree.arranged(self.tables)
        for upper in (False, True):
            if self.met() or self.left() <= 0:
                return
            begun = time.perf_counter()
            tolerance = 1e-4 + 1e-3 * self.within
            run = tighten_buckets(
                tree, potentials, upper=upper, sweeps=1000, tolerance=tolerance, until=begun + share / 2
            )
            took = (time.perf_counter() - begun) / max(1, run.sweeps)
            self.slowness = min(10.0, max(0.1, took / _sweep_seconds(tree)))
            words = f"mini-buckets of up to 2^{self.level} entries"
            if not tree.is_split:
                allowance = run.rounding if upper else -run.rounding  # is in the value
                self._equal(run.value + self.constant - allowance, words + ", none of them split", run.rounding)
            elif upper:
                self._above(run.value + self.constant, words)
            else:
                self._below(run.value + self.constant, words)
        if self.lost < LOSSES and not self.met() and self.left() > 0:
            until, before = time.perf_counter() + 0.25 * share, self.found.lower
            clusters = Clusters(self.sizes, self.scopes, self.tables, 2.0**self.level)
            value, _, _ = clusters.climb(self.start, 100, 1e-3, until)
            self._below(value + self.constant, f"mean field on clusters summed in up to 2^{self.level} entries")
            self.lost = 0 if self.found.lower > before else self.lost + 1

    def closed(self) -> Interval:
        """The interval with its value and time."""
        found = self.found
        found.seconds, found.timed_out = time.perf_counter() - self.begun, not self.met()
        if found.exact:
            return found
        if found.lower <= self.bethe <= found.upper:
            found.value, found.value_by = self.bethe, "the Bethe approximation"
        elif found.lower > -math.inf:
            found.value, found.value_by = 0.5 * (found.lower + found.upper), "the middle of the bounds"
        else:
            found.value, found.value_by = found.upper, "the upper bound"
        return found

    def _order(self, seed: int) -> list[int]:
        if self._density() <= DENSE:
            return least_fill(self.scopes, self.sizes, seed)
        degree = np.bincount([v for scope in self.scopes for v in scope], minlength=len(self.sizes))
        return np.lexsort((np.random.default_rng(seed).random(len(degree)), degree)).tolist()

    def _density(self) -> float:
        """The mean number of factors per variable."""
        return sum(map(len, self.scopes)) / max(1, len(self.sizes))

    def _sized(self, order: list[int], seconds: float) -> BucketTree:
        """Mini-buckets with the largest tables for which several sweeps fit into the time and one into the memory."""
        tree, room = self._made(self.level, order, seconds)
        while room < 1 and self.level > LEAST_LEVEL:
            self.level -= 1
            tree, room = self._made(self.level, order, seconds)
        while tree.is_split:
            step = max(1, int(0.7 * math.log2(max(1.0, room))))
            wider, left = self._made(self.level + step, order, seconds)
            if left < 1 and step > 1:
                step = 1
                wider, left = self._made(self.level + 1, order, seconds)
            if left < min(1.0, 0.85 * room):  # larger tables that hardly take longer are used too
                break
            self.level += step
            tree, room = wider, left
        return tree

    def _made(self, level: int, order: list[int], seconds: float) -> tuple[BucketTree, float]:
        """Mini-buckets of 2^level entries, and the smaller ratio of available to needed: of time for all sweeps, of memory for one."""
        tree = bucket_tree(self.sizes, self.scopes, order, entries=2.0**level)
        times = seconds / (SWEEPS * self.slowness * _sweep_seconds(tree))
        return tree, min(times, self.memory / (ENTRY_BYTES * tree.entries))

    def _equal(self, value: float, words: str, rounding: float = 0.0) -> None:
        found, wide = self.found, 0.0 if value == -math.inf else rounding + self.rounding * (1 + abs(value))
        found.exact = True
        found.value, found.value_by = value, words
        found.lower, found.lower_by = value - wide, words
        found.upper, found.upper_by = value + wide, words
        self._moved()

    def _below(self, value: float, words: str) -> None:
        value -= self.rounding * (1 + abs(value)) if value > -math.inf else 0.0
        if value > self.found.lower:
            self.found.lower, self.found.lower_by = value, words
            self._moved()

    def _above(self, value: float, words: str) -> None:
        if value == -math.inf:
            self._equal(value, words)
            return
        value += self.rounding * (1 + abs(value))
        if value < self.found.upper:
            self.found.upper, self.found.upper_by = value, words
            self._moved()

    def _moved(self) -> None:
        found = self.found
        found.seconds = time.perf_counter() - self.begun
        found.history.append((found.seconds, found.lower, found.upper))
        if self.watch is not None:
            self.watch(found)


def _sweep_seconds(tree: BucketTree) -> float:
    return ENTRY_SECONDS * tree.entries + CLUSTER_SECONDS * len(tree.clusters)
