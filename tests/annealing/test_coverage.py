"""benchmarks/coverage.py tells intervals that hold from those that do not; and, slowly, a small version of it."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import lnz


@pytest.fixture(scope="module")
def coverage():
    path = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_of_log_z", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_verdict_tells_what_fails(coverage):
    rng = np.random.default_rng(0)
    value, ones = 5 + 0.1 * rng.normal(size=2000), np.ones(2000)
    quiet, loud = np.zeros(2000, bool), np.ones(2000, bool)

    def verdict(claimed, half, warned, shift=0.0):
        limits = value - half + shift, value + half + shift
        row = coverage.summary(5.0, value, claimed * ones, *limits, warned)
        assert row["held"] + row["lower_too_high"] + row["upper_too_low"] == row["runs"] == 2000
        return coverage.verdict(row)

    assert verdict(0.1, 0.2576, quiet) == ""
    assert verdict(0.07, 0.2576, quiet) == "standard error"
    assert verdict(0.13, 0.2576, quiet) == "standard error"
    assert verdict(0.1, 0.2, quiet) == "interval, lower limit"
    assert verdict(0.1, 0.2, loud) == "interval, but warned of, lower limit"
    assert verdict(0.1, 0.3, quiet, shift=-0.2) == "interval"  # only the upper limits fail


@pytest.mark.slow
@pytest.mark.parametrize(("route", "model"), [("ais", "torus-8x8-critical"), ("both", "rbm-patterns-24x6")])
def test_intervals_hold(coverage, route, model):
    (known,) = lnz.reference_models(model)
    row = coverage.measure(known, coverage.ROUTES[route][0], 300)
    assert row["held"] >= 0.985 * 300 - 3
    assert row["lower_too_high"] <= 5
    assert row["wrong"] <= 7


def test_a_refusal_is_no_row(coverage):
    (known,) = lnz.reference_models("field-quartic-64")
    assert coverage.measure(known, lnz.BidirectionalAIS(), 1) is None
