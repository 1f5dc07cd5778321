"""Energies that are PyTorch modules: batched calls on the host, with PyTorch's own gradients."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array
from torch import Tensor, nn

from lnz._core.energy import Energy
from lnz._core.spaces import Box, Product, Space, State
from lnz.routes._exact.numpy_callback import undifferentiated

_TRIALS = 3  # states on which a module is tried out
_TOGETHER = 1024  # states whose gradients in the parameters are computed at a time
_REFUSAL = "an energy that is a PyTorch module gives no third derivatives. Choose an objective or a route without them, or write the energy in JAX"


class ModuleEnergy(Energy):
    """The energy of one state by a PyTorch module of batches: what `lnz.torch.as_energy` returns.

    Attributes:
        parameters: the module's parameters, by name, as JAX arrays: θ.
    """

    parameters: dict[str, Array]
    _host: _Host = eqx.field(static=True)
    _space: Space = eqx.field(static=True)

    @property
    def space(self) -> Space:
        return self._space

    def __call__(self, x: State) -> Array:
        return _energy(self._host, self.parameters, jnp.asarray(x).astype(self._space.struct.dtype))

    def __repr__(self) -> str:
        count = sum(p.size for p in self.parameters.values())
        return (
            f"ModuleEnergy({self._host.name}, {self._space}, {count:,} parameters, by batched calls of PyTorch on the host with PyTorch's "
            "gradients)"
        )


def as_energy(module: nn.Module, space: Space) -> ModuleEnergy:
    """A PyTorch module as an energy: all that lnz computes for a function of its own, for p(x) = exp(-E_θ(x)) / Z(θ).

    Routes, bounds, the audit, likelihoods and learning call the module on whole batches on the host, and take gradients in x and θ from
    PyTorch. So it need not be written in terms that JAX can trace; each call costs some hundred microseconds beside the module's own time.
    Second derivatives exist in forward mode alone. Values are float64 where JAX asks for that.

    The module is copied: later changes of its parameters have no effect, and need another call.

    Args:
        module: maps states (batch, *space.shape) to energies in nats, (batch,). States are floats, or int64 for `lnz.Categorical`. In training
            mode it must not contain batch normalisation or dropout.
        space: the space of x.

    Raises:
        TypeError: if `module` is not an `nn.Module`, or `space` not a space of arrays.
        ValueError: if the energies have another shape or are not real, differ between two calls, or depend on the other states of a batch.

    Example:
        >>> import torch, lnz
        >>> class Ising(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.coupling = torch.nn.Parameter(torch.tensor(0.5))
        ...     def forward(self, s):
        ...         return -self.coupling * (s[:, 1:] * s[:, :-1]).sum(1)
        >>> energy = lnz.torch.as_energy(Ising(), lnz.Spin(4))
        >>> round(float(lnz.log_partition(energy).value), 4)  # log(2^4 cosh(1/2)^3)
        3.1329
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"as_energy needs a torch.nn.Module, but got {type(module).__name__}: functions of JAX go to lnz.FunctionEnergy"
        )
    if not isinstance(space, Space) or isinstance(space, Product):
        raise TypeError(
            f"as_energy needs a space of arrays, such as lnz.Binary(8) or lnz.Real((3, 8, 8)), but got {space!r}"
        )
    _refuse_noise(module)
    host = _Host(module, space)
    host.try_out()
    return ModuleEnergy(parameters_of(module), host, space)


def parameters_of(module: nn.Module) -> dict[str, Array]:
    """The parameters of a module by name, as JAX arrays of their own memory."""
    return {name: jnp.array(p.detach().cpu().numpy()) for name, p in module.named_parameters()}


def _refuse_noise(module: nn.Module) -> None:
    for name, part in module.named_modules():
        kind = type(part).__name__
        if part.training and (kind.endswith("Dropout") or kind.startswith("Dropout") or "BatchNorm" in kind):
            raise ValueError(
                f"{name or 'the module'} is {kind} in training mode, so an energy would depend on chance or on the other states of its batch. "
                "Call module.eval() first"
            )


class _Host:
    """A copy of a module, called with parameters and states that are NumPy arrays. Hashed by identity: each is a constant of its own programs."""

    def __init__(self, module: nn.Module, space: Space):
        self.name = type(module).__name__
        self.space = space
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        copied = copy.deepcopy(module).requires_grad_(False)
        self.modules = {torch.float32: copied.float(), torch.float64: copy.deepcopy(copied).double()}
        self.together = True  # whether gradients of many states can be computed together
        functions = (self.energy, self.slopes, self.parameter_slopes, self.slopes_along, self.parameter_slopes_along)
        self.functions: dict[str, Any] = {function.__name__: function for function in functions}

    def energies(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """E of a batch of states."""
        wide = torch.float64 in (x.dtype, *(p.dtype for p in parameters.values()))
        return torch.func.functional_call(self.modules[torch.float64 if wide else torch.float32], parameters, (x,))

    def energy(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return self.energies(parameters, x[None])[0]

    def slopes(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        """∂E/∂x of one state."""
        return torch.func.grad(self.energy, 1)(parameters, x)

    def parameter_slopes(self, parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """∂E/∂θ of one state."""
        return torch.func.grad(self.energy)(parameters, x)

    def slopes_along(self, *point_and_tangents: Any) -> Tensor:
        """The derivative of ∂E/∂x along a tangent of θ and x."""
        return torch.func.grad(self._rate, 1)(*point_and_tangents)

    def parameter_slopes_along(self, *point_and_tangents: Any) -> dict[str, Tensor]:
        """The derivative of ∂E/∂θ along a tangent of θ and x."""
        return torch.func.grad(self._rate)(*point_and_tangents)

    def _rate(self, parameters: Any, x: Tensor, along: Any, dx: Tensor) -> Tensor:
        """The derivative of E along a tangent. The Hessian is symmetric, so the gradient of this is that of slopes along the tangent."""
        slopes = self.parameter_slopes(parameters, x)
        total = sum(((slopes[name] * along[name]).sum() for name in slopes), start=dx.new_zeros(()))
        return total + (self.slopes(parameters, x) * dx).sum() if x.is_floating_point() else total

    def run(self, what: str, *arguments: Any) -> Any:
        """One of the functions above for θ and x, and tangents of them, with further axes in front, 1 where `jax.vmap` shares them."""
        kernel = {name: p.shape for name, p in self.modules[torch.float32].named_parameters()}
        shapes = [kernel, self.space.shape] * (len(arguments) // 2)
        leaves = [np.asarray(x) for x in jax.tree.leaves(arguments)]
        ranks = [len(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda s: isinstance(s, tuple))]
        fronts = [x.shape[: x.ndim - rank] for x, rank in zip(leaves, ranks, strict=True)]
        whole = np.broadcast_shapes(*fronts)
        shared = [math.prod(front) == 1 for front in fronts]
        rows = [
            x.reshape(x.shape[x.ndim - rank :]) if alone else np.broadcast_to(x, (*whole, *x.shape[x.ndim - rank :]))
            for x, rank, alone in zip(leaves, ranks, shared, strict=True)
        ]
        flat = [
            x if alone else x.reshape(math.prod(whole), *x.shape[len(whole) :])
            for x, alone in zip(rows, shared, strict=True)
        ]
        with torch.no_grad():
            found = self._flat(what, jax.tree.structure(arguments), flat, shared)
        return jax.tree.map(lambda x: x.cpu().numpy().reshape((*whole, *x.shape[1:])), found)

    def _flat(self, what: str, structure: Any, arrays: list[np.ndarray], shared: list[bool]) -> Any:
        """The results with rows along axis 0; arguments that all rows share have no such axis."""
        wide = any(x.dtype == np.float64 for x in arrays)
        tensors = [self._tensor(x, wide) for x in arrays]
        arguments = jax.tree.unflatten(structure, tensors)
        if all(shared):
            found = self.functions[what](*arguments)
            return jax.tree.map(lambda x: x[None], found)
        axes = jax.tree.unflatten(structure, [None if alone else 0 for alone in shared])
        if what == "energy" and all(axis is None for axis in jax.tree.leaves(axes[0], is_leaf=lambda a: a is None)):
            return self.energies(*arguments)
        function = self.functions[what]
        if self.together:
            return torch.func.vmap(function, in_dims=axes, chunk_size=_TOGETHER)(*arguments)
        rows = len(next(x for x, alone in zip(tensors, shared, strict=True) if not alone))
        each = [
            function(*jax.tree.unflatten(structure, [x if a else x[i] for x, a in zip(tensors, shared, strict=True)]))
            for i in range(rows)
        ]
        return jax.tree.map(lambda *parts: torch.stack(parts), *each)

    def _tensor(self, x: np.ndarray, wide: bool) -> Tensor:
        """A copy, since the memory belongs to JAX."""
        dtype = torch.int64 if not np.issubdtype(x.dtype, np.floating) else torch.float64 if wide else torch.float32
        return torch.tensor(x, dtype=dtype, device=self.device)

    def try_out(self) -> None:
        """Refuse modules whose results are not energies of single states."""
        parameters: dict[str, Tensor] = dict(self.modules[torch.float32].named_parameters())
        x = self._tensor(_trial_states(self.space), False)
        with torch.no_grad():
            found = self.energies(parameters, x)
            if not isinstance(found, Tensor) or not found.is_floating_point():
                got = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(f"{self.name} must return one float per state, shape (batch,), but returns {got}")
            if found.shape != (_TRIALS,):
                raise ValueError(
                    f"{self.name} must return one energy per state, but gives shape {tuple(found.shape)} for {_TRIALS} states. {_remedy(found)}"
                )
            again, single = self.energies(parameters, x), self.energies(parameters, x[:1])
        if not torch.equal(found.isnan(), again.isnan()) or not torch.allclose(found, again, equal_nan=True):
            raise ValueError(
                f"{self.name} gives different energies for the same states. Remove what is random, or call module.eval() first"
            )
        if not torch.allclose(found[:1], single, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"{self.name} gives a state another energy when it is alone in its batch. Remove what mixes the states of a batch, or call "
                "module.eval() first"
            )
        try:
            with torch.no_grad():
                torch.func.vmap(self.parameter_slopes, (None, 0))(parameters, x)
        except (RuntimeError, NotImplementedError):  # what torch.func.vmap does not support
            self.together = False


def _remedy(found: Tensor) -> str:
    if found.shape == (_TRIALS, 1):
        return "Return it without its last axis: energy.squeeze(-1)"
    if found.ndim == 0:
        return "Sum over the entries of a state alone, not over the batch"
    return "Sum over all axes but the first: energy.flatten(1).sum(1)"


def _trial_states(space: Space) -> np.ndarray:
    key = jax.random.key(0)
    if math.isfinite(space.log_size):
        return np.asarray(space.uniform(key, _TRIALS))
    states = jax.random.normal(key, (_TRIALS, *space.shape))
    return np.asarray(jnp.clip(states, *space.limits) if isinstance(space, Box) else states)


def _callback(host: _Host, what: str, shapes: Any, *arguments: Any) -> Any:
    """A function of the host, which takes a whole `jax.vmap` at once.

    float64 goes there and back as pairs of uint32: JAX calls back in a thread of its own, where a context of float64 does not hold, and numbers
    would lose half of their digits.
    """
    leaves, structure = jax.tree.flatten(arguments)

    def run(*leaves: Any) -> Any:
        found = host.run(what, *jax.tree.unflatten(structure, [_from_pairs(np.asarray(x)) for x in leaves]))
        return jax.tree.map(lambda x, shape: _to_pairs(x.astype(shape.dtype)), found, shapes)

    coded = jax.tree.map(lambda s: jax.ShapeDtypeStruct((*s.shape, 2), jnp.uint32) if _is_wide(s) else s, shapes)
    call = undifferentiated(functools.partial(jax.pure_callback, run, coded, vmap_method="expand_dims"), _REFUSAL)
    found = call(*(jax.lax.bitcast_convert_type(x, jnp.uint32) if _is_wide(x) else x for x in leaves))
    return jax.tree.map(lambda x, s: jax.lax.bitcast_convert_type(x, s.dtype) if _is_wide(s) else x, found, shapes)


def _is_wide(x: Any) -> bool:
    return x.dtype == np.float64


def _to_pairs(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x[..., None]).view(np.uint32) if _is_wide(x) else x


def _from_pairs(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.float64)[..., 0] if x.dtype == np.uint32 else x


def _dtype(parameters: dict[str, Array], x: Array) -> np.dtype:
    """float64 if a parameter or the states are, else float32."""
    wide = any(a.dtype == np.float64 for a in (x, *parameters.values()))
    return np.dtype(np.float64 if wide else np.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _energy(host: _Host, parameters: dict[str, Array], x: Array) -> Array:
    return _callback(host, "energy", jax.ShapeDtypeStruct((), _dtype(parameters, x)), parameters, x)


@functools.partial(_energy.defjvp, symbolic_zeros=True)
def _energy_jvp(host: _Host, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """One more call for each of x and θ, and none for what is not differentiated."""
    (parameters, x), (along, dx) = primals, tangents
    value = _energy(host, parameters, x)
    rate = jnp.zeros_like(value)
    if not isinstance(dx, SymbolicZero):
        rate = rate + jnp.sum(_slopes(host, "slopes", parameters, x) * dx.astype(value.dtype))
    moving = [name for name, t in along.items() if not isinstance(t, SymbolicZero)]
    slopes = _slopes(host, "parameter_slopes", parameters, x) if moving else {}
    for name in moving:
        rate = rate + jnp.sum(slopes[name] * along[name].astype(value.dtype))
    return value, rate


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _slopes(host: _Host, what: str, parameters: dict[str, Array], x: Array) -> Any:
    return _callback(host, what, _slope_shapes(what, parameters, x), parameters, x)


@_slopes.defjvp
def _slopes_jvp(host: _Host, what: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Second derivatives in forward mode, as the audit takes them."""
    (parameters, x), (along, dx) = primals, tangents
    dx = dx if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, _dtype(parameters, x))
    change = _callback(host, f"{what}_along", _slope_shapes(what, parameters, x), parameters, x, along, dx)
    return _slopes(host, what, parameters, x), change


def _slope_shapes(what: str, parameters: dict[str, Array], x: Array) -> Any:
    dtype = _dtype(parameters, x)
    if what == "slopes":
        return jax.ShapeDtypeStruct(x.shape, dtype)
    return {name: jax.ShapeDtypeStruct(p.shape, dtype) for name, p in parameters.items()}
