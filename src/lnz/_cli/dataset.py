"""The data of a run: read from a file, coded as states of the model, and split."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from lnz import io
from lnz._cli.settings import KINDS
from lnz._core.spaces import Binary, Categorical, Real, Space, Spin
from lnz.io import Data, DataError


@dataclasses.dataclass(frozen=True)
class Coding:
    """How values of a file become states of a model; the same for every file of a run.

    Attributes:
        kind: `binary`, `spin`, `categorical` or `real`.
        columns: values per example.
        categories: of categorical variables.
        threshold: grey values from here up become 1; None where the data were 0 and 1 as they came.
        levels: the largest grey value, where bits are drawn with P(1) = x / levels.
        image_shape: (height, width), where an example is an image.
    """

    kind: str
    columns: int
    categories: int | None = None
    threshold: float | None = None
    levels: float | None = None
    image_shape: tuple[int, int] | None = None

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Coding:
        """From the entry of a `config.json`."""
        values, shape = dict(found), found["image_shape"]
        values["image_shape"] = None if shape is None else tuple(shape)
        return cls(**values)

    @property
    def space(self) -> Space:
        """The space of the coded data."""
        if self.kind == "categorical":
            return Categorical(self.columns, self.categories or 1)
        return {"binary": Binary, "spin": Spin, "real": Real}[self.kind](self.columns)

    @property
    def unit(self) -> str:
        """The name of one example."""
        return "example" if self.image_shape is None else "image"

    @property
    def words(self) -> str:
        """How grey values became bits, in words; empty where they did not."""
        if self.threshold is not None:
            return f"values from {self.threshold:g} up are 1, those below are 0"
        return "" if self.levels is None else f"each value x is 1 with probability x / {self.levels:g}, drawn once"

    def encode(self, data: Data, *, seed: int, notes: list[str], fitting: bool = False) -> np.ndarray:
        """The data as states, shape (n, columns): uint8 (int8 for spins, float32 for reals). Raises DataError for what does not fit."""
        rows, source = data.rows, data.source
        if rows.shape[1] != self.columns:
            raise DataError(
                f"{source}: the model expects {self.columns} columns, but the data have {rows.shape[1]}. "
                "Give data of that width, or train a new model"
            )
        refuse_not_finite(rows, source)
        if self.kind in ("binary", "spin") and (self.threshold is not None or self.levels is not None):
            if not fitting and is_within(rows, (0, 1)) and self.threshold != 0.5:
                notes.append(f"{source} already holds 0 and 1, so the run's rule ({self.words}) is not applied")
            elif not fitting and self.kind == "spin" and is_within(rows, (-1, 1)):
                notes.append(f"{source} already holds -1 and +1, so the run's rule ({self.words}) is not applied")
            elif self.levels is not None:
                rows = io.binarise(rows, levels=self.levels, stochastic=True, seed=seed)
            else:
                rows = io.binarise(rows, threshold=self.threshold)
        if self.kind == "spin" and is_within(rows, (0, 1)):
            rows = rows.astype(np.int8) * np.int8(2) - np.int8(1)
        if fitting or self.kind != "real":
            twice = np.concatenate([rows, rows]) if len(rows) == 1 and not fitting else rows
            remarks = io.check(twice, self.kind, cardinality=self.categories, source=source)
            notes.extend(remarks if fitting else [])
        wide = self.kind == "categorical" and (self.categories or 0) > 256
        dtype = {"binary": np.uint8, "spin": np.int8, "real": np.float32}.get(self.kind, np.int32 if wide else np.uint8)
        return np.ascontiguousarray(rows.astype(dtype))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Coded data in three parts; validation and test data may be empty."""

    source: str
    coding: Coding
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    sha256: str

    def parts(self) -> dict[str, np.ndarray]:
        """The parts that are not empty, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in named.items() if len(part)}

    def about(self) -> dict[str, Any]:
        """The entry of `config.json` on the data."""
        sizes = {name: len(part) for name, part in self.parts().items()}
        return {
            "source": self.source,
            "rows": sizes,
            "sha256": self.sha256,
            "coding": dataclasses.asdict(self.coding),
        }


def load(name: str, array: str | None = None) -> Data:
    """`digits`, or a file or folder of the user's."""
    return io.digits() if name == "digits" else io.load(name, name=array)


def choose_coding(data: Data, model: str, *, binarise: str, categories: int | None) -> Coding:
    """The coding of training data. Raises DataError where the data and the model do not go together."""
    rows, kind = data.rows, KINDS[model]
    if len(rows) < 2:
        raise DataError(f"{data.source}: holds one row, and a distribution needs at least 2. Give more data")
    refuse_not_finite(rows, data.source)
    coding = Coding(kind, rows.shape[1], image_shape=data.image_shape)
    if kind == "categorical":
        io.check(rows, kind, cardinality=categories, source=data.source)
        return dataclasses.replace(coding, categories=categories or int(rows.max()) + 1)
    wanted = kind in ("binary", "spin") and binarise != "never"
    ready = is_within(rows, (0, 1)) or is_within(rows, (-1, 1))
    if not wanted or (binarise in ("auto", "stochastic") and ready):
        return coding
    if binarise in ("auto", "stochastic"):
        try:
            levels = _levels(rows)
        except DataError as error:
            raise DataError(
                f"{data.source}: {error}. Give --binarise THRESHOLD, or --model gaussian-rbm for real values"
            ) from None
        if binarise == "stochastic":
            return dataclasses.replace(coding, levels=levels)
        return dataclasses.replace(coding, threshold=levels / 2)
    return dataclasses.replace(coding, threshold=float(binarise))


def _levels(rows: np.ndarray) -> float:
    """The largest value of the scale: 1, 16 or 255, as `io.binarise` tells it. Raises DataError where it is not clear."""
    low, high = float(rows.min()), float(rows.max())
    whole = rows.dtype.kind != "f" or bool((rows == np.trunc(rows)).all())
    if low >= 0 and high <= 1:
        return 1.0
    if low >= 0 and whole and high == 16:
        return 16.0
    if low >= 0 and whole and 128 <= high <= 255:
        return 255.0
    raise DataError(f"a model of bits needs 0 and 1, and the scale of values from {low:g} to {high:g} is not clear")


def divide(
    data: Data, coding: Coding, *, fractions: tuple[float, float, float], split_seed: int, seed: int, notes: list[str]
) -> Dataset:
    """Code and split the data. Raises DataError for values outside the model's space."""
    states = coding.encode(data, seed=seed, notes=notes, fitting=True)
    parts = io.split(len(states), fractions=fractions, seed=split_seed)
    train, validation, test = (states[part] for part in parts)
    if len(train) < 2:
        raise DataError(f"{data.source}: {len(train)} of {len(states)} rows are left for training. Give more data")
    if coding.kind == "real":
        io.check(train, "real", source=f"{data.source} (training part)")
    digest = hashlib.sha256(repr((states.shape, str(states.dtype))).encode())
    digest.update(states.data)
    return Dataset(data.source, coding, train, validation, test, digest.hexdigest())


def is_within(rows: np.ndarray, values: tuple[int, int]) -> bool:
    """Whether every value is one of the two."""
    return bool(((rows == values[0]) | (rows == values[1])).all())


def refuse_not_finite(rows: np.ndarray, source: str) -> None:
    """Raise DataError at the first NaN or infinity; rows and columns are counted from 1."""
    if rows.dtype.kind != "f" or (good := np.isfinite(rows)).all():
        return
    row, column = np.unravel_index(int(np.argmin(good)), good.shape)
    raise DataError(
        f"{source}: row {row + 1}, column {column + 1} is {rows[row, column]}, not a finite number. "
        "Fill it in, or remove the row"
    )
