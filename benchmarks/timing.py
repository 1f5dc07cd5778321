"""Timing that is fair to several candidates: one thread, one run, turns taken.

All candidates run in **one process**, interleaved A B C A B C, and are compared by the median of their process (CPU)
time, which leaves out what other programs take of the processor. One process is the simplest fair choice: with one
thread, torch runs in the calling thread and XLA's pool sleeps while idle. Measured: a candidate takes 2 to 6 % longer
beside the others than alone in its process, much the same for all, so ratios hold.

`one_thread` sets the usual variables **and pins the process to one processor**, because the variables do not suffice:
under JAX 0.10 with both of XLA's flags, per-thread times still showed a large product spread over four threads.

Memory cannot be told apart in one process, so `peak_memory` runs a job in a child of its own.
"""

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SINGLE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}


def one_thread() -> None:
    """Restart this program pinned to one processor, with one thread for BLAS, OpenMP and XLA; call it first in `main`.

    The libraries look when they are loaded, hence the restart: what was imported before does not matter. Of the
    processors allowed (`taskset -c 1 python ...` allows one) the last is taken.
    """
    processors = os.sched_getaffinity(0)
    if len(processors) > 1 or any(os.environ.get(name) != value for name, value in SINGLE.items()):
        os.sched_setaffinity(0, {max(processors)})
        os.environ.update(SINGLE)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def measure(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    min_time: float = 0.3,
    units: Mapping[str, float] | None = None,
    title: str = "",
) -> dict[str, float]:
    """Time the candidates in turns and print a table: name, milliseconds a unit, ratio to the first.

    `± %` is half the range over the turns; `system %` is the share of system time, which is mostly the cost of pages of
    fresh memory and differs a good deal between machines.

    **Arguments:**
    - `candidates`: name to a callable without arguments. What it returns is waited for if it is a JAX array.
    - `repeats`: turns each candidate takes; the median is kept.
    - `min_time`: a turn calls the candidate as often as fills this many seconds.
    - `units`: how many units of work one call does, where that is not 1 (for example temperatures).

    Returns the median process time of one unit, in seconds, by name.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    calls, seconds = {}, {name: [] for name in candidates}
    systems = dict.fromkeys(candidates, 0.0)
    for name, call in candidates.items():
        _run(call, 1)  # warm-up: compiles, allocates
        calls[name] = max(1, math.ceil(min_time / max(_run(call, 1)[0], 1e-6)))
    for _ in range(repeats):
        for name, call in candidates.items():
            cpu, system = _run(call, calls[name])
            seconds[name].append(cpu)
            systems[name] += system

    table = Table("", "ms", "± %", "system %", "ratio", title=title, title_justify="left")
    medians = {}
    for name, values in seconds.items():
        work = calls[name] * (units or {}).get(name, 1)
        medians[name] = statistics.median(values) / work
        spread = 50 * (max(values) - min(values)) / statistics.median(values)
        share = 100 * systems[name] / sum(values)
        ratio = medians[name] / next(iter(medians.values()))
        table.add_row(name, f"{1e3 * medians[name]:.4g}", f"{spread:.0f}", f"{share:.0f}", f"{ratio:.2f}")
    Console().print(table)
    return medians


def peak_memory(script: str | Path, name: str) -> dict[str, float]:
    """Run `python script --job NAME` in a fresh process; what its `report_job` says: value, MB, seconds.

    `MB` is the extra memory at the peak: the high-water mark of resident memory less what was resident when the job
    began. The mark is Linux's VmHWM, set back just before the job. (`ru_maxrss` will not do: a child starts
    with its parent's mark, and libraries leave one behind when they are imported.)
    """
    command = [sys.executable, str(script), "--job", name]
    child = subprocess.run(command, env=os.environ | SINGLE, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"{name} failed: {(child.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def report_job(call: Callable[[], Any]) -> None:
    """The child's side of `peak_memory`: run `call` once, cold (compilation included), and print its figures."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = _status("VmRSS")
    start = time.process_time()
    value = float(call())
    print(json.dumps({"value": value, "MB": _status("VmHWM") - before, "seconds": time.process_time() - start}))


def _status(field: str) -> float:
    """A field of this process's memory use, in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def _run(call: Callable[[], Any], times: int) -> tuple[float, float]:
    """Process time and the system's part of it, in seconds, of `times` calls, each result waited for."""
    system, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_stime, time.process_time()
    for _ in range(times):
        result = call()
        if "jax" in sys.modules:
            sys.modules["jax"].block_until_ready(result)
    return time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_stime - system


def machine() -> str:
    """The processor and the versions that a table of times belongs to."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "equinox", "optax"))
    return f"{names[0] if names else platform.machine()}; Python {platform.python_version()}, {versions}"
