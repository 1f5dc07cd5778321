"""Small made images, and the whole path on them: training, an interruption, resuming, measuring, labelling."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

import lnz
from lnz._cli import run as run_command
from lnz.apps._segmentation.segment_training import Training

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
    return lnz.apps.LabelledImages(np.clip(images, 0, 255).astype(np.uint8), labels, 3, names, "houses")


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
        patch.setattr("lnz._cli.process._done", True)  # these tests have JAX's settings from conftest.py
        code = run_command(["segment", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


OPTIONS = (*SMALL, "--epochs", 30, "--context-epochs", 3, "--patience", 40, "--validation", 0.2, "--json")


def whole_path(path):
    """Run the commands in a folder: what each printed, by name; and the models at the start of the run, of its second stage, and an epoch later."""
    written(path / "train", made(30, 0))
    written(path / "test", made(20, 1))
    step, models, printed = Training.step, [], {}

    def interrupted(self, state):
        models.append(state.state.model)
        if len(models) == 32:  # in the second stage
            raise KeyboardInterrupt
        return step(self, state)

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
                patch.setattr(Training, "step", interrupted)
            printed[name] = call(*args)
    prediction = lnz.apps.Segmenter.load(path / "run/segmenter.safetensors").predict(made(20, 1).images)
    np.savez(path / "prediction.npz", **prediction._asdict())
    return printed, [models[i] for i in (0, 30, 31)]
