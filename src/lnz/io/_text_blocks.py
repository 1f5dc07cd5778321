"""Text files, plain or gzipped, read block by block; errors are one line."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import Any

from lnz.io._data import DataError, one_line

_BLOCK = 1 << 18  # bytes of text that are read at a time
_UNPACKED_LIMIT = 1 << 33  # bytes of text in a gzipped file
AGAIN = "Fetch or write it again"


class Blocks:
    """The bytes of a file that is not empty, unzipped where it begins as gzip does. A context manager.

    Attributes:
        path: the file.
        size: its size on the disk in bytes.
        zipped: whether it is a gzip file.

    Raises:
        DataError: where there is no such file, it is empty, cannot be read, is cut short or unpacks to too much.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self._read = Path(path), 0
        try:
            if not self.path.is_file():
                what = "is not a regular file" if self.path.exists() else "there is no such file"
                raise DataError(f"{self.path}: {what}. Check the spelling and the folder you are in")
            file = open(self.path, "rb")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise self._unreadable(error) from None
        self.size = os.fstat(file.fileno()).st_size
        if self.size == 0:
            file.close()
            raise DataError(f"{self.path}: the file is empty (0 bytes). Write it again")
        self.zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file: io.BufferedIOBase = _Unzipped(file) if self.zipped else file

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def read(self) -> bytes:
        """The next block, or nothing at the end of the file."""
        try:
            block = self._file.read(_BLOCK)
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.path}: not a whole gzip file ({one_line(error)}). {AGAIN}") from None
        except EOFError:
            raise DataError(f"{self.path}: the gzip file is cut short. {AGAIN}") from None
        except OSError as error:
            raise self._unreadable(error) from None
        self._read += len(block)
        if self._read > _UNPACKED_LIMIT:
            raise DataError(
                f"{self.path}: unpacks to more than {_UNPACKED_LIMIT >> 30} GiB of text. Use a smaller file"
            )
        return block

    def _unreadable(self, error: OSError) -> DataError:
        cause = error.strerror or one_line(error)
        return DataError(f"{self.path}: cannot be read ({cause}). Check that it is a file you may read")


class _Unzipped(gzip.GzipFile):
    """A gzip file that closes the file below it."""

    def __init__(self, file: io.BufferedReader):
        super().__init__(fileobj=file)
        self._below = file

    def close(self) -> None:
        super().close()
        self._below.close()
