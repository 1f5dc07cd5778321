"""Settings of the process that the command line owns: float64 for exact sums, and a cache of compiled programs."""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from pathlib import Path

_done = False


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
