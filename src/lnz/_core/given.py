"""Arrays as they are given: what `np.asarray` would change in meaning is refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

ArrayLike = Any  # what `np.asarray` takes: numbers, nested lists, NumPy and JAX arrays, data frames
_REMEDY = "Nothing is imputed: fill them in, or leave their rows out"


def given_array(x: Any, name: str = "the data") -> Any:
    """What a user passes as an array: a JAX array as it is, everything else (lists, data frames) as a NumPy array.

    Raises:
        ValueError: for missing values, masked or NA, with their number; for a sparse matrix.
    """
    jax = sys.modules.get(
        "jax"
    )  # readers use this module without loading JAX: before it is loaded, nothing is an array of its own
    if jax is not None and isinstance(x, jax.Array):
        return x
    if isinstance(x, np.ma.MaskedArray):
        if missing := int(np.ma.getmaskarray(x).sum()):
            raise ValueError(f"{name}: {missing:,} of {x.size:,} entries are masked. {_REMEDY}")
        return np.asarray(x.data)
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise ValueError(f"{name}: a sparse {type(x).__name__} of shape {np.shape(x)}. Call .toarray()")
    if isinstance(x, list | tuple):
        for part in x:
            if isinstance(part, list | tuple | np.ma.MaskedArray) or hasattr(part, "nnz"):
                given_array(part, name)
    array = np.asarray(x)
    if array.dtype == object and (missing := sum(map(_is_missing, array.flat))):
        raise ValueError(f"{name}: {missing:,} of {array.size:,} entries are missing (NA or None). {_REMEDY}")
    return array


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant")
