"""`lnz audit FILE.py:NAME`: the user's own code is run, and its energy audited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

import lnz
from lnz import report
from lnz._cli import show
from lnz._cli.commands import Audit
from lnz._cli.errors import BadInput, refusing
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._cli.user_code import checked_target, run_for


def audit(options: Audit) -> int:
    """The report on the energy NAME of FILE.py, or on a saved energy; the page is written where one is asked for."""
    prepare_jax()
    energy = _energy(options.target)
    drawn = None
    if options.samples is not None:
        try:
            drawn = np.load(options.samples, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(
                f"--samples {options.samples}: {error}. Give an .npy file of shape (n, …) or (chains, n, …)"
            ) from None
    with Step("auditing"), refusing():
        found = lnz.audit(energy, samples=drawn, key=jax.random.key(options.seed))
    if options.report is not None:
        report.audit_page(options.report, found)
    show.audit(found, as_json=options.json)
    return 0 if found.passed else 1


def _energy(target: str) -> Any:
    if target.endswith(".lnz"):
        return lnz.load(Path(target))
    path, name = checked_target(target, "energy", "model.py:energy")
    energy = run_for(path, name)
    if not isinstance(energy, lnz.Energy) and not isinstance(getattr(energy, "space", None), lnz.Space):
        raise BadInput(
            f"{target}: has no space. Wrap it: {name} = lnz.FunctionEnergy(function, lnz.Real(2)), or set {name}.space"
        )
    return energy
