"""Trajectory tempering against persistent chains on a frustrated Potts model with planted clusters, under exact evaluation.

    python benchmarks/planted.py [--phases "persistent;..."] [--rates 0.001,0.0015,0.002,0.004] [--seeds 3] [--updates 2000]

The law that is to be learned: 24 sites of 6 states on a strip of 4 x 6 with diagonals, 68 edges. Every edge favours by 2.5 nats the pairs of states
that it has in four random patterns, no two of which agree anywhere, and every pair of states by N(0, 0.6²) besides, so that edges disagree about
which pattern it should be; fields give the patterns about 40, 30, 20 and 10 % of the mass. Gibbs sweeps do not lead from one cluster to another.
2,000 exact samples to learn from and 2,000 others to measure by; models have a free table on every edge and free fields, and start at 0. Batches of
500, Adam, a rate that falls linearly to 0.

Every negative phase moves 200 states an update, but for "persistent, 20 x 20". Figures are the mean log p of the held-out samples over the 24
sites, in nats, with log Z by elimination. Then log Z of the last models of trajectory tempering (at its best rate) three ways: from the ladder of
kept models by Bennett's ratio, by thermodynamic integration in β with 64 rungs of parallel tempering, and exactly.
"""

import argparse
import itertools
import time
from typing import Any

import numpy as np

from timing import one_thread

ROWS, COLUMNS, STATES, WEIGHTS = 4, 6, 6, (0.4, 0.3, 0.2, 0.1)
SITES = ROWS * COLUMNS


def edges() -> np.ndarray:
    """Neighbours along rows, columns and diagonals."""
    steps = ((0, 1), (1, 0), (1, 1), (1, -1))
    found = [
        (i * COLUMNS + j, (i + a) * COLUMNS + j + b)
        for i, j, (a, b) in itertools.product(range(ROWS), range(COLUMNS), steps)
        if i + a < ROWS and 0 <= j + b < COLUMNS
    ]
    return np.array(found)


def planted(seed: int, pull: float = 2.5, noise: float = 0.6) -> tuple[Any, np.ndarray]:
    """The law, and its patterns (4, sites). Fields make the energies of the patterns differ by the logarithms of their weights."""
    import lnz

    rng, bonds, sites = np.random.default_rng(seed), edges(), np.arange(SITES)
    patterns = rng.permuted(np.tile(np.arange(STATES), (SITES, 1)), axis=1).T[: len(WEIGHTS)]  # no two alike anywhere
    tables = noise * rng.normal(size=(len(bonds), STATES, STATES))
    for pattern in patterns:
        tables[np.arange(len(bonds)), pattern[bonds[:, 0]], pattern[bonds[:, 1]]] += pull
    scores = np.array([tables[np.arange(len(bonds)), p[bonds[:, 0]], p[bonds[:, 1]]].sum() for p in patterns])
    fields = np.zeros((SITES, STATES))
    for pattern, lift in zip(patterns, np.log(WEIGHTS) + scores.mean() - scores, strict=True):
        fields[sites, pattern] += lift / SITES
    return lnz.Potts.sparse(bonds, tables, fields - fields.mean(), n=SITES, q=STATES), patterns


def shares(v: Any, patterns: np.ndarray) -> np.ndarray:
    """The share of the states (n, sites) that are nearest to each pattern."""
    alike = (np.asarray(v)[:, None] == patterns[None]).sum(axis=2)
    return np.bincount(alike.argmax(axis=1), minlength=len(patterns)) / len(alike)


def phases() -> dict[str, Any]:
    """Each moves 200 states an update, but for one with the time of the ladders."""
    import lnz

    return {
        "persistent, 200 x 1": lnz.learning.PersistentChains(1, chains=200),
        "persistent, 20 x 10": lnz.learning.PersistentChains(10, chains=20),
        "persistent, 20 x 20": lnz.learning.PersistentChains(
            20, chains=20
        ),  # twice the moves: about the time that ladders take
        "tempered, 10 x 20": lnz.learning.TemperedChains(temperatures=9, chains=20),
        "trajectory, 10 x 20": lnz.learning.TrajectoryTempered(checkpoints=9, chains=20),
        "trajectory, 10 x 20, target 0.4": lnz.learning.TrajectoryTempered(checkpoints=9, chains=20, target=0.4),
        "trajectory, 10 x 10, 2 sweeps": lnz.learning.TrajectoryTempered(checkpoints=9, chains=10, sweeps=2),
    }


def learn(name: str, rate: float, seed: int, updates: int) -> dict[str, Any]:
    """One run."""
    import jax
    import optax

    import lnz

    law, patterns = planted(seed)
    samples = np.asarray(lnz.exact_samples(law, jax.random.key(seed), 4000))
    data, held_out = samples[:2000], samples[2000:]
    route, f32 = lnz.routes.Elimination(), np.float32
    start = lnz.Potts.sparse(
        edges(), np.zeros((len(edges()), STATES, STATES), f32), np.zeros((SITES, STATES), f32), n=SITES, q=STATES
    )
    began = time.process_time()
    fitted = lnz.fit(
        start, data, negative_phase=phases()[name], optimizer=optax.adam(optax.linear_schedule(rate, 0, updates)),
        epochs=updates / 4, batch_size=500, validation=held_out, evaluate_every=updates // 80, route=route,
        key=jax.random.key(100 + seed),
    )  # fmt: skip
    seconds = time.process_time() - began
    curve = [record.validation.value / SITES for record in fitted.history if record.validation]
    drawn = lnz.exact_samples(fitted.energy, jax.random.key(1), 2000)
    best = lnz.log_likelihood(law, held_out, route=route).value / SITES
    return {
        "end": curve[-1], "best": max(curve), "seconds": seconds, "fitted": fitted, "law": best,
        "shares": shares(drawn, patterns), "of data": shares(data, patterns),
    }  # fmt: skip


def ladder_log_z(fitted: Any, phase: Any, key: Any, rounds_made: int = 2000, every: int = 10) -> float:
    """log Z of the model in training from the ladder of kept ones, whose first is the start, with log Z = sites log states: parameters stay, the
    replicas go on, and Bennett's ratio joins neighbours."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import lnz
    from lnz.learning._negative.ladder import gains, rounds

    ladder = fitted.state.negative
    present, rest = eqx.partition(fitted.energy, eqx.is_inexact_array)
    points = jax.tree.map(lambda old, new: jnp.concatenate([old, new[None]]), ladder.models, present)
    place = jnp.arange(phase.checkpoints + 1, dtype=jnp.int32)
    rung = lambda point: eqx.combine(point, rest)  # noqa: E731

    @jax.jit
    def run(v: Any, key: Any) -> Any:
        def body(v: Any, inputs: Any) -> Any:
            key, first = inputs
            v = rounds(rung, points, lnz.kernels.Gibbs(), key, v, first, every)[0]
            up = gains(rung, points, v, jnp.minimum(place + 1, place[-1]))[:-1]
            down = gains(rung, points, v, jnp.maximum(place - 1, 0))[1:]
            return v, (up, down)

        firsts = every * jnp.arange(rounds_made // every, dtype=jnp.int32)
        return jax.lax.scan(body, v, (jax.random.split(key, len(firsts)), firsts))[1]

    up, down = (jnp.moveaxis(x, 1, 0).reshape(len(place) - 1, -1) for x in run(ladder.observed, key))
    return SITES * float(np.log(STATES)) + float(sum(lnz.routes.bar(a, b) for a, b in zip(up, down, strict=True)))


def log_z_row(fitted: Any, phase: Any, seed: int) -> str:
    import jax

    import lnz

    exact = float(lnz.log_partition(fitted.energy, route=lnz.routes.Elimination()).value)
    began = time.process_time()
    ladder = ladder_log_z(fitted, phase, jax.random.key(seed))
    middle = time.process_time()
    route = lnz.routes.ParallelTempering(rungs=64, iterations=4000, replicates=4, estimator="thermodynamic integration")
    integrated = lnz.log_partition(fitted.energy, route=route, key=jax.random.key(seed))
    ended = time.process_time()
    value, error = float(integrated.value), float(integrated.standard_error)
    return (
        f"| {seed} | {exact:.3f} | {ladder:.3f} ({middle - began:.0f} s) | {value:.3f} ± {error:.3f} ({ended - middle:.0f} s) "
        f"| {(ladder - value) / SITES:+.5f} | {(ladder - exact) / SITES:+.5f} |"
    )


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phases", default="persistent;tempered;trajectory", help="beginnings of names")
    parser.add_argument("--rates", default="0.001,0.0015,0.002,0.004")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2000)
    options = parser.parse_args()
    wanted = [name for name in phases() if name.startswith(tuple(options.phases.split(";")))]
    last = {}
    print("| negative phase | rate | end of run, nats a site | best of run | clusters of the first seed's model | s |")
    print("|---|---|---|---|---|---|")
    for name in wanted:
        for rate in map(float, options.rates.split(",")):
            found = [learn(name, rate, seed, options.updates) for seed in range(options.seeds)]
            ends, bests = ([f[what] for f in found] for what in ("end", "best"))
            print(
                f"| {name} | {rate} | {np.mean(ends):.4f} ({', '.join(f'{x:.4f}' for x in ends)}) | {np.mean(bests):.4f} "
                f"| {', '.join(f'{100 * x:.0f} %' for x in found[0]['shares'])} | {np.mean([f['seconds'] for f in found]):.0f} |",
                flush=True,
            )
            if name.startswith("trajectory") and (
                name not in last or np.mean(ends) > np.mean([f["end"] for f in last[name]])
            ):
                last[name] = found
            reference = found
    print(
        f"the law itself: {np.mean([f['law'] for f in reference]):.4f}; clusters of the first data: {reference[0]['of data']}"
    )
    for name, found in last.items():
        print(
            f"\n{name}\n\n| seed | log Z exactly | from the ladder | by integration | ladder - integration, a site | ladder - exact, a site |"
        )
        print("|---|---|---|---|---|---|")
        for seed, run in enumerate(found):
            print(log_z_row(run["fitted"], phases()[name], seed), flush=True)


if __name__ == "__main__":
    main()
