"""Small data, one small run that many tests share, and the command line called in this process or in its own."""

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lnz.cli import run as run_command

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
        [sys.executable, "-c", "from lnz.cli import main; main()", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs of these tests go to a folder of their own, and to no user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def correlated_bits(n: int, columns: int) -> np.ndarray:
    generator = np.random.default_rng(7)
    return (generator.normal(size=(n, columns)) + 1.5 * generator.normal(size=(n, 1)) > 0).astype(np.uint8)


@pytest.fixture(scope="session")
def bits(tmp_path_factory) -> Path:
    """A table of 90 x 6 correlated bits."""
    path = tmp_path_factory.mktemp("data") / "votes.csv"
    np.savetxt(path, correlated_bits(90, 6), fmt="%d", delimiter=",", header="a,b,c,d,e,f", comments="")
    return path


@pytest.fixture(scope="session")
def finished(bits, tmp_path_factory) -> Path:
    """A finished run of a small machine."""
    out = tmp_path_factory.mktemp("runs") / "votes"
    outcome = call("train", bits, "--hidden", 3, "--epochs", 4, "--batch-size", 16, "--evaluate-every", 2, "--out", out)
    assert outcome.code == 0, outcome.err
    (out / "stdout.txt").write_text(outcome.out)
    return out
