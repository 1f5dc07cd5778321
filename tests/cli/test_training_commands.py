"""What `lnz train`, `lnz tag train` and `lnz segment train` have in common: signals, kills, and one command line for queues."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_cases import ROOT, call

from lnz._core.checkpoint import load_arrays

SLOW = """
import time
from lnz.learning._resume import Keeper
save = Keeper.save
def slow(*args):
    save(*args)
    time.sleep(0.2)
Keeper.save = slow
from lnz._cli import main
main()
"""  # every checkpoint takes a while, so that a signal finds the run at work
MODELS = {"train": "model.lnz", "tag": "tagger.safetensors", "segment": "segmenter.safetensors"}


def column_file(path):
    """Words whose tag depends on the word before."""
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(40):
        words = rng.integers(0, 9, rng.integers(2, 8))
        rows.append("\n".join(f"w{b} t{(a + b) % 3}" for a, b in zip([0, *words], words, strict=False)))
    path.write_text("\n\n".join(rows) + "\n")
    return path


def images(path):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, (12, 4, 5)).repeat(4, 1).repeat(4, 2)
    pixels = 60 + 120 * labels[..., None] + rng.integers(0, 40, (*labels.shape, 3))
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module", params=list(MODELS))
def command(request, bits, tmp_path_factory):
    """The words of a command with its data, and the name of its model."""
    path = tmp_path_factory.mktemp("data")
    if request.param == "train":
        words = ("train", bits, "--epochs", 40, "--evaluate-every", 2, "--hidden", 3, "--batch-size", 16)
    elif request.param == "tag":
        words = ("tag", "train", column_file(path / "words.txt"), "--l2", 1e-4)
    else:
        options = ("--stride", 2, "--channels", 4, "--depth", 1, "--scales", "1", "--no-vary", "--batch-size", 5)
        words = ("segment", "train", images(path / "made.npz"), *options, "--epochs", 8, "--context-epochs", 3)
    return words, MODELS[request.param]


def start(*args):
    """A command in a process of its own, slowly."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SLOW, *map(str, args)], env=environment, **pipes)


def records(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def stopped(process, run, number):
    """The exit code and the last line of a command that gets a signal once it has made another record."""
    before = len(records(run))
    deadline = time.monotonic() + 300
    while len(records(run)) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert "Traceback" not in err
    return process.returncode, (err.splitlines() or [""])[-1]


def test_the_same_command_line_again_and_again(command, tmp_path):
    """Stopped by SIGTERM, then killed, then left alone, then called once more: the run that was never stopped, and no error at the end."""
    words, model = command
    whole, run = tmp_path / "whole", tmp_path / "run"
    outcome = call(*words, "--out", whole, "--json")
    assert outcome.code == 0, outcome.err
    line = (*words, "--out", run, "--resume-or-start", "--json")
    code, said = stopped(start(*line), run, signal.SIGTERM)
    assert code == 143, said
    assert said.startswith("lnz: error: interrupted")
    name = " ".join(["lnz", *words[: 1 + (words[0] != "train")]])
    assert said.endswith(f"Go on with: {name} --resume {run}")
    stopped(start(*line), run, signal.SIGKILL)
    assert not (run / "results.json").exists()
    assert len(records(run)) < len(records(whole))
    again = call(*line)
    assert again.code == 0, again.err
    assert len(records(run)) == len(records(whole))
    found, expected = (load_arrays(folder / model)[0] for folder in (run, whole))
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    once_more = call(*line)
    assert once_more.code == 0, once_more.err
    assert f"{run} is finished already" in once_more.err
    assert json.loads(once_more.out) == json.loads(again.out)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert call(*words, "--out", run, "--resume-or-start", "--seed", 9).error.startswith(
        f"{run}: was begun with other settings: seed is 0, and here it is 9."
    )
    assert "--force" in call(*line, "--force").error
    assert (
        "Leave out --resume-or-start"
        in call(*words[:-1][: 1 + (words[0] != "train")], "--resume", run, "--resume-or-start").error
    )
