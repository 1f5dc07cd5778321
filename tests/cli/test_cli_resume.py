"""A run that is interrupted, killed or out of disk goes on as if nothing had happened."""

import errno
import json
import random
import shutil
import signal
import time

import numpy as np
import pytest
from cli_cases import call, start

from lnz._core.checkpoint import load_arrays

EPOCHS = 240


def options(bits, out):
    every = ("--epochs", EPOCHS, "--evaluate-every", 2, "--batch-size", 16, "--hidden", 3)
    return ("train", bits, *every, "--optimizer", "adam", "--out", out)


@pytest.fixture(scope="module")
def whole(bits, tmp_path_factory):
    """The run that is never interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    outcome = call(*options(bits, out))
    assert outcome.code == 0, outcome.err
    return out


def metrics(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def assert_same_run(run, whole):
    for name in ("model.lnz", "base.lnz", "checkpoint.safetensors", "checkpoint.safetensors.best"):
        found, expected = (load_arrays(folder / name)[0] for folder in (run, whole))
        assert found.keys() == expected.keys()
        for key in expected:
            assert np.array_equal(found[key], expected[key]), (name, key)
    assert metrics(run) == metrics(whole)
    assert np.array_equal(np.load(run / "samples.npy"), np.load(whole / "samples.npy"))
    found, expected = (json.loads((folder / "results.json").read_text()) for folder in (run, whole))
    assert found["splits"] == expected["splits"]


def wait_for_records(process, run, count):
    path = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)


def test_killed_at_a_random_moment(whole, bits, tmp_path):
    run = tmp_path / "run"
    process = start(*options(bits, run))
    wait_for_records(process, run, random.randrange(0, EPOCHS // 4))
    time.sleep(random.random() / 10)
    process.kill()
    process.communicate()
    assert not (run / "results.json").exists() or process.returncode == 0
    outcome = call("train", "--resume", run)
    assert outcome.code == 0, outcome.err
    assert_same_run(run, whole)


def test_interrupted_by_the_keyboard(whole, bits, tmp_path):
    run = tmp_path / "run"
    for _ in range(5):  # on a busy machine a run may end before it is stopped
        process = start(*options(bits, run))
        wait_for_records(process, run, 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        if process.returncode:
            break
        shutil.rmtree(run)
    assert process.returncode == 130, err
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("lnz: error: interrupted after update ")
    assert line.endswith(f"; the state is saved. Go on with: lnz train --resume {run}")
    assert "Traceback" not in err
    outcome = call("train", "--resume", run)
    assert outcome.code == 0, outcome.err
    assert_same_run(run, whole)


def test_killed_before_anything_was_written_but_the_config(whole, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.json", run)
    outcome = call("train", "--resume", run)
    assert outcome.code == 0, outcome.err
    assert_same_run(run, whole)


def test_killed_between_a_record_and_its_checkpoint(whole, tmp_path):
    """A record without its checkpoint is dropped and made again, and so is a line that was cut short."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    checkpoint = run / "checkpoint.safetensors"
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 99999, "epoch": 1, "seconds": 1, "figures": {}, "validation": null}\n{"step": 100')
    outcome = call("train", "--resume", run)
    assert outcome.code == 0, outcome.err
    assert checkpoint.exists()
    assert_same_run(run, whole)


def fail_after(monkeypatch, writes, number):
    """Let the system refuse to write from some write on."""
    left = [writes]

    def fsync(_):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, "refused")

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.parametrize("writes", [0, 1, 4, 9])
def test_a_full_disk(writes, whole, bits, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_after(patch, writes, errno.ENOSPC)
        outcome = call("train", bits, "--epochs", 4, "--evaluate-every", 2, "--hidden", 3, "--out", run)
    assert outcome.code == 1
    assert "could not be written" in outcome.error
    assert "Free some space" in outcome.error
    assert not [path.name for path in run.iterdir() if path.name.endswith(".tmp")]
    if writes:
        outcome = call("train", "--resume", run)
        assert outcome.code == 0, outcome.err


def test_samples_on_a_full_disk(whole, tmp_path, monkeypatch):
    fail_after(monkeypatch, 0, errno.ENOSPC)
    outcome = call("sample", whole, "--out", tmp_path / "x.npy")
    assert outcome.code == 1
    assert outcome.error.endswith("could not be written: the disk is full. Free some space, or write to another disk")
    assert not list(tmp_path.iterdir())


def test_interrupted_while_measuring(bits, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("lnz._cli.train._measure", interrupt)
        outcome = call("train", bits, "--epochs", 2, "--hidden", 3, "--out", run)
    assert outcome.code == 130
    assert outcome.error == f"interrupted; what was done is saved. Go on with: lnz train --resume {run}"
    assert call("train", "--resume", run).code == 0
    assert (run / "report.html").exists()
