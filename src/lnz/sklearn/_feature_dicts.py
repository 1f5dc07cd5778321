"""Feature dictionaries of tokens, in the form of python-crfsuite, as sparse matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np


def attributes(token: Any) -> Iterator[tuple[str, float]]:
    """The attributes of a token with their values: {"word": "dog", "x": 0.5, "in": ["a", "b"]} has word:dog, x (0.5), in:a and in:b.

    A token is a mapping of names to strings, numbers, booleans, lists or sets of strings, or such mappings, or a list of names.
    """
    if not isinstance(token, Mapping):
        if isinstance(token, str | bytes) or not isinstance(token, Iterable):
            raise ValueError(f"a token must be a dictionary of features or a list of their names, but is {token!r}")
        yield from ((str(name), 1.0) for name in token)
        return
    for name, value in token.items():
        if isinstance(value, str):
            yield f"{name}:{value}", 1.0
        elif isinstance(value, Mapping):
            yield from ((f"{name}:{inner}", weight) for inner, weight in attributes(value))
        elif isinstance(value, list | tuple | set | frozenset):
            yield from ((f"{name}:{inner}", 1.0) for inner in value)
        else:
            weight = float(value)
            if not np.isfinite(weight):
                raise ValueError(f"the feature {name!r} is {value}. Leave it out, or give a finite number")
            yield str(name), weight


class AttributeNumbers:
    """The number of every attribute of the training tokens.

    Attributes:
        names: the attributes, in the order in which they first come.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        return list(self._numbers)

    @property
    def count(self) -> int:
        return len(self._numbers)

    def matrix(self, sequences: Iterable[Any], *, learn: bool = False) -> tuple[Any, np.ndarray]:
        """The values of attributes (tokens, count), sparse, and where the sequences start; unknown attributes are added or left out."""
        from scipy.sparse import csr_matrix

        numbers, columns, values, ends, starts = self._numbers, [], [], [0], [0]
        for sequence in sequences:
            if isinstance(sequence, str | bytes | Mapping):
                raise ValueError(
                    f"X must be a list of sequences, each a list of tokens, but holds {sequence!r}: wrap a single sequence in a list"
                )
            for token in sequence:
                for name, value in attributes(token):
                    number = numbers.setdefault(name, len(numbers)) if learn else numbers.get(name)
                    if number is not None:
                        columns.append(number)
                        values.append(value)
                ends.append(len(columns))
            starts.append(len(ends) - 1)
        shape = (len(ends) - 1, len(numbers))
        found = csr_matrix(
            (np.asarray(values, np.float32), np.asarray(columns, np.int32), np.asarray(ends)), shape=shape
        )
        found.sum_duplicates()
        return found, np.asarray(starts)
