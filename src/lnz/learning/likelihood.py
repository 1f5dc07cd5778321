"""The log-likelihood of data under a model, with the error of log Z and that of the data apart."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz.energy import as_energy
from lnz.estimate import Estimate, Known, decimals
from lnz.identity import log_partition
from lnz.learning.phases import as_arrays, cast
from lnz.route import Route
from lnz.spaces import Binary, Product, Space, Spin, State


class LogLikelihood(eqx.Module):
    """Mean log p_θ(v) of some data, in nats per datum.

    Attributes:
        value: mean_i [-F(v_i)] - log Ẑ.
        standard_error: of log Z, shared by every datum.
        lower: lower limit, from the upper limit of log Z.
        upper: upper limit, from the lower limit of log Z.
        data_standard_error: of the mean over the data as a sample, apart from the error of log Z.
        log_z: the estimate of log Z.
        n: the number of data.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    data_standard_error: float
    log_z: Estimate
    n: int

    @property
    def known(self) -> Known:
        """How it is known: as log Z is."""
        return self.log_z.known

    def __str__(self) -> str:
        digits = max(2, decimals(self.standard_error)) if self.standard_error > 0 else 4
        text = (
            f"log-likelihood = {self.value:.{digits}f} nats per datum over {self.n:,} data "
            f"(data's own standard error {self.data_standard_error:.2g})"
        )
        if self.known == "exact":
            return f"{text}, exact, by {self.log_z.route}"
        return f"{text}, between {self.lower:.{digits}f} and {self.upper:.{digits}f} from the error of log Z ({self.known}), by {self.log_z.route}"


def log_likelihood(
    energy: Any,
    data: State,
    *,
    route: Route | None = None,
    key: PRNGKeyArray | None = None,
    log_z: Estimate | None = None,
) -> LogLikelihood:
    """Mean_i log p_θ(v_i) = mean_i [-F_θ(v_i)] - log Z(θ), in nats per datum, with the error of log Z and of the data apart.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        data: observed states (n, *shape).
        route: for log Z; by default `lnz.choose(energy)` picks one.
        key: for a route that draws samples.
        log_z: an estimate of log Z at hand, instead of a route.

    Raises:
        ValueError: for data outside the observed space, or if the likelihood is impossible: Σ over distinct data of p > 1 for discrete
            data, a proof that log Ẑ is too small.
    """
    energy = as_energy(energy)
    data = as_arrays(energy, data)
    energy.observed.validate(data, batch=True)
    n = jax.tree.leaves(data)[0].shape[0]
    if n == 0:
        raise ValueError("the likelihood of no data is not defined: the data have no rows")
    log_z = log_partition(energy, route=route, key=key) if log_z is None else log_z
    negative = -free_energies(energy, data)
    bad = np.isnan(negative) | (negative == math.inf)
    if bad.any():
        raise ValueError(f"the energy of datum {int(np.argmax(bad))} is NaN or -inf: check the parameters")
    if not math.isfinite(log_z.value):
        raise ValueError(f"log Z is {float(log_z.value)}: no likelihood can be measured with it. Check the parameters.")
    if energy.observed.discrete:
        _refuse_impossible(energy.observed, data, negative, log_z)
    mean = float(negative.mean())
    return LogLikelihood(
        value=mean - float(log_z.value),
        standard_error=float(log_z.standard_error),
        lower=mean - float(log_z.upper),
        upper=mean - float(log_z.lower),
        data_standard_error=float(negative.std(ddof=1) / math.sqrt(n)) if n > 1 and math.isfinite(mean) else math.inf,
        log_z=log_z,
        n=n,
    )


def free_energies(energy: Any, data: State, *, block: int = 4096) -> np.ndarray:
    """F_θ(v_i) of every datum, in nats, in blocks of bounded memory: float64, shape (n,)."""
    n = jax.tree.leaves(data)[0].shape[0]
    size = min(block, n)
    parts = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        batch = jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), data)
        parts.append(np.asarray(_free_energies(energy, batch), np.float64)[: min(size, n - start)])
    return np.concatenate(parts)


@eqx.filter_jit
def _free_energies(energy: Any, batch: State) -> Any:
    return jax.vmap(energy.free_energy)(cast(energy, batch))


def _refuse_impossible(space: Space, data: State, negative: np.ndarray, log_z: Estimate) -> None:
    """Raise ValueError if the distinct data have a total probability above 1, beyond rounding and the error of log Z."""
    _, first = np.unique(_packed(space, data, len(negative)), axis=0, return_index=True)
    top, error = negative[first].max(), float(log_z.standard_error)
    if top == -math.inf or not math.isfinite(error):
        return
    total = top + math.log(np.exp(negative[first] - top).sum()) - float(log_z.value)
    if total > 1e-4 + 1e-6 * abs(top) + 5 * error:
        raise ValueError(
            f"an impossible likelihood: the {len(first):,} distinct data have total probability e^{total:.3g} > 1, so log Z = "
            f"{float(log_z.value):.4f} is too small by at least {total:.3g} nats. Use more temperatures or chains, or an exact route."
        )


def _packed(space: Space, data: State, n: int) -> np.ndarray:
    """One row of small integers for every datum of a discrete space: equal rows are equal data."""
    if isinstance(space, Product):
        return np.concatenate(
            [_packed(s, part, n).astype(np.int32) for s, part in zip(space.spaces, data, strict=True)], axis=1
        )
    rows = np.asarray(data).reshape(n, -1)
    return np.packbits(rows > 0, axis=1) if isinstance(space, Binary | Spin) else rows.astype(np.int32)
