"""A whole run: data of every kind, batches without bias, weights, records, and a clear end when something breaks."""

import dataclasses
import functools
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import arrays, bits, distance, likelihood, model, model_mean, pairs, same, spins

import lnz
from lnz._core.checkpoint import load_arrays
from lnz.learning._loop import Batches, no_sums, orders, padded, updates
from lnz.learning._run_check import plan_updates

KEY = jax.random.key(31)
fit_module = sys.modules[lnz.fit.__module__]
SGD = optax.sgd(0.1)
DECAYING = optax.sgd(optax.exponential_decay(0.6, 300, 0.03))
HUGE = optax.chain(optax.scale(1e20), optax.scale(-1e20))
EXACT = lnz.learning.ExactPhase(lnz.routes.Enumeration())


def ascent(energy, *batches):
    """Gradient ascent at rate 0.1 on the exact likelihood of an Ising model, in NumPy: one batch of (rows, weights, scale) after another."""
    j, h = (np.asarray(leaf) for leaf in jax.tree.leaves(energy))
    off = 1 - np.eye(len(h))
    states = np.asarray(list(itertools.product((-1.0, 1.0), repeat=len(h))))
    for rows, weights, scale in batches:
        p = np.exp(0.5 * np.einsum("si,ij,sj->s", states, j, states) + states @ h)
        p, w = p / p.sum(), np.ones(len(rows)) / len(rows) if weights is None else weights / weights.sum()
        rows = rows.astype(float)
        j = j + 0.1 * scale * 0.5 * off * (np.tensordot(w, pairs(rows), 1) - np.tensordot(p, pairs(states), 1))
        h = h + 0.1 * scale * (w @ rows - p @ states)
    return lnz.Ising(j, h)


class TestBatches:
    def test_a_short_last_batch_is_the_mean_over_its_own_rows(self):
        energy, data = model("ising")
        fitted = lnz.fit(energy, data[:11], negative_phase=EXACT, optimizer=SGD, batch_size=4, epochs=1, key=KEY)
        order = np.asarray(orders(fitted.state.key, 0, 1, 11, 4))
        assert sorted(order[:11]) == list(range(11))
        by_hand = ascent(energy, *((data[rows], None, 1.0) for rows in (order[:4], order[4:8], order[8:11])))
        assert distance(fitted.energy, by_hand) < 1e-14

    def test_a_short_last_batch_of_weighted_data(self):
        energy, data = model("ising")
        w = np.asarray([3.0, 1, 0.5, 2, 1])
        fitted = lnz.fit(
            energy, data[:5], negative_phase=EXACT, optimizer=SGD, batch_size=3, weights=w, epochs=1, key=KEY
        )
        order = np.asarray(orders(fitted.state.key, 0, 1, 5, 3))[:5]
        by_hand = ascent(energy, *((data[rows], w[rows], w[rows].mean() / w.mean()) for rows in (order[:3], order[3:])))
        assert distance(fitted.energy, by_hand) < 1e-14

    def test_the_first_of_several_bad_steps_is_told(self):
        energy, data = model("ising")
        data, w = data[:3], np.full(3, np.nan)
        trainer = lnz.Trainer(SGD, EXACT)
        state = trainer.init(energy, KEY, batch_size=2)
        order = jnp.asarray([0, 1, 2, 0], jnp.int32)
        batches = Batches(padded(data), padded(w), jnp.asarray(3, jnp.int32), order)
        assert int(updates(trainer, 2, state, no_sums(trainer.figures(energy)), batches, 0, 2)[2]) == 0

    @pytest.mark.parametrize("batch", [0, 1])
    def test_weighted_batches_have_no_bias(self, batch):
        """The mean over every order of the data is the gradient of all data, for the full and for the short batch."""
        energy, data = model("ising")
        data, w = data[:3], np.asarray([3.0, 1, 2])
        trainer = lnz.Trainer(SGD, EXACT)
        state = trainer.init(energy, KEY, batch_size=2)
        made = functools.partial(Batches, padded(data), padded(w / w.mean()), jnp.asarray(3, jnp.int32))
        ends = []
        for order in itertools.permutations(range(3)):
            batches = made(jnp.asarray([*order, 0], jnp.int32))
            end, _, bad = updates(trainer, 2, state, no_sums(trainer.figures(energy)), batches, batch, batch + 1)
            assert int(bad) == -1
            ends.append(arrays(end.energy))
        mean = [np.mean(leaves, axis=0) for leaves in zip(*ends, strict=True)]
        for got, wanted in zip(mean, arrays(ascent(energy, (data, w, 1.0))), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-14)

    def test_weights_are_replication(self):
        energy, data = model("ising")
        data, counts = data[:6], np.asarray([1, 0, 3, 2, 0, 1])
        options = {"negative_phase": EXACT, "optimizer": SGD, "epochs": 5, "batch_size": 100, "key": KEY}
        weighted = lnz.fit(energy, data, weights=counts, **options)
        replicated = lnz.fit(energy, np.repeat(data, counts, axis=0), **options)
        assert distance(weighted.energy, replicated.energy) < 1e-14
        assert weighted.history[-1].figures["energy"] == pytest.approx(
            replicated.history[-1].figures["energy"], rel=1e-6
        )
        huge = lnz.fit(energy, data, weights=counts * 1e300, **options)
        assert distance(huge.energy, weighted.energy) < 1e-14

    @pytest.mark.parametrize("name", ["rbm", "ising"])
    @pytest.mark.parametrize(
        "phase",
        [lnz.learning.PersistentChains(), lnz.learning.ContrastiveDivergence(), EXACT],
        ids=["sml", "cd", "exact"],
    )
    def test_the_model_mean_is_the_data_mean_where_a_batch_is_short(self, name, phase):
        """n = 1,001 in batches of 500: a last batch of one. scikit-learn's BernoulliRBM gets a mean of 0.0 here (PEERS)."""
        data = (np.arange(1001)[:, None] < 901).repeat(3, axis=1).astype(np.uint8)
        for column in range(3):
            np.random.default_rng(column).shuffle(data[:, column])
        space = lnz.Binary(3) if name == "rbm" else lnz.Spin(3)
        energy = lnz.RBM(visible=space, hidden=2, key=KEY) if name == "rbm" else lnz.Ising(np.zeros((3, 3)))
        states = data if name == "rbm" else 2 * data.astype(np.int8) - 1
        fitted = lnz.fit(
            energy, states, negative_phase=phase, optimizer=DECAYING, epochs=200, batch_size=500, evaluate_every=200, key=KEY
        )  # fmt: skip
        mean = model_mean(fitted.energy)
        mean = mean if name == "rbm" else (1 + mean) / 2
        np.testing.assert_allclose(mean, 901 / 1001, atol=0.03)

    def test_a_batch_beyond_the_data_is_all_of_them(self):
        energy, data = model("ising")
        options = {"negative_phase": EXACT, "optimizer": SGD, "epochs": 3, "key": KEY}
        one, two = (lnz.fit(energy, data, batch_size=size, **options) for size in (37, 5000))
        assert same(one.state, two.state)
        assert int(one.state.step) == 3
        assert lnz.fit(*model("rbm"), batch_size=5000, epochs=1, key=KEY).state.negative.observed.shape == (37, 5)


class TestData:
    def test_every_dtype_trains_alike(self):
        energy, data = model("rbm")
        kinds = (data, data.astype(bool), data.tolist())
        ends = [lnz.fit(energy, kind, optimizer=SGD, batch_size=10, epochs=1, key=KEY) for kind in kinds]
        assert all(same(end.state, ends[0].state) for end in ends[1:])

    def test_float64_mode_changes_nothing_but_dtypes(self):
        """float32 parameters draw the same bits and learn the same in both of JAX's modes."""
        energy, data = model("rbm")
        options = {"optimizer": SGD, "batch_size": 10, "epochs": 3, "key": KEY}
        wide = lnz.fit(energy, data, **options)
        jax.config.update("jax_enable_x64", False)
        try:
            narrow = lnz.fit(energy, data, **options)
        finally:
            jax.config.update("jax_enable_x64", True)
        assert [a.dtype for a in arrays(narrow.state)] == [a.dtype for a in arrays(wide.state)]
        assert distance(narrow.energy, wide.energy) < 1e-6
        assert same(narrow.state.negative, wide.state.negative)

    def test_whole_numbers_do_not_round_the_chains_of_a_continuous_model(self):
        energy, _ = model("gaussian rbm")
        data = np.random.default_rng(0).integers(-3, 4, (20, 2))
        ends = [
            lnz.fit(
                energy,
                d,
                negative_phase=lnz.learning.ContrastiveDivergence(),
                optimizer=SGD,
                batch_size=20,
                epochs=2,
                key=KEY,
            )
            for d in (data, data.astype(float))
        ]
        assert same(ends[0].state, ends[1].state)

    def test_small_integers_do_not_wrap_in_a_users_function(self):
        """0 - 1 is 255 in uint8: a function sees states in the dtype of its parameters."""

        def step(theta, x):
            return theta * jnp.sum(x[:-1] - x[1:])

        energy = lnz.FunctionEnergy(jax.tree_util.Partial(step, jnp.asarray(0.1)), lnz.Binary(2))
        data = np.asarray([[0, 1], [0, 1], [1, 0], [0, 0]], np.uint8)
        fitted = lnz.fit(energy, data, negative_phase=EXACT, optimizer=SGD, epochs=1, key=KEY)
        assert fitted.history[-1].figures["energy"] == pytest.approx(0.1 * -1 / 4)
        assert lnz.log_likelihood(energy, data).value == pytest.approx(0.1 / 4 - np.log(2 + 2 * np.cosh(0.1)))

    def test_the_data_are_kept_as_they_came(self, monkeypatch):
        """Bits are cast batch by batch: all of MNIST is 47 MB as uint8 and 376 MB as float64."""
        seen = []

        def spy(trainer, batch, state, sums, batches, *rest):
            seen.append(batches.data.dtype)
            return updates(trainer, batch, state, sums, batches, *rest)

        monkeypatch.setattr(fit_module, "updates", spy)
        energy, data = model("rbm")
        lnz.fit(energy, data, optimizer=SGD, batch_size=10, epochs=1, key=KEY)
        assert set(seen) == {np.dtype(np.uint8)}

    def test_a_constant_column_is_no_trouble(self):
        energy, data = model("rbm")
        data = data.copy()
        data[:, 0], data[:, 1] = 0, 1
        fitted = lnz.fit(energy, data, optimizer=SGD, batch_size=10, epochs=40, evaluate_every=20, key=KEY)
        assert all(np.isfinite(leaf).all() for leaf in arrays(fitted.state))
        assert fitted.energy.visible_bias[0] < -0.5 < 0.5 < fitted.energy.visible_bias[1]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"data": np.zeros((1, 5))}, "at least two examples, but got 1"),
            ({"data": np.zeros((0, 5))}, "at least two examples, but got 0"),
            ({"data": np.zeros((9, 4))}, r"states of shape \(n, 5\), but got \(9, 4\)"),
            ({"data": np.zeros(5)}, r"shape \(n, 5\)"),
            ({"data": np.full((9, 5), np.nan)}, "nan.* is not in Binary.*: expected 0 or 1"),
            ({"data": np.full((9, 5), 2)}, "2.* is not in Binary.*: expected 0 or 1"),
            ({"data": np.full((9, 5), "a")}, "dtype <U1"),
            ({"validation": np.zeros((3, 4))}, r"shape \(n, 5\)"),
            ({"validation": np.zeros((0, 5))}, "validation data have no rows"),
            ({"validation": np.full((3, 5), -1)}, "expected 0 or 1"),
            ({"validation": bits((3, 5)), "route": lnz.routes.ClosedForm()}, "no closed form"),
            ({"batch_size": 0}, "batch_size must be an integer"),
            ({"batch_size": 2.5}, "batch_size must be an integer"),
            ({"epochs": 0}, "above 0"),
            ({"epochs": np.inf}, "above 0"),
            ({"evaluate_every": -1}, "above 0"),
            ({"evaluate_every": np.nan}, "above 0"),
            ({"weights": np.eye(9)[0]}, "two examples of weight above 0, but got 1"),
        ],
    )
    def test_what_cannot_serve_is_refused_before_any_work(self, change, words, tmp_path):
        options = {"data": bits((9, 5)), "checkpoint": tmp_path / "run", "key": KEY} | change
        with pytest.raises(ValueError, match=words) as caught:
            lnz.fit(model("rbm")[0], **options)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["gaussian rbm", "potts", "real", "equinox", "nnx"])
    def test_every_energy_trains(self, name):
        energy, data = model(name)
        phase = lnz.learning.ContrastiveDivergence(kernel=lnz.kernels.Langevin(0.02)) if name == "real" else None
        options = {"negative_phase": phase, "optimizer": optax.adam(0.02), "batch_size": 10, "key": KEY}
        fitted = lnz.fit(energy, data, epochs=15, evaluate_every=15, **options)
        assert distance(fitted.energy, energy) > 0.01
        figures = fitted.history[-1].figures
        assert likelihood(fitted.energy, data) > likelihood(energy, data) + 0.01, figures


class TestRecords:
    @pytest.mark.parametrize(
        ("epochs", "every", "steps"),
        [
            (2, 1, [4, 8]),
            (2.5, 1, [4, 8, 10]),
            (3, 2, [8, 12]),
            (1, 5, [4]),
            (1, 0.5, [2, 4]),
            (1, 0.3, [1, 2, 3, 4]),
            (0.01, 1, [1]),
            (0.75, 1, [3]),
        ],
    )
    def test_when_they_are_made(self, epochs, every, steps):
        energy, data = model("rbm")
        seen, progress = [], []
        fitted = lnz.fit(
            energy, data, optimizer=SGD, batch_size=10, epochs=epochs, evaluate_every=every, key=KEY,
            on_record=seen.append, on_progress=lambda *counts: progress.append(counts),
        )  # fmt: skip
        assert [record.step for record in fitted.history] == steps
        assert [record.epoch for record in fitted.history] == [step / 4 for step in steps]
        assert seen == fitted.history
        assert int(fitted.state.step) == fitted.best_step == steps[-1]
        assert fitted.best is fitted.energy
        assert progress[-1] == (steps[-1], steps[-1])
        assert [a for a, _ in progress] == sorted({a for a, _ in progress})
        assert all(set(record.figures) == set(lnz.Trainer(SGD).figures(energy)) for record in seen)

    def test_a_fraction_that_binary_cannot_hold_is_not_rounded_up(self):
        assert plan_updates(30, 1, 0.1, 1).total == 3  # 0.1 * 30 is 3.0000000000000004

    @pytest.mark.wrong_types  # a stand-in
    def test_looking_changes_nothing_and_neither_does_the_clock(self, monkeypatch):
        energy, data = model("rbm")
        options = {"optimizer": SGD, "batch_size": 10, "epochs": 6, "validation": bits((4, 5)), "key": KEY}
        ends = {}
        for seconds in (0.5, 0, 1e9):  # chunks as the clock has it, of one update, and as long as can be
            monkeypatch.setattr(fit_module, "_CHUNK_SECONDS", seconds)
            ends[seconds] = lnz.fit(energy, data, evaluate_every=1.5, **options)
        plain = lambda end: [dataclasses.replace(r, seconds=0, validation=r.validation.value) for r in end.history]  # noqa: E731
        for seconds in (0, 1e9):
            assert same(ends[seconds].state, ends[0.5].state)
            assert same(ends[seconds].best, ends[0.5].best)
            assert plain(ends[seconds]) == plain(ends[0.5])
        assert len(ends[0].history) == 4
        rarely = lnz.fit(energy, data, evaluate_every=100, **options)
        assert same(rarely.state, ends[0].state)

    def test_validation_and_the_best_model(self):
        """The data and the validation data disagree, so the best model is an early one."""
        energy = lnz.Ising(np.zeros((2, 2)), [0.5, 0.5])
        data = np.ones((20, 2), np.int8)
        validation = spins((50, 2), seed=4) * np.asarray([1, -1], np.int8)
        validation[:40] = 1
        fitted = lnz.fit(
            energy,
            data,
            negative_phase=EXACT,
            optimizer=SGD,
            epochs=30,
            evaluate_every=1,
            validation=validation,
            key=KEY,
        )
        values = [record.validation.value for record in fitted.history]
        best = int(np.argmax(values))
        assert 0 < best < 29, "the turning point must lie inside the run"
        assert fitted.best_step == fitted.history[best].step
        assert likelihood(fitted.best, validation) == pytest.approx(values[best], abs=1e-12)
        assert distance(fitted.best, fitted.energy) > 0.1
        assert fitted.history[0].validation.guarantee == "exact"

    def test_validation_by_annealing_has_a_key_of_its_own_at_every_record(self):
        energy, data = model("rbm")
        route = lnz.routes.AnnealedImportanceSampling(temperatures=10, chains=16)
        fitted = lnz.fit(
            energy, data, optimizer=optax.sgd(0.0), batch_size=10, epochs=3, validation=data, route=route, key=KEY
        )
        values = [record.validation.value for record in fitted.history]
        assert fitted.history[0].validation.guarantee == "conditional"
        assert len(set(values)) == 3
        exact = likelihood(energy, data)
        assert all(abs(v.validation.value - exact) < 6 * v.validation.standard_error for v in fitted.history)

    def test_a_state_goes_on(self):
        energy, data = model("rbm")
        options = {"optimizer": optax.adam(0.01), "batch_size": 10, "key": KEY}
        whole = lnz.fit(energy, data, epochs=4, **options)
        half = lnz.fit(energy, data, epochs=1.5, **options)
        rest = lnz.fit(energy, data, epochs=4, state=half.state, **options)
        assert same(whole.state, rest.state)
        assert [record.step for record in rest.history] == [8, 12, 16]
        done = lnz.fit(energy, data, epochs=4, state=whole.state, **options)
        assert same(done.state, whole.state)
        assert done.history == []


class TestDivergence:
    def test_a_huge_learning_rate(self, tmp_path):
        path = tmp_path / "run"
        with pytest.raises(lnz.learning.Diverged) as caught:
            lnz.fit(
                *model("gaussian rbm"), optimizer=optax.sgd(1e3), epochs=50, batch_size=10, checkpoint=path, key=KEY
            )
        message = str(caught.value)
        assert re.search(
            r"became NaN or infinite at step \d+; the last good checkpoint is .*run, at step \d+\. Lower", message
        )
        assert "\n" not in message
        at, saved = map(int, re.findall(r"at step (\d+)", message))
        assert saved <= at
        kept, about = load_arrays(path)
        assert about["step"] == saved == int(kept[".step"])
        assert all(np.isfinite(leaf).all() for leaf in kept.values())

    def test_parameters_that_overflow_in_the_update_before_a_record(self, tmp_path):
        """The energies and the gradient are still finite there; the parameters must not reach the checkpoint."""
        energy = lnz.Ising(np.zeros((4, 4), np.float32))
        with pytest.raises(lnz.learning.Diverged, match=r"at step 0; the last good checkpoint is .*, at step 0\."):
            lnz.fit(
                energy, np.ones((20, 4)), optimizer=HUGE, epochs=3, checkpoint=tmp_path / "run",
                validation=np.ones((2, 4)), key=KEY,
            )  # fmt: skip
        assert not load_arrays(tmp_path / "run")[0][".energy.fields"].any()
        with pytest.raises(lnz.learning.Diverged, match="no checkpoint was kept"):
            lnz.fit(energy, np.ones((20, 4)), optimizer=HUGE, epochs=3, key=KEY)

    @pytest.mark.parametrize("what", ["nan", "inf"])
    def test_an_energy_that_breaks_at_a_parameter_value(self, what, tmp_path):
        def energy(theta, x):
            broken = jnp.where(theta > 0.62, jnp.asarray(float(what)), jnp.zeros(()))
            return -theta * jnp.sum(x) + broken * (1 if what == "nan" else jnp.where(x[0] == 1, 1.0, 0.0))

        e = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.0)), lnz.Spin(2))
        data, path = np.ones((20, 2)), tmp_path / "run"
        theta, first = 0.0, 0
        while theta <= 0.62:
            theta, first = theta + 0.1 * (2 - 2 * np.tanh(theta)), first + 1
        options = {"optimizer": SGD, "epochs": 20, "evaluate_every": 2, "checkpoint": path, "key": KEY}
        for _ in range(2):  # the second time from the checkpoint
            with pytest.raises(
                lnz.learning.Diverged,
                match=f"at step {first}; the last good checkpoint is .*, at step {first - first % 2}\\.",
            ):
                lnz.fit(e, data, negative_phase=EXACT, **options)
        assert load_arrays(path)[1]["step"] == first - first % 2

    def test_data_of_probability_zero(self):
        def energy(theta, x):
            return jnp.where(x[0] == x[1], -theta * x[0], jnp.inf)

        e = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.3)), lnz.Binary(2))
        with pytest.raises(lnz.learning.Diverged, match="infinite at step 0"):
            lnz.fit(e, np.asarray([[0, 1], [1, 1]]), negative_phase=EXACT, optimizer=SGD, epochs=1, key=KEY)
        fitted = lnz.fit(e, np.asarray([[0, 0], [1, 1]]), negative_phase=EXACT, optimizer=SGD, epochs=200, key=KEY)
        assert abs(float(jax.tree.leaves(fitted.energy)[0])) < 0.01  # both states alike: θ = 0

    def test_a_likelihood_that_cannot_be_measured_stops_the_run(self):
        def energy(theta, x):
            return theta * jnp.where(x[0] == 1, jnp.nan, x[1])

        e = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.3)), lnz.Binary(2))
        with pytest.raises(ValueError, match="NaN"):
            lnz.fit(
                e, np.zeros((4, 2)), negative_phase=lnz.learning.ContrastiveDivergence(kernel=_Still()), optimizer=SGD, epochs=1,
                validation=np.ones((2, 2)), key=KEY,
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Still(lnz.kernels.Kernel):
    def unsupported_reason(self, energy):
        return None

    def step(self, energy, key, v):
        return v, {}


def test_the_names_of_the_last_version_still_work():
    energy, data = model("rbm")
    seen = []
    options = {"epochs": 1, "key": KEY, "monitor": lnz.learning.Monitor(share=0.5)}
    with pytest.warns(DeprecationWarning, match="on_look= is now on_report="):
        fitted = lnz.fit(energy, data, on_look=seen.append, **options)
    with pytest.warns(DeprecationWarning, match=r"Fitted\.looks is now Fitted\.reports"):
        assert fitted.looks == fitted.reports == seen
