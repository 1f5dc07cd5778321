"""The log-likelihood of data under a model, with separate errors of log Z and of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import data_energy_of, data_space, free_energy_of, observed_space
from lnz._core.energy import ModelLike, as_energy
from lnz._core.estimate import Estimate, Guarantee
from lnz._core.given import given_array
from lnz._core.printing import decimals, html_table
from lnz._core.route import Route
from lnz._core.spaces import Binary, Product, Space, Spin, State
from lnz._partition import log_partition
from lnz.learning._gradients import as_arrays, cast
from lnz.learning._loop import renamed
from lnz.learning._positive import posterior_energy, posterior_unsupported

_HIDDEN = 0x68696464  # folded into the key for the hidden units
_FEW = 64  # rows of a block where there are not more


class LogLikelihood(eqx.Module):
    """Mean log p_θ(v) of some data, in nats per example.

    Attributes:
        value: mean_i [-F(v_i)] - log Ẑ.
        standard_error: standard error from log Z, shared by all examples.
        lower: lower bound, from the upper bound on log Z.
        upper: upper bound, from the lower bound on log Z.
        data_standard_error: standard error of the mean over the data as a sample, without the error of log Z.
        log_z: the estimate of log Z.
        n: the number of examples.
        is_bound: whether the value used for every example's -F is a lower bound on it (a deep Boltzmann machine's, by mean field or annealing).
            Then `value` is a lower bound, too, up to the error of log Z, and `upper` is infinite.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    data_standard_error: float
    log_z: Estimate
    n: int
    is_bound: bool = False

    @property
    def guarantee(self) -> Guarantee:
        """The guarantee of log Z."""
        return self.log_z.guarantee

    @property
    def is_limit(self) -> bool:
        """The name of `is_bound` in version 0.1."""
        return renamed("LogLikelihood.is_limit", self.is_bound, "LogLikelihood.is_bound", None)

    def _repr_html_(self) -> str:
        digits = max(2, decimals(self.standard_error)) if self.standard_error > 0 else 4
        rows = {
            "nats per example": f"{'at least ' if self.is_bound else ''}{self.value:.{digits}f}",
            "from the error of log Z": f"between {self.lower:.{digits}f} and {self.upper:.{digits}f} ({self.guarantee})",
            "data's own standard error": f"{self.data_standard_error:.2g}",
            "examples": f"{self.n:,}",
            "log Z": str(self.log_z),
        }
        return html_table("log-likelihood", rows)

    def __str__(self) -> str:
        digits = max(2, decimals(self.standard_error)) if self.standard_error > 0 else 4
        relation = "at least" if self.is_bound else "="
        text = (
            f"log-likelihood {relation} {self.value:.{digits}f} nats per example over {self.n:,} examples "
            f"(data's own standard error {self.data_standard_error:.2g})"
        )
        if self.guarantee == "exact":
            return f"{text}, {'with exact log Z' if self.is_bound else 'exact'}, by {self.log_z.route}"
        if self.is_bound:
            return (
                f"{text}; at least {self.lower:.{digits}f} with the error of log Z ({self.log_z.confidence * 100:g} % confidence, {self.guarantee}), "
                f"by {self.log_z.route}"
            )
        return (
            f"{text}, between {self.lower:.{digits}f} and {self.upper:.{digits}f} from the error of log Z ({self.guarantee}), "
            f"by {self.log_z.route}"
        )


def log_likelihood(
    energy: ModelLike,
    data: State,
    *,
    route: Route | None = None,
    key: PRNGKeyArray | None = None,
    log_z: Estimate | None = None,
    hidden: Route | None = None,
) -> LogLikelihood:
    """Mean_i log p_θ(v_i) = mean_i [-F_θ(v_i)] - log Z(θ), in nats per example, with separate errors of log Z and of the data.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        data: observed states (n, *shape).
        route: for log Z; by default `lnz.choose(energy)` picks one.
        key: for a route that draws samples.
        log_z: a known estimate of log Z, instead of a route.
        hidden: for a deep Boltzmann machine with at least two hidden layers: how the hidden units are summed out for every example. By default
            mean field, a variational bound; `Enumeration()` is exact, and annealing is unbiased for exp(-F), so that its logarithm is low
            on average.

    Raises:
        ValueError: for data outside the observed space, or if the likelihood is impossible: Σ p > 1 over distinct discrete data, a proof
            that log Ẑ is too small.
    """
    energy = as_energy(energy)
    data = as_arrays(energy, data)
    data_space(energy).validate(data, batch=True)
    n = jax.tree.leaves(data)[0].shape[0]
    if n == 0:
        raise ValueError("the likelihood of no data is not defined: the data have no rows")
    if hidden is not None:
        _check_hidden(energy, hidden, key)
    log_z = log_partition(energy, route=route, key=key) if log_z is None else log_z
    negative = -data_energies(energy, data, hidden=hidden, key=key)
    bad = np.isnan(negative) | (negative == math.inf)
    if bad.any():
        raise ValueError(f"the energy of example {int(np.argmax(bad))} is NaN or -inf: check the parameters")
    if not math.isfinite(log_z.value):
        raise ValueError(f"log Z is {float(log_z.value)}: no likelihood can be measured with it. Check the parameters.")
    if data_space(energy).discrete:
        _check_possible(data_space(energy), data, negative, log_z)
    mean = float(negative.mean())
    is_bound = data_space(energy) != observed_space(energy) and (hidden is None or hidden.random)
    return LogLikelihood(
        value=mean - float(log_z.value),
        standard_error=float(log_z.standard_error),
        lower=mean - float(log_z.upper),
        upper=math.inf if is_bound else mean - float(log_z.lower),
        data_standard_error=float(negative.std(ddof=1) / math.sqrt(n)) if n > 1 and math.isfinite(mean) else math.inf,
        log_z=log_z,
        n=n,
        is_bound=is_bound,
    )


def free_energies(energy: Any, data: State, *, block: int = 512) -> np.ndarray:
    """F_θ(v_i) of every observed state, in nats, in blocks of bounded memory: float64, shape (n,)."""
    return _in_blocks(lambda batch, first: _free_energies(energy, batch), data, block)


def data_energies(
    energy: Any, data: State, *, hidden: Route | None = None, key: PRNGKeyArray | None = None, block: int | None = None
) -> np.ndarray:
    """-log Σ exp(-E) over all variables outside the data, in nats, in blocks: float64, shape (n,). See `hidden` of `log_likelihood`."""
    if data_space(energy) == observed_space(energy):
        return free_energies(energy, data, block=block or 512)
    if hidden is None:
        return _in_blocks(lambda batch, first: _data_energies(energy, batch), data, block or 512)
    key = None if key is None else jax.random.fold_in(key, _HIDDEN)

    def of(batch: State, first: int) -> Any:
        return _hidden_energies(energy, hidden, batch, None if key is None else jax.random.fold_in(key, first))

    return _in_blocks(of, data, min(block or 32, jax.tree.leaves(data)[0].shape[0]))


def _in_blocks(function: Callable[[State, int], Any], data: State, block: int) -> np.ndarray:
    """The values of a function of batches of states, each of `block` rows, or of a few where there are few: two compiled programs."""
    arrays = tuple(map(given_array, data)) if isinstance(data, tuple) else given_array(data)
    arrays = jax.tree.map(np.asarray, arrays)
    n = jax.tree.leaves(arrays)[0].shape[0]
    size = block if n > _FEW else min(block, _FEW)
    parts = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], arrays)
        parts.append(np.asarray(function(batch, start), np.float64)[: min(size, n - start)])
    return np.concatenate(parts)


@eqx.filter_jit
def _free_energies(energy: Any, batch: State) -> Any:
    return jax.vmap(free_energy_of(energy))(cast(energy, batch))


@eqx.filter_jit
def _data_energies(energy: Any, batch: State) -> Any:
    return jax.vmap(data_energy_of(energy))(cast(energy, batch))


@eqx.filter_jit
def _hidden_energies(energy: Any, route: Route, batch: Any, key: PRNGKeyArray | None) -> Any:
    v = cast(energy, batch)
    if key is None:
        return jax.vmap(lambda row: posterior_energy(energy, row, route, None))(v)
    keys = jax.random.split(key, len(v))
    return jax.vmap(lambda row, key: posterior_energy(energy, row, route, key))(v, keys)


def _check_hidden(energy: Any, hidden: Route, key: PRNGKeyArray | None) -> None:
    """Raise for a route that does not support the hidden units, or where there are none to sum out."""
    if not isinstance(hidden, Route):
        raise TypeError(f"hidden must be a route such as lnz.routes.Enumeration(), but is {hidden!r}")
    if data_space(energy) == observed_space(energy):
        raise ValueError(f"the hidden units of this {type(energy).__name__} have a closed sum: leave out hidden")
    reason = posterior_unsupported(energy, hidden)
    if reason is not None:
        raise ValueError(f"{type(hidden).__name__} cannot sum out the hidden units: {reason}")
    if hidden.random and key is None:
        raise ValueError(f"{type(hidden).__name__} draws samples: pass key=jax.random.key(…)")


def _check_possible(space: Space, data: State, negative: np.ndarray, log_z: Estimate) -> None:
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
    """One row of small integers for every example of a discrete space: equal rows are equal examples."""
    if isinstance(space, Product):
        return np.concatenate(
            [_packed(s, part, n).astype(np.int32) for s, part in zip(space.spaces, data, strict=True)], axis=1
        )
    rows = np.asarray(data).reshape(n, -1)
    return np.packbits(rows > 0, axis=1) if isinstance(space, Binary | Spin) else rows.astype(np.int32)
