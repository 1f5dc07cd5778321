"""`load`: any file or folder of data that lnz knows, as one array. NumPy's own files are read here."""

from __future__ import annotations

import io
import math
import os
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lnz._core.files import read_into
from lnz.io._data import Data, DataError, listed, numeric_problem, one_line, quoted
from lnz.io._idx import is_idx, read_idx
from lnz.io._images import SUFFIXES, read_folder
from lnz.io._table_files import read_delimited, read_parquet

KNOWN = ".npy, .npz, .csv, .tsv, .parquet, MNIST's idx (*-ubyte or .idx, also .gz), or a folder of images"
_PREFERRED = ("images", "x", "X", "data")
_LABELS = ("labels", "label", "y")
_DEFLATE_LIMIT = 1032  # deflate cannot shrink data by more than this factor


def load(path: str | os.PathLike[str], *, name: str | None = None) -> Data:
    """Read data from a file or a folder, chosen by its suffix.

    | source | what is read |
    |---|---|
    | `.npy` | the array; nothing is ever unpickled |
    | `.npz` | the array called `name`; without a name the only one, or the first of `images`, `x`, `X`, `data` |
    | `.csv`, `.tsv` | numbers; a header row is optional (see `tables.read_delimited`) |
    | `.parquet` | numeric and boolean columns |
    | `*-ubyte`, `.idx`, also `.gz` | MNIST's idx format |
    | a folder | its images in the order of their names, as grey values 0 to 255 |

    Labels are kept apart from the data: the arrays `labels`, `label` or `y` of an `.npz`, the columns `label` or
    `labels` of a table. The values are not checked against a space here: see `check`.

    Args:
        path: the file or folder.
        name: which array of an `.npz` to read.

    Returns:
        The data, shape (n, *shape) with n ≥ 1 and at least one value per example; the dtype is the file's.

    Raises:
        DataError: for anything wrong with the file, in one line that names it.

    Example:
        >>> import numpy as np, tempfile, os
        >>> path = os.path.join(tempfile.mkdtemp(), "x.npy")
        >>> np.save(path, np.eye(3))
        >>> load(path).array.shape
        (3, 3)
    """
    path = Path(path)
    try:
        data = _read(path, name)
    except MemoryError:
        raise DataError(
            f"{path}: the data do not fit into memory. Use fewer rows, or a smaller type such as uint8"
        ) from None
    except (OSError, EOFError) as error:
        cause = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{path}: cannot be read ({cause}). Check that it is a file you may read") from None
    n, *shape = data.array.shape
    if n == 0:
        raise DataError(f"{path}: holds no rows. Give data with at least 2 rows")
    if math.prod(shape) == 0:
        raise DataError(f"{path}: each of its {n} rows is empty. Give data with at least one column")
    return data


def _read(path: Path, name: str | None) -> Data:
    if not path.exists():
        raise DataError(f"{path}: there is no such file. Check the spelling and the folder you are in")
    lower = path.name.lower()
    if name is not None and not (lower.endswith(".npz") and path.is_file()):
        raise DataError(f"{path}: an array's name was given, but only .npz files hold several arrays. Leave it out")
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file. Save the data to a file first")
    suffix = path.suffix.lower()
    readers = {
        ".npy": _read_npy,
        ".npz": lambda p: _read_npz(p, name),
        ".csv": lambda p: read_delimited(p, ","),
        ".tsv": lambda p: read_delimited(p, "\t"),
        ".parquet": read_parquet,
    }
    reader = read_idx if is_idx(lower) else readers.get(suffix)
    if reader is None:
        hint = " (for images give the folder that holds them)" if suffix in SUFFIXES else ""
        raise DataError(f"{path}: unknown suffix {suffix!r}{hint}. Known: {KNOWN}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes). Write it again")
    return reader(path)


def _read_npy(path: Path) -> Data:
    with open(path, "rb") as file:
        array = _read_array(file, path.stat().st_size, str(path))
    return _as_data(array, str(path))


def _read_npz(path: Path, name: str | None) -> Data:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}
            chosen = _choose(path, list(members), name)
            array = _read_member(path, archive, members[chosen], chosen)
            found = next((label for label in _LABELS if label in members and label != chosen), None)
            labels = None if found is None else _read_member(path, archive, members[found], found, text=True)
    except (DataError, MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged archive can fail in zipfile, in struct or in a decompressor
        raise DataError(f"{path}: not a whole .npz archive ({one_line(error)}). Fetch or write it again") from None
    if labels is not None and labels.shape != array.shape[:1]:
        if name is not None:  # the labels may well belong to another array of the file
            return _as_data(array, str(path), images=chosen == "images")
        raise DataError(
            f"{path}: {quoted(found)} has shape {labels.shape}, but {quoted(chosen)} holds {len(array)} rows. "
            f"Give one label per row, or remove {quoted(found)}"
        )
    return _as_data(array, str(path), images=chosen == "images", labels=labels)


def _choose(path: Path, names: list[str], wanted: str | None) -> str:
    if not names:
        raise DataError(f"{path}: holds no arrays. Write it with numpy.savez")
    if wanted is not None:
        if wanted in names:
            return wanted
        raise DataError(f"{path}: holds no array called {quoted(wanted)}. It holds {listed(names)}: name one of these")
    candidates = [n for n in names if n not in _LABELS] or names
    if len(candidates) == 1:
        return candidates[0]
    for name in _PREFERRED:
        if name in candidates:
            return name
    raise DataError(f"{path}: holds several arrays, {listed(names)}. Say which by its name")


def _read_member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, *, text: bool = False
) -> np.ndarray:
    if info.file_size > _DEFLATE_LIMIT * info.compress_size + 1024 and info.compress_type == zipfile.ZIP_DEFLATED:
        raise DataError(f"{path}: {quoted(name)} declares a size that the archive cannot hold. Fetch or write it again")
    with archive.open(info) as file:
        return _read_array(file, info.file_size, f"{path}: array {quoted(name)}", text=text)  # type: ignore[arg-type]


def _read_array(file: io.BufferedIOBase, size: int, where: str, *, text: bool = False) -> np.ndarray:
    """Read one .npy stream of `size` bytes: its header is checked against the size before memory is asked for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers written by Python 2 are read, with a warning
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise DataError(f"{where}: is of .npy version {version}, not 1.0 or 2.0. Save plain numbers")
    except (DataError, OSError, zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # a damaged header can fail in NumPy, the tokenizer or the parser
        raise DataError(f"{where}: its header is not that of a .npy file ({one_line(error)}). Write it again") from None
    if not (text and dtype.kind in "SU") and (problem := numeric_problem(dtype)):
        raise DataError(f"{where}: {problem}")
    if len(shape) > 32 or any(length < 0 for length in shape):
        raise DataError(f"{where}: its header declares the shape {shape}. Write it again")
    if 0 in shape:
        raise DataError(f"{where}: holds no values (shape {shape}). Give at least 2 rows and one column")
    wanted, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != found:
        trouble = "is cut short" if found < wanted else "goes on after its array"
        raise DataError(
            f"{where}: {trouble}: shape {shape} of {dtype} takes {wanted} bytes, but there are {found}. Write it again"
        )
    array = np.empty(math.prod(shape), dtype)
    read_into(file, array)
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    if dtype.kind == "f" and dtype.itemsize > 8:  # no accelerator, and no JAX, has long doubles
        array = array.astype(np.float64)
    return np.ascontiguousarray(array.reshape(shape[::-1]).T) if fortran else array.reshape(shape)


def _as_data(array: np.ndarray, source: str, *, images: bool = False, labels: Any = None) -> Data:
    if array.ndim < 2:
        raise DataError(
            f"{source}: the array has shape {array.shape}, and data need rows and columns. Save it as (n, 1) or (1, k)"
        )
    shape = (array.shape[1], array.shape[2]) if array.ndim == 3 else None
    if images and array.ndim == 2 and (side := math.isqrt(array.shape[1])) ** 2 == array.shape[1]:
        shape = (side, side)
    return Data(array, source, shape, labels)
