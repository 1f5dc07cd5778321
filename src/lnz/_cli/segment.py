"""`lnz segment train | apply | evaluate`: semantic segmentation by a conditional random field with neural potentials."""

from __future__ import annotations

import dataclasses
import enum
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lnz._cli.errors import BadInput, refuse_with_resume
from lnz._core.packages import package

if TYPE_CHECKING:
    import numpy as np

    from lnz._cli.folder import RunFolder
    from lnz.apps import LabelledImages, Prediction, Segmenter

commands = typer.Typer(
    no_args_is_help=True,
    help="Label every pixel of images by a conditional random field whose potentials are networks.",
)

_MODEL, _STATE = "segmenter.safetensors", "checkpoint.safetensors"
_DATA, _NETWORK, _LEARNING, _RUN = "Data", "Network", "Learning", "Run"
_SHOWN = 6  # images in the report
_PARTS = ("settings", "coding", "data")  # of config.json


class Objective(enum.StrEnum):
    piecewise = "piecewise"
    piecewise_inside = "piecewise-inside"
    pseudo_likelihood = "pseudo-likelihood"
    bethe = "bethe"
    mean_field = "mean-field"
    exact = "exact"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder made by `lnz segment train`.", show_default=False)]


@commands.command()
def train(
    ctx: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A folder with images/NAME.png and masks/NAME.png, an .npz with `images` and `labels` or `masks`, or "
            "a ..._labels.npz with ..._images.png beside it.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(rich_help_panel=_RUN, help="The run folder.", show_default=False)] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, rich_help_panel=_DATA, help="Their number. [1 + the largest label]")
    ] = None,
    void: Annotated[int, typer.Option(rich_help_panel=_DATA, help="The value of pixels that are not scored.")] = 255,
    validation: Annotated[
        float,
        typer.Option(rich_help_panel=_DATA, help="The share of images that is held out, to stop and to choose by."),
    ] = 0.1,
    stride: Annotated[
        int,
        typer.Option(
            rich_help_panel=_NETWORK,
            help="Pixels a node of the map: 1, 2 or 4; 0 for the largest that leaves 20 nodes along the shorter side.",
        ),
    ] = 0,
    channels: Annotated[int, typer.Option(min=4, rich_help_panel=_NETWORK, help="Of the first convolution.")] = 24,
    depth: Annotated[int, typer.Option(min=0, rich_help_panel=_NETWORK, help="How often the map is halved.")] = 3,
    scales: Annotated[
        str, typer.Option(rich_help_panel=_NETWORK, metavar="S,S,...", help="Of the image, that the trunk sees it at.")
    ] = "1,0.5",
    reach: Annotated[
        float,
        typer.Option(
            "--range", rich_help_panel=_NETWORK, help="Side of the boxes of neighbours, in shorter sides of the map."
        ),
    ] = 0.4,
    neighbours: Annotated[
        int, typer.Option(min=2, rich_help_panel=_NETWORK, help="Rows and columns that are kept of a box.")
    ] = 3,
    objective: Annotated[
        Objective, typer.Option(rich_help_panel=_LEARNING, help="That the pairwise potentials are trained by.")
    ] = Objective.piecewise,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=_LEARNING, help="Of trunk and unary net.")] = 100,
    context_epochs: Annotated[
        int, typer.Option(min=0, rich_help_panel=_LEARNING, help="Of the objective; 0 for no context.")
    ] = 6,
    batch_size: Annotated[int, typer.Option(min=1, rich_help_panel=_LEARNING, help="Images an update.")] = 8,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=_LEARNING, help="Of AdamW, at its highest.")] = 5e-3,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=_LEARNING, help="Of AdamW.")] = 1e-2,
    patience: Annotated[
        int, typer.Option(min=1, rich_help_panel=_LEARNING, help="Epochs without a better held-out loss.")
    ] = 20,
    vary: Annotated[
        bool, typer.Option(rich_help_panel=_LEARNING, help="Mirror, move, scale, turn and shade images at random.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=_RUN, help="Replace a run of that name.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_RUN, metavar="RUN", help="Go on with an interrupted run, as if it had never stopped."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_RUN, help="Of weights, order and split.")] = 0,
    json: Json = False,
) -> None:
    """Train a segmenter, and leave a run folder with a report.

    Trunk and unary net come first, then the pairwise nets by the objective; last, on the held-out images, how much each relation counts, and
    the dense field that refines.

    Examples:

    - lnz segment train street --out runs/street
    - lnz segment train horses.npz --stride 1 --objective piecewise-inside --out runs/horses
    - lnz segment train --resume runs/street
    """
    from lnz._cli.folder import RunFolder
    from lnz._cli.process import prepare_jax

    if resume is not None:
        refuse_with_resume(ctx, "folder")
        config = RunFolder.open(resume).config_of("segmenter", *_PARTS)
        if (resume / "results.json").is_file():
            raise BadInput(f"{resume}: is finished. Evaluate it, or train anew")
        source, settings, coding = Path(config["data"]), config["settings"], config["coding"]
    elif folder is None or out is None:
        raise BadInput(
            "segment train: name the data and a run folder, such as `lnz segment train street --out runs/street`"
        )
    else:
        source = folder
        settings = {
            "objective": str(objective),
            "epochs": epochs,
            "context_epochs": context_epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "validation": validation,
            "patience": patience,
            "vary": vary,
            "seed": seed,
            "stride": stride,
            "channels": channels,
            "depth": depth,
            "scales": _numbers(scales),
            "reach": reach,
            "neighbours": neighbours,
        }
        coding = {"classes": classes, "void": void}
    prepare_jax()
    _train(source, settings, coding, out, resume, force=force, as_json=json)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"--scales: {text!r} are no numbers with commas between them, such as 1,0.5") from None


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
    import lnz
    from lnz._cli import output
    from lnz._cli.errors import refusing
    from lnz._cli.folder import RunFolder, versions
    from lnz._cli.progress import Step
    from lnz.apps._segmentation.segment_settings import Settings
    from lnz.apps._segmentation.segment_training import Training
    from lnz.apps._segmentation.selection import scores
    from lnz.learning._loop import Interrupted

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
    segmenter.save(run[_MODEL])
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
    rows = [("trained on", f"{found['images']} images of {source}"), *_score_rows(found, which)]
    rows += [("time", f"{found['seconds']:.0f} s"), ("run", str(run.path)), ("report", str(run["report.html"]))]
    output.facts(found, rows, as_json=as_json)


@commands.command()
def apply(
    run: RunArgument,
    images: Annotated[Path, typer.Argument(help="A folder of images, an image, or an .npz.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The folder to write into.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace files.")] = False,
    json: Json = False,
) -> None:
    """Label images: OUT/masks/NAME.png holds the number of every pixel's class, OUT/confidence/NAME.png its probability, 255 for 1.

    Examples:

    - lnz segment apply runs/street photographs --out labelled
    """
    import numpy as np

    import lnz
    from lnz._cli import output
    from lnz._cli.progress import Step

    segmenter = _open(run)
    data = lnz.apps.read_segmentation(images, labelled=False)
    _check_size(segmenter, data)
    folders = {"masks": out / "masks", "confidence": out / "confidence"}
    there = [path / f"{name}.png" for path in folders.values() for name in data.names]
    taken = next((path for path in there if path.exists()), None)
    if taken is not None and not force:
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
        ("labelled", f"{len(data)} images into {out}"),
        ("confidence", f"{100 * found['mean_confidence']:.1f} % on average"),
    ]
    output.facts(found, rows, as_json=json)


@commands.command()
def evaluate(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(help="Images with masks, as for training.", show_default=False)],
    json: Json = False,
) -> None:
    """Compare labels with masks: pixel accuracy and mean IoU as fractions, over all pixels that are not void.

    The JSON object has pixel_accuracy, mean_iou and iou (one a class; null for a class that is neither there nor found) of the refined labels,
    and the same under `stages` for the unary net alone, with context, and refined.

    Examples:

    - lnz segment evaluate runs/street street-test --json
    """
    import lnz
    from lnz._cli import output
    from lnz._cli.folder import RunFolder
    from lnz._cli.progress import Step
    from lnz.apps._segmentation.selection import scores

    segmenter = _open(run)
    coding = RunFolder(run).config_of("segmenter", *_PARTS)["coding"]
    data = lnz.apps.read_segmentation(folder, classes=coding["classes"], void=coding["void"])
    _check_size(segmenter, data)
    began = time.perf_counter()
    with Step("labelling"):
        prediction = segmenter.predict(data.images)
    seconds = time.perf_counter() - began
    found = {"run": str(run), "images": len(data), **_scores_json(scores(prediction, data)), "seconds": seconds}
    output.facts(found, [("images", str(len(data))), *_score_rows(found, "these")], as_json=json)


def _scores_json(found: dict[str, Any]) -> dict[str, Any]:
    stages = {
        stage: {"pixel_accuracy": score.pixel_accuracy, "mean_iou": score.mean_iou, "iou": score.iou.tolist()}
        for stage, score in found.items()
    }
    return stages["refined"] | {"stages": stages}


def _score_rows(found: dict[str, Any], which: str) -> list[tuple[str, str]]:
    words = {"unary": "unary net alone", "context": "with context", "refined": "refined"}
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
    from lnz import report

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

    from lnz.io import write_atomic

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_atomic(path, lambda file: file.write(content.getbuffer()))


def _open(path: Path) -> Segmenter:
    """The segmenter of a run."""
    from lnz._cli.folder import RunFolder
    from lnz._cli.process import prepare_jax

    folder = RunFolder.open(path)
    folder.config_of("segmenter", *_PARTS)
    if not folder[_MODEL].is_file():
        raise BadInput(f"{path}: is not finished. Go on with it by lnz segment train --resume {path}")
    prepare_jax()
    import lnz

    return lnz.apps.Segmenter.load(folder[_MODEL])
