"""Factor graphs: discrete variables of any cardinality, and tables of log-potentials over a few variables each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import BlockSweepable, Factored, Sweep
from lnz._core.frozen import Frozen, is_traced
from lnz._core.given import ArrayLike, given_array
from lnz._core.spaces import Binary, Categorical, MixedCategorical, Product, Space, Spin, State
from lnz._models.colouring import Blocks, colour_classes
from lnz._models.independent import as_float
from lnz._models.log_potentials import wide_integers
from lnz._models.sweeps import class_sweep, layout, neighbour_sum


class FactorGraph(Factored, BlockSweepable):
    """A factor graph: E(x) = -Σ_f φ_f(x_scope(f)) with tables of log-potentials φ_f over discrete variables x_i in 0 … k_i - 1.

    All tables are in one array, `log_potentials`, one after the other; `tables` returns them in their shapes. In a gradient with respect to the
    graph, `tables` are ∂log Z/∂φ_f(x_f) = P(x_f): the marginals of the factors (T1), summed over factors that share a table.

    Args:
        cardinalities: k, the number of values of every variable, at least 1.
        scopes: the variables of every factor, in the order of its table's axes; none twice in one scope. An empty scope is a constant.
        tables: log-potentials in nats, the axes as in the scope. -inf where a configuration is impossible; +inf and NaN are invalid.
        table_of: the number of every factor's table, so that factors can share one; by default each has its own.

    Raises:
        ValueError: where scopes, cardinalities and tables do not fit, or a log-potential is NaN or +inf.

    Example:
        >>> import numpy as np, lnz
        >>> graph = lnz.FactorGraph([2, 3], [(0,), (1, 0)], [np.log([0.5, 2.0]), np.zeros((3, 2))])
        >>> round(float(np.exp(lnz.log_partition(graph).value)), 3)  # 3 · (0.5 + 2)
        7.5
    """

    log_potentials: Float[Array, " entries"]
    cardinalities: tuple[int, ...] = eqx.field(static=True)
    scopes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    table_of: tuple[int, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(
        self,
        cardinalities: Sequence[int] | np.ndarray,
        scopes: Sequence[Sequence[int]],
        tables: Sequence[Any],
        *,
        table_of: Sequence[int] | None = None,
    ):
        self.cardinalities = tuple(_integers(cardinalities, "cardinalities"))
        self.scopes = tuple(tuple(_integers(scope, "a scope")) for scope in scopes)
        self.table_of = tuple(range(len(self.scopes)) if table_of is None else _integers(table_of, "table_of"))
        self.shapes = tuple(tuple(np.shape(table)) for table in tables)
        self._check()
        self.log_potentials = _joined(tables)
        if not is_traced(self.log_potentials):
            values = np.asarray(self.log_potentials)
            bad = np.flatnonzero(np.isnan(values) | (values == np.inf))
            if len(bad):
                table = int(np.searchsorted(self.offsets, bad[0], side="right")) - 1
                raise ValueError(
                    f"table {table} has the log-potential {values[bad[0]]}: log-potentials must be finite, or -inf where a configuration is "
                    "impossible"
                )

    def _check(self) -> None:
        n = len(self.cardinalities)
        if any(k < 1 for k in self.cardinalities):
            i = next(i for i, k in enumerate(self.cardinalities) if k < 1)
            raise ValueError(
                f"cardinalities must be at least 1, but variable {i} has cardinality {self.cardinalities[i]}"
            )
        if len(self.table_of) != len(self.scopes):
            raise ValueError(
                f"every factor needs one table, but there are {len(self.scopes)} scopes and {len(self.table_of)} tables for them"
            )
        for f, (scope, t) in enumerate(zip(self.scopes, self.table_of, strict=True)):
            if not 0 <= t < len(self.shapes):
                raise ValueError(f"factor {f} names table {t}, but there are {len(self.shapes)} tables")
            if any(not 0 <= i < n for i in scope):
                raise ValueError(f"the scope of factor {f}, {scope}, names a variable outside 0 … {n - 1}")
            if len(set(scope)) != len(scope):
                raise ValueError(f"the scope of factor {f}, {scope}, names a variable twice")
            wanted = tuple(self.cardinalities[i] for i in scope)
            if self.shapes[t] != wanted:
                raise ValueError(
                    f"the table of factor {f} over {scope} must have shape {wanted}, but has {self.shapes[t]}"
                )

    @property
    def offsets(self) -> np.ndarray:
        """The position in `log_potentials` at which every table begins."""
        return np.cumsum([0, *(math.prod(shape) for shape in self.shapes)])[:-1]

    @property
    def tables(self) -> list[Array]:
        """The log-potentials of every table, in its shape."""
        return unpacked(self.log_potentials, self.shapes)

    @property
    def space(self) -> Space:
        """`Categorical` where all variables have the same number of values, otherwise `MixedCategorical`."""
        same = len(set(self.cardinalities)) <= 1
        k = self.cardinalities[0] if self.cardinalities else 1
        return Categorical(len(self.cardinalities), k) if same else MixedCategorical(self.cardinalities)

    def __call__(self, x: State) -> Array:
        if not self.scopes:
            return -jnp.sum(self.log_potentials * 0)
        arity = max(1, *map(len, self.scopes))
        # One gather for all factors: position = offset + Σ stride · x. Missing places read variable 0 with stride 0.
        variables, strides = np.zeros((2, len(self.scopes), arity), np.int32)
        for f, scope in enumerate(self.scopes):
            variables[f, : len(scope)] = scope
            strides[f, : len(scope)] = [
                math.prod(self.cardinalities[i] for i in scope[p + 1 :]) for p in range(len(scope))
            ]
        start = self.offsets[list(self.table_of)].astype(np.int32)
        padded = jnp.append(jnp.asarray(x).astype(jnp.int32), jnp.zeros((1,), jnp.int32))
        return -jnp.sum(self.log_potentials[start + jnp.sum(padded[variables] * strides, axis=1, dtype=jnp.int32)])

    def factors(self) -> FactorGraph:
        """The graph itself."""
        return self

    def interactions(self) -> np.ndarray:
        """The pairs of variables (m, 2) that share a factor."""
        return _pairs_in(self.scopes)

    def gibbs_sweep(self, blocks: Blocks | None = None) -> Sweep:
        """The Gibbs sweep over colour classes, or over given blocks. A variable whose values are all impossible keeps its value."""
        n, arity = len(self.cardinalities), max(1, *map(len, self.scopes), 1)
        sites = layout(colour_classes(Frozen(self.interactions()), n) if blocks is None else blocks)
        entries = [(f, p, i) for f, scope in enumerate(self.scopes) for p, i in enumerate(scope)]
        # For each entry: where its table begins, the stride of its own variable, and those of the others. The last entry is a term of 0.
        start, own_stride = np.zeros((2, len(entries) + 1), np.int32)
        near, strides = np.zeros((2, len(entries) + 1, arity), np.int32)
        start[-1] = len(self.log_potentials)
        for e, (f, own, _) in enumerate(entries):
            scope, start[e] = self.scopes[f], self.offsets[self.table_of[f]]
            each = [math.prod(self.cardinalities[i] for i in scope[p + 1 :]) for p in range(len(scope))]
            own_stride[e] = each[own]
            others = [p for p in range(len(scope)) if p != own]
            near[e, : len(others)] = [sites.place[scope[p]] for p in others]
            strides[e, : len(others)] = [each[p] for p in others]
        gather = neighbour_sum(np.array([i for _, _, i in entries], int), sites)
        flat = jnp.append(self.log_potentials, jnp.zeros((1,), self.log_potentials.dtype))
        start, own_stride, near, strides = map(jnp.asarray, (start, own_stride, near, strides))
        k = max(self.cardinalities, default=1)
        cardinality = np.append(self.cardinalities, 1)[sites.order]
        possible = jnp.asarray(np.arange(k) < cardinality[..., None])

        def potentials(c: Array, x: Array) -> Array:
            def term(entries: Array) -> Array:
                at = start[entries][:, None] + sum(
                    strides[entries, a][:, None] * x[near[entries, a]] for a in range(arity)
                )
                values = jnp.arange(k, dtype=jnp.int32)
                return flat[at[..., None] + (own_stride[entries][:, None] * values[None])[:, None]]

            length = sites.order.shape[1]
            total = gather(c, jnp.zeros((length, x.shape[1], k), flat.dtype), term)
            total = jnp.where(possible[c][:, None], total, -jnp.inf)
            now = jax.lax.dynamic_slice_in_dim(x, c * length, length, 0)
            dead = jnp.all(total == -jnp.inf, axis=-1, keepdims=True)
            return jnp.where(dead, jnp.log(jax.nn.one_hot(now, k, dtype=flat.dtype)), total)

        return class_sweep(Categorical((n,), k), sites, potentials)

    def evidence(self, observed: Mapping[int, Any]) -> FactorGraph:
        """The graph given values of some variables: Z becomes the sum over the others.

        Variables keep their numbers; an observed one has one value left, number 0. Tables that were shared stay shared where the same part of
        them remains. Values may be traced, so that a `vmap` over examples is one pass over the remaining graph; log Z is NaN where a traced
        value does not exist. If the observed variables differ between examples, use `clamped`.

        Args:
            observed: variable to value.

        Raises:
            ValueError: where a variable or value does not exist.

        Example:
            >>> import jax, jax.numpy as jnp, numpy as np, lnz
            >>> graph = lnz.FactorGraph([2, 3], [(0, 1)], [np.arange(6.0).reshape(2, 3)])
            >>> log_z = jax.vmap(lambda x: lnz.log_partition(graph.evidence({0: x}), route=lnz.routes.Elimination()).value)
            >>> print(log_z(jnp.array([0, 1])).round(4))  # log Σ_y exp φ(x, y)
            [2.4076 5.4076]
        """
        n, variables = len(self.cardinalities), _integers(observed.keys(), "observed variables")
        traced = [i for i, value in observed.items() if is_traced(value)]
        seen = dict.fromkeys(traced, 0)
        given = {i: value for i, value in observed.items() if i not in seen}
        seen.update(zip(map(int, given), _integers(given.values(), "values"), strict=True))
        for i in variables:
            if not 0 <= i < n:
                raise ValueError(f"evidence names variable {i}, but the variables are 0 … {n - 1}")
            if not 0 <= seen[i] < self.cardinalities[i]:
                raise ValueError(
                    f"evidence gives variable {i} the value {seen[i]}, but its values are 0 … {self.cardinalities[i] - 1}"
                )
        place = {i: p for p, i in enumerate(traced)}
        starts, made, table_of, shapes, pieces = self.offsets, {}, [], [], []
        moved: list[tuple[int, int, int]] = []  # piece, place of a traced variable, its stride in the table
        for scope, t in zip(self.scopes, self.table_of, strict=True):
            part = tuple(slice(seen[i], seen[i] + 1) if i in seen else slice(None) for i in scope)
            name = (t, *((p.start, p.stop, i if i in place else -1) for p, i in zip(part, scope, strict=True)))
            if name not in made:
                made[name] = len(made)
                whole = np.arange(math.prod(self.shapes[t])).reshape(self.shapes[t])
                pieces.append((starts[t] + whole[part]).ravel())
                shapes.append(whole[part].shape)
                strides = [math.prod(whole.shape[axis + 1 :]) for axis in range(whole.ndim)]
                moved += [(made[name], place[i], s) for i, s in zip(scope, strides, strict=True) if i in place]
            table_of.append(made[name])
        kept = np.concatenate([np.zeros(0, np.int64), *pieces])
        cardinalities = tuple(1 if i in seen else k for i, k in enumerate(self.cardinalities))
        if not traced:
            whole = self.log_potentials if is_traced(self.log_potentials) else np.asarray(self.log_potentials)
            return packed(cardinalities, self.scopes, table_of, shapes, jnp.asarray(whole[kept]))
        values = jnp.stack([jnp.asarray(observed[i]).astype(jnp.int32) for i in traced])
        piece, which, stride = np.array(moved, np.int32).reshape(-1, 3).T
        shift = jnp.zeros(len(pieces), jnp.int32).at[piece].add(values[which] * stride)
        piece_of = np.repeat(np.arange(len(pieces)), [len(entries) for entries in pieces])
        exist = jnp.all((values >= 0) & (values < np.array([self.cardinalities[i] for i in traced], np.int32)))
        entries = self.log_potentials[kept.astype(np.int32) + shift[piece_of]]
        return packed(cardinalities, self.scopes, table_of, shapes, jnp.where(exist, entries, jnp.nan))

    def clamped(self, labels: ArrayLike) -> FactorGraph:
        """The graph given the values of any variables, -1 for those that are not observed: Z becomes the sum over the latter.

        Evidence as data: one more table per variable, 0 at its value and -inf elsewhere. The structure stays the same, so examples with different
        observed variables can go through one `vmap`; if they are the same variables, `evidence` gives a smaller graph. log Z is -inf where a
        traced label does not exist.

        Args:
            labels: the number of every variable's value, or -1.

        Raises:
            ValueError: where a label does not exist.
        """
        n = len(self.cardinalities)
        labels = jnp.asarray(given_array(labels, "labels"))
        if labels.shape != (n,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"labels must be {n} integers, but are {labels.dtype} of shape {labels.shape}")
        labels = wide_integers(labels)
        if not is_traced(labels):
            bad = np.flatnonzero((np.asarray(labels) < -1) | (np.asarray(labels) >= np.array(self.cardinalities)))
            if len(bad):
                i = int(bad[0])
                raise ValueError(
                    f"label {int(labels[i])} of variable {i} does not exist: its values are 0 … {self.cardinalities[i] - 1}, and -1 means unknown"
                )
        owner = np.repeat(np.arange(n), self.cardinalities)
        value = np.concatenate([np.zeros(0, np.int64), *map(np.arange, self.cardinalities)]).astype(labels.dtype)
        masks = jnp.where((labels[owner] == -1) | (labels[owner] == value), 0.0, -jnp.inf)
        return packed(
            self.cardinalities,
            (*self.scopes, *((i,) for i in range(n))),
            (*self.table_of, *range(len(self.shapes), len(self.shapes) + n)),
            (*self.shapes, *((k,) for k in self.cardinalities)),
            jnp.concatenate([self.log_potentials, masks.astype(self.log_potentials.dtype)]),
        )


def unpacked(flat: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Arrays of these shapes from one that contains them one after the other along its first axis; further axes are kept."""
    ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    return [flat[a:b].reshape((*s, *flat.shape[1:])) for a, b, s in zip(ends[:-1], ends[1:], shapes, strict=True)]


def packed(cardinalities: Iterable[int], scopes: Any, table_of: Any, shapes: Any, log_potentials: Array) -> FactorGraph:
    """A graph from one array of log-potentials, unchecked, so that it may be traced."""
    graph = object.__new__(FactorGraph)
    fields = (
        log_potentials,
        tuple(cardinalities),
        tuple(map(tuple, scopes)),
        tuple(table_of),
        tuple(map(tuple, shapes)),
    )
    for name, value in zip(("log_potentials", "cardinalities", "scopes", "table_of", "shapes"), fields, strict=True):
        object.__setattr__(graph, name, value)
    return graph


def pairwise_graph(
    cardinalities: Sequence[int], edges: np.ndarray, pairs: Array, units: Sequence[Array]
) -> FactorGraph:
    """A graph with one table per edge (m, 2), `pairs` (m, k, l), and one per variable: `units`, blocks (n, k) of consecutive variables."""
    scopes = [(int(i), int(j)) for i, j in edges] + [(i,) for i in range(len(cardinalities))]
    shapes = [tuple(pairs.shape[1:])] * len(edges) + [(k,) for k in cardinalities]
    flat = jnp.concatenate([pairs.reshape(-1), *(block.reshape(-1) for block in units)])
    return packed(cardinalities, scopes, range(len(scopes)), shapes, flat)


def _pairs_in(scopes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    found = {(min(i, j), max(i, j)) for scope in scopes for i, j in itertools.combinations(scope, 2)}
    return np.array(sorted(found), int).reshape(-1, 2)


def states_of(space: Space, labels: Any) -> State:
    """States of a space from labels (n, variables): the numbers of each entry's values, in the order of the space's entries."""
    if isinstance(space, Product):
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(space.struct)]
        ends = np.cumsum([0, *sizes])
        return tuple(
            states_of(part, labels[:, a:b]) for part, a, b in zip(space.spaces, ends[:-1], ends[1:], strict=True)
        )
    labels = jnp.asarray(given_array(labels, "labels")).reshape(len(labels), *space.shape)
    if isinstance(space, Spin):
        labels = 2 * labels - 1
    elif not isinstance(space, Binary | Categorical | MixedCategorical):
        raise TypeError(f"{space} is not a space of labelled values")
    return labels.astype(space.struct.dtype)


def _integers(numbers: Iterable[Any], name: str) -> list[int]:
    numbers = list(numbers)
    if not all(isinstance(n, int | np.integer) for n in numbers):
        raise ValueError(
            f"{name} must be integers, but got {next(n for n in numbers if not isinstance(n, int | np.integer))!r}"
        )
    return [int(n) for n in numbers]


def _joined(tables: Sequence[Any]) -> Array:
    if not len(tables):
        return jnp.zeros((0,), jnp.result_type(float))
    if any(isinstance(table, jax.Array) for table in tables):
        parts = [as_float(table).reshape(-1) for table in tables]
        dtype = jnp.result_type(*parts) if len({p.dtype for p in parts}) == 1 else jnp.result_type(float)
        return jnp.concatenate([part.astype(dtype) for part in parts])
    return as_float(np.concatenate([np.asarray(table).ravel() for table in tables]))
