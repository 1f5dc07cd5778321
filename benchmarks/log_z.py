"""Stochastic log Z: error and time of every route and of peers, and the time it takes to an error of 0.1 nat. One thread.

    python benchmarks/log_z.py [--only torus16 torus64 rbm mnist] [--repeats 5] [--data FOLDER] [--keep FOLDER]

Goals: Ising torus 16x16 at β_c within 0.02 nat in 1 s after compilation, 64x64 within 0.1 nat in 60 s; of an RBM trained on MNIST an error in a
tenth of the time that rbms takes to it. "to 0.1 nat" is what the measured error says of a longer run: seconds · (error / 0.1)². It flatters
estimates that are short of the truth more than they are spread, since their error falls more slowly. The error is the root mean square over the
repeats, of the random RBM (whose log Z is not known) their standard deviation. Compilation is left out. The peers are AIS in plain NumPy, that of
rbms and that of ebmkit.

`mnist` is an RBM of 784 x 500 units trained here by PCD-5 on the file mnist_train.npz of --data FOLDER (kept in and read from --keep FOLDER).
Its log Z is taken from a long run in both directions, whose interval is printed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
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


def ebmkit_torus(side: int, beta: float, *, temperatures: int, chains: int) -> Run:
    """ebmkit: `ais_log_z` with `GibbsWithGradients`, its kernel for binary states, which proposes to flip one of all spins a move."""
    import ebm
    import torch

    def energy(x: Any) -> Any:
        s = (2 * x - 1).reshape(-1, side, side)
        return -beta * (s * (s.roll(1, 1) + s.roll(1, 2))).sum((1, 2))

    base = torch.distributions.Independent(torch.distributions.Bernoulli(logits=torch.zeros(side**2)), 1)

    def run(seed: int) -> tuple[float, float, bool]:
        torch.manual_seed(seed)
        kernel = ebm.GibbsWithGradients()
        found = ebm.ais_log_z(energy, (side**2,), base=base, n_temps=temperatures, n_chains=chains, sampler=kernel)
        return found.log_z, found.stderr, False

    return run


def numpy_rbm(model: Any, mean: Any, *, temperatures: int, chains: int) -> Run:
    """AIS on an RBM as one would write it in an hour: block Gibbs moves of all chains, from independent units with the data's means."""
    w, b, c = model
    base = np.log(mean / (1 - mean)).astype(np.float32)

    def softplus(x: Any) -> Any:
        return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))

    def run(seed: int) -> tuple[float, float, bool]:
        rng = np.random.default_rng(seed)
        v = (rng.random((chains, len(b)), np.float32) < mean).astype(np.float32)
        log_w = np.full(chains, softplus(base.astype(np.float64)).sum() + len(c) * math.log(2))
        for k in range(1, temperatures + 1):
            before, after = np.float32((k - 1) / temperatures), np.float32(k / temperatures)
            inputs = v @ w + c
            log_w += (after - before) * (v @ (b - base)) + (softplus(after * inputs) - softplus(before * inputs)).sum(1)
            h = rng.random(inputs.shape, np.float32) < 1 / (1 + np.exp(-after * inputs))
            fields = (1 - after) * base + after * (h.astype(np.float32) @ w.T + b)
            v = (rng.random(fields.shape, np.float32) < 1 / (1 + np.exp(-fields))).astype(np.float32)
        relative = np.exp(log_w - log_w.max())
        error = relative.std(ddof=1) / relative.mean() / math.sqrt(chains)
        return log_w.max() + math.log(relative.mean()), error, False

    return run


def seeded(job: Callable[[], float]) -> Run:
    """A peer's run, with torch's random numbers set to the seed."""
    import torch

    def run(seed: int) -> tuple[float, float, bool]:
        torch.manual_seed(seed)
        return float(job()), math.nan, False

    return run


def torus(side: int) -> tuple[dict[str, Run], float]:
    import lnz

    beta = lnz.reference.ISING_CRITICAL_BETA
    energy = lnz.Ising.lattice((side, side), np.float32(beta), periodic=True)
    more = side // 16
    routes = {
        "AIS, linear": lnz.routes.AnnealedImportanceSampling(temperatures=1000 * more**2, chains=64),
        "AIS, barrier": lnz.routes.AnnealedImportanceSampling(
            temperatures=1000 * more**2, chains=64, schedule="barrier"
        ),
        "AIS, friction": lnz.routes.AnnealedImportanceSampling(
            temperatures=1000 * more**2, chains=64, schedule="friction"
        ),
        "SMC": lnz.routes.SequentialMonteCarlo(particles=64, replicates=8, conditional=0.99),
        "parallel tempering, BAR": lnz.routes.ParallelTempering(rungs=16 * more, iterations=1000, replicates=4),
    }
    runs = {name: route_run(energy, route) for name, route in routes.items()}
    runs["NumPy AIS"] = numpy_ais(side, beta, temperatures=1000 * more**2, chains=16)
    runs["ebmkit AIS"] = ebmkit_torus(side, beta, temperatures=2000, chains=16)
    return runs, lnz.reference.ising_torus_log_z(side, side, beta)


def rbm() -> tuple[dict[str, Run], float]:
    import lnz
    import peers

    model = peers.random_model(784, 500, scale=0.05)
    energy = lnz.RBM.from_parameters(*model)
    routes = {
        "AIS, linear": lnz.routes.AnnealedImportanceSampling(temperatures=400, chains=100),
        "AIS, barrier": lnz.routes.AnnealedImportanceSampling(temperatures=400, chains=100, schedule="barrier"),
        "SMC": lnz.routes.SequentialMonteCarlo(particles=64, replicates=8, conditional=0.95),
        "parallel tempering, BAR": lnz.routes.ParallelTempering(rungs=24, iterations=100, replicates=4),
    }
    runs = {name: route_run(energy, route) for name, route in routes.items()}
    theirs = peers.rbms_ais(model, chains=100, temperatures=400)
    return runs | {"rbms AIS": seeded(theirs)}, math.nan


def mnist(folder: Path, keep: Path | None) -> tuple[dict[str, Run], float]:
    import jax
    import jax.numpy as jnp
    import optax

    import lnz
    import peers
    from rbm_honesty import images

    train, _ = images(folder)
    kept = None if keep is None else keep / "rbm-mnist.lnz"
    if kept is not None and kept.is_file():
        energy: Any = lnz.load(kept)
    else:
        begun = time.process_time()
        start = lnz.RBM.from_data(train, 500, key=jax.random.key(500))
        phase, rate = lnz.learning.PersistentChains(chains=100, sweeps=5), optax.linear_schedule(0.05, 0.0, 3000)
        epochs = 3000 * 100 / len(train)
        options: dict[str, Any] = {"negative_phase": phase, "optimizer": optax.sgd(rate), "epochs": epochs}
        energy = lnz.fit(start, train, **options, key=jax.random.key(1), evaluate_every=10**6).energy
        print(f"trained in {time.process_time() - begun:.0f} s")
        if kept is not None:
            lnz.save(kept, energy)
    base = lnz.routes.fitted_base(lnz.Binary(784), train)
    ends = lnz.kernels.run_chains(
        energy,
        lnz.kernels.Gibbs(),
        jnp.asarray(train[:: len(train) // 200][:200], jnp.float32),
        jax.random.key(3),
        10_000,
    )
    both = lnz.routes.BidirectionalAIS.from_samples(
        np.asarray(ends), exact=False, base=base, temperatures=20_000, chains=200, schedule="barrier"
    )
    long_run = lnz.log_partition(energy, route=both, key=jax.random.key(4))
    forth, back = (float(long_run.diagnostics[name]) for name in ("forward", "reverse"))
    print(f"{long_run}; forward {forth:.3f}, reverse {back:.3f}")
    annealing, long = lnz.routes.AnnealedImportanceSampling, {"temperatures": 12_000, "chains": 32}
    routes = {
        "AIS, linear, 4,000 x 100": annealing.from_base(base, temperatures=4000, chains=100),
        "AIS, linear, 12,000 x 32": annealing.from_base(base, **long),
        "AIS, friction, 12,000 x 32": annealing.from_base(base, schedule="friction", **long),
        "SMC, 4 x 256 particles": lnz.routes.SequentialMonteCarlo.from_base(
            base, particles=256, replicates=4, conditional=0.99
        ),
    }
    runs = {name: route_run(energy, route) for name, route in routes.items()}
    model = peers.Model(*(np.asarray(leaf) for leaf in (energy.weights, energy.visible_bias, energy.hidden_bias)))
    mean = np.asarray(jax.nn.sigmoid(base.potentials), np.float32)  # pyright: ignore[reportAttributeAccessIssue]
    runs["rbms AIS, 2,000 x 100"] = seeded(peers.rbms_ais(model, chains=100, temperatures=2000))
    runs["NumPy AIS, 2,000 x 100"] = numpy_rbm(model, mean, temperatures=2000, chains=100)
    runs["ebmkit AIS, 500 x 100"] = seeded(peers.ebmkit_ais(model, chains=100, temperatures=500))
    return runs, float(long_run.value)


PROBLEMS = {"torus16": lambda: torus(16), "torus64": lambda: torus(64), "rbm": rbm}


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*PROBLEMS, "mnist"], default=["torus16", "rbm"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="the folder of mnist_train.npz and a test file, for `mnist`")
    parser.add_argument("--keep", type=Path, help="the trained RBM is kept there, and read from there")
    arguments = parser.parse_args()
    if "mnist" in arguments.only and arguments.data is None:
        parser.error("mnist needs --data FOLDER")
    problems = PROBLEMS | {"mnist": lambda: mnist(arguments.data, arguments.keep)}
    for name in arguments.only:
        runs, truth = problems[name]()
        table = Table(
            "", "seconds", "mean", "error", "claimed", "s to 0.1 nat", "warned", title=f"{name}: log Z = {truth:.4f}"
        )
        for label, run in runs.items():
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(1)
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
