"""Packing of sentences into rows of one length, so that one compiled program processes them all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

LENGTH = 128  # of a row, where no sentence is longer
ROWS = 64  # of a batch, at most
_FEWEST = 8  # of a batch, where rows are short


class Packed(NamedTuple):
    """Positions of tokens in a grid of batches of rows, with at least one empty position between two sentences of a row.

    Attributes:
        place: the position of every token in the flattened grid, int64 (tokens,).
        mask: which positions hold a token, booleans (batches, rows, length).
    """

    place: Int[np.ndarray, " tokens"]
    mask: Bool[np.ndarray, "batches rows length"]

    def spread(self, values: Shaped[np.ndarray, "tokens ..."]) -> Shaped[np.ndarray, "batches rows length ..."]:
        """Values of tokens as batches; 0 at empty positions."""
        grid = np.zeros((self.mask.size, *values.shape[1:]), values.dtype)
        grid[self.place] = values
        return grid.reshape(*self.mask.shape, *values.shape[1:])

    def gather(self, grid: Shaped[np.ndarray, "batches rows length ..."]) -> Shaped[np.ndarray, "tokens ..."]:
        """The values of tokens from batches."""
        return grid.reshape(self.mask.size, *grid.shape[3:])[self.place]


def pack(starts: Int[np.ndarray, " ends"], *, rows: int | None = None, length: int = LENGTH) -> Packed:
    """Put each sentence, the longest first, into the fullest row that has room.

    There are few different shapes: a row is `length` long, or the next power of two that holds the longest sentence; a batch has `rows` rows,
    or the power of two that holds a smaller set. Where rows are longer, batches have fewer of them.
    """
    lengths = np.diff(starts)
    rows = ROWS if rows is None else rows
    longest = int(lengths.max(initial=0)) + 1
    while length < longest:
        length, rows = 2 * length, max(1, rows // 2)
    row, begin = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # index n: the rows with n positions left
    there = 0  # bit n: whether some row has n positions left
    count = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[i]) + 1
        fitting = there >> need
        if fitting:
            left = need + (fitting & -fitting).bit_length() - 1
            number = with_room[left].pop()
            if not with_room[left]:
                there &= ~(1 << left)
        else:
            left, number, count = length, count, count + 1
        row[i], begin[i] = number, length - left
        with_room[left - need].append(number)
        there |= 1 << (left - need)
    rows = min(rows, max(_FEWEST, 1 << (count - 1).bit_length()))
    batches = -(-count // rows)
    offset = row * length + begin - starts[:-1]
    place = np.repeat(offset, lengths) + np.arange(starts[-1])
    mask = np.zeros(batches * rows * length, bool)
    mask[place] = True
    return Packed(place, mask.reshape(batches, rows, length))
