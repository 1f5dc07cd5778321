"""Stochastic log Z: error and time of every route on models whose log Z is known, and the time it takes to an error of 0.1 nat. One thread.

    python benchmarks/log_z.py [--only torus16 torus64 rbm] [--repeats 5]

Goals: Ising torus 16x16 at β_c within 0.02 nat in 1 s after compilation, 64x64 within 0.1 nat in 60 s. "to 0.1 nat" is what the measured error
says of a longer run: seconds · (error / 0.1)². The error is the root mean square over the repeats, of the RBM (whose log Z is not known) their
standard deviation. Compilation is left out. The peers are AIS in plain NumPy on the torus and that of rbms on the RBM.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

Run = Callable[
    [int], tuple[float, float, bool]
]  # from a seed to log Z, its claimed error, and whether it carries a warning


def route_run(energy: Any, route: Any) -> Run:
    import jax

    import lnz

    def run(seed: int) -> tuple[float, float, bool]:
        estimate = lnz.log_partition(energy, route=route, key=jax.random.key(seed))
        return float(estimate.value), float(estimate.standard_error), bool(estimate.warnings)

    return run


def numpy_ais(side: int, beta: float, *, temperatures: int, chains: int) -> Run:
    """AIS on the torus as one would write it in an hour: checkerboard Gibbs moves of whole arrays."""

    def run(seed: int) -> tuple[float, float, bool]:
        rng = np.random.default_rng(seed)
        s = rng.choice(np.float32([-1, 1]), (chains, side, side))
        parity = np.indices((side, side)).sum(axis=0) % 2
        log_w, step = np.full(chains, side**2 * math.log(2)), beta / temperatures
        for k in range(1, temperatures + 1):
            log_w += step * (s * (np.roll(s, 1, 1) + np.roll(s, 1, 2))).sum(axis=(1, 2))
            for colour in (0, 1):
                field = np.roll(s, 1, 1) + np.roll(s, -1, 1) + np.roll(s, 1, 2) + np.roll(s, -1, 2)
                up = rng.random(s.shape, np.float32) < 1 / (1 + np.exp(-2 * k * step * field))
                s = np.where(parity == colour, np.where(up, np.float32(1), np.float32(-1)), s)
        w = np.exp(log_w - log_w.max())
        return log_w.max() + math.log(w.mean()), w.std(ddof=1) / w.mean() / math.sqrt(chains), False

    return run


def torus(side: int) -> tuple[dict[str, Run], float]:
    import lnz

    beta = lnz.reference.ISING_CRITICAL_BETA
    energy = lnz.Ising.lattice((side, side), np.float32(beta), periodic=True)
    more = side // 16
    routes = {
        "AIS, linear": lnz.AnnealedImportanceSampling(temperatures=1000 * more**2, chains=64),
        "AIS, barrier": lnz.AnnealedImportanceSampling(temperatures=1000 * more**2, chains=64, schedule="barrier"),
        "SMC": lnz.SequentialMonteCarlo(particles=64, replicates=8, conditional=0.99),
        "parallel tempering, BAR": lnz.ParallelTempering(rungs=16 * more, iterations=1000, replicates=4),
    }
    runs = {name: route_run(energy, route) for name, route in routes.items()}
    runs["NumPy AIS"] = numpy_ais(side, beta, temperatures=1000 * more**2, chains=16)
    return runs, lnz.reference.ising_torus_log_z(side, side, beta)


def rbm() -> tuple[dict[str, Run], float]:
    import lnz
    import peers

    model = peers.random_model(784, 500, scale=0.05)
    energy = lnz.RBM.from_parameters(*model)
    routes = {
        "AIS, linear": lnz.AnnealedImportanceSampling(temperatures=400, chains=100),
        "AIS, barrier": lnz.AnnealedImportanceSampling(temperatures=400, chains=100, schedule="barrier"),
        "SMC": lnz.SequentialMonteCarlo(particles=64, replicates=8, conditional=0.95),
        "parallel tempering, BAR": lnz.ParallelTempering(rungs=24, iterations=100, replicates=4),
    }
    runs = {name: route_run(energy, route) for name, route in routes.items()}
    theirs = peers.rbms_ais(model, chains=100, temperatures=400)
    return runs | {"rbms AIS": lambda seed: (float(theirs()), math.nan, False)}, math.nan


PROBLEMS = {"torus16": lambda: torus(16), "torus64": lambda: torus(64), "rbm": rbm}


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=PROBLEMS, default=["torus16", "rbm"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    for name in arguments.only:
        runs, truth = PROBLEMS[name]()
        table = Table(
            "", "seconds", "mean", "error", "claimed", "s to 0.1 nat", "warned", title=f"{name}: log Z = {truth:.4f}"
        )
        for label, run in runs.items():
            run(-1 % 2**31)  # compiles
            found, seconds = [], []
            for seed in range(arguments.repeats):
                begun = time.process_time()
                found.append(run(seed))
                seconds.append(time.process_time() - begun)
            values = [value for value, *_ in found]
            centre = statistics.mean(values) if math.isnan(truth) else truth
            spare = len(values) - math.isnan(truth)
            error = math.sqrt(sum((value - centre) ** 2 for value in values) / spare)
            took, claimed = statistics.median(seconds), statistics.mean(claim for _, claim, _ in found)
            table.add_row(
                label,
                f"{took:.2f}",
                f"{statistics.mean(values):.3f}",
                f"{error:.3f}",
                f"{claimed:.3f}",
                f"{took * (error / 0.1) ** 2:.1f}",
                f"{sum(warned for *_, warned in found)}/{len(found)}",
            )
        Console().print(table)


if __name__ == "__main__":
    main()
