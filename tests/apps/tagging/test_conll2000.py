"""Quality gate on CoNLL-2000, for `pytest -m slow`: it needs the files that the project does not contain."""

import json
import os
from pathlib import Path

import pytest
from test_tagger import call

DATA = Path(os.environ.get("LNZ_DATA", Path(__file__).parents[4] / "shared" / "data")) / "conll2000"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="set LNZ_DATA to the folder that holds conll2000/train.txt.gz"),
]


def test_chunks_are_found_as_well_as_by_peers(tmp_path):
    """crfsuite with words and parts of speech: F1 93.84, 2.135 nats per sentence; about 5,000 sentences a second."""
    code, out, err = call("train", DATA / "train.txt.gz", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["ended"] == "converged"
    for _ in range(2):  # the first time compiles
        code, out, err = call("evaluate", tmp_path / "run", DATA / "devtest.txt.gz", "--json")
        assert code == 0, err
    found = json.loads(out)
    assert found["f1"] >= 0.940
    assert found["nll"] <= 2.10
    assert found["sentences"] / found["seconds"] > 5000
