"""Every objective of conditional models on small public sets, in one table each: `python benchmarks/conditional.py DATA scene|snakes`.

DATA holds scene/scene_train.npz and scene/scene_devtest.npz, or snakes/snakes.npz. One thread; times are process times.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from timing import one_thread

STRENGTHS = (1e-3, 1e-2, 1e-1)


class Scored(NamedTuple):
    nll: float
    exact_match: float
    hamming: float


# --- scene: 6 labels, 64 labellings, everything is exact -------------------------------------------------------------------------------------


def scene(data: Path) -> list[list[str]]:
    """Train by every objective, choose the L2 strength on a fifth of the rows, refit on all, score by the exact sum."""
    import jax

    x, y, x_test, y_test = scene_data(data)
    held = np.arange(len(x)) % 5 == 0
    rows = []
    for name, objective in scene_objectives().items():
        start = time.process_time()
        fits = [(scene_fit(objective, x[~held], y[~held], c, name), c) for c in STRENGTHS]
        scores = [scene_score(fitted, x[held], y[held]).nll for fitted, _ in fits]
        best, strength = fits[int(np.argmin(scores))]
        fitted = scene_fit(objective, x, y, strength, name)
        score = scene_score(fitted, x_test, y_test)
        scales = scene_scales(best, x[held], y[held])
        scaled = scene_score(fitted, x_test, y_test, scales)
        jax.clear_caches()
        rows.append(
            [
                name,
                f"{score.nll:.3f}",
                f"{100 * score.exact_match:.1f}",
                f"{100 * score.hamming:.1f}",
                f"{scaled.nll:.3f}",
                f"{100 * scaled.exact_match:.1f}",
                f"{float(scales.unary):.2f} / {float(scales.groups[0]):.2f}",
                f"{strength:g}",
                f"{time.process_time() - start:.0f}",
            ]
        )
    return rows
