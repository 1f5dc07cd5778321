"""Every deterministic route, from the most exact to the least, and the first of them that an energy can afford."""

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

EVALUATIONS = 2.0**22  # what an exact answer may cost, unless a budget says otherwise
_FEW = 256  # states so few that a list of them is the simplest way
_NARROW = 2.0**15  # evaluations by transfer matrices beyond which elimination is as quick and need not be compiled


class Row(NamedTuple):
    """One entry of the list: a route, what is said of it when it is chosen, and the energies for which it is tried at all."""

    route: Route
    says: Callable[[Energy], str]
    tried: Callable[[Energy], bool] = lambda energy: True


def _is(*kinds: type) -> Callable[[Energy], bool]:
    return lambda energy: isinstance(energy, kinds)


def _few(energy: Energy) -> bool:
    return Enumeration().unsupported_reason(energy) is None and Enumeration().cost(energy) <= _FEW


def _narrow(energy: Energy) -> bool:
    return TransferMatrix().unsupported_reason(energy) is None and TransferMatrix().cost(energy) <= _NARROW


def _says(words: str) -> Callable[[Energy], str]:
    return lambda energy: words


def _states(energy: Energy) -> str:
    return f"{Enumeration().cost(energy):,.0f} states"


ROUTES = [
    Row(ClosedForm(), _says("log Z has a formula")),
    Row(SemiMarkov(), _says("a chain of segments"), _is(SemiMarkovChain)),
    Row(Enumeration(), _states, lambda e: _few(e) and not isinstance(e, LinearChain)),
    Row(ForwardBackward(), _says("a chain"), _is(LinearChain, RandomField)),
    Row(Forest(), _says("its factors join pairs and have no cycle"), _is(Pairwise, FactorGraph, RandomField)),
    Row(CompleteGraph(), _says("all pairs have the same coupling, so that states are counted"), _is(Pairwise)),
    Row(Torus(), _says("a uniform Ising model on a torus without fields"), _is(Ising)),
    Row(TransferMatrix(), _says("a lattice, layer by layer"), lambda e: isinstance(e, Pairwise) and _narrow(e)),
    Row(Enumeration(), _states, lambda e: not _few(e)),
    Row(KacWard(), _says("a planar Ising model without fields"), _is(Ising)),
    Row(Elimination(), _says("tables of its factors, multiplied and summed")),
    Row(TransferMatrix(), _says("a lattice, layer by layer"), lambda e: isinstance(e, Pairwise) and not _narrow(e)),
    Row(Quadrature(), lambda e: f"{Quadrature().cost(e):,.0f} points"),
]


def exact_route(energy: Energy, evaluations: float = EVALUATIONS) -> tuple[Choice | None, list[str]]:
    """The first route of the list that serves the energy within so many evaluations, or None; and why those before it do not."""
    passed: list[str] = []
    for route, says, tried in ROUTES:
        if not tried(energy):
            continue
        reason = route.unsupported_reason(energy)
        if reason is None and route.cost(energy) > evaluations:
            reason = f"{route.cost(energy):.3g} evaluations are more than the budget of {evaluations:.3g}"
        if reason is None:
            return Choice(route, explained(route, says(energy), passed)), passed
        passed.append(f"{type(route).__name__} ({reason})")
    return None, passed


def explained(route: Route, words: str, passed: list[str]) -> str:
    return f"{type(route).__name__}: {words}." + (f" Passed over: {'; '.join(passed)}." if passed else "")
