"""Every route of the lists passes `lnz.testing.check_route`, and broken routes do not."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import lnz
from contracts.energies import named
from contracts.routes import APPROXIMATE, BOUNDS, EXACT, STOCHASTIC, models_of

SLOW = (
    lnz.routes.AnnealedImportanceSampling,
    lnz.routes.Elimination,
    lnz.routes.ParallelTempering,
    lnz.routes.SequentialMonteCarlo,
)  # over 5 s each
BIASED = {lnz.routes.BidirectionalAIS, lnz.routes.ParallelTempering}  # consistent: bridges between samples of both ends


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(route, marks=[pytest.mark.slow] if isinstance(route, SLOW) else [])
        for route in (*EXACT, *STOCHASTIC, *APPROXIMATE, *BOUNDS.values())
    ],
    ids=lambda route: type(route).__name__,
)
def test_route(route):
    """A supported energy, and one that most routes do not support, with the reason as a value."""
    unbiased = type(route) not in BIASED
    energies = [*models_of(route)[:1], named("double well").energy]
    done = lnz.testing.check_route(route, energies=energies, unbiased=unbiased)[0].split(": ", 1)[1].split(", ")
    wanted = {"compiled", "gradient"}
    wanted |= {"E[Ẑ] = Z"} if route.random and unbiased else set()
    wanted |= {"value"} if route in EXACT and not isinstance(route, lnz.routes.Quadrature) else set()
    wanted |= {"bounds"} if route.random or route in BOUNDS.values() else set()
    assert wanted <= set(done)


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


@dataclasses.dataclass(frozen=True)
class Low(lnz.routes.MeanField):
    """An upper bound below log Z, and a lower one that holds."""

    def log_partition(self, energy, key):
        estimate = super().log_partition(energy, key)
        return dataclasses.replace(estimate, upper=estimate.value + 1e-3)


def test_an_upper_bound_below_log_z_is_caught():
    energies = [named("ising chain").energy]
    lnz.testing.check_route(lnz.routes.MeanField(), energies=energies)
    with pytest.raises(AssertionError, match="bounds do not hold in 1 of 1 runs"):
        lnz.testing.check_route(Low(), energies=energies)


@dataclasses.dataclass(frozen=True)
class Sampler(lnz.routes.AnnealedImportanceSampling):
    shift: float = 0.0
    narrow: bool = False

    def log_partition(self, energy, key):
        estimate = super().log_partition(energy, key)
        upper = estimate.value if self.narrow else estimate.upper
        moved = {"value": estimate.value + self.shift, "lower": estimate.lower, "upper": upper + self.shift}
        return dataclasses.replace(estimate, **moved)


SAMPLER = Sampler(temperatures=12, chains=16)
FOUR_SPINS = lnz.Ising.lattice((4,), [[0.5, -0.4, 0.3, 0]], [0.2, -0.3, 0.1, 0.4], periodic=False)


def test_a_sound_sampler_passes():
    lnz.testing.check_route(SAMPLER, energies=[FOUR_SPINS])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"shift": 0.05}, "the mean of Ẑ / Z"),
        ({"narrow": True}, "bounds do not hold in"),
    ],
)
def test_a_broken_sampler_is_caught(fault, words):
    with pytest.raises(AssertionError, match=words):
        lnz.testing.check_route(dataclasses.replace(SAMPLER, **fault), energies=[FOUR_SPINS])


def test_a_route_that_supports_nothing_is_reported():
    with pytest.raises(AssertionError, match="supports none of the energies"):
        lnz.testing.check_route(lnz.routes.Torus(), energies=[named("ising chain").energy])
