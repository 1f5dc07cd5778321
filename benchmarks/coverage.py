"""Do the intervals of log Z hold? Many seeded runs of every stochastic route on models with known log Z, at two budgets.

    python benchmarks/coverage.py [--seeds 1000] [--routes ais,mode probes,samples,…] [--models NAME,…] [--budgets small,large] [--json FILE]
    python benchmarks/coverage.py --table FILE                    print the rows of a file, in the order of the lists here

For every model, route and budget: how many of the intervals hold the truth, below and above apart; the claimed standard error against the
empirical one; and how many of the runs whose interval misses the truth carry a warning. Seeds go through one compiled program. Nothing here
is tuned to a model: a cell that fails is printed as such.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import equinox as eqx
import jax
import numpy as np

import lnz
from lnz.routes._exact.exact_samples import exact_sampler

MODELS = (
    "torus-4x4-critical",
    "torus-8x8-hot",
    "torus-8x8-critical",
    "torus-8x8-cold",
    "planted-8x8",
    "glass-10x10",
    "potts-3-4x4",
    "hard-squares-6x6",
    "sherrington-kirkpatrick-12",
    "rbm-30x8",
    "rbm-patterns-24x6",
    "rbm-two-modes-24x6",
    "gaussian-20",
    "many-well-2",
    "shells-2",
    "eggbox",
    "rosenbrock",
    "funnel-10",
    "student-10",
    "mixture-40",
)
# Built to fool: chains from the base do not come to most of the weight, and cannot know.
FOOLING = ("rbm-hidden-mode-40x8", "apart-2", "needle-40")
# Two budgets of each: about 1,600 and 12,800 moves of one chain.
ROUTES: dict[str, tuple[lnz.Route, lnz.Route]] = {
    "ais": (
        lnz.routes.AnnealedImportanceSampling(temperatures=50, chains=32),
        lnz.routes.AnnealedImportanceSampling(temperatures=200, chains=64),
    ),
    "mode probes": (
        lnz.routes.AnnealedImportanceSampling(temperatures=50, chains=32, mode_probes=32),
        lnz.routes.AnnealedImportanceSampling(temperatures=200, chains=64, mode_probes=32),
    ),
    "samples": (
        lnz.routes.BidirectionalAIS(temperatures=25, chains=32),
        lnz.routes.BidirectionalAIS(temperatures=100, chains=64),
    ),
    "smc": (
        lnz.routes.SequentialMonteCarlo(particles=16, replicates=8, conditional=0.8),
        lnz.routes.SequentialMonteCarlo(particles=64, replicates=16, conditional=0.9),
    ),
    "tempering": (
        lnz.routes.ParallelTempering(rungs=6, iterations=64, replicates=4),
        lnz.routes.ParallelTempering(rungs=8, iterations=200, replicates=8),
    ),
    "both": (
        lnz.routes.BidirectionalAIS(temperatures=25, chains=32),
        lnz.routes.BidirectionalAIS(temperatures=100, chains=64),
    ),
}
_MOST_RELATIVE = 0.2  # of a claimed standard error


def samples(model: lnz.reference.ReferenceModel, energy: lnz.Energy, key: Any, n: int) -> Any:
    """Samples of a model, as its user may have from elsewhere; None where nobody has any."""
    pick, key = jax.random.split(key)
    if model.name == "apart-2":
        far = jax.random.bernoulli(pick, 0.5, (n, 1))
        return jax.random.normal(key, (n, 2)) + jax.numpy.where(far, jax.numpy.asarray([30.0, 0.0]), 0.0)
    if model.name == "needle-40":
        found = jax.random.bernoulli(pick, math.exp(30 - model.log_z), (n, 1))
        return jax.numpy.where(found, np.arange(40) % 2 == 1, jax.random.bernoulli(key, 0.5, (n, 40)))
    sampler = exact_sampler(energy)
    return None if sampler is None else sampler.draw(key, n)


def measure(
    model: lnz.reference.ReferenceModel, route: lnz.Route, seeds: int, *, given: bool = False
) -> dict[str, Any] | None:
    """What `seeds` runs say, as plain numbers; None where the route refuses the model. Samples of the model may be given to it."""
    energy = model.energy()
    absent = (
        samples(model, energy, jax.random.key(0), 1) is None if given else route.unsupported_reason(energy) is not None
    )
    if absent:
        return None
    known: list[str] = []

    def one(energy: Any, key: Any) -> Any:
        if given:
            key, sample_key = jax.random.split(key)
            states: Any = samples(model, energy, sample_key, route.chains)  # pyright: ignore[reportAttributeAccessIssue]
            estimate = route.between(energy, states, key, exact=False).estimate  # pyright: ignore[reportAttributeAccessIssue]
        else:
            estimate = route.log_partition(energy, key)
        known.append(estimate.guarantee)
        flags = list(estimate.flags.values())
        warned = np.False_ if not flags else jax.numpy.any(jax.numpy.stack(flags))
        return estimate.value, estimate.standard_error, estimate.lower, estimate.upper, warned

    # The energy is an argument: as constants, weights that are all equal lose their products in XLA's folding (JAX 0.10 to 0.12).
    run = eqx.filter_jit(lambda energy, keys: jax.lax.map(lambda key: one(energy, key), keys))
    began = time.process_time()
    found = run(energy, jax.random.split(jax.random.key(2026), seeds))
    value, error, lower, upper, warned = map(np.asarray, found)
    return {
        "seconds": time.process_time() - began,
        "known": known[0],
    } | summary(model.log_z, value, error, lower, upper, warned)


def summary(
    log_z: float, value: np.ndarray, error: np.ndarray, lower: np.ndarray, upper: np.ndarray, warned: np.ndarray
) -> dict[str, Any]:
    """Counts and ratios of many runs against the truth. The ratio of errors is of the root mean square that is claimed."""
    slack = 1e-9 * max(1.0, abs(log_z))
    below, above = log_z < lower - slack, log_z > upper + slack
    wrong = below | above
    spread, finite = float(np.std(value, ddof=1)), np.isfinite(error)
    claimed = float(np.sqrt(np.mean(error[finite] ** 2))) if finite.any() else math.inf
    # An interval speaks of a normal law where the runs look normal: their fourth moment, and no bias worth a third of the spread.
    centred = (value - value.mean()) / max(spread, 1e-300)
    gaussian = bool(
        abs(np.mean(centred**4) - 3) < 0.8 and abs(np.mean(centred**3)) < 0.4 and abs(value.mean() - log_z) < spread / 3
    )
    return {
        "runs": len(value),
        "bias": float(value.mean() - log_z),
        "sd": spread,
        "claimed": claimed,
        "gaussian": gaussian,
        "lower_too_high": int(below.sum()),
        "upper_too_low": int(above.sum()),
        "held": int((~wrong).sum()),
        "width": float(np.median(upper - lower)),
        "warned": int(warned.sum()),
        "wrong_and_warned": int((wrong & warned).sum()),
        "wrong": int(wrong.sum()),
    }


def verdict(row: dict[str, Any]) -> str:
    """What a cell fails, in words; empty where it holds."""
    n, failures = row["runs"], []
    if row["held"] < 0.985 * n:
        failures.append("interval" if row["wrong_and_warned"] < 0.99 * row["wrong"] else "interval, but warned of")
    if row["lower_too_high"] > 0.005 * n + 3 * math.sqrt(0.005 * n):
        failures.append("lower limit")
    if row["gaussian"] and not 1 - _MOST_RELATIVE <= row["claimed"] / row["sd"] <= 1 + _MOST_RELATIVE:
        failures.append("standard error")
    return ", ".join(failures)


HEAD = (
    "| model | route | budget | runs | held | lower too high | upper too low | width "
    "| bias | sd | claimed / sd | warned | wrong, not warned | fails |"
)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    ratio = f"{row['claimed'] / row['sd']:.2f}" if row["sd"] > 0 else "–"
    cells = [
        row["model"],
        row["route"],
        row["budget"],
        f"{row['runs']:,}",
        f"{row['held']:,}",
        row["lower_too_high"],
        row["upper_too_low"],
        f"{row['width']:.2g}",
        f"{row['bias']:+.2g}",
        f"{row['sd']:.2g}",
        ratio + ("" if row["gaussian"] else " (not normal)"),
        row["warned"],
        row["wrong"] - row["wrong_and_warned"],
        verdict(row) or "–",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(file: str) -> None:
    """Print the rows of a file, one for every model, route and budget: the last one where there are several."""
    with open(file, encoding="utf-8") as lines:
        rows = {(row["budget"], row["route"], row["model"]): row for row in map(json.loads, lines)}
    print(HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |", sep="\n")
    for budget in ("small", "large"):
        for route in ROUTES:
            for model in (*MODELS, *FOOLING):
                if (budget, route, model) in rows:
                    print(line(rows[budget, route, model]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--routes", default=",".join(ROUTES))
    parser.add_argument("--models", default=",".join((*MODELS, *FOOLING)))
    parser.add_argument("--budgets", default="small,large")
    parser.add_argument("--json", help="append every row to this file, one JSON object a line")
    parser.add_argument("--table", help="print the rows of this file instead of running anything")
    options = parser.parse_args()
    if options.table:
        table(options.table)
        return
    jax.config.update("jax_enable_x64", True)
    models = lnz.reference.reference_models(*options.models.split(","))
    print(HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |", sep="\n", flush=True)
    for budget in options.budgets.split(","):
        for name in options.routes.split(","):
            for model in models:
                found = measure(model, ROUTES[name][budget == "large"], options.seeds, given=name == "samples")
                if found is None:
                    continue
                row = {"model": model.name, "route": name, "budget": budget} | found
                print(line(row), flush=True)
                if options.json:
                    with open(options.json, "a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
