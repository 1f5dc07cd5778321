"""The options of `lnz segment`, and what it refuses before JAX is imported."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from lnz._cli.errors import BadInput, refuse_with_resume
from lnz._cli.folder import RunFolder
from lnz._cli.options import (
    Argument,
    Force,
    ForceRun,
    InData,
    InLearning,
    InRun,
    Json,
    Option,
    Options,
    Resume,
    ResumeOrStart,
    not_negative,
    positive,
)
from lnz._cli.refusals import existing

MODEL = "segmenter.safetensors"
PARTS = ("settings", "coding", "data")  # of config.json

_Network = functools.partial(Option, group="Network")

RunArgument = Annotated[Path, Argument(help="Run folder made by `lnz segment train`.")]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{text!r} are not numbers with commas between them, such as 1,0.5") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a segmenter depends on, apart from the images: what `config.json` keeps."""

    validation: Annotated[
        float, InData(help="Fraction of the images that is held out, to stop training and to choose settings.")
    ] = 0.1
    stride: Annotated[
        int,
        _Network(
            help="Pixels per node of the map, along each side: 1, 2 or 4; 0 for the largest that leaves 20 nodes along the shorter side.",
        ),
    ] = 0
    channels: Annotated[int, _Network(min=4, help="Number of channels of the first convolution.")] = 24
    depth: Annotated[int, _Network(min=0, help="Number of times that the trunk halves the map.")] = 3
    scales: Annotated[
        tuple[float, ...],
        _Network(read=_numbers, metavar="S,S,...", help="Scales of the image that the trunk receives."),
    ] = (1.0, 0.5)
    reach: Annotated[
        float,
        _Network("--range", help="Side of the boxes of neighbours, relative to the shorter side of the map."),
    ] = 0.4
    neighbours: Annotated[int, _Network(min=2, help="Number of rows and columns of neighbours kept from each box.")] = 3
    objective: Annotated[
        Literal["piecewise", "piecewise-inside", "pseudo-likelihood", "bethe", "mean-field", "exact"],
        InLearning(help="Objective that trains the pairwise potentials."),
    ] = "piecewise"
    epochs: Annotated[int, InLearning(min=1, help="Maximum number of epochs of the trunk and the unary network.")] = 100
    context_epochs: Annotated[
        int, InLearning(min=0, help="Maximum number of epochs of the pairwise networks; 0 for no context.")
    ] = 6
    batch_size: Annotated[int, InLearning(min=1, help="Number of images per update.")] = 8
    learning_rate: Annotated[float, InLearning(read=positive, help="Peak learning rate of AdamW.")] = 5e-3
    weight_decay: Annotated[float, InLearning(read=not_negative, help="Weight decay of AdamW.")] = 1e-2
    patience: Annotated[
        int, InLearning(min=1, help="Epochs without a better held-out loss after which a stage of training ends.")
    ] = 20
    vary: Annotated[
        bool, InLearning(help="Augment images at random: mirror, shift, scale, rotate and change brightness.")
    ] = True
    seed: Annotated[int, InRun(min=0, help="Seed of the initial weights, the order of images and the split.")] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Options):
    """Train a segmenter, and leave a run folder with a report.

    Trunk and unary network come first, then the pairwise networks by the objective; last, on the held-out images, the weight of each relation
    and the dense field that refines the labels.

    Examples:

    - lnz segment train street --out runs/street
    - lnz segment train horses.npz --stride 1 --objective piecewise-inside --out runs/horses
    - lnz segment train --resume runs/street
    """

    needs = ("rich", "matplotlib", "PIL")

    folder: Annotated[
        Path | None,
        Argument(
            help="A folder with images/NAME.png and masks/NAME.png, an .npz with `images` and `labels` or `masks`, or "
            "a ..._labels.npz with ..._images.png beside it.",
        ),
    ] = None
    out: Annotated[Path | None, InRun(help="Run folder.")] = None
    classes: Annotated[int | None, InData(min=2, help="Number of classes. [1 + the largest label]")] = None
    void: Annotated[int, InData(help="Mask value of pixels that are not scored.")] = 255
    settings: Settings = Settings()
    force: ForceRun = False
    resume: Resume = None
    resume_or_start: ResumeOrStart = False
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        if self.resume is not None:
            refuse_with_resume(given)
            RunFolder.open(self.resume).resumable("segmenter", *PARTS)
        elif self.folder is None or self.out is None:
            raise BadInput(
                "segment train: name the data and a run folder, such as `lnz segment train street --out runs/street`"
            )
        else:
            if not 0 <= self.settings.validation < 1:
                raise BadInput(f"--validation: {self.settings.validation:g} is not a fraction. Give, for example, 0.1")
            if self.settings.stride not in (0, 1, 2, 4):
                raise BadInput(f"--stride: {self.settings.stride} is not one of 0, 1, 2 and 4")
            existing(self.folder)
            RunFolder(self.out).refuse_taken(force=self.force, resume_or_start=self.resume_or_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apply(Options):
    """Label images: OUT/masks/NAME.png holds the class of every pixel, OUT/confidence/NAME.png its probability, 255 for 1.

    Examples:

    - lnz segment apply runs/street photographs --out labelled
    """

    needs = ("rich", "PIL")

    run: RunArgument
    images: Annotated[Path, Argument(help="Folder of images, an image, or an .npz.")]
    out: Annotated[Path, Option(help="Folder for the output.")]
    force: Force = False
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        _check_run(self.run, self.images)
        folder = self.images / "images" if (self.images / "images").is_dir() else self.images
        names = {path.stem for path in (folder.iterdir() if folder.is_dir() else [folder])}
        taken = [path for path in sorted(self.out.glob("*/*.png")) if path.stem in names]
        if taken and not self.force:
            raise BadInput(f"{taken[0]}: exists already. Choose another folder, or replace it by --force")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Compare labels with masks: pixel accuracy and mean IoU as fractions, over all pixels that are not void.

    The JSON object has pixel_accuracy, mean_iou and iou (one value per class; null for a class that is neither there nor found) of the refined
    labels, and the same under `stages` for the unary network alone, with context, and refined.

    Examples:

    - lnz segment evaluate runs/street street-test --json
    """

    run: RunArgument
    folder: Annotated[Path, Argument(help="Images with masks, as for training.")]
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        _check_run(self.run, self.folder)


def _check_run(path: Path, images: Path) -> None:
    folder = RunFolder.open(path)
    folder.config_of("segmenter", *PARTS)
    if not folder[MODEL].is_file():
        raise BadInput(f"{path}: is not finished. Go on with: {folder.again}")
    existing(images)
