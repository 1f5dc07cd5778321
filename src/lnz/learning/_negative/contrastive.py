"""Contrastive divergence: chains from the data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import complete, data_space, observed_space
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel, moved_chains
from lnz.learning._negative.negative_phase import NegativePhase, kernel_refusal


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(NegativePhase):
    """CD-k: chains start at the data of every update and make k steps (T11). Hidden units are drawn first, by the energy's `complete`.

    The chains do not reach modes far from the data, so learning cannot raise the energy there.

    Attributes:
        steps: k, the number of steps.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence".
    """

    steps: int = 1
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        check_whole_number("steps", self.steps)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return ()

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        kernel = self.kernel or default_kernel(energy)
        start_key, key = jax.random.split(key) if data_space(energy) != observed_space(energy) else (key, key)
        start = complete(energy, start_key, data)
        states, figures = moved_chains(energy, kernel, fast_key(key), start, self.steps)
        return states, weights, (), figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.steps * batch_size)

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (self.kernel or default_kernel(energy)).figures
