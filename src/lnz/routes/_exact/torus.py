"""log Z of the uniform Ising model on a torus, by Kaufman's four products."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import is_traced
from lnz._models.pairwise import Ising, LatticeCouplings
from lnz.routes._exact.kac_ward import without_fields
from lnz.routes._exact.structural import Structured


@dataclasses.dataclass(frozen=True)
class Torus(Structured):
    """Exact log Z of an Ising model on a periodic two-dimensional lattice with one coupling for all bonds and no fields.

        Z = ½ (2 sinh 2K)^{nm/2} [Π 2cosh(mγ_{2r+1}/2) + Π 2sinh(mγ_{2r+1}/2) + Π 2cosh(mγ_{2r}/2) + Π 2sinh(mγ_{2r}/2)],
        cosh γ_r = cosh 2K coth 2K - cos(πr/n),   r = 0 … n-1,

    in a form that is regular at K = 0 and at the critical coupling, differentiable by JAX any number of times with respect to K.

    Raises:
        ValueError: for anything else, in words: couplings given as more than one number, fields, a negative coupling where a length is
            odd (the four terms would cancel). Traced values are checked when the sum runs, which then fails.

    Source: Kaufman 1949, "Crystal statistics. II".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((16, 16), 0.4, periodic=True)
        >>> print(round(float(lnz.log_partition(torus, route=lnz.routes.Torus()).value), 2))
        225.23
    """

    def misfit(self, energy: Energy) -> str | None:
        reason = without_fields(energy)
        if reason is not None or not isinstance(energy, Ising):
            return reason
        couplings = energy.couplings
        if not isinstance(couplings, LatticeCouplings) or not all(couplings.closed) or len(couplings.shape) != 2:
            return "its sites are not a periodic lattice of two dimensions"
        if couplings.strength.size != 1:
            return "its couplings are given as more than one number"
        odd = any(length % 2 for length in couplings.shape)
        if odd and not is_traced(couplings.strength) and float(couplings.strength.reshape(())) < 0:
            return f"a negative coupling is frustrated on a torus of {couplings.shape[0]} x {couplings.shape[1]}"
        return None

    def unseen(self, energy: Energy) -> str | None:
        if not isinstance(energy, Ising):
            return None
        coupling, fields = energy.couplings.strength, energy.fields
        odd = any(length % 2 for length in fields.shape)
        if is_traced(fields) or (odd and is_traced(coupling)):
            return "traced values cannot be checked: name route=lnz.routes.Torus() if the fields are zero and no odd length is frustrated"
        return None

    def cost(self, energy: Energy) -> float:
        return 1.0

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        value = _log_z(energy)
        rounding = 64 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))
        return exact(value, rounding=jax.lax.stop_gradient(rounding), route="Kaufman's formula of the torus")

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        return eqx.filter_grad(_log_z)(energy)


def _log_z(energy: Any) -> Array:
    energy = widen(energy)
    shape = energy.couplings.shape
    k = energy.couplings.strength.reshape(()).astype(jnp.result_type(float))
    k = k + _flat(energy.fields).astype(k.dtype)
    k = eqx.error_if(k, (energy.fields != 0).any(), "Torus does not support Ising: its fields are not zero")
    if any(length % 2 for length in shape):
        k = eqx.error_if(
            k, k < 0, "Torus does not support Ising: a negative coupling is frustrated where a length is odd"
        )
    return kaufman(jnp.where(k < 0, -k, k), *shape)


@jax.custom_jvp
def _flat(fields: Array) -> Array:
    """Zero, and so is its slope in the fields (the mean of every spin); its curvature is unsupported."""
    return jnp.zeros((), fields.dtype)


@_flat.defjvp
def _flat_jvp(primals: Any, tangents: Any) -> Any:
    return _flat(*primals), jnp.sum(_slope(*primals) * tangents[0])


@jax.custom_jvp
def _slope(fields: Array) -> Array:
    return jnp.zeros_like(fields)


def _no_curvature(primals: Any, tangents: Any) -> Any:
    if type(tangents[0]).__name__ != "SymbolicZero":
        raise NotImplementedError(
            "Torus does not support second derivatives with respect to the fields: differentiate with respect to the coupling alone"
        )
    return _slope(*primals), jnp.zeros_like(primals[0])


_slope.defjvp(_no_curvature, symbolic_zeros=True)


def kaufman(k: Array, n: int, m: int) -> Array:
    """log Z, in nats, of n x m spins on a torus with one coupling K ≥ 0, a float scalar, in its own dtype."""
    # Above this e^{-8K} is far below rounding, and only two states matter.
    most = 0.1 * float(np.log(jnp.finfo(k.dtype).max))
    frozen = k > most
    k_safe = jnp.where(frozen, jnp.ones_like(k), k)
    (bulk_odd, plus_odd, minus_odd) = _products(k_safe, n, m, np.arange(1, 2 * n, 2))
    (bulk_even, plus_even, minus_even) = _products(k_safe, n, m, np.arange(2, 2 * n, 2))
    # r = 0, where 2cosh and 2sinh of mγ_0/2 are those of a γ_0 with a sign, times (2 sinh 2K)^{m/2}.
    bulk_even = bulk_even + m * jnp.log1p(jnp.exp(2 * k_safe))
    up, down = jnp.tanh(k_safe) ** m, jnp.exp(-2 * m * k_safe)
    even = up * (plus_even + minus_even) + down * (plus_even - minus_even)
    level = jax.lax.stop_gradient(jnp.maximum(bulk_odd, bulk_even))
    both = (plus_odd + minus_odd) * jnp.exp(bulk_odd - level) + even * jnp.exp(bulk_even - level)
    return jnp.where(frozen, 2.0 * n * m * k + np.log(2.0), level + jnp.log(both) - np.log(2.0))


def _products(k: Array, n: int, m: int, r: np.ndarray) -> tuple[Array, Array, Array]:
    """Π 2cosh(mγ_r/2) and Π 2sinh(mγ_r/2), with their share of (2 sinh 2K)^{nm/2}: the logarithm of a common factor, and the remaining factors."""
    s = jnp.sinh(2 * k)
    half = jnp.asarray(np.sin(np.pi * r / (2 * n)) ** 2, k.dtype)
    below = (1 - s) ** 2 + 2 * s * half  # sinh 2K (cosh γ - 1) without cancellation
    g = below + s + jnp.sqrt(below * (below + 2 * s))  # sinh 2K e^γ
    x = (s / g) ** m
    return 0.5 * m * jnp.log(2 * g).sum(), jnp.prod(1 + x), jnp.prod(1 - x)
