"""The one list of exact routes and the one of limits, and what each member of the contract suite measures of an energy by one of them."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from contracts.energies import CASES, Case

# Every deterministic route that is exact, and numerical integration.
EXACT: list[lnz.Route] = [
    lnz.routes.ClosedForm(),
    lnz.routes.CompleteGraph(),
    lnz.routes.Elimination(),
    lnz.routes.Enumeration(),
    lnz.routes.Forest(),
    lnz.routes.ForwardBackward(),
    lnz.routes.KacWard(),
    lnz.routes.Quadrature(points=65),
    lnz.routes.SemiMarkov(),
    lnz.routes.Torus(),
    lnz.routes.TransferMatrix(),
]

# Routes with E[Ẑ] = Z, and a lower bound that holds as often as it says.
STOCHASTIC: list[lnz.Route] = [
    lnz.routes.AnnealedImportanceSampling(temperatures=12, chains=16),
    lnz.routes.SequentialMonteCarlo(particles=16, replicates=4),
]

# The same for known values alone, so that no trace can run them hundreds of times: routes/annealing/test_fitted_smc.py holds them to it.
ON_HOST: list[lnz.Route] = [lnz.routes.FittedSMC(particles=4, replicates=2000, rounds=1, mode_probes=0)]

# Routes without a promise that a sum can refute.
APPROXIMATE: list[lnz.Route] = [
    lnz.routes.BeliefPropagation(),
    lnz.routes.BidirectionalAIS(temperatures=12, chains=16),
    lnz.routes.ParallelTempering(rungs=4, iterations=50, replicates=4),
]


def models_of(route: lnz.Route) -> list[lnz.Energy]:
    """Energies that a route supports: the first two of the list, or those that it is made for."""
    rng = np.random.default_rng(6)
    special: dict[type, list[lnz.Energy]] = {
        lnz.routes.CompleteGraph: [lnz.Ising(0.3 * (1 - np.eye(5)), rng.normal(size=5))],
        lnz.routes.Torus: [lnz.Ising.lattice((3, 4), 0.4, periodic=True)],
        lnz.routes.KacWard: [lnz.Ising.lattice((3, 3), rng.normal(size=(2, 3, 3)), periodic=False)],
    }
    listed = [case.energy for case in CASES if case.discrete or isinstance(route, lnz.routes.ClosedForm)]
    return special.get(type(route)) or [e for e in listed if route.unsupported_reason(e) is None][:2]


def exact_routes(case: Case) -> dict[str, lnz.Route]:
    routes: dict[str, lnz.Route] = {"closed form": lnz.routes.ClosedForm(), "enumeration": lnz.routes.Enumeration()}
    if case.points:
        routes["quadrature"] = lnz.routes.Quadrature(points=case.points)
    if case.thorough:
        routes["enumeration in blocks"] = lnz.routes.Enumeration(memory=8 * 8 * 64)
    if case.name == "ising chain":
        routes["forest"] = lnz.routes.Forest()
    routes |= {"forward-backward": lnz.routes.ForwardBackward(), "semi-Markov": lnz.routes.SemiMarkov()}
    if case.name in ("ising cylinder", "potts odd torus"):
        routes["transfer matrix"] = lnz.routes.TransferMatrix()
    return {name: route for name, route in routes.items() if route.unsupported_reason(case.energy) is None}


# Small tables, so that limits are no identities, and sweeps until they stand still, so that they have derivatives.
BOUNDS: dict[str, lnz.Route] = {
    "mean field": lnz.routes.MeanField(restarts=4, tolerance=1e-8),
    "structured mean field": lnz.routes.StructuredMeanField(restarts=4, tolerance=1e-10),
    "tree-reweighted": lnz.routes.TreeReweighted(trees=4, steps=0, max_sweeps=100),
    "mini-buckets above": lnz.routes.MiniBucket(i_bound=2, max_sweeps=60),
    "mini-buckets below": lnz.routes.MiniBucket(i_bound=2, side="lower", max_sweeps=60),
}


def bounds(case: Case) -> dict[str, lnz.Route]:
    return {name: route for name, route in BOUNDS.items() if route.unsupported_reason(case.energy) is None}


PAIRS = [(case, route) for case in CASES for route in exact_routes(case)]


def limited() -> list[tuple[Case, str]]:
    """One case of every kind of energy that has factors, with every limit that serves it."""
    kinds = {type(case.energy): case for case in CASES if hasattr(case.energy, "factors")}
    return [(case, name) for case in kinds.values() for name in bounds(case)]


LIMITED = limited()


def pair_id(pair: tuple[Case, str]) -> str:
    return f"{pair[0].name}, {pair[1]}".replace(" ", "_")


class Measured(NamedTuple):
    """What a route says of an energy at several parameter vectors (axis 0), and at the first of them."""

    parameters: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    gradient: np.ndarray
    directions: np.ndarray
    curvature: np.ndarray  # ∇² log Z along the directions, forward over reverse
    nested: np.ndarray | None  # the same at the first parameters, reverse over reverse
    free_energies: np.ndarray | None
    positive: np.ndarray | None
    moments: Any


def observable(v: Any) -> Any:
    """A pytree of arrays, with an integer and a boolean among them."""
    first = jax.tree.leaves(v)[0]
    return {"state": v, "square": jnp.sum(first) ** 2, "positive": first > 0, "one": jnp.ones((), jnp.int32)}


def weighted(weights: jax.Array, x: jax.Array) -> jax.Array:
    """Σ w x, where a weight of zero leaves its x out, be it infinite."""
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, x, 0), 0))


def as_states(case: Case) -> Any:
    """The listed observed states as JAX arrays, integers for categories."""
    return jax.tree.map(
        lambda x, s: jnp.asarray(x).astype(s.dtype), case.observed, lnz.capabilities.observed_space(case.energy).struct
    )


@functools.cache
def measured(case: Case, route_name: str) -> Measured:
    """One compiled program a case and route: jit of jvp of vmap of grad, and what else is cheap beside it."""
    route = exact_routes(case)[route_name]
    rng = np.random.default_rng(5)
    flat = case.flat
    rows = [flat, 0.37 * flat, flat * (1 + 0.1 * rng.uniform(-1, 1, flat.size))]
    rows += [1000 * flat] if case.loud and route_name != "transfer matrix" else []
    parameters = np.stack(rows)
    directions = rng.normal(size=parameters.shape)
    states = as_states(case) if case.discrete else None
    chances = jnp.asarray(case.observed_probabilities(flat)) if case.discrete else None

    def log_z(flat: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        estimate = lnz.log_partition(case.at(flat), route=route)
        return estimate.value, (estimate.lower, estimate.upper)

    gradient = jax.grad(lambda flat: log_z(flat)[0])

    def everything(parameters: jax.Array, directions: jax.Array, states: Any, chances: Any) -> Any:
        both = jax.vmap(jax.value_and_grad(log_z, has_aux=True))
        ((value, limits), slope), (_, curvature) = jax.jvp(both, (parameters,), (directions,))
        nested = free = positive = moments = None
        if case.discrete:
            free = jax.vmap(lnz.capabilities.free_energy_of(case.at(parameters[0])))(states)
            mean = lambda flat: -weighted(chances, jax.vmap(lnz.capabilities.free_energy_of(case.at(flat)))(states))  # noqa: E731
            positive = jax.grad(mean)(parameters[0])
        if case.thorough:
            nested = jax.grad(lambda flat: jnp.dot(gradient(flat), directions[0]))(parameters[0])
            if case.discrete:
                moments = lnz.expectation(case.at(parameters[0]), observable, route=route)
        return value, *limits, slope, curvature, nested, free, positive, moments

    results = jax.jit(everything)(jnp.asarray(parameters), jnp.asarray(directions), states, chances)
    value, lower, upper, slope, curvature, nested, *rest = jax.tree.map(np.asarray, results)
    return Measured(parameters, value, lower, upper, slope, directions, curvature, nested, *rest)
