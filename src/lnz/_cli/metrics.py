"""The records of a run, on disk as they are made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from lnz._cli.folder import RunFolder
from lnz._cli.output import json_line
from lnz._cli.process import interruptible
from lnz._core.checkpoint import load_arrays
from lnz.io import WriteError
from lnz.learning._loop import Interrupted


class Metrics:
    """A file of records: one line each, on disk before the next update. Lines after the checkpoint's step are dropped."""

    def __init__(self, folder: RunFolder, name: str = "metrics.jsonl"):
        self._path, self._again = folder[name], folder.again
        checkpoint = folder["checkpoint.safetensors"]
        step = int(load_arrays(checkpoint)[1].get("step", -1)) if checkpoint.is_file() else -1
        self.records = [record for record in folder.records(name) if record["step"] <= step]
        folder.write_lines(name, self.records)

    @property
    def seconds(self) -> float:
        """Of the run so far, as its last record says."""
        return self.records[-1]["seconds"] if self.records else 0.0

    def add(self, record: dict[str, Any]) -> None:
        """Append a record, unless its step has been written before."""
        if self.records and record["step"] <= self.records[-1]["step"]:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WriteError(
                f"{self._path}: could not be written ({error.strerror}). Free some space, then go on with {self._again}"
            ) from None
        self.records.append(record)


@contextlib.contextmanager
def resumable(folder: RunFolder, done: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the work in a run folder with what was done, and the command that goes on with it."""
    try:
        with interruptible():
            yield
    except (Interrupted, KeyboardInterrupt):
        raise Interrupted(f"interrupted{done()}. Go on with: {folder.again}") from None
