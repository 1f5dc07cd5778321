"""MNIST's idx format: two zero bytes, a type, the number of axes, big-endian lengths, then the values."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from lnz._core.files import read_into
from lnz.io._data import Data, DataError, one_line, size_words

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_ENDINGS = ("-ubyte", ".ubyte", ".idx", ".idx2", ".idx3", ".idx4")
_DEFLATE_LIMIT = 1032  # gzip cannot shrink data by more than this factor


def is_idx(name: str) -> bool:
    """Whether a lower-case file name is that of an idx file, gzipped or not."""
    return name.removesuffix(".gz").endswith(_ENDINGS)


def read_idx(path: Path) -> Data:
    """Read an idx file of data (at least two axes), gzipped or not.

    The size that the header declares is checked against the file's before memory is asked for; for a gzipped file,
    against the most that gzip can have shrunk to it.
    """
    size = os.path.getsize(path)
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            array = _read(file, path, size, zipped)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file ({one_line(error)}). Fetch it again") from None
    except EOFError:
        raise DataError(f"{path}: is cut short. Fetch or write it again") from None
    shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    return Data(array, str(path), shape)


def _read(file: io.BufferedIOBase, path: Path, size: int, zipped: bool) -> np.ndarray:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or not 1 <= head[3] <= 8:
        raise DataError(f"{path}: not an idx file (it starts with {head!r}). Give one such as train-images-idx3-ubyte")
    dtype, axes = np.dtype(_TYPES[head[2]]), head[3]
    lengths = file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path}: is cut short in its header. Fetch or write it again")
    shape = tuple(int(length) for length in np.frombuffer(lengths, ">u4"))
    declared, header = math.prod(shape) * dtype.itemsize, 4 + 4 * axes
    most = size * _DEFLATE_LIMIT if zipped else size
    if header + declared > most or (not zipped and header + declared < size):
        held = f"at most {most}" if zipped else f"{size}"
        raise DataError(
            f"{path}: its header declares {size_words(shape)} values, {header + declared} bytes in all, "
            f"but the file holds {held}. Fetch or write it again"
        )
    if declared == 0:
        raise DataError(f"{path}: its header declares {size_words(shape)} values, that is none. Give data with rows")
    if axes == 1:
        raise DataError(f"{path}: holds one number per example, such as labels. Give the file of the images")
    array = np.empty(math.prod(shape), dtype)
    read_into(file, array)
    if zipped and file.read(1):
        raise DataError(f"{path}: goes on after the {size_words(shape)} values of its header. Fetch or write it again")
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return array.reshape(shape)
