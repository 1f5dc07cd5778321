"""Piecewise training, where every factor is normalised by itself, and the gap of its bound on log Z."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lnz._core.numerics import log_sum_exp
from lnz._core.objective import Objective
from lnz._core.route import Route
from lnz._models.linear_chain import LinearChain
from lnz._models.random_field import RandomField
from lnz._partition import log_partition
from lnz.crf._conditional_objectives import as_field, labelled, nats_of, softmax_nats
from lnz.crf._queries import refuse_impossible

Unaries = Literal["apart", "inside", "shared"]


@dataclasses.dataclass(frozen=True)
class PieceObjective(Objective):
    """A sum of losses over pieces of the model, each with small normalisers of its own, computed by `nats`."""

    unaries: Unaries = "apart"

    def __post_init__(self) -> None:
        _check(self.unaries)

    def nats(self, piece: Pieces, y: Int[Array, " nodes"]) -> Float[Array, " factors"]:
        """The loss of each factor of a piece at the labels y, in nats."""
        raise NotImplementedError

    def loss(
        self, field: RandomField | LinearChain, labels: Int[Array, "*nodes"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        model, y = labelled(field, labels)
        total = jnp.zeros((), model.unary.dtype)
        for piece in _pieces(model, self.unaries):
            total += jnp.sum(jnp.where(piece.exists, self.nats(piece, y.reshape(-1)), 0))
        return total


@dataclasses.dataclass(frozen=True)
class Piecewise(PieceObjective):
    """-Σ_a log P_a(y_a|x): every piece a of the model is normalised by itself, independently of the others.

    Attributes:
        unaries: how unaries and other factors form pieces.
            "apart", as published: every unary is a softmax over K labels, every edge one over K² pairs, every further factor one of its own.
            The loss is at least -log P(y|x) (T2). Evidence in several pieces is counted several times, and the whole model is over-confident
            when it predicts.
            "inside": every edge and factor with the full unaries of its nodes; nodes without any keep a piece of their own. An edge then only
            learns what the unaries do not explain. Not a bound, because unaries are in several pieces.
            "shared": like "inside", with each unary divided by the number of its pieces, so that the product of the pieces is the whole
            model, and the bound holds again.

    Source: Sutton, McCallum 2005, "Piecewise training for undirected models"; Lin, Shen, van den Hengel, Reid 2016, "Efficient piecewise
    training of deep structured models".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> labels = jnp.asarray([[0, 0], [1, 1]])
        >>> round(float(lnz.crf.Piecewise().loss(field, labels)), 3)
        12.995
        >>> round(float(lnz.crf.Piecewise(unaries="inside").loss(field, labels)), 3)
        8.6
    """

    def nats(self, piece: Pieces, y: Int[Array, " nodes"]) -> Float[Array, " factors"]:
        # One index per axis: XLA of JAX 0.7 folds a flat index (label times K plus label) wrongly where labels are compile-time constants.
        scores = piece.tables[(np.arange(len(piece.scopes)), *y[piece.scopes].T)]
        return nats_of(_flat(piece.tables), scores)


@dataclasses.dataclass(frozen=True)
class PiecewisePseudoLikelihood(PieceObjective):
    """-Σ_a Σ_{i in a} log P_a(y_i | the other labels of a, x): pseudo-likelihood within every piece. Linear in K, where a piece has K² states.

    Attributes:
        unaries: how pieces are formed, as for `lnz.crf.Piecewise`: "apart", "inside" or "shared".

    Source: Sutton, McCallum 2007, "Piecewise pseudolikelihood for efficient training of conditional random fields".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> round(float(lnz.crf.PiecewisePseudoLikelihood().loss(field, jnp.asarray([[0, 0], [1, 1]]))), 3)
        12.806
    """

    def nats(self, piece: Pieces, y: Int[Array, " nodes"]) -> Float[Array, " factors"]:
        arity = piece.scopes.shape[1]
        total = jnp.zeros(len(piece.scopes), piece.tables.dtype)
        for axis in range(arity):
            others = [y[piece.scopes[:, a]] for a in range(arity) if a != axis]
            rows = jnp.moveaxis(piece.tables, axis + 1, -1)[(np.arange(len(piece.scopes)), *others)]
            total += softmax_nats(rows, y[piece.scopes[:, axis]])
        return total


def piecewise_gap(
    field: RandomField | LinearChain, *, unaries: Literal["apart", "shared"] = "apart", route: Route | None = None
) -> Float[Array, ""]:
    """Σ_a log Z_a - log Z ≥ 0, in nats: the excess of the piecewise loss over -log P(y|x), the same for all labels (T2).

    It is 0, up to rounding, where no two pieces share a node. It is exact with an exact route, otherwise as accurate as the route's log Z.

    Args:
        field: the log-potentials of one input.
        unaries: how pieces are formed, "apart" or "shared" (see `lnz.crf.Piecewise`; "inside" gives no bound).
        route: how log Z is computed; by default `lnz.choose` picks one.

    Raises:
        ValueError: where no labelling is possible.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> round(float(lnz.crf.piecewise_gap(field)), 3), round(float(lnz.crf.piecewise_gap(field, unaries="shared")), 3)
        (8.754, 4.36)
    """
    if unaries not in ("apart", "shared"):
        raise ValueError(f'only "apart" and "shared" give a bound: unaries must be one of them, but is {unaries!r}')
    log_z = log_partition(field, route=route).value
    refuse_impossible(log_z)
    model, _ = as_field(field)
    total = jnp.zeros((), model.unary.dtype)
    for piece in _pieces(model, unaries):
        total += jnp.sum(jnp.where(piece.exists, log_sum_exp(_flat(piece.tables), 1), 0))
    return total - log_z


class Pieces(NamedTuple):
    """Pieces of one arity: their log-potentials (P, K, …, K), their nodes (P, arity), and whether all of these exist (P,)."""

    tables: Array
    scopes: np.ndarray
    exists: Bool[Array, " P"]


def _pieces(field: RandomField, unaries: Unaries) -> list[Pieces]:
    """The pieces of a field: nodes, edges, and further factors by arity."""
    structure, present = field.structure, field.present.reshape(-1)
    joint = [Pieces(field.edge_tables, structure.edges, field.edge_mask)]
    for scopes, tables in zip(structure.scopes_by_arity, field.higher, strict=True):
        joint.append(Pieces(tables, scopes, jnp.all(present[scopes], axis=1)))
    nodes = np.arange(structure.nodes)[:, None]
    if unaries == "apart":
        return [Pieces(field.rows, nodes, present), *joint]
    count = jnp.zeros(structure.nodes, jnp.int32)
    for piece in joint:
        for ends in piece.scopes.T:
            count = count.at[ends].add(piece.exists.astype(jnp.int32))
    rows = field.rows
    if unaries == "shared":
        rows = rows / jnp.maximum(count, 1)[:, None].astype(rows.dtype)
    return [Pieces(field.rows, nodes, present & (count == 0)), *(_with_unaries(piece, rows) for piece in joint)]


def _with_unaries(piece: Pieces, rows: Array) -> Pieces:
    tables, arity = piece.tables, piece.scopes.shape[1]
    for axis in range(arity):
        ends = rows[piece.scopes[:, axis]]
        tables = tables + ends.reshape(len(ends), *(rows.shape[1] if a == axis else 1 for a in range(arity)))
    return piece._replace(tables=tables)


def _flat(tables: Array) -> Array:
    return tables.reshape(len(tables), math.prod(tables.shape[1:]))


def _check(unaries: str) -> None:
    if unaries not in ("apart", "inside", "shared"):
        raise ValueError(f'unaries must be "apart", "inside" or "shared", but is {unaries!r}')
