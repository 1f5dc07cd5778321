"""Strict settings for the whole suite: float64, no implicit promotion, warnings as errors, two CPU devices, programs kept between runs."""

import contextlib
import os
import resource
import signal
import time
from importlib.metadata import version
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Set by `uv run pytest`: hints of the command line would begin with `uv run`.
os.environ.pop("UV", None)
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)

# There is a worker for every core. Threads of NumPy's BLAS would wait for each other, actively: small products took up to 20 times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Compiled programs are kept between runs and shared by workers and by the processes that tests start; so is the bytecode of packages, without which
# every process spends a second and a half on compiling its imports.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lnz-tests" / f"jaxlib-{version('jaxlib')}"),
)
os.environ.setdefault("PYTHONPYCACHEPREFIX", os.environ["JAX_COMPILATION_CACHE_DIR"] + "-bytecode")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background, and passed on to processes that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import jaxtyping
import pytest

# Annotations are checked at run time, shapes and dtypes among them, in every module of lnz that is imported from here on but those of commands,
# unless LNZ_CHECK_TYPES=0: it takes 2 % of the suite's time. The hook stands here and not in pytest's `addopts`, which the workers of xdist do not
# read. Processes that tests start run without it.
STARTED = time.monotonic()
CHECKED = os.environ.get("LNZ_CHECK_TYPES") != "0"
if CHECKED:
    rooms = [entry.stem for entry in (Path(__file__).parents[1] / "src/lnz").iterdir()]
    # Options of commands are annotated with what their parser reads: before that they are empty.
    jaxtyping.install_import_hook([f"lnz.{room}" for room in rooms if room != "_cli"], "typechecking.check")

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--minutes", type=float, help="skip the tests that have not begun after so many minutes, saying so"
    )
    parser.addoption(
        "--start-at",
        type=int,
        default=0,
        help="the number of the test file that runs first (of day D: D), the others in turn",
    )


# Files of more than about eight seconds. What is neither here nor slow is marked quick, for `-m quick`.
LONG = [
    "apps/segmentation/test_segmentation.py",
    "cli/test_audit_command.py",
    "cli/test_cli_resume.py",
    "cli/test_commands.py",
    "cli/test_compilation_cache.py",
    "cli/test_training_commands.py",
    "contracts/test_any_names.py",
    "contracts/test_bounds.py",
    "contracts/test_exact.py",
    "contracts/test_exact_sweeps.py",
    "contracts/test_exact_transitions.py",
    "contracts/test_invariance.py",
    "contracts/test_local_kernels.py",
    "contracts/test_negative_phases.py",
    "contracts/test_route_list.py",
    "contracts/test_rough_gradients.py",
    "crf/test_chain_queries.py",
    "crf/test_conditional_training.py",
    "crf/test_lanes.py",
    "crf/test_linear_chain.py",
    "crf/test_objectives.py",
    "crf/test_random_field.py",
    "diagnostics/test_audit.py",
    "diagnostics/test_contract_audit.py",
    "diagnostics/test_convergence.py",
    "evidence/test_evidence.py",
    "evidence/test_from_draws.py",
    "faces/test_draws_of_packages.py",
    "faces/test_face_docs.py",
    "faces/test_numpyro_evidence.py",
    "faces/test_numpyro_supports.py",
    "faces/test_pymc_evidence.py",
    "faces/test_sklearn_checks.py",
    "faces/test_sklearn_rbm.py",
    "faces/test_torch_crf.py",
    "faces/test_torch_energy.py",
    "faces/test_torch_negative.py",
    "faces/test_torch_structured.py",
    "graphs/test_elimination.py",
    "graphs/test_queries.py",
    "io/test_uai.py",
    "kernels/test_leapfrog.py",
    "learning/test_coupled_annealing.py",
    "learning/test_coupled_chains.py",
    "learning/test_deep.py",
    "learning/test_fit.py",
    "learning/test_monitor.py",
    "learning/test_negative.py",
    "learning/test_objectives_without_z.py",
    "learning/test_phases.py",
    "learning/test_replay.py",
    "learning/test_resume.py",
    "learning/test_trainer.py",
    "models/test_half_infinite_boxes.py",
    "models/test_saved.py",
    "report/test_report.py",
    "routes/annealing/test_bridge.py",
    "routes/annealing/test_calm_and_wrong.py",
    "routes/annealing/test_estimate_warnings.py",
    "routes/annealing/test_estimators.py",
    "routes/annealing/test_failures.py",
    "routes/annealing/test_flat_directions.py",
    "routes/annealing/test_logz_resume.py",
    "routes/annealing/test_paths.py",
    "routes/annealing/test_scouts.py",
    "routes/annealing/test_subgraph.py",
    "routes/annealing/test_unbiased.py",
    "routes/bounds/test_field_inference.py",
    "routes/bounds/test_local.py",
    "routes/exact/test_memory.py",
    "routes/exact/test_moving_box.py",
    "routes/exact/test_planar.py",
    "routes/exact/test_quadrature.py",
    "routes/exact/test_structured.py",
    "test_compilations.py",
    "test_docs.py",
    "test_installation.py",
    "test_quality.py",
    "test_random.py",
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks the quick tests. With --start-at, each run begins at another file, so that over the runs none is always last."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if place not in LONG and item.get_closest_marker("slow") is None:
            item.add_marker("quick")
    files = list(dict.fromkeys(item.path for item in items))
    if files and (first := config.getoption("--start-at") % len(files)):
        items.sort(key=lambda item: (files.index(item.path) - first) % len(files))


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() > STARTED + 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes")


def pytest_configure(config):
    """Nearly all of the suite's time is compilation of programs that run once: ask for the quickest, here and in processes that tests start.

    LLVM's optimiser is off, and XLA writes loops with its older emitters, which take half as long as the newer ones (JAX 0.11 and later have
    those alone). The slow tests compute for minutes, and keep the compiler that users have.
    """
    if not any(asked in config.option.markexpr for asked in ("not slow", "quick")):
        return
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


@pytest.fixture(autouse=True)
def wrong_types(request, monkeypatch):
    """Annotations are not checked where input is wrong on purpose: inside `pytest.raises`, and in tests marked `wrong_types`."""
    if not CHECKED:
        yield
        return
    raises = pytest.raises

    @contextlib.contextmanager
    def unchecked(*expected, **options):
        with raises(*expected, **options) as found, annotations_ignored():
            yield found

    monkeypatch.setattr(pytest, "raises", unchecked)
    with annotations_ignored() if request.node.get_closest_marker("wrong_types") else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def annotations_ignored():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Compiled programs of files that are done are let go where a process has grown beyond 2 GB."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2 * 2**20:  # in units of 1024 bytes, on Linux
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(2026)
