"""Binary contraction trees over a graph's tables, and a model of what they cost in time and memory. Imports neither NumPy nor JAX."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

Scope = tuple[int, ...]

BYTES = 8  # per float64
# The cost model, measured on one core: seconds per entry of a broadcast product, per entry that is copied into another order, per
# multiplication inside a matrix product, and per step.
ENTRY_SECONDS = 1.2e-9
COPY_SECONDS = 3e-9
PRODUCT_SECONDS = 8e-11
STEP_SECONDS = 4e-5
# Beyond NEAR entries the caches overflow one after the other: seconds per entry and doubling.
NEAR = 2.0**21
FAR_SECONDS = 4e-9
# Entries of a product that is computed in one call, and seconds of such a step.
SMALL = 2**10
SMALL_SECONDS = 1.2e-5


class ContractionStep(NamedTuple):
    """One contraction: the tables of two nodes are multiplied, and the variables that occur nowhere else are summed out."""

    left: int
    right: int
    out: Scope
    removed: Scope


@dataclasses.dataclass(frozen=True)
class ContractionPlan:
    """A binary contraction tree over the tables of a graph, and its predicted cost.

    Nodes 0 … leaves-1 are the tables, node leaves + i is the result of step i. Scopes are sorted by `rank`, the time at which a variable is
    summed out: the soonest first.

    Attributes:
        steps: the contractions, the last one giving a scalar.
        scopes: the variables of every node's table.
        sizes: the number of values of every variable.
        rank: when each variable is summed out.
        sliced: variables that are conditioned on instead: the tree is contracted once for each of their joint values.
        slices: how many joint values there are.
        width: the largest number of variables in one contraction, less one (the induced width).
        log10_flops: log10 of the multiplications of one upward pass, over all slices.
        peak_bytes: the most memory that log Z takes at one time, copies included.
        all_bytes: the same for marginals and samples, which keep all tables.
        seconds: a prediction for one upward pass.
        step_seconds: the same for every step, in one slice.
        method: which search found the tree.
        supports: whether tables hold their possible entries alone. The figures are then those of a trial run.
    """

    steps: tuple[ContractionStep, ...]
    scopes: tuple[Scope, ...]
    sizes: tuple[int, ...]
    rank: dict[int, int]
    width: int
    log10_flops: float
    peak_bytes: float
    all_bytes: float
    seconds: float
    step_seconds: tuple[float, ...]
    method: str
    sliced: Scope = ()
    slices: int = 1
    supports: bool = False

    @property
    def leaves(self) -> int:
        return len(self.scopes) - len(self.steps)

    @property
    def table_bits(self) -> list[float]:
        """log2 of the entries of every node's table."""
        return [self._bits(scope) for scope in self.scopes]

    @property
    def step_bits(self) -> list[float]:
        """log2 of the number of joint values of all variables in every step."""
        return [self._bits((*step.out, *step.removed)) for step in self.steps]

    def _bits(self, variables: Scope) -> float:
        return sum(math.log2(self.sizes[v]) for v in variables)

    def need(self, *, every: bool) -> float:
        """Bytes for log Z alone, or for marginals and samples, which need `every` table."""
        return self.all_bytes if every else self.peak_bytes

    def __str__(self) -> str:
        sliced = f" in {self.slices:,} slices over {len(self.sliced)} variables" if self.sliced else ""
        kind = ", possible entries only" if self.supports else ""
        return (
            f"contraction of {self.leaves:,} tables by {self.method}{kind}{sliced}: width {self.width}, 10^{self.log10_flops:.1f} multiplications, "
            f"{size_text(self.peak_bytes)} at the peak ({size_text(self.all_bytes)} for marginals), about {self.seconds:.2g} s"
        )


def tree(
    scopes: Sequence[Scope], sizes: Sequence[int], path: Sequence[tuple[int, int]], method: str
) -> ContractionPlan:
    """The tree of a path: pairs of nodes, each result a new node.

    Variables of one table alone are summed out first, and nodes that the path leaves are joined at its end.
    """
    uses = [0] * len(sizes)
    for scope in scopes:
        for v in scope:
            uses[v] += 1
    nodes, alive = [frozenset(scope) for scope in scopes], set(range(len(scopes)))
    raw: list[tuple[int, int, frozenset[int], list[int]]] = []
    rank: dict[int, int] = {}

    def join(i: int, j: int) -> None:
        a, b = nodes[i], nodes[j]
        both = a & b
        for v in both:
            uses[v] -= 1
        gone = [v for v in a | b if uses[v] == 1]
        # Of what is summed out here, first the variables of one side alone, then those of both.
        gone.sort(key=lambda v: (v in both, v))
        for v in gone:
            rank[v] = len(rank)
        out = (a | b).difference(gone)
        raw.append((i, j, out, gone))
        nodes.append(out)
        alive.difference_update((i, j))
        alive.add(len(nodes) - 1)

    for i, j in path:
        join(i, j)
    rest = [(len(nodes[i]), i) for i in alive]
    heapq.heapify(rest)
    while len(rest) > 1:
        (_, i), (_, j) = heapq.heappop(rest), heapq.heappop(rest)
        join(i, j)
        heapq.heappush(rest, (len(nodes[-1]), len(nodes) - 1))
    if len(scopes) == 1:
        for v in scopes[0]:
            rank[v] = len(rank)
    ordered = tuple(tuple(sorted(node, key=rank.__getitem__)) for node in nodes)
    leaves = len(scopes)
    steps = tuple(
        ContractionStep(i, j, ordered[leaves + s], tuple(sorted(gone, key=rank.__getitem__)))
        for s, (i, j, _, gone) in enumerate(raw)
    )
    return _priced(steps, ordered, rank, sizes, method)


def _priced(
    steps: Sequence[ContractionStep], scopes: Sequence[Scope], rank: dict[int, int], sizes: Sequence[int], method: str
) -> ContractionPlan:
    """The tree with its cost."""
    count = [float(k) for k in sizes].__getitem__
    leaves = len(scopes) - len(steps)
    entries = [math.prod(map(count, scope)) for scope in scopes]
    priced = [
        _step_cost(scopes[step.left], scopes[step.right], step, entries[step.left] + entries[step.right], made, count)
        for step, made in zip(steps, entries[leaves:], strict=True)
    ]
    seconds = tuple(cost for cost, _ in priced)
    peak, every = _held(steps, entries)
    return ContractionPlan(
        steps=tuple(steps),
        scopes=tuple(scopes),
        sizes=tuple(sizes),
        rank=rank,
        width=max([0, *(len(s) - 1 for s in scopes), *(len(s.out) + len(s.removed) - 1 for s in steps)]),
        log10_flops=math.log10(max(sum(flops for _, flops in priced), 1)),
        peak_bytes=BYTES * peak,
        all_bytes=BYTES * max(every, peak),
        seconds=sum(seconds),
        step_seconds=seconds,
        method=method,
    )


def _step_cost(
    left: Scope, right: Scope, step: ContractionStep, read: float, made: float, count: Callable[[int], float]
) -> tuple[float, float]:
    """Seconds and multiplications of one step that reads two tables and makes one, in entries."""
    a, b = set(left), set(right)
    shared = [v for v in step.removed if v in a and v in b]
    k = math.prod(map(count, shared))
    work, private = made * k, len(shared) < len(step.removed)
    flops = work + (read if private else 0)
    if not private and work <= SMALL:
        return SMALL_SECONDS, flops
    touched = read + made
    m = math.prod([count(v) for v in step.out if v in a and v not in b])
    n = math.prod([count(v) for v in step.out if v in b and v not in a])
    seconds = work * PRODUCT_SECONDS + touched * COPY_SECONDS if is_product(m, n, k) else work * ENTRY_SECONDS
    far = touched * FAR_SECONDS * math.log2(touched / NEAR) if touched > NEAR else 0.0
    return seconds + STEP_SECONDS + far, flops


def _held(steps: Sequence[ContractionStep], entries: Sequence[float]) -> tuple[float, float]:
    """The most entries that are held at one time: of one pass up, and of one up that keeps all tables and one down."""
    leaves = len(entries) - len(steps)
    held = 2 * sum(entries[:leaves])  # as they were given, and as the contraction uses them
    live = peak = held
    for step, made in zip(steps, entries[leaves:], strict=True):
        children = (step.left, step.right)
        # Including copies of the factors with their axes in other orders.
        peak = max(peak, live + made + entries[step.left] + entries[step.right])
        live += made - sum(entries[child] for child in children if child >= leaves)
    every = most = held + sum(entries[leaves:])
    for step, made in zip(reversed(steps), reversed(entries[leaves:]), strict=True):
        # The downward pass: derivatives are added, and used tables are freed.
        both = entries[step.left] + entries[step.right]
        most = max(most, every + 2 * both + made)
        every += both - made - sum(entries[child] for child in (step.left, step.right) if child >= leaves)
    return peak, most


def is_product(m: float, n: float, k: float) -> bool:
    """Whether a contraction with m and n private entries per side and k shared ones is computed as a matrix product."""
    return m * n * k >= 1024 and k >= 2 and (min(m, n) >= 8 or k >= 32)


def sliced(best: ContractionPlan, sizes: Sequence[int], memory: float, *, every: bool) -> ContractionPlan:
    """The tree with just enough variables conditioned on that its tables fit into the memory, in bytes.

    Args:
        every: whether all tables must fit at once, as marginals and samples need, or only those at the peak.
    """
    found, chosen = best, []
    reduced = list(sizes)
    while memory < found.need(every=every) < 2.0**50 * memory:
        saved: dict[int, float] = {}
        for scope in found.scopes:
            entries = math.prod(reduced[v] for v in scope)
            for v in scope:
                if reduced[v] > 1:
                    saved[v] = saved.get(v, 0.0) + entries * (1 - 1 / reduced[v])
        if not saved or len(chosen) > 60:
            break
        chosen.append(max(saved, key=lambda v: (saved[v] / math.log2(reduced[v] + 1), -v)))
        reduced[chosen[-1]] = 1
        found = _conditioned(best, sizes, chosen)
    return found


def _conditioned(best: ContractionPlan, sizes: Sequence[int], chosen: Sequence[int]) -> ContractionPlan:
    """The tree with some variables conditioned on."""
    gone = set(chosen)
    scopes = [tuple(v for v in scope if v not in gone) for scope in best.scopes]
    steps = [
        step._replace(out=scopes[best.leaves + s], removed=tuple(v for v in step.removed if v not in gone))
        for s, step in enumerate(best.steps)
    ]
    slices = math.prod(sizes[v] for v in chosen)
    one = _priced(steps, scopes, best.rank, sizes, best.method)
    return dataclasses.replace(
        one,
        log10_flops=one.log10_flops + math.log10(slices),
        seconds=one.seconds * slices,
        sliced=tuple(chosen),
        slices=slices,
    )


def size_text(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
