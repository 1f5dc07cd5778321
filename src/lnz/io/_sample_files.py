"""Writers of samples, as arrays, tables and pictures; files are written atomically."""

import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from lnz._core.files import WriteError as WriteError
from lnz._core.files import write_atomic as write_atomic
from lnz._core.given import ArrayLike
from lnz._core.packages import package
from lnz.io._data import DataError, numeric_problem

_SUFFIXES = (".npy", ".npz", ".csv", ".png")
_TILE = 24  # the least number of pixels of a tile's longer side
_PICTURE = 640  # and of a picture's
_GAP, _GAP_GREY = 2, 128
_PIXELS = 50_000_000


def save_samples(
    path: str | os.PathLike[str],
    array: ArrayLike,
    image_shape: tuple[int, int] | None = None,
    *,
    force: bool = False,
) -> None:
    """Write samples to a file, in the format of its suffix: `.npy`, `.npz`, `.csv` or `.png`.

    An `.npz` holds the array under `images` where there is an image shape, otherwise under `x`, so that `load` finds
    it again; a `.csv` has one row per sample under a header x0, x1, …, as UAI files count; a `.png` shows all samples as tiles, row by row.
    Values from 0 to 1 are drawn from white to black, as a report draws them, and so are values from -1 to 1; uint8 values beyond 1 as grey
    levels, and any others from black, the smallest, to white. The file appears whole or not at all.

    Args:
        path: where to write.
        array: the samples, of NumPy or JAX: shape (n, *shape), finite numbers.
        image_shape: (height, width) of one sample; a `.png` needs it.
        force: replace a file that exists.

    Raises:
        DataError: an unknown suffix, a file that exists, samples that do not fit the format.
        WriteError: a full disk, a missing folder and the like.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "samples.png"
        >>> save_samples(path, np.eye(4), (2, 2))
        >>> path.exists()
        True
    """
    path, array = Path(path), np.asarray(array)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path}: samples cannot be written as {suffix!r}. Choose one of {', '.join(_SUFFIXES)}")
    if problem := numeric_problem(array.dtype):
        raise DataError(f"{path}: the array of samples {problem}")
    if array.ndim < 2 or array.size == 0:
        raise DataError(
            f"{path}: samples of shape {array.shape} do not have rows and columns. Give (n, k), at least (1, 1)"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{path}: the samples hold NaN or infinity, so the chains have failed. Check the model first")
    if os.path.exists(path) and not force:
        raise DataError(f"{path}: exists already. Choose another name, or ask for it to be overwritten (force)")
    if suffix == ".npy":
        write_atomic(path, lambda file: np.save(file, array, allow_pickle=False))
    elif suffix == ".npz":
        name = "x" if image_shape is None else "images"
        write_atomic(path, lambda file: _write_archive(file, name, array))
    elif suffix == ".csv":
        write_atomic(path, lambda file: _write_table(file, array))
    else:
        _write_picture(path, array, image_shape)


def _write_archive(file: io.BufferedIOBase, name: str, array: np.ndarray) -> None:
    # By hand, since numpy.savez of NumPy 2.0 leaves its archive open when the disk is full.
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,  # type: ignore[arg-type]
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array(member, array, allow_pickle=False)


def _write_table(file: io.BufferedIOBase, array: np.ndarray) -> None:
    rows = array.reshape(len(array), -1)
    form = "%d" if rows.dtype.kind in "biu" else "%.17g" if rows.dtype.itemsize > 4 else "%.9g"
    header = ",".join(f"x{i}" for i in range(rows.shape[1]))
    np.savetxt(file, rows, fmt=form, delimiter=",", header=header, comments="")


def _write_picture(path: Path, array: np.ndarray, image_shape: tuple[int, int] | None) -> None:
    Image = package("PIL.Image", "Writing images")

    if image_shape is None:
        raise DataError(f"{path}: a picture needs the height and width of one sample. Give them, or write .npy")
    height, width = image_shape
    if height < 1 or width < 1 or array[0].size != height * width:
        raise DataError(
            f"{path}: a sample holds {array[0].size} values, not {height} x {width}. Give the right height and width"
        )
    across = math.ceil(math.sqrt(len(array)))
    zoom = max(1, math.ceil(max(_TILE, _PICTURE / across) / max(height, width)))
    down = math.ceil(len(array) / across)
    tall, wide = height * zoom + _GAP, width * zoom + _GAP
    if (pixels := (tall * down + _GAP) * (wide * across + _GAP)) > _PIXELS:
        raise DataError(f"{path}: {len(array)} tiles would take {pixels} pixels. Draw fewer samples, or write .npy")
    tiles = _grey(array).reshape(-1, height, width).repeat(zoom, axis=1).repeat(zoom, axis=2)
    canvas = np.full((tall * down + _GAP, wide * across + _GAP), _GAP_GREY, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = _GAP + tall * (i // across), _GAP + wide * (i % across)
        canvas[top : top + height * zoom, left : left + width * zoom] = tile
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="PNG")
    write_atomic(path, lambda file: file.write(buffer.getbuffer()))


def _grey(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if array.dtype == np.uint8 and high > 1:
        return array
    if low >= -1 and high <= 1:
        least = 0.0 if low >= 0 else -1.0
        return np.rint((1.0 - array.astype(np.float64)) / (1.0 - least) * 255).astype(np.uint8)
    span = high - low if high > low else 1.0
    return np.rint((array.astype(np.float64) - low) / span * 255).astype(np.uint8)
