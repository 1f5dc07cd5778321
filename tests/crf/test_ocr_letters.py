"""Quality gates on the OCR letters, for `pytest -m slow`: they need the data, which the project does not contain. Two minutes of CPU time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "ocr_letters.py"
DATA = Path(os.environ.get("LNZ_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ocr_letters"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="set LNZ_DATA to the folder that holds ocr_letters/ocr_letters.npz"),
]


def test_letters_are_read_as_well_as_by_peers():
    """Peers, trained on fold 0: a linear chain 79.4 % of letters; with a network and neural pairs 93.0 %, 1.52 nats a word."""
    command = [sys.executable, BENCHMARK, DATA, "--seeds", "0", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {line["model"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert found["linear"]["letters"] >= 0.794
    for name in ("exact", "pieces"):
        assert found[name]["letters"] >= 0.930, name
        assert found[name]["nll"] <= 1.52, name
