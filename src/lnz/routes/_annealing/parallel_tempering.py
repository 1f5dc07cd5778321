"""Parallel tempering as a route: stepping-stone, bridge and thermodynamic estimates of log Z from one run, with their diagnostics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.convergence import r_hat, r_hat_threshold
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number, log_mean_exp
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.ais import PROBE_TEMPERATURES, with_mode_probes
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, path_flags
from lnz.routes._annealing.bridge import bar, mbar, overlap
from lnz.routes._annealing.path import Path, fitted_log_step, has_step
from lnz.routes._annealing.replica_exchange import Swaps, equal_rejections, init_tempering, tempering_step
from lnz.routes._annealing.schedule import Pilot, pilot

Estimator = Literal["bar", "mbar", "stepping stone", "thermodynamic integration"]

_KEPT = 32  # states of the model kept from every ladder, for expectations
_POOR_OVERLAP = 0.03


@dataclasses.dataclass(frozen=True)
class ParallelTempering(AnnealingRoute):
    """Non-reversible parallel tempering between the base and the model, and log Z from neighbouring rungs of its ladder.

    R independent ladders run together. In a first half the inverse temperatures are placed so that all swaps are rejected equally often, and step
    sizes are fitted; both are then fixed, and a second half of the same length gives the ratio of normalisers of every pair of rungs:

    - `bar`: Bennett's acceptance ratio, from both rungs;
    - `mbar`: the same from all rungs at once (least variance; every state is evaluated at every rung);
    - `stepping stone`: log E_k[exp(F_k - F_{k+1})], from the lower rung, whose samples reach farther;
    - `thermodynamic integration`: the mean of Σ E_k[F_k - F_{k+1}] and Σ E_{k+1}[F_k - F_{k+1}], which bracket log Z (Gibbs, Bogoliubov); the
      interval contains both.

    The samples are correlated, so the error comes from the R ladders, which are independent. The estimate is conditional on the chains being at
    equilibrium; R̂ between ladders, round trips, swap acceptance and overlap are in `diagnostics`, and `warnings` names those that are poor.

    Attributes:
        rungs: K + 1, the rungs of each ladder, both ends included; twice the barrier Λ is enough.
        iterations: steps after the adaptation, which takes the same number of steps.
        replicates: R, the number of independent ladders.
        sweeps: moves on every rung between swaps.
        estimator: which estimate is the value; all are in `diagnostics`.
        base: the reference, wrapped as `Frozen`; by default the energy's own `base()`. `ParallelTempering.from_base` wraps it.
        confidence: of the bounds.
        mode_probes: chains that start far from the base and search for modes which the ladders miss (see `mode_probes.probe_modes`): each is
            moved 100 times. 0 for none.

    Source: Syed, Bouchard-Côté, Deligiannidis & Doucet 2022 (tempering); Xie, Lewis, Fan, Kuo & Chen 2011 (stepping stone); Bennett 1976.

    Example:
        >>> import jax, lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
        >>> route = lnz.routes.ParallelTempering(rungs=4, iterations=500)
        >>> estimate = lnz.log_partition(torus, route=route, key=jax.random.key(0))
        >>> bool(estimate.lower < 12.7855 < estimate.upper), estimate.warnings  # Kaufman 1949
        (True, [])
    """

    rungs: int = 16
    iterations: int = 1000
    replicates: int = 8
    sweeps: int = 1
    estimator: Estimator = "bar"
    base: Frozen | None = None
    confidence: float = 0.99
    mode_probes: int = 0

    def __post_init__(self) -> None:
        check_whole_number("mode probes", self.mode_probes, 0)
        checked(self, "rungs", "iterations", "replicates", "sweeps")
        if self.rungs < 2 or self.iterations < 8:
            raise ValueError(
                f"a ladder has at least 2 rungs (the base and the model) and 8 iterations, but got {self.rungs} and {self.iterations}"
            )
        if self.estimator not in Estimator.__args__:
            raise ValueError(f"unknown estimator {self.estimator!r}: choose one of {', '.join(Estimator.__args__)}")

    def cost(self, energy: Energy) -> float:
        return float(2 * self.iterations * self.sweeps * self.rungs * self.replicates)

    def run(self, energy: Energy, key: Any) -> Weighted:
        path, kernel = self.path(energy), default_kernel(energy)
        ladder = self._tempered(path, kernel, fast_key(key))
        swaps, trips = ladder.swaps, ladder.round_trips
        each = jax.vmap(_ratios, in_axes=(2, 2))(swaps.up, swaps.down)  # of every ladder by itself
        whole = _ratios(_pooled(swaps.up), _pooled(swaps.down))
        quantile, count = _student(self.replicates, 0.5 + self.confidence / 2), math.sqrt(self.replicates)
        log_z0 = path.log_z0()
        value, error, lower, upper = _ESTIMATES[self.estimator](ladder, whole, each, quantile / count)
        error = error / count
        gap = whole.reverse_stepping_stone - whole.stepping_stone
        doubt = _student(self.replicates, 0.9995) * _sd(each.reverse_stepping_stone - each.stepping_stone) / count
        excluded = jnp.any(
            swaps.up == -jnp.inf
        )  # then samples from above do not cover the rung below, and the estimate is too high
        disagree = (jnp.abs(gap) > doubt) & ~excluded
        lower = jnp.where(
            disagree, jnp.minimum(lower, jnp.minimum(whole.stepping_stone, whole.reverse_stepping_stone)), lower
        )
        upper = jnp.where(
            disagree, jnp.maximum(upper, jnp.maximum(whole.stepping_stone, whole.reverse_stepping_stone)), upper
        )
        disagreement = r_hat(swaps.down[:, -1, :].T)
        rejected = 1 - jnp.mean(swaps.swapped, axis=(0, 2))
        states = path.public(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), ladder.kept))
        flags = {
            EstimateWarning.LADDERS_DISAGREE: disagreement > r_hat_threshold(self.replicates, self.iterations),
            EstimateWarning.FEW_ROUND_TRIPS: jnp.sum(trips) < self.replicates,
            EstimateWarning.POOR_RUNG_OVERLAP: whole.overlap < _POOR_OVERLAP,
            EstimateWarning.DIVERGENT_INTEGRATION: excluded & (self.estimator == "thermodynamic integration"),
            EstimateWarning.STEPPING_STONES_DISAGREE: disagree,
            **path_flags(path, states),
        }
        estimate = Estimate(
            value=value + log_z0,
            standard_error=error,
            lower=lower + log_z0,
            upper=upper + log_z0,
            guarantee="conditional",
            route=f"parallel tempering, {self.estimator} ({self.rungs} rungs, {self.iterations:,} iterations, {self.replicates} ladders)",
            confidence=self.confidence,
            assumption="the chains are at equilibrium and visit every mode",
            diagnostics={
                "stepping_stone": whole.stepping_stone + log_z0,
                "reverse_stepping_stone": whole.reverse_stepping_stone + log_z0,
                "bar": whole.bar + log_z0,
                "thermodynamic_left": whole.thermodynamic_left + log_z0,
                "thermodynamic_right": whole.thermodynamic_right + log_z0,
                "barrier": jnp.sum(rejected),
                "least_swap_acceptance": 1 - jnp.max(rejected),
                "least_overlap": whole.overlap,
                "round_trips": jnp.sum(trips).astype(value.dtype),
                "r_hat": jnp.where(jnp.isnan(disagreement), 1, disagreement),  # NaN where all energies are equal
            }
            | ({"acceptance": jnp.mean(swaps.acceptance)} if has_step(kernel) else {}),
            flags=flags,
        )
        same = jnp.zeros((self.replicates, _KEPT), value.dtype)
        betas = ladder.pilot.placed("barrier", PROBE_TEMPERATURES)
        estimate = with_mode_probes(
            estimate,
            path,
            kernel,
            fast_key(key),
            (states, same.reshape(-1)),
            betas,
            ladder.pilot.log_steps(betas),
            mode_probes=self.mode_probes,
            sweeps=self.sweeps,
        )
        return Weighted(estimate, states, same)

    def _tempered(self, path: Path, kernel: Kernel, key: PRNGKeyArray) -> _Run:
        """Adaptation and the run itself, in one loop; the results are of the latter."""
        pilot_key, start_key, key = jax.random.split(key, 3)
        half, dtype = self.iterations, jnp.result_type(float)
        found = pilot(path, kernel, pilot_key)
        betas = found.placed("barrier", self.rungs - 1)
        state = init_tempering(path, start_key, self.rungs, self.replicates)
        kept = jax.tree.map(lambda x: jnp.zeros((_KEPT, *x.shape[1:]), x.dtype), state.states)
        rounds = [
            half // 8,
            half // 4,
            half // 2,
            3 * half // 4,
        ]  # the ends of ever longer rounds of adaptation; then chains settle

        def step(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Swaps, Array]]:
            state, betas, log_steps, rejected, kept = carry
            t, key = inputs
            state, swaps = tempering_step(path, kernel, betas, log_steps, key, state, sweeps=self.sweeps)
            adapting = t < half
            log_steps = log_steps.at[1:].set(
                jnp.where(adapting, fitted_log_step(log_steps[1:], swaps.acceptance, rate=0.2), log_steps[1:])
            )
            rejected = rejected + 1 - jnp.mean(swaps.swapped, axis=1)
            ends = jnp.any(t == jnp.asarray(rounds, t.dtype))
            new = jnp.where(ends, equal_rejections(betas, rejected), betas)
            rejected = jnp.where(ends, jnp.zeros_like(rejected), rejected)
            state = dataclasses.replace(state, round_trips=jnp.where(adapting, 0, state.round_trips))
            slot = jnp.maximum((t - half) * _KEPT // half, 0)
            kept = jax.tree.map(lambda store, x: store.at[slot].set(x[-1]), kept, state.states)
            everywhere = jnp.zeros((0,), dtype)
            if self.estimator == "mbar":  # F_j - F_0 of the state of every rung k at every rung j: (k, j, ladders)
                at_all = jax.vmap(lambda v: jax.vmap(lambda beta: -path.gain(v, zero, beta))(betas))
                everywhere = at_all(state.states)
            return (state, new, log_steps, rejected, kept), (swaps, everywhere)

        log_steps, zero = found.log_steps(betas), jnp.zeros((), dtype)
        begin = (state, betas, log_steps, jnp.zeros((self.rungs - 1,), dtype), kept)
        times = jnp.arange(2 * half, dtype=jnp.int32)
        (state, *_, kept), seen = jax.lax.scan(step, begin, (times, jax.random.split(key, 2 * half)))
        swaps, everywhere = jax.tree.map(lambda x: x[half:], seen)
        return _Run(swaps, everywhere, state.round_trips, kept, found)


class _Run(NamedTuple):
    swaps: Swaps  # with a first axis of iterations
    everywhere: Array  # (iterations, rungs, rungs, replicates) for `mbar`, otherwise empty
    round_trips: Array
    kept: State  # (kept, replicates, *shape)
    pilot: Pilot


class _Ratios(NamedTuple):
    """log Z_K - log Z_0 in nats by every estimator, and the least overlap of neighbours."""

    bar: Array
    stepping_stone: Array
    reverse_stepping_stone: Array
    thermodynamic_left: Array
    thermodynamic_right: Array
    overlap: Array


def _ratios(up: Float[Array, "n K"], down: Float[Array, "n K"]) -> _Ratios:
    pairs = jax.vmap(bar, in_axes=1)(up, down)
    return _Ratios(
        jnp.sum(pairs),
        jnp.sum(jax.vmap(log_mean_exp, in_axes=1)(up)),
        -jnp.sum(jax.vmap(log_mean_exp, in_axes=1)(down)),
        jnp.sum(jnp.mean(up, axis=0)),
        -jnp.sum(jnp.mean(down, axis=0)),
        jnp.min(jax.vmap(overlap, in_axes=(1, 1, 0))(up, down, pairs)),
    )


_Interval = tuple[
    Array, Array, Array, Array
]  # log Z_K - log Z_0, the standard deviation over the ladders, and the interval


def _around(value: Array, spread: Float[Array, " R"], reach: float) -> _Interval:
    sd = _sd(spread)
    return (
        value,
        sd,
        jnp.where(jnp.isinf(sd), -jnp.inf, value - reach * sd),
        jnp.where(jnp.isinf(sd), jnp.inf, value + reach * sd),
    )


def _integration(whole: _Ratios, each: _Ratios, reach: float) -> _Interval:
    _, _, lower, _ = _around(whole.thermodynamic_left, each.thermodynamic_left, reach)
    *_, upper = _around(whole.thermodynamic_right, each.thermodynamic_right, reach)
    middle = 0.5 * (each.thermodynamic_left + each.thermodynamic_right)
    return 0.5 * (lower + upper), _sd(middle), lower, upper


# From the run, the ratios of all ladders together and of each, and the standard deviations that the interval reaches to either side.
_ESTIMATES: dict[Estimator, Callable[[_Run, _Ratios, _Ratios, float], _Interval]] = {
    "bar": lambda run, whole, each, reach: _around(whole.bar, each.bar, reach),
    "mbar": lambda run, whole, each, reach: _around(*_all_and_each(run.everywhere), reach),
    "stepping stone": lambda run, whole, each, reach: _around(whole.stepping_stone, each.stepping_stone, reach),
    "thermodynamic integration": lambda run, whole, each, reach: _integration(whole, each, reach),
}


def _all_and_each(everywhere: Float[Array, "T k j R"]) -> tuple[Array, Float[Array, " R"]]:
    """log Z_K - log Z_0 by MBAR, from all ladders and from each."""
    return _all_rungs(everywhere), jax.lax.map(_all_rungs, jnp.moveaxis(everywhere, 3, 0)[..., None])


def _all_rungs(everywhere: Float[Array, "T k j R"]) -> Array:
    """log Z_K - log Z_0 by MBAR, from the energies of the state of rung k at every rung j, relative to those at the base."""
    iterations, rungs, _, ladders = everywhere.shape
    energies = jnp.transpose(everywhere, (2, 1, 0, 3)).reshape(rungs, -1)
    return mbar(energies, np.full((rungs,), iterations * ladders)).log_z[-1]


def _pooled(x: Float[Array, "T K R"]) -> Float[Array, "n K"]:
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1])


def _sd(x: Float[Array, " R"]) -> Array:
    """The standard deviation over the ladders: infinite where one of them says -inf, as no state of its lower rung was possible on the upper."""
    if x.size == 1:
        return jnp.asarray(jnp.inf, x.dtype)
    return jnp.where(jnp.any(jnp.isinf(x)), jnp.inf, jnp.std(x, ddof=1))


def _student(replicates: int, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(replicates - 1, 1), probability))
