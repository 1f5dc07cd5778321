"""log Z of an energy to a wanted accuracy or for a given time: the exact routes, and `anytime` where they are too dear."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.energy import as_energy, widen
from lnz._core.estimate import Estimate
from lnz._core.frozen import is_traced
from lnz._graphs.anytime_solver import tighten
from lnz._models.factor_graph import unpacked
from lnz._models.pairwise import Ising
from lnz.routes._exact.exact_routes import exact_route
from lnz.routes._exact.kac_ward import KacWard
from lnz.routes._exact.torus import Torus


def log_partition_within(
    energy: Any, *, within: float = 0.1, max_seconds: float = 60.0, max_memory: float | None = None, seed: int = 0
) -> Estimate:
    """log Z in nats, exact where that can be had in time; otherwise an interval of width `within`, or as narrow as time allows.

    What `lnz.log_partition(energy, within=…, max_seconds=…)` calls. Limits hold always (guarantee = "bound"). `value` is the Bethe approximation
    where belief propagation converged inside the limits, or their middle; `route` says which, which method gave either limit, and whether
    the time ran out. `diagnostics` has `seconds` and `history`, rows of (seconds, lower, upper). An energy that has no factors is served
    where `choose` has a deterministic route for it.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        within: the width to stop at, in nats.
        max_seconds: the time to stop at; what has begun is finished.
        max_memory: bytes that tables may take.
        seed: of orders and starts.

    Raises:
        ValueError: under `jit`, `vmap` or `grad`: this runs on the host; where there are neither factors nor a deterministic route; where a
            log-potential is NaN.

    Example:
        >>> import numpy as np, lnz
        >>> rng = np.random.default_rng(0)
        >>> glass = lnz.Ising.lattice((9, 9), rng.normal(size=(2, 9, 9)), rng.normal(size=(9, 9)), periodic=True)
        >>> lnz.log_partition(glass, within=0.5, max_seconds=10).guarantee  # elimination is affordable
        'exact'
    """
    energy = as_energy(energy)
    if any(is_traced(leaf) for leaf in jax.tree.leaves(energy)):
        raise ValueError(
            "log_partition(within=…, max_seconds=…) tightens limits on the host and cannot be traced: call it outside jit, vmap and grad, or "
            "pass a route with a gradient, such as lnz.routes.MiniBucket(i_bound=12)"
        )
    if not hasattr(energy, "factors"):
        choice, _ = exact_route(energy)
        if choice is None:
            raise ValueError(
                f"{type(energy).__name__} has no factors and no exact route is affordable, so it has no limits that always hold: leave out "
                "within and max_seconds for a stochastic estimate"
            )
        return choice.route.log_partition(energy, None)
    for special in (Torus(), KacWard()) if isinstance(energy, Ising) else ():
        if special.unsupported_reason(energy) is None:
            return special.log_partition(energy, None)
    graph = widen(energy).factors()  # pyright: ignore[reportAttributeAccessIssue]
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
        route=f"limits on {size}: {found.sentence()}",
        diagnostics={"seconds": jnp.asarray(found.seconds), "history": jnp.asarray(np.array(found.history, float))},
    )


def _outward(limit: float, side: float) -> Any:
    """The limit in JAX's width of float, rounded to the safe side."""
    dtype = jnp.result_type(float)
    near = np.asarray(limit, dtype)
    inside = float(near) > limit if side < 0 else float(near) < limit
    return jnp.asarray(np.nextafter(near, np.asarray(side, dtype)) if inside else near)
