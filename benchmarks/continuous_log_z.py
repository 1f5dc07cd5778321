"""log Z of continuous models whose log Z is known, by sequential Monte Carlo: error, interval and time, beside BlackJAX and dynesty. One thread.

    python benchmarks/continuous_log_z.py [--only eggbox funnel-10 …] [--methods lnz blackjax dynesty] [--seeds 5] [--json FILE]

Goals: |error| at most 0.05 nat on shells, eggbox and many-well; the truth in the interval on the funnel and both mixtures, where log Z = 0. Every
model has one budget for lnz and BlackJAX (particles in all, moves at every temperature); dynesty runs with its defaults and its own stopping
rule, on the models with a box. Seconds are process time without compilation; "to 0.05" is what the root mean square error says of a longer run,
seconds · (error / 0.05)². dynesty is not installed with lnz: --methods dynesty runs where it is.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

REPLICATES = 8
# Particles of each of 8 populations, moves at every temperature, conditional effective sample size of a step, and the scale of a normal base.
BUDGETS: dict[str, tuple[int, int, float, float | None]] = {
    "shells-2": (512, 5, 0.95, None),
    "shells-5": (512, 5, 0.95, None),
    "shells-10": (512, 5, 0.95, None),
    "shells-30": (512, 10, 0.95, None),
    "shells-100": (512, 10, 0.95, None),
    "eggbox": (1024, 10, 0.95, None),
    "many-well-2": (512, 5, 0.95, None),
    "many-well-32": (512, 10, 0.95, None),
    "funnel-10": (512, 10, 0.95, None),
    "mixture-40": (512, 5, 0.95, 30.0),
    "student-10": (512, 5, 0.95, None),
}
Found = tuple[float, float, float, float, bool]  # log Z, its claimed error, limits, and whether it carries a warning


def by_lnz(name: str) -> Callable[[int], Found]:
    import jax

    import lnz

    particles, sweeps, conditional, scale = BUDGETS[name]
    energy = lnz.reference_models(name)[0].energy()
    options: Any = {"particles": particles, "replicates": REPLICATES, "conditional": conditional, "sweeps": sweeps}
    route = lnz.SequentialMonteCarlo(**options)
    if scale is not None:
        base = lnz.Gaussian(np.zeros(2), np.full(2, scale**-2))
        route = lnz.SequentialMonteCarlo.from_base(base, **options)
    run = jax.jit(lambda key: route.log_partition(energy, key))

    def once(seed: int) -> Found:
        e = run(jax.random.key(seed))
        return float(e.value), float(e.standard_error), float(e.lower), float(e.upper), bool(e.warnings)

    return once


def by_blackjax(name: str) -> Callable[[int], Found]:
    """Adaptive tempered SMC with Langevin moves of a fixed step size, from the same base, with as many particles in one population."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.smc.resampling import systematic

    import lnz

    particles, sweeps, _, scale = BUDGETS[name]
    energy: Any = lnz.reference_models(name)[0].energy()
    base: Any = energy.base() if scale is None else lnz.Gaussian(np.zeros(2), np.full(2, scale**-2))
    low, high = map(jnp.asarray, energy.observed.limits)
    step = 0.3 * min(1.0, energy.observed.shape[0] ** (-1 / 3)) * (0.05 if name.startswith("shells") else 0.1)

    def inside(f: Any) -> Any:
        return lambda x: jnp.where(jnp.all((x >= low) & (x <= high)), f(x), -jnp.inf)

    kernel = blackjax.mala.build_kernel()
    tempered: Any = blackjax.adaptive_tempered_smc
    algorithm = tempered(
        inside(lambda x: -base(x)),
        lambda x: base(x) - energy(x),
        kernel,
        blackjax.mala.init,
        {"step_size": jnp.asarray([step])},
        systematic,
        target_ess=0.9,
        num_mcmc_steps=sweeps,
    )

    @jax.jit
    def run(key: Any) -> Any:
        start, key = jax.random.split(key)
        first = algorithm.init(base.sample(start, REPLICATES * particles))

        def going(carry: Any) -> Any:
            return carry[0].tempering_param < 1

        def body(carry: Any) -> Any:
            state, log_z, key = carry
            now, key = jax.random.split(key)
            state, info = algorithm.step(now, state)
            return state, log_z + info.log_likelihood_increment, key

        return jax.lax.while_loop(going, body, (first, base.log_normaliser(), key))[1]

    def once(seed: int) -> Found:
        return float(run(jax.random.key(seed))), math.nan, -math.inf, math.inf, False

    return once


def by_dynesty(name: str) -> Callable[[int], Found]:
    from dynesty import NestedSampler  # pyright: ignore[reportMissingImports]

    from lnz import reference

    density, low, high, d = {
        "eggbox": (reference.eggbox_log_density, 0.0, 10 * math.pi, 2),
        **{f"shells-{d}": (reference.gaussian_shells_log_density, -6.0, 6.0, d) for d in (2, 5, 10)},
    }[name]
    volume = d * math.log(high - low)

    def once(seed: int) -> Found:
        sampler = NestedSampler(
            lambda x: float(density(x)) + volume,
            lambda u: low + (high - low) * u,
            d,
            rstate=np.random.default_rng(seed),
        )
        sampler.run_nested(print_progress=False)
        value, error = float(sampler.results.logz[-1]), float(sampler.results.logzerr[-1])
        return value, error, value - 2.576 * error, value + 2.576 * error, False

    return once


METHODS = {"lnz": by_lnz, "blackjax": by_blackjax, "dynesty": by_dynesty}


def measure(name: str, method: str, seeds: int, truth: float) -> dict[str, Any]:
    """A row of the table."""
    run = METHODS[method](name)
    if method != "dynesty":
        run(2**31 - 1)  # compiles
    found, seconds = [], []
    for seed in range(seeds):
        begun = time.process_time()
        found.append(run(seed))
        seconds.append(time.process_time() - begun)
    errors = np.asarray([value - truth for value, *_ in found])
    rms, took = float(np.sqrt(np.mean(errors**2))), float(np.median(seconds))
    return {
        "model": name,
        "method": method,
        "seconds": took,
        "error": rms,
        "mean": float(errors.mean()),
        "claimed": float(np.mean([claimed for _, claimed, *_ in found])),
        "held": sum(low <= truth <= high for _, _, low, high, _ in found) if method != "blackjax" else None,
        "warned": sum(warned for *_, warned in found),
        "runs": seeds,
        "to": took * (rms / 0.05) ** 2,
    }


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["lnz", "blackjax"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", help="append every row to this file, one JSON object a line")
    options = parser.parse_args()
    if options.methods != ["dynesty"]:
        import jax

        jax.config.update("jax_enable_x64", True)
    from lnz import reference_models

    table = Table("model", "method", "seconds", "error", "mean error", "claimed", "held", "warned", "s to 0.05 nat")
    for name in options.only:
        truth = reference_models(name)[0].log_z
        for method in options.methods:
            row = measure(name, method, options.seeds, truth)
            held = "–" if row["held"] is None else f"{row['held']}/{row['runs']}"
            figures = [f"{row[key]:.3g}" for key in ("seconds", "error", "mean", "claimed")]
            table.add_row(name, method, *figures, held, str(row["warned"]), f"{row['to']:.3g}")
            if options.json:
                with open(options.json, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
