"""Parallel tempering as a route: stepping-stone, bridge and thermodynamic estimates of log Z from one run, with their diagnostics."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import observed_space
from lnz._core.convergence import r_hat, r_hat_threshold
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.numerics import check_whole_number
from lnz._core.random import Keys, parted
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, default_kernel
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, path_flags, unless_lost
from lnz.routes._annealing.bridge import bar_of, mbar, overlap
from lnz.routes._annealing.mode_probes import PROBE_TEMPERATURES, with_mode_probes
from lnz.routes._annealing.path import Path, Walk, fitted_log_step, has_step, walk
from lnz.routes._annealing.programs import on_host, program
from lnz.routes._annealing.replica_exchange import Swaps, equal_rejections, init_tempering, tempering_step
from lnz.routes._annealing.schedule import MAIN, Ladder, pilot

Estimator = Literal["bar", "mbar", "stepping stone", "thermodynamic integration"]

_KEPT = 32  # states of the model kept from every ladder, for expectations
_IMPOSSIBLE = -1e15  # nats: log weights below this are of states that are impossible, or as good as
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
        mode_probes: chains that start far from the base and search for modes which the ladders miss (see `mode_probes.with_mode_probes`): each is
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
    mode_probes: int = 32

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
        path, kernel, mbar = self.path(energy), default_kernel(energy), self.estimator == "mbar"
        found = pilot(path, key, 0.9, kernel=kernel)
        options: Any = {"sweeps": self.sweeps, "rungs": self.rungs, "replicates": self.replicates}
        ladder = found.ladder("barrier", self.rungs - 1)
        keys = parted(key, 2, MAIN)
        run = _tempered(path, keys, ladder, kernel=kernel, iterations=self.iterations, everywhere=mbar, **options)
        numbers, figures, raised = on_host(
            _finished,
            run,
            _by_mbar(run.everywhere) if mbar else None,
            estimator=self.estimator,
            confidence=self.confidence,
            dtype=jnp.result_type(float),
        )
        estimate = Estimate(
            **numbers,
            guarantee="conditional",
            route=f"parallel tempering, {self.estimator} ({self.rungs} rungs, {self.iterations:,} iterations, {self.replicates} ladders)",
            confidence=self.confidence,
            assumption="the chains are at equilibrium and visit every mode",
            diagnostics=figures | run.figures,
            flags=raised | run.flags,
        )
        same = jnp.asarray(np.zeros((self.replicates, _KEPT), jnp.result_type(float)))
        estimate = with_mode_probes(
            estimate,
            path,
            key,
            run.states,
            same,
            found.ladder("barrier", PROBE_TEMPERATURES),
            kernel=kernel,
            mode_probes=self.mode_probes,
            sweeps=self.sweeps,
        )
        return Weighted(estimate, run.states, same)


class _Run(NamedTuple):
    """A run after its adaptation.

    Attributes:
        swaps: with a first axis of iterations.
        everywhere: F_j - F_0 of the state of every rung k at every rung j, (iterations, k, j, replicates), for `mbar`; otherwise None.
        round_trips: (replicates,).
        states: (replicates · kept, *shape).
        log_z0: log Z of the base.
        figures: the mean acceptance, where moves have one.
        flags: of the path.
    """

    swaps: Swaps
    everywhere: Array | None
    round_trips: Array
    states: State
    log_z0: Array
    figures: dict[str, Array]
    flags: dict[EstimateWarning, Any]


@program
def _tempered(
    path: Path,
    keys: Keys,
    ladder: Ladder,
    *,
    kernel: Kernel,
    iterations: int,
    sweeps: int,
    rungs: int,
    replicates: int,
    everywhere: bool,
) -> _Run:
    """Adaptation and the run itself, in one loop; the results are of the latter."""
    start_key, key = keys
    half, dtype, going = iterations, jnp.result_type(float), walk(path, kernel, sweeps=sweeps, rows=True)
    start, space = path.start(start_key, rungs * replicates), observed_space(path.energy)
    state = init_tempering(_possible(going, going.pack(start)), rungs, replicates)
    kept = jax.tree.map(lambda x: jnp.zeros((_KEPT, replicates, *x.shape[1:]), x.dtype), start)
    times = np.arange(2 * half, dtype=np.int32)
    # The ends of ever longer rounds of adaptation; then chains settle.
    rounds = half // 8, half // 4, half // 2, 3 * half // 4
    slots = np.maximum((times.astype(np.int64) - half) * _KEPT // half, 0).astype(np.int32)

    def step(carry: Any, now: tuple[Array, Array, Array]) -> tuple[Any, tuple[Swaps, Array | None]]:
        t, ends, slot = now
        state, betas, log_steps, rejected, kept = carry
        state, swaps = tempering_step(going, path, betas, log_steps, jax.random.fold_in(key, t), state)
        adapting = t < half
        if has_step(kernel):
            fitted = fitted_log_step(space, log_steps[1:], swaps.acceptance, rate=0.2)
            log_steps = log_steps.at[1:].set(jnp.where(adapting, fitted, log_steps[1:]))
        rejected = rejected + 1 - jnp.mean(swaps.swapped, axis=1)
        new = jnp.where(ends, equal_rejections(betas, rejected), betas)
        rejected = jnp.where(ends, jnp.zeros_like(rejected), rejected)
        state = dataclasses.replace(state, round_trips=jnp.where(adapting, 0, state.round_trips))
        top = jax.tree.map(lambda x: x[-1], going.unpack(state.states))
        kept = jax.tree.map(
            lambda store, x: jax.lax.dynamic_update_index_in_dim(store, x.astype(store.dtype), slot, 0), kept, top
        )
        at_all = None
        if everywhere:
            at = jax.vmap(lambda x: jax.vmap(lambda beta: -going.gain(x, jnp.zeros((), dtype), beta))(betas))
            at_all = at(state.states)
        return (state, new, log_steps, rejected, kept), (swaps, at_all)

    begin = (state, ladder.betas[:rungs], ladder.log_steps[:rungs], jnp.zeros((rungs - 1,), dtype), kept)
    steps = jax.tree.map(jnp.asarray, (times, np.isin(times, rounds), slots))
    (state, *_, kept), seen = jax.lax.scan(step, begin, steps)
    swaps, at_all = jax.tree.map(lambda x: x[half:], seen)
    states = path.public(jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), kept))
    figures = {"acceptance": jnp.nanmean(swaps.acceptance)} if has_step(kernel) else {}
    return _Run(swaps, at_all, state.round_trips, states, path.log_z0(), figures, path_flags(path, states))


def _possible(going: Walk, x: Any) -> Any:
    """The packed states; the next ones replace those that are impossible in the model, or as good as: few reach the upper rungs by swaps."""
    zero = jnp.zeros((), jnp.result_type(float))
    possible = ~(going.gain(x, zero, zero + 1) <= _IMPOSSIBLE)  # or NaN, which must be seen
    n = len(possible)
    away = (np.arange(n) - np.arange(n)[:, None]) % n
    place = jnp.argmin(jnp.where(possible[None], away.astype(np.int32), n), axis=1)
    return jax.tree.map(lambda leaf: leaf[place], x)


class _Ratios(NamedTuple):
    """log Z_K - log Z_0 in nats by every estimator, and the least overlap of neighbours."""

    bar: Any  # numbers, or arrays of one number for each ladder
    stepping_stone: Any
    reverse_stepping_stone: Any
    thermodynamic_left: Any
    thermodynamic_right: Any
    overlap: Any


def _ratios(up: Float[np.ndarray, "K n"], down: Float[np.ndarray, "K n"]) -> _Ratios:
    pairs = np.array([bar_of(*works) for works in zip(up, down, strict=True)])
    log_n = math.log(up.shape[1])
    return _Ratios(
        pairs.sum(),
        (np.logaddexp.reduce(up, axis=1) - log_n).sum(),
        -(np.logaddexp.reduce(down, axis=1) - log_n).sum(),
        up.mean(axis=1).sum(),
        -down.mean(axis=1).sum(),
        min(overlap(*works) for works in zip(up, down, pairs, strict=True)),
    )


def _finished(
    run: _Run, by_mbar: tuple[Any, np.ndarray] | None, *, estimator: Estimator, confidence: float, dtype: Any
) -> tuple[dict[str, Any], dict[str, Any], dict[EstimateWarning, Any]]:
    """The numbers of the estimate, its figures and its warnings, from a run in NumPy."""
    up, down = (np.moveaxis(np.asarray(x), 0, 2) for x in run.swaps[:2])  # (rungs, ladders, iterations)
    pairs, replicates, iterations = up.shape
    # Impossible states above the base are left from the start: their steps say nothing. The others are one ladder, and so have no error.
    settled = ~(np.abs(down) >= -_IMPOSSIBLE).any(axis=0)
    unsettled = not settled.all()
    if unsettled:
        nothing = np.full((pairs, 1, 1), -np.inf), np.zeros((pairs, 1, 1))
        up, down = (x[:, None, settled] for x in (up, down)) if settled.any() else nothing
        replicates = 1
    whole = _ratios(up.reshape(pairs, -1), down.reshape(pairs, -1))
    each = _Ratios(*np.transpose([_ratios(up[:, r], down[:, r]) for r in range(replicates)]))
    count = math.sqrt(replicates)
    reach = _student(replicates, 0.5 + confidence / 2) / count
    if estimator == "thermodynamic integration":
        value, error, lower, upper = _integration(whole, each, reach)
    elif estimator == "mbar" and by_mbar is not None:
        value, error, lower, upper = _around(*by_mbar, reach)
    else:
        name = estimator.replace(" ", "_")
        value, error, lower, upper = _around(getattr(whole, name), getattr(each, name), reach)
    ends = whole.stepping_stone, whole.reverse_stepping_stone
    doubt = _student(replicates, 0.9995) * _sd(each.reverse_stepping_stone - each.stepping_stone) / count
    excluded = (
        up == -np.inf
    ).any()  # then samples from above do not cover the rung below, and the estimate is too high
    disagree = abs(ends[1] - ends[0]) > doubt and not excluded
    if disagree:
        lower, upper = min(lower, *ends), max(upper, *ends)
    disagreement = r_hat(run.swaps.down[:, -1, :].T)
    rejected = 1 - run.swaps.swapped.mean(axis=(0, 2))
    trips, log_z0 = run.round_trips.sum(), run.log_z0
    numbers = {
        "value": value + log_z0,
        "standard_error": error / count,
        "lower": lower + log_z0,
        "upper": upper + log_z0,
    }
    numbers = unless_lost(numbers, dtype)
    figures = {
        **{name: getattr(whole, name) + log_z0 for name in _Ratios._fields if name != "overlap"},
        "barrier": rejected.sum(),
        "least_swap_acceptance": 1 - rejected.max(),
        "least_overlap": whole.overlap,
        "round_trips": np.float64(trips),
        "r_hat": 1.0 if np.isnan(disagreement) else disagreement,  # NaN where all energies are equal
    }
    raised = {
        EstimateWarning.ZERO_WEIGHTS: value == -np.inf,
        EstimateWarning.LADDERS_DISAGREE: disagreement > r_hat_threshold(run.swaps.down.shape[2], iterations),
        EstimateWarning.FEW_ROUND_TRIPS: trips < replicates or unsettled,
        EstimateWarning.POOR_RUNG_OVERLAP: whole.overlap < _POOR_OVERLAP,
        EstimateWarning.DIVERGENT_INTEGRATION: excluded and estimator == "thermodynamic integration",
        EstimateWarning.STEPPING_STONES_DISAGREE: disagree,
    }
    return numbers, figures, raised


_Interval = tuple[float, float, float, float]
"""log Z_K - log Z_0, the standard deviation over the ladders, and the interval."""


def _around(value: Any, spread: Float[np.ndarray, " R"], reach: float) -> _Interval:
    sd = _sd(spread)
    return value, sd, -np.inf if np.isinf(sd) else value - reach * sd, np.inf if np.isinf(sd) else value + reach * sd


def _integration(whole: _Ratios, each: _Ratios, reach: float) -> _Interval:
    _, _, lower, _ = _around(whole.thermodynamic_left, each.thermodynamic_left, reach)
    *_, upper = _around(whole.thermodynamic_right, each.thermodynamic_right, reach)
    middle = 0.5 * (each.thermodynamic_left + each.thermodynamic_right)
    return 0.5 * (lower + upper), _sd(middle), lower, upper


@jax.jit
def _by_mbar(everywhere: Float[Array, "T k j R"]) -> tuple[Array, Float[Array, " R"]]:
    """log Z_K - log Z_0 by MBAR, from all ladders and from each."""
    return _all_rungs(everywhere), jax.lax.map(_all_rungs, jnp.moveaxis(everywhere, 3, 0)[..., None])


def _all_rungs(everywhere: Float[Array, "T k j R"]) -> Array:
    """log Z_K - log Z_0 by MBAR, from the energies of the state of rung k at every rung j, relative to those at the base."""
    iterations, rungs, _, ladders = everywhere.shape
    energies = jnp.transpose(everywhere, (2, 1, 0, 3)).reshape(rungs, -1)
    return mbar(energies, np.full((rungs,), iterations * ladders)).log_z[-1]


def _sd(x: Float[np.ndarray, " R"]) -> float:
    """The standard deviation over the ladders: infinite where one of them says -inf, as no state of its lower rung was possible on the upper."""
    return float(np.inf if x.size == 1 or np.isinf(x).any() else x.std(ddof=1))


def _student(replicates: int, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(replicates - 1, 1), probability))
