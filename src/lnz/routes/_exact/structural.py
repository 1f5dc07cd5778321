"""Base class of the routes for models of one structure: which models they support, and their expectations."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.routes._exact.enumeration import Enumeration


class Structured(Route):
    """A route to log Z and its gradient for models of one structure.

    Whether a model has the structure may depend on values: fields that are zero, couplings that are equal. Traced values are unknown, and
    `choose` then leaves the model to other routes. A route that is named accepts the model, and checks the values as the sum runs.
    """

    @abc.abstractmethod
    def misfit(self, energy: Energy) -> str | None:
        """Why the energy does not have the structure, in words, or None. Traced values count as valid."""

    def unseen(self, energy: Energy) -> str | None:
        """For an energy that may have the structure: the traced values that might not fit, with the remedy, in words, or None."""
        return None

    def unsupported_reason(self, energy: Energy) -> str | None:
        return self.misfit(energy) or self.unseen(energy)

    def require(self, energy: Energy, key: Any) -> None:
        """Raise ValueError where the route does not support the energy; traced values are checked when the sum runs."""
        reason = self.misfit(energy)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} does not support {type(energy).__name__}: {reason}")

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any = None) -> Estimate:
        """E[f] of any f is a sum over all states: by enumeration where they are few enough."""
        reason = Enumeration().unsupported_reason(energy)
        if reason is not None:
            raise ValueError(
                f"{type(self).__name__} gives log Z and its gradient, but E[f] of any f needs all states, and {reason}"
            )
        return Enumeration().expectation(energy, f, key)
