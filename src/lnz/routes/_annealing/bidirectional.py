"""Annealing from both ends: forward runs from the base bound log Z from below, reverse runs from samples of the model from above."""

from __future__ import annotations

import dataclasses
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
from lnz._core.numerics import log_mean_exp
from lnz._core.random import fast_key
from lnz._core.spaces import ArrayLike
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.ais import annealed, planned
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, path_flags
from lnz.routes._annealing.bridge import bar, overlap
from lnz.routes._annealing.certificate import lower_bound, upper_bound
from lnz.routes._annealing.path import Path, has_step, reversible
from lnz.routes._annealing.schedule import Schedule, checked_schedule
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
        sample_key, key = jax.random.split(fast_key(key))
        if self.samples is not None:
            return self.between(
                energy, jax.tree.map(jnp.asarray, self.samples.value), key, exact=self.exact, how="the user's"
            )
        sampler: Any = exact_sampler(energy)
        return self.between(energy, sampler.draw(sample_key, self.chains), key, exact=True, how=f"from {sampler.how}")

    def between(
        self, energy: Energy, samples: ArrayLike, key: PRNGKeyArray, *, exact: bool, how: str = "given"
    ) -> Weighted:
        """The run with reverse chains from these observed states (m, *shape), which may be traced."""
        path, tail = self.path(energy), (1 - self.confidence) / 2
        run_key, boot_key = jax.random.split(fast_key(key))
        forward, reverse, v, figures = self._works(path, run_key, samples)
        low, high = lower_bound(forward, confidence=1 - tail), -lower_bound(reverse, confidence=1 - tail)
        low_if, high_if = -upper_bound(reverse, confidence=1 - tail), upper_bound(forward, confidence=1 - tail)
        # Where the model excludes states of the base, reverse weights have a mean below 1/Z: the bound holds, the estimate is too high.
        excluded = jnp.any(forward == -jnp.inf)
        disagree = (low > high) | ((low_if > high_if) & ~excluded)
        # Consistent certified bounds hold however short the annealing was. All others are widened to what either direction allows.
        wide = disagree if not exact else low > high
        lower, upper = jnp.where(wide, jnp.minimum(low, low_if), low), jnp.where(wide, jnp.maximum(high, high_if), high)
        ends = log_mean_exp(forward), -log_mean_exp(reverse)
        errors = tuple(map(_relative_error, (forward, reverse)))
        by_reverse = (errors[1] < errors[0]) & ~excluded
        value, error = jnp.where(by_reverse, ends[1], ends[0]), jnp.where(by_reverse, errors[1], errors[0])
        if reversible(default_kernel(energy), path):
            drawn = jax.lax.map(lambda k: _resampled_bar(k, forward, reverse), jax.random.split(boot_key, _RESAMPLES))
            value = jnp.where(disagree, value, bar(forward, reverse))
            error = jnp.where(disagree, error, jnp.std(drawn, ddof=1))
        if not exact:  # the forward estimate depends on less
            value, error = jnp.where(disagree, ends[0], value), jnp.where(disagree, errors[0], error)
        value, shared = jnp.clip(value, lower, upper), overlap(forward, reverse, value)
        estimate = Estimate(
            value=value,
            standard_error=error,
            lower=lower,
            upper=upper,
            guarantee="certified" if exact else "conditional",
            route=f"annealing in both directions ({self.temperatures:,} temperatures, {forward.size:,} and {reverse.size:,} chains)",
            confidence=self.confidence,
            assumption=f"reverse chains start at exact samples, {how}"
            if exact
            else "the given samples are independent and of the model",
            diagnostics={"forward": ends[0], "reverse": ends[1], "overlap": shared, **figures},
            flags={
                EstimateWarning.DIRECTIONS_DISAGREE: disagree,
                EstimateWarning.POOR_DIRECTION_OVERLAP: shared < _POOR_OVERLAP,
                **path_flags(path, v),
            },
        )
        return Weighted(estimate, v, forward[:, None])

    def _works(
        self, path: Path, key: PRNGKeyArray, samples: Any
    ) -> tuple[Float[Array, " n"], Float[Array, " m"], Any, dict[str, Array]]:
        """Log weights of forward chains, with mean Z, and of reverse chains, with mean 1/Z; the forward chains' last states, and figures."""
        pilot_key, start_key, forward_key, reverse_key = jax.random.split(key, 4)
        kernel, log_z0 = default_kernel(path.energy), path.log_z0()
        betas, log_steps = planned(path, kernel, pilot_key, self.schedule, self.temperatures, self.sweeps)
        start = path.start(start_key, self.chains)
        forward, v, acceptance = annealed(path, kernel, forward_key, start, betas, log_steps, sweeps=self.sweeps)
        samples = path.compact(jax.tree.map(lambda x, s: x.astype(s.dtype), samples, path.public(start)))
        reverse, _, _ = annealed(
            path, kernel, reverse_key, samples, betas[::-1], log_steps[::-1], sweeps=self.sweeps, reverse=True
        )
        figures = {"acceptance": acceptance} if has_step(kernel) else {}
        return forward + log_z0, reverse - log_z0, path.public(v), figures


def _relative_error(log_weights: Float[Array, " n"]) -> Array:
    """The standard error of the logarithm of the mean weight."""
    n, log_mean = log_weights.size, log_mean_exp(log_weights)
    relative = jnp.exp(log_weights - log_mean)
    return jnp.std(relative, ddof=1) / np.sqrt(n) if n > 1 else jnp.asarray(jnp.inf, relative.dtype)


def _resampled_bar(key: PRNGKeyArray, forward: Float[Array, " n"], reverse: Float[Array, " m"]) -> Array:
    keys = jax.random.split(key)
    drawn = (x[jax.random.randint(k, x.shape, 0, x.size)] for k, x in zip(keys, (forward, reverse), strict=True))
    return bar(*drawn)
