"""log Z and its derivative, once: ∇_θ log Z = E_{x ~ p_θ}[-∂_θ E_θ(x)]."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._choose import choose
from lnz._core.energy import Energy, as_energy
from lnz._core.estimate import Estimate
from lnz._core.frozen import Frozen, is_traced
from lnz._core.route import Route
from lnz.routes._annealing.annealing_route import AnnealingRoute
from lnz.routes._annealing.repeat_until import log_partition_until
from lnz.routes._bounds.anytime_bounds import log_partition_within


def log_partition(
    energy: Any,
    *,
    route: Route | None = None,
    key: PRNGKeyArray | None = None,
    within: float | None = None,
    max_seconds: float | None = None,
    resume: str | Path | None = None,
    progress: Callable[[int, Estimate], None] | None = None,
) -> Estimate:
    """log Z(θ) = log Σ_x exp(-E_θ(x)), or the integral, in nats, with its error and how it is known.

    Works under `jax.jit`, `jax.vmap` and `jax.grad`. The derivative of the estimate's value (and of its limits, which move with it) is
    E_p[-∂_θ E_θ(x)], taken by the same route; exact routes can be differentiated again (T7).

    Args:
        energy: an `Energy`, or any callable with a `space`.
        route: how to take the sum; by default `lnz.choose(energy)` picks one.
        key: a random key, for routes that draw samples.
        within: without a route: tighten limits that always hold until they are so close, in nats; 0.1 if only `max_seconds` is given. With a
            stochastic route: run it again and again until its interval is so narrow (see `lnz.routes._annealing.repeat_until.log_partition_until`).
        max_seconds: with `within`: the time to stop at; 60 by default. Both run on the host, outside `jit`, `vmap` and `grad`: see
            `lnz.routes._bounds.anytime_bounds.log_partition_within`.
        resume: with `within` and a stochastic route: a file that keeps its runs, so that a job that was stopped goes on.
        progress: likewise, a callable that is told the number of runs and the estimate so far.

    Returns:
        An `Estimate` with a scalar value in nats.

    Raises:
        ValueError: where the route cannot serve this energy, with the reason; where a random key is missing; where the energy is NaN,
            or Z infinite.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> float(lnz.log_partition(lnz.Ising(jnp.zeros((3, 3)))).value)  # doctest: +ELLIPSIS
        2.0794...
    """
    energy, route = as_energy(energy), _checked(route)
    joined = isinstance(route, AnnealingRoute) and (within, max_seconds) != (None, None)
    if not joined and (resume, progress) != (None, None):
        raise ValueError("resume and progress are of the runs that within= joins: give within and a stochastic route")
    if within is not None or max_seconds is not None:
        given: dict[str, Any] = {"within": within, "max_seconds": max_seconds}
        given = {name: x for name, x in given.items() if x is not None}
        if isinstance(route, AnnealingRoute):
            route.require(energy, key)
            given |= {"resume": resume, "progress": progress}
            estimate = log_partition_until(energy, route, key, **given)  # pyright: ignore[reportArgumentType]
        elif route is not None:
            raise ValueError(
                "within and max_seconds choose the route themselves, unless it is a stochastic one: leave out either them or route"
            )
        else:
            estimate = log_partition_within(energy, **given)
        _refuse_nan(estimate, energy)
        return estimate
    route = choose(energy).route if route is None else route
    route.require(energy, key)
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    free = energy.arrays_are_data or not route.structural
    data, constants = eqx.partition(constants, lambda leaf: free and eqx.is_array(leaf))
    estimate = _compiled(route, Frozen(constants), parameters, data, key)
    _refuse_nan(estimate, energy)
    return estimate


def expectation(energy: Any, f: Any, *, route: Route | None = None, key: PRNGKeyArray | None = None) -> Estimate:
    """E_{v ~ p_θ}[f(v)] over the observed states, with its error. f maps one state to a pytree of arrays.

    Arguments and errors are those of `log_partition`.
    """
    energy, route = as_energy(energy), _checked(route)
    route = choose(energy).route if route is None else route
    route.require(energy, key)
    estimate = route.expectation(energy, f, key)
    leaves = [leaf for leaf in jax.tree.leaves(estimate.value) if not is_traced(leaf)]
    if any(np.isnan(np.asarray(leaf)).any() for leaf in leaves):
        raise ValueError(
            f"E[f] is NaN: f or the energy {type(energy).__name__} is NaN for some state, every state has probability "
            "zero, or Z is infinite"
        )
    return dataclasses.replace(estimate, quantity="E[f]")


def _checked(route: Any) -> Route | None:
    if route is not None and not isinstance(route, Route):
        raise TypeError(f"route must be a route such as lnz.routes.Enumeration(), but is {route!r}")
    return route


def _log_partition_primal(route: Route, constants: Frozen, parameters: Any, data: Any, key: Any) -> Estimate:
    return route.log_partition(eqx.combine(parameters, data, constants.value), key)


def _forward(route: Route, constants: Frozen, parameters: Any, data: Any, key: Any) -> tuple[Estimate, Any]:
    estimate, mean = route.log_partition_and_mean_gradient(eqx.combine(parameters, data, constants.value), key)
    return estimate, (mean, parameters)


def _backward(route: Route, constants: Frozen, residuals: Any, cotangent: Estimate) -> tuple[Any, None, None]:
    mean, parameters = residuals
    scale = cotangent.value + cotangent.lower + cotangent.upper
    gradient = jax.tree.map(lambda g, p: (scale.astype(g.dtype) * g).astype(p.dtype), mean, parameters)
    return gradient, None, None


_log_partition = jax.custom_vjp(_log_partition_primal, nondiff_argnums=(0, 1))
_log_partition.defvjp(_forward, _backward)
_compiled = jax.jit(_log_partition, static_argnums=(0, 1))


def _refuse_nan(estimate: Estimate, energy: Energy) -> None:
    """Raise on a NaN or an infinite Z where Python can see the value; inside a transformation it stays in the value."""
    if is_traced(estimate.value):
        return
    value = np.asarray(estimate.value)
    if np.isnan(value).any():
        raise ValueError(
            f"log Z is NaN: the energy {type(energy).__name__} is NaN for some state, or -inf and +inf meet. Check its parameters."
        )
    if (value == jnp.inf).any():
        raise ValueError(
            f"log Z is +inf: the energy {type(energy).__name__} is -inf for some state, or its integral still grows at the ends of the "
            "range (no floor, or tails too heavy), so p cannot be normalised."
        )
