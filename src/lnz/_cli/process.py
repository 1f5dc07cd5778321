"""What the command line sets for its process: float64 for exact sums, a cache of compiled programs, and what signals do."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import lnz

_done = False
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_stopped_by = signal.SIGINT


def program() -> str:
    """How this program is called, for hints that can be pasted: a shell does not find what `uv run` does."""
    return "uv run lnz" if {"UV", "UV_RUN_RECURSION_DEPTH"} & set(os.environ) else "lnz"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the work as Ctrl-C does, so that it saves its state. Further ones are ignored while it does.

    A signal that is ignored already, as SIGHUP is under nohup, stays ignored.
    """
    global _stopped_by
    _stopped_by = signal.SIGINT

    def interrupt(number: int, _: object) -> None:
        global _stopped_by
        _stopped_by = signal.Signals(number)
        for name in caught:
            signal.signal(name, signal.SIG_IGN)
        raise KeyboardInterrupt

    caught = []
    if threading.current_thread() is threading.main_thread():
        caught = [name for name in _STOPPING if signal.getsignal(name) == signal.SIG_DFL]
    for name in caught:
        signal.signal(name, interrupt)
    try:
        yield
    finally:
        for name in caught:
            signal.signal(name, signal.SIG_DFL)


def interruption_code() -> int:
    """The exit code of work that was interrupted: 130 by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."""
    return 128 + _stopped_by


def prepare_jax() -> None:
    """Switch float64 on (models still train in float32) and keep compiled programs in the user's cache folder, where that can be written."""
    global _done
    if _done:
        return
    _done = True
    import jax

    jax.config.update("jax_enable_x64", True)
    lnz.cache()
