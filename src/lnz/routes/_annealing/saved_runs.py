"""Repeated runs of a route in a file, so that an interrupted job continues as if it had not been interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lnz._core.checkpoint import CheckpointError, load_arrays, save_tree
from lnz._core.energy import Energy
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen

_ARRAY = "value"  # the name in a checkpoint of a tree that is one array


@dataclasses.dataclass
class Rounds:
    """Independent runs of one route on one model, in order.

    Attributes:
        log_weights: the log weights of every run, with mean Z, in nats.
        raised: for every possible warning, whether any run raised it.
        name: the route, with its size.
        seconds: the time spent so far.
    """

    log_weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    raised: dict[EstimateWarning, bool] = dataclasses.field(default_factory=dict)
    name: str = ""
    seconds: float = 0.0

    def add(self, log_weights: Any, flags: dict[EstimateWarning, Any], name: str) -> None:
        """One more run."""
        self.log_weights.append(np.asarray(log_weights))
        self.raised = {code: bool(flag) | self.raised.get(code, False) for code, flag in flags.items()}
        self.name = name

    def save(self, path: Path, mark: str) -> None:
        """Write all runs to a file atomically. NaN weights are not kept: the estimate is an error in any case."""
        weights = np.stack(self.log_weights)
        if not np.isnan(weights).any():
            about = {"mark": mark, "raised": self.raised, "name": self.name, "seconds": self.seconds}
            save_tree(path, weights, about)

    @classmethod
    def load(cls, path: Path, mark: str) -> Rounds:
        """The runs in a file. Raises CheckpointError for one that is damaged, or of another model, route or key."""
        arrays, about = load_arrays(path)
        if about.get("mark") != mark or _ARRAY not in arrays:
            raise CheckpointError(
                f"{path} holds no runs of this model by this route and seed: use the settings it was made with, or another file"
            )
        raised = {EstimateWarning(code): flag for code, flag in about["raised"].items()}
        return cls(list(arrays[_ARRAY]), raised, about["name"], about["seconds"])


def mark_of(energy: Energy, route: Any, key: Any) -> str:
    """A digest of everything that determines the runs: the model with its numbers, the route with its base, and the random key."""
    bases = {f.name: v.value for f in dataclasses.fields(route) if isinstance(v := getattr(route, f.name), Frozen)}
    plain = {f.name: getattr(route, f.name) for f in dataclasses.fields(route) if f.name not in bases}
    data = jax.random.key_data(key) if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    with np.printoptions(threshold=sys.maxsize):  # edge lists and the like are in the structure
        words = repr((jax.tree.structure((energy, bases)), type(route).__name__, sorted(plain.items())))
    digest = hashlib.sha256(
        re.sub(r" at 0x[0-9a-f]+", "", words).encode()
    )  # the address of a function varies from run to run
    for where, leaf in jax.tree_util.tree_leaves_with_path((energy, bases, data)):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(where)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
