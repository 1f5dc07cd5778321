"""A route is a way of taking E_p[·]; `choose` picks one within a budget and says why."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from lnz.energy import Energy, as_energy
from lnz.estimate import Estimate
from lnz.spaces import State


class Route(abc.ABC):
    """A way of taking the expectation E_p[·] of an energy. Routes are static: frozen dataclasses of plain numbers."""

    @abc.abstractmethod
    def refusal(self, energy: Energy) -> str | None:
        """Why this route cannot serve the energy, in words, or None."""

    @abc.abstractmethod
    def cost(self, energy: Energy) -> float:
        """Energy evaluations that one `log_partition` takes, roughly."""

    @abc.abstractmethod
    def log_partition(self, energy: Energy, key: Any) -> Estimate:
        """log Z of the energy, in nats."""

    @abc.abstractmethod
    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any) -> Estimate:
        """E_{v ~ p}[f(v)] over the observed states."""

    def mean_gradient(self, energy: Energy, key: Any) -> Any:
        """E_p[-∂_θ E_θ(x)], a pytree like the energy's float arrays. A route with a cheaper way overrides this."""
        return self.expectation(energy, lambda v: negative_gradient(energy, v), key).value

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any) -> tuple[Estimate, Any]:
        """Both at once, for the derivative of log Z. A route that finds them together overrides this."""
        return self.log_partition(energy, key), self.mean_gradient(energy, key)

    @property
    def structural(self) -> bool:
        """Whether how the sum is done depends on the energy's boolean and integer arrays, so that these must be known when it is compiled."""
        return True

    @property
    def random(self) -> bool:
        """Whether the route draws samples and so needs a key."""
        return False

    def require(self, energy: Energy, key: Any) -> None:
        """Raise ValueError where the route cannot serve the energy, or where its key is missing."""
        reason = self.refusal(energy)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} cannot serve {type(energy).__name__}: {reason}")
        if self.random and key is None:
            raise ValueError(f"{type(self).__name__} draws samples: pass key=jax.random.key(…)")


def negative_gradient(energy: Energy, v: State) -> Any:
    """-∂_θ F_θ(v) at one observed state: a pytree like the energy's float arrays."""
    return jax.tree.map(jnp.negative, eqx.filter_grad(lambda e: e.free_energy(v))(energy))


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an exact answer may cost.

    Attributes:
        evaluations: energy evaluations that an exact route may take.
        temperatures: length of an annealing schedule, where no exact route is affordable.
        chains: number of annealed chains.
    """

    evaluations: float = 2.0**22
    temperatures: int = 1000
    chains: int = 256


class Choice(NamedTuple):
    """A route and, in words, why it was chosen."""

    route: Route
    why: str


def choose(energy: Any, budget: Budget | None = None) -> Choice:
    """The first route, from the most exact to the least, that can serve the energy within the budget, and why.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        budget: what an exact answer may cost; beyond it, annealed importance sampling of the budget's size.

    Raises:
        ValueError: where no route serves, with every route's reason.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> print(lnz.choose(lnz.Ising(jnp.zeros((3, 3)))).why)
        Enumeration: 8 states. Passed over: ClosedForm (Ising has no closed form of log Z).
    """
    energy, budget = as_energy(energy), budget or Budget()
    passed: list[str] = []
    for route, size in _candidates(energy, budget):
        reason = route.refusal(energy)
        if reason is None and not route.random and route.cost(energy) > budget.evaluations:
            reason = f"{route.cost(energy):.3g} evaluations are more than the budget of {budget.evaluations:.3g}"
        if reason is None:
            why = f"{type(route).__name__}: {size(route)}."
            return Choice(route, why + (f" Passed over: {'; '.join(passed)}." if passed else ""))
        passed.append(f"{type(route).__name__} ({reason})")
    raise ValueError("no route serves this energy: " + "; ".join(passed))


_FEW = 256  # states so few that a list of them is the simplest way
_NARROW = (
    2.0**15
)  # evaluations by transfer matrices (16 spins across) beyond which elimination is as quick and need not be compiled


def _candidates(energy: Energy, budget: Budget) -> list[tuple[Route, Callable[[Any], str]]]:
    from lnz.annealing.ais import AnnealedImportanceSampling
    from lnz.energies.chain import LinearChain
    from lnz.energies.field import RandomField
    from lnz.energies.graph import FactorGraph
    from lnz.energies.pairwise import Ising, Pairwise
    from lnz.energies.semi_markov import SemiMarkovChain
    from lnz.exact.closed_form import ClosedForm
    from lnz.exact.counting import Counting
    from lnz.exact.elimination import Elimination
    from lnz.exact.enumeration import Enumeration
    from lnz.exact.forest import Forest
    from lnz.exact.forward_backward import ForwardBackward
    from lnz.exact.planar import KacWard
    from lnz.exact.quadrature import Quadrature
    from lnz.exact.semi_markov import SemiMarkov
    from lnz.exact.torus import Torus
    from lnz.exact.transfer import TransferMatrix

    enumeration, layers = Enumeration(), TransferMatrix()
    listed = (enumeration, lambda route: f"{route.cost(energy):,.0f} states")
    lattice = (layers, lambda _: "a lattice, layer by layer")
    few = enumeration.refusal(energy) is None and enumeration.cost(energy) <= _FEW
    narrow = isinstance(energy, Pairwise) and layers.refusal(energy) is None and layers.cost(energy) <= _NARROW
    special: list[tuple[Route, Callable[[Any], str]]] = []
    if isinstance(energy, LinearChain | RandomField):
        special += [(ForwardBackward(), lambda _: "a chain")]
    if isinstance(energy, Pairwise | FactorGraph | RandomField):
        special += [(Forest(), lambda _: "its factors join pairs and have no cycle")]
    if isinstance(energy, Pairwise):
        special += [(Counting(), lambda _: "all pairs have the same coupling, so that states are counted")]
    if isinstance(energy, Ising):
        special += [(Torus(), lambda _: "a uniform Ising model on a torus without fields")]
    return [
        (ClosedForm(), lambda _: "log Z has a formula"),
        *([(SemiMarkov(), lambda _: "a chain of segments")] if isinstance(energy, SemiMarkovChain) else []),
        *([listed] if few and not isinstance(energy, LinearChain) else []),
        *special,
        *([lattice] if narrow else []),
        *([] if few else [listed]),
        *([(KacWard(), lambda _: "a planar Ising model without fields")] if isinstance(energy, Ising) else []),
        (Elimination(), lambda _: "tables of its factors, multiplied and summed"),
        *([lattice] if isinstance(energy, Pairwise) and not narrow else []),
        (Quadrature(), lambda route: f"{route.cost(energy):,.0f} points"),
        (
            AnnealedImportanceSampling(temperatures=budget.temperatures, chains=budget.chains, scouts=32),
            lambda route: f"{route.temperatures:,} temperatures, {route.chains:,} chains; no exact route is affordable",
        ),
    ]
