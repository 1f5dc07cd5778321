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
from lnz.routes._exact.numpy_callback import orders_only, undifferentiated
from lnz.routes._exact.structural import Structured

_TRACED = "are traced, so that it is unknown whether they are equal: name route=lnz.routes.CompleteGraph() if they are"


@dataclasses.dataclass(frozen=True)
class CompleteGraph(Structured):
    """Exact log Z of a model on the complete graph whose n (n - 1) / 2 couplings are all equal: Curie-Weiss, mean-field Potts.

    The energy of Ising spins is a function of their sum, and the sum of exp(Σ h_i s_i) over the states with k spins up is the coefficient of x^k in
    Π_i (e^{h_i} x + e^{-h_i}), whatever the fields:

        Z = Σ_k c_k exp(½ J ((2k - n)² - n)).

    That takes n² operations, and n where the fields are equal (binomial coefficients). Potts states are counted colour by colour, where all sites
    have the same fields: Z = n! Σ Π_a exp(½ J n_a (n_a - 1) + h_a n_a) / n_a!, by q - 1 convolutions of n² operations. All terms are positive,
    and are added up as logarithms.

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
        n = len(fields)
        if isinstance(energy, Potts):
            value, colours = _potts_log_z(coupling, fields[0], n), fields.shape[1]
        else:
            value, colours = _ising_log_z(coupling, fields), 2
        counts = f"{n + 1:,} sums of {n:,} spins" if isinstance(energy, Ising) else f"{colours} colours on {n:,} sites"
        size = 1 + jnp.abs(value) + 0.5 * n * n * jnp.abs(coupling) + jnp.sum(jnp.abs(fields)) + math.lgamma(n + 1)
        rounding = (8 + math.sqrt(n)) * jnp.finfo(value.dtype).eps * size
        return exact(value, rounding=rounding, route=f"counting of {counts}")

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂E]: ½ E[s_i s_j], or ½ P(x_i = x_j), for every entry of the matrix, and E[φ(x_i)] for the fields."""
        means = _potts_means if isinstance(energy, Potts) else _ising_means
        pairs, sites = undifferentiated(lambda *p: means(*p), orders_only(self))(*_parameters(energy))
        pairs = jnp.where(_diagonal(len(sites)), jnp.zeros((), pairs.dtype), 0.5 * pairs)
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


def _sums(n: int, dtype: Any) -> Array:
    """The sum of n spins of which k = 0 … n are up."""
    return jnp.asarray(2.0 * np.arange(n + 1) - n, dtype)


def _equal_fields(coupling: Array, field: Array, n: int) -> Array:
    """The log-weight of k = 0 … n spins up in one field."""
    sums, log_factorials = _sums(n, field.dtype), _log_factorials(n)
    ways = jnp.asarray(log_factorials[n] - log_factorials - log_factorials[::-1], field.dtype)
    return ways + field * sums + 0.5 * coupling * (sums**2 - n)


def _any_fields(coupling: Array, fields: Array) -> Array:
    """The log-weight of k = 0 … n spins up, site after site."""
    n = len(fields)
    sums = _sums(n, fields.dtype)

    def add(ways: Array, field: Array) -> tuple[Array, None]:
        up = jnp.concatenate([jnp.full((1,), -jnp.inf, ways.dtype), ways[:-1]])
        return log_sum_exp(jnp.stack([up + field, ways - field]), 0), None

    none = jnp.where(jnp.arange(n + 1) == 0, jnp.zeros((), fields.dtype), -jnp.inf)
    ways, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), none, fields)
    return ways + 0.5 * coupling * (sums**2 - n)


def _all_same(fields: Array) -> Array:
    return jnp.all(fields == fields[:1])


def _ising_log_z(coupling: Array, fields: Array) -> Array:
    n = len(fields)
    first = fields[0] if n else jnp.zeros((), fields.dtype)
    return jax.lax.cond(
        _all_same(fields),
        lambda: log_sum_exp(_equal_fields(coupling, first, n)),
        lambda: log_sum_exp(_any_fields(coupling, fields)),
    )


def _ising_means(coupling: Array, fields: Array) -> tuple[Array, Array]:
    """E[s_i s_j] (n, n) and E[s_i] (n,)."""
    n = len(fields)

    def same() -> tuple[Array, Array]:
        weights = jax.nn.softmax(_equal_fields(coupling, fields[0], n))
        sums = _sums(n, fields.dtype)
        pair = jnp.sum(weights * (sums**2 - n)) / max(n * (n - 1), 1)
        return jnp.full((n, n), pair), jnp.full((n,), jnp.sum(weights * sums) / n)

    def different() -> tuple[Array, Array]:
        slope = jax.grad(lambda h: log_sum_exp(_any_fields(coupling, h)))
        mean, with_sum = jax.jvp(slope, (fields,), (jnp.ones_like(fields),))
        with_sum = with_sum + mean * jnp.sum(mean)  # E[s_i Σ_j s_j]
        return _pair_means(fields, mean, with_sum), mean

    return jax.lax.cond(_all_same(fields), same, different) if n else (jnp.zeros((0, 0), fields.dtype), fields)


def _pair_means(fields: Array, mean: Array, with_sum: Array) -> Array:
    """E[s_i s_j] from the fields, E[s_i] and E[s_i Σ_j s_j]: (n, n), with an undefined diagonal."""
    apart = fields[:, None] - fields[None]
    close = jnp.abs(apart) < 1e-6 if fields.dtype == jnp.float64 else jnp.abs(apart) < 1e-2
    pairs = jnp.where(close, 0, 1 - (mean[:, None] - mean[None]) / jnp.tanh(jnp.where(close, 1, apart)))
    # Sites in nearly equal fields: the mean over those of each site, corrected to first order for its own field.
    others = jnp.maximum(jnp.sum(close, 1) - 1, 1).astype(mean.dtype)
    near = (with_sum - 1 - jnp.sum(pairs, 1)) / others
    middle = ((close.astype(mean.dtype) @ near) - near) / others
    return jnp.where(close, near[:, None] + near[None] - 0.5 * (middle[:, None] + middle[None]), pairs)


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
