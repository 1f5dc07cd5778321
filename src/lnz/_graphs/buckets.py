"""Weighted mini-buckets in NumPy: elimination in tables of bounded size, with costs and weights optimised until the bound converges.

A `BucketTree` is the fixed structure: which tables each mini-bucket multiplies. A `BucketSplit` is how a bucket that is too wide is divided among
its mini-buckets.
Any split gives a bound: with Σ_r w_r = 1 in every bucket, Σ_x Π_r f_r ≤ Π_r (Σ_x f_r^{1/w_r})^{w_r} for w > 0, and ≥ where exactly one w > 0.
`forward` computes it, `backward` its derivative, and `tighten` optimises the split.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lnz._graphs.broadcast import Fit, fit
from lnz._graphs.contraction_plan import Scope

EPS = float(np.finfo(float).eps)
STEP = 2.0  # step size of the weights, per nat of difference in conditional entropies
LEAST = 1e-3  # the smallest weight of a mini-bucket
TINY = 1e-300  # smaller beliefs do not affect the shifts


class Cluster(NamedTuple):
    """A mini-bucket: its variables, the one summed out here first, and what is multiplied in it.

    Attributes:
        scope, shape: its variables in the order of elimination.
        leaves, messages: tables of the model and mini-buckets below, each with its fit.
        shared: the fit of the variables that all mini-buckets of its variable have.
    """

    scope: Scope
    shape: tuple[int, ...]
    leaves: list[tuple[int, Fit]]
    messages: list[tuple[int, Fit]]
    shared: Fit | None


@dataclasses.dataclass(frozen=True)
class BucketTree:
    """The tables of every mini-bucket, along an order of elimination.

    Attributes:
        turns: for every table the order of its axes in which its variables are eliminated.
        clusters: the mini-buckets, in the order in which they are computed.
        buckets: for every variable, in order, the numbers of its mini-buckets.
        constants: the tables without a variable.
    """

    turns: list[tuple[int, ...]]
    clusters: list[Cluster]
    buckets: list[list[int]]
    constants: list[int]

    @functools.cached_property
    def entries(self) -> int:
        """The number of entries of all clusters' tables."""
        return sum(math.prod(c.shape) for c in self.clusters)

    @functools.cached_property
    def is_split(self) -> bool:
        """Whether some bucket has several parts; otherwise the bound is log Z."""
        return any(len(bucket) > 1 for bucket in self.buckets)

    def arranged(self, tables: Sequence[np.ndarray]) -> BucketPotentials:
        """Log-potentials prepared for `forward`, from one table per scope."""
        turned = [np.ascontiguousarray(t.transpose(turn)) for t, turn in zip(tables, self.turns, strict=True)]
        return BucketPotentials(turned, any((table == -np.inf).any() for table in turned))

    def even(self, *, upper: bool) -> BucketSplit:
        """The split with equal weights and no shifts, for an upper or a lower bound."""
        weights = np.ones(len(self.clusters))
        for bucket in self.buckets:
            m = len(bucket)
            if m > 1:
                weights[bucket] = 1 / m if upper else [m] + [-1] * (m - 1)
        return BucketSplit(upper, weights, [0.0] * len(self.clusters))


class BucketPotentials(NamedTuple):
    """Log-potentials, their axes in the order of elimination, and whether any of them is -inf."""

    tables: list[np.ndarray]
    hard: bool


class BucketSplit(NamedTuple):
    """How every bucket is divided among its mini-buckets.

    Attributes:
        upper: whether the bound is an upper one.
        weights: of the clusters.
        shifts: what is added to each cluster over the variables that its bucket's parts share; they sum to 0.
    """

    upper: bool
    weights: np.ndarray
    shifts: list[Any]


class BucketForward(NamedTuple):
    """A pass from the first variable to the last.

    Attributes:
        value: the bound, with the allowance for rounding on the safe side.
        rounding: that allowance.
        split: the split at which it was computed.
        messages: the message of every cluster, its largest entry 0.
        shares: of the entries that were summed into each entry of a message.
        spreads: the entropies of these shares, where the bucket is split.
    """

    value: float
    rounding: float
    split: BucketSplit
    messages: list[Any]
    shares: list[Any]
    spreads: list[Any]


class BucketBackward(NamedTuple):
    """A pass back: the derivative of the bound by every table, and what helps to find a better split.

    Attributes:
        beliefs: the derivative at a fixed split.
        entropies: the entropy of each cluster's variable given its others.
        above: the incoming message from above of every cluster, as log-potentials.
    """

    beliefs: list[np.ndarray]
    entropies: np.ndarray
    above: list[Any]


class Tightened(NamedTuple):
    """The result of the sweeps: the best bound and its split, its last change, whether it converged, the sweeps, and the last rounding error."""

    value: float
    split: BucketSplit
    change: float
    still: bool
    sweeps: int
    rounding: float


def bucket_tree(
    sizes: Sequence[int],
    scopes: Sequence[Scope],
    order: Sequence[int],
    *,
    entries: float,
    variables: int | None = None,
) -> BucketTree:
    """Mini-buckets of at most `entries` entries and `variables` variables, along an order; a larger table is a mini-bucket of its own."""
    rank = {v: r for r, v in enumerate(order)}
    turns = [tuple(sorted(range(len(s)), key=lambda a, s=s: rank[s[a]])) for s in scopes]
    waiting: dict[int, list[_Member]] = {v: [] for v in order}
    for f, (scope, turn) in enumerate(zip(scopes, turns, strict=True)):
        if scope:
            waiting[scope[turn[0]]].append(_Member(True, f, tuple(scope[a] for a in turn)))
    clusters: list[Cluster] = []
    buckets: list[list[int]] = []
    for v in order:
        groups = _grouped(waiting.pop(v), sizes, entries, variables)
        unions = [set().union(*(member.scope for member in group)) for group in groups]
        common = set.intersection(*unions) if len(groups) > 1 else set()
        buckets.append([])
        for group, union in zip(groups, unions, strict=True):
            scope = tuple(sorted(union, key=rank.__getitem__))
            fits = [(member, fit(member.scope, scope, sizes)) for member in group]
            cluster = Cluster(
                scope,
                tuple(sizes[u] for u in scope),
                [(member.number, place) for member, place in fits if member.is_leaf],
                [(member.number, place) for member, place in fits if not member.is_leaf],
                fit([u for u in scope if u in common], scope, sizes) if common else None,
            )
            if len(scope) > 1:
                waiting[scope[1]].append(_Member(False, len(clusters), scope[1:]))
            buckets[-1].append(len(clusters))
            clusters.append(cluster)
    return BucketTree(turns, clusters, buckets, [f for f, scope in enumerate(scopes) if not scope])


class _Member(NamedTuple):
    """A table of the model or a message, its number among them, and its variables in the order of elimination."""

    is_leaf: bool
    number: int
    scope: Scope


def _grouped(
    members: list[_Member], sizes: Sequence[int], entries: float, variables: int | None
) -> list[list[_Member]]:
    """Mini-buckets: the widest tables first, each into the first bucket that it fits."""
    groups: list[tuple[set[int], list[_Member]]] = []
    for member in sorted(members, key=lambda m: -len(m.scope)):
        for held, group in groups:
            wider = held.union(member.scope)
            fits = (variables is None or len(wider) <= variables) and math.prod(sizes[i] for i in wider) <= entries
            if fits or len(wider) == len(held):
                held.update(member.scope)
                group.append(member)
                break
        else:
            groups.append((set(member.scope), [member]))
    return [group for _, group in groups]


def forward(
    tree: BucketTree,
    potentials: BucketPotentials,
    split: BucketSplit,
    *,
    match: float = 0.0,
    above: Sequence[Any] | None = None,
    keep: bool = True,
) -> BucketForward:
    """The bound at a split, from the first variable to the last.

    Args:
        match: how far the shifts of a split bucket go towards agreement on the way, from 0 to 1.
        above: for that, the messages from above of the last pass back.
        keep: whether `backward` will follow; otherwise tables are freed at once.
    """
    upper, weights, shifts = split.upper, split.weights, list(split.shifts)
    count, hard = len(tree.clusters), potentials.hard
    messages: list[Any] = [None] * count
    shares: list[Any] = [None] * count
    spreads: list[Any] = [None] * count
    value = float(sum(float(potentials.tables[f]) for f in tree.constants))
    # Rounding errors add up along the way: every message adds those of its own sums, in units of the largest number in them.
    rounding, size = 4 * EPS * abs(value), np.zeros(count)
    for bucket in tree.buckets:
        products = []
        for c in bucket:
            products.append(_product(tree.clusters[c], potentials.tables, messages))
            for below, _ in tree.clusters[c].messages:
                size[c] += size[below]
                if not keep:
                    messages[below] = None
        if len(bucket) > 1 and match:
            known = [0.0] * len(bucket) if above is None else [above[c] for c in bucket]
            clusters = [tree.clusters[c] for c in bucket]
            moves = _matched(clusters, products, [shifts[c] for c in bucket], known, weights[bucket], match, hard)
            for c, move in zip(bucket, moves, strict=True):
                shifts[c] = shifts[c] + move
        for c, total in zip(bucket, products, strict=True):
            shared, w = tree.clusters[c].shared, float(weights[c])
            if shared is not None:
                shift = np.broadcast_to(shifts[c], shared.shape)
                total.reshape(shared.wide)[...] += shared.spread(shift)
                size[c] += float(np.abs(shift).max(initial=0))
            message, share, spread = _power_sum(total, w, hard, shared is not None and keep)
            finite = message[message > -np.inf] if hard else message
            if finite.size == 0:
                return BucketForward(
                    -np.inf, float(rounding), BucketSplit(upper, weights, shifts), messages, shares, spreads
                )
            top, bottom = float(finite.max()), float(finite.min())
            rounding += 8 * EPS * (size[c] + max(abs(top), abs(bottom)) + abs(w) * (2 + math.log(len(total))))
            value += top
            messages[c] = message - top
            size[c] = top - bottom
            if keep:
                shares[c] = share
                spreads[c] = spread
    bound = float(value + (rounding if upper else -rounding))
    return BucketForward(bound, float(rounding), BucketSplit(upper, weights, shifts), messages, shares, spreads)


def _product(cluster: Cluster, tables: list[np.ndarray], messages: list[Any]) -> np.ndarray:
    """The sum of the log-potentials and messages in a cluster."""
    total = np.zeros(cluster.shape)
    for f, place in cluster.leaves:
        total.reshape(place.wide)[...] += place.spread(tables[f])
    for below, place in cluster.messages:
        total.reshape(place.wide)[...] += place.spread(messages[below])
    return total


def _matched(
    clusters: list[Cluster],
    products: list[np.ndarray],
    shifts: list[Any],
    above: list[Any],
    weights: np.ndarray,
    match: float,
    hard: bool,
) -> list[np.ndarray]:
    """Shifts between a bucket's parts that make their beliefs about the shared variables agree, given the messages from above.

    At the best split they agree. The shifts sum to 0; with a `match` below 1 they are a part of those needed.
    """
    logs = []
    for cluster, total, shift, known, w in zip(clusters, products, shifts, above, weights, strict=True):
        shared = cluster.shared
        assert shared is not None
        x = total + np.asarray(known)[None]
        x.reshape(shared.wide)[...] += shared.spread(np.broadcast_to(shift, shared.shape))
        if hard:
            x = np.where(np.isfinite(x), x / w, -np.inf)
        else:
            x /= w
        x -= max(float(x.max()), -1e300)
        belief = shared.total(np.exp(x, out=x))
        with np.errstate(divide="ignore"):
            logs.append(np.log(belief / (belief.sum() or 1.0)))
    agreed = np.all([np.isfinite(x) for x in logs], axis=0)
    logs = [np.where(agreed, x, 0) for x in logs]
    mean = sum(w * x for w, x in zip(weights, logs, strict=True))
    return [match * w * (mean - x) for w, x in zip(weights, logs, strict=True)]


def _power_sum(x: np.ndarray, w: float, hard: bool, spread: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """w log Σ e^{x/w} over the first axis, the terms' shares, and their entropy if wanted. Overwrites x."""
    if w != 1:
        x /= w
    top = x.max(axis=0)
    if hard:
        x = np.where(top == np.inf, np.inf, x)  # a zero under a negative weight
        top = np.where(np.isfinite(top), top, 0)
    x -= top
    shares = np.exp(x) if spread else np.exp(x, out=x)
    total = shares.sum(axis=0)
    with np.errstate(divide="ignore"):
        log_total = np.log(total)
    message = w * (log_total + top)
    if hard:
        shares = np.where(np.isfinite(shares), shares, 0)
        shares /= np.where((total > 0) & (total < np.inf), total, 1)
        x = np.where(np.isfinite(x), x, 0)
    else:
        shares /= total
    if not spread:
        return message, shares, None
    log_total = np.where(np.isfinite(log_total), log_total, 0)
    return message, shares, log_total - (shares * x).sum(axis=0)


def backward(tree: BucketTree, run: BucketForward) -> BucketBackward:
    """The derivative of the bound by every table at a fixed split, after a `forward` that kept its tables.

    It consumes those tables, and is undefined where the bound is -inf.
    """
    count = len(tree.clusters)
    found: list[Any] = [np.ones(()) for _ in tree.turns]
    over: list[Any] = [np.ones(()) for _ in range(count)]
    entropies, known = np.zeros(count), [0.0] * count
    for c in reversed(range(count)):
        cluster, above = tree.clusters[c], over[c]
        belief = run.shares[c]
        belief *= above[None]
        run.shares[c] = over[c] = None
        for below, place in cluster.messages:
            over[below] = place.total(belief)
        for f, place in cluster.leaves:
            found[f] = place.total(belief)
        if cluster.shared is not None:
            entropies[c] = float((above * run.spreads[c]).sum())
            message = np.where(run.messages[c] > -np.inf, run.messages[c], 0)
            known[c] = run.split.weights[c] * np.log(np.maximum(above, TINY)) - message
        run.messages[c] = run.spreads[c] = None
    return BucketBackward(
        [t.transpose(np.argsort(turn)) for t, turn in zip(found, tree.turns, strict=True)], entropies, known
    )


def reweighed(tree: BucketTree, split: BucketSplit, entropies: np.ndarray, step: float) -> BucketSplit:
    """The weights after a step that reduces the differences of conditional entropies in every split bucket, which vanish at the optimum."""
    weights = split.weights.copy()
    for bucket in tree.buckets:
        if len(bucket) < 2:
            continue
        w, h = weights[bucket], entropies[bucket]
        if split.upper:
            w = np.maximum(w * np.exp(-step * (h - w @ h)), LEAST)
            weights[bucket] = w / w.sum()
        else:
            u = np.clip(-w[1:] * np.exp(step * (h[0] - h[1:])), LEAST, 100)
            weights[bucket] = [1 + u.sum(), *-u]
    return split._replace(weights=weights)


def tighten(
    tree: BucketTree,
    potentials: BucketPotentials,
    *,
    upper: bool,
    sweeps: int,
    tolerance: float = 1e-6,
    until: float = math.inf,
) -> Tightened:
    """The best bound found by sweeps forward and back that optimise shifts and weights.

    Args:
        sweeps: the maximum number of sweeps.
        tolerance: the bound has converged when it changes by less than this, in nats, twice in a row.
        until: the time, by `time.perf_counter`, after which no further sweep begins.
    """
    sign = 1.0 if upper else -1.0
    split = tree.even(upper=upper)
    best, kept, change, above, rounding = sign * np.inf, split, np.inf, None, 0.0
    match, step, still, worse, done = 0.7, STEP, 0, 0, 0
    while done < sweeps and still < 2 and match > 0.05:
        run = forward(tree, potentials, split, match=match if done else 1.0, above=above)
        split, rounding = run.split, run.rounding
        done += 1
        gain = sign * (best - run.value)
        if gain > 0:
            best, kept, worse = run.value, split, 0
        else:
            worse += 1
        change = abs(gain)
        if not tree.is_split or run.value == -np.inf or time.perf_counter() > until:
            still += run.value != -np.inf and not tree.is_split
            break
        still = still + 1 if change <= tolerance else 0
        if worse == 3 or gain < -max(1.0, 0.01 * abs(best)):  # too far: continue from the best one, in smaller steps
            match, step, worse = match / 2, step / 2, 0
            run = forward(tree, potentials, kept)
            split, rounding = run.split, run.rounding
            done += 1
        back = backward(tree, run)
        above = back.above
        if done > 1:
            split = reweighed(tree, split, back.entropies, step)
    stands = still > 0 or best == -np.inf
    return Tightened(best, kept, change if tree.is_split else 0.0, stands, done, rounding)
