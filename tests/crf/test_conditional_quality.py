"""Quality gates of conditional models on real data, for `pytest -m slow`: scene and snakes, which the project does not contain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("LNZ_DATA", ROOT.parent / "shared" / "data"))

pytestmark = pytest.mark.slow


def figures(name: str, objective: str) -> list[str]:
    """The row of one objective in the benchmark's table."""
    if not (DATA / name).is_dir():
        pytest.skip(f"set LNZ_DATA to the folder that holds {name}/")
    command = [sys.executable, "benchmarks/conditional.py", str(DATA), name, "--only", objective]
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]


def test_exact_likelihood_on_scene():
    assert float(figures("scene", "exact likelihood")[1]) <= 1.02


@pytest.mark.parametrize(("objective", "least"), [("Bethe likelihood", 99.9), ("unaries inside", 99.5)])
def test_snakes(objective, least):
    row = figures("snakes", objective)
    assert float(row[1]) >= least
    assert float(row[-1]) < 600  # seconds of CPU: five minutes on two cores
