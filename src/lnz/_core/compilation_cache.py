"""Compiled programs kept on disk, so that the next process need not compile them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_MAX_BYTES = 2**29


def cache(folder: str | Path | None = None) -> Path | None:
    """Keep compiled programs in a folder from now on, so that a process which needs the same ones starts at once.

    It sets JAX's own persistent cache, for this process: for everything that JAX compiles, not for lnz alone. A cache that has been set
    already, as by `JAX_COMPILATION_CACHE_DIR`, is left as it is. Entries are found by the program, the versions and the kind of processor; one
    that cannot be read is compiled again, without a word. The oldest are removed at this call where all together exceed 512 MB.

    Args:
        folder: where to keep them; by default `lnz` in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`; `~/Library/Caches` on macOS,
            `%LOCALAPPDATA%` on Windows). A folder inside it, named by versions and processor, is made.

    Returns:
        The folder in use, or None where it cannot be written: then nothing is kept.

    Example:
        >>> import lnz
        >>> folder = lnz.cache()  # the first line of a script
    """
    if set_already := jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        return Path(set_already)
    try:
        used = (_user_folder() if folder is None else Path(folder)) / _kind()
        used.mkdir(parents=True, exist_ok=True)
        if not os.access(used, os.W_OK | os.X_OK):
            return None
        _remove_oldest(used)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(used))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0.0
    )  # dozens of small programs take seconds together
    compilation_cache.reset_cache()  # what was compiled before has decided that there is none
    warnings.filterwarnings("ignore", message=".*persistent compilation cache.*")
    return used


def _user_folder() -> Path:
    home = Path.home()
    defaults = {"darwin": home / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA") or home)}
    return Path(os.environ.get("XDG_CACHE_HOME") or defaults.get(sys.platform, home / ".cache")) / "lnz"


def _kind() -> str:
    """A name for these versions and this kind of machine: compiled programs hold instructions that another processor may lack."""
    machine = hashlib.sha256((platform.machine() + _processor()).encode()).hexdigest()[:12]
    return f"jax-{jax.__version__}-jaxlib-{metadata.version('jaxlib')}-{machine}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _remove_oldest(folder: Path) -> None:
    entries = sorted(((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in folder.iterdir()), reverse=True)
    kept = 0
    for _, size, entry in entries:
        kept += size
        if kept > _MAX_BYTES:
            with contextlib.suppress(OSError):  # another process was quicker
                entry.unlink()
