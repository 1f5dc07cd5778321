"""`lnz logz FILE.uai`: log Z of a graphical model, and on request its marginals, its most probable state and samples.

All of it is NumPy: nothing here, nor what it imports, loads JAX, which would take longer than most models.
"""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from lnz import io
from lnz._cli.errors import BadInput, refusing
from lnz._cli.output import note
from lnz._cli.progress import Step, Work
from lnz._graphs.solver import Limits, Solver, described
from lnz.io._uai import UAIModel, checked_evidence, read_uai_model

_HEADERS = (b"MARKOV", b"BAYES")
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def is_uai(path: Path) -> bool:
    """Whether a path is to be read as a graphical model: by its name, or by its first word."""
    if path.name.lower().removesuffix(".gz").endswith(".uai"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(8).lstrip().startswith(_HEADERS)
    except OSError:
        return False


def memory_size(text: str | None) -> float | None:
    """A number of bytes from text such as 8G or 500M (powers of 1000; GiB and MiB of 1024)."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise BadInput(f"--max-memory: {text!r} is no size. Give, for example, 8G or 500M")
    power = "kmgt".find(found[2]) + 1 if found[2] else 0
    return float(found[1]) * (1024**power if found[3] else _UNITS[found[2]])


def log_z(
    path: Path,
    *,
    evidence: Path | None,
    marginals: Path | None,
    most_probable: bool,
    samples: int | None,
    out: Path,
    force: bool,
    seed: int | None,
    max_memory: str | None,
    max_seconds: float | None,
    within: float | None,
    plot: Path | None,
) -> dict[str, Any]:
    """log Z of a `.uai` file by elimination, and what else was asked for, as plain values; limits of it where that is too dear.

    Args:
        seed: of the samples, which `numpy.random.default_rng(seed)` draws; 0 where it is None.
        max_seconds: of predicted work that is taken on (3600 where it is None), and of tightening limits (60).
        within: the width, in nats, at which limits are narrow enough.
        plot: where a picture of the plan goes.
    """
    began = time.perf_counter()
    limits = Limits(memory_size(max_memory), Limits.max_seconds if max_seconds is None else max_seconds)
    for file in (marginals, plot, out if samples else None):
        if file is not None and file.exists() and not force:
            raise BadInput(f"{file}: exists already. Choose another name, or replace it by --force")
        if file is not None and not file.parent.is_dir():
            raise BadInput(f"{file}: its folder does not exist. Create the folder first")
    if samples and out.suffix.lower() not in (".npy", ".npz", ".csv"):
        raise BadInput(f"--out: {out.suffix!r} is no format for samples. Choose one of .npy, .npz, .csv")
    with Step(f"reading {path}"):
        model = read_uai_model(path)
        observed = checked_evidence(evidence, model.cardinalities)
        solver = solver_of(model, observed, limits)
    counts = {"variables": len(model.cardinalities), "factors": len(model.scopes), "observed": len(observed)}
    try:
        with Step("looking for an order"):
            plan = solver.plan()
    except ValueError as error:
        if marginals or most_probable or samples or plot:
            raise BadInput(str(error)) from error
        note(f"{error}. Limits of log Z instead")
        found = _limits(solver, 0.1 if within is None else within, 60.0 if max_seconds is None else max_seconds)
        return found | counts | {"seconds": time.perf_counter() - began}
    if plot is not None:
        from lnz.report._graph_pictures import elimination

        elimination(plot, plan)
    with Work(str(plan), seconds=plan.seconds) as solver.progress:
        value = solver.log_partition()
        rounding = solver.rounding(value)
    found = {
        "log_z": value,
        "log10_z": value / math.log(10),
        "lower": value - rounding,
        "upper": value + rounding,
        "known": "exact",
        "route": described(len(model.cardinalities), len(model.scopes)),
        "width": plan.width,
        "memory": int(plan.peak_bytes),
        "zero": value == -math.inf,
        **counts,
    }
    if plot is not None:
        found["plot"] = str(plot)
    if found["zero"] and (marginals or most_probable or samples):
        raise BadInput(
            f"{path}: Z = 0: no configuration is possible, so there are no marginals, most probable state or samples. "
            "Check the evidence and the zeros of the tables"
        )
    with Work(seconds=plan.seconds) as solver.progress, refusing():
        if marginals is not None:
            io.write_uai_mar(marginals, solver.marginals())
            found["marginals"] = str(marginals)
        if most_probable:
            state = solver.most_probable().tolist()
            found["map_log_weight"] = _log_weight(model, state)
            found["map"] = state
        if samples:
            states = solver.sample(np.random.default_rng(0 if seed is None else seed), samples)
            io.save_samples(out, states.astype(np.int32), force=force)
            found |= {"samples": str(out), "n": samples}
    return found | {"seconds": time.perf_counter() - began}


def _limits(solver: Solver, within: float, seconds: float) -> dict[str, Any]:
    """Limits of log Z that tighten until they are `within` nats of each other, or the time is over."""
    from lnz._graphs.anytime_solver import tighten

    with Step(f"limits of log Z, for at most {seconds:g} s"):
        tables = solver.cardinalities, solver.scopes, solver.tables
        found = tighten(
            *tables, within=within, max_seconds=seconds, max_memory=solver.limits.max_memory, exact_first=False
        )
    return {
        "log_z": found.value,
        "log10_z": found.value / math.log(10),
        "lower": found.lower,
        "upper": found.upper,
        "known": "exact" if found.exact else "bound",
        "route": found.sentence(),
        "zero": found.upper == -math.inf,
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, as rows of a table."""
    if found["known"] == "bound":
        return [
            (
                "log Z",
                f"between {found['lower']:.6g} and {found['upper']:.6g} nats, a width of {found['upper'] - found['lower']:.3g}",
            ),
            ("perhaps", f"{found['log_z']:.6g} nats"),
            ("log10 Z", f"between {found['lower'] / math.log(10):.6g} and {found['upper'] / math.log(10):.6g}"),
            ("how it is known", "bound: the limits always hold"),
            ("by", found["route"]),
            ("time", f"{found['seconds']:.2f} s"),
        ]
    if found["zero"]:
        lines = [("log Z", "−∞: Z = 0, no configuration is possible"), ("how it is known", "exact")]
    else:
        rounding = (found["upper"] - found["lower"]) / 2
        lines = [
            ("log Z", f"{found['log_z']:.12g} nats"),
            ("log10 Z", f"{found['log10_z']:.12g}"),
            ("limits", f"{found['lower']:.15g} to {found['upper']:.15g}"),
            ("how it is known", f"{found['known']}, up to rounding of {rounding:.1g}"),
        ]
    lines.append(("by", found["route"] + (f", {found['observed']} of them observed" if found["observed"] else "")))
    if "width" in found:
        lines += [("width", f"{found['width']}"), ("memory", f"{_bytes(found['memory'])} of tables at the peak")]
    lines.append(("time", f"{found['seconds']:.2f} s"))
    if "plot" in found:
        lines.append(("picture of the plan", found["plot"]))
    if "marginals" in found:
        lines.append(("marginals", found["marginals"]))
    if "map" in found:
        lines.append(("most probable", f"log weight {found['map_log_weight']:.12g} nats, at"))
        lines.append(("", " ".join(map(str, found["map"]))))
    if "samples" in found:
        lines.append(("samples", f"{found['n']:,} exact ones in {found['samples']}"))
    return [(name, fact.replace("-", "−") if name in ("log Z", "log10 Z", "limits") else fact) for name, fact in lines]


def solver_of(model: UAIModel, observed: dict[int, int], limits: Limits) -> Solver:
    """The model ready to be eliminated. An observation is one more factor, so that every variable keeps its values."""
    scopes, tables = list(model.scopes), model.log_tables()
    for i, value in observed.items():
        scopes.append((i,))
        tables.append(np.where(np.arange(model.cardinalities[i]) == value, 0.0, -np.inf))
    return Solver(model.cardinalities, scopes, tables, limits)


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
