"""Small data, and one small run that many tests share."""

from pathlib import Path

import numpy as np
import pytest
from cli_cases import call, correlated_bits


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Compiled programs of these tests go to a folder of their own, and to no user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
