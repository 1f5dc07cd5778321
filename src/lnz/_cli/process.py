"""What the command line sets for its process: float64 for exact sums, a cache of compiled programs, and what signals do."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

_done = False
_STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_stopped_by = signal.SIGINT


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
    folder = _cache_folder(jax.__version__)
    if folder is not None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")


def _cache_folder(version: str) -> Path | None:
    """A folder of this machine's kind and this JAX, or None: compiled programs hold instructions that another processor may lack."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    try:
        kind = hashlib.sha256((platform.machine() + _processor()).encode()).hexdigest()[:12]
        folder = Path(root) / "lnz" / f"jax-{version}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK | os.X_OK) else None
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
