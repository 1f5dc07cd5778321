"""The exact negative phase: no chains."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, PRNGKeyArray

from lnz._choose import choose
from lnz._core.energy import Energy
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.learning._negative.negative_phase import NegativePhase


@dataclasses.dataclass(frozen=True)
class ExactPhase(NegativePhase):
    """The exact negative phase, ∇ log Z by an exact route such as `Enumeration()`: learning without sampling noise.

    Attributes:
        route: the route; by default `lnz.choose(energy)`, which must be exact.
    """

    route: Route | None = None

    by_states: ClassVar[bool] = False

    def unsupported_reason(self, energy: Energy) -> str | None:
        route = self.chosen(energy)
        if route.random:
            return f"{type(route).__name__} is not exact: name an affordable exact route, or use PersistentChains"
        return route.unsupported_reason(energy)

    def chosen(self, energy: Energy) -> Route:
        """The route for this energy."""
        return self.route or choose(energy).route

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return ()

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        raise TypeError("the exact negative phase draws no states: its gradient is route.mean_gradient")

    def gradient(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Array | None, Any, Any, dict[str, Array]]:
        return None, self.chosen(energy).mean_gradient(energy, key), state, {}

    def moves(self, energy: Energy, batch_size: int) -> float:
        return self.chosen(energy).cost(energy)
