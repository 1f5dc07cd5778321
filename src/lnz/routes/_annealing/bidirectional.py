"""Annealing from both ends: forward runs from the base bound log Z from below, reverse runs from samples of the model from above."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import observed_space
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.random import fast_key
from lnz._core.spaces import ArrayLike, State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.ais import Ran, forward_chains, planned
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked
from lnz.routes._annealing.bridge import bar_of, overlap
from lnz.routes._annealing.certificate import lower_bound_of, upper_bound_of
from lnz.routes._annealing.path import Path, reversible
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.schedule import EXACT, REVERSE, Ladder, Schedule, checked_schedule
from lnz.routes._exact.exact_samples import exact_sampler

_POOR_OVERLAP = 0.03
_RESAMPLES = 64


@dataclasses.dataclass(frozen=True)
class BidirectionalAIS(AnnealingRoute):
    """Annealed importance sampling in both directions: both bounds are certified where reverse chains start at exact samples.

    Forward chains from the base have weights with mean Z, reverse chains from the model weights with mean 1/Z. Bounds without assumptions
    (`certificate.lower_bound`) from either bound log Z from below and from above. The reverse one needs exact samples of the model: those
    given as exact (data simulated from the model), or those drawn by a formula, a list of states or elimination. From other samples, such as
    long chains, the estimate is conditional on their having reached the model; where both directions then disagree beyond their errors,
    `warnings` reports it and the interval contains both.

    The value is Bennett's acceptance ratio between the works of both directions, with an error by bootstrap over chains. Reverse chains make
    the reversal of every move: sweeps pass sites or colour classes in the opposite order, block Gibbs moves of two layers and Langevin
    moves are their own reversal. Where an energy's moves have no known reversal, or the directions disagree, the value is that of the
    direction with the smaller error.

    Attributes:
        temperatures: K, the number of steps between the base and the model.
        chains: the number of independent chains in each direction (with given samples, as many as there are).
        sweeps: moves at each temperature.
        schedule: as for `AnnealedImportanceSampling`.
        samples: observed states to start reverse chains at, wrapped as `Frozen`; `BidirectionalAIS.from_samples` wraps them.
        exact: whether these samples are exact and independent.
        base: the reference, wrapped as `Frozen`; by default the energy's own `base()`.
        confidence: of both bounds together.

    Source: Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional Monte Carlo"; Burda, Grosse &
    Salakhutdinov 2015 (reverse annealing of RBMs); Crooks 1999; Bennett 1976.

    Example:
        >>> import jax, lnz
        >>> rbm = lnz.RBM(visible=40, hidden=8, key=jax.random.key(0), scale=0.3)
        >>> estimate = lnz.log_partition(rbm, route=lnz.routes.BidirectionalAIS(temperatures=300, chains=200), key=jax.random.key(1))
        >>> estimate.guarantee, bool(estimate.lower < lnz.log_partition(rbm).value < estimate.upper)
        ('certified', True)
    """

    temperatures: int = 1000
    chains: int = 256
    sweeps: int = 1
    schedule: Schedule = "linear"
    samples: Frozen | None = None
    exact: bool = False
    base: Frozen | None = None
    confidence: float = 0.99

    def __post_init__(self) -> None:
        checked(self, "temperatures", "chains", "sweeps")
        object.__setattr__(self, "schedule", checked_schedule(self.schedule))
        if not isinstance(self.schedule, str):
            object.__setattr__(self, "temperatures", len(self.schedule) - 1)
        if self.exact and self.samples is None:
            raise ValueError(
                "exact=True describes samples, but none are given: pass samples, or leave out exact to have lnz draw them"
            )

    @classmethod
    def from_samples(cls, samples: ArrayLike, *, exact: bool, base: Energy | None = None, **options: Any) -> Self:
        """The route with given samples of the model, observed states (n, *shape). `exact`: whether they are exact and independent."""
        return cls(samples=Frozen(samples), exact=exact, base=None if base is None else Frozen(base), **options)

    def unsupported_reason(self, energy: Energy) -> str | None:
        if self.samples is not None:
            try:
                observed_space(energy).validate(self.samples.value, batch=True)
            except ValueError as error:
                return f"its samples are not states of the energy: {error}"
        elif exact_sampler(energy) is None:
            return (
                "no exact samples of it are available to anneal back from: pass BidirectionalAIS.from_samples(states, exact=…), for example from "
                "long chains, or (Ising models without negative couplings) lnz.kernels.coupling_from_the_past, or use "
                "lnz.routes.AnnealedImportanceSampling"
            )
        return super().unsupported_reason(energy)

    def cost(self, energy: Energy) -> float:
        return float(2 * self.temperatures * self.sweeps * self.chains)

    def run(self, energy: Energy, key: Any) -> Weighted:
        if self.samples is not None:
            return self.between(energy, self.samples.value, key, exact=self.exact, how="the user's")
        sampler: Any = exact_sampler(energy)
        samples = _drawn(self.path(energy), key, chains=self.chains)
        return self.between(energy, samples, key, exact=True, how=f"from {sampler.how}")

    def between(
        self, energy: Energy, samples: ArrayLike, key: PRNGKeyArray, *, exact: bool, how: str = "given"
    ) -> Weighted:
        """The run with reverse chains from these observed states (m, *shape), which may be traced."""
        path, kernel = self.path(energy), default_kernel(energy)
        there, reverse, seed = self.both_ways(path, samples, key)
        numbers, figures, raised = on_host(
            _compared,
            there.log_weights,
            reverse,
            seed,
            confidence=self.confidence,
            exact=exact,
            paired=reversible(kernel, path),
        )
        estimate = Estimate(
            **numbers,
            guarantee="certified" if exact else "conditional",
            route=f"annealing in both directions ({self.temperatures:,} temperatures, {self.chains:,} and {reverse.size:,} chains)",
            confidence=self.confidence,
            assumption=f"reverse chains start at exact samples, {how}"
            if exact
            else "the given samples are independent and of the model",
            diagnostics=figures | there.figures,
            flags=raised | there.flags,
        )
        return Weighted(estimate, there.states, on_host(lambda w: w[:, None], there.log_weights))

    def both_ways(self, path: Path, samples: ArrayLike, key: PRNGKeyArray) -> tuple[Ran, Float[Array, " m"], Array]:
        """Chains from the base; and the log weights of those from samples, with a seed for the bootstrap."""
        kernel, sweeps = default_kernel(path.energy), self.sweeps
        ladder = planned(path, kernel, key, self.schedule, self.temperatures, sweeps)
        there = forward_chains(path, key, ladder, kernel=kernel, chains=self.chains, sweeps=sweeps)
        samples = jax.tree.map(jnp.asarray, samples)
        back = reverse_chains(path, key, samples, ladder.reversed(), kernel=kernel, sweeps=sweeps)
        return there, *back


@program
def _drawn(path: Path, key: PRNGKeyArray, *, chains: int) -> State:
    sampler: Any = exact_sampler(path.energy)
    return sampler.draw(jax.random.fold_in(fast_key(key), EXACT), chains)


@program
def reverse_chains(
    path: Path, key: PRNGKeyArray, samples: State, ladder: Ladder, *, kernel: Kernel, sweeps: int
) -> tuple[Float[Array, " m"], Array]:
    """Log weights with mean 1/Z of chains from samples of the model to the base, by reversed moves; and a seed for the bootstrap."""
    like = jax.eval_shape(lambda: path.public(path.start(jax.random.key(0), 1)))
    v = path.compact(jax.tree.map(lambda x, s: x.astype(s.dtype), samples, like))
    key = jax.random.fold_in(fast_key(key), REVERSE)
    ran = annealed(path, kernel, key, v, ladder, sweeps=sweeps, reverse=True)
    return ran.log_weights - path.log_z0(), jax.random.key_data(key)[..., -1]


def _compared(
    forward: np.ndarray, reverse: np.ndarray, seed: np.ndarray, *, confidence: float, exact: bool, paired: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[EstimateWarning, Any]]:
    """The numbers of the estimate, its figures and its warnings, from the log weights of both directions."""
    sure: Any = {"confidence": 1 - (1 - confidence) / 2}
    low, high = lower_bound_of(forward, **sure), -lower_bound_of(reverse, **sure)
    low_if, high_if = -upper_bound_of(reverse, **sure), upper_bound_of(forward, **sure)
    # Where the model excludes states of the base, reverse weights have a mean below 1/Z: the bound holds, the estimate is too high.
    excluded = (forward == -np.inf).any()
    disagree = low > high or (low_if > high_if and not excluded)
    # Consistent certified bounds hold however short the annealing was. All others are widened to what either direction allows.
    wide = disagree if not exact else low > high
    lower, upper = (min(low, low_if), max(high, high_if)) if wide else (low, high)
    ends = _log_mean(forward), -_log_mean(reverse)
    errors = _relative_error(forward), _relative_error(reverse)
    by_reverse = errors[1] < errors[0] and not excluded
    nothing = ends[0] == -np.inf
    if nothing:  # the samples are possible all the same
        value, error = ends[1], np.inf
    elif disagree and not exact:  # the forward estimate depends on less
        value, error = ends[0], errors[0]
    elif paired and not disagree:
        value = bar_of(forward, reverse)
        rng = np.random.default_rng(int(seed))
        drawn = [bar_of(*(x[rng.integers(x.size, size=x.size)] for x in (forward, reverse))) for _ in range(_RESAMPLES)]
        error = np.std(drawn, ddof=1)
    else:
        value, error = ends[int(by_reverse)], errors[int(by_reverse)]
    value = np.clip(value, lower, upper)
    shared = overlap(forward, reverse, value)
    raised = {
        EstimateWarning.ZERO_WEIGHTS: nothing,
        EstimateWarning.DIRECTIONS_DISAGREE: disagree,
        EstimateWarning.POOR_DIRECTION_OVERLAP: not shared >= _POOR_OVERLAP,
    }
    numbers = {"value": value, "standard_error": error, "lower": lower, "upper": upper}
    return numbers, {"forward": ends[0], "reverse": ends[1], "overlap": shared}, raised


def _log_mean(log_weights: np.ndarray) -> np.floating:
    return np.logaddexp.reduce(log_weights) - math.log(log_weights.size)


def _relative_error(log_weights: np.ndarray) -> Any:
    """The standard error of the logarithm of the mean weight."""
    relative = np.exp(log_weights - _log_mean(log_weights))
    return relative.std(ddof=1) / math.sqrt(relative.size) if relative.size > 1 else np.inf
