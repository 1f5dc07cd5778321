"""log Z and its derivative, once: ∇_θ log Z = E_{x ~ p_θ}[-∂_θ E_θ(x)]."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._choose import chosen_route
from lnz._core.capabilities import arrays_are_data
from lnz._core.energy import Energy, ModelLike, as_energy
from lnz._core.estimate import Estimate
from lnz._core.frozen import Frozen, is_traced, known_values
from lnz._core.route import Route
from lnz.routes._annealing.annealing_route import AnnealingRoute
from lnz.routes._annealing.repeat_until import repeat_until
from lnz.routes._bounds.anytime_bounds import anytime_bounds


def log_partition(
    energy: ModelLike, *, route: Route | None = None, key: PRNGKeyArray | None = None, **deprecated: Any
) -> Estimate:
    """log Z(θ) = log Σ_x exp(-E_θ(x)), or the integral, in nats, with its error and guarantee.

    Works under `jax.jit`, `jax.vmap` and `jax.grad`. The derivative of the estimate's value (and of its bounds, which move with it) is
    E_p[-∂_θ E_θ(x)], computed by the same route; exact routes can be differentiated again (T7). For bounds that tighten while there is time, see
    `log_partition_bounds`; for repeated runs of a stochastic route, `log_partition_to_accuracy`.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        route: how to compute the sum; by default `lnz.choose(energy)` picks one.
        key: a random key, for routes that draw samples.
        **deprecated: `within`, `max_seconds`, `resume` and `progress` of version 0.1, for one more release.

    Returns:
        An `Estimate` with a scalar value in nats.

    Raises:
        ValueError: where the route does not support this energy, with the reason; where a random key is missing; where the energy is NaN,
            or Z infinite.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> float(lnz.log_partition(lnz.Ising(jnp.zeros((3, 3)))))  # doctest: +ELLIPSIS
        2.0794...
    """
    if deprecated:
        return _log_partition_of_version_0_1(energy, route, key, **deprecated)
    energy, route = as_energy(energy), _checked(route)
    route = chosen_route(energy, key) if route is None else route
    route.require(energy, key)
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    free = arrays_are_data(energy) or not route.structural
    data, constants = eqx.partition(constants, lambda leaf: free and eqx.is_array(leaf))
    # A stochastic route is a few programs of its own, and NumPy where nothing is traced (see `programs`).
    apart = route.random and not any(map(is_traced, jax.tree.leaves((known_values(parameters), data, key))))
    run = _log_partition if apart else _compiled
    estimate = run(route, Frozen(constants), parameters, data, key)
    refuse_nan(estimate, energy)
    return estimate


def log_partition_bounds(
    energy: ModelLike, *, within: float = 0.1, max_seconds: float = 60.0, max_memory: float | None = None, seed: int = 0
) -> Estimate:
    """Bounds on log Z, in nats, that always hold and tighten until they are close enough or time runs out; exact where that is affordable.

    Runs on the host, outside `jit`, `vmap` and `grad`. `value` is the Bethe approximation where belief propagation converged between the
    bounds, or their middle; `route` says which, which method gave either bound, and whether time ran out. `diagnostics` has `seconds` and
    `history`, rows of (seconds, lower, upper). An energy without factors is supported where `choose` has a deterministic route for it.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        within: the gap between the bounds to stop at, in nats.
        max_seconds: the time to stop at; a step that has begun is finished.
        max_memory: bytes that tables may use.
        seed: for elimination orders and starting points.

    Returns:
        An `Estimate` with guarantee "bound", or "exact".

    Raises:
        ValueError: under `jit`, `vmap` or `grad`; where there are neither factors nor a deterministic route; where a log-potential is NaN;
            where `within` or `max_seconds` is not above 0.

    Example:
        >>> import numpy as np, lnz
        >>> rng = np.random.default_rng(0)
        >>> glass = lnz.Ising.lattice((9, 9), rng.normal(size=(2, 9, 9)), rng.normal(size=(9, 9)), periodic=True)
        >>> lnz.log_partition_bounds(glass, within=0.5, max_seconds=10).guarantee  # elimination is affordable
        'exact'
    """
    energy = as_energy(energy)
    estimate = anytime_bounds(energy, within=within, max_seconds=max_seconds, max_memory=max_memory, seed=seed)
    refuse_nan(estimate, energy)
    return estimate


def log_partition_to_accuracy(
    energy: ModelLike,
    route: Route,
    key: PRNGKeyArray,
    *,
    within: float = 0.1,
    max_seconds: float = 60.0,
    resume: str | Path | None = None,
    progress: Callable[[int, Estimate], None] | None = None,
) -> Estimate:
    """log Z in nats by repeated runs of a stochastic route, until the interval of all runs together is narrow enough or time runs out.

    Runs on the host, outside `jit`, `vmap` and `grad`. The interval is evaluated after 1, 2, 4, … runs. The certified lower bound holds
    whenever the runs stop: it is a betting bound, which by Ville's inequality holds at all times simultaneously.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        route: one whose weights have mean Z: `AnnealedImportanceSampling` or `SequentialMonteCarlo`.
        key: a random key.
        within: the width of the interval to stop at, in nats.
        max_seconds: the time to stop at; the run that has begun is finished.
        resume: a file that keeps every run as it ends. Where the file exists, the job continues from there; its result is that of a job that was
            never interrupted, unless `max_seconds` stopped either.
        progress: called after every run and every evaluation with the number of runs and the latest estimate.

    Returns:
        An `Estimate` of all runs together.

    Raises:
        ValueError: for a route of another kind; under `jit`, `vmap` or `grad`; where `within` or `max_seconds` is not above 0.
        CheckpointError: for a file of another model, route or key.

    Example:
        >>> import jax, lnz
        >>> chain = lnz.Ising.lattice((8,), 0.5, periodic=False)
        >>> route = lnz.routes.AnnealedImportanceSampling(temperatures=20, chains=64)
        >>> estimate = lnz.log_partition_to_accuracy(chain, route, jax.random.key(0), within=0.5)
        >>> bool(estimate.upper - estimate.lower <= 0.5)
        True
    """
    energy = as_energy(energy)
    _checked(route)
    if not isinstance(route, AnnealingRoute):
        raise ValueError(
            f"{type(route).__name__} is not a stochastic route that can be repeated: use lnz.log_partition, or a route such as "
            "lnz.routes.AnnealedImportanceSampling"
        )
    route.require(energy, key)
    estimate = repeat_until(
        energy, route, key, within=within, max_seconds=max_seconds, resume=resume, progress=progress
    )
    refuse_nan(estimate, energy)
    return estimate


def _log_partition_of_version_0_1(
    energy: Any, route: Route | None, key: PRNGKeyArray | None, **options: Any
) -> Estimate:
    """The options that `log_partition` had in version 0.1, with a DeprecationWarning that names the function they belong to now."""
    unknown = set(options) - {"within", "max_seconds", "resume", "progress"}
    if unknown:
        raise TypeError(f"log_partition() got an unexpected keyword argument {min(unknown)!r}")
    options = {name: option for name, option in options.items() if option is not None}
    better = "log_partition_bounds(energy, …)" if route is None else "log_partition_to_accuracy(energy, route, key, …)"
    warnings.warn(
        f"log_partition no longer takes within, max_seconds, resume and progress: call lnz.{better}; they go with version 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    if not options:
        return log_partition(energy, route=route, key=key)
    if not {"within", "max_seconds"} & set(options) or (route is None and {"resume", "progress"} & set(options)):
        raise ValueError("resume and progress require a stochastic route and within or max_seconds")
    if route is None:
        return log_partition_bounds(energy, **options)
    options["key"] = key
    return log_partition_to_accuracy(energy, route, **options)


def expectation(energy: ModelLike, f: Any, *, route: Route | None = None, key: PRNGKeyArray | None = None) -> Estimate:
    """E_{v ~ p_θ}[f(v)] over the observed states, with its error. f maps one state to a pytree of arrays.

    Arguments and errors are those of `log_partition`.
    """
    energy, route = as_energy(energy), _checked(route)
    route = chosen_route(energy, key) if route is None else route
    route.require(energy, key)
    estimate = route.expectation(energy, f, key)
    leaves = [leaf for leaf in jax.tree.leaves(estimate.value) if not is_traced(leaf)]
    if any(np.isnan(np.asarray(leaf)).any() for leaf in leaves):
        raise ValueError(
            f"E[f] is NaN: f or the energy {type(energy).__name__} is NaN for some state, every state has probability "
            "zero, or Z is infinite; or E[f] does not exist: |f| e^-E grows or falls too slowly for an integral, or overflows"
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


def refuse_nan(estimate: Estimate, energy: Energy) -> None:
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
