"""The user's own code, FILE.py:NAME: what is refused before it is run, and running it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from lnz._cli.errors import BadInput


def checked_target(target: str, what: str, example: str) -> tuple[Path, str]:
    """The file and the name of FILE.py:NAME; refuses what is not of this form, and files that do not exist.

    Args:
        target: as it was given.
        what: what NAME is, as in "energy".
        example: how it is written, such as "model.py:energy".
    """
    file, _, name = target.rpartition(":")
    if not file or not name:
        raise BadInput(f"{target}: names no {what}. Write FILE.py:NAME, such as {example}")
    if not Path(file).is_file():
        raise BadInput(f"{file}: there is no such file. Write FILE.py:NAME, such as {example}")
    if Path(file).suffix != ".py":
        raise BadInput(f"{file}: is not a Python file. Write FILE.py:NAME, such as {example}")
    return Path(file), name


def run_for(path: Path, name: str) -> Any:
    """The object of this name that a file defines; the file is run."""
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
    if name not in vars(module):
        there = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise BadInput(f"{path}: has no {name!r}. It has {', '.join(there[:8]) or 'nothing that can be called'}")
    return vars(module)[name]
