"""What the commands do when all is well."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import ROOT, call, correlated_bits, start

import lnz

EVALUATED = {"log_likelihood", "log_z", "standard_error", "lower", "upper", "known", "guarantee", "route", "n"}


def strict(text: str) -> dict:
    """Read JSON that must not hold NaN or Infinity."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_help_imports_no_jax():
    code = "import sys; from lnz._cli import run; assert run(['train', '--help']) == 0; assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "src", check=True)
    assert "--negative-phase" in done.stdout
    assert "lnz train digits" in done.stdout


def test_every_command_has_examples():
    for command in ("train", "evaluate", "sample", "logz"):
        outcome = call(command, "--help")
        assert outcome.code == 0
        assert f"lnz {command} runs/" in outcome.out or "lnz train digits" in outcome.out
        assert "--json" in outcome.out
        assert "--seed" in outcome.out


def test_without_arguments_there_is_help():
    outcome = call()
    assert "train" in outcome.out
    assert outcome.err == ""


def test_version():
    assert call("--version").out == f"lnz {lnz.__version__}\n"


def test_a_run_folder(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "model.lnz", "base.lnz", "checkpoint.safetensors", "metrics.jsonl", "results.json"}
    assert names >= {"samples.png", "samples.npy", "filters.png", "curves.png", "moments.png", "report.html"}
    config = strict((finished / "config.json").read_text())
    assert config["settings"]["hidden"] == 3
    assert config["versions"]["jax"]
    assert config["data"]["rows"] == {"train": 63, "validation": 9, "test": 18}
    records = [strict(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [8, 16]
    assert records[-1]["validation"]["known"] == "exact"
    samples = np.load(finished / "samples.npy")
    assert samples.dtype == np.uint8
    assert samples.shape == (1000, 6)


def test_the_printed_table(finished):
    text = (finished / "stdout.txt").read_text()
    for words in ("train", "validation", "test", "factorised model, test", "log Z", "Guarantee", "exact"):
        assert words in text
    for words in (
        "relative gradient error",
        "Time",
        "Report",
        "± from log Z",
        "± from the data",
        "enumeration of 8 states",
    ):
        assert words in text


def test_the_likelihood_is_right(finished):
    model, data = lnz.load(finished / "model.lnz"), correlated_bits(90, 6)
    test = data[lnz.io.split(90, fractions=(0.7, 0.1, 0.2)).test]
    outcome = call("evaluate", finished, "--json")
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert found.keys() >= EVALUATED
    every = np.asarray(lnz.Binary(6).decode(np.arange(64)))
    weights, b, c = (np.asarray(p, float) for p in (model.weights, model.visible_bias, model.hidden_bias))
    free = lambda v: -(v @ b) - np.logaddexp(0, c + v @ weights).sum(axis=1)  # noqa: E731
    log_z = np.logaddexp.reduce(-free(every))
    assert found["log_z"] == pytest.approx(log_z, abs=1e-5)
    assert found["log_likelihood"] == pytest.approx(-free(test).mean() - log_z, abs=1e-5)
    assert found["data_standard_error"] == pytest.approx(free(test).std(ddof=1) / math.sqrt(18), rel=1e-4)
    assert found["split"] == "test"
    assert found["n"] == 18
    assert found["known"] == "exact"
    results = strict((finished / "results.json").read_text())
    assert results["splits"]["test"]["log_likelihood"] == found["log_likelihood"]


def test_evaluate_by_annealing(finished):
    exact = strict(call("evaluate", finished, "--json").out)
    options = ("--route", "ais", "--temperatures", 50, "--chains", 400, "--json")
    found = strict(call("evaluate", finished, *options).out)
    assert found["known"] == "conditional"
    assert found["standard_error"] == found["log_z_standard_error"] > 0
    assert abs(found["log_z"] - exact["log_z"]) < 6 * found["standard_error"]
    assert found["lower"] < found["log_likelihood"] < found["upper"]
    assert found["log_z_lower"] < found["log_z"] < found["log_z_upper"]
    other = strict(call("evaluate", finished, *options, "--seed", 5).out)
    assert other["log_z"] != found["log_z"]
    assert strict(call("evaluate", finished, *options).out)["log_z"] == found["log_z"]


def test_evaluate_a_file(finished, bits, tmp_path):
    outcome = call("evaluate", finished, bits)
    assert outcome.code == 0, outcome.err
    assert "votes.csv" in outcome.out
    one = tmp_path / "one.npy"
    np.save(one, correlated_bits(90, 6)[:1])
    found = strict(call("evaluate", finished, one, "--json").out)
    assert found["n"] == 1
    assert found["data_standard_error"] is None
    assert found["split"] is None


def test_log_z_of_a_run_and_of_a_file(finished):
    found = strict(call("logz", finished, "--json").out)
    assert found == strict(call("logz", finished / "model.lnz", "--json").out)
    assert found["known"] == "exact"
    assert call("logz", finished).out.startswith("log Z = ")
    annealed = call("logz", finished / "model.lnz", "--route", "ais", "--temperatures", 20, "--chains", 50)
    assert "annealed importance sampling (20 temperatures, 50 chains)" in " ".join(annealed.out.split())


def test_samples(finished, tmp_path):
    for suffix in (".npy", ".npz", ".csv"):
        path = tmp_path / f"drawn{suffix}"
        outcome = call("sample", finished, "-n", 40, "--out", path, "--seed", 3)
        assert outcome.code == 0, outcome.err
        assert "exact and independent" in outcome.out
        drawn = lnz.io.load(path).rows
        assert drawn.shape == (40, 6)
        assert np.array_equal(drawn, lnz.io.load(tmp_path / "drawn.npy").rows)
        assert call("evaluate", finished, path).code == 0
    found = strict(call("sample", finished, "-n", 40, "--out", path, "--seed", 4, "--force", "--json").out)
    assert found["n"] == 40
    assert not np.array_equal(drawn, lnz.io.load(path).rows)


def test_a_constant_column_is_a_note(tmp_path):
    data = correlated_bits(90, 6)
    data[:, 2] = 1
    np.save(tmp_path / "x.npy", data)
    options = ("--hidden", 3, "--epochs", 4, "--batch-size", 16, "--evaluate-every", 2)
    outcome = call("train", tmp_path / "x.npy", *options, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    assert "lnz: note:" in outcome.err
    assert "1 of 6 columns is constant (column 3, always 1)" in outcome.err
    found = strict(outcome.out)
    assert found.keys() >= EVALUATED | {"splits", "factorised", "phases", "seconds"}
    assert math.isfinite(found["log_likelihood"])
    before = (tmp_path / "run" / "config.json").read_text()
    assert call("train", tmp_path / "x.npy", *options, "--seed", 1, "--out", tmp_path / "run", "--force").code == 0
    assert (tmp_path / "run" / "config.json").read_text() != before


def test_a_deep_machine(bits, tmp_path):
    run, drawn = tmp_path / "run", tmp_path / "drawn.npy"
    options = ("--epochs", 3, "--evaluate-every", 3, "--validation", 0.2, "--no-monitor", "--out", run)
    outcome = call("train", bits, "--hidden", "4,3", *options, "--positive-phase", "chains")
    assert outcome.code == 0, outcome.err
    assert "deep Boltzmann machine, 6 binary visible units and layers of 4 and 3 hidden units" in outcome.out
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["model"], settings["hidden"], settings["positive_phase"]) == ("dbm", [4, 3], "chains")
    found = json.loads((run / "results.json").read_text())["splits"]["validation"]
    assert found["is_bound"]
    assert found["is_limit"]
    assert found["upper"] is None
    said = call("evaluate", run).out
    assert f"validation log-likelihood at least {found['log_likelihood']:.2f}"[:-1] in said
    assert call("sample", run, "-n", 30, "--out", drawn).code == 0
    assert np.load(drawn).shape == (30, 6)


@pytest.mark.slow
def test_a_pretrained_deep_machine_resumes(bits, tmp_path):
    run = tmp_path / "run"
    options = ("--epochs", 4, "--evaluate-every", 2, "--pretraining", 2, "--batch-size", 16)
    assert call("train", bits, "--hidden", "4,3,2", *options, "--out", run).code == 0
    before = (run / "model.lnz").read_bytes()
    assert call("train", "--resume", run).code == 0
    assert (run / "model.lnz").read_bytes() == before


@pytest.mark.parametrize("model", ["gaussian-rbm", "potts-rbm", "ising", "potts"])
def test_every_model(model, tmp_path):
    generator = np.random.default_rng(1)
    data = correlated_bits(60, 4) + (generator.integers(0, 2, (60, 4)) if "potts" in model else 0)
    if model == "gaussian-rbm":
        data = 100 + 5 * generator.normal(size=(60, 4)) @ generator.normal(size=(4, 4))
    np.save(tmp_path / "x.npy", data)
    hidden = ("--hidden", 3) if "rbm" in model else ("--negative-phase", "exact")
    options = ("--model", model, *hidden, "--validation", 0.2, "--epochs", 3, "--evaluate-every", 3)
    outcome = call("train", tmp_path / "x.npy", *options, "--out", tmp_path / "run", "--json")
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert found["known"] == "exact"
    assert found["split"] == "validation"
    again = strict(call("evaluate", tmp_path / "run", "--json").out)
    assert again["log_likelihood"] == found["log_likelihood"]
    drawn = tmp_path / "drawn.npy"
    assert call("sample", tmp_path / "run", "-n", 30, "--out", drawn).code == 0
    assert call("evaluate", tmp_path / "run", drawn).code == 0


@pytest.mark.parametrize("objective", ["pseudo-likelihood", "noise-contrastive", "denoising"])
def test_objectives_without_z(objective, tmp_path):
    """The likelihood of what it learns, which the fields of independent units have not, and the page says what was climbed."""
    generator = np.random.default_rng(1)
    real = objective == "denoising"
    bits = correlated_bits(300, 4)
    data = generator.normal(size=(300, 2)) @ np.array([[3.0, 1, 2, 0], [0, 1, -2, 3]]) if real else bits
    np.save(tmp_path / "x.npy", data)
    options = (
        ("--model", "gaussian-rbm", "--hidden", 3, "--learning-rate", 0.03)
        if real
        else ("--model", "ising", "--learning-rate", 0.2)
    )
    outcome = call(
        "train", tmp_path / "x.npy", *options, "--objective", objective, "--validation", 0.2, "--epochs", 60, "--evaluate-every", 30,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = strict((tmp_path / "run" / "results.json").read_text())
    assert found["log_z_estimate"]["known"] == "exact"
    assert found["splits"]["train"]["log_likelihood"] > found["factorised"]["train"]["log_likelihood"] + 0.05
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"training objective, {objective}," in page
    assert call("evaluate", tmp_path / "run").code == 0


def test_alarms_are_said_as_they_fire_and_stand_in_the_report(tmp_path, monkeypatch):
    """A run whose monitor looks every 8 updates, and whose hidden units all die at once."""
    monkeypatch.setattr(lnz.learning.Monitor, "every", lambda self, energy, phase, batch: 8)
    np.save(tmp_path / "x.npy", np.ones((60, 4), np.uint8) * (np.arange(60) % 5 > 0)[:, None])
    options = ("--hidden", 3, "--epochs", 24, "--validation", 0.2, "--learning-rate", 50, "--evaluate-every", 24)
    outcome = call("train", tmp_path / "x.npy", *options, "--negative-phase", "jarzynski", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    looks = [json.loads(line) for line in (tmp_path / "run" / "looks.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [8, 16, 24]
    alarms = json.loads((tmp_path / "run" / "results.json").read_text())["alarms"]
    assert alarms == [alarm for look in looks for alarm in look["alarms"]]
    assert alarms
    assert f"alarm: update {alarms[0]['step']}: {alarms[0]['seen']}. {alarms[0]['remedy']}" in outcome.err
    assert "<h2>Alarms</h2>" in (tmp_path / "run" / "report.html").read_text()


def test_images_become_bits_by_one_rule(tmp_path):
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (50, 3, 4)).astype(np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    run = tmp_path / "run"
    options = ("--negative-phase", "cd", "--steps", 2, "--hidden", 4, "--epochs", 1, "--evaluate-every", 1)
    outcome = call("train", tmp_path / "x.npz", *options, "--out", run)
    assert outcome.code == 0, outcome.err
    assert "values from 127.5 up are 1, those below are 0" in outcome.err
    assert "nats per image" in outcome.out
    np.save(tmp_path / "dark.npy", (images[:9] // 4).reshape(9, -1))
    np.save(tmp_path / "zeros.npy", np.zeros((9, 12), np.uint8))
    dark, zeros = (strict(call("evaluate", run, tmp_path / name, "--json").out) for name in ("dark.npy", "zeros.npy"))
    assert dark["log_likelihood"] == zeros["log_likelihood"]  # the threshold is the run's, not the file's
    np.save(tmp_path / "bits.npy", (images[:9] >= 128).reshape(9, -1))
    np.save(tmp_path / "grey.npy", images[:9])
    outcome = call("evaluate", run, tmp_path / "bits.npy", "--json")
    assert "already holds 0 and 1" in outcome.err
    grey = strict(call("evaluate", run, tmp_path / "grey.npy", "--json").out)
    assert strict(outcome.out)["log_likelihood"] == grey["log_likelihood"]
    assert call("sample", run, "-n", 9, "--out", tmp_path / "tiles.png").code == 0


@pytest.mark.parametrize("rate", [1e9, 1e38])
def test_training_that_diverges(bits, tmp_path, rate):
    options = ("--hidden", 3, "--epochs", 6, "--evaluate-every", 2, "--validation", 0.2, "--schedule", "constant")
    run = tmp_path / "run"
    outcome = call("train", bits, *options, "--learning-rate", rate, "--out", run)
    assert outcome.code == 1
    assert re.match(r"learning diverged: .*at update \d", outcome.error)
    assert "Lower --learning-rate" in outcome.error
    for command in ("evaluate", "logz", "sample"):
        assert "its learning diverged" in call(command, run).error
    # The run is not in the way of the next one, which leaves nothing of it.
    again = call("train", bits, *options, "--learning-rate", 0.1, "--out", run)
    assert again.code == 0, again.err
    assert not (run / "diverged.json").exists()
    assert call("evaluate", run).code == 0
    assert call("train", bits, *options, "--learning-rate", 0.1, "--out", run).code == 2


def test_a_diverged_run_of_a_queue_is_begun_anew(bits, tmp_path):
    options = ("--hidden", 3, "--epochs", 2, "--out", tmp_path / "run", "--resume-or-start")
    assert call("train", bits, *options, "--learning-rate", 1e38).code == 1
    assert call("train", bits, *options, "--learning-rate", 0.1).code == 0


def test_as_a_process(finished):
    process = start("logz", finished, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert strict(out)["known"] == "exact"
    process = start("train", "digits", "--bogus")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("lnz: error: ")
    assert err.count("\n") == 1
