"""Elimination: log Z, every marginal, exact samples and the most probable state of any graph whose tables can be multiplied out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz.energies.graph import FactorGraph, packed, states_of, unpacked
from lnz.energy import Energy, as_energy, widen
from lnz.estimate import Estimate, exact
from lnz.exact.callback import mean_gradient_of_factors, on_host, structure
from lnz.exact.orders import Plan
from lnz.exact.solver import Limits, Solver, first_plan
from lnz.route import Route
from lnz.spaces import State

_LOOK = 0.5  # seconds of search that suffice to tell whether a model is affordable


@dataclasses.dataclass(frozen=True)
class Elimination(Limits, Route):
    """Exact sums over a discrete model with factors, variable after variable (bucket or junction-tree elimination).

    The tables of `energy.factors()` are multiplied and summed along a binary contraction tree. The gradient, which is every factor's marginal
    (T1), is the reverse mode over the same tree; samples and the most probable state walk it from the top. All in NumPy and float64: an
    irregular tree would take JAX longer to compile than to compute. It works under `jit`, `vmap` and `grad` by a callback; second derivatives
    are not served.

    Attributes:
        max_memory: bytes that tables may take; by default half of the machine's memory. Wider trees are cut into slices that fit.
        max_seconds: where the predicted time is longer, the route refuses, with the figures.
        search_seconds: time to look for an order; by default a third of the predicted work.
        seed: of that search.

    Raises:
        ValueError: where the tree is too dear even in slices.

    Source: Dechter 1999, "Bucket elimination"; Darwiche 2003, "A differential approach to inference in Bayesian networks" (the gradient).

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((8, 8), 0.5, periodic=True)
        >>> print(round(float(lnz.log_partition(torus, route=lnz.Elimination()).value), 4))  # Kaufman 1949: 66.3446
        66.3446
    """

    def refusal(self, energy: Energy) -> str | None:
        reason = _misfit(energy)
        if reason is not None:
            return reason
        try:
            self._structure_plan(energy)
        except ValueError as error:
            return str(error)
        return None

    def cost(self, energy: Energy) -> float:
        return 10 ** self._structure_plan(energy).log10_flops / max(1, len(structure(energy).scopes))

    def _structure_plan(self, energy: Energy) -> Plan:
        """The plan from the structure alone, as if every configuration were possible."""
        graph = structure(energy)
        zeros = np.zeros(graph.log_potentials.shape)
        quick = dataclasses.replace(self, search_seconds=_LOOK if self.search_seconds is None else self.search_seconds)
        solver = _solver(graph, zeros, quick)
        try:
            return solver.plan()
        except ValueError:
            if first_plan(quick, solver.reduced).seconds > 1e3 * self.max_seconds:
                raise  # no search would mend that
        return _solver(graph, zeros, self).plan()

    def plan(self, energy: Any) -> Plan:
        """The contraction tree that would be used, with its width, cost and memory, before any of it is run."""
        return self.solver(energy).plan()

    def solver(self, energy: Any) -> Solver:
        """The energy's tables, ready to be eliminated. Raises ValueError where it has none."""
        energy = as_energy(energy)
        reason = _misfit(energy)
        if reason is not None:
            raise ValueError(f"Elimination cannot serve {type(energy).__name__}: {reason}")
        graph = widen(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
        return _solver(graph, np.asarray(graph.log_potentials), self)

    def log_partition(self, energy: Energy, key: Any = None) -> Estimate:
        graph = widen(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
        flat, dtype = graph.log_potentials, jnp.result_type(float)

        def run(flat: Any) -> tuple[Any, ...]:
            begun, figures = time.perf_counter(), (np.nan, 0, 0, 0)
            if not np.isnan(flat).any():
                solver = _solver(graph, np.asarray(flat), self)
                log_z, plan = solver.log_partition(), solver.plan()
                figures = (log_z, plan.width, plan.peak_bytes, time.perf_counter() - begun)
            return tuple(np.asarray(x, dtype) for x in figures)

        shape = jax.ShapeDtypeStruct((), dtype)
        log_z, width, memory, seconds = on_host(run, (shape,) * 4, flat, route=self)
        largest = jnp.max(jnp.where(jnp.isfinite(flat), jnp.abs(flat), 0), initial=0).astype(dtype)
        scale = 1 + largest + jnp.abs(jnp.where(jnp.isfinite(log_z), log_z, 0))
        rounding = jnp.finfo(dtype).eps * (32 + math.sqrt(len(graph.scopes))) * scale
        return exact(
            log_z,
            rounding=jax.lax.stop_gradient(rounding),
            route=f"elimination of {len(graph.cardinalities):,} variables from {len(graph.scopes):,} factors",
            diagnostics={"width": width, "memory": memory, "seconds": seconds},
        )

    def mean_gradient(self, energy: Energy, key: Any = None) -> Any:
        """E[-∂E] from every factor's marginal, by one pass up the tree and one down."""

        def means(graph: FactorGraph, flat: np.ndarray) -> np.ndarray:
            total = [np.zeros(shape) for shape in graph.shapes]
            for t, belief in zip(graph.table_of, _solver(graph, flat, self).factor_marginals(), strict=True):
                total[t] += belief
            return np.concatenate([np.zeros(0), *(table.ravel() for table in total)])

        return mean_gradient_of_factors(energy, means, self)

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any = None) -> Estimate:
        """E[f] of any f is a sum over all states: by enumeration where they are few enough. For marginals see `marginals` and `joint`."""
        from lnz.exact.enumeration import Enumeration

        route = Enumeration()
        reason = route.refusal(energy)
        if reason is not None:
            raise ValueError(
                f"Elimination gives log Z, its gradient, marginals and samples, but E[f] of any f needs all states, and {reason}: average f "
                "over `sample(energy, key, n)`"
            )
        return route.expectation(energy, f, key)

    def marginals(self, energy: Any) -> list[np.ndarray]:
        """P(x_i) of every variable, in the order of the space's entries: arrays (k_i,). All zero where Z is."""
        return self.solver(energy).marginals()

    def factor_marginals(self, energy: Any) -> list[np.ndarray]:
        """P(x_scope) of every factor of `energy.factors()`, with the shape of its table. All zero where Z is."""
        return self.solver(energy).factor_marginals()

    def joint(self, energy: Any, variables: Sequence[int]) -> np.ndarray:
        """P(x_a, x_b, …) of any few variables, the axes in their order."""
        graph = as_energy(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
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

    def entropy(self, energy: Any) -> float:
        """-Σ p log p over all variables (latent ones included), in nats: log Z - Σ_f E[φ_f]."""
        return self.solver(energy).entropy()

    def sample(self, energy: Any, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples of all variables, latent ones included: states of `energy.space`."""
        rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
        return states_of(as_energy(energy).space, self.solver(energy).sample(rng, n))

    def map_state(self, energy: Any) -> State:
        """The most probable state of all variables (one of them, where several are): argmax p, a state of `energy.space`."""
        states = states_of(as_energy(energy).space, self.solver(energy).most_probable()[None])
        return jax.tree.map(lambda x: x[0], states)


def _misfit(energy: Energy) -> str | None:
    if not hasattr(energy, "factors"):
        return "it has no factors"
    return f"the width of its graph is at least {energy.least_width}" if energy.least_width > 48 else None


def _solver(graph: FactorGraph, flat: np.ndarray, limits: Limits) -> Solver:
    tables = unpacked(np.asarray(flat, np.float64), graph.shapes)
    return Solver(graph.cardinalities, graph.scopes, [tables[t] for t in graph.table_of], limits)
