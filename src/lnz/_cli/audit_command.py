"""`lnz audit FILE.py:NAME`: the user's own code is run, and its energy audited."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lnz
from lnz._cli.errors import BadInput, refusing


def audit(target: str, *, samples: Path | None, report: Path | None, force: bool, seed: int) -> Any:
    """The report on the energy NAME of FILE.py, or on a saved energy; the page is written where one is asked for."""
    import jax

    if report is not None and report.exists() and not force:
        raise BadInput(f"--report {report}: exists already. Give another name, or --force to replace it")
    if report is not None and not report.parent.is_dir():
        raise BadInput(f"--report {report}: there is no folder {report.parent}. Make it first")
    energy = _energy(target)
    drawn = None
    if samples is not None:
        try:
            drawn = np.load(samples, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(
                f"--samples {samples}: {error}. Give an .npy file of shape (n, …) or (chains, n, …)"
            ) from None
    with refusing():
        found = lnz.audit(energy, samples=drawn, key=jax.random.key(seed))
    if report is not None:
        from lnz.report import audit_page

        audit_page(report, found)
    return found


def _energy(target: str) -> Any:
    if target.endswith(".lnz"):
        return lnz.load(Path(target))
    file, _, name = target.rpartition(":")
    if not file or not name:
        raise BadInput(
            f"{target}: names no energy. Write FILE.py:NAME, such as model.py:energy, or a saved energy FILE.lnz"
        )
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"{path}: there is no such file. Write FILE.py:NAME, such as model.py:energy")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: is no Python file. Write FILE.py:NAME, such as model.py:energy")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = " ".join(str(error).split())
        raise BadInput(f"{path}: running it raised {type(error).__name__}: {line}. Mend the file first") from error
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
