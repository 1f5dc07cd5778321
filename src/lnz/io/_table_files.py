"""Tables of numbers: comma- or tab-separated text, and Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lnz._core.packages import package
from lnz.io._data import Data, DataError, one_line, quoted

_LABELS = ("label", "labels")
_MISSING = ("na", "n/a", "nan", "null", "none", "?", "-")  # stand for a value, not for a column's name
_INDEX = re.compile(r"__index_level_\d+__")
_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}  # Arrow's names, and NumPy's
_RAGGED = "Give every row the same number of columns"
_BLOCK = 1 << 22  # characters of text, or values of a Parquet file, that are read at a time


def read_delimited(path: Path, delimiter: str) -> Data:
    """Read a table of numbers from text.

    The first line is a header if its first cell is not a number and every number in it is an integer that occurs
    once (`label,0,1,2`), or if it counts 0, 1, 2, … over at least 8 columns. A header's column called `label` or
    `labels` is kept apart. Integers from 0 to 255 come back as uint8, other integers as int64, all else as float64.
    Text is read in blocks: beyond the result itself little memory is used.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            header, array = _parse(path, file, delimiter)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in UTF-8. Save it as comma- or tab-separated text") from None
    column = next((i for i, name in enumerate(header or ()) if name.strip().lower() in _LABELS), None)
    if column is None:
        return Data(array, str(path))
    return Data(np.delete(array, column, axis=1), str(path), labels=array[:, column].copy())


def _parse(path: Path, file: TextIO, delimiter: str) -> tuple[list[str] | None, np.ndarray]:
    blocks: list[np.ndarray] = []
    header: list[str] | None = None
    width, start, blank = None, 1, None
    while lines := file.readlines(_BLOCK):
        following = start + len(lines)
        if start == 1 and "\0" in lines[0]:
            raise DataError(f"{path}: is not text. Save it as comma- or tab-separated text")
        if start == 1 and (cells := _cells(lines[0], delimiter)) and _is_header(cells):
            header, width, start = cells, len(cells), 2
            if not cells[0].strip() and width > 1:
                raise DataError(
                    f"{path}: column 1 has no name, so it looks like a row number. Save the table without an index"
                )
            del lines[0]
        empty = [i for i, line in enumerate(lines) if not line.strip()]
        last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
        blank = start + empty[0] if blank is None and empty else blank
        if blank is not None and blank < start + last:
            raise DataError(f"{path}: line {blank} is empty, but lines follow it. Fill it or remove it")
        if last >= 0:
            block = _numbers(path, lines[: last + 1], start, delimiter, width, header)
            width = block.shape[1]
            blocks.append(block)
        start = following
    if not blocks:
        raise DataError(f"{path}: holds no rows{'' if header is None else ' below its header'}. Give at least 2 rows")
    return header, _stack(blocks)


def _numbers(
    path: Path, lines: list[str], start: int, delimiter: str, width: int | None, header: list[str] | None
) -> np.ndarray:
    try:
        block = np.loadtxt(lines, delimiter=delimiter, comments=None, quotechar='"', ndmin=2)
    except ValueError as error:
        _explain(path, lines, start, delimiter, width, header)
        raise DataError(f"{path}: not a table of numbers ({one_line(error)}). Use plain digits") from None
    if width is not None and block.shape[1] != width:
        raise DataError(f"{path}: line {start} has {block.shape[1]} cells, but those before it have {width}. {_RAGGED}")
    if np.isfinite(block).all() and (block == np.trunc(block)).all():
        if block.min() >= 0 and block.max() <= 255:
            return block.astype(np.uint8)
        if np.abs(block).max() <= 2**53:
            return block.astype(np.int64)
    return block


def _explain(
    path: Path, lines: list[str], start: int, delimiter: str, width: int | None, header: list[str] | None
) -> None:
    """Raise for the first line that has too many or too few cells, or a cell that is not a number."""
    for number, line in enumerate(lines, start):
        cells = _cells(line, delimiter)
        width = len(cells) if width is None else width
        if len(cells) != width:
            raise DataError(
                f"{path}: line {number} has {len(cells)} cells, but those before it have {width}. {_RAGGED}"
            )
        bad = next((i for i, cell in enumerate(cells) if not _is_number(cell)), None)
        if bad is None:
            continue
        where = f"line {number}, column {bad + 1}" + ("" if header is None else f" ({quoted(header[bad])})")
        if not cells[bad].strip():
            raise DataError(f"{path}: {where} is empty. Fill in a number, or remove the row")
        split = any(mark in cells[bad] for mark in ";,\t" if mark != delimiter)
        hint = f", or separate the columns by {delimiter!r}" if split else ""
        raise DataError(f"{path}: {where} is {quoted(cells[bad])}, not a number. Replace it by one{hint}")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
    except csv.Error:  # a cell longer than the csv module allows
        return line.split(delimiter)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.isascii() and "_" not in cell


def _is_header(cells: Sequence[str]) -> bool:
    if any(cell.strip().lower() in _MISSING for cell in cells):
        return False
    numbers = [cell for cell in cells if _is_number(cell)]
    if len(numbers) == len(cells):
        return len(cells) >= 8 and [cell.strip() for cell in cells] == [str(i) for i in range(len(cells))]
    whole = len(set(numbers)) == len(numbers) and all(cell.strip().isdigit() for cell in numbers)
    return whole and not _is_number(cells[0])


def _stack(blocks: list[np.ndarray]) -> np.ndarray:
    """The blocks as one array, each freed as soon as it is copied."""
    rows, columns = sum(len(block) for block in blocks), blocks[0].shape[1]
    out = np.empty((rows, columns), np.result_type(*{block.dtype for block in blocks}))
    at = 0
    blocks.reverse()
    while blocks:
        block = blocks.pop()
        out[at : at + len(block)] = block
        at += len(block)
    return out


def read_parquet(path: Path) -> Data:
    """Read the numeric and boolean columns of a Parquet file, in their common type.

    A column called `label` or `labels` is kept apart; the index columns that pandas writes are dropped. Any other
    column that is not numeric, and any missing value, is an error that names the column.
    """
    parquet = package("pyarrow.parquet", "Reading Parquet files")

    try:
        with parquet.ParquetFile(path) as file:
            return _read_parquet(path, file)
    except (DataError, ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in the schema's text as well as in Arrow
        raise DataError(f"{path}: cannot be read as Parquet ({one_line(error)}). Write it again") from None


def _read_parquet(path: Path, file: Any) -> Data:
    fields = [field for field in file.schema_arrow if not _INDEX.fullmatch(field.name)]
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path}: column {quoted(twice[0])} comes more than once. Give every column its own name")
    dtypes = {field.name: _dtype(path, field) for field in fields}
    label = next((name for name in names if name.lower() in _LABELS), None)
    columns = [name for name in names if name != label]
    if not columns:
        raise DataError(f"{path}: holds no columns of data. Give at least one numeric column")
    n = file.metadata.num_rows
    out = np.empty((n, len(columns)), np.result_type(*{dtypes[name] for name in columns}))
    targets = {name: out[:, i] for i, name in enumerate(columns)}
    if label is not None:
        targets[label] = np.empty(n, dtypes[label])
    at = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        step = max(1, _BLOCK // max(1, rows))
        for i in range(0, len(names), step):  # a few columns at a time: all at once take several times the memory
            table = file.read_row_group(group, columns=names[i : i + step])
            for name in names[i : i + step]:
                targets[name][at : at + rows] = _column(path, name, table.column(name), at)
        at += rows
    if at != n:
        raise DataError(f"{path}: declares {n} rows, but holds {at}. Write it again")
    return Data(out, str(path), labels=None if label is None else targets[label])


def _column(path: Path, name: str, values: Any, start: int) -> np.ndarray:
    if values.null_count:
        row = start + int(np.argmax(values.is_null().to_numpy())) + 1
        raise DataError(f"{path}: row {row}, column {quoted(name)} is missing. Fill it in, or remove the row")
    return values.to_numpy()


def _dtype(path: Path, field: Any) -> np.dtype:
    import pyarrow.types

    kind = field.type
    if pyarrow.types.is_boolean(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
        return np.dtype(_FLOATS.get(str(kind), str(kind)))  # `to_pandas_dtype` needs pandas
    what = f"column {quoted(field.name)} is of type {one_line(kind)}"
    raise DataError(f"{path}: {what}, not numeric. Remove it, or turn it into numbers")
