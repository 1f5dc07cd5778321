"""Parts of a model that sum to something simpler, found before elimination: barren nodes, separable tables. NumPy alone.

A table p(y | a, b) whose y occurs nowhere else sums to 1, whatever a and b are, so it is left out of the contraction tree of log Z. Nothing else
depends on y, so samples draw it last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lnz._graphs import table_products
from lnz._graphs.contraction_plan import Scope
from lnz._graphs.preprocess import Reduced

MOST = 2**16  # larger tables are not examined
EPS = float(np.finfo(np.float64).eps)


class Dropped(NamedTuple):
    """Variables that were summed out of the only table that has them; given the others of its scope, the table is their distribution."""

    variables: Scope
    scope: Scope
    table: np.ndarray

    def draw(self, rng: np.random.Generator, labels: np.ndarray) -> None:
        """Draw the variables for every row of `labels`, in place."""
        given = [axis for axis, v in enumerate(self.scope) if v not in self.variables]
        own = [axis for axis, v in enumerate(self.scope) if v in self.variables]
        rows = self.table.transpose(given + own)[tuple(labels[:, self.scope[axis]] for axis in given)]
        shape = [self.table.shape[axis] for axis in own]
        rows = np.broadcast_to(rows, (len(labels), *shape)).reshape(len(labels), -1)
        cumulative = np.cumsum(np.exp(rows - rows.max(axis=1, keepdims=True)), axis=1)
        u = (1 - rng.random(len(labels))) * cumulative[:, -1]  # in (0, total]
        chosen = np.unravel_index((cumulative < u[:, None]).sum(axis=1), shape)
        for axis, values in zip(own, chosen, strict=True):
            labels[:, self.scope[axis]] = values


def prune(model: Reduced) -> tuple[Reduced, list[Dropped]]:
    """The model without its barren parts, and what was dropped, in order: log Z is the same, and so is the distribution of the variables left.

    The `home` of factors is lost: marginals need the whole model.
    """
    if not model.possible:
        return model, []
    work = _Tables(model)
    return work.run()


class _Tables:
    """Tables by number, and the numbers of the tables of every variable."""

    def __init__(self, model: Reduced):
        self.model = model
        self.constant = model.constant
        self.dropped: list[Dropped] = []
        self.scopes: dict[int, Scope] = {}
        self.tables: dict[int, np.ndarray] = {}
        self.of: list[set[int]] = [set() for _ in model.domains]
        self.queue: dict[int, None] = {}
        self.next = 0  # the number of the last table; none has number 0
        for scope, table in zip(model.scopes, model.tables, strict=True):
            self._put(scope, table)

    def run(self) -> tuple[Reduced, list[Dropped]]:
        while self.queue:
            name = self.queue.popitem()[0]
            if name in self.scopes and self.tables[name].size <= MOST:
                self._simplify(name)
        scopes, tables = list(self.scopes.values()), list(self.tables.values())
        padding = max(0, 2 - len(scopes))
        left = self.model._replace(
            scopes=scopes + [()] * padding,
            tables=tables + [np.zeros(())] * padding,
            constant=self.constant,
        )
        return left, self.dropped

    def _simplify(self, name: int) -> None:
        """Process one table: split off separable variables, and sum out those that occur in it alone if the result is simpler."""
        scope, table = self.scopes[name], self.tables[name]
        private = tuple(v for v in scope if len(self.of[v]) == 1)
        rest, summed = _summed(scope, table, private) if private else (scope, table)
        parts = separated(rest, summed)
        if (
            len(parts) == 1
            and parts[0][0] == rest
            and (not private or (len(rest) > 1 and not self._container(rest, name)))
        ):
            return
        self._take(name)
        if private:
            self.dropped.append(Dropped(private, scope, table))
        for part in parts:
            self._put(*part)

    def _take(self, name: int) -> None:
        for v in self.scopes[name]:
            self.of[v].discard(name)
            self.queue.update(dict.fromkeys(self.of[v]))
        del self.scopes[name], self.tables[name]

    def _put(self, scope: Scope, table: np.ndarray) -> None:
        """Multiply a table into another whose scope contains its own, where there is one."""
        if not scope:
            self.constant += float(table)
            return
        inside = self._container(scope)
        if inside:
            wide = self.scopes[inside]
            self.tables[inside] = self.tables[inside] + table_products.spread(table, scope, wide)
        else:
            inside = self.next = self.next + 1
            self.scopes[inside], self.tables[inside] = scope, table
            for v in scope:
                self.of[v].add(inside)
        self.queue[inside] = None

    def _container(self, scope: Scope, but: int = 0) -> int:
        """The smallest table over all variables of the scope, other than `but`; 0 where there is none."""
        shared = set.intersection(*(self.of[v] for v in scope)) - {but}
        return min(shared, key=lambda name: (self.tables[name].size, name), default=0)


def _summed(scope: Scope, table: np.ndarray, private: Scope) -> tuple[Scope, np.ndarray]:
    axes = tuple(axis for axis, v in enumerate(scope) if v in private)
    top = table.max(axis=axes, keepdims=True)
    top = np.where(top > -np.inf, top, 0.0)
    with np.errstate(divide="ignore"):
        logs = np.log(np.exp(table - top).sum(axis=axes)) + top.squeeze(axis=axes)
    return tuple(v for v in scope if v not in private), logs


def separated(scope: Scope, table: np.ndarray) -> list[tuple[Scope, np.ndarray]]:
    """The table as a product of one table and of tables of single variables, as far as possible: T(a, rest) = u(a) R(rest).

    Equal within rounding. Tables that are constant in a variable lose it.
    """
    parts: list[tuple[Scope, np.ndarray]] = []
    for v in scope:
        axis = scope.index(v)
        rest, own = table.max(axis=axis), table.max(axis=tuple(a for a in range(len(scope)) if a != axis))
        top = rest.max()
        if top == -np.inf:
            break
        own = own - top
        if len(scope) == 1 and own.any():
            break
        made = np.expand_dims(rest, axis) + own.reshape([-1 if a == axis else 1 for a in range(len(scope))])
        if not _same(table, made):
            continue
        scope, table = scope[:axis] + scope[axis + 1 :], rest
        if own.any():
            parts.append(((v,), own))
    return [(scope, table), *parts]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether log-potentials agree within rounding."""
    possible = a > -np.inf
    if not np.array_equal(possible, b > -np.inf):
        return False
    a, b = a[possible], b[possible]
    return bool((np.abs(a - b) <= 4 * EPS * (1 + np.abs(a))).all())
