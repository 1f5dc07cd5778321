"""Weighted mini-buckets in NumPy: elimination in tables of bounded size, with costs and weights moved until the limit stands still."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs.broadcast import Fit, fit

Scope = tuple[int, ...]

EPS = float(np.finfo(float).eps)
STEP = 2.0  # of the weights, for a difference of 1 nat in conditional entropies
LEAST = 1e-3  # of a mini-bucket's weight
TINY = 1e-300  # of a belief that the shifts take note of


class Cluster(NamedTuple):
    """A mini-bucket: its variables, the one summed out here first, and what is multiplied in it.

    Attributes:
        scope, shape: its variables in the order of elimination.
        leaves, messages: tables of the model and mini-buckets below, each with its fit.
        shared: the fit of the variables that all mini-buckets of its variable have.
    """

    scope: Scope
    shape: tuple[int, ...]
    leaves: list[tuple[int, Fit]]
    messages: list[tuple[int, Fit]]
    shared: Fit | None


class Run(NamedTuple):
    """What sweeps have found: the best limit, its last change, whether it stands still, and how many sweeps there were."""

    value: float
    change: float
    still: bool
    sweeps: int


class Buckets:
    """Mini-buckets along an order. With Σ_r w_r = 1 in every bucket, Σ_x Π_r f_r ≤ Π_r (Σ_x f_r^{1/w_r})^{w_r} for w > 0, and ≥ where one w > 0.

    Factors of the variables that a bucket's parts share move between them: `shifts`, which add up to 0. At the best ones the parts' beliefs
    agree there, which `forward` goes for; the best weights have equal conditional entropies. Any shifts and weights give a limit.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        scopes: Sequence[Scope],
        order: Sequence[int],
        *,
        entries: float,
        variables: int | None = None,
        upper: bool = True,
    ):
        self.sizes = tuple(sizes)
        rank = {v: r for r, v in enumerate(order)}
        self.turn = [tuple(sorted(range(len(s)), key=lambda a, s=s: rank[s[a]])) for s in scopes]
        self.scopes = [tuple(s[a] for a in turn) for s, turn in zip(scopes, self.turn, strict=True)]
        self.clusters: list[Cluster] = []
        self.above: list[int] = []
        self.buckets: list[list[int]] = []
        self.home = [-1] * len(scopes)
        holding: dict[int, list[tuple[bool, int, Scope]]] = {v: [] for v in order}
        self.loose = [f for f, scope in enumerate(self.scopes) if not scope]
        for f, scope in enumerate(self.scopes):
            if scope:
                holding[scope[0]].append((True, f, scope))
        for v in order:
            groups = _grouped(holding.pop(v), self.sizes, entries, variables)
            unions = [set().union(*(item[2] for item in group)) for group in groups]
            common = set.intersection(*unions) if len(groups) > 1 else set()
            self.buckets.append([])
            for group, union in zip(groups, unions, strict=True):
                scope, number = tuple(sorted(union, key=rank.__getitem__)), len(self.clusters)
                fits = [(leaf, i, fit(s, scope, self.sizes)) for leaf, i, s in group]
                shared = fit([u for u in scope if u in common], scope, self.sizes) if common else None
                for leaf, i, _ in fits:
                    if leaf:
                        self.home[i] = number
                    else:
                        self.above[i] = number
                self.clusters.append(
                    Cluster(
                        scope,
                        tuple(self.sizes[u] for u in scope),
                        [(i, f) for leaf, i, f in fits if leaf],
                        [(i, f) for leaf, i, f in fits if not leaf],
                        shared,
                    )
                )
                self.above.append(-1)
                self.buckets[-1].append(number)
                if len(scope) > 1:
                    holding[scope[1]].append((False, number, scope[1:]))
        self.entries = sum(math.prod(c.shape) for c in self.clusters)
        self.split = any(len(bucket) > 1 for bucket in self.buckets)  # otherwise the limit is log Z
        self.tables: list[np.ndarray] = []
        self.hard = False
        self.rounding = 0.0  # the allowance in the last limit
        self.reset(upper)

    def reset(self, upper: bool) -> None:
        """Begin anew, with even weights and no shifts, for an upper or a lower limit."""
        self.upper, count = upper, len(self.clusters)
        self.weights = np.ones(count)
        for bucket in self.buckets:
            m = len(bucket)
            if m > 1:
                self.weights[bucket] = 1 / m if upper else [m] + [-1] * (m - 1)
        self.shifts: list[Any] = [0.0] * count
        self._messages: list[Any] = [None] * count
        self._shares: list[Any] = [None] * count
        self._spread: list[Any] = [None] * count  # conditional entropies of the variable given the others
        self._back: list[Any] = [0.0] * count
        self._entropy = np.zeros(count)

    def put(self, tables: Sequence[np.ndarray]) -> None:
        """Set the log-potentials, one table for each scope."""
        self.tables = [np.ascontiguousarray(t.transpose(turn)) for t, turn in zip(tables, self.turn, strict=True)]
        self.hard = any((table == -np.inf).any() for table in self.tables)

    def forward(self, match: float = 1.0, *, keep: bool = True) -> float:
        """The limit, from the first variable to the last, with an allowance for rounding on the safe side.

        Args:
            match: how far the shifts of a split bucket go towards agreement on the way, from 0 to 1.
            keep: whether `backward` will follow; otherwise tables go at once.
        """
        value = float(sum(float(self.tables[f]) for f in self.loose))
        rounding, size = 4 * EPS * abs(value), np.zeros(len(self.clusters))
        messages = self._messages
        for bucket in self.buckets:
            products = []
            for c in bucket:
                total = np.zeros(self.clusters[c].shape)
                for f, place in self.clusters[c].leaves:
                    total.reshape(place.wide)[...] += place.spread(self.tables[f])
                for below, place in self.clusters[c].messages:
                    total.reshape(place.wide)[...] += place.spread(messages[below])
                    size[c] += size[below]
                    if not keep:
                        messages[below] = None
                products.append(total)
            if len(bucket) > 1 and match:
                self._match(bucket, products, match)
            for c, total in zip(bucket, products, strict=True):
                shared, w = self.clusters[c].shared, float(self.weights[c])
                if shared is not None:
                    shift = np.broadcast_to(self.shifts[c], shared.shape)
                    total.reshape(shared.wide)[...] += shared.spread(shift)
                    size[c] += float(np.abs(shift).max(initial=0))
                message, shares, spread = self._power_sum(total, w, shared is not None and keep)
                finite = message[message > -np.inf] if self.hard else message
                if finite.size == 0:
                    return -np.inf
                top, bottom = float(finite.max()), float(finite.min())
                rounding += 8 * EPS * (size[c] + max(abs(top), abs(bottom)) + abs(w) * (2 + math.log(len(total))))
                value += top
                message = message - top
                size[c] = top - bottom
                messages[c] = message
                if keep:
                    self._shares[c], self._spread[c] = shares, spread
        self.rounding = float(rounding)
        return float(value + (rounding if self.upper else -rounding))

    def backward(self) -> list[np.ndarray]:
        """After `forward`: the derivative of the limit with respect to every table, at fixed shifts and weights. Not after a limit of -inf."""
        found: list[Any] = [np.ones(()) for _ in self.scopes]
        over: list[Any] = [np.ones(()) for _ in self.clusters]
        for c in reversed(range(len(self.clusters))):
            cluster, above = self.clusters[c], over[c]
            belief = self._shares[c]
            belief *= above[None]
            self._shares[c] = over[c] = None
            for below, place in cluster.messages:
                over[below] = place.total(belief)
            for f, place in cluster.leaves:
                found[f] = place.total(belief)
            if cluster.shared is not None:
                self._entropy[c] = float((above * self._spread[c]).sum())
                known = np.where(self._messages[c] > -np.inf, self._messages[c], 0)
                self._back[c] = self.weights[c] * np.log(np.maximum(above, TINY)) - known
            self._messages[c] = self._spread[c] = None
        return [t.transpose(np.argsort(turn)) for t, turn in zip(found, self.turn, strict=True)]

    def reweigh(self, step: float) -> None:
        """Move the weights of every split bucket against the differences of conditional entropies, after `backward`."""
        for bucket in self.buckets:
            if len(bucket) < 2:
                continue
            w, h = self.weights[bucket], self._entropy[bucket]
            if self.upper:
                w = np.maximum(w * np.exp(-step * (h - w @ h)), LEAST)
                self.weights[bucket] = w / w.sum()
            else:
                u = np.clip(-w[1:] * np.exp(step * (h[0] - h[1:])), LEAST, 100)
                self.weights[bucket] = [1 + u.sum(), *-u]

    def tighten(self, sweeps: int, tolerance: float = 1e-6, until: float = math.inf) -> Run:
        """Sweeps up and down with moving shifts and weights. The best ones found stay.

        Args:
            sweeps: the most of them.
            tolerance: the change of the limit, in nats, at which it stands still; twice in a row.
            until: the time, by `time.perf_counter`, after which no further sweep begins.
        """
        sign = 1.0 if self.upper else -1.0
        best, kept, change = sign * np.inf, self._moved(), np.inf
        match, step, still, worse, done = 0.7, STEP, 0, 0, 0
        while done < sweeps and still < 2 and match > 0.05:
            value = self.forward(match if done else 1.0)
            done += 1
            gain = sign * (best - value)
            if gain > 0:
                best, kept, worse = value, self._moved(), 0
            else:
                worse += 1
            change = abs(gain)
            if not self.split or value == -np.inf or time.perf_counter() > until:
                still += value != -np.inf and not self.split
                break
            still = still + 1 if change <= tolerance else 0
            if worse == 3 or gain < -max(1.0, 0.01 * abs(best)):
                self._move(kept)
                match, step, worse = match / 2, step / 2, 0
                self.forward(0.0)
                done += 1
            self.backward()
            if done > 1:
                self.reweigh(step)
        self._move(kept)
        return Run(best, 0.0 if not self.split else change, still > 0 or best == -np.inf, done)

    def _moved(self) -> tuple[np.ndarray, list[Any]]:
        return self.weights.copy(), list(self.shifts)

    def _move(self, moved: tuple[np.ndarray, list[Any]]) -> None:
        self.weights, self.shifts = moved[0].copy(), list(moved[1])

    def _match(self, bucket: list[int], products: list[np.ndarray], match: float) -> None:
        """Shift factors of the shared variables between a bucket's parts until their beliefs agree, as far as the messages from above know."""
        logs = []
        for c, total in zip(bucket, products, strict=True):
            shared, w = self.clusters[c].shared, self.weights[c]
            assert shared is not None
            x = total + np.asarray(self._back[c])[None]
            x.reshape(shared.wide)[...] += shared.spread(np.broadcast_to(self.shifts[c], shared.shape))
            if self.hard:
                x = np.where(np.isfinite(x), x / w, -np.inf)
            else:
                x /= w
            x -= max(float(x.max()), -1e300)
            belief = shared.total(np.exp(x, out=x))
            with np.errstate(divide="ignore"):
                logs.append(np.log(belief / (belief.sum() or 1.0)))
        agreed = np.all([np.isfinite(x) for x in logs], axis=0)
        logs = [np.where(agreed, x, 0) for x in logs]
        w = self.weights[bucket]
        mean = sum(a * x for a, x in zip(w, logs, strict=True))
        for c, a, x in zip(bucket, w, logs, strict=True):
            self.shifts[c] = self.shifts[c] + match * a * (mean - x)

    def _power_sum(self, x: np.ndarray, w: float, spread: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """w log Σ e^{x/w} over the first axis, the terms' shares, and their entropy if wanted. Overwrites x."""
        if w != 1:
            x /= w
        top = x.max(axis=0)
        if self.hard:
            x = np.where(top == np.inf, np.inf, x)  # a zero under a negative weight
            top = np.where(np.isfinite(top), top, 0)
        x -= top
        shares = np.exp(x) if spread else np.exp(x, out=x)
        total = shares.sum(axis=0)
        with np.errstate(divide="ignore"):
            log_total = np.log(total)
        message = w * (log_total + top)
        if self.hard:
            shares = np.where(np.isfinite(shares), shares, 0)
            shares /= np.where((total > 0) & (total < np.inf), total, 1)
            x = np.where(np.isfinite(x), x, 0)
        else:
            shares /= total
        if not spread:
            return message, shares, None
        log_total = np.where(np.isfinite(log_total), log_total, 0)
        return message, shares, log_total - (shares * x).sum(axis=0)


def _grouped(
    members: list[tuple[bool, int, Scope]], sizes: Sequence[int], entries: float, variables: int | None
) -> list[list[tuple[bool, int, Scope]]]:
    """Mini-buckets: the widest tables first, each into the first bucket that it fits."""
    groups: list[tuple[set[int], list[tuple[bool, int, Scope]]]] = []
    for item in sorted(members, key=lambda m: -len(m[2])):
        for held, group in groups:
            wider = held.union(item[2])
            fits = (variables is None or len(wider) <= variables) and math.prod(sizes[i] for i in wider) <= entries
            if fits or len(wider) == len(held):
                held.update(item[2])
                group.append(item)
                break
        else:
            groups.append((set(item[2]), [item]))
    return [group for _, group in groups]
