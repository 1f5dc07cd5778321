"""Estimates as numbers, text and plain values; and the three ways to log Z with the options of version 0.1."""

import dataclasses
import json
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz.report._facts import error_text

GLASS = lnz.Ising.lattice((3, 3), np.linspace(-0.9, 1.2, 18).reshape(2, 3, 3), 0.1, periodic=False)
AIS = lnz.routes.AnnealedImportanceSampling(temperatures=8, chains=64)


def sampled(value=1.5, error=0.25, **options):
    numbers = (jnp.asarray(x, float) for x in (value, error, value - 0.5, value + 0.5))
    return Estimate(*numbers, "conditional", "annealing", 0.99, "chains reach every mode", **options)


def test_a_scalar_estimate_is_a_number():
    assert float(sampled()) == 1.5
    assert math.isclose(float(lnz.log_partition(GLASS)), float(lnz.log_partition(GLASS).value))
    with pytest.raises(TypeError, match="only an estimate of one number"):
        float(lnz.expectation(GLASS, lambda x: x.astype(float)))
    with pytest.raises(TypeError):
        jax.jit(lambda e: jnp.asarray(float(lnz.log_partition(e))))(GLASS)


def test_repr_is_one_line_with_the_number_and_its_interval():
    assert repr(sampled()) == "Estimate(1.50 in [1.00, 2.00], conditional)"
    assert repr(sampled(error=0.0)).startswith("Estimate(1.5 in [1.0, ")
    assert repr(lnz.expectation(GLASS, lambda x: x.astype(float))) == "Estimate(f64[3,3], exact)"
    assert repr(jax.vmap(lambda x: sampled(x))(jnp.arange(2.0))) == "Estimate(f64[2], conditional)"
    seen = []
    jax.jit(lambda e: (seen.append(repr(e)), e)[1])(sampled())
    assert seen == ["Estimate(f64[], conditional)"]


def test_an_estimate_as_plain_values():
    flags = {EstimateWarning.INFINITE_Z: jnp.asarray(True), EstimateWarning.ZERO_WEIGHTS: jnp.asarray(False)}
    found = sampled(flags=flags, diagnostics={"effective_sample_size": jnp.asarray(12.5)}).to_dict()
    assert json.loads(json.dumps(found)) == {
        "quantity": "log Z",
        "value": 1.5,
        "standard_error": 0.25,
        "lower": 1.0,
        "upper": 2.0,
        "guarantee": "conditional",
        "known": "conditional",
        "confidence": 0.99,
        "assumption": "chains reach every mode",
        "route": "annealing",
        "diagnostics": {"effective_sample_size": 12.5},
        "warnings": [{"code": "infinite-z", "message": EstimateWarning.INFINITE_Z.message}],
    }
    means = lnz.expectation(GLASS, lambda x: {"m": x.astype(float)}).to_dict()
    assert np.shape(means["value"]["m"]) == (3, 3)
    json.dumps(means)


@pytest.mark.filterwarnings("error")
def test_options_of_version_0_1_work_with_a_warning_that_names_the_new_function(tmp_path, key):
    with pytest.warns(DeprecationWarning, match=r"call lnz\.log_partition_bounds") as caught:
        old = lnz.log_partition(GLASS, within=0.5)
    if os.environ.get("LNZ_CHECK_TYPES") == "0":  # the checker has a frame of its own
        assert caught[0].filename == __file__
    assert float(old) == float(lnz.log_partition_bounds(GLASS, within=0.5))
    given = {"within": 9.0, "resume": tmp_path / "runs"}
    with pytest.warns(DeprecationWarning, match=r"call lnz\.log_partition_to_accuracy"):
        old = lnz.log_partition(GLASS, route=AIS, key=key, **given)
    assert (tmp_path / "runs").exists()
    assert float(old) == float(lnz.log_partition_to_accuracy(GLASS, AIS, key, within=9.0))
    with pytest.warns(DeprecationWarning, match="log_partition_bounds"):
        assert float(lnz.log_partition(GLASS, within=None)) == float(lnz.log_partition(GLASS))
    for options in ({"resume": "runs"}, {"resume": "runs", "route": AIS}, {"progress": print, "within": 1.0}):
        with (
            pytest.warns(DeprecationWarning, match="call lnz"),
            pytest.raises(ValueError, match="resume and progress require"),
        ):
            lnz.log_partition(GLASS, key=key, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'witin'"):
        lnz.log_partition(GLASS, witin=0.1)


def test_accuracy_needs_a_stochastic_route(key):
    with pytest.raises(ValueError, match="Elimination is not a stochastic route"):
        lnz.log_partition_to_accuracy(GLASS, lnz.routes.Elimination(), key)
    with pytest.raises(TypeError, match="route must be a route"):
        lnz.log_partition_to_accuracy(GLASS, "ais", key)
    with pytest.raises(ValueError, match="pass key="):
        lnz.log_partition_to_accuracy(GLASS, AIS, None)
    broken = lnz.FunctionEnergy(lambda s: jnp.sqrt(1.0 + 1.5 * s[0] * s[1]), lnz.Spin(2))
    with pytest.raises(ValueError, match="log Z is NaN"):
        lnz.log_partition_bounds(broken)


def test_no_error_is_printed_where_the_interval_says_that_it_is_not_to_be_believed():
    narrow = str(sampled(error=0.25))
    assert narrow.startswith("log Z = 1.50 ± 0.25, between 1.00 and 2.00 with 99 % confidence")
    wide = str(sampled(error=0.05))
    assert wide.startswith("log Z = 1.5, between 1.0 and 2.0 with 99 % confidence")
    just = Estimate(*(jnp.asarray(x, float) for x in (1.5, 0.1001, 1.0, 2.0)), "conditional", "annealing", 0.99)
    assert "±" in str(just)
    one_sided = Estimate(*(jnp.asarray(x, float) for x in (1.5, 0.01, 1.0, jnp.inf)), "conditional", "annealing", 0.99)
    assert str(one_sided).startswith("log Z = 1.500 ± 0.010, at least 1.000")


@pytest.mark.parametrize(
    "route", [AIS, lnz.routes.SequentialMonteCarlo(particles=16, replicates=4)], ids=["ais", "smc"]
)
def test_without_a_base_the_sentence_begins_with_what_needs_no_assumption(route, key):
    """A narrow mode that nobody's chains reach: only the lower bound is certain, and the number comes after its condition."""
    energy = lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(x**2), lnz.Box([-1.0] * 5, [1.0] * 5))
    alone = lnz.log_partition(energy, route=route, key=key)
    sentence = (
        r"log Z is at least -?[\d.]+ with 99 % confidence; if the .* reach every mode, -?[\d.]+.* \(conditional\), by "
    )
    assert re.match(sentence, str(alone))
    told = float(re.findall(r"at least (\S+) with", str(alone))[0])
    assert told == pytest.approx(float(alone.lower), abs=0.05)
    chosen = dataclasses.replace(route, base=Frozen(lnz.Uniform(energy.space)))
    given = lnz.log_partition(energy, route=chosen, key=key)
    assert str(given).startswith("log Z = ")
    assert "only the lower bound is certified" in str(given)


def test_no_error_is_told_on_a_terminal_or_a_page_where_the_interval_denies_it():
    found = {"known": "conditional", "standard_error": 0.05, "lower": 1.0, "upper": 2.0}
    assert error_text(found) == "unknown"
    assert error_text(found | {"upper": 1.4}) == "0.05"
    assert error_text(found | {"upper": None}) == "0.05"
    assert error_text(found | {"known": "exact"}) == "exact"


@pytest.mark.parametrize(("lower", "upper"), [(0.75, 1.125), (0.875, 1.25)])
def test_the_rounding_of_an_exact_value_is_that_of_its_farther_side(lower, upper):
    numbers = (jnp.asarray(x, float) for x in (1.0, 0.0, lower, upper))
    assert "exact up to rounding of 0.2" in str(Estimate(*numbers, "exact", "a sum"))
