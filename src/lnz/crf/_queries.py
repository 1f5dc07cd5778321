"""Probabilities of labels, marginals, entropy and divergence of models of any structure."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import ModelLike, as_energy, widen
from lnz._core.estimate import Estimate
from lnz._core.frozen import is_traced
from lnz._core.given import given_array
from lnz._core.route import Route
from lnz._core.spaces import ArrayLike
from lnz._models.linear_chain import ChainPotentials, LinearChain
from lnz._models.log_potentials import booleans, wide_integers
from lnz._models.random_field import RandomField
from lnz._partition import log_partition
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.forward_backward import chain_sums


def log_probability(energy: ModelLike, labels: ArrayLike, *, route: Route | None = None) -> Float[Array, ""]:
    """log P(y|x) = -E(y) - log Z of one labelling, in nats; -inf where it is impossible. Batches go through `jax.vmap`.

    At most 0 with an exact route; otherwise as accurate as the route's log Z. For chains and fields, labels at masked nodes are ignored, and the
    sum is computed relative to the labelling, which keeps float32 accurate for many nodes.

    Args:
        energy: the model of the labels, such as `lnz.LinearChain` or `lnz.RandomField`.
        labels: one state of its space.
        route: how log Z is computed; by default `lnz.choose` picks one.

    Raises:
        ValueError: for labels of the wrong shape or out of range. Traced labels out of range give NaN.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.zeros((3, 2)), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.crf.log_probability(chain, jnp.asarray([0, 1, 1])))), 4)
        0.125
        >>> grid = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)))
        >>> round(float(1 / jnp.exp(lnz.crf.log_probability(grid, jnp.asarray([[0, 1], [2, 2]])))))
        81
    """
    energy = as_energy(energy)
    if not isinstance(energy, LinearChain | RandomField):
        observed_space(energy).validate(labels)
        log_z = log_partition(energy, route=route)
        return _bounded(-free_energy_of(energy)(labels) - log_z.value, log_z)
    relative, forbidden = _relative(energy, energy.checked(labels))
    log_z = log_partition(relative, route=route)
    return jnp.where(forbidden, -jnp.inf, _bounded(-log_z.value, log_z))


@eqx.filter_jit
def _relative(energy: LinearChain | RandomField, labels: Array) -> tuple[LinearChain | RandomField, Array]:
    return energy.relative(labels)


def _bounded(log_p: Array, log_z: Estimate) -> Array:
    return _at_most_zero(log_p) if log_z.guarantee == "exact" else log_p


def negative_log_likelihood(energy: ModelLike, labels: ArrayLike, *, route: Route | None = None) -> Float[Array, ""]:
    """-log P(y|x) of one labelling, in nats: the loss whose gradient is marginals less indicators (T1). Batches go through `jax.vmap`.

    Arguments and errors are those of `log_probability`; a model without any possible labelling is an error, too.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> transitions, batch = jnp.zeros((2, 2)), jnp.zeros((4, 3, 2))
        >>> labels, lengths = jnp.asarray([[0, 1, 1], [0, 0, -100], [1, -100, -100], [1, 1, 1]]), jnp.asarray([3, 2, 1, 3])
        >>> def loss(emissions, labels, n):
        ...     return lnz.crf.negative_log_likelihood(lnz.LinearChain(emissions, transitions, n), labels)
        >>> [round(float(nats), 3) for nats in jax.vmap(loss)(batch, labels, lengths)]
        [2.079, 1.386, 0.693, 2.079]
    """
    value = -log_probability(energy, labels, route=route)
    if not is_traced(value) and value == jnp.inf:
        refuse_impossible(log_partition(energy, route=route).value)
    return value


def partial_log_probability(
    energy: LinearChain | RandomField, allowed: Bool[Array, "*nodes K"], *, route: Route | None = None
) -> Float[Array, ""]:
    """log P(y ∈ S | x) = log Z_S - log Z for a set S of labels at every node, in nats: the likelihood of partial labels or of a span.

    Args:
        energy: a chain or a field.
        allowed: S, booleans of shape (T, K), or (*structure.shape, K); masked nodes are ignored. `lnz.crf.partial_labels` builds it from
            partial labels.
        route: how the two sums are computed; by default `lnz.choose` picks one.

    Raises:
        ValueError: where the shape or dtype is wrong.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.zeros((3, 4)), jnp.zeros((4, 4)))
        >>> first_two = lnz.crf.partial_labels([2, 3, -1], 4)
        >>> round(float(jnp.exp(lnz.crf.partial_log_probability(chain, first_two))), 4)  # 1 / 16
        0.0625
    """
    model = widen(require_labels(energy, "partial_log_probability"))
    of_nodes = _nodes(model)
    allowed = booleans("allowed", allowed, of_nodes.shape)
    if model.mask is not None:
        allowed = allowed | ~model.mask[..., None]
    level = of_nodes - _levels(of_nodes)
    sums = [
        log_partition(eqx.tree_at(_nodes, model, values), route=route)
        for values in (level, jnp.where(allowed, level, -jnp.inf))
    ]
    whole, part = (log_z.value for log_z in sums)
    possible = part != -jnp.inf
    apart = jnp.where(possible, part - jnp.where(possible, whole, 0), 0)
    return jnp.where(possible, _bounded(apart, sums[0]), -jnp.inf)


def _nodes(model: LinearChain | RandomField) -> Any:
    return model.emissions if isinstance(model, LinearChain) else model.unary


def partial_labels(labels: ArrayLike, k: int) -> Bool[Array, "*shape K"]:
    """Sets of allowed labels from partial labels: the label itself where it is known, every label where it is negative (unknown).

    Example:
        >>> import lnz
        >>> lnz.crf.partial_labels([1, -1], 3).tolist()
        [[False, True, False], [True, True, True]]
    """
    labels = jnp.asarray(given_array(labels, "labels"))
    if not jnp.issubdtype(labels.dtype, jnp.integer) or (not is_traced(labels) and bool(jnp.any(labels >= k))):
        raise ValueError(f"labels must be integers below {k}, negative where they are unknown, but got {labels}")
    labels = wide_integers(labels)
    return (labels[..., None] == jnp.arange(k, dtype=labels.dtype)) | (labels < 0)[..., None]


def marginals(energy: ModelLike, *, route: Route | None = None) -> Any:
    """P(y_i) of every variable of a discrete model with factors.

    Args:
        energy: a `LinearChain`, a `RandomField`, or any model with factors.
        route: how the model is summed; exactly by default. For a field any route: the result is the gradient of its log Z (T1), such as the
            beliefs of `lnz.routes.BeliefPropagation`. For models other than chains and fields an `lnz.routes.Elimination`.

    Returns:
        For a chain an array (T, K), for a field (*structure.shape, K), 0 at masked nodes, which works under jit, vmap and grad; otherwise one
        NumPy array (k_i,) per variable, in the order of the space's entries.

    Raises:
        ValueError: where no labelling is possible, or the model has no factors or is too expensive: see `Elimination`.
    """
    energy = as_energy(energy)
    if isinstance(energy, RandomField) or (isinstance(energy, LinearChain) and route is None):
        nodes = _possible(_summed(energy, route)).means[0]
        return nodes if energy.mask is None else jnp.where(energy.mask[..., None], nodes, 0)
    if route is not None and not isinstance(route, Elimination):
        raise ValueError(
            f"marginals of a {type(energy).__name__} are computed by lnz.routes.Elimination, not by {route!r}"
        )
    found = (route or Elimination()).marginals(energy)
    if not all(row.any() for row in found):
        refuse_impossible(jnp.asarray(-jnp.inf))
    return found


def edge_marginals(energy: LinearChain | RandomField, *, route: Route | None = None) -> Float[Array, "E K K"]:
    """P(y_from = j, y_to = k) of every edge, 0 where a node of it is masked.

    For a chain, entry t - 1 is the pair that ends at node t; for a field the entries are in the order of `structure.edges`.
    """
    energy = _with_own_tables(require_labels(energy, "edge_marginals"))
    pairs = _possible(_summed(energy, route)).means[1]
    return jnp.where(energy.edge_mask[:, None, None], pairs, 0) if isinstance(energy, RandomField) else pairs


def factor_marginals(energy: RandomField, *, route: Route | None = None) -> list[Array]:
    """P(y_f) of every further factor of a field, in the order of `structure.factors`: arrays (K, …, K)."""
    higher = _possible(_summed(energy, route)).means[2:]
    found = {
        f: table
        for numbers, tables in zip(energy.structure.by_arity, higher, strict=True)
        for f, table in zip(numbers, tables, strict=True)
    }
    return [found[f] for f in range(len(found))]


def entropy(energy: ModelLike, *, route: Route | None = None) -> Float[Array, ""] | float:
    """H = -Σ_y P(y) log P(y) = log Z - Σ_f E[φ_f] of a discrete model with factors, in nats; differentiable for a chain.

    Exact by default; with a `route`, which only fields support, as accurate as that route.
    """
    energy = as_energy(energy)
    if route is not None and not isinstance(energy, RandomField):
        raise ValueError(f"the entropy of a {type(energy).__name__} is exact: leave out route")
    if not isinstance(energy, LinearChain | RandomField):
        return Elimination().entropy(energy)
    value, log_z = _entropy(energy, route)
    refuse_impossible(log_z)
    return value


@eqx.filter_jit
def _entropy(energy: LinearChain | RandomField, route: Route | None) -> tuple[Array, Array]:
    p = _summed(energy, route)
    return _at_least_zero(p.log_z - p.mean_of(p.tables)), p.log_z


def kl_divergence(
    p: LinearChain | RandomField, q: LinearChain | RandomField, *, route: Route | None = None
) -> Float[Array, ""]:
    """KL(p || q) = Σ_y p(y) log [p(y) / q(y)] between two chains, or two fields, over the same labels and nodes, in nats.

    It is +inf where q forbids a labelling that p allows. For fields it is exact by default, otherwise as accurate as the route.

    Raises:
        ValueError: where structures, lengths, labels or masks differ, or p has no possible labelling.
    """
    p, q = require_labels(p, "kl_divergence"), require_labels(q, "kl_divergence")
    if type(p) is not type(q):
        raise ValueError("KL needs two chains or two fields, but got one of each")
    if not _same_nodes(p, q):
        kind = "chains with the same nodes" if isinstance(p, LinearChain) else "fields with the same structure"
        raise ValueError(f"KL needs two {kind}, masks and labels, but these two differ")
    if isinstance(p, RandomField) or not isinstance(q, LinearChain) or p.transitions.ndim != q.transitions.ndim:
        p, q = _with_own_tables(p), _with_own_tables(q)
    mine = _possible(_summed(p, route))
    log_z_of_q = _summed(q, None).log_z if isinstance(q, LinearChain) else log_partition(q, route=route).value
    return _divergence(mine, _tables(q), log_z_of_q)


@jax.jit
def _divergence(p: _Summed, q: tuple[Array, ...], log_z_of_q: Array) -> Array:
    forbidden = [jnp.any((mean > 0) & (table == -jnp.inf)) for mean, table in zip(p.means, q, strict=True)]
    beyond = functools.reduce(jnp.logical_or, forbidden) | (log_z_of_q == -jnp.inf)
    apart = p.mean_of(p.tables) - p.mean_of(q) - p.log_z
    return jnp.where(beyond, jnp.inf, _at_least_zero(apart + jnp.where(beyond, 0, log_z_of_q)))


def _same_nodes(p: LinearChain | RandomField, q: LinearChain | RandomField) -> bool:
    """Whether two chains, or two fields, have the same nodes, edges and labels, as far as is known outside of jit."""
    if isinstance(p, RandomField) and isinstance(q, RandomField):
        known = not (is_traced(p.mask) or is_traced(q.mask)) and p.mask is not q.mask
        alike = p.structure == q.structure and p.unary.shape == q.unary.shape
        return alike and (not known or np.array_equal(p.present, q.present))
    assert isinstance(p, LinearChain)
    assert isinstance(q, LinearChain)
    if p.emissions.shape != q.emissions.shape:
        return False
    if is_traced(p.mask) or is_traced(q.mask):
        return p.holes == q.holes
    full = np.ones(len(p.emissions), bool)
    masks = [full if chain.mask is None else np.asarray(chain.mask) for chain in (p, q)]
    return bool((masks[0] == masks[1]).all()) and (p.holes == q.holes or bool(masks[0].all()))


class _Summed(NamedTuple):
    """log Z and marginals of a chain or a field.

    Attributes:
        log_z: in nats.
        tables: its log-potentials: of nodes, of pairs, and of the further factors by arity.
        means: the marginals in the same layout, summed where tables are shared: the gradient of log Z (T1).
    """

    log_z: Array
    tables: tuple[Array, ...]
    means: tuple[Array, ...]

    def mean_of(self, tables: tuple[Array, ...]) -> Array:
        """E[Σ φ] of log-potentials in this layout."""
        return functools.reduce(jnp.add, map(_weighted, self.means, tables))


@eqx.filter_jit
def _summed(energy: LinearChain | RandomField, route: Route | None) -> _Summed:
    """The sums of a chain by forward-backward, of a field by the route."""
    if isinstance(energy, LinearChain):
        p = _levelled(energy)
        sums = chain_sums(p)
        return _Summed(sums.log_z, (p.nodes, p.pairs), (sums.nodes, sums.pairs))
    field = widen(energy)
    log_z, means = eqx.filter_value_and_grad(lambda f: log_partition(f, route=route).value)(field)
    return _Summed(log_z, _tables(field), _tables(means))


def _possible(summed: _Summed) -> _Summed:
    refuse_impossible(summed.log_z)
    return summed


@eqx.filter_jit
def _tables(energy: LinearChain | RandomField) -> tuple[Array, ...]:
    if isinstance(energy, LinearChain):
        p = _levelled(energy)
        return p.nodes, p.pairs
    field: RandomField = widen(energy)
    return field.unary, field.pairwise, *field.higher


def _with_own_tables(energy: LinearChain | RandomField) -> LinearChain | RandomField:
    """The same model with a separate table for every pair."""
    if isinstance(energy, RandomField):
        return energy.expanded()
    t, k = energy.emissions.shape
    pairs = jnp.broadcast_to(energy.transitions, (max(t - 1, 0), k, k))
    return eqx.tree_at(lambda chain: chain.transitions, energy, pairs)


def _weighted(p: Array, x: Array) -> Array:
    """Σ p · x without the terms of probability zero, whose x can be -inf."""
    possible = x > -jnp.inf
    return jnp.sum(jnp.where((p > 0) & possible, p * jnp.where(possible, x, 0), 0))


def _levels(nodes: Array) -> Array:
    """The largest finite log-potential of every node, as a constant: subtracting it does not change P, and reduces rounding errors."""
    top = jnp.max(nodes, axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))


def _levelled(chain: LinearChain) -> ChainPotentials:
    p = chain.potentials()
    return p._replace(nodes=p.nodes - _levels(p.nodes))


def require_labels(energy: Any, what: str) -> LinearChain | RandomField:
    """The energy, if it is a chain or a field; ValueError otherwise."""
    if not isinstance(energy, LinearChain | RandomField):
        raise ValueError(f"{what} supports lnz.LinearChain and lnz.RandomField, but got {type(energy).__name__}")
    return energy


def refuse_impossible(log_z: Array) -> None:
    """Raise ValueError where Z = 0 is known outside of jit."""
    if not is_traced(log_z) and log_z == -jnp.inf:
        raise ValueError(
            "no labelling is possible: Z = 0. Check that the allowed labels and the allowed pairs do not contradict each other"
        )


def _at_most_zero(x: Array) -> Array:
    """x, whose true value is at most 0, with a positive excess by rounding removed and the derivative unchanged."""
    return x - jax.lax.stop_gradient(jnp.where(x > 0, x, 0))


def _at_least_zero(x: Array) -> Array:
    return -_at_most_zero(-x)
