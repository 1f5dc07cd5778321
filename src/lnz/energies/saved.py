"""Saved energies: any of the library's own models in one file, with its structure beside its arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lnz.energies import independent, pairwise, rbm
from lnz.energy import Energy
from lnz.formats.checkpoint import CheckpointError, load_arrays, save_tree
from lnz.frozen import Frozen
from lnz.spaces import Binary, Box, Categorical, Product, Real, Space, Spin

_CLASSES = {
    cls.__name__: cls
    for cls in (
        rbm.RBM,
        rbm.GaussianRBM,
        pairwise.Ising,
        pairwise.Potts,
        pairwise.DenseCouplings,
        pairwise.SparseCouplings,
        pairwise.LatticeCouplings,
        independent.Independent,
        independent.Gaussian,
        independent.Mixture,
        independent.Uniform,
    )
}
_SPACES: dict[str, type[Space]] = {cls.__name__: cls for cls in (Binary, Spin, Categorical, Real, Box, Product)}


def save_energy(path: str | Path, energy: Energy) -> None:
    """Write one of the library's own energies to a file, atomically.

    Raises:
        TypeError: for a model of your own (`FunctionEnergy`, a subclass): its code cannot be saved, only its arrays.
        WriteError: where the file cannot be written.

    Example:
        >>> import tempfile, lnz
        >>> path = tempfile.mkdtemp() + "/gaussian.lnz"
        >>> lnz.save_energy(path, lnz.Gaussian([0.0], [4.0]))
        >>> lnz.load_energy(path).precision.shape
        (1,)
    """
    arrays: dict[str, Any] = {}
    structure = _describe(energy, "energy", arrays)
    save_tree(path, arrays, {"energy": structure})


def load_energy(path: str | Path) -> Energy:
    """Read an energy written by `save_energy`. Raises CheckpointError if the file is cut short, damaged, or holds no energy."""
    arrays, metadata = load_arrays(path)
    if "energy" not in metadata:
        raise CheckpointError(f"{path} holds no saved energy")
    named = {name.removeprefix("['").removesuffix("']"): array for name, array in arrays.items()}
    return _rebuild(metadata["energy"], named)


def _describe(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    if isinstance(value, Energy | pairwise.Couplings):
        kind = type(value).__name__
        if _CLASSES.get(kind) is not type(value):
            raise TypeError(
                f"{kind} is a model of your own: its code cannot be saved. Save its arrays (for example with safetensors) and build it again."
            )
        fields = {
            f.name: _describe(getattr(value, f.name), f"{name}.{f.name}", arrays) for f in dataclasses.fields(value)
        }
        return {"class": kind, "fields": fields}
    if isinstance(value, Space):
        fields = {f.name: _describe(getattr(value, f.name), name, arrays) for f in dataclasses.fields(value)}  # pyright: ignore[reportArgumentType]
        return {"space": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_describe(part, f"{name}.{i}", arrays) for i, part in enumerate(value)]}
    if isinstance(value, Frozen):
        arrays[name] = np.asarray(value.value)
        return {"frozen": name}
    if hasattr(value, "dtype"):
        arrays[name] = value
        return {"array": name}
    return {"value": value}


def _rebuild(about: Any, arrays: dict[str, Any]) -> Any:
    if "class" in about:
        return _fill(_CLASSES[about["class"]], about["fields"], arrays)
    if "space" in about:
        return _fill(_SPACES[about["space"]], about["fields"], arrays)
    if "tuple" in about:
        return tuple(_rebuild(part, arrays) for part in about["tuple"])
    if "frozen" in about:
        return Frozen(arrays[about["frozen"]])
    if "array" in about:
        return jnp.asarray(arrays[about["array"]])
    return about["value"]


def _fill(cls: type, fields: dict[str, Any], arrays: dict[str, Any]) -> Any:
    made = object.__new__(cls)
    for name, about in fields.items():
        object.__setattr__(made, name, _rebuild(about, arrays))
    return made
