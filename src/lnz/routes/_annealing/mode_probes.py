"""Mode probes: chains from dispersed starts, and from the ends of annealed chains, that search for weight which these do not reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import observed_space
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.spaces import Binary, Categorical, Real, Space, Spin, State
from lnz._models.independent import Gaussian, Independent
from lnz._models.units import features
from lnz.kernels._kernels import Kernel
from lnz.routes._annealing.certificate import lower_bound, upper_bound
from lnz.routes._annealing.path import Path, move, walk

_STEPS = (-5.0, 2.0)  # range of the logarithm of step sizes about the fitted one: for narrow regions, and for wide ones
_CERTAIN = 0.999  # confidence at which mode probes contradict the upper bound
_LIGHT = 4.6  # nats: regions of less than a hundredth of the estimate do not matter
_MARGIN = 3.0  # nats


def can_probe(space: Space) -> bool:
    """Whether mode probes have starts and bases on this space: units of `Binary`, `Spin`, `Categorical`, or a vector of reals."""
    return isinstance(space, Binary | Spin | Categorical) or (isinstance(space, Real) and len(space.shape) == 1)


def probe_modes(
    estimate: Estimate,
    path: Path,
    kernel: Kernel,
    key: PRNGKeyArray,
    ends: State,
    log_weights: Float[Array, " n"],
    back: Callable[[PRNGKeyArray, State], Array],
    *,
    log_step: Float[Array, ""],
    mode_probes: int,
    moves: int,
    sweeps: int = 1,
) -> Estimate:
    """The estimate after mode probes: where modes were missed, with flags and a larger upper bound.

    The test is reverse annealing: from a state of the model along the path of the annealed chains to its base. Regions from which that takes far
    more work than it usually does from the ends of the annealed chains are hardly reached by forward chains (Crooks). Two kinds of chains search
    for such regions.

    A mode probe starts far from the base's middle, moves under the model, and fits independent units, or normal ones, to the region where it
    settles. From this base of its own it is annealed to the model: its weight has mean Z as well, whatever the base. Modes are missed if

    - the mode probes' weights alone show, with 99.9 % confidence and without assumptions, that log Z lies above the upper bound; or
    - a mode probe has found more than a hundredth of the estimate in a region from which reverse annealing takes far more work.

    As many ends of the annealed chains, drawn by their weights, move on under the model. If they represent the model, so do the chains that
    moved on, and reverse annealing takes similar work from both. Annealing lags behind if one of them has reached a region from which it takes far
    more work. Each of their moves draws its own step size, e^-5 to e^2 times the fitted one, so that they enter regions which are too narrow
    for the others. The upper bound is then the estimate of log Z by reverse annealing from these regions, as if they were typical of the model.

    Mode probes find modes that attract chains from afar. They do not find a mode that does not (one deep state among 2^40 others), and a mode
    that neither kind reaches, or of less weight, is not detected: the absence of a warning proves nothing.

    Args:
        estimate: the estimate by annealed chains along the path.
        ends: the chains' last states (n, *shape).
        log_weights: the log weights of the ends, up to a constant.
        back: reverse annealing from states of the model, in the path's own dtype, to the base of the path; returns log weights.
        log_step: the logarithm of the step size fitted at the model, for kernels that have one.
        mode_probes: the number of chains of each kind; only ends of annealed chains on spaces without mode probes (see `can_probe`).
        moves: the number of moves of a mode probe under the model, and again while it is annealed from its own base.
        sweeps: ends move on 2 · moves · sweeps times, as many as chains that go back.

    Source: the weights are those of Neal 2001; that the works of both directions must agree, Crooks 1999; for the bounds see `certificate`.
    """
    explore_key, pick_key, on_key, back_key = jax.random.split(key, 4)
    chosen = jax.random.categorical(pick_key, log_weights, shape=(mode_probes,))
    usual = path.compact(jax.tree.map(lambda x: x[chosen], ends))
    places, found = [usual, moved_on(path, kernel, on_key, usual, log_step, moves=2 * moves * sweeps)], None
    if can_probe(observed_space(path.energy)):
        found, states = explored(path, kernel, explore_key, log_step, mode_probes=mode_probes, moves=max(moves, 8))
        places.append(states)
    together = jax.tree.map(lambda *parts: jnp.concatenate([x.astype(parts[0].dtype) for x in parts]), *places)
    works = jnp.split(path.log_z0() - back(back_key, together), len(places))
    return compared(estimate, *works) if found is None else compared(estimate, *works, found=found)


# ------------------------------------------------------------------------------------------------------- the comparison


def compared(
    estimate: Estimate,
    usual: Float[Array, " n"],
    moved: Float[Array, " n"],
    probes: Float[Array, " n"] | None = None,
    *,
    found: Float[Array, " n"] | None = None,
) -> Estimate:
    """The estimate after the works of reverse annealing, in nats, are compared.

    They are those from `usual`, the ends of annealed chains, from ends that `moved` on, and from where mode `probes` settled, whose own log weights
    are `found`.
    """
    # Quartiles, so that a stray chain in a mode that all others miss does not make its work look usual.
    low, high = jnp.quantile(usual, 0.25), jnp.quantile(usual, 0.75)
    far_more = high + 3 * (high - low) + _MARGIN
    left = moved > far_more
    beyond = jnp.log(jnp.sum(left.astype(moved.dtype))) - jax.nn.logsumexp(jnp.where(left, -moved, -jnp.inf))
    upper = jnp.where(jnp.any(left), jnp.maximum(estimate.upper, beyond), estimate.upper)
    diagnostics = estimate.diagnostics | {"ends_that_left": jnp.mean(left.astype(moved.dtype))}
    flags = estimate.flags | {EstimateWarning.LAGGING_CHAINS: jnp.any(left)}
    if probes is not None and found is not None:
        unseen = (found > estimate.value - _LIGHT) & (probes > far_more)
        sure = lower_bound(found, confidence=_CERTAIN)
        missed = jnp.any(unseen) | (sure > estimate.upper)
        allowed = jnp.logaddexp(upper, upper_bound(found, confidence=estimate.confidence))
        upper = jnp.where(missed, allowed, upper)
        diagnostics, flags = diagnostics | {"mode_probes_lower": sure}, flags | {EstimateWarning.MISSED_MODES: missed}
    return dataclasses.replace(estimate, upper=upper, diagnostics=diagnostics, flags=flags)


# ----------------------------------------------------------------------------------------------------------- the search


def moved_on(path: Path, kernel: Kernel, key: PRNGKeyArray, v: State, log_step: Array, *, moves: int) -> State:
    """States after so many moves under the model, each move of each chain with a step size of its own where the kernel has one."""
    going, n = walk(path, kernel), jax.tree.leaves(v)[0].shape[0]

    def step(x: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        step_key, move_key = jax.random.split(key)
        log_steps = log_step + jax.random.uniform(step_key, (n,), log_step.dtype, *_STEPS)
        return going.move(move_key, jnp.ones((), log_step.dtype), x, log_steps)[0], None

    x, _ = jax.lax.scan(step, going.pack(v), jax.random.split(key, moves))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), going.unpack(x), v)


def explored(
    path: Path, kernel: Kernel, key: PRNGKeyArray, log_step: Array, *, mode_probes: int, moves: int
) -> tuple[Float[Array, " n"], State]:
    """Log weights with mean Z, one per mode probe, and their last states. Moves under the model and annealing are one loop."""
    start_key, key = jax.random.split(key)
    probe = jax.vmap(lambda key, start: _explored(path, kernel, key, start, log_step, moves))
    return probe(jax.random.split(key, mode_probes), _starts(path, start_key, mode_probes))


def _explored(
    path: Path, kernel: Kernel, key: PRNGKeyArray, start: State, log_step: Array, moves: int
) -> tuple[Array, State]:
    """The log weight of one mode probe, and its last state."""
    space, dtype = observed_space(path.energy), jnp.result_type(float)
    times = jnp.arange(2 * moves)
    after = jnp.where(times < moves, 1.0, (times - moves + 1) / moves).astype(dtype)
    before = jnp.where(times < moves, 1.0, (times - moves) / moves).astype(dtype)

    def step(carry: Any, inputs: Any) -> tuple[Any, None]:
        v, log_w, base, seen = carry
        t, before, after, key = inputs
        draw_key, move_key = jax.random.split(key)
        fitted = _fitted(space, seen, log_step)
        base = jax.tree.map(lambda new, old: jnp.where(t == moves, new, old), fitted, base)
        own = Path(path.energy, base)
        v = jax.tree.map(lambda new, old: jnp.where(t == moves, new.astype(old.dtype), old), own.start(draw_key, 1), v)
        gain = jnp.where(t < moves, 0, own.gain(v, before, after)[0])
        log_w = jnp.where(log_w == -jnp.inf, log_w, log_w + gain)
        v, _ = move(kernel, own.at(after), move_key, v, log_step)
        watched = (t >= moves // 2) & (t < moves)
        seen = jax.tree.map(lambda s, x: s + jnp.where(watched, x, 0), seen, _seen(space, own.public(v)[0], dtype))
        return (v, log_w, base, seen), None

    v = path.compact(jax.tree.map(lambda x: x[None], start))
    nothing = jax.tree.map(jnp.zeros_like, _seen(space, start, dtype))
    begin = (v, jnp.zeros((), dtype), _fitted(space, nothing, log_step), nothing)
    (v, log_w, base, _), _ = jax.lax.scan(step, begin, (times, before, after, jax.random.split(key, 2 * moves)))
    return log_w + Path(path.energy, base).log_z0(), jax.tree.map(lambda x: x[0], v)


def _starts(path: Path, key: PRNGKeyArray, n: int) -> State:
    """Dispersed starts: reals at up to 64 times the base's width; units with one probability of being on, or of each category, per mode probe."""
    space: Any = observed_space(path.energy)
    first, second, third = jax.random.split(key, 3)
    like, dtype = path.public(path.start(first, n)), jnp.result_type(float)
    if isinstance(space, Real):
        scale = 2 ** jax.random.uniform(third, (n, *(1,) * len(space.shape)), like.dtype, 1, 6)
        return like + scale * (path.public(path.start(second, n)) - like)
    last = (space.k,) if isinstance(space, Categorical) else (1,) * 0
    each = 2 * jax.random.logistic(second, (n, *(1,) * len(space.shape), *last), dtype)
    shape = (n, *space.shape, *last)
    potentials = jnp.broadcast_to(each if isinstance(space, Categorical | Binary) else 0.5 * each, shape)
    drawn = jax.vmap(lambda k, p: Independent(p, space).sample(k, 1)[0])(jax.random.split(third, n), potentials)
    return drawn.astype(like.dtype)


def _seen(space: Space, v: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """The statistics that are summed over a mode probe's moves: 1, the features of its state, and their squares."""
    phi = v.astype(dtype) if isinstance(space, Real) else features(space, v, dtype)
    return jnp.ones((), dtype), phi, jnp.square(phi)


def _fitted(space: Space, seen: tuple[Array, Array, Array], log_step: Array) -> Energy:
    """Independent units with these means, each value counted once more; or normal ones, twice as wide as the states."""
    count, total, squares = seen
    if isinstance(space, Categorical):
        return Independent(jnp.log(total + 1) - jnp.log(count + space.k), space)
    if isinstance(space, Real):
        mean = total / jnp.maximum(count, 1)
        variance = jnp.maximum(squares / jnp.maximum(count, 1) - jnp.square(mean), 0)
        return Gaussian(mean, 1 / (4 * variance + 2 * jnp.exp(log_step)))
    on = total if isinstance(space, Binary) else 0.5 * (count + total)
    log_odds = jnp.log(on + 1) - jnp.log(count - on + 1)
    return Independent(log_odds if isinstance(space, Binary) else 0.5 * log_odds, space)
