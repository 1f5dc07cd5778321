"""In which order to contract a graph's tables: binary trees from elimination orders and from greedy paths, and what they cost."""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Scope = tuple[int, ...]

BYTES = 8  # of one float64
# What a step takes, roughly: for an entry of a broadcast product, for one that is copied into another order, for a multiplication inside a
# matrix product, for each entry and every doubling beyond NEAR of them, as they leave one cache after the other, and for the step itself.
HOPELESS = 2.0**48  # entries of all cliques of an order: days of work, in whatever slices
ENTRY_SECONDS, COPY_SECONDS, PRODUCT_SECONDS, FAR_SECONDS, STEP_SECONDS = 1.2e-9, 3e-9, 8e-11, 4e-9, 4e-5
NEAR = 2.0**21
SMALL, SMALL_SECONDS = 2**10, 1.2e-5  # entries of a product that is done in one call, and what such a step takes


class Step(NamedTuple):
    """One contraction: the tables of two nodes are multiplied, and the variables that stand nowhere else are summed out."""

    left: int
    right: int
    out: Scope
    removed: Scope


@dataclasses.dataclass(frozen=True)
class Plan:
    """A binary contraction tree over the tables of a graph, and what it will cost.

    Nodes 0 … leaves-1 are the tables, node leaves + i is the result of step i. Scopes are sorted by `rank`, the time at which a variable is
    summed out: the soonest first.

    Attributes:
        steps: the contractions, the last one giving a scalar.
        scopes: the variables of every node's table.
        sizes: the number of values of every variable.
        rank: when each variable is summed out.
        sliced: variables that are conditioned on instead: the tree is walked once for each of their joint values.
        slices: how many joint values there are.
        width: the most variables that meet in one contraction, less one (the induced width).
        log10_flops: log10 of the multiplications of one upward pass, over all slices.
        peak_bytes: the most memory that log Z takes at one time, copies included.
        all_bytes: the same for marginals and samples, which keep all tables.
        seconds: a prediction for one upward pass.
        step_seconds: the same for every step, in one slice.
        method: which search found the tree.
        supports: whether tables hold their possible entries alone. The figures are then those of a trial run.
    """

    steps: tuple[Step, ...]
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
        """log2 of the joint values of all variables that meet in every step."""
        return [self._bits((*step.out, *step.removed)) for step in self.steps]

    def _bits(self, variables: Scope) -> float:
        return sum(math.log2(self.sizes[v]) for v in variables)

    def __str__(self) -> str:
        sliced = f" in {self.slices:,} slices over {len(self.sliced)} variables" if self.sliced else ""
        kind = ", possible entries only" if self.supports else ""
        return (
            f"contraction of {self.leaves:,} tables by {self.method}{kind}{sliced}: width {self.width}, 10^{self.log10_flops:.1f} multiplications, "
            f"{size_text(self.peak_bytes)} at the peak ({size_text(self.all_bytes)} for marginals), about {self.seconds:.2g} s"
        )


def plan(
    scopes: Sequence[Scope],
    sizes: Sequence[int],
    *,
    seconds: float | None = None,
    seed: int = 0,
    start: tuple[Plan, float] | None = None,
) -> Plan:
    """The cheapest contraction tree that a search finds: randomised min-fill with restarts, and random greedy paths.

    Args:
        scopes: the variables of every table.
        sizes: the number of values of every variable.
        seconds: processor time for the search; by default a third of the predicted work that a better tree could spare, less where an eighth of it
            brought none, no more than 10 s, and 1 s where that is hopeless.
        seed: of the search. The result also depends on the time that the search finds.
        start: a tree that is known already and the processor time that it took: the search goes on from there.

    Raises:
        ValueError: for a large graph whose first order is beyond hope.
    """
    found, spent = start or (None, 0.0)
    begun, rng = time.thread_time() - spent, random.Random(seed)
    if len(scopes) < 2:
        return tree(scopes, sizes, [], "the only order")
    adjacency = adjacency_of(scopes, len(sizes))
    prefix, core = simplicial(adjacency)
    weights = [math.log2(k) for k in sizes]
    clique, trials = HOPELESS, 1 if len(scopes) > 1000 else 4
    took = {"order": 0.0, "greedy": 0.0}
    least = len(scopes) * SMALL_SECONDS  # of any tree
    better = 0.0  # when the last better one was found

    def budget() -> float:
        if seconds is not None or found is None:
            return seconds or 0.0
        if found.seconds > 1e6:
            return 1.0  # beyond hope, as far as one sees
        spare = min(30.0, found.seconds - least)
        return min(spare / 3, better + spare / 8)

    def consider(path: Sequence[tuple[int, int]], method: str) -> None:
        nonlocal found, better
        made = tree(scopes, sizes, path, method)
        if found is None or made.seconds < found.seconds:
            found, better = made, time.thread_time() - begun

    def order() -> None:
        """Orders are compared by the sum of their clique sizes, and only a better one is made a tree."""
        nonlocal clique
        found_order = greedy_order(core, weights, rng, clique)
        if found_order is not None:
            clique = found_order[0]
            consider(_path(scopes, sizes, prefix + found_order[1]), "randomised min-fill")

    def greedy() -> None:
        nonlocal trials
        consider(_greedy(scopes, sizes, trials, rng), "random greedy paths")
        trials = min(2 * trials, 256)

    if found is None:
        order()
    if found is None and len(scopes) > 1000:
        raise ValueError(
            f"too dear to be summed exactly: elimination of {len(sizes):,} variables makes tables of more than 2^{math.log2(HOPELESS):.0f} "
            "entries in all. Give evidence, or take a stochastic route"
        )
    if found is not None and all(bits < 0 for bits in core):
        return found  # a chordal graph: the order is the best there is
    searches, now = {"greedy": greedy, "order": order}, time.thread_time() - begun
    while found is None or time.thread_time() - begun + now / 2 <= budget():
        # The two kinds of search get the same time.
        kind = min(took, key=lambda name: took[name]) if took["greedy"] else "greedy"
        now = time.thread_time()
        searches[kind]()
        now = time.thread_time() - now
        took[kind] += now
    return found


def tree(scopes: Sequence[Scope], sizes: Sequence[int], path: Sequence[tuple[int, int]], method: str) -> Plan:
    """The tree of a path: pairs of nodes, each result a new node. Private variables go first, and what the path leaves is joined at its end."""
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
        Step(i, j, ordered[leaves + s], tuple(sorted(gone, key=rank.__getitem__)))
        for s, (i, j, _, gone) in enumerate(raw)
    )
    return _priced(steps, ordered, rank, sizes, method)


def _priced(
    steps: Sequence[Step], scopes: Sequence[Scope], rank: dict[int, int], sizes: Sequence[int], method: str
) -> Plan:
    count = [float(k) for k in sizes].__getitem__
    leaves = len(scopes) - len(steps)
    entries = [math.prod(map(count, scope)) for scope in scopes]
    flops, step_seconds = 0.0, []
    held = 2 * sum(entries[:leaves])  # as they came, and as the contraction takes them
    live = peak = held
    width = max((len(scope) - 1 for scope in scopes), default=0)
    for s, (i, j, out, removed) in enumerate(steps):
        a, b, made = set(scopes[i]), set(scopes[j]), entries[leaves + s]
        width = max(width, len(out) + len(removed) - 1)
        shared = [v for v in removed if v in a and v in b]
        k = math.prod(map(count, shared))
        work = made * k
        private = len(shared) < len(removed)
        flops += work + (entries[i] + entries[j] if private else 0)
        if not private and work <= SMALL:
            step_seconds.append(SMALL_SECONDS)
        else:
            touched = entries[i] + entries[j] + made
            m = math.prod([count(v) for v in out if v in a and v not in b])
            n = math.prod([count(v) for v in out if v in b and v not in a])
            product = is_product(m, n, k)
            seconds = work * PRODUCT_SECONDS + touched * COPY_SECONDS if product else work * ENTRY_SECONDS
            far = touched * FAR_SECONDS * math.log2(touched / NEAR) if touched > NEAR else 0.0
            step_seconds.append(seconds + STEP_SECONDS + far)
        peak = max(peak, live + made + entries[i] + entries[j])  # with copies of what is multiplied, in other orders
        live += made - sum(entries[child] for child in (i, j) if child >= leaves)
    every = most = held + sum(entries[leaves:])
    for s in reversed(range(len(steps))):  # the downward pass: derivatives come, and tables that have been used go
        i, j, _, _ = steps[s]
        both, made = entries[i] + entries[j], entries[leaves + s]
        most = max(most, every + 2 * both + made)
        every += both - made - sum(entries[child] for child in (i, j) if child >= leaves)
    return Plan(
        tuple(steps),
        tuple(scopes),
        tuple(sizes),
        rank,
        width,
        math.log10(max(flops, 1)),
        BYTES * peak,
        BYTES * max(most, peak),
        sum(step_seconds),
        tuple(step_seconds),
        method,
    )


def is_product(m: float, n: float, k: float) -> bool:
    """Whether a contraction with m and n private entries a side and k shared ones is done as a matrix product."""
    return m * n * k >= 1024 and k >= 2 and (min(m, n) >= 8 or k >= 32)


def sliced(best: Plan, sizes: Sequence[int], limit: float, *, every: bool) -> Plan:
    """The tree with as few variables conditioned on as bring its memory below the limit, in bytes.

    Args:
        every: whether all tables must fit at once, as marginals and samples need it, or only those at the peak.
    """
    plan_, chosen = best, []
    reduced = list(sizes)
    while limit < (plan_.all_bytes if every else plan_.peak_bytes) < 2.0**50 * limit:
        large: dict[int, float] = {}
        for scope in plan_.scopes:
            entries = math.prod(reduced[v] for v in scope)
            for v in scope:
                if reduced[v] > 1:
                    large[v] = large.get(v, 0.0) + entries * (1 - 1 / reduced[v])
        if not large or len(chosen) > 60:
            break
        chosen.append(max(large, key=lambda v: (large[v] / math.log2(reduced[v] + 1), -v)))
        reduced[chosen[-1]] = 1
        kept = set(chosen)
        without = [tuple(v for v in scope if v not in kept) for scope in best.scopes]
        steps = [
            Step(i, j, without[best.leaves + s], tuple(v for v in gone if v not in kept))
            for s, (i, j, _, gone) in enumerate(best.steps)
        ]
        slices = math.prod(sizes[v] for v in chosen)
        one = _priced(steps, without, best.rank, sizes, best.method)
        plan_ = dataclasses.replace(
            one,
            log10_flops=one.log10_flops + math.log10(slices),
            seconds=one.seconds * slices,
            sliced=tuple(chosen),
            slices=slices,
        )
    return plan_


def adjacency_of(scopes: Sequence[Scope], n: int) -> list[int]:
    """The neighbours of every variable, as bits."""
    adjacency = [0] * n
    for scope in scopes:
        bits = sum(1 << v for v in scope)
        for v in scope:
            adjacency[v] |= bits
    return [bits & ~(1 << v) for v, bits in enumerate(adjacency)]


def _members(bits: int) -> list[int]:
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found


def simplicial(adjacency: list[int]) -> tuple[list[int], list[int]]:
    """Variables whose neighbours all know each other: to eliminate them first costs nothing in width. And the graph that is left."""
    adjacency, prefix = list(adjacency), []
    queue, queued = list(range(len(adjacency))), [True] * len(adjacency)
    while queue:
        v = queue.pop()
        queued[v] = False
        around = adjacency[v]
        if around < 0:
            continue
        members = _members(around)
        if all(not (around & ~adjacency[u] & ~(1 << u)) for u in members):
            prefix.append(v)
            adjacency[v] = -1  # eliminated
            for u in members:
                adjacency[u] &= ~(1 << v)
                if not queued[u]:
                    queued[u] = True
                    queue.append(u)
    return prefix, adjacency


def greedy_order(
    adjacency: list[int], weights: list[float], rng: random.Random, bound: float
) -> tuple[float, list[int]] | None:
    """One greedy order of the variables by least fill, ties broken at random: the sum of its clique sizes, and the order.

    Some runs weigh a fill edge by the cardinalities of its ends, some blur the scores. None where the bound is passed.
    """
    adjacency = list(adjacency)
    alive = [v for v, bits in enumerate(adjacency) if bits >= 0]
    classes: dict[float, int] = {}
    weighted = len({weights[v] for v in alive}) > 1 and rng.random() < 0.7
    if weighted:
        for v in alive:
            classes[weights[v]] = classes.get(weights[v], 0) | 1 << v
    blur = rng.choice((0.0, 0.0, 0.1, 0.3))
    groups = list(classes.items())
    neighbours = {v: set(_members(adjacency[v])) for v in alive}
    draw = rng.random

    def score(v: int) -> float:
        around, total = adjacency[v], 0.0
        if weighted:
            for u in neighbours[v]:
                missing = around & ~adjacency[u] & ~(1 << u)
                if missing:
                    total += weights[u] * sum(w * (missing & mask).bit_count() for w, mask in groups)
        else:
            missed = 0
            for u in neighbours[v]:
                missed += (around & ~adjacency[u]).bit_count()
            total = missed - len(neighbours[v])
        return total * (1 + blur * draw()) if blur else total

    scores = {v: score(v) for v in alive}
    heap = [(s, draw(), v) for v, s in scores.items()]
    heapq.heapify(heap)
    order, total = [], 0.0
    while heap:
        s, _, v = heapq.heappop(heap)
        if scores.get(v) != s:
            continue
        del scores[v]
        order.append(v)
        around, members = adjacency[v], neighbours[v]
        total += 2.0 ** (weights[v] + sum(weights[u] for u in members))
        if total > bound:
            return None
        dirty = set(members)
        gone = ~(1 << v)
        for u in members:
            adjacency[u] &= gone
            neighbours[u].discard(v)
        if s > 0 or blur:
            for u in members:
                missing = around & ~adjacency[u] & ~(1 << u)
                if missing:
                    for w in _members(missing):
                        if w > u:
                            for x in _members(adjacency[u] & adjacency[w]):
                                dirty.add(x)
                    neighbours[u].update(_members(missing))
                    adjacency[u] |= missing
        for u in dirty:
            if u in scores:
                new = score(u)
                if new != scores[u]:
                    scores[u] = new
                    heapq.heappush(heap, (new, draw(), u))
    return total, order


def _path(scopes: Sequence[Scope], sizes: Sequence[int], order: Sequence[int]) -> list[tuple[int, int]]:
    """The path of an elimination order: the tables of a variable are multiplied pairwise, the smallest first, and it is summed out."""
    logs = [math.log2(k) for k in sizes]
    uses = [0] * len(sizes)
    where: list[set[int]] = [set() for _ in sizes]
    nodes = [frozenset(scope) for scope in scopes]
    for i, scope in enumerate(nodes):
        for v in scope:
            uses[v] += 1
            where[v].add(i)
    path = []
    for v in order:
        bucket = [(sum(logs[u] for u in nodes[i]), i) for i in where[v]]
        heapq.heapify(bucket)
        while len(bucket) > 1:
            (_, i), (_, j) = heapq.heappop(bucket), heapq.heappop(bucket)
            path.append((i, j))
            a, b = nodes[i], nodes[j]
            for u in a:
                where[u].discard(i)
            for u in b:
                where[u].discard(j)
            for u in a & b:
                uses[u] -= 1
            out = frozenset(u for u in a | b if uses[u] > 1)
            nodes.append(out)
            for u in out:
                where[u].add(len(nodes) - 1)
            heapq.heappush(bucket, (sum(logs[u] for u in out), len(nodes) - 1))
    return path


def _greedy(scopes: Sequence[Scope], sizes: Sequence[int], trials: int, rng: random.Random) -> list[tuple[int, int]]:
    """The best of some random greedy paths (cotengrust)."""
    import cotengrust

    names = {v: chr(v + 0x100 if v < 0xD000 else v + 0x1000) for scope in scopes for v in scope}  # no surrogates
    path, _ = cotengrust.optimize_random_greedy_track_flops(
        [[names[v] for v in scope] for scope in scopes],
        [],
        {name: float(sizes[v]) for v, name in names.items()},
        ntrials=trials,
        seed=rng.getrandbits(32),
        use_ssa=True,
    )
    number, pairs = (
        list(range(len(scopes))),
        [],
    )  # a step of one table only drops its private variables: here no step of its own
    for step in path:
        if len(step) == 1:
            number.append(number[step[0]])
        else:
            pairs.append((number[step[0]], number[step[1]]))
            number.append(len(scopes) + len(pairs) - 1)
    return pairs


def size_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def candidates(scopes: Sequence[Scope], sizes: Sequence[int], seed: int) -> Iterator[Plan]:
    """Different trees without end, from elimination orders and greedy paths in turn."""
    rng = random.Random(seed)
    prefix, core = simplicial(adjacency_of(scopes, len(sizes)))
    weights = [math.log2(k) for k in sizes]
    while True:
        found = greedy_order(core, weights, rng, math.inf)
        assert found is not None
        yield tree(scopes, sizes, _path(scopes, sizes, prefix + found[1]), "randomised min-fill")
        yield tree(scopes, sizes, _greedy(scopes, sizes, 8, rng), "random greedy paths")
