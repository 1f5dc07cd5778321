"""Exact sums over linear chains by the forward-backward algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lnz.energies.chain import ChainPotentials, LinearChain
from lnz.energy import Energy
from lnz.estimate import Estimate, exact
from lnz.exact.lanes import product, side_by_side
from lnz.mathematics import log_sum_exp
from lnz.route import Route
from lnz.spaces import State


class ChainSums(NamedTuple):
    """What one pass forward and one backward give.

    Attributes:
        log_z: in nats.
        nodes: P(y_t = k), shape (T, K); 0 at masked nodes, and everywhere if Z = 0.
        pairs: like the pairs' log-potentials: the expected number of every label pair, or P(y_{t-1} = j, y_t = k) where tables differ.
    """

    log_z: Float[Array, ""]
    nodes: Float[Array, "T K"]
    pairs: Float[Array, ...]


@dataclasses.dataclass(frozen=True)
class ForwardBackward(Route):
    """Exact log Z and marginals of a `LinearChain`, in O(T K²): a matrix product a node forward, and one backward.

    Messages are probabilities, each divided by its sum, whose logarithm is kept: one exponential an entry where sums of logarithms need K.
    What the rounding of small numbers to zero can have cost is bounded from the messages themselves, for every sequence; where that could
    show, the sum is taken again with logarithms. The whole gradient comes from the two passes, and can be differentiated again.

    Source: Rabiner 1989, "A tutorial on hidden Markov models".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.log(jnp.asarray([[1.0, 2.0], [3.0, 1.0]])), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.log_partition(chain, route=lnz.ForwardBackward()).value)), 3)
        12.0
    """

    @property
    def structural(self) -> bool:
        return False

    def refusal(self, energy: Energy) -> str | None:
        return None if isinstance(energy, LinearChain) else "it is no LinearChain"

    def cost(self, energy: Energy) -> float:
        return float(energy.space.categories)  # pyright: ignore[reportAttributeAccessIssue]

    def log_partition(self, energy: Energy, key: Any = None) -> Estimate:
        p = energy.potentials()  # pyright: ignore[reportAttributeAccessIssue]
        return _estimate(p, chain_log_z(p))

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any = None) -> tuple[Estimate, Any]:
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
        p, pull_back = jax.vjp(lambda parameters: eqx.combine(parameters, constants).potentials()[:2], parameters)
        rest = energy.potentials()[2:]  # pyright: ignore[reportAttributeAccessIssue]
        sums = chain_sums(ChainPotentials(*p, *rest))
        return _estimate(ChainPotentials(*p, *rest), sums.log_z), pull_back((sums.nodes, sums.pairs))[0]

    def mean_gradient(self, energy: Energy, key: Any = None) -> Any:
        return self.log_partition_and_mean_gradient(energy)[1]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any = None) -> Estimate:
        """E[f] of any f is a sum over all labellings: by enumeration where they are few enough."""
        from lnz.exact.enumeration import Enumeration

        reason = Enumeration().refusal(energy)
        if reason is not None:
            raise ValueError(
                f"ForwardBackward gives log Z, its gradient, marginals and samples, but E[f] of any f needs all labellings, and {reason}: "
                "average f over lnz.exact_samples(chain, key, n)"
            )
        return Enumeration().expectation(energy, f, key)


def _estimate(p: ChainPotentials, log_z: Array) -> Estimate:
    size = jnp.sum(peak_of(jnp.abs(p.nodes), 1)) + jnp.sum(p.joined, dtype=log_z.dtype) * (
        4 + peak_of(jnp.abs(p.pairs))
    )
    rounding = 4 * jnp.finfo(log_z.dtype).eps * (8 + size)
    return exact(log_z, rounding=jax.lax.stop_gradient(rounding), route=f"forward-backward over {len(p.nodes)} nodes")


def chain_sums(p: ChainPotentials) -> ChainSums:
    """log Z and the marginals of a chain. Differentiable any number of times, forwards and in reverse."""
    return _sums(*p)


@jax.custom_jvp
def _sums(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> ChainSums:
    p = ChainPotentials(nodes, pairs, joined, mask)
    return _unless(*_scaled(p), _exact, p)


@_sums.defjvp
def _sums_jvp(primals: Any, tangents: Any) -> tuple[ChainSums, ChainSums]:
    *tables, joined, mask = primals
    by_logarithms = lambda nodes, pairs: _exact(ChainPotentials(nodes, pairs, joined, mask))  # noqa: E731
    return _sums(*primals), jax.jvp(by_logarithms, tuple(tables), tangents[:2])[1]


def chain_log_z(p: ChainPotentials) -> Array:
    """log Z alone: by the pass forward where the range of the pairs' log-potentials says that it can be trusted, else by `chain_sums`.

    Where any label can follow any other, weights differ by a factor e^R at most, and β_t(k) / c_t by e^2R: see `_scaled`. No derivative.
    """
    log_z = _forward(p).log_z
    spread = peak_of(p.pairs) - jnp.min(p.pairs, initial=jnp.inf)
    trusted = 2 * spread <= jnp.log(_most(p))
    return _unless(trusted, log_z, lambda p: chain_sums(p).log_z, p)


def _unless(trusted: Array, value: Any, again: Callable[[ChainPotentials], Any], p: ChainPotentials) -> Any:
    """The value where it can be trusted, and otherwise what `again` says, which is run only if it is needed.

    Under vmap a condition would run both of its branches; a loop runs its body only while some sequence needs it. Without the barrier the
    compiler would see that the body does not depend on the state, and move it out of the loop.
    """

    def body(state: tuple[Array, Any]) -> tuple[Array, Any]:
        (trusted, _), (nodes, pairs) = jax.lax.optimization_barrier((state, (p.nodes, p.pairs)))
        return jnp.ones_like(trusted), again(p._replace(nodes=nodes, pairs=pairs))

    return jax.lax.while_loop(lambda state: ~state[0], body, (trusted, value))[1]


class _Forward(NamedTuple):
    log_z: Array
    after: Array  # (T, K): the message that goes out of node t, P(y_t | what came before and at t), times c_t
    scale: Array  # (T,): c_t, what messages would be multiplied by if they were not made to sum to 1


def _forward(p: ChainPotentials) -> _Forward:
    """Messages from left to right."""
    return _alone(_forward_lanes(*_as_lanes(p)))


def _scaled(p: ChainPotentials) -> tuple[Array, ChainSums]:
    """Both passes with scaled probabilities, and whether they can be trusted.

    Messages, weights and emissions are at most 1. An entry that is rounded to zero at node t changes Z by a factor 1 - δ with δ at most the
    smallest positive number times β_t(k) / c_t, where Σ_k a_t(k) β_t(k) = 1. Entries that β itself loses do not matter, as a_t(k) ≤ 1.
    """
    worst, sums = _alone(_scaled_lanes(*_as_lanes(p)))
    return (worst <= _most(p)) & (sums.log_z > -jnp.inf), sums


def _as_lanes(p: ChainPotentials) -> ChainPotentials:
    return jax.tree.map(lambda x: x[..., None], p)


def _alone(found: Any) -> Any:
    return jax.tree.map(lambda x: x[..., 0], found)


def _weights(nodes: Array, pairs: Array) -> tuple[Array, Array, Array, Array]:
    """exp(nodes), the largest entry of each row 1, and exp(pairs), the largest entry 1, with the logarithms of what they were divided by."""
    top, peak = peak_of(nodes, 1), peak_of(pairs.reshape(-1, pairs.shape[-1]), 0)
    return jnp.exp(nodes - top[:, None]), top, jnp.exp(pairs - peak.reshape((1,) * (pairs.ndim - 1) + (-1,))), peak


@side_by_side
def _forward_lanes(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> _Forward:
    emitted, top, weights, peak = _weights(nodes, pairs)
    return _messages(emitted, top, weights, peak, joined, mask)


def _messages(
    emitted: Array, top: Array, weights: Array, peak: Array, joined: Array, mask: Array | None
) -> _Forward:
    """Each message is divided by its sum as the next one is made of it."""
    t, k, lanes = emitted.shape

    def step(state: tuple[Array, Array], x: Any) -> Any:
        a, inverse = state
        e, joined, exists, place = x
        below = product(_lane_table(weights, place), a) * inverse
        s = go_on(a * inverse, below, jnp.ones_like(a), joined, exists) * e
        c = jnp.sum(s, axis=0, keepdims=True)
        return (s, _inverse(c)), (s, c[0])

    start = jnp.full((k, lanes), 1 / k, emitted.dtype), jnp.ones((1, lanes), emitted.dtype)
    _, (after, c) = jax.lax.scan(step, start, (emitted, *_rows(joined, mask), jnp.arange(t)))
    scales = c if mask is None else jnp.where(mask, c, 1)
    log_z = jnp.sum(jnp.log(scales), 0) + jnp.sum(top, 0) + peak * jnp.sum(joined, 0, dtype=peak.dtype)
    return _Forward(log_z, after, c)


def _rows(joined: Array, mask: Array | None) -> tuple[Array, Array | None]:
    return joined[:, None], None if mask is None else mask[:, None]


def _inverse(c: Array) -> Array:
    return jnp.where(c > 0, 1 / c, 0)


@side_by_side
def _scaled_lanes(nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> tuple[Array, ChainSums]:
    """The largest β_t(k) / c_t, and the sums."""
    emitted, top, weights, peak = _weights(nodes, pairs)
    f = _messages(emitted, top, weights, peak, joined, mask)
    inverse = _inverse(f.scale)[:, None]
    t, k, lanes = nodes.shape

    def step(beta: Array, x: Any) -> Any:
        e, joined, exists, place = x
        q = jax.lax.optimization_barrier(e * beta)
        below = product(jnp.swapaxes(_lane_table(weights, place), 0, 1), q)
        return go_on(beta, below, jnp.ones_like(beta), joined, exists), beta

    emitted = emitted * inverse
    rows = emitted, *_rows(joined, mask), jnp.arange(t)
    _, beta = jax.lax.scan(step, jnp.ones((k, lanes), nodes.dtype), rows, reverse=True)
    worst = jnp.max(beta * inverse, (0, 1), initial=0)
    a = f.after * inverse
    found = a * beta
    if mask is not None:
        found = jnp.where(mask[:, None], found, 0)
    q = jnp.where(joined[1:, None], emitted[1:] * beta[1:], 0)
    if pairs.ndim == 3:
        counts = weights * _together(a[:-1], q)
    else:
        counts = weights * a[:-1, :, None] * q[:, None]
    return worst, ChainSums(f.log_z, found, counts)


def _together(a: Array, q: Array) -> Array:
    """Σ_t a_t(j) q_t(k) of every lane."""
    return jnp.einsum("tjb,tkb->jkb", a, q, precision=jax.lax.Precision.HIGHEST)


def _lane_table(weights: Array, place: Array) -> Array:
    """The table of the pair that ends at a node, with its lanes."""
    if weights.ndim == 3:
        return weights
    if not len(weights):  # a single node, which no pair joins
        return jnp.zeros(weights.shape[1:], weights.dtype)
    return jax.lax.dynamic_index_in_dim(weights, jnp.maximum(place - 1, 0), keepdims=False)


def _most(p: ChainPotentials) -> float:
    """The largest β_t(k) / c_t at which entries that were rounded to zero cannot show."""
    about = jnp.finfo(p.nodes.dtype)
    return float(about.eps) / float(about.tiny) / (8 * max(1, p.nodes.size) * p.nodes.shape[1])


def _exact(p: ChainPotentials) -> ChainSums:
    """The sums by logarithms, and their derivative by JAX: slower, and safe for log-potentials of any size."""
    log_z = lambda nodes, pairs: _log_z_by_logarithms(p._replace(nodes=nodes, pairs=pairs))  # noqa: E731
    value, (nodes, pairs) = jax.value_and_grad(log_z, (0, 1))(p.nodes, p.pairs)
    return ChainSums(value, nodes, pairs)


def filtered(p: ChainPotentials) -> Float[Array, "T K"]:
    """log P(y_t | what comes before and at t) of every node, up to a constant a node: what a sample is drawn from, from right to left."""
    trusted = _scaled(p)[0]
    f = _forward(p)
    messages = jnp.log(f.after * _inverse(f.scale)[:, None])
    return _unless(trusted, messages, lambda p: _by_logarithms(p)[1], p)


def _log_z_by_logarithms(p: ChainPotentials) -> Array:
    return _by_logarithms(p)[0]


def _by_logarithms(p: ChainPotentials) -> tuple[Array, Array]:
    """log Z, and the messages from left to right up to constants."""
    t, k = p.nodes.shape

    @jax.checkpoint
    def step(alpha: Array, x: Any) -> Any:
        e, joined, exists, place = x
        below = jax.vmap(log_sum_exp, in_axes=1)(alpha[:, None] + table_at(p.pairs, place))
        apart = jnp.broadcast_to(log_sum_exp(alpha), alpha.shape)
        after = go_on(alpha, below, apart, joined, exists) + e
        top = peak_of(after)
        return after - top, (top, after - top)

    start = jnp.where(jnp.arange(k) == 0, jnp.zeros((k,), p.nodes.dtype), -jnp.inf)
    alpha, (tops, messages) = jax.lax.scan(step, start, (p.nodes, p.joined, p.mask, jnp.arange(t)))
    return log_sum_exp(alpha) + jnp.sum(tops), messages


def table_at(pairs: Array, place: Array) -> Array:
    """The table of the pair that ends at a node."""
    if pairs.ndim == 2:
        return pairs
    if not len(pairs):  # a single node, which no pair joins
        return jnp.zeros(pairs.shape[1:], pairs.dtype)
    return jax.lax.dynamic_index_in_dim(pairs, jnp.maximum(place - 1, 0), keepdims=False)


def go_on(message: Array, below: Array, apart: Array, joined: Array, exists: Array | None) -> Array:
    """The message at the next node: from a pair, at the first node of a sequence, or the same across a masked node."""
    return jnp.where(joined, below, apart if exists is None else jnp.where(exists, apart, message))


def peak_of(x: Array, axis: int | None = None) -> Array:
    """The largest finite entry, 0 where there is none, as a constant: scales cancel."""
    top = jnp.max(x, axis, initial=-jnp.inf)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top)))
