"""A log likelihood with a prior: NumPyro's distributions, an energy with exact samples, or a transform of the unit cube."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Normalised, require_normalised
from lnz._core.energy import Energy
from lnz._core.packages import package
from lnz._core.spaces import Box, Real
from lnz._evidence.numpyro_posterior import NumPyroPosterior, numpyro_posterior
from lnz._evidence.posterior import Part, Posterior
from lnz._models.independent import Uniform

_LOG_2PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class _Joint:
    """A NumPyro model of a prior and a log likelihood."""

    log_likelihood: Callable[..., Any]
    single: bool

    def __call__(self, prior: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        import numpyro

        values = {name: numpyro.sample(name, distribution) for name, distribution in prior.items()}
        numpyro.factor("log_likelihood", self.log_likelihood(values["x"] if self.single else values, *args, **kwargs))


class LikelihoodPosterior(Posterior):
    """A log likelihood of one state of a prior, whose unconstrained vector is `z`. A subclass says how."""

    args: Any
    kwargs: Any
    log_likelihood: Callable[..., Any] = eqx.field(static=True)

    def at(self, x: Any, z: Array) -> Array:
        """-log L(x) - log p(z)."""
        value = jnp.asarray(self.log_likelihood(x, *self.args, **self.kwargs))
        if value.shape != ():
            raise ValueError(
                f"the log likelihood of one state must be one number, but has shape {value.shape}: sum over the data"
            )
        return self.prior_energy(z) - value.astype(z.dtype)


class TiltedPosterior(LikelihoodPosterior):
    """The prior is an energy on real arrays with a closed form and exact samples."""

    prior: Normalised

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part("x", self.prior.space.shape),)

    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        return {"x": z.reshape(self.prior.space.shape)}

    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        return jnp.ravel(values["x"])

    def __call__(self, x: Float[Array, " d"]) -> Array:
        return self.at(x.reshape(self.prior.space.shape), x)

    def prior_energy(self, z: Float[Array, " d"]) -> Array:
        return (self.prior(z.reshape(self.prior.space.shape)) + self.prior.log_normaliser()).astype(z.dtype)

    def prior_draw(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        return jnp.ravel(self.prior.sample(key, 1))


class CubePosterior(LikelihoodPosterior):
    """The prior is a transform of the unit cube; its coordinates are the images of standard normal variables."""

    transform: Callable[[Array], Any] = eqx.field(static=True)
    dimensions: int = eqx.field(static=True)

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part("x", (self.dimensions,)),)

    def _placed(self, z: Array) -> Any:
        ends = jnp.finfo(z.dtype)
        return self.transform(jnp.clip(jax.scipy.stats.norm.cdf(z), ends.tiny, 1 - ends.epsneg))

    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        placed = self._placed(z)
        return placed if isinstance(placed, dict) else {"x": jnp.asarray(placed)}

    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        raise ValueError("a prior transform has no inverse, so draws in its own variables cannot be placed in the cube")

    def __call__(self, x: Float[Array, " d"]) -> Array:
        return self.at(self._placed(x), x)

    def prior_energy(self, z: Float[Array, " d"]) -> Array:
        return 0.5 * jnp.sum(jnp.square(z)) + 0.5 * self.dimensions * _LOG_2PI

    def prior_draw(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        return jax.random.normal(key, (self.dimensions,), jnp.result_type(float))


def posterior_of_prior(
    log_likelihood: Callable[..., Any], prior: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Posterior:
    """The posterior of a log likelihood under a NumPyro distribution, a dict of them, or an energy with exact samples.

    Raises:
        TypeError: for another kind of prior.
        ValueError: for an energy that has no samples or is on another space, a log likelihood that is not a scalar or not JAX.
    """
    if isinstance(prior, Energy):
        found: Posterior = _of_energy(log_likelihood, prior, args, kwargs)
    else:
        found = _of_distributions(log_likelihood, prior, args, kwargs)
    return _checked(found)


def posterior_of_cube(
    log_likelihood: Callable[..., Any],
    transform: Callable[[Array], Any],
    dimensions: int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Posterior:
    """The posterior of a log likelihood under a transform of the unit cube of so many dimensions.

    Raises:
        ValueError: where dimensions are missing, or for functions that are not JAX or have other shapes.
    """
    if not isinstance(dimensions, int | np.integer) or dimensions < 1:
        raise ValueError(
            f"prior_transform needs the number of dimensions of the unit cube, but dimensions={dimensions!r}: give an integer of at least 1"
        )
    return _checked(CubePosterior(args, kwargs, log_likelihood, transform, int(dimensions)))


def _of_energy(log_likelihood: Callable[..., Any], prior: Energy, args: Any, kwargs: Any) -> Posterior:
    known, space = require_normalised(prior, "the prior"), prior.space
    if isinstance(prior, Uniform) and isinstance(space, Box):
        low, high = (np.asarray(bound, float) for bound in space.limits)
        return CubePosterior(
            args, kwargs, log_likelihood, _Scaled(tuple(low.ravel()), tuple(high.ravel()), space.shape), low.size
        )
    if not isinstance(space, Real):
        raise ValueError(
            f"the prior is on {space}, but priors are energies on lnz.Real(…), or lnz.Uniform on a bounded lnz.Box"
        )
    return TiltedPosterior(args, kwargs, log_likelihood, known)


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """From the unit cube to a box."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    shape: tuple[int, ...]

    def __call__(self, u: Array) -> Array:
        low, high = jnp.asarray(self.low, u.dtype), jnp.asarray(self.high, u.dtype)
        return (low + u * (high - low)).reshape(self.shape)


def _of_distributions(log_likelihood: Callable[..., Any], prior: Any, args: Any, kwargs: Any) -> NumPyroPosterior:
    package("numpyro", "A prior that is not an lnz energy")
    from numpyro.distributions import Distribution

    single = isinstance(prior, Distribution)
    named = {"x": prior} if single else prior
    if not isinstance(named, dict) or not named or not all(isinstance(each, Distribution) for each in named.values()):
        raise TypeError(
            f"prior must be a NumPyro distribution, a dict of them by name, or an lnz energy with exact samples, but is {prior!r}"
        )
    return numpyro_posterior(_Joint(log_likelihood, single), (named, *args), kwargs)


def _checked(found: Posterior) -> Posterior:
    """The posterior, where JAX can trace its functions."""
    try:
        jax.eval_shape(found, found.space.struct)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        line = str(error).split("\n")[0]
        raise ValueError(
            f"the log likelihood or the prior transform cannot be traced by JAX: {line} Write it in jax.numpy (jax.scipy.stats.norm.ppf), without "
            "NumPy, SciPy, `if` and `while`"
        ) from error
    return found
