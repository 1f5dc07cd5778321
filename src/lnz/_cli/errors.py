"""Which errors are whose: bad usage and input (2), failed work (1), an interruption (130, 143, 129), and bugs, which keep their traceback."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

from lnz._cli.process import interruption_code

_OPTIONS = {
    "the learning rate": "--learning-rate",
    "sweeps": "--sweeps",
    "at step": "at update",
    "TemperedChains": "--negative-phase tempered",
    "JarzynskiWalkers": "--negative-phase jarzynski",
    "PersistentChains": "--negative-phase persistent",
}


class BadInput(ValueError):
    """An invalid option, file or folder: one line, the cause first and then the remedy."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turn what the library refuses before any work into bad input."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def refuse_with_resume(given: Mapping[str, str]) -> None:
    """A resumed run takes everything from its config: any other setting would be another run."""
    for name, option in given.items():
        if name not in ("resume", "json"):
            raise BadInput(f"--resume takes every setting from the run's config.json. Leave out {option}")


def refuse_given(given: Mapping[str, str], names: tuple[str, ...], why: str) -> None:
    """Refuse options that do not apply, where they were given."""
    for name in names:
        if name in given:
            raise BadInput(f"{given[name]} {why}")


def in_options(text: str) -> str:
    """What the library advises, in the words of the command line: options instead of classes and arguments."""
    for name, option in _OPTIONS.items():
        text = re.sub(rf"\b{name}\b", option, text)
    return text


def refuse_missing(packages: Iterable[str], user: str = "the command line", *, extra: str = "cli") -> None:
    """Refuse the work where a package of an extra is not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        verb, names = "need" if user.endswith("s") else "needs", ", ".join(missing)
        raise BadInput(
            f"{user} {verb} packages that are not installed: {names}. Install them by: pip install 'lnz[{extra}]'"
        )


def explain(error: BaseException) -> tuple[int, str | None]:
    """The exit code of an error and its line, or None as the line where it is a bug and its traceback should be seen."""
    if isinstance(error, KeyboardInterrupt):
        return interruption_code(), "interrupted. Nothing was changed that is not on disk already"
    if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has gone: `lnz … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    if isinstance(error, BadInput):
        return 2, str(error)
    if isinstance(error, MemoryError):
        return 1, "memory ran out. Use fewer data, chains or hidden units"
    if {"DataError", "CheckpointError"} & {kind.__name__ for kind in type(error).__mro__}:  # by name: no import of JAX
        return 2, str(error)
    if isinstance(error, ModuleNotFoundError) and error.__cause__ is not None:  # a package that an extra brings
        return 2, str(error)
    if type(error).__name__ in ("Diverged", "NotMet"):
        return 1, in_options(str(error))
    if isinstance(error, OSError | ValueError) or type(error).__name__ == "Interrupted":
        return interruption_code() if type(error).__name__ == "Interrupted" else 1, str(error)
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        return 1, "the device's memory ran out. Use fewer data, chains or hidden units"
    return 1, None
