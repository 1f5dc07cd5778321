"""Annealed importance sampling: log Z of any energy with a base, from independent annealed chains."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, from_weights, path_flags
from lnz.routes._annealing.friction import friction_betas
from lnz.routes._annealing.mode_probes import probe_modes
from lnz.routes._annealing.path import Path, has_step, walk
from lnz.routes._annealing.schedule import FITTED, Schedule, checked_schedule, fixed_betas, pilot

PROBE_TEMPERATURES = (
    50  # temperatures of the reverse annealing of mode probes, for routes without a number of their own
)
_ASSUMPTION = "the annealed chains reach every mode; only the lower bound is certified"


@dataclasses.dataclass(frozen=True)
class AnnealedImportanceSampling(AnnealingRoute):
    """Annealed importance sampling (AIS) along the geometric path from a base with known log Z_0 and exact samples.

    Each chain starts at an exact sample of the base and passes the inverse temperatures 0 = β_0 < … < β_K = 1; before the move at β_k its
    log weight grows by F_{β_{k-1}}(v) - F_{β_k}(v). E[w] = Z / Z_0 exactly, so log Ẑ is low on average (Jensen).

    The moves are those of `default_kernel`: block Gibbs sweeps where the energy has them, single-site sweeps for other discrete energies,
    and Metropolis-adjusted Langevin moves for continuous ones. Step sizes and fitted schedules come from separate pilot chains, so that Ẑ
    stays unbiased.

    The estimate's lower bound needs no assumption (see `certificate.lower_bound`); the upper one is conditional on the chains having
    reached every mode.

    Attributes:
        temperatures: K, the number of steps from 0 to 1.
        chains: the number of independent chains.
        sweeps: moves at each temperature.
        schedule: `linear` in β; `sigmoid`, finer towards both ends; `quadratic`, finer towards 0; `adaptive`, each step with the same
            conditional effective sample size among pilot chains; `barrier`, each step with the same share of rejected swaps; `friction`, more
            steps where the works of pilot chains vary and stay correlated, which is where they mix slowly (`friction.friction_betas`); or the
            inverse temperatures themselves, rising from 0 to 1 (`temperatures` is then their count less one).
        base: the reference, wrapped as `Frozen`; by default the energy's own `base()`. `AnnealedImportanceSampling.from_base` wraps it.
        confidence: of the bounds.
        mode_probes: chains that search for modes which the annealed chains miss, from far away and from the ends of these (see
            `mode_probes.probe_modes`), at most as many as these; each costs as many moves as five of them. 0 for none; 32 where `lnz.choose`
            picks the route.

    Source: Neal 2001, "Annealed importance sampling"; Salakhutdinov & Murray 2008 for RBMs; Zhou, Johansen & Aston 2016 (adaptive
    schedules); Syed et al. 2021 (the barrier); Sivak & Crooks 2012 (friction).
    """

    unbiased: ClassVar[bool] = True
    temperatures: int = 1000
    chains: int = 256
    sweeps: int = 1
    schedule: Schedule = "linear"
    base: Frozen | None = None
    confidence: float = 0.99
    mode_probes: int = 0

    def __post_init__(self) -> None:
        checked(self, "temperatures", "chains", "sweeps")
        check_whole_number("mode probes", self.mode_probes, 0)
        object.__setattr__(self, "schedule", checked_schedule(self.schedule))
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "temperatures", len(self.schedule) - 1)

    def cost(self, energy: Energy) -> float:
        return float(self.temperatures * self.sweeps * (self.chains + 5 * min(self.mode_probes, self.chains)))

    def run(self, energy: Energy, key: Any) -> Weighted:
        log_weights, v, diagnostics, (betas, log_steps) = self._annealed(energy, fast_key(key))
        path, kernel = self.path(energy), default_kernel(energy)
        estimate = from_weights(
            log_weights,
            confidence=self.confidence,
            route=f"annealed importance sampling ({self.temperatures:,} temperatures, {self.chains:,} chains)",
            assumption=_ASSUMPTION,
            diagnostics=diagnostics,
            flags=path_flags(path, v),
        )
        ends, sent = (v, log_weights), min(self.mode_probes, self.chains)
        estimate = with_mode_probes(
            estimate, path, kernel, fast_key(key), ends, betas, log_steps, mode_probes=sent, sweeps=self.sweeps
        )
        return Weighted(estimate, v, log_weights[:, None])

    def anneal(self, energy: Energy, key: PRNGKeyArray) -> tuple[Array, State, dict[str, Array]]:
        """Run the chains: log weights (chains,) in nats whose mean of exp is unbiased for Z, the last states, and diagnostics."""
        return self._annealed(energy, fast_key(key))[:3]

    def _annealed(
        self, energy: Energy, key: PRNGKeyArray
    ) -> tuple[Array, State, dict[str, Array], tuple[Array, Array]]:
        main_key, pilot_key = jax.random.split(key)
        path, kernel = self.path(energy), default_kernel(energy)
        betas, log_steps = planned(path, kernel, pilot_key, self.schedule, self.temperatures, self.sweeps)
        start_key, chain_key = jax.random.split(main_key)
        log_weights, v, acceptance = annealed(
            path, kernel, chain_key, path.start(start_key, self.chains), betas, log_steps, sweeps=self.sweeps
        )
        figures = {"acceptance": acceptance} if has_step(kernel) else {}
        return log_weights + path.log_z0(), path.public(v), figures, (betas, log_steps)


def planned(
    path: Path, kernel: Kernel, key: PRNGKeyArray, schedule: Schedule, temperatures: int, sweeps: int
) -> tuple[Float[Array, " K+1"], Float[Array, " K+1"]]:
    """The inverse temperatures of a schedule, and the logarithms of the step sizes at each, from a pilot run where one is needed."""
    if schedule not in FITTED and not has_step(kernel):
        betas = fixed_betas(schedule, temperatures)
        return betas, jnp.zeros_like(betas)
    found = pilot(path, kernel, key, sweeps=sweeps)
    if schedule == "friction":
        betas = friction_betas(path, kernel, jax.random.fold_in(key, 1), found, temperatures, sweeps)
    elif schedule in FITTED:
        betas = found.placed(schedule, temperatures)
    else:
        betas = fixed_betas(schedule, temperatures)
    return betas, found.log_steps(betas)


def with_mode_probes(
    estimate: Estimate,
    path: Path,
    kernel: Kernel,
    key: PRNGKeyArray,
    ends: tuple[State, Array],
    betas: Array,
    log_steps: Array,
    *,
    mode_probes: int,
    sweeps: int,
) -> Estimate:
    """The estimate after mode probes (`mode_probes.probe_modes`), if there are any.

    Args:
        ends: states (n, *shape) that represent the model with these log weights (n,).
        betas: inverse temperatures from 0 to 1 for the reverse annealing; mode probes make half as many moves before it.
        log_steps: the logarithms of the step sizes at these.
    """
    if mode_probes == 0:
        return estimate

    def back(key: PRNGKeyArray, v: State) -> Array:
        return annealed(path, kernel, key, v, betas[::-1], log_steps[::-1], sweeps=sweeps)[0]

    key, moves = jax.random.fold_in(key, 2), betas.size // 2
    return probe_modes(
        estimate,
        path,
        kernel,
        key,
        *ends,
        back,
        log_step=log_steps[-1],
        mode_probes=mode_probes,
        moves=moves,
        sweeps=sweeps,
    )


def annealed(
    path: Path,
    kernel: Kernel,
    key: PRNGKeyArray,
    v: State,
    betas: Array,
    log_steps: Array,
    *,
    sweeps: int,
    reverse: bool = False,
) -> tuple[Float[Array, " n"], State, Array]:
    """Anneal chains from the distribution at betas[0] to that at betas[-1], in either direction: log weights, states and mean acceptance.

    With `reverse`, by moves of the kernel's reversal: Crooks's relation pairs such a run with a forward run.
    """
    dtype, going = jnp.result_type(float), walk(path, kernel, sweeps=sweeps, reverse=reverse)

    def step(carry: tuple[Any, Array, Array], inputs: Any) -> tuple[tuple[Any, Array, Array], Array]:
        x, log_w, lost = carry
        before, beta, log_step, key = inputs
        gain = going.gain(x, before, beta) - lost
        # A chain of weight zero stays so: where p̃ = 0 at both temperatures, the gain would be ∞ - ∞.
        total = jnp.where(log_w == -jnp.inf, -jnp.inf, log_w + gain)
        lost = jnp.where(
            jnp.isfinite(total), (total - log_w) - gain, 0
        )  # Kahan summation, for a thousand small float32 gains
        x, acceptance = going.move(key, beta, x, log_step)
        return (x, total, lost), acceptance

    zero = jnp.zeros(jax.tree.leaves(v)[0].shape[:1], dtype)
    inputs = (betas[:-1], betas[1:], log_steps[1:], jax.random.split(key, betas.size - 1))
    (x, log_w, _), acceptance = jax.lax.scan(step, (going.pack(v), zero, zero), inputs)
    last = jax.tree.map(lambda new, old: new.astype(old.dtype), going.unpack(x), v)
    return log_w, last, jnp.mean(acceptance)
