"""Small pieces of arithmetic that are safe at -∞ and fast on a CPU, and the check of counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def softplus(x: Array) -> Array:
    """log(1 + e^x) as max(x, 0) + log(1 + e^-|x|): the form that XLA vectorises best, accurate for every x.

    Its derivative is the logistic function, also at x = 0.
    """
    return _softplus(x)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@_softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    return _softplus(x), jax.nn.sigmoid(x) * t


def log_sum_exp(x: Array, axis: int | None = None) -> Array:
    """log Σ_i e^{x_i} over all entries or along an axis; -inf where all are -inf, with zero gradient at every -inf, whatever x depends on."""
    return _log_sum_exp(axis, x)


def _log_sum_exp_of(axis: int | None, x: Array) -> Array:
    top = jax.lax.stop_gradient(jnp.max(x, axis, initial=-jnp.inf, keepdims=True))
    shift = jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(x - shift), axis)
    # Inside a scan JAX drops the rule below in second derivatives, so the logarithm must have a derivative of its own at 0.
    none = total == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, total))) + jnp.squeeze(shift, axis)


_log_sum_exp = jax.custom_jvp(_log_sum_exp_of, nondiff_argnums=(0,))


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(axis: int | None, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    out = _log_sum_exp(axis, x)
    whole = out if axis is None else jnp.expand_dims(out, axis)
    possible = x != -jnp.inf
    shares = jnp.exp(jnp.where(possible, x - jnp.where(whole == -jnp.inf, 0, whole), -jnp.inf))
    return out, jnp.sum(shares * jnp.where(possible, t, 0), axis)


def log_mean_exp(x: Array) -> Array:
    """log of the mean of e^{x_i} over all entries."""
    return log_sum_exp(x) - jnp.log(jnp.asarray(x.size, x.dtype))


def peak_of(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The largest finite entry, or 0 if there is none, as a constant (its derivative would cancel)."""
    top = jnp.max(x, axis, initial=-jnp.inf)
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top)))


def largest_size(x: Array, axis: int | tuple[int, ...] | None = None) -> Array:
    """The largest |x| among the finite entries, 0 where there is none, as a constant: what rounding errors are proportional to."""
    return jax.lax.stop_gradient(jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), axis, initial=0))


def run_if_untrusted(trusted: Array, value: Any, again: Callable[[Any, Any], Any], operands: Any) -> Any:
    """The value where it can be trusted, and otherwise `again(value, operands)`, which runs only if it is needed.

    For sums that are quick with plain numbers and safe with logarithms. Under `vmap` a condition would run both of its branches for all; a loop runs
    its body only while some member needs it. Without the barrier the compiler would find that the body does not depend on the state, and move it
    out of the loop.
    """

    def body(state: tuple[Array, Any]) -> tuple[Array, Any]:
        (trusted, value), held = jax.lax.optimization_barrier((state, operands))
        return jnp.ones_like(trusted), again(value, held)

    return jax.lax.while_loop(lambda state: ~state[0], body, (trusted, value))[1]


def hangs_on(f: Callable[[Any], Array], x: Any, *, or_constants: bool = False) -> bool:
    """Whether the program of f leads from x, or from the arrays that f holds, to its output. If not, f is one and the same for every x."""
    closed = jax.make_jaxpr(f)(x)
    known = set(closed.jaxpr.invars) | (set(closed.jaxpr.constvars) if or_constants else set())
    for equation in closed.jaxpr.eqns:
        if any(v in known for v in equation.invars if not hasattr(v, "val")):
            known.update(equation.outvars)
    return any(v in known for v in closed.jaxpr.outvars if not hasattr(v, "val"))


def float64(on: bool = True) -> Any:
    """A context in which JAX computes in float64, or does not, whatever the caller's setting."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64  # JAX before 0.8  # pyright: ignore[reportAttributeAccessIssue]

    return enable_x64(on)


def check_whole_number(name: str, n: Any, least: int = 1) -> None:
    """Raise ValueError unless n is an integer of at least `least`."""
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < least:
        raise ValueError(f"{name} must be an integer of at least {least}, but is {n!r}")
