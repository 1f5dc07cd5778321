"""Score matching, which fits the gradient of log p in x without Z: exact, along random slices, and by denoising."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.numerics import check_whole_number, hangs_on
from lnz._core.objective import Objective
from lnz._core.spaces import Real
from lnz.kernels._local import float_type

_DIRECTIONS = 16  # of the Hessian's trace, computed at once


@dataclasses.dataclass(frozen=True)
class ScoreMatching(Objective):
    """½ |∇E(x)|² - tr ∇²E(x): the Fisher divergence ½ E_data |∇ log p_θ - ∇ log p_data|², up to a constant, in 1 / (units of x)².

    The trace needs a product with the Hessian for every entry of x, which is affordable for some dozens of entries. Consistent. For `Real`
    states and an energy with two derivatives: a network of ReLUs has no curvature, so that its part of the trace is lost.

    It is insensitive to the weights of modes without data between them.

    Source: Hyvärinen 2005, "Estimation of non-normalized statistical models by score matching".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> float(lnz.learning.ScoreMatching().loss(lnz.Gaussian([0.0, 0.0], [1.0, 2.0]), jnp.asarray([1.0, 1.0])))  # (1 + 4)/2 - 3
        -0.5
    """

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        slope, curvature = jax.linearize(slope_of(energy), jnp.asarray(state))
        n = slope.size

        def diagonal(place: Array) -> Array:
            one = jnp.zeros((n,), slope.dtype).at[place].set(1)
            return curvature(one.reshape(slope.shape)).reshape(-1)[place]

        trace = jnp.sum(jax.lax.map(diagonal, jnp.arange(n, dtype=jnp.int32), batch_size=min(n, _DIRECTIONS)))
        return 0.5 * jnp.sum(jnp.square(slope)) - trace

    def unsupported_reason(self, energy: Any) -> str | None:
        return slope_refusal(energy) or curvature_refusal(energy)


@dataclasses.dataclass(frozen=True)
class SlicedScoreMatching(Objective):
    """½ |∇E(x)|² - vᵀ ∇²E(x) v along random directions v ~ N(0, I): score matching with an unbiased estimate of the trace.

    It needs one product with the Hessian per slice, whatever the number of entries. The expectation over v of the first term is exact (the
    paper's variant of reduced variance). Consistent; for the same states and energies as `ScoreMatching`.

    Attributes:
        slices: directions per example and update.

    Source: Song, Garg, Shi & Ermon 2019, "Sliced score matching: a scalable approach to density and score estimation".
    """

    slices: int = 1

    def __post_init__(self) -> None:
        check_whole_number("slices", self.slices)

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        slope, curvature = jax.linearize(slope_of(energy), jnp.asarray(state))
        v = jax.random.normal(required(key, self), (self.slices, *slope.shape), slope.dtype)
        along = jax.vmap(lambda v: jnp.sum(v * curvature(v)))(v)
        return 0.5 * jnp.sum(jnp.square(slope)) - jnp.mean(along)

    def unsupported_reason(self, energy: Any) -> str | None:
        return slope_refusal(energy) or curvature_refusal(energy)


@dataclasses.dataclass(frozen=True)
class DenoisingScoreMatching(Objective):
    """½ |∇E(x + σ ε) - ε / σ|² with ε ~ N(0, I), in 1 / (units of x)²: score matching of the data's distribution convolved with noise.

    **The model becomes that of the noisy data**: for data from N(μ, Σ), a Gaussian's estimate is N(μ, Σ + σ² I), however many data there are.
    Small σ increases the variance, which grows as 1 / σ². It needs only one derivative in x, so any differentiable network is supported. For
    `Real` states.

    Attributes:
        noise: σ, in the units of x.

    Source: Vincent 2011, "A connection between score matching and denoising autoencoders".
    """

    noise: float

    def __post_init__(self) -> None:
        above_zero("noise", self.noise)

    def loss(self, energy: Any, state: Any, /, *, key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        x = jnp.asarray(state)
        epsilon = jax.random.normal(required(key, self), x.shape, x.dtype)
        slope = slope_of(energy)(x + self.noise * epsilon)
        return 0.5 * jnp.sum(jnp.square(slope - epsilon / self.noise))

    def unsupported_reason(self, energy: Any) -> str | None:
        return slope_refusal(energy)


def slope_of(energy: Any) -> Any:
    """∇E(x), of the observed states."""
    return jax.grad(lambda x: free_energy_of(energy)(x).astype(x.dtype))


def slope_refusal(energy: Any) -> str | None:
    """Why the energy has no score on all of R^n, as a sentence, or None."""
    space = observed_space(energy)
    if not isinstance(space, Real):
        return f"score matching needs a Real space, where p vanishes at infinity, not {space}"
    if hangs_on(slope_of(energy), jnp.ones(space.shape, float_type(energy)), or_constants=True):
        return None
    return f"the gradient of this {type(energy).__name__} in x is zero everywhere: it rounds, compares or indexes by x"


def curvature_refusal(energy: Any) -> str | None:
    """Why the energy has no second derivative in x, as a sentence, or None."""
    x = jnp.ones(observed_space(energy).shape, float_type(energy))
    if hangs_on(lambda v: jax.jvp(slope_of(energy), (x,), (v,))[1], x):
        return None
    return (
        f"the second derivative of this {type(energy).__name__} in x is zero everywhere (linear, or a network of ReLUs): use a smooth "
        "activation, or lnz.learning.DenoisingScoreMatching"
    )


def required(key: PRNGKeyArray | None, objective: Any) -> PRNGKeyArray:
    """The key. Raises ValueError where there is none."""
    if key is None:
        raise ValueError(f"{type(objective).__name__} draws random numbers: pass a random key")
    return key


def above_zero(name: str, x: Any) -> None:
    """Raise ValueError unless x is a finite number above 0."""
    if not isinstance(x, int | float | np.floating) or isinstance(x, bool) or not 0 < x < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, but is {x!r}")
