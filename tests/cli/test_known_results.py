"""What a run has measured is shown at once, without JAX; what is missing or asked for is computed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import ROOT, call, correlated_bits

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
