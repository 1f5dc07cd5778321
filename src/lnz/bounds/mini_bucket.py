"""Weighted mini-buckets: elimination in tables of at most a few variables, for an upper or a lower limit of log Z."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from lnz.bounds import local
from lnz.bounds.local import Scope
from lnz.bounds.route import LocalRoute, Solved
from lnz.energies.graph import FactorGraph
from lnz.estimate import Known
from lnz.exact import orders


@dataclasses.dataclass(frozen=True)
class MiniBucket(LocalRoute):
    """An upper or lower limit of log Z for any discrete model with factors, by elimination in tables of at most `i_bound` variables.

    Variable after variable is summed out of the factors that hold it. Where their product would be too wide they are split into mini-buckets
    r with weights Σ_r w_r = 1, and by Hölder's inequality Σ_x Π_r f_r ≤ Π_r (Σ_x f_r^{1/w_r})^{w_r} where all w_r > 0; it is ≥ where exactly one
    is. Before it is split, factors of x move between the mini-buckets until their marginals of x agree. With an `i_bound` beyond the width
    of the order nothing is split, and the limit is log Z. The lower limit is -inf where impossible states fall into a split bucket. The value,
    in nats, is the limit, and the gradient its exact derivative, by reverse mode.

    Attributes:
        i_bound: the most variables of one table; a wider factor is taken alone.
        side: "upper" or "lower".
        max_entries: the most entries of one table; a larger factor is taken alone.
        seed: of the order of elimination, by least fill.

    Raises:
        ValueError: where the energy has no factors.

    Source: Dechter, Rish 2003, "Mini-buckets"; Liu, Ihler 2011, "Bounding the partition function using Hölder's inequality".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.MiniBucket(i_bound=5)).upper > 12.7855)
        True
    """

    name: ClassVar[str] = "mini-buckets"
    i_bound: int = 8
    side: Literal["upper", "lower"] = "upper"
    max_entries: int = 2**22
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("i_bound", "max_entries"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but is {getattr(self, name)!r}")
        if self.side not in ("upper", "lower"):
            raise ValueError(f'side must be "upper" or "lower", but is {self.side!r}')

    def known(self, graph: FactorGraph) -> Known:
        return "bound"

    @property
    def sides(self) -> tuple[bool, bool]:
        return self.side == "lower", self.side == "upper"

    def solve(self, found: local.Model) -> Solved:
        domains = [np.flatnonzero(row > -np.inf) for row in found.unary]
        nodes = [_Table((i,), row[domain]) for i, (row, domain) in enumerate(zip(found.unary, domains, strict=True))]
        for scope, table in zip(found.scopes, found.tables, strict=True):
            nodes.append(_Table(scope, table[np.ix_(*(domains[i] for i in scope))]))
        leaves, sizes, steps = len(nodes), tuple(map(len, domains)), []
        value, rounding = 0.0, 0.0
        holding: list[set[int]] = [set() for _ in sizes]
        for number, node in enumerate(nodes):
            for i in node.scope:
                holding[i].add(number)
        for v in _order(found.scopes, sizes, self.seed):
            groups = self._groups([(number, nodes[number].scope) for number in sorted(holding[v])], sizes)
            step = _Step(v, groups, [_product(group, nodes, v) for group in groups], self._weights(len(groups)))
            steps.append((step, len(nodes)))
            rounding += step.rounding() if len(groups) > 1 else 0.0
            for number in list(holding[v]):
                for i in nodes[number].scope:
                    holding[i].discard(number)
            for result in step.results():
                for i in result.scope:
                    holding[i].add(len(nodes))
                nodes.append(result)
                value += float(result.logs) if not result.scope else 0.0
        adjoint = [np.zeros(node.logs.shape) for node in nodes]
        if value > -np.inf:
            for number in range(leaves, len(nodes)):
                adjoint[number] += not nodes[number].scope
            for step, first in reversed(steps):
                step.pull_back(nodes, adjoint, first)
        variables, factors = np.zeros(found.unary.shape), [np.zeros(table.shape) for table in found.tables]
        for i, domain in enumerate(domains):
            variables[i, domain] = adjoint[i]
        for f, scope in enumerate(found.scopes):
            factors[f][np.ix_(*(domains[i] for i in scope))] = adjoint[len(domains) + f]
        value += rounding if self.side == "upper" else -rounding
        return Solved(value, variables, factors, 0.0, True, 1)

    def _groups(self, members: list[tuple[int, Scope]], sizes: tuple[int, ...]) -> list[list[int]]:
        """Mini-buckets: the widest tables first, each into the first bucket that it fits."""
        groups: list[tuple[set[int], list[int]]] = []
        for number, scope in sorted(members, key=lambda m: -len(m[1])):
            for held, group in groups:
                wider = held.union(scope)
                fits = len(wider) <= self.i_bound and math.prod(sizes[i] for i in wider) <= self.max_entries
                if fits or wider == held:
                    held.update(scope)
                    group.append(number)
                    break
            else:
                groups.append((set(scope), [number]))
        return [group for _, group in groups]

    def _weights(self, m: int) -> np.ndarray:
        if self.side == "upper" or m == 1:
            return np.full(m, 1 / m)
        return np.array([1 + NEGATIVE * (m - 1)] + [-NEGATIVE] * (m - 1))


# The weights of the lower limit's narrower mini-buckets: -1, and so m for the widest of m. Larger ones let the shifts grow from step to step.
NEGATIVE = 1.0


class _Table(NamedTuple):
    scope: Scope
    logs: np.ndarray


class _Step(NamedTuple):
    """The elimination of one variable: products of mini-buckets with the variable on the last axis, and their weights."""

    variable: int
    groups: list[list[int]]
    products: list[_Table]
    weights: np.ndarray

    def marginals(self) -> list[np.ndarray]:
        """log Σ f_r^{1/w_r} over all but the variable, of every mini-bucket."""
        return [
            _log_sum(f.logs / w, tuple(range(f.logs.ndim - 1)))
            for f, w in zip(self.products, self.weights, strict=True)
        ]

    def shifts(self) -> list[np.ndarray]:
        """What is added to each mini-bucket over the variable; they sum to 0."""
        if len(self.groups) == 1:
            return [np.zeros(self.products[0].logs.shape[-1])]
        logs = np.stack(self.marginals())
        logs = np.where(_finite(logs), logs, 0)
        return list(self.weights[:, None] * (self.weights @ logs - logs))

    def results(self) -> list[_Table]:
        return [
            _Table(f.scope[:-1], w * _log_sum((f.logs + shift) / w, (-1,)))
            for f, w, shift in zip(self.products, self.weights, self.shifts(), strict=True)
        ]

    def rounding(self) -> float:
        """A limit of this step's share in the error: a power sum passes errors of its terms on, and adds a few units in their last place."""
        sizes = [np.abs(f.logs[np.isfinite(f.logs)]).max(initial=0) for f in self.products]
        moved = [np.abs(shift).max(initial=0) for shift in self.shifts()]
        return 16 * float(np.finfo(float).eps) * (sum(sizes) + sum(moved) + abs(self.weights).sum())

    def pull_back(self, nodes: list[_Table], adjoint: list[np.ndarray], first: int) -> None:
        """Add what the results' adjoints say to the adjoints of the tables that were multiplied."""
        shares, pulled = [], []
        for r, (f, w, shift) in enumerate(zip(self.products, self.weights, self.shifts(), strict=True)):
            shares.append(_shares((f.logs + shift) / w, (-1,)) * adjoint[first + r][..., None])
            pulled.append(shares[-1].sum(axis=tuple(range(f.logs.ndim - 1))))
        if len(self.groups) > 1:
            logs = np.stack(self.marginals())
            w, g = self.weights[:, None], np.stack(pulled)
            of_logs = np.where(_finite(logs), w * ((w * g).sum(axis=0)[None] - g), 0)
            for r, f in enumerate(self.products):
                inner = _shares(f.logs / self.weights[r], tuple(range(f.logs.ndim - 1)))
                shares[r] = shares[r] + inner * of_logs[r] / self.weights[r]
        for group, f, share in zip(self.groups, self.products, shares, strict=True):
            for number in group:
                scope = nodes[number].scope
                part = share.sum(axis=tuple(a for a, i in enumerate(f.scope) if i not in scope))
                kept = [i for i in f.scope if i in scope]
                adjoint[number] += part.transpose([kept.index(i) for i in scope])


def _product(group: list[int], nodes: list[_Table], v: int) -> _Table:
    scope = (*sorted(set().union(*(nodes[number].scope for number in group)) - {v}), v)
    total = np.zeros(())
    for number in group:
        mine, logs = nodes[number]
        present = [i for i in scope if i in mine]
        turned = iter(logs.transpose([mine.index(i) for i in present]).shape)
        shape = [next(turned) if i in mine else 1 for i in scope]
        total = total + logs.transpose([mine.index(i) for i in present]).reshape(shape)
    return _Table(scope, total)


def _finite(logs: np.ndarray) -> np.ndarray:
    """Which values of the variable every mini-bucket's marginal is finite at, (1, k)."""
    return np.asarray(np.isfinite(logs).all(axis=0, keepdims=True))


def _log_sum(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """log Σ e^x; terms may be -inf, and +inf, which stays."""
    top = x.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(np.exp(x - shift).sum(axis=axis)) + np.squeeze(shift, axis=axis)


def _shares(x: np.ndarray, axis: tuple[int, ...]) -> np.ndarray:
    """e^x over its sum; 0 where that is 0 or infinite."""
    top = x.max(axis=axis, keepdims=True)
    weights = np.exp(np.where(np.isfinite(top), x - np.where(np.isfinite(top), top, 0), -np.inf))
    total = weights.sum(axis=axis, keepdims=True)
    return weights / np.where(total > 0, total, 1)


@functools.lru_cache(maxsize=8)
def _order(scopes: tuple[Scope, ...], sizes: tuple[int, ...], seed: int) -> list[int]:
    """All variables, by least fill."""
    prefix, core = orders.simplicial(orders.adjacency_of(scopes, len(sizes)))
    found = orders.greedy_order(core, [math.log2(k) for k in sizes], random.Random(seed), math.inf)
    return prefix + (found[1] if found is not None else [])
