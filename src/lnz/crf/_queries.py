"""Probabilities of labels, marginals, entropy and divergence: one name each, whatever the structure of the model."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lnz._core.energy import as_energy, widen
from lnz._core.estimate import Estimate
from lnz._core.frozen import is_traced
from lnz._core.route import Route
from lnz._models.linear_chain import ChainPotentials, LinearChain
from lnz._models.log_potentials import booleans
from lnz._models.random_field import RandomField
from lnz._partition import log_partition
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.forward_backward import ChainSums, chain_sums


def log_probability(energy: Any, labels: Any, *, route: Route | None = None) -> Float[Array, ""]:
    """log P(y|x) = -E(y) - log Z of one labelling, in nats; -inf where it is impossible. Batches go through `jax.vmap`.

    At most 0, unless the route is no exact one: then it is as good as its log Z. Of chains and fields, what stands at masked nodes is not looked
    at, and the sum is taken relative to the labelling, so that many nodes keep their digits in float32.

    Args:
        energy: the model of the labels, such as `lnz.LinearChain` or `lnz.RandomField`.
        labels: one state of its space.
        route: how log Z is taken; by default `lnz.choose` picks one.

    Raises:
        ValueError: for labels of the wrong shape or out of range. Where they are traced, such labels give NaN.

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
        energy.observed.validate(labels)
        log_z = log_partition(energy, route=route)
        return _bounded(-energy.free_energy(labels) - log_z.value, log_z)
    relative, forbidden = _relative(energy, energy.checked(labels))
    log_z = log_partition(relative, route=route)
    return jnp.where(forbidden, -jnp.inf, _bounded(-log_z.value, log_z))


@eqx.filter_jit
def _relative(energy: LinearChain | RandomField, labels: Array) -> tuple[LinearChain | RandomField, Array]:
    return energy.relative(labels)


def _bounded(log_p: Array, log_z: Estimate) -> Array:
    return _at_most_zero(log_p) if log_z.guarantee == "exact" else log_p


def negative_log_likelihood(energy: Any, labels: Any, *, route: Route | None = None) -> Float[Array, ""]:
    """-log P(y|x) of one labelling, in nats: the loss whose gradient is marginals less indicators (T1). Batches go through `jax.vmap`.

    Arguments and errors are those of `log_probability`; a model that allows no labelling at all is refused, too.

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
    """log P(y ∈ S | x) = log Z_S - log Z for a set S of labels at every node, in nats: the likelihood of partial labels, or a span's chance.

    Args:
        energy: a chain or a field.
        allowed: S, booleans of shape (T, K), or (*structure.shape, K); masked nodes are not looked at. `lnz.crf.partial_labels` makes it from
            known labels.
        route: how the two sums are taken; by default `lnz.choose` picks one.

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
    of_nodes, place = (
        (model.emissions, lambda m: m.emissions) if isinstance(model, LinearChain) else (model.unary, lambda m: m.unary)
    )
    allowed = booleans("allowed", allowed, of_nodes.shape)
    if model.mask is not None:
        allowed = allowed | ~model.mask[..., None]
    level = of_nodes - _levels(of_nodes)
    sums = [
        log_partition(eqx.tree_at(place, model, values), route=route)
        for values in (level, jnp.where(allowed, level, -jnp.inf))
    ]
    whole, part = (log_z.value for log_z in sums)
    possible = part != -jnp.inf
    apart = jnp.where(possible, part - jnp.where(possible, whole, 0), 0)
    return jnp.where(possible, _bounded(apart, sums[0]), -jnp.inf)


def partial_labels(labels: Any, k: int) -> Bool[Array, "*shape K"]:
    """Sets of labels from known ones: the label alone where it is known, every label where it is negative (unknown).

    Example:
        >>> import lnz
        >>> lnz.crf.partial_labels([1, -1], 3).tolist()
        [[False, True, False], [True, True, True]]
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or (not is_traced(labels) and bool(jnp.any(labels >= k))):
        raise ValueError(f"labels are whole numbers below {k}, negative where they are unknown, but got {labels}")
    return (labels[..., None] == jnp.arange(k, dtype=labels.dtype)) | (labels < 0)[..., None]


def marginals(energy: Any, *, route: Route | None = None) -> Any:
    """P(y_i) of every variable of a discrete model with factors.

    Args:
        energy: a `LinearChain`, a `RandomField`, or any model with factors.
        route: how the model is summed; exactly by default. For a field any route: what it gives is the gradient of its log Z (T1), such as the
            beliefs of `lnz.routes.BeliefPropagation`. For models other than chains and fields an `lnz.routes.Elimination`.

    Returns:
        Of a chain an array (T, K), of a field (*structure.shape, K), 0 at masked nodes, which works under jit, vmap and grad; otherwise one
        NumPy array (k_i,) a variable, in the order of the space's entries.

    Raises:
        ValueError: where no labelling is possible, or the model has no factors or is too dear: see `Elimination`.
    """
    energy = as_energy(energy)
    if isinstance(energy, LinearChain) and route is None:
        return _summed(energy).nodes
    if isinstance(energy, RandomField):
        means, log_z = _field_means(energy, route)
        refuse_impossible(log_z.value)
        return means.unary if energy.mask is None else jnp.where(energy.mask[..., None], means.unary, 0)
    if route is not None and not isinstance(route, Elimination):
        raise ValueError(
            f"marginals of a {type(energy).__name__} are taken by lnz.routes.Elimination, not by {route!r}"
        )
    return (route or Elimination()).marginals(energy)


def edge_marginals(energy: LinearChain | RandomField, *, route: Route | None = None) -> Float[Array, "E K K"]:
    """P(y_from = j, y_to = k) of every pair of joined nodes, 0 where a mask leaves none.

    Of a chain entry t - 1 is for the pair that ends at node t, of a field the entries are in the order of `structure.edges`.
    """
    energy = require_labels(energy, "edge_marginals")
    if isinstance(energy, RandomField):
        means, log_z = _field_means(energy.expanded(), route)
        refuse_impossible(log_z.value)
        return jnp.where(energy.edge_mask[:, None, None], means.pairwise, 0)
    t, k = energy.emissions.shape
    pairs = jnp.broadcast_to(energy.transitions, (max(t - 1, 0), k, k))
    return _summed(eqx.tree_at(lambda c: c.transitions, energy, pairs)).pairs


def factor_marginals(energy: RandomField, *, route: Route | None = None) -> list[Array]:
    """P(y_f) of every further factor of a field, in the order of `structure.factors`: arrays (K, …, K)."""
    means, log_z = _field_means(energy, route)
    refuse_impossible(log_z.value)
    found = {
        f: table
        for numbers, tables in zip(energy.structure.by_arity, means.higher, strict=True)
        for f, table in zip(numbers, tables, strict=True)
    }
    return [found[f] for f in range(len(found))]


@eqx.filter_jit
def _field_means(field: RandomField, route: Route | None) -> tuple[RandomField, Estimate]:
    """The gradient of log Z: every marginal in the place of its log-potential (T1), those of shared tables summed; and log Z."""

    def log_z(field: RandomField) -> tuple[Array, Estimate]:
        estimate = log_partition(field, route=route)
        return estimate.value, estimate

    return eqx.filter_grad(log_z, has_aux=True)(widen(field))


def entropy(energy: Any, *, route: Route | None = None) -> Float[Array, ""] | float:
    """H = -Σ_y P(y) log P(y) of a discrete model with factors, in nats: log Z - Σ_f E[φ_f]. Of a chain, differentiable.

    With a `route`, which only fields take, as exact as that is; exactly by default.
    """
    energy = as_energy(energy)
    if isinstance(energy, RandomField):
        means, log_z = _field_means(energy, route)
        refuse_impossible(log_z.value)
        return _at_least_zero(log_z.value - _mean_of(means, widen(energy)))
    if route is not None:
        raise ValueError(f"the entropy of a {type(energy).__name__} is exact: leave out route")
    if not isinstance(energy, LinearChain):
        return Elimination().entropy(energy)
    value, log_z = _chain_entropy(energy)
    refuse_impossible(log_z)
    return value


def _mean_of(means: RandomField, field: RandomField) -> Array:
    """E[Σ φ] of a field's log-potentials under marginals in their places; what has probability zero is left out, be it -inf."""
    pairs = zip(
        jax.tree.leaves(eqx.filter(means, eqx.is_inexact_array)),
        jax.tree.leaves(eqx.filter(field, eqx.is_inexact_array)),
        strict=True,
    )
    return sum((_weighted(p, x) for p, x in pairs), jnp.zeros((), jnp.result_type(float)))


@jax.jit
def _chain_entropy(chain: LinearChain) -> tuple[Array, Array]:
    p = _levelled(chain)
    sums = chain_sums(p)
    return _at_least_zero(sums.log_z - _mean(sums, p.nodes, p.pairs)), sums.log_z


def kl_divergence(
    p: LinearChain | RandomField, q: LinearChain | RandomField, *, route: Route | None = None
) -> Float[Array, ""]:
    """KL(p || q) = Σ_y p(y) log [p(y) / q(y)] between two chains, or two fields, over the same labels and nodes, in nats.

    +inf where q forbids what p allows. Of fields exactly by default, otherwise as exact as the route.

    Raises:
        ValueError: where structures, lengths, labels or masks differ, or p allows nothing.
    """
    p, q = require_labels(p, "kl_divergence"), require_labels(q, "kl_divergence")
    if isinstance(p, RandomField) and isinstance(q, RandomField):
        return _field_divergence(p, q, route)
    if not isinstance(p, LinearChain) or not isinstance(q, LinearChain):
        raise ValueError("KL needs two chains or two fields, but got one of each")
    if p.emissions.shape != q.emissions.shape or not _same_nodes(p, q):
        raise ValueError("KL needs two chains with the same nodes, masks and labels, but these two differ")
    value, log_z = _chain_divergence(p, q)
    refuse_impossible(log_z)
    return value


def _field_divergence(p: RandomField, q: RandomField, route: Route | None) -> Array:
    known = not any(is_traced(x.mask) for x in (p, q))
    same = not known or p.mask is q.mask or np.array_equal(p.present, q.present)
    if p.structure != q.structure or p.unary.shape != q.unary.shape or not same:
        raise ValueError("KL needs two fields of the same structure, mask and labels, but these two differ")
    p, q = widen(p.expanded()), widen(q.expanded())
    means, log_z = _field_means(p, route)
    refuse_impossible(log_z.value)
    other = log_partition(q, route=route).value
    leaves = [jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)) for x in (means, q)]
    beyond = jnp.any(jnp.stack([jnp.any((m > 0) & (x == -jnp.inf)) for m, x in zip(*leaves, strict=True)]))
    apart = _mean_of(means, p) - _mean_of(means, q) - log_z.value
    beyond = beyond | (other == -jnp.inf)
    return jnp.where(beyond, jnp.inf, _at_least_zero(apart + jnp.where(beyond, 0, other)))


@jax.jit
def _chain_divergence(p: LinearChain, q: LinearChain) -> tuple[Array, Array]:
    mine, yours = _levelled(p), _levelled(q)
    if mine.pairs.ndim != yours.pairs.ndim:
        t, k = mine.nodes.shape
        mine, yours = (x._replace(pairs=jnp.broadcast_to(x.pairs, (max(t - 1, 0), k, k))) for x in (mine, yours))
    sums, other = chain_sums(mine), chain_sums(yours).log_z
    beyond = jnp.any((sums.nodes > 0) & (yours.nodes == -jnp.inf)) | jnp.any(
        (sums.pairs > 0) & (yours.pairs == -jnp.inf)
    )
    beyond = beyond | (other == -jnp.inf)
    apart = _mean(sums, mine.nodes, mine.pairs) - _mean(sums, yours.nodes, yours.pairs)
    value = _at_least_zero(apart - sums.log_z + jnp.where(beyond, 0, other))
    return jnp.where(beyond, jnp.inf, value), sums.log_z


def _mean(sums: ChainSums, nodes: Array, pairs: Array) -> Array:
    """E[Σ φ] of a chain."""
    return _weighted(sums.nodes, nodes) + _weighted(sums.pairs, pairs)


def _weighted(p: Array, x: Array) -> Array:
    """Σ p · x, where what has probability zero is left out, be it -inf."""
    possible = x > -jnp.inf
    return jnp.sum(jnp.where((p > 0) & possible, p * jnp.where(possible, x, 0), 0))


def _levels(nodes: Array) -> Array:
    """The largest finite log-potential of every node, as a constant: taking it away leaves P as it is, and saves digits."""
    top = jnp.max(nodes, axis=-1, keepdims=True)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))


def _levelled(chain: LinearChain) -> ChainPotentials:
    p = chain.potentials()
    return p._replace(nodes=p.nodes - _levels(p.nodes))


@jax.jit
def _chain_sums(chain: LinearChain) -> ChainSums:
    return chain_sums(chain.potentials())


def _summed(chain: LinearChain) -> ChainSums:
    sums = _chain_sums(chain)
    refuse_impossible(sums.log_z)
    return sums


def require_labels(energy: Any, what: str) -> LinearChain | RandomField:
    """The energy, if it is a chain or a field; ValueError otherwise."""
    if not isinstance(energy, LinearChain | RandomField):
        raise ValueError(f"{what} is known for lnz.LinearChain and lnz.RandomField, but got {type(energy).__name__}")
    return energy


def refuse_impossible(log_z: Array) -> None:
    """Raise ValueError where Python can see that Z = 0."""
    if not is_traced(log_z) and log_z == -jnp.inf:
        raise ValueError("no labelling is possible: Z = 0. Check the allowed labels and pairs against each other")


def _same_nodes(p: LinearChain, q: LinearChain) -> bool:
    """Whether two chains have the same nodes, as far as Python can see."""
    if is_traced(p.mask) or is_traced(q.mask):
        return p.holes == q.holes
    full = np.ones(len(p.emissions), bool)
    masks = [full if chain.mask is None else np.asarray(chain.mask) for chain in (p, q)]
    return bool((masks[0] == masks[1]).all()) and (p.holes == q.holes or bool(masks[0].all()))


def _at_most_zero(x: Array) -> Array:
    """x, whose true value is at most 0: an excess by rounding is taken away, and the derivative is left as it is."""
    return x - jax.lax.stop_gradient(jnp.where(x > 0, x, 0))


def _at_least_zero(x: Array) -> Array:
    return -_at_most_zero(-x)
