"""How long a user waits for the first answer: CPU seconds of fresh processes, each pinned to one processor, and compilations.

    python benchmarks/first_answer.py                    # the table
    python benchmarks/first_answer.py --only "ais;smc"   # some of its rows
    python benchmarks/first_answer.py --markdown         # as Markdown, for the docs

Each row is a script that a user could have written. A fresh process runs it three times over: **cold**, without any cache of compiled
programs; **warm**, with JAX's persistent cache filled by the run before; and within the cold process the same call a **second** time, and with
**changed numbers** (another learning rate, seed, number of temperatures, …). `first` counts from the start of the process to the answer, imports
included; the programs that XLA compiled are counted by JAX's own monitoring events.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

IMPORTS = "import lnz, jax, jax.numpy as jnp, numpy as np"
RBM = "energy = lnz.RBM(lnz.Binary((40,)), 30, key=jax.random.key(0), scale=0.3)"

# Each row: what is made before (counted in `first`), the first call, the call with changed numbers; bars in CPU seconds (first, second, changed).
ROWS: dict[str, tuple[str, str, str, tuple[float | None, float | None, float | None]]] = {
    "import": ("import lnz", "lnz.log_partition", "", (0.2, None, None)),
    "jax": ("import jax, jax.numpy as jnp", "jnp.ones(3).block_until_ready()", "", (None, None, None)),
    "lnz and jax": (IMPORTS, "lnz.log_partition; jnp.ones(3).block_until_ready()", "", (None, None, None)),
    "ais": (
        f"{IMPORTS}\n{RBM}\nR = lnz.routes.AnnealedImportanceSampling",
        "answer = lnz.log_partition(energy, route=R(), key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, route=R(temperatures=900, chains=250, confidence=0.95), key=jax.random.key(1)).value",
        (4.0, 0.1, 0.05),
    ),
    "ais, probes": (
        f"{IMPORTS}\n{RBM}",
        "answer = lnz.log_partition(energy, key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, key=jax.random.key(1)).value",
        (None, None, None),
    ),
    "ais, continuous": (
        f"{IMPORTS}\nfrom lnz import FunctionEnergy, Real\n"
        "def f(x): return jnp.sum((x**2 - 2) ** 2) + 0.1 * jnp.sum(x[1:] * x[:-1])\n"
        "energy = lnz.Tilted(f, lnz.Gaussian(jnp.zeros(8), jnp.full(8, 2.0)))\nR = lnz.routes.AnnealedImportanceSampling",
        "answer = lnz.log_partition(energy, route=R(), key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, route=R(temperatures=900, chains=250, confidence=0.95), key=jax.random.key(1)).value",
        (6.0, None, 0.05),
    ),
    "ais, continuous, probes": (
        f"{IMPORTS}\n"
        "def f(x): return jnp.sum((x**2 - 2) ** 2) + 0.1 * jnp.sum(x[1:] * x[:-1])\n"
        "energy = lnz.Tilted(f, lnz.Gaussian(jnp.zeros(8), jnp.full(8, 2.0)))",
        "answer = lnz.log_partition(energy, key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, key=jax.random.key(1)).value",
        (6.0, None, 0.05),
    ),
    "smc": (
        f"{IMPORTS}\n{RBM}\nR = lnz.routes.SequentialMonteCarlo",
        "answer = lnz.log_partition(energy, route=R(), key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, route=R(confidence=0.95), key=jax.random.key(1)).value",
        (6.0, None, 0.05),
    ),
    "smc, continuous": (
        f"{IMPORTS}\n"
        "def f(x): return jnp.sum((x**2 - 2) ** 2) + 0.1 * jnp.sum(x[1:] * x[:-1])\n"
        "energy = lnz.Tilted(f, lnz.Gaussian(jnp.zeros(8), jnp.full(8, 2.0)))\nR = lnz.routes.SequentialMonteCarlo",
        "answer = lnz.log_partition(energy, route=R(), key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, route=R(confidence=0.95), key=jax.random.key(1)).value",
        (6.0, None, 0.05),
    ),
    "tempering": (
        f"{IMPORTS}\n{RBM}\nR = lnz.routes.ParallelTempering",
        "answer = lnz.log_partition(energy, route=R(), key=jax.random.key(0)).value",
        "answer = lnz.log_partition(energy, route=R(confidence=0.95), key=jax.random.key(1)).value",
        (6.0, None, 0.05),
    ),
    "fit": (
        f"{IMPORTS}\nimport optax\n"
        "data = np.random.default_rng(0).integers(0, 2, (1000, 64)).astype(bool)\n"
        "def run(data, rate, seed, updates):\n"
        "    rbm = lnz.RBM.from_data(data, hidden=16, key=jax.random.key(seed))\n"
        "    fitted = lnz.fit(rbm, data, epochs=updates / (len(data) / 100), optimizer=optax.sgd(rate), key=jax.random.key(seed))\n"
        "    return lnz.log_likelihood(fitted.energy, data, key=jax.random.key(seed)).value",
        "answer = run(data, 0.05, 0, 10)",
        "answer = run(data[:800], 0.02, 1, 20)",
        (4.0, None, 0.05),
    ),
    "run_chains": (
        f"{IMPORTS}\nfrom lnz.kernels import run_chains, default_kernel\n"
        "energy = lnz.RBM(jnp.zeros((40, 30)) + 0.1, jnp.zeros(40), jnp.zeros(30))\nv = jnp.zeros((64, 40), bool)",
        "answer = run_chains(energy, default_kernel(energy), v, jax.random.key(0), 20)",
        "answer = run_chains(energy, default_kernel(energy), v, jax.random.key(1), 30)",
        (None, 0.01, 0.01),
    ),
    "vmap chain": (
        f"{IMPORTS}\nu = jnp.zeros((32, 50, 9)); t = jnp.zeros((9, 9))\n"
        "def loss(u, t): return jax.vmap(lambda u: lnz.log_partition(lnz.LinearChain(u, t)).value)(u).sum()",
        "answer = jax.grad(loss, argnums=(0, 1))(u, t)",
        "answer = jax.grad(loss, argnums=(0, 1))(u + 1, t)",
        (3.0, None, 0.05),
    ),
    "audit": (
        f"{IMPORTS}\nenergy = lnz.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, lnz.Real((2,)))",
        "answer = lnz.audit(energy)",
        "answer = lnz.audit(energy)",
        (5.0, None, None),
    ),
    "belief propagation": (
        f"{IMPORTS}\nenergy = lnz.RandomField.from_ising(lnz.Ising.lattice((10, 10), 0.3, periodic=False)) if hasattr(lnz.RandomField, 'from_ising') else lnz.RandomField.lattice(jnp.zeros((10, 10, 3)), jnp.zeros((3, 3)))\nR = lnz.routes.BeliefPropagation",
        "answer = lnz.log_partition(energy, route=R(schedule='parallel')).value",
        "answer = lnz.log_partition(energy, route=R(schedule='parallel')).value",
        (None, None, None),
    ),
}

CHILD = """
import json, resource, sys, time
def used(): return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
setup, first, changed = json.loads(sys.argv[1])
compiled = [0, 0.0]
space = {}
import builtins
def watch():
    if "jax" in sys.modules and not watch.on:
        import jax.monitoring
        def heard(name, seconds, **_):
            if name == "/jax/core/compile/backend_compile_duration":
                compiled[0] += 1; compiled[1] += seconds
        jax.monitoring.register_event_duration_secs_listener(heard)
        watch.on = True
watch.on = False
def settle():
    if "jax" in sys.modules and space.get("answer") is not None:
        import jax
        jax.block_until_ready(space["answer"])
start = used()
lines = setup.split("\\n", 1)
exec(lines[0], space); watch()
if len(lines) > 1: exec(lines[1], space)
made = used()
exec(first, space); settle(); watch()
out = {"setup": made, "first": used(), "programs": compiled[0], "compiling": compiled[1]}
count = compiled[0]
for name, code in (("second", first), ("changed", changed)):
    if not code: continue
    before, seen = used(), compiled[0]
    exec(code, space); settle()
    out[name], out[name + " programs"] = used() - before, compiled[0] - seen
print("RESULT" + json.dumps(out))
"""


def child(row: str, cache: str | None) -> dict[str, float]:
    """One fresh process of one row; `cache` is the folder of compiled programs."""
    setup, first, changed, _ = ROWS[row]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    code = [sys.executable, "-c", CHILD, json.dumps([setup, first, changed])]
    done = subprocess.run(code, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not found:
        raise RuntimeError(f"{row} failed: {done.stderr[-800:]}")
    return json.loads(found[0].removeprefix("RESULT"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="rows to run, separated by semicolons", default=";".join(ROWS))
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--no-warm", action="store_true", help="leave out the runs with a persistent cache")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for row in [row for row in ROWS if row in options.only.split(";")]:
        cold = child(row, None)
        warm = {}
        if not options.no_warm:
            with tempfile.TemporaryDirectory() as cache:
                child(row, cache)
                warm = child(row, cache)
        print(
            row,
            {k: round(v, 3) for k, v in cold.items()},
            "warm",
            round(warm.get("first", float("nan")), 2),
            flush=True,
        )


if __name__ == "__main__":
    main()
