"""`lnz logz FILE.uai`: log Z of a graphical model, and on request its marginals, its most probable state and samples.

All of it is NumPy: nothing here imports JAX, which would take longer than most models.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from lnz import io, report
from lnz._cli.commands import LogZ
from lnz._cli.errors import BadInput, refusing
from lnz._cli.output import facts, note
from lnz._cli.progress import Step, Work
from lnz._graphs.anytime_solver import tighten
from lnz._graphs.solver import EliminationBudget, Solver, described
from lnz.io._uai import UAIModel, checked_evidence, read_uai_model


def run(options: LogZ) -> None:
    """log Z of a `.uai` file by elimination, and what else was asked for; bounds where elimination is too expensive."""
    found = _answers(options)
    facts(found, rows(found), as_json=options.json)


def _answers(options: LogZ) -> dict[str, Any]:
    """Everything that was asked for, as plain values.

    Samples are drawn by `numpy.random.default_rng(seed)`, with seed 0 where none is given. Without --max-seconds, up to an hour
    of predicted work is accepted, and bounds are tightened for a minute.
    """
    began = time.perf_counter()
    path, marginals, samples, plot = options.run, options.marginals, options.samples, options.plot
    seconds = options.max_seconds
    budget = EliminationBudget(options.memory_bytes, EliminationBudget.max_seconds if seconds is None else seconds)
    with Step(f"reading {path}"):
        model = read_uai_model(path)
        observed = checked_evidence(options.evidence, model.cardinalities)
        solver = solver_of(model, observed, budget)
    counts = {"variables": len(model.cardinalities), "factors": len(model.scopes), "observed": len(observed)}
    try:
        with Step("looking for an order"):
            plan = solver.plan()
    except ValueError as error:
        if marginals or options.map_ or samples or plot:
            raise BadInput(str(error)) from error
        note(f"{error}. Computing bounds on log Z instead")
        found = _bounds(solver, 0.1 if options.within is None else options.within, 60.0 if seconds is None else seconds)
        return found | counts | {"seconds": time.perf_counter() - began}
    if plot is not None:
        report.elimination(plot, plan)
    with Work(str(plan), seconds=plan.seconds) as solver.progress:
        value = solver.log_partition()
        rounding = solver.rounding(value)
    found = {
        "log_z": value,
        "log10_z": value / math.log(10),
        "lower": value - rounding,
        "upper": value + rounding,
        "known": "exact",
        "guarantee": "exact",
        "route": described(len(model.cardinalities), len(model.scopes)),
        # What was summed before there was a tree counts too.
        "width": max([plan.width, *(len(part.scope) - 1 for part in solver.pruned[1])]),
        "memory": max([int(plan.peak_bytes), *(table.nbytes for table in solver.tables)]),
        "zero": value == -math.inf,
        **counts,
    }
    if plot is not None:
        found["plot"] = str(plot)
    if found["zero"] and (marginals or options.map_ or samples):
        raise BadInput(
            f"{path}: Z = 0: no configuration is possible, so there are no marginals, most probable state or samples. "
            "Check the evidence and the zeros of the tables"
        )
    with Work(seconds=plan.seconds) as solver.progress, refusing():
        if marginals is not None:
            io.write_uai_mar(marginals, solver.marginals())
            found["marginals"] = str(marginals)
        if options.map_:
            state = solver.most_probable().tolist()
            found["map_log_weight"] = _log_weight(model, state)
            found["map"] = state
        if samples:
            states = solver.sample(np.random.default_rng(options.seed or 0), samples)
            io.save_samples(options.out, states.astype(np.int32), force=options.force)
            found |= {"samples": str(options.out), "n": samples}
    return found | {"seconds": time.perf_counter() - began}


def _bounds(solver: Solver, within: float, seconds: float) -> dict[str, Any]:
    """Bounds on log Z that tighten until they are `within` nats apart, or the time is over."""
    with Step(f"bounds on log Z, for at most {seconds:g} s"):
        tables = solver.cardinalities, solver.scopes, solver.tables
        found = tighten(
            *tables, within=within, max_seconds=seconds, max_memory=solver.budget.max_memory, exact_first=False
        )
    return {
        "log_z": found.value,
        "log10_z": found.value / math.log(10),
        "lower": found.lower,
        "upper": found.upper,
        "known": "exact" if found.exact else "bound",
        "guarantee": "exact" if found.exact else "bound",
        "route": found.sentence(),
        "zero": found.upper == -math.inf,
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, as rows of a table."""
    if found["known"] == "bound":
        low, high = found["lower"], found["upper"]
        return [
            ("log Z", f"between {low:.6g} and {high:.6g} nats, {high - low:.3g} apart"),
            ("Best guess", f"{found['log_z']:.6g} nats"),
            ("log10 Z", f"between {low / math.log(10):.6g} and {high / math.log(10):.6g}"),
            ("Guarantee", "bound: both bounds always hold"),
            ("Method", found["route"]),
            ("Time", f"{found['seconds']:.2f} s"),
        ]
    if found["zero"]:
        lines = [("log Z", "-inf: Z = 0, no configuration is possible"), ("Guarantee", "exact")]
    else:
        rounding = (found["upper"] - found["lower"]) / 2
        lines = [
            ("log Z", f"{found['log_z']:.12g} nats"),
            ("log10 Z", f"{found['log10_z']:.12g}"),
            ("Bounds", f"{found['lower']:.15g} to {found['upper']:.15g}"),
            ("Guarantee", f"{found['known']}, up to rounding of {rounding:.1g}"),
        ]
    lines.append(("Method", found["route"] + (f", {found['observed']} of them observed" if found["observed"] else "")))
    if "width" in found:
        lines += [("Width", f"{found['width']}"), ("Memory", f"{_bytes(found['memory'])} of tables at the peak")]
    lines.append(("Time", f"{found['seconds']:.2f} s"))
    if "plot" in found:
        lines.append(("Picture", found["plot"]))
    if "marginals" in found:
        lines.append(("Marginals", found["marginals"]))
    if "map" in found:
        lines.append(("Most probable", f"log weight {found['map_log_weight']:.12g} nats, at"))
        lines.append(("", " ".join(map(str, found["map"]))))
    if "samples" in found:
        lines.append(("Samples", f"{found['n']:,} exact samples in {found['samples']}"))
    return lines


def solver_of(model: UAIModel, observed: dict[int, int], budget: EliminationBudget) -> Solver:
    """The model ready to be eliminated. An observation is one more factor, so that every variable keeps its values."""
    scopes, tables = list(model.scopes), model.log_tables()
    for i, value in observed.items():
        scopes.append((i,))
        tables.append(np.where(np.arange(model.cardinalities[i]) == value, 0.0, -np.inf))
    return Solver(model.cardinalities, scopes, tables, budget)


def _log_weight(model: UAIModel, state: list[int]) -> float:
    """Σ_a log ψ_a of one configuration: in NumPy, which compiles nothing."""
    chosen = (table[tuple(state[i] for i in scope)] for scope, table in zip(model.scopes, model.tables, strict=True))
    return math.fsum(map(math.log, chosen))


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
