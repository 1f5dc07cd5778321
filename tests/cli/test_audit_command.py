"""`lnz audit FILE.py:NAME`: the checklist, JSON, the page, exit codes, and one line for whatever is wrong."""

import json

import numpy as np
import pytest
from cli_cases import call

MODEL = """
import jax, jax.numpy as jnp, lnz

def normal(t, x):
    return 0.5 * t * jnp.sum(x**2)

def cut(t, x):
    return jnp.where((x[0] >= 0) & (x[0] < t), x[0], jnp.inf)

good = lnz.FunctionEnergy(jax.tree_util.Partial(normal, jnp.asarray(1.0)), lnz.Real(1))
bad = lnz.FunctionEnergy(jax.tree_util.Partial(cut, jnp.asarray(1.3)), lnz.Box(-1.0, 5.0, shape=1))
number = 3

def bare(x):
    return x[0] ** 2

def needy(x, temperature):
    return x[0] ** 2 / temperature
needy.space = lnz.Real(1)
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_an_energy_that_is_right(model, tmp_path):
    drawn = tmp_path / "drawn.npy"
    np.save(drawn, np.random.default_rng(0).normal(size=(4, 1000, 1)))
    page = tmp_path / "audit.html"
    outcome = call("audit", f"{model}:good", "--samples", drawn, "--report", page)
    assert outcome.code == 0, outcome.error
    lines = outcome.out.splitlines()
    assert lines[0] == "Audit of normal on Real(1)"
    assert sum(line.startswith("passed ") for line in lines) == 15
    text = page.read_text()
    assert "No check failed" in text
    assert text.count("data:image/png;base64") == 1
    assert "http" not in text.replace("http-equiv", "")
    again = call("audit", f"{model}:good", "--report", page)
    assert again.code == 2
    assert "exists already" in again.error


def test_an_energy_that_is_wrong(model):
    outcome = call("audit", f"{model}:bad", "--json")
    assert outcome.code == 1
    found = json.loads(outcome.out)
    assert found["passed"] is False
    failed = {check["name"] for check in found["checks"] if check["status"] == "failed"}
    assert {"gradient against difference", "support that moves with θ"} <= failed
    assert all({"name", "status", "evidence", "remedy", "z"} == set(check) for check in found["checks"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("{folder}/model.py", "names no energy. Write FILE.py:NAME"),
        ("{folder}/nowhere.py:energy", "there is no such file"),
        ("{folder}/model.py:other", "has no 'other'. It has bad, bare, cut, good"),
        ("{folder}/model.py:bare", "has no space. Wrap it"),
        ("{folder}/model.py:number", "has no space. Wrap it"),
        ("{folder}/model.py:needy", "cannot be called on a state of Real(1): TypeError"),
        ("{folder}/broken.py:energy", "running it raised ZeroDivisionError: division by zero"),
        ("{folder}/notes.txt:energy", "is not a Python file"),
        ("{folder}/nothing.lnz", "nothing.lnz"),
    ],
)
def test_what_cannot_be_audited(model, tmp_path, target, words):
    (tmp_path / "broken.py").write_text("energy = 1 / 0\n")
    (tmp_path / "notes.txt").write_text("an energy\n")
    outcome = call("audit", target.format(folder=tmp_path))
    assert outcome.code == 2
    assert words in outcome.error
    assert "\n" not in outcome.error


def test_samples_that_cannot_be_read(model, tmp_path):
    (tmp_path / "drawn.npy").write_bytes(b"no array")
    outcome = call("audit", f"{model}:good", "--samples", tmp_path / "drawn.npy")
    assert outcome.code == 2
    assert "Give an .npy file" in outcome.error
    np.save(tmp_path / "wide.npy", np.zeros((5, 3)))
    outcome = call("audit", f"{model}:good", "--samples", tmp_path / "wide.npy")
    assert outcome.code == 2
    assert "shape" in outcome.error
