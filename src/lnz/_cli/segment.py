"""`lnz segment train | apply | evaluate`: semantic segmentation by a conditional random field with neural potentials."""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import lnz
from lnz import report
from lnz._cli.errors import BadInput, refusing
from lnz._cli.folder import RunFolder, versions
from lnz._cli.output import facts
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._cli.segment_options import MODEL, PARTS, Apply, Evaluate, Train
from lnz._core.packages import package
from lnz.apps import LabelledImages, Prediction, Segmenter
from lnz.apps._segmentation.segment_settings import Settings
from lnz.apps._segmentation.segment_training import Training
from lnz.apps._segmentation.selection import scores
from lnz.learning._loop import Interrupted

_STATE = "checkpoint.safetensors"
_SHOWN = 6  # images in the report


def train(options: Train) -> None:
    """Train a segmenter, and leave a run folder with a report."""
    prepare_jax()
    if options.resume is not None:
        config = RunFolder(options.resume).config_of("segmenter", *PARTS)
        source, settings, coding = Path(config["data"]), config["settings"], config["coding"]
    else:
        assert options.folder is not None
        source, settings = options.folder, dataclasses.asdict(options.settings)
        coding = {"classes": options.classes, "void": options.void}
    _train(source, settings, coding, options.out, options.resume, force=options.force, as_json=options.json)


def _train(
    source: Path,
    settings: dict[str, Any],
    coding: dict[str, Any],
    out: Path | None,
    resume: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Read, check, fit, measure and report. Everything that can be refused is refused before the folder is touched."""
    began = time.perf_counter()
    settings = settings | {"scales": tuple(settings["scales"])}
    with Step(f"reading {source}"), refusing():
        data = lnz.apps.read_segmentation(source, classes=coding["classes"], void=coding["void"])
        Training(data, Settings(**settings))
    if resume is not None:
        run = RunFolder(resume)
    else:
        assert out is not None
        run = RunFolder.create(out, force=force)
        about = {"kind": "segmenter", "command": ["lnz", *sys.argv[1:]], "data": str(source.resolve())}
        coding = coding | {"classes": data.classes}
        run.write_json("config.json", about | {"coding": coding, "settings": settings, "versions": versions()})
    lines = run.records() if run[_STATE].is_file() else []
    last = "nothing was saved yet"

    def on_evaluation(look: Any) -> None:
        nonlocal last
        lines.append(look._asdict() | {"seconds": time.perf_counter() - began})
        run.write_lines("metrics.jsonl", lines)
        last = f"epoch {look.epoch} of the stage {look.stage} is saved"
        held = "" if look.validation is None else f"  held-out {look.validation:.4f}"
        progress.say(f"{look.stage} epoch {look.epoch}  loss {look.loss:.4f}{held} nats/node")

    try:
        with Step("compiling") as progress:
            fitted = lnz.apps.fit_segmenter(data, checkpoint=run[_STATE], on_evaluation=on_evaluation, **settings)
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted; {last}. Go on with: lnz segment train --resume {run.path}") from None
    segmenter, training = fitted.segmenter, fitted.training
    segmenter.save(run[MODEL])
    shown, which = (training.train, "training") if training.held_out is None else (training.held_out, "held-out")
    with Step("measuring, and drawing the report"):
        prediction = segmenter.predict(shown.images)
        found = {
            "run": str(run.path),
            "images": len(training.train),
            "held_out": 0 if training.held_out is None else len(training.held_out),
            "classes": data.classes,
            "measured_on": which,
            **_scores_json(scores(prediction, shown)),
            "scales": segmenter.potentials.scales.tolist(),
            "dense": dataclasses.asdict(segmenter.dense),
            "epochs": {
                stage: sum(look.stage == stage for look in fitted.evaluations) for stage in ("unary", "context")
            },
            "seconds": time.perf_counter() - began,
        }
        _report(run, found, settings, shown, prediction, fitted.evaluations)
    run.write_json("results.json", found)
    rows = [("Trained on", f"{found['images']} images of {source}"), *_score_rows(found, which)]
    rows += [("Time", f"{found['seconds']:.0f} s"), ("Run", str(run.path)), ("Report", str(run["report.html"]))]
    facts(found, rows, as_json=as_json)


def apply(options: Apply) -> None:
    """Label images."""
    segmenter = _open(options.run)
    out = options.out
    data = lnz.apps.read_segmentation(options.images, labelled=False)
    _check_size(segmenter, data)
    folders = {"masks": out / "masks", "confidence": out / "confidence"}
    there = [path / f"{name}.png" for path in folders.values() for name in data.names]
    taken = next((path for path in there if path.exists()), None)
    if taken is not None and not options.force:
        raise BadInput(f"{taken}: exists already. Choose another folder, or replace it by --force")
    with Step("labelling"):
        prediction = segmenter.predict(data.images)
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    confidence = np.rint(255 * prediction.confidence).astype(np.uint8)
    for i, name in enumerate(data.names):
        _write_png(folders["masks"] / f"{name}.png", prediction.labels[i].astype(np.uint8))
        _write_png(folders["confidence"] / f"{name}.png", confidence[i])
    found = {"out": str(out), "images": len(data), "mean_confidence": float(prediction.confidence.mean())}
    rows = [
        ("Labelled", f"{len(data)} images into {out}"),
        ("Confidence", f"{100 * found['mean_confidence']:.1f} % on average"),
    ]
    facts(found, rows, as_json=options.json)


def evaluate(options: Evaluate) -> None:
    """Compare labels with masks."""
    segmenter = _open(options.run)
    coding = RunFolder(options.run).config_of("segmenter", *PARTS)["coding"]
    data = lnz.apps.read_segmentation(options.folder, classes=coding["classes"], void=coding["void"])
    _check_size(segmenter, data)
    began = time.perf_counter()
    with Step("labelling"):
        prediction = segmenter.predict(data.images)
    seconds = time.perf_counter() - began
    found = {"run": str(options.run), "images": len(data), **_scores_json(scores(prediction, data)), "seconds": seconds}
    facts(found, [("Images", str(len(data))), *_score_rows(found, "these")], as_json=options.json)


def _scores_json(found: dict[str, Any]) -> dict[str, Any]:
    stages = {
        stage: {"pixel_accuracy": score.pixel_accuracy, "mean_iou": score.mean_iou, "iou": score.iou.tolist()}
        for stage, score in found.items()
    }
    return stages["refined"] | {"stages": stages}


def _score_rows(found: dict[str, Any], which: str) -> list[tuple[str, str]]:
    words = {"unary": "Unary network", "context": "With context", "refined": "Refined"}
    return [
        (
            words[stage],
            f"{100 * s['pixel_accuracy']:.2f} % of pixels, mean IoU {100 * s['mean_iou']:.2f} % ({which} images)",
        )
        for stage, s in found["stages"].items()
    ]


def _report(
    run: RunFolder,
    found: dict[str, Any],
    settings: dict[str, Any],
    shown: LabelledImages,
    prediction: Prediction,
    looks: Any,
) -> None:
    assert shown.labels is not None
    some = slice(0, _SHOWN)
    report.segmentations(
        run["segmentations.png"],
        shown.images[some],
        shown.labels[some],
        type(prediction)(*(p[some] for p in prediction)),
    )
    report.losses(run["losses.png"], [look._asdict() for look in looks])
    pictures = {name: run[f"{name}.png"].read_bytes() for name in ("segmentations", "losses")}
    report.segmentation_page(
        run["report.html"], title=run.path.name, results=found, settings=settings, pictures=pictures
    )


def _check_size(segmenter: Segmenter, data: LabelledImages) -> None:
    a = segmenter.potentials.architecture
    if data.images.shape[1:3] != (a.height, a.width):
        raise BadInput(
            f"{data.source}: has images of {data.images.shape[2]} x {data.images.shape[1]} pixels, but the run was trained on images of "
            f"{a.width} x {a.height}. Resize them"
        )


def _write_png(path: Path, pixels: np.ndarray) -> None:
    Image = package("PIL.Image", "Writing images")

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    lnz.io.write_atomic(path, lambda file: file.write(content.getbuffer()))


def _open(path: Path) -> Segmenter:
    """The segmenter of a run."""
    prepare_jax()
    return lnz.apps.Segmenter.load(RunFolder(path)[MODEL])
