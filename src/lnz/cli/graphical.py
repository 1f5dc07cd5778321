"""`lnz logz FILE.uai`: log Z of a graphical model, and on request its marginals, its most probable state and samples."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lnz
from lnz import formats
from lnz.formats.uai import UAIModel, read_uai_model

from .errors import BadInput, refusing
from .progress import Step

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
) -> dict[str, Any]:
    """log Z of a `.uai` file by elimination, and what else was asked for, as plain values."""
    began = time.perf_counter()
    memory, seconds = memory_size(max_memory), lnz.Elimination.max_seconds if max_seconds is None else max_seconds
    for file in (marginals, out if samples else None):
        if file is not None and file.exists() and not force:
            raise BadInput(f"{file}: exists already. Choose another name, or replace it by --force")
        if file is not None and not file.parent.is_dir():
            raise BadInput(f"{file}: its folder does not exist. Create the folder first")
    if samples and out.suffix.lower() not in (".npy", ".npz", ".csv"):
        raise BadInput(f"--out: {out.suffix!r} is no format for samples. Choose one of .npy, .npz, .csv")
    route = lnz.Elimination(max_memory=memory, max_seconds=seconds)
    with Step(f"reading {path}"):
        model = read_uai_model(path)
        observed = {} if evidence is None else formats.read_uai_evidence(evidence)
        graph = formats.read_uai(path, evidence=evidence)
    with Step("looking for an order"), refusing():
        plan = route.plan(graph)
    with Step(str(plan)):
        estimate = route.log_partition(graph)
    value, figures = float(estimate.value), {name: float(x) for name, x in estimate.diagnostics.items()}
    found = {
        "log_z": value,
        "log10_z": value / math.log(10),
        "lower": float(estimate.lower),
        "upper": float(estimate.upper),
        "known": estimate.known,
        "route": estimate.route,
        "width": int(figures["width"]),
        "memory": int(figures["memory"]),
        "zero": value == -math.inf,
        "variables": len(model.cardinalities),
        "factors": len(model.scopes),
        "observed": len(observed),
    }
    if found["zero"] and (marginals or most_probable or samples):
        raise BadInput(
            f"{path}: Z = 0: no configuration is possible, so there are no marginals, most probable state or samples. "
            "Check the evidence and the zeros of the tables"
        )
    with Step("marginals, most probable state, samples"), refusing():
        if marginals is not None:
            formats.write_uai_mar(marginals, _unconditioned(route.marginals(graph), model, observed))
            found["marginals"] = str(marginals)
        if most_probable:
            state = _with_evidence(np.asarray(route.map_state(graph))[None], observed)[0].tolist()
            found["map_log_weight"] = _log_weight(model, state)
            found["map"] = state
        if samples:
            states = route.sample(graph, jax.random.key(0 if seed is None else seed), samples)
            formats.save_samples(out, _with_evidence(np.asarray(states), observed), force=force)
            found |= {"samples": str(out), "n": samples}
    return found | {"seconds": time.perf_counter() - began}


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found, as rows of a table."""
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
    lines += [
        ("by", found["route"] + (f", {found['observed']} of them observed" if found["observed"] else "")),
        ("width", f"{found['width']}"),
        ("memory", f"{_bytes(found['memory'])} of tables at the peak"),
        ("time", f"{found['seconds']:.2f} s"),
    ]
    if "marginals" in found:
        lines.append(("marginals", found["marginals"]))
    if "map" in found:
        lines.append(("most probable", f"log weight {found['map_log_weight']:.12g} nats, at"))
        lines.append(("", " ".join(map(str, found["map"]))))
    if "samples" in found:
        lines.append(("samples", f"{found['n']:,} exact ones in {found['samples']}"))
    return [(name, fact.replace("-", "−") if name in ("log Z", "log10 Z", "limits") else fact) for name, fact in lines]


def _unconditioned(marginals: list[np.ndarray], model: UAIModel, observed: dict[int, int]) -> list[np.ndarray]:
    """The marginals over all values of the file: an observed variable has one value left in the graph."""
    return [
        np.eye(k)[observed[i]] if i in observed else marginal
        for i, (k, marginal) in enumerate(zip(model.cardinalities, marginals, strict=True))
    ]


def _with_evidence(states: np.ndarray, observed: dict[int, int]) -> np.ndarray:
    states = states.astype(np.int32)
    states[:, list(observed)] = list(observed.values())
    return states


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
