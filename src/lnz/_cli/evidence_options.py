"""The options of `lnz evidence`, and what is refused before JAX is imported."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lnz._cli.errors import BadInput, refuse_missing
from lnz._cli.options import Argument, Json, Option, Options, positive
from lnz._cli.refusals import existing
from lnz._cli.user_code import checked_target

_PACKAGES = ("numpyro", "pymc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence(Options):
    """Compute the evidence log p(y) of a Bayesian model, in nats, with an interval.

    FILE.py is your own code and **is run**: give no file that you would not run. MODEL in it is a NumPyro model, a PyMC model, or an energy
    -log p(x, y) such as lnz.FunctionEnergy(function, lnz.Real(2)).

    Examples:

    - lnz evidence schools.py:model --data schools.json
    - lnz evidence schools.py:model --data schools.json --within 0.05 --json
    """

    needs = ()

    target: Annotated[str, Argument(metavar="FILE.py:MODEL", help="Your own model.")]
    data: Annotated[
        Path | None,
        Option(
            metavar="FILE.json",
            help="Arguments of a NumPyro model: one JSON object, its names those of the arguments, lists as arrays.",
        ),
    ] = None
    within: Annotated[
        float | None,
        Option(read=positive, metavar="NATS", help="Width of the interval that the run is repeated for. [one run]"),
    ] = None
    max_seconds: Annotated[float | None, Option(read=positive, help="Time limit of the repeated runs. [60]")] = None
    seed: Annotated[int, Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the random numbers.")] = 0
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        path, name = checked_target(self.target, "model", "schools.py:model")
        tree = _parsed(path)
        _check_source(path, name, tree)
        if self.max_seconds is not None and self.within is None:
            raise BadInput("--max-seconds bounds the runs that --within asks for. Add --within NATS")
        arguments = {} if self.data is None else read_arguments(self.data)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == name and not node.decorator_list:
                _check_arguments(name, node.args, set(arguments))


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{path}: is not valid Python{where}. Fix the file first") from error


def _check_source(path: Path, name: str, tree: ast.Module) -> None:
    """Refuse a file that lacks the name, or imports a package that is not installed."""
    names, imported = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            imported |= {each.partition(".")[0] for each in found}
    for package in _PACKAGES:
        if package in imported:
            refuse_missing((package,), str(path), extra=package)
    if name not in names and "*" not in names:
        there = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        raise BadInput(f"{path}: has no {name!r}. It has {', '.join(there[:8]) or 'no functions'}")


def _check_arguments(name: str, wanted: ast.arguments, given: set[str]) -> None:
    """Refuse arguments that a function needs and lacks, or does not know."""
    by_place = [argument.arg for argument in (*wanted.posonlyargs, *wanted.args)]
    needed = by_place[: len(by_place) - len(wanted.defaults)]
    needed += [each.arg for each, known in zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True) if known is None]
    if missing := [each for each in needed if each not in given]:
        raise BadInput(f"{name} needs {', '.join(map(repr, missing))}. Give them in --data FILE.json")
    known = {*by_place, *(argument.arg for argument in wanted.kwonlyargs)}
    if wanted.kwarg is None and (unknown := sorted(given - known)):
        raise BadInput(f"{name} takes no {unknown[0]!r}. It takes {', '.join(map(repr, sorted(known))) or 'nothing'}")


def read_arguments(path: Path) -> dict[str, Any]:
    """The JSON object of a file."""
    existing(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        line = " ".join(str(error).split())
        raise BadInput(
            f'--data {path}: is not valid JSON: {line}. Give one object, such as {{"y": [1.5, 2]}}'
        ) from error
    if not isinstance(found, dict):
        raise BadInput(
            f'--data {path}: holds a {type(found).__name__}, not an object. Give the arguments by name, such as {{"y": [1.5, 2]}}'
        )
    for name, value in found.items():
        _refuse_ragged(f"--data {path}: {name!r}", value)
    return found


def _refuse_ragged(what: str, value: Any) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers, None for other values; refuses lists of unequal lengths or of what is not a number."""
    if not isinstance(value, list):
        return () if isinstance(value, int | float) else None
    shapes = {_refuse_ragged(what, part) for part in value}
    if None in shapes:
        raise BadInput(f"{what} has entries that are not numbers. Leave them out, or code them as numbers")
    if len(shapes) > 1:
        raise BadInput(f"{what} has lists of different lengths. Give arrays")
    return (len(value), *(next(iter(shapes), None) or ()))
