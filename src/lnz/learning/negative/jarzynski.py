"""Weighted walkers: the change of the parameters is paid in weights, and log Z is known along the way."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz.annealing.ais import AnnealedImportanceSampling
from lnz.energy import Energy
from lnz.learning.negative.protocol import NegativePhase, at_least_one, between, kernel_refusal
from lnz.learning.phases import cast
from lnz.mathematics import log_mean_exp
from lnz.random import fast_key
from lnz.sampling.kernels import Kernel, compact, default_kernel, moved_chains
from lnz.spaces import State


class Walkers(NamedTuple):
    """Walkers v_i with weights: observed states (n, *shape), their log weights (of mean weight 1), F(v_i) under the parameters they last
    moved under, and log Ẑ of these parameters."""

    observed: State
    log_weights: Float[Array, " n"]
    free_energies: Float[Array, " n"]
    log_z: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class JarzynskiWalkers(NegativePhase):
    """Walkers whose weights make up for the change of the parameters, so that they stand for p_θ however slowly they mix.

    When the parameters move from θ to θ', a walker's weight is multiplied by exp(F_θ(v) - F_θ'(v)) (Jarzynski's equality, as in annealed
    importance sampling along the path that learning takes). Then the mean of the weights is unbiased for Z(θ') / Z(θ_0), and weighted
    means are consistent for E_{p_θ'}, for any number of sweeps: the bias of persistent chains becomes variance, which the effective
    sample size shows. Below `threshold` the walkers are resampled in proportion to their weights.

    Its figures: `log_z`, log Ẑ(θ) in nats; `effective_share`, the effective sample size over the number of walkers; `resampled`, the share
    of updates with a resampling. With `log_z` every record has `log_likelihood`, the running estimate of E_data[-F] - log Z.

    Attributes:
        sweeps: kernel steps an update.
        chains: the number of walkers; by default one for every datum of a batch. They start from the energy's base by annealing.
        threshold: of the effective share, in (0, 1].
        temperatures: of that first annealing.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Carbone, Hua, Coste & Vanden-Eijnden 2023, "Efficient training of energy-based models using Jarzynski equality".
    """

    sweeps: int = 1
    chains: int | None = None
    threshold: float = 0.5
    temperatures: int = 100
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for name in ("sweeps", "temperatures"):
            at_least_one(name, getattr(self, name))
        if self.chains is not None:
            at_least_one("chains", self.chains)
        between("threshold", self.threshold, 0, 1)

    def refusal(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy) or self._annealing(1).refusal(energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Walkers:
        log_weights, v, _ = self._annealing(self.chains or batch_size).anneal(energy, key)
        v = compact(energy, cast(energy, v))
        level = log_mean_exp(log_weights)
        return Walkers(v, log_weights - level, jax.vmap(energy.free_energy)(v), level)

    def draw(
        self, energy: Energy, state: Walkers, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Walkers, dict[str, Array]]:
        resample_key, move_key = jax.random.split(fast_key(key))
        gain = (state.free_energies - jax.vmap(energy.free_energy)(state.observed)).astype(state.log_weights.dtype)
        # A walker of weight zero stays so: where p̃ = 0 before and after, the gain would be ∞ - ∞.
        log_weights = jnp.where(state.log_weights == -jnp.inf, -jnp.inf, state.log_weights + gain)
        level = log_mean_exp(log_weights)
        log_weights = log_weights - level
        share = 1 / jnp.mean(jnp.exp(2 * log_weights))
        again = share < self.threshold
        rows = jnp.where(
            again, resampled(resample_key, jnp.exp(log_weights)), jnp.arange(log_weights.size, dtype=jnp.int32)
        )
        v = jax.tree.map(lambda leaf: leaf[rows], state.observed)
        log_weights = jnp.where(again, 0, log_weights)
        v, figures = moved_chains(energy, self.kernel or default_kernel(energy), move_key, v, self.sweeps)
        log_z = state.log_z + level
        figures |= {"log_z": log_z, "effective_share": share, "resampled": again.astype(share.dtype)}
        after = Walkers(v, log_weights, jax.vmap(energy.free_energy)(v), log_z)
        return cast(energy, v), jnp.exp(log_weights), after, figures

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (*(self.kernel or default_kernel(energy)).figures, "log_z", "effective_share", "resampled")

    def _annealing(self, chains: int) -> AnnealedImportanceSampling:
        return AnnealedImportanceSampling(temperatures=self.temperatures, chains=chains)


def resampled(key: PRNGKeyArray, weights: Float[Array, " n"]) -> Array:
    """Systematic resampling: n indices, i as often as n w_i / Σ w, rounded up or down at random; never one of weight zero.

    Source: Kitagawa 1996; Douc, Cappé & Moulines 2005.
    """
    n = weights.size
    total = jnp.cumsum(weights)
    places = (jnp.arange(n, dtype=total.dtype) + jax.random.uniform(key, (), total.dtype)) / jnp.asarray(n, total.dtype)
    places = jnp.minimum(places, 1 - jnp.finfo(total.dtype).epsneg)
    return jnp.searchsorted(total / total[-1], places, side="right").astype(jnp.int32)
