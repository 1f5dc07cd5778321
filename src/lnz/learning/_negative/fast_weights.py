"""Fast-weights persistent contrastive divergence."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, compact, default_kernel, moved_chains
from lnz.learning._gradients import cast, data_mean_and_gradient, mean_and_gradient
from lnz.learning._negative.negative_phase import NegativePhase, base_samples, between, kernel_refusal


class FastChains(NamedTuple):
    """Persistent chains, observed states (n, *shape), and the fast parameters, which are added to the model's for the moves."""

    observed: State
    fast: Any


@dataclasses.dataclass(frozen=True)
class FastWeights(NegativePhase):
    """Fast-weights persistent CD: the chains move under θ + φ, where φ follows the same gradient with its own learning rate, and decays.

    The gradient raises the energy at the current states of the chains, so φ drives them away from there, and they mix faster. It is a
    heuristic: the chains are those of θ + φ, not of θ, and no bound on the difference is known. With `fast_rate` 0 it is `PersistentChains`.

    Its figures: `fast_norm`, ‖φ‖.

    Attributes:
        fast_rate: the learning rate of φ.
        decay: the factor of φ after every update, in (0, 1].
        sweeps: kernel steps per update.
        chains: the number of chains; by default one per example of a batch.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Tieleman & Hinton 2009, "Using fast weights to improve persistent contrastive divergence" (decay 19/20).
    """

    fast_rate: float = 0.05
    decay: float = 0.95
    sweeps: int = 1
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        check_whole_number("sweeps", self.sweeps)
        if self.chains is not None:
            check_whole_number("chains", self.chains)
        if not 0 <= self.fast_rate < jnp.inf:
            raise ValueError(f"fast_rate must be finite and not negative, but is {self.fast_rate!r}")
        between("decay", self.decay, 0, 1)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> FastChains:
        v = compact(energy, base_samples(energy, key, self.chains or batch_size))
        return FastChains(v, jax.tree.map(jnp.zeros_like, eqx.filter(energy, eqx.is_inexact_array)))

    def draw(
        self, energy: Energy, state: FastChains, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, FastChains, dict[str, Array]]:
        pushed = eqx.apply_updates(energy, state.fast)
        kernel = self.kernel or default_kernel(energy)
        v, figures = moved_chains(pushed, kernel, fast_key(key), state.observed, self.sweeps)
        states = cast(energy, v)
        # The trainer computes the same two gradients; compiled together, they are computed once.
        positive = data_mean_and_gradient(energy, data, weights)[1]
        negative = mean_and_gradient(energy, states, None)[1]
        fast = jax.tree.map(
            lambda f, p, n: jnp.asarray(self.decay, f.dtype) * f + jnp.asarray(self.fast_rate, f.dtype) * (p - n),
            state.fast, positive, negative,
        )  # fmt: skip
        figures |= {"fast_norm": jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(fast)))}
        return states, None, FastChains(v, fast), figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.sweeps * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (*(self.kernel or default_kernel(energy)).figures, "fast_norm")

    def positions(self, energy: Energy, state: FastChains) -> State:
        return cast(energy, state.observed)
