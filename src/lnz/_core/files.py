"""Atomic writes of files, and reads of streams into existing memory."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_CAUSES = {
    errno.ENOSPC: "the disk is full. Free some space, or write to another disk",
    errno.EDQUOT: "your disk quota is used up. Free some space, or write to another disk",
    errno.ENOENT: "its folder does not exist. Create the folder first",
    errno.ENOTDIR: "its folder is a file. Write into a folder",
    errno.EACCES: "permission was denied. Write to a folder that is yours",
    errno.EPERM: "permission was denied. Write to a folder that is yours",
    errno.EROFS: "the disk is read-only. Write to another disk",
    errno.EFBIG: "the file grew beyond the largest size allowed. Write less, or allow larger files",
    errno.ENAMETOOLONG: "its name is too long. Choose a shorter one",
}


class WriteError(OSError):
    """A file that could not be written: one line with the path, the cause and the remedy, and the system's `errno`."""


def write_atomic(path: str | os.PathLike[str], writer: Callable[[io.BufferedIOBase], Any]) -> None:
    """Write a file so that its path holds either the whole new content or what was there before, at any moment.

    The content goes to a hidden temporary file in the same folder, is forced to the disk, and takes the path's place in
    one step. When anything fails, KeyboardInterrupt included, the temporary file is removed and the path is left as it
    was; after SIGKILL a file `.NAME.….tmp` may stay behind. A symbolic link is followed, and stays.

    Args:
        path: the file to write. An existing file is replaced.
        writer: called once with a seekable binary file open for writing.

    Raises:
        WriteError: if the system cannot write (a full disk, no such folder, no permission); the message names the path.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "hello.txt"
        >>> write_atomic(path, lambda file: file.write(b"hello"))
        >>> path.read_text()
        'hello'
    """
    real = Path(os.path.realpath(path))
    if os.path.exists(real) and not os.path.isfile(real):
        raise _write_error(path, None, "it is not a regular file. Choose another name")
    temporary = real.with_name(f".{real.name[:40]}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with _create(temporary) as file:
                writer(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, real)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(real.parent)
    except WriteError:
        raise
    except OSError as error:
        cause = _CAUSES.get(error.errno or 0) or f"{error.strerror or error}. Try again, or write to another disk"
        raise _write_error(path, error.errno, cause) from error


def _create(path: Path) -> io.BufferedIOBase:
    # "x+" and not "x": NumPy writes a file that is open for writing alone through C's stdio, which loses the error number
    # (a full disk reads "N requested and M written"); one open for both is written through Python, which keeps it.
    return open(path, "x+b")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the file system supports that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_error(path: str | os.PathLike[str], number: int | None, cause: str) -> WriteError:
    error = WriteError(f"{os.fspath(path)}: could not be written: {cause}".replace("\n", " "))
    error.errno = number
    return error


def read_into(file: io.BufferedIOBase, array: np.ndarray, block: int = 1 << 20) -> None:
    """Fill a contiguous array from a stream, block by block. Raises EOFError where the stream ends too soon."""
    view, at = array.reshape(-1).view(np.uint8).data, 0
    while at < len(view):
        got = file.readinto(view[at : at + block])
        if not got:
            raise EOFError(f"{at} of {len(view)} bytes")
        at += got
