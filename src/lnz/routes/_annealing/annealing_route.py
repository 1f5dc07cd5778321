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
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number, log_mean_exp
from lnz._core.route import Route
from lnz._core.spaces import Real, State
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.certificate import lower_bound, upper_bound
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.user_path import AnnealingPath

FEW = 5  # effective chains below which the standard error is unreliable


class Weighted(eqx.Module):
    """The outcome of a run: an estimate of log Z, and weighted states in independent groups.

    Attributes:
        estimate: of log Z.
        states: (R n, *shape), group after group.
        log_weights: (R, n), of R groups that are independent of each other.
    """

    estimate: Estimate
    states: State
    log_weights: Float[Array, "R n"]


class AnnealingRoute(Route):
    """A stochastic route along a path from a base. A subclass defines `run`; what follows from weighted states is here."""

    unbiased: ClassVar[bool] = False
    """Whether the mean weight of every group of states has mean Z."""
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
        return Path(energy, None if self.base is None else self.base.value)

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
        share = jax.nn.softmax(run.log_weights.reshape(-1))  # NaN where every weight is zero
        groups = run.log_weights.shape[0]
        z = statistics.NormalDist().inv_cdf(0.5 + self.confidence / 2)

        def weighted(values: Array) -> Array:
            """Σ w x within every group: shape (groups, *x.shape)."""
            w = share.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
            return jnp.sum(jnp.where(w == 0, 0, w * values).reshape(groups, -1, *values.shape[1:]), axis=1)

        values = jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(share.dtype), jax.vmap(f)(run.states)
        )
        mean = jax.tree.map(lambda x: jnp.sum(weighted(x), axis=0), values)
        error = jax.tree.map(lambda x, m: jnp.sqrt(jnp.sum(jnp.square(weighted(x - m[None])), axis=0)), values, mean)
        return Estimate(
            value=mean,
            standard_error=error,
            lower=jax.tree.map(lambda m, e: m - z * e, mean, error),
            upper=jax.tree.map(lambda m, e: m + z * e, mean, error),
            guarantee="conditional",
            route=run.estimate.route,
            confidence=self.confidence,
            assumption="the chains reach every mode, and there are enough weights for a normal approximation",
            diagnostics={**run.estimate.diagnostics, "effective_sample_size": 1 / jnp.sum(share**2)},
            flags=run.estimate.flags,
        )

    def mean_gradient(self, energy: Energy, key: Any) -> Any:
        return self.log_partition_and_mean_gradient(energy, key)[1]

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any) -> tuple[Estimate, Any]:
        run = jax.lax.stop_gradient(self.run(energy, key))
        log_weights = run.log_weights.reshape(-1)
        share = jax.nn.softmax(log_weights)
        # States of weight zero are replaced by that of the largest, so that 0 · ∞ cannot arise in their gradient.
        best, dead = jnp.argmax(log_weights), share == 0
        v = jax.tree.map(lambda x: jnp.where(dead.reshape(-1, *(1,) * (x.ndim - 1)), x[best], x), run.states)
        mean = eqx.filter_grad(lambda e: -jnp.sum(share * jax.vmap(free_energy_of(e))(v).astype(share.dtype)))(energy)
        return run.estimate, mean


def checked(route: Any, *counts: str) -> None:
    """Raise ValueError unless these fields are integers of at least 1 and the confidence lies between 0 and 1."""
    for name in counts:
        check_whole_number(name, getattr(route, name))
    if not 0 < route.confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {route.confidence}")


def from_weights(
    log_weights: Float[Array, " n"],
    *,
    confidence: float,
    route: str,
    assumption: str,
    diagnostics: dict[str, Array],
    flags: dict[EstimateWarning, Bool[Array, ""]],
) -> Estimate:
    """log Z from independent weights with mean Z: the logarithm of their mean, a certified lower and a conditional upper bound."""
    n, tail = log_weights.size, (1 - confidence) / 2
    value = log_mean_exp(log_weights)
    alive = value != -jnp.inf
    relative = jnp.where(alive, jnp.exp(log_weights - jnp.where(alive, value, 0)), 0)  # mean 1
    error = jnp.std(relative, ddof=1) / math.sqrt(n) if n > 1 else jnp.asarray(jnp.inf, value.dtype)
    effective = jnp.where(alive, n**2 / jnp.where(alive, jnp.sum(relative**2), 1), 0)
    return Estimate(
        value=value,
        standard_error=jnp.where(alive, error, jnp.inf),
        lower=lower_bound(log_weights, confidence=1 - tail),
        upper=upper_bound(log_weights, confidence=1 - tail),
        guarantee="conditional",
        route=route,
        confidence=confidence,
        assumption=assumption,
        diagnostics={
            "effective_sample_size": effective,
            "log_weight_sd": jnp.std(log_weights, where=log_weights > -jnp.inf),
            "certified_lower": lower_bound(log_weights, confidence=confidence),
            **diagnostics,
        },
        flags={
            EstimateWarning.ZERO_WEIGHTS: ~alive,
            EstimateWarning.FEW_EFFECTIVE_SAMPLES: alive & (effective < max(1.5, min(FEW, n / 2))),
            **flags,
        },
    )


def path_flags(path: Path, v: State) -> dict[EstimateWarning, Bool[Array, ""]]:
    """Warnings about the path, from states at its end: a base that does not cover the model; a model whose Z looks infinite."""
    uncovered = jnp.any(jax.vmap(free_energy_of(path.origin))(v) == jnp.inf)
    flags = {EstimateWarning.UNCOVERED_STATES: uncovered}
    if isinstance(observed_space(path.energy), Real):
        flags[EstimateWarning.INFINITE_Z] = _looks_infinite(path.energy, v)
    return flags


def _looks_infinite(energy: Energy, v: State) -> Bool[Array, ""]:
    """Whether p̃ fails to fall fast enough between two far radii: as r^-d along random directions, as 1/r along an axis."""
    shape, dtype = observed_space(energy).shape, v.dtype
    d = math.prod(shape)
    directions = jax.random.normal(jax.random.key(0), (64, d), dtype)
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    dimensions = np.full(64, d)
    if d <= 256:
        directions = jnp.concatenate([directions, jnp.eye(d, dtype=dtype), -jnp.eye(d, dtype=dtype)])
        dimensions = np.append(dimensions, np.ones(2 * d, int))
    scale = 1 + jnp.max(jnp.abs(v))

    def log_mass(radius: float) -> Array:
        x = v[:1].reshape(1, d) + radius * scale * directions
        log_p = -jax.vmap(free_energy_of(energy))(x.reshape(-1, *shape)).astype(dtype)
        return log_p + jnp.asarray(dimensions * math.log(radius), dtype)

    near, far = log_mass(1e3), log_mass(1e5)
    return jnp.any((far > near + 0.1) & (far > -jnp.inf))
