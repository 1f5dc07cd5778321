"""`lnz audit FILE.py:NAME`: the user's own code is run, and its energy audited."""

from __future__ import annotations

import importlib.util
import sys
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
    file, _, name = target.rpartition(":")
    path = Path(file)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = " ".join(str(error).split())
        raise BadInput(f"{path}: running it raised {type(error).__name__}: {line}. Fix the file first") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        there = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise BadInput(f"{path}: has no {name!r}. It has {', '.join(there[:8]) or 'nothing that can be called'}")
    energy = getattr(module, name)
    if not isinstance(energy, lnz.Energy) and not isinstance(getattr(energy, "space", None), lnz.Space):
        raise BadInput(
            f"{target}: has no space. Wrap it: {name} = lnz.FunctionEnergy(function, lnz.Real(2)), or set {name}.space"
        )
    return energy
