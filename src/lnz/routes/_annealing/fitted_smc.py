"""Sequential Monte Carlo for badly scaled continuous models, from a base that rounds of a pilot run fit to them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen, is_traced, known_values
from lnz._core.numerics import check_whole_number
from lnz._core.spaces import Real
from lnz._models.independent import LogisticReal, Mixture
from lnz.kernels._kernels import Langevin, default_kernel
from lnz.kernels._resampling import systematic_on_host
from lnz.routes._annealing.ais import AnnealedImportanceSampling
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted, checked, from_weights, looks_infinite
from lnz.routes._annealing.mode_probes import FEW, LIGHT, far_more
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.triangular_map import TriangularMap, fitted_map, times

_LARGEST = 64  # dimensions up to which a map is fitted
_ROWS = 1024  # states of one call of the energy's program
_TOGETHER = 4096  # states that are mapped at a time
_FIRST, _ROUND = (8, 128), (16, 128)  # populations and particles of a round of the pilot
_WIDEN = 1.1  # of fitted scales
_STEPS = (-3.0, 0.7)  # range of the logarithm of step sizes about the fitted one
_LEAPFROGS = 8
_STALLED = 8  # moves after which particles that have forgotten nothing in the last half of them move no more
_AFTERWARDS = 10  # moves under the model
_TEMPERATURES = 100
_ARRIVED = 0.03  # nats that log Z may rise in a round
_ARRIVED_NO_NEARER = 0.1  # the error of log Z, in nats, at which rounds end whose base comes no nearer to the model
_RISEN = 0.2  # nats that it may rise in the last of all rounds without a warning
_SEARCHES = 3  # by mode probes, each but the last after a pilot that was begun again
_LITTLE = 2.0  # nats below log Z of a region with which a pilot does not begin again
_LEAST_SHARE = 0.2  # of particles of a new region, and of the old one, in a pilot that begins again
_DISTANCES = (
    1.0,
    4.5,
)  # the range of the logarithm (to base 2) of the distances of points from the base's centre, in its standard deviations
_ESCAPED = 0.02  # the share of particles that may move on to where the base hardly reaches

# The log density of states (d, n), up to log Z, and its gradient.
Target = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class FittedSMC(AnnealingRoute):
    """Sequential Monte Carlo (SMC) for continuous models whose scales differ by orders of magnitude: hierarchies, funnels, ridges.

    In rounds, a pilot population is annealed to the model from a base, and the next base is fitted to it: the image of independent variables under
    a triangular map, where every coordinate has a location and a scale that depend on the earlier ones. Rounds end when log Z rises no more. Then
    the base, the inverse temperatures and the moves are fixed, and R independent populations of n particles are annealed from exact samples of the
    base: every estimate Ẑ has mean Z exactly, whatever the pilot found. The moves are Hamiltonian ones of the variables, in which the model is
    about equally wide everywhere.

    Before that, mode probes look for regions that the pilot missed: chains from dispersed starts, and in up to 16 dimensions from where the density
    rises away from the base, among up to a million points. Where they find mass, the pilot begins again with it. Where the maps lose modes, so that
    log Z falls from round to round, the answer is that of `AnnealedImportanceSampling`, and its interval reaches what the pilot saw.

    All but the energy runs in NumPy, so that one small program is compiled. It needs known values; where the key alone is traced, the run is one of
    `AnnealedImportanceSampling`.

    Attributes:
        particles: n, in each population.
        replicates: R, the number of independent populations.
        rounds: the most rounds of the pilot.
        base: where the first round begins, wrapped as `Frozen`; by default the energy's own `base()`.
        confidence: of the bounds.
        mode_probes: chains that search for modes which the particles miss; 0 for none.

    Source: Del Moral, Doucet & Jasra 2006, "Sequential Monte Carlo samplers"; Parno & Marzouk 2018, "Transport map accelerated Markov chain Monte
    Carlo".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def funnel(x):
        ...     return x[0] ** 2 / 18 + jnp.sum(0.5 * x[1:] ** 2 * jnp.exp(-x[0]) + 0.5 * x[0])
        >>> estimate = lnz.log_partition(lnz.FunctionEnergy(funnel, lnz.Real(6)), route=lnz.routes.FittedSMC(), key=jax.random.key(0))
        >>> bool(estimate.lower < 3 * jnp.log(2 * jnp.pi) + jnp.log(3) < estimate.upper)
        True
    """

    unbiased: ClassVar[bool] = True
    not_joined: ClassVar[str | None] = (
        "what a fitted base hardly reaches would be missing from all of them: ask for more replicates in one run, or call lnz.evidence with within"
    )
    particles: int = 128
    replicates: int = 64
    rounds: int = 10
    base: Frozen | None = None
    confidence: float = 0.99
    mode_probes: int = 1024

    def __post_init__(self) -> None:
        check_whole_number("mode probes", self.mode_probes, 0)
        checked(self, "particles", "replicates", "rounds")

    def cost(self, energy: Energy) -> float:
        """The cost of one temperature, and of five rounds of as many moves."""
        return float(10 * _LEAPFROGS * (self.particles * self.replicates + 5 * math.prod(_ROUND)))

    def unsupported_reason(self, energy: Energy) -> str | None:
        space = observed_space(energy)
        if not isinstance(space, Real):
            return f"maps are fitted to real vectors, and this energy is on {space}"
        if math.prod(space.shape) > _LARGEST:
            return f"maps are fitted in up to {_LARGEST} dimensions, and this energy has {math.prod(space.shape)}"
        if any(map(is_traced, jax.tree.leaves(known_values(energy)))):
            return "its values are traced, and maps are fitted on the host"
        reason = super().unsupported_reason(energy)
        if reason is None and not isinstance(default_kernel(energy), Langevin):
            return "the energy has moves of its own"
        return reason

    def run(self, energy: Energy, key: Any) -> Weighted:
        other = AnnealedImportanceSampling(
            base=self.base, confidence=self.confidence, mode_probes=min(self.mode_probes, 32)
        )
        if is_traced(key):
            return other.run(energy, key)
        path = self.path(energy)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        with np.errstate(all="ignore"):
            target, starts = target_of(energy), _starts(path, key, rng)
            pilot, missed = _pilot_of_every_mode(target, starts, rng, self.rounds, self.mode_probes)
            if pilot.lost is not None:
                return _covering(other.run(energy, key), pilot.lost)
            ran = annealed(target, pilot.base, rng, (self.replicates, self.particles), pilot.ran.plan)
            limit = far_more(ran.ends.log_ratio)
            ends = _moved(target, pilot.base, rng, ran.ends, pilot.ran.plan[-1], _AFTERWARDS)
            escaped = ends.log_ratio > limit
            v = _states(path, ends.x)
            estimate = from_weights(
                jnp.asarray(ran.log_z),
                confidence=self.confidence,
                route=f"sequential Monte Carlo from a fitted base ({self.replicates:,} populations of {self.particles:,} particles)",
                assumption="the particles reach every mode",
                base_by_default=path.by_default,
                diagnostics={
                    "temperatures": jnp.asarray(len(pilot.ran.plan)),
                    "pilot_log_z": jnp.asarray([mean for mean, _ in pilot.found]),
                    "replicate_sd": jnp.asarray(ran.log_z.std(ddof=1) if self.replicates > 1 else np.inf),
                    "escaped": jnp.asarray(escaped.mean()),
                    "log_mass_elsewhere": jnp.asarray(missed),
                },
                flags={
                    EstimateWarning.UNSETTLED_BASE: jnp.asarray(pilot.rising),
                    EstimateWarning.LAGGING_CHAINS: jnp.asarray(escaped.mean() > _ESCAPED),
                    EstimateWarning.POPULATIONS_DISAGREE: jnp.asarray(
                        self.replicates > 1 and ran.log_z.std(ddof=1) > 1
                    ),
                    EstimateWarning.INFINITE_Z: looks_infinite(path, v[:_ROWS]),
                },
            )
        heavy = missed > float(estimate.value) - LIGHT
        # What the base hardly reaches may be missing from all of its populations: the interval covers the last round of the pilot as well.
        last, error = pilot.found[-1]
        upper = jnp.maximum(estimate.upper, last + 3 * error)
        upper = jnp.logaddexp(upper, missed + 1) if heavy else upper
        flags = {**estimate.flags, EstimateWarning.MISSED_MODES: jnp.asarray(heavy)}
        estimate = dataclasses.replace(estimate, upper=upper, flags=flags)
        return Weighted(estimate, v, jnp.repeat(jnp.asarray(ran.log_z)[:, None], self.particles, axis=1))


def _covering(weighted: Weighted, least: float) -> Weighted:
    """An estimate whose interval reaches what the pilot saw, with a flag where it did not."""
    estimate = weighted.estimate
    missed = estimate.flags.get(EstimateWarning.MISSED_MODES, jnp.asarray(False)) | (estimate.upper < least)
    flags = {**estimate.flags, EstimateWarning.MISSED_MODES: missed}
    estimate = dataclasses.replace(estimate, upper=jnp.maximum(estimate.upper, least), flags=flags)
    return dataclasses.replace(weighted, estimate=estimate)


# ------------------------------------------------------------------------------------------------------------ the model


@functools.partial(jax.jit, static_argnums=0)
def _values(constants: Frozen, parameters: Any, rows: Float[Array, "n d"]) -> tuple[Array, Array]:
    energy: Energy = eqx.combine(parameters, constants.value)
    shape, dtype = observed_space(energy).shape, jnp.result_type(float)
    return jax.vmap(jax.value_and_grad(lambda x: free_energy_of(energy)(x.reshape(shape)).astype(dtype)))(rows)


def target_of(energy: Energy) -> Target:
    """The log density of the model, by a program of one shape."""
    dtype: Any = observed_space(energy).struct.dtype
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    constants = Frozen(constants)

    def target(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = x.shape[1]
        rows = np.concatenate([x.T, np.repeat(x.T[-1:], -n % _ROWS, axis=0)]).astype(dtype)
        found = [_values(constants, parameters, rows[i : i + _ROWS]) for i in range(0, n, _ROWS)]
        values, slopes = (
            np.concatenate([np.asarray(part) for part in parts])[:n] for parts in zip(*found, strict=True)
        )
        slopes = -slopes.T.astype(np.float64)
        return -values.astype(np.float64), np.where(np.isfinite(slopes), slopes, 0.0)

    return target


def _starts(path: Path, key: Any, rng: np.random.Generator) -> np.ndarray:
    """States of the path's base, (d, n); of the default one without a compiled program."""
    n, base = math.prod(_FIRST), path.base
    parts = base.components if isinstance(base, Mixture) else ()
    scales = [part.scale for part in parts if isinstance(part, LogisticReal)]
    if scales and len(scales) == len(parts):
        weights = np.exp(np.asarray(base.log_weights, np.float64))
        return rng.choice(np.asarray(scales, np.float64), n, p=weights / weights.sum()) * rng.logistic(
            size=(math.prod(base.space.shape), n)
        )
    v = np.asarray(path.start(key, n), np.float64)
    return v.reshape(n, -1).T


def _states(path: Path, x: np.ndarray) -> Array:
    space: Any = observed_space(path.energy)
    return jnp.asarray(x.T.reshape(-1, *space.shape), space.struct.dtype)


# ------------------------------------------------------------------------------------------------------- particles, moves


class Particles(NamedTuple):
    """Particles, and the log densities and gradients of both ends of the path, by the variables of the base.

    Attributes:
        noise: the variables (d, n).
        x: the states (d, n).
        model: the log density of the model (n,), and its gradient (d, n).
        base: of the base.
    """

    noise: np.ndarray
    x: np.ndarray
    model: tuple[np.ndarray, np.ndarray]
    base: tuple[np.ndarray, np.ndarray]

    @property
    def log_ratio(self) -> np.ndarray:
        """The log of model over base, -inf where the model is impossible."""
        return self.model[0] - self.base[0]

    def at(self, beta: float) -> tuple[np.ndarray, np.ndarray]:
        """The log density at β and its gradient."""
        if beta == 1:
            return self.model
        (model, by_model), (base, by_base) = self.model, self.base
        return beta * model + (1 - beta) * base, beta * by_model + (1 - beta) * by_base

    def taken(self, where: np.ndarray, other: Particles) -> Particles:
        """The particles of another population where it says so, and these elsewhere."""
        return Particles(*jax.tree.map(lambda new, old: np.where(where, new, old), tuple(other), tuple(self)))

    def chosen(self, which: np.ndarray) -> Particles:
        """Some of the particles."""
        return Particles(*jax.tree.map(lambda a: a[..., which], tuple(self)))


class Stop(NamedTuple):
    """An inverse temperature of a plan, and how particles move there: the root of their covariance, their step size and the number of moves."""

    beta: float
    root: np.ndarray
    step: float
    moves: int


class Ran(NamedTuple):
    """Particles annealed to the model: log Ẑ of every population, the particles, and what was planned on the way."""

    log_z: np.ndarray
    ends: Particles
    plan: list[Stop]


def _at(target: Target, base: TriangularMap, noise: np.ndarray) -> Particles:
    parts = []
    for i in range(0, noise.shape[1], _TOGETHER):
        placed = base.place(np.ascontiguousarray(noise[:, i : i + _TOGETHER]))
        value, slope = target(placed.x)
        model = value + placed.log_volume, base.pulled(placed, slope)
        parts.append((placed.noise, placed.x, model, base.log_density(placed.noise)))
    return Particles(*jax.tree.map(lambda *each: np.concatenate(each, axis=-1), *parts))


def _move(
    target: Target,
    base: TriangularMap,
    rng: np.random.Generator,
    here: Particles,
    beta: float,
    step_size: float,
    roots: tuple[np.ndarray, ...],
) -> tuple[Particles, float]:
    """A Hamiltonian move of the variables, whose step size every particle draws, and its mean acceptance.

    The roots of covariances are those of as many equal parts of the particles.
    """

    def through(matrices: Any, x: np.ndarray) -> np.ndarray:
        parts = np.array_split(x, len(roots), axis=1)
        return np.concatenate([times(matrix, part) for matrix, part in zip(matrices, parts, strict=True)], axis=1)

    back = [root.T for root in roots]
    step = step_size * np.exp(rng.uniform(*_STEPS, here.noise.shape[1]))
    p = rng.normal(size=here.noise.shape)
    there, (value, slope) = here, here.at(beta)
    begun = value - 0.5 * np.square(p).sum(axis=0)
    for _ in range(rng.integers(1, _LEAPFROGS + 1)):
        p = p + 0.5 * step * through(back, slope)
        there = _at(target, base, there.noise + step * through(roots, p))
        value, slope = there.at(beta)
        p = p + 0.5 * step * through(back, slope)
    gain = value - 0.5 * np.square(p).sum(axis=0) - begun
    chance = np.where(np.isnan(gain), 0.0, np.exp(np.minimum(gain, 0)))
    return here.taken(rng.random(len(chance)) < chance, there), float(chance.mean())


def _moved(
    target: Target, base: TriangularMap, rng: np.random.Generator, here: Particles, stop: Stop, moves: int
) -> Particles:
    for _ in range(moves):
        here, _ = _move(target, base, rng, here, stop.beta, stop.step, (stop.root,))
    return here


def _settled(
    target: Target,
    base: TriangularMap,
    rng: np.random.Generator,
    here: Particles,
    beta: float,
    *,
    most: int,
    step: float = 0.5,
    root: np.ndarray | None = None,
) -> tuple[Particles, Stop]:
    """Particles moved until they have forgotten where they were, or for so many moves, and a stop with the root, step size and moves that took.

    Unless a root is given, each half of the particles moves by the covariance of the other: moves by their own make log Z several nats too high in
    many dimensions.
    """
    first, second = np.array_split(here.noise, 2, axis=1)
    roots = (_root(second), _root(first)) if root is None else (root,)
    begun, remembered = here.noise, []
    while len(remembered) < most and not has_forgotten(remembered):
        here, rate = _move(target, base, rng, here, beta, step, roots)
        step = min(max(step * math.exp(0.3 * (rate - 0.6)), 1e-4), 3.0)
        remembered.append(_remembered(begun, here.noise))
    return here, Stop(beta, _root(begun) if root is None else root, step, len(remembered))


def has_forgotten(remembered: list[float]) -> bool:
    """Whether particles have forgotten where they were, or forget no more, as between modes, by what they remembered after each move."""
    if len(remembered) < 3:
        return False
    stalls = len(remembered) >= _STALLED and remembered[-1] > 0.95 * min(remembered[: -_STALLED // 2])
    return remembered[-1] <= 0.4 or stalls


def _remembered(a: np.ndarray, b: np.ndarray) -> float:
    """The largest correlation of a variable, or of its square, between two times; of clipped variables, whose moments exist."""
    worst = 0.0
    for f in (lambda x: x.clip(-4, 4), lambda x: np.square(x.clip(-4, 4))):
        x, y = (f(c) - f(c).mean(axis=1, keepdims=True) for c in (a, b))
        size = np.sqrt(np.square(x).sum(axis=1) * np.square(y).sum(axis=1))
        worst = max(worst, float((np.abs((x * y).sum(axis=1)) / np.maximum(size, 1e-300)).max()))
    return worst


def annealed(
    target: Target,
    base: TriangularMap,
    rng: np.random.Generator,
    size: tuple[int, int],
    plan: list[Stop] | None = None,
    *,
    effective: float = 0.5,
    most: int = 30,
) -> Ran:
    """Populations annealed from the base to the model along a plan, or along one that is made on the way and keeps this effective sample size.

    At every stop particles are resampled and moved; with a plan, not at the last one.
    """
    here, log_z, beta, step = _at(target, base, base.drawn(rng, math.prod(size))), np.zeros(size[0]), 0.0, 0.5
    made: list[Stop] = []
    while beta < 1:
        ratio = here.log_ratio
        if plan is None:
            ratio = np.nan_to_num(ratio, nan=-np.inf, posinf=1e15).clip(-1e15)
            stride = 1 - beta if len(made) >= _TEMPERATURES else _stride(ratio, 1 - beta, effective)
            new = 1.0 if stride >= 1 - beta - 1e-9 else beta + stride
        else:
            new = plan[len(made)].beta
        gain = (np.zeros_like(ratio) if new == beta else (new - beta) * ratio).reshape(size)
        log_z = log_z + np.logaddexp.reduce(gain, axis=1) - math.log(size[1])
        kept = systematic_on_host(rng, gain) + size[1] * np.arange(size[0])[:, None]
        here, beta = here.chosen(kept.ravel()), new
        if plan is None:
            here, stop = _settled(target, base, rng, here, beta, most=most, step=step)
            step = stop.step
        else:
            stop = plan[len(made)]
            here = here if beta == 1 else _moved(target, base, rng, here, stop, stop.moves)
        made.append(stop)
    return Ran(log_z, here, made)


def _stride(ratio: np.ndarray, most: float, effective: float) -> float:
    """The longest step of β, up to `most`, whose weights have this effective sample size, as a share of the particles."""

    def fine(stride: float) -> bool:
        w = np.exp(stride * (ratio - ratio.max()))
        return bool(w.sum() ** 2 >= effective * len(w) * np.square(w).sum())

    low, high = 0.0, most
    if fine(high):
        return high
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fine(middle) else (low, middle)
    return max(low, 1e-7)


def _root(noise: np.ndarray) -> np.ndarray:
    """The Cholesky root of the covariance of variables, clipped as those of heavy tails have none."""
    covariance = np.atleast_2d(np.cov(noise.clip(-20, 20)))
    return np.linalg.cholesky(covariance + 1e-8 * (1 + np.trace(covariance) / len(noise)) * np.eye(len(noise)))


# ------------------------------------------------------------------------------------------------------------ the pilot


class _Piloted(NamedTuple):
    """What the pilot run fixes: the base, and the last run from it with its plan.

    Attributes:
        found: log Ẑ of every round, and its error.
        rising: whether it still rises.
        lost: the upper end of an earlier one, where the base has lost modes since, and otherwise None.
    """

    base: TriangularMap
    ran: Ran
    found: list[tuple[float, float]]
    rising: bool
    lost: float | None


def _pilot_of_every_mode(
    target: Target, starts: np.ndarray, rng: np.random.Generator, rounds: int, mode_probes: int
) -> tuple[_Piloted, float]:
    """The pilot, begun again with the regions that mode probes found elsewhere, and the log of the mass that they found in the end."""
    first = annealed(target, fitted_map(starts, 1.0), rng, _FIRST, effective=0.3, most=15)
    pilot, missed = _piloted(target, first.ends.x, [_mean_and_error(first.log_z)], rng, rounds), -np.inf
    for _ in range(_SEARCHES if mode_probes else 0):
        if pilot.lost is not None:
            break
        limit = far_more(pilot.ran.ends.log_ratio)
        narrow = outward(target, pilot.base, rng, mode_probes // 2)
        dispersed = _dispersed(starts, rng, mode_probes - narrow.shape[1])
        missed, error, x = elsewhere(target, pilot.base, rng, np.concatenate([dispersed, narrow], axis=1), limit)
        if missed <= pilot.found[-1][0] - _LITTLE:
            break
        share = 1 / (1 + math.exp(pilot.found[-1][0] - missed))
        new = rng.random(math.prod(_ROUND)) < min(max(share, _LEAST_SHARE), 1 - _LEAST_SHARE)
        old = pilot.ran.ends.chosen(rng.integers(len(new), size=len(new))).x
        joined = np.where(new, x[:, rng.integers(x.shape[1], size=len(new))], old)
        pilot = _piloted(target, joined, [pilot.found[-1], (missed, error)], rng, rounds)
    return pilot, missed


def _piloted(
    target: Target, x: np.ndarray, found: list[tuple[float, float]], rng: np.random.Generator, rounds: int
) -> _Piloted:
    """Rounds of fits and runs that begin with these states, after what was found earlier."""
    found, stops, lost = list(found), [], None
    for _ in range(rounds):
        base = fitted_map(x, _WIDEN)
        for _ in range(2):  # states that explore further than the annealed ones, in coordinates that suit them better
            here = _at(target, base, base.variables(x))
            x = _settled(target, base, rng, here, 1.0, most=10)[0].x
            base = fitted_map(x, _WIDEN, base.order)
        ran = annealed(target, base, rng, _ROUND)
        x = ran.ends.x
        found.append(_mean_and_error(ran.log_z))
        stops.append(len(ran.plan))
        lost = fallen(found)
        near = stops[-1] <= 2 or (
            stops[-1] >= min(stops[-3:-1], default=math.inf) and found[-1][1] < _ARRIVED_NO_NEARER
        )
        if lost is not None or (len(stops) > 2 and near and not still_rises(found, _ARRIVED)):
            break
    return _Piloted(base, ran, found, still_rises(found, _RISEN), lost)


def fallen(found: list[tuple[float, float]]) -> float | None:
    """The upper end of an earlier log Z, where it lay above the last one by more than errors explain, and otherwise None.

    Estimates of Z from a base that has lost modes are low nearly always.
    """
    last, error = found[-1]
    above = [(mean, e) for mean, e in found[:-1] if mean - last > max(_RISEN, 3 * math.hypot(e, error))]
    return max((mean + 3 * e for mean, e in above), default=None)


def still_rises(found: list[tuple[float, float]], least: float) -> bool:
    """Whether log Z, with its error, has risen in the last round: by more than `least` nats and twice the error of the difference."""
    (before, error), (after, new_error) = found[-2:]
    return after - before > max(least, 2 * math.hypot(error, new_error))


def _mean_and_error(log_z: np.ndarray) -> tuple[float, float]:
    """The logarithm of the mean Ẑ of populations, and its standard error."""
    mean = np.logaddexp.reduce(log_z) - math.log(len(log_z))
    return float(mean), float(np.exp(log_z - mean).std(ddof=1) / math.sqrt(len(log_z)))


# ------------------------------------------------------------------------------------------------------- other modes


def _dispersed(starts: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    """States (d, n) around those of the base, from half as far apart to eight times as far."""
    first, second = (starts[:, rng.integers(starts.shape[1], size=n)] for _ in range(2))
    return first + np.exp2(rng.uniform(-1, 3, n)) * (second - first)


def outward(target: Target, base: TriangularMap, rng: np.random.Generator, most: int) -> np.ndarray:
    """States (d, n) around the base from which the model's density rises away from it, the steepest ones: slopes of narrow modes that no chain meets.

    In more dimensions than a few, points at random meet no slope: none.
    """
    d = len(base.centre)
    if d > FEW:
        return np.empty((d, 0))
    found, slopes = [np.empty((d, 0))], [np.empty(0)]
    for _ in range(2 ** min(d - 2, 8)):
        direction = rng.normal(size=(d, _TOGETHER))
        direction /= np.sqrt(np.square(direction).sum(axis=0))
        here = _at(target, base, direction * np.exp2(rng.uniform(*_DISTANCES, _TOGETHER)))
        slope = (direction * here.model[1]).sum(axis=0)
        rises = (slope > 0) & (here.model[0] > -np.inf)
        found.append(here.x[:, rises])
        slopes.append(slope[rises])
    steepest = np.argsort(-np.concatenate(slopes))[:most]
    if not len(steepest):
        return np.empty((d, 0))
    return np.concatenate(found, axis=1)[:, np.resize(steepest, most)]


def elsewhere(
    target: Target, base: TriangularMap, rng: np.random.Generator, x: np.ndarray, limit: float
) -> tuple[float, float, np.ndarray]:
    """The log of the model's mass in regions where chains from these states settle and the base hardly reaches, its error, and states there.

    It is -inf for none, and otherwise that of an annealed population from a base of its own, fitted to the chains there.
    """

    def away(x: np.ndarray) -> np.ndarray:
        return x[:, _at(target, base, base.variables(x)).log_ratio > limit]

    plain = plain_map(x)
    x = _settled(target, plain, rng, _at(target, plain, plain.variables(x)), 1.0, most=60, root=np.eye(len(x)))[0].x
    settled = away(x)
    if settled.shape[1] < 2:
        return -np.inf, 0.0, settled
    own = fitted_map(settled, _WIDEN) if settled.shape[1] > 10 * len(x) else plain_map(settled)
    ran = annealed(target, own, rng, _FIRST)
    there = away(ran.ends.x)
    mean, error = _mean_and_error(ran.log_z)
    return mean + float(np.log(there.shape[1] / ran.ends.x.shape[1])), error, there


def plain_map(x: np.ndarray) -> TriangularMap:
    """The map of independent coordinates, with the centre and width of the states."""
    d = len(x)
    none = np.zeros((d, d))
    width = np.maximum(x.std(axis=1), 1e-6)
    ends = np.tile([-1.0, 1.0], (d, 1))
    return TriangularMap(
        np.arange(d),
        x.mean(axis=1),
        width,
        ends,
        (np.zeros(d), none),
        [[]] * d,
        (np.zeros(d), none, none),
        np.full(d, 8.0),
    )
