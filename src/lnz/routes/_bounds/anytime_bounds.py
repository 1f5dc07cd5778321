"""Anytime bounds on log Z of an energy: exact routes where they are affordable, otherwise bounds that tighten until time runs out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import Factored, factors_of
from lnz._core.energy import Energy, widen
from lnz._core.estimate import Estimate
from lnz._core.frozen import is_traced
from lnz._graphs.anytime_solver import tighten
from lnz._models.factor_graph import unpacked
from lnz._models.pairwise import Ising
from lnz.routes._exact.exact_routes import exact_route
from lnz.routes._exact.kac_ward import KacWard
from lnz.routes._exact.torus import Torus


def anytime_bounds(
    energy: Energy, *, within: float, max_seconds: float, max_memory: float | None, seed: int
) -> Estimate:
    """Bounds on log Z of an energy, or log Z itself where an exact route is affordable: see `lnz.log_partition_bounds`."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(energy)):
        raise ValueError(
            "log_partition_bounds runs on the host and cannot be traced: call it outside jit, vmap and grad, or call log_partition with a route "
            "that has a gradient, such as lnz.routes.MiniBucket(i_bound=12)"
        )
    if energy.offers(Factored) is None:
        choice, _ = exact_route(energy)
        if choice is None:
            raise ValueError(
                f"{type(energy).__name__} has no factors and no exact route is affordable, so no bounds can be computed: use "
                "lnz.log_partition for a stochastic estimate"
            )
        return choice.route.log_partition(energy, None)
    for special in (Torus(), KacWard()) if isinstance(energy, Ising) else ():
        if special.unsupported_reason(energy) is None:
            return special.log_partition(energy, None)
    graph = factors_of(widen(energy))
    tables = unpacked(np.asarray(graph.log_potentials, np.float64), graph.shapes)
    found = tighten(
        graph.cardinalities,
        graph.scopes,
        [tables[t] for t in graph.table_of],
        within=within,
        max_seconds=max_seconds,
        max_memory=max_memory,
        seed=seed,
    )
    size = f"{len(graph.cardinalities):,} variables and {len(graph.scopes):,} factors"
    return Estimate(
        value=jnp.asarray(found.value, jnp.result_type(float)),
        standard_error=jnp.zeros((), jnp.result_type(float)),
        lower=_outward(found.lower, -np.inf),
        upper=_outward(found.upper, np.inf),
        guarantee="exact" if found.exact else "bound",
        route=f"bounds on {size}: {found.sentence()}",
        diagnostics={"seconds": jnp.asarray(found.seconds), "history": jnp.asarray(np.array(found.history, float))},
    )


def _outward(bound: float, side: float) -> Float[Array, ""]:
    """The bound in JAX's default float width, rounded away from log Z."""
    dtype = jnp.result_type(float)
    near = np.asarray(bound, dtype)
    inside = float(near) > bound if side < 0 else float(near) < bound
    return jnp.asarray(np.nextafter(near, np.asarray(side, dtype)) if inside else near)
