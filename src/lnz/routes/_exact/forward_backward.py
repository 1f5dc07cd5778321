"""Exact sums over linear chains by the forward-backward algorithm."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.energy import Energy, Gradient
from lnz._core.estimate import Estimate, exact
from lnz._core.numerics import largest_size, log_sum_exp, peak_of, run_if_untrusted
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz._models.linear_chain import ChainPotentials, LinearChain
from lnz._models.random_field import RandomField
from lnz._models.structures import Chain
from lnz.routes._exact.chain_passes import both, both_apart, both_recomputed, forward, go_on, in_blocks
from lnz.routes._exact.enumeration import Enumeration
from lnz.routes._exact.vmap_last_axis import alone


class ChainSums(NamedTuple):
    """The results of one pass forward and one backward.

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
    """Exact log Z and marginals of a `LinearChain`, or a `RandomField` on a `Chain`, in O(T K²): one matrix product per node in each direction.

    Messages are probabilities, each divided by its sum, whose logarithm is kept: one exponential per entry where sums of logarithms need K.
    The error from rounding small numbers to zero is bounded from the messages themselves, for every sequence; where it could matter, the sum is
    computed again with logarithms. The whole gradient comes from the two passes, and can be differentiated again.

    Args:
        recompute: keep only the messages of every √T-th node, and recompute the others in the backward pass: half as much work again, and
            O(√T K + K²) of memory beside the log-potentials and their gradient, instead of five times their size
            (T = 100,000 and K = 50 in float32, where they take 20 MB each: 40 MB at the peak beside the log-potentials, and 119 MB
            otherwise). Where the sum needs logarithms it takes about the latter. It has no effect where every pair has a table of its own,
            since the gradient of those tables is far larger than all messages.

    Source: Rabiner 1989, "A tutorial on hidden Markov models".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.log(jnp.asarray([[1.0, 2.0], [3.0, 1.0]])), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.log_partition(chain, route=lnz.routes.ForwardBackward()).value)), 3)
        12.0
    """

    recompute: bool = False

    @property
    def structural(self) -> bool:
        return False

    def unsupported_reason(self, energy: Energy) -> str | None:
        on_chain = isinstance(energy, RandomField) and isinstance(energy.structure, Chain)
        return (
            None
            if on_chain or isinstance(energy, LinearChain)
            else "it is neither a LinearChain nor a RandomField on a Chain"
        )

    def cost(self, energy: Energy) -> float:
        return float(_chain(energy).space.categories)

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        p = _chain(energy).potentials()
        return _estimate(p, chain_log_z(p))

    def log_partition_and_mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> tuple[Estimate, Any]:
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
        p, pull_back = jax.vjp(lambda parameters: eqx.combine(parameters, constants).potentials()[:2], parameters)
        potentials = _chain(energy).potentials()._replace(nodes=p[0], pairs=p[1])
        sums = chain_sums(potentials, recompute=self.recompute)
        return _estimate(potentials, sums.log_z), pull_back((sums.nodes, sums.pairs))[0]

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        return self.log_partition_and_mean_gradient(energy)[1]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        """E[f] of any f is a sum over all labellings: by enumeration where they are few enough."""
        reason = Enumeration().unsupported_reason(energy)
        if reason is not None:
            raise ValueError(
                f"ForwardBackward gives log Z, its gradient, marginals and samples, but E[f] of any f needs all labellings, and {reason}: "
                "average f over lnz.exact_samples(chain, key, n)"
            )
        return Enumeration().expectation(energy, f, key)


def _chain(energy: Energy) -> LinearChain | RandomField:
    assert isinstance(energy, LinearChain | RandomField), f"ForwardBackward does not support {type(energy).__name__}"
    return energy


def _estimate(p: ChainPotentials, log_z: Array) -> Estimate:
    size = jnp.sum(largest_size(p.nodes, 1)) + jnp.sum(p.joined, dtype=log_z.dtype) * (4 + largest_size(p.pairs))
    rounding = 4 * jnp.finfo(log_z.dtype).eps * (8 + size)
    return exact(log_z, rounding=jax.lax.stop_gradient(rounding), route=f"forward-backward over {len(p.nodes)} nodes")


def chain_sums(p: ChainPotentials, *, recompute: bool = False) -> ChainSums:
    """log Z and the marginals of a chain. Differentiable any number of times, forwards and in reverse."""
    return _sums(recompute and p.pairs.ndim == 2 and len(p.nodes) > 1, *p)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sums(recompute: bool, nodes: Array, pairs: Array, joined: Array, mask: Array | None) -> ChainSums:
    p = ChainPotentials(nodes, pairs, joined, mask)
    trusted, found = _scaled(p, recompute)
    return run_if_untrusted(trusted, found, lambda _, p: _exact(p, recompute), p)


@_sums.defjvp
def _sums_jvp(recompute: bool, primals: Any, tangents: Any) -> tuple[ChainSums, ChainSums]:
    *tables, joined, mask = primals

    def by_logarithms(nodes: Array, pairs: Array) -> ChainSums:
        return _exact(ChainPotentials(nodes, pairs, joined, mask), recompute)

    return _sums(recompute, *primals), jax.jvp(by_logarithms, tuple(tables), tangents[:2])[1]


def chain_log_z(p: ChainPotentials) -> Array:
    """log Z alone: by the forward pass where the range of the pairs' log-potentials shows that it can be trusted, else by `chain_sums`.

    Where any label can follow any other, weights differ by a factor e^R at most, and β_t(k) / c_t by e^2R: see `_scaled`. No derivative.
    """
    log_z = alone(forward, *p).log_z
    spread = peak_of(p.pairs) - jnp.min(p.pairs, initial=jnp.inf)
    trusted = 2 * spread <= jnp.log(_most(p))
    return run_if_untrusted(trusted, log_z, lambda _, p: chain_sums(p).log_z, p)


def _scaled(p: ChainPotentials, recompute: bool) -> tuple[Array, ChainSums]:
    """Both passes with scaled probabilities, and whether they can be trusted.

    Messages, weights and emissions are at most 1. An entry that is rounded to zero at node t changes Z by a factor 1 - δ with δ at most the
    smallest positive number times β_t(k) / c_t, where Σ_k a_t(k) β_t(k) = 1. What β itself loses matters only where it hides such an entry: a path
    through two weights that are both rounded to zero is detected from neither side, so there must be none.
    """
    passes = both_recomputed if recompute else both_apart if p.pairs.ndim == 3 or p.nodes.shape[1] > 64 else both
    found = alone(passes, *p)
    least = jnp.min(jnp.where(p.pairs > -jnp.inf, p.pairs, jnp.inf), initial=jnp.inf)
    kept = peak_of(p.pairs) - least <= -math.log(jnp.finfo(p.pairs.dtype).tiny)
    return kept & (found.worst <= _most(p)) & (found.log_z > -jnp.inf), ChainSums(found.log_z, found.nodes, found.pairs)


def _most(p: ChainPotentials) -> float:
    """The largest β_t(k) / c_t at which entries that were rounded to zero do not matter."""
    about = jnp.finfo(p.nodes.dtype)
    return float(about.eps) / float(about.tiny) / (8 * max(1, p.nodes.size) * p.nodes.shape[1])


def _exact(p: ChainPotentials, recompute: bool) -> ChainSums:
    """The sums by logarithms, and their derivative by JAX: slower, and safe for log-potentials of any size."""

    def log_z(nodes: Array, pairs: Array) -> Array:
        return _log_z_by_logarithms(p._replace(nodes=nodes, pairs=pairs), recompute)

    value, (nodes, pairs) = jax.value_and_grad(log_z, (0, 1))(p.nodes, p.pairs)
    exists = p.mask if p.mask is None else p.mask[:, None]
    return ChainSums(value, nodes if exists is None else jnp.where(exists, nodes, 0), pairs)


def filtered(p: ChainPotentials) -> Float[Array, "T K"]:
    """log P(y_t | what comes before and at t) of every node, up to a constant per node: samples are drawn from them, from right to left."""
    trusted = _scaled(p, False)[0]
    messages = jnp.log(alone(forward, *p).messages)
    return run_if_untrusted(trusted, messages, lambda _, p: _by_logarithms(p)[1], p)


def _log_z_by_logarithms(p: ChainPotentials, recompute: bool) -> Array:
    if not recompute:
        return _by_logarithms(p)[0]
    t, k = p.nodes.shape
    rows = p.nodes, p.joined, jnp.ones((t,), bool) if p.mask is None else p.mask, jnp.arange(t)
    block = jax.checkpoint(lambda alpha, rows: _log_steps(p.pairs, alpha, rows))

    def step(alpha: Array, rows: Any) -> tuple[Array, Array]:
        alpha, (tops, _) = block(alpha, rows)
        return alpha, jnp.sum(tops)

    alpha, tops = jax.lax.scan(step, _log_start(k, p.nodes.dtype), in_blocks(rows))
    return log_sum_exp(alpha) + jnp.sum(tops)


def _by_logarithms(p: ChainPotentials) -> tuple[Array, Array]:
    """log Z, and the messages from left to right up to constants."""
    t, k = p.nodes.shape
    rows = p.nodes, p.joined, p.mask, jnp.arange(t)
    alpha, (tops, messages) = _log_steps(p.pairs, _log_start(k, p.nodes.dtype), rows)
    return log_sum_exp(alpha) + jnp.sum(tops), messages


def _log_start(k: int, dtype: Any) -> Array:
    return jnp.where(jnp.arange(k) == 0, jnp.zeros((k,), dtype), -jnp.inf)


def _log_steps(pairs: Array, alpha: Array, rows: Any) -> tuple[Array, tuple[Array, Array]]:
    @jax.checkpoint
    def step(alpha: Array, x: Any) -> Any:
        e, joined, exists, place = x
        below = jax.vmap(log_sum_exp, in_axes=1)(alpha[:, None] + table_at(pairs, place))
        apart = jnp.broadcast_to(log_sum_exp(alpha), alpha.shape)
        after = go_on(alpha, below, apart, joined, exists) + e
        top = peak_of(after)
        return after - top, (top, after - top)

    return jax.lax.scan(step, alpha, rows)


def table_at(pairs: Array, place: Array) -> Array:
    """The table of the pair that ends at a node."""
    if pairs.ndim == 2:
        return pairs
    if not len(pairs):  # a single node, which no pair joins
        return jnp.zeros(pairs.shape[1:], pairs.dtype)
    return jax.lax.dynamic_index_in_dim(pairs, jnp.maximum(place - 1, 0), keepdims=False)
