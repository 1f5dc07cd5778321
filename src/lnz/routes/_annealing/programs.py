"""How a run of chains is cut into few compiled programs, and NumPy on the host for all that is small."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.capabilities import arrays_are_data, observed_space
from lnz._core.frozen import Frozen, is_traced
from lnz._core.spaces import Box, Real
from lnz.routes._annealing.path import Path
from lnz.routes._exact.numpy_callback import undifferentiated

_LEAST = 2**14  # inverse temperatures of a program
_SMALL = 256  # real numbers of a state and of the parameters, below which a program takes longer to compile than to run
_SHORT = 32  # numbers of a state up to which XLA's older emitters are quick: 50 took minutes to compile
_BRIEF = 2**15  # numbers of a state and of the parameters, below which a program of few steps does
# XLA's older emitters compile in half the time what runs as fast where it is small (large products a third slower); jaxlib 0.11 has them no more.
_OLDER = tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
_REFUSAL = "a stochastic route has no derivative of this: differentiate lnz.log_partition, whose derivative is E[-∂E] by the same chains"
_SOON = {"xla_cpu_use_fusion_emitters": False} if _OLDER else None


def program(f: Callable[..., Any], *, brief: bool = False) -> Callable[..., Any]:
    """f(path, *data, **options), compiled once for every structure of the path, shapes of the data and options.

    The float arrays of the path's energy and all data are its arguments, a base that was given as `Frozen` is a constant. Where something is
    traced, the program is a part of that trace. A `brief` one does few steps, so that it is compiled in less time where the model is not large.
    """

    def run(constants: Frozen, options: tuple[tuple[str, Any], ...], parameters: Any, data: Any) -> Any:
        energy, base = eqx.combine(parameters, constants.value)
        return f(Path(energy, Path(energy, base).base), *data, **dict(options))

    compiled = jax.jit(run, static_argnums=(0, 1))
    soon = jax.jit(run, static_argnums=(0, 1), compiler_options=_SOON)

    @functools.wraps(f)
    def call(path: Path, *data: Any, **options: Any) -> Any:
        free = arrays_are_data(path.energy)
        model = (path.energy, path.base if path.given is ... else path.given)
        parameters, constants = eqx.partition(
            model, lambda leaf: eqx.is_inexact_array(leaf) or (eqx.is_array(leaf) and (free or is_traced(leaf)))
        )
        quick = _SOON and _small(path, parameters, brief) and jax.default_backend() == "cpu"
        traced = any(map(is_traced, jax.tree.leaves((parameters, data))))
        return (soon if quick and not traced else compiled)(
            Frozen(constants), tuple(sorted(options.items())), parameters, data
        )

    return call


def brief(f: Callable[..., Any]) -> Callable[..., Any]:
    """A `program` of few steps."""
    return program(f, brief=True)


def _small(path: Path, parameters: Any, brief: bool) -> bool:
    """Whether a state and the parameters are so few numbers that compilation is what takes time."""
    space = observed_space(path.energy)
    state = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(space.struct))
    numbers = state + sum(map(np.size, jax.tree.leaves(parameters)))
    if isinstance(space, Real | Box):
        return state <= _SHORT and numbers <= (_BRIEF if brief else _SMALL)
    return brief and numbers <= _BRIEF


def on_host(f: Callable[..., Any], *data: Any, **options: Any) -> Any:
    """f(*data, **options) in NumPy, with floats as float64, as a pytree of arrays; behind a callback where data are traced.

    A derivative raises ValueError, since it would be wrong: chains are not differentiated.
    """
    dtype = jnp.result_type(float)

    def call(*data: Any) -> Any:
        wide = jax.tree.map(_wide, data)
        with np.errstate(all="ignore"):
            return jax.tree.map(lambda x: _narrow(x, dtype), f(*wide, **options))

    if not any(map(is_traced, jax.tree.leaves(data))):
        return jax.tree.map(jax.device_put, call(*data))
    data = jax.tree.map(jnp.asarray, data)
    like = call(*jax.tree.map(lambda x: np.ones(x.shape, x.dtype), data))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    behind = undifferentiated(lambda *data: jax.pure_callback(call, shapes, *data, vmap_method="sequential"), _REFUSAL)
    return behind(*data)


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _narrow(x: Any, dtype: Any) -> np.ndarray:
    x = np.asarray(x)
    kinds = {"f": dtype, "i": np.int32}
    return x.astype(kinds.get(x.dtype.kind, x.dtype))


def many(n: int) -> int:
    """The number of chains that a program of n chains runs: up to an eighth more, so that other numbers need no other program."""
    step = max(1, 1 << max((n - 1).bit_length() - 4, 0))
    return -(-n // step) * step


def room(n: int) -> int:
    """The size of an array of n inverse temperatures: a power of two, at least 16,384, so that other numbers need no other program."""
    return max(_LEAST, 1 << (n - 1).bit_length())
