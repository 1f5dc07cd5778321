"""Column files of the CoNLL shared tasks: one token per line, columns separated by tabs or white space, sentences by blank lines."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from lnz.io._data import DataError, quoted
from lnz.io._text_blocks import Blocks

if TYPE_CHECKING:
    from jaxtyping import Int

_LONGEST = 1 << 16  # bytes of one line
_DOCUMENT = b"-DOCSTART-"
_INSIDE = b"\0"  # stands for a space inside a column while lines are split; no text holds it
_SPACE = np.isin(np.arange(256), list(b" \t\n\r\v\f"))


class Column(NamedTuple):
    """One column of all tokens: which of its values each token has.

    Attributes:
        codes: the index of the token's value, int32 (tokens,).
        values: the different values, in the order in which they first come.
    """

    codes: Int[np.ndarray, " tokens"]
    values: list[str]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sentences:
    """The sentences of a column file, all tokens one after another.

    Attributes:
        columns: the columns, the word first; where there are labels, they are the last.
        starts: the index of the first token of each sentence, and finally the number of tokens, int64 (sentences + 1,).
        source: the origin of the sentences: a path, or a description.
        lines: the line of the file that each token is on, from 1, int32 (tokens,).
    """

    columns: tuple[Column, ...]
    starts: Int[np.ndarray, " sentences+1"]
    source: str
    lines: Int[np.ndarray, " tokens"]

    @classmethod
    def of(cls, sentences: Iterable[Sequence[Sequence[str]]], *, source: str = "the sentences") -> Sentences:
        """Sentences from nested lists: sentences, their tokens, and the columns of each token.

        Raises:
            DataError: tokens with different numbers of columns, a column that is empty or contains white space, no token at all.

        Example:
            >>> import lnz
            >>> lnz.io.Sentences.of([[("the", "DT"), ("dog", "NN")], [("barks", "VBZ")]])
            Sentences(2 sentences, 3 tokens, 2 columns from the sentences)
        """
        reader, line = _Reader(source), 0
        for sentence in sentences:
            rows = [[str(field).encode() for field in token] for token in sentence]
            if any(not fields or any(field.split() != [field] for field in fields) for fields in rows):
                raise DataError(f"{source}: a column is empty or holds white space. Give one word each")
            reader.add(b"".join(b" ".join(fields) + b"\n" for fields in rows) + b"\n", line + 1)
            line += len(rows) + 1
        return reader.finish()

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self.lines)

    @property
    def lengths(self) -> Int[np.ndarray, " sentences"]:
        """The number of tokens of each sentence."""
        return np.diff(self.starts)

    def first_columns(self, count: int) -> Sentences:
        """The same sentences with the first `count` columns alone."""
        return dataclasses.replace(self, columns=self.columns[:count])

    def take(self, which: Int[np.ndarray, " some"]) -> Sentences:
        """Some of the sentences, in this order. Values that occur in none of them are left out."""
        starts = self.starts.tolist()
        tokens = np.concatenate([np.arange(0), *(np.arange(starts[i], starts[i + 1]) for i in which)])
        columns = tuple(_part(column, tokens) for column in self.columns)
        starts = np.append(0, np.cumsum(self.lengths[which]))
        return Sentences(columns, starts, self.source, self.lines[tokens])

    def place(self, token: int) -> str:
        """The source and line of a token, as the start of a message."""
        return f"{self.source}: line {self.lines[token]}"

    def __repr__(self) -> str:
        return f"Sentences({len(self):,} sentences, {self.tokens:,} tokens, {len(self.columns)} columns from {self.source})"


def read_conll(path: str | os.PathLike[str]) -> Sentences:
    """Read a column file, plain or gzipped: one token per line, columns separated by spaces or tabs, sentences by blank lines.

    Where every line of a token has a tab, columns are split at tabs alone, so that `New York<TAB>B-LOC` has two. Lines end with LF or CR LF,
    or with CR where the file has no LF.

    Lines that begin with `-DOCSTART-` end a sentence and are left out. A line that begins with `#` where a sentence would start is a
    comment if its number of columns is not the file's, or its third is `=`; everywhere else `#` is a word. Memory is bounded by the
    codes of the tokens and the different values.

    Raises:
        DataError: lines with different numbers of columns, bytes other than text in UTF-8, a line that is too long, a file without
            tokens: in one line with the file's name and the number of the line.

    Example:
        >>> import pathlib, tempfile, lnz
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_text("the DT B-NP\\ndog NN I-NP\\nbarks VBZ B-VP\\n\\nquietly RB O\\n")
        >>> found = lnz.io.read_conll(path)
        >>> len(found), found.tokens
        (2, 4)
        >>> found.columns[-1].values
        ['B-NP', 'I-NP', 'B-VP', 'O']

    The format: CoNLL-2000 (Tjong Kim Sang and Buchholz) and its successors.
    """
    end, tabbed = _layout(path)
    reader, line, carry, first = _Reader(str(path), tabbed), 1, b"", True
    with Blocks(path) as file:
        while block := file.read():
            if first:
                block, first = block.removeprefix(b"\xef\xbb\xbf"), False
            block = block.replace(end, b"\n")
            if b"\0" in block:
                at = line + block.count(b"\n", 0, block.index(b"\0"))
                raise DataError(f"{path}: line {at}: is not text. Give a column file, plain or gzipped")
            lines, ended, rest = block.rpartition(b"\n")
            carry, lines = (rest, carry + lines + ended) if ended else (carry + rest, b"")
            reader.add(lines, line)
            line += lines.count(b"\n")
            if len(carry) > _LONGEST:
                raise DataError(
                    f"{path}: line {line}: is longer than {_LONGEST >> 10} KiB. Give a column file, a token a line"
                )
    reader.add(carry + b"\n", line)
    return reader.finish()


def _layout(path: str | os.PathLike[str]) -> tuple[bytes, bool]:
    """What ends the lines of a file, CR where it has no LF; and whether every line has a tab, comments and blank lines not counted."""
    found = []
    for end in (b"\n", b"\r"):
        carry, tabbed, seen = b"", True, False
        with Blocks(path) as file:
            while tabbed and (block := file.read()):
                seen |= end in block
                *lines, carry = (carry + block).split(end)
                tabbed = not any(map(_without_tab, lines)) and len(carry) <= _LONGEST
        found.append((end, tabbed and not _without_tab(carry)))
        if seen:
            return found[-1]
    return found[0]


def _without_tab(line: bytes) -> bool:
    line = line.strip().removeprefix(b"\xef\xbb\xbf")
    return bool(line) and b"\t" not in line and not line.startswith((b"#", _DOCUMENT))


class _Numbered(dict):
    """Values and their numbers, in the order in which they first come."""

    def __missing__(self, value: bytes) -> int:
        self[value] = len(self)
        return len(self) - 1


class _Reader:
    """Converts lines to columns."""

    def __init__(self, source: str, tabbed: bool = False):
        self._source, self._tabbed, self._width = source, tabbed, 0
        self._tables: list[_Numbered] = []
        self._codes: list[list[np.ndarray]] = []
        self._lines: list[np.ndarray] = []
        self._breaks: list[np.ndarray] = []  # how many tokens stand before each gap
        self._count, self._at_start = 0, True

    def add(self, text: bytes, line: int) -> None:
        """Whole lines, the first of which has this number in the file."""
        if self._tabbed:
            text = re.sub(
                rb"[ \r\v\f]+", _INSIDE, re.sub(rb"[ \r\v\f]*([\t\n])[ \r\v\f]*", rb"\1", text.lstrip(b" \r\v\f"))
            )
        fields, widths = text.split(), _widths(text)
        heads = np.cumsum(widths) - widths  # the first field of each line
        filled = np.flatnonzero(widths)
        special = [i for i in filled.tolist() if fields[heads[i]].startswith((b"#", _DOCUMENT))]
        if self._width == 0 and len(plain := np.setdiff1d(filled, special)):
            self._begin(int(widths[plain[0]]))
        there = widths > 0
        for i in special:
            found = fields[heads[i] : heads[i] + widths[i]]
            at_start = not there[i - 1] if i else self._at_start
            comment = at_start and (len(found) != self._width or found[2:3] == [b"="])
            there[i] = not (found[0] == _DOCUMENT or comment)
        bad = np.flatnonzero(there & (widths != self._width))
        if len(bad):
            self._refuse(line + int(bad[0]), fields[heads[bad[0]] :][: widths[bad[0]]])
        self._breaks.append(self._count + np.cumsum(there)[~there])
        self._at_start = not there[-1] if len(there) else self._at_start
        if len(filled) > (tokens := int(there.sum())):
            fields = list(itertools.compress(fields, np.repeat(there, widths).tolist()))
        self._count += tokens
        self._lines.append((line + np.flatnonzero(there)).astype(np.int32))
        for i, (table, codes) in enumerate(zip(self._tables, self._codes, strict=True)):
            codes.append(np.fromiter(map(table.__getitem__, fields[i :: self._width]), np.int32, tokens))

    def finish(self) -> Sentences:
        if not self._count:
            raise DataError(f"{self._source}: holds no tokens. Give a column file: a token a line, the word first")
        lines = np.concatenate(self._lines)
        columns = tuple(
            Column(np.concatenate(codes), list(self._decoded(table, codes, lines)))
            for table, codes in zip(self._tables, self._codes, strict=True)
        )
        starts = np.unique(np.concatenate([[0], *self._breaks, [self._count]]))
        return Sentences(columns, starts.astype(np.int64), self._source, lines)

    def _begin(self, width: int) -> None:
        self._width = width
        self._tables = [_Numbered() for _ in range(width)]
        self._codes = [[] for _ in range(width)]

    def _refuse(self, line: int, fields: list[bytes]) -> NoReturn:
        text = quoted(b" ".join(fields)[:64].replace(_INSIDE, b" ").decode("utf-8", "replace"))
        raise DataError(
            f"{self._source}: line {line}: {text} has {counted(len(fields))}, and the lines before have {self._width}. "
            "Give every token the same columns, and leave a blank line between sentences"
        )

    def _decoded(self, table: _Numbered, codes: list[np.ndarray], lines: np.ndarray) -> Iterator[str]:
        for number, value in enumerate(table):
            try:
                yield value.replace(_INSIDE, b" ").decode("utf-8")
            except UnicodeDecodeError:
                line = lines[np.argmax(np.concatenate(codes) == number)]
                raise DataError(
                    f"{self._source}: line {line}: is not text in UTF-8. Save the file in that encoding"
                ) from None


def _part(column: Column, tokens: np.ndarray) -> Column:
    codes = column.codes[tokens]
    there = np.flatnonzero(np.bincount(codes, minlength=len(column.values)))
    numbers = np.zeros(len(column.values), np.int32)
    numbers[there] = np.arange(len(there))
    return Column(numbers[codes], [column.values[i] for i in there])


def _widths(text: bytes) -> np.ndarray:
    """How many words each line has; the text ends with a line."""
    data = np.frombuffer(text, np.uint8)
    space = _SPACE[data]
    starts = ~space
    starts[1:] &= space[:-1]
    before = np.cumsum(starts)[data == 10]
    return np.diff(before, prepend=0)


def counted(count: int) -> str:
    """A number of columns in words."""
    return f"{count} column{'s' * (count != 1)}"
