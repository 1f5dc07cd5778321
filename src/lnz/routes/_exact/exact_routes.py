"""The ordered list of deterministic routes, and the choice of the first affordable one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lnz._core.energy import Energy
from lnz._core.route import Choice, Route
from lnz._models.factor_graph import FactorGraph
from lnz._models.linear_chain import LinearChain
from lnz._models.pairwise import Ising, Pairwise
from lnz._models.random_field import RandomField
from lnz._models.semi_markov_chain import SemiMarkovChain
from lnz.routes._exact.closed_form import ClosedForm
from lnz.routes._exact.complete_graph import CompleteGraph
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.enumeration import Enumeration
from lnz.routes._exact.forest import Forest
from lnz.routes._exact.forward_backward import ForwardBackward
from lnz.routes._exact.kac_ward import KacWard
from lnz.routes._exact.quadrature import Quadrature
from lnz.routes._exact.semi_markov import SemiMarkov
from lnz.routes._exact.torus import Torus
from lnz.routes._exact.transfer_matrix import TransferMatrix

EVALUATIONS = 2.0**22  # the most evaluations of an exact route, unless a budget is given
_FEW_STATES = 256  # up to so many states their list is the simplest way
_NARROW = 2.0**15  # evaluations by transfer matrices; beyond, elimination is as fast and is not compiled


class Candidate(NamedTuple):
    """One entry of the list.

    Attributes:
        route: the route.
        why: the reason given when it is chosen; `{cost}` stands for its cost.
        kinds: the classes of energies for which it is considered.
        when: a further condition for considering it.
    """

    route: Route
    why: str
    kinds: tuple[type, ...] = (Energy,)
    when: Callable[[Energy], bool] | None = None

    def considered(self, energy: Energy) -> bool:
        """Whether the route is considered, and named where it is passed over."""
        return isinstance(energy, self.kinds) and (self.when is None or self.when(energy))


def _few_states(energy: Energy) -> bool:
    return Enumeration().unsupported_reason(energy) is None and Enumeration().cost(energy) <= _FEW_STATES


def _narrow(energy: Energy) -> bool:
    return TransferMatrix().unsupported_reason(energy) is None and TransferMatrix().cost(energy) <= _NARROW


# In this order: formulas, then special structure, then general sums, then quadrature.
ROUTES = (
    Candidate(ClosedForm(), "log Z has a formula"),
    Candidate(SemiMarkov(), "a chain of segments", (SemiMarkovChain,)),
    Candidate(Enumeration(), "{cost:,.0f} states", when=lambda e: _few_states(e) and not isinstance(e, LinearChain)),
    Candidate(ForwardBackward(), "a chain", (LinearChain, RandomField)),
    Candidate(Forest(), "its factors join pairs and have no cycle", (Pairwise, FactorGraph, RandomField)),
    Candidate(CompleteGraph(), "all pairs have the same coupling, so that states are counted", (Pairwise,)),
    Candidate(Torus(), "a uniform Ising model on a torus without fields", (Ising,)),
    Candidate(TransferMatrix(), "a lattice, layer by layer", (Pairwise,), when=_narrow),
    Candidate(Enumeration(), "{cost:,.0f} states", when=lambda e: not _few_states(e)),
    Candidate(KacWard(), "a planar Ising model without fields", (Ising,)),
    Candidate(Elimination(), "tables of its factors, multiplied and summed"),
    Candidate(TransferMatrix(), "a lattice, layer by layer", (Pairwise,), when=lambda e: not _narrow(e)),
    Candidate(Quadrature(), "{cost:,.0f} points"),
)


def exact_route(energy: Energy, evaluations: float = EVALUATIONS) -> tuple[Choice | None, list[str]]:
    """The first route of the list that supports the energy within so many evaluations, or None; and the reasons of those passed over."""
    passed: list[str] = []
    for candidate in ROUTES:
        if not candidate.considered(energy):
            continue
        route = candidate.route
        reason = route.unsupported_reason(energy)
        if reason is None:
            cost = route.cost(energy)
            if cost <= evaluations:
                return Choice(route, explained(route, candidate.why.format(cost=cost), passed)), passed
            reason = f"{cost:.3g} evaluations are more than the budget of {evaluations:.3g}"
        passed.append(f"{type(route).__name__} ({reason})")
    return None, passed


def explained(route: Route, why: str, passed: list[str]) -> str:
    """Why a route was chosen, and why those before it were passed over."""
    return f"{type(route).__name__}: {why}." + (f" Passed over: {'; '.join(passed)}." if passed else "")
