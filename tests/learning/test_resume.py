"""A run that is killed, interrupted or out of disk, and resumed, is bit for bit the run that was not."""

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import arrays, bits, distance, model, same

import lnz
from lnz._core import files
from lnz._core.checkpoint import CheckpointError, load_arrays, load_tree, save_tree
from lnz.learning._resume import best_path

KEY = jax.random.key(41)
ADAM = optax.adam(0.01)
SCRIPT = Path(__file__).with_name("killed_run.py")
fit_module = sys.modules[lnz.fit.__module__]


class Process:
    """`killed_run.py` in a process of its own."""

    def __init__(self, folder, name, *, slow=False):
        self.folder, self.name = folder, name
        self.end = folder / f"{name}.end"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_X64": "0",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        arguments = [folder / name, folder / f"{name}.records", self.end, *(["slow"] if slow else [])]
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_for(self, condition):
        """Until the condition holds; False if the process ended before."""
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def step(self):
        """The step that the checkpoint on the disk holds; -1 where there is none."""
        path = self.folder / self.name
        return load_arrays(path)[1]["step"] if path.exists() else -1

    def writing(self):
        """Whether a file is half written at this moment."""
        return any(size_of(path) >= 400 for path in self.folder.glob(f".{self.name}.*.tmp"))

    def stop(self, sign):
        self.process.send_signal(sign)
        out = self.process.communicate(timeout=120)
        return self.process.returncode, out[1]

    def finish(self):
        _, error = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, error
        return load_arrays(self.end)


def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def records(folder, name):
    """The records by step; one that came twice must have come alike."""
    found = {}
    for line in (folder / f"{name}.records").read_text().splitlines():
        record = json.loads(line)
        assert found.setdefault(record["step"], record) == record
    return found


def test_a_run_killed_again_and_again_is_the_run_that_was_never_killed(tmp_path):
    whole = Process(tmp_path, "whole")
    wanted, about = whole.finish()
    kills = []

    def attempt(condition, sign=signal.SIGKILL):
        process = Process(tmp_path, "run", slow=True)
        before = process.step()
        if not process.wait_for(lambda: condition(process, before)):
            process.finish()
            return None
        code, error = process.stop(sign)
        kills.append((before, code))
        return error

    attempt(lambda process, before: process.step() == 0)  # before the first record, most likely while it compiles
    attempt(lambda process, before: process.step() > before + 10 and process.writing())
    begun = []
    after = random.Random(7).uniform(0, 0.6)
    error = attempt(
        lambda process, before: process.step() > before and (begun or [begun.append(time.monotonic())]) and time.monotonic() > begun[0] + after,
        signal.SIGINT,
    )  # fmt: skip
    assert [code for _, code in kills] == [-signal.SIGKILL] * 2 + [1], kills
    assert "Interrupted: interrupted at step" in error
    assert "The same call resumes from there" in error
    assert "Traceback" not in error
    got, about_got = Process(tmp_path, "run").finish()

    assert about_got == about
    assert about["best_step"] > 5
    assert set(got) == set(wanted)
    for name in wanted:
        assert got[name].dtype == wanted[name].dtype
        assert got[name].tobytes() == wanted[name].tobytes(), name
    assert records(tmp_path, "run") == records(tmp_path, "whole")
    assert len(records(tmp_path, "whole")) == 12


class Power(Exception):
    """The lights go out."""


def fit(path, **changes):
    energy, data = model("rbm")
    options = {
        "optimizer": ADAM, "epochs": 3, "batch_size": 10, "evaluate_every": 0.8, "validation": bits((6, 5), 9), "key": KEY,
        "checkpoint": path,
    }  # fmt: skip
    return lnz.fit(changes.pop("energy", energy), changes.pop("data", data), **options | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never stopped: 12 updates, records at 3, 6, 9 and 12."""
    return fit(tmp_path_factory.mktemp("whole") / "run")


def plain(history):
    return [(record.step, record.figures, record.validation.value) for record in history]


@pytest.fixture(autouse=True)
def one_update_at_a_time(monkeypatch):
    monkeypatch.setattr(fit_module, "_CHUNK_SECONDS", 0)


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 11, 12])
def test_an_interrupt_after_any_update(tmp_path, whole, stop):
    seen = []

    def interrupt(step, total):
        assert total == 12
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(lnz.learning.Interrupted) as caught:
        fit(tmp_path / "run", on_progress=interrupt, on_record=seen.append)
    assert str(caught.value) == (
        f"interrupted at step {stop}: the state is saved in {tmp_path / 'run'}. The same call resumes from there."
    )
    assert load_arrays(tmp_path / "run")[1]["step"] == stop
    resumed = fit(tmp_path / "run")
    assert same(resumed.state, whole.state)
    assert same(resumed.best, whole.best)
    assert resumed.best_step == whole.best_step
    assert plain(seen + resumed.history) == plain(whole.history), "the means of an interval that was cut in two"


@pytest.mark.parametrize("where", ["measuring", "record", "best", "state"])
def test_an_interrupt_inside_a_record_loses_no_record(tmp_path, whole, where, monkeypatch):
    """At step 6: while the likelihood is measured, in the caller's on_record, while the best model or the state is written."""
    seen, calls = [], []

    def then_interrupt(function, name, when):
        def wrapped(*args, **options):
            calls.append(name)
            if calls.count(name) == when:
                raise KeyboardInterrupt
            return function(*args, **options)

        return wrapped

    on_record = seen.append
    with monkeypatch.context() as patch:
        if where == "measuring":
            patch.setattr(fit_module, "log_likelihood", then_interrupt(fit_module.log_likelihood, where, 2))
        elif where == "record":
            on_record = then_interrupt(seen.append, where, 2)
        else:
            keeper = sys.modules["lnz.learning._resume"].Keeper
            method = "save_best" if where == "best" else "save"
            patch.setattr(keeper, method, then_interrupt(getattr(keeper, method), where, 2 if where == "best" else 3))
        with pytest.raises(lnz.learning.Interrupted, match="interrupted at step 6"):
            fit(tmp_path / "run", on_record=on_record)
    resumed = fit(tmp_path / "run", on_record=seen.append)
    assert same(resumed.state, whole.state)
    assert same(resumed.best, whole.best)
    by_step = {}
    for record in plain(seen):
        assert by_step.setdefault(record[0], record) == record
    assert list(by_step.values()) == plain(whole.history)


def test_without_a_checkpoint_an_interrupt_says_so():
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(lnz.learning.Interrupted, match=r"at step 1: nothing was saved.*Pass checkpoint=…"):
        fit(None, on_progress=interrupt)


@pytest.mark.parametrize("fail", range(8))
def test_a_full_disk_at_any_write(tmp_path, whole, fail, monkeypatch):
    """The write says so; what was there before stays; with space again, the run resumes to the same end."""
    written = []

    class Full(io.BufferedRandom):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    real = files._create

    def create(path):
        written.append(path)
        return Full(io.FileIO(path, "x+")) if len(written) == fail + 1 else real(path)

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(files, "_create", create)
        with pytest.raises(files.WriteError, match="the disk is full"):
            fit(path)
    assert not list(tmp_path.glob(".*")), "half a file is left"
    assert path.exists() == (fail > 0)
    resumed = fit(path)
    assert same(resumed.state, whole.state)
    assert same(resumed.best, whole.best)


def test_an_error_of_the_callers_leaves_the_last_checkpoint(tmp_path, whole):
    def out(record):
        if record.step == 9:
            raise Power

    with pytest.raises(Power):
        fit(tmp_path / "run", on_record=out)
    assert load_arrays(tmp_path / "run")[1]["step"] == 6
    resumed = fit(tmp_path / "run")
    assert same(resumed.state, whole.state)
    assert plain(resumed.history) == plain(whole.history[2:])


def test_a_folder_that_is_not_there_is_seen_before_any_update(tmp_path):
    with pytest.raises(files.WriteError, match="folder does not exist"):
        fit(tmp_path / "no" / "run", on_progress=lambda *_: pytest.fail("updates were made"))


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(tmp_path, whole):
    done = fit(tmp_path / "run")
    again = fit(tmp_path / "run", on_progress=lambda *_: pytest.fail("updates were made"))
    assert same(again.state, done.state)
    assert same(again.best, done.best)
    assert again.history == []
    longer = fit(tmp_path / "run", epochs=5)
    straight = fit(None, epochs=5)
    assert same(longer.state, straight.state)
    assert longer.best_step == straight.best_step
    assert same(longer.best, straight.best)
    shorter = fit(tmp_path / "run", epochs=1)
    assert int(shorter.state.step) == 20


@pytest.mark.parametrize("name", ["potts rbm", "own class"])
def test_any_energy_resumes(tmp_path, name):
    energy, data = model(name)
    options = {"optimizer": ADAM, "batch_size": 10, "key": KEY, "checkpoint": tmp_path / "run"}
    lnz.fit(energy, data, epochs=1.5, **options)
    resumed = lnz.fit(energy, data, epochs=3, **options)
    straight = lnz.fit(energy, data, epochs=3, **options | {"checkpoint": None})
    assert same(resumed.state, straight.state)
    assert distance(resumed.energy, energy) > 0


@pytest.fixture(scope="module")
def run_of_one(tmp_path_factory):
    """The checkpoint of a run after one update."""
    path = tmp_path_factory.mktemp("one") / "run"
    fit(path, epochs=0.1)
    return path


AS_SPINS = {"data": 2.0 * bits((37, 5)) - 1, "validation": None}
SWEEPS = r"its negative phase is PersistentChains\(sweeps=1.*but this run's is PersistentChains\(sweeps=2"


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            (lambda: {"energy": lnz.RBM(visible=5, hidden=4, key=KEY)}, r"weights is float32\[5, 3\], but this run has float32\[5, 4\]"),
            (lambda: {"energy": lnz.Ising(np.zeros((5, 5))), **AS_SPINS}, r"it lacks \.energy\.couplings"),
            (lambda: {"energy": lnz.RBM(visible=lnz.Spin(5), hidden=3, key=KEY), **AS_SPINS}, r"another model: \.negative\.observed is bool"),
            (lambda: {"optimizer": optax.sgd(0.1)}, r"it holds \.optimizer\[0\]"),
            (lambda: {"optimizer": optax.sgd(0.1, momentum=0.9)}, r"another model or of other settings"),
            (lambda: {"negative_phase": lnz.learning.PersistentChains(sweeps=2)}, SWEEPS),
            (lambda: {"negative_phase": lnz.learning.PersistentChains(chains=3)}, r"\.negative\.observed is bool\[10, 5\]"),
            (lambda: {"batch_size": 12, "negative_phase": lnz.learning.PersistentChains(chains=10)}, "batch size is 10, but this run's is 12"),
            (lambda: {"data": bits((37, 5), 1)}, "its data is fingerprint"),
            (lambda: {"weights": np.arange(37) + 1}, "its data is fingerprint"),
            (lambda: {"key": jax.random.key(0)}, "its key is different"),
        ],
    )  # fmt: skip
    def test_other_settings(self, run_of_one, changes, words):
        before = run_of_one.read_bytes()
        with pytest.raises(CheckpointError, match=words) as caught:
            fit(run_of_one, **changes())
        assert "\n" not in str(caught.value)
        assert str(run_of_one) in str(caught.value)
        assert "Use the settings" in str(caught.value)
        assert run_of_one.read_bytes() == before

    def test_what_may_change(self, run_of_one):
        fit(run_of_one, epochs=0.1, evaluate_every=3, validation=None)
        start = lnz.RBM(visible=5, hidden=3, key=jax.random.key(77))  # the parameters come from the file
        assert same(fit(run_of_one, epochs=0.1, energy=start).energy, fit(run_of_one, epochs=0.1).energy)

    def test_a_state_and_a_checkpoint(self, run_of_one, tmp_path, whole):
        with pytest.raises(ValueError, match="a state was passed, but the checkpoint"):
            fit(run_of_one, state=whole.state)
        on = fit(tmp_path / "new", state=whole.state, epochs=4)
        assert same(on.state, fit(None, epochs=4).state)
        with pytest.raises(CheckpointError, match="its key is different"):
            fit(tmp_path / "new", epochs=4, key=jax.random.key(5))

    def test_other_files(self, tmp_path):
        path = tmp_path / "run"
        for content in (b"", b"lnz", b"PK\x03\x04" + bytes(100), b'{"step": 3}'):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match="cut short or not a checkpoint"):
                fit(path)
            assert path.read_bytes() == content
        lnz.save(path, model("rbm")[0])
        with pytest.raises(CheckpointError, match="another model or of other settings"):
            fit(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            fit(path)

    def test_a_tree_that_is_no_run(self, tmp_path, whole):
        save_tree(tmp_path / "run", whole.state, {"step": 3})
        with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
            fit(tmp_path / "run")

    def test_a_run_cut_short(self, run_of_one, tmp_path):
        whole = run_of_one.read_bytes()
        path = tmp_path / "run"
        for length in (1, 7, 8, 9, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match="cut short"):
                fit(path)


class TestBest:
    def test_an_old_best_model_of_another_run_is_not_taken_for_this_runs(self, tmp_path, whole):
        """Left behind under the same name, with a likelihood that nothing can beat."""
        strange = lnz.RBM(visible=5, hidden=3, key=jax.random.key(99))
        save_tree(best_path(tmp_path / "run"), strange, {"step": 7, "value": 0.0})
        with pytest.raises(lnz.learning.Interrupted):
            fit(tmp_path / "run", on_progress=self._interrupt)
        resumed = fit(tmp_path / "run")
        assert resumed.best_step == whole.best_step
        assert same(resumed.best, whole.best)
        assert same(load_tree(best_path(tmp_path / "run"), strange), whole.best)

    def test_a_best_model_that_is_gone_is_missed(self, tmp_path):
        fit(tmp_path / "run", epochs=1)
        best_path(tmp_path / "run").unlink()
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*run\.best"):
            fit(tmp_path / "run")

    @staticmethod
    def _interrupt(*_):
        raise KeyboardInterrupt


def test_nan_never_reaches_a_checkpoint(tmp_path):
    """The last good one stays, with finite arrays, however the run breaks."""

    def energy(theta, x):
        return jnp.where(theta > 0.25, jnp.nan, -theta) * jnp.sum(x)

    e = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.0)), lnz.Spin(2))
    for every in (1, 2, 3):
        path = tmp_path / f"run{every}"
        with pytest.raises(lnz.learning.Diverged):
            lnz.fit(
                e, np.ones((4, 2)), negative_phase=lnz.learning.ExactPhase(), optimizer=optax.sgd(0.1), epochs=9, evaluate_every=every,
                checkpoint=path, key=KEY,
            )  # fmt: skip
        assert all(np.isfinite(array).all() for array in load_arrays(path)[0].values())
        assert np.isfinite(arrays(load_tree(path, fit_like(e)))[0]).all()


def fit_like(energy):
    return lnz.Trainer(optax.sgd(0.1), lnz.learning.ExactPhase()).init(energy, KEY, batch_size=4)
