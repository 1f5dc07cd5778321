"""Compiled JAX programs of PyTorch tensors: no copy where the device allows it, and few shapes, so that few programs are compiled."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from lnz._core.numerics import float64

Method = TypeVar("Method", bound=Callable[..., Any])


def bucket(n: int, least: int = 1) -> int:
    """The size to which n is padded: a power of two up to 16, then four sizes per doubling, at most a quarter more than n where n is above 64."""
    n = max(n, least)
    if n <= 16:
        return 1 << (n - 1).bit_length()
    step = max(16, 1 << ((n - 1).bit_length() - 3))
    return -(-n // step) * step


def padded(x: Tensor, sizes: Sequence[int], value: float = 0) -> Tensor:
    """x with its first axes extended to these sizes."""
    missing = [size - n for size, n in zip(sizes, x.shape, strict=False)]
    if not any(missing):
        return x
    pads = [0, 0] * (x.ndim - len(missing)) + [side for gap in reversed(missing) for side in (0, gap)]
    return torch.nn.functional.pad(x, pads, value=value)


def call(program: Callable[..., Any], *arguments: Any) -> Any:
    """What a compiled program gives for tensors, as tensors on the same device; in float64 if one of them is, in float32 otherwise.

    It returns when the program has ended: the arrays are the tensors' own memory, which the caller may change.
    """
    tensors = [x for x in jax.tree.leaves(arguments) if isinstance(x, Tensor)]
    with float64(any(x.dtype == torch.float64 for x in tensors)):
        found = program(*jax.tree.map(_to_jax, arguments))
        jax.block_until_ready(found)
    return jax.tree.map(torch.from_dlpack, found)


def eager(method: Method) -> Method:
    """A method that stays outside of the graphs of torch.compile.

    `torch.compiler.disable` on the class would load the compiler with it, which takes seconds, for everyone.
    """

    @functools.wraps(method)
    def run(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(*arguments, **named)
        return method(*arguments, **named)

    return cast(Method, run)


def per_example(
    function: Callable[..., Any], batched: Sequence[Tensor], shared: Sequence[Tensor], others: Any, sizes: Sequence[int]
) -> Tensor:
    """A number for every example, (B,), differentiable once: the gradient comes from the same compiled call, and is kept for the backward pass.

    Args:
        function: `function((*batched, *shared), others)` of one example, a scalar JAX array. One program is compiled for each function that is not
            equal to an earlier one, and each shape.
        batched: tensors that have a gradient, with examples along axis 0.
        shared: tensors that have a gradient and belong to all examples; all of one floating-point dtype.
        others: a pytree of further tensors, with examples along axis 0, padded.
        sizes: what the first axes of `batched` are padded to.
    """
    floats = (*batched, *shared)
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in floats)
    program = _program(function, tuple(x.shape for x in shared), with_gradient)
    if with_gradient:
        return _PerExample.apply(program, others, tuple(sizes), len(batched), *floats)
    return call(program, *_prepared(floats, len(batched), sizes), others)[: len(batched[0])]


@functools.cache
def _program(
    function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], with_gradient: bool
) -> Callable[..., Any]:
    """The compiled program of batches; tensors that all examples share are packed into one vector, which is cheaper to hand over."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def one(batched: Any, packed: jax.Array, others: Any) -> jax.Array:
        parts = jnp.split(packed, ends) if shapes else []
        return function((*batched, *(x.reshape(shape) for x, shape in zip(parts, shapes, strict=True))), others)

    value = jax.value_and_grad(one, (0, 1)) if with_gradient else one
    return jax.jit(jax.vmap(value, in_axes=(0, None, 0)))


def _prepared(floats: Sequence[Tensor], batched: int, sizes: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The arguments of a program: tensors of the examples, padded, and those that all share, packed."""
    shared = [x.detach().reshape(-1) for x in floats[batched:]] or [floats[0].new_zeros(0)]
    return tuple(padded(x.detach(), sizes) for x in floats[:batched]), torch.cat(shared)


class _PerExample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: Callable[..., Any], others: Any, sizes: tuple[int, ...], batched: int, *floats: Tensor
    ) -> Tensor:
        value, (gradients, packed) = call(program, *_prepared(floats, batched, sizes), others)
        ctx.save_for_backward(*gradients, packed)
        ctx.shapes = [x.shape for x in floats]
        return value[: len(floats[0])]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, packed = ctx.saved_tensors
        (weights,) = outer
        n, batched = len(weights), len(gradients)
        shapes, shared = ctx.shapes[:batched], ctx.shapes[batched:]
        own = [
            g[tuple(map(slice, shape))] * weights.reshape(n, *[1] * (len(shape) - 1))
            for g, shape in zip(gradients, shapes, strict=True)
        ]
        sums = (weights @ packed[:n]).split([math.prod(shape) for shape in shared]) if shared else []
        return None, None, None, None, *own, *(x.view(shape) for x, shape in zip(sums, shared, strict=True))


def _to_jax(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    x = x.detach().contiguous()
    # A NumPy view goes into a compiled call sooner than a DLPack capsule, and as well without a copy.
    return x.numpy() if x.device.type == "cpu" and jax.default_backend() == "cpu" else jax.dlpack.from_dlpack(x)
