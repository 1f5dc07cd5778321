"""Reading labelled images from a folder of PNG images and masks, or from arrays, with all checks of the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from lnz.io._data import DataError
from lnz.io._images import SUFFIXES, read_image

VOID = -1  # the label of a pixel that is not scored
_MASKS = ("masks", "labels")
_MOST = 256  # classes that a mask of 8 bits can tell apart


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Images of one size, with the class of every pixel where it is known.

    Attributes:
        images: colours, 0 … 255, shape (n, height, width, 3).
        labels: classes 0 … classes - 1, and -1 where a pixel is not scored; None for images without labels.
        classes: number of classes; 0 without labels.
        names: names of the images.
        source: description of their origin, for messages.
    """

    images: UInt8[np.ndarray, "n height width 3"]
    labels: Int[np.ndarray, "n height width"] | None
    classes: int
    names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
            raise DataError(
                f"{self.source}: images must be uint8 of shape (n, height, width, 3), but are {images.dtype} of shape {images.shape}"
            )
        if labels is None:
            return
        if labels.shape != images.shape[:3] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{self.source}: {len(images)} images of {images.shape[1]} x {images.shape[2]} pixels need as many masks of that size, but the "
                f"masks are {labels.dtype} of shape {labels.shape}"
            )
        if labels.max(initial=VOID) >= self.classes or labels.min(initial=VOID) < VOID:
            wrong = int(labels.max()) if labels.max() >= self.classes else int(labels.min())
            at = int(np.argmax((labels == wrong).any((1, 2))))
            raise DataError(
                f"{self.source}: the mask of {self.names[at]} holds {wrong}, but the classes are 0 … {self.classes - 1}. Fix it, or give "
                "the void value and the number of classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> LabelledImages:
        """Some of the images: a slice, or an array of rows."""
        chosen = np.arange(len(self))[rows]
        return dataclasses.replace(
            self,
            images=self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            names=tuple(self.names[i] for i in chosen),
        )

    def __repr__(self) -> str:
        _, height, width, _ = self.images.shape
        classes = "unlabelled" if self.labels is None else f"{self.classes} classes"
        return f"LabelledImages({len(self)} of {width} x {height} pixels, {classes}, from {self.source})"


def read_segmentation(
    path: str | Path, *, labelled: bool = True, classes: int | None = None, void: int = 255
) -> LabelledImages:
    """Read images and the classes of their pixels.

    | path | content |
    |---|---|
    | a folder | `images/NAME.png` and `masks/NAME.png` (or `labels/`), one mask per image. Without `labelled` also a folder of images alone |
    | an image | that image, without labels |
    | `….npz` | the arrays `images` (n, height, width, 3) and `labels` or `masks`, the latter also as packed bits |
    | `…_labels.npz` | `labels`, with all images stacked vertically in `…_images.png` beside it |

    A mask holds the number of every pixel's class, as grey values or as palette indices. Masks of 0 and 255 alone are two classes.

    Args:
        path: see above.
        labelled: whether masks are needed; otherwise they are read where there are any.
        classes: number of classes; by default one more than the largest label.
        void: the value of pixels that are not scored.

    Raises:
        DataError: where images and masks differ in number, names or size, a file is damaged, a label lies outside the classes, or masks are
            needed but missing.
    """
    path = Path(path)
    if path.is_dir():
        images, masks, names = _read_folder(path, labelled)
    elif not path.is_file():
        raise DataError(f"{path}: there is no such file or folder. Check the spelling and the current folder")
    elif path.suffix.lower() == ".npz":
        images, masks = _read_arrays(path)
        names = tuple(str(i) for i in range(len(images)))
    elif path.suffix.lower() in SUFFIXES:
        images, masks, names = read_image(path, mode="RGB")[None], None, (path.stem,)
    else:
        raise DataError(f"{path}: is neither a folder, an image nor an .npz file. Give one of these")
    if masks is None:
        if labelled:
            raise DataError(f"{path}: holds images without masks. Put masks of the same names into {path / _MASKS[0]}")
        return LabelledImages(images, None, 0, names, str(path))
    labels = _coded(masks, void)
    if classes is None:
        classes = int(labels.max(initial=VOID)) + 1
        if classes > _MOST:
            raise DataError(
                f"{path}: the masks hold labels up to {classes - 1}, but there can be at most {_MOST} classes. Check the masks"
            )
    return LabelledImages(images, labels, classes, names, str(path))


def check_for_training(data: LabelledImages) -> None:
    """Raise DataError for data without labels, or with a single class."""
    if data.labels is None:
        raise DataError(f"{data.source}: holds no masks, so there is nothing to learn. Add masks")
    there = np.unique(data.labels[data.labels != VOID])
    if len(there) < 2:
        what = f"all are of class {there[0]}" if len(there) else "all are void"
        raise DataError(
            f"{data.source}: a segmentation needs at least two classes of pixels, but {what}. Check the masks"
        )


def _read_folder(folder: Path, labelled: bool) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    where = folder / "images" if (folder / "images").is_dir() else folder
    beside = next((folder / name for name in _MASKS if (folder / name).is_dir()), None)
    if where == folder and (labelled or beside is not None):
        raise DataError(
            f"{folder}: holds no folder `images`. Put the images into {folder / 'images'} and the masks into {folder / 'masks'}"
        )
    paths = _files(where)
    if not paths:
        raise DataError(f"{where}: the folder holds no images. Put images ({' '.join(SUFFIXES)}) into it")
    first = read_image(paths[0], mode="RGB")
    wanted = (paths[0], first.shape)
    masks = None
    if beside is not None:
        masks = _read_masks(beside, paths, first.shape[:2])
    images = np.stack([first, *(read_image(path, wanted, mode="RGB") for path in paths[1:])])
    return images, masks, tuple(path.stem for path in paths)


def _read_masks(folder: Path, images: list[Path], size: tuple[int, ...]) -> np.ndarray:
    paths = {path.stem: path for path in _files(folder)}
    if not paths:
        raise DataError(f"{folder}: the folder holds no masks. Put one mask for every image into it")
    stems = [path.stem for path in images]
    missing, extra = [s for s in stems if s not in paths], sorted(set(paths) - set(stems))
    if missing or extra:
        lone = f"the image {missing[0]} has no mask" if missing else f"the mask {extra[0]} has no image"
        raise DataError(
            f"{folder}: {lone} ({len(stems)} images, {len(paths)} masks). Give both the same names, apart from the suffix"
        )
    masks = []
    for image, stem in zip(images, stems, strict=True):
        mask = read_image(paths[stem], (image, size), mode=None)
        if mask.ndim != 2:
            raise DataError(
                f"{paths[stem]}: is in colour, but a mask must hold class numbers. Save it in grey or with a palette"
            )
        masks.append(mask.astype(np.int32))
    return np.stack(masks)


def _files(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    return sorted(found)


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in ("images", "labels", "masks")}
    except Exception as error:  # a damaged archive can fail in many ways
        raise DataError(
            f"{path}: cannot be read as an .npz archive ({type(error).__name__}). Fetch or write it again"
        ) from None
    labels = arrays.get("labels", arrays.get("masks"))
    if "images" in arrays:
        images = arrays["images"]
    elif labels is not None and path.stem.endswith("_labels") and labels.ndim == 3:
        stack = path.with_name(path.stem.removesuffix("_labels") + "_images.png")
        if not stack.is_file():
            raise DataError(f"{path}: holds labels alone, and there is no {stack} beside it. Put the images there")
        pixels = read_image(stack, mode="RGB")
        if pixels.shape[:2] != (len(labels) * labels.shape[1], labels.shape[2]):
            raise DataError(
                f"{stack}: is {pixels.shape[1]} x {pixels.shape[0]} pixels, but must hold {len(labels)} images of {labels.shape[2]} x "
                f"{labels.shape[1]}, stacked vertically. Give the images of these labels"
            )
        images = pixels.reshape(*labels.shape, 3)
    else:
        raise DataError(
            f"{path}: holds no array `images` of shape (n, height, width, 3). Save the images under this name"
        )
    if images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f"{path}: `images` must have shape (n, height, width, 3), but has shape {images.shape}")
    if labels is not None and labels.ndim == 2 and labels.dtype == np.uint8 and len(labels) == len(images):
        height, width = images.shape[1:3]
        if labels.shape[1] != -(-height * width // 8):
            raise DataError(f"{path}: masks of {labels.shape[1]} bytes do not fit images of {width} x {height} pixels")
        labels = np.unpackbits(labels, axis=1)[:, : height * width].reshape(-1, height, width)
    if labels is not None and labels.dtype.kind not in "iub":
        raise DataError(f"{path}: labels must be integers, but are {labels.dtype}")
    return images, None if labels is None else labels.astype(np.int32)


def _coded(masks: np.ndarray, void: int) -> np.ndarray:
    """Classes from the values of masks: void becomes -1, and where there are 0 and 255 alone, 255 becomes 1."""
    if void == 255 and set(np.unique(masks)) == {0, 255}:
        return (masks == 255).astype(np.int32)
    return np.where(masks == void, VOID, masks).astype(np.int32)
