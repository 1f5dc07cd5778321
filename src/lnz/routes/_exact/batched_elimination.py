"""Many models on one structure, summed in one pass: log Z, every marginal and their derivatives, in NumPy.

The number of the member is one more variable, which stands in every table and is never summed out. So a value is left out only where no member
allows it, and every member has a scale of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lnz._graphs import contraction, contraction_plan, preprocess, table_products
from lnz._graphs.contraction_plan import ContractionPlan, Scope
from lnz._graphs.solver import Limits, Solver, first_plan

NEAR = 2.0**20  # entries of the largest table of a block: more would leave the caches
STEP = 1e-12  # of the complex step: its square vanishes beside 1


class Summed(NamedTuple):
    """What there is to say of a batch.

    Attributes:
        log_z: of every member, in nats (members,).
        beliefs: P(x_scope) of every factor (…, members), all zero where Z is; empty where they were not asked for.
        width: of the contraction tree.
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
    limits: Limits,
    *,
    beliefs: bool = False,
) -> Summed:
    """log Z of every member and, with `beliefs`, P(x_scope) of every factor.

    Args:
        cardinalities: of every variable.
        scopes: the variables of every factor, in the order of its table's axes; at least one factor.
        tables: log-potentials in nats (…, members), -inf where a configuration is impossible. With an imaginary part h · t, that of a belief is
            h times its derivative in the direction t.
        limits: what the answers may cost. Members are taken in blocks that fit; one by one where no two fit. Raises ValueError, with the
            figures, where one would cost more.
    """
    number, members = len(cardinalities), tables[0].shape[-1]
    if members == 1 and tables[0].dtype == np.float64:
        return _one_by_one(cardinalities, scopes, tables, limits, beliefs)
    wider, wide_scopes = (*cardinalities, members), [(*scope, number) for scope in scopes]
    model = preprocess.reduce(wider, wide_scopes, tables)
    log_z, alive = np.full(members, -np.inf), model.domains[number]
    if not model.possible:
        return Summed(log_z, model.spread([], wider, wide_scopes) if beliefs else [])
    own = [tuple(v for v in scope if v != number) for scope in model.scopes]
    plan = first_plan(limits, model._replace(domains=model.domains[:number], scopes=own))
    block = _block(plan, model.sizes, limits, tables[0].itemsize, beliefs)
    if block < 2 and tables[0].dtype == np.float64:
        return _one_by_one(cardinalities, scopes, tables, limits, beliefs)
    memory = block * _bytes(plan, tables[0].itemsize, beliefs)
    if block < 1:
        raise ValueError(
            f"second derivatives are not served in slices, but need {contraction_plan.size_text(_bytes(plan, 16, True))} at once: raise max_memory"
        )
    grown = _batched(plan, number)
    whole, totals = [], []
    for scope, table in zip(own, model.tables, strict=True):  # every table with the member as its last axis
        shape = [len(model.domains[v]) for v in scope]
        whole.append(np.broadcast_to(table.reshape(*shape, -1), (*shape, len(alive))))
        totals.append(np.zeros(whole[-1].shape if beliefs else 0, tables[0].dtype))
    for start in range(0, len(alive), block):
        part = slice(start, start + block)
        sizes = [*model.sizes[:number], len(alive[part])]
        leaves = []
        for scope, order, table in zip(own, grown.scopes, whole, strict=False):
            entries = np.ascontiguousarray(table_products.permuted(table[..., part], (*scope, number), order))
            leaves.append(contraction.from_logs(entries, order, batch=number))
        nodes = contraction.upward(grown, leaves, sizes, keep=beliefs)
        log_z[alive[part]] = contraction.log_total(nodes[-1]) + np.real(model.constant)
        if beliefs:
            for scope, order, total, belief in zip(
                own, grown.scopes, totals, contraction.downward(grown, nodes, sizes), strict=False
            ):
                total[..., part] = table_products.permuted(belief, order, (*scope, number))
    if not beliefs:
        return Summed(log_z, [], plan.width, memory)
    totals = [t.reshape(t.shape if len(alive) > 1 else t.shape[:-1]) for t in totals]
    spread = [belief * (log_z > -np.inf) for belief in model.spread(totals, wider, wide_scopes)]
    return Summed(log_z, spread, plan.width, memory)


def _block(plan: ContractionPlan, sizes: Sequence[int], limits: Limits, itemsize: int, beliefs: bool) -> int:
    """How many members are summed at once: as memory allows, and in tables that stay in a processor's cache."""
    largest = max(math.prod(sizes[v] for v in scope) for scope in plan.scopes)
    return int(min(limits.memory // _bytes(plan, itemsize, beliefs), max(1, NEAR // largest)))


def _bytes(plan: ContractionPlan, itemsize: int, beliefs: bool) -> float:
    return (plan.all_bytes if beliefs else plan.peak_bytes) * itemsize / contraction_plan.BYTES


def _one_by_one(
    cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray], limits: Limits, beliefs: bool
) -> Summed:
    log_z, parts, width, memory = [], [], 0, 0.0
    for member in range(tables[0].shape[-1]):
        one = Solver(cardinalities, scopes, [table[..., member] for table in tables], limits)
        value, found = one.log_partition_and_factor_marginals() if beliefs else (one.log_partition(), [])
        log_z.append(value)
        parts.append(found)
        plan = one.plan(every=beliefs)
        width, memory = max(width, plan.width), max(memory, plan.all_bytes if beliefs else plan.peak_bytes)
    return Summed(np.array(log_z), [np.stack(pieces, axis=-1) for pieces in zip(*parts, strict=True)], width, memory)


def _batched(plan: ContractionPlan, number: int) -> ContractionPlan:
    """The tree with one more variable in every table."""
    steps = tuple(step._replace(out=(*step.out, number)) for step in plan.steps)
    return dataclasses.replace(plan, steps=steps, scopes=tuple((*scope, number) for scope in plan.scopes))


def curvature(
    cardinalities: Sequence[int],
    scopes: Sequence[Scope],
    tables: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    limits: Limits,
) -> list[np.ndarray]:
    """The derivative of every factor's belief (…, members) in a direction: its covariance with Σ_f t_f(x_f) (T7), by a complex step.

    Args:
        directions: t, of the log-potentials' shapes (…, members); what it says of impossible configurations does not count.
    """
    sizes = [np.abs(np.where(table > -np.inf, t, 0)) for table, t in zip(tables, directions, strict=True)]
    most = np.max([size.max(axis=tuple(range(size.ndim - 1)), initial=0) for size in sizes], axis=0)
    unit = STEP / np.where(most > 0, most, 1)
    complex_tables = []
    for table, t in zip(tables, directions, strict=True):
        made = table.astype(np.complex128)
        made.imag = np.where(table > -np.inf, t * unit, 0)
        complex_tables.append(made)
    found = log_partitions(cardinalities, scopes, complex_tables, limits, beliefs=True)
    return [np.imag(belief) / unit for belief in found.beliefs]
