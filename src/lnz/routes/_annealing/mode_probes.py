"""Mode probes: chains from dispersed starts, and from the ends of annealed chains, that search for weight which these do not reach."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.random import Keys, fast_key, folded, parted
from lnz._core.spaces import Binary, Categorical, Real, Space, Spin, State
from lnz._models.independent import Gaussian, Independent
from lnz._models.units import features
from lnz.kernels._kernels import Kernel
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.certificate import lower_bound_of, upper_bound_of
from lnz.routes._annealing.path import Path, first_log_step
from lnz.routes._annealing.programs import brief, on_host, program
from lnz.routes._annealing.schedule import PROBES, Ladder

_STEPS = (-5.0, 2.0)  # range of the logarithm of step sizes about the fitted one: for narrow regions, and for wide ones
_CERTAIN = 0.999  # confidence at which mode probes contradict the upper bound
LIGHT = 4.6  # nats: regions of less than a hundredth of the estimate do not matter
_SEVERAL = 1 / 8  # the share of mode probes that is enough where each takes not so much more work
FEW, _POINTS = 16, 2**14  # in up to so many dimensions mode probes look for narrow regions among so many points
_BARRIER = 10.0  # nats
_LARGE = 2**15  # numbers in the states of a group
PROBE_TEMPERATURES = 50  # of the reverse annealing of mode probes, for routes without a number of their own
ON, BACK = np.int32(0), np.int32(1)


def can_probe(space: Space) -> bool:
    """Whether mode probes have starts and bases on this space: units of `Binary`, `Spin`, `Categorical`, or a vector of reals."""
    return isinstance(space, Binary | Spin | Categorical) or (isinstance(space, Real) and len(space.shape) == 1)


def with_mode_probes(
    estimate: Estimate,
    path: Path,
    key: PRNGKeyArray,
    ends: State,
    log_weights: Array,
    ladder: Ladder,
    *,
    kernel: Kernel,
    mode_probes: int,
    sweeps: int,
) -> Estimate:
    """The estimate after mode probes: where modes were missed, with flags and a larger upper bound.

    The test is reverse annealing: from a state of the model along the path of the annealed chains to its base. Regions from which that takes far
    more work than it usually does from the ends of the annealed chains are hardly reached by forward chains (Crooks). Two kinds of chains search
    for such regions.

    A mode probe starts far from the base's middle, moves under the model, and fits independent units, or normal ones, to the region where it
    settles. From this base of its own it is annealed to the model: its weight has mean Z as well, whatever the base. Modes are missed if

    - the mode probes' weights alone show, with 99.9 % confidence and without assumptions, that log Z lies above the upper bound; or
    - a mode probe has found more than a hundredth of the estimate in a region from which reverse annealing takes far more work, or an eighth of
      them have from where it takes more.

    As many ends of the annealed chains, drawn by their weights, move on under the model. If they represent the model, so do the chains that
    moved on, and reverse annealing takes similar work from both. Annealing lags behind if one of them has reached a region from which it takes far
    more work. Each move of both kinds draws its own step size, e^-5 to e^2 times the fitted one, so that they enter regions which are too narrow
    for the others. The upper bound is then the estimate of log Z by reverse annealing from these regions, as if they were typical of the model.

    Mode probes find modes that attract chains from afar, and in up to 16 dimensions narrow ones, since half of them start where many points, looked
    at beforehand, show one. They find no other (one deep state among 2^40), and a mode that neither kind reaches, or of less weight, is not detected:
    the absence of a warning proves nothing.

    Args:
        estimate: the estimate by annealed chains along the path.
        path: from the base to the model.
        key: of the run.
        ends: the chains' last states (n, *shape).
        log_weights: the log weights of the ends, (n,) in all, up to a constant.
        ladder: of the annealed chains. Chains go back along it, and move on for as many steps before; mode probes are annealed in half as many.
        kernel: how chains move.
        mode_probes: the number of chains of each kind; only ends of annealed chains on spaces without mode probes (see `can_probe`).
        sweeps: moves a step.

    Source: the weights are those of Neal 2001; that the works of both directions must agree, Crooks 1999; for the bounds see `certificate`.
    """
    if mode_probes == 0:
        return estimate
    search = searched(path, key, ends, log_weights, ladder, kernel=kernel, mode_probes=mode_probes, sweeps=sweeps)
    works = along(
        path,
        folded(fast_key(key), PROBES, int(BACK)),
        search.groups,
        ladder.reversed(),
        BACK,
        kernel=kernel,
        sweeps=sweeps,
    ).works
    moved, *probes, usual = works
    return compared(estimate, usual, moved, *probes, found=search.found)


# ------------------------------------------------------------------------------------------------------- the comparison


def compared(
    estimate: Estimate,
    usual: Float[Array | np.ndarray, " n"],
    moved: Float[Array | np.ndarray, " n"],
    probes: Float[Array | np.ndarray, " m"] | None = None,
    *,
    found: Float[Array | np.ndarray, " m"] | None = None,
) -> Estimate:
    """The estimate after the works of reverse annealing, in nats, are compared.

    They are those from `usual`, the ends of annealed chains, from ends that `moved` on, and from where mode `probes` settled, whose own log weights
    are `found`.
    """
    known = estimate.value, estimate.upper, usual, moved, probes, found
    upper, figures, raised = on_host(_compared, *known, confidence=estimate.confidence)
    return dataclasses.replace(
        estimate, upper=upper, diagnostics=estimate.diagnostics | figures, flags=estimate.flags | raised
    )


def far_more(usual: Float[np.ndarray, " n"], spreads: float = 3) -> float:
    """What is far more than usual, in nats: so many interquartile ranges above the upper quartile, and as many nats.

    Quartiles, so that a stray chain in a mode that all others miss does not make its work look usual.
    """
    low, high = np.quantile(usual, [0.25, 0.75])
    return float(high + spreads * (high - low) + spreads)


def _compared(
    value: Any, upper: Any, usual: Any, moved: Any, probes: Any, found: Any, *, confidence: float
) -> tuple[Any, dict[str, Any], dict[EstimateWarning, Any]]:
    left = moved > far_more(usual)
    covered = upper
    if left.any():
        upper = np.maximum(upper, math.log(left.sum()) - np.logaddexp.reduce(-moved[left]))
    figures, raised = {"ends_that_left": left.mean()}, {EstimateWarning.LAGGING_CHAINS: left.any()}
    if probes is not None:
        heavy = found > value - LIGHT
        one, several = heavy & (probes > far_more(usual)), heavy & (probes > far_more(usual, 2))
        sure = lower_bound_of(found, confidence=_CERTAIN)
        missed = one.any() | (several.mean() >= _SEVERAL) | (sure > covered)
        if missed:
            upper = np.logaddexp(upper, upper_bound_of(found, confidence=confidence))
        figures["mode_probes_lower"], raised[EstimateWarning.MISSED_MODES] = sure, missed
    return upper, figures, raised


# ----------------------------------------------------------------------------------------------------------- the search


class Search(NamedTuple):
    """Where chains are that go back.

    Attributes:
        groups: where ends of annealed chains moved on; where mode probes settled, on spaces that have them; and as many ends as they were.
        found: log weights with mean Z, one for every mode probe, or None.
    """

    groups: list[State]
    found: Float[Array, " n"] | None


def searched(
    path: Path,
    key: PRNGKeyArray,
    ends: State,
    log_weights: Array,
    ladder: Ladder,
    *,
    kernel: Kernel,
    mode_probes: int,
    sweeps: int,
) -> Search:
    """Ends that move on under the model and mode probes, which move under the model and are then annealed from bases of their own."""
    flat, half = on_host(_flat_and_half, ladder)
    key = fast_key(key)
    begin = _begun(path, parted(key, 4, PROBES, 0), ends, log_weights, mode_probes=mode_probes)
    # Chains that stay where they are move in vain where that is quicker than to compile another program.
    large = sum(x.size for x in jax.tree.leaves(begin[0])) > _LARGE
    on = along(
        path, folded(key, PROBES, int(ON)), begin[:-1] if large else begin, flat, ON, kernel=kernel, sweeps=sweeps
    )
    if on.seen is None:
        return Search([on.states[0], begin[-1]], None)
    keys = parted(key, mode_probes, PROBES, 2)
    found, settled = _from_their_own(path, keys, on.seen, half, kernel=kernel, sweeps=sweeps)
    return Search([on.states[0], settled, begin[-1]], found)


def _flat_and_half(ladder: Ladder) -> tuple[Ladder, Ladder]:
    """Steps under the model, as many as the ladder has; and half as many, at least 8, straight to it."""
    steps, size = np.maximum(ladder.steps, 16), len(ladder.betas)
    straight = np.minimum(np.arange(size) / (steps // 2), 1)
    log_steps = np.full(size, ladder.log_steps[-1])
    return Ladder(np.ones(size), log_steps, steps), Ladder(straight, log_steps, steps // 2)


@brief
def _begun(path: Path, keys: Keys, ends: State, log_weights: Array, *, mode_probes: int) -> list[State]:
    """Ends of annealed chains by their weights; starts of mode probes, where there are some; and the same ends again."""
    chosen = jax.random.categorical(keys[0], log_weights.reshape(-1), shape=(mode_probes,))
    usual = path.compact(jax.tree.map(lambda x: x[chosen], ends))
    if not can_probe(observed_space(path.energy)):
        return [usual, usual]
    starts = jax.tree.map(lambda x, like: x.astype(like.dtype), _starts(path, keys[1:], mode_probes, usual), usual)
    return [usual, starts, usual]


class _Way(NamedTuple):
    works: list[Float[Array, " n"]]  # log Z_0 less the log weight of each chain, group by group
    states: list[State]
    seen: Any  # of mode probes, what `_seen` says of their states, summed over the second half of the steps


@program
def along(
    path: Path, key: PRNGKeyArray, groups: list[State], ladder: Ladder, which: Array, *, kernel: Kernel, sweeps: int
) -> _Way:
    """Groups of chains that move `ON` under the model, the first two with step sizes of their own, or go `BACK` to the base: one program."""
    space, dtype, n = observed_space(path.energy), jnp.result_type(float), len(jax.tree.leaves(groups[0])[0])
    first = jnp.repeat(jnp.arange(len(groups)) <= 1, n).astype(dtype)

    def log_step(key: PRNGKeyArray, log_step: Array) -> Array:
        return log_step + jnp.where(which == ON, first * jax.random.uniform(key, first.shape, dtype, *_STEPS), 0)

    def look(v: State) -> Any:
        if not can_probe(space):
            return None
        return jax.vmap(lambda x: _seen(space, x, dtype))(path.public(jax.tree.map(lambda x: x[n : 2 * n], v)))

    ran = annealed(
        path,
        kernel,
        key,
        jax.tree.map(lambda *parts: jnp.concatenate(parts), *groups),
        ladder,
        sweeps=sweeps,
        log_step=log_step,
        look=look,
        look_from=jnp.where(which == ON, ladder.steps // 2, ladder.steps),
    )
    apart = [
        jax.tree.map(lambda x, k=k: x[k * n : (k + 1) * n], (ran.log_weights, ran.states)) for k in range(len(groups))
    ]
    return _Way([path.log_z0() - log_w for log_w, _ in apart], [v for _, v in apart], ran.seen)


@brief
def _from_their_own(
    path: Path, keys: Keys, seen: Any, ladder: Ladder, *, kernel: Kernel, sweeps: int
) -> tuple[Float[Array, " n"], State]:
    """Log weights with mean Z of one chain from each of the bases fitted to mode probes, and the states in the model."""
    space = observed_space(path.energy)

    def probe(key: PRNGKeyArray, seen: Any) -> tuple[Array, State]:
        steps = ladder
        if isinstance(space, Real):  # hardly larger ones than the region is wide
            _, variance = _moments(seen)
            own_step = first_log_step(path.energy) + jnp.log(jnp.min(variance)) + 1
            steps = ladder._replace(log_steps=jnp.clip(own_step, ladder.log_steps + _STEPS[0], ladder.log_steps))
        own = Path(path.energy, _fitted(space, seen, steps.log_steps[0]))
        draw_key, move_key = jax.random.split(key)
        ran = annealed(own, kernel, move_key, own.start(draw_key, 1), steps, sweeps=sweeps, rows=True)
        return ran.log_weights[0] + own.log_z0(), jax.tree.map(lambda x: x[0], ran.states)

    found, v = jax.vmap(probe)(keys, seen)
    like = jax.eval_shape(lambda: path.start(keys[0], 1))
    return found, jax.tree.map(lambda x, s: x.astype(s.dtype), v, like)


def _starts(path: Path, keys: Keys, n: int, usual: State) -> State:
    """Dispersed starts: reals at up to 64 times the base's width, and half of few reals in narrow regions; units with one probability of being on,
    or of each category, per mode probe."""
    space: Any = observed_space(path.energy)
    first, second, third = keys
    like, dtype = path.public(path.start(first, n)), jnp.result_type(float)
    if isinstance(space, Real):
        scale = 2 ** jax.random.uniform(third, (n, *(1,) * len(space.shape)), like.dtype, 1, 6)
        far = like + scale * (path.public(path.start(second, n)) - like)
        if math.prod(space.shape) > FEW:
            return far
        few = _behind_barriers(path, second, n - n // 2, usual).astype(far.dtype)
        return jnp.concatenate([far[: n // 2], few])
    last = (space.k,) if isinstance(space, Categorical) else (1,) * 0
    each = 2 * jax.random.logistic(second, (n, *(1,) * len(space.shape), *last), dtype)
    shape = (n, *space.shape, *last)
    potentials = jnp.broadcast_to(each if isinstance(space, Categorical | Binary) else 0.5 * each, shape)
    drawn = jax.vmap(lambda k, p: Independent(p, space).sample(k, 1)[0])(jax.random.split(third, n), potentials)
    return drawn.astype(like.dtype)


def _behind_barriers(path: Path, key: PRNGKeyArray, n: int, usual: Float[Array, "m d"]) -> Float[Array, "n d"]:
    """n starts in regions that chains do not enter, since these are too small for them: found by looking at many points.

    The points are of a Cauchy distribution about the usual ends. They are picked by their weights, first of all those which lie lower than the
    point half way to the middle; beside each pick then the lowest of as many points at all smaller distances.
    """
    draw_key, wide_key, pick_key, near_key, far_key = jax.random.split(key, 5)
    d, dtype = usual.shape[1], usual.dtype

    def at(x: Array) -> Array:
        return jax.vmap(free_energy_of(path.energy))(x).astype(dtype)

    middle, scatter = jnp.mean(usual, axis=0)[None], jnp.cov(usual, rowvar=False).reshape(d, d)
    root = jnp.linalg.cholesky(scatter + jnp.diag(1e-3 * jnp.diag(scatter) + jnp.finfo(dtype).tiny)).T
    z = jax.random.normal(draw_key, (_POINTS, d), dtype) / jnp.abs(jax.random.normal(wide_key, (_POINTS, 1), dtype))
    x = middle + 3 * z @ root
    e = at(x)
    log_w = 0.5 * (1 + d) * jnp.log1p(jnp.sum(jnp.square(z), axis=1)) - e
    log_w = log_w - jnp.where(at(0.5 * (x + middle)) > e + 1, 0, _BARRIER).astype(dtype)
    picks = x[jax.random.categorical(pick_key, jnp.where(jnp.isnan(log_w), -jnp.inf, log_w), shape=(n,))]
    near = jax.random.normal(near_key, (max(_POINTS // n, 1), n, d), dtype) @ root
    near = picks[None] + near * 10 ** jax.random.uniform(far_key, (max(_POINTS // n, 1), n, 1), dtype, -3, 0)
    e = at(near.reshape(-1, d)).reshape(-1, n)
    lowest = near[jnp.argmin(jnp.where(jnp.isnan(e), jnp.inf, e), axis=0), jnp.arange(n)]
    return jnp.where(jnp.all(jnp.isfinite(lowest), axis=1, keepdims=True), lowest, usual[:n])


def _seen(space: Space, v: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The statistics that are summed over a mode probe's moves: 1, the features of its state, and their squares."""
    phi = v.astype(dtype) if isinstance(space, Real) else features(space, v, dtype)
    return jnp.ones((), dtype), phi, jnp.square(phi)


def _moments(seen: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Means and variances of a mode probe's entries."""
    count, total, squares = seen
    mean = total / jnp.maximum(count, 1)
    return mean, jnp.maximum(squares / jnp.maximum(count, 1) - jnp.square(mean), 0)


def _fitted(space: Space, seen: tuple[Array, Array, Array], log_step: Array) -> Energy:
    """Independent units with these means, each value counted once more; or normal ones, twice as wide as the states."""
    count, total, _ = seen
    if isinstance(space, Categorical):
        return Independent(jnp.log(total + 1) - jnp.log(count + space.k), space)
    if isinstance(space, Real):
        mean, variance = _moments(seen)
        return Gaussian(mean, 1 / (4 * variance + 2 * jnp.exp(log_step)))
    on = total if isinstance(space, Binary) else 0.5 * (count + total)
    log_odds = jnp.log(on + 1) - jnp.log(count - on + 1)
    return Independent(log_odds if isinstance(space, Binary) else 0.5 * log_odds, space)
