"""Every state of a small model, listed in NumPy without the library's help: what its sums are compared with."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import lnz


def states(values: Iterable[Any], n: int) -> np.ndarray:
    """Every assignment of these values to n variables, the last of which changes first: shape (count, n)."""
    values = list(values)
    return np.array(list(itertools.product(values, repeat=n)), np.result_type(*values)).reshape(len(values) ** n, n)


def log_sum(x: np.ndarray) -> Any:
    """log Σ e^x, also of complex numbers, whose derivatives are then taken by the complex step."""
    x = x[np.real(x) > -np.inf]
    if not x.size:
        return -np.inf
    top = np.real(x).max()
    return np.log(np.exp(x - top).sum()) + top


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """Probabilities; zeros where nothing is possible."""
    log_z = log_sum(log_weights)
    return np.exp(log_weights - log_z) if log_z > -np.inf else np.zeros(log_weights.shape)


def lattice_bonds(
    shape: tuple[int, ...], periodic: bool | tuple[bool, ...]
) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(axis, site, next site along it) of every bond of a lattice."""
    for axis, loop in enumerate(np.broadcast_to(periodic, len(shape))):
        for site in np.ndindex(shape):
            if loop or site[axis] + 1 < shape[axis]:
                yield axis, site, tuple((s + (a == axis)) % shape[a] for a, s in enumerate(site))


def ising(couplings: np.ndarray, fields: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """log Z, E[s_i s_j] and E[s_i] for a symmetric matrix of couplings."""
    s = states([-1.0, 1.0], len(fields))
    logits = 0.5 * np.einsum("si,ij,sj->s", s, couplings, s) + s @ fields
    p = normalised(logits)
    return log_sum(logits), np.einsum("s,si,sj->ij", p, s, s), p @ s


@dataclasses.dataclass(frozen=True)
class Listed:
    """A factor graph by its parts, with the log-weight of every state as one array with an axis a variable."""

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
        return float(log_sum(self.weights))

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        return normalised(self.weights)

    def marginal(self, scope: tuple[int, ...]) -> np.ndarray:
        """P(x_scope), the axes in the scope's order."""
        p = self.probabilities
        p = p.sum(axis=tuple(a for a in range(p.ndim) if a not in scope))
        return np.transpose(p, [sorted(scope).index(i) for i in scope])


def random_graph(seed: int, *, most: int = 400) -> Listed:
    """Up to 7 variables of 1 to 5 values and 11 factors of 0 to 4 variables; weak and violent tables, some with zeros, scopes repeated."""
    rng = np.random.default_rng(seed)
    cardinalities = _cardinalities(rng, 5, most)
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


def random_local(seed: int, *, arity: int = 3, forest: bool = False) -> Listed:
    """Up to 7 variables of 1 to 4 values and 12 factors of 0 to `arity` variables, with cycles or without: for local methods."""
    rng = np.random.default_rng(seed)
    cardinalities = _cardinalities(rng, 4, 1500)
    n, scopes = len(cardinalities), []
    part = np.arange(n)
    for _ in range(rng.integers(0, 13)):
        scope = [int(i) for i in rng.permutation(n)[: rng.integers(0, min(n, arity) + 1)]]
        if forest:
            if len(set(part[scope])) < len(scope):
                continue
            part[np.isin(part, part[scope])] = part[scope[0]] if scope else 0
        scopes.append(tuple(scope))
    strength, zeros = rng.choice([0.5, 3.0, 60.0, 700.0]), rng.choice([0.0, 0.0, 0.1, 0.4])
    tables = [strength * rng.normal(size=[cardinalities[i] for i in scope]) for scope in scopes]
    tables = [np.where(rng.random(table.shape) < zeros, -np.inf, table) for table in tables]
    return Listed(cardinalities, scopes, tables)


def _cardinalities(rng: np.random.Generator, largest: int, most: int) -> tuple[int, ...]:
    """Numbers of values of up to 7 variables, whose product is at most `most`."""
    while True:
        cardinalities = tuple(int(k) for k in rng.integers(1, largest + 1, size=rng.integers(0, 8)))
        if np.prod(cardinalities, dtype=float) <= most:
            return cardinalities
