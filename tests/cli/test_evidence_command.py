"""`lnz evidence FILE.py:MODEL`: the sentence, JSON, runs until an interval is narrow, and one line for whatever is wrong."""

import json
import math

import pytest
from cli_cases import call

MODEL = """
import jax.numpy as jnp, lnz

def bowl(x):
    return 0.5 * jnp.sum(x**2)

energy = lnz.FunctionEnergy(bowl, lnz.Real(4))
number = 3

def needs(sd, y=None, *, scale=1.0):
    pass

def broken(y):
    raise RuntimeError
"""
TRUTH = 2 * math.log(2 * math.pi)

SCHOOLS = """
import numpyro
import numpyro.distributions as dist

def model(sd, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sd)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sd), obs=y)
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_the_evidence_of_an_energy(model):
    outcome = call("evidence", f"{model}:energy")
    assert outcome.code == 0, outcome.error
    assert outcome.out.startswith("log evidence is at least 3.5")
    assert "with 99 % confidence" in outcome.out


def test_json_and_a_narrower_interval(model):
    one, many = (
        json.loads(call("evidence", f"{model}:energy", "--json", *more).out) for more in ((), ("--within", 0.1))
    )
    for found in (one, many):
        assert found["lower"] <= TRUTH <= found["upper"]
        assert abs(found["log_evidence"] - TRUTH) < 0.05
        assert found["guarantee"] == "conditional"
        assert found["warnings"] == []
        assert "log_z" not in found
    assert many["upper"] - many["lower"] <= 0.1 < one["upper"] - one["lower"]
    other = json.loads(call("evidence", f"{model}:energy", "--json", "--seed", 1).out)
    assert other["log_evidence"] != one["log_evidence"]


REFUSED = {
    "number": ("3", "a model is a NumPyro model, a PyMC model"),
    "needs": ("{}", "needs needs 'sd'. Give them in --data FILE.json"),
    "needs ": ('{"sd": 1, "z": 2}', "needs takes no 'z'. It takes 'scale', 'sd', 'y'"),
    "energy": ('{"y": 1}', "an energy is the whole of -log p(x, y)"),
    "broken": ('{"y": [[1, 2], [3]]}', "'y' has lists of different lengths. Give arrays"),
    "broken ": ('{"y": [1, null]}', "'y' has entries that are not numbers"),
    "broken  ": ("[1, 2]", "holds a list, not an object"),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", REFUSED)
def test_refused(model, tmp_path, name):
    data, message = REFUSED[name]
    path = tmp_path / "data.json"
    path.write_text(data)
    more = () if name == "number" else ("--data", path)
    outcome = call("evidence", f"{model}:{name.strip()}", *more)
    assert outcome.code == 2
    assert message in outcome.error
    assert "\n" not in outcome.error


def test_a_numpyro_model_with_data(tmp_path):
    pytest.importorskip("numpyro", reason="the package numpyro is not installed")
    import jax

    (tmp_path / "schools.py").write_text(SCHOOLS)
    data = {"sd": [15, 10, 16, 11, 9, 11, 10, 18], "y": [28, 8, -3, 7, -1, 1, 18, 12]}
    (tmp_path / "schools.json").write_text(json.dumps(data))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        outcome = call("evidence", f"{tmp_path / 'schools.py'}:model", "--data", tmp_path / "schools.json", "--json")
    found = json.loads(outcome.out)
    assert found["lower"] <= -31.3113 <= found["upper"]


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    from lnz._cli import errors

    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "schools.py").write_text(SCHOOLS)
    outcome = call("evidence", f"{tmp_path / 'schools.py'}:model")
    assert outcome.code == 2
    assert "numpyro. Install them by: pip install 'lnz[numpyro]'" in outcome.error
