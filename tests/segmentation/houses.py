"""Small made images, and the whole path on them: training, an interruption, resuming, measuring, labelling. A program of its own, so that the
compiler can be asked to be quick."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lnz
from lnz.cli import run as run_command

SMALL = (
    "--stride",
    2,
    "--channels",
    8,
    "--depth",
    1,
    "--scales",
    "1",
    "--no-vary",
    "--batch-size",
    4,
    "--learning-rate",
    0.02,
)


def made(n, seed):
    """A red or blue roof, and below it a grey block whose class says which colour the roof has; 3 classes, images of 20 x 16."""
    rng = np.random.default_rng(seed)
    images, labels = np.full((n, 16, 20, 3), 40.0), np.zeros((n, 16, 20), np.int32)
    for i in range(n):
        kind, left, top = rng.integers(0, 2), rng.integers(0, 12), rng.integers(0, 3)
        images[i, top : top + 4, left : left + 8] = (220, 40, 40) if kind else (40, 40, 220)
        images[i, top + 4 : top + 10, left : left + 8] = 140
        labels[i, top + 4 : top + 10, left : left + 8] = 1 + kind
    images += rng.normal(0, 8, images.shape)
    names = tuple(f"house{i:02}" for i in range(n))
    return lnz.LabelledImages(np.clip(images, 0, 255).astype(np.uint8), labels, 3, names, "houses")


def written(folder, data):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for name, pixels, labels in zip(data.names, data.images, data.labels, strict=True):
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels.astype(np.uint8)).save(folder / "masks" / f"{name}.png")
    return folder


def call(*args):
    """The exit code, stdout and stderr of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lnz.cli.process._done", True)  # these tests have JAX's settings from conftest.py
        code = run_command(["segment", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


OPTIONS = (*SMALL, "--epochs", 30, "--context-epochs", 3, "--patience", 40, "--validation", 0.2, "--json")
COMMANDS = ("trained", "interrupted", "unfinished", "resumed", "evaluated", "applied")


def whole_path(path):
    """Run the commands in a folder; what each printed is in NAME.json."""
    from lnz.segmentation.training import Training

    written(path / "train", made(30, 0))
    written(path / "test", made(20, 1))
    epoch, done = Training.epoch, []

    def interrupted(self, state):
        if len(done) == 31:  # in the second stage
            raise KeyboardInterrupt
        done.append(None)
        return epoch(self, state)

    for name, args in {
        "trained": ("train", path / "train", "--out", path / "run", *OPTIONS),
        "interrupted": ("train", path / "train", "--out", path / "cut", *OPTIONS),
        "unfinished": ("evaluate", path / "cut", path / "test"),
        "resumed": ("train", "--resume", path / "cut", "--json"),
        "evaluated": ("evaluate", path / "run", path / "test", "--json"),
        "applied": ("apply", path / "run", path / "test", "--out", path / "labelled", "--json"),
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            if name == "interrupted":
                patch.setattr(Training, "epoch", interrupted)
            (path / f"{name}.json").write_text(json.dumps(call(*args)))
    prediction = lnz.Segmenter.load(path / "run/segmenter.safetensors").predict(made(20, 1).images)
    np.savez(path / "prediction.npz", **prediction._asdict())


def in_own_process(path):
    """`whole_path`, with the strict settings of the suite."""
    strict = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    settings = os.environ | strict | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    settings["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, __file__, str(path)], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: json.loads((path / f"{name}.json").read_text()) for name in COMMANDS}


if __name__ == "__main__":
    whole_path(Path(sys.argv[1]))
