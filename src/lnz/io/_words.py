"""Readers of text files of numbers: block by block, in bounded memory, and every error names its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lnz.io._data import DataError, quoted
from lnz.io._text_blocks import AGAIN, Blocks

if TYPE_CHECKING:
    from jaxtyping import Float

MOST = 1 << 28  # numbers of one file: 2 GiB as float64
MOST_PARTS = 1 << 24  # variables of one file, or factors
_LONGEST = 1 << 12  # bytes of one word
_DEFLATE_LIMIT = 1032  # gzip cannot shrink data by more than this factor
_NUMERIC = b"0123456789+-.eE \t\n\r\v\f"
_COMMENT = re.compile(rb"#[^\n]*|(?<=\n)c(?![^ \t\r\n])[^\n]*")
_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))


class _WithoutComments(Blocks):
    """The bytes of a file with spaces for its comments: from `#` to the end of the line, and lines whose first word is `c`."""

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._before = b"\n"  # what stands before the next block: a line's end, a comment (#), or something else (x)

    def read(self) -> bytes:
        block = super().read()
        if not block:
            return block
        text = self._before + block
        if b"#" in text or b"c" in block:
            text = _COMMENT.sub(lambda found: found[0][:1].replace(b"c", b"#") + b" " * (len(found[0]) - 1), text)
            open_comment = b"#" in text[text.rfind(b"\n") + 1 :]
            block = text[1:].replace(b"#", b" ")
        else:
            open_comment = False
        self._before = b"#" if open_comment else b"\n" if block.endswith(b"\n") else b"x"
        return block


class Numbers:
    """The numbers of a text file, plain or gzipped, behind a header of one word in either case. A context manager.

    Attributes:
        path: the file.
        header: its first word; empty if none was requested.
        at: the number of numbers read so far.
        room: the most numbers the file can hold; memory for more is never allocated.
    """

    def __init__(self, path: str | os.PathLike[str], headers: tuple[str, ...] = ()):
        self.path = Path(path)
        self.header = ""
        self.at = 0
        self._file = _WithoutComments(path)
        size = self._file.size
        self._size = f"{size} byte{'s' * (size != 1)}"
        self.room = min(MOST, (size * (_DEFLATE_LIMIT if self._file.zipped else 1) + 1) // 2)
        self._carry, self._seen = b"", 0
        self._ready = np.empty(0)
        try:
            if headers:
                self._carry = self._after_header(headers)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Numbers:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def take(self, count: int) -> Float[np.ndarray, " found"]:
        """The next numbers, finite float64: `count` of them, or fewer where the file ends."""
        if count > len(self._ready):
            parts, found = [self._ready], len(self._ready)
            while found < count and (block := self._block()) is not None:
                parts.append(block)
                found += len(block)
            self._ready = np.concatenate(parts)
        taken, self._ready = self._ready[:count], self._ready[count:]
        self.at += len(taken)
        return taken

    def count(self, what: str, *, least: int = 0) -> int:
        """The next number as a count of things that take at least one number each."""
        found = self.take(1)
        if len(found) == 0:
            raise self.cut(f"before the number of {what}")
        value = float(found[0])
        if value != int(value) or value < least:
            raise self.error(self.at - 1, f"{value:g} is not a number of {what}. Write an integer from {least} up")
        self.check_room(int(value), f"declares {value:.15g} {what}", self.at - 1)
        if value > MOST_PARTS:  # a small gzipped file can hold very many
            raise self.error(self.at - 1, f"declares {value:.15g} {what}, and {MOST_PARTS} are the most. Use fewer")
        return int(value)

    def check_room(self, wanted: int, what: str, index: int) -> None:
        """Raise DataError at once for more numbers than the rest of the file can hold."""
        if wanted > self.room - self.at:
            raise self.error(index, f"{what}, more than a file of {self._size} can hold. Correct it, or write it again")

    def rest(self) -> Float[np.ndarray, " found"]:
        """All numbers that are left."""
        numbers = self.take(self.room)
        self.finish("the numbers")
        return numbers

    def finish(self, last: str) -> None:
        """Raise DataError if anything follows the last number that the file should hold."""
        if len(self.take(1)):
            raise self.error(self.at - 1, f"the file goes on after {last}. Remove what follows, or correct the counts")

    def cut(self, where: str) -> DataError:
        """The error of a file that ends too soon."""
        line = self._place(None)[0]
        return DataError(f"{self.path}: line {line}: the file ends {where}. {AGAIN}")

    def error(self, index: int, message: str) -> DataError:
        """The error of the number of this index, counted from 0 behind the header."""
        line, word = self._place(index + bool(self.header))
        return DataError(f"{self.path}: line {line}, word {word}: {message}")

    def _after_header(self, headers: tuple[str, ...]) -> bytes:
        text = b""
        while not text and (block := self._file.read()):
            text = block.lstrip()
        found = text.split(maxsplit=1)
        word = found[0][:64].decode("utf-8", "replace") if found else ""
        self.header = word.upper()
        if self.header not in headers:
            wanted = " or ".join(headers)
            what = f"starts with {quoted(word)}" if found else "holds nothing but white space"
            raise DataError(f"{self.path}: line {self._place(0)[0]}: {what}. Give a file that starts with {wanted}")
        return text[len(found[0]) :]

    def _block(self) -> Float[np.ndarray, " n"] | None:
        """The numbers of the next block of text, or None at the end of the file."""
        text = self._file.read()
        if not text and not self._carry:
            return None
        joined = self._carry + text
        words = joined.split()
        self._carry = b""
        if text and words and not _SPACE[joined[-1]]:
            self._carry = words.pop()
            if len(self._carry) > _LONGEST:
                words.append(self._carry)  # an error below
        numbers = self._numbers(words, joined)
        self._seen += len(numbers)
        return numbers

    def _numbers(self, words: list[bytes], text: bytes) -> Float[np.ndarray, " n"]:
        if not text.translate(None, _NUMERIC) and len(max(words, key=len, default=b"")) <= _LONGEST:
            try:
                numbers = np.fromiter(map(float, words), np.float64, len(words))
                if np.isfinite(numbers).all():
                    return numbers
            except ValueError:
                pass
        for i, word in enumerate(words):
            if not _is_number(word):
                shown = quoted(word[:64].decode("utf-8", "replace"))
                raise self.error(self._seen + i, f"{shown} is not a finite number. Write one in plain digits")
        return np.fromiter(map(float, words), np.float64, len(words))  # the error is in the carry, which comes next

    def _place(self, index: int | None) -> tuple[int, int]:
        """Line and word on the line, from 1, of the word of this index from 0, or of the end of the file."""
        line, before, on_line, after_space, last = 1, 0, 0, True, 0
        with _WithoutComments(self.path) as file:
            for block in self._raw(file):
                data = np.frombuffer(block, np.uint8)
                space = _SPACE[data]
                starts = np.flatnonzero(~space & np.append(after_space, space[:-1]))
                ends = np.flatnonzero(data == 10)
                if index is not None and index - before < len(starts):
                    start = starts[index - before]
                    above = int(np.searchsorted(ends, start))
                    first = int(np.searchsorted(starts, ends[above - 1])) if above else -on_line
                    return line + above, index - before - first + 1
                line, before = line + len(ends), before + len(starts)
                on_line = int((starts > ends[-1]).sum()) if len(ends) else on_line + len(starts)
                after_space, last = bool(space[-1]), int(data[-1])
        return line - (last == 10), max(on_line, 1)

    def _raw(self, file: Blocks) -> Iterator[bytes]:
        try:
            while block := file.read():
                yield block
        except DataError:  # reported elsewhere: the place to find is before it
            return


def _is_number(word: bytes) -> bool:
    if word.translate(None, _NUMERIC) or len(word) > _LONGEST:
        return False
    try:
        return bool(np.isfinite(float(word)))
    except ValueError:
        return False
