"""Conditional random fields over any structure: log-potentials of nodes, of ordered pairs, and of factors, from any network."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lnz._core.capabilities import Conditional, Factored, Sweepable
from lnz._core.energy import widen
from lnz._core.given import given_array
from lnz._core.spaces import ArrayLike, Categorical, State
from lnz._models.factor_graph import FactorGraph, packed
from lnz._models.linear_chain import ChainPotentials
from lnz._models.log_potentials import booleans, check_labels, check_log_potentials, floats
from lnz._models.structures import Chain, Structure


class RandomField(Factored, Sweepable, Conditional):
    """A conditional random field over labels y of the nodes of a structure, given its log-potentials:

        E(y) = -[Σ_i unary_i(y_i) + Σ_(i,j) pairwise_ij(y_i, y_j) + Σ_f factor_f(y_f)].

    The log-potentials come from any network of the input; ∂log Z/∂log-potentials are the marginals (T1). One field is one input: a batch goes
    through `jax.vmap` of a function that builds the field. Every node has the same K labels; where some are impossible, say so by `allowed`.

    A masked node has no edges: it has the single label 0, with log-potential 0, and the log-potentials there and on its edges (NaN) are never
    used. So grids of many shapes go through one program, padded. If no node is left, log Z = 0.

    Args:
        structure: `lnz.crf.Chain`, `lnz.crf.Tree`, `lnz.crf.Grid` or `lnz.crf.Graph`.
        unary: log-potentials of every label at every node, in nats, shape (*structure.shape, K).
        pairwise: log-potentials of ordered label pairs `[from, to]`: one table (K, K) for all edges, one per group (G, K, K), or one per edge
            (E, K, K) in the order of `structure.edges`; or a sequence with an entry for every group, a table (K, K) or one per edge of it (for
            a grid in the shape of its window, (H - |dy|, W - |dx|, K, K)). None: all tables are 0.
        factors: the tables (K, …, K) of the structure's further factors.
        mask: which nodes exist, booleans of the structure's shape.
        allowed: which labels are possible, booleans of shape (K,) or (*structure.shape, K).
        allowed_pairs: which label pairs are possible, booleans of shape (K, K).

    Raises:
        ValueError: if shapes do not match, or a log-potential in use is NaN or +inf.

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields"; Sutton, McCallum 2012, "An introduction to conditional random fields".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> grid = lnz.crf.Grid((2, 3))
        >>> field = lnz.RandomField(grid, jnp.zeros((2, 3, 4)), 0.5 * jnp.eye(4))
        >>> round(float(lnz.log_partition(field).value), 3)
        9.372
        >>> above_below = jnp.asarray([[[0.0, 1.0], [0.0, 0.0]], [[0.2, 0.0], [0.0, 0.2]]])  # one table for down, one for right
        >>> def log_z(unary, mask):
        ...     return lnz.log_partition(lnz.RandomField(grid, unary, above_below, mask=mask)).value
        >>> masks = jnp.asarray([[[True] * 3] * 2, [[True, False, False]] * 2])
        >>> [round(float(z), 3) for z in jax.vmap(log_z)(jnp.zeros((2, 2, 3, 2)), masks)]
        [5.69, 1.744]
    """

    unary: Float[Array, "*nodes K"]
    pairwise: Float[Array, "tables K K"]
    higher: tuple[Array, ...]
    mask: Bool[Array, "*nodes"] | None
    structure: Structure = eqx.field(static=True)

    def __init__(
        self,
        structure: Structure,
        unary: ArrayLike,
        pairwise: Any = None,
        *,
        factors: Sequence[Any] = (),
        mask: ArrayLike = None,
        allowed: ArrayLike = None,
        allowed_pairs: ArrayLike = None,
    ):
        if not isinstance(structure, Structure):
            raise TypeError(f"structure must be an lnz.crf.Chain, Tree, Grid or Graph, but is {structure!r}")
        self.structure = structure
        unary = floats(unary)
        shape = structure.shape
        if unary.ndim != len(shape) + 1 or unary.shape[:-1] != shape or not unary.shape[-1]:
            raise ValueError(
                f"the unary log-potentials of this structure must have shape {(*shape, 'K')}, but got {unary.shape}: a batch goes through "
                "jax.vmap of a function that builds the field"
            )
        k = unary.shape[-1]
        tables = self._tables(pairwise, k)
        higher = self._higher(factors, k)
        if allowed is not None:
            allowed = jnp.asarray(allowed)
            allowed = booleans("allowed", allowed, (k,) if allowed.ndim == 1 else unary.shape)
            unary = jnp.where(jnp.broadcast_to(allowed, unary.shape), unary, jnp.full_like(unary, -jnp.inf))
        if allowed_pairs is not None:
            allowed_pairs = booleans("allowed_pairs", allowed_pairs, (k, k))
            tables = jnp.where(allowed_pairs[None], tables, jnp.full_like(tables, -jnp.inf))
        self.mask = None if mask is None else booleans("mask", mask, shape)
        if self.mask is not None:
            alone = jnp.asarray(np.where(np.arange(k) == 0, 0, -np.inf), unary.dtype)
            unary = jnp.where(self.mask[..., None], unary, jnp.broadcast_to(alone, unary.shape))
            spread = tables[_table_of(structure, len(tables))]
            tables = jnp.where(self.edge_mask[:, None, None], spread, jnp.zeros_like(spread))
            exists = self.mask.reshape(-1)
            higher = tuple(
                jnp.where(jnp.all(exists[s], 1).reshape(-1, *(1,) * s.shape[1]), table, jnp.zeros_like(table))
                for s, table in zip(structure.scopes_by_arity, higher, strict=True)
            )
        for name, values in (("unary", unary), ("pairwise", tables), *(("factors", table) for table in higher)):
            check_log_potentials(name, values)
        self.unary = unary
        self.pairwise = tables
        self.higher = higher

    def _tables(self, pairwise: Any, k: int) -> Array:
        """The tables of edges as one array (1, groups or edges, K, K)."""
        groups, edges = self.structure.groups, len(self.structure.edges)
        if pairwise is None:
            return jnp.zeros((1, k, k), jnp.result_type(float))
        if isinstance(pairwise, list | tuple) and not _is_nested_array(pairwise, len(groups)):
            shapes = self.structure.group_shapes
            if len(pairwise) != len(groups):
                raise ValueError(
                    f"pairwise needs one entry for each of the structure's {len(groups)} groups of edges, but has {len(pairwise)}"
                )
            tables = [floats(table) for table in pairwise]
            for g, (table, shape) in enumerate(zip(tables, shapes, strict=True)):
                if table.shape not in ((k, k), (*shape, k, k), (groups[g], k, k)):
                    raise ValueError(
                        f"the pairwise tables of group {g} must have shape {(k, k)} or {(*shape, k, k)}, but got {table.shape}"
                    )
            if all(table.ndim == 2 for table in tables):
                return jnp.stack(tables) if tables else jnp.zeros((1, k, k), jnp.result_type(float))
            whole = [
                jnp.broadcast_to(table if table.ndim == 2 else table.reshape(-1, k, k), (n, k, k))
                for table, n in zip(tables, groups, strict=True)
            ]
            return jnp.concatenate(whole)
        tables = floats(pairwise)
        if tables.ndim == 2:
            tables = tables[None]
        if tables.shape not in {(n, k, k) for n in (1, len(groups), edges)}:
            raise ValueError(
                f"pairwise tables of {k} labels must have shape ({k}, {k}), or ({len(groups)}, {k}, {k}) with one per group, or ({edges}, {k}, {k}) "
                f"with one per edge, but got {np.shape(pairwise)}"
            )
        return tables

    def _higher(self, factors: Sequence[Any], k: int) -> tuple[Array, ...]:
        """The tables of further factors, stacked by arity."""
        scopes = self.structure.factors
        if len(factors) != len(scopes):
            raise ValueError(f"the structure has {len(scopes)} factors, but {len(factors)} tables are given for them")
        tables = [floats(table) for table in factors]
        for f, (scope, table) in enumerate(zip(scopes, tables, strict=True)):
            if table.shape != (k,) * len(scope):
                raise ValueError(
                    f"the table of factor {f} over {scope} must have shape {(k,) * len(scope)}, but has {table.shape}"
                )
        return tuple(jnp.stack([tables[f] for f in numbers]) for numbers in self.structure.by_arity)

    @property
    def space(self) -> Categorical:
        return Categorical(self.structure.shape, self.unary.shape[-1])

    @property
    def arrays_are_data(self) -> bool:
        """Always: a mask changes the log-potentials alone, so that no compiled program depends on it."""
        return True

    @property
    def table_of(self) -> np.ndarray:
        """The number of every edge's table in `pairwise`."""
        return _table_of(self.structure, len(self.pairwise))

    @property
    def edge_tables(self) -> Float[Array, "E K K"]:
        """The log-potentials of every edge."""
        return self.pairwise[self.table_of] if len(self.pairwise) != len(self.structure.edges) else self.pairwise

    @property
    def edge_mask(self) -> Bool[Array, " E"]:
        """Which edges join two nodes that exist."""
        first, second = self.structure.at_ends(self.present.reshape(-1))
        return first & second

    @property
    def present(self) -> Bool[Array, "*nodes"]:
        """Which nodes exist."""
        return jnp.ones(self.structure.shape, bool) if self.mask is None else self.mask

    @property
    def rows(self) -> Float[Array, "nodes K"]:
        """The unary log-potentials, one row per node."""
        return self.unary.reshape(self.structure.nodes, -1)

    def expanded(self) -> RandomField:
        """The same field with a table of its own for every edge."""
        return eqx.tree_at(lambda f: f.pairwise, self, self.edge_tables)

    def __call__(self, x: State) -> Array:
        nodes, edges, higher = self.scores(x)
        return -jnp.sum(nodes) - jnp.sum(edges) - sum(map(jnp.sum, higher))

    def scores(
        self, labels: Int[Array, "*nodes"]
    ) -> tuple[Float[Array, " nodes"], Float[Array, " E"], tuple[Array, ...]]:
        """The log-potentials of a labelling: of every node, of every edge, and of the factors of every arity. NaN for labels out of range."""
        y = jnp.asarray(labels).astype(jnp.int32).reshape(-1)
        valid = (y >= 0) & (y < self.unary.shape[-1])
        y = jnp.where(valid, y, 0)
        first, second = self.structure.at_ends(y)
        here = jnp.where(valid, jnp.take_along_axis(self.rows, y[:, None], axis=1)[:, 0], jnp.nan)
        higher = []
        for scopes, tables in zip(self.structure.scopes_by_arity, self.higher, strict=True):
            higher.append(tables[(np.arange(len(scopes)), *y[scopes].T)])
        return here, self.pairwise[self.table_of, first, second], tuple(higher)

    def relative(self, labels: Int[Array, "*nodes"]) -> tuple[RandomField, Array]:
        """The field minus the score of a labelling, so that log Z becomes -log P(y|x) at full precision; and whether the labelling is impossible."""
        field: RandomField = widen(self)
        nodes, edges, higher = field.scores(labels)
        parts = (nodes, edges, *higher)
        forbidden = functools.reduce(jnp.logical_or, (jnp.any(s == -jnp.inf) for s in parts)) & ~jnp.any(
            jnp.isnan(nodes)
        )
        nodes, edges, *more = (jnp.where(s == -jnp.inf, jnp.zeros_like(s), s) for s in parts)
        level = nodes + field.structure.collected(edges, jnp.zeros_like(edges))
        for scopes, s in zip(field.structure.scopes_by_arity, more, strict=True):
            level = level.at[scopes[:, 0]].add(s)
        unary = field.unary - level.reshape(*field.structure.shape, 1)
        return eqx.tree_at(lambda f: f.unary, field, unary), forbidden

    def checked(self, labels: ArrayLike) -> Int[Array, "*nodes"]:
        """The labels as integers, with 0 at masked nodes. ValueError for a wrong shape, or a label out of range (unless traced)."""
        labels, k = jnp.asarray(given_array(labels, "labels")), self.unary.shape[-1]
        if labels.shape != self.structure.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"the labels of this structure must be integers of shape {self.structure.shape}, but got {labels.dtype} of shape {labels.shape}"
            )
        labels = labels.astype(jnp.int32)
        check_labels(labels, k, self.mask)
        return labels if self.mask is None else jnp.where(self.mask, labels, 0)

    def conditionals(self, labels: Int[Array, "*nodes"]) -> Float[Array, "nodes K"]:
        """log P(y_i | the other labels) of every node, up to a constant per node: unary_i + Σ_j pairwise_ij(·, y_j) + …"""
        y = jnp.asarray(labels).astype(jnp.int32).reshape(-1)
        first, second = self.structure.at_ends(y)
        tables, t = self.pairwise, self.table_of
        to, back = tables[t, first], jnp.swapaxes(tables, 1, 2)[t, second]
        total = self.rows + self.structure.collected(back, to)
        for scopes, tables in zip(self.structure.scopes_by_arity, self.higher, strict=True):
            for axis in range(scopes.shape[1]):
                others = [y[scopes[:, a]] for a in range(scopes.shape[1]) if a != axis]
                rows = jnp.moveaxis(tables, axis + 1, -1)[(np.arange(len(scopes)), *others)]
                total = total.at[scopes[:, axis]].add(rows)
        return total

    def expected(self, q: Float[Array, "nodes K"]) -> Float[Array, "nodes K"]:
        """E_q[conditionals] for independent labels y_j ~ q_j: the update of mean field. 0 · -inf counts as 0."""
        first, second = self.structure.at_ends(q)
        tables = self.edge_tables
        to, back = _mean(tables, "ekl,ek->el", first), _mean(tables, "ekl,el->ek", second)
        total = self.rows + self.structure.collected(back, to)
        for scopes, tables in zip(self.structure.scopes_by_arity, self.higher, strict=True):
            letters = "abcdefgh"[: scopes.shape[1]]
            for axis in range(scopes.shape[1]):
                kept = [a for a in range(scopes.shape[1]) if a != axis]
                spec = ",".join(["z" + letters, *("z" + letters[a] for a in kept)]) + "->z" + letters[axis]
                total = total.at[scopes[:, axis]].add(_mean(tables, spec, *(q[scopes[:, a]] for a in kept)))
        return total

    def gibbs(self, key: PRNGKeyArray, v: Int[Array, "chains ..."]) -> Int[Array, "chains ..."]:
        """One sweep of block Gibbs moves: the nodes of one colour in parallel, colour after colour."""
        colours = self.structure.colours
        for c in range(int(colours.max(initial=-1)) + 1):
            logits = jax.vmap(self.conditionals)(v)
            drawn = jax.random.categorical(jax.random.fold_in(key, c), logits, axis=-1).astype(v.dtype)
            v = jnp.where((colours == c).reshape(1, *self.structure.shape), drawn.reshape(v.shape), v)
        return v

    def potentials(self) -> ChainPotentials:
        """The log-potentials that the sum over a chain needs, for a field on a `Chain`; ValueError for other structures."""
        if not isinstance(self.structure, Chain):
            raise ValueError(
                f"only a field on a Chain has the potentials of a chain, not one on a {type(self.structure).__name__}"
            )
        field: RandomField = widen(self)
        pairs = field.pairwise[0] if len(field.pairwise) == 1 else field.edge_tables
        return ChainPotentials(field.unary, pairs, jnp.arange(len(field.unary)) > 0, None)

    def factors(self) -> FactorGraph:
        """One table per node, per table of edges, and per further factor."""
        cardinalities, scopes, table_of, shapes = _layout(self.structure, self.unary.shape[-1], len(self.pairwise))
        dtype = jnp.result_type(self.unary, self.pairwise, *self.higher)
        flat = [x.astype(dtype).reshape(-1) for x in (self.unary, self.pairwise, *self.higher)]
        return packed(cardinalities, scopes, table_of, shapes, jnp.concatenate(flat))


def _mean(tables: Array, spec: str, *q: Array) -> Array:
    """Σ tables · q …, where -inf counts only if its weight is above 0."""
    hard = tables == -jnp.inf
    mean = jnp.einsum(spec, jnp.where(hard, 0, tables), *q)
    return jnp.where(jnp.einsum(spec, hard.astype(mean.dtype), *q) > 0, -jnp.inf, mean)


def _table_of(structure: Structure, tables: int) -> np.ndarray:
    """The number of every edge's table, given the number of tables: one for all, one per group, or one per edge."""
    edges, groups = len(structure.edges), structure.groups
    if tables == edges:
        return np.arange(edges, dtype=np.int32)
    return np.zeros(edges, np.int32) if tables == 1 else np.repeat(np.arange(len(groups), dtype=np.int32), groups)


@functools.lru_cache(maxsize=256)
def _layout(structure: Structure, k: int, tables: int) -> tuple[Any, Any, Any, Any]:
    """Cardinalities, scopes, table numbers and shapes of a field's factor graph."""
    n, edges, of_edges = structure.nodes, structure.edges, _table_of(structure, tables).tolist()
    order = [int(f) for numbers in structure.by_arity for f in numbers]
    scopes = [*((i,) for i in range(n)), *map(tuple, edges.tolist()), *(structure.factors[f] for f in order)]
    table_of = [*range(n), *(n + t for t in of_edges), *range(n + tables, n + tables + len(order))]
    shapes = [(k,)] * n + [(k, k)] * tables + [(k,) * len(structure.factors[f]) for f in order]
    return (k,) * n, tuple(scopes), tuple(table_of), tuple(shapes)


def _is_nested_array(pairwise: Any, groups: int) -> bool:
    """Whether nested lists are one table, or tables (K, K) of another number than the groups', and not a sequence with an entry for every group."""
    dimensions = {np.ndim(entry) for entry in pairwise if isinstance(entry, list | tuple)}
    return all(isinstance(entry, list | tuple) for entry in pairwise) and (
        dimensions == {1} or (dimensions == {2} and len(pairwise) != groups)
    )
