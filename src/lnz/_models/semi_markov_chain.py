"""Semi-Markov chains: log-potentials of whole segments of a sequence, and of the labels of consecutive segments."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lnz._core.energy import Energy, widen
from lnz._core.given import given_array
from lnz._core.spaces import ArrayLike, Categorical, State
from lnz._models.linear_chain import existing
from lnz._models.log_potentials import check_log_potentials, floats


class SegmentPotentials(NamedTuple):
    """The log-potentials that the sum over segmentations needs, in the widest float; -inf where impossible."""

    segments: Float[Array, "T L K"]
    transitions: Float[Array, "K K"]
    start: Float[Array, " K"]
    end: Float[Array, " K"]
    length: Int[Array, ""]


class SemiMarkovChain(Energy):
    """A semi-Markov conditional random field: a sequence cut into segments, each with a label and a duration of at most L nodes,

        E(y) = -[start(k_1) + Σ_i segment(t_i, d_i, k_i) + Σ_i transition(k_{i-1}, k_i) + end(k_n)],

    where segment i ends at node t_i. The log-potentials come from any network of the input. ∂log Z/∂segments are the marginals of the
    segments: P(a segment of that duration and label ends at that node) (T1). log Z, its gradient, the most probable segmentation and exact
    samples take O(T K (L + K)). A batch goes through `jax.vmap` of a function that builds the chain.

    A segmentation is an array of T integers: 0 at nodes where no segment ends, and 1 + (d - 1) K + k where one of duration d and label k
    ends; padding has 0. `encode` and `decode` convert from and to durations and labels. Any other array has energy +inf.

    Args:
        segments: log-potentials in nats of the segment that ends at node t, of duration 1 … L, with each label: shape (T, L, K). Entries of
            segments that would begin before node 0, or end in the padding, are not used.
        transitions: log-potentials of the labels of two consecutive segments, `[from, to]`, shape (K, K).
        lengths: the number of nodes that exist, at most T; the rest is padding.
        start, end: log-potentials of the label of the first and the last segment, shape (K,).

    Raises:
        ValueError: if shapes do not match, the length is negative or above T, or a log-potential in use is NaN or +inf. An invalid length
            that is traced makes log Z NaN.

    Source: Sarawagi, Cohen 2004, "Semi-Markov conditional random fields for information extraction".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.SemiMarkovChain(jnp.zeros((3, 2, 1)), jnp.zeros((1, 1)))  # 3 nodes in segments of 1 or 2: 1+1+1, 1+2, 2+1
        >>> round(float(jnp.exp(lnz.log_partition(chain).value)), 4)
        3.0
        >>> chain.encode([2, 1], [0, 0]).tolist()
        [0, 2, 1]
    """

    segments: Float[Array, "T L K"]
    transitions: Float[Array, "K K"]
    start: Float[Array, " K"] | None
    end: Float[Array, " K"] | None
    mask: Array | None

    def __init__(
        self,
        segments: ArrayLike,
        transitions: ArrayLike,
        lengths: ArrayLike = None,
        *,
        start: ArrayLike = None,
        end: ArrayLike = None,
    ):
        segments = floats(segments)
        transitions = floats(transitions)
        if segments.ndim != 3 or 0 in segments.shape[1:]:
            raise ValueError(
                f"the segments of one sequence must have shape (T, L, K), but got {segments.shape}: a batch goes through jax.vmap of a function "
                "that builds the chain"
            )
        t, durations, k = segments.shape
        sides = [None if side is None else floats(side) for side in (start, end)]
        wanted = [("transitions", transitions, (k, k)), ("start", sides[0], (k,)), ("end", sides[1], (k,))]
        for name, values, shape in wanted:
            if values is not None and values.shape != shape:
                raise ValueError(f"{name} of {k} labels must have shape {shape}, but got {values.shape}")
        self.mask, valid = existing(t, lengths, None)
        possible = np.arange(durations) <= np.arange(t)[:, None]
        there = jnp.asarray(possible) if self.mask is None else possible & self.mask[:, None]
        segments = jnp.where(there[..., None], segments, jnp.zeros_like(segments))
        for name, values, _ in [("segments", segments, ()), *wanted]:
            check_log_potentials(name, values)
        self.segments = segments if valid is None else jnp.where(valid, segments, jnp.full_like(segments, jnp.nan))
        self.transitions = transitions
        self.start, self.end = sides

    @property
    def space(self) -> Categorical:
        t, durations, k = self.segments.shape
        return Categorical(t, durations * k + 1)

    def potentials(self) -> SegmentPotentials:
        """Everything in the widest float, with the length."""
        chain: SemiMarkovChain = widen(self)
        t, _, k = chain.segments.shape
        length = jnp.asarray(t, jnp.int32) if chain.mask is None else jnp.sum(chain.mask, dtype=jnp.int32)
        start, end = (jnp.zeros((k,), chain.segments.dtype) if s is None else s for s in (chain.start, chain.end))
        return SegmentPotentials(chain.segments, chain.transitions, start, end, length)

    def __call__(self, x: State) -> Array:
        p, codes = self.potentials(), jnp.asarray(x).astype(jnp.int32)
        t, durations, k = p.segments.shape
        ends, places = codes > 0, np.arange(t, dtype=np.int32)
        duration, label = jnp.maximum(codes - 1, 0) // k, jnp.maximum(codes - 1, 0) % k  # the duration less 1
        latest = jax.lax.cummax(jnp.where(ends, places, -1))
        before = jnp.concatenate([jnp.full((min(t, 1),), -1, jnp.int32), latest[:-1]])
        fits = jnp.where(ends, (places - duration - 1 == before) & (codes <= durations * k), True)
        fits = jnp.all(fits & ((codes == 0) | (places < p.length))) & (jnp.max(latest, initial=-1) == p.length - 1)
        joint = jnp.where(before < 0, p.start[label], p.transitions[label[jnp.maximum(before, 0)], label])
        total = p.segments[places, jnp.minimum(duration, durations - 1), label] + joint
        total = total + jnp.where(places == p.length - 1, p.end[label], 0)
        return jnp.where(fits & jnp.all(codes >= 0), -jnp.sum(jnp.where(ends, total, 0)), jnp.inf)

    def encode(self, durations: ArrayLike, labels: ArrayLike) -> Int[np.ndarray, " T"]:
        """The state of segments in order, by their durations and labels.

        Raises:
            ValueError: if their numbers differ, one is out of range, or the durations do not add up to the length.
        """
        t, longest, k = self.segments.shape
        d = np.asarray(given_array(durations, "durations"), int).reshape(-1)
        kinds = np.asarray(given_array(labels, "labels"), int).reshape(-1)
        length = int(self.potentials().length)
        if len(d) != len(kinds) or not ((d >= 1) & (d <= longest)).all() or not ((kinds >= 0) & (kinds < k)).all():
            raise ValueError(f"every segment needs a duration from 1 to {longest} and a label from 0 to {k - 1}")
        if d.sum() != length:
            raise ValueError(f"the durations add up to {d.sum()}, but the sequence has {length} nodes")
        codes = np.zeros(t, np.int32)
        codes[np.cumsum(d) - 1] = 1 + (d - 1) * k + kinds
        return codes

    def decode(self, state: Any) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """The durations and labels of a state's segments, in order."""
        codes, k = np.asarray(state), self.segments.shape[2]
        found = codes[codes > 0] - 1
        return found // k + 1, found % k
