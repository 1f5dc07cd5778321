"""Packages that lnz reads and writes models of, and does not need otherwise."""

import importlib
from typing import Any


def package(name: str, user: str) -> Any:
    """A module of a package that may be missing. Raises ModuleNotFoundError with the package's name and the remedy."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{user} needs the package {missing}, which is not installed. Install it: pip install {missing}",
            name=error.name,
        ) from error
