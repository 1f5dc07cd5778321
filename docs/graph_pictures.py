"""Draw the pictures of docs/guide-log-z-of-a-graphical-model.md, from the same spin glass: `python docs/graph_pictures.py`."""

from pathlib import Path

import jax
import numpy as np

import lnz

FOLDER = Path(__file__).parent / "pictures"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    glass = lnz.Ising.lattice((14, 14), rng.normal(size=(2, 14, 14)), 0.3 * rng.normal(size=(14, 14)), periodic=False)
    lnz.report.elimination(FOLDER / "elimination.png", lnz.routes.Elimination().plan(glass))
    gradient = jax.grad(lambda model: lnz.log_partition(model).value)(glass)
    edges, on_bonds = gradient.couplings.pairs()
    lnz.report.lattice(FOLDER / "lattice.png", gradient.fields, edges, on_bonds, title="A spin glass in random fields")


if __name__ == "__main__":
    main()
