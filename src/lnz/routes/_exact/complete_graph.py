"""log Z of Ising and Potts models on the complete graph with one coupling for all pairs, by counting states of equal energy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import is_traced
from lnz._core.numerics import log_sum_exp
from lnz._models.pairwise import DenseCouplings, Ising, Potts
from lnz.routes._exact.numpy_callback import on_host, orders_only, undifferentiated
from lnz.routes._exact.structural import Structured

_TRACED = "are traced, so that it is unknown whether they are equal: name route=lnz.routes.CompleteGraph() if they are"


@dataclasses.dataclass(frozen=True)
class CompleteGraph(Structured):
    """Exact log Z of a model on the complete graph whose n (n - 1) / 2 couplings are all equal: Curie-Weiss, mean-field Potts.

    The energy of Ising spins is a function of their sum, and the sum of exp(Σ h_i s_i) over the states with k spins up is the coefficient of x^k in
    Π_i (e^{h_i} x + e^{-h_i}), whatever the fields:

        Z = Σ_k c_k exp(½ J ((2k - n)² - n)).

    That takes n² operations, and n where the fields are equal (binomial coefficients), in float64 on the host. Potts states are counted
    colour by colour, where all sites have the same fields: Z = n! Σ Π_a exp(½ J n_a (n_a - 1) + h_a n_a) / n_a!, by q - 1 convolutions of
    n² operations. All terms are positive, and are added up as logarithms.

    The gradient is that of every single coupling and field, although they are equal. Sites with equal fields share it; for others

        E[s_i s_j] = 1 - (E[s_i] - E[s_j]) coth(h_i - h_j),

    since an exchange of two unequal spins leaves their sum unchanged. Where fields differ by less than 10^-6 that quotient loses its digits, and
    Σ_j E[s_i s_j] = E[s_i Σ_j s_j] is used. Second derivatives are not supported.

    Attributes:
        max_sites: the maximum number of sites with unequal fields, or of a Potts model.

    Raises:
        ValueError: for other models, in words. Traced values are checked when the sum runs, which then fails; `choose` leaves such models to
            other routes.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> n = 300
        >>> magnet = lnz.Ising(1.2 / n * (jnp.ones((n, n)) - jnp.eye(n)), 0.1)  # Curie-Weiss
        >>> print(round(float(lnz.log_partition(magnet, route=lnz.routes.CompleteGraph()).value), 2))
        236.61
    """

    max_sites: int = 5000

    def __post_init__(self) -> None:
        if not self.max_sites >= 0:
            raise ValueError(f"max_sites must be a number of at least 0, but is {self.max_sites!r}")

    def misfit(self, energy: Energy) -> str | None:
        if not isinstance(energy, Ising | Potts):
            return f"{type(energy).__name__} is not an Ising or Potts model"
        if not isinstance(energy.couplings, DenseCouplings):
            return "its couplings are not a dense matrix"
        if energy.couplings.strength.ndim > 2:
            return "its couplings are tables"
        strength, fields = energy.couplings.strength, energy.fields
        n, potts = len(fields), isinstance(energy, Potts)
        if not is_traced(strength) and not _all_equal(np.asarray(strength)):
            return "its couplings are not all equal"
        unequal = not is_traced(fields) and bool((np.asarray(fields) != np.asarray(fields)[:1]).any())
        if potts and unequal:
            return "its sites have different fields"
        if n > self.max_sites and (potts or unequal):
            return f"its {n:,} sites are more than max_sites, {self.max_sites:,}"
        return None

    def unseen(self, energy: Energy) -> str | None:
        if isinstance(energy, Ising | Potts) and is_traced(energy.couplings.strength):
            return f"its couplings {_TRACED}"
        return f"its fields {_TRACED}" if isinstance(energy, Potts) and is_traced(energy.fields) else None

    def cost(self, energy: Energy) -> float:
        return 32.0

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        coupling, fields = _parameters(energy)
        n, dtype = len(fields), jnp.result_type(float)
        size = 0.5 * n * n * jnp.abs(coupling) + jnp.sum(jnp.abs(fields)) + math.lgamma(n + 1)
        if isinstance(energy, Potts):
            value, eps = _potts_log_z(coupling, fields[0], n), float(jnp.finfo(fields.dtype).eps)
            counts = f"{fields.shape[1]} colours on {n:,} sites"
        else:
            shape = jax.ShapeDtypeStruct((), dtype)
            value = on_host(
                lambda *p: _ising_log_z(*map(np.asarray, p)).astype(dtype), shape, coupling, fields, route=self
            )
            eps, counts = np.finfo(float).eps, f"{n + 1:,} sums of {n:,} spins"
        rounding = (8 + math.sqrt(n)) * eps * (1 + jnp.abs(value) + size.astype(dtype))
        rounding = rounding + 8 * jnp.finfo(dtype).eps * (1 + jnp.abs(value))
        return exact(value, rounding=jax.lax.stop_gradient(rounding), route=f"counting of {counts}")

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂E]: ½ E[s_i s_j], or ½ P(x_i = x_j), for every entry of the matrix, and E[φ(x_i)] for the fields."""
        coupling, fields = _parameters(energy)
        n = len(fields)
        if isinstance(energy, Potts):
            pairs, sites = undifferentiated(lambda *p: _potts_means(*p), orders_only(self))(coupling, fields)
        else:
            shapes = tuple(jax.ShapeDtypeStruct(shape, fields.dtype) for shape in ((n, n), (n,)))
            pairs, sites = on_host(
                lambda *p: tuple(x.astype(fields.dtype) for x in _ising_means(*map(np.asarray, p))),
                shapes,
                coupling,
                fields,
                route=self,
            )
        pairs = jnp.where(_diagonal(n), jnp.zeros((), pairs.dtype), 0.5 * pairs)
        parameters: Any = eqx.filter(energy, eqx.is_inexact_array)
        new = pairs.astype(parameters.couplings.strength.dtype), sites.astype(parameters.fields.dtype)
        return eqx.tree_at(lambda e: (e.couplings.strength, e.fields), parameters, new)


def _all_equal(strength: np.ndarray) -> bool:
    n = len(strength)
    if n < 2:
        return True
    number = np.arange(n)
    return all(((strength[i] == strength[0, 1]) | (number == i)).all() for i in range(n))


def _diagonal(n: int) -> Array:
    return jnp.arange(n)[:, None] == jnp.arange(n)[None]


def _parameters(energy: Any) -> tuple[Array, Array]:
    """The one coupling and all fields in the widest dtype; unequal ones raise an error as the sum runs."""
    strength, fields = energy.couplings.strength, widen(energy.fields)
    n = len(fields)
    coupling = strength[0, 1] if n > 1 else jnp.zeros((), strength.dtype)
    words = f"CompleteGraph does not support {type(energy).__name__}: its "
    unequal = jnp.any((strength != coupling) & ~_diagonal(n))
    coupling = eqx.error_if(widen(coupling), unequal, words + "couplings are not all equal")
    if isinstance(energy, Potts):
        fields = eqx.error_if(fields, jnp.any(fields != fields[:1]), words + "sites have different fields")
    return coupling, fields


def _log_factorials(n: int) -> np.ndarray:
    return np.array([math.lgamma(k + 1) for k in range(n + 1)])


def _log_weights(coupling: Any, n: int) -> np.ndarray:
    """½ J ((2k - n)² - n) for k = 0 … n spins up, in float64."""
    return 0.5 * float(coupling) * ((2.0 * np.arange(n + 1) - n) ** 2 - n)


def _equal_fields(coupling: Any, field: float, n: int) -> np.ndarray:
    """The log-weight of k = 0 … n spins up in one field."""
    log_factorials = _log_factorials(n)
    ways = log_factorials[n] - log_factorials - log_factorials[::-1]
    return ways + field * (2.0 * np.arange(n + 1) - n) + _log_weights(coupling, n)


def _ising_log_z(coupling: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """log Z, on the host."""
    fields = np.asarray(fields, np.float64)
    if len(fields) and (fields == fields[0]).all():
        return np.logaddexp.reduce(_equal_fields(coupling, fields[0], len(fields)))
    ways = _log_weights(coupling, len(fields))
    for field in fields:
        ways = np.logaddexp(ways[1:] + field, ways[:-1] - field)
    return ways[0]


def _ising_means(coupling: np.ndarray, fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[s_i s_j] (n, n) and E[s_i] (n,), on the host."""
    fields = np.asarray(fields, np.float64)
    n = len(fields)
    sums = 2.0 * np.arange(n + 1) - n
    if n and (fields == fields[0]).all():
        logs = _equal_fields(coupling, fields[0], n)
        weights = np.exp(logs - np.logaddexp.reduce(logs))
        pair = weights @ (sums**2 - n) / max(n * (n - 1), 1)
        return np.full((n, n), pair), np.full(n, weights @ sums / n)
    # The spins one by one are a Markov chain, whose state is the number of those that are up: the chance that the next one is up, given that
    # number, and E[Σ_j s_j], given the number after it. All terms are positive, so that none of them loses digits.
    ways, total, steps = _log_weights(coupling, n), sums, []
    for field in fields[::-1]:
        up, down = ways[1:] + field, ways[:-1] - field
        ways = np.logaddexp(up, down)
        chance = np.exp(up - ways)
        steps.append((chance, total))
        total = chance * total[1:] + (1 - chance) * total[:-1]
    mean, with_sum, reached = np.empty(n), np.empty(n), np.ones(1)
    for i, (chance, total) in enumerate(reversed(steps)):
        up, down = reached * chance, reached * (1 - chance)
        mean[i], with_sum[i] = np.sum(up - down), up @ total[1:] - down @ total[:-1]
        reached = np.append(down, 0) + np.append(0, up)
    return _pair_means(fields, mean, with_sum), mean


def _pair_means(fields: np.ndarray, mean: np.ndarray, with_sum: np.ndarray) -> np.ndarray:
    """E[s_i s_j] from the fields, E[s_i] and E[s_i Σ_j s_j]: (n, n), with an undefined diagonal."""
    apart = fields[:, None] - fields[None]
    close = np.abs(apart) < 1e-6
    pairs = np.where(close, 0, 1 - (mean[:, None] - mean[None]) / np.tanh(np.where(close, 1, apart)))
    # Sites in nearly equal fields: the mean over those of each site, corrected to first order for its own field.
    others = np.maximum(close.sum(1) - 1, 1)
    near = (with_sum - 1 - pairs.sum(1)) / others
    middle = (close @ near - near) / others
    return np.where(close, near[:, None] + near[None] - 0.5 * (middle[:, None] + middle[None]), pairs)


def _potts_log_z(coupling: Array, fields: Array, n: int) -> Array:
    k = jnp.arange(n + 1, dtype=fields.dtype)
    log_factorials = _log_factorials(n)
    same = 0.5 * coupling * k * (k - 1) - jnp.asarray(log_factorials, fields.dtype)

    def add(ways: Array, field: Array) -> tuple[Array, None]:
        return _convolved(ways, same + field * k), None

    ways, _ = jax.lax.scan(add, same + fields[0] * k, fields[1:-1])
    if len(fields) == 1:
        return ways[n] + log_factorials[n]
    return log_sum_exp(ways + (same + fields[-1] * k)[::-1]) + log_factorials[n]


def _convolved(ways: Array, colour: Array) -> Array:
    """log Σ_k e^{ways(s - k) + colour(k)} for s = 0 … n: the log number of ways with one more colour."""
    numbers = jnp.arange(len(ways))

    def total(s: Array) -> Array:
        rest = jnp.where(numbers <= s, jnp.roll(ways[::-1], s + 1), -jnp.inf)  # ways(s - k)
        return log_sum_exp(colour + rest)

    return jax.lax.map(jax.checkpoint(total, prevent_cse=False), numbers)


def _potts_means(coupling: Array, fields: Array) -> tuple[Array, Array]:
    """P(x_i = x_j) (n, n) and P(x_i = a) (n, q)."""
    n = len(fields)
    slopes = jax.grad(lambda j, h: _potts_log_z(j, h, n), argnums=(0, 1))(coupling, fields[0])
    return jnp.full((n, n), 2 * slopes[0] / max(n * (n - 1), 1)), jnp.broadcast_to(slopes[1][None] / n, fields.shape)
