"""Annealing itself: chains along a ladder of inverse temperatures, in one compiled loop for every number of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel
from lnz.routes._annealing.path import Path, has_step, walk
from lnz.routes._annealing.schedule import Ladder, Rung


class Annealed(NamedTuple):
    """What became of chains along a ladder.

    Attributes:
        log_weights: (n,) in nats.
        states: the last ones, in the dtype they came in.
        acceptance: the mean acceptance of each chain's moves at possible points in the second half of the steps, (n,), NaN where there were none;
            one 1 for kernels without a step size.
        seen: the sum of what `look` says.
    """

    log_weights: Float[Array, " n"]
    states: State
    acceptance: Float[Array, "*n"]
    seen: Any


def annealed(
    path: Path,
    kernel: Kernel,
    key: PRNGKeyArray,
    v: State,
    ladder: Ladder,
    *,
    sweeps: int,
    reverse: bool = False,
    rows: bool = False,
    log_step: Callable[[PRNGKeyArray, Array], Array] | None = None,
    look: Callable[[State], Any] = lambda v: None,
    look_from: Any = 0,
) -> Annealed:
    """Anneal chains from one end of a ladder to the other.

    Args:
        path: from the base to the model.
        kernel: how chains move.
        key: a random key.
        v: states (n, *shape) of the distribution at the first β, in the dtype of `Path.start`.
        ladder: the inverse temperatures; their number may be traced.
        sweeps: moves at each.
        reverse: make moves of the kernel's reversal: Crooks's relation pairs such a run with a forward run.
        rows: see `walk`.
        log_step: from a random key and the ladder's step size to those of every chain, drawn anew at every step.
        look: what is summed over the states after every step.
        look_from: the first step of this sum.
    """
    dtype, going = jnp.result_type(float), walk(path, kernel, sweeps=sweeps, reverse=reverse, rows=rows)
    stepped = has_step(kernel)

    def public(x: Any) -> State:
        return jax.tree.map(lambda new, old: new.astype(old.dtype), going.unpack(x), v)

    def step(k: Array, rung: Rung, carry: Any) -> Any:
        (before, beta, size), (x, log_w, lost, accepted, seen) = rung, carry
        move_key = jax.random.fold_in(key, k)
        if stepped and log_step is not None:
            step_key, move_key = jax.random.split(move_key)
            size = log_step(step_key, size)
        gain = going.gain(x, before, beta) - lost
        # A chain of weight zero stays so: where p̃ = 0 at both temperatures, the gain would be ∞ - ∞.
        total = jnp.where(log_w == -jnp.inf, -jnp.inf, log_w + gain)
        lost = jnp.where(
            jnp.isfinite(total), (total - log_w) - gain, 0
        )  # Kahan summation, for a thousand small float32 gains
        x, chances = going.move(move_key, beta, x, size)
        now = jax.lax.cond(k >= look_from, lambda x: look(public(x)), lambda x: jax.tree.map(jnp.zeros_like, seen), x)
        seen = jax.tree.map(jnp.add, seen, now)
        if stepped:
            counts = (k >= ladder.steps // 2) & ~jnp.isnan(chances)
            accepted = accepted[0] + jnp.where(counts, chances.astype(dtype), 0), accepted[1] + counts.astype(dtype)
        return x, total, lost, accepted, seen

    zero = jnp.zeros(jax.tree.leaves(v)[0].shape[:1], dtype)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look, v))
    begin = (going.pack(v), zero, zero, (zero, zero) if stepped else (jnp.ones((), dtype),) * 2, nothing)
    x, log_w, _, accepted, seen = ladder.climb(step, begin)
    return Annealed(log_w, public(x), accepted[0] / accepted[1], seen)
