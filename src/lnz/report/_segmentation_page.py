"""Pictures of segmentations, and the page of a run of `lnz segment train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lnz.io import write_atomic
from lnz.report._page import document, escaped, fact_table, figure
from lnz.report._style import BLUE, ORANGE, Canvas, matplotlib

_VOID = (0.85, 0.85, 0.85)
_STAGES = {"unary": "unary net alone", "context": "with context", "refined": "refined"}
_CAPTION = (
    "Held-out images where there are any. Truth (void in grey); the most probable class by the unary net alone, after mean field on the coarse map, "
    "and after the dense field; and the probability of that class, dark where the model is unsure."
)


def segmentations(path: Path, images: np.ndarray, labels: np.ndarray, prediction: Any) -> None:
    """Rows of image, truth, unary, context, refined and confidence, one row an image.

    Args:
        path: the PNG file.
        images: bytes (n, height, width, 3).
        labels: classes (n, height, width), -1 for void.
        prediction: of these images, see `lnz.apps.Prediction`.
    """
    n, height, width, _ = images.shape
    colours = _colours(prediction.unary.shape[-1])
    columns = [
        ("image", images),
        ("truth", colours[labels]),
        *((name, colours[getattr(prediction, name).argmax(-1)]) for name in _STAGES),
    ]
    with Canvas(path, width=11, height=11 / 6 * height / width * n + 0.35) as canvas:
        axes = canvas.subplots(n, len(columns) + 1, squeeze=False)
        for i in range(n):
            for j, (name, pixels) in enumerate(columns):
                axes[i, j].imshow(pixels[i])
                axes[0, j].set_title(name)
            shown = axes[i, -1].imshow(prediction.confidence[i], cmap="magma", vmin=0, vmax=1)
        axes[0, -1].set_title("confidence")
        canvas.colorbar(shown, ax=axes[:, -1], fraction=0.05, pad=0.02)
        for one in axes.ravel():
            one.grid(False)
            one.set_xticks([])
            one.set_yticks([])
            for spine in one.spines.values():
                spine.set_visible(False)


def losses(path: Path, looks: list[dict[str, Any]]) -> None:
    """The objective after every epoch, one panel a stage.

    Args:
        path: the PNG file.
        looks: with `stage`, `epoch`, `loss` and `validation` (or None), as `metrics.jsonl` holds them.
    """
    MaxNLocator = matplotlib("ticker").MaxNLocator

    stages = [stage for stage in ("unary", "context") if any(look["stage"] == stage for look in looks)]
    with Canvas(path, width=11, height=3) as canvas:
        for axes, stage in zip(canvas.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
            those = [look for look in looks if look["stage"] == stage]
            epochs = [look["epoch"] for look in those]
            axes.plot(epochs, [look["loss"] for look in those], color=BLUE, label="training", marker=".")
            if those[0]["validation"] is not None:
                axes.plot(epochs, [look["validation"] for look in those], color=ORANGE, label="held out", marker=".")
            axes.set_title(f"Objective of the stage {stage}")
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel("nats per node")
            axes.legend()


def segmentation_page(
    path: Path, *, title: str, results: dict[str, Any], settings: dict[str, Any], pictures: dict[str, bytes]
) -> None:
    """Write the page of a segmenter: its scores, pictures and settings, in one file that needs no other.

    Args:
        path: the HTML file.
        title: the run's name.
        results: as `results.json` holds them.
        settings: of the training.
        pictures: PNGs, by the names `segmentations` and `losses`.
    """
    from lnz.apps._segmentation.network import RELATIONS

    head = '<tr><th></th><th class="number">pixel accuracy</th><th class="number">mean IoU</th></tr>'
    rows = "".join(
        f'<tr class="{"strong" if stage == "refined" else ""}"><td>{escaped(words)}</td>'
        + "".join(
            f'<td class="number">{100 * results["stages"][stage][name]:.2f} %</td>'
            for name in ("pixel_accuracy", "mean_iou")
        )
        + "</tr>"
        for stage, words in _STAGES.items()
    )
    scales = ", ".join(f"{name} {value:g}" for name, value in zip(RELATIONS, results["scales"], strict=True))
    chosen = [
        ("scales", scales),
        ("dense field", ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in results["dense"].items())),
        ("epochs", ", ".join(f"{stage} {n}" for stage, n in results["epochs"].items())),
        ("time", f"{results['seconds']:.0f} s"),
    ]
    body = f"""<h1>{escaped(title)}</h1>
<p class="quiet">A segmenter of {results["classes"]} classes, trained on {results["images"]} images, {results["held_out"]} held out.</p>
<h2>Scores on the {escaped(results["measured_on"])} images</h2>
<table>{head}{rows}</table>
<p class="quiet">What was chosen by held-out images, the scales of relations and the dense field, makes scores on them somewhat too good.</p>
{figure("Segmentations", _CAPTION, pictures["segmentations"])}
{figure("How the run went", "The mean of every epoch, and the same on the held-out images.", pictures["losses"])}
<h2>Chosen</h2>
{fact_table(chosen)}
<h2>Settings</h2>
{fact_table([(name.replace("_", " "), str(value)) for name, value in settings.items()], code=True)}"""
    write_atomic(path, lambda file: file.write(document(title, body).encode()))


def _colours(classes: int) -> np.ndarray:
    """A colour a class, and that of void last, so that -1 finds it."""
    names = matplotlib().colormaps["tab10" if classes <= 10 else "tab20" if classes <= 20 else "gist_ncar"]
    several = names(np.arange(classes) if classes <= 20 else np.linspace(0, 1, classes))[:, :3]
    return np.concatenate([several, [_VOID]])
