"""Negative phases: where the chains start, how far they go, and what is kept of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import bits, distance, model, model_mean, spins

import lnz

KEY = jax.random.key(21)
SGD = optax.sgd(0.1)


@dataclasses.dataclass(frozen=True)
class Shift(lnz.kernels.Kernel):
    """A kernel without chance: every category moves up by one, round and round."""

    by: int = 1

    def unsupported_reason(self, energy):
        return None

    def step(self, energy, key, v):
        k = lnz.capabilities.observed_space(energy).categories
        return ((v + jnp.asarray(self.by, v.dtype)) % jnp.asarray(k, v.dtype)).astype(v.dtype), {}


def potts_fields():
    return lnz.FunctionEnergy(
        jax.tree_util.Partial(lambda t, x: -jnp.sum(t[jnp.arange(2), x]), jnp.zeros((2, 3))), lnz.Categorical(2, k=3)
    )


class TestContrastiveDivergence:
    def test_chains_start_at_the_data_of_every_update(self):
        """Three steps of a kernel of period three end where they began: if that is the data, the phases cancel to the last bit."""
        data = np.random.default_rng(0).choice(3, (11, 2), p=[0.7, 0.2, 0.1]).astype(np.uint8)
        for weights in (None, np.linspace(0, 2, 11)):
            still = lnz.fit(
                potts_fields(), data, negative_phase=lnz.learning.ContrastiveDivergence(steps=3, kernel=Shift()),
                optimizer=SGD, batch_size=4, epochs=2, weights=weights, key=KEY,
            )  # fmt: skip
            assert distance(still.energy, potts_fields()) == 0
            assert still.history[-1].figures["energy_gap"] == 0

    @pytest.mark.parametrize("steps", [1, 2])
    def test_they_take_k_steps(self, steps):
        data = np.asarray([[0, 1], [0, 2], [0, 0]], np.int64)
        trainer = lnz.Trainer(SGD, lnz.learning.ContrastiveDivergence(steps=steps, kernel=Shift()))
        state, _ = trainer.step(trainer.init(potts_fields(), KEY, batch_size=3), data)
        counts = lambda x: np.stack([(x == k).mean(axis=0) for k in range(3)], axis=1)  # noqa: E731
        moved = np.asarray(jax.tree.leaves(state.energy)[0])
        np.testing.assert_allclose(moved, 0.1 * (counts(data) - counts((data + steps) % 3)), atol=1e-15)
        assert state.negative == ()

    def test_it_cannot_see_a_mode_far_from_the_data(self):
        """T11: a ferromagnet has two modes. With data in one, CD-1 sees nothing to change where the exact gradient is large."""
        ferromagnet = lnz.Ising(np.full((6, 6), 1.0) - np.eye(6))
        data = np.ones((400, 6))
        near = lnz.Trainer(SGD, lnz.learning.ContrastiveDivergence())
        _, info = near.step(near.init(ferromagnet, KEY, batch_size=400), data)
        exact = lnz.learning.phases(ferromagnet, data, lnz.routes.Enumeration()).gradient
        assert float(np.abs(exact.fields - 1).max()) < 1e-6
        assert float(info["gradient_norm"]) < 0.1
        assert abs(float(info["energy_gap"])) < 0.1


class TestPersistentChains:
    def test_they_go_on_where_the_last_update_left_them(self):
        phase = lnz.learning.PersistentChains(sweeps=2, chains=7, kernel=Shift())
        trainer, data = lnz.Trainer(SGD, phase), np.zeros((5, 2), int)
        start = trainer.init(potts_fields(), KEY, batch_size=5)
        assert start.negative.shape == (7, 2)
        assert start.negative.dtype == jnp.int32
        state = start
        for t in range(1, 4):
            state, _ = trainer.step(state, data[: 6 - t])
            assert jnp.array_equal(state.negative, (start.negative + 2 * t) % 3)
        fitted = lnz.fit(potts_fields(), data, negative_phase=phase, optimizer=SGD, batch_size=3, epochs=2, key=KEY)
        assert jnp.array_equal(fitted.state.negative, (start.negative + 2 * 4) % 3)
        on = lnz.fit(
            None, data, negative_phase=phase, optimizer=SGD, batch_size=3, epochs=3, state=fitted.state, key=KEY
        )
        assert jnp.array_equal(on.state.negative, (start.negative + 2 * 6) % 3)

    @pytest.mark.parametrize("name", ["rbm", "spin rbm", "potts rbm", "gaussian rbm", "lattice", "partial", "real"])
    def test_the_chains_of_any_energy_are_states_of_its_space(self, name):
        energy, data = model(name)
        chains = lnz.learning.PersistentChains().init(energy, KEY, 9)
        if name.endswith("rbm"):
            assert chains.hidden.shape == (9, energy.hidden_bias.size)
            chains = chains.observed
        assert chains.shape == (9, *data.shape[1:])
        lnz.capabilities.observed_space(energy).validate(chains, batch=True)
        assert chains.dtype in (jax.tree.leaves(energy)[0].dtype, jnp.int32, bool)

    def test_the_chains_of_a_product_space(self):
        class Pair(lnz.capabilities.Sweepable):
            theta: jax.Array

            @property
            def space(self):
                return lnz.Product(lnz.Binary(2), lnz.Spin(1))

            def __call__(self, x):
                return -self.theta * jnp.sum(x[0]) * jnp.sum(x[1])

            def gibbs(self, key, v):
                return v

        data = (bits((6, 2)), spins((6, 1)))
        fitted = lnz.fit(Pair(jnp.asarray(0.1)), data, optimizer=SGD, batch_size=4, epochs=1, key=KEY)
        assert [c.shape for c in fitted.state.negative] == [(4, 2), (4, 1)]
        exact = lnz.fit(
            Pair(jnp.asarray(0.1)), data, negative_phase=lnz.learning.ExactPhase(), optimizer=SGD, epochs=1, key=KEY
        )
        sums = data[0].sum(1).astype(float) * data[1][:, 0]
        # At θ = 0.1, E[-∂E] = E[n s] with n of Binomial(2, ½) and weight e^{θ n s}.
        n, s = np.meshgrid([0, 1, 2], [-1, 1])
        p = np.asarray([1, 2, 1])[None] * np.exp(0.1 * n * s)
        assert float(exact.energy.theta) == pytest.approx(0.1 + 0.1 * (sums.mean() - (p * n * s).sum() / p.sum()))

    def test_they_track_the_model_while_it_moves_slowly(self):
        """T12. The chains' means against the model's, after updates small against the mixing time."""
        energy = lnz.Ising(np.zeros((4, 4)))
        data = np.where(np.random.default_rng(0).random((500, 4)) < [0.9, 0.8, 0.3, 0.7], 1, -1)
        fitted = lnz.fit(
            energy, data, negative_phase=lnz.learning.PersistentChains(sweeps=2, chains=1000), optimizer=optax.sgd(0.02),
            epochs=60, batch_size=500, evaluate_every=60, key=KEY,
        )  # fmt: skip
        assert distance(fitted.energy, energy) > 0.2, "the model has not moved: this test shows nothing"
        chains = np.asarray(fitted.state.negative)
        exact = model_mean(fitted.energy)
        z = (chains.mean(axis=0) - exact) / np.sqrt((1 - exact**2) / len(chains))
        assert np.abs(z).max() < 5
        assert np.abs(exact).min() > 0.1, "and the model's means are not the starting law's"

    @pytest.mark.parametrize("sweeps", [1, 3])
    def test_both_layers_keep_the_joint_law(self, sweeps):
        """(v, h) drawn from p(v, h) stay so: the law of all 2^8 joint states, under a rate of zero; and so do the figures."""
        energy = lnz.RBM(visible=5, hidden=3, key=KEY, scale=1.0, dtype=np.float64)
        energy = eqx.tree_at(lambda e: e.hidden_bias, energy, np.asarray([1.0, -0.5, 0.3]))
        states = lnz.Binary(8).decode(jnp.arange(256))
        logits = -np.asarray(jax.vmap(lambda x: energy((x[:5], x[5:])))(states))
        p = np.exp(logits - logits.max())
        p /= p.sum()
        drawn = np.asarray(states)[np.random.default_rng(0).choice(256, 40_000, p=p)].astype(bool)
        chains = type(lnz.learning.PersistentChains().init(energy, KEY, 2))(
            jnp.asarray(drawn[:, :5]), jnp.asarray(drawn[:, 5:])
        )
        _, _, after, figures = lnz.learning.PersistentChains(sweeps=sweeps).draw(energy, chains, None, None, KEY)
        codes = np.concatenate([after.observed, after.hidden], axis=1) @ 2 ** np.arange(7, -1, -1)
        counts = np.bincount(codes, minlength=256)
        kept = p * len(drawn) > 5
        chi2 = ((counts - p * len(drawn)) ** 2 / (p * len(drawn)))[kept].sum()
        assert chi2 < kept.sum() + 5 * np.sqrt(2 * kept.sum())
        assert 0.05 < float(figures["flips"]) < 0.5
        unmoved = (np.asarray(after.observed) == drawn[:, :5]).all(axis=1).mean()
        assert unmoved < 0.5, "the chains do not move"

    def test_an_energy_without_a_kernel_is_refused(self):
        energy = lnz.FunctionEnergy(
            jax.tree_util.Partial(lambda t, x: t * jnp.sum(x[0]), jnp.ones(())), lnz.Product(lnz.Real(1), lnz.Binary(1))
        )
        with pytest.raises(ValueError, match="no kernel supports this energy"):
            lnz.fit(energy, (np.ones((3, 1)), np.ones((3, 1))), key=KEY)


def test_the_exact_phase_draws_nothing():
    energy, data = model("rbm")
    with pytest.raises(TypeError, match="draws no states"):
        lnz.learning.ExactPhase().draw(energy, (), data, None, KEY)
