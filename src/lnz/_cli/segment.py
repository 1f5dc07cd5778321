"""`lnz segment train | apply | evaluate`: semantic segmentation by a conditional random field with neural potentials."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import Any

import numpy as np

import lnz
from lnz import report
from lnz._cli.errors import BadInput, refusing
from lnz._cli.folder import RunFolder
from lnz._cli.metrics import Metrics, resumable
from lnz._cli.output import facts
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._cli.segment_options import MODEL, PARTS, Apply, Evaluate, Train
from lnz._core.packages import package
from lnz.apps import LabelledImages, Prediction, Segmenter
from lnz.apps._segmentation.segment_settings import Settings
from lnz.apps._segmentation.segment_training import STAGES, SegmenterEvaluation, Training
from lnz.apps._segmentation.selection import scores

_SHOWN = 6  # images in the report


def train(options: Train) -> None:
    """Train a segmenter, and leave a run folder with a report."""
    prepare_jax()
    began = time.perf_counter()
    if options.resume is not None:
        folder = RunFolder(options.resume)
        config = folder.config_of("segmenter", *PARTS)
        folder.note_versions()
        data = _read(config)
    else:
        assert options.folder is not None
        assert options.out is not None
        config: dict[str, Any] = {"kind": "segmenter", "data": str(options.folder.resolve())}
        config["coding"] = {"classes": options.classes, "void": options.void}
        config["settings"] = dataclasses.asdict(options.settings)
        data = _read(config)
        config["coding"]["classes"] = data.classes
        folder = RunFolder.begin(options.out, config, force=options.force, resume_or_start=options.resume_or_start)
    found = folder.results() or _train(data, config["settings"], folder, began)
    rows = [("Trained on", f"{found['images']} images of {config['data']}"), *_score_rows(found, found["measured_on"])]
    rows += [("Time", f"{found['seconds']:.0f} s"), ("Run", found["run"]), ("Report", str(folder["report.html"]))]
    facts(found, rows, as_json=options.json)


def _read(config: dict[str, Any]) -> LabelledImages:
    """The data of a configuration. Everything that can be refused is refused before a folder is touched."""
    config["settings"]["scales"] = tuple(config["settings"]["scales"])
    with Step(f"reading {config['data']}"), refusing():
        data = lnz.apps.read_segmentation(Path(config["data"]), **config["coding"])
        Training(data, Settings(**config["settings"]))
    return data


def _train(data: LabelledImages, settings: dict[str, Any], run: RunFolder, began: float) -> dict[str, Any]:
    """Fit, measure and report."""
    metrics = Metrics(run)

    def on_evaluation(found: SegmenterEvaluation) -> None:
        metrics.add(found._asdict() | {"seconds": time.perf_counter() - began})
        held = "" if found.validation is None else f"  held-out {found.validation:.4f}"
        progress.say(f"{found.stage} epoch {found.epoch}  loss {found.loss:.4f}{held} nats/node")

    def done() -> str:
        if not metrics.records:
            return "; nothing was saved yet"
        return "; epoch {epoch} of the stage {stage} is saved".format(**metrics.records[-1])

    with resumable(run, done):
        with Step("compiling") as progress:
            fitted = lnz.apps.fit_segmenter(
                data, checkpoint=run["checkpoint.safetensors"], on_evaluation=on_evaluation, **settings
            )
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
                "epochs": {stage: sum(each.stage == stage for each in fitted.evaluations) for stage in STAGES},
                "seconds": time.perf_counter() - began,
            }
            _report(run, found, settings, shown, prediction, fitted.evaluations)
        run.write_json("results.json", found)
    return found


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
