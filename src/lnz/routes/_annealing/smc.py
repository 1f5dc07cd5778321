"""Sequential Monte Carlo: log Z from independent populations of particles that are tempered, weighted, resampled and moved."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import observed_space
from lnz._core.energy import Energy
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number, log_mean_exp
from lnz._core.random import Keys, parted
from lnz._core.spaces import State
from lnz.kernels._continuous import HamiltonianMonteCarlo
from lnz.kernels._kernels import Kernel, Langevin, default_kernel
from lnz.kernels._leapfrog import mean_chance
from lnz.kernels._resampling import systematic
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, from_weights, path_flags
from lnz.routes._annealing.mode_probes import PROBE_TEMPERATURES, with_mode_probes
from lnz.routes._annealing.path import Path, has_step, walk
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.schedule import MAIN, Ladder, Pilot, Rung, pilot

# Packed states, log weights (R, n), log Ẑ up to the last resampling (R,), the fewest effective particles so far, and the sum of acceptances.
_Carry = tuple[Any, Array, Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class SequentialMonteCarlo(AnnealingRoute):
    """Sequential Monte Carlo (SMC) from a base to the model: annealed chains that are resampled by their weights on the way.

    A pilot population chooses the inverse temperatures, so that every step has the same conditional effective sample size; then R independent
    populations of n particles are annealed along them. A population's weights are resampled (systematically) whenever their effective sample size has
    fallen below a share of n. Its estimate Ẑ, the product of the mean weights between resamplings, has mean Z exactly, since the schedule and
    the step sizes come from the pilot; so the R estimates give a certified lower bound and an error, whatever happens inside a population.

    Attributes:
        particles: n, in each population.
        replicates: R, the number of independent populations.
        conditional: the conditional effective sample size of a step, as a share of the particles: nearer to 1, more temperatures.
        sweeps: moves at each temperature.
        leapfrogs: gradients per move of continuous states: one for Langevin moves, more for Hamiltonian Monte Carlo, which goes further and crosses
            between modes more easily. Step sizes are fitted by the pilot.
        resample_below: the effective sample size, as a share of the particles, below which a population is resampled.
        base: the reference, wrapped as `Frozen`; by default the energy's own `base()`. `SequentialMonteCarlo.from_base` wraps it.
        confidence: of the bounds.
        mode_probes: chains that start far from the base and search for modes which the particles miss (see `mode_probes.with_mode_probes`): each is
            moved 100 times. 0 for none.

    Source: Del Moral, Doucet & Jasra 2006, "Sequential Monte Carlo samplers"; Zhou, Johansen & Aston 2016 (the schedule).

    Example:
        >>> import jax, lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
        >>> estimate = lnz.log_partition(torus, route=lnz.routes.SequentialMonteCarlo(), key=jax.random.key(0))
        >>> bool(estimate.lower < 12.7855 < estimate.upper)  # Kaufman 1949
        True
    """

    unbiased: ClassVar[bool] = True
    particles: int = 128
    replicates: int = 16
    conditional: float = 0.95
    sweeps: int = 1
    leapfrogs: int = 1
    resample_below: float = 0.5
    base: Frozen | None = None
    confidence: float = 0.99
    mode_probes: int = 32

    def __post_init__(self) -> None:
        check_whole_number("mode probes", self.mode_probes, 0)
        checked(self, "particles", "replicates", "sweeps", "leapfrogs")
        if self.particles < 2:
            raise ValueError(
                "a population needs at least 2 particles: a single one is never resampled; use lnz.routes.AnnealedImportanceSampling"
            )
        for name in ("conditional", "resample_below"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is a share of the particles and must be between 0 and 1, but is {getattr(self, name)}"
                )

    def cost(self, energy: Energy) -> float:
        """The cost for a hundred temperatures; their number is found by the pilot."""
        return float(100 * self.sweeps * self.leapfrogs * self.particles * self.replicates)

    def unsupported_reason(self, energy: Energy) -> str | None:
        reason = super().unsupported_reason(energy)
        if reason is None and self.leapfrogs > 1 and not isinstance(default_kernel(energy), Langevin):
            return f"several leapfrogs need continuous states, and {observed_space(energy)} has Gibbs sweeps: leave leapfrogs at 1"
        return reason

    def _kernel(self, energy: Energy) -> Kernel:
        return default_kernel(energy) if self.leapfrogs == 1 else HamiltonianMonteCarlo(leapfrogs=self.leapfrogs)

    def run(self, energy: Energy, key: Any) -> Weighted:
        path, kernel, sweeps = self.path(energy), self._kernel(energy), self.sweeps
        found = pilot(path, key, self.conditional, kernel=kernel, sweeps=sweeps)
        ran = _resampled(
            path,
            parted(key, 2, MAIN),
            found,
            self.resample_below,
            kernel=kernel,
            sweeps=sweeps,
            replicates=self.replicates,
            particles=self.particles,
        )
        totals, spread, disagree = on_host(_populations, ran.log_weights)
        estimate = from_weights(
            totals,
            confidence=self.confidence,
            route=f"sequential Monte Carlo ({self.replicates:,} populations of {self.particles:,} particles)",
            assumption="the particles reach every mode",
            base_by_default=path.by_default,
            diagnostics={"temperatures": found.steps, "replicate_sd": spread, **ran.figures},
            flags={EstimateWarning.POPULATIONS_DISAGREE: disagree, **ran.flags},
        )
        estimate = with_mode_probes(
            estimate,
            path,
            key,
            ran.states,
            ran.log_weights,
            found.ladder("adaptive", PROBE_TEMPERATURES),
            kernel=kernel,
            mode_probes=self.mode_probes,
            sweeps=sweeps,
        )
        return Weighted(estimate, ran.states, ran.log_weights)


class _Resampled(NamedTuple):
    log_weights: Float[Array, "R n"]  # with mean Z in each population
    states: State
    figures: dict[str, Array]
    flags: dict[EstimateWarning, Any]


@program
def _resampled(
    path: Path,
    keys: Keys,
    found: Pilot,
    resample_below: Array,
    *,
    kernel: Kernel,
    sweeps: int,
    replicates: int,
    particles: int,
) -> _Resampled:
    """Populations of particles along the pilot's inverse temperatures."""
    start_key, key = keys
    dtype, shape, going = jnp.result_type(float), (replicates, particles), walk(path, kernel, sweeps=sweeps, rows=True)
    row = jnp.arange(replicates, dtype=jnp.int32)[:, None] * particles

    def step(k: Array, rung: Rung, carry: _Carry) -> _Carry:
        x, log_w, log_z, fewest, accepted = carry
        resample_key, move_key = jax.random.split(jax.random.fold_in(key, k))
        gain = going.gain(x, rung.before, rung.beta).reshape(shape)
        log_w = jnp.where(log_w == -jnp.inf, -jnp.inf, log_w + gain)
        size = jax.vmap(_effective)(log_w)
        poor = size < resample_below * particles
        mean = jax.vmap(log_mean_exp)(log_w)
        kept = systematic(resample_key, jnp.where((mean == -jnp.inf)[:, None], 0, log_w))
        kept = jnp.where(poor[:, None], kept, jnp.arange(particles, dtype=kept.dtype)[None])
        x = jax.tree.map(lambda leaf: leaf[(row + kept).reshape(-1)], x)
        log_z = jnp.where(poor, log_z + mean, log_z)
        dead = jnp.where(mean == -jnp.inf, -jnp.inf, jnp.zeros_like(mean))
        log_w = jnp.where(poor[:, None], dead[:, None], log_w)
        x, chances = going.move(move_key, rung.beta, x, rung.log_step)
        return x, log_w, log_z, jnp.minimum(fewest, jnp.min(size)), accepted + mean_chance(chances)

    start = path.start(start_key, replicates * particles)
    zero = jnp.zeros((), dtype)
    begin = (going.pack(start), jnp.zeros(shape, dtype), jnp.zeros(shape[:1], dtype), zero + particles, zero)
    x, log_w, log_z, fewest, accepted = Ladder(found.betas, found.log_step, found.steps).climb(step, begin)
    v = path.public(jax.tree.map(lambda new, old: new.astype(old.dtype), going.unpack(x), start))
    figures = {"fewest_effective_particles": fewest, "barrier": found.barrier[-1]}
    if has_step(kernel):
        figures["acceptance"] = accepted / found.steps.astype(dtype)
    log_z = log_z + path.log_z0()
    return _Resampled(log_z[:, None] + log_w, v, figures, path_flags(path, v))


def _populations(log_weights: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """log Ẑ of every population, their standard deviation, and whether it is above one nat."""
    totals = np.logaddexp.reduce(log_weights, axis=1) - math.log(log_weights.shape[1])
    spread = totals.std(ddof=1) if totals.size > 1 else np.inf
    return totals, spread, spread > 1


def _effective(log_w: Float[Array, " n"]) -> Float[Array, ""]:
    """(Σ w)² / Σ w²; 0 where all weights are 0."""
    w = jnp.exp(log_w - jnp.where(jnp.max(log_w) == -jnp.inf, 0, jnp.max(log_w)))
    return jnp.sum(w) ** 2 / jnp.maximum(jnp.sum(w**2), jnp.finfo(w.dtype).tiny)
