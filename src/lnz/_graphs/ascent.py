"""Naive mean field in NumPy: coordinate ascent from several starts side by side."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs import messages


class Climbed(NamedTuple):
    """The best product of variables: its limit, q (n, K), the last change of a probability, and the number of sweeps."""

    value: float
    q: np.ndarray
    residual: float
    sweeps: int


def climb(
    found: messages.Model, *, restarts: int, max_sweeps: int, tolerance: float, seed: int, until: float = float("inf")
) -> Climbed:
    """Coordinate ascent from one even and some random starts, which are possible states where some are not.

    Args:
        found: a model in which every variable has a possible value.
        until: the time, by `time.perf_counter`, after which no further sweep begins.
    """
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.5, size=(restarts, *found.unary.shape)) + 1e-6
    weights[0] = 1
    weights *= found.unary[None] > -np.inf
    q = weights / weights.sum(axis=2, keepdims=True)
    ascent = Ascent(found)
    if ascent.hard:
        q = ascent.possible_states(q, rng)
    residual, sweeps = np.inf, 0
    while residual > tolerance and sweeps < max_sweeps and (sweeps == 0 or time.perf_counter() < until):
        residual, q = ascent.sweep(q)
        sweeps += 1
    limits = ascent.limits(q)
    best = int(np.argmax(limits))
    return Climbed(float(limits[best]), q[best], residual, sweeps)


class Ascent:
    """Coordinate ascent on several q (restarts, n, K) side by side."""

    def __init__(self, found: messages.Model):
        self.unary = found.unary
        self.all = messages.blocks(found, [range(len(found.scopes))])[0]
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
        self.classes: list[tuple[np.ndarray, list[tuple[int, messages.Block]]]] = []
        for c, members in enumerate(classes):
            parts = []
            for block in self.all:
                for a in range(block.variables.shape[1]):
                    rows = number[block.variables[:, a]] == c
                    if rows.any():
                        parts.append((a, messages.Block(*(part[rows] for part in block))))
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


def _contracted(block: messages.Block, q: np.ndarray, free: int | None) -> tuple[np.ndarray, np.ndarray]:
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
