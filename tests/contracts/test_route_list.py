"""Every route of the lists passes `lnz.testing.check_route`, and broken routes do not."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import lnz
from contracts.energies import named
from contracts.routes import BOUNDS, EXACT, STOCHASTIC, models_of


@pytest.mark.parametrize("route", [*EXACT, *STOCHASTIC, *BOUNDS.values()], ids=lambda route: type(route).__name__)
def test_route(route):
    """Supported energies, and one that most routes refuse, whose refusal is a value."""
    done = lnz.testing.check_route(route, energies=[*models_of(route)[:1], named("double well").energy])
    wanted = {"bounds", "compiled", "gradient"} | ({"E[Ẑ] = Z"} if route.random else set())
    assert wanted <= set(done[0].split(": ", 1)[1].split(", "))


pytestmark = pytest.mark.slow  # each route is compiled alone, under jit and under vmap


@dataclasses.dataclass(frozen=True)
class Broken(lnz.routes.Enumeration):
    fault: str = ""

    def log_partition(self, energy, key):
        estimate = super().log_partition(energy, key)
        if self.fault == "value":
            moved = {name: getattr(estimate, name) + 0.01 for name in ("value", "lower", "upper")}
            return dataclasses.replace(estimate, **moved)
        if self.fault == "bounds":
            return dataclasses.replace(estimate, upper=estimate.value - 1)
        return estimate

    def mean_gradient(self, energy, key):
        found = super().mean_gradient(energy, key)
        return jax.tree.map(lambda x: 1.01 * x, found) if self.fault == "gradient" else found

    def log_partition_and_mean_gradient(self, energy, key):
        return self.log_partition(energy, key), self.mean_gradient(energy, key)

    def unsupported_reason(self, energy):
        return "" if self.fault == "reason" else super().unsupported_reason(energy)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("value", "log Z differs from the sum over all states"),
        ("bounds", "outside its own bounds"),
        ("gradient", "∇ log Z differs from E"),
        ("reason", "`unsupported_reason` returns ''"),
    ],
)
def test_a_broken_route_is_caught(fault, words):
    energy = named("ising chain").energy
    with pytest.raises(AssertionError, match=words):
        lnz.testing.check_route(Broken(fault=fault), energies=[energy])


def test_a_biased_sampler_is_caught():
    @dataclasses.dataclass(frozen=True)
    class Half(lnz.routes.AnnealedImportanceSampling):
        def log_partition(self, energy, key):
            estimate = super().log_partition(energy, key)
            return dataclasses.replace(estimate, value=estimate.value - 0.5, lower=estimate.lower - 0.5)

    with pytest.raises(AssertionError, match="the mean of Ẑ / Z"):
        lnz.testing.check_route(Half(temperatures=12, chains=16), energies=[named("ising chain").energy])


def test_a_route_that_supports_nothing_is_told():
    with pytest.raises(AssertionError, match="supports none of the energies"):
        lnz.testing.check_route(lnz.routes.Torus(), energies=[named("ising chain").energy])
