"""Elimination: log Z, every marginal, exact samples and the most probable state of any graph whose tables can be multiplied out."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import Factored, factors_of, least_width
from lnz._core.energy import Energy, Gradient, ModelLike, as_energy, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import is_traced
from lnz._core.numerics import check_whole_number
from lnz._core.remembered import Remembered, digest
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz._graphs.contraction_plan import ContractionPlan
from lnz._graphs.solver import EliminationBudget, Solver, described, first_plan, plan_within, rounding
from lnz._models.factor_graph import FactorGraph, packed, states_of, unpacked
from lnz.routes._exact import batched_elimination
from lnz.routes._exact.enumeration import Enumeration
from lnz.routes._exact.numpy_callback import on_host, structure, symmetric, tables_of

_PLANS: Remembered[ContractionPlan] = Remembered(64)
_SECONDS_PER_EVALUATION = (
    20 / 2**22
)  # so that the default budget allows 20 s of predicted work, less than annealing takes
_QUICK_SEARCH = 0.5  # seconds that suffice to decide whether a model is affordable


@dataclasses.dataclass(frozen=True)
class Elimination(EliminationBudget, Route):
    """Exact sums over a discrete model with factors, by summing out its variables (bucket or junction-tree elimination).

    The tables of the energy's `factors()` are multiplied and summed along a binary contraction tree. The gradient, which is every factor's marginal
    (T1), is the reverse mode over the same tree; samples and the most probable state are found from its root down. All in NumPy and float64: an
    irregular tree would take JAX longer to compile than to compute. It works under `jit`, `vmap` and `grad` by a callback. A `vmap` is one pass
    for many models on one structure. Second derivatives (T7: covariances) are products with the Hessian, so `jax.hessian` and
    `jax.jvp` of a gradient work; third derivatives are not supported.

    Attributes:
        max_memory: the most bytes of tables; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, the route raises a ValueError, with the figures.
        search_seconds: processor time of the search for an order; by default a third of the predicted work that a better one could spare.
        seed: the random seed of that search.

    Raises:
        ValueError: where the tree is too expensive even in slices.

    Source: Dechter 1999, "Bucket elimination"; Darwiche 2003, "A differential approach to inference in Bayesian networks" (the gradient).

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((8, 8), 0.5, periodic=True)
        >>> print(round(float(lnz.log_partition(torus, route=lnz.routes.Elimination()).value), 4))  # Kaufman 1949: 66.3446
        66.3446
    """

    def unsupported_reason(self, energy: Energy) -> str | None:
        reason = _misfit(energy)
        if reason is not None:
            return reason
        try:
            self._structure_plan(energy)
        except ValueError as error:
            return str(error)
        return None

    def cost(self, energy: Energy) -> float:
        plan = self._structure_plan(energy)
        evaluations = 10**plan.log10_flops / max(1, len(structure(energy).scopes))
        return min(evaluations, plan.seconds / _SECONDS_PER_EVALUATION)

    def _structure_plan(self, energy: Energy) -> ContractionPlan:
        """The plan before any value is computed: from the structure alone, as if every configuration were possible and nothing barren.

        The tables of a `FactorGraph` itself are known, unless they are traced. Remembered by structure, and by those tables.
        """
        if isinstance(energy, FactorGraph) and not is_traced(energy.log_potentials):
            graph, known = energy, True
        else:
            graph, known = structure(energy), False
        flat = np.asarray(graph.log_potentials) if known else np.zeros(graph.log_potentials.shape)
        key = self, graph.cardinalities, graph.scopes, graph.table_of, graph.shapes, digest(flat) if known else None
        return _PLANS.get(key, lambda: self._planned(graph, flat, pruned=known))

    def _planned(self, graph: FactorGraph, flat: np.ndarray, *, pruned: bool) -> ContractionPlan:
        quick = dataclasses.replace(
            self, search_seconds=_QUICK_SEARCH if self.search_seconds is None else self.search_seconds
        )
        solver = _solver(graph, flat, quick)
        model = solver.pruned[0] if pruned else solver.reduced
        try:
            return plan_within(quick, model, every=False)
        except ValueError:
            if first_plan(quick, model).seconds > 1e3 * self.max_seconds:
                raise  # no search could change that
        return plan_within(self, model, every=False)

    def plan(self, energy: ModelLike) -> ContractionPlan:
        """The contraction tree that would be used, with its width, cost and memory, without running it."""
        return self.solver(energy).plan()

    def solver(self, energy: ModelLike) -> Solver:
        """A solver for the energy's tables. Raises ValueError where it has none."""
        energy = as_energy(energy)
        reason = _misfit(energy)
        if reason is not None:
            raise ValueError(f"Elimination does not support {type(energy).__name__}: {reason}")
        graph = factors_of(widen(energy))
        return _solver(graph, np.asarray(graph.log_potentials), self)

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        graph = factors_of(widen(energy))
        figures, _ = self._on_host(graph, graph.log_potentials, means=False)
        return _estimate(graph, graph.log_potentials, figures)

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂E] from every factor's marginal."""
        return self.log_partition_and_mean_gradient(energy)[1]

    def log_partition_and_mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> tuple[Estimate, Any]:
        """log Z and every factor's marginal by one pass up the tree and one down, for a whole `vmap` at once where memory allows."""
        graph, flat, pull_back = tables_of(energy)

        @jax.custom_jvp
        def solved(flat: Any) -> Any:
            return self._on_host(graph, flat, means=True)

        @solved.defjvp
        def derivative(primals: Any, tangents: Any) -> Any:
            (flat,), (t,) = primals, tangents
            figures, means = solved(flat)
            moved = (
                jnp.sum(jnp.where(means > 0, means * t, 0)).astype(figures[0].dtype),
                *map(jnp.zeros_like, figures[1:]),
            )
            return (figures, means), (moved, self._curvature(graph, flat, t))

        figures, means = solved(flat)
        return _estimate(graph, flat, figures), pull_back(means)

    def _on_host(self, graph: FactorGraph, flat: Any, *, means: bool) -> tuple[Any, Any]:
        """log Z, width, bytes and seconds; and the derivative of log Z with respect to the log-potentials, in their places."""
        dtype, shape = jnp.result_type(float), flat.shape[-1:] if means else (0,)

        def run(flat: Any) -> Any:
            begun, flat = time.perf_counter(), np.asarray(flat)
            rows, good = _rows(flat)
            found = _summed(graph, rows[good], self, means=means)
            took = (time.perf_counter() - begun) / max(1, len(rows))
            lead = flat.shape[:-1]
            figures = (_placed(found.log_z, good, lead), *(np.full(lead, x) for x in (found.width, found.memory, took)))
            gradient = _placed(_gathered(graph, found.beliefs), good, lead) if means else np.zeros((*lead, 0))
            return tuple(x.astype(dtype) for x in figures), gradient.astype(flat.dtype)

        shapes = (jax.ShapeDtypeStruct((), dtype),) * 4, jax.ShapeDtypeStruct(shape, flat.dtype)
        return on_host(run, shapes, flat, route=self, batched=True, order=2)

    def _curvature(self, graph: FactorGraph, flat: Any, t: Any) -> Any:
        """The Hessian of log Z with respect to the log-potentials, times t: covariances (T7)."""
        shape = jax.ShapeDtypeStruct(flat.shape, flat.dtype)

        def run(flat: Any, t: Any) -> np.ndarray:
            flat, t = np.asarray(flat), np.asarray(t)
            (rows, good), (directions, finite) = _rows(flat), _rows(t)
            good = good & finite
            found = _tables(graph, rows[good]), _tables(graph, directions[good])
            moved = batched_elimination.curvature(graph.cardinalities, _scopes(graph), *found, self)
            return _placed(_gathered(graph, moved), good, flat.shape[:-1]).astype(flat.dtype)

        host = functools.partial(on_host, route=self, batched=True, order=2)
        return symmetric(lambda t: host(run, shape, flat, t), t, lambda y: y * host(np.ones_like, shape, flat))

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        """E[f] of any f is a sum over all states: by enumeration where they are few enough. For marginals see `marginals` and `joint`."""
        route = Enumeration()
        reason = route.unsupported_reason(energy)
        if reason is not None:
            raise ValueError(
                f"Elimination gives log Z, its gradient, marginals and samples, but E[f] of any f needs all states, and {reason}: average f "
                "over `sample(energy, key, n)`"
            )
        return route.expectation(energy, f, key)

    def marginals(self, energy: ModelLike) -> list[np.ndarray]:
        """P(x_i) of every variable, in the order of the space's entries: arrays (k_i,). All zero where Z is."""
        return self.solver(energy).marginals()

    def factor_marginals(self, energy: ModelLike) -> list[np.ndarray]:
        """P(x_scope) of every factor of the energy's `factors()`, with the shape of its table. All zero where Z is."""
        return self.solver(energy).factor_marginals()

    def joint(self, energy: ModelLike, variables: Sequence[int]) -> np.ndarray:
        """P(x_a, x_b, …) of any few variables, the axes in their order."""
        graph = factors_of(as_energy(energy))
        shape = tuple(graph.cardinalities[i] for i in variables)
        more = jnp.append(graph.log_potentials, jnp.zeros(math.prod(shape), graph.log_potentials.dtype))
        number = len(graph.shapes)
        wider = packed(
            graph.cardinalities,
            (*graph.scopes, tuple(variables)),
            (*graph.table_of, number),
            (*graph.shapes, shape),
            more,
        )
        return self.factor_marginals(wider)[-1]

    def entropy(self, energy: ModelLike) -> float:
        """-Σ p log p over all variables (latent ones included), in nats: log Z - Σ_f E[φ_f]."""
        return self.solver(energy).entropy()

    def sample(self, energy: ModelLike, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples of all variables, latent ones included: states of `energy.space`."""
        bits = jax.random.bits(key, (4,), jnp.uint32)

        def drawn(solver: Solver, bits: Any) -> tuple[np.ndarray, np.ndarray]:
            return solver.sample(np.random.default_rng(np.asarray(bits)), n), np.zeros(n)

        return states_of(as_energy(energy).space, self._labelled(energy, drawn, n, bits)[0])

    def map_state(self, energy: ModelLike) -> State:
        """The most probable state of all variables (one of them if there are several): argmax p, a state of `energy.space`."""
        return jax.tree.map(lambda x: x[0], self.n_best(energy, 1)[0])

    def n_best(self, energy: ModelLike, n: int) -> tuple[State, Any]:
        """The n most probable states of all variables, the best first, and their log-weights -E(x): see `lnz.crf.n_best`."""
        check_whole_number("n", n)
        labels, log_weights = self._labelled(energy, lambda solver: solver.n_best(int(n)), n)
        return states_of(as_energy(energy).space, labels), log_weights

    def _labelled(self, energy: Any, answer: Callable[..., Any], n: int, *arrays: Any) -> tuple[Any, Any]:
        """Labels (n, variables) and their log-weights from a solver: under a transformation by a callback, where missing rows have -inf."""
        energy = as_energy(energy)
        graph = None if energy.offers(Factored) is None else factors_of(widen(energy))
        if graph is None or not any(map(is_traced, (graph.log_potentials, *arrays))):
            return answer(self.solver(energy), *arrays)
        self.require(energy, None)
        variables, dtype = len(graph.cardinalities), jnp.result_type(float)

        def run(flat: Any, *arrays: Any) -> tuple[np.ndarray, np.ndarray]:
            labels, log_weights = np.zeros((n, variables), np.int32), np.full(n, -np.inf, dtype)
            if np.isnan(flat).any():
                return labels, log_weights * np.nan
            solver = _solver(graph, np.asarray(flat), self)
            if solver.log_partition() > -np.inf:
                found, weights = answer(solver, *arrays)
                labels[: len(found)], log_weights[: len(found)] = found, weights
            return labels, log_weights

        shapes = jax.ShapeDtypeStruct((n, variables), jnp.int32), jax.ShapeDtypeStruct((n,), dtype)
        return on_host(run, shapes, graph.log_potentials, *arrays, route=self)


def _misfit(energy: Energy) -> str | None:
    if energy.offers(Factored) is None:
        return "it has no factors"
    return f"the width of its graph is at least {least_width(energy)}" if least_width(energy) > 48 else None


def _solver(graph: FactorGraph, flat: np.ndarray, budget: EliminationBudget) -> Solver:
    tables = unpacked(np.asarray(flat, np.float64), graph.shapes)
    return Solver(graph.cardinalities, graph.scopes, [tables[t] for t in graph.table_of], budget)


def _estimate(graph: FactorGraph, flat: Any, figures: Any) -> Estimate:
    log_z, width, memory, seconds = figures
    dtype = jnp.result_type(float)
    largest = jnp.max(jnp.where(jnp.isfinite(flat), jnp.abs(flat), 0), initial=0).astype(dtype)
    finite = jnp.where(jnp.isfinite(log_z), log_z, 0)
    return exact(
        log_z,
        rounding=jax.lax.stop_gradient(rounding(finite, largest, len(graph.scopes), jnp.finfo(dtype).eps)),
        route=described(len(graph.cardinalities), len(graph.scopes)),
        diagnostics={"width": width, "memory": memory, "seconds": seconds},
    )


def _rows(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A batch with its leading axes flattened, (members, entries), and which of its members are free of NaN."""
    rows = flat.reshape(math.prod(flat.shape[:-1]), flat.shape[-1])
    return rows, np.asarray(~np.isnan(rows).any(axis=1))


def _placed(found: np.ndarray, good: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
    """The members' results in the batch's own axes, NaN where a member has none."""
    every = np.full((len(good), *found.shape[1:]), np.nan)
    every[good] = found
    return every.reshape((*lead, *found.shape[1:]))


def _scopes(graph: FactorGraph) -> list[tuple[int, ...]]:
    """The scopes, and that of a constant, so that a batch of graphs without factors has a size."""
    return [*graph.scopes, ()]


def _tables(graph: FactorGraph, rows: np.ndarray) -> list[np.ndarray]:
    tables = unpacked(np.asarray(rows, np.float64).T, graph.shapes)
    return [*(tables[t] for t in graph.table_of), np.zeros(len(rows))]


def _gathered(graph: FactorGraph, beliefs: Sequence[np.ndarray]) -> np.ndarray:
    """The factors' values (…, members) summed in their tables: (members, entries)."""
    members = beliefs[-1].shape[-1]
    total = [np.zeros((*shape, members)) for shape in graph.shapes]
    for t, belief in zip(graph.table_of, beliefs, strict=False):
        total[t] += belief
    flat = [table.reshape(math.prod(table.shape[:-1]), members) for table in total]
    return np.concatenate([np.zeros((0, members)), *flat]).T


def _summed(
    graph: FactorGraph, rows: np.ndarray, budget: EliminationBudget, *, means: bool
) -> batched_elimination.BatchSums:
    if len(rows):
        return batched_elimination.log_partitions(
            graph.cardinalities, _scopes(graph), _tables(graph, rows), budget, beliefs=means
        )
    return batched_elimination.BatchSums(np.zeros(0), _tables(graph, rows))
