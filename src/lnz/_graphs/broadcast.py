"""Broadcasting a table to a wider one: their sum, and sums over the other variables, in as few and as long axes as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Kind = TypeVar("Kind")

RUN = 64  # entries of the last axes from which a vector loop pays off


class Fit(NamedTuple):
    """How a table is broadcast to a wider one that has all its variables, the axes of both in elimination order.

    Attributes:
        shape: its own shape.
        full: the same with an axis of length 1 for each missing variable.
        tail: the lengths of the last axes, to which it is repeated first if not empty.
        runs, wide: its shape and that of the wider table with like axes merged, for a sum of both.
        parts, dropped: the wider table's shape with like axes merged, and which of those axes this table lacks.
    """

    shape: tuple[int, ...]
    full: tuple[int, ...]
    tail: tuple[int, ...]
    runs: tuple[int, ...]
    wide: tuple[int, ...]
    parts: tuple[int, ...]
    dropped: tuple[int, ...]

    def spread(self, table: np.ndarray) -> np.ndarray:
        """The table, to be combined with the wider one in the shape `wide`."""
        if self.tail:
            table = table.reshape(self.full)
            head = self.full[: len(self.full) - len(self.tail)]
            table = np.ascontiguousarray(np.broadcast_to(table, (*head, *self.tail)))
        return table.reshape(self.runs)

    def total(self, wider: np.ndarray) -> np.ndarray:
        """The wider table, summed over the variables that this one does not have."""
        if not self.dropped:
            return wider.reshape(self.shape)
        return np.add.reduce(wider.reshape(self.parts), axis=self.dropped).reshape(self.shape)


def fit(inner: Sequence[int], outer: Sequence[int], sizes: Sequence[int]) -> Fit:
    """How a table over `inner` is broadcast to one over `outer`."""
    held = set(inner)
    shape = tuple(sizes[v] for v in outer)
    present = [v in held for v in outer]
    full = tuple(k if here else 1 for k, here in zip(shape, present, strict=True))
    start = long_tail(shape)
    ragged = not all(present[start:]) and any(present[start:])
    parts, flags = merged_axes(shape, present)
    wide, of = merged_axes(shape, [here or (ragged and a >= start) for a, here in enumerate(present)])
    runs = tuple(k if here else 1 for k, here in zip(wide, of, strict=True))
    dropped = tuple(a for a, here in enumerate(flags) if not here)
    return Fit(tuple(sizes[v] for v in inner), full, shape[start:] if ragged else (), runs, wide, parts, dropped)


def long_tail(shape: Sequence[int]) -> int:
    """The axis from which the last ones together have at least RUN entries, so that a vector loop along them pays off."""
    start, run = len(shape), 1
    while start and run < RUN:
        start -= 1
        run *= shape[start]
    return start


def merged_axes(shape: Sequence[int], kinds: Sequence[Kind]) -> tuple[tuple[int, ...], list[Kind]]:
    """The shape with neighbours of one kind merged and axes of length 1 left out, and the kinds."""
    lengths: list[int] = []
    found: list[Kind] = []
    for k, kind in zip(shape, kinds, strict=True):
        if k == 1:
            continue
        if found and found[-1] == kind:
            lengths[-1] *= k
        else:
            lengths.append(k)
            found.append(kind)
    return tuple(lengths), found
