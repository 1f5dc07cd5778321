"""Exact log Z of a 784x18 RBM by its hidden layer (262,144 states): time and extra memory, float32, one thread.

    python benchmarks/exact_log_z.py [--repeats 5]

Goal: faster than ebmkit, in under 100 MB extra. Time is taken warm, in turns; memory in a fresh process each, cold, so
that it includes what compilation takes. Much of the peers' time may be system time, for the pages of their gigabytes:
be faster than their user time alone before saying that a route is faster.
"""

import argparse
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

import peers
from timing import measure, one_thread, peak_memory, report_job

Job = Callable[[], float]  # log Z in nats


def lnz_exact(model: peers.Model) -> dict[str, Callable[[], Job]]:
    """lnz's candidates: name to a function that sets the job up (imports, parameters) and returns it."""

    def make() -> Job:
        import jax

        jax.config.update("jax_enable_x64", True)
        import lnz

        rbm = lnz.RBM.from_parameters(*model)
        return lambda: float(lnz.log_partition(rbm, route=lnz.routes.Enumeration()).value)

    return {"lnz (float64)": make}


def jobs(model: peers.Model) -> dict[str, Callable[[], Job]]:
    return lnz_exact(model) | {
        "ebmkit": lambda: peers.ebmkit_exact(model),
        "rbms": lambda: peers.rbms_exact(model),
        "plain NumPy, blocks": lambda: peers.numpy_exact(model),
    }


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--job", help="run one job only and print its figures as JSON; used for the memory")
    arguments = parser.parse_args()
    model = peers.random_model(784, 18)
    if arguments.job:
        report_job(jobs(model)[arguments.job]())
        return

    table = Table("", "extra MB", "error, nats", title="Memory (cold) and value", title_justify="left")
    reference = peers.numpy_exact(model, dtype=float)()
    for name in jobs(model):
        figures = peak_memory(__file__, name)
        table.add_row(name, f"{figures['MB']:,.0f}", f"{figures['value'] - reference:+.1e}")
    Console().print(table)
    candidates = {name: make() for name, make in jobs(model).items()}
    measure(candidates, repeats=arguments.repeats, title="Exact log Z, 784x18")


if __name__ == "__main__":
    main()
