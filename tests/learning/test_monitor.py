"""Monitors: what they measure against known answers, and the alarms that must and must not go off. *Unseen* is in `test_two_modes.py`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import model, same

import lnz
from lnz.learning._monitor import ALARMS, Watch, alarms, nearest_distances

KEY = jax.random.key(5)
STILL = optax.sgd(0.0)
MONITOR = lnz.learning.Monitor(chains=256, temperatures=30)


def test_distances():
    data = np.asarray([[0, 0, 0], [1, 1, 1]])
    assert nearest_distances(np.asarray([[0, 1, 0], [1, 1, 1], [1, 1, 0]]), data).tolist() == [1, 0, 1]


def first_look(energy, data, phase, optimizer=STILL, monitor=MONITOR):
    """A run's first look, with one update made wherever the monitor wants to see the state."""
    trainer = lnz.Trainer(optimizer, phase)
    state = trainer.init(energy, KEY, batch_size=len(data))
    watch, step, look = Watch(monitor, trainer, energy, jnp.asarray(data), len(data), 0), 0, None
    while look is None:
        step = watch.next_stop(step)
        state, _ = trainer.step(state, data)
        look = watch.see(state, step)
    assert step == watch.every
    return look, state


HEALTHY = {
    "energy_data": 10.0, "energy_chains": 10.1, "energy_fresh": 10.0, "energy_error": 0.1, "log_z": -5.0, "log_z_error": 0.01, "effective": 100.0,
    "log_likelihood": -5.0, "best": -5.0, "unseen": 0.04, "unseen_error": 0.02, "r_hat": 1.04, "r_hat_threshold": 1.05, "tau": 20.0, "lag": 0.4,
    "unmet": 0.0, "acceptance": 0.6, "dead": 0.05, "gap": 20.0, "spread": 4.0, "entries": 16, "phase": "PersistentChains",
}  # fmt: skip
# Figures that differ from these and set off one alarm, and what its message says.
FIRING = {
    "runaway": (
        {"gap": 41.0},
        "lie 41 nats above the data, while states of a distribution over 16 entries differ by about 4",
    ),
    "lag": (
        {"lag": 0.6, "tau": 1234.0, "r_hat": 1.6},
        "about 1,234 updates to mix once, in which the model moves by 0.6 nats",
    ),
    "r_hat": ({"r_hat": 1.06}, "R̂ of their energy is 1.06, and they need about 20 updates"),
    "unseen": ({"unseen": 0.12}, "about 12% of the model's probability mass"),
    "deeper": ({"energy_chains": 11.5}, "1.5 nats lower than that of the states of PersistentChains"),
    "likelihood": ({"log_likelihood": -5.2}, "fallen to about -5.20 nats per example, from -5.00"),
    "unmet": ({"unmet": 0.0007}, "0.07% of the pairs"),
    "refused": ({"acceptance": 0.03}, "only 3.00% of the chains' moves"),
    "dead": ({"dead": 0.2}, "20% of the hidden units"),
}


class TestAlarmTable:
    def test_every_alarm_is_silent_for_healthy_figures_and_for_none(self):
        assert alarms(8, HEALTHY) == alarms(8, {}) == []

    @pytest.mark.parametrize("kind", ALARMS, ids=lambda kind: kind.name)
    def test_every_alarm_fires_alone(self, kind):
        figures, words = FIRING[kind.name]
        (alarm,) = alarms(8, HEALTHY | figures)
        assert alarm.name == kind.name
        assert words in alarm.seen
        assert str(alarm) == f"update 8: {alarm.seen}. {kind.remedy}"

    @pytest.mark.parametrize("name", sorted({n for figures, _ in FIRING.values() for n in figures} - {"tau"}))
    def test_a_figure_that_is_missing_sets_nothing_off(self, name):
        assert alarms(8, {key: value for key, value in HEALTHY.items() if key != name}) == []

    @pytest.mark.parametrize(("name", "uncertain"), [("unseen", 0.03), ("energy", 0.4), ("log_z", 0.05)])
    def test_what_is_within_the_error_sets_nothing_off(self, name, uncertain):
        figures = FIRING[{"energy": "deeper", "log_z": "likelihood"}.get(name, name)][0]
        assert alarms(8, HEALTHY | figures | {f"{name}_error": uncertain}) == []

    def test_slow_chains_lag_earlier(self):
        assert alarms(8, HEALTHY | {"lag": 0.6}) == []
        assert [alarm.name for alarm in alarms(8, HEALTHY | {"lag": 1.1})] == ["lag"]


class TestAlarms:
    def test_chains_slower_than_the_parameters(self):
        """The fields turn at once from one mode to the other; chains in the first stay there."""
        slow = lnz.Ising(0.8 * (np.ones((8, 8)) - np.eye(8)))
        data = -np.ones((20, 8))
        look, _ = first_look(slow, data, lnz.learning.PersistentChains(chains=100), optax.sgd(0.02))
        assert "lag" in [alarm.name for alarm in look.alarms]
        assert "the chains mix more slowly than the parameters move" in str(look.alarms[0])
        assert look.figures["lag"] > 1

    @pytest.mark.slow
    def test_dead_units(self):
        rbm, data = model("rbm")
        dead = eqx.tree_at(lambda e: e.hidden_bias, rbm, jnp.asarray([0.0, -30.0, 30.0], jnp.float32))
        look, _ = first_look(dead, data, lnz.learning.PersistentChains(chains=50))
        assert look.figures["dead"] == pytest.approx(2 / 3)
        assert [alarm.name for alarm in look.alarms] == ["dead"]


def test_a_monitor_changes_nothing_and_looks_are_repeatable(tmp_path):
    energy, data = model("rbm")
    options = {"optimizer": optax.sgd(0.02), "batch_size": 37, "key": KEY, "epochs": 2000, "evaluate_every": 2000}
    seen = []
    watched = lnz.fit(energy, data, **options, monitor=lnz.learning.Monitor(share=0.5), on_report=seen.append)
    assert same(watched.state, lnz.fit(energy, data, **options).state)
    assert watched.reports == seen
    assert len(seen) >= 1
    assert seen[0].step % 8 == 0
    assert {"r_hat", "tau", "lag", "log_z", "unseen", "dead"} <= set(seen[0].figures)
    assert all(np.isfinite(value) for value in seen[0].figures.values())


def test_a_dearer_model_is_looked_at_as_often_as_its_updates_allow():
    phase = lnz.learning.PersistentChains(chains=100)
    small, large = (lnz.RBM(visible=n, hidden=n, key=KEY) for n in (8, 512))
    assert MONITOR.every(small, phase, 100) > MONITOR.every(large, phase, 100)
    assert MONITOR.every(small, phase, 100) > 1.9 * dataclasses.replace(MONITOR, share=0.1).every(small, phase, 100)


def test_a_convolution_is_known_to_use_its_weights_many_times():
    """Nine weights on 28 x 28 entries, each used once an entry or once in all: updates of the former take longer, so looks may come sooner."""
    w, space, phase = jnp.ones((3, 3)), lnz.Real((28, 28)), lnz.learning.PersistentChains(20, chains=100)

    def once(w, x):
        return 0.5 * jnp.sum(x**2) + jnp.sum(w)

    def everywhere(w, x):
        return 0.5 * jnp.sum(x**2) + jnp.sum(jax.nn.softplus(jax.scipy.signal.convolve2d(x, w)))

    plain, conv = (lnz.FunctionEnergy(jax.tree_util.Partial(f, w), space) for f in (once, everywhere))
    assert MONITOR.every(conv, phase, 100) < 0.9 * MONITOR.every(plain, phase, 100)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"share": 0.0}, "share must be above 0 and at most 0.5"), ({"chains": 2}, "at least 8 chains")],
)
def test_monitors_that_cannot_serve(options, words):
    with pytest.raises(ValueError, match=words):
        lnz.learning.Monitor(**options)


class TestGradientError:
    RBM = lnz.RBM.from_parameters(1.5 * np.random.default_rng(4).normal(size=(4, 3)), np.ones(4), np.zeros(3))
    DATA = np.asarray([[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1]])

    def test_cd_keeps_its_bias_and_chains_lose_theirs(self, tmp_path):
        cd, chains = (
            lnz.learning.gradient_error(self.RBM, self.DATA, phase, draws=12, repeats=200, key=KEY)
            for phase in (lnz.learning.ContrastiveDivergence(), lnz.learning.PersistentChains(chains=30))
        )
        exact = lnz.learning.phases(self.RBM, self.DATA, lnz.routes.Enumeration()).gradient
        np.testing.assert_allclose(cd.exact, np.concatenate([np.ravel(g) for g in jax.tree.leaves(exact)]), rtol=1e-9)
        assert cd.bias[-1] > 0.2 * np.linalg.norm(cd.exact)
        assert cd.bias[-1] == pytest.approx(cd.bias[0], rel=0.3)
        assert chains.bias[0] > 3 * chains.bias[-1]
        assert chains.cosine[-1] > 0.99
        assert chains.variance[-1] < cd.variance[-1] + 1
        assert "ContrastiveDivergence after 12 draws: bias" in str(cd)
        cd.plot(tmp_path / "error.png")
        assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("phase", "options", "words"),
        [
            (lnz.learning.ExactPhase(), {}, "the exact negative phase has no error"),
            (lnz.learning.PersistentChains(), {"repeats": 1}, "at least 2 repeats"),
            (lnz.learning.PersistentChains(), {"draws": 0}, "draws must be"),
            (lnz.learning.PersistentChains(kernel=lnz.kernels.Langevin()), {}, "Langevin moves need a Real space"),
        ],
    )
    def test_what_cannot_serve(self, phase, options, words):
        with pytest.raises(ValueError, match=words):
            lnz.learning.gradient_error(self.RBM, self.DATA, phase, key=KEY, **options)


@pytest.mark.parametrize(("lag", "tau", "raised"), [(1.1, 5, True), (0.9, 5, False), (0.6, 60, True), (0.4, 60, False)])
@pytest.mark.wrong_types
def test_half_a_nat_of_lag_is_too_much_where_chains_mix_slowly(lag, tau, raised):
    condition = next(alarm.when for alarm in ALARMS if alarm.name == "lag")
    assert condition({"lag": lag, "tau": tau}) == raised


def test_the_bias_of_a_phase_is_corrected_for_the_noise_of_its_mean():
    """Means that differ from the exact gradient by noise alone have no bias, and those that differ by more have what is left."""
    rng = np.random.default_rng(0)
    exact, repeats, draws = np.zeros(400), 16, 5
    mean = rng.normal(size=(draws, 400)) / 4  # the variance of one draw is 400, that of the mean of 16 is 25
    variance = np.full(draws, 400.0)
    noise = lnz.learning.GradientError(exact, mean, variance, repeats, "phase").bias
    assert (noise < 2.5).all()
    shifted = lnz.learning.GradientError(exact, mean + 0.5, variance, repeats, "phase").bias
    np.testing.assert_allclose(shifted, 10, rtol=0.15)
