"""Faults planted one at a time, to see that some test of their room notices: python tests/mutants.py [words of a meaning …]

Every row of `MUTANTS` changes one place in a copy of the tree and runs the tests named; a mutant that survives needs a test that states the
property. Not collected by pytest.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Mutant(NamedTuple):
    """One fault: in `file` below src/lnz, `before` (which occurs once) becomes `after`; `tests` must then fail."""

    file: str
    before: str
    after: str
    meaning: str
    tests: str


QUADRATURE = "tests/routes/exact/test_quadrature.py"
FLAT = "tests/routes/annealing/test_flat_directions.py"
WARNINGS = "tests/routes/annealing/test_estimate_warnings.py"
PLANAR = "tests/routes/exact/test_planar.py"
ESTIMATE = "tests/routes/test_estimate.py"
HALF = "tests/models/test_half_infinite_boxes.py"
MUTANTS = [
    Mutant("_core/estimate.py", "> _WIDE * 2 * error", "> 50 * error", "± beside an interval that denies it", ESTIMATE),
    Mutant(
        "_models/independent.py",
        "np.where(below ^ above, math.log(2), 0)",
        "0 * low",
        "half-logistic units without log 2",
        HALF,
    ),
    Mutant(
        "_models/independent.py",
        "jnp.log(width), open_ended",
        "0 * width, open_ended",
        "uniform units without their width",
        HALF,
    ),
    Mutant(
        "routes/_annealing/annealing_route.py",
        "| _endless(along_flat)",
        "",
        "no search for the flattest direction",
        FLAT,
    ),
    Mutant(
        "routes/_annealing/annealing_route.py", "| _endless(along_low)", "", "no descent to a falling direction", FLAT
    ),
    Mutant(
        "routes/_annealing/annealing_route.py",
        "heavy = heavy | self._endless_mean",
        "heavy = heavy & self._endless_mean",
        "the tail of f e^-E is not looked at",
        WARNINGS,
    ),
    Mutant("routes/_annealing/annealing_route.py", "endless * np.where(", "np.where(", "rays out of a box", HALF),
    Mutant(
        "routes/_exact/kac_ward.py", "    if steps:\n", "    if False:\n", "correlations that nothing confirms", PLANAR
    ),
    Mutant(
        "routes/_exact/quadrature.py",
        "values, unseen + noise)",
        "values, unseen)",
        "rounding of the energy is in no error",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature.py",
        "beyond_range(jax.lax.stop_gradient(sizes))",
        "beyond_range(jnp.zeros_like(sizes))",
        "the tail of f e^-E is not integrated",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py",
        "jnp.sum(jnp.log(place.scales)) if",
        "0 * jnp.sum(place.scales) if",
        "a frame without its volume",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py", "(carry[0] <= 12)", "(carry[0] <= 0)", "overflow far out is NaN", QUADRATURE
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py",
        "jnp.where(undefined.any(), jnp.nan, broken)",
        "broken",
        "NaN where mass may be",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_place.py",
        "better = (trouble[0] > _GOOD)",
        "better = (trouble[0] < 0)",
        "the grid never turns",
        QUADRATURE,
    ),
]


def killed(mutant: Mutant) -> bool:
    """Whether a test fails with this fault in a copy of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs"))
        place = tree / "src" / "lnz" / mutant.file
        text = place.read_text()
        if text.count(mutant.before) != 1:
            raise ValueError(
                f"{mutant.file} has {text.count(mutant.before)} places for {mutant.before!r}, but must have one"
            )
        place.write_text(text.replace(mutant.before, mutant.after))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", mutant.tests]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False).returncode == 1


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.meaning for word in words)]
    alive = 0
    for mutant in chosen:
        dead = killed(mutant)
        alive += not dead
        print("killed" if dead else "ALIVE ", f"{mutant.file}: {mutant.meaning}", flush=True)
    print(f"{alive} of {len(chosen)} alive")
    return min(alive, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
