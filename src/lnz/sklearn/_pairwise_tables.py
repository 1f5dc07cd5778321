"""Pairwise models of categories by their tables, in NumPy and float64: exact sums over what is missing, and maximum likelihood."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs.solver import EliminationBudget, Solver
from lnz._models.factor_graph import FactorGraph, unpacked
from lnz.routes._exact.batched_elimination import log_partitions

# Sums of a fit are many: a wider graph is fitted by its pseudo-likelihood.
BUDGET = EliminationBudget(max_memory=2.0**30, max_seconds=1.0, search_seconds=0.1)
_ROWS = 512  # rows that are summed at once
MISSING = -1


class Sums(NamedTuple):
    """log Σ over the missing entries of every row (rows,), in nats, and the marginals of every factor (…, rows)."""

    log_z: np.ndarray
    beliefs: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class PairwiseTables:
    """log-potentials in nats: one table per variable, then one per edge.

    Attributes:
        cardinalities: the number of values of every variable.
        edges: the pairs of variables, shape (m, 2).
        values: all tables, flattened, one after another.
    """

    cardinalities: tuple[int, ...]
    edges: np.ndarray
    values: np.ndarray

    @functools.cached_property
    def scopes(self) -> list[tuple[int, ...]]:
        return [*((i,) for i in range(len(self.cardinalities))), *((int(i), int(j)) for i, j in self.edges)]

    @functools.cached_property
    def tables(self) -> list[np.ndarray]:
        return unpacked(self.values, [tuple(self.cardinalities[i] for i in scope) for scope in self.scopes])

    def with_values(self, tables: Sequence[np.ndarray]) -> PairwiseTables:
        """The same graph with other tables."""
        return dataclasses.replace(self, values=np.concatenate([np.ravel(table) for table in tables]))

    def graph(self) -> FactorGraph:
        """The model as a factor graph."""
        return FactorGraph(self.cardinalities, self.scopes, self.tables)

    def solver(self) -> Solver:
        return Solver(self.cardinalities, self.scopes, self.tables, BUDGET)

    def too_wide(self) -> str | None:
        """Why exact sums are not affordable, as a sentence, or None."""
        try:
            self.solver().plan(every=True)
        except ValueError as error:
            return str(error)
        return None

    def is_forest(self) -> bool:
        root = list(range(len(self.cardinalities)))
        for i, j in self.edges.tolist():
            while root[i] != i:
                i = root[i]
            while root[j] != j:
                j = root[j]
            if i == j:
                return False
            root[i] = j
        return True

    def log_weights(self, codes: np.ndarray) -> np.ndarray:
        """-E of complete rows (n, variables)."""
        parts = (
            table[tuple(codes[:, i] for i in scope)] for scope, table in zip(self.scopes, self.tables, strict=True)
        )
        return np.sum([np.zeros(len(codes)), *parts], axis=0)

    def sums(self, codes: np.ndarray, *, beliefs: bool = False) -> Sums:
        """Sums over the missing entries (-1) of rows (n, variables). Raises ValueError where they are too expensive."""
        found = [self._summed(codes[a : a + _ROWS], beliefs) for a in range(0, len(codes), _ROWS)]
        whole = [np.concatenate(parts, axis=-1) for parts in zip(*(part.beliefs for part in found), strict=True)]
        return Sums(np.concatenate([part.log_z for part in found]), whole)

    def log_z(self) -> float:
        return float(self._summed(np.full((1, len(self.cardinalities)), MISSING), False).log_z[0])

    def moments(self) -> tuple[float, np.ndarray]:
        """log Z, and the marginals of all factors, flattened like `values`."""
        found = self._summed(np.full((1, len(self.cardinalities)), MISSING), True)
        return float(found.log_z[0]), np.concatenate([belief.ravel() for belief in found.beliefs])

    def _summed(self, codes: np.ndarray, beliefs: bool) -> Sums:
        tables: list[np.ndarray] = []
        for scope, table in zip(self.scopes, self.tables, strict=True):
            whole = np.broadcast_to(table[..., None], (*table.shape, len(codes)))
            if len(scope) == 1:
                code, value = codes[:, scope[0]], np.arange(len(table))[:, None]
                whole = np.where((code == MISSING) | (code == value), whole, -np.inf)
            tables.append(np.ascontiguousarray(whole))
        try:
            found = log_partitions(self.cardinalities, self.scopes, tables, BUDGET, beliefs=beliefs)
        except ValueError:
            if len(codes) == 1:
                raise
            rows = [
                self._summed(row[None], beliefs) for row in codes
            ]  # each row's evidence makes its own graph narrower
            joined = [np.concatenate(parts, axis=-1) for parts in zip(*(row.beliefs for row in rows), strict=True)]
            return Sums(np.concatenate([row.log_z for row in rows]), joined)
        return Sums(found.log_z, found.beliefs)


def uniform(cardinalities: Sequence[int], edges: np.ndarray) -> PairwiseTables:
    """The model without preferences on this graph."""
    entries = sum(cardinalities) + sum(cardinalities[i] * cardinalities[j] for i, j in edges.tolist())
    return PairwiseTables(tuple(cardinalities), edges, np.zeros(entries))


def maximum_likelihood(
    start: PairwiseTables, codes: np.ndarray, *, smoothing: float, max_iter: int, tol: float
) -> tuple[PairwiseTables, int, bool]:
    """The model of most likelihood, with the number of iterations, and whether they converged.

    `smoothing` rows of uniform values are added in expectation. Missing entries are summed out, by expectation maximisation.
    """
    rows, counts = np.unique(codes, axis=0, return_counts=True)
    complete = (rows != MISSING).all(axis=1)
    sure = _counted(start, rows[complete], counts[complete])
    spread = np.concatenate([np.full(table.size, smoothing / table.size) for table in start.tables])
    total = len(codes) + smoothing
    if complete.all():
        return _fitted(start, (sure + spread) / total, max_iter, tol)
    model, before = start, -np.inf
    for iteration in range(1, max_iter + 1):
        found = model.sums(rows[~complete], beliefs=True)
        unsure = np.concatenate([(belief @ counts[~complete]).ravel() for belief in found.beliefs])
        # The average of the log-likelihood that expectation maximisation raises, without the smoothing's constant part.
        now = float(counts @ _row_sums(model, rows, complete, found) - len(codes) * model.log_z()) / len(codes)
        model, _, _ = _fitted(model, (sure + unsure + spread) / total, max_iter, tol)
        if abs(now - before) <= tol:
            return model, iteration, True
        before = now
    return model, max_iter, False


def _row_sums(model: PairwiseTables, rows: np.ndarray, complete: np.ndarray, found: Sums) -> np.ndarray:
    log_sums = np.empty(len(rows))
    log_sums[complete] = model.log_weights(rows[complete])
    log_sums[~complete] = found.log_z
    return log_sums


def _counted(model: PairwiseTables, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How often the entries of every table occur in rows with these counts."""
    found = []
    for scope, table in zip(model.scopes, model.tables, strict=True):
        place = np.ravel_multi_index(tuple(rows[:, i] for i in scope), table.shape)
        found.append(np.bincount(place, weights=counts, minlength=table.size))
    return np.concatenate(found)


def _fitted(start: PairwiseTables, moments: np.ndarray, max_iter: int, tol: float) -> tuple[PairwiseTables, int, bool]:
    """The model with these moments: in closed form on a forest, otherwise the minimum of log Z(θ) - θ · moments."""
    if start.is_forest():
        return _forest(start, moments), 1, True
    from scipy.optimize import minimize

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        log_z, means = dataclasses.replace(start, values=values).moments()
        return log_z - float(values @ moments), means - moments

    options: Any = {"maxiter": max_iter, "gtol": tol, "ftol": 0.0, "maxfun": 10 * max_iter}
    found = minimize(objective, start.values, jac=True, method="L-BFGS-B", options=options)
    converged = bool(np.max(np.abs(found.jac)) <= 10 * tol)
    return dataclasses.replace(start, values=found.x), max(1, int(found.nit)), converged


def _forest(start: PairwiseTables, moments: np.ndarray) -> PairwiseTables:
    """log p_i of every variable, and log p_ij / (p_i p_j) of every edge."""
    shares = dataclasses.replace(start, values=moments).tables
    with np.errstate(divide="ignore"):
        logs = [np.log(share) for share in shares]
    n = len(start.cardinalities)
    for e, (i, j) in enumerate(start.edges.tolist(), start=n):
        possible = np.isfinite(logs[e])
        logs[e] = np.where(possible, logs[e] - np.where(possible, logs[i][:, None] + logs[j][None], 0), -np.inf)
    return start.with_values(logs)
