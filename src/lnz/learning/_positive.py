"""Positive phases: estimates of E_data[-∂F] where hidden units have no closed sum (deep Boltzmann machines)."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._choose import choose
from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz._models.deep_boltzmann_machine import DeepBoltzmannMachine
from lnz._partition import log_partition
from lnz.learning._gradients import data_mean_and_gradient, mean_and_gradient, weighted_mean


class PositivePhase(abc.ABC):
    """An estimate of the data's expectation E[-∂E] over the hidden units; a frozen dataclass without arrays."""

    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why this positive phase does not support the energy, as a sentence, or None."""
        if isinstance(energy, DeepBoltzmannMachine) and data_space(energy) != observed_space(energy):
            return None
        return f"the hidden units of this {type(energy).__name__} have a closed sum, which is exact: leave positive_phase out"

    @abc.abstractmethod
    def mean_and_gradient(
        self, energy: Any, v: State, weights: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, Any]:
        """The mean over data (n, *shape) of -log Σ exp(-E), or of an upper bound on it, in nats, and the mean of E[-∂E]."""


@dataclasses.dataclass(frozen=True)
class MeanFieldPhase(PositivePhase):
    """Hidden units by mean field: undamped alternating updates of odd and even layers to a fixed point.

    Learning then increases a lower bound on log p.

    Attributes:
        iterations: largest number of iterations per update of the parameters.
        tolerance: the iterations end where no mean changes by more.

    Source: Salakhutdinov & Hinton 2009, "Deep Boltzmann machines" (there about 25 iterations).

    Example:
        >>> import lnz
        >>> lnz.Trainer(positive_phase=lnz.learning.MeanFieldPhase(iterations=10)).positive_phase.iterations
        10
    """

    iterations: int = 30
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_whole_number("iterations", self.iterations)
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be finite and not negative, but is {self.tolerance!r}")

    def mean_and_gradient(
        self, energy: DeepBoltzmannMachine, v: State, weights: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, Any]:
        options: dict[str, Any] = {"iterations": self.iterations, "tolerance": self.tolerance}
        return mean_and_gradient(energy, v, weights, term=lambda e: lambda row: e.data_energy(row, **options))


@dataclasses.dataclass(frozen=True)
class ClampedChains(PositivePhase):
    """Hidden units by block Gibbs with clamped data, from a draw of mean field: one chain per example and update.

    The gradient sums out the odd layers, given the even ones of the chain. Its mean approaches that of the exact posterior as the number of
    sweeps grows, while mean field keeps its bias. The energy that it reports is the variational bound.

    Attributes:
        sweeps: number of sweeps over all hidden layers.
        iterations: largest number of iterations of the mean field that the chains start from.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> dbm = lnz.DeepBoltzmannMachine(4, (3, 2), key=jax.random.key(0))
        >>> fitted = lnz.fit(dbm, jnp.ones((10, 4)), positive_phase=lnz.learning.ClampedChains(sweeps=2), epochs=1, key=jax.random.key(1))
        >>> int(fitted.state.step)
        1
    """

    sweeps: int = 5
    iterations: int = 10

    def __post_init__(self) -> None:
        check_whole_number("sweeps", self.sweeps)
        check_whole_number("iterations", self.iterations)

    def mean_and_gradient(
        self, energy: DeepBoltzmannMachine, v: Any, weights: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, Any]:
        if key is None:
            raise ValueError("clamped chains draw samples: pass key=jax.random.key(…)")
        start_key, chain_key = jax.random.split(fast_key(key))
        means = jax.vmap(lambda row: energy.fixed_point(row, iterations=self.iterations))(v)
        limits, x = jax.vmap(energy.limit)(v, means), energy.drawn(start_key, v, means)
        x = jax.lax.scan(
            lambda x, key: (energy.gibbs_given(key, x), None), x, jax.random.split(chain_key, self.sweeps)
        )[0]
        return weighted_mean(lambda x: x, limits, weights), mean_and_gradient(energy, x, weights)[1]


@dataclasses.dataclass(frozen=True)
class ExactPosterior(PositivePhase):
    """Hidden units by an exact sum for every example, for small machines and tests of the other phases.

    Attributes:
        route: the route of the sum; by default the exact one that `lnz.choose` finds.
    """

    route: Route | None = None

    def unsupported_reason(self, energy: Any) -> str | None:
        return super().unsupported_reason(energy) or posterior_unsupported(energy, self.route, exact=True)

    def mean_and_gradient(
        self, energy: DeepBoltzmannMachine, v: State, weights: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, Any]:
        return mean_and_gradient(
            energy, v, weights, term=lambda e: lambda row: posterior_energy(e, row, self.route, None)
        )


class ClosedSum(PositivePhase):
    """Hidden units by the energy's `data_energy`, which is exact where they have a closed sum."""

    def unsupported_reason(self, energy: Energy) -> str | None:
        return None

    def mean_and_gradient(
        self, energy: Energy, v: State, weights: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, Any]:
        return data_mean_and_gradient(energy, v, weights)


def default_positive_phase(energy: Energy) -> PositivePhase:
    """The positive phase of an energy: its closed sum, or mean field where there is none."""
    return ClosedSum() if data_space(energy) == observed_space(energy) else MeanFieldPhase()


def posterior_energy(energy: DeepBoltzmannMachine, v: Array, route: Route | None, key: PRNGKeyArray | None) -> Array:
    """-log Σ_h exp(-E(v, h)) of one example, in nats, with its hidden units summed out by a route (None: the one that `choose` finds)."""
    total = log_partition(energy.given(v), route=route, key=key).value
    return (-total - jnp.dot(energy.layer_biases[0], v.astype(energy.dtype)).astype(total.dtype)).astype(energy.dtype)


def posterior_unsupported(energy: DeepBoltzmannMachine, route: Route | None, *, exact: bool = False) -> str | None:
    """Why a route (None: the one that `choose` finds) cannot sum out the hidden units of an example, as a sentence, or None."""
    law = energy.given(jnp.zeros((energy.sizes[0],), energy.dtype))
    route = choose(law).route if route is None else route
    if exact and route.random:
        return f"{type(route).__name__} is not exact: use lnz.learning.MeanFieldPhase() or lnz.learning.ClampedChains()"
    return route.unsupported_reason(law)
