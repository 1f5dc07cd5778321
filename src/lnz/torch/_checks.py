"""Tensors are checked before work starts: one line, the cause and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import torch
from torch import Tensor


def check_device(name: str, x: Tensor) -> None:
    """Raise ValueError for a tensor on a device that JAX cannot see."""
    kind = x.device.type
    if kind == "cpu":
        return
    try:
        found = bool(jax.devices("gpu" if kind == "cuda" else kind))
    except RuntimeError:
        found = False
    if not found:
        raise ValueError(
            f"{name}: the tensor is on {x.device}, a device that JAX cannot see. Install JAX for that device, or move the module and its input "
            "to the CPU"
        )


def check_same_device(name: str, x: Tensor, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(
            f"{name}: the tensor is on {x.device}, but the module's parameters are on {other.device}. Move one of them"
        )


def check_log_potentials(tensors: Mapping[str, Tensor], exists: Tensor | None = None) -> None:
    """Raise ValueError for NaN or +inf in tensors; -inf means impossible.

    Args:
        tensors: names and tensors. With a mask `exists`, only entries of the first where it is on are examined.
    """
    with torch.no_grad():
        total = sum(x.detach().sum() for x in tensors.values())
        if total < torch.inf:  # false for NaN: nearly always one quick pass is enough
            return
        for name, x in tensors.items():
            bad = ~(x < torch.inf)
            if exists is not None:
                bad &= exists.reshape(*exists.shape, *[1] * (x.ndim - exists.ndim))
                exists = None
            if bad.any():
                place, value = first_place(bad), x[bad][0].item()
                raise ValueError(
                    f"{name}[{place}] is {value}. Look for a learning rate that is too large, a division by zero, or padding that the mask "
                    "leaves on"
                )


def as_mask(name: str, mask: Tensor | None, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """A mask as booleans; all on where there is none.

    Raises:
        ValueError: for a wrong shape, dtype or device.
    """
    if mask is None:
        return torch.ones(tuple(shape), dtype=torch.bool, device=like.device)
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(
            f"the {name} has shape {tuple(mask.shape)}, but must have shape {tuple(shape)}, an entry for every node"
        )
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise ValueError(f"the {name} has dtype {mask.dtype}. Pass booleans or integers: {name}.bool()")
    check_same_device(name, mask, like)
    return mask.bool()


def first_place(bad: Tensor) -> str:
    """The index of the first entry that is True, as it would be typed."""
    return ", ".join(str(i) for i in bad.nonzero()[0].tolist())
