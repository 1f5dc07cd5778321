"""The files of a run: its progress in a checkpoint, and the best model so far in another file beside it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from lnz._core.checkpoint import CheckpointError, load_tree, save_tree
from lnz._core.energy import Energy
from lnz.learning._trainer import TrainState


class Best(NamedTuple):
    """The model with the best validation likelihood so far, its number of updates, and that likelihood in nats per example."""

    energy: Energy
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        state: the training state.
        sums: figures summed over the updates since the last record (float32).
        since: the number of those updates.
        recorded: the number of updates at the last record, or at the start of the run.
        best: the best model so far; its value is -inf before the first record.
    """

    state: TrainState
    sums: dict[str, Array]
    since: int
    recorded: int
    best: Best

    @property
    def step(self) -> int:
        """The number of updates so far."""
        return int(self.state.step)


class Keeper:
    """Writes and reads the checkpoint of a run, if there is a path. Prints as the location of the last good checkpoint.

    Attributes:
        path: the checkpoint, or None.
        settings: named numbers and words that must agree for a run to resume from it.
        saved: the step of the saved state.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any] | None = None):
        self.path = None if path is None else Path(path)
        self.settings = settings or {}
        self.saved = 0

    def __str__(self) -> str:
        if self.path is None:
            return "no checkpoint was kept"
        return f"the last good checkpoint is {self.path}, at step {self.saved}"

    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.path is not None and self.path.exists()

    def save(self, step: int, tree: Any, about: dict[str, Any]) -> None:
        """Write a state, atomically."""
        if self.path is not None:
            save_tree(self.path, tree, {"step": step, "settings": self.settings} | about)
            self.saved = step

    def load(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state in the file, a pytree of the same shape, and the further values saved with it.

        Raises CheckpointError if it is damaged, or of another model or other settings.
        """
        assert self.path is not None
        tree, about = load_tree(self.path, like, with_metadata=True)
        if not {"settings", "step"} <= about.keys():
            raise CheckpointError(f"{self.path} is not a checkpoint of a training run. Give another file.")
        for name, value in self.settings.items():
            if (found := about["settings"].get(name)) != value:
                raise CheckpointError(
                    f"{self.path} is a checkpoint of another run: its {name} is {found}, but this run's is {value}. "
                    "Use the settings and data of that run, or another checkpoint file."
                )
        self.saved = about["step"]
        return tree, about

    def save_best(self, best: Best) -> None:
        """Write the best model, atomically. A run that resumes from an earlier checkpoint finds it again."""
        if self.path is not None:
            save_tree(best_path(self.path), best.energy, {"step": best.step, "value": best.value})

    def load_best(self, like: Energy) -> Best:
        """The best model, with arrays of these shapes."""
        assert self.path is not None
        energy, about = load_tree(best_path(self.path), like, with_metadata=True)
        return Best(energy, about["step"], about["value"])


def best_path(checkpoint: Path) -> Path:
    """The file of the best model beside a checkpoint of `fit`."""
    return checkpoint.with_name(checkpoint.name + ".best")


def digest(tree: Any) -> str:
    """A short fingerprint of the values, shapes and dtypes of the arrays of a pytree."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf, order="C")
        sha.update(f"{array.dtype.name}{array.shape}".encode())
        sha.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return sha.hexdigest()[:16]


def describe(energy: Energy) -> str:
    """A description of an energy's class, space and arrays, the same in every process."""
    arrays = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(energy) if eqx.is_array(leaf)]
    return f"{type(energy).__name__} on {energy.space} with {', '.join(arrays)}"
