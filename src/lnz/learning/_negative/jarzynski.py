"""Weighted walkers, whose weights account for the change of the parameters and estimate log Z."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number, log_mean_exp
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, compact, default_kernel, moved_chains
from lnz.kernels._resampling import systematic
from lnz.learning._gradients import cast
from lnz.learning._negative.negative_phase import NegativePhase, between, kernel_refusal
from lnz.routes._annealing.ais import AnnealedImportanceSampling


class Walkers(NamedTuple):
    """Weighted walkers of g populations: observed states (g, n, *shape), their log weights (of mean weight 1 in each), F(v) under the
    parameters of their last move, and each population's log Ẑ of these parameters."""

    observed: State
    log_weights: Float[Array, "g n"]
    free_energies: Float[Array, "g n"]
    log_z: Float[Array, " g"]


@dataclasses.dataclass(frozen=True)
class JarzynskiWalkers(NegativePhase):
    """Weighted walkers, whose weights account for the change of the parameters, so that they represent p_θ however slowly they mix.

    When the parameters move from θ to θ', a walker's weight is multiplied by exp(F_θ(v) - F_θ'(v)) (Jarzynski's equality, as in annealed
    importance sampling along the path of learning). Then the mean of the weights is unbiased for Z(θ') / Z(θ_0), and weighted means are
    consistent for E_{p_θ'}, for any number of sweeps: the bias of persistent chains becomes variance, which the effective sample size
    shows. Below `threshold` the walkers are resampled in proportion to their weights.

    That holds for a path that does not depend on the walkers, but the walkers of the gradient change it: log Ẑ from their own weights is too
    low by about rate × Var(gradient) per update, which adds up to many nats. So a second population, which does not contribute to the
    gradient, measures log Z.

    Its figures: `log_z`, log Ẑ(θ) in nats, whose exponential is unbiased; `effective_share`, the effective sample size over the number of
    walkers, of the population where it is smaller; `resampled`, the share of resamplings. With `log_z` every record has `log_likelihood`,
    the running estimate of E_data[-F] - log Z.

    Attributes:
        sweeps: kernel steps per update.
        chains: the number of walkers for the gradient; by default one per example of a batch. They start from the energy's base by
            annealing.
        measure: whether there is a second population, of as many walkers; without it there is no `log_z`.
        threshold: the effective share below which walkers are resampled, in (0, 1].
        temperatures: number of temperatures of the initial annealing.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Carbone, Hua, Coste & Vanden-Eijnden 2023, "Efficient training of energy-based models using Jarzynski equality". There one
    population does both.
    """

    sweeps: int = 1
    chains: int | None = None
    measure: bool = True
    threshold: float = 0.5
    temperatures: int = 100
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for name in ("sweeps", "temperatures"):
            check_whole_number(name, getattr(self, name))
        if self.chains is not None:
            check_whole_number("chains", self.chains)
        between("threshold", self.threshold, 0, 1)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy) or self._annealing(1).unsupported_reason(energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Walkers:
        groups, n = 1 + self.measure, self.chains or batch_size
        # One annealing for both populations, because its chains are independent of each other.
        log_weights, v, _ = self._annealing(groups * n).anneal(energy, key)
        v = compact(energy, cast(energy, v))
        free = jax.vmap(free_energy_of(energy))(v).reshape(groups, n)
        log_weights = log_weights.reshape(groups, n)
        level = jax.vmap(log_mean_exp)(log_weights)
        v = jax.tree.map(lambda leaf: leaf.reshape(groups, n, *leaf.shape[1:]), v)
        return Walkers(v, log_weights - level[:, None], free, level)

    def draw(
        self, energy: Energy, state: Walkers, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Walkers, dict[str, Array]]:
        keys = jax.random.split(fast_key(key), state.log_z.size)
        after, figures = jax.vmap(lambda walkers, key: self._moved(energy, walkers, key))(state, keys)
        share, again = figures.pop("effective_share"), figures.pop("resampled")
        figures = {name: jnp.mean(leaf) for name, leaf in figures.items()}
        figures |= {"effective_share": jnp.min(share), "resampled": jnp.mean(again)}
        if self.measure:
            figures["log_z"] = after.log_z[1]
        states = jax.tree.map(lambda leaf: leaf[0], after.observed)
        return cast(energy, states), jnp.exp(after.log_weights[0]), after, figures

    def _moved(self, energy: Energy, walkers: Walkers, key: PRNGKeyArray) -> tuple[Walkers, dict[str, Array]]:
        """One population after the change of the parameters to those of the energy: weighted, resampled if necessary, and moved."""
        resample_key, move_key = jax.random.split(key)
        gain = (walkers.free_energies - jax.vmap(free_energy_of(energy))(walkers.observed)).astype(walkers.log_z.dtype)
        # A walker of weight zero keeps it: where p̃ = 0 before and after, the gain would be ∞ - ∞.
        log_weights = jnp.where(walkers.log_weights == -jnp.inf, -jnp.inf, walkers.log_weights + gain)
        level = log_mean_exp(log_weights)
        log_weights = log_weights - level
        share = 1 / jnp.mean(jnp.exp(2 * log_weights))
        again = share < self.threshold
        stay = jnp.arange(log_weights.size, dtype=jnp.int32)
        rows = jnp.where(again, systematic(resample_key, log_weights), stay)
        v = jax.tree.map(lambda leaf: leaf[rows], walkers.observed)
        v, figures = moved_chains(energy, self.kernel or default_kernel(energy), move_key, v, self.sweeps)
        after = Walkers(v, jnp.where(again, 0, log_weights), jax.vmap(free_energy_of(energy))(v), walkers.log_z + level)
        return after, figures | {"effective_share": share, "resampled": again.astype(share.dtype)}

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float((1 + self.measure) * self.sweeps * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        measured = ("log_z",) if self.measure else ()
        return (*(self.kernel or default_kernel(energy)).figures, *measured, "effective_share", "resampled")

    def _annealing(self, chains: int) -> AnnealedImportanceSampling:
        return AnnealedImportanceSampling(temperatures=self.temperatures, chains=chains)
