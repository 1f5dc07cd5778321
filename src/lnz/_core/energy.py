"""Energies: callable pytrees that map one state to one number, E_θ(x), with θ in their leaves."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.frozen import Frozen
from lnz._core.printing import html_table
from lnz._core.spaces import Box, Space, State

Kind = TypeVar("Kind", bound="Energy")
ModelLike = Any  # an Energy, or any callable with an attribute `space`: `as_energy` decides at run time
Gradient = Any  # a pytree like an energy's floating-point arrays, with None elsewhere


class Energy(eqx.Module):
    """An energy E_θ(x): one state in, one scalar out, p_θ(x) = exp(-E_θ(x)) / Z(θ).

    Its array leaves are θ, so `jax.grad` with respect to the energy is ∇_θ. Batches go through `jax.vmap`.

    A subclass defines `space` and `__call__`. What else it offers to routes and kernels (a closed form, factors, sweeps, …) it declares by inheriting
    from the classes of `lnz.capabilities`, each of which is an `Energy`; other methods and fields may have any names.
    """

    @property
    @abc.abstractmethod
    def space(self) -> Space:
        """The space of x."""

    @abc.abstractmethod
    def __call__(self, x: State) -> Array:
        """E_θ(x) of one state, in nats: a scalar."""

    def offers(self, kind: type[Kind]) -> Kind | None:
        """The energy as one of the classes of `lnz.capabilities`, or None. Overridden where the answer depends on an energy's parts."""
        return self if isinstance(self, kind) else None

    def _repr_html_(self) -> str:
        arrays = jax.tree_util.tree_leaves_with_path(eqx.filter(self, eqx.is_inexact_array))
        names = {jax.tree_util.keystr(path).lstrip("."): f"{leaf.dtype} {leaf.shape}" for path, leaf in arrays}
        count = sum(leaf.size for _, leaf in arrays)
        return html_table(type(self).__name__, {"space": repr(self.space), "parameters": f"{count:,}", **names})


class FunctionEnergy(Energy):
    """An energy from any callable: a plain function, a `jax.tree_util.Partial`, an Equinox module, a Flax NNX module.

    The callable takes one state and returns one scalar, E(x) in nats. Its floating-point arrays are the parameters; whatever else it
    holds (integers, strings, activation functions, random keys) is kept as a constant. So is what a plain function finds outside its
    arguments: a later change of it has no effect. Objects other than pytrees are rejected, since JAX does not find their contents.

    Args:
        function: the callable.
        space: the space of x.

    Raises:
        TypeError: if `function` is not callable, is a class rather than an instance, or is an object other than a pytree.
        ValueError: if the energy of one state is not a real scalar.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def energy(coupling, s):
        ...     return -coupling * s[0] * s[1]
        >>> model = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.5)), lnz.Spin(2))
        >>> round(float(lnz.log_partition(model).value), 4)  # log(4 cosh 0.5)
        1.5064
    """

    parameters: Any  # a pytree of any kind: the callable itself without its constants
    limits: Any  # (low, high) of a box that moves, else None
    _constants: Frozen = eqx.field(static=True)
    _space: Space = eqx.field(static=True)

    def __init__(self, function: Callable[..., Any], space: Space):
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"an energy must be a callable that maps one state to one number, but got {function!r}")
        if _is_opaque(function):
            raise TypeError(
                f"{type(getattr(function, '__self__', function)).__name__} is not a pytree: its parameters would get no gradient, and a change of "
                "them would have no effect. Make it an Equinox module, or pass jax.tree_util.Partial(function, parameters)."
            )
        if not isinstance(space, Space):
            raise TypeError(f"an energy needs a space, such as lnz.Binary(8) or lnz.Real(2), but got {space!r}")
        self.parameters, constants = eqx.partition(function, eqx.is_inexact_array)
        self._constants = Frozen(constants)
        # The bounds of a moving box are leaves; only its shape is static.
        self.limits = space.limits if isinstance(space, Box) and space.moving else None
        self._space = Box(np.full(space.shape, -1.0), np.full(space.shape, 1.0)) if space.moving else space
        check_scalar(self)

    @property
    def function(self) -> Callable[[State], Array]:
        """The callable, with its parameters and constants combined again."""
        return eqx.combine(self.parameters, jax.tree.map(_thaw, self._constants.value))

    @property
    def space(self) -> Space:
        return self._space if self.limits is None else Box(*self.limits)

    def __call__(self, x: State) -> Array:
        return self.function(x)


def _is_opaque(function: Any) -> bool:
    """Whether a callable is an object of a class other than a pytree, or a method of one: neither a function nor a wrapped one."""
    owner = function.__self__ if inspect.ismethod(function) else function
    plain = inspect.isroutine(owner) or isinstance(owner, functools.partial) or hasattr(owner, "__wrapped__")
    return not plain and jax.tree_util.all_leaves([owner])


def _thaw(leaf: Any) -> Any:
    return jnp.asarray(leaf) if eqx.is_array_like(leaf) and not isinstance(leaf, bool | int | float | complex) else leaf


def check_scalar(energy: Energy) -> None:
    """Raise ValueError unless the energy maps one state to one real scalar (checked without computing it)."""
    out = eqx.filter_eval_shape(lambda e, x: e(x), energy, energy.space.struct)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"shape {out.shape}, dtype {out.dtype}" if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
        raise ValueError(
            f"an energy must return one real number for one state of {energy.space}, but this one returns {got}. "
            "Sum over the entries of x, not over a batch: batches go through jax.vmap."
        )


def as_energy(model: Any) -> Energy:
    """Any energy as an `Energy`: an `Energy` unchanged, a callable with a `space` attribute wrapped.

    Raises TypeError, with the remedy, for anything else.
    """
    if isinstance(model, Energy):
        return model
    space = getattr(model, "space", None)
    if callable(model) and isinstance(space, Space):
        return FunctionEnergy(model, space)
    raise TypeError(
        f"cannot use {type(model).__name__} as an energy: it needs a `space`. Wrap it as lnz.FunctionEnergy(function, space), for "
        "example lnz.FunctionEnergy(f, lnz.Spin(10))"
    )


def widen(energy: Any) -> Any:
    """The energy with its floating-point parameters in the widest dtype that JAX is set to (float64 under `jax_enable_x64`)."""
    dtype = jnp.result_type(float)

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if eqx.is_inexact_array(leaf) and leaf.dtype != dtype else leaf

    return jax.tree.map(cast, energy)
