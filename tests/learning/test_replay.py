"""Energies given by networks: the replay buffer, tilted laws, regularisers, and colder Langevin moves."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import law, likelihood, model_mean

import lnz
from lnz.kernels._kernels import Gibbs
from lnz.kernels._local import GibbsWithGradients
from lnz.learning._gradients import mean_and_gradient

KEY = jax.random.key(8)
NORMAL = lnz.Gaussian(np.zeros(2), np.ones(2))


@dataclasses.dataclass(frozen=True)
class Add(lnz.kernels.Kernel):
    """A kernel without chance: every entry grows by 1."""

    def unsupported_reason(self, energy):
        return None

    def step(self, energy, key, v):
        return v + jnp.ones((), v.dtype), {}


def linear(slope, x):
    return -jnp.dot(slope, x)


def pulled(slope):
    """N(slope, I), as a tilted standard normal law."""
    return lnz.Tilted(jax.tree_util.Partial(linear, jnp.asarray(slope)), NORMAL)


def network(n, base, width=16):
    return lnz.Tilted(eqx.nn.MLP(n, "scalar", width, 1, activation=jax.nn.silu, key=KEY), base)


class TestReplayBuffer:
    def test_every_update_moves_one_place_a_row_and_puts_it_back(self):
        phase = lnz.learning.ReplayBuffer(size=30, sweeps=3, restart=1e-12, chains=7, kernel=Add())
        energy = pulled([0.0, 0.0])
        start = phase.init(energy, KEY, 5)
        assert start.shape == (7, 4, 2), "30 places for 7 chains are 4 each"
        states, weights, after, _ = phase.draw(energy, start, None, None, KEY)
        moved = np.asarray(after - start)
        assert (np.isclose(moved, 3).all(-1).sum(1) == 1).all()
        assert np.isclose(moved, 0).all(-1).sum() == 7 * 3
        assert weights is None
        np.testing.assert_array_equal(states, after[np.isclose(moved, 3).all(-1)])
        places = [np.argmax(moved[:, :, 0], 1)]
        for t in range(1, 4):
            _, _, later, _ = phase.draw(energy, after, None, None, jax.random.key(t))
            places.append(np.argmax(np.asarray(later - after)[:, :, 0], 1))
        assert len(np.unique(places)) > 1
        assert phase.positions(energy, after).shape == (28, 2)

    def test_a_share_starts_afresh(self):
        phase = lnz.learning.ReplayBuffer(size=20_000, restart=0.2, chains=10_000, sweeps=1, kernel=Add())
        states, _, after, _ = phase.draw(pulled([0.0, 0.0]), jnp.full((10_000, 2, 2), 1e3), None, None, KEY)
        fresh = np.asarray(states)[:, 0] < 500
        assert abs(fresh.mean() - 0.2) < 4.5 * math.sqrt(0.16 / 10_000)
        assert (np.asarray(after)[..., 0] < 500).sum() == fresh.sum()
        # Those are samples of the base, moved once.
        assert abs(np.asarray(states)[fresh].mean() - 1) < 4.5 / math.sqrt(2 * fresh.sum())

    def test_without_restarts_and_spare_places_they_are_persistent_chains(self):
        """Under frozen parameters the buffer goes to the law of the model."""
        energy = lnz.Ising([[0.0, 0.8, -0.3], [0.8, 0.0, 0.5], [-0.3, 0.5, 0.0]], [0.4, -0.6, 0.1])
        phase = lnz.learning.ReplayBuffer(size=6000, chains=3000, restart=1e-9, sweeps=4)
        assert isinstance(phase._kernel(energy), Gibbs)

        @jax.jit
        def draws(state):
            body = lambda state, key: (phase.draw(energy, state, None, None, key)[2], None)  # noqa: E731
            return jax.lax.scan(body, state, jax.random.split(KEY, 12))[0]

        states = np.asarray(phase.positions(energy, draws(phase.init(energy, KEY, 1))))
        exact = model_mean(energy)
        z = (states.mean(0) - exact) / np.sqrt((1 - exact**2) / len(states))
        assert np.abs(z).max() < 4.5

    def test_a_network_on_bits_is_learned_by_gibbs_with_gradients(self):
        p = np.array([0.3, 0.05, 0.05, 0.1, 0.1, 0.02, 0.08, 0.3])
        states = np.asarray(lnz.Binary(3).decode(jnp.arange(8)))
        data = states[np.random.default_rng(0).choice(8, 4000, p=p)]
        energy = network(3, lnz.Independent(np.zeros(3), lnz.Binary(3)))
        phase = lnz.learning.ReplayBuffer(size=1000, chains=200, sweeps=6)
        assert isinstance(phase._kernel(energy), GibbsWithGradients)
        fitted = lnz.fit(
            energy, data, negative_phase=phase, optimizer=optax.adam(optax.linear_schedule(0.02, 0, 200)), batch_size=200,
            epochs=10, evaluate_every=10, key=KEY,
        )  # fmt: skip
        counts = np.unique(data @ [4, 2, 1], return_counts=True)[1] / len(data)
        best = counts @ np.log(counts)
        assert likelihood(energy, data) < best - 0.2
        assert likelihood(fitted.energy, data) > best - 0.05
        assert {"acceptance", "energy_gap"} <= set(fitted.history[-1].figures)

    def test_real_states_take_unadjusted_moves_and_boxes_adjusted_ones(self):
        assert lnz.learning.ReplayBuffer()._kernel(pulled([0.0, 0.0])) == lnz.kernels.UnadjustedLangevin()
        box = lnz.Tilted(jax.tree_util.Partial(linear, jnp.ones(1)), lnz.Uniform(lnz.Box(0.0, 1.0, shape=(1,))))
        assert lnz.learning.ReplayBuffer()._kernel(box) == lnz.kernels.Langevin()

    def test_a_mean_is_learned_with_every_stabiliser(self):
        data = np.array([0.8, -0.5]) + np.random.default_rng(0).normal(size=(1000, 2))
        phase = lnz.learning.ReplayBuffer(size=2000, chains=500, sweeps=20, kernel=lnz.kernels.UnadjustedLangevin(0.1))
        regularisers = lnz.learning.Regularisers(energy_penalty=1e-4, data_noise=0.01, clip=5.0)
        fitted = lnz.fit(
            pulled([0.0, 0.0]), data, negative_phase=phase, regularisers=regularisers, optimizer=optax.sgd(0.2), batch_size=500,
            epochs=15, evaluate_every=15, key=KEY,
        )  # fmt: skip
        slope = jax.tree.leaves(fitted.energy)[0]
        # 5 % of the chains are 20 moves old (of 1/10 the relaxation time each), and the others at equilibrium: a bias of a percent.
        assert np.abs(slope - data.mean(0)).max() < 0.12

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: lnz.learning.ReplayBuffer(size=10, chains=20), "a buffer of 10 states is too small for 20"),
            (lambda: lnz.learning.ReplayBuffer(size=10).init(pulled([0.0, 0.0]), KEY, 20), "too small for 20"),
            (lambda: lnz.learning.ReplayBuffer(restart=0.0), "restart must be above 0"),
            (lambda: lnz.learning.ReplayBuffer(restart=1.5), "restart must be above 0 and at most 1"),
            (lambda: lnz.learning.ReplayBuffer(sweeps=0), "sweeps must be"),
            (lambda: lnz.learning.ReplayBuffer(chains=0), "chains must be"),
        ],
    )
    def test_bad_numbers_are_refused(self, make, reason):
        with pytest.raises(ValueError, match=reason):
            make()

    def test_kernels_that_do_not_fit_are_refused(self):
        phase = lnz.learning.ReplayBuffer(kernel=lnz.kernels.UnadjustedLangevin())
        energy = network(3, lnz.Independent(np.zeros(3), lnz.Binary(3)))
        with pytest.raises(ValueError, match="need a Real space or a Box"):
            lnz.Trainer(negative_phase=phase).init(energy, KEY, batch_size=2)


class TestTilted:
    def test_its_law(self):
        energy = pulled([0.7, -0.2])
        exact = math.log(2 * math.pi) + 0.5 * (0.49 + 0.04)
        assert float(lnz.log_partition(energy, route=lnz.routes.Quadrature(129)).value) == pytest.approx(
            exact, abs=1e-6
        )
        assert isinstance(energy.base(), lnz.Gaussian)
        assert len(jax.tree.leaves(energy)) == 1, "the base is a constant"
        bits = network(4, lnz.Independent([0.5, -1.0, 0.0, 2.0], lnz.Binary(4)))
        states, logits = law(bits)
        f = np.asarray(jax.vmap(bits.function)(jnp.asarray(states)))
        np.testing.assert_allclose(logits, states @ [0.5, -1.0, 0.0, 2.0] - f, atol=1e-5)

    def test_a_base_without_samples_is_refused(self):
        with pytest.raises(ValueError, match=r"offers neither.*inherit from lnz.capabilities.Normalised"):
            lnz.Tilted(linear, lnz.Ising(np.zeros((3, 3))))
        with pytest.raises(ValueError, match="must return one real number"):
            lnz.Tilted(lambda x: x, NORMAL)


class TestStabilisers:
    def step(self, regularisers, data=((1.0, 2.0), (0.5, -1.0))):
        trainer = lnz.Trainer(
            optax.sgd(1.0), lnz.learning.PersistentChains(chains=3, kernel=Add()), regularisers=regularisers
        )
        start = trainer.init(pulled([0.3, 0.1]), KEY, batch_size=2)
        return start, *trainer.step(start, np.array(data))

    def test_the_penalty_is_the_gradient_of_the_squares(self):
        alpha, data = 0.3, jnp.asarray([[1.0, 2.0], [0.5, -1.0]])
        start, state, figures = self.step(lnz.learning.Regularisers(energy_penalty=alpha))
        chains = start.negative + 1

        def loss(energy):
            e, f = jax.vmap(energy)(data), jax.vmap(energy)(chains)
            return jnp.mean(e) - jnp.mean(f) + alpha * (jnp.mean(e**2) + jnp.mean(f**2))

        slope = jax.tree.leaves(eqx.filter_grad(loss)(start.energy))[0]
        moved = jax.tree.leaves(state.energy)[0] - jax.tree.leaves(start.energy)[0]
        np.testing.assert_allclose(moved, -slope, rtol=1e-6)
        assert float(figures["energy"]) == pytest.approx(float(mean_and_gradient(start.energy, data, None)[0]))

    def test_the_gradient_is_shortened_where_it_is_too_long(self):
        start, state, figures = self.step(lnz.learning.Regularisers(clip=0.1))
        assert float(figures["gradient_norm"]) > 0.2
        moved = jax.tree.leaves(state.energy)[0] - jax.tree.leaves(start.energy)[0]
        assert float(jnp.linalg.norm(moved)) == pytest.approx(0.1, rel=1e-5)
        free, plain = (self.step(lnz.learning.Regularisers(clip=clip))[1] for clip in (1e6, math.inf))
        np.testing.assert_allclose(jax.tree.leaves(free.energy)[0], jax.tree.leaves(plain.energy)[0])

    def test_noise_on_the_data(self):
        """-E of the data under E = -½|x|² + …: the mean square grows by σ² an entry."""
        _, _, figures = self.step(lnz.learning.Regularisers(data_noise=0.5), data=np.zeros((20_000, 2)))
        assert float(figures["energy"]) == pytest.approx(0.25, rel=0.05)

    def test_they_are_off_by_default_and_show(self):
        assert repr(lnz.Trainer().regularisers) == "Regularisers(energy_penalty=0.0, data_noise=0.0, clip=inf)"
        assert "energy_penalty=0.1" in repr(lnz.Trainer(regularisers=lnz.learning.Regularisers(energy_penalty=0.1)))
        assert "temperature=0.25" in repr(
            lnz.learning.ReplayBuffer(kernel=lnz.kernels.UnadjustedLangevin(temperature=0.25))
        )

    def test_what_cannot_serve_is_refused(self):
        for options in ({"energy_penalty": -1.0}, {"data_noise": math.nan}, {"data_noise": math.inf}, {"clip": -1.0}):
            with pytest.raises(ValueError, match="must be a number of at least 0"):
                lnz.learning.Regularisers(**options)
        with pytest.raises(ValueError, match="clip = 0"):
            lnz.learning.Regularisers(clip=0.0)
        with pytest.raises(ValueError, match="needs a negative phase that draws states"):
            lnz.Trainer(
                negative_phase=lnz.learning.ExactPhase(), regularisers=lnz.learning.Regularisers(energy_penalty=0.1)
            )
        with pytest.raises(ValueError, match="needs a negative phase that draws states"):
            lnz.Trainer(
                objective=lnz.learning.ScoreMatching(), regularisers=lnz.learning.Regularisers(energy_penalty=0.1)
            )
        with pytest.raises(ValueError, match="data_noise needs a Real space"):
            lnz.Trainer(regularisers=lnz.learning.Regularisers(data_noise=0.1)).init(
                lnz.Ising(np.zeros((3, 3))), KEY, batch_size=2
            )
        with pytest.raises(TypeError, match="regularisers must be"):
            lnz.Trainer(regularisers=0.1)  # pyright: ignore[reportArgumentType]


def test_colder_langevin_moves():
    """The variance in the end is T / (λ (1 - ελ/2))."""
    energy, kernel = lnz.Gaussian([0.0], [2.0]), lnz.kernels.UnadjustedLangevin(step_size=0.3, temperature=0.25)
    run = jax.jit(lambda v: lnz.kernels.run_chains(energy, kernel, v, KEY, 30))
    v = np.asarray(run(jnp.zeros((20_000, 1))))
    assert v.var() == pytest.approx(0.25 / (2 * 0.7), rel=4.5 * math.sqrt(2 / 20_000))
    with pytest.raises(ValueError, match="temperature must be"):
        lnz.kernels.run_chains(energy, lnz.kernels.UnadjustedLangevin(temperature=0.0), jnp.zeros((1, 1)), KEY, 1)


def test_narrow_chains_in_a_wide_process():
    """Networks are float32 where JAX is set to float64: their chains move all the same, to the same law."""
    pull = jax.tree_util.Partial(lambda w, x: -jnp.dot(w, x.astype(w.dtype)), jnp.asarray([0.7], jnp.float32))
    energy = lnz.Tilted(pull, lnz.Gaussian(np.zeros(1, np.float32), np.ones(1, np.float32)))
    run = jax.jit(lambda v: lnz.kernels.run_chains(energy, lnz.kernels.Langevin(0.5), v, KEY, 20))
    v = run(jnp.zeros((10_000, 1), jnp.float32))
    assert v.dtype == jnp.float32
    assert float(v.mean()) == pytest.approx(0.7, abs=4.5 / 100)
    assert float(v.var()) == pytest.approx(1, abs=4.5 * math.sqrt(2) / 100)


def test_no_key_is_used_twice():
    """Which row restarts, from what, and which place is drawn: JAX's own checker follows the keys."""
    phase = lnz.learning.ReplayBuffer(size=30, restart=0.5, chains=5, sweeps=1, kernel=Add())
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: phase.draw(pulled([0.0, 0.0]), jnp.zeros((5, 6, 2)), None, None, key)[0])(jax.random.key(3))
