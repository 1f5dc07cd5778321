"""Distributions with a closed form, tilted by any function, such as a network: energies with a finite Z."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lnz._core.capabilities import Annealable, Normalised, observed_space, require_normalised
from lnz._core.energy import FunctionEnergy, as_energy
from lnz._core.frozen import Frozen
from lnz._core.spaces import Space, State


class Tilted(Annealable):
    """E(x) = E_0(x) + f(x): the distribution of a base, tilted by a function such as a network, p(x) ∝ p_0(x) e^-f(x).

    Z is finite wherever E_{p_0}[e^-f] is: for any f that is bounded from below, and under a Gaussian for any f that falls no faster than linearly.
    Chains and annealing start from the base, which is a constant; the float arrays of f are the parameters.

    Args:
        function: a callable as for `lnz.FunctionEnergy`: one state to one scalar.
        base: any energy with a closed form and exact samples, such as `lnz.Gaussian`, `lnz.Independent` or `lnz.Uniform`.

    Raises:
        ValueError: for a base without a closed form and samples, and the errors of `lnz.FunctionEnergy`.

    Example:
        >>> import equinox as eqx, jax, lnz
        >>> network = eqx.nn.MLP(2, "scalar", 32, 2, activation=jax.nn.silu, key=jax.random.key(0))
        >>> energy = lnz.Tilted(network, lnz.Gaussian([0.0, 0.0], [0.25, 0.25]))
        >>> round(float(lnz.log_partition(energy, route=lnz.routes.Quadrature(points=65)).value), 1)
        3.3
    """

    function: FunctionEnergy
    _base: Frozen = eqx.field(static=True)

    def __init__(self, function: Callable[..., Any], base: Any):
        base = require_normalised(as_energy(base), "the base")
        self.function = FunctionEnergy(function, observed_space(base))
        self._base = Frozen(base)

    @property
    def space(self) -> Space:
        return self.function.space

    def __call__(self, x: State) -> Array:
        tilt = self.function(x)
        return self.base()(x).astype(tilt.dtype) + tilt

    def base(self) -> Normalised:
        return jax.tree.map(jnp.asarray, self._base.value)
