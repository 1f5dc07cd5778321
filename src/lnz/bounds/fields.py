"""A random field made ready for local methods in JAX: factors over the same nodes merged, impossible labels pruned, labels along the first axis."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz.energies.field import RandomField
from lnz.energies.structures import Graph, Structure

FEW = 40  # labels up to which sums over them are written out, which the compiler fuses and vectorises along the edges


class Tables(NamedTuple):
    """Log-potentials of nodes (K, n), of edges (tables, K, K), of factors by arity (F, K, …), or what is like them."""

    nodes: Array
    edges: Array
    factors: tuple[Array, ...]


class Sides(NamedTuple):
    """What stands at the first and the second ends of edges, (K, E), and at the nodes of factors by arity, (F, arity, K)."""

    first: Array
    second: Array
    factors: tuple[Array, ...]


class Prepared(NamedTuple):
    """A field in which no two factors join the same nodes.

    Attributes:
        structure: whose factors have three and more nodes.
        tables: the log-potentials on it, -inf at labels of nodes that no labelling can have.
        possible: whether every node has a label left.
        derivative: from the derivative by the tables that by the field's float arrays.
    """

    structure: Structure
    tables: Tables
    possible: Array
    derivative: Callable[[Tables], Any]


def prepared(field: RandomField) -> Prepared:
    """The field made ready; half precision is widened."""
    parameters, constants = eqx.partition(field, eqx.is_inexact_array)
    tables, pull_back = jax.vjp(lambda parameters: tables_of(eqx.combine(parameters, constants)), parameters)
    structure = merged(field.structure)
    nodes = _pruned(structure, tables)
    possible = jnp.all(jnp.any(nodes != -jnp.inf, axis=0))
    return Prepared(structure, tables._replace(nodes=nodes), possible, lambda means: pull_back(means)[0])


def at_nodes(structure: Structure, x: Array) -> Sides:
    """Values of nodes (K, n), where the factors see them."""
    first, second = jax.vmap(structure.at_ends)(x)
    return Sides(first, second, tuple(x.T[scopes] for scopes in structure.scopes_by_arity))


def summed(structure: Structure, sides: Sides) -> Array:
    """What factors say, summed at every node: (K, n)."""
    total = jax.vmap(structure.collected)(sides.first, sides.second)
    for scopes, said in zip(structure.scopes_by_arity, sides.factors, strict=True):
        total = total.T.at[scopes].add(said).T
    return total


def along(structure: Structure, tables: Array, f: Callable[..., Array], *rows: Array) -> Array:
    """f(table, rows) of all edges, (K, E), where tables are (K, K, E), or (K, K, 1) for all edges of a group."""
    if len(tables) in (1, len(structure.edges)):
        return f(jnp.moveaxis(tables, 0, 2), *rows)
    ends = np.cumsum([0, *structure.groups])
    parts = [
        f(table[:, :, None], *(row[:, a:b] for row in rows))
        for table, (a, b) in zip(tables, itertools.pairwise(ends), strict=True)
    ]
    return jnp.concatenate(parts, 1)


def spread(structure: Structure, x: Array) -> Array:
    """One row a table, (tables, K), as one column an edge, (K, E)."""
    return along(
        structure,
        x[:, :, None],
        lambda column, like: column[:, 0] + like,
        jnp.zeros((1, len(structure.edges)), x.dtype),
    )


def per_table(structure: Structure, tables: Array, f: Callable[[Array, Array], Array], rows: Array) -> Array:
    """f(table, rows) of all edges, summed over the edges of every table: (tables, …) of tables (tables, …) and rows (E, …)."""
    if len(tables) == len(structure.edges):
        return f(tables, rows)
    ends = np.cumsum([0, *(structure.groups if len(tables) > 1 else [len(structure.edges)])])
    return jnp.stack(
        [jnp.sum(f(t[None], rows[a:b]), 0) for t, (a, b) in zip(tables, itertools.pairwise(ends), strict=True)]
    )


def largest(x: Array) -> Array:
    """The maximum along the first axis."""
    return functools.reduce(jnp.maximum, x) if 0 < len(x) <= FEW else jnp.max(x, 0)


def total(x: Array) -> Array:
    """The sum along the first axis."""
    return functools.reduce(jnp.add, x) if 0 < len(x) <= FEW else jnp.sum(x, 0)


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
    top = best(table, logs)
    shift = jnp.where(top > -jnp.inf, top, 0)
    return shift + jnp.log(total(jnp.exp(table + logs[:, None] - shift[None])))


def joint(tables: Array, heard: Array) -> Array:
    """Log-potentials of factors (F, K, …) with what their nodes say (F, arity, K)."""
    arity = heard.shape[1]
    for a in range(arity):
        tables = tables + heard[:, a].reshape(len(heard), *(heard.shape[2] if b == a else 1 for b in range(arity)))
    return tables


def _pruned(structure: Structure, tables: Tables) -> Array:
    """The log-potentials of nodes with -inf at labels that no row of some table allows, until nothing changes."""
    nodes, edges, factors = jax.tree.map(lambda t: jnp.where(t == -jnp.inf, t, jnp.zeros_like(t)), tables)
    hard = functools.reduce(jnp.logical_or, [jnp.any(t == -jnp.inf) for t in (edges, *factors)])

    def prune(state: tuple[Array, Array]) -> tuple[Array, Array]:
        heard = at_nodes(structure, state[0])
        second = along(structure, edges, best, heard.first)
        first = along(structure, jnp.swapaxes(edges, 1, 2), best, heard.second)
        wide = []
        for table, said in zip(factors, heard.factors, strict=True):
            whole, places = joint(table, said), range(1, said.shape[1] + 1)
            wide.append(jnp.stack([jnp.max(whole, tuple(b for b in places if b != a)) for a in places], 1))
        left = state[0] + summed(structure, Sides(first, second, tuple(wide)))
        return left, jnp.any(left != state[0])

    nodes, _ = jax.lax.while_loop(lambda state: state[1], prune, (nodes, hard))
    return jnp.where(nodes == -jnp.inf, nodes, tables.nodes)


class _Home(NamedTuple):
    """Where the factors of a structure stand once those over the same nodes are merged.

    Attributes:
        structure: the merged one.
        edges: for every edge, and every factor of two nodes after them, its new edge.
        turned: whether its table is transposed there.
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
        return Tables(nodes, edges, factors)
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
    return Tables(nodes, edges, tuple(found))
