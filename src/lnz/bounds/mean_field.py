"""Naive mean field: a lower limit of log Z from the best product of independent variables."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from lnz.bounds import local
from lnz.bounds.route import LocalRoute, Solved, check_sweeps
from lnz.energies.graph import FactorGraph
from lnz.estimate import Known


@dataclasses.dataclass(frozen=True)
class MeanField(LocalRoute):
    """A lower limit of log Z for any discrete model with factors: the best of the products q(x) = Π_i q_i(x_i) that coordinate ascent finds.

    log Z ≥ Σ_f E_q[φ_f] + Σ_i H(q_i), in nats, for every q. Each q_i ∝ exp(E_q[Σ_f φ_f | x_i]) in turn, variables without a common factor at
    once, from several starts side by side: one even, the others random. Where some states are impossible, the starts are possible states that
    a search finds; if it finds none the limit is -inf, which says nothing. The gradient is that of the limit at fixed q.

    Attributes:
        restarts: the number of starts.
        max_sweeps: the most updates of every variable.
        tolerance: the change of a probability at which it has converged.
        seed: of the starts.

    Raises:
        ValueError: where the energy has no factors.

    Source: Jordan, Ghahramani, Jaakkola, Saul 1999, "An introduction to variational methods for graphical models".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.MeanField()).lower < 12.7855)
        True
    """

    name: ClassVar[str] = "mean field"
    restarts: int = 8
    max_sweeps: int = 200
    tolerance: float = 1e-7
    seed: int = 0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance)
        if not isinstance(self.restarts, int) or self.restarts < 1:
            raise ValueError(f"restarts must be a whole number of at least 1, but is {self.restarts!r}")

    def known(self, graph: FactorGraph) -> Known:
        return "bound"

    @property
    def sides(self) -> tuple[bool, bool]:
        return True, False

    def solve(self, found: local.Model) -> Solved:
        rng = np.random.default_rng(self.seed)
        weights = rng.gamma(0.5, size=(self.restarts, *found.unary.shape)) + 1e-6
        weights[0] = 1
        weights *= found.unary[None] > -np.inf
        q = weights / weights.sum(axis=2, keepdims=True)
        ascent = _Ascent(found)
        if ascent.hard:
            q = ascent.possible_states(q, rng)
        residual, sweeps = np.inf, 0
        while residual > self.tolerance and sweeps < self.max_sweeps:
            residual, q = ascent.sweep(q)
            sweeps += 1
        limits = ascent.limits(q)
        best = int(np.argmax(limits))
        q = q[best]
        factors = []
        for scope, table in zip(found.scopes, found.tables, strict=True):
            product = np.ones(())
            for i, k in zip(scope, table.shape, strict=True):
                product = product[..., None] * q[i, :k]
            factors.append(product)
        return Solved(float(limits[best]), q, factors, residual, residual <= self.tolerance, sweeps)


class _Ascent:
    """Coordinate ascent on several q (restarts, n, K) side by side."""

    def __init__(self, found: local.Model):
        self.unary = found.unary
        self.all = local.blocks(found, [range(len(found.scopes))])[0]
        self.hard = any((block.tables == -np.inf).any() for block in self.all)
        size = max((float(np.abs(b.tables[b.tables > -np.inf]).max(initial=0)) for b in self.all), default=0.0)
        self.penalty = 10 * (1 + size + float(np.abs(found.unary[found.unary > -np.inf]).max(initial=0)))
        neighbours: dict[int, set[int]] = {}
        for scope in found.scopes:
            for i in scope:
                neighbours.setdefault(i, set()).update(scope)
        classes: list[list[int]] = []
        colour: dict[int, int] = {}
        for i in range(len(found.unary)):
            taken = {colour[j] for j in neighbours.get(i, ()) if j in colour}
            colour[i] = next(c for c in range(len(taken) + 1) if c not in taken)
            if colour[i] == len(classes):
                classes.append([])
            classes[colour[i]].append(i)
        number = np.array([colour[i] for i in range(len(found.unary))], int)
        self.classes: list[tuple[np.ndarray, list[tuple[int, local.Block]]]] = []
        for c, members in enumerate(classes):
            parts = []
            for block in self.all:
                for a in range(block.variables.shape[1]):
                    rows = number[block.variables[:, a]] == c
                    if rows.any():
                        parts.append((a, local.Block(*(part[rows] for part in block))))
            self.classes.append((np.array(members), parts))

    def sweep(self, q: np.ndarray, penalty: float | None = None) -> tuple[float, np.ndarray]:
        """Every variable once; the largest change, and the new q. With a penalty, impossible rows cost that much instead of everything."""
        q, worst = q.copy(), 0.0
        for members, _ in self.classes:
            new = self._normalised(self._pull(q, members, penalty))
            worst = max(worst, float(np.abs(new - q[:, members]).max(initial=0)))
            q[:, members] = new
        return worst, q

    def possible_states(self, q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """States, as q of zeros and ones, in which as few impossible rows as can be found are taken."""
        for _ in range(10):
            _, q = self.sweep(q, self.penalty)
        x = q + 1e-9 * rng.random(q.shape)
        x = (x == x.max(axis=2, keepdims=True)).astype(float)
        clean = np.zeros(len(x), bool)
        for _ in range(50):
            for members, _ in self.classes:
                pull = self._pull(x, members, self.penalty)
                pull += np.where(clean, 0.0, 0.3 * self.penalty)[:, None, None] * rng.random(pull.shape)
                new = (pull == pull.max(axis=2, keepdims=True)).astype(float)
                x[~clean] = _put(x, members, new)[~clean]
            clean |= self.limits(x) > -np.inf
            if clean.all():
                break
        return x

    def limits(self, q: np.ndarray) -> np.ndarray:
        """Σ_f E_q[φ_f] + Σ_i H(q_i) of every q; -inf where it takes an impossible row."""
        log_q = np.log(np.where(q > 0, q, 1))
        total = (q * (np.where(q > 0, self.unary[None], 0) - log_q)).sum(axis=(1, 2))
        for block in self.all:
            mean, lost = _contracted(block, q, None)
            total += np.where(lost.any(axis=1), -np.inf, mean.sum(axis=1))
        return total

    def _pull(self, q: np.ndarray, members: np.ndarray, penalty: float | None) -> np.ndarray:
        """E_q[Σ_f φ_f | x_i] of a class's variables: (restarts, members, K)."""
        parts = next(parts for which, parts in self.classes if which is members)
        total = np.repeat(self.unary[None], len(q), axis=0)
        for a, block in parts:
            mean, lost = _contracted(block, q, a)
            mean = np.where(lost > 0, -np.inf, mean) if penalty is None else mean - penalty * lost
            place: Any = (slice(None), block.variables[:, a], slice(mean.shape[2]))
            np.add.at(total, place, mean)
        return total[:, members]

    @staticmethod
    def _normalised(pull: np.ndarray) -> np.ndarray:
        top = pull.max(axis=2, keepdims=True)
        weights = np.exp(pull - np.where(top == -np.inf, 0, top))
        even = np.where(top == -np.inf, 1.0, weights)
        return even / even.sum(axis=2, keepdims=True)


def _put(x: np.ndarray, members: np.ndarray, new: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[:, members] = new
    return x


def _contracted(block: local.Block, q: np.ndarray, free: int | None) -> tuple[np.ndarray, np.ndarray]:
    """E_q[φ_f] over all axes but a free one, (restarts, F, k) or (restarts, F), of the finite rows; and the mass of the impossible ones."""
    arity = block.variables.shape[1]
    impossible = block.tables == -np.inf
    found = []
    for part in (np.where(impossible, 0, block.tables), impossible.astype(float)):
        if part is not block.tables and not part.any():
            keep = () if free is None else (block.tables.shape[free + 1],)
            found.append(np.zeros((len(q), len(block.tables), *keep)))
            continue
        table, axis = part[None], 2
        for b in range(arity):
            if b == free:
                axis = 3
                continue
            k = block.tables.shape[b + 1]
            share = q[:, block.variables[:, b], :k]
            left = np.moveaxis(table, axis, -1)
            share = share.reshape(*share.shape[:2], *(1,) * (left.ndim - 3), k)
            table = (left * share).sum(axis=-1)
        found.append(np.broadcast_to(table, (len(q), *table.shape[1:])))
    return found[0], found[1]
