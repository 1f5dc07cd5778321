"""Every public route, kernel and negative phase is in a list of the contract tests, so that a new one inherits all of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import lnz
from contracts import negative_phases, routes
from contracts.kernels import KERNELS
from lnz.learning._negative import NEGATIVE_PHASES


def public(room: Any, kind: type) -> set[type]:
    """The classes of a kind that a room shows and that can be made."""
    found = [getattr(room, name) for name in room.__all__]
    return {c for c in found if inspect.isclass(c) and issubclass(c, kind) and not inspect.isabstract(c)}


@pytest.mark.parametrize(
    ("room", "kind", "listed"),
    [
        (
            lnz.routes,
            lnz.Route,
            [*routes.EXACT, *routes.BOUNDS.values(), *routes.STOCHASTIC, *routes.ON_HOST, *routes.APPROXIMATE],
        ),
        (lnz.kernels, lnz.kernels.Kernel, KERNELS),
        (lnz.learning, lnz.learning.NegativePhase, negative_phases.PHASES),
    ],
)
def test_every_public_class_is_in_a_list(room, kind, listed):
    missing = public(room, kind) - {type(member) for member in listed}
    assert not missing, f"add {sorted(c.__name__ for c in missing)} to a list in tests/contracts"


def test_every_negative_phase_of_the_command_line_is_public():
    assert set(NEGATIVE_PHASES.values()) == public(lnz.learning, lnz.learning.NegativePhase)
