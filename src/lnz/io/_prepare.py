"""Preparation of data for training: grey values to 0 and 1, and a reproducible split."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from lnz.io._data import DataError, numeric_problem

_BLOCK = 1 << 22  # values that are processed together: bounds the memory beyond the result


def blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The array in runs of whole examples, each with the number of its first example."""
    step = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def binarise(
    array: Shaped[np.ndarray, "..."],
    *,
    threshold: int | float | None = None,
    levels: int | float | None = None,
    stochastic: bool = False,
    seed: int = 0,
) -> UInt8[np.ndarray, "..."]:
    """Turn grey values into 0 and 1: b = [x ≥ threshold], or by a fixed draw, P(b = 1) = x / levels.

    `levels` is the largest value the scale has (1, 16, 255), and the threshold is half of it. Where neither is given
    the scale is inferred from the values:

    | values | scale | b = 1 where |
    |---|---|---|
    | within 0 to 1 | 1 | x ≥ 0.5 (so 0 and 1 stay as they are) |
    | whole, the largest exactly 16 (digits) | 16 | x ≥ 8 |
    | whole, the largest 128 to 255 (bytes) | 255 | x ≥ 128 |

    For any other values the scale is not guessed: they raise an error.

    Args:
        array: values of any shape. NaN and infinity are errors.
        threshold: the smallest value that becomes 1; any real values are then allowed.
        levels: the largest value of the scale; values outside 0 to `levels` are errors.
        stochastic: draw u < x / levels instead, u uniform on [0, 1), once.
        seed: the seed of the draw, 0 to 2^32 - 1. It uses `numpy.random.RandomState`, whose stream NumPy has frozen, so
            that a seed gives the same data on every machine and with every version.

    Returns:
        uint8 0 and 1 in the shape of `array`.

    Raises:
        DataError: values that are not finite numbers, a scale that cannot be inferred, options that contradict each other.

    Example:
        >>> binarise(np.asarray([[0, 7, 8, 16]]))
        array([[0, 0, 1, 1]], dtype=uint8)
    """
    array = np.asarray(array)
    if problem := numeric_problem(array.dtype):
        raise DataError(f"binarise: the array {problem}")
    if threshold is not None and (levels is not None or stochastic):
        raise DataError("binarise: a threshold leaves nothing to levels or to chance. Give only one of them")
    if any(option is not None and not math.isfinite(option) for option in (threshold, levels)):
        raise DataError("binarise: threshold and levels must be finite. Give a number")
    if levels is not None and levels <= 0:
        raise DataError(f"binarise: levels is {levels:g}. Give the largest value of the scale, such as 16 or 255")
    flat = array.reshape(-1)
    if flat.size == 0:
        return np.zeros(array.shape, np.uint8)
    low, high, whole = _range(flat)
    if threshold is None:
        scale = _scale(low, high, whole) if levels is None else levels
        if low < 0 or high > scale:
            found = f"values run from {low:g} to {high:g}, beyond 0 to {scale:g}"
            raise DataError(f"binarise: {found}. Give a threshold, or other levels")
        threshold = scale / 2
    else:
        scale = 1.0
    out = np.empty(array.shape, np.uint8)
    target = out.reshape(-1)
    draw = _random_state(seed) if stochastic else None
    for start, block in blocks(flat):
        if draw is None:
            target[start : start + len(block)] = block >= np.float64(threshold)
        else:
            target[start : start + len(block)] = draw.random_sample(len(block)) < block / scale
    return out


def _range(flat: np.ndarray) -> tuple[float, float, bool]:
    """The smallest value, the largest, and whether all are whole."""
    low, high, whole = math.inf, -math.inf, True
    for _, block in blocks(flat):
        smallest, largest = float(block.min()), float(block.max())  # NaN comes through both
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise DataError("binarise: the array holds NaN or infinity. Remove or fill in those values first")
        low, high = min(low, smallest), max(high, largest)
        whole = whole and (block.dtype.kind != "f" or bool((block == np.trunc(block)).all()))
    return low, high, whole


def _scale(low: float, high: float, whole: bool) -> float:
    if low >= 0:
        if high <= 1:
            return 1.0
        if whole and high == 16:
            return 16.0
        if whole and 128 <= high <= 255:
            return 255.0
    raise DataError(
        f"binarise: the scale of values from {low:g} to {high:g} is not clear. "
        "Give levels (the largest value of the scale), or a threshold"
    )


class Split(NamedTuple):
    """The row numbers of the training, validation and test data, sorted and without overlap."""

    train: Int[np.ndarray, " n_train"]
    validation: Int[np.ndarray, " n_validation"]
    test: Int[np.ndarray, " n_test"]


def split(n: int, *, fractions: Sequence[int | float] = (0.7, 0.1, 0.2), seed: int = 0) -> Split:
    """Split n data into train, validation and test, at random but always in the same way.

    A permutation of 0 … n-1 is cut after round(n f_train) and round(n (f_train + f_validation)) entries, and each part
    is sorted. It comes from `numpy.random.RandomState(seed)`, whose stream NumPy has frozen, so that the same n,
    fractions and seed give the same split on every machine and with every version.

    Args:
        n: the number of examples.
        fractions: of training, validation and test data; they add up to 1. A part of fraction 0 is empty.
        seed: 0 to 2^32 - 1.

    Returns:
        Three arrays of row numbers, int64.

    Raises:
        DataError: invalid fractions, or so few data that a part would be empty.

    Example:
        >>> [len(part) for part in split(1797)]
        [1258, 180, 359]
    """
    if len(fractions) != 3 or not all(0 <= f <= 1 for f in fractions) or not math.isclose(sum(fractions), 1):
        raise DataError(f"split: fractions {tuple(fractions)} are not three shares of 1. Give 0.7, 0.1, 0.2 or such")
    first, second = round(n * fractions[0]), round(n * (fractions[0] + fractions[1]))
    order = _random_state(seed).permutation(n).astype(np.int64)
    parts = Split(*(np.sort(part) for part in np.split(order, [first, second])))
    for name, fraction, part in zip(Split._fields, fractions, parts, strict=True):
        if fraction > 0 and len(part) == 0:
            raise DataError(f"split: {n} data leave none for the {name} part. Give more data, or a fraction of 0")
    return parts


def _random_state(seed: int) -> np.random.RandomState:
    if not 0 <= seed < 2**32:
        raise DataError(f"the seed {seed} is out of range. Give an integer from 0 to 2^32 - 1")
    return np.random.RandomState(seed)
