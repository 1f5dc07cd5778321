"""log Z and all marginals of models whose factor graph is a forest, by sum-product in JAX."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Factored, factors_of, least_width
from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.numerics import log_sum_exp
from lnz.routes._exact.numpy_callback import structure
from lnz.routes._exact.structural import Structured

_MOST_PADDING = 2**26  # entries of the padded tables, beyond which cardinalities are too unequal for arrays


@dataclasses.dataclass(frozen=True)
class Forest(Structured):
    """Exact log Z of a discrete model whose factors join at most two variables each, without a cycle: chains, trees, stars, forests.

    Messages run from the leaves to the centre of every tree,

        m_c(x_p) = log Σ_{x_c} exp(φ_cp(x_c, x_p) + φ_c(x_c) + Σ_{children d of c} m_d(x_c)),

    as many at a time as are ready, in one loop of at most twice as many steps as the longest path needs. On the way back,
    P(x_c, x_p) = P(x_c | x_p) P(x_p) gives the gradient: every marginal, sums and products of positive terms. All in JAX: `jit`, `vmap` over
    parameters, and derivatives of any order. Messages are logarithms relative to their largest entry, so that they neither overflow nor lose
    digits along a path; -inf is an impossible state.

    Variables with one value (evidence) do not connect others.

    Raises:
        ValueError: for a model without factors, with a cycle, or with factors of three and more variables, in words.

    Source: Pearl 1988, "Probabilistic reasoning in intelligent systems".

    Example:
        >>> import lnz
        >>> chain = lnz.Ising.lattice((1000,), 0.5, periodic=False)
        >>> print(round(float(lnz.log_partition(chain, route=lnz.routes.Forest()).value), 2))  # log 2 + 999 log(2 cosh 0.5)
        813.14
    """

    def misfit(self, energy: Energy) -> str | None:
        if energy.offers(Factored) is None:
            return f"{type(energy).__name__} has no factors"
        if least_width(energy) > 1:
            return f"the width of its graph is at least {least_width(energy)}, that of a forest 1"
        schedule = _scheduled(energy)
        return schedule if isinstance(schedule, str) else None

    def cost(self, energy: Energy) -> float:
        return float(self._schedule(energy).q ** 2)

    def _schedule(self, energy: Energy) -> _Schedule:
        schedule = _scheduled(energy)
        if isinstance(schedule, str):
            raise ValueError(f"Forest does not support {type(energy).__name__}: {schedule}")
        return schedule

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        schedule, flat = self._schedule(energy), _potentials(energy)
        value = _log_z(schedule, flat)
        unary, pairs = (jnp.abs(jnp.where(jnp.isfinite(x), x, 0)) for x in schedule.tables(flat))
        scale = jnp.sum(jnp.max(unary, 1)) + jnp.sum(jnp.max(pairs, (2, 3)))
        rounding = jnp.finfo(value.dtype).eps * (8 + math.sqrt(schedule.degree)) * (1 + scale)
        steps, wide = schedule.child.shape
        return exact(
            value,
            rounding=jax.lax.stop_gradient(rounding),
            route=f"sum-product on a forest of {schedule.nodes:,} variables in {steps:,} steps of {wide:,} messages",
        )

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        schedule = self._schedule(energy)
        return eqx.filter_grad(lambda e: _log_z(schedule, _potentials(e)))(energy)


class _Places(NamedTuple):
    """The places of a padded table's entries among the log-potentials: one place each, and further ones to be added.

    Attributes:
        first: the place of every entry; one past the end for 0, two past it for -inf.
        where, more: entries in the flattened table, and the places of the log-potentials that are added to them.
    """

    first: np.ndarray
    where: np.ndarray
    more: np.ndarray

    def read(self, flat: Array) -> Array:
        table = jnp.concatenate([flat, jnp.asarray([0, -jnp.inf], flat.dtype)])[self.first]
        if not len(self.where):
            return table
        return table.reshape(-1).at[self.where].add(flat[self.more]).reshape(table.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class _Schedule:
    """The schedule of messages of a forest, rooted at the centre of every tree.

    Attributes:
        q: the largest number of values.
        nodes: the number of variables; one more row is for padding messages.
        child, parent: sender and receiver of every message, (steps, messages).
        roots: one variable per tree.
        degree: the largest number of messages to a variable.
        unary: the places of φ_i, (nodes + 1, q).
        pairs: the places of φ_cp, (steps, messages, q, q), the child's axis first.
        constants: places of log-potentials of no variable.
    """

    q: int
    nodes: int
    child: np.ndarray
    parent: np.ndarray
    roots: np.ndarray
    degree: int
    unary: _Places
    pairs: _Places
    constants: np.ndarray

    def tables(self, flat: Array) -> tuple[Array, Array]:
        return self.unary.read(flat), self.pairs.read(flat)


def _potentials(energy: Any) -> Array:
    return factors_of(widen(energy)).log_potentials


def _log_z(schedule: _Schedule, flat: Array) -> Array:
    """log Z, in nats, of all log-potentials."""
    unary, pairs = schedule.tables(flat)
    return _sum_product(schedule, unary, pairs) + jnp.sum(flat[schedule.constants])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_product(schedule: _Schedule, unary: Array, pairs: Array) -> Array:
    total, _, shifts = _upwards(schedule, unary, pairs)
    return _log_z_of(schedule, total, shifts)


@_sum_product.defjvp
def _sum_product_jvp(schedule: _Schedule, primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_z, nodes, edges = _marginals(schedule, *primals)
    of_nodes, of_edges = (jnp.where(p > 0, t, 0) for p, t in zip((nodes, edges), tangents, strict=True))
    return log_z, jnp.sum(nodes * of_nodes) + jnp.sum(edges * of_edges)


def _upwards(schedule: _Schedule, unary: Array, pairs: Array) -> tuple[Array, Array, Array]:
    """φ_i with all messages to i, every message (steps, messages, q), and what was subtracted from it (steps, messages)."""

    def step(total: Array, now: Any) -> tuple[Array, tuple[Array, Array]]:
        child, parent, pair = now
        message = log_sum_exp(total[child][..., None] + pair, 1)
        top = jax.lax.stop_gradient(jnp.max(message, 1))
        shift = jnp.where(jnp.isfinite(top), top, 0)
        message = message - shift[:, None]
        return total.at[parent].add(message), (message, shift)

    total, (messages, shifts) = jax.lax.scan(step, unary, (schedule.child, schedule.parent, pairs))
    return total, messages, shifts


def _log_z_of(schedule: _Schedule, total: Array, shifts: Array) -> Array:
    return _sum(shifts.reshape(-1)) + _sum(log_sum_exp(total[schedule.roots], 1))


def _sum(x: Array) -> Array:
    """Σ_i x_i in two rounds of √n each, whose rounding errors do not add up along n terms."""
    side = math.isqrt(max(len(x) - 1, 0)) + 1
    return jnp.sum(jnp.sum(jnp.pad(x, (0, side * side - len(x))).reshape(side, side), 1))


def _marginals(schedule: _Schedule, unary: Array, pairs: Array) -> tuple[Array, Array, Array]:
    """log Z, P(x_i) of every variable and P(x_c, x_p) of every pair; zeros where Z is zero."""
    total, messages, shifts = _upwards(schedule, unary, pairs)
    sent = messages + shifts[..., None]
    given = _shares(total[schedule.child][..., None] + pairs, sent[:, :, None])  # P(x_c | x_p)
    whole = log_sum_exp(total[schedule.roots], 1)
    start = jnp.zeros_like(unary).at[schedule.roots].set(_shares(total[schedule.roots], whole[:, None]))

    def step(known: Array, now: Any) -> tuple[Array, None]:
        child, parent, given = now
        return known.at[child].set(jnp.einsum("ncp,np->nc", given, known[parent])), None

    nodes, _ = jax.lax.scan(step, start, (schedule.child, schedule.parent, given), reverse=True)
    return _log_z_of(schedule, total, shifts), nodes, given * nodes[schedule.parent][:, :, None]


def _shares(logits: Array, whole: Array) -> Array:
    """exp(logits - whole), 0 where the whole is impossible."""
    possible = jnp.broadcast_to(whole != -jnp.inf, logits.shape)
    return jnp.exp(jnp.where(possible, logits - jnp.where(whole == -jnp.inf, 0, whole), -jnp.inf))


def _scheduled(energy: Energy) -> _Schedule | str:
    graph = structure(energy)
    return _schedule_of(graph.cardinalities, graph.scopes, graph.table_of, graph.shapes)


@functools.lru_cache(maxsize=64)
def _schedule_of(
    cardinalities: tuple[int, ...],
    scopes: tuple[tuple[int, ...], ...],
    table_of: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
) -> _Schedule | str:
    """The schedule of a graph, or why there is none: both are cached."""
    n, q = len(cardinalities), max(cardinalities, default=1)
    starts = np.cumsum([0, *map(math.prod, shapes)])
    live = [tuple(i for i in scope if cardinalities[i] > 1) for scope in scopes]
    wide = next((f for f, scope in enumerate(live) if len(scope) > 2), None)
    if wide is not None:
        return f"factor {wide} joins {len(live[wide])} variables, and a forest has pairs"
    joined = {tuple(sorted(scope)) for scope in live if len(scope) == 2}
    if len(joined) >= max(n, 1):
        return f"{len(joined):,} pairs of {n:,} variables have a cycle"
    order, root = _peeled(n, joined)
    if len(order) < len(joined):
        return "its pairs have a cycle"
    child, parent = _steps(n, order)
    if child.size * q * q + n * q > _MOST_PADDING:
        return f"one variable has {q:,} values, too many to give every table that size"
    size = int(starts[-1])
    unary = np.full((n + 1, q), size + 1, np.int32)
    values = np.arange(q)
    unary[:n] = np.where(values < np.asarray(cardinalities).reshape(-1, 1), size, size + 1)
    place = {c: k for k, c in enumerate(child.ravel().tolist()) if c < n}
    above = dict(zip(child.ravel().tolist(), parent.ravel().tolist(), strict=True))
    single: list[_Table] = []
    double: list[_Table] = []
    for scope, start in zip(live, starts[list(table_of)].tolist(), strict=True):
        sizes = tuple(cardinalities[i] for i in scope)
        if len(scope) == 1:
            single.append(_Table(scope[0], (sizes[0], 1), (1, 0), start))
        elif len(scope) == 2:
            (i, j), (a, b) = scope, sizes
            down = above.get(i) == j  # i is the child, whose axis comes first
            double.append(_Table(place[i], (a, b), (b, 1), start) if down else _Table(place[j], (b, a), (1, b), start))
    pairs = np.full((child.size, q, q), size, np.int32)
    return _Schedule(
        q=q,
        nodes=n,
        child=child,
        parent=parent,
        roots=root,
        degree=int(np.bincount(parent.ravel(), minlength=n + 1)[:n].max(initial=0)),
        unary=_placed(unary[:, :, None], single, (n + 1, q)),
        pairs=_placed(pairs, double, (*child.shape, q, q)),
        constants=np.asarray([starts[table_of[f]] for f in range(len(live)) if not live[f]], np.int32),
    )


class _Table(NamedTuple):
    """A table of two axes among the log-potentials, and the row of padded tables that it belongs to."""

    row: int
    size: tuple[int, int]
    stride: tuple[int, int]
    start: int


def _placed(empty: np.ndarray, tables: Sequence[_Table], shape: tuple[int, ...]) -> _Places:
    """Tables in rows of `empty`; the first of a row is placed in it, the others are added."""
    if not tables:
        return _Places(empty.reshape(shape), np.zeros(0, np.int32), np.zeros(0, np.int32))
    row, start = np.asarray([t.row for t in tables]), np.asarray([t.start for t in tables])
    size, stride = np.asarray([t.size for t in tables]), np.asarray([t.stride for t in tables])
    a, b = np.indices(empty.shape[1:])
    inside = (a < size[:, :1, None]) & (b < size[:, 1:, None])
    source = start[:, None, None] + a * stride[:, :1, None] + b * stride[:, 1:, None]
    target = row[:, None, None] * a.size + (a * empty.shape[2] + b)
    new = np.zeros(len(row), bool)
    new[np.unique(row, return_index=True)[1]] = True
    new = inside & new[:, None, None]
    first = empty.ravel().copy()
    first[target[new]] = source[new]
    again = inside & ~new
    return _Places(first.reshape(shape), target[again].astype(np.int32), source[again].astype(np.int32))


def _peeled(n: int, pairs: Iterable[tuple[int, ...]]) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """(step, child, parent) of every pair that is reached from the leaves inwards, and the variables left without a parent."""
    degree, near = (
        [0] * n,
        [0] * n,
    )  # a leaf's one neighbour is the exclusive or of all its neighbours and the removed ones
    for i, j in pairs:
        degree[i] += 1
        degree[j] += 1
        near[i] ^= j
        near[j] ^= i
    step, order = [0] * n, []
    queue = [i for i in range(n) if degree[i] == 1]
    sent = [False] * n
    for c in queue:
        if degree[c] != 1:
            continue  # the last of its tree
        p = near[c]
        order.append((step[c], c, p))
        sent[c] = True
        degree[c] = 0
        degree[p] -= 1
        near[p] ^= c
        step[p] = max(step[p], step[c] + 1)
        if degree[p] == 1:
            queue.append(p)
    return order, np.flatnonzero(~np.asarray(sent, bool)).astype(np.int32)


def _steps(n: int, order: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Children and parents (steps, messages), padded with n. A level wider than the mean takes several steps."""
    if not order:
        return np.full((0, 1), n, np.int32), np.full((0, 1), n, np.int32)
    level, child, parent = np.asarray(sorted(order)).T
    starts = np.flatnonzero(np.append(True, np.diff(level) > 0))
    widths = np.diff(np.append(starts, len(level)))
    wide = -(-len(level) // len(widths))
    counts = -(-widths // wide)
    inside = np.arange(len(level)) - np.repeat(starts, widths)
    row = np.repeat(np.cumsum(counts) - counts, widths) + inside // wide
    filled = np.full((2, int(counts.sum()), wide), n)
    filled[:, row, inside % wide] = child, parent
    return filled[0].astype(np.int32), filled[1].astype(np.int32)
