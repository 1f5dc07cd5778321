"""Checks of data against the space of a model; every error names the first value that is wrong."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from lnz._core.given import given_array
from lnz.io._data import DataError, numeric_problem
from lnz.io._prepare import blocks

SPACES = ("binary", "spin", "categorical", "real")


def check(
    array: Shaped[np.ndarray, "..."],
    space_name: str,
    *,
    columns: int | None = None,
    cardinality: int | None = None,
    source: str = "data",
) -> list[str]:
    """Raise DataError for data on which a model over the named space cannot be trained; rows and columns are counted from 1.

    Args:
        array: the data, shape (n, *shape).
        space_name: `binary` (0 and 1), `spin` (-1 and +1), `categorical` (integers 0 … cardinality-1) or `real`.
        columns: the number of values per example that the model needs, if that is fixed.
        cardinality: the number of categories; only for `categorical`, where None allows any integer ≥ 0.
        source: the name of the data in messages.

    Returns:
        Notes that the user should read and may ignore: constant columns, which every discrete model allows.

    Raises:
        DataError: values that are not numbers, no rows or only one, no columns or the wrong number of them, NaN or
            infinity, values outside the space; for `real` a constant column too, since a Gaussian unit of variance 0
            has no density.

    Example:
        >>> check(np.asarray([[0, 1], [0, 0]]), "binary")
        ['data: 1 of 2 columns is constant (column 1, always 0): the model can learn nothing from it but its bias']
        >>> check(np.asarray([[0, 1], [0, 2]]), "binary")
        Traceback (most recent call last):
        lnz.io._data.DataError: data: row 2, column 2 is 2, neither 0 nor 1. Binarise it, or choose another model
    """
    if space_name not in SPACES:
        raise DataError(f"unknown space {space_name!r}. Choose one of {', '.join(SPACES)}")
    if cardinality is not None and space_name != "categorical":
        raise DataError(f"a cardinality was given, but the space is {space_name}. Leave it out, or choose categorical")
    try:
        array = np.asarray(given_array(array, source))
    except ValueError as error:
        raise DataError(str(error)) from None
    _check_shape(array, columns, source)
    _check_values(array, space_name, cardinality, source)
    return _constant_columns(array, space_name, source)


def _check_shape(array: np.ndarray, columns: int | None, source: str) -> None:
    if problem := numeric_problem(array.dtype):
        raise DataError(f"{source}: the array {problem}")
    if array.ndim < 2:
        raise DataError(f"{source}: shape {array.shape} has no rows and columns. Reshape it to (n, 1) or (1, k)")
    n, k = len(array), math.prod(array.shape[1:])
    if n == 0:
        raise DataError(f"{source}: holds no rows. Give at least 2")
    if k == 0:
        raise DataError(f"{source}: holds no columns. Give at least one")
    if columns is not None and k != columns:
        raise DataError(
            f"{source}: the model needs {columns} columns, but the data have {k}. Give data of that width, "
            "or train a new model"
        )
    if n == 1:
        raise DataError(f"{source}: holds one row, and a distribution needs at least 2. Give more data")
    if array.dtype.kind == "f":
        for start, block in blocks(array):
            if not (good := np.isfinite(block)).all():
                where, value = _first(block, good, start)
                raise DataError(f"{source}: {where} is {value}, not a finite number. Fill it in, or remove the row")


def _check_values(array: np.ndarray, space: str, cardinality: int | None, source: str) -> None:
    categories = math.inf if cardinality is None else cardinality
    largest = np.float64(np.finfo(np.float32).max)
    rules: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
        "binary": (lambda x: (x == 0) | (x == 1), "neither 0 nor 1"),
        "spin": (lambda x: (x == 1) | (x == -1), "neither -1 nor +1"),
        "categorical": (
            lambda x: (x >= 0) & (x < categories) & (x.dtype.kind != "f" or x == np.trunc(x)),
            "not an integer from 0" + (" up" if cardinality is None else f" to {cardinality - 1}"),
        ),
        "real": (lambda x: (x >= -largest) & (x <= largest), "too large for 32-bit floats"),
    }
    allowed, words = rules[space]
    for start, block in blocks(array):
        if not (good := np.asarray(allowed(block))).all():
            where, value = _first(block, good, start)
            raise DataError(f"{source}: {where} is {value}, {words}. {_remedy(array, space)}")


def _remedy(array: np.ndarray, space: str) -> str:
    if space == "binary":
        spins = all(bool((np.abs(block) == 1).all()) for _, block in blocks(array))
        if spins:
            return "These look like spins: map them by (x + 1) / 2, or choose a model over spins"
        return "Binarise it, or choose another model"
    if space == "spin":
        bits = all(bool(((block == 0) | (block == 1)).all()) for _, block in blocks(array))
        if bits:
            return "These look like bits: map them by 2 x - 1, or choose a model over 0 and 1"
        return "Map the data to -1 and +1, or choose another model"
    if space == "real":
        return "Rescale the data"
    return "Number the categories from 0, and give the right number of them"


def _constant_columns(array: np.ndarray, space: str, source: str) -> list[str]:
    low, high = array[0].copy(), array[0].copy()
    for _, block in blocks(array):
        np.minimum(low, block.min(axis=0), out=low)
        np.maximum(high, block.max(axis=0), out=high)
    constant = np.argwhere(low == high)
    if len(constant) == 0:
        return []
    column, value = _column(constant[0]), _show(low[tuple(constant[0])])
    if space == "real":
        more = "" if len(constant) == 1 else f" (and {len(constant) - 1} more)"
        raise DataError(
            f"{source}: {column} is constant, always {value}{more}: its variance is 0, "
            "and a Gaussian unit has no density. Remove it"
        )
    several = len(constant) > 1
    which = f"the first is {column}, always {value}" if several else f"{column}, always {value}"
    return [
        f"{source}: {len(constant)} of {low.size} columns {'are' if several else 'is'} constant ({which}): "
        f"the model can learn nothing from {'them but their biases' if several else 'it but its bias'}"
    ]


def _first(block: np.ndarray, good: np.ndarray, start: int) -> tuple[str, str]:
    """Where the first bad value is, in words, and the value."""
    position = np.unravel_index(int(np.argmin(good)), good.shape)
    return f"row {start + int(position[0]) + 1}, {_column(position[1:])}", _show(block[position])


def _column(position: Any) -> str:
    numbers = [int(i) + 1 for i in position]
    return f"column {numbers[0]}" if len(numbers) == 1 else f"position ({', '.join(map(str, numbers))})"


def _show(value: Any) -> str:
    return f"{value.item():.6g}" if value.dtype.kind == "f" else str(int(value))
