"""The one list of exact routes, and what each member of the contract suite measures of an energy by one of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lnz
import numpy as np

from contracts.energies import CASES, Case

# Compile time is most of what these tests cost, and the arithmetic is the same without the compiler's optimisations.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick_jit(f: Any) -> Any:
    return jax.jit(f, compiler_options=QUICK)


def exact_routes(case: Case) -> dict[str, lnz.Route]:
    routes: dict[str, lnz.Route] = {
        "closed form": lnz.ClosedForm(),
        "enumeration": lnz.Enumeration(),
        "quadrature": lnz.Quadrature(points=case.points),
    }
    if case.blocks:
        routes["enumeration in blocks"] = lnz.Enumeration(memory=8 * 8 * 64)
    return {name: route for name, route in routes.items() if route.refusal(case.energy) is None}


PAIRS = [(case, route) for case in CASES for route in exact_routes(case)]


def pair_id(pair: tuple[Case, str]) -> str:
    return f"{pair[0].name}, {pair[1]}".replace(" ", "_")


class Measured(NamedTuple):
    """What a route says of an energy at several parameter vectors (axis 0), and at the first of them."""

    parameters: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    gradient: np.ndarray
    direction: np.ndarray
    forward_over_reverse: np.ndarray
    reverse_over_reverse: np.ndarray
    free_energies: np.ndarray | None
    moments: Any
    phases: np.ndarray | None


def observable(v: Any) -> Any:
    """A pytree of arrays, with an integer and a boolean among them."""
    first = jax.tree.leaves(v)[0]
    return {"state": v, "square": jnp.sum(first) ** 2, "positive": first > 0, "one": jnp.ones((), jnp.int32)}


@functools.cache
def measured(case: Case, route_name: str) -> Measured:
    """One compiled program a case and route: jit of vmap of grad, and second derivatives both ways."""
    route = exact_routes(case)[route_name]
    rng = np.random.default_rng(5)
    flat = case.flat
    rows = [flat, 0.37 * flat, flat * (1 + 0.1 * rng.uniform(-1, 1, flat.size))]
    rows += [1000 * flat] if case.loud else []
    parameters, direction = np.stack(rows), rng.normal(size=flat.size)
    listable = route_name.startswith("enumeration") and case.discrete
    chances = jnp.asarray(case.observed_probabilities(flat)) if listable else None
    observed = jax.tree.map(jnp.asarray, case.observed) if listable else None
    if listable and isinstance(case.energy.observed, lnz.Categorical):
        observed = observed.astype(jnp.int32)

    def log_z(flat: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        estimate = lnz.log_partition(case.at(flat), route=route)
        return estimate.value, (estimate.lower, estimate.upper)

    gradient = jax.grad(lambda flat: log_z(flat)[0])

    def everything(parameters: jax.Array, direction: jax.Array, observed: Any, chances: Any) -> Any:
        (value, limits), slope = jax.vmap(jax.value_and_grad(log_z, has_aux=True))(parameters)
        forward = jax.jvp(gradient, (parameters[0],), (direction,))[1]
        reverse = jax.grad(lambda flat: jnp.dot(gradient(flat), direction))(parameters[0])
        free = moments = halves = None
        if listable:
            energy = case.at(parameters[0])
            free = jax.vmap(energy.free_energy)(observed)
            moments = lnz.expectation(energy, observable, route=route)
            halves = lnz.phases(energy, observed, route, weights=chances).gradient
            halves = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(halves)] or [jnp.zeros(0)])
        return value, *limits, slope, forward, reverse, free, moments, halves

    results = quick_jit(everything)(jnp.asarray(parameters), jnp.asarray(direction), observed, chances)
    value, lower, upper, slope, forward, reverse, free, moments, halves = jax.tree.map(np.asarray, results)
    return Measured(parameters, value, lower, upper, slope, direction, forward, reverse, free, moments, halves)
