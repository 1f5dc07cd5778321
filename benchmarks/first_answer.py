"""How long a user waits for the first answer: CPU seconds of fresh processes, each pinned to one processor, and compilations.

    python benchmarks/first_answer.py                    # the table
    python benchmarks/first_answer.py --only "ais;smc"   # some of its rows
    python benchmarks/first_answer.py --no-warm          # without the runs that find a filled cache

Each row is a script that a user could have written. A fresh process runs it **cold**, without any cache of compiled programs; then the same call
a **second** time, and once with **changed numbers** (other learning rate, seed, temperatures, …). Another fresh process is **warm**: JAX's
persistent cache has been filled by a run before. Cold and warm count from the start of the process to the answer, imports included. Programs
are counted by JAX's own monitoring events.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from timing import machine

FIRST = "import lnz, jax, jax.numpy as jnp, numpy as np\n"
RBM = FIRST + "energy = lnz.RBM(lnz.Binary((40,)), 30, key=jax.random.key(0), scale=0.3)\nR = lnz.routes\n"
WELLS = FIRST + (
    "def f(x): return jnp.sum((x**2 - 2) ** 2) + 0.1 * jnp.sum(x[1:] * x[:-1])\n"
    "energy = lnz.Tilted(f, lnz.Gaussian(jnp.zeros(8), jnp.full(8, 2.0)))\nR = lnz.routes\n"
)
FIT = FIRST + (
    "import optax\n"
    "data = np.random.default_rng(0).integers(0, 2, (1000, 64)).astype(bool)\n"
    "def run(data, rate, seed, epochs, **options):\n"
    "    rbm = lnz.RBM.from_data(data, hidden=16, key=jax.random.key(seed))\n"
    "    fitted = lnz.fit(rbm, data, epochs=epochs, optimizer=optax.sgd(rate), key=jax.random.key(seed), **options)\n"
    "    return lnz.log_likelihood(fitted.energy, data).value\n"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A script: what is made before the call (its first line is the imports), the call, the call with changed numbers, bars in CPU seconds."""

    name: str
    made: str
    call: str
    changed: str = ""
    cold: float | None = None
    again: float | None = None


def _sampled(route: str, other: str) -> tuple[str, str]:
    ask = "answer = lnz.log_partition(energy, route=R.{}, key=jax.random.key({})).value"
    return ask.format(route, 0), ask.format(other, 1)


_AIS = _sampled(
    "AnnealedImportanceSampling()", "AnnealedImportanceSampling(temperatures=900, chains=250, confidence=0.95)"
)
_SMC = _sampled("SequentialMonteCarlo()", "SequentialMonteCarlo(confidence=0.95)")
_TEMPERING = _sampled("ParallelTempering()", "ParallelTempering(confidence=0.95)")
_CHOSEN = (
    "answer = lnz.log_partition(energy, key=jax.random.key(0)).value",
    "answer = lnz.log_partition(energy, key=jax.random.key(1)).value",
)

ROWS = [
    Row("import lnz", "import lnz\n", "lnz", cold=0.2),
    Row("JAX alone", "import jax, jax.numpy as jnp\n", "answer = jnp.ones(3)"),
    Row("lnz and JAX", FIRST, "lnz.log_partition; answer = jnp.ones(3)"),
    Row("ais", RBM, *_AIS, cold=4, again=0.05),
    Row("ais, chosen", RBM, *_CHOSEN, cold=4, again=0.05),
    Row("ais, continuous", WELLS, *_AIS, cold=6, again=0.05),
    Row("ais, continuous, chosen", WELLS, *_CHOSEN, cold=6, again=0.05),
    Row("smc", RBM, *_SMC, cold=6, again=0.05),
    Row("smc, continuous", WELLS, *_SMC, cold=6, again=0.05),
    Row("tempering", RBM, *_TEMPERING, cold=6, again=0.05),
    Row("tempering, continuous", WELLS, *_TEMPERING, cold=6, again=0.05),
    Row("fit", FIT, "answer = run(data, 0.05, 0, 1)", "answer = run(data[:800], 0.02, 1, 2)", cold=4, again=0.05),
    Row(
        "fit, monitored",
        FIT,
        "answer = run(data, 0.05, 0, 100, monitor=lnz.learning.Monitor(share=0.5))",
        "answer = run(data[:800], 0.02, 1, 130, monitor=lnz.learning.Monitor(share=0.5))",
        cold=8,
    ),
    Row(
        "run_chains",
        RBM + "from lnz.kernels import Gibbs, run_chains\nkernel, v = Gibbs(), jnp.zeros((64, 40), bool)\n"
        "other = jax.tree.map(lambda w: w / 2, energy)\n",
        "answer = run_chains(energy, kernel, v, jax.random.key(0), 20)",
        "answer = run_chains(other, kernel, v, jax.random.key(1), 30)",
        again=0.01,
    ),
    Row(
        "vmap of chains, gradient",
        FIRST + "u = jnp.zeros((32, 50, 9)); other = u + 1; t = jnp.zeros((9, 9))\n"
        "def loss(u, t): return jax.vmap(lambda u: lnz.log_partition(lnz.LinearChain(u, t)).value)(u).sum()\n",
        "answer = jax.grad(loss, argnums=(0, 1))(u, t)",
        "answer = jax.grad(loss, argnums=(0, 1))(other, t)",
        cold=3,
        again=0.05,
    ),
    Row(
        "audit",
        FIRST + "energy = lnz.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, lnz.Real((2,)))\n",
        "lnz.audit(energy)",
        cold=5,
    ),
    Row(
        "belief propagation",
        FIRST + "field = lnz.RandomField(lnz.crf.Grid((10, 10)), jnp.ones((10, 10, 3)), 0.5 * jnp.eye(3))\n"
        "def loss(u): return lnz.log_partition(u, route=lnz.routes.BeliefPropagation(schedule='parallel')).value\n"
        "other = jax.tree.map(lambda w: w / 2, field)\n",
        "answer = jax.grad(loss)(field)",
        "answer = jax.grad(loss)(other)",
        again=0.05,
    ),
]

BYTECODE = os.path.join(
    tempfile.gettempdir(), "lnz-bytecode"
)  # a user's packages are compiled to bytecode by the first process
CHILD = """
import json, resource, sys
def used(): return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
made, call, changed = json.loads(sys.argv[1])
space, programs = {}, [0]
def listen():
    import jax.monitoring
    def heard(name, seconds, **_): programs[0] += name == "/jax/core/compile/backend_compile_duration"
    jax.monitoring.register_event_duration_secs_listener(heard)
def run(code):
    exec(code, space)
    if "answer" in space:
        sys.modules["jax"].block_until_ready(space["answer"])
imports, rest = made.split("\\n", 1)
exec(imports, space)
if "jax" in imports: listen()
exec(rest, space)
run(call)
out = {"cold": used(), "programs": programs[0]}
for name, code in (("second", call), ("changed", changed)):
    before, seen = used(), programs[0]
    run(code)
    out |= {name: used() - before, name + " programs": programs[0] - seen}
print("RESULT" + json.dumps(out))
"""


def measured(row: Row, cache: str | None = None) -> dict[str, float]:
    """One fresh process of a row, with a folder of compiled programs or without."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": BYTECODE,
    }
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    script = json.dumps([row.made, row.call, row.changed])
    done = subprocess.run([sys.executable, "-c", CHILD, script], env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if not found:
        raise RuntimeError(f"{row.name} failed: {done.stderr[-800:]}")
    return json.loads(found[0].removeprefix("RESULT"))


def warmed(row: Row) -> float:
    """Seconds of a fresh process that finds the programs of another."""
    with tempfile.TemporaryDirectory() as cache:
        measured(row, cache)
        return measured(row, cache)["cold"]


HEAD = """| | cold (bar) | warm | second | changed (bar) | programs cold | second | changed |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def line(row: Row, figures: dict[str, float], warm: float | None) -> str:
    """A row of the table, in Markdown."""
    cells = [
        row.name,
        f"{figures['cold']:.2f}" + (f" ({row.cold:g})" if row.cold else ""),
        "" if warm is None else f"{warm:.2f}",
        f"{figures['second']:.3f}",
        (f"{figures['changed']:.3f}" if row.changed else "") + (f" ({row.again:g})" if row.again else ""),
        *(f"{figures[name]:.0f}" for name in ("programs", "second programs", "changed programs")),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", help="rows to run, separated by semicolons", default=";".join(row.name for row in ROWS)
    )
    parser.add_argument("--no-warm", action="store_true", help="leave out the runs that find a filled cache")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    began, clock = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.perf_counter()
    measured(Row("bytecode", FIRST + "import optax\n", "for name in dir(lnz): getattr(lnz, name)"))
    print(f"{machine()}\n\n{HEAD}")
    for row in ROWS:
        if row.name in options.only.split(";"):
            figures = measured(row)
            print(line(row, figures, None if options.no_warm else warmed(row)), flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began
    print(
        f"\n{used:.0f} s of CPU in {time.perf_counter() - clock:.0f} s: where these differ much, the machine was busy and figures are high"
    )


if __name__ == "__main__":
    main()
