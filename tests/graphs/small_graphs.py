"""Random small factor graphs, and what a plain list of all states says of them, in NumPy."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

import lnz


@dataclasses.dataclass(frozen=True)
class Listed:
    """A graph by its parts, with the log-weight of every state as one array with an axis a variable."""

    cardinalities: tuple[int, ...]
    scopes: list[tuple[int, ...]]
    tables: list[np.ndarray]

    @functools.cached_property
    def graph(self) -> lnz.FactorGraph:
        return lnz.FactorGraph(self.cardinalities, self.scopes, self.tables)

    @functools.cached_property
    def weights(self) -> np.ndarray:
        total = np.zeros(self.cardinalities)
        states = np.indices(self.cardinalities)
        for scope, table in zip(self.scopes, self.tables, strict=True):
            total += table[tuple(states[i] for i in scope)]
        return total

    @functools.cached_property
    def log_z(self) -> float:
        weights = self.weights
        top = weights.max()
        return float(np.log(np.exp(weights - top).sum()) + top) if top > -np.inf else -np.inf

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return np.exp(self.weights - self.log_z) if self.log_z > -np.inf else np.zeros(self.cardinalities)

    def marginal(self, scope: tuple[int, ...]) -> np.ndarray:
        """P(x_scope), the axes in the scope's order."""
        p = self.probabilities
        p = p.sum(axis=tuple(a for a in range(p.ndim) if a not in scope))
        return np.transpose(p, [sorted(scope).index(i) for i in scope])


def random_graph(seed: int, *, most: int = 400) -> Listed:
    """Up to 7 variables of 1 to 5 values and 11 factors of 0 to 4 variables; weak and violent tables, some with zeros, scopes repeated."""
    rng = np.random.default_rng(seed)
    while True:
        cardinalities = tuple(int(k) for k in rng.integers(1, 6, size=rng.integers(0, 8)))
        if np.prod(cardinalities, dtype=float) <= most:
            break
    n, scopes, tables = len(cardinalities), [], []
    strength, zeros = rng.choice([0.5, 3.0, 60.0, 700.0]), rng.choice([0.0, 0.1, 0.4])
    for _ in range(rng.integers(0, 12)):
        again = scopes and rng.random() < 0.2
        scope = scopes[rng.integers(len(scopes))] if again else rng.permutation(n)[: rng.integers(0, min(n, 4) + 1)]
        scope = tuple(int(i) for i in rng.permutation(scope))
        table = strength * rng.normal(size=[cardinalities[i] for i in scope])
        tables.append(np.where(rng.random(table.shape) < zeros, -np.inf, table))
        scopes.append(scope)
    return Listed(cardinalities, scopes, tables)
