"""Check 8, which runs first: the energy is one real number per state, the same at every call, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.spaces import Box, Product, Real, Space
from lnz.diagnostics._audit_report import Check
from lnz.diagnostics._audit_subject import uniform

SCALAR = "one number for one state"
ALONE = "no other members of the batch"
SAME = "the same at every call"
CALLS = 32


def interface(function: Callable[..., Any], space: Space, key: Any) -> list[Check]:
    """The three checks, on the user's own callable. Raises ValueError where it cannot be called on any state."""
    states = _states(space, key)
    if states is None:
        return [Check(n, "untested", f"{space} has no distribution to draw states from") for n in (SCALAR, ALONE, SAME)]
    one = jax.tree.map(lambda x: jax.device_put(np.asarray(x)[0]), states)
    alone, single_error = _call(function, one)
    batch, _ = _call(function, states)
    n = jax.tree.leaves(states)[0].shape[0]
    wrap = "write E of one state, and use jax.vmap for batches"
    if alone is None and batch is None:
        raise ValueError(f"the energy cannot be called on a state of {space}: {_line(single_error)}")
    if alone is not None and np.shape(alone) == () and np.issubdtype(alone.dtype, np.floating):
        checks = [Check(SCALAR, "passed", f"a real number for a state of {space}")]
        checks.append(_rows(function, space, states))
        return [*checks, _again(function, one)]
    seen = (
        f"one state gives shape {np.shape(alone)}, dtype {np.asarray(alone).dtype}"
        if alone is not None
        else f"one state raises an error ({_line(single_error)})"
    )
    if batch is not None and np.shape(batch) == (n,):
        checks = [
            Check(
                SCALAR, "failed", f"{seen}; {n} states give {n} numbers", f"this energy takes batches: {wrap}", math.inf
            )
        ]
        return [*checks, _company(function, states, batch), _again(function, states)]
    if batch is not None and np.shape(batch) == ():
        checks = [
            Check(
                SCALAR,
                "failed",
                f"{seen}, and {n} states together give one number: the batch is summed into the energy",
                wrap,
                math.inf,
            )
        ]
        return [*checks, Check(ALONE, "untested", "there is no energy of one state"), _again(function, states)]
    remedy = "sum over the entries of x" if alone is not None and alone.ndim else "return a real floating-point number"
    checks = [Check(SCALAR, "failed", seen, remedy, math.inf)]
    return [*checks, Check(ALONE, "untested", "there is no energy of one state"), _again(function, one)]


def _states(space: Space, key: Any) -> Any:
    if isinstance(space, Real):
        return jax.random.normal(key, (6, *space.shape))
    if isinstance(space, Box) and not space.bounded:
        low, high = (np.asarray(bound) for bound in space.limits)
        x = jnp.abs(jax.random.normal(key, (6, *space.shape)))
        return jnp.where(
            np.isfinite(low)[None],
            np.where(np.isfinite(low), low, 0)[None] + x,
            np.where(np.isfinite(high), high, 0)[None] - x,
        )
    try:
        return uniform(space, key, 6)
    except (ValueError, TypeError):
        return None


def _call(function: Callable[..., Any], x: Any) -> tuple[Any, Exception | None]:
    try:
        out = function(x)
        return (
            (None, TypeError(f"it returns {type(out).__name__}"))
            if isinstance(out, tuple | dict | None)
            else (np.asarray(out), None)
        )
    except Exception as error:
        return None, error


def _line(error: Exception | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


def _rows(function: Callable[..., Any], space: Space, states: Any) -> Check:
    """Check whether the first axis of a state is a batch: E is then a sum of one function over its rows."""
    shape = None if isinstance(space, Product) else space.shape
    if shape is None or len(shape) < 2 or shape[0] < 3:
        return Check(ALONE, "passed", "it is given one state at a time")
    x, y = states[0], states[1]

    def e(v: Any) -> float:
        return float(np.asarray(function(v)))

    try:
        swapped = e(x[jnp.asarray([1, 0, *range(2, shape[0])])])
        parts = [e(x.at[i].set(y[i])) - e(x) for i in range(3)]
        both = e(x.at[0].set(y[0]).at[1].set(y[1])) - e(x)
    except Exception:
        return Check(ALONE, "untested", "rows of a state cannot be exchanged")
    scale = 1e-9 * (1 + abs(e(x)))
    if abs(swapped - e(x)) <= scale and abs(both - parts[0] - parts[1]) <= 1e3 * scale and max(map(abs, parts)) > scale:
        return Check(ALONE, "warning", f"E is a sum of one function over the {shape[0]} rows of a state, as if the first axis were a batch",
                     "if it is one, remove it from the space: write E of one state, and use jax.vmap for batches")  # fmt: skip
    return Check(ALONE, "passed", "it is given one state at a time")


def _company(function: Callable[..., Any], states: Any, batch: np.ndarray) -> Check:
    """Check whether the energy of a state depends on the others in its batch, for an energy of batches."""
    others = jax.tree.map(lambda x: x[jnp.asarray([0, 1, 1, 1, 1, 1])], states)
    changed, _ = _call(function, others)
    if changed is None:
        return Check(ALONE, "untested", "the batch cannot be changed")
    gap = float(np.max(np.abs(changed[:2] - batch[:2])))
    if gap > 1e-9 * (1 + float(np.max(np.abs(batch)))):
        return Check(ALONE, "failed", f"the energy of a state changes by {gap:.3g} when the others in its batch change",
                     "remove batch normalisation, or use its running averages: p(x) must not depend on the batch", math.inf)  # fmt: skip
    return Check(ALONE, "passed", "the others in the batch have no effect")


def _again(function: Callable[..., Any], x: Any) -> Check:
    """Check that E is deterministic, by many calls, because a random mask of few entries is often the same twice."""
    first = np.asarray(_call(function, x)[0]).astype(complex)
    for call in range(2, CALLS + 1):
        value = np.asarray(_call(function, x)[0]).astype(complex)
        gap = float(np.max(np.abs(value - first), initial=0))
        if gap > 0:
            return Check(
                SAME,
                "failed",
                f"calls 1 and {call} on one state differ by {gap:.3g}",
                "remove the randomness (dropout, noise) from E",
                math.inf,
            )
    return Check(SAME, "passed", f"{CALLS} calls on one state agree to the last bit")
