"""Bars and Stripes 4x4 with an RBM of 10 hidden units: negative phases at three learning rates, under exact evaluation.

    python benchmarks/learning_rates.py [--phases exact,cd-1,...] [--seeds 3] [--updates 4000]

The 30 different patterns, full batch, Adam with a rate that falls linearly to 0, starts N(0, 0.1²), 200 chains. Figures are nats per datum
(the mean of -log p) after the last update, by enumeration, means over the seeds; the best that any model can reach is log 30 = 3.401. All rates and
seeds of a phase run side by side in one compiled program.
"""

import argparse
import time
from typing import Any

import numpy as np

from learning import patterns
from timing import one_thread

RATES = (0.01, 0.003, 0.001)


def phases() -> dict[str, Any]:
    import lnz

    return {
        "exact": lnz.ExactPhase(lnz.Enumeration()),
        "cd-1": lnz.ContrastiveDivergence(1),
        "cd-10": lnz.ContrastiveDivergence(10),
        "pcd-1": lnz.PersistentChains(1, chains=200),
        "pcd-15": lnz.PersistentChains(15, chains=200),
        "tempered": lnz.TemperedChains(temperatures=8, chains=50),
        "jarzynski": lnz.JarzynskiWalkers(chains=200, temperatures=20, measure=False),
    }


def measure(name: str, seeds: int, updates: int) -> tuple[Any, float]:
    """Nats per datum at every rate and seed, and seconds for one run."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import lnz

    phase = phases()[name]
    data = np.unique(patterns(), axis=0)
    rows = jnp.asarray(np.tile(data, (7, 1)) if name.startswith("cd") else data)  # 210 chains for CD
    trainer = lnz.Trainer(optax.inject_hyperparams(optax.adam)(learning_rate=1.0), phase)
    rate_of = lambda state: state.optimizer.hyperparams["learning_rate"]  # noqa: E731

    def run(seed: Any, rate: Any) -> Any:
        energy = lnz.RBM(visible=16, hidden=10, key=jax.random.key(seed), scale=0.1)
        state = trainer.init(energy, jax.random.key(100 + seed), batch_size=200)
        arrays, rest = eqx.partition(state, eqx.is_array)

        def body(t: Any, arrays: Any) -> Any:
            state = eqx.combine(arrays, rest)
            now = (rate * (1 - t.astype(jnp.float32) / updates)).astype(rate_of(state).dtype)
            state, _ = trainer.update(eqx.tree_at(rate_of, state, now), rows)
            return eqx.filter(state, eqx.is_array)

        energy = eqx.combine(jax.lax.fori_loop(0, updates, body, arrays), rest).energy
        log_z = lnz.Enumeration().log_partition(energy, None).value
        return jnp.mean(jax.vmap(energy.free_energy)(jnp.asarray(data))) + log_z.astype(jnp.float32)

    began = time.process_time()
    grid = [(seed, rate) for rate in RATES for seed in range(seeds)]
    found = jax.jit(jax.vmap(run))(jnp.asarray([s for s, _ in grid]), jnp.asarray([r for _, r in grid], jnp.float32))
    values = np.asarray(found).reshape(len(RATES), seeds)
    return values, (time.process_time() - began) / len(grid)


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(phases()))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4000)
    options = parser.parse_args()
    print("| negative phase | " + " | ".join(f"rate {rate}" for rate in RATES) + " | s a run |")
    print("|---|" + "---|" * (len(RATES) + 1))
    for name in options.phases.split(","):
        values, seconds = measure(name, options.seeds, options.updates)
        cells = " | ".join(f"{row.mean():.3f} ({row.min():.3f} to {row.max():.3f})" for row in values)
        print(f"| {name} | {cells} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
