"""Preprocessing of a model's tables before elimination: impossible values are removed, and tables inside others are merged. NumPy alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lnz._graphs import table_products
from lnz._graphs.contraction_plan import Scope


class Reduced(NamedTuple):
    """A graph without what needs no elimination: impossible values, variables of one value, factors inside others.

    Attributes:
        domains: the values of every variable that are left.
        scopes, tables: the log-potentials that are left, over variables of two and more values; at least two, so that there is a tree.
        home: the table that holds each factor of the graph; -1 for a constant.
        free: variables in no table.
        constant: added to log Z.
        possible: False where some variable has no value left: Z = 0.
    """

    domains: list[np.ndarray]
    scopes: list[Scope]
    tables: list[np.ndarray]
    home: list[int]
    free: list[int]
    constant: float
    possible: bool

    @property
    def sizes(self) -> list[int]:
        return [len(domain) for domain in self.domains]

    def restore(self, labels: np.ndarray) -> np.ndarray:
        """The values in the graph's own numbering."""
        return np.stack([d[labels[:, i]] for i, d in enumerate(self.domains)], axis=1) if self.domains else labels

    def spread(
        self, beliefs: Sequence[np.ndarray], cardinalities: Sequence[int], scopes: Sequence[Scope]
    ) -> list[np.ndarray]:
        """The belief of every factor of the graph from those of the tables that are left, with zeros at the values that were pruned."""
        found: list[np.ndarray] = []
        whole = [len(d) == k for d, k in zip(self.domains, cardinalities, strict=True)]
        for home, scope in zip(self.home, scopes, strict=True):
            live = [i for i in scope if len(self.domains[i]) > 1]
            part = np.asarray(float(self.possible))
            if home >= 0:
                inside = self.scopes[home]
                axes = tuple(axis for axis, v in enumerate(inside) if v not in live)
                part = beliefs[home].sum(axis=axes) if axes else beliefs[home]
                part = table_products.permuted(part, [v for v in inside if v in live], live)
            shape = [cardinalities[i] for i in scope]
            if self.possible and all(whole[i] for i in scope):
                found.append(part.reshape(shape))
                continue
            belief = np.zeros(shape, part.dtype)
            if self.possible:
                domains = [self.domains[i] for i in scope]
                belief[np.ix_(*domains)] = part.reshape([len(domain) for domain in domains])
            found.append(belief)
        return found


def reduce(cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]) -> Reduced:
    """The model without values that some factor forbids, variables of one value and factors inside others.

    Args:
        cardinalities: the number of values of each variable.
        scopes: the variables of every factor, in the order of its table's axes.
        tables: log-potentials of every factor, -inf where impossible.
    """
    domains, possible = possible_values(cardinalities, scopes, tables)
    if not possible:
        return Reduced(domains, [(), ()], [np.zeros(()), np.zeros(())], [-1] * len(scopes), [], -math.inf, False)
    whole = [len(domain) == k for domain, k in zip(domains, cardinalities, strict=True)]
    live = [len(domain) > 1 for domain in domains]
    constant, merged, name_of = 0.0, {}, []
    for scope, table in zip(scopes, tables, strict=True):
        if not all(whole[i] for i in scope):
            table = table[np.ix_(*(domains[i] for i in scope))]
        kept = [i for i in scope if live[i]]
        table = table.reshape([len(domains[i]) for i in kept])
        name = tuple(sorted(kept))
        if not name:
            constant += table.item()
        else:
            table = table_products.permuted(table, kept, name)
            merged[name] = merged[name] + table if name in merged else table
        name_of.append(name)
    if constant == -math.inf:
        return Reduced(domains, [(), ()], [np.zeros(()), np.zeros(())], [-1] * len(scopes), [], -math.inf, False)
    owner = _containers(list(merged), len(domains))
    tables_of: dict[Scope, np.ndarray] = {name: merged[name] for name in merged if owner[name] == name}
    for name, table in merged.items():
        if owner[name] != name:
            shape = [len(domains[i]) if i in name else 1 for i in owner[name]]
            tables_of[owner[name]] = tables_of[owner[name]] + table.reshape(shape)
    names = list(tables_of)
    number = {name: i for i, name in enumerate(names)}
    used = set(itertools.chain.from_iterable(names))
    free = [i for i in range(len(domains)) if live[i] and i not in used]
    constant += sum(math.log(len(domains[i])) for i in free)
    home = [number[owner[name]] if name else -1 for name in name_of]
    padding = max(0, 2 - len(names))
    return Reduced(
        domains,
        names + [()] * padding,
        [tables_of[name] for name in names] + [np.zeros(())] * padding,
        home,
        free,
        constant,
        True,
    )


def possible_values(
    cardinalities: Sequence[int], scopes: Sequence[Scope], tables: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], bool]:
    """The values of every variable that no single factor forbids, and whether every variable has one."""
    alive = [np.ones(k, bool) for k in cardinalities]
    allowed, queue = _zeros(tables)
    of: dict[int, list[int]] = {}
    for f in allowed if queue else ():
        for i in scopes[f]:
            of.setdefault(i, []).append(f)
    queued = set(queue)
    while queue:
        f = queue.pop()
        queued.discard(f)
        scope, table = scopes[f], allowed[f]
        for axis, i in enumerate(scope):
            if not alive[i].all():
                table = table & alive[i].reshape([-1 if a == axis else 1 for a in range(len(scope))])
        if not table.any():
            return [np.flatnonzero(a) for a in alive], False
        for axis, i in enumerate(scope):
            left = np.asarray(table.any(axis=tuple(a for a in range(len(scope)) if a != axis)))
            if (left != alive[i]).any():
                alive[i] = left
                for g in of[i]:
                    if g not in queued:
                        queued.add(g)
                        queue.append(g)
    return [np.flatnonzero(a) for a in alive], True


def _zeros(tables: Sequence[np.ndarray]) -> tuple[dict[int, np.ndarray], list[int]]:
    """The support of every table with zeros, and the tables that forbid a value by themselves. Tables of one shape are examined together."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for f, table in enumerate(tables):
        alike.setdefault(table.shape, []).append(f)
    allowed: dict[int, np.ndarray] = {}
    forbidding: list[int] = []
    for shape, group in alike.items():
        block = max(1, 2**20 // max(1, math.prod(shape)))
        for start in range(0, len(group), block):
            members = group[start : start + block]
            possible = np.asarray(np.stack([tables[f] for f in members]) > -np.inf)
            whole = np.all(possible.reshape(len(members), -1), axis=1)
            every = np.ones(len(members), bool)
            for axis in range(1, len(shape) + 1):
                others = tuple(a for a in range(1, len(shape) + 1) if a != axis)
                every &= np.all(np.any(possible, axis=others), axis=1)
            if not shape:
                every = possible
            allowed.update({f: possible[place] for place, f in enumerate(members) if not whole[place]})
            forbidding += [f for place, f in enumerate(members) if not every[place]]
    return allowed, forbidding


def _containers(names: Sequence[Scope], n: int) -> dict[Scope, Scope]:
    """For every scope the one that it is merged into: a maximal scope that contains it, or itself."""
    of: list[list[Scope]] = [[] for _ in range(n)]
    owner: dict[Scope, Scope] = {}
    for name in sorted(names, key=lambda s: (-len(s), s)):
        rarest = min(name, key=lambda i: len(of[i]))
        mine = set(name)
        owner[name] = min((s for s in of[rarest] if mine.issubset(s)), key=len, default=name)
        if owner[name] == name:
            for i in name:
                of[i].append(name)
    return owner
