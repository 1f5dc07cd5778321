"""How far is a printed log-likelihood of an RBM to be believed? Two RBMs on MNIST, every way to log Z, at two budgets,
with the flags that fire.

    python benchmarks/rbm_honesty.py FOLDER [--picture docs/pictures/rbm-honesty.png] [--hidden 16 500]

FOLDER holds mnist_train.npz and a test file (mnist_*test.npz), grey values under their first name; pixels above half the scale are 1. The RBMs
are trained here by persistent chains. With 16 hidden units log Z is a sum over 65,536 states, so that every estimate can be checked; with 500
it is not known, and reverse chains start at the ends of long chains from data, which is an assumption. What came out, and what to conclude, is
told in docs/case-study-rbm-honesty.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timing import one_thread

BLUE, ORANGE, GREEN, INK, QUIET = "#2a6ca0", "#c4722a", "#3f8f4e", "#1f2a33", "#7b8794"


SMALL = 20  # hidden units whose states are summed


class Budget(NamedTuple):
    """How much work every method may take."""

    name: str
    temperatures: int
    chains: int
    rungs: int
    iterations: int


SHORT, LONGER = "too short", "longer"


def budgets(hidden: int) -> tuple[Budget, Budget]:
    """A run of seconds, and one that looks like enough."""
    longer = Budget(LONGER, 2000, 100, 30, 300) if hidden <= SMALL else Budget(LONGER, 1000, 64, 30, 300)
    return Budget(SHORT, 60, 50, 6, 24), longer


class Row(NamedTuple):
    """One line of the table; log Z and limits in nats, the likelihood in nats per image."""

    budget: str
    method: str
    log_z: float
    lower: float
    upper: float
    known: str
    likelihood: str
    flags: list[str]
    seconds: float


def images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images as bits (n, 784)."""
    parts = []
    for pattern in ("mnist_train.npz", "mnist_*test.npz"):
        with np.load(next(iter(sorted(folder.glob(pattern))))) as file:
            parts.append(file[file.files[0]].reshape(-1, 784) > 127)
    return parts[0], parts[1]


def trained(train: np.ndarray, hidden: int, updates: int) -> Any:
    import jax
    import optax

    import lnz

    rbm = lnz.RBM.from_data(train, hidden, key=jax.random.key(hidden))
    chains = lnz.learning.PersistentChains(chains=100, sweeps=1)
    rate = optax.linear_schedule(0.1, 0.0, updates)
    fitted = lnz.fit(
        rbm,
        train,
        negative_phase=chains,
        optimizer=optax.sgd(rate),
        epochs=updates * 100 / len(train),
        key=jax.random.key(1),
        evaluate_every=10**6,
    )
    return fitted.energy


def measured(rbm: Any, train: np.ndarray, test: np.ndarray, hidden: int) -> list[Row]:
    """Every method at every budget, and the sum where it is affordable."""
    import jax
    import jax.numpy as jnp

    import lnz

    base, rows = lnz.routes.fitted_base(lnz.Binary(784), train), []

    def take(budget: str, method: str, route: Any, key: Any = None) -> Any:
        begun = time.process_time()
        estimate = lnz.log_partition(rbm, route=route, key=key)
        seconds, flags = time.process_time() - begun, list(estimate.warnings)
        try:
            found = lnz.log_likelihood(rbm, test, log_z=estimate)
            likelihood = f"{found.value:.2f} ({found.lower:.2f} to {found.upper:.2f}) ± {found.data_standard_error:.2f}"
        except ValueError as error:
            likelihood, flags = "refused", [*flags, str(error)]
        numbers = (float(x) for x in (estimate.value, estimate.lower, estimate.upper))
        rows.append(Row(budget, method, *numbers, estimate.guarantee, likelihood, flags, seconds))
        print(rows[-1], file=sys.stderr, flush=True)
        return estimate

    small = hidden <= SMALL
    if small:
        take("", "sum over hidden states", lnz.routes.Enumeration())
    for budget in budgets(hidden):
        options: dict[str, Any] = {"temperatures": budget.temperatures, "chains": budget.chains}
        forth = lnz.routes.AnnealedImportanceSampling.from_base(base, **options)
        take(budget.name, "AIS", forth, jax.random.key(2))
        probe_modes = lnz.routes.AnnealedImportanceSampling.from_base(base, mode_probes=32, **options)
        take(budget.name, "AIS, 32 mode probes", probe_modes, jax.random.key(2))
        if small:
            both = lnz.routes.BidirectionalAIS.from_base(base, **options)
        else:
            data = jnp.asarray(train[:: len(train) // budget.chains][: budget.chains], jnp.float32)
            ends = lnz.kernels.run_chains(
                rbm, lnz.kernels.Gibbs(), data, jax.random.key(3), max(300, budget.temperatures)
            )
            both = lnz.routes.BidirectionalAIS.from_samples(np.asarray(ends), exact=False, base=base, **options)
        sandwich = take(budget.name, "both directions (bridge)", both, jax.random.key(4))
        rows.append(
            rows[-1]._replace(
                method="reverse AIS alone", log_z=float(sandwich.diagnostics["reverse"]), lower=np.nan, upper=np.nan
            )
        )
        rows[-1] = rows[-1]._replace(likelihood="", flags=[])
        ladder = lnz.routes.ParallelTempering.from_base(
            base, rungs=budget.rungs, iterations=budget.iterations, replicates=4, estimator="stepping stone"
        )
        take(budget.name, "stepping stone", ladder, jax.random.key(5))
    return rows


def printed(rows: list[Row], hidden: int) -> None:
    """The table, as Markdown."""
    print(f"\n### {hidden} hidden units\n")
    print("| budget | method | log Z | 99 % interval | known | test log-likelihood | CPU s | flags |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    words: list[str] = []
    for row in rows:
        numbers = []
        for flag in row.flags:
            words += [] if flag in words else [flag]
            numbers.append(str(words.index(flag) + 1))
        interval = "" if np.isnan(row.lower) else f"{row.lower:.2f} to {row.upper:.2f}"
        line = (
            row.budget,
            row.method,
            f"{row.log_z:.2f}",
            interval,
            row.guarantee,
            row.likelihood,
            f"{row.seconds:.1f}",
        )
        print("| " + " | ".join((*line, ", ".join(numbers) or "–")) + " |")
    print()
    for number, flag in enumerate(words, 1):
        print(f"{number}. {flag}")


def picture(path: Path, tables: dict[int, list[Row]]) -> None:
    """Every interval beside the exact value, one panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 8.5, "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK}):
        figure, panels = plt.subplots(1, len(tables), figsize=(4.9 * len(tables), 3.6), squeeze=False)
        for axes, (hidden, rows) in zip(panels[0], tables.items(), strict=True):
            exact = next((row.log_z for row in rows if not row.budget), None)
            shown = [row for row in rows if row.budget]
            if exact is not None:
                axes.axvline(exact, color=GREEN, linewidth=1.2, label=f"exact, {exact:.2f}")
            for place, row in enumerate(reversed(shown)):
                colour = ORANGE if row.budget == SHORT else BLUE
                if not np.isnan(row.lower):
                    axes.plot([row.lower, row.upper], [place, place], color=colour, linewidth=2.2, alpha=0.75)
                axes.plot(row.log_z, place, "o", color=colour, markersize=4.5)
                if row.flags:
                    axes.annotate(
                        "flagged", (row.log_z, place), (0, 5), textcoords="offset points", fontsize=6.5, ha="center"
                    )
            axes.set_yticks(range(len(shown)), [f"{row.method}\n{row.budget}" for row in reversed(shown)], fontsize=7)
            axes.set_ylim(-0.6, len(shown) - 0.3)
            axes.set_title(f"{hidden} hidden units")
            axes.set_xlabel("log Z, nats")
            axes.spines[["top", "right"]].set_visible(False)
            if exact is not None:
                axes.legend(frameon=False, loc="best", fontsize=7.5)
        figure.tight_layout()
        figure.savefig(path, dpi=150)


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 500])
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--keep", type=Path, help="a folder of trained models: read where they exist, otherwise written"
    )
    arguments = parser.parse_args()
    import lnz

    train, test = images(arguments.folder)
    tables = {}
    for hidden in arguments.hidden:
        kept = None if arguments.keep is None else arguments.keep / f"rbm-{hidden}.lnz"
        begun = time.process_time()
        if kept is not None and kept.is_file():
            rbm = lnz.load(kept)
        else:
            rbm = trained(train, hidden, arguments.updates)
            if kept is not None:
                lnz.save(kept, rbm)
        print(f"{hidden} hidden units: trained in {time.process_time() - begun:.0f} s", file=sys.stderr)
        tables[hidden] = measured(rbm, train, test, hidden)
    for hidden, rows in tables.items():
        printed(rows, hidden)
    if arguments.picture is not None:
        picture(arguments.picture, tables)


if __name__ == "__main__":
    main()
