"""The interface of negative phases, and their common parts."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import require_normalised
from lnz._core.energy import Energy
from lnz._core.spaces import State
from lnz._models.independent import base_of
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.learning._gradients import cast, mean_and_gradient, parameter_dtype


class NegativePhase(abc.ABC):
    """An estimate of E_{v ~ p_θ}[-∂F]; a frozen dataclass without arrays, whose state is passed from one update to the next.

    `by_states` is True if `gradient` is the mean over the states of `draw`.
    """

    by_states: ClassVar[bool] = True

    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why this negative phase does not support the energy, as a sentence, or None."""
        return None

    @abc.abstractmethod
    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        """The state before the first update: a pytree of arrays (empty where there is none)."""

    @abc.abstractmethod
    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        """States (m, *shape) that represent p_θ in this update, their weights (None: all equal), the state for the next update, and figures.

        `data` and `weights` are the batch of the update. The names of the figures are `figures(energy)`.
        """

    def gradient(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Array | None, Any, Any, dict[str, Array]]:
        """Mean F under p_θ (None where it is not computed), E_{p_θ}[-∂F] by the states of `draw`, the state for the next update, and figures."""
        states, state_weights, state, figures = self.draw(energy, state, data, weights, key)
        return *mean_and_gradient(energy, states, state_weights), state, figures

    def problem(self, figures: Mapping[str, Array]) -> str | None:
        """The failure, according to the figures of one or several updates, that must stop learning, as a sentence, or None."""
        return None

    def figures(self, energy: Energy) -> tuple[str, ...]:
        """The names of the figures of the chains."""
        return ()

    @abc.abstractmethod
    def moves(self, energy: Energy, batch_size: int) -> float:
        """The cost of an update, in moves of one state."""

    def positions(self, energy: Energy, state: Any) -> State | None:
        """The observed states (n, *shape) of chains that persist between updates, in a constant order; None without such chains."""
        return None


def base_samples(energy: Energy, key: PRNGKeyArray, n: int) -> State:
    """Exact samples (n, *shape) of an energy's base, in the dtype of the energy's parameters, at which chains start."""
    dtype = parameter_dtype(energy)
    base = jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, base_of(energy))
    return cast(energy, require_normalised(base, "the base of the chains").sample(key, n))


def kernel_refusal(kernel: Kernel | None, energy: Energy) -> str | None:
    """Why a kernel (None: the default one) does not support the energy, as a sentence, or None."""
    try:
        return (kernel or default_kernel(energy)).unsupported_reason(energy)
    except ValueError as error:
        return str(error)


def between(name: str, x: Any, low: float, high: float) -> None:
    """Raise ValueError unless low < x ≤ high."""
    if not isinstance(x, int | float | np.floating) or not low < x <= high:
        raise ValueError(f"{name} must be above {low:g} and at most {high:g}, but is {x!r}")
