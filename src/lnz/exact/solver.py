"""Elimination in NumPy: what a model's tables give, exactly, and what it will cost. Imports no JAX."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lnz.exact import barren, contraction, orders, reduced, sparse
from lnz.exact.barren import Dropped
from lnz.exact.orders import Plan, Scope
from lnz.exact.reduced import Reduced

PATIENCE = 1.0  # seconds of predicted work from which a sum over possible entries alone is tried
TRIALS = 30.0  # seconds that these trials may take, and no more than a third of the predicted work


@dataclasses.dataclass(frozen=True)
class Limits:
    """What elimination may cost.

    Attributes:
        max_memory: bytes that tables may take; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, there is no answer but a refusal with the figures.
        search_seconds: time to look for an order; by default a third of the predicted work.
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


def plan_within(limits: Limits, model: Reduced, *, every: bool) -> Plan:
    """The contraction tree for a model. Raises ValueError, with the figures, where it would cost more than the limits.

    Args:
        every: whether all tables must fit at once, as marginals and samples need it, or only those at the peak.
    """
    memory, passes = memory_of(limits), 4 if every else 1
    supported = _supported_plan(limits, model, memory, passes)
    if supported is not None and supported.seconds < _first_look(limits, model) / 10:
        return supported
    try:
        fitted = _dense_plan(limits, model, memory, every=every)
    except ValueError:  # beyond hope
        if supported is None:
            raise
        return supported
    need, seconds = fitted.all_bytes if every else fitted.peak_bytes, passes * fitted.seconds
    refused = need > memory or seconds > limits.max_seconds
    if supported is not None and (refused or supported.seconds < fitted.seconds):
        return supported
    if refused:
        raise ValueError(
            f"too dear to be summed exactly: {fitted}, where max_memory is {orders.size_text(memory)} and max_seconds "
            f"{limits.max_seconds:g}. Raise them, give evidence, or take a stochastic route"
        )
    return fitted


def _supported_plan(limits: Limits, model: Reduced, memory: float, passes: int) -> Plan | None:
    """A tree over possible entries alone, where there are zeros, full tables would be dear, and one is found."""
    if not any(table.size and table.min() == -np.inf for table in model.tables):
        return None
    expected = _first_look(limits, model)
    if expected < PATIENCE:
        return None
    seconds = min(limits.max_seconds / passes, expected / 3, TRIALS)
    found = _supported(_Problem.of(model), memory / (2 if passes > 1 else 1), seconds, limits.seed)
    if isinstance(found, Plan) and (found.all_bytes if passes > 1 else found.peak_bytes) <= memory:
        return found
    return None


def _first_look(limits: Limits, model: Reduced) -> float:
    """The predicted seconds of the tree that a short search finds."""
    quick = dataclasses.replace(limits, search_seconds=0.3 if limits.search_seconds is None else limits.search_seconds)
    try:
        return first_plan(quick, model).seconds
    except ValueError:
        return math.inf


def _dense_plan(limits: Limits, model: Reduced, memory: float, *, every: bool) -> Plan:
    sizes = tuple(model.sizes)
    best = first_plan(limits, model)
    fitted = orders.sliced(best, sizes, memory, every=every)
    if every:
        return fitted
    near = orders.sliced(
        best, sizes, min(memory, 2.0**26), every=False
    )  # slices that stay in the caches can be much quicker
    return near if near.seconds < 0.8 * fitted.seconds else fitted


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A model that equals another where the same configurations are possible."""

    model: Reduced = dataclasses.field(compare=False)
    digest: bytes

    @classmethod
    def of(cls, model: Reduced) -> _Problem:
        text = hashlib.sha256(repr((model.sizes, model.scopes)).encode())
        for table in model.tables:
            text.update(np.packbits(table > -np.inf).tobytes())
        return cls(model, text.digest())


@functools.lru_cache(maxsize=8)
def _supported(problem: _Problem, memory: float, seconds: float, seed: int) -> Plan | str:
    """A plan over possible entries alone, or why there is none: both are remembered."""
    model = problem.model
    try:
        return sparse.searched(model.scopes, model.tables, model.sizes, memory=memory, seconds=seconds, seed=seed)
    except sparse.TooDear as error:
        return str(error)


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


def memory_of(limits: Limits) -> float:
    """The bytes that tables may take: half of the machine's memory where no limit is given."""
    return limits.max_memory or 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Solver:
    """The exact answers about one model, from log-potentials in NumPy.

    Args:
        cardinalities: of every variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor in nats, -inf where a configuration is impossible.
        limits: what the answers may cost. Every method raises ValueError, with the figures, where it would cost more.
    """

    def __init__(
        self, cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray], limits: Limits
    ):
        self.cardinalities, self.scopes, self.tables, self.limits = cardinalities, scopes, tables, limits
        self.reduced = reduced.reduce(cardinalities, scopes, tables)

    @functools.cached_property
    def pruned(self) -> tuple[Reduced, list[Dropped]]:
        """What log Z and samples need of the model: `barren.prune`."""
        return barren.prune(self.reduced)

    def plan(self, *, every: bool = False) -> Plan:
        """The contraction tree for log Z; or one that keeps `every` table, for marginals and the most probable state."""
        return plan_within(self.limits, self.reduced if every else self.pruned[0], every=every)

    def log_partition(self) -> float:
        """log Z, in nats; -inf where no configuration is possible."""
        model, plan = self.pruned[0], self.plan()
        if not model.possible:
            return -math.inf
        if plan.supports:
            return _supports(model, plan, self.limits).log_total() + model.constant
        parts = [
            contraction.log_total(contraction.upward(plan, leaves, model.sizes, keep=False)[-1])
            for _, leaves in _tables(model, plan)
        ]
        return float(np.logaddexp.reduce(parts)) + model.constant

    def marginals(self) -> list[np.ndarray]:
        """P(x_i) of every variable: arrays (k_i,). All zero where Z is."""
        model, leaves = self.reduced, self._beliefs()
        home: dict[int, int] = {}
        for leaf in sorted(range(len(leaves)), key=lambda leaf: -leaves[leaf].size):
            home.update(dict.fromkeys(model.scopes[leaf], leaf))  # the smallest table of every variable
        found = []
        for i, k in enumerate(self.cardinalities):
            belief = np.zeros(k)
            if i in home:
                axes = tuple(axis for axis, v in enumerate(model.scopes[home[i]]) if v != i)
                belief[model.domains[i]] = leaves[home[i]].sum(axis=axes)
            elif model.possible:
                belief[model.domains[i]] = 1 / len(model.domains[i])
            found.append(belief)
        return found

    def factor_marginals(self) -> list[np.ndarray]:
        """P(x_scope) of every factor, with zeros at the values that were pruned. All zero where Z is."""
        model, beliefs, found = self.reduced, self._beliefs(), []
        whole = [len(d) == k for d, k in zip(model.domains, self.cardinalities, strict=True)]
        for f, scope in enumerate(self.scopes):
            home, live = model.home[f], [i for i in scope if len(model.domains[i]) > 1]
            part = np.asarray(float(model.possible))
            if home >= 0:
                inside = model.scopes[home]
                axes = tuple(axis for axis, v in enumerate(inside) if v not in live)
                part = beliefs[home].sum(axis=axes) if axes else beliefs[home]
                part = contraction.permuted(part, [v for v in inside if v in live], live)
            shape = [self.cardinalities[i] for i in scope]
            if model.possible and all(whole[i] for i in scope):
                found.append(part.reshape(shape))
                continue
            belief = np.zeros(shape)
            if model.possible:
                domains = [model.domains[i] for i in scope]
                belief[np.ix_(*domains)] = part.reshape([len(domain) for domain in domains])
            found.append(belief)
        return found

    def entropy(self) -> float:
        """-Σ p log p, in nats: log Z - Σ_f E[φ_f]."""
        log_z = self.log_partition()
        contraction.refuse_impossible(log_z)
        return log_z - sum(
            float(b.ravel() @ np.where(b > 0, t, 0).ravel())
            for b, t in zip(self.factor_marginals(), self.tables, strict=True)
        )

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent exact samples: the numbers of the values (n, variables)."""
        model, dropped = self.pruned
        contraction.refuse_impossible(0.0 if model.possible else -math.inf)
        plan = plan_within(self.limits, model, every=True)
        labels = self._drawn(model, plan, rng, n)
        for i in model.free:
            labels[:, i] = rng.integers(model.sizes[i], size=n)
        for part in reversed(dropped):
            part.draw(rng, labels)
        return model.restore(labels)

    def _drawn(self, model: Reduced, plan: Plan, rng: np.random.Generator, n: int) -> np.ndarray:
        if plan.supports:
            return _supports(model, plan, self.limits).sample(rng, n)

        def nodes(leaves: list[contraction.Table]) -> list[Any]:
            return contraction.upward(plan, leaves, model.sizes, keep=True)

        logs = np.array([contraction.log_total(nodes(leaves)[-1]) for _, leaves in _tables(model, plan)])
        contraction.refuse_impossible(logs.max(initial=-np.inf))
        shares = np.exp(logs - logs.max())
        counts = rng.multinomial(n, shares / shares.sum())
        parts = [np.zeros((0, len(model.sizes)), np.int64)]
        for count, (fixed, leaves) in zip(counts, _tables(model, plan), strict=True):
            if count:
                labels = contraction.descend(plan, nodes(leaves), model.sizes, int(count), contraction.drawn(rng))
                labels[:, list(fixed)] = list(fixed.values())
                parts.append(labels)
        labels = np.concatenate(parts)
        return labels[rng.permutation(n)] if len(parts) > 2 else labels

    def most_probable(self) -> np.ndarray:
        """The most probable configuration (one of them, where several are): the numbers of its values (variables,)."""
        model, plan = self.reduced, self.plan(every=True)
        contraction.refuse_impossible(0.0 if model.possible else -math.inf)
        if plan.supports:
            return model.restore(_supports(model, plan, self.limits).most_probable())[0]
        best, labels = -np.inf, np.zeros((1, len(model.sizes)), np.int64)
        for fixed, leaves in _slices(model, plan):
            nodes = contraction.upward_max(plan, leaves, model.sizes)
            if float(nodes[-1].values) > best:
                best = float(nodes[-1].values)
                labels = contraction.descend(plan, nodes, model.sizes, 1, contraction.largest)
                labels[:, list(fixed)] = list(fixed.values())
        contraction.refuse_impossible(best)
        return model.restore(labels)[0]

    def _beliefs(self) -> list[np.ndarray]:
        """The marginals of the reduced tables; all zero where Z is."""
        model = self.reduced
        total = [np.zeros(table.shape) for table in model.tables]
        if not model.possible:
            return total
        plan = self.plan(every=True)
        if plan.supports:
            return _supports(model, plan, self.limits).beliefs()
        running = -np.inf
        for fixed, leaves in _tables(model, plan):
            nodes = contraction.upward(plan, leaves, model.sizes, keep=True)
            log_z = contraction.log_total(nodes[-1])
            if log_z == -np.inf:
                continue
            new = float(np.logaddexp(running, log_z))
            old_share, share = math.exp(running - new), math.exp(log_z - new)
            running = new
            for leaf, belief in enumerate(contraction.downward(plan, nodes, model.sizes)):
                scope = model.scopes[leaf]
                rest = tuple(v for v in scope if v not in fixed)
                if old_share < 1:
                    total[leaf] *= old_share
                place = tuple(fixed.get(v, slice(None)) for v in scope)
                total[leaf][place] += share * contraction.permuted(belief, plan.scopes[leaf], rest)
        return total


def _supports(model: Reduced, plan: Plan, limits: Limits) -> sparse.Sums:
    most = memory_of(limits) / sparse.ENTRY_BYTES
    return sparse.Sums(plan, model.scopes, model.tables, model.sizes, most=most, seconds=limits.max_seconds)


def _slices(model: Reduced, plan: Plan) -> Iterator[tuple[dict[int, int], list[np.ndarray]]]:
    """Every joint value of the sliced variables, and the log-potentials given it, their axes in the tree's order."""
    for values in itertools.product(*(range(len(model.domains[v])) for v in plan.sliced)):
        fixed = dict(zip(plan.sliced, values, strict=True))
        leaves = []
        for leaf, (scope, table) in enumerate(zip(model.scopes, model.tables, strict=True)):
            rest = [v for v in scope if v not in fixed]
            part = table[tuple(fixed.get(v, slice(None)) for v in scope)]
            leaves.append(np.asarray(contraction.permuted(part, rest, plan.scopes[leaf]), order="C"))
        yield fixed, leaves


def _tables(model: Reduced, plan: Plan) -> Iterator[tuple[dict[int, int], list[contraction.Table]]]:
    for fixed, leaves in _slices(model, plan):
        yield fixed, [contraction.from_logs(table, scope) for table, scope in zip(leaves, plan.scopes, strict=False)]
