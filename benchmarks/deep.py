"""MNIST: a deep Boltzmann machine 784-500-1000, and an RBM of 500 hidden units by three negative phases, each in a stated time.

    python benchmarks/deep.py TRAIN.npz TEST.npz [--runs persistent,tempered,trajectory,deep] [--minutes 1] [--deep-minutes 1.5]
                              [--json FOLDER] [--picture FILE] [--temperatures 1000]

The files hold `images`, grey values from 0 to 255; pixels of 128 and more are 1. Every run gets so many minutes of one processor (compilation
and pretraining in, looks at the likelihood out) and a learning rate that falls linearly to 0 over them. Looks on the way take log Z by annealed
importance sampling from the data's means, which is low on average and makes the likelihood look too good; the last one anneals in both
directions. What is done lies in FOLDER, one model and one file of figures a run; with `--runs ""` they are measured and drawn alone.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from timing import one_thread

BATCH = CHAINS = 100
RATE = 0.05
LOOKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # at these shares of the time
PRETRAINING = (4, 3)  # epochs of the deep machine's layers, in its time
TITLES = {
    "persistent": "RBM 500, persistent chains (100)",
    "tempered": "RBM 500, tempered chains (11 x 20)",
    "trajectory": "RBM 500, trajectory tempering (7 x 20)",
    "deep": "DBM 500-1000, persistent chains (100)",
}


def read(path: str) -> Any:
    """Bits (n, 784)."""
    import numpy as np

    import lnz

    return (lnz.io.load(path, name="images").rows.reshape(-1, 784) >= 128).astype(np.float32)


def phase_of(name: str) -> Any:
    """The negative phase of a run."""
    import lnz

    return {
        "persistent": lnz.learning.PersistentChains(chains=100),
        "tempered": lnz.learning.TemperedChains(temperatures=10, chains=20),
        "trajectory": lnz.learning.TrajectoryTempered(checkpoints=6, chains=20),
        "deep": lnz.learning.PersistentChains(chains=100),
    }[name]


def likelihood(energy: Any, train: Any, test: Any, temperatures: int, *, both: bool = False) -> dict[str, Any]:
    """The test likelihood (of a deep machine: its variational limit), with limits from log Z, and the effective sample size of log Z.

    `both`: anneal also backwards, from chains that start at training data and move for 1,000 sweeps; where the directions disagree, the limits
    hold both.
    """
    import jax
    import jax.numpy as jnp

    import lnz

    base = lnz.routes.fitted_base(energy, train)
    if both:
        start_key, chain_key = jax.random.split(jax.random.key(8))
        start = energy.complete(start_key, jnp.asarray(train[:CHAINS]))
        states = lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), start, chain_key, 1_000)
        route: Any = lnz.routes.BidirectionalAIS.from_samples(
            states, exact=False, base=base, temperatures=temperatures, chains=CHAINS
        )
    else:
        route = lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=temperatures, chains=CHAINS)
    found = lnz.log_likelihood(energy, test, route=route, key=jax.random.key(9))
    figures = {name: float(value) for name, value in found.log_z.diagnostics.items()}
    return {
        "value": found.value, "lower": found.lower, "upper": found.upper, "log_z": float(found.log_z.value), "error": found.standard_error,
        "data_error": found.data_standard_error, "n": found.n, "words": str(found), **figures,
    }  # fmt: skip


def train(name: str, minutes: float, rows: Any, test: Any) -> tuple[Any, list[dict[str, Any]]]:
    """One run: the model, and the curve: processor seconds, likelihood."""
    import jax
    import jax.numpy as jnp
    import optax

    import lnz

    budget, spent = 60 * minutes, 0.0
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=RATE)
    began = time.process_time()
    if name == "deep":
        energy = lnz.learning.pretrained(rows, (500, 1000), epochs=PRETRAINING, key=jax.random.key(0))
    else:
        energy = lnz.RBM.from_data(rows, 500, key=jax.random.key(0))
    trainer = lnz.Trainer(optimizer, phase_of(name))
    state = trainer.init(energy, jax.random.key(1), batch_size=BATCH)
    spent += time.process_time() - began
    curve: list[dict[str, Any]] = []
    epochs = 0.0
    while len(curve) < len(LOOKS):
        if spent >= LOOKS[len(curve)] * budget:
            found = likelihood(state.energy, rows, test, 500)
            curve.append({"seconds": spent, "updates": int(state.step)} | found)
            print(f"{name:12} {spent:7.0f} s {int(state.step):7,} updates: {found['value']:.2f}", flush=True)
            continue
        began = time.process_time()
        rate = jnp.asarray(max(RATE * (1 - spent / budget), 1e-4), jnp.float32)
        state = state_with(state, rate)
        epochs += 0.25
        state = lnz.fit(
            None, rows, negative_phase=trainer.negative_phase, optimizer=optimizer, batch_size=BATCH, epochs=epochs, evaluate_every=1e9,
            state=state, key=jax.random.key(1),
        ).state  # fmt: skip
        spent += time.process_time() - began
    return state.energy, curve


def state_with(state: Any, rate: Any) -> Any:
    """The state with another learning rate."""
    import equinox as eqx

    return eqx.tree_at(lambda s: s.optimizer.hyperparams["learning_rate"], state, rate)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """The curves of all runs over the processor's time."""
    from lnz.report._style import BLUE, GREEN, INK, ORANGE, Canvas

    colours = dict(zip(TITLES, (INK, BLUE, GREEN, ORANGE), strict=True))
    with Canvas(path, width=6.4, height=3.8) as figure:
        axes = figure.subplots()
        for found in results:
            seconds = [point["seconds"] for point in found["curve"]]
            values = [point["value"] for point in found["curve"]]
            colour = colours[found["name"]]
            axes.plot(
                seconds, values, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=TITLES[found["name"]]
            )
            if last := found.get("final"):
                high = last["value"] if last["upper"] is None else last["upper"]
                axes.plot([seconds[-1]] * 2, [last["lower"], high], color=colour, linewidth=3, alpha=0.5)
        axes.set(
            xlabel="seconds of one processor",
            ylabel="test log-likelihood (DBM: at least), nats per image",
            ylim=(-150, -70),
        )
        axes.legend(loc="lower right")


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--runs", default=",".join(TITLES))
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--deep-minutes", type=float, default=1.5)
    parser.add_argument("--json", type=Path, default=Path("runs/deep"))
    parser.add_argument("--temperatures", type=int, default=1_000, help="of the last look, in either direction")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    import lnz

    rows, test = read(options.train), read(options.test)
    options.json.mkdir(parents=True, exist_ok=True)
    for name in filter(None, options.runs.split(",")):
        energy, curve = train(name, options.deep_minutes if name == "deep" else options.minutes, rows, test)
        lnz.save(options.json / f"{name}.lnz", energy)
        (options.json / f"{name}.json").write_text(
            json.dumps({"name": name, "curve": [strict(point) for point in curve]})
        )
    for name in TITLES:
        file = options.json / f"{name}.json"
        found = json.loads(file.read_text()) if file.is_file() else {"final": None}
        if "final" not in found:
            energy = lnz.load(file.with_suffix(".lnz"))
            found["final"] = strict(likelihood(energy, rows, test, options.temperatures, both=True))
            file.write_text(json.dumps(found))
            print(f"{TITLES[name]}: {found['final']['words']}", flush=True)
    if options.picture is not None:
        files = [options.json / f"{name}.json" for name in TITLES]
        draw([json.loads(file.read_text()) for file in files if file.is_file()], options.picture)


def strict(point: dict[str, Any]) -> dict[str, Any]:
    """Infinities as null."""
    return {name: None if value in (float("inf"), -float("inf")) else value for name, value in point.items()}


if __name__ == "__main__":
    main()
