"""Routes that run on the host: NumPy behind a callback, and the gradient through an energy's factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array

from lnz._core.capabilities import factors_of
from lnz._core.energy import Energy, widen
from lnz._models.factor_graph import FactorGraph


def on_host(
    run: Callable[..., Any],
    shapes: Any,
    *arguments: Array,
    route: Any,
    batched: bool = False,
    order: int = 1,
) -> Any:
    """`run` of NumPy arrays, under any transformation but a derivative, which raises a ValueError.

    Args:
        run: from arrays to arrays of the `shapes`, a pytree of `jax.ShapeDtypeStruct`.
        route: the route, named in the error.
        batched: whether `run` takes arrays with further axes in front, and so a whole `vmap` at once; otherwise it is called for each member.
        order: the order of the derivatives of log Z that the route supports, 1 or 2.
    """
    method = "broadcast_all" if batched else "sequential"
    call = undifferentiated(
        lambda *arrays: jax.pure_callback(run, shapes, *arrays, vmap_method=method), orders_only(route, order)
    )
    return call(*arguments)


def undifferentiated(f: Callable[..., Any], refusal: str) -> Callable[..., Any]:
    """A function of arrays whose derivative raises a ValueError with this message."""
    once = jax.custom_jvp(f)

    @once.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        raise ValueError(refusal)

    return once


def orders_only(route: Any, order: int = 1) -> str:
    """The refusal of a further derivative by a route that gives derivatives of log Z up to this order, 1 or 2."""
    given, wanted = ("first", "second") if order == 1 else ("first and second", "third")
    return (
        f"{type(route).__name__} gives {given} derivatives only. For {wanted} derivatives of log Z pass route=lnz.routes.Enumeration(), or use "
        "differences"
    )


def symmetric(product: Callable[[Array], Array], t: Array, unsupported: Callable[[Array], Array]) -> Array:
    """A symmetric matrix times t, with a product that is opaque to JAX: linear in t, and its own transpose, under every transformation.

    The only public way to declare this of a callback is `custom_linear_solve`: the solution of a system whose solver is the product. `unsupported`
    stands for the system's matrix, which is evaluated only for derivatives with respect to the arguments of the product, where it raises.
    """
    return jax.lax.custom_linear_solve(unsupported, t, lambda _, b: product(b), symmetric=True)


def structure(energy: Energy) -> FactorGraph:
    """The graph of an energy; its log-potentials may be traced, or not computed at all."""
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    found: list[FactorGraph] = []

    def build(parameters: Any) -> Array:
        found.append(factors_of(eqx.combine(parameters, constants)))
        return found[0].log_potentials

    jax.eval_shape(build, parameters)
    return found[0]


def tables_of(energy: Energy) -> tuple[FactorGraph, Array, Callable[[Array], Any]]:
    """An energy's factors, their log-potentials in one array, and a map from ∂log Z/∂φ, the factors' marginals, to the gradient of log Z.

    E[-∂E] = Σ_f Σ_x P(x_f = x) ∂φ_f(x) (T1), a pytree like the energy's float arrays.
    """
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

    def factors(parameters: Any) -> tuple[Array, FactorGraph]:
        graph = factors_of(widen(eqx.combine(parameters, constants)))
        return graph.log_potentials, graph

    flat, pull_back, graph = jax.vjp(factors, parameters, has_aux=True)
    return graph, flat, lambda means: pull_back(means)[0]
