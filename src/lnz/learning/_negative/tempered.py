"""Tempered chains, replicas at inverse temperatures from the base to the model."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._core.capabilities import tempered
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz._models.independent import base_of
from lnz.kernels._kernels import Kernel, compact, default_kernel
from lnz.learning._gradients import cast
from lnz.learning._negative.ladder import rounds
from lnz.learning._negative.negative_phase import NegativePhase, base_samples, kernel_refusal


class Replicas(NamedTuple):
    """Replicas at every inverse temperature, observed states (temperatures + 1, n, *shape), and the number of previous swap rounds."""

    observed: State
    round: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TemperedChains(NegativePhase):
    """Tempered persistent chains: replicas at inverse temperatures 0 = β_0 < … < β_K = 1 that move and swap; those at 1 represent the model.

    At β = 0 a replica follows the energy's base, which mixes at once, and swaps carry it to the model. So the chains leave modes that they
    could not leave by themselves. An update costs K + 1 times that of `PersistentChains`.

    Its figures: `swaps`, the mean probability of a swap over pairs of neighbours, and `least_swaps`, that of the pair that swaps least:
    near 0 the ladder is interrupted there, and needs more temperatures.

    Attributes:
        temperatures: K, the number of steps of the ladder from 0 to 1, equal in β.
        sweeps: rounds per update, each of one kernel step of every replica and one round of swaps.
        chains: replicas per temperature; by default one per example of a batch.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Desjardins, Courville, Bengio, Vincent & Delalleau 2010, "Tempered Markov chain Monte Carlo for training of restricted Boltzmann
    machines"; Cho, Raiko & Ilin 2010. Here swaps alternate between even and odd pairs, and every temperature has as many replicas.
    """

    temperatures: int = 10
    sweeps: int = 1
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for name in ("temperatures", "sweeps"):
            check_whole_number(name, getattr(self, name))
        if self.chains is not None:
            check_whole_number("chains", self.chains)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy) or _base_refusal(energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Replicas:
        n, rungs = self.chains or batch_size, self.temperatures + 1
        v = compact(energy, base_samples(energy, key, rungs * n))
        return Replicas(jax.tree.map(lambda leaf: leaf.reshape(rungs, n, *leaf.shape[1:]), v), jnp.zeros((), jnp.int32))

    def draw(
        self, energy: Energy, state: Replicas, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Replicas, dict[str, Array]]:
        base, kernel = base_of(energy), self.kernel or default_kernel(energy)
        v, rates, tried, figures = rounds(
            lambda beta: tempered(energy, base, beta), jnp.linspace(0, 1, self.temperatures + 1), kernel, fast_key(key),
            state.observed, state.round, self.sweeps,
        )  # fmt: skip
        after = Replicas(v, state.round + self.sweeps)
        figures |= {"swaps": jnp.mean(rates, where=tried), "least_swaps": jnp.min(rates, where=tried, initial=1)}
        return self.positions(energy, after), None, after, figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.sweeps * (self.temperatures + 1) * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (*(self.kernel or default_kernel(energy)).figures, "swaps", "least_swaps")

    def positions(self, energy: Energy, state: Replicas) -> State:
        return cast(energy, jax.tree.map(lambda leaf: leaf[-1], state.observed))


def _base_refusal(energy: Energy) -> str | None:
    try:
        base_of(energy)
    except ValueError as error:
        return str(error)
    return None
