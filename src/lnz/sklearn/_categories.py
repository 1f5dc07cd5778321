"""Columns of categories as numbers 0 … k-1, with -1 where an entry is missing."""

from __future__ import annotations

from typing import Any

import numpy as np

from lnz.sklearn._pairwise_tables import MISSING

_MOST = 1000  # values of a column: a table of pairs then has a million entries


def is_missing(column: np.ndarray) -> np.ndarray:
    """Which entries are NaN, None or pandas' NA."""
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype != object:
        return np.zeros(len(column), bool)
    return np.fromiter(
        (value is None or type(value).__name__ in ("NAType", "NaTType") or value != value for value in column),
        bool,
        len(column),
    )


def declared_categories(X: Any) -> list[np.ndarray | None]:
    """The categories of the columns of a data frame that have the dtype "category"; None for other columns; empty for arrays."""
    if not hasattr(X, "dtypes") or not hasattr(X, "columns"):
        return []
    return [np.asarray(dtype.categories) if hasattr(dtype, "categories") else None for dtype in X.dtypes]


def found_categories(column: np.ndarray, name: str) -> np.ndarray:
    """The different values of a column, sorted. Raises TypeError for values that are neither strings nor numbers."""
    known = column[~is_missing(column)]
    if column.dtype == object:
        kinds = {type(value) for value in known}
        if any(not issubclass(kind, str | bytes | bool | int | float | np.generic) for kind in kinds):
            raise TypeError(
                f"every argument must be a string or a number, but {name} holds {', '.join(sorted(k.__name__ for k in kinds))}"
            )
        if any(issubclass(kind, str) for kind in kinds) and not all(issubclass(kind, str) for kind in kinds):
            raise TypeError(f"{name} holds both strings and numbers: convert the column to one of them")
        known = known.astype(_common(kinds)) if kinds else known
    found = np.unique(known)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError(f"{name} contains infinity. Replace it by a finite value, or by NaN if it is missing")
    if not len(found):
        raise ValueError(f"{name} has no entry that is known: leave it out")
    if len(found) > _MOST:
        raise ValueError(
            f"{name} has {len(found):,} different values, more than {_MOST:,}: bin it first, for example by KBinsDiscretizer"
        )
    return found


def _common(kinds: set[type]) -> type:
    """The type of the values of a column of objects: strings, booleans, integers or floats."""
    for common, parts in ((str, str), (bool, bool | np.bool_), (int, int | np.integer)):
        if all(issubclass(kind, parts) for kind in kinds):
            return common
    return float


def encoded(column: np.ndarray, categories: np.ndarray, name: str) -> np.ndarray:
    """The numbers of a column's values, -1 where they are missing. Raises ValueError for a value that is not among the categories."""
    codes, missing = np.full(len(column), MISSING), is_missing(column)
    known = column[~missing]
    if categories.dtype.kind in "US" or categories.dtype == object:
        number = {value: i for i, value in enumerate(categories.tolist())}
        found = np.array([number.get(value, MISSING) for value in known.tolist()], int)
    else:
        try:
            numbers, values = categories.astype(float), known.astype(float)
        except ValueError as error:
            raise ValueError(f"{name} held numbers in fit, and now holds something else: {error}") from None
        at = np.minimum(np.searchsorted(numbers, values), len(numbers) - 1)
        found = np.where(numbers[at] == values, at, MISSING)
    unseen = np.flatnonzero(found == MISSING)
    if len(unseen):
        raise ValueError(
            f"{name} has the value {known[unseen[0]]!r}, which was not seen in fit. Replace it by NaN, or fit with it"
        )
    codes[~missing] = found
    return codes
