"""Annealed importance sampling of a 784x500 RBM's log Z: 100 chains, time per temperature, float32, one thread.

    python benchmarks/ais.py [--temperatures 200] [--repeats 7]

Goal: at least 2 times as fast per temperature as rbms. ebmkit is listed but does not do the same work: at each
temperature it proposes to flip one unit of each chain, where the others renew every unit (see `peers.ebmkit_ais`).
The second table has the estimates, in nats, beside that of a long run of rbms.
"""

import argparse
import statistics
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

import peers
from timing import measure, one_thread

Run = Callable[[], float]  # one AIS run: log Z in nats


def lnz_runs(model: peers.Model, *, chains: int, temperatures: int) -> dict[str, Run]:
    """lnz's candidates, each doing one AIS run with a block Gibbs sweep at each temperature; a new key at each call."""
    import itertools

    import jax

    import lnz

    rbm, seeds = lnz.RBM.from_parameters(*model), itertools.count()
    route = lnz.routes.AnnealedImportanceSampling(temperatures=temperatures, chains=chains)
    return {"lnz": lambda: float(lnz.log_partition(rbm, route=route, key=jax.random.key(next(seeds))).value)}


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temperatures", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    # random weights large enough that AIS has something to do: log Z is some 63 nats above the base's
    model = peers.random_model(784, 500, scale=0.05)
    settings = {"chains": 100, "temperatures": arguments.temperatures}

    candidates = lnz_runs(model, **settings) | {
        "rbms": peers.rbms_ais(model, **settings),
        "ebmkit (one unit a move)": peers.ebmkit_ais(model, **settings),
    }
    units: dict[str, float] = dict.fromkeys(candidates, float(arguments.temperatures))
    title = f"AIS, 100 chains, {arguments.temperatures} temperatures: one temperature"
    measure(candidates, repeats=arguments.repeats, units=units, title=title)

    table = Table("", "log Z, mean of 5", "standard deviation", title="Estimates, nats", title_justify="left")
    candidates["rbms, 2,000 temperatures"] = peers.rbms_ais(model, chains=100, temperatures=2_000)
    for name, run in candidates.items():
        values = [float(run()) for _ in range(5)]
        table.add_row(name, f"{statistics.mean(values):.2f}", f"{statistics.stdev(values):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
