"""Base class of the local routes: a solution in NumPy behind a callback, its gradient by beliefs, and its estimate."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.capabilities import Factored, factors_of
from lnz._core.energy import Energy, widen
from lnz._core.estimate import Estimate, Guarantee
from lnz._core.numerics import check_whole_number
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz._graphs import messages
from lnz._models.factor_graph import FactorGraph
from lnz.routes._exact.numpy_callback import on_host, structure, tables_of


class Solved(NamedTuple):
    """A value for log Z less the model's constant, the beliefs that are its derivative, and diagnostics."""

    value: float
    variables: np.ndarray
    factors: list[np.ndarray]
    residual: float
    converged: bool
    sweeps: int


class LocalRoute(Route):
    """A deterministic route over the factors of a discrete model whose cost is that of its tables, not of its width."""

    name: ClassVar[str]

    @abc.abstractmethod
    def solve(self, found: messages.Model) -> Solved:
        """The solution for a model in which every variable has a possible value."""

    def guarantee(self, graph: FactorGraph) -> Guarantee:
        """The guarantee of the value, from the structure alone."""
        return "bound"

    @property
    @abc.abstractmethod
    def sides(self) -> tuple[bool, bool]:
        """Whether the value is a lower and an upper bound."""

    def too_wide(self, graph: FactorGraph) -> str | None:
        """Why the factors are not supported, or None."""
        return None

    def unsupported_reason(self, energy: Energy) -> str | None:
        if energy.offers(Factored) is None:
            return f"{type(energy).__name__} has no factors"
        return self.too_wide(structure(energy))

    def cost(self, energy: Energy) -> float:
        return 100.0

    def log_partition(self, energy: Energy, key: Any = None) -> Estimate:
        return self.log_partition_and_mean_gradient(energy)[0]

    def mean_gradient(self, energy: Energy, key: Any = None) -> Any:
        """The derivative of the value: every factor's belief, pulled back through the energy's `factors()`."""
        return self.log_partition_and_mean_gradient(energy)[1]

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any = None) -> tuple[Estimate, Any]:
        graph, flat, pull_back = tables_of(energy)
        dtype = jnp.result_type(float)

        def run(flat: Any) -> tuple[Any, ...]:
            flat = np.asarray(flat)
            figures, means = (np.nan, 0, 0, 0), np.full_like(flat, np.nan)
            if not np.isnan(flat).any():
                found = messages.model(graph, flat)
                solved = self.solve(found) if found.possible else _impossible(found)
                figures = (solved.value + found.constant, solved.residual, solved.converged, solved.sweeps)
                hopeless = solved.value == -np.inf
                means = np.zeros_like(flat) if hopeless else messages.pulled(graph, solved.variables, solved.factors)
            return *(np.asarray(x, dtype) for x in figures), means.astype(flat.dtype)

        shape = jax.ShapeDtypeStruct((), dtype)
        shapes = (*(shape,) * 4, jax.ShapeDtypeStruct(flat.shape, flat.dtype))
        value, residual, converged, sweeps, means = on_host(run, shapes, flat, route=self)
        guarantee = self.guarantee(graph)
        scale = 1 + factor_sizes(graph, flat) + jnp.abs(jnp.where(jnp.isfinite(value), value, 0))
        estimate = bounded(
            value,
            rounding=32 * jnp.finfo(dtype).eps * scale,
            sides=(True, True) if guarantee == "exact" else self.sides,
            guarantee=guarantee,
            route=f"{self.name} on {len(graph.cardinalities):,} variables and {len(graph.scopes):,} factors",
            residual=residual,
            converged=converged,
            sweeps=sweeps,
        )
        return estimate, pull_back(means)

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any = None) -> Estimate:
        raise ValueError(
            f"{type(self).__name__} gives log Z, its gradient and beliefs of factors, but not E[f] of any f: use an exact or a sampling route"
        )

    def beliefs(self, energy: Any) -> list[np.ndarray]:
        """The beliefs about every variable, in the order of the space's entries: arrays (k_i,). All zero where no value is possible."""
        graph = factors_of(widen(energy))
        found = messages.model(graph, np.asarray(graph.log_potentials))
        solved = self.solve(found) if found.possible else _impossible(found)
        return [row[:k] for row, k in zip(solved.variables, graph.cardinalities, strict=True)]


def bounded(
    value: Array,
    *,
    rounding: Array,
    sides: tuple[bool, bool],
    guarantee: Guarantee,
    route: str,
    residual: Array,
    converged: Array,
    sweeps: Array,
) -> Estimate:
    """An estimate from a value that is a bound of log Z on some sides, or log Z itself on both, up to rounding."""
    dtype = jnp.result_type(float)
    value, nothing, rounding = value.astype(dtype), jnp.zeros((), dtype), jax.lax.stop_gradient(rounding).astype(dtype)
    lower, upper = sides
    figures = {"residual": residual, "converged": converged, "sweeps": sweeps}
    return Estimate(
        value=value,
        standard_error=nothing,
        lower=value - rounding if lower else nothing - jnp.inf,
        upper=value + rounding if upper else nothing + jnp.inf,
        guarantee=guarantee,
        route=route,
        diagnostics={name: figure.astype(dtype) for name, figure in figures.items()},
    )


def factor_sizes(graph: FactorGraph, flat: Array) -> Array:
    """Σ_f max |φ_f| over all factors, of the finite log-potentials: what a state's own sum can be, and rounding errors are proportional to."""
    if not graph.scopes:
        return jnp.zeros(())
    table = np.repeat(np.arange(len(graph.shapes)), [math.prod(shape) for shape in graph.shapes])
    sizes = jnp.abs(jnp.where(jnp.isfinite(flat), flat, 0)).astype(jnp.result_type(float))
    largest = jnp.zeros(len(graph.shapes), sizes.dtype).at[table].max(sizes)
    return jnp.sum(largest * np.bincount(graph.table_of, minlength=len(graph.shapes)).astype(sizes.dtype))


def _impossible(found: messages.Model) -> Solved:
    return Solved(-np.inf, np.zeros_like(found.unary), [np.zeros_like(t) for t in found.tables], 0.0, True, 0)


def check_sweeps(max_sweeps: int, tolerance: float, damping: float = 0.0) -> None:
    """Raise ValueError for invalid settings of an iteration."""
    check_whole_number("max_sweeps", max_sweeps)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, but is {tolerance!r}")
    if not 0 <= damping < 1:
        raise ValueError(f"damping must be at least 0 and below 1, but is {damping!r}")
