"""Results that are remembered by the content of what they were computed from."""

from __future__ import annotations

import collections
import contextlib
import hashlib
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """The last results of a computation, by key. An error is raised again where the computation is asked for again."""

    def __init__(self, size: int):
        self.size = size
        self._found: collections.OrderedDict[Hashable, Result | ValueError] = collections.OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The result for the key, computed where it is not remembered."""
        found = self._found.get(key)
        if found is None:
            try:
                found = compute()
            except ValueError as error:
                found = error
            self._found[key] = found
            while len(self._found) > self.size:
                with contextlib.suppress(KeyError):  # another thread was quicker
                    self._found.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):
                self._found.move_to_end(key)
        if isinstance(found, ValueError):
            raise ValueError(str(found)) from None
        return found


def digest(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """A short key for the content of an array: two arrays with the same one are equal."""
    content = np.ascontiguousarray(array).view(np.uint8).data if array.size else b""
    return str(array.dtype), array.shape, hashlib.blake2b(content, digest_size=16).digest()
