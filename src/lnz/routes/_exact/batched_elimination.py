"""Many models on one structure, summed in one pass: log Z, every marginal and their derivatives, in NumPy.

1. The member's index is one more variable, which is in every table and never summed out: one tree, planned for one member, is used for all.
2. A value is left out only where no member allows it, and every member has a scale of its own.
3. A derivative is an imaginary part: log-potentials φ + i h t give beliefs P + i h ∂P, without a difference that would lose digits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lnz._graphs import contraction, contraction_plan, preprocess
from lnz._graphs.contraction_plan import ContractionPlan, Scope
from lnz._graphs.preprocess import Reduced
from lnz._graphs.solver import EliminationBudget, Solver, first_plan
from lnz._graphs.table_products import permuted

NEAR = 2.0**20  # entries of the largest table of a block that stays in the caches
STEP = 1e-12  # size of the complex step: its square vanishes beside 1


class BatchSums(NamedTuple):
    """The results of a batch.

    Attributes:
        log_z: log Z of every member, in nats (members,).
        beliefs: P(x_scope) of every factor (…, members), all zero where Z is; empty where they were not requested.
        width: the width of the contraction tree.
        memory: bytes at the peak.
    """

    log_z: np.ndarray
    beliefs: list[np.ndarray]
    width: int = 0
    memory: float = 0.0


def log_partitions(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    budget: EliminationBudget,
    *,
    beliefs: bool = False,
) -> BatchSums:
    """log Z of every member and, with `beliefs`, P(x_scope) of every factor.

    Args:
        cardinalities: the number of values of each variable.
        scopes: the variables of every factor, in the order of its table's axes; at least one factor.
        tables: log-potentials in nats (…, members), -inf where a configuration is impossible. With an imaginary part h · t, that of a belief is
            h times its derivative in the direction t.
        budget: what the answers may cost. Members are summed in blocks that fit, one by one where no two fit. Raises ValueError, with the
            figures, where one member would exceed it.
    """
    one_real = tables[0].dtype == np.float64
    if tables[0].shape[-1] == 1 and one_real:
        return _one_by_one(cardinalities, scopes, tables, budget, beliefs)
    batch = _Batch(cardinalities, scopes, tables)
    log_z = np.full(tables[0].shape[-1], -np.inf)
    if not batch.model.possible:
        return BatchSums(log_z, batch.factor_beliefs([], log_z) if beliefs else [])
    plan = first_plan(budget, batch.of_one_member())
    need = plan.need(every=beliefs) * tables[0].itemsize / contraction_plan.BYTES  # of each member
    block = _block(plan, batch.model.sizes, budget.memory // need)
    if block < 2 and one_real:
        return _one_by_one(cardinalities, scopes, tables, budget, beliefs)
    if block < 1:
        raise ValueError(
            f"second derivatives are not supported in slices, but need {contraction_plan.size_text(2 * plan.all_bytes)} at once: raise max_memory"
        )
    tree, whole = batch.tree(plan), batch.whole_tables()
    totals = [np.zeros(table.shape if beliefs else 0, tables[0].dtype) for table in whole]
    for start in range(0, len(batch.members), block):
        part = slice(start, start + block)
        members, leaves = batch.members[part], batch.leaves(tree, whole, part)
        sizes = [*batch.model.sizes[:-1], len(members)]
        nodes = contraction.upward(tree, leaves, sizes, keep=beliefs)
        log_z[members] = contraction.log_total(nodes[-1]) + np.real(batch.model.constant)
        if beliefs:
            batch.store(contraction.downward(tree, nodes, sizes), tree, totals, part)
    found = batch.factor_beliefs(totals, log_z) if beliefs else []
    return BatchSums(log_z, found, plan.width, block * need)


class _Batch:
    """The models as one model, whose last variable is the index of the member.

    Attributes:
        model: that model, reduced.
        members: those that no single factor makes impossible.
        scopes: the scopes of the reduced tables, without the member.
    """

    def __init__(self, cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]):
        self.number = len(cardinalities)
        self.cardinalities = (*cardinalities, tables[0].shape[-1])
        self.factor_scopes = [(*scope, self.number) for scope in scopes]
        self.model = preprocess.reduce(self.cardinalities, self.factor_scopes, tables)
        self.members = self.model.domains[self.number]
        self.scopes = [tuple(v for v in scope if v != self.number) for scope in self.model.scopes]

    def of_one_member(self) -> Reduced:
        """The structure of one member, for the plan."""
        return self.model._replace(domains=self.model.domains[: self.number], scopes=self.scopes)

    def tree(self, plan: ContractionPlan) -> ContractionPlan:
        """The tree of one member with the member's index in every table."""
        steps = tuple(step._replace(out=(*step.out, self.number)) for step in plan.steps)
        return dataclasses.replace(plan, steps=steps, scopes=tuple((*scope, self.number) for scope in plan.scopes))

    def whole_tables(self) -> list[np.ndarray]:
        """Every table with the member as its last axis."""
        found = []
        for scope, table in zip(self.scopes, self.model.tables, strict=True):
            shape = [len(self.model.domains[v]) for v in scope]
            found.append(np.broadcast_to(table.reshape(*shape, -1), (*shape, len(self.members))))
        return found

    def leaves(self, tree: ContractionPlan, whole: list[np.ndarray], part: slice) -> list[contraction.ScaledTable]:
        """A block of members, as leaves of the tree."""
        found = []
        for scope, order, table in zip(self.scopes, tree.scopes, whole, strict=False):
            entries = np.ascontiguousarray(permuted(table[..., part], (*scope, self.number), order))
            found.append(contraction.from_logs(entries, order, batch=self.number))
        return found

    def store(self, beliefs: list[np.ndarray], tree: ContractionPlan, totals: list[np.ndarray], part: slice) -> None:
        """Write a block's beliefs into those of all members."""
        for scope, order, total, belief in zip(self.scopes, tree.scopes, totals, beliefs, strict=False):
            total[..., part] = permuted(belief, order, (*scope, self.number))

    def factor_beliefs(self, totals: list[np.ndarray], log_z: np.ndarray) -> list[np.ndarray]:
        """The belief of every factor of the graph (…, members) from those of the reduced tables; all zero where Z is."""
        if len(self.members) == 1:  # a variable of one value is in no reduced table
            totals = [t.reshape(t.shape[:-1]) for t in totals]
        found = self.model.spread(totals, self.cardinalities, self.factor_scopes)
        return [belief * (log_z > -np.inf) for belief in found]


def _block(plan: ContractionPlan, sizes: Sequence[int], most: float) -> int:
    """The number of members summed at once: at most `most`, as memory allows, in tables that stay in a processor's cache."""
    largest = max(math.prod(sizes[v] for v in scope) for scope in plan.scopes)
    return int(min(most, max(1, NEAR // largest)))


def _one_by_one(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    budget: EliminationBudget,
    beliefs: bool,
) -> BatchSums:
    log_z, parts, width, memory = [], [], 0, 0.0
    for member in range(tables[0].shape[-1]):
        one = Solver(cardinalities, scopes, [table[..., member] for table in tables], budget)
        value, found = one.log_partition_and_factor_marginals() if beliefs else (one.log_partition(), [])
        log_z.append(value)
        parts.append(found)
        plan = one.plan(every=beliefs)
        width, memory = max(width, plan.width), max(memory, plan.need(every=beliefs))
    return BatchSums(np.array(log_z), [np.stack(pieces, axis=-1) for pieces in zip(*parts, strict=True)], width, memory)


def curvature(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    budget: EliminationBudget,
) -> list[np.ndarray]:
    """The derivative of every factor's belief (…, members) in a direction: its covariance with Σ_f t_f(x_f) (T7), by a complex step.

    Args:
        directions: t, of the log-potentials' shapes (…, members); its values at impossible configurations are ignored.
    """
    sizes = [np.abs(np.where(table > -np.inf, t, 0)) for table, t in zip(tables, directions, strict=True)]
    most = np.max([size.max(axis=tuple(range(size.ndim - 1)), initial=0) for size in sizes], axis=0)
    unit = STEP / np.where(most > 0, most, 1)
    complex_tables = []
    for table, t in zip(tables, directions, strict=True):
        made = table.astype(np.complex128)
        made.imag = np.where(table > -np.inf, t * unit, 0)
        complex_tables.append(made)
    found = log_partitions(cardinalities, scopes, complex_tables, budget, beliefs=True)
    return [np.imag(belief) / unit for belief in found.beliefs]
