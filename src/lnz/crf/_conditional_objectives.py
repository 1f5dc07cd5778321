"""Objectives of conditional models: one gradient, <μ - onehot(y), ∂log-potentials>, with different ways to compute μ."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.energy import widen
from lnz._core.given import given_array
from lnz._core.numerics import check_whole_number, log_sum_exp
from lnz._core.objective import Objective
from lnz._core.random import fast_key
from lnz._core.route import Route
from lnz._models.linear_chain import LinearChain
from lnz._models.random_field import RandomField
from lnz._models.single_site import single_changes, units_refusal
from lnz._models.structures import Chain
from lnz.crf._queries import negative_log_likelihood, require_labels


@dataclasses.dataclass(frozen=True)
class Likelihood(Objective):
    """-log P(y|x) = log Z(x) + E(y, x), with log Z and therefore μ by any route.

    Exact by default. `Likelihood(lnz.routes.BeliefPropagation(...))` uses the Bethe log Z and beliefs, `Likelihood(lnz.routes.MeanField(...))`
    the bound and the moments of mean field. Decode with the route that the model was trained with.

    Attributes:
        route: how log Z is computed; by default `lnz.choose` picks one.

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> grid = lnz.crf.Grid((2, 2))
        >>> def loss(unary, labels):
        ...     return lnz.crf.Likelihood().loss(lnz.RandomField(grid, unary, jnp.eye(3)), labels)
        >>> labels = jnp.asarray([[0, 0], [1, 1]])
        >>> round(float(loss(jnp.zeros((2, 2, 3)), labels)), 3)
        4.24
        >>> [round(float(g), 3) for g in jax.grad(loss)(jnp.zeros((2, 2, 3)), labels)[0, 0]]  # marginals less indicators
        [-0.667, 0.333, 0.333]
    """

    route: Route | None = None

    def loss(
        self, field: RandomField | LinearChain, labels: Int[Array, "*nodes"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        return negative_log_likelihood(require_labels(field, "an objective"), labels, route=self.route)


@dataclasses.dataclass(frozen=True)
class PseudoLikelihood(Objective):
    """-Σ_i log P(x_i | x_-i): every unit given the observed values of the others, in nats.

    It needs no sum over states, and is consistent: exact in the limit of much data from a model of the family. It supports any energy of bits,
    spins or categories (latent units are summed out), and conditional models, where x are the labels of an input. Energies that offer
    `conditionals` need about one evaluation per state, others one per unit and value. A conditional model with strong pairwise terms learns to
    copy the neighbours' true labels, which are not available for prediction.

    Source: Besag 1975, "Statistical analysis of non-lattice data".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> round(float(lnz.crf.PseudoLikelihood().loss(field, jnp.asarray([[0, 0], [1, 1]]))), 3)
        3.448
        >>> ring = lnz.Ising.lattice((4,), 0.5, periodic=True)
        >>> round(float(lnz.crf.PseudoLikelihood().loss(ring, jnp.ones(4))), 3)  # 4 log(1 + e^-2)
        0.508
    """

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        if isinstance(energy, RandomField | LinearChain):
            model, y = labelled(energy, state)
            return jnp.sum(softmax_nats(model.conditionals(y), y.reshape(-1)))
        gains = single_changes(energy, state)
        return jnp.sum(log_sum_exp(jnp.concatenate([jnp.zeros_like(gains[:, :1]), gains], axis=1), axis=1))

    def unsupported_reason(self, energy: Any) -> str | None:
        return None if isinstance(energy, RandomField | LinearChain) else units_refusal(energy)


@dataclasses.dataclass(frozen=True)
class SampledLikelihood(Objective):
    """The gradient of -log P(y|x) with μ from sampled labellings: CD-k from the labels (T11), or persistent chains (T12), by block Gibbs sweeps.

    **The value is a surrogate**: the mean score of the samples less the score of the labels, in nats. Its gradient, at fixed samples, is the
    estimate of <μ - onehot(y), ∂log-potentials>; the value itself does not measure the likelihood, and can be negative.

    Without `chains`, chains start at the labels in every update (CD-k), and do not reach labellings far from the data. The caller keeps the
    state of persistent chains: `chains = objective.moved(field, chains, key)`, then `objective.loss(field, labels, chains=chains)`. Chains
    belong to one input, so persistent chains suit data that are visited repeatedly, with chains kept for every example.

    Attributes:
        sweeps: k, the number of sweeps over all nodes.
        samples: the number of chains per input, where they start at the labels.

    Raises:
        ValueError: where neither a key nor chains are given.

    Source: Hinton 2002 (contrastive divergence); He, Zemel, Carreira-Perpiñán 2004, "Multiscale conditional random fields"; Tieleman 2008.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> objective, labels = lnz.crf.SampledLikelihood(sweeps=2), jnp.asarray([[0, 0], [1, 1]])
        >>> loss = objective.loss(field, labels, key=jax.random.key(0))
        >>> chains = objective.moved(field, jnp.zeros((8, 2, 2), int), jax.random.key(1))  # persistent: keep them for the next update
        >>> loss = objective.loss(field, labels, chains=chains)
    """

    sweeps: int = 1
    samples: int = 1

    def __post_init__(self) -> None:
        check_whole_number("sweeps", self.sweeps)
        check_whole_number("samples", self.samples)

    def moved(
        self, field: RandomField | LinearChain, chains: Int[Array, "chains ..."], key: PRNGKeyArray
    ) -> Int[Array, "chains ..."]:
        """The chains after `sweeps` sweeps under the model; 0 at masked nodes."""
        model, order = as_field(jax.lax.stop_gradient(field))
        at = jnp.asarray(given_array(chains, "chains")).astype(jnp.int32)
        at = at if order is None else at[:, order]
        at = at if model.mask is None else jnp.where(model.mask[None], at, 0)
        keys = jax.random.split(fast_key(key), self.sweeps)
        at = jax.lax.scan(lambda v, k: (model.gibbs(k, v), None), at, keys)[0]
        return at if order is None else at[:, jnp.argsort(order)]

    def loss(
        self,
        field: RandomField | LinearChain,
        labels: Int[Array, "*nodes"],
        *,
        key: PRNGKeyArray | None = None,
        chains: Int[Array, "chains ..."] | None = None,
    ) -> Float[Array, ""]:
        y = require_labels(field, "an objective").checked(labels)
        if chains is None:
            if key is None:
                raise ValueError("SampledLikelihood draws samples: pass a random key, or chains from `moved`")
            clean = jnp.clip(y, 0, field.space.categories - 1)
            chains = self.moved(field, jnp.broadcast_to(clean, (self.samples, *y.shape)), key)
        model, order = as_field(field)
        samples = chains if order is None else chains[:, order]
        model, y = labelled(field, labels)
        here, there = -model(y), jax.vmap(lambda v: -model(v))(samples)
        impossible = here == -jnp.inf
        return jnp.where(impossible, jnp.inf, jnp.mean(there) - jnp.where(impossible, 0, here))


@dataclasses.dataclass(frozen=True)
class UnrolledMeanField(Objective):
    """-Σ_i log q_i(y_i), the cross-entropy of q after a fixed number of parallel mean-field updates from q = softmax(unary).

    It differentiates through the updates. Unlike the others it trains the procedure, not the model: the result is only good for the same
    decoding, argmax q after as many updates.

    Attributes:
        steps: the number of updates of all nodes.

    Source: Zheng et al. 2015, "Conditional random fields as recurrent neural networks".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> field = lnz.RandomField(lnz.crf.Grid((2, 2)), jnp.zeros((2, 2, 3)), jnp.eye(3))
        >>> round(float(lnz.crf.UnrolledMeanField(5).loss(field, jnp.asarray([[0, 0], [1, 1]]))), 3)
        4.394
    """

    steps: int = 10

    def __post_init__(self) -> None:
        check_whole_number("steps", self.steps)

    def logits(self, field: RandomField | LinearChain) -> Float[Array, "nodes K"]:
        """log q after the updates, up to one constant per node. Their argmax is the decoding that this objective trains."""
        model, order = as_field(field)
        rows = jax.lax.fori_loop(0, self.steps, lambda _, x: model.expected(_softmax(x)), model.rows)
        return rows if order is None else rows[jnp.argsort(order)]

    def loss(
        self, field: RandomField | LinearChain, labels: Int[Array, "*nodes"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, ""]:
        model, y = labelled(field, labels)
        return jnp.sum(softmax_nats(self.logits(model), y.reshape(-1)))


def labelled(field: RandomField | LinearChain, labels: Any) -> tuple[RandomField, Int[Array, "*nodes"]]:
    """A chain or a field as a field in the widest float, with matching labels. Traced labels out of range make the field NaN."""
    y = require_labels(field, "an objective").checked(labels)
    model, order = as_field(field)
    y = y if order is None else y[order]
    y = y if model.mask is None else jnp.where(model.mask, y, 0)
    valid = (y >= 0) & (y < model.unary.shape[-1])
    unary = jnp.where(valid[..., None], model.unary, jnp.nan)
    return eqx.tree_at(lambda f: f.unary, model, unary), jnp.where(valid, y, 0).astype(jnp.int32)


def as_field(field: RandomField | LinearChain) -> tuple[RandomField, Int[Array, " T"] | None]:
    """A chain or a field as a field in the widest float; for a chain with masked nodes also the order of its nodes in the field.

    Where holes link their neighbours, the nodes that exist move to the front, so that neighbours are adjacent whatever the mask.
    """
    field = require_labels(field, "an objective")
    if isinstance(field, RandomField):
        return widen(field), None
    p = field.potentials()
    t = len(p.nodes)
    if p.mask is None:
        return RandomField(Chain(t), p.nodes, p.pairs), None
    order = jnp.argsort(~p.mask, stable=True) if field.holes == "link" else jnp.arange(t)
    pairs = p.pairs if p.pairs.ndim == 2 else p.pairs[jnp.maximum(order[1:] - 1, 0)]
    return RandomField(Chain(t), p.nodes[order], pairs, mask=p.mask[order]), order


def softmax_nats(logits: Float[Array, "n states"], chosen: Int[Array, " n"]) -> Float[Array, " n"]:
    """-log softmax(logits) at the chosen state of every row, in nats: at least 0; +inf, without a gradient, where that is impossible."""
    return nats_of(logits, jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0])


def nats_of(logits: Float[Array, "n states"], scores: Float[Array, " n"]) -> Float[Array, " n"]:
    """-log softmax(logits), given the logit of the chosen state of every row."""
    impossible = scores == -jnp.inf
    apart = log_sum_exp(logits - jnp.where(impossible, 0, scores)[:, None], axis=1)
    return jnp.where(impossible, jnp.inf, apart)


def _softmax(x: Array) -> Array:
    return jnp.exp(x - log_sum_exp(x, axis=1)[:, None])
