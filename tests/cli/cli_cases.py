"""The command line, called in this process or in one of its own, and small data for it."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lnz._cli import run as run_command

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of the error."""
        lines = [line for line in self.err.splitlines() if line.startswith("lnz: error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("lnz: error: ")


def call(*args: object) -> Outcome:
    """One command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(arg) for arg in args])
    return Outcome(code, out.getvalue(), err.getvalue())


def start(*args: object) -> subprocess.Popen:
    """One command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from lnz._cli import main; main()", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def correlated_bits(n: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    return (generator.normal(size=(n, columns)) + 1.5 * generator.normal(size=(n, 1)) > 0).astype(np.uint8)
