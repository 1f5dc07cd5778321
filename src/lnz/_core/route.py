"""The protocol of routes: ways to compute log Z, its gradient, and expectations."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import free_energy_of
from lnz._core.energy import Energy, Gradient
from lnz._core.estimate import Estimate
from lnz._core.spaces import State


class Route(abc.ABC):
    """A way to compute expectations E_p[·] of an energy. Routes are static: frozen dataclasses of plain numbers."""

    @abc.abstractmethod
    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why the route does not support the energy, in words, or None."""

    @abc.abstractmethod
    def cost(self, energy: Energy) -> float:
        """The approximate number of energy evaluations of one `log_partition`."""

    @abc.abstractmethod
    def log_partition(self, energy: Energy, key: PRNGKeyArray | None) -> Estimate:
        """log Z of the energy, in nats."""

    @abc.abstractmethod
    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None) -> Estimate:
        """E_{v ~ p}[f(v)] over the observed states."""

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None) -> Gradient:
        """E_p[-∂_θ E_θ(x)], a pytree like the energy's float arrays. A route with a cheaper way overrides this."""
        return self.expectation(energy, lambda v: negative_gradient(energy, v), key).value

    def log_partition_and_mean_gradient(self, energy: Energy, key: PRNGKeyArray | None) -> tuple[Estimate, Any]:
        """log Z and its mean gradient, for the derivative of log Z. A route that computes them together overrides this."""
        return self.log_partition(energy, key), self.mean_gradient(energy, key)

    @property
    def structural(self) -> bool:
        """Whether the algorithm depends on the values of the energy's boolean and integer arrays, so that they must be known at compilation."""
        return True

    @property
    def random(self) -> bool:
        """Whether the route draws samples and so needs a key."""
        return False

    def require(self, energy: Energy, key: PRNGKeyArray | None) -> None:
        """Raise ValueError where the route does not support the energy, or where its key is missing."""
        reason = self.unsupported_reason(energy)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} does not support {type(energy).__name__}: {reason}")
        if self.random and key is None:
            raise ValueError(f"{type(self).__name__} draws samples: pass key=jax.random.key(…)")


def negative_gradient(energy: Energy, v: State) -> Any:
    """-∂_θ F_θ(v) at one observed state: a pytree like the energy's float arrays."""
    return jax.tree.map(jnp.negative, eqx.filter_grad(lambda e: free_energy_of(e)(v))(energy))


class Choice(NamedTuple):
    """A route, and why it was chosen."""

    route: Route
    why: str
