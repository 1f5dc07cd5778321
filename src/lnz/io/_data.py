"""The result of every reader, and the exception for invalid data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Shaped  # whose import takes longer than a small model


class DataError(ValueError):
    """Invalid data, or an invalid option about data: one line with the cause and the remedy."""

    def __init__(self, message: str):
        super().__init__(message.replace("\n", " "))  # a file's name may hold a line break


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Data from a source, unchanged, one example per entry of the first axis.

    Attributes:
        array: the data, shape (n, *shape), in the file's own dtype.
        source: the origin of the data: a path, or the name of a built-in data set.
        image_shape: (height, width) where one example is a grey image, flattened or not; otherwise None.
        labels: one label per example, shape (n,), where the source has them. They are never part of `array`.
    """

    array: Shaped[np.ndarray, "n ..."]
    source: str
    image_shape: tuple[int, int] | None = None
    labels: Shaped[np.ndarray, " n"] | None = None

    @property
    def rows(self) -> Shaped[np.ndarray, "n k"]:
        """The data with each example flattened: shape (n, k). No copy is made."""
        return self.array.reshape(len(self.array), math.prod(self.array.shape[1:]))

    def __repr__(self) -> str:
        extra = "" if self.image_shape is None else f", image_shape={self.image_shape}"
        extra += "" if self.labels is None else ", labelled"
        return f"Data({size_words(self.array.shape)} {self.array.dtype} from {self.source}{extra})"


def size_words(shape: Sequence[int]) -> str:
    """A shape in words: `60000 x 28 x 28`."""
    return " x ".join(map(str, shape))


def quoted(text: object, limit: int = 40) -> str:
    """Text from a file, for a message: one line, quoted, and shortened if it is long."""
    text = str(text)
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def one_line(error: object, limit: int = 80) -> str:
    """The message of another library's error, for a message: one line, shortened if it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def listed(names: Sequence[object], limit: int = 8) -> str:
    """Names from a file, for a message: quoted, and shortened if there are many."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(quoted(name) for name in names[:limit]) + more


def numeric_problem(dtype: np.dtype) -> str | None:
    """Why values of this dtype cannot be data, as the end of a sentence about 'it', or None for real numbers."""
    if dtype.kind in "biuf":
        return None
    if dtype.hasobject:
        return "holds Python objects, which are never unpickled. Save it as an array of numbers"
    if dtype.kind == "c":
        return "holds complex numbers. Save its real part, its modulus, or both as separate columns"
    if dtype.kind in "SUT":
        return "holds strings. Replace them by numbers"
    return f"holds values of type {dtype}, which are not numbers. Save it as an array of integers or floats"
