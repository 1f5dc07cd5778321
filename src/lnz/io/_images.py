"""A folder of images as one array of grey values."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from lnz._core.packages import package
from lnz.io._data import Data, DataError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits per sample


def read_folder(folder: Path) -> Data:
    """Read the images of a folder, in the order of their names: uint8 of shape (n, height, width), 255 for white.

    Colours become grey by Pillow's weights (ITU-R 601); transparency is dropped; only the first frame of an animation
    is used. Files without an image's suffix, hidden files and subfolders are ignored. All images must have one size.
    """
    entries = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    paths = [p for p in entries if p.is_file()]
    if not paths:
        raise DataError(f"{folder}: the folder holds no images of its own. Put images ({' '.join(SUFFIXES)}) into it")
    first = read_image(paths[0])
    array = np.empty((len(paths), *first.shape), np.uint8)
    array[0] = first
    for i, path in enumerate(paths[1:], 1):
        array[i] = read_image(path, (paths[0], first.shape))
    return Data(array, str(folder), (first.shape[0], first.shape[1]))


def read_image(path: Path, wanted: tuple[Path, tuple[int, ...]] | None = None, *, mode: str | None = "L") -> np.ndarray:
    """The pixels of one image in one of Pillow's modes, or in its own if that is None. DataError where it is damaged or of another size.

    Args:
        path: the image.
        wanted: another image, and its shape (height, width), which this one must have.
        mode: such as "L" for grey values, "RGB" for colours.
    """
    Image = package("PIL.Image", "Reading images")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_header(path, image, wanted)
                return np.asarray(image if mode is None else image.convert(mode))
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{path}: declares more pixels than an image may hold. Make it smaller, or remove it") from None
    except Exception as error:  # a damaged image can fail in any of Pillow's decoders
        raise DataError(f"{path}: cannot be read as an image ({one_line(error)}). Replace or remove it") from None


def _check_header(path: Path, image: Any, wanted: tuple[Path, tuple[int, ...]] | None) -> None:
    """Check the mode and size in the header, before any pixel is decoded."""
    if image.mode.split(";")[0] in _DEEP:
        raise DataError(f"{path}: has more than 8 bits per sample (mode {image.mode}). Save it as an 8-bit image")
    shape = (image.size[1], image.size[0])
    if wanted is not None and shape != wanted[1][:2]:
        other, (height, width, *_) = wanted
        raise DataError(
            f"{path} is {shape[1]} x {shape[0]} pixels, but {other} is {width} x {height}. "
            "Give all images of a folder one size"
        )
