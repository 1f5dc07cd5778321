"""Width of the interval for log Z of loopy models beyond exact reach: a table of limits and of how they were found.

    python benchmarks/bounds.py [FILE.uai ...] [--seconds 20] [--models grid30-beta1,sk60] [--exact] [--json OUT]

Models are made here, with fixed seeds. Seconds are CPU time of this process (one thread), so that a shared machine gives the same table;
`--wall` takes the clock instead. `--exact` adds log Z by elimination where an hour suffices. `--sweeps` prints what one sweep of
mini-buckets up and down costs, by the size of their tables.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

Model = tuple[list[int], list[tuple[int, ...]], list[np.ndarray]]  # cardinalities, scopes, log-potentials


def spins(edges: Any, couplings: np.ndarray, fields: np.ndarray) -> Model:
    """An Ising model: E = -Σ J_ij s_i s_j - Σ h_i s_i."""
    s = np.array([-1.0, 1.0])
    pairs = [(int(i), int(j)) for i, j in edges]
    scopes = [*pairs, *((i,) for i in range(len(fields)))]
    return [2] * len(fields), scopes, [j * np.outer(s, s) for j in couplings] + [h * s for h in fields]


def lattice(n: int) -> list[tuple[int, int]]:
    """The edges of an n x n grid with open ends."""
    right = [(i * n + j, i * n + j + 1) for i in range(n) for j in range(n - 1)]
    return right + [(i * n + j, i * n + n + j) for i in range(n - 1) for j in range(n)]


def glass(n: int, beta: float) -> Model:
    """A spin glass on a grid, couplings and fields N(0, 1), at inverse temperature beta."""
    rng, edges = np.random.default_rng(0), lattice(n)
    return spins(edges, beta * rng.normal(size=len(edges)), beta * rng.normal(size=n * n))


def regular(n: int, beta: float) -> Model:
    """A spin glass on a random graph in which every variable has 3 neighbours; fields N(0, 1/4)."""
    import networkx as nx

    rng, edges = np.random.default_rng(0), list(nx.random_regular_graph(3, n, seed=0).edges)
    return spins(edges, beta * rng.normal(size=len(edges)), beta * 0.5 * rng.normal(size=n))


def complete(n: int, beta: float) -> Model:
    """Sherrington and Kirkpatrick: couplings N(0, 1/n) between all pairs; fields N(0, 0.09)."""
    rng, edges = np.random.default_rng(0), [(i, j) for i in range(n) for j in range(i)]
    return spins(edges, beta * rng.normal(size=len(edges)) / math.sqrt(n), beta * 0.3 * rng.normal(size=n))


def potts(n: int, q: int, beta: float) -> Model:
    """Potts on a grid, couplings N(0, 1) for equal neighbours, fields N(0, 1/4) for every value."""
    rng, edges = np.random.default_rng(0), lattice(n)
    tables = [beta * rng.normal() * np.eye(q) for _ in edges] + [beta * 0.5 * rng.normal(size=q) for _ in range(n * n)]
    return [q] * (n * n), [*edges, *((i,) for i in range(n * n))], tables


MODELS: dict[str, Callable[[], Model]] = {
    "grid30-beta1": lambda: glass(30, 1.0),
    "grid30-beta3": lambda: glass(30, 3.0),
    "grid50-beta1": lambda: glass(50, 1.0),
    "grid50-beta3": lambda: glass(50, 3.0),
    "regular200-beta1": lambda: regular(200, 1.0),
    "regular200-beta3": lambda: regular(200, 3.0),
    "sk60-beta1": lambda: complete(60, 1.0),
    "sk60-beta2": lambda: complete(60, 2.0),
    "potts30-q3": lambda: potts(30, 3, 1.5),
}


def from_file(path: Path) -> Model:
    """The factors of a `.uai` file, given the evidence in FILE.uai.evid if there is one."""
    from lnz import io

    evidence = path.with_name(path.name + ".evid")
    graph = io.read_uai(path, evidence=evidence if evidence.exists() else None)
    tables = [np.asarray(table, np.float64) for table in graph.tables]
    return list(graph.cardinalities), list(graph.scopes), [tables[t] for t in graph.table_of]


def sweep_costs(model: Model) -> Table:
    """Milliseconds of a sweep up and down, and nanoseconds an entry, for tables of 2^4 to 2^18 entries."""
    from lnz._graphs.buckets import bucket_tree, tighten
    from lnz._graphs.orders import least_fill

    sizes, scopes, tables = model
    order = least_fill(tuple(scopes), tuple(sizes), 0)
    table = Table("entries of a table", "mini-buckets", "entries in all", "ms a sweep", "ns an entry")
    for level in (4, 8, 12, 15, 18):
        tree = bucket_tree(sizes, scopes, order, entries=2.0**level)
        potentials = tree.arranged(tables)
        begun = time.process_time()
        sweeps = tighten(tree, potentials, upper=True, sweeps=4, tolerance=0.0).sweeps
        seconds = (time.process_time() - begun) / sweeps
        numbers = (f"{len(tree.clusters):,}", f"{tree.entries:.2g}", f"{1e3 * seconds:.0f}")
        table.add_row(f"2^{level}", *numbers, f"{1e9 * seconds / tree.entries:.0f}")
    return table


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--within", type=float, default=0.01)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--sweeps", action="store_true")
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not arguments.wall:
        time.perf_counter = time.process_time  # the clock of `tighten`
    from lnz._graphs.anytime_solver import tighten
    from lnz._graphs.solver import EliminationBudget, Solver

    if arguments.sweeps:
        Console().print(sweep_costs(glass(30, 1.0)))
        return
    console, rows = Console(), []
    jobs = {name: MODELS[name] for name in arguments.models.split(",") if name and not arguments.files}
    jobs |= {path.name: lambda path=path: from_file(path) for path in arguments.files}
    table = Table("model", "lower", "upper", "width", "value", "s", "lower by", "upper by", "exact")
    for name, make in jobs.items():
        model = make()
        found = tighten(*model, within=arguments.within, max_seconds=arguments.seconds)
        exact = math.nan
        if arguments.exact:
            try:
                exact = Solver(*model, EliminationBudget(max_seconds=3600.0)).log_partition()
            except ValueError as error:
                console.print(f"{name}: {error}")
        row = {"model": name, "lower": found.lower, "upper": found.upper, "width": found.width, "value": found.value}
        row |= {"seconds": found.seconds, "lower_by": found.lower_by, "upper_by": found.upper_by, "exact": exact}
        rows.append(row | {"history": found.history})
        console.print(f"{name}: {found.sentence()}")
        numbers = [f"{row[key]:.4f}" for key in ("lower", "upper", "width", "value")]
        table.add_row(name, *numbers, f"{found.seconds:.1f}", found.lower_by, found.upper_by, f"{exact:.4f}")
        if arguments.json:
            arguments.json.write_text(json.dumps(rows))
    console.print(table)


if __name__ == "__main__":
    main()
