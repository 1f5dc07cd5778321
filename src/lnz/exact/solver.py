"""Elimination in NumPy: what a model's tables give, exactly, and what it will cost. Imports no JAX."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lnz.exact import contraction, orders, reduced
from lnz.exact.orders import Plan, Scope
from lnz.exact.reduced import Reduced


@dataclasses.dataclass(frozen=True)
class Limits:
    """What elimination may cost.

    Attributes:
        max_memory: bytes that tables may take; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, there is no answer but a refusal with the figures.
        search_seconds: processor time to look for an order; by default a third of the predicted work that a better one could spare.
        seed: of that search.
    """

    max_memory: float | None = None
    max_seconds: float = 3600.0
    search_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_memory", "max_seconds", "search_seconds"):
            value = getattr(self, name)
            if value is not None and not value > (-1 if name == "search_seconds" else 0):
                raise ValueError(f"{name} must be a number above 0, but is {value!r}")

    @property
    def memory(self) -> float:
        """Bytes that tables may take: `max_memory`, or half of the machine's."""
        half = 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return half if self.max_memory is None else self.max_memory


def plan_within(limits: Limits, model: Reduced, *, every: bool) -> Plan:
    """The contraction tree for a model. Raises ValueError, with the figures, where it would cost more than the limits.

    Args:
        every: whether all tables must fit at once, as marginals and samples need it, or only those at the peak.
    """
    memory = limits.memory
    sizes = tuple(model.sizes)
    best = first_plan(limits, model)
    fitted = orders.sliced(best, sizes, memory, every=every)
    if not every:  # slices that stay in the caches can be much quicker than the whole
        near = orders.sliced(best, sizes, min(memory, 2.0**26), every=False)
        fitted = near if near.seconds < 0.8 * fitted.seconds else fitted
    need = fitted.all_bytes if every else fitted.peak_bytes
    seconds = fitted.seconds * (1 + contraction.DOWN if every else 1)
    if need > memory or seconds > limits.max_seconds:
        raise ValueError(
            f"too dear to be summed exactly: {fitted}, where max_memory is {orders.size_text(memory)} and max_seconds "
            f"{limits.max_seconds:g}. Raise them, give evidence, or take a stochastic route"
        )
    return fitted


def first_plan(limits: Limits, model: Reduced) -> Plan:
    """The cheapest tree that the search finds, whatever memory it takes."""
    found = _searched(tuple(model.scopes), tuple(model.sizes), limits.search_seconds, limits.seed)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.lru_cache(maxsize=64)
def _searched(scopes: tuple[Scope, ...], sizes: tuple[int, ...], seconds: float | None, seed: int) -> Plan | str:
    """The plan, or why there is none: both are remembered."""
    try:
        return orders.plan(scopes, sizes, seconds=seconds, seed=seed)
    except ValueError as error:
        return str(error)


def described(variables: int, factors: int) -> str:
    """Elimination in words, as an estimate names its route."""
    return f"elimination of {variables:,} variables from {factors:,} factors"


def rounding(log_z: Any, largest: Any, factors: int, eps: Any) -> Any:
    """What rounding may have done to log Z (finite), in nats, of log-potentials up to `largest` in size, where 1 + eps is the next number."""
    return eps * (32 + math.sqrt(factors)) * (1 + largest + abs(log_z))


class Solver:
    """The exact answers about one model, from log-potentials in NumPy.

    Args:
        cardinalities: of every variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor in nats, -inf where a configuration is impossible.
        limits: what the answers may cost. Every method raises ValueError, with the figures, where it would cost more.
        progress: told, after every step, the stage in words and the share of its predicted time that is done, from 0 to 1.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        scopes: Sequence[Scope],
        tables: Sequence[np.ndarray],
        limits: Limits,
        *,
        progress: Callable[[str, float], None] | None = None,
    ):
        self.cardinalities, self.scopes, self.tables, self.limits = cardinalities, scopes, tables, limits
        self.progress = progress
        self.reduced = reduced.reduce(cardinalities, scopes, tables)

    def plan(self, *, every: bool = False) -> Plan:
        """The contraction tree; of one that keeps `every` table, for all but log Z."""
        return plan_within(self.limits, self.reduced, every=every)

    def log_partition(self) -> float:
        """log Z, in nats; -inf where no configuration is possible."""
        plan = self.plan()
        if not self.reduced.possible:
            return -math.inf
        sizes, done = self.reduced.sizes, self._meter("log Z", plan.seconds)
        parts = [
            contraction.log_total(contraction.upward(plan, leaves, sizes, keep=False, done=done)[-1])
            for _, leaves in self._tables(plan)
        ]
        return float(np.logaddexp.reduce(parts)) + self.reduced.constant

    def rounding(self, log_z: float) -> float:
        """What rounding may have done to log Z, in nats."""
        finite = (np.abs(table, where=table > -np.inf, out=np.zeros(table.shape)) for table in self.tables)
        largest = max((float(size.max(initial=0)) for size in finite), default=0.0)
        return rounding(log_z if math.isfinite(log_z) else 0.0, largest, len(self.scopes), np.finfo(float).eps)

    def marginals(self) -> list[np.ndarray]:
        """P(x_i) of every variable: arrays (k_i,). All zero where Z is."""
        model, (log_z, leaves) = self.reduced, self._beliefs()
        home: dict[int, int] = {}
        for leaf in sorted(range(len(leaves)), key=lambda leaf: -leaves[leaf].size):
            home.update(dict.fromkeys(model.scopes[leaf], leaf))  # the smallest table of every variable
        found = []
        for i, k in enumerate(self.cardinalities):
            belief = np.zeros(k)
            if i in home:
                axes = tuple(axis for axis, v in enumerate(model.scopes[home[i]]) if v != i)
                belief[model.domains[i]] = leaves[home[i]].sum(axis=axes)
            elif log_z > -math.inf:
                belief[model.domains[i]] = 1 / len(model.domains[i])
            found.append(belief)
        return found

    def factor_marginals(self) -> list[np.ndarray]:
        """P(x_scope) of every factor, with zeros at the values that were pruned. All zero where Z is."""
        return self.log_partition_and_factor_marginals()[1]

    def log_partition_and_factor_marginals(self) -> tuple[float, list[np.ndarray]]:
        """log Z and P(x_scope) of every factor, by one pass up the tree and one down."""
        log_z, beliefs = self._beliefs()
        if log_z == -math.inf:
            return log_z, [np.zeros([self.cardinalities[i] for i in scope]) for scope in self.scopes]
        return log_z, self.reduced.spread(beliefs, self.cardinalities, self.scopes)

    def entropy(self) -> float:
        """-Σ p log p, in nats: log Z - Σ_f E[φ_f]."""
        log_z, beliefs = self.log_partition_and_factor_marginals()
        _refuse_impossible(log_z)
        return log_z - sum(
            float(b.ravel() @ np.where(b > 0, t, 0).ravel()) for b, t in zip(beliefs, self.tables, strict=True)
        )

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent exact samples: the numbers of the values (n, variables)."""
        model, plan = self.reduced, self.plan(every=True)
        done = self._meter("samples", 2 * plan.seconds)

        def nodes(leaves: list[contraction.Table]) -> list[Any]:
            return contraction.upward(plan, leaves, model.sizes, keep=True, done=done)

        logs = np.array([contraction.log_total(nodes(leaves)[-1]) for _, leaves in self._tables(plan)])
        _refuse_impossible(logs.max(initial=-np.inf) if model.possible else -np.inf)
        shares = np.exp(logs - logs.max())
        counts = rng.multinomial(n, shares / shares.sum())
        parts = [np.zeros((0, len(model.sizes)), np.int64)]
        for count, (fixed, leaves) in zip(counts, self._tables(plan), strict=True):
            if count:
                labels = contraction.descend(plan, nodes(leaves), model.sizes, int(count), contraction.drawn(rng))
                labels[:, list(fixed)] = list(fixed.values())
                parts.append(labels)
        labels = np.concatenate(parts)
        for i in model.free:
            labels[:, i] = rng.integers(model.sizes[i], size=n)
        if len(parts) > 2:
            labels = labels[rng.permutation(n)]
        return model.restore(labels)

    def most_probable(self) -> np.ndarray:
        """The most probable configuration (one of them, where several are): the numbers of its values (variables,)."""
        return self.n_best(1)[0][0]

    def n_best(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n most probable configurations, the best first: the numbers of their values (rows, variables), and log-weights (rows,), log p + log Z.

        Which of several of one weight come first, and which are left out at the end, is arbitrary. Fewer rows where fewer are possible.
        """
        model, plan = self.reduced, self.plan(every=True)
        labels, totals = np.zeros((0, len(model.sizes)), np.int64), np.zeros(0)
        done = self._meter("most probable states", plan.seconds)
        for fixed, leaves in self._slices(plan):
            nodes = contraction.upward_max(plan, leaves, model.sizes, done=done)
            if len(totals) == n and float(nodes[-1].values) <= totals[-1]:
                continue
            found, values = contraction.descend_best(plan, nodes, model.sizes, n)
            found[:, list(fixed)] = list(fixed.values())
            labels, totals = np.concatenate([labels, found]), np.concatenate([totals, values])
            order = contraction.best_first(totals, n)
            labels, totals = labels[order], totals[order]
        _refuse_impossible(totals.max(initial=-np.inf) if model.possible else -np.inf)
        for i in model.free:
            k = model.sizes[i]
            labels = np.repeat(labels, k, axis=0)[:n]
            labels[:, i] = np.arange(len(labels)) % k
        labels = model.restore(labels)
        weights = np.zeros(len(labels))
        for scope, table in zip(self.scopes, self.tables, strict=True):
            weights += table[tuple(labels[:, i] for i in scope)]
        order = np.argsort(-weights, kind="stable")
        return labels[order], weights[order]

    def _beliefs(self) -> tuple[float, list[np.ndarray]]:
        """log Z and the marginals of the reduced tables; all zero where Z is."""
        model = self.reduced
        total = [np.zeros(table.shape) for table in model.tables]
        if not model.possible:
            return -math.inf, total
        plan = self.plan(every=True)
        running = -np.inf
        done = self._meter("marginals", (1 + contraction.DOWN) * plan.seconds)
        for fixed, leaves in self._tables(plan):
            nodes = contraction.upward(plan, leaves, model.sizes, keep=True, done=done)
            log_z = contraction.log_total(nodes[-1])
            if log_z == -np.inf:
                continue
            new = float(np.logaddexp(running, log_z))
            old_share, share = math.exp(running - new), math.exp(log_z - new)
            running = new
            for leaf, belief in enumerate(contraction.downward(plan, nodes, model.sizes, done=done)):
                scope = model.scopes[leaf]
                rest = tuple(v for v in scope if v not in fixed)
                if old_share < 1:
                    total[leaf] *= old_share
                place = tuple(fixed.get(v, slice(None)) for v in scope)
                total[leaf][place] += share * contraction.permuted(belief, plan.scopes[leaf], rest)
        return running + model.constant, total

    def _meter(self, stage: str, seconds: float) -> contraction.Done | None:
        """What turns the predicted seconds of steps into shares of a stage, and tells `progress`."""
        if self.progress is None:
            return None
        tell, made = self.progress, 0.0

        def done(more: float) -> None:
            nonlocal made
            made += more
            tell(stage, min(1.0, made / seconds))

        return done

    def _slices(self, plan: Plan) -> Iterator[tuple[dict[int, int], list[np.ndarray]]]:
        """Every joint value of the sliced variables, and the log-potentials given it, their axes in the tree's order."""
        model = self.reduced
        for values in itertools.product(*(range(len(model.domains[v])) for v in plan.sliced)):
            fixed = dict(zip(plan.sliced, values, strict=True))
            leaves = []
            for leaf, (scope, table) in enumerate(zip(model.scopes, model.tables, strict=True)):
                rest = [v for v in scope if v not in fixed]
                part = table[tuple(fixed.get(v, slice(None)) for v in scope)]
                leaves.append(np.asarray(contraction.permuted(part, rest, plan.scopes[leaf]), order="C"))
            yield fixed, leaves

    def _tables(self, plan: Plan) -> Iterator[tuple[dict[int, int], list[contraction.Table]]]:
        for fixed, leaves in self._slices(plan):
            yield (
                fixed,
                [contraction.from_logs(table, scope) for table, scope in zip(leaves, plan.scopes, strict=False)],
            )


def _refuse_impossible(log_z: float) -> None:
    if log_z == -math.inf:
        raise ValueError("no state is possible: Z = 0. Check the evidence and the tables' zeros")
