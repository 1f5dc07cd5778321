"""The base class of annealing routes: log Z, expectations and the mean gradient from weighted states."""

from __future__ import annotations

import abc
import math
import statistics
from collections.abc import Callable
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.convergence import pareto_shape, pareto_tail
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate, digits_lost
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number
from lnz._core.route import Route
from lnz._core.spaces import Box, Real, State, limits_of
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.certificate import lower_bound_of, upper_bound_of
from lnz.routes._annealing.flat_directions import LARGEST, flattest, lowest
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.user_path import AnnealingPath

MANY_STUCK = 0.1  # the share of chains that may be stuck in the far tails of a base
FEW = 5  # effective chains below which the standard error is unreliable
HEAVY = 0.7  # Pareto shape from which an average is unreliable (Vehtari et al. 2024)


class Weighted(eqx.Module):
    """The outcome of a run: an estimate of log Z, and weighted states in independent groups.

    Attributes:
        estimate: of log Z.
        states: (R n, *shape), group after group; what is beyond belongs to no group.
        log_weights: (R, n), of R groups that are independent of each other.
    """

    estimate: Estimate
    states: State
    log_weights: Float[Array, "R n"]


class AnnealingRoute(Route):
    """A stochastic route along a path from a base. A subclass defines `run`; what follows from weighted states is here."""

    unbiased: ClassVar[bool] = False
    """Whether the mean weight of every group of states has mean Z."""
    not_joined: ClassVar[str | None] = None
    """Why the weights of several runs together give no narrower interval, with the remedy; None where they do."""
    base: Frozen | None
    confidence: float

    @abc.abstractmethod
    def run(self, energy: Energy, key: Any) -> Weighted:
        """log Z, and weighted states that represent the model."""

    @classmethod
    def from_base(cls, base: Energy, **options: Any) -> Self:
        """The route with a given base: an energy with `log_normaliser()` and `sample(key, n)`, such as `lnz.routes.fitted_base(…)`."""
        options["base"] = Frozen(base)
        return cls(**options)

    @classmethod
    def from_path(cls, path: Any, *, base: Energy | None = None, **options: Any) -> Self:
        """The route along a given path: the argument of `AnnealingPath` (energies from a known one to the model, or a function of β)."""
        made = path if isinstance(path, AnnealingPath) else AnnealingPath(path, base=base)
        options["base"] = Frozen(made)
        return cls(**options)

    @property
    def random(self) -> bool:
        return True

    def path(self, energy: Energy) -> Path:
        """The path from the route's base, or the energy's own, to the energy."""
        return Path(energy, self.base)

    def unsupported_reason(self, energy: Energy) -> str | None:
        if observed_space(energy).moving:
            return "the bounds of its box are parameters, and chains miss the boundary term of the derivative (T4): use Quadrature"
        try:
            default_kernel(energy)
            path = self.path(energy)
        except ValueError as error:
            return str(error)
        return path.unsupported_reason()

    def log_partition(self, energy: Energy, key: Any) -> Estimate:
        return self.run(energy, key).estimate

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any) -> Estimate:
        run = self.run(energy, key)
        values = jax.vmap(f)(run.states)
        numbers, effective, heavy = on_host(_expected, run.log_weights, values, confidence=self.confidence)
        if isinstance(observed_space(energy), Real):
            heavy = heavy | self._endless_mean(energy, f, run.states)
        return Estimate(
            **numbers,
            guarantee="conditional",
            route=run.estimate.route,
            confidence=self.confidence,
            assumption="the chains reach every mode, and there are enough weights for a normal approximation",
            diagnostics={**run.estimate.diagnostics, "effective_sample_size": effective},
            flags={**run.estimate.flags, EstimateWarning.HEAVY_TAILED_EXPECTATION: heavy},
        )

    def _endless_mean(self, energy: Energy, f: Callable[[State], Any], v: State) -> Bool[Array, ""]:
        """Whether |f|^(1/k) p̃ falls too slowly far out, where no chain goes, for the Pareto shape k from which averages are unreliable."""
        x, log_masses = _far_states(self.path(energy), v)
        sizes = jax.vmap(lambda x: _largest(f(x)))(x).astype(log_masses.dtype)
        return _endless(log_masses + jnp.log(sizes).reshape(2, -1) / HEAVY, margin=-0.1)

    def mean_gradient(self, energy: Energy, key: Any) -> Any:
        return self.log_partition_and_mean_gradient(energy, key)[1]

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any) -> tuple[Estimate, Any]:
        run = self.run(jax.lax.stop_gradient(energy), key)
        share = on_host(_shares, run.log_weights, n=len(jax.tree.leaves(run.states)[0]))
        return run.estimate, _mean_gradient(self.path(energy), share, run.states)


@program
def _mean_gradient(path: Path, share: Float[Array, " N"], v: State) -> Any:
    """E[-∂_θ F_θ] over weighted states, a pytree like the energy's float arrays."""
    # States of weight zero are replaced by that of the largest, so that 0 · ∞ cannot arise in their gradient.
    best, dead = jnp.argmax(share), share == 0
    v = jax.tree.map(lambda x: jnp.where(dead.reshape(-1, *(1,) * (x.ndim - 1)), x[best], x), v)
    return eqx.filter_grad(lambda e: -jnp.sum(share * jax.vmap(free_energy_of(e))(v).astype(share.dtype)))(path.energy)


def _shares(log_weights: np.ndarray, n: int) -> np.ndarray:
    """The weights' shares, and 0 up to n states; NaN where every weight is zero."""
    share = np.exp(log_weights - log_weights.max()).reshape(-1)
    return np.pad(share / share.sum(), (0, n - share.size))


def _expected(
    log_weights: np.ndarray, values: Any, *, confidence: float
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The weighted mean of values, its error and interval, from independent groups of weights (R, n); the effective sample size; heavy tails."""
    share = _shares(log_weights, log_weights.size)
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)

    def weighted(x: np.ndarray) -> np.ndarray:
        """Σ w x within every group: shape (groups, *x.shape)."""
        w = share.reshape(-1, *(1,) * (x.ndim - 1))
        return np.where(w == 0, 0, w * x).reshape(*log_weights.shape, *x.shape[1:]).sum(axis=1)

    values = jax.tree.map(lambda x: x[: share.size], values)
    mean = jax.tree.map(lambda x: weighted(x).sum(axis=0), values)
    heavy = np.asarray(any(_heavy_tailed(share, x) for x in jax.tree.leaves(values)))
    error = jax.tree.map(lambda x, m: np.sqrt(np.square(weighted(x - m)).sum(axis=0)), values, mean)
    return (
        {
            "value": mean,
            "standard_error": error,
            "lower": jax.tree.map(lambda m, e: m - z * e, mean, error),
            "upper": jax.tree.map(lambda m, e: m + z * e, mean, error),
        },
        1 / np.square(share).sum(),
        heavy,
    )


def _heavy_tailed(share: np.ndarray, values: np.ndarray) -> bool:
    """Whether some |f| times the weights has so heavy a tail that its mean, or the variance of its estimate, may not exist: a Pareto shape above
    0.7, and above what the largest of so many shapes reaches by chance."""
    columns = np.abs(values.reshape(share.size, -1)) * share[:, None]
    noise = 1.7 / math.sqrt(max(pareto_tail(share.size), 1))
    most = HEAVY + noise * math.sqrt(2 * math.log(max(columns.shape[1], 1)))
    return any(pareto_shape(column) > most for column in columns.T)


def checked(route: Any, *counts: str) -> None:
    """Raise ValueError unless these fields are integers of at least 1 and the confidence lies between 0 and 1."""
    for name in counts:
        check_whole_number(name, getattr(route, name))
    if not 0 < route.confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {route.confidence}")


def from_weights(
    log_weights: Any,
    *,
    confidence: float,
    route: str,
    assumption: str,
    diagnostics: dict[str, Array],
    flags: dict[EstimateWarning, Bool[Array, ""]],
    base_by_default: bool = False,
) -> Estimate:
    """log Z from independent weights with mean Z: the logarithm of their mean, a certified lower and a conditional upper bound."""
    numbers, raised, figures = on_host(
        _weighed, log_weights, diagnostics.get("stuck_chains"), confidence=confidence, dtype=log_weights.dtype
    )
    return Estimate(
        **numbers,
        guarantee="conditional",
        route=route,
        confidence=confidence,
        assumption=assumption + ("" if base_by_default else "; only the lower bound is certified"),
        base_by_default=base_by_default,
        diagnostics={**figures, **diagnostics},
        flags={**raised, **flags},
    )


def _weighed(
    log_weights: np.ndarray, stuck: Any, *, confidence: float, dtype: Any
) -> tuple[dict[str, Any], dict[Any, Any], dict[str, Any]]:
    log_weights = log_weights.reshape(-1)
    n, tail = log_weights.size, (1 - confidence) / 2
    value = np.logaddexp.reduce(log_weights) - math.log(n)
    alive = value != -np.inf
    relative = np.exp(log_weights - value) if alive else np.zeros(n)  # mean 1
    error = relative.std(ddof=1) / math.sqrt(n) if n > 1 and alive else np.inf
    effective = n**2 / np.square(relative).sum() if alive else 0.0
    possible = log_weights[log_weights > -np.inf]
    numbers = {
        "value": value,
        "standard_error": error,
        "lower": lower_bound_of(log_weights, confidence=1 - tail),
        "upper": upper_bound_of(log_weights, confidence=1 - tail),
    }
    raised = {
        EstimateWarning.ZERO_WEIGHTS: not alive,
        EstimateWarning.FEW_EFFECTIVE_SAMPLES: alive and effective < max(1.5, min(FEW, n / 2)),
    }
    numbers = unless_lost(numbers, dtype)
    if stuck is not None:
        more = -np.log1p(-min(float(stuck), 1 - 1e-9))  # if they had the mean weight of the others
        raised[EstimateWarning.STUCK_CHAINS] = alive and (stuck > MANY_STUCK or value + more > numbers["upper"])
        numbers["upper"] = numbers["upper"] + (more if raised[EstimateWarning.STUCK_CHAINS] else 0)
    figures = {
        "effective_sample_size": effective,
        "log_weight_sd": possible.std() if possible.size else np.nan,
        "certified_lower": lower_bound_of(log_weights, confidence=confidence),
    }
    return numbers, raised, figures


def unless_lost(numbers: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """The numbers of an estimate; without bounds where numbers of this dtype lie more than a nat apart."""
    if not digits_lost(numbers["value"], dtype):
        return numbers
    apart = abs(numbers["value"]) * float(jnp.finfo(dtype).eps)
    return numbers | {"standard_error": max(numbers["standard_error"], apart), "lower": -np.inf, "upper": np.inf}


def path_flags(path: Path, v: State) -> dict[EstimateWarning, Bool[Array, ""]]:
    """Warnings about the path, from states at its end: a base that does not cover the model; a model whose Z looks infinite."""
    uncovered = jnp.any(jax.vmap(free_energy_of(path.origin))(v) == jnp.inf)
    flags = {EstimateWarning.UNCOVERED_STATES: uncovered}
    space = observed_space(path.energy)
    if isinstance(space, Real) or (isinstance(space, Box) and not space.bounded):
        flags[EstimateWarning.INFINITE_Z] = _looks_infinite(path.energy, v)
    return flags


@program
def looks_infinite(path: Path, v: State) -> Bool[Array, ""]:
    """Whether the Z of a model of real vectors looks infinite, from some of its states."""
    return _looks_infinite(path.energy, v)


def _looks_infinite(energy: Energy, v: State) -> Bool[Array, ""]:
    """Whether p̃ fails to fall fast enough between two far radii: as r^-d along random directions, as 1/r along an axis, in a direction of least
    curvature or in one found by descent."""
    shape, dtype = observed_space(energy).shape, v.dtype
    d = math.prod(shape)
    found = _endless(_far_out(energy, v)[1])
    if d > LARGEST or not isinstance(observed_space(energy), Real):
        return found
    scale, origin = 1 + jnp.max(jnp.abs(v)), v[0].reshape(d)

    def at(x: Array) -> Array:
        return free_energy_of(energy)(x.reshape(shape)).astype(dtype)

    flat, low = flattest(at, origin, scale), lowest(at, jnp.asarray(_random_directions(d)[:8], dtype), 1e3 * scale)
    # In float32 a direction is not known well enough to follow a valley farther.
    reach = (1e4, 1e7) if dtype == jnp.dtype("float64") else (1e2, 1e4)
    along_flat = _masses(energy, origin, scale, flat, np.ones(len(flat)), reach)[1]
    along_low = _masses(energy, origin, scale, low, np.ones(len(low)))[1]
    return found | _endless(along_flat) | _endless(along_low)


def _endless(log_masses: Float[Array, "2 k"], margin: float = 0.1) -> Bool[Array, ""]:
    near, far = log_masses
    return jnp.any((far > near + margin) & (far > -jnp.inf))


def _random_directions(d: int) -> np.ndarray:
    directions = np.random.default_rng(0).normal(size=(64, d))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _far_out(energy: Energy, v: State) -> tuple[State, Float[Array, "2 k"]]:
    """States at two far radii (2 k, *shape), in random directions and along the axes, and the logs of p̃ times r^d, or times r along an axis."""
    d = math.prod(observed_space(energy).shape)
    low, high = (np.asarray(bound).ravel() for bound in limits_of(observed_space(energy)))
    endless = np.isinf(low) | np.isinf(high)
    directions, dimensions = _random_directions(d), np.full(64, endless.sum())
    if d <= LARGEST:
        directions = np.concatenate([directions, np.eye(d), -np.eye(d)])
        dimensions = np.append(dimensions, np.ones(2 * d, int))
    inwards = np.where(np.isfinite(low), 1.0, -1.0)
    directions = endless * np.where(np.isinf(low) & np.isinf(high), directions, inwards * np.abs(directions))
    kept = np.abs(directions).max(axis=1) > 0
    directions, dimensions = directions[kept], dimensions[kept]
    return _masses(energy, v[0].reshape(d), 1 + jnp.max(jnp.abs(v)), jnp.asarray(directions, v.dtype), dimensions)


def _masses(
    energy: Energy, origin: Array, scale: Array, directions: Array, dimensions: np.ndarray, radii: Any = (1e3, 1e5)
) -> tuple[State, Array]:
    radii = np.asarray(radii)
    x = origin[None, None] + scale * jnp.asarray(radii[:, None, None], origin.dtype) * directions[None]
    x = x.reshape(-1, *observed_space(energy).shape)
    log_p = -jax.vmap(free_energy_of(energy))(x).astype(origin.dtype).reshape(2, -1)
    return x, log_p + jnp.asarray(np.log(radii)[:, None] * dimensions, origin.dtype)


@program
def _far_states(path: Path, v: State) -> tuple[State, Array]:
    return _far_out(path.energy, v)


def _largest(tree: Any) -> Array:
    """The largest |x| of a pytree of arrays; NaN entries are left out."""
    sizes = [jnp.abs(x.astype(jnp.result_type(float))).reshape(-1) for x in jax.tree.leaves(tree)]
    return jnp.max(jnp.nan_to_num(jnp.concatenate(sizes), nan=0.0, posinf=jnp.inf), initial=0)
