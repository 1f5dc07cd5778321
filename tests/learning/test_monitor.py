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
from lnz.learning._mixing import autocorrelation_time, nearest_distances, split_r_hat
from lnz.learning._monitor import Watch

KEY = jax.random.key(5)
STILL = optax.sgd(0.0)
MONITOR = lnz.learning.Monitor(chains=256, temperatures=30)


class TestMixing:
    @pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
    def test_the_time_of_an_autoregression(self, rho):
        """τ = (1 + ρ) / (1 - ρ)."""
        rng, n = np.random.default_rng(0), 400
        steps = [0, 64, 128, 192, 224, 240, 248, 252, 254, 255, 256]
        x, kept = rng.normal(size=(n, 5)), []
        for t in range(257):
            if t in steps:
                kept.append(x)
            x = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
        tau, lower_limit = autocorrelation_time(steps, np.stack(kept))
        assert tau == pytest.approx((1 + rho) / (1 - rho), rel=0.25)
        assert lower_limit == (rho == 0.99)

    def test_chains_that_stay_apart_never_mix(self):
        apart = np.repeat(np.where(np.arange(50) % 2, 1.0, -1.0)[None, :, None], 9, axis=0)
        noise = 0.1 * np.random.default_rng(1).normal(size=apart.shape)
        tau, lower_limit = autocorrelation_time(range(9), apart + noise)
        assert lower_limit
        assert tau > 100
        assert split_r_hat((apart + noise)[:, :, 0]) > 5
        assert split_r_hat(noise[:, :, 0]) == pytest.approx(1, abs=0.1)
        assert split_r_hat(apart[:, :, 0]) == np.inf
        assert split_r_hat(np.zeros((4, 3))) == 1

    def test_distances(self):
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
