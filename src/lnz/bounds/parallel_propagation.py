"""Belief propagation on a random field, all messages at once, in JAX: one program for any number of inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz.bounds import local
from lnz.energies.field import RandomField
from lnz.energies.structures import Graph, Structure
from lnz.estimate import Estimate
from lnz.mathematics import log_sum_exp

Algebra = Literal["sum", "max"]


class Tables(NamedTuple):
    """Log-potentials of nodes (n, K), of edges (tables, K, K), of factors by arity (F, K, …), or what is like them."""

    nodes: Array
    edges: Array
    factors: tuple[Array, ...]


class Messages(NamedTuple):
    """Log-messages to the first and to the second ends of the edges (E, K), and to the nodes of factors by arity (F, arity, K)."""

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


class Passed(NamedTuple):
    """Messages after the last sweep, their largest change in it (before damping, beyond what rounding makes), and the number of sweeps."""

    messages: Messages
    residual: Array
    sweeps: Array


def prepared(field: RandomField) -> Prepared:
    """The field made ready: factors over the same nodes merged, impossible labels pruned, half precision widened."""
    parameters, constants = eqx.partition(field, eqx.is_inexact_array)

    def read(parameters: Any) -> Tables:
        field: RandomField = eqx.combine(parameters, constants)
        found = Tables(field.rows, field.pairwise, field.higher)
        dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in jax.tree.leaves(found)) else jnp.float32
        return _merged_tables(field.structure, jax.tree.map(lambda x: x.astype(dtype), found))

    tables, pull_back = jax.vjp(read, parameters)
    structure = merged(field.structure)
    nodes = _pruned(structure, tables)
    possible = jnp.all(jnp.any(nodes > -jnp.inf, axis=1))
    return Prepared(structure, tables._replace(nodes=nodes), possible, lambda means: pull_back(means)[0])


def passed(model: Prepared, *, damping: float, max_sweeps: int, tolerance: float, algebra: Algebra = "sum") -> Passed:
    """Messages after sweeps until they stand still, from even ones.

        m_e→j(l) = log Σ_k exp(φ_e(k, l) + Σ_{f ∋ i, f ≠ e} m_f→i(k)), or the maximum over k.

    Sums over an edge's table are taken of exponentials, and of logarithms only where what underflows could matter.
    """
    structure, tables = model.structure, model.tables
    alive = _at_factors(structure, jnp.where(model.possible, tables.nodes, 0) > -jnp.inf)
    size = jnp.asarray(0, tables.nodes.dtype)
    for table in (tables.edges, *tables.factors):
        size = jnp.maximum(size, jnp.max(jnp.where(table > -jnp.inf, jnp.abs(table), 0), initial=0))
    floor = -1e5 * (1 + size)
    state = Passed(
        jax.tree.map(lambda at: jnp.zeros(at.shape, tables.nodes.dtype), alive),
        jnp.where(model.possible, jnp.inf, 0).astype(tables.nodes.dtype),
        jnp.asarray(0, jnp.int32),
    )
    rounding = 16 * jnp.finfo(tables.nodes.dtype).eps

    def sweep(state: Passed) -> Passed:
        old = state.messages
        sent = _sent(structure, tables, _cavities(structure, tables.nodes, old)[1], algebra)
        new = jax.tree.map(functools.partial(_levelled, floor=floor), sent, alive)
        change = jax.tree.map(lambda a, b: a - b, new, old)
        worst = [
            jnp.max(jnp.abs(c) - rounding * (1 + jnp.abs(m)), initial=0)
            for c, m in zip(jax.tree.leaves(change), jax.tree.leaves(old), strict=True)
        ]
        moved = jax.tree.map(lambda m, c: m + (1 - damping) * c, old, change)
        return Passed(moved, functools.reduce(jnp.maximum, worst), state.sweeps + 1)

    return jax.lax.while_loop(lambda s: (s.residual > tolerance) & (s.sweeps < max_sweeps), sweep, state)


def beliefs(model: Prepared, messages: Messages) -> tuple[Array, Tables]:
    """The negated Bethe free energy, and the beliefs that are its derivative where the messages stand still; -inf and zeros where Z = 0.

    Σ_i log Z_i + Σ_f log E_f[…], in which every factor's term is counted from the beliefs about its nodes, so that large terms do not cancel.
    """
    structure, tables = model.structure, model.tables
    total, cavity = _cavities(structure, tables.nodes, messages)
    of_nodes = log_sum_exp(total, 1)
    shift = _at_factors(structure, jnp.where(of_nodes > -jnp.inf, of_nodes, 0)[:, None])
    cavity = jax.tree.map(lambda c, s: c - s, cavity, shift)
    value, shares = jnp.sum(of_nodes), []
    ends = (cavity.first, cavity.second)
    edges = _tabled(structure, tables.edges, lambda t, a, b: t + a[:, :, None] + b[:, None, :], ends)
    for joint in (edges, *(_joint(t, c) for t, c in zip(tables.factors, cavity.factors, strict=True))):
        flat = joint.reshape(len(joint), math.prod(joint.shape[1:]))
        whole = log_sum_exp(flat, 1)
        value = value + jnp.sum(whole)
        shares.append(_exp(flat, whole[:, None]).reshape(joint.shape))
    pairs = _untabled(structure, len(tables.edges), shares[0])
    found = Tables(_exp(total, of_nodes[:, None]), pairs, tuple(shares[1:]))
    found = jax.tree.map(lambda x: jnp.where(model.possible, x, 0), found)
    return jnp.where(model.possible, value, -jnp.inf), found


def _exp(logs: Array, whole: Array) -> Array:
    return jnp.exp(logs - jnp.where(whole > -jnp.inf, whole, 0))


def _at_factors(structure: Structure, x: Array) -> Messages:
    """Rows (n, …) of nodes, where the messages to them stand."""
    return Messages(*structure.at_ends(x), tuple(x[scopes] for scopes in structure.scopes_by_arity))


def _cavities(structure: Structure, nodes: Array, messages: Messages) -> tuple[Array, Messages]:
    """The log-potentials of nodes with all messages to them, (n, K), and, for every factor, with all but its own."""
    total = nodes + structure.collected(messages.first, messages.second)
    for scopes, m in zip(structure.scopes_by_arity, messages.factors, strict=True):
        total = total.at[scopes].add(m)
    return total, jax.tree.map(lambda t, m: t - m, _at_factors(structure, total), messages)


def _joint(tables: Array, cavity: Array) -> Array:
    """Log-potentials of factors (F, K, …) with what their nodes say (F, arity, K)."""
    arity = cavity.shape[1]
    for a in range(arity):
        shape = [len(cavity), *(cavity.shape[2] if b == a else 1 for b in range(arity))]
        tables = tables + cavity[:, a].reshape(shape)
    return tables


def _sent(structure: Structure, tables: Tables, cavity: Messages, algebra: Algebra) -> Messages:
    """The messages that every factor sends, given what it hears."""
    over: Callable[..., Array] = log_sum_exp if algebra == "sum" else jnp.max
    second = _tabled(structure, tables.edges, lambda t, a: over(t + a[:, :, None], 1), (cavity.first,))
    first = _tabled(structure, tables.edges, lambda t, b: over(t + b[:, None, :], 2), (cavity.second,))
    factors = []
    for table, heard in zip(tables.factors, cavity.factors, strict=True):
        joint, arity, sent = _joint(table, heard), heard.shape[1], []
        for a in range(arity):
            rows = jnp.moveaxis(joint, a + 1, 1).reshape(*heard[:, a].shape, -1)
            sent.append(over(rows, 2) - jnp.where(heard[:, a] > -jnp.inf, heard[:, a], 0))
        factors.append(jnp.stack(sent, 1))
    return Messages(first, second, tuple(factors))


def _levelled(new: Array, alive: Array, floor: Array) -> Array:
    """Messages less their largest entry, 0 at impossible labels. On a cycle of zeros entries would fall for ever, so that there is a floor."""
    top = jnp.max(jnp.where(alive, new, -jnp.inf), -1, keepdims=True)
    return jnp.where(alive, jnp.maximum(new - jnp.where(jnp.isfinite(top), top, 0), floor), 0)


def _tabled(structure: Structure, tables: Array, f: Callable[..., Array], rows: tuple[Array, ...]) -> Array:
    """f(tables, rows) of all edges (E, …), where one table stands for all edges or for all of a group."""
    if len(tables) in (1, len(structure.edges)):
        return f(tables, *rows)
    ends = np.cumsum([0, *structure.groups])
    parts = [
        f(tables[g : g + 1], *(row[a:b] for row in rows)) for g, (a, b) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    return jnp.concatenate(parts)


def _untabled(structure: Structure, tables: int, of_edges: Array) -> Array:
    """What is said of every edge, summed over the edges of every table."""
    if tables == len(structure.edges):
        return of_edges
    ends = np.cumsum([0, *(structure.groups if tables > 1 else [len(structure.edges)])])
    return jnp.stack([jnp.sum(of_edges[a:b], 0) for a, b in zip(ends, ends[1:], strict=False)])


def _pruned(structure: Structure, tables: Tables) -> Array:
    """The log-potentials of nodes with -inf at labels that no row of some table allows, until nothing changes."""
    allowed = jax.tree.map(lambda t: jnp.where(t > -jnp.inf, 0.0, -jnp.inf), tables)
    hard = [jnp.any(t == -jnp.inf) for t in (tables.edges, *tables.factors)]

    def prune(state: tuple[Array, Array]) -> tuple[Array, Array]:
        nodes, _ = state
        sent = _sent(structure, allowed, _at_factors(structure, nodes), "max")
        # a factor says what it allows given the others: for an edge that is without the receiver, for others it leaves the receiver in
        none = jax.tree.map(lambda m: jnp.where(m == -jnp.inf, 1.0, 0.0), sent)
        against = structure.collected(none.first, none.second)
        for scopes, m in zip(structure.scopes_by_arity, none.factors, strict=True):
            against = against.at[scopes].add(m)
        left = jnp.where(against > 0, -jnp.inf, nodes)
        return left, jnp.any(left != nodes)

    start = (allowed.nodes, functools.reduce(jnp.logical_or, hard))
    nodes, _ = jax.lax.while_loop(lambda state: state[1], prune, start)
    return jnp.where(nodes > -jnp.inf, tables.nodes, -jnp.inf)


class _Home(NamedTuple):
    """Where the factors of a structure stand once those over the same nodes are merged.

    Attributes:
        structure: the merged one.
        edges: for every edge, and every factor of two nodes after them, its new edge and whether its table is transposed.
        factors: for every arity above 2, the new number of every factor and the order of its axes.
    """

    structure: Graph
    pairs: np.ndarray
    turned: np.ndarray
    factors: tuple[tuple[np.ndarray, np.ndarray], ...]


def merged(structure: Structure) -> Structure:
    """The structure in which no two factors join the same nodes, and factors join at least three."""
    home = _home(structure)
    return structure if home is None else home.structure


@functools.lru_cache(maxsize=64)
def _home(structure: Structure) -> _Home | None:
    """None where there is nothing to merge."""
    pairs = [tuple(edge) for edge in structure.edges.tolist()]
    pairs += [scope for scope in structure.factors if len(scope) == 2]
    wide = [scope for scope in structure.factors if len(scope) > 2]
    places: dict[tuple[int, ...], int] = {}
    for scope in (*pairs, *wide):
        places.setdefault(tuple(sorted(scope)), len(places))
    if len(places) == len(structure.edges) + len(structure.factors):
        if all(len(scope) > 2 for scope in structure.factors):
            return None
    joined = [scope for scope in places if len(scope) == 2]
    graph = Graph(structure.nodes, joined, [scope for scope in places if len(scope) > 2])
    number = {scope: f for numbers in graph.by_arity for f, scope in enumerate(graph.factors[g] for g in numbers)}
    factors = []
    for numbers in structure.by_arity:
        scopes = [structure.factors[f] for f in numbers]
        if len(scopes[0]) > 2:
            order = [np.argsort(scope) for scope in scopes]
            factors.append((np.asarray([number[tuple(sorted(s))] for s in scopes]), np.asarray(order)))
    row = {scope: e for e, scope in enumerate(joined)}
    return _Home(
        graph,
        np.asarray([row[tuple(sorted(p))] for p in pairs], int),
        np.asarray([p[0] > p[1] for p in pairs], bool),
        tuple(factors),
    )


def _merged_tables(structure: Structure, tables: Tables) -> Tables:
    home = _home(structure)
    if home is None:
        return tables
    nodes, k = tables.nodes, tables.nodes.shape[1]
    of_edges = _tabled(
        structure, tables.edges, lambda t, at: t + at, (jnp.zeros((len(structure.edges), 1, 1), nodes.dtype),)
    )
    pairs, wide = [of_edges], []
    for scopes, stacked in zip(structure.scopes_by_arity, tables.factors, strict=True):
        if scopes.shape[1] == 1:
            nodes = nodes.at[scopes[:, 0]].add(stacked)
        elif scopes.shape[1] == 2:
            pairs.append(stacked)
        else:
            wide.append(stacked)
    every = jnp.concatenate(pairs)
    every = jnp.where(home.turned[:, None, None], jnp.swapaxes(every, 1, 2), every)
    edges = jnp.zeros((len(home.structure.edges), k, k), nodes.dtype).at[home.pairs].add(every)
    factors = []
    for stacked, (number, orders) in zip(wide, home.factors, strict=True):
        turned = jnp.stack([t.transpose(order) for t, order in zip(stacked, orders, strict=True)])
        factors.append(jnp.zeros((int(number.max()) + 1, *turned.shape[1:]), nodes.dtype).at[number].add(turned))
    return Tables(nodes, edges, tuple(factors))


@functools.lru_cache(maxsize=64)
def depth(structure: Structure) -> int | None:
    """Sweeps after which messages are exact, where the factors form a forest; None elsewhere."""
    joined = merged(structure)
    layers = local.forest_layers((*map(tuple, joined.edges.tolist()), *joined.factors))
    return None if layers is None else 2 * len(layers) + 1


def estimated(field: RandomField, *, damping: float, max_sweeps: int, tolerance: float) -> tuple[Estimate, Any]:
    """The negated Bethe free energy as an estimate of log Z, and its derivative by the field's float arrays."""
    model, needed = prepared(field), depth(field.structure)
    if needed is not None:
        damping, tolerance = 0.0, 0.0
    found = passed(model, damping=damping, max_sweeps=max_sweeps, tolerance=tolerance)
    value, means = beliefs(model, found.messages)
    dtype = jnp.result_type(float)
    value, nothing = value.astype(dtype), jnp.zeros((), dtype)
    exactly = needed is not None and max_sweeps >= needed
    rounding = jnp.asarray(jnp.inf, dtype)
    if exactly:
        size = sum(jnp.sum(jnp.where(jnp.isfinite(t), jnp.abs(t), 0)) for t in jax.tree.leaves(model.tables))
        size = size + jnp.where(model.possible, jnp.abs(value), 0)
        rounding = jax.lax.stop_gradient(32 * jnp.finfo(model.tables.nodes.dtype).eps * (1 + size)).astype(dtype)
    structure = field.structure
    estimate = Estimate(
        value=value,
        standard_error=nothing,
        lower=jnp.where(model.possible, value - rounding, -jnp.inf),
        upper=jnp.where(model.possible, value + rounding, value if exactly else jnp.inf),
        known="exact" if exactly else "approximate",
        route=f"belief propagation on {structure.nodes:,} nodes, {len(structure.edges):,} edges and {len(structure.factors):,} factors",
        diagnostics={
            "residual": found.residual.astype(dtype),
            "converged": (found.residual <= tolerance).astype(dtype),
            "sweeps": found.sweeps.astype(dtype),
        },
    )
    return estimate, model.derivative(means)
