"""Linear-chain conditional random fields: log-potentials over a sequence of labels, from any network."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lnz._core.capabilities import Factored
from lnz._core.energy import widen
from lnz._core.frozen import is_traced
from lnz._core.given import given_array
from lnz._core.spaces import ArrayLike, Categorical, State
from lnz._models.factor_graph import FactorGraph, packed
from lnz._models.log_potentials import booleans, check_labels, check_log_potentials, floats, wide_integers

Holes = Literal["link", "cut"]


class ChainPotentials(NamedTuple):
    """The log-potentials that the sum over a chain needs: start and end are added to `nodes`, and rows that do not count are 0.

    Attributes:
        nodes: log-potentials of the labels, 0 at masked nodes.
        pairs: log-potentials of label pairs `[from, to]`; one table for all, or table t - 1 for the pair that ends at node t.
        joined: whether a pair joins a node to the one before it.
        mask: whether a node exists; None where all do.
    """

    nodes: Float[Array, "T K"]
    pairs: Float[Array, "K K"] | Float[Array, "T-1 K K"]
    joined: Bool[Array, " T"]
    mask: Bool[Array, " T"] | None


class LinearChain(Factored):
    """A linear-chain conditional random field over labels y of a sequence, given its log-potentials:

        E(y) = -[start(y_1) + Σ_t emission_t(y_t) + Σ_t transition(y_{t-1}, y_t) + end(y_T)].

    The log-potentials come from any network of the input; ∂log Z/∂log-potentials are the marginals (T1). One chain is one sequence: a batch
    goes through `jax.vmap` of a function that builds the chain, so that shared transitions stay shared (see the example).

    Nodes can be masked, holes included. A masked node has the single label 0, with log-potential 0, and its emissions (NaN, -100) are never
    used. With `holes="link"` a hole is skipped: its neighbours follow one another (with the table of the later one, where tables differ).
    With `holes="cut"` each run of nodes is a sequence of its own, with start and end. If no node exists, log Z = 0.

    Args:
        emissions: log-potentials of every label at every node, in nats, shape (T, K).
        transitions: log-potentials of label pairs `[from, to]`: one table (K, K) for all, or one per pair (T-1, K, K).
        lengths: the number of nodes that exist, at most T; the rest is padding.
        start, end: log-potentials of the first and the last label, shape (K,).
        mask: which nodes exist, booleans of shape (T,).
        holes: what a masked node between others does: "link" or "cut".
        allowed: which labels are possible at every node, booleans of shape (T, K).
        allowed_transitions: which label pairs are possible, booleans of shape (K, K) or (T-1, K, K).
        allowed_start, allowed_end: which first and last labels are possible, booleans of shape (K,).

    Raises:
        ValueError: if shapes do not match, lengths are negative or above T, or a log-potential in use is NaN or +inf. An invalid length
            that is traced makes log Z NaN.

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.zeros((3, 2)), jnp.zeros((2, 2)))
        >>> round(float(jnp.exp(lnz.log_partition(chain).value)), 4)
        8.0
        >>> batch, transitions, lengths = jnp.zeros((5, 3, 2)), jnp.zeros((2, 2)), jnp.asarray([3, 0, 1, 2, 3])
        >>> def log_z(emissions, n):
        ...     return lnz.log_partition(lnz.LinearChain(emissions, transitions, n)).value
        >>> jax.vmap(log_z)(batch, lengths).round(2).tolist()
        [2.0799999237060547, 0.0, 0.6899999976158142, 1.3899999856948853, 2.0799999237060547]
    """

    emissions: Float[Array, "T K"]
    transitions: Float[Array, "K K"] | Float[Array, "T-1 K K"]
    start: Float[Array, " K"] | None
    end: Float[Array, " K"] | None
    mask: Bool[Array, " T"] | None
    holes: Holes = eqx.field(static=True)

    def __init__(
        self,
        emissions: ArrayLike,
        transitions: ArrayLike,
        lengths: ArrayLike = None,
        *,
        start: ArrayLike = None,
        end: ArrayLike = None,
        mask: ArrayLike = None,
        holes: Holes = "link",
        allowed: ArrayLike = None,
        allowed_transitions: ArrayLike = None,
        allowed_start: ArrayLike = None,
        allowed_end: ArrayLike = None,
    ):
        emissions = floats(emissions)
        transitions = floats(transitions)
        if emissions.ndim != 2 or not emissions.shape[1]:
            raise ValueError(
                f"the emissions of one sequence must have shape (T, K), but got {emissions.shape}: a batch goes through jax.vmap of a function "
                "that builds the chain"
            )
        t, k = emissions.shape
        if transitions.shape not in ((k, k), (max(t - 1, 0), k, k)):
            raise ValueError(
                f"transitions between {k} labels must have shape ({k}, {k}), or ({max(t - 1, 0)}, {k}, {k}) where every pair has its own, but "
                f"got {transitions.shape}"
            )
        if holes not in ("link", "cut"):
            raise ValueError(f'holes must be "link" or "cut", but is {holes!r}')
        self.holes = holes
        self.mask, valid = existing(t, lengths, mask)
        emissions = _masked("allowed", emissions, allowed)
        transitions = _masked("allowed_transitions", transitions, allowed_transitions)
        self.start = side_potentials("start", start, allowed_start, emissions)
        self.end = side_potentials("end", end, allowed_end, emissions)
        if self.mask is not None:
            emissions = jnp.where(self.mask[:, None], emissions, jnp.zeros_like(emissions))
            if transitions.ndim == 3 and t > 0:
                used = self._runs()[2][1:]
                transitions = jnp.where(used[:, None, None], transitions, jnp.zeros_like(transitions))
        for name, values in (
            ("emissions", emissions),
            ("transitions", transitions),
            ("start", self.start),
            ("end", self.end),
        ):
            check_log_potentials(name, values)
        self.emissions = emissions if valid is None else jnp.where(valid, emissions, jnp.full_like(emissions, jnp.nan))
        self.transitions = transitions

    @property
    def space(self) -> Categorical:
        return Categorical(*self.emissions.shape)

    def potentials(self) -> ChainPotentials:
        """Everything in the widest float, start and end added to the emissions that they belong to."""
        chain: LinearChain = widen(self)
        nodes = chain.emissions
        if chain.mask is not None:
            nodes = jnp.where(chain.mask[:, None], nodes, jnp.zeros_like(nodes))
        first, last, joined = chain._runs()
        for where, side in ((first, chain.start), (last, chain.end)):
            if side is not None:
                nodes = nodes + jnp.where(jnp.asarray(where)[:, None], side[None], jnp.zeros_like(nodes))
        return ChainPotentials(nodes, chain.transitions, jnp.asarray(joined), chain.mask)

    def __call__(self, x: State) -> Array:
        nodes, joints = self.scores(x)
        masked = jnp.zeros((), bool) if self.mask is None else jnp.any(~self.mask & (jnp.asarray(x) != 0))
        return jnp.where(masked, jnp.inf, -jnp.sum(nodes) - jnp.sum(joints))

    def scores(self, labels: ArrayLike) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
        """The log-potentials of a labelling: of every node, and of every pair, at the node where it ends. NaN for labels outside 0 … K-1.

        The labels of masked nodes are not used.
        """
        p, labels = self.potentials(), jnp.asarray(labels).astype(jnp.int32)
        t, k = p.nodes.shape
        valid = (labels >= 0) & (labels < k)
        places = np.arange(t, dtype=np.int32)
        if p.mask is not None:
            valid |= ~p.mask
            before = jax.lax.cummax(jnp.where(p.mask, places, 0))
        else:
            before = jnp.asarray(places)
        before = jnp.concatenate([jnp.zeros((min(t, 1),), jnp.int32), before[:-1]])
        labels = jnp.where(valid if p.mask is None else valid & p.mask, labels, 0)
        zero = jnp.zeros((t,), p.nodes.dtype)
        here = jnp.where(valid, p.nodes[places, labels], jnp.nan)
        pair = zero
        if p.pairs.ndim == 2:
            pair = p.pairs[labels[before], labels]
        elif t > 1:
            pair = p.pairs[np.maximum(places - 1, 0), labels[before], labels]
        return here, jnp.where(p.joined, pair, zero)

    def checked(self, labels: ArrayLike) -> Int[Array, " T"]:
        """The labels, if their shape is right and those of nodes that exist are in range (unless traced); otherwise ValueError."""
        labels = jnp.asarray(given_array(labels, "labels"))
        t, k = self.emissions.shape
        if labels.shape != (t,) or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"the labels of one sequence must be {t} integers, but got {labels.dtype} of shape {labels.shape}"
            )
        labels = wide_integers(labels)
        check_labels(labels, k, self.mask)
        return labels

    def relative(self, labels: Int[Array, " T"]) -> tuple[LinearChain, Array]:
        """The chain minus the score of a labelling, so that log Z becomes -log P(y|x) at full precision; and whether the labelling is impossible."""
        scores = sum(self.scores(labels))
        forbidden = scores == -jnp.inf
        chain: LinearChain = widen(self)
        level = chain.emissions - jnp.where(forbidden, 0, scores)[:, None]
        return eqx.tree_at(lambda c: c.emissions, chain, level), jnp.any(forbidden)

    def factors(self) -> FactorGraph:
        """One table per node and one per pair of neighbours (the same for all pairs, where transitions are shared). The mask must be known."""
        if is_traced(self.mask):
            raise ValueError(
                "the factors of a chain depend on its mask, which is being traced: build them outside jit and vmap, or sum the chain by "
                "lnz.routes.ForwardBackward()"
            )
        p, (t, k) = self.potentials(), self.emissions.shape
        nodes, exists = p.nodes, np.ones(t, bool) if self.mask is None else np.asarray(self.mask)
        if not exists.all():
            alone = jnp.asarray(np.where(np.arange(k) == 0, 0, -np.inf), nodes.dtype)[None]
            nodes = jnp.where(exists[:, None], nodes, alone)
        places = np.flatnonzero(exists)
        joined = [(int(i), int(j)) for i, j in itertools.pairwise(places) if self.holes == "link" or j == i + 1]
        shared = p.pairs.ndim == 2
        scopes = [(i,) for i in range(t)] + joined
        table_of = [*range(t), *(t if shared else t + j - 1 for _, j in joined)]
        shapes = [(k,)] * t + [(k, k)] * (1 if shared else len(p.pairs))
        return packed([k] * t, scopes, table_of, shapes, jnp.concatenate([nodes.reshape(-1), p.pairs.reshape(-1)]))

    def _runs(self) -> tuple[Any, Any, Any]:
        """Which nodes are the first of their sequence, which are the last, and which follow another: booleans (T,)."""
        if self.mask is None:
            places = np.arange(len(self.emissions))
            return places == 0, places == len(places) - 1, places > 0
        if self.holes == "link":
            count = jnp.cumsum(self.mask, dtype=jnp.int32)
            first, last = self.mask & (count == 1), self.mask & (count == count[-1:])
        else:
            none = jnp.zeros((min(len(self.mask), 1),), bool)
            first = self.mask & ~jnp.concatenate([none, self.mask[:-1]])
            last = self.mask & ~jnp.concatenate([self.mask[1:], none])
        return first, last, self.mask & ~first


def existing(t: int, lengths: Any, mask: Any) -> tuple[Array | None, Array | None]:
    """The mask from lengths and mask, and whether a traced length is in range (None for a known one)."""
    valid = None
    if mask is not None:
        mask = booleans("mask", mask, (t,))
    if lengths is not None:
        lengths = jnp.asarray(lengths)
        if lengths.ndim or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(
                f"the length of one sequence must be one integer, but got {lengths.dtype} of shape {lengths.shape}: a batch goes through "
                "jax.vmap of a function that builds the chain"
            )
        if not is_traced(lengths) and not 0 <= int(lengths) <= t:
            raise ValueError(f"a length must be in [0, {t}], the number of nodes of the array, but is {int(lengths)}")
        lengths = wide_integers(lengths)
        valid = (lengths >= 0) & (lengths <= t) if is_traced(lengths) else None
        within = jnp.arange(t, dtype=lengths.dtype) < lengths
        mask = within if mask is None else mask & within
        if valid is not None:
            mask = mask | ~valid
    return mask, valid


def _masked(name: str, values: Array, allowed: Any) -> Array:
    if allowed is None:
        return values
    allowed = jnp.asarray(allowed)
    whole = values.shape if allowed.ndim <= values.ndim else (*allowed.shape[:-2], *values.shape)
    shape = whole[-allowed.ndim :] if allowed.ndim == 2 else whole
    allowed = jnp.broadcast_to(booleans(name, allowed, shape), whole)
    return jnp.where(allowed, jnp.broadcast_to(values, whole), jnp.asarray(-jnp.inf, values.dtype))


def side_potentials(name: str, values: Any, allowed: Any, emissions: Array) -> Array | None:
    if values is None and allowed is None:
        return None
    k = emissions.shape[1]
    values = jnp.zeros((k,), emissions.dtype) if values is None else floats(values)
    if values.shape != (k,):
        raise ValueError(f"{name} needs one log-potential per label, shape ({k},), but got {values.shape}")
    return _masked(f"allowed_{name}", values, allowed)
