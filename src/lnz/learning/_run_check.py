"""Checks of the arguments of `fit` before any work."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._choose import choose
from lnz._core.capabilities import data_space
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.learning._gradients import as_arrays, as_weights


class Plan(NamedTuple):
    """The numbers of examples per batch, batches per epoch, updates in total, and updates between two records."""

    n: int
    batch: int
    per_epoch: int
    total: int
    every: int


def plan_updates(n: int, batch_size: int, epochs: float, evaluate_every: float) -> Plan:
    """The plan of a run. Raises ValueError for invalid numbers."""
    check_whole_number("batch_size", batch_size)
    if not (math.isfinite(epochs) and epochs > 0 and math.isfinite(evaluate_every) and evaluate_every > 0):
        raise ValueError(f"epochs and evaluate_every must be above 0, but are {epochs} and {evaluate_every}")
    batch = min(int(batch_size), n)
    per_epoch = -(-n // batch)
    total = max(1, math.ceil(round(epochs * per_epoch, 6)))  # 0.1 epochs of 30 are 3, not ceil(3.0000000000000004)
    return Plan(n, batch, per_epoch, total, max(1, round(evaluate_every * per_epoch)))


def checked_data(energy: Energy, data: State, weights: Any) -> tuple[State, Array | None, int]:
    """The data as arrays, their weights with mean 1, and their number; data of weight zero are left out."""
    data = as_arrays(energy, data)
    data_space(energy).validate(data, batch=True)
    n = jax.tree.leaves(data)[0].shape[0]
    if weights is not None:
        scaled = np.asarray(as_weights(weights, n), np.float64)
        scaled = scaled / scaled.max()
        scaled = (scaled / scaled.mean()).astype(jnp.result_type(float))
        kept = scaled >= np.finfo(scaled.dtype).tiny
        n = int(kept.sum())
        if n < len(kept):
            data, scaled = jax.tree.map(lambda leaf: leaf[kept], data), scaled[kept] / scaled[kept].mean()
        weights = jax.device_put(scaled)
    if n < 2:
        raise ValueError(
            f"learning needs at least two examples{'' if weights is None else ' of weight above 0'}, but got {n}"
        )
    return data, weights, n


def checked_validation(
    energy: Energy, validation: State | None, route: Route | None, key: PRNGKeyArray
) -> tuple[State | None, Route | None]:
    """The validation data as arrays, and the route for log Z. Raises ValueError where they are invalid."""
    if validation is None:
        return None, None
    validation = as_arrays(energy, validation)
    data_space(energy).validate(validation, batch=True)
    if jax.tree.leaves(validation)[0].shape[0] == 0:
        raise ValueError("the validation data have no rows: pass at least one example, or leave validation out")
    route = choose(energy).route if route is None else route
    route.require(energy, key)
    return validation, route
