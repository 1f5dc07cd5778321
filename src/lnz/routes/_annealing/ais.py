"""Annealed importance sampling: log Z of any energy with a base, from independent annealed chains."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number
from lnz._core.random import Keys, parted
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, from_weights, path_flags
from lnz.routes._annealing.friction import friction_ladder
from lnz.routes._annealing.mode_probes import with_mode_probes
from lnz.routes._annealing.path import Path, has_step
from lnz.routes._annealing.programs import many, on_host, program
from lnz.routes._annealing.schedule import (
    FITTED,
    MAIN,
    Ladder,
    Schedule,
    checked_schedule,
    fixed_betas,
    fixed_ladder,
    pilot,
)

_STUCK = 0.01  # the mean acceptance in the second half of the steps below which a chain hardly moves
_ASSUMPTION = "the annealed chains reach every mode"


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
            `mode_probes.with_mode_probes`), at most as many as these; each costs as many moves as five of them. 0 for none.

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
    mode_probes: int = 32

    def __post_init__(self) -> None:
        checked(self, "temperatures", "chains", "sweeps")
        check_whole_number("mode probes", self.mode_probes, 0)
        object.__setattr__(self, "schedule", checked_schedule(self.schedule))
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "temperatures", len(self.schedule) - 1)

    def cost(self, energy: Energy) -> float:
        return float(self.temperatures * self.sweeps * (self.chains + 5 * min(self.mode_probes, self.chains)))

    def run(self, energy: Energy, key: Any) -> Weighted:
        path, kernel = self.path(energy), default_kernel(energy)
        ladder = self._planned(path, key)
        ran = forward_chains(path, key, ladder, kernel=kernel, chains=many(self.chains), sweeps=self.sweeps)
        log_weights = on_host(lambda w, n: w[:n, None], ran.log_weights, n=self.chains)
        estimate = from_weights(
            log_weights,
            confidence=self.confidence,
            route=f"annealed importance sampling ({self.temperatures:,} temperatures, {self.chains:,} chains)",
            assumption=_ASSUMPTION,
            base_by_default=path.by_default,
            diagnostics=ran.figures,
            flags=ran.flags,
        )
        estimate = with_mode_probes(
            estimate,
            path,
            key,
            ran.states,
            ran.log_weights,
            ladder,
            kernel=kernel,
            mode_probes=min(self.mode_probes, many(self.chains)),
            sweeps=self.sweeps,
        )
        return Weighted(estimate, ran.states, log_weights)

    def anneal(self, energy: Energy, key: PRNGKeyArray) -> tuple[Array, State, dict[str, Array]]:
        """Run the chains: log weights (chains,) in nats whose mean of exp is unbiased for Z, the last states, and diagnostics."""
        path, kernel = self.path(energy), default_kernel(energy)
        ladder = self._planned(path, key)
        ran = forward_chains(path, key, ladder, kernel=kernel, chains=self.chains, sweeps=self.sweeps)
        return ran.log_weights, ran.states, ran.figures

    def _planned(self, path: Path, key: Any) -> Ladder:
        return planned(path, default_kernel(path.energy), key, self.schedule, self.temperatures, self.sweeps)


class Ran(NamedTuple):
    """What became of annealed chains.

    Attributes:
        log_weights: (n,) with mean Z, or 1/Z for chains from the model, in nats.
        states: the last ones, in the dtype of the base's samples.
        figures: the mean acceptance of moves, and the share of chains that hardly move, where they have a step size.
        flags: of the path, from states at its end.
    """

    log_weights: Float[Array, " n"]
    states: State
    figures: dict[str, Array]
    flags: dict[EstimateWarning, Any]


def forward_chains(path: Path, key: PRNGKeyArray, ladder: Ladder, *, kernel: Kernel, chains: int, sweeps: int) -> Ran:
    """Chains from exact samples of the base to the model."""
    return _forward(path, parted(key, 2, MAIN), ladder, kernel=kernel, chains=chains, sweeps=sweeps)


@program
def _forward(path: Path, keys: Keys, ladder: Ladder, *, kernel: Kernel, chains: int, sweeps: int) -> Ran:
    start_key, key = keys
    ran = annealed(path, kernel, key, path.start(start_key, chains), ladder, sweeps=sweeps)
    v = path.public(ran.states)
    flags = path_flags(path, v)
    if not has_step(kernel):
        return Ran(ran.log_weights + path.log_z0(), v, {}, flags)
    stuck = jnp.mean((ran.acceptance < _STUCK).astype(ran.log_weights.dtype))
    figures = {"acceptance": jnp.nanmean(ran.acceptance), "stuck_chains": stuck}
    return Ran(ran.log_weights + path.log_z0(), v, figures, flags)


def planned(
    path: Path, kernel: Kernel, key: PRNGKeyArray, schedule: Schedule, temperatures: int, sweeps: int
) -> Ladder:
    """The inverse temperatures of a schedule, and the logarithms of the step sizes at each, from a pilot run where one is needed."""
    if schedule not in FITTED and not has_step(kernel):
        return fixed_ladder(fixed_betas(schedule, temperatures))
    found = pilot(path, key, 0.9, kernel=kernel, sweeps=sweeps)
    if schedule == "friction":
        return friction_ladder(path, kernel, key, found, temperatures, sweeps)
    return found.ladder(schedule, temperatures)
