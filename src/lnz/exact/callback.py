"""Routes that run on the host: NumPy behind a callback, and the gradient from the means of an energy's factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from lnz.energies.graph import FactorGraph
from lnz.energy import Energy, widen


def on_host(run: Callable[..., Any], shapes: Any, *arguments: Array, route: Any) -> Any:
    """`run` of NumPy arrays, under any transformation but a derivative, which is refused in words.

    Args:
        run: from arrays to arrays of the `shapes`, a pytree of `jax.ShapeDtypeStruct`.
        route: whose name the refusal gives.
    """
    call = jax.custom_jvp(lambda *arrays: jax.pure_callback(run, shapes, *arrays, vmap_method="sequential"))

    @call.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise ValueError(
            f"{type(route).__name__} gives first derivatives only. For second derivatives of log Z pass route=lnz.Enumeration(), or take "
            "differences"
        )

    return call(*arguments)


def structure(energy: Energy) -> FactorGraph:
    """The graph of an energy, whose log-potentials may be traced or not be computed at all."""
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    found: list[FactorGraph] = []

    def build(parameters: Any) -> Array:
        found.append(eqx.combine(parameters, constants).factors())
        return found[0].log_potentials

    jax.eval_shape(build, parameters)
    return found[0]


def mean_gradient_of_factors(energy: Energy, means: Callable[[FactorGraph, np.ndarray], np.ndarray], route: Any) -> Any:
    """E[-∂E] = Σ_f Σ_x P(x_f = x) ∂φ_f(x) (T1), a pytree like the energy's float arrays.

    Args:
        means: from a graph and its log-potentials (entries,) to the derivative of log Z with respect to them, in the same places. NaN in
            the log-potentials gives NaN without it.
    """
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

    def factors(parameters: Any) -> FactorGraph:
        return widen(eqx.combine(parameters, constants)).factors()

    graph = factors(parameters)

    def run(flat: Any) -> np.ndarray:
        flat = np.asarray(flat)
        return np.full_like(flat, np.nan) if np.isnan(flat).any() else means(graph, flat).astype(flat.dtype)

    flat, pull_back = jax.vjp(lambda p: factors(p).log_potentials, parameters)
    return pull_back(on_host(run, jax.ShapeDtypeStruct(flat.shape, flat.dtype), flat, route=route))[0]
