"""Optional packages: each is imported when it is used, and a missing one is reported with the command that installs it."""

import importlib
from typing import Any

_EXTRAS = {
    "PIL": "cli",
    "arviz": "arviz",
    "matplotlib": "cli",
    "numpyro": "numpyro",
    "pyarrow": "data",
    "pymc": "pymc",
    "rich": "cli",
    "sklearn": "sklearn",
    "torch": "torch",
}
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def package(name: str, user: str) -> Any:
    """A module of a package that may be missing.

    Args:
        name: the name of the module, such as "pyarrow.parquet".
        user: what needs it, as the beginning of a sentence: "Reading Parquet files".

    Raises:
        ModuleNotFoundError: if the package is missing; the message names it and what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).partition(".")[0]
        wanted = f"'lnz[{_EXTRAS[missing]}]'" if missing in _EXTRAS else missing
        raise ModuleNotFoundError(
            f"{user} needs the package {_DISTRIBUTIONS.get(missing, missing)}, which is not installed. Install it: pip install {wanted}",
            name=error.name,
        ) from error
