"""Scouts: chains that start far apart and ask whether the model has weight where the annealed chains do not come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz.annealing.certificate import lower_limit, upper_limit
from lnz.energies.independent import Gaussian, Independent
from lnz.energies.units import features
from lnz.energy import Energy
from lnz.estimate import Estimate
from lnz.sampling.kernels import Kernel
from lnz.sampling.path import Path, move
from lnz.spaces import Binary, Categorical, Real, Space, Spin, State

MISSED = (
    "chains that started elsewhere found weight where the annealed chains do not come: modes are missed, and the upper limit allows only for "
    "what was seen; give a base that covers all modes (from_base), or samples of the model (lnz.BidirectionalAIS.from_samples)"
)
_CERTAIN = 0.999  # confidence with which scouts contradict
_LIGHT = 4.6  # nats: regions of less than a hundredth of the estimate do not matter
_MARGIN = 3.0  # nats


def can_scout(space: Space) -> bool:
    """Whether scouts know how to start and what base to make: units of `Binary`, `Spin`, `Categorical`, or a vector of reals."""
    return isinstance(space, Binary | Spin | Categorical) or (isinstance(space, Real) and len(space.shape) == 1)


def scouted(
    estimate: Estimate,
    path: Path,
    kernel: Kernel,
    key: PRNGKeyArray,
    ends: State,
    log_weights: Float[Array, " n"],
    back: Callable[[PRNGKeyArray, State], Array],
    *,
    log_step: Float[Array, ""],
    scouts: int,
    moves: int,
) -> Estimate:
    """The estimate with what scouts found: a flag, and an upper limit that allows for it, where modes were missed.

    A scout starts far from the base's middle, moves by the model's own law, and fits independent units, or normal ones, to where it settles.
    From that base of its own it is annealed to the model: a weight with mean Z again, whatever the base. Then it goes back along the path of
    the annealed chains, beside as many of their ends. Modes are missed if

    - the scouts' weights alone say, with 99.9 % confidence and no assumption, that log Z lies above the upper limit; or
    - a scout has found more than a hundredth of the estimate in a place from which the way back takes far more work than it usually does from
      the ends of the annealed chains: forward chains hardly come there (Crooks).

    They see modes that attract chains from afar. A mode that does not (one deep state among 2^40 others) no scout finds; and one that they do
    not reach, or of less weight, goes unseen: no warning is no proof.

    Args:
        estimate: of annealed chains along the path.
        ends: the chains' last states (n, *shape).
        log_weights: those of the ends, up to a constant.
        back: log weights of chains that go from states at the model, in the path's own dtype, back along the path to its base.
        log_step: the logarithm of the step size that fits at the model, for kernels that have one.
        scouts: how many.
        moves: of a scout by the model's law, and as many on its way from its own base.

    Source: the weights are those of Neal 2001; that the works of both directions must agree, Crooks 1999; lower limits, see `certificate`.
    """
    explore_key, pick_key, back_key = jax.random.split(key, 3)
    found, states = explored(path, kernel, explore_key, log_step, scouts=scouts, moves=max(moves, 8))
    chosen = jax.random.categorical(pick_key, log_weights, shape=(scouts,))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b[chosen].astype(a.dtype)]), states, path.compact(ends))
    work = path.log_z0() - back(back_key, both)
    theirs, usual = work[:scouts], work[scouts:]
    # Quartiles: a stray chain in a mode that all others miss must not make the way there look usual.
    low, high = jnp.quantile(usual, 0.25), jnp.quantile(usual, 0.75)
    level = high + 3 * (high - low) + _MARGIN
    unseen = (found > estimate.value - _LIGHT) & (theirs > level)
    missed = jnp.any(unseen) | (lower_limit(found, confidence=_CERTAIN) > estimate.upper)
    upper = jnp.logaddexp(estimate.upper, upper_limit(found, confidence=estimate.confidence))
    return dataclasses.replace(
        estimate,
        upper=jnp.where(missed, upper, estimate.upper),
        diagnostics=estimate.diagnostics | {"scouts_lower": lower_limit(found, confidence=_CERTAIN)},
        flags={**estimate.flags, MISSED: missed},
    )


def explored(
    path: Path, kernel: Kernel, key: PRNGKeyArray, log_step: Array, *, scouts: int, moves: int
) -> tuple[Float[Array, " n"], State]:
    """Log weights with mean Z, one of every scout, and where they ended. Moves by the model's law and annealing are one loop."""
    space, dtype = path.energy.observed, jnp.result_type(float)
    start_key, key = jax.random.split(key)
    times = jnp.arange(2 * moves)
    after = jnp.where(times < moves, 1.0, (times - moves + 1) / moves).astype(dtype)
    before = jnp.where(times < moves, 1.0, (times - moves) / moves).astype(dtype)

    def one(key: PRNGKeyArray, start: State) -> tuple[Array, State]:
        def step(carry: Any, inputs: Any) -> tuple[Any, None]:
            v, log_w, base, seen = carry
            t, before, after, key = inputs
            draw_key, move_key = jax.random.split(key)
            fitted = _fitted(space, seen, log_step)
            base = jax.tree.map(lambda new, old: jnp.where(t == moves, new, old), fitted, base)
            own = Path(path.energy, base)
            v = jax.tree.map(
                lambda new, old: jnp.where(t == moves, new.astype(old.dtype), old), own.start(draw_key, 1), v
            )
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

    return jax.vmap(one)(jax.random.split(key, scouts), _starts(path, start_key, scouts))


def _starts(path: Path, key: PRNGKeyArray, n: int) -> State:
    """Far apart: reals at up to 64 times the base's width; units of one chance of being on, or of one law of categories, which differs by scout."""
    space: Any = path.energy.observed
    first, second, third = jax.random.split(key, 3)
    like, dtype = path.public(path.start(first, n)), jnp.result_type(float)
    if isinstance(space, Real):
        scale = 2 ** jax.random.uniform(third, (n, *(1,) * len(space.shape)), like.dtype, 1, 6)
        return like + scale * (path.public(path.start(second, n)) - like)
    last = (space.k,) if isinstance(space, Categorical) else (1,) * 0
    each = 2 * jax.random.logistic(second, (n, *(1,) * len(space.shape), *last), dtype)
    shape = (n, *space.shape, *last)
    laws = jnp.broadcast_to(each if isinstance(space, Categorical | Binary) else 0.5 * each, shape)
    drawn = jax.vmap(lambda k, p: Independent(p, space).sample(k, 1)[0])(jax.random.split(third, n), laws)
    return drawn.astype(like.dtype)


def _seen(space: Space, v: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """What is summed over a scout's moves: 1, the features of its state, and their squares."""
    phi = v.astype(dtype) if isinstance(space, Real) else features(space, v, dtype)
    return jnp.ones((), dtype), phi, jnp.square(phi)


def _fitted(space: Space, seen: tuple[Array, Array, Array], log_step: Array) -> Energy:
    """Independent units with these means, each value counted once more; or normal ones, twice as wide as what was seen."""
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
