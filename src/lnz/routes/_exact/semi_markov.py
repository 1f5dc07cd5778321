"""Exact sums, the most probable segmentation and exact samples of semi-Markov chains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.energy import Energy, Gradient
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import is_traced
from lnz._core.numerics import largest_size, log_sum_exp, peak_of
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz._models.semi_markov_chain import SegmentPotentials, SemiMarkovChain
from lnz.routes._exact.chain_paths import drawn
from lnz.routes._exact.structural import Structured


@dataclasses.dataclass(frozen=True)
class SemiMarkov(Structured):
    """Exact log Z and segment marginals of a `SemiMarkovChain`, in O(T K (L + K)), with logarithms:

        α_t(k) = log Σ_d exp[segment(t, d, k) + γ_{t-d}(k)],    γ_t(k) = log Σ_j exp[α_t(j) + transition(j, k)].

    The gradient goes back through the same loop, and can be differentiated again.

    Source: Sarawagi, Cohen 2004, "Semi-Markov conditional random fields for information extraction".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.SemiMarkovChain(jnp.zeros((4, 3, 2)), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.log_partition(chain, route=lnz.routes.SemiMarkov()).value)))
        52
    """

    @property
    def structural(self) -> bool:
        return False

    def misfit(self, energy: Energy) -> str | None:
        return None if isinstance(energy, SemiMarkovChain) else "it is not a SemiMarkovChain"

    def cost(self, energy: Energy) -> float:
        durations, k = _chain(energy).segments.shape[1:]
        return float(durations + k)

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        p = _chain(energy).potentials()
        return _estimate(p, _log_z(p))

    def log_partition_and_mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> tuple[Estimate, Any]:
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

        def value(parameters: Any) -> tuple[Array, SegmentPotentials]:
            p = eqx.combine(parameters, constants).potentials()
            return _log_z(p), p

        (log_z, p), gradient = jax.value_and_grad(value, has_aux=True)(parameters)
        return _estimate(p, log_z), gradient

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        return self.log_partition_and_mean_gradient(energy)[1]

    def map_state(self, energy: SemiMarkovChain) -> State:
        """The most probable segmentation; also under jit and vmap."""
        codes, log_weight = _best(energy)
        _check_possible(log_weight)
        return codes

    def sample(self, energy: SemiMarkovChain, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples, shape (n, T); also under jit and vmap."""
        codes, log_z = _samples(energy, key, n)
        _check_possible(log_z)
        return codes

    def n_best(self, energy: SemiMarkovChain, n: int) -> Any:
        raise ValueError(
            "the n best segmentations of a SemiMarkovChain are not supported: use lnz.map_state for the best one, or lnz.exact_samples"
        )


def _check_possible(log_z: Array) -> None:
    if not is_traced(log_z) and log_z == -jnp.inf:
        raise ValueError("no segmentation is possible: Z = 0. Check durations and -inf entries against the length")


def _chain(energy: Energy) -> SemiMarkovChain:
    assert isinstance(energy, SemiMarkovChain), f"SemiMarkov does not support {type(energy).__name__}"
    return energy


def _estimate(p: SegmentPotentials, log_z: Array) -> Estimate:
    size = jnp.sum(largest_size(p.segments, (1, 2))) + len(p.segments) * (4 + largest_size(p.transitions))
    rounding = 4 * jnp.finfo(log_z.dtype).eps * (8 + size)
    return exact(log_z, rounding=jax.lax.stop_gradient(rounding), route=f"segments that end at {len(p.segments)} nodes")


def _log_z(p: SegmentPotentials) -> Array:
    last, top, _ = _ends(p, log_sum_exp)
    return jnp.where(p.length > 0, log_sum_exp(last + p.end) + top, 0)


def _ends(p: SegmentPotentials, fold: Callable[..., Array]) -> tuple[Array, Array, Float[Array, "T L K"]]:
    """α of the last node and the scale it is relative to, and the weights of all segments given the labels before them.

    `fold` adds up weights: log_sum_exp, or the maximum. The last L values of γ are kept in a moving table; all is relative to its largest entry.
    """
    t, durations, k = p.segments.shape

    @jax.checkpoint
    def step(state: Any, x: Any) -> Any:
        before, last, total = state
        segment, place = x
        exists = place < p.length
        weights = segment + before
        alpha = fold(weights, 0)
        gamma = fold(alpha[:, None] + p.transitions, 0)
        moved = jnp.concatenate([gamma[None], before[:-1]])
        top = peak_of(moved)
        after = jnp.where(exists, moved - top, before), jnp.where(exists, alpha - top, last)
        return (*after, total + jnp.where(exists, top, 0)), weights

    start = jnp.full((durations, k), -jnp.inf, p.segments.dtype).at[0].set(p.start)
    state = start, jnp.full((k,), -jnp.inf, p.segments.dtype), jnp.zeros((), p.segments.dtype)
    (_, last, total), weights = jax.lax.scan(step, state, (p.segments, jnp.arange(t, dtype=jnp.int32)))
    return last, total, weights


def _walk_back(p: SegmentPotentials, weights: Array, pick: Callable[..., Array], noise: Any) -> Int[Array, " T"]:
    """Segments from right to left, each picked from its weights and the segment after it."""
    t, _, k = p.segments.shape

    def step(state: tuple[Array, Array], x: Any) -> Any:
        end, after = state
        weights, place, noise = x
        found = pick((weights + after[None]).reshape(-1), noise)
        here = place == end
        before = jnp.where(here, place - found // k - 1, end)
        return (before, jnp.where(here, p.transitions[:, found % k], after)), jnp.where(here, found + 1, 0)

    rows = weights, jnp.arange(t, dtype=jnp.int32), noise
    return jax.lax.scan(step, (p.length - 1, p.end), rows, reverse=True)[1]


@jax.jit
def _best(chain: SemiMarkovChain) -> tuple[Array, Array]:
    p = chain.potentials()
    last, _, weights = _ends(p, jnp.max)
    codes = _walk_back(p, weights, lambda logits, _: jnp.argmax(logits).astype(jnp.int32), None)
    return codes, jnp.where(p.length > 0, jnp.max(last + p.end), 0)


@functools.partial(jax.jit, static_argnums=2)
def _samples(chain: SemiMarkovChain, key: PRNGKeyArray, n: int) -> tuple[Array, Array]:
    p = chain.potentials()
    last, _, weights = _ends(p, log_sum_exp)
    uniforms = jax.random.uniform(fast_key(key), (n, len(weights)), weights.dtype)
    codes = jax.vmap(lambda u: _walk_back(p, weights, drawn, u))(uniforms)
    return codes, jnp.where(p.length > 0, log_sum_exp(last + p.end), 0)
