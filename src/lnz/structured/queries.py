"""Probabilities of labels, marginals, entropy and divergence: one name each, whatever the structure of the model."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lnz.energies.chain import ChainPotentials, LinearChain
from lnz.energy import as_energy, widen
from lnz.exact.elimination import Elimination
from lnz.exact.forward_backward import ChainSums, chain_sums
from lnz.frozen import is_traced
from lnz.identity import log_partition
from lnz.route import Route


def log_probability(energy: Any, labels: Any, *, route: Route | None = None) -> Float[Array, ""]:
    """log P(y|x) = -E(y) - log Z of one labelling, in nats; at most 0, and -inf where it is impossible. Batches go through `jax.vmap`.

    Of a chain, what stands at masked nodes is not looked at, and the sum is taken relative to the labelling, so that long sequences keep
    their digits in float32.

    Args:
        energy: the model of the labels, such as `lnz.LinearChain`.
        labels: one state of its space.
        route: how log Z is taken; by default `lnz.choose` picks one.

    Raises:
        ValueError: for labels of the wrong shape or out of range. Where they are traced, such labels give NaN.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.zeros((3, 2)), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.log_probability(chain, jnp.asarray([0, 1, 1])))), 4)
        0.125
    """
    energy = as_energy(energy)
    if not isinstance(energy, LinearChain):
        energy.observed.validate(labels)
        return _at_most_zero(-energy.free_energy(labels) - log_partition(energy, route=route).value)
    labels = _labels_of(energy, labels)
    scores = sum(energy.scores(labels))
    forbidden = scores == -jnp.inf
    chain: LinearChain = widen(energy)
    relative = chain.emissions - jnp.where(forbidden, 0, scores)[:, None]
    log_z = log_partition(eqx.tree_at(lambda c: c.emissions, chain, relative), route=route).value
    return jnp.where(jnp.any(forbidden), -jnp.inf, _at_most_zero(-log_z))


def negative_log_likelihood(energy: Any, labels: Any, *, route: Route | None = None) -> Float[Array, ""]:
    """-log P(y|x) of one labelling, in nats: the loss whose gradient is marginals less indicators (T1). Batches go through `jax.vmap`.

    Arguments and errors are those of `log_probability`; a model that allows no labelling at all is refused, too.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> transitions, batch = jnp.zeros((2, 2)), jnp.zeros((4, 3, 2))
        >>> labels, lengths = jnp.asarray([[0, 1, 1], [0, 0, -100], [1, -100, -100], [1, 1, 1]]), jnp.asarray([3, 2, 1, 3])
        >>> def loss(emissions, labels, n):
        ...     return lnz.negative_log_likelihood(lnz.LinearChain(emissions, transitions, n), labels)
        >>> [round(float(nats), 3) for nats in jax.vmap(loss)(batch, labels, lengths)]
        [2.079, 1.386, 0.693, 2.079]
    """
    value = -log_probability(energy, labels, route=route)
    if not is_traced(value) and value == jnp.inf:
        refuse_impossible(log_partition(energy, route=route).value)
    return value


def partial_log_probability(energy: LinearChain, allowed: Bool[Array, "T K"]) -> Float[Array, ""]:
    """log P(y ∈ S | x) = log Z_S - log Z for a set S of labels at every node, in nats: the likelihood of partial labels, or a span's chance.

    Args:
        energy: a chain.
        allowed: S, booleans of shape (T, K); masked nodes are not looked at. `lnz.partial_labels` makes it from known labels.

    Raises:
        ValueError: where the shape or dtype is wrong.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.zeros((3, 4)), jnp.zeros((4, 4)))
        >>> first_two = lnz.partial_labels([2, 3, -1], 4)
        >>> round(float(jnp.exp(lnz.partial_log_probability(chain, first_two))), 4)  # 1 / 16
        0.0625
    """
    chain: LinearChain = widen(require_chain(energy, "partial_log_probability"))
    allowed = jnp.asarray(allowed)
    if allowed.dtype != bool or allowed.shape != chain.emissions.shape:
        raise ValueError(
            f"allowed must be booleans of shape {chain.emissions.shape}, but got {allowed.dtype} of shape {allowed.shape}"
        )
    if chain.mask is not None:
        allowed = allowed | ~chain.mask[:, None]
    level = chain.emissions - _levels(chain.emissions)
    at = lambda emissions: eqx.tree_at(lambda c: c.emissions, chain, emissions)  # noqa: E731
    whole = log_partition(at(level)).value
    part = log_partition(at(jnp.where(allowed, level, -jnp.inf))).value
    possible = part != -jnp.inf
    return jnp.where(possible, _at_most_zero(jnp.where(possible, part - jnp.where(possible, whole, 0), 0)), -jnp.inf)


def partial_labels(labels: Any, k: int) -> Bool[Array, "*shape K"]:
    """Sets of labels from known ones: the label alone where it is known, every label where it is negative (unknown).

    Example:
        >>> import lnz
        >>> lnz.partial_labels([1, -1], 3).tolist()
        [[False, True, False], [True, True, True]]
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or (not is_traced(labels) and bool(jnp.any(labels >= k))):
        raise ValueError(f"labels are whole numbers below {k}, negative where they are unknown, but got {labels}")
    return (labels[..., None] == jnp.arange(k, dtype=labels.dtype)) | (labels < 0)[..., None]


def marginals(energy: Any, *, route: Elimination | None = None) -> Any:
    """P(y_i) of every variable of a discrete model with factors, exactly.

    Args:
        energy: a `LinearChain`, or any model with factors.
        route: for models other than chains, how they are summed.

    Returns:
        Of a chain an array (T, K), 0 at masked nodes, which works under jit, vmap and grad; otherwise one NumPy array (k_i,) a variable, in
        the order of the space's entries.

    Raises:
        ValueError: where no labelling is possible, or the model has no factors or is too dear: see `Elimination`.
    """
    energy = as_energy(energy)
    if isinstance(energy, LinearChain) and route is None:
        return _summed(energy).nodes
    return (route or Elimination()).marginals(energy)


def edge_marginals(energy: LinearChain) -> Float[Array, "T-1 K K"]:
    """P(y_before = j, y_t = k) of every pair of neighbours in a chain: entry t - 1 for the pair that ends at node t, 0 where none does."""
    chain = require_chain(energy, "edge_marginals")
    t, k = chain.emissions.shape
    pairs = jnp.broadcast_to(chain.transitions, (max(t - 1, 0), k, k))
    return _summed(eqx.tree_at(lambda c: c.transitions, chain, pairs)).pairs


def entropy(energy: Any) -> Float[Array, ""] | float:
    """H = -Σ_y P(y) log P(y) of a discrete model with factors, in nats, exactly: log Z - Σ_f E[φ_f]. Of a chain, differentiable."""
    energy = as_energy(energy)
    if not isinstance(energy, LinearChain):
        return Elimination().entropy(energy)
    value, log_z = _chain_entropy(energy)
    refuse_impossible(log_z)
    return value


@jax.jit
def _chain_entropy(chain: LinearChain) -> tuple[Array, Array]:
    p = _levelled(chain)
    sums = chain_sums(p)
    return _at_least_zero(sums.log_z - _mean(sums, p.nodes, p.pairs)), sums.log_z


def kl_divergence(p: LinearChain, q: LinearChain) -> Float[Array, ""]:
    """KL(p || q) = Σ_y p(y) log [p(y) / q(y)] between two chains over the same labels and nodes, in nats; +inf where q forbids what p allows.

    Raises:
        ValueError: where lengths, labels or masks differ, or p allows nothing.
    """
    p, q = require_chain(p, "kl_divergence"), require_chain(q, "kl_divergence")
    if p.emissions.shape != q.emissions.shape or not _same_nodes(p, q):
        raise ValueError("KL needs two chains with the same nodes, masks and labels, but these two differ")
    value, log_z = _chain_divergence(p, q)
    refuse_impossible(log_z)
    return value


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
    """E[Σ φ], where what has probability zero is left out, be it -inf."""
    parts = [
        jnp.sum(jnp.where((p > 0) & (x > -jnp.inf), p * jnp.where(x > -jnp.inf, x, 0), 0))
        for p, x in ((sums.nodes, nodes), (sums.pairs, pairs))
    ]
    return parts[0] + parts[1]


def _levels(nodes: Array) -> Array:
    """The largest finite log-potential of every node, as a constant: taking it away leaves P as it is, and saves digits."""
    top = jnp.max(nodes, axis=1, keepdims=True)
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


def require_chain(energy: Any, what: str) -> LinearChain:
    """The energy, if it is a chain; ValueError otherwise."""
    if not isinstance(energy, LinearChain):
        raise ValueError(f"{what} is known for lnz.LinearChain, but got {type(energy).__name__}")
    return energy


def refuse_impossible(log_z: Array) -> None:
    """Raise ValueError where Python can see that Z = 0."""
    if not is_traced(log_z) and log_z == -jnp.inf:
        raise ValueError("no labelling is possible: Z = 0. Check the allowed labels and pairs against each other")


def _labels_of(chain: LinearChain, labels: Any) -> Array:
    labels = jnp.asarray(labels)
    t, k = chain.emissions.shape
    if labels.shape != (t,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"the labels of one sequence are {t} whole numbers, but got {labels.dtype} of shape {labels.shape}"
        )
    if not is_traced(labels) and not is_traced(chain.mask):
        wrong = (np.asarray(labels) < 0) | (np.asarray(labels) >= k)
        wrong = wrong if chain.mask is None else wrong & np.asarray(chain.mask)
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"a label lies between 0 and {k - 1}, but node {place} has {int(labels[place])}: mask it, or mend it"
            )
    return labels


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
