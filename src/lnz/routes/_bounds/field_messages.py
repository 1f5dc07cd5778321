"""Random fields prepared for local methods in JAX: factors over the same nodes merged, impossible labels pruned, labels along the first axis."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._models.random_field import RandomField
from lnz._models.structures import Graph, Structure

FEW = 40  # up to so many labels sums are unrolled, so that the compiler fuses and vectorises them along the edges


class Tables(NamedTuple):
    """Log-potentials, or arrays of the same shapes.

    Attributes:
        nodes: (K, n).
        edges: (K, K, E); or, where edges share tables, (K, K, 1) for every group of them, or one for all.
        factors: by arity, (F, K, …).
    """

    nodes: Array
    edges: tuple[Array, ...]
    factors: tuple[Array, ...]


class EndValues(NamedTuple):
    """Values at the first and the second ends of edges, (K, E), and at the nodes of factors by arity, (F, arity, K)."""

    first: Array
    second: Array
    factors: tuple[Array, ...]


class Prepared(NamedTuple):
    """A field in which no two factors join the same nodes.

    Attributes:
        structure: the merged structure, whose factors have three and more nodes.
        tables: the log-potentials on it, -inf at labels of nodes that no labelling can have.
        possible: whether every node has a label left.
        derivative: maps the derivative by the tables to that by the field's float arrays.
    """

    structure: Structure
    tables: Tables
    possible: Array
    derivative: Callable[[Tables], Any]


def prepared(field: RandomField) -> Prepared:
    """The prepared field; half precision is widened."""
    parameters, constants = eqx.partition(field, eqx.is_inexact_array)
    tables, pull_back = jax.vjp(lambda parameters: tables_of(eqx.combine(parameters, constants)), parameters)
    structure = merged(field.structure)
    nodes = _pruned(structure, tables)
    possible = jnp.all(jnp.any(nodes != -jnp.inf, axis=0))
    return Prepared(structure, tables._replace(nodes=nodes), possible, lambda means: pull_back(means)[0])


def at_nodes(structure: Structure, x: Array) -> EndValues:
    """Values of nodes (K, n), gathered at the factors."""
    first, second = jax.vmap(structure.at_ends)(x)
    return EndValues(first, second, tuple(x.T[scopes] for scopes in structure.scopes_by_arity))


def summed(structure: Structure, sides: EndValues) -> Array:
    """The outgoing messages of all factors, summed at every node: (K, n)."""
    total = jax.vmap(structure.collected)(sides.first, sides.second)
    for scopes, outgoing in zip(structure.scopes_by_arity, sides.factors, strict=True):
        total = total.T.at[scopes].add(outgoing).T
    return total


def along(structure: Structure, edges: tuple[Array, ...], f: Callable[[Array, Array], Array], rows: Array) -> Array:
    """f(table, rows) of all edges, (K, E), for tables as in `Tables.edges`."""
    parts = [f(table, rows[:, a:b]) for table, (a, b) in zip(edges, ends(structure, edges), strict=True)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)


def turned(edges: tuple[Array, ...]) -> tuple[Array, ...]:
    """The tables transposed."""
    return tuple(jnp.swapaxes(table, 0, 1) for table in edges)


def weighted(structure: Structure, edges: tuple[Array, ...], first: Array, second: Array) -> tuple[Array, ...]:
    """exp(table[k, l] + first[k] + second[l]), summed over the edges that share a table."""
    found = []
    for table, (a, b) in zip(edges, ends(structure, edges), strict=True):
        shares = jnp.exp(table + first[:, None, a:b] + second[None, :, a:b])
        found.append(shares if shares.shape == table.shape else jnp.sum(shares, 2, keepdims=True))
    return tuple(found)


def ends(structure: Structure, edges: tuple[Array, ...]) -> list[tuple[int, int]]:
    """The first edge of every block, and the one after the last."""
    if len(edges) == 1:
        return [(0, len(structure.edges))]
    return list(itertools.pairwise(np.cumsum([0, *structure.groups]).tolist()))


def table_sizes(structure: Structure, tables: Tables) -> Array:
    """Σ_f max |φ_f| over nodes, edges and factors, of the finite log-potentials, in JAX's widest float."""

    def largest_of(x: Array, axes: tuple[int, ...]) -> Array:
        return jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), axes, initial=0).astype(jnp.result_type(float))

    total = jnp.sum(largest_of(tables.nodes, (0,)))
    for table, (a, b) in zip(tables.edges, ends(structure, tables.edges), strict=True):
        total = total + jnp.sum(jnp.broadcast_to(largest_of(table, (0, 1)), (b - a,)))
    for table in tables.factors:
        total = total + jnp.sum(largest_of(table, tuple(range(1, table.ndim))))
    return total


def _blocks(structure: Structure, tables: Array) -> tuple[Array, ...]:
    if len(tables) in (1, len(structure.edges)):
        return (jnp.moveaxis(tables, 0, 2),)
    return tuple(table[:, :, None] for table in tables)


def largest(x: Array) -> Array:
    """The maximum along the first axis."""
    return functools.reduce(jnp.maximum, x) if len(x) <= FEW else jnp.max(x, 0)


def smallest(x: Array) -> Array:
    """The minimum along the first axis."""
    return functools.reduce(jnp.minimum, x) if len(x) <= FEW else jnp.min(x, 0)


def total(x: Array) -> Array:
    """The sum along the first axis."""
    return functools.reduce(jnp.add, x) if len(x) <= FEW else jnp.sum(x, 0)


def products(table: Array, p: Array) -> Array:
    """Σ_k table[k, l, e] p[k, e], (L, E)."""
    if len(p) <= FEW:
        return functools.reduce(jnp.add, (row * weight[None] for row, weight in zip(table, p, strict=True)))
    if table.shape[2] == 1:
        return jnp.einsum("kl,ke->le", table[:, :, 0], p, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("kle,ke->le", table, p, precision=jax.lax.Precision.HIGHEST)


def best(table: Array, logs: Array) -> Array:
    """max_k table[k, l, e] + logs[k, e], (L, E)."""
    if len(logs) <= FEW:
        return functools.reduce(jnp.maximum, (row + x[None] for row, x in zip(table, logs, strict=True)))
    return jnp.max(table + logs[:, None], 0)


def log_products(table: Array, logs: Array) -> Array:
    """log Σ_k exp(table[k, l, e] + logs[k, e]), (L, E); -inf where all terms are."""
    terms = table + logs[:, None]
    top = jnp.max(terms, 0)
    shift = jnp.where(top > -jnp.inf, top, 0)
    return shift + jnp.log(jnp.sum(jnp.exp(terms - shift[None]), 0))


def joint(tables: Array, incoming: Array) -> Array:
    """Log-potentials of factors (F, K, …) plus the incoming messages of their nodes (F, arity, K)."""
    arity = incoming.shape[1]
    for a in range(arity):
        tables = tables + incoming[:, a].reshape(
            len(incoming), *(incoming.shape[2] if b == a else 1 for b in range(arity))
        )
    return tables


def outer(rows: Sequence[Array]) -> Array:
    """Π_a rows[a], (F, K, …), of rows (F, K)."""
    return functools.reduce(lambda x, y: x[..., None] * y.reshape(len(y), *(1,) * (x.ndim - 1), -1), rows)


def _any_row(table: Array, logs: Array) -> Array:
    """-inf where every row of the table is impossible, (L, E)."""
    return jnp.max(table + logs[:, None], 0)


def _pruned(structure: Structure, tables: Tables) -> Array:
    """The log-potentials of nodes with -inf at labels that no row of some table allows, until nothing changes."""
    nodes, edges, factors = jax.tree.map(lambda t: jnp.where(t == -jnp.inf, t, jnp.zeros_like(t)), tables)
    lowest = [jnp.min(smallest(t), initial=0) for t in edges] + [jnp.min(t, initial=0) for t in factors]
    hard = functools.reduce(jnp.minimum, lowest) == -jnp.inf

    def prune(state: tuple[Array, Array]) -> tuple[Array, Array]:
        incoming = at_nodes(structure, state[0])
        second = along(structure, edges, _any_row, incoming.first)
        first = along(structure, turned(edges), _any_row, incoming.second)
        wide = []
        for table, rows in zip(factors, incoming.factors, strict=True):
            whole, places = joint(table, rows), range(1, rows.shape[1] + 1)
            wide.append(jnp.stack([jnp.max(whole, tuple(b for b in places if b != a)) for a in places], 1))
        left = state[0] + summed(structure, EndValues(first, second, tuple(wide)))
        return left, jnp.any(left != state[0])

    nodes, _ = jax.lax.while_loop(lambda state: state[1], prune, (nodes, hard))
    return jnp.where(nodes == -jnp.inf, nodes, tables.nodes)


class _Home(NamedTuple):
    """The places of a structure's factors after those over the same nodes are merged.

    Attributes:
        structure: the merged one.
        edges: for every edge, and every factor of two nodes after them, its new edge.
        turned: whether its table is transposed.
        factors: for every arity above 2, the new number of every factor and the order of its axes.
    """

    structure: Graph
    edges: np.ndarray
    turned: np.ndarray
    factors: tuple[tuple[np.ndarray, list[np.ndarray]], ...]


def merged(structure: Structure) -> Structure:
    """The structure in which no two factors join the same nodes, and factors join at least three."""
    home = _home(structure)
    return structure if home is None else home.structure


@functools.lru_cache(maxsize=64)
def _home(structure: Structure) -> _Home | None:
    """None where there is nothing to merge."""
    narrow = [*map(tuple, structure.edges.tolist()), *(scope for scope in structure.factors if len(scope) == 2)]
    wide = [[structure.factors[f] for f in numbers] for numbers in structure.by_arity]
    wide = [scopes for scopes in wide if len(scopes[0]) > 2]
    places = dict.fromkeys(tuple(sorted(scope)) for scope in itertools.chain(narrow, *wide))
    if len(places) == len(structure.edges) + len(structure.factors) and all(len(s) > 2 for s in structure.factors):
        return None
    pairs = [scope for scope in places if len(scope) == 2]
    graph = Graph(structure.nodes, pairs, [scope for scope in places if len(scope) > 2])
    number = {graph.factors[f]: row for numbers in graph.by_arity for row, f in enumerate(numbers)}
    row = {scope: e for e, scope in enumerate(pairs)}
    return _Home(
        graph,
        np.asarray([row[tuple(sorted(pair))] for pair in narrow], int),
        np.asarray([pair[0] > pair[1] for pair in narrow], bool),
        tuple(
            (np.asarray([number[tuple(sorted(s))] for s in scopes]), [np.argsort(s) for s in scopes]) for scopes in wide
        ),
    )


def tables_of(field: RandomField) -> Tables:
    """The tables of a field on the merged structure; differentiable."""
    arrays = (field.rows.T, field.pairwise, field.higher)
    dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in jax.tree.leaves(arrays)) else jnp.float32
    nodes, edges, factors = jax.tree.map(lambda x: x.astype(dtype), arrays)
    structure, home = field.structure, _home(field.structure)
    if home is None:
        return Tables(nodes, _blocks(structure, edges), factors)
    pairs, wide = [edges[field.table_of]], []
    for scopes, stacked in zip(structure.scopes_by_arity, factors, strict=True):
        if scopes.shape[1] == 1:
            nodes = nodes.at[:, scopes[:, 0]].add(stacked.T)
        else:
            (pairs if scopes.shape[1] == 2 else wide).append(stacked)
    every = jnp.concatenate(pairs)
    every = jnp.where(home.turned[:, None, None], jnp.swapaxes(every, 1, 2), every)
    edges = jnp.zeros((len(home.structure.edges), *every.shape[1:]), dtype).at[home.edges].add(every)
    found = []
    for stacked, (number, orders) in zip(wide, home.factors, strict=True):
        turned = jnp.stack([table.transpose(order) for table, order in zip(stacked, orders, strict=True)])
        found.append(jnp.zeros((int(number.max()) + 1, *turned.shape[1:]), dtype).at[number].add(turned))
    return Tables(nodes, (jnp.moveaxis(edges, 0, 2),), tuple(found))
