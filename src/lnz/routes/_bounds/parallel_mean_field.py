"""Mean field on a random field in JAX: schedules for many inputs at once, and differentiable steps."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.estimate import Estimate
from lnz._core.numerics import check_whole_number, run_if_untrusted
from lnz._models.random_field import RandomField
from lnz._models.structures import Structure
from lnz.routes._bounds.bound_route import bounded
from lnz.routes._bounds.field_messages import (
    EndValues,
    Prepared,
    Tables,
    along,
    at_nodes,
    ends,
    merged,
    outer,
    prepared,
    products,
    summed,
    table_sizes,
    tables_of,
    turned,
)

SCHEDULES = ("parallel", "coloured", "sequential")


class _Split(NamedTuple):
    """Tables of pairs and factors with 0 for -inf, and where -inf was."""

    soft: Tables
    hard: Tables
    any_hard: Array


def _split(tables: Tables) -> _Split:
    soft = jax.tree.map(lambda t: jnp.where(t == -jnp.inf, 0, t), tables)
    hard = jax.tree.map(lambda t: (t == -jnp.inf).astype(t.dtype), tables)
    found = [jnp.any(t > 0) for t in (*hard.edges, *hard.factors)]
    return _Split(soft, hard, functools.reduce(jnp.logical_or, found))


def _outgoing(structure: Structure, tables: Tables, incoming: EndValues) -> EndValues:
    """The mean of every factor's table, for every label of each of its nodes, over its other nodes."""
    second = along(structure, tables.edges, products, incoming.first)
    first = along(structure, turned(tables.edges), products, incoming.second)
    factors = []
    for table, q in zip(tables.factors, incoming.factors, strict=True):
        arity, means = q.shape[1], []
        for a in range(arity):
            others = outer([jnp.ones_like(q[:, b]) if b == a else q[:, b] for b in range(arity)])
            means.append(jnp.sum(table * others, tuple(b + 1 for b in range(arity) if b != a)))
        factors.append(jnp.stack(means, 1))
    return EndValues(first, second, tuple(factors))


def _forbidden(structure: Structure, split: _Split, incoming: EndValues) -> EndValues:
    """The probability, for every label of each node of a factor, that the factor forbids it. Computed only where a table has a -inf."""
    nothing = jax.tree.map(jnp.zeros_like, incoming)
    return run_if_untrusted(
        ~split.any_hard, nothing, lambda _, held: _outgoing(structure, *held), (split.hard, incoming)
    )


def _updated(structure: Structure, split: _Split, nodes: Array, q: Array) -> Array:
    """log q_i ∝ E_q[Σ_f φ_f | x_i] of every node, (K, n), among the labels that are forbidden with the least probability."""
    incoming = at_nodes(structure, q)
    logits = nodes + summed(structure, _outgoing(structure, split.soft, incoming))
    against = summed(structure, _forbidden(structure, split, jax.lax.stop_gradient(incoming)))
    against = jnp.where(nodes == -jnp.inf, jnp.inf, against)
    least = jnp.min(against, 0, keepdims=True) * (1 + 8 * float(jnp.finfo(q.dtype).eps))
    return jax.nn.log_softmax(jnp.where(against <= least, logits, -jnp.inf), axis=0)


def _classes(structure: Structure, schedule: str) -> np.ndarray:
    """The turn of every node in a sweep. Sequential: nodes whose earlier neighbours have had their turn share one, with the same result."""
    if schedule == "parallel":
        return np.zeros(structure.nodes, np.int32)
    return structure.colours if schedule == "coloured" else _levels(structure)


@functools.lru_cache(maxsize=64)
def _levels(structure: Structure) -> np.ndarray:
    near: list[set[int]] = [set() for _ in range(structure.nodes)]
    for scope in (*structure.edges.tolist(), *structure.factors):
        for i in scope:
            near[i].update(j for j in scope if j < i)
    level: list[int] = []
    for others in near:
        level.append(max((level[j] + 1 for j in others), default=0))
    return np.asarray(level, np.int32)


class _Sweeps(NamedTuple):
    q: Array
    residual: Array
    sweeps: Array


def _ascended(
    model: Prepared, split: _Split, schedule: str, damping: float, max_sweeps: int, tolerance: float
) -> _Sweeps:
    structure, nodes = model.structure, jnp.where(model.possible, model.tables.nodes, 0)
    turns = _classes(structure, schedule)

    def turn(c: Array, q: Array) -> Array:
        new = damping * q + (1 - damping) * jnp.exp(_updated(structure, split, nodes, q))
        return jnp.where((turns == c)[None], new, q)

    def sweep(state: _Sweeps) -> _Sweeps:
        q = jax.lax.fori_loop(0, int(turns.max(initial=-1)) + 1, turn, state.q)
        return _Sweeps(q, jnp.max(jnp.abs(q - state.q), initial=0), state.sweeps + 1)

    start = jax.nn.softmax(nodes, axis=0)
    residual = jnp.where(model.possible, jnp.inf, 0).astype(nodes.dtype)
    least = max(tolerance, 8 * float(jnp.finfo(nodes.dtype).eps))
    begin = _Sweeps(start, residual, jnp.asarray(0, jnp.int32))
    return jax.lax.while_loop(lambda s: (s.residual > least) & (s.sweeps < max_sweeps), sweep, begin)


def estimated(
    field: RandomField, *, schedule: str, damping: float, max_sweeps: int, tolerance: float
) -> tuple[Estimate, Any]:
    """The value of the final product of the sweeps, a lower bound of log Z, and its moments in the place of the field's float arrays."""
    model = prepared(field)
    structure, split = model.structure, _split(model.tables)
    found = _ascended(model, split, schedule, damping, max_sweeps, tolerance)
    incoming = at_nodes(structure, found.q)
    outgoing, forbidden = _outgoing(structure, split.soft, incoming), _forbidden(structure, split, incoming)

    def mean(of: EndValues) -> Array:
        return jnp.sum(of.second * incoming.second) + sum(
            jnp.sum(s[:, 0] * q[:, 0]) for s, q in zip(of.factors, incoming.factors, strict=True)
        )

    entropy = -jnp.sum(found.q * jnp.log(jnp.where(found.q > 0, found.q, 1)))
    value = jnp.sum(found.q * split.soft.nodes) + mean(outgoing) + entropy
    allowed = model.possible & (mean(forbidden) == 0)
    pairs = []
    for table, (a, b) in zip(model.tables.edges, ends(structure, model.tables.edges), strict=True):
        part = incoming.first[:, a:b], incoming.second[:, a:b]
        joined = part[0][:, None] * part[1][None]
        pairs.append(
            joined if joined.shape == table.shape else jnp.einsum("ke,le->kl", *part, precision="highest")[:, :, None]
        )
    wide = tuple(outer([q[:, a] for a in range(q.shape[1])]) for q in incoming.factors)
    means = jax.tree.map(lambda x: jnp.where(allowed, x, 0), Tables(found.q, tuple(pairs), wide))
    eps = float(jnp.finfo(found.q.dtype).eps)
    estimate = bounded(
        jnp.where(allowed, value, -jnp.inf),
        rounding=32 * eps * (1 + table_sizes(structure, model.tables)),
        sides=(True, False),
        guarantee="bound",
        route=f"mean field on {field.structure.nodes:,} nodes, {schedule} updates",
        residual=found.residual,
        converged=found.residual <= max(tolerance, 8 * eps),
        sweeps=found.sweeps,
    )
    return estimate, model.derivative(means)


def mean_field_steps(field: RandomField, steps: int) -> Float[Array, "*nodes K"]:
    """log q after a number of parallel mean-field updates from the nodes' own log-potentials, differentiable through all of them.

        q_i ← softmax(unary_i + Σ_j E_{q_j}[pairwise_ij(·, y_j)] + …), starting at q_i = softmax(unary_i).

    Its cross-entropy with the labels trains a network for exactly these steps (`lnz.routes.MeanField` runs them until they converge). Labels that the
    others forbid get -inf where some label is forbidden less. Works under `jit`, `vmap` and `grad`.

    Args:
        field: one input's field.
        steps: the number of updates, at least 0; static under `jit`.

    Returns:
        log q in nats, (*structure.shape, K); at masked nodes label 0 has 0.

    Raises:
        ValueError: where steps is not an integer.

    Source: Zheng et al. 2015, "Conditional random fields as recurrent neural networks".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Chain(2), jnp.asarray([[1.0, 0.0], [0.0, 0.0]]), jnp.eye(2))
        >>> jnp.exp(lnz.routes.mean_field_steps(field, 3))[:, 0].round(3).tolist()
        [0.7730000615119934, 0.6330000162124634]
    """
    check_whole_number("steps", steps, 0)
    structure, tables = merged(field.structure), tables_of(field)
    split = _split(tables)
    start = jax.nn.log_softmax(tables.nodes, axis=0)
    log_q, _ = jax.lax.scan(
        lambda log_q, _: (_updated(structure, split, tables.nodes, jnp.exp(log_q)), None), start, None, length=steps
    )
    return log_q.T.reshape(*field.structure.shape, -1)
