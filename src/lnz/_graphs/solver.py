"""Elimination in NumPy: exact answers about a model from its tables, and their predicted cost. Does not import JAX."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lnz._graphs import (
    barren_nodes,
    contraction,
    contraction_plan,
    descent,
    orders,
    preprocess,
    sparse_tables,
    table_products,
)
from lnz._graphs.barren_nodes import Dropped
from lnz._graphs.contraction_plan import ContractionPlan, Scope
from lnz._graphs.preprocess import Reduced

PATIENCE = 3.0  # seconds of predicted work from which a sum over possible entries alone is tried
HARD = 100.0  # predicted seconds of the first tree, beyond which possible entries are tried before a long search
TRIALS = 30.0  # the most seconds for these trials, at most a third of the predicted work


@dataclasses.dataclass(frozen=True)
class EliminationBudget:
    """The budget of elimination.

    Attributes:
        max_memory: the most bytes of tables; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, a ValueError with the figures is raised.
        search_seconds: processor time of the search for an order; by default a third of the predicted work that a better one could spare.
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
        """The most bytes of tables: `max_memory`, or half of the machine's memory."""
        half = 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return half if self.max_memory is None else self.max_memory


def plan_within(budget: EliminationBudget, model: Reduced, *, every: bool) -> ContractionPlan:
    """The contraction tree for a model. Raises ValueError, with the figures, where it would exceed the budget.

    Args:
        every: whether all tables must fit at once, as marginals and samples need, or only those at the peak.
    """
    memory, passes = budget.memory, 1 + contraction.DOWN if every else 1
    supported = _supported_plan(budget, model, every=every)
    if supported is not None and supported.seconds < _first_estimate(budget, model) / 10:
        return supported
    try:
        fitted = _dense_plan(budget, model, every=every)
    except ValueError:  # hopeless
        if supported is None:
            raise
        return supported
    excessive = fitted.need(every=every) > memory or passes * fitted.seconds > budget.max_seconds
    if supported is not None and (excessive or supported.seconds < fitted.seconds):
        return supported
    if excessive:
        raise ValueError(
            f"exact elimination is too expensive: {fitted}, where max_memory is {contraction_plan.size_text(memory)} and max_seconds "
            f"{budget.max_seconds:g}. Raise them, give evidence, or use a stochastic route"
        )
    return fitted


def _supported_plan(budget: EliminationBudget, model: Reduced, *, every: bool) -> ContractionPlan | None:
    """A tree over possible entries alone, where there are zeros, full tables would be expensive, and one is found."""
    if not any(table.size and table.min() == -np.inf for table in model.tables):
        return None
    expected = _first_estimate(budget, model)
    if expected < PATIENCE:
        return None
    seconds = min(budget.max_seconds / (1 + contraction.DOWN if every else 1), expected / 3, TRIALS)
    found = _supported(_Problem.of(model), budget.memory / (2 if every else 1), seconds, budget.seed)
    if isinstance(found, str) or found.need(every=every) > budget.memory:
        return None
    return found


def _first_estimate(budget: EliminationBudget, model: Reduced) -> float:
    """The predicted seconds of the first tree; of the best tree of a full search, where that is too long; of a short search, where it is hopeless."""
    try:
        if budget.search_seconds is not None:
            return first_plan(budget, model).seconds
        first = first_plan(dataclasses.replace(budget, search_seconds=0.0), model).seconds
        if first < PATIENCE:
            return first
        return first_plan(budget if first < HARD else dataclasses.replace(budget, search_seconds=0.3), model).seconds
    except ValueError:
        return math.inf


def _dense_plan(budget: EliminationBudget, model: Reduced, *, every: bool) -> ContractionPlan:
    sizes = tuple(model.sizes)
    best = first_plan(budget, model)
    fitted = contraction_plan.sliced(best, sizes, budget.memory, every=every)
    if every:
        return fitted
    near = contraction_plan.sliced(
        best, sizes, min(budget.memory, 2.0**26), every=False
    )  # slices in the caches can be much quicker
    return near if near.seconds < 0.8 * fitted.seconds else fitted


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A model as a cache key: equal where the same configurations are possible."""

    model: Reduced = dataclasses.field(compare=False)
    digest: bytes

    @classmethod
    def of(cls, model: Reduced) -> _Problem:
        text = hashlib.sha256(repr((model.sizes, model.scopes)).encode())
        for table in model.tables:
            text.update(np.packbits(table > -np.inf).tobytes())
        return cls(model, text.digest())


@functools.lru_cache(maxsize=8)
def _supported(problem: _Problem, memory: float, seconds: float, seed: int) -> ContractionPlan | str:
    """A plan over possible entries alone, or why there is none: both are cached."""
    model = problem.model
    try:
        return sparse_tables.searched(
            model.scopes, model.tables, model.sizes, memory=memory, seconds=seconds, seed=seed
        )
    except sparse_tables.TooExpensive as error:
        return str(error)


def first_plan(budget: EliminationBudget, model: Reduced) -> ContractionPlan:
    """The cheapest tree that the search finds, whatever memory it takes."""
    found, _ = _searched(tuple(model.scopes), tuple(model.sizes), budget.search_seconds, budget.seed)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.lru_cache(maxsize=64)
def _searched(
    scopes: tuple[Scope, ...], sizes: tuple[int, ...], seconds: float | None, seed: int
) -> tuple[ContractionPlan | str, float]:
    """The plan, or why there is none, and the processor time it took: cached. A search without a time of its own starts from the first order."""
    begun, start = time.thread_time(), None
    if seconds is None:
        found, took = _searched(scopes, sizes, 0.0, seed)
        if isinstance(found, str):
            return found, took
        start = found, took
    try:
        return orders.search(scopes, sizes, seconds=seconds, seed=seed, start=start), time.thread_time() - begun
    except ValueError as error:
        return str(error), time.thread_time() - begun


def described(variables: int, factors: int) -> str:
    """Elimination in words, as in the method of an estimate."""
    return f"elimination of {variables:,} variables from {factors:,} factors"


def rounding(log_z: Any, largest: Any, factors: int, eps: Any) -> Any:
    """A bound on the rounding error of log Z (finite), in nats, for log-potentials up to `largest` in size, where 1 + eps is the next number."""
    return eps * (32 + math.sqrt(factors)) * (1 + largest + abs(log_z))


class Solver:
    """Exact answers about one model, from log-potentials in NumPy.

    Args:
        cardinalities: the number of values of each variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor in nats, -inf where a configuration is impossible.
        budget: what the answers may cost. Every method raises ValueError, with the figures, where it would exceed it.
        progress: called after every step with the stage in words and the share of its predicted time that has passed, from 0 to 1.
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        scopes: Sequence[Scope],
        tables: Sequence[np.ndarray],
        budget: EliminationBudget,
        *,
        progress: Callable[[str, float], None] | None = None,
    ):
        self.cardinalities = cardinalities
        self.scopes = scopes
        self.tables = tables
        self.budget = budget
        self.progress = progress
        self.reduced = preprocess.reduce(cardinalities, scopes, tables)

    @functools.cached_property
    def pruned(self) -> tuple[Reduced, list[Dropped]]:
        """The part of the model that log Z and samples need: see `barren_nodes.prune`."""
        return barren_nodes.prune(self.reduced)

    def plan(self, *, every: bool = False) -> ContractionPlan:
        """The contraction tree for log Z; or one that keeps `every` table, for marginals and the most probable state."""
        return plan_within(self.budget, self.reduced if every else self.pruned[0], every=every)

    def log_partition(self) -> float:
        """log Z, in nats; -inf where no configuration is possible."""
        model, plan = self.pruned[0], self.plan()
        if not model.possible:
            return -math.inf
        if plan.supports:
            return _supports(model, plan, self.budget).log_total() + model.constant
        done = self._meter("log Z", plan.seconds)
        parts = [
            contraction.log_total(contraction.upward(plan, leaves, model.sizes, keep=False, done=done)[-1])
            for _, leaves in _tables(model, plan)
        ]
        return float(np.logaddexp.reduce(parts)) + model.constant

    def rounding(self, log_z: float) -> float:
        """A bound on the rounding error of log Z, in nats."""
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
        contraction.check_possible(log_z)
        return log_z - sum(
            float(b.ravel() @ np.where(b > 0, t, 0).ravel()) for b, t in zip(beliefs, self.tables, strict=True)
        )

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent exact samples: the indices of the values (n, variables)."""
        model, dropped = self.pruned
        contraction.check_possible(0.0 if model.possible else -math.inf)
        plan = plan_within(self.budget, model, every=True)
        labels = self._drawn(model, plan, rng, n)
        for i in model.free:
            labels[:, i] = rng.integers(model.sizes[i], size=n)
        for part in reversed(dropped):
            part.draw(rng, labels)
        return model.restore(labels)

    def _drawn(self, model: Reduced, plan: ContractionPlan, rng: np.random.Generator, n: int) -> np.ndarray:
        if plan.supports:
            return _supports(model, plan, self.budget).sample(rng, n)
        done = self._meter("samples", 2 * plan.seconds)

        def nodes(leaves: list[contraction.ScaledTable]) -> list[Any]:
            return contraction.upward(plan, leaves, model.sizes, keep=True, done=done)

        logs = np.array([contraction.log_total(nodes(leaves)[-1]) for _, leaves in _tables(model, plan)])
        contraction.check_possible(logs.max(initial=-np.inf))
        shares = np.exp(logs - logs.max())
        counts = rng.multinomial(n, shares / shares.sum())
        parts = [np.zeros((0, len(model.sizes)), np.int64)]
        for count, (fixed, leaves) in zip(counts, _tables(model, plan), strict=True):
            if count:
                labels = descent.descend(plan, nodes(leaves), model.sizes, int(count), descent.drawn(rng))
                labels[:, list(fixed)] = list(fixed.values())
                parts.append(labels)
        labels = np.concatenate(parts)
        return labels[rng.permutation(n)] if len(parts) > 2 else labels

    def most_probable(self) -> np.ndarray:
        """The most probable configuration (one of them if there are several): the indices of its values (variables,)."""
        return self.n_best(1)[0][0]

    def n_best(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The n most probable configurations, the best first: the indices of their values (rows, variables), and log-weights (rows,), log p + log Z.

        The order of configurations of equal weight, and which of them are left out at the end, is arbitrary. Fewer rows where fewer are possible.
        """
        model, plan = self.reduced, self.plan(every=True)
        contraction.check_possible(0.0 if model.possible else -math.inf)
        if plan.supports and n > 1:
            raise ValueError(
                f"where full tables are too expensive only the most probable state is supported, not the first {n}: ask for one"
            )
        labels = _supports(model, plan, self.budget).most_probable() if plan.supports else self._best(model, plan, n)
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

    def _best(self, model: Reduced, plan: ContractionPlan, n: int) -> np.ndarray:
        """The labels (rows, variables) of the n largest products, the largest first."""
        labels, totals = np.zeros((0, len(model.sizes)), np.int64), np.zeros(0)
        done = self._meter("most probable states", plan.seconds)
        for fixed, leaves in _slices(model, plan):
            nodes = contraction.upward_max(plan, leaves, model.sizes, done=done)
            if len(totals) == n and float(nodes[-1].values) <= totals[-1]:
                continue
            found, values = descent.descend_best(plan, nodes, model.sizes, n)
            found[:, list(fixed)] = list(fixed.values())
            labels, totals = np.concatenate([labels, found]), np.concatenate([totals, values])
            order = descent.best_first(totals, n)
            labels, totals = labels[order], totals[order]
        contraction.check_possible(totals.max(initial=-np.inf))
        return labels

    def _beliefs(self) -> tuple[float, list[np.ndarray]]:
        """log Z and the marginals of the reduced tables; all zero where Z is."""
        model = self.reduced
        total = [np.zeros(table.shape) for table in model.tables]
        if not model.possible:
            return -math.inf, total
        plan = self.plan(every=True)
        if plan.supports:
            log_z, beliefs = _supports(model, plan, self.budget).beliefs()
            return log_z + model.constant, beliefs
        running = -np.inf
        done = self._meter("marginals", (1 + contraction.DOWN) * plan.seconds)
        for fixed, leaves in _tables(model, plan):
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
                total[leaf][place] += share * table_products.permuted(belief, plan.scopes[leaf], rest)
        return running + model.constant, total

    def _meter(self, stage: str, seconds: float) -> contraction.Done | None:
        """A function that adds up the predicted seconds of steps and reports the share of a stage to `progress`."""
        if self.progress is None:
            return None
        tell, made = self.progress, 0.0

        def done(more: float) -> None:
            nonlocal made
            made += more
            tell(stage, min(1.0, made / seconds))

        return done


def _supports(model: Reduced, plan: ContractionPlan, budget: EliminationBudget) -> sparse_tables.SparseSums:
    most = budget.memory / sparse_tables.ENTRY_BYTES
    return sparse_tables.SparseSums(
        plan, model.scopes, model.tables, model.sizes, most=most, seconds=budget.max_seconds
    )


def _slices(model: Reduced, plan: ContractionPlan) -> Iterator[tuple[dict[int, int], list[np.ndarray]]]:
    """Every joint value of the sliced variables, and the log-potentials given it, their axes in the tree's order."""
    for values in itertools.product(*(range(len(model.domains[v])) for v in plan.sliced)):
        fixed = dict(zip(plan.sliced, values, strict=True))
        leaves = []
        for leaf, (scope, table) in enumerate(zip(model.scopes, model.tables, strict=True)):
            rest = [v for v in scope if v not in fixed]
            part = table[tuple(fixed.get(v, slice(None)) for v in scope)]
            leaves.append(np.asarray(table_products.permuted(part, rest, plan.scopes[leaf]), order="C"))
        yield fixed, leaves


def _tables(model: Reduced, plan: ContractionPlan) -> Iterator[tuple[dict[int, int], list[contraction.ScaledTable]]]:
    for fixed, leaves in _slices(model, plan):
        yield fixed, [contraction.from_logs(table, scope) for table, scope in zip(leaves, plan.scopes, strict=False)]
