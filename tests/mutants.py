"""Faults planted one at a time, to see that some test of their room notices: python tests/mutants.py [words of a meaning …]

Every row of `MUTANTS` changes one place in a copy of the tree and runs the tests named; a mutant that survives needs a test that states the
property. Not collected by pytest.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]


class Mutant(NamedTuple):
    """One fault: in `file` below src/lnz, `before` (which occurs once) becomes `after`; `tests` must then fail."""

    file: str
    before: str
    after: str
    meaning: str
    tests: str


QUADRATURE = "tests/routes/exact/test_quadrature.py"
FLAT = "tests/routes/annealing/test_flat_directions.py"
WARNINGS = "tests/routes/annealing/test_estimate_warnings.py"
PLANAR = "tests/routes/exact/test_planar.py"
ESTIMATE = "tests/routes/test_estimate.py"
HALF = "tests/models/test_half_infinite_boxes.py"
ELIMINATION = "tests/graphs/test_elimination.py"
LIMITS = "tests/routes/bounds/test_limits.py"
ANYTIME = "tests/routes/bounds/test_anytime.py"
CONVERGENCE = "tests/diagnostics/test_convergence.py"
CHAINS = "tests/crf/test_linear_chain.py"
BIAS = "tests/routes/annealing/test_bias.py"
MUTANTS = [
    Mutant(
        "_core/printing.py", "<= _WIDE * 2 * error", "<= 50 * error", "± beside an interval that denies it", ESTIMATE
    ),
    Mutant(
        "_models/independent.py",
        "np.where(below ^ above, math.log(2), 0)",
        "0 * low",
        "half-logistic units without log 2",
        HALF,
    ),
    Mutant(
        "_models/independent.py",
        "jnp.log(width), open_ended",
        "0 * width, open_ended",
        "uniform units without their width",
        HALF,
    ),
    Mutant(
        "routes/_annealing/annealing_route.py",
        "| _endless(along_flat)",
        "",
        "no search for the flattest direction",
        FLAT,
    ),
    Mutant(
        "routes/_annealing/annealing_route.py", "| _endless(along_low)", "", "no descent to a falling direction", FLAT
    ),
    Mutant(
        "routes/_annealing/annealing_route.py",
        "heavy = heavy | self._endless_mean",
        "heavy = heavy & self._endless_mean",
        "the tail of f e^-E is not looked at",
        WARNINGS,
    ),
    Mutant(
        "routes/_annealing/annealing_route.py",
        "endless * np.where(",
        "np.where(",
        "rays out of a box",
        f"{HALF} -k rays_to",
    ),
    Mutant(
        "routes/_exact/kac_ward.py", "    if steps:\n", "    if False:\n", "correlations that nothing confirms", PLANAR
    ),
    Mutant(
        "routes/_exact/quadrature.py",
        "values, unseen + noise)",
        "values, unseen)",
        "rounding of the energy is in no error",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature.py",
        "beyond_range(jax.lax.stop_gradient(sizes))",
        "beyond_range(jnp.zeros_like(sizes))",
        "the tail of f e^-E is not integrated",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py",
        "jnp.sum(jnp.log(place.scales)) if",
        "0 * jnp.sum(place.scales) if",
        "a frame without its volume",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py", "(carry[0] <= 12)", "(carry[0] <= 0)", "overflow far out is NaN", QUADRATURE
    ),
    Mutant(
        "routes/_exact/quadrature_grid.py",
        "jnp.where(undefined.any(), jnp.nan, broken)",
        "broken",
        "NaN where mass may be",
        QUADRATURE,
    ),
    Mutant(
        "routes/_exact/quadrature_place.py",
        "better = (trouble[0] > _GOOD)",
        "better = (trouble[0] < 0)",
        "the grid never turns",
        QUADRATURE,
    ),
    # Faults that survived the tests once.
    Mutant(
        "routes/_annealing/mode_probes.py",
        " | (several.mean() >= _SEVERAL)",
        "",
        "modes missed: by several probes",
        "tests/routes/annealing/test_scouts.py -k eighth",
    ),
    Mutant(
        "routes/_annealing/mode_probes.py",
        "jnp.concatenate([far[: n // 2], few])",
        "far",
        "no starts of mode probes in narrow regions",
        "tests/routes/annealing/test_scouts.py -k too_narrow",
    ),
    Mutant(
        "routes/_annealing/mode_probes.py",
        "jnp.clip(own_step, ladder.log_steps + _STEPS[0], ladder.log_steps)",
        "jnp.minimum(own_step, ladder.log_steps)",
        "bases of single points",
        "tests/routes/annealing/test_scouts.py -k never_move",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "log_z + np.logaddexp.reduce(gain, axis=1) - math.log(size[1])",
        "log_z + np.logaddexp.reduce(gain, axis=1) - math.log(size[1]) - 0.05 * (beta == 1)",
        "estimates from a fitted base 0.05 nats low",
        "tests/routes/annealing/test_fitted_smc.py -k derivative",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "roots = (_root(second), _root(first)) if",
        "roots = (_root(here.noise),) if",
        "particles moved by their own covariance",
        "tests/routes/annealing/test_fitted_smc.py -k no_higher",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "lost = fallen(found)",
        "lost = None",
        "a base that has lost modes",
        "tests/routes/annealing/test_fitted_smc.py -m slow -k more_modes",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "outward(target, pilot.base, rng, mode_probes // 2)",
        "outward(target, pilot.base, rng, 0)",
        "no slopes of narrow modes looked for",
        "tests/routes/annealing/test_fitted_smc.py -k begins_again",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "if missed <= pilot.found[-1][0] - _LITTLE:",
        "if True:",
        "a missed mode that the pilot does not begin again with",
        "tests/routes/annealing/test_fitted_smc.py -k begins_again",
    ),
    Mutant(
        "routes/_annealing/fitted_smc.py",
        "stops[-1] >= min(stops[-3:-1], default=math.inf) and",
        "False and",
        "rounds that go on where the base comes no nearer",
        "tests/routes/annealing/test_fitted_smc.py -k rounds_end",
    ),
    Mutant(
        "routes/_annealing/mode_probes.py",
        " | (sure > covered)",
        "",
        "modes missed: sure above the upper bound",
        f"{WARNINGS} -k lie_above",
    ),
    Mutant(
        "io/_uai.py",
        "gzip.compress(data, mtime=0)",
        "gzip.compress(data)",
        "gzip with a time stamp",
        "tests/io/test_uai.py -k any_time",
    ),
    Mutant(
        "reference/_sums.py",
        "log_weight = 0.5 * np.einsum",
        "log_weight = np.einsum",
        "a reference energy without ½ in its pairs",
        "tests/reference",
    ),
    Mutant(
        "_graphs/solver.py",
        "return labels[rng.permutation(n)] if len(parts) > 2 else labels",
        "return labels",
        "exact samples in slice order",
        f"{ELIMINATION} -k exact_law",
    ),
    Mutant(
        "_graphs/contraction.py",
        "if a.low + b.low >= -RANGE and a.high + b.high + terms <= RANGE",
        "if a.low + b.low >= -RANGE and a.high + b.high <= RANGE",
        "no room for many terms of sums",
        f"{ELIMINATION} -k many_terms",
    ),
    Mutant(
        "_graphs/contraction.py",
        "a.low + b.low < -RANGE or a.high + b.high + terms > RANGE",
        "a.low + b.low < -RANGE or a.high + b.high > RANGE",
        "tables are not centred for sums of many terms",
        f"{ELIMINATION} -k many_terms",
    ),
    Mutant(
        "_graphs/buckets.py",
        "value + (rounding if upper else -rounding)",
        "value + (-rounding if upper else rounding)",
        "rounding of buckets on the wrong side",
        "tests/routes/bounds/test_local.py -k unsplit",
    ),
    Mutant(
        "_graphs/anytime_solver.py",
        "value -= self.rounding",
        "value += self.rounding",
        "rounding of lower anytime bounds on the wrong side",
        f"{ANYTIME} -k outwards",
    ),
    Mutant(
        "_graphs/anytime_solver.py",
        "value += self.rounding",
        "value -= self.rounding",
        "rounding of upper anytime bounds on the wrong side",
        f"{ANYTIME} -k outwards",
    ),
    Mutant(
        "_graphs/anytime_solver.py",
        "while not search.met() and search.left() > 0:",
        "while not search.met():",
        "anytime search without its time limit",
        ANYTIME,
    ),
    Mutant(
        "_core/convergence.py",
        "between / within)",
        "0.5 * between / within)",
        "R-hat with half of the variance between",
        f"{CONVERGENCE} -k four_numbers",
    ),
    Mutant(
        "_core/convergence.py",
        "max(1.0, 2 * total), False",
        "max(1.0, 2.4 * total), False",
        "autocorrelation times 20 % long",
        f"{CONVERGENCE} -k autoregressive",
    ),
    Mutant(
        "_core/convergence.py",
        "return 2 * (total + c[-1] / rate), True",
        "return 2.4 * (total + c[-1] / rate), True",
        "unfinished autocorrelation times 20 % long",
        f"{CONVERGENCE} -k autoregressive",
    ),
    Mutant(
        "learning/_monitor.py",
        ' or (seen["lag"] > 0.5 and seen["tau"] > _SLOW)',
        "",
        "no alarm of half a nat of lag with slow mixing",
        "tests/learning/test_monitor.py -k half_a_nat",
    ),
    Mutant(
        "routes/_exact/forward_backward.py",
        "(8 * max(1, p.nodes.size)",
        "(16 * max(1, p.nodes.size)",
        "scaled sums are trusted half as far",
        f"{CHAINS} -k eighth_of",
    ),
    Mutant(
        "routes/_exact/forward_backward.py",
        "(8 * max(1, p.nodes.size)",
        "(4 * max(1, p.nodes.size)",
        "scaled sums are trusted twice as far",
        f"{CHAINS} -k eighth_of",
    ),
    Mutant(
        "routes/_annealing/repeat_until.py",
        "jax.random.fold_in(key, len(parts))",
        "key",
        "the same key for every joined run",
        "tests/routes/annealing/test_logz_resume.py -k stopped",
    ),
    Mutant(
        "diagnostics/_audit.py",
        "except (ValueError, TypeError, NotImplementedError, jax.errors.JAXTypeError)",
        "except Exception",
        "every exception is the energy's in the audit",
        "tests/diagnostics/test_audit.py -k audit_itself",
    ),
    Mutant(
        "routes/_annealing/bidirectional.py",
        "value = np.clip(value, lower, upper)",
        "value = np.clip(value + 0.05, lower, upper)",
        "estimates from both directions 0.05 nats high",
        f"{BIAS} -k bidirectional",
    ),
    Mutant(
        "routes/_annealing/smc.py",
        "log_z = log_z + path.log_z0()",
        "log_z = log_z + path.log_z0() + 0.05",
        "sequential Monte Carlo 0.05 nats high",
        f"{BIAS} -k smc",
    ),
    Mutant(
        "routes/_annealing/parallel_tempering.py",
        '"value": value + log_z0,',
        '"value": value + log_z0 + 0.05,',
        "tempering 0.05 nats high",
        f"{BIAS} -k easy_model",
    ),
    Mutant(
        "routes/_annealing/parallel_tempering.py",
        "_student(replicates, 0.5 + confidence / 2)",
        "_student(replicates, confidence)",
        "a one-sided quantile in tempering",
        f"{BIAS} -k students",
    ),
    Mutant(
        "routes/_annealing/parallel_tempering.py",
        "else x.std(ddof=1))",
        "else 0.7 * x.std(ddof=1))",
        "an error 30 % small in tempering",
        f"{BIAS} -k students",
    ),
    Mutant(
        "_graphs/messages.py",
        "[:, None] * (1 - damping)",
        "[:, None] * 1.0",
        "no damping in parallel propagation",
        "tests/routes/bounds/test_local.py -k stand_still",
    ),
    Mutant(
        "_core/estimate.py",
        "rounding = max(upper - value, value - lower)",
        "rounding = upper - value",
        "rounding told from one side",
        f"{ESTIMATE} -k farther_side",
    ),
    Mutant(
        "_core/estimate.py",
        "np.any(np.asarray(flag))",
        "np.all(np.asarray(flag))",
        "warnings of a batch where all members raise them",
        WARNINGS + "::test_an_estimate_lists_its_warnings_in_the_order_of_the_table",
    ),
    Mutant(
        "kernels/_exchange.py",
        "2 * ((rung + steps) % 2)",
        "2 * (rung % 2)",
        "odd pairs never swap",
        "tests/kernels/test_exchange_and_resampling.py -k swaps",
    ),
    Mutant(
        "routes/_annealing/path.py",
        "if reverse and isinstance(kernel, Gibbs) else None",
        "if False else None",
        "no reversal of kernels on the way back",
        f"{BIAS} -k way_back",
    ),
    Mutant(
        "io/_text_blocks.py",
        "if self._read > _UNPACKED_LIMIT:",
        "if False:",
        "no limit of unpacked text",
        "tests/io/test_conll.py -k more_text",
    ),
    Mutant(
        "io/_idx.py",
        "most = size * _DEFLATE_LIMIT if zipped else size",
        "most = 1 << 60",
        "no limit of unpacked idx files",
        "tests/io/test_arrays.py -k idx",
    ),
    Mutant(
        "io/_arrays.py",
        "if info.file_size > _DEFLATE_LIMIT * info.compress_size + 1024 and",
        "if False and",
        "no limit of unpacked arrays",
        "tests/io/test_arrays.py",
    ),
    Mutant(
        "routes/_annealing/certificate.py",
        "t**2 * math.pi * half",
        "t**2 * half",
        "no π in the upper bound",
        f"{BIAS} -k median",
    ),
    Mutant(
        "learning/_loop.py",
        "jnp.where((bad < 0) & ~fine, i, bad)",
        "jnp.where(~fine, i, bad)",
        "the last bad step is told",
        "tests/learning/test_fit.py -k several_bad",
    ),
    Mutant(
        "learning/_negative/replay.py",
        "jax.random.uniform(fresh_key,",
        "jax.random.uniform(place_key,",
        "one key for restart and place in replay",
        "tests/learning/test_replay.py -k used_twice",
    ),
    Mutant(
        "report/_pictures.py",
        "axes.fill_between(steps, low, high,",
        "axes.fill_between(steps, values, values,",
        "a band of likelihood without width",
        "tests/report/test_report.py -k band_of",
    ),
    Mutant(
        "learning/_gradient_error.py",
        "((self.mean - self.exact) ** 2).sum(axis=1) - self.variance / self.repeats",
        "((self.mean - self.exact) ** 2).sum(axis=1)",
        "a gradient error that is not debiased",
        "tests/learning/test_monitor.py -k corrected_for",
    ),
    Mutant(
        "apps/_segmentation/variation.py",
        "jnp.where(inside, labels, VOID)",
        "labels",
        "labels beyond a picture's edge",
        "tests/apps/segmentation/test_segmentation.py -k beyond_its_edge",
    ),
]


def killed(mutant: Mutant) -> bool:
    """Whether a test fails with this fault in a copy of the tree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs"))
        place = tree / "src" / "lnz" / mutant.file
        text = place.read_text()
        if text.count(mutant.before) != 1:
            raise ValueError(
                f"{mutant.file} has {text.count(mutant.before)} places for {mutant.before!r}, but must have one"
            )
        place.write_text(text.replace(mutant.before, mutant.after))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-n",
            "0",
            "-p",
            "no:cacheprovider",
            *mutant.tests.split(),
        ]
        environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
        try:
            return subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=900).returncode == 1
        except subprocess.TimeoutExpired:  # it never ends, which no test run would overlook
            return True


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.meaning for word in words)]
    alive = 0
    for mutant in chosen:
        dead = killed(mutant)
        alive += not dead
        print("killed" if dead else "ALIVE ", f"{mutant.file}: {mutant.meaning}", flush=True)
    print(f"{alive} of {len(chosen)} alive")
    return min(alive, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
