"""`lnz logz FILE.uai`: against sums over all configurations, and every refusal before any work."""

import gzip
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import ROOT, call

import lnz
from lnz._cli.commands import LogZ
from lnz.io import read_uai_mar, write_uai_evidence
from lnz.io._uai import read_uai_model

KEYS = {"log_z", "log10_z", "lower", "upper", "known", "route", "width", "memory", "seconds"}


def save(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def model(tmp_path):
    """A loop of four variables with 2, 3, 1 and 3 values, a chord, a field, a constant, and some zeros."""
    rng = np.random.default_rng(3)
    cardinalities, scopes = [2, 3, 1, 3], [(0, 1), (1, 2), (2, 3), (3, 0), (1, 3), (3,), ()]
    lines = ["MARKOV", "4", "2 3 1 3", "7", *(f"{len(s)} {' '.join(map(str, s))}" for s in scopes)]
    for scope in scopes:
        size = math.prod(cardinalities[i] for i in scope)
        entries = rng.gamma(1.0, size=size) * (rng.random(size) > 0.2 * (len(scope) == 2))
        lines.append(f"{size} {' '.join(map(repr, entries.tolist()))}")
    return save(tmp_path / "loop.uai", "\n".join(lines))


def weights(path):
    """The weight of every configuration."""
    model = read_uai_model(path)
    found = np.ones(model.cardinalities)
    for state in itertools.product(*map(range, model.cardinalities)):
        for scope, table in zip(model.scopes, model.tables, strict=True):
            found[state] *= table[tuple(state[i] for i in scope)]
    return found


def answer(*args):
    outcome = call("logz", *args, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_log_z(model):
    found, truth = answer(model), math.log(weights(model).sum())
    assert set(found) >= KEYS
    assert found["log_z"] == pytest.approx(truth, abs=1e-12)
    assert found["log10_z"] == pytest.approx(truth / math.log(10), abs=1e-12)
    assert found["lower"] <= truth <= found["upper"]
    assert found["upper"] - found["lower"] < 1e-10
    assert found["known"] == "exact"
    assert "map" not in found
    assert "samples" not in found


@pytest.mark.parametrize(
    ("options", "known"), [(("--max-seconds", "1e-9"), "bound"), (("--max-memory", "100"), "exact")]
)
def test_limits_where_elimination_is_too_dear(tmp_path, options, known):
    rng = np.random.default_rng(1)
    torus = lnz.Ising.lattice((3, 4), rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4)), periodic=True)
    lnz.io.write_uai(tmp_path / "torus.uai", torus.factors())
    outcome = call("logz", tmp_path / "torus.uai", *options, "--json")
    assert "exact elimination is too expensive: " in outcome.err
    assert "Computing bounds on log Z instead" in outcome.err
    found, truth = json.loads(outcome.out), float(lnz.log_partition(torus, route=lnz.routes.Enumeration()).value)
    assert found["lower"] < truth < found["upper"]
    assert found["lower"] <= found["log_z"] <= found["upper"]
    assert found["known"] == known
    assert not found["zero"]
    shown = call("logz", tmp_path / "torus.uai", *options).out
    assert re.search(
        r"Guarantee +" + {"bound": "bound: both bounds always hold", "exact": "exact, up to rounding"}[known],
        shown,
    )


def test_a_picture_of_the_plan(model, tmp_path):
    assert answer(model, "--plot", tmp_path / "plan.png")["plot"] == str(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_says_what_the_route_says(model):
    found = answer(model)
    estimate = lnz.log_partition(lnz.io.read_uai(model), route=lnz.routes.Elimination())
    told = {"log_z": float(estimate.value), "lower": float(estimate.lower), "upper": float(estimate.upper)}
    assert {name: found[name] for name in told} == pytest.approx(told, rel=0, abs=1e-15)
    assert (found["known"], found["route"]) == (estimate.guarantee, estimate.route)


def test_everything_given_evidence(model, tmp_path):
    save(tmp_path / "loop.uai.evid", "1\n1 1 2")
    whole = weights(model)
    assert answer(model)["log_z"] == pytest.approx(math.log(whole.sum()))  # the file beside it was not named
    write_uai_evidence(tmp_path / "seen", {3: 1})
    out, mar = tmp_path / "x.npy", tmp_path / "x.MAR"
    options = ("--evidence", tmp_path / "seen", "--marginals", mar, "--map", "--samples", 4000, "--out", out)
    found = answer(model, *options, "--seed", 5)
    left = np.zeros_like(whole)
    left[..., 1] = whole[..., 1]
    assert found["log_z"] == pytest.approx(math.log(left.sum()))
    assert found["observed"] == 1
    p = left / left.sum()
    for i, marginal in enumerate(read_uai_mar(mar)):
        np.testing.assert_allclose(marginal, p.sum(axis=tuple(a for a in range(4) if a != i)), atol=1e-12)
    assert found["map"] == list(np.unravel_index(p.argmax(), p.shape))
    assert found["map_log_weight"] == pytest.approx(math.log(left.max()))
    states = np.load(out)
    assert (found["samples"], found["n"], states.shape) == (str(out), 4000, (4000, 4))
    counts = np.zeros(p.shape)
    np.add.at(counts, tuple(states.T), 1)
    assert (counts[p == 0] == 0).all()
    possible = p > 0
    chi_square = ((counts - 4000 * p)[possible] ** 2 / (4000 * p[possible])).sum()
    freedom = possible.sum() - 1
    assert chi_square < freedom + 6 * math.sqrt(2 * freedom) + 10


def test_jax_is_not_loaded(model, tmp_path):
    """It takes longer to load than most models to sum."""
    options = (
        "--marginals",
        tmp_path / "x.MAR",
        "--map",
        "--samples",
        5,
        "--out",
        tmp_path / "x.npy",
        "--force",
        "--json",
    )
    code = "import sys\ntry:\n    from lnz._cli import main; main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    for name, exit_code in ((model, 0), (save(tmp_path / "bad.uai", "MARKOV 2 2"), 2)):
        command = [sys.executable, "-c", code, "logz", *map(str, (name, *options))]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
        )
        assert done.returncode == exit_code, done.stderr
        loaded = set(done.stderr.splitlines()[-1].split())
        assert "numpy" in loaded
        assert not loaded & {"jax", "jaxtyping", "equinox", "scipy", "matplotlib", "rich.table"}


def test_the_same_seed_draws_the_same_samples(model, tmp_path):
    for name in ("a.npy", "b.npy"):
        answer(model, "--samples", 20, "--seed", 3, "--out", tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize("name", ["x.uai.gz", "x.uai", "x.txt"])
def test_a_file_is_known_by_its_name_or_its_first_word(model, tmp_path, name):
    text = model.read_bytes()
    path = save(
        tmp_path / name, gzip.compress(text, mtime=0) if name.endswith("gz") else text.replace(b"MARKOV", b"BAYES")
    )
    assert answer(path)["log_z"] == pytest.approx(math.log(weights(model).sum()))


def test_what_is_printed(model, tmp_path):
    outcome = call("logz", model, "--map", "--marginals", tmp_path / "x.MAR")
    assert outcome.code == 0
    shown = {line[:15].strip(): line[15:].strip() for line in outcome.out.splitlines()}
    truth = math.log(weights(model).sum())
    assert float(shown["log Z"].removesuffix(" nats")) == pytest.approx(truth)
    assert float(shown["log10 Z"]) == pytest.approx(truth / math.log(10))
    assert shown["Guarantee"].startswith("exact, up to rounding of ")
    assert shown["Width"] == str(answer(model)["width"])
    assert shown["Marginals"].endswith("x.MAR")
    assert {"Bounds", "Method", "Memory", "Time", "Most probable"} <= set(shown)


def test_z_of_zero_is_said_in_words(tmp_path):
    path = save(tmp_path / "x.uai", "MARKOV 2 2 2 2 1 0 1 0 2 1 0 2 0 1")
    found = answer(path)
    assert (found["log_z"], found["zero"], found["known"]) == (None, True, "exact")
    assert "Z = 0, no configuration is possible" in call("logz", path).out
    outcome = call("logz", path, "--marginals", tmp_path / "x.MAR")
    assert outcome.code == 2
    assert "Z = 0: no configuration is possible, so there are no marginals" in outcome.error
    assert not (tmp_path / "x.MAR").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-memory", "lots"), "--max-memory: 'lots' is not a size. Give, for example, 8G or 500M"),
        (("--max-memory", "0G"), "--max-memory: '0G' is not a size"),
        (("--map", "--max-memory", "1"), "exact elimination is too expensive: "),
        (("--samples", "3", "--max-seconds", "1e-9"), "exact elimination is too expensive: "),
        (("--within", "0"), "--within: 0 is not above 0"),
        (("--max-seconds", "-1"), "--max-seconds: -1 is not above 0"),
        (("--chains", "7"), "--chains is for a run or a saved energy. Leave it out"),
        (("--route", "ais"), "--route ais: a graphical model is summed exactly. Leave it out"),
        (("--samples", "3", "--out", "x.png"), "--out: '.png' is not a format for samples"),
        (("--evidence", "none"), "none: there is no such file"),
        (("--marginals", "none/x.MAR"), "none/x.MAR: its folder does not exist. Create the folder first"),
        (("--marginals", __file__), "exists already. Choose another name, or replace it by --force"),
    ],
)
def test_options_that_cannot_serve(model, options, message):
    outcome = call("logz", model, *options)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.out == ""


@pytest.mark.parametrize("options", [("--map",), ("--evidence", "x"), ("--max-memory", "8G"), ("--samples", "3")])
def test_options_of_graphical_models_alone(tmp_path, options):
    outcome = call("logz", tmp_path / "run", *options)
    assert outcome.code == 2
    assert f"{options[0]} is for a graphical model (.uai). Leave it out" in outcome.error


def test_bad_files(model, tmp_path):
    bad = save(tmp_path / "bad.uai", model.read_bytes()[:-30])
    outcome = call("logz", bad)
    assert outcome.code == 2
    assert outcome.error.startswith(f"{bad}: line ")
    seen = save(tmp_path / "seen", "1 3 7")
    outcome = call("logz", model, "--evidence", seen)
    assert outcome.code == 2
    assert outcome.error.startswith(f"{seen}: line 1, word 3: variable 3 has no value 7")
    assert call("logz", tmp_path / "none.uai").error.startswith(f"{tmp_path / 'none.uai'}: there is no such file")


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 8e9), ("500M", 5e8), ("1.5GiB", 1.5 * 2**30), ("2 kB", 2e3), ("77", 77), (None, None)]
)
def test_sizes_of_memory(text, size):
    assert LogZ(run=Path("x.uai"), max_memory=text).memory_bytes == size


@pytest.mark.parametrize(
    ("text", "width", "memory"),
    [
        ("MARKOV 2 2 2 1 2 0 1 4 1 2 3 4", 1, 56),
        ("MARKOV 3 4 4 4 1 3 0 1 2 64 " + "1 2 3 5 " * 16, 2, 512),
        ("MARKOV 2 2 2 0", 0, 56),
    ],
)
def test_what_is_summed_before_there_is_a_tree_has_a_width(tmp_path, text, width, memory):
    found = answer(save(tmp_path / "x.uai", text))
    assert found["width"] == width
    assert found["memory"] >= memory
