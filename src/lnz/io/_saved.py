"""Saved energies: any of the library's own models in one file, its structure together with its arrays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import UnionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.checkpoint import CheckpointError, load_arrays, save_tree
from lnz._core.energy import Energy
from lnz._core.frozen import Frozen
from lnz._core.spaces import Binary, Box, Categorical, MixedCategorical, Product, Real, Space, Spin
from lnz._models import (
    deep_boltzmann_machine,
    factor_graph,
    independent,
    linear_chain,
    pairwise,
    random_field,
    rbm,
    self_normalised,
    semi_markov_chain,
)
from lnz._models.structures import Chain, Graph, Grid, Structure, Tree

_CLASSES = {
    cls.__name__: cls
    for cls in (
        random_field.RandomField,
        factor_graph.FactorGraph,
        linear_chain.LinearChain,
        semi_markov_chain.SemiMarkovChain,
        rbm.RBM,
        rbm.GaussianRBM,
        deep_boltzmann_machine.DeepBoltzmannMachine,
        pairwise.Ising,
        pairwise.Potts,
        pairwise.DenseCouplings,
        pairwise.SparseCouplings,
        pairwise.LatticeCouplings,
        independent.Independent,
        independent.Gaussian,
        independent.LogisticReal,
        independent.HalfLogistic,
        independent.Mixture,
        independent.Uniform,
        self_normalised.SelfNormalised,
    )
}
_SPACES: dict[str, type[Space]] = {
    cls.__name__: cls for cls in (Binary, Spin, Categorical, MixedCategorical, Real, Box, Product)
}
_STRUCTURES: dict[str, type[Structure]] = {cls.__name__: cls for cls in (Chain, Tree, Grid, Graph)}
_KINDS: dict[str, tuple[type | UnionType, dict[str, Any]]] = {
    "space": (Space, _SPACES),
    "structure": (Structure, _STRUCTURES),
    "class": (Energy | pairwise.Couplings, _CLASSES),
}


def save(path: str | Path, energy: Energy) -> None:
    """Write one of the library's own energies to a file, atomically.

    Raises:
        TypeError: for a model of your own (`FunctionEnergy`, a subclass): its code cannot be saved, only its arrays.
        ValueError: if a parameter is NaN.
        WriteError: where the file cannot be written.

    Example:
        >>> import tempfile, lnz
        >>> path = tempfile.mkdtemp() + "/gaussian.lnz"
        >>> lnz.save(path, lnz.Gaussian([0.0], [4.0]))
        >>> lnz.load(path).precision.shape
        (1,)
    """
    if not isinstance(energy, Energy):
        raise TypeError(f"only an energy can be saved as one, but got {type(energy).__name__}")
    arrays: dict[str, Any] = {}
    structure = _describe(energy, "energy", arrays)
    save_tree(path, arrays, {"energy": structure})


def load(path: str | Path) -> Energy:
    """Read an energy written by `save`, or the model of a run folder of `lnz train`.

    Arrays of float64 become float32 unless JAX is set to float64 (`jax_enable_x64`).

    Raises:
        CheckpointError: if the file is cut short, damaged, holds no energy, or one that this version of lnz does not know.
    """
    if Path(path).is_dir():
        path = Path(path) / "model.lnz"
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent} is a folder without a model.lnz: no run of `lnz train`, or not finished."
            )
    arrays, metadata = load_arrays(path)
    if "energy" not in metadata:
        raise CheckpointError(f"{path} holds no saved energy. Name a file written by lnz.save.")
    named = {name.removeprefix("['").removesuffix("']"): array for name, array in arrays.items()}
    try:
        return _rebuild(metadata["energy"], named)
    except _Unknown as error:
        raise CheckpointError(
            f"{path} holds {error}, which this version of lnz does not know. Use a newer one."
        ) from None


class _Unknown(Exception):
    """A class or a field that is not known here."""


def _describe(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    of = next((of for of, (base, _) in _KINDS.items() if isinstance(value, base)), None)
    if of is not None:
        known, kind = _KINDS[of][1], type(value).__name__
        if known.get(kind) is not type(value):
            raise TypeError(
                f"{kind} cannot be saved: it is not among the library's own models ({', '.join(sorted(known))}), and code cannot be "
                "written to a file. Save its arrays, for example with safetensors, and build it again."
            )
        parts: Any = value
        fields = {
            f.name: _describe(getattr(value, f.name), f"{name}.{f.name}", arrays) for f in dataclasses.fields(parts)
        }
        return {of: kind, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_describe(part, f"{name}.{i}", arrays) for i, part in enumerate(value)]}
    if isinstance(value, Frozen):
        arrays[name] = np.asarray(value.value)
        return {"frozen": name}
    if isinstance(value, np.generic):
        return {"value": value.item()}
    if isinstance(value, jax.Array | np.ndarray):
        arrays[name] = value
        return {"array": name}
    return {"value": value}


def _rebuild(about: Any, arrays: dict[str, Any]) -> Any:
    for of, (_, known) in _KINDS.items():
        if of in about:
            return _fill(known, about[of], about["fields"], arrays)
    if "tuple" in about:
        return tuple(_rebuild(part, arrays) for part in about["tuple"])
    if "frozen" in about:
        return Frozen(arrays[about["frozen"]])
    if "array" in about:
        return jnp.asarray(arrays[about["array"]])
    return about["value"]


def _fill(known: dict[str, type], kind: str, fields: dict[str, Any], arrays: dict[str, Any]) -> Any:
    cls = known.get(kind)
    if cls is None or {f.name for f in dataclasses.fields(cls)} != set(fields):
        raise _Unknown(f"a {kind} with {', '.join(fields)}")
    made = object.__new__(cls)
    for name, about in fields.items():
        object.__setattr__(made, name, _rebuild(about, arrays))
    return made
