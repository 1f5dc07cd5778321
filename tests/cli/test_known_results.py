"""What a run has measured is shown at once, without JAX; what is missing or asked for is computed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import ROOT, call, correlated_bits

import lnz
from lnz._core.checkpoint import CheckpointError

HARNESS = """
import json, sys
from lnz._cli import run
code = run(sys.argv[1:])
print(json.dumps([code, "jax" in sys.modules]))
"""


def process(*args):
    command = [sys.executable, "-c", HARNESS, *map(str, args)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *said, last = done.stdout.splitlines()
    return "\n".join(said), done.stderr, json.loads(last)


@pytest.mark.parametrize("command", ["evaluate", "logz"])
def test_the_results_of_a_run_are_shown_without_jax(finished, command):
    said, noted, (code, has_jax) = process(command, finished, "--json")
    assert (code, has_jax) == (0, False)
    assert "Measure again" in noted
    results = json.loads((finished / "results.json").read_text())
    wanted = results["splits"]["test"] if command == "evaluate" else results["log_z_estimate"]
    found = json.loads(said)
    assert {name: found[name] for name in wanted} == wanted
    said, _, (code, has_jax) = process(command, finished)
    assert (code, has_jax) == (0, False)
    assert f"{results['log_z_estimate']['log_z']:.4f}" in said


@pytest.mark.parametrize("options", [("--seed", 1), ("--confidence", 0.9), ("--route", "ais", "--temperatures", 20)])
@pytest.mark.parametrize("command", ["evaluate", "logz"])
def test_what_is_asked_for_is_measured(finished, command, options):
    outcome = call(command, finished, *options, "--json")
    assert outcome.code == 0, outcome.err
    assert "Measure again" not in outcome.err
    if "ais" in options:
        assert json.loads(outcome.out)["guarantee"] == "conditional"


def test_log_z_that_is_known_is_not_computed_again(finished, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", correlated_bits(90, 6)[:7])
    computed = json.loads(call("evaluate", finished, tmp_path / "x.npy", "--seed", 1, "--json").out)
    monkeypatch.setattr("lnz._cli.measuring.choose_route", lambda *_, **__: pytest.fail("log Z is computed again"))
    known = json.loads(call("evaluate", finished, tmp_path / "x.npy", "--json").out)
    assert known.pop("seconds") > 0
    for name, value in known.items():
        assert computed[name] == (pytest.approx(value, abs=1e-9) if isinstance(value, float) else value)


@pytest.mark.parametrize("content", ["", "{}", '{"log_z_estimate": {"log_z": 1.0}, "splits": {}}'])
def test_results_that_cannot_be_read_are_measured(finished, tmp_path, content):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.lnz", "base.lnz"):
        (run / name).write_bytes((finished / name).read_bytes())
    (run / "results.json").write_text(content)
    outcome = call("logz", run)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("log Z = ")


def test_a_run_folder_is_loaded_as_its_model(finished, tmp_path):
    for load in (lnz.load, lambda path: lnz.load(str(path))):
        model, saved = load(finished), lnz.load(finished / "model.lnz")
        assert float(lnz.log_partition(model)) == float(lnz.log_partition(saved))
    with pytest.raises(CheckpointError, match=r"is a folder without a model\.lnz"):
        lnz.load(tmp_path)


@pytest.fixture(scope="module")
def lattice(tmp_path_factory):
    path = tmp_path_factory.mktemp("lattice") / "lattice.lnz"
    lnz.save(path, lnz.Ising.lattice((4, 5), 0.3, periodic=False))
    return path


def test_samples_of_a_lattice_are_pictures(lattice, tmp_path):
    outcome = call("sample", lattice, "-n", 4, "--out", tmp_path / "x.png")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    lnz.save(tmp_path / "chain.lnz", lnz.Ising.lattice((5,), 0.3, periodic=False))
    assert "do not form images. Write .npy" in call("sample", tmp_path / "chain.lnz", "--out", tmp_path / "y.png").error


def test_what_a_graphical_model_can_be_asked_is_said_of_other_models(lattice):
    for option, remedy in (("--marginals", "lnz.marginals(lnz.load("), ("--map", "lnz.map_state(lnz.load(")):
        outcome = call("logz", lattice, option, *(["x.MAR"] if option == "--marginals" else []))
        assert outcome.code == 2
        assert remedy in outcome.error
    assert f"lnz sample {lattice}" in call("logz", lattice, "--samples", 3).error
