"""The type checker that the suite runs lnz under: beartype, by way of jaxtyping's import hook, which adds shapes and dtypes."""

from typing import Any, Self

import beartype
import jax
import numpy as np

# As for static checkers, an `int` passes for a `float`. A NumPy scalar passes for an array without axes, because NumPy's functions return
# one where their annotations say array, and for a number; an array of NumPy's passes for one of JAX's. Methods are checked one by one, where
# `Self` has no meaning.
_CONF = beartype.BeartypeConf(
    is_pep484_tower=True,
    hint_overrides=beartype.FrozenDict(
        {
            np.ndarray: np.ndarray | np.generic,
            jax.Array: jax.Array | np.ndarray | np.generic,
            int: int | np.integer,
            Self: Any,
        }
    ),
)


check = beartype.beartype(conf=_CONF)
