"""Bars and Stripes 4x4 with an RBM of 16 hidden units: negative phases under exact evaluation, and what the alarms say.

    python benchmarks/learning.py [--phases cd,persistent,...] [--seeds 5] [--first-seed 0] [--json FILE] [--picture FILE]

The 32 patterns count the empty and the full image twice. Figures are the sum of log p over the 32, in nats, by
enumeration; the best that any model can reach is -108.131, and exact maximum likelihood reaches -108.143 with these
machines. CD-1 and PCD-1 run for 10,000 updates with a constant rate of 0.1, the others for 50,000 updates with one that falls linearly to 0.
"""

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from timing import one_thread

BOUND = 28 * math.log(1 / 32) + 4 * math.log(2 / 32)  # two patterns count twice: no model of the 32 is better
TITLES = {
    "cd": "CD-1",
    "persistent": "PCD-1",
    "tempered": "tempered",
    "trajectory": "trajectory",
    "jarzynski": "Jarzynski",
    "coupled": "coupled",
}


def patterns() -> Any:
    """The 32 images (32, 16): every set of bars, and every set of stripes."""
    import numpy as np

    sets = np.array(list(itertools.product([0, 1], repeat=4)), np.float32)
    bars = np.repeat(sets[:, :, None], 4, axis=2)
    return np.concatenate([bars, bars.transpose(0, 2, 1)]).reshape(32, 16)


class Setting(NamedTuple):
    """A negative phase, the learning rate at the start, whether it falls to 0, how often the 32 data stand in a batch, the
    updates, and the monitor's share of the time: more than by default in the short runs, whose updates take 0.1 ms.
    """

    phase: Any
    rate: float
    falls: bool = True
    copies: int = 1
    updates: int = 50_000
    share: float = 0.05


def settings() -> dict[str, Setting]:
    """The runs by name. CD has a chain for every row of a batch, hence the copies."""
    import lnz

    return {
        "cd": Setting(lnz.learning.ContrastiveDivergence(), 0.1, False, 32, 10_000, 0.25),
        "persistent": Setting(lnz.learning.PersistentChains(chains=1000), 0.1, False, 1, 10_000, 0.25),
        "tempered": Setting(lnz.learning.TemperedChains(chains=50, temperatures=8), 0.2),
        "trajectory": Setting(lnz.learning.TrajectoryTempered(chains=50, checkpoints=12, sweeps=3), 0.1),
        "jarzynski": Setting(lnz.learning.JarzynskiWalkers(chains=1000), 0.2),
        "coupled": Setting(lnz.learning.CoupledAnnealing(chains=64), 0.2),
    }


def run(name: str, seed: int, looks: int) -> dict[str, Any]:
    """One run: [update, sum of log p] at every look, and the alarms."""
    import jax
    import numpy as np
    import optax

    import lnz

    phase, rate, falls, copies, updates, share = settings()[name]
    data = patterns()
    energy = lnz.RBM(visible=16, hidden=16, key=jax.random.key(seed), scale=0.1)
    schedule = optax.linear_schedule(rate, 0.0, updates) if falls else rate
    began = time.process_time()
    fitted = lnz.fit(
        energy, np.tile(data, (copies, 1)), negative_phase=phase, optimizer=optax.sgd(schedule), epochs=updates,
        batch_size=32 * copies, validation=data, evaluate_every=updates // looks, route=lnz.routes.Enumeration(),
        key=jax.random.key(100 + seed), monitor=lnz.learning.Monitor(share),
    )  # fmt: skip
    curve = [(record.step, 32 * record.validation.value) for record in fitted.history if record.validation]
    figures = [record.figures for record in fitted.history]
    return {
        "phase": name, "seed": seed, "seconds": time.process_time() - began, "curve": curve, "figures": figures,
        "looks": [(look.step, look.figures) for look in fitted.reports],
        "alarms": [(alarm.step, alarm.name, str(alarm)) for look in fitted.reports for alarm in look.alarms],
    }  # fmt: skip


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """The curves of all runs, with the first alarm of each as a cross."""
    from lnz.report._style import BLUE, GREEN, INK, ORANGE, QUIET, Canvas

    colours = dict(zip(TITLES, (ORANGE, INK, BLUE, GREEN, "#8a5a9e", "#b0455f"), strict=True))
    with Canvas(path, width=9.2, height=3.8) as figure:
        panels = figure.subplots(1, 2)
        for axes, names, title in (
            (panels[0], ("cd", "persistent"), "Constant rate: rise and fall; the first alarm is a cross"),
            (panels[1], ("tempered", "trajectory", "jarzynski", "coupled"), "Falling rate: chains that mix, or pay"),
        ):
            for name in names:
                for found in (found for found in results if found["phase"] == name):
                    steps, values = zip(*found["curve"], strict=True)
                    label = TITLES[name] if found["seed"] == 0 else None
                    axes.plot(steps, values, color=colours[name], linewidth=1, label=label, alpha=0.8)
                    if found["alarms"] and name in ("cd", "persistent"):
                        first = found["alarms"][0][0]
                        at = min(range(len(steps)), key=lambda i, first=first, steps=steps: abs(steps[i] - first))
                        axes.plot(first, values[at], marker="x", color=colours[name], markersize=8)
            axes.axhline(BOUND, color=QUIET, linestyle=":", linewidth=1, label="bound")
            axes.set(title=title, xlabel="updates", ylabel="Σ log p of the 32 patterns, nats")
            axes.legend(loc="lower right")
        panels[0].set_ylim(-220, -100)
        panels[1].set_ylim(-130, -106)


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(TITLES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--looks", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in options.phases.split(","):
            found = run(name, seed, options.looks)
            results.append(found)
            values = [value for _, value in found["curve"]]
            best = max(range(len(values)), key=values.__getitem__)
            last = found["figures"][-1]
            print(
                f"{name:12} seed {seed}: best {values[best]:9.3f} after {found['curve'][best][0]:6}, end {values[-1]:9.3f}, "
                f"{found['seconds']:.0f} s  " + " ".join(f"{k} {last[k]:.3f}" for k in sorted(last)), flush=True
            )  # fmt: skip
            for step, alarm, _ in found["alarms"]:
                print(f"    alarm {alarm} after {step}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(results))
    if options.picture is not None:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
