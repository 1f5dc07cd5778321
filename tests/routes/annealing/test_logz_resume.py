"""Runs that are joined until the interval is narrow: a job that was stopped goes on as if it had not been."""

import jax
import numpy as np
import pytest

import lnz
from lnz._core.checkpoint import CheckpointError
from lnz._core.estimate_warning import EstimateWarning
from lnz.routes._annealing.saved_runs import Rounds, mark_of

MODEL = lnz.Ising.lattice((3, 3), np.linspace(-0.9, 1.2, 18).reshape(2, 3, 3), 0.1, periodic=False)
ROUTE = lnz.routes.AnnealedImportanceSampling(temperatures=6, chains=16)
SPARSE = EstimateWarning.FEW_EFFECTIVE_SAMPLES
EMPTY = EstimateWarning.ZERO_WEIGHTS


class Killed(Exception):
    pass


def joined(tmp_path, key, *, within=1.3, **options):
    told = []
    options.setdefault("progress", lambda runs, estimate: told.append((runs, float(estimate.lower))))
    found = lnz.log_partition_to_accuracy(
        MODEL, ROUTE, key, within=within, max_seconds=600, resume=tmp_path / "runs", **options
    )
    return found, told


def same(a, b):
    seconds = "seconds"
    for name in ("value", "standard_error", "lower", "upper"):
        assert float(getattr(a, name)) == float(getattr(b, name)), name
    assert a.route == b.route
    assert a.warnings == b.warnings
    for name in a.diagnostics.keys() - {seconds}:
        assert float(a.diagnostics[name]) == float(b.diagnostics[name]), name


def test_a_stopped_job_goes_on_as_if_it_had_not_been(tmp_path, key):
    whole = lnz.log_partition_to_accuracy(MODEL, ROUTE, key, within=1.3, max_seconds=600)
    runs = int(whole.diagnostics["runs"])
    assert runs >= 4

    def kill_at(last):
        def progress(done, estimate):
            if done >= last:
                raise Killed

        return progress

    for last in (1, 3):  # at a look, and between two
        with pytest.raises(Killed):
            joined(tmp_path, key, progress=kill_at(last))
    found, told = joined(tmp_path, key)
    same(found, whole)
    assert found.diagnostics["seconds"] > 0
    assert [done for done, _ in told][-1] == runs
    assert told[0][0] == 4  # nothing was drawn again
    kept = Rounds.load(tmp_path / "runs", mark_of(MODEL, ROUTE, key)).log_weights
    assert len({weights.tobytes() for weights in kept}) == runs, "every run has a key of its own"
    again, told = joined(tmp_path, key)  # of a finished job, the answer
    same(again, whole)
    assert len(told) == 1


def test_warnings_of_earlier_runs_are_kept(tmp_path):
    rounds = Rounds()
    rounds.add(np.zeros(3), {SPARSE: True, EMPTY: False}, "a route")
    rounds.add(np.array([0.0, -np.inf, 1.0]), {SPARSE: False, EMPTY: False}, "a route")
    rounds.save(tmp_path / "runs", "mark")
    again = Rounds.load(tmp_path / "runs", "mark")
    assert again.raised == {SPARSE: True, EMPTY: False}
    np.testing.assert_array_equal(again.log_weights, rounds.log_weights)
    rounds.add(np.full(3, np.nan), {}, "a route")
    rounds.save(tmp_path / "runs", "mark")  # is left out: the file stays good
    assert len(Rounds.load(tmp_path / "runs", "mark").log_weights) == 2


def test_runs_of_another_job_are_refused(tmp_path, key):
    rounds = Rounds()
    rounds.add(np.zeros(3), {}, "a route")
    rounds.save(tmp_path / "runs", mark_of(MODEL, ROUTE, key))
    Rounds.load(tmp_path / "runs", mark_of(MODEL, ROUTE, key))
    warmer = jax.tree.map(lambda x: 0.9 * x, MODEL)
    longer = lnz.routes.AnnealedImportanceSampling(temperatures=7, chains=16)
    based = lnz.routes.AnnealedImportanceSampling.from_base(lnz.Independent(np.full((3, 3), 0.2), lnz.Spin((3, 3))))
    other = lnz.routes.AnnealedImportanceSampling.from_base(lnz.Independent(np.full((3, 3), 0.3), lnz.Spin((3, 3))))
    marks = [mark_of(*x) for x in ((MODEL, ROUTE, key), (warmer, ROUTE, key), (MODEL, longer, key))]
    marks += [mark_of(MODEL, route, key) for route in (based, other)] + [mark_of(MODEL, ROUTE, jax.random.key(123))]
    assert len(set(marks)) == 6
    cold, path = jax.tree.map(lambda x: 0 * x, MODEL), lnz.routes.AnnealedImportanceSampling.from_path
    bent = [path(lambda beta, n=n: jax.tree.map(lambda a, b: a + beta**n * (b - a), cold, MODEL)) for n in (1, 2)]
    assert mark_of(MODEL, bent[0], key) != mark_of(MODEL, bent[1], key), "functions of one name"
    with pytest.raises(CheckpointError, match="use the settings it was made with"):
        joined(tmp_path, jax.random.key(123))
    (tmp_path / "runs").write_bytes(b"cut short")
    with pytest.raises(CheckpointError):
        joined(tmp_path, key)
