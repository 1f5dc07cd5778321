"""Stochastic maximum likelihood by persistent chains."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import TwoLayer
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Gibbs, Kernel, compact, default_kernel, moved_chains, run_layers
from lnz.learning._gradients import cast
from lnz.learning._negative.negative_phase import NegativePhase, base_samples, kernel_refusal


class Layers(NamedTuple):
    """Persistent chains of an energy of two layers: observed (n, *shape) and hidden (n, hidden) states."""

    observed: Array
    hidden: Array


@dataclasses.dataclass(frozen=True)
class PersistentChains(NegativePhase):
    """Stochastic maximum likelihood (SML, persistent CD): chains continue from the previous update (T12).

    The chains are the state: observed states, or `Layers` of them where the energy samples two layers in turns. They track the model
    only while the parameters change little within the mixing time.

    Attributes:
        sweeps: kernel steps per update.
        chains: the number of chains; by default one per example of a batch. They start at samples of the energy's base.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Younes 1989; Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".
    """

    sweeps: int = 1
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        check_whole_number("sweeps", self.sweeps)
        if self.chains is not None:
            check_whole_number("chains", self.chains)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        chains = base_samples(energy, key, self.chains or batch_size)
        layers = self._layers(energy)
        if layers is not None:
            hidden = layers.sample_hidden(jax.random.fold_in(key, 1), chains)
            return Layers(compact(energy, chains), hidden)
        return chains

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        layers = self._layers(energy)
        if layers is not None:
            v, h, flips = run_layers(layers, fast_key(key), state.hidden, self.sweeps)
            return cast(energy, v), None, Layers(v, h), {"flips": flips}
        kernel = self.kernel or default_kernel(energy)
        chains, figures = moved_chains(energy, kernel, fast_key(key), state, self.sweeps)
        return chains, None, chains, figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.sweeps * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return ("flips",) if self._layers(energy) is not None else (self.kernel or default_kernel(energy)).figures

    def positions(self, energy: Energy, state: Any) -> State | None:
        return state if self._layers(energy) is None else state.observed

    def _layers(self, energy: Energy) -> TwoLayer | None:
        return energy.offers(TwoLayer) if isinstance(self.kernel, Gibbs | None) else None
