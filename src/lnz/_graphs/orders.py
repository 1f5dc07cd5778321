"""Searches for the order in which to contract a graph's tables: randomised least fill with restarts, and random greedy paths."""

from __future__ import annotations

import functools
import heapq
import math
import random
import time
from collections.abc import Iterator, Sequence

from lnz._graphs.contraction_plan import SMALL_SECONDS, ContractionPlan, Scope, tree

HOPELESS = 2.0**48  # entries of all cliques of an order: days of work, however it is sliced
LARGE = 1000  # tables: beyond it a hopeless first order is an error, and greedy paths begin one by one


def search(
    scopes: Sequence[Scope],
    sizes: Sequence[int],
    *,
    seconds: float | None = None,
    seed: int = 0,
    start: tuple[ContractionPlan, float] | None = None,
) -> ContractionPlan:
    """The cheapest contraction tree that a search finds.

    Args:
        scopes: the variables of every table.
        sizes: the number of values of every variable.
        seconds: processor time for the search; by default a third of the predicted work that a better tree could spare, less where an eighth of it
            brought none, no more than 10 s, and 1 s where that is hopeless.
        seed: of the search. The result also depends on the processor's speed.
        start: a known tree and the processor time that it took, from which the search continues.

    Raises:
        ValueError: for a large graph whose first order is far too expensive.
    """
    if len(scopes) < 2:
        return tree(scopes, sizes, [], "the only order")
    state = _TreeSearch(scopes, sizes, seed, start)
    if state.best is None:
        state.try_order()
    if state.best is None and len(scopes) > LARGE:
        raise ValueError(
            f"exact elimination is too expensive: of {len(sizes):,} variables it would create tables with more than "
            f"2^{math.log2(HOPELESS):.0f} entries in all. Give evidence, or use a stochastic route"
        )
    if state.best is not None and state.chordal:
        return state.best  # the order is optimal
    took = {state.try_greedy_paths: 0.0, state.try_order: 0.0}
    last = state.elapsed()
    while state.best is None or state.elapsed() + last / 2 <= state.budget(seconds):
        attempt = min(took, key=lambda kind: took[kind])  # the two kinds of search get the same time
        begun = time.thread_time()
        attempt()
        last = time.thread_time() - begun
        took[attempt] += last
    return state.best


class _TreeSearch:
    """The best tree so far, and the state of the search."""

    def __init__(
        self, scopes: Sequence[Scope], sizes: Sequence[int], seed: int, start: tuple[ContractionPlan, float] | None
    ):
        self.best, spent = start or (None, 0.0)
        self.begun = time.thread_time() - spent
        self.improved = 0.0  # when the last better tree was found
        self.scopes = scopes
        self.sizes = sizes
        self.rng = random.Random(seed)
        self.orders = _Orders(scopes, sizes)
        self.clique = HOPELESS  # the sum of the clique sizes of the best order
        self.trials = 1 if len(scopes) > LARGE else 4  # of the next greedy paths

    @property
    def chordal(self) -> bool:
        return all(bits < 0 for bits in self.orders.core)

    def elapsed(self) -> float:
        return time.thread_time() - self.begun

    def budget(self, seconds: float | None) -> float:
        """Processor seconds that the search may take in all."""
        if seconds is not None or self.best is None:
            return seconds or 0.0
        if self.best.seconds > 1e6:
            return 1.0  # hopeless, as far as is known
        spare = min(30.0, self.best.seconds - len(self.scopes) * SMALL_SECONDS)  # what a perfect tree would save
        return min(spare / 3, self.improved + spare / 8)

    def try_order(self) -> None:
        """Orders are compared by the sum of their clique sizes, and only a better one is made into a tree."""
        found = self.orders.draw(self.rng, self.clique)
        if found is not None:
            self.clique, order = found
            self._consider(self.orders.path(order), "randomised min-fill")

    def try_greedy_paths(self) -> None:
        self._consider(_greedy_path(self.scopes, self.sizes, self.trials, self.rng), "random greedy paths")
        self.trials = min(2 * self.trials, 256)

    def _consider(self, path: Sequence[tuple[int, int]], method: str) -> None:
        made = tree(self.scopes, self.sizes, path, method)
        if self.best is None or made.seconds < self.best.seconds:
            self.best = made
            self.improved = self.elapsed()


def candidates(scopes: Sequence[Scope], sizes: Sequence[int], seed: int) -> Iterator[ContractionPlan]:
    """An endless sequence of trees, from elimination orders and greedy paths in turn."""
    rng, drawn = random.Random(seed), _Orders(scopes, sizes)
    while True:
        found = drawn.draw(rng, math.inf)
        assert found is not None
        yield tree(scopes, sizes, drawn.path(found[1]), "randomised min-fill")
        yield tree(scopes, sizes, _greedy_path(scopes, sizes, 8, rng), "random greedy paths")


@functools.lru_cache(maxsize=8)
def least_fill(scopes: tuple[Scope, ...], sizes: tuple[int, ...], seed: int) -> list[int]:
    """One elimination order of all variables by least fill, ties broken at random."""
    found = _Orders(scopes, sizes).draw(random.Random(seed), math.inf)
    assert found is not None
    return found[1]


class _Orders:
    """Random elimination orders of one graph. Its simplicial variables, whose elimination costs no width, come first."""

    def __init__(self, scopes: Sequence[Scope], sizes: Sequence[int]):
        self.scopes = scopes
        self.logs = [math.log2(k) for k in sizes]
        self.prefix, self.core = simplicial(adjacency_of(scopes, len(sizes)))

    def draw(self, rng: random.Random, bound: float) -> tuple[float, list[int]] | None:
        """The sum of the core's clique sizes and the order; None where the sum exceeds the bound."""
        found = greedy_order(self.core, self.logs, rng, bound)
        return None if found is None else (found[0], self.prefix + found[1])

    def path(self, order: Sequence[int]) -> list[tuple[int, int]]:
        """The path of an order: the tables with a variable are multiplied pairwise, the smallest first, and the variable is summed out."""
        logs, scopes = self.logs, self.scopes
        uses = [0] * len(logs)
        where: list[set[int]] = [set() for _ in logs]
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
    """Simplicial variables, whose neighbours are all adjacent: eliminating them first adds nothing to the width. And the remaining graph."""
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

    None where the bound is exceeded.
    """
    graph = _FillGraph(adjacency, weights, rng)
    draw = rng.random
    scores = {v: graph.fill(v) for v in graph.neighbours}
    heap = [(score, draw(), v) for v, score in scores.items()]
    heapq.heapify(heap)
    order, total = [], 0.0
    while heap:
        score, _, v = heapq.heappop(heap)
        if scores.get(v) != score:
            continue  # an entry from before its score changed
        del scores[v]
        order.append(v)
        total += 2.0 ** (weights[v] + sum(weights[u] for u in graph.neighbours[v]))
        if total > bound:
            return None
        for u in graph.eliminate(v, fills=score > 0 or graph.blur > 0):
            if u in scores:
                new = graph.fill(u)
                if new != scores[u]:
                    scores[u] = new
                    heapq.heappush(heap, (new, draw(), u))
    return total, order


class _FillGraph:
    """A graph from which variables are eliminated, with the fill edges of every elimination.

    Some runs weight a fill edge by the cardinalities of its ends, some blur the scores, so that restarts find different orders.

    Attributes:
        adjacency: the neighbours of every variable, as bits; negative where it was eliminated beforehand.
        neighbours: the same as sets, of the variables that are left.
        masks: where fill edges are weighted, the variables of each weight, as bits; otherwise empty.
        blur: the random increase of a score, as a share of it.
    """

    def __init__(self, adjacency: list[int], weights: list[float], rng: random.Random):
        self.adjacency = list(adjacency)
        self.weights = weights
        alive = [v for v, bits in enumerate(adjacency) if bits >= 0]
        self.masks: list[tuple[float, int]] = []
        if len({weights[v] for v in alive}) > 1 and rng.random() < 0.7:
            classes: dict[float, int] = {}
            for v in alive:
                classes[weights[v]] = classes.get(weights[v], 0) | 1 << v
            self.masks = list(classes.items())
        self.blur = rng.choice((0.0, 0.0, 0.1, 0.3))
        self.neighbours = {v: set(_members(adjacency[v])) for v in alive}
        self.draw = rng.random

    def fill(self, v: int) -> float:
        """The (weighted, blurred) edges that the elimination of v would add, each counted twice."""
        adjacency, around, members = self.adjacency, self.adjacency[v], self.neighbours[v]
        total = 0.0
        if self.masks:
            for u in members:
                missing = around & ~adjacency[u] & ~(1 << u)
                if missing:
                    total += self.weights[u] * sum(w * (missing & mask).bit_count() for w, mask in self.masks)
        else:
            missed = 0
            for u in members:
                missed += (around & ~adjacency[u]).bit_count()
            total = missed - len(members)  # each u counted itself
        return total * (1 + self.blur * self.draw()) if self.blur else total

    def eliminate(self, v: int, *, fills: bool) -> set[int]:
        """Remove v, connect its neighbours (if `fills`), and return the variables whose scores may have changed."""
        adjacency, neighbours = self.adjacency, self.neighbours
        around, members = adjacency[v], neighbours[v]
        changed, others = set(members), ~(1 << v)
        for u in members:
            adjacency[u] &= others
            neighbours[u].discard(v)
        for u in members if fills else ():
            missing = around & ~adjacency[u] & ~(1 << u)
            if not missing:
                continue
            for w in _members(missing):
                if w > u:
                    changed.update(_members(adjacency[u] & adjacency[w]))
            neighbours[u].update(_members(missing))
            adjacency[u] |= missing
        return changed


def _greedy_path(
    scopes: Sequence[Scope], sizes: Sequence[int], trials: int, rng: random.Random
) -> list[tuple[int, int]]:
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
    number, pairs = list(range(len(scopes))), []
    # A step with one table only sums out variables of its own: not a step here.
    for step in path:
        if len(step) == 1:
            number.append(number[step[0]])
        else:
            pairs.append((number[step[0]], number[step[1]]))
            number.append(len(scopes) + len(pairs) - 1)
    return pairs
