"""Bars and Stripes 4x4 with an RBM of 10 hidden units: negative phases at three learning rates, beside published figures.

    python benchmarks/learning_rates.py [--phases exact,cd-1,...] [--seeds 5] [--updates 4000] [--units spin] [--chains 200]

The 30 different patterns, full batch, Adam with a rate that falls linearly to 0, starts N(0, 0.1²), 200 chains. Figures are nats per datum
(the mean of -log p) after the last update, by enumeration, means over the seeds; the best that any model can reach is log 30 = 3.401. All rates and
seeds of a phase run side by side in one compiled program.

The published table says: Adam, linear decay, 4,000 steps, mean of 3 seeds. It does not say what the units are, nor the batch, the start, or the
number of chains. With units of ±1 in both layers (`SpinMachine`) exact training gives the published figures at every rate; with units of 0 and 1
(`--units binary`) the same law is learned four times as slowly by Adam, whose steps do not know the scale of a parameter.
"""

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lnz
from learning import patterns
from lnz._core.spaces import Spin
from lnz._models.layers import BilinearLayers
from lnz._models.rbm import RBM
from timing import one_thread

RATES = (0.01, 0.003, 0.001)
PUBLISHED = {
    "exact": (3.41, 3.43, 3.55),
    "cd-1": (6.28, 4.33, 4.14),
    "cd-10": (3.94, 3.59, 3.87),
    "restart-15": (5.20, 4.09, 3.84),
    "pcd-1": (13.0, 5.33, 3.84),
    "pcd-15": (4.48, 3.57, 3.79),
}


class SpinMachine(BilinearLayers):
    """An RBM whose units are ±1 in both layers: E(s, t) = -b · s - c · t - sᵀ W t. With t = 2h - 1 it is a machine of spins and bits."""

    weights: Any
    visible_bias: Any
    hidden_bias: Any

    @property
    def observed(self) -> Any:
        return Spin(self.visible_bias.size)

    def biases(self) -> tuple[Any, Any]:
        return self.visible_bias - jnp.sum(self.weights, axis=1), 2 * self.hidden_bias

    def up(self, phi: Any) -> Any:
        return 2 * (phi @ self.weights)

    def down(self, h: Any) -> Any:
        return 2 * (h @ self.weights.T)

    def collapsed(self) -> Any:
        return RBM.from_parameters(2 * self.weights, *self.biases(), visible=self.observed).collapsed()


def phases(chains: int = 200) -> dict[str, Any]:
    return {
        "exact": lnz.learning.ExactPhase(lnz.routes.Enumeration()),
        "cd-1": lnz.learning.ContrastiveDivergence(1),
        "cd-10": lnz.learning.ContrastiveDivergence(10),
        "restart-15": lnz.learning.ReplayBuffer(size=chains, chains=chains, sweeps=15, restart=1.0),
        "pcd-1": lnz.learning.PersistentChains(1, chains=chains),
        "pcd-15": lnz.learning.PersistentChains(15, chains=chains),
        "tempered": lnz.learning.TemperedChains(temperatures=8, chains=50),
        "jarzynski": lnz.learning.JarzynskiWalkers(chains=chains, temperatures=20, measure=False),
    }


def measure(
    name: str, seeds: int, updates: int, scale: float, spin: bool, chains: int, rates: Any
) -> tuple[Any, float]:
    """Nats per datum at every rate and seed, and seconds for one run."""
    phase = phases(chains)[name]
    data = np.unique(patterns(), axis=0) * (2 if spin else 1) - (1 if spin else 0)
    rows = jnp.asarray(np.tile(data, (-(-chains // 30), 1)) if name.startswith("cd") else data)  # 210 chains for CD
    trainer = lnz.Trainer(optax.inject_hyperparams(optax.adam)(learning_rate=1.0), phase)
    rate_of = lambda state: state.optimizer.hyperparams["learning_rate"]  # noqa: E731

    def run(seed: Any, rate: Any) -> Any:
        energy = lnz.RBM(visible=16, hidden=10, key=jax.random.key(seed), scale=scale)
        if spin:
            energy = SpinMachine(energy.weights, energy.visible_bias, energy.hidden_bias)
        state = trainer.init(energy, jax.random.key(100 + seed), batch_size=chains)
        arrays, rest = eqx.partition(state, eqx.is_array)

        def body(t: Any, arrays: Any) -> Any:
            state = eqx.combine(arrays, rest)
            now = (rate * (1 - t.astype(jnp.float32) / updates)).astype(rate_of(state).dtype)
            state, _ = trainer.update(eqx.tree_at(rate_of, state, now), rows)
            return eqx.filter(state, eqx.is_array)

        energy = eqx.combine(jax.lax.fori_loop(0, updates, body, arrays), rest).energy
        log_z = lnz.routes.Enumeration().log_partition(energy, None).value
        return jnp.mean(jax.vmap(energy.free_energy)(jnp.asarray(data))) + log_z.astype(jnp.float32)

    began = time.process_time()
    grid = [(seed, rate) for rate in rates for seed in range(seeds)]
    found = jax.jit(jax.vmap(run))(jnp.asarray([s for s, _ in grid]), jnp.asarray([r for _, r in grid], jnp.float32))
    values = np.asarray(found).reshape(len(rates), seeds)
    return values, (time.process_time() - began) / len(grid)


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default=",".join(phases()))
    parser.add_argument("--units", choices=("spin", "binary"), default="spin")
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--chains", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--scale", type=float, default=0.1)
    options = parser.parse_args()
    rates = tuple(map(float, options.rates.split(",")))
    print("Mean (least to most; published), nats per datum")
    print("| negative phase | " + " | ".join(f"rate {rate}" for rate in rates) + " | s a run |")
    print("|---|" + "---|" * (len(rates) + 1))
    for name in options.phases.split(","):
        values, seconds = measure(
            name, options.seeds, options.updates, options.scale, options.units == "spin", options.chains, rates
        )
        published = [dict(zip(RATES, PUBLISHED.get(name, ()), strict=False)).get(rate, "none") for rate in rates]
        cells = " | ".join(
            f"{row.mean():.3f} ({row.min():.3f} to {row.max():.3f}; {known})"
            for row, known in zip(values, published, strict=True)
        )
        print(f"| {name} | {cells} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
