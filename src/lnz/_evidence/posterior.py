"""Unnormalised posteriors as energies on a real vector, E(z) = -log p(y, z), whose Z is the evidence; and what is checked before any work."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Annealable, Normalised
from lnz._core.energy import Energy
from lnz._core.random import Keys
from lnz._core.spaces import Real, Space, State
from lnz.routes._annealing.fitted_smc import target_of

CHECKED = 1024  # draws of the prior at which a model is looked at
_SHOWN = 6  # numbers of a place in a message


class Part(NamedTuple):
    """A variable's place in the vector: its name, and the shape of its unconstrained value."""

    name: str
    shape: tuple[int, ...]


class Posterior(Annealable):
    """-log p(y, z) of an unconstrained vector z, Jacobians included, so that Z = p(y).

    Annealing begins at the prior, where that can be drawn.
    """

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The variables, in their order in the vector."""

    @abc.abstractmethod
    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        """The variables in their own space, by their names."""

    @abc.abstractmethod
    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        """The vector of the variables in their own space."""

    @property
    def latent_names(self) -> tuple[str, ...]:
        """The names of the variables that `unconstrained` needs."""
        return tuple(part.name for part in self.parts)

    def prior_draw(self, key: PRNGKeyArray) -> Float[Array, " d"] | None:
        """A draw from the prior, or None where it cannot be drawn."""
        return None

    def prior_energy(self, z: Float[Array, " d"]) -> Array:
        """-log p(z), where the prior can be drawn."""
        raise NotImplementedError

    @property
    def space(self) -> Space:
        return Real(sum(math.prod(part.shape) for part in self.parts))

    def base(self) -> Energy | None:
        drawn = jax.eval_shape(self.prior_draw, jax.random.key(0))
        return None if drawn is None else Prior(self)


class Prior(Normalised):
    """The prior of a posterior: log Z = 0, and independent draws."""

    posterior: Posterior

    @property
    def space(self) -> Space:
        return self.posterior.space

    def __call__(self, x: State) -> Array:
        return self.posterior.prior_energy(x)

    def log_normaliser(self) -> Array:
        return jnp.zeros((), jnp.result_type(float))

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        return _prior_draws(self.posterior, jax.random.split(key, n))


@eqx.filter_jit
def _prior_draws(posterior: Posterior, keys: Keys) -> Float[Array, "n d"]:
    draws: Any = jax.vmap(posterior.prior_draw)(keys)
    # A draw at the end of its support in floating point, such as a Beta variable of 1, is at infinity here.
    return jnp.clip(draws, -1e6, 1e6)


def joined(values: dict[str, Array], parts: Sequence[Part]) -> Float[Array, " d"]:
    """The vector of unconstrained values."""
    dtype = jnp.result_type(float)
    flat = [jnp.ravel(jnp.asarray(values[part.name])).astype(dtype) for part in parts]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, dtype)


def split(z: Float[Array, " d"], parts: Sequence[Part]) -> dict[str, Array]:
    """The unconstrained values of a vector."""
    ends = np.cumsum([math.prod(part.shape) for part in parts])
    return {
        part.name: z[end - math.prod(part.shape) : end].reshape(part.shape)
        for part, end in zip(parts, ends, strict=True)
    }


def refuse_bad_values(energy: Energy, rows: np.ndarray, where: str, named: Callable[[Array], dict[str, Array]]) -> None:
    """Raise ValueError where the log density is NaN or +inf at some of these vectors (n, d), or 0 at all: how often, and at which.

    Args:
        energy: minus the log density.
        rows: the vectors.
        where: what they are, as in "draws from the prior".
        named: from a vector to the variables that a message shows.
    """
    values = target_of(energy)(np.ascontiguousarray(rows.T))[0]
    for bad, what, remedy in (
        (
            np.isnan(values),
            "NaN",
            "Look there for the logarithm or the root of a negative number, and for NaN in the data",
        ),
        (values == np.inf, "+inf", "A density must be finite: look there for a scale of 0"),
    ):
        if bad.any():
            place = place_of(named(jnp.asarray(rows[np.argmax(bad)], jnp.result_type(float))))
            raise ValueError(
                f"the log density is {what} at {int(bad.sum()):,} of {len(values):,} {where}, first at {place}. {remedy}"
            )
    if len(values) and (values == -np.inf).all():
        raise ValueError(
            f"the density is 0 at all of {len(values):,} {where}: the prior never reaches the likelihood's support. Use a prior that covers values "
            "under which the data are possible"
        )


def place_of(values: dict[str, Any]) -> str:
    """Variables and their values, as a message shows them."""
    shown, left = [], _SHOWN
    for name, value in values.items():
        numbers = np.ravel(np.asarray(value))
        if left <= 0:
            return ", ".join([*shown, "…"])
        text = ", ".join(f"{x:.4g}" for x in numbers[:left]) + (", …" if len(numbers) > left else "")
        shown.append(f"{name} = {text}" if numbers.size == 1 else f"{name} = [{text}]")
        left -= len(numbers)
    return ", ".join(shown)
