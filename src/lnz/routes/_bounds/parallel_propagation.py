"""Belief propagation on a random field, all messages at once, in JAX: one program for any number of inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.estimate import Estimate
from lnz._core.numerics import log_sum_exp, run_if_untrusted
from lnz._graphs import messages
from lnz._models.random_field import RandomField
from lnz._models.structures import Structure
from lnz.routes._bounds.bound_route import bounded
from lnz.routes._bounds.field_messages import (
    EndValues,
    Prepared,
    Tables,
    along,
    at_nodes,
    best,
    ends,
    joint,
    largest,
    log_products,
    merged,
    prepared,
    products,
    summed,
    table_sizes,
    total,
    turned,
    weighted,
)


class Passed(NamedTuple):
    """Log-messages after the last sweep, their largest change in it (before damping, beyond rounding), and the number of sweeps."""

    messages: EndValues
    residual: Array
    sweeps: Array


class Level(NamedTuple):
    """An equivalent model with constants shifted from edge tables to nodes: rows and columns of edge tables have the largest entry 0.

    Attributes:
        structure: that of the model.
        tables: the shifted ones; those of nodes have the largest entry 0.
        constant: the sum of what was subtracted.
        possible: whether every node has a label left.
    """

    structure: Structure
    tables: Tables
    constant: Array
    possible: Array


def levelled(model: Prepared) -> Level:
    """A message whose largest incoming entry is 1 then has a largest entry of at least 1, so that only entries far below 1 underflow."""
    structure, (nodes, edges, factors) = model.structure, model.tables
    levels: tuple[list[Array], list[Array]] = [], []
    found = []
    for table in edges:
        of_first = _finite(_peak(jnp.swapaxes(table, 0, 1)))
        table = table - of_first[:, None]
        of_second = _finite(_peak(table))
        found.append(table - of_second[None])
        for level, side in zip((of_first, of_second), levels, strict=True):
            side.append(level)
    like = jnp.zeros((1, len(structure.edges)), nodes.dtype)
    first, second = (along(structure, tuple(side), jnp.add, like) for side in levels)
    nodes = nodes + jax.vmap(structure.collected)(first, second)
    top = _finite(largest(nodes))
    return Level(structure, Tables(nodes - top[None], tuple(found), factors), jnp.sum(top), model.possible)


def _peak(x: Array) -> Array:
    """The maximum along the first axis, as a loop, so that the compiler does not recompute it for every entry."""
    low = jnp.full_like(x[0], -jnp.inf)
    return jax.lax.scan(lambda top, row: (jnp.maximum(top, row), None), low, x)[0]


def _finite(x: Array) -> Array:
    return jnp.where(x > -jnp.inf, x, jnp.zeros_like(x))


Send = Callable[[EndValues], EndValues]


def sum_product(level: Level, **settings: Any) -> tuple[Passed, EndValues]:
    """Sum-product messages until they converge, and those that would be sent next.

    Sums over tables of edges use exponentials: one product of a matrix and a vector each. Entries too small for that are set to a floor;
    where such an entry contributes more than rounding to a node's other messages, sweeps continue with logarithms.
    """
    structure, tables = level.structure, level.tables
    about = jnp.finfo(tables.nodes.dtype)
    least = float(about.tiny) / float(about.eps) * len(tables.nodes)
    weights = tuple(jnp.exp(table) for table in tables.edges)

    def by_products(incoming: EndValues) -> EndValues:
        p, q = jnp.exp(incoming.first), jnp.exp(incoming.second)
        second = along(structure, weights, products, p)
        first = along(structure, turned(weights), products, q)
        first, second = (jnp.log(jnp.maximum(x, least)) for x in (first, second))
        return EndValues(first, second, _of_factors(tables.factors, incoming.factors, log_sum_exp))

    found = _swept(level, by_products, **settings)
    of_nodes, incoming = _incoming(level, found.messages)
    sent = by_products(incoming)
    low = jax.tree.map(lambda m: (m <= math.log(least) + 1).astype(m.dtype), sent._replace(factors=()))
    low = low._replace(factors=tuple(jnp.zeros_like(m) for m in sent.factors))
    count = summed(structure, low)
    elsewhere = jax.tree.map(lambda n, own: n - own > 0, at_nodes(structure, count), low)
    shares = jax.tree.map(lambda c, doubted: jnp.any(doubted & (c > math.log(about.eps) - 4)), incoming, elsewhere)
    doubted = jnp.any((count > 0) & (of_nodes - _finite(largest(of_nodes))[None] > math.log(about.eps) - 4))
    trusted = ~(functools.reduce(jnp.logical_or, jax.tree.leaves(shares), doubted) & level.possible)

    def again(before: tuple[Passed, EndValues], tables: Tables) -> tuple[Passed, EndValues]:
        by_logarithms = _in_logarithms(level._replace(tables=tables), log_products, log_sum_exp)
        more = _swept(level, by_logarithms, start=before[0].messages, **settings)
        sent = by_logarithms(_incoming(level, more.messages)[1])
        return more._replace(sweeps=before[0].sweeps + more.sweeps), sent

    return run_if_untrusted(trusted, (found, sent), again, level.tables)


def max_product(level: Level, **settings: Any) -> Passed:
    """Max-product messages until they converge."""
    return _swept(level, _in_logarithms(level, best, jnp.max), **settings)


def _swept(
    level: Level, send: Send, *, damping: float, max_sweeps: int, tolerance: float, start: EndValues | None = None
) -> Passed:
    dtype = level.tables.nodes.dtype
    even = jax.tree.map(jnp.zeros_like, at_nodes(level.structure, level.tables.nodes))
    rounding = 16 * float(jnp.finfo(dtype).eps)

    def sweep(state: Passed) -> Passed:
        old = state.messages
        new = send(_incoming(level, old)[1])
        change = jax.tree.map(lambda a, b: a - b, new, old)
        excess = jax.tree.map(lambda c, m: jnp.abs(c) - rounding * (1 + jnp.abs(m)), change, old)
        worst = [jnp.max(largest(excess.first), initial=0), jnp.max(largest(excess.second), initial=0)]
        worst += [jnp.max(x, initial=0) for x in excess.factors]
        moved = jax.tree.map(lambda m, c: m + (1 - damping) * c, old, change)
        return Passed(moved, functools.reduce(jnp.maximum, worst), state.sweeps + 1)

    residual = jnp.where(level.possible, jnp.inf, 0).astype(dtype)
    begin = Passed(even if start is None else start, residual, jnp.asarray(0, jnp.int32))
    return jax.lax.while_loop(lambda s: (s.residual > tolerance) & (s.sweeps < max_sweeps), sweep, begin)


def _incoming(level: Level, messages: EndValues) -> tuple[Array, EndValues]:
    """Nodes with all messages to them, (K, n), and the incoming messages of every factor: all but its own, the largest entry 0."""
    at_all = level.tables.nodes + summed(level.structure, messages)
    incoming = jax.tree.map(lambda t, m: t - m, at_nodes(level.structure, at_all), messages)
    first, second = (c - _finite(largest(c))[None] for c in (incoming.first, incoming.second))
    factors = tuple(c - _finite(jnp.max(c, 2, keepdims=True)) for c in incoming.factors)
    return at_all, EndValues(first, second, factors)


def _in_logarithms(level: Level, over_pairs: Callable[..., Array], over: Callable[..., Array]) -> Send:
    """A sweep in logarithms, of sums or maxima. On a cycle of impossible labels entries would decrease for ever, hence the floor."""
    tables = level.tables
    sizes = [jnp.max(jnp.where(t > -jnp.inf, jnp.abs(t), 0), initial=0) for t in jax.tree.leaves(tables)]
    floor = -1e5 * (1 + functools.reduce(jnp.maximum, sizes))

    def send(incoming: EndValues) -> EndValues:
        second = along(level.structure, tables.edges, over_pairs, incoming.first)
        first = along(level.structure, turned(tables.edges), over_pairs, incoming.second)
        sent = EndValues(first, second, _of_factors(tables.factors, incoming.factors, over))
        return jax.tree.map(lambda m: jnp.maximum(m, floor), sent)

    return send


def _of_factors(
    tables: tuple[Array, ...], incoming: tuple[Array, ...], over: Callable[..., Array]
) -> tuple[Array, ...]:
    """The messages of factors of three and more nodes, by logarithms; 0 to impossible labels."""
    found = []
    for table, rows in zip(tables, incoming, strict=True):
        whole, sent = joint(table, rows), []
        for a in range(rows.shape[1]):
            own = rows[:, a]
            terms = jnp.moveaxis(whole, a + 1, 1).reshape(*own.shape, math.prod(whole.shape[2:]))
            sent.append(jnp.where(own > -jnp.inf, over(terms, 2) - _finite(own), 0))
        found.append(jnp.stack(sent, 1))
    return tuple(found)


def _log_total(x: Array) -> Array:
    """log Σ_k exp(x[k]) along the first axis."""
    top = _finite(largest(x))
    return top + jnp.log(total(jnp.exp(x - top[None])))


def bethe(model: Prepared, level: Level, messages: EndValues, sent: EndValues) -> tuple[Array, Tables]:
    """The negated Bethe free energy, and the beliefs that are its derivative where the messages have converged; -inf and zeros where Z = 0.

    Σ_i log Z_i + Σ_f log E_f[…]: every factor's term is relative to the beliefs about its nodes, so that large terms do not cancel. That of an
    edge is a sum over one end of the incoming and the outgoing message there.
    """
    structure, tables = level.structure, level.tables
    at_all = tables.nodes + summed(structure, messages)
    of_nodes = _log_total(at_all)
    logs = at_all - of_nodes[None]
    incoming = jax.tree.map(lambda t, m: t - m, at_nodes(structure, logs), messages)
    top = _finite(largest(incoming.first))
    of_edges = top + _log_total(sent.second + incoming.second)
    value = level.constant + jnp.sum(of_nodes) + jnp.sum(of_edges)
    edges = weighted(structure, tables.edges, incoming.first - _finite(of_edges)[None], incoming.second)
    factors = []
    for table, rows in zip(tables.factors, incoming.factors, strict=True):
        whole = joint(table, rows)
        flat = whole.reshape(len(whole), math.prod(whole.shape[1:]))
        of_factors = log_sum_exp(flat, 1)
        value = value + jnp.sum(of_factors)
        factors.append(jnp.exp(flat - _finite(of_factors)[:, None]).reshape(whole.shape))
    found = Tables(jnp.exp(logs), edges, tuple(factors))
    found = jax.tree.map(lambda x: jnp.where(model.possible, x, 0), found)
    return jnp.where(model.possible, value, -jnp.inf), found


@functools.lru_cache(maxsize=64)
def depth(structure: Structure) -> int | None:
    """Sweeps after which messages are exact, where the factors form a forest; None elsewhere."""
    joined = merged(structure)
    layers = messages.forest_layers((*map(tuple, joined.edges.tolist()), *joined.factors))
    return None if layers is None else 2 * len(layers) + 1


def estimated(field: RandomField, *, damping: float, max_sweeps: int, tolerance: float) -> tuple[Estimate, Any]:
    """The negated Bethe free energy as an estimate of log Z, and its derivative by the field's float arrays."""
    structure, needed, model = field.structure, depth(field.structure), prepared(field)
    if needed is not None:
        damping, tolerance = 0.0, 0.0
    level = levelled(model)
    found, sent = sum_product(level, damping=damping, max_sweeps=max_sweeps, tolerance=tolerance)
    value, means = bethe(model, level, found.messages, sent)
    exact = needed is not None and max_sweeps >= needed
    value = value.astype(jnp.result_type(float))
    size = table_sizes(structure, model.tables) + jnp.where(model.possible, jnp.abs(value), 0)
    names = f"{structure.nodes:,} nodes, {len(structure.edges):,} edges and {len(structure.factors):,} factors"
    estimate = bounded(
        value,
        rounding=32 * float(jnp.finfo(model.tables.nodes.dtype).eps) * (1 + size),
        sides=(exact, exact),
        guarantee="exact" if exact else "approximate",
        route=f"belief propagation on {names}",
        residual=found.residual,
        converged=found.residual <= tolerance,
        sweeps=found.sweeps,
    )
    return estimate, model.derivative(means)


def decoded(field: RandomField, *, damping: float, max_sweeps: int, tolerance: float) -> tuple[Array, Array]:
    """A labelling by max-product, 0 at masked nodes, and its log-weight; -inf where none is possible or none was found.

    On a forest the messages are exact, and labels are chosen from the roots outwards, each given its neighbour's, so that ties are consistent.
    Elsewhere every node gets the label of its largest max-marginal; then the nodes of one colour after another get the best label given the
    others.
    """
    model, needed = prepared(field), depth(field.structure)
    if needed is not None:
        damping, tolerance = 0.0, 0.0
    level = levelled(model)
    found = max_product(level, damping=damping, max_sweeps=max_sweeps, tolerance=tolerance)
    at_all, incoming = _incoming(level, found.messages)
    y = jnp.argmax(at_all, 0).astype(jnp.int32)
    if needed is not None and not level.tables.factors:
        y = _read_outwards(level, incoming, y)
    structure, colours = field.structure, field.structure.colours

    def turn(c: Array, y: Array) -> Array:
        logits = field.conditionals(y.reshape(structure.shape))
        here = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        better = (colours == c) & (jnp.max(logits, 1) > here)
        return jnp.where(better, jnp.argmax(logits, 1).astype(y.dtype), y)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        y, _, sweeps = state
        new = jax.lax.fori_loop(0, int(colours.max(initial=-1)) + 1, turn, y)
        return new, jnp.any(new != y), sweeps + 1

    start = (y, jnp.asarray(True), jnp.asarray(0, jnp.int32))
    y, _, _ = jax.lax.while_loop(lambda state: state[1] & (state[2] < max_sweeps), sweep, start)
    y = y.reshape(structure.shape)
    y = y if field.mask is None else jnp.where(field.mask, y, 0)
    return y, jnp.where(model.possible, -field(y), -jnp.inf)


def _read_outwards(level: Level, incoming: EndValues, y: Array) -> Array:
    """Labels of a forest of pairs, each the best given that of the neighbour nearer to the root."""
    tables = jnp.concatenate([jnp.broadcast_to(t, (*t.shape[:2], b - a)) for t, (a, b) in _with_ends(level)], 2)

    def read(y: Array, now: Any) -> tuple[Array, None]:
        edge, known, other, forwards = now
        row = jnp.where(
            forwards,
            tables[y[known], :, edge] + incoming.second[:, edge],
            tables[:, y[known], edge] + incoming.first[:, edge],
        )
        return y.at[other].set(jnp.argmax(row).astype(y.dtype)), None

    return jax.lax.scan(read, y, _outwards(level.structure))[0]


def _with_ends(level: Level) -> list[tuple[Array, tuple[int, int]]]:
    return list(zip(level.tables.edges, ends(level.structure, level.tables.edges), strict=True))


@functools.lru_cache(maxsize=64)
def _outwards(structure: Structure) -> tuple[np.ndarray, ...]:
    """Edges of a forest from the roots outwards: their numbers, the ends that are nearer, the others, and whether the nearer is the first."""
    near: list[list[tuple[int, int, bool]]] = [[] for _ in range(structure.nodes)]
    for e, (i, j) in enumerate(structure.edges.tolist()):
        near[i].append((e, j, True))
        near[j].append((e, i, False))
    seen, order = [False] * structure.nodes, []
    for root in range(structure.nodes):
        front = [] if seen[root] else [root]
        seen[root] = True
        for i in front:
            for e, j, forwards in near[i]:
                if not seen[j]:
                    seen[j] = True
                    front.append(j)
                    order.append((e, i, j, forwards))
    rows = np.asarray(order, np.int32).reshape(-1, 4)
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3].astype(bool)
