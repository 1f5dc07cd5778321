"""log Z of continuous models whose log Z is known, by sequential Monte Carlo: error, interval and time, beside BlackJAX and dynesty. One thread.

    python benchmarks/continuous_log_z.py [--only eggbox funnel-10 …] [--methods lnz blackjax dynesty] [--seeds 5] [--json FILE]

Goals: |error| at most 0.05 nat on shells, eggbox and many-well; the truth in the interval on the funnel and both mixtures, where log Z = 0. Every
model has one budget for lnz and BlackJAX (particles in all, moves at every temperature); dynesty runs with its defaults and its own stopping
rule, on the models with a box. Seconds are process time without compilation; "to 0.05" is what the root mean square error says of a longer run,
seconds · (error / 0.05)². dynesty is not installed with lnz: --methods dynesty runs where it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

REPLICATES = 8
MOST = 2000  # temperatures of BlackJAX, whose steps may become as short as rounding lets them


class Budget(NamedTuple):
    """Particles of each of 8 populations; moves at every temperature, and the gradients of a move; the scale of a normal base, if any; and the
    conditional effective sample size of a step."""

    particles: int
    moves: int
    leapfrogs: int = 1
    scale: float | None = None
    conditional: float = 0.95


BUDGETS = {
    "shells-2": Budget(512, 5),
    "shells-5": Budget(512, 5),
    "shells-10": Budget(1024, 5),
    "shells-30": Budget(1024, 10),
    "shells-100": Budget(2048, 10),
    "eggbox": Budget(1024, 10),
    "many-well-2": Budget(512, 5),
    "many-well-32": Budget(4096, 4, leapfrogs=4),
    "funnel-10": Budget(512, 10),
    "mixture-40": Budget(512, 5, scale=30.0),
    "student-10": Budget(512, 5),
}
Found = tuple[float, float, float, float, bool]  # log Z, its claimed error, limits, and whether it carries a warning


def wide(scale: float) -> Any:
    """A normal base of two dimensions."""
    import lnz

    return lnz.Gaussian(np.zeros(2), np.full(2, scale**-2))


def by_lnz(name: str) -> Callable[[int], Found]:
    import jax

    import lnz
    from lnz._core.frozen import Frozen

    budget = BUDGETS[name]
    energy = lnz.reference.reference_models(name)[0].energy()
    route = lnz.routes.SequentialMonteCarlo(
        particles=budget.particles,
        replicates=REPLICATES,
        conditional=budget.conditional,
        sweeps=budget.moves,
        leapfrogs=budget.leapfrogs,
    )
    if budget.scale is not None:
        route = dataclasses.replace(route, base=Frozen(wide(budget.scale)))
    run = jax.jit(lambda key: route.log_partition(energy, key)).lower(jax.random.key(0)).compile()

    def once(seed: int) -> Found:
        e = run(jax.random.key(seed))
        return float(e.value), float(e.standard_error), float(e.lower), float(e.upper), bool(e.warnings)

    return once


def by_blackjax(name: str) -> Callable[[int], Found]:
    """Adaptive tempered SMC from the same base, with as many particles in one population, and its own way to fit step sizes as it goes."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.smc.resampling import systematic

    import lnz

    budget = BUDGETS[name]
    energy: Any = lnz.reference.reference_models(name)[0].energy()
    base: Any = energy.base() if budget.scale is None else wide(budget.scale)
    low, high = map(jnp.asarray, lnz.capabilities.observed_space(energy).limits)
    d = lnz.capabilities.observed_space(energy).shape[0]

    def inside(f: Any) -> Any:
        return lambda x: jnp.where(jnp.all((x >= low) & (x <= high)), f(x), -jnp.inf)

    fixed: dict[str, Any] = {}
    if budget.leapfrogs == 1:
        kernel, init, first, target = blackjax.mala.build_kernel(), blackjax.mala.init, 0.5 * d ** (-1 / 3), 0.574
    else:
        kernel, init, first, target = blackjax.hmc.build_kernel(), blackjax.hmc.init, d ** (-1 / 4), 0.651
        fixed = {"inverse_mass_matrix": jnp.ones((1, d)), "num_integration_steps": jnp.asarray([budget.leapfrogs])}
    tempered: Any = blackjax.adaptive_tempered_smc

    @jax.jit
    def run(key: Any) -> Any:
        start, key = jax.random.split(key)

        def step(log_step: Any, state: Any, key: Any) -> Any:
            algorithm = tempered(
                inside(lambda x: -base(x)),
                lambda x: base(x) - energy(x),
                kernel,
                init,
                {"step_size": jnp.exp(log_step)[None], **fixed},
                systematic,
                target_ess=budget.conditional,
                num_mcmc_steps=budget.moves,
            )
            return (
                algorithm.init(base.sample(start, REPLICATES * budget.particles))
                if state is None
                else algorithm.step(key, state)
            )

        def going(carry: Any) -> Any:
            return (carry[0].tempering_param < 1) & (carry[-1] < MOST)

        def body(carry: Any) -> Any:
            state, log_z, log_step, key, k = carry
            now, key = jax.random.split(key)
            state, info = step(log_step, state, now)
            acceptance = jnp.nan_to_num(jnp.nanmean(info.update_info.acceptance_rate))
            return state, log_z + info.log_likelihood_increment, log_step + 2 * (acceptance - target), key, k + 1

        log_step = jnp.log(first)
        begin = (step(log_step, None, None), base.log_normaliser(), log_step, key, 0)
        state, log_z, *_ = jax.lax.while_loop(going, body, begin)
        return jnp.where(state.tempering_param < 1, jnp.nan, log_z)

    compiled = run.lower(jax.random.key(0)).compile()

    def once(seed: int) -> Found:
        return float(compiled(jax.random.key(seed))), math.nan, -math.inf, math.inf, False

    return once


def by_dynesty(name: str) -> Callable[[int], Found]:
    from dynesty import NestedSampler  # pyright: ignore[reportMissingImports]

    from lnz import reference

    density, low, high, d = {
        "eggbox": (reference.eggbox_log_density, 0.0, 10 * math.pi, 2),
        **{f"shells-{d}": (reference.gaussian_shells_log_density, -6.0, 6.0, d) for d in (2, 5, 10, 30)},
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
    """A row of the table. A method compiles as it is made."""
    run = METHODS[method](name)
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
        import lnz  # noqa: F401
    from lnz.reference import reference_models

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
