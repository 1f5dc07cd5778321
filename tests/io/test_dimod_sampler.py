"""dimod's sampler of lnz against sums over all states."""

import itertools

import dimod
import dimod.testing
import numpy as np
import pytest

import lnz
from lnz.interop import _dimod_sampler

H, J = {"a": 0.4, "b": -0.7, "c": 0.1}, {("a", "b"): -1.0, ("b", "c"): 0.5, ("c", "d"): 0.8}


def law(bqm, beta):
    """The states in the order of the model's variables, their probabilities, and log Z."""
    values = (-1, 1) if bqm.vartype is dimod.SPIN else (0, 1)
    states = np.array(list(itertools.product(values, repeat=len(bqm.variables))))
    weights = -beta * np.asarray(bqm.energies((states, list(bqm.variables))))
    log_z = np.logaddexp.reduce(weights)
    return states, np.exp(weights - log_z), log_z


@pytest.mark.parametrize("vartype", ["SPIN", "BINARY"])
@pytest.mark.parametrize("exact", [True, False])
def test_samples_and_log_z_are_those_of_the_model(vartype, exact, monkeypatch):
    bqm = dimod.BinaryQuadraticModel(H, J, 1.5, vartype)
    if not exact:
        monkeypatch.setattr(_dimod_sampler, "_SECONDS", 1e-12)
    found = lnz.interop.DimodSampler().sample(bqm, beta=0.8, num_reads=4000, seed=1, sweeps=60)
    states, p, log_z = law(bqm, 0.8)
    assert found.info["exact"] == exact
    assert found.info["log_z_lower"] - 1e-4 <= log_z <= found.info["log_z_upper"] + 1e-4
    assert found.info["log_z"] == pytest.approx(log_z, abs=1e-4)
    rows = found.record.sample[:, [list(found.variables).index(v) for v in bqm.variables]]
    counts = (rows[:, None] == states).all(axis=2).sum(axis=0)
    chi = ((counts - 4000 * p) ** 2 / (4000 * p)).sum()
    assert chi < 45  # 15 degrees of freedom: exceeded with probability 1e-4
    np.testing.assert_allclose(found.record.energy, bqm.energies((rows, list(bqm.variables))))


def test_it_is_a_sampler_of_dimod():
    sampler = lnz.interop.DimodSampler()
    dimod.testing.assert_sampler_api(sampler)
    found = sampler.sample_ising(H, J, beta=0.5, num_reads=7, seed=3)
    assert len(found) == 7
    again = sampler.sample_ising(H, J, beta=0.5, num_reads=7, seed=3)
    np.testing.assert_array_equal(found.record.sample, again.record.sample)
    dimod.testing.assert_response_energies(found, dimod.BinaryQuadraticModel.from_ising(H, J))
    assert sampler.sample_qubo({("x", "x"): -1.0, ("x", "y"): 2.0}, seed=0).vartype is dimod.BINARY


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_reads": 0}, "num_reads"), ({"beta": np.inf}, "beta is inf. Give a finite inverse temperature")],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lnz.interop.DimodSampler().sample_ising(H, J, **options)
