"""Tree-reweighted belief propagation: an upper bound of log Z from a convex combination of spanning forests."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import numpy as np

from lnz._core.numerics import check_whole_number
from lnz._graphs import messages
from lnz._graphs.propagation import propagated
from lnz._models.factor_graph import FactorGraph
from lnz.routes._bounds.bound_route import LocalRoute, Solved, check_sweeps


@dataclasses.dataclass(frozen=True)
class TreeReweighted(LocalRoute):
    """An upper bound of log Z for discrete models with factors of one and two variables, by tree-reweighted belief propagation.

    log Z(φ) ≤ Σ_l λ_l log Z(φ_l) for spanning forests l with weights λ and any log-potentials φ_l on them with Σ_l λ_l φ_l = φ, because log Z
    is convex. The forests are uniform random spanning trees, and more until every edge lies in one; the messages of tree-reweighted belief
    propagation find φ_l, and each log Z(φ_l) is summed exactly. So the bound holds whether or not the messages have converged (see the
    diagnostics `residual`, `converged`, `sweeps`). Steps of conditional gradients then add the spanning tree of largest mutual
    information. The value, in nats, is the bound; its gradient is that of the bound at fixed messages and forests.

    Attributes:
        trees: the initial number of uniform random spanning trees.
        steps: the number of trees added by conditional gradients.
        damping: the share of the old message in the new one, in [0, 1).
        max_sweeps: the maximum number of updates of every message, in each step.
        tolerance: the change of a log message below which it has converged, in nats.
        seed: the random seed of the trees.

    Raises:
        ValueError: where the energy has no factors, or one over three and more variables.

    Source: Wainwright, Jaakkola, Willsky 2005, "A new class of upper bounds on the log partition function"; Wilson 1996 (random trees).

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.routes.TreeReweighted()).upper > 12.7855)
        True
    """

    name: ClassVar[str] = "tree-reweighted belief propagation"
    trees: int = 16
    steps: int = 8
    damping: float = 0.3
    max_sweeps: int = 200
    tolerance: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance, self.damping)
        check_whole_number("trees", self.trees)
        check_whole_number("steps", self.steps, 0)

    def too_wide(self, graph: FactorGraph) -> str | None:
        for scope, live in zip(graph.scopes, messages.layout(graph.cardinalities, graph.scopes).live, strict=True):
            if len(live) > 2:
                return f"tree-reweighting is for factors of at most 2 variables, but one has {len(live)}: {scope}"
        return None

    @property
    def sides(self) -> tuple[bool, bool]:
        return False, True

    def solve(self, found: messages.Model) -> Solved:
        exact = messages.passed_on_forest(found)
        if exact is not None:
            return Solved(exact.log_z(), *exact.marginals(), 0.0, True, 1)
        rng = np.random.default_rng(self.seed)
        n, edges = len(found.unary), np.array(found.scopes)
        forests = _covering(n, edges, self.trees, rng)
        shares = np.full(len(forests), 1 / len(forests))
        best, run, sweeps = self._bound(found, forests, shares, None)
        step = 0.3
        for _ in range(self.steps):
            more = [*forests, _heaviest(n, edges, _mutual_information(run, len(edges)))]
            tried = np.append(shares * (1 - step), step)
            bound, passed, extra = self._bound(found, more, tried, run.messages)
            sweeps += extra
            if bound.value < best.value:
                best, run, forests, shares = bound, passed, more, tried
                step *= 0.8
            else:
                step *= 0.4
        return best._replace(sweeps=sweeps)

    def _bound(
        self, found: messages.Model, forests: list[np.ndarray], shares: np.ndarray, start: np.ndarray | None
    ) -> tuple[Solved, messages.Messages, int]:
        """The bound for given forests, after tree-reweighted messages."""
        rho = np.zeros(len(found.scopes))
        for forest, share in zip(forests, shares, strict=True):
            rho[forest] += share
        run = messages.Messages(found, messages.colours(found.scopes), rho)
        if start is not None:
            run.messages[...] = start
        run, residual, sweeps = propagated(
            found, run, damping=self.damping, max_sweeps=self.max_sweeps, tolerance=self.tolerance
        )
        bound = _summed(found, run, forests, shares, rho)
        return Solved(*bound, residual, residual <= self.tolerance, sweeps), run, sweeps


class _Bound(NamedTuple):
    value: float
    variables: np.ndarray
    factors: list[np.ndarray]


def _summed(
    found: messages.Model, run: messages.Messages, forests: list[np.ndarray], shares: np.ndarray, rho: np.ndarray
) -> _Bound:
    """Σ_l λ_l log Z(φ_l), and its derivative: the forests' exact marginals, averaged.

    Every forest has the unary terms b_i = φ_i + Σ_f ρ_f m_f→i, and on its edges φ_f/ρ_f - Σ_i m_f→i: with Σ_{l∋f} λ_l = ρ_f they add up to φ
    for any finite messages m. All forests are one graph, of as many copies of the variables.
    """
    n, copies = len(found.unary), len(forests)
    moved: list[np.ndarray] = [np.zeros(0)] * len(found.scopes)
    for f, table in enumerate(found.tables):
        first, second = run.messages[2 * f : 2 * f + 2]
        moved[f] = table / rho[f] - first[: table.shape[0], None] - second[None, : table.shape[1]]
    of = np.concatenate(forests)
    copy = np.repeat(np.arange(copies), [len(forest) for forest in forests])
    scopes = tuple((int(i), int(j)) for i, j in np.array(found.scopes)[of] + n * copy[:, None])
    union = messages.Model(np.tile(run.beliefs, (copies, 1)), scopes, [moved[f] for f in of], 0.0, True)
    passed = messages.passed_on_forest(union)
    assert passed is not None, "spanning forests have no cycles"
    value = passed.log_z(np.repeat(shares, n), shares[copy])
    variables, pairs = passed.marginals()
    mean = np.einsum("l,lnk->nk", shares, variables.reshape(copies, n, -1))
    factors = [np.zeros(table.shape) for table in found.tables]
    for f, share, pair in zip(of, shares[copy], pairs, strict=True):
        factors[f] += (share / rho[f]) * pair
    return _Bound(value, mean, factors)


def _mutual_information(run: messages.Messages, edges: int) -> np.ndarray:
    """I(x_i; x_j) of every edge's belief, in nats."""
    found = np.zeros(edges)
    for block in run.distinct():
        p = messages.normalised(run.joint(block)[0], (1, 2))
        found[block.numbers] = _negentropy(p, (1, 2)) - _negentropy(p.sum(axis=2), 1) - _negentropy(p.sum(axis=1), 1)
    return found


def _negentropy(p: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    return (p * np.log(np.where(p > 0, p, 1))).sum(axis=axis)


def _heaviest(n: int, edges: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The edges of a spanning forest of largest total weight (Kruskal)."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    chosen = []
    for e in np.argsort(-weights, kind="stable"):
        i, j = root(int(edges[e, 0])), root(int(edges[e, 1]))
        if i != j:
            parent[i] = j
            chosen.append(int(e))
    return np.array(chosen)


def _covering(n: int, edges: np.ndarray, trees: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Uniform random spanning forests, and further ones that cover the edges in none of these."""
    around: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for e, (i, j) in enumerate(edges.tolist()):
        around[i].append((j, e))
        around[j].append((i, e))
    forests = [_uniform_forest(around, rng) for _ in range(trees)]
    free = np.ones(len(edges), bool)
    free[np.concatenate(forests)] = False
    while free.any():
        forests.append(_heaviest(n, edges, free + 0.5 * rng.random(len(edges))))
        free[forests[-1]] = False
    return forests


def _uniform_forest(around: list[list[tuple[int, int]]], rng: np.random.Generator) -> np.ndarray:
    """A uniform random spanning forest by loop-erased random walks (Wilson 1996): P(e) is the edge's effective resistance."""
    n, chosen = len(around), []
    done = [False] * n
    reached = [False] * n  # by some component
    for first in range(n):
        if reached[first]:
            continue
        members, reached[first] = [first], True
        for i in members:
            for j, _ in around[i]:
                if not reached[j]:
                    reached[j] = True
                    members.append(j)
        done[first] = True
        for start in members:
            step: dict[int, tuple[int, int]] = {}
            i = start
            while not done[i]:
                step[i] = around[i][int(rng.random() * len(around[i]))]
                i = step[i][0]
            i = start
            while not done[i]:
                done[i] = True
                chosen.append(step[i][1])
                i = step[i][0]
    return np.array(chosen, int)
