"""Negative phases: how learning draws from p_θ."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz.energy import Energy
from lnz.learning.phases import cast, parameter_dtype
from lnz.random import fast_key
from lnz.route import Route
from lnz.sampling.kernels import Gibbs, Kernel, compact, default_kernel, has_layers, moved_chains, run_layers
from lnz.spaces import State


class NegativePhase(abc.ABC):
    """How learning takes E_{v ~ p_θ}[-∂F]. Static: a frozen dataclass; what must survive from one update to the next is its state."""

    def refusal(self, energy: Energy) -> str | None:
        """Why this negative phase cannot serve the energy, in words, or None."""
        return None

    @abc.abstractmethod
    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        """The state before the first update: a pytree of arrays (empty where there is none)."""

    @abc.abstractmethod
    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        """States (m, *shape) that stand for p_θ in this update, their weights (None: all equal), the state for the next update, and figures.

        `data` and `weights` are the batch that the update learns from. The figures' names are `figures(energy)`.
        """

    def figures(self, energy: Energy) -> tuple[str, ...]:
        """The names of the figures that the chains give of themselves."""
        return ()


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(NegativePhase):
    """CD-k: chains start at the data of every update and take k steps (T11).

    It cannot see, and so cannot raise the energy of, modes far from the data.

    Attributes:
        steps: k.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence".
    """

    steps: int = 1
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        _at_least_one("steps", self.steps)

    def refusal(self, energy: Energy) -> str | None:
        return _kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return ()

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        kernel = self.kernel or default_kernel(energy)
        states, figures = moved_chains(energy, kernel, fast_key(key), data, self.steps)
        return states, weights, (), figures

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (self.kernel or default_kernel(energy)).figures


class Layers(NamedTuple):
    """Persistent chains of an energy of two layers: observed (n, *shape) and hidden (n, hidden) states."""

    observed: Array
    hidden: Array


@dataclasses.dataclass(frozen=True)
class PersistentChains(NegativePhase):
    """Stochastic maximum likelihood (SML, persistent CD): chains continue from the previous update (T12).

    The chains are the state: observed states, or `Layers` of them where the energy samples two layers in turns. They track the model
    only while the parameters move little against the mixing time.

    Attributes:
        sweeps: kernel steps an update.
        chains: the number of chains; by default one for every datum of a batch. They start at samples of the energy's base.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Younes 1989; Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".
    """

    sweeps: int = 1
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        _at_least_one("sweeps", self.sweeps)
        if self.chains is not None:
            _at_least_one("chains", self.chains)

    def refusal(self, energy: Energy) -> str | None:
        return _kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        dtype = parameter_dtype(energy)
        base = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, energy.base())
        chains = base.sample(key, self.chains or batch_size)  # pyright: ignore[reportAttributeAccessIssue]
        chains = cast(energy, chains)
        if self._layers(energy):
            hidden = energy.sample_hidden(jax.random.fold_in(key, 1), chains)  # pyright: ignore[reportAttributeAccessIssue]
            return Layers(compact(energy, chains), hidden)
        return chains

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        if self._layers(energy):
            v, h, flips = run_layers(energy, fast_key(key), state.hidden, self.sweeps)
            return cast(energy, v), None, Layers(v, h), {"flips": flips}
        kernel = self.kernel or default_kernel(energy)
        chains, figures = moved_chains(energy, kernel, fast_key(key), state, self.sweeps)
        return chains, None, chains, figures

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return ("flips",) if self._layers(energy) else (self.kernel or default_kernel(energy)).figures

    def _layers(self, energy: Energy) -> bool:
        return has_layers(energy) and isinstance(self.kernel, Gibbs | None)


@dataclasses.dataclass(frozen=True)
class ExactPhase(NegativePhase):
    """The exact negative phase, ∇ log Z by an exact route such as `Enumeration()`: learning without sampling noise.

    Attributes:
        route: the route; by default `lnz.choose(energy)`, which must be exact.
    """

    route: Route | None = None

    def refusal(self, energy: Energy) -> str | None:
        route = self.chosen(energy)
        if route.random:
            return f"{type(route).__name__} is not exact: name an affordable exact route, or use PersistentChains"
        return route.refusal(energy)

    def chosen(self, energy: Energy) -> Route:
        """The route that serves this energy."""
        from lnz.route import choose

        return self.route or choose(energy).route

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return ()

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        raise TypeError("the exact negative phase draws no states: its gradient is route.mean_gradient")


def _kernel_refusal(kernel: Kernel | None, energy: Energy) -> str | None:
    try:
        return (kernel or default_kernel(energy)).refusal(energy)
    except ValueError as error:
        return str(error)


def _at_least_one(name: str, n: Any) -> None:
    if not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, but is {n!r}")
