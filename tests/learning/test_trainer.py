"""One update at a time: the phases, the optimisers, the figures, and `fit` as the same thing in one call."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import bits, distance, law, likelihood, model, model_mean, same, spins, symmetric

import lnz
from lnz.learning._gradients import cast, mean_and_gradient, mean_free_energy
from lnz.learning._loop import orders

KEY = jax.random.key(11)
SGD = optax.sgd(0.1)
EXACT = lnz.learning.ExactPhase(lnz.routes.Enumeration())


def stepwise(trainer, energy, data, *, epochs, batch, weights=None):
    """What `fit` does, written with `init` and `step`: the final state, and every update's figures."""
    n = len(data)
    state, figures = trainer.init(energy, KEY, batch_size=batch), []
    for epoch in range(epochs):
        order = np.asarray(orders(state.key, epoch, 1, n, batch)).reshape(-1, batch)
        for i, rows in enumerate(order):
            present = i * batch + np.arange(batch) < n
            w, scale = (None if present.all() and weights is None else present.astype(np.float32)), None
            if weights is not None:
                w = np.where(present, (weights / weights.mean())[rows], 0)
                scale = w.sum() / present.sum()
            state, info = trainer.step(state, data[rows], w, scale=scale)
            figures.append(info)
    return state, figures


class TestStepAndFit:
    @pytest.mark.parametrize(
        ("name", "phase"),
        [
            ("rbm", lnz.learning.PersistentChains(sweeps=2, chains=7)),
            ("potts rbm", lnz.learning.ContrastiveDivergence(steps=2)),
            ("ising", EXACT),
        ],
    )
    def test_the_same_bit_for_bit(self, name, phase):
        energy, data = model(name)
        optimizer = optax.adam(0.01)
        trainer = lnz.Trainer(optimizer, phase)
        state, figures = stepwise(trainer, energy, data, epochs=2, batch=10)
        fitted = lnz.fit(energy, data, negative_phase=phase, optimizer=optimizer, epochs=2, batch_size=10, key=KEY)
        assert same(state, fitted.state)
        assert set(figures[0]) == set(trainer.figures(energy))
        for record, mine in zip(fitted.history, (figures[:4], figures[4:]), strict=True):
            means = {label: np.mean([float(info[label]) for info in mine]) for label in trainer.figures(energy)}
            assert record.figures == pytest.approx(means, rel=1e-5, abs=1e-5)

    def test_with_weights(self):
        energy, data = model("rbm")
        weights = np.random.default_rng(0).uniform(0.1, 3, len(data))
        trainer = lnz.Trainer(SGD, lnz.learning.ContrastiveDivergence())
        state, _ = stepwise(trainer, energy, data, epochs=2, batch=10, weights=weights)
        fitted = lnz.fit(
            energy, data, negative_phase=trainer.negative_phase, optimizer=SGD, epochs=2, batch_size=10,
            weights=weights, key=KEY,
        )  # fmt: skip
        # The mean weight of a batch is summed in NumPy here and by XLA there, so the last bit may differ.
        assert distance(state.energy, fitted.energy) < 1e-6

    def test_step_inside_a_loop_of_the_users_own(self):
        energy, data = model("rbm")
        trainer = lnz.Trainer(SGD, lnz.learning.PersistentChains(chains=4))
        start = trainer.init(energy, KEY, batch_size=10)
        scanned, _ = jax.lax.scan(lambda s, x: trainer.step(s, x), start, jnp.asarray(data[:30]).reshape(3, 10, 5))
        state = start
        for i in range(3):
            state, _ = trainer.step(state, data[10 * i : 10 * i + 10])
        assert distance(scanned.energy, state.energy) < 1e-6
        assert same(scanned.negative, state.negative)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.05),
        optax.sgd(0.05, momentum=0.9, nesterov=True),
        optax.adam(optax.cosine_decay_schedule(0.05, 50)),
        optax.adamw(0.05),
        optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(), optax.scale(-0.05)),
        optax.lion(0.02),
        optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.02),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "clip", "lion", "injected"],
)
def test_any_optimiser_climbs_the_exact_likelihood_and_keeps_dtypes(optimizer):
    truth = lnz.Ising(symmetric(4, seed=1), [0.8, -0.5, 0.3, 0.0])
    states, logits = law(truth)
    data = np.random.default_rng(0).choice(states, 200, p=np.exp(logits) / np.exp(logits).sum()).astype(np.int8)
    start = lnz.Ising(np.zeros((4, 4), np.float32), np.zeros(4, np.float32))
    fitted = lnz.fit(
        start, data, negative_phase=EXACT, optimizer=optimizer, epochs=20, batch_size=60, evaluate_every=20, key=KEY
    )
    assert likelihood(fitted.energy, data) > likelihood(start, data) + 0.3
    strength = np.asarray(fitted.energy.couplings.strength)
    assert strength.dtype == fitted.energy.fields.dtype == np.float32
    assert (strength == strength.T).all(), "the couplings lost their symmetry"
    assert (np.diag(strength) == 0).all(), "a site came to interact with itself"
    before = lnz.Trainer(optimizer, EXACT).init(start, KEY, batch_size=60).optimizer
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]  # noqa: E731
    assert dtypes(fitted.state.optimizer) == dtypes(before)


def test_noise_in_the_redundant_half_of_dense_couplings_does_not_reach_the_sampler():
    """An optimiser may break the symmetry of J; the Gibbs sweeps must keep to the law of the energy all the same."""
    good = lnz.Ising(symmetric(3, scale=0.8), [0.3, -0.2, 0.1])
    noise = 2 * np.asarray([[0.7, 1.0, -0.5], [-1.0, 0.4, 0.8], [0.5, -0.8, -0.9]])
    bent = eqx.tree_at(lambda e: e.couplings.strength, good, good.couplings.strength + noise)
    states = lnz.Spin(3).decode(jnp.arange(8))
    one, two = jax.vmap(good)(states), jax.vmap(bent)(states)
    np.testing.assert_allclose(one, two, atol=1e-14)
    v = lnz.kernels.run_chains(bent, lnz.kernels.Gibbs(), jnp.ones((20_000, 3)), KEY, 30)
    exact = model_mean(good)
    z = (v.mean(axis=0) - exact) / np.sqrt((1 - exact**2) / len(v))
    assert np.abs(z).max() < 5


class TestFigures:
    def test_what_they_are(self):
        energy, data = model("rbm")
        trainer = lnz.Trainer(SGD, lnz.learning.PersistentChains(chains=9))
        state = trainer.init(energy, KEY, batch_size=10)
        weights = np.linspace(0, 2, 10)
        new, info = trainer.step(state, data[:10], weights)
        free = np.asarray(jax.vmap(lnz.capabilities.free_energy_of(energy))(jnp.asarray(data[:10])), np.float64)
        of_chains = np.asarray(jax.vmap(lnz.capabilities.free_energy_of(energy))(new.negative.observed), np.float64)
        assert float(info["energy"]) == pytest.approx((weights * free).sum() / weights.sum(), rel=1e-6)
        assert float(info["energy_gap"]) == pytest.approx(float(info["energy"]) - of_chains.mean(), rel=1e-5)
        halves = lnz.learning.phases(energy, data[:10], new.negative.observed, weights=weights)
        norm = lambda tree: float(np.sqrt(sum((np.asarray(leaf) ** 2).sum() for leaf in jax.tree.leaves(tree))))  # noqa: E731
        assert float(info["gradient_norm"]) == pytest.approx(norm(halves.gradient), rel=1e-5)
        size = norm(halves.positive) + norm(halves.negative)
        assert float(info["disagreement"]) == pytest.approx(norm(halves.gradient) / size, rel=1e-5)
        step = jax.tree.map(lambda g: 0.1 * g, halves.gradient)
        moved = jax.tree.map(jnp.add, eqx.filter(energy, eqx.is_inexact_array), step)
        assert distance(moved, new.energy) < 1e-7

    def test_a_positive_phase_of_zero_is_no_trouble(self):
        def total(theta, x):
            return theta * jnp.sum(x)

        energy = lnz.FunctionEnergy(jax.tree_util.Partial(total, jnp.asarray(0.0)), lnz.Binary(2))
        data = np.zeros((4, 2), bool)
        fitted = lnz.fit(energy, data, negative_phase=EXACT, optimizer=optax.sgd(0.0), epochs=1, key=KEY)
        figures = fitted.history[-1].figures
        assert figures == {"energy": 0, "gradient_norm": 1, "disagreement": 1}  # E[-Σx] = -1 against 0


class TestPhases:
    @pytest.mark.parametrize("name", ["potts rbm", "gaussian rbm"])
    def test_the_exact_phase_is_the_gradient_of_the_likelihood(self, name):
        energy, data = model(name)
        energy = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), energy)
        data = np.asarray(data)[:9]
        trainer = lnz.Trainer(SGD, EXACT)
        state, _ = trainer.step(trainer.init(energy, KEY, batch_size=9), data)

        def likelihood(e):
            v = cast(e, data)
            return (
                -jnp.mean(jax.vmap(lnz.capabilities.free_energy_of(e))(v))
                - lnz.log_partition(e, route=lnz.routes.Enumeration()).value
            )

        direct = eqx.filter_jit(eqx.filter_grad(likelihood))(energy)
        moved = jax.tree.map(jnp.subtract, *(eqx.filter(e, eqx.is_inexact_array) for e in (state.energy, energy)))
        assert distance(moved, jax.tree.map(lambda g: 0.1 * g, direct)) < 1e-11

    @pytest.mark.parametrize("name", ["rbm", "partial"])
    def test_the_phases_cancel_where_the_model_is_the_data(self, name):
        """T5, with infinite data: every state, weighted by its probability."""
        energy, _ = model(name)
        energy = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), energy)
        space = lnz.capabilities.observed_space(energy)
        states = np.asarray(space.decode(jnp.arange(space.count)))
        p = np.exp(law(energy)[1])
        halves = lnz.learning.phases(energy, states, lnz.routes.Enumeration(), weights=p)
        assert distance(halves.positive, halves.negative) < 1e-12
        fitted = lnz.fit(
            energy, states, negative_phase=EXACT, optimizer=SGD, weights=p, epochs=30, batch_size=10**6,
            key=KEY,
        )  # fmt: skip
        assert distance(fitted.energy, energy) < 1e-11
        assert fitted.history[-1].figures["gradient_norm"] < 1e-12

    def test_zero_weight_leaves_a_state_out_even_where_its_energy_is_infinite(self):
        def energy(theta, x):
            return theta * jnp.sum(x) - jnp.log(1 - x[0])  # +inf, and an infinite slope, at x_0 = 1

        e = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.3)), lnz.Binary(2))
        data = jnp.asarray([[1.0, 0], [0, 1], [0, 0]])
        for first in (0, 1):
            rows, weights = jnp.roll(data, first, axis=0), jnp.roll(jnp.asarray([0.0, 1, 3]), first)
            mean, gradient = mean_and_gradient(e, rows, weights)
            assert float(mean) == pytest.approx(0.3 / 4)
            assert float(jax.tree.leaves(gradient)[0]) == pytest.approx(-1 / 4)
        assert float(mean_free_energy(e, data, None)) == np.inf

    def test_chains_and_routes_agree(self):
        energy, data = model("rbm")
        states, logits = law(energy)
        p = np.exp(logits - np.logaddexp.reduce(logits))
        samples = states[np.random.default_rng(0).choice(len(p), 100_000, p=p)]
        by_chains = lnz.learning.phases(energy, data, samples).negative
        exact = lnz.learning.phases(energy, data, lnz.routes.Enumeration()).negative
        assert distance(by_chains, exact) < 5 * 0.5 / np.sqrt(100_000) * 1.5

    @pytest.mark.parametrize(
        ("weights", "words"),
        [
            (np.ones(3), "one per example"),
            (np.zeros(4), "not all zero"),
            ([1, 1, -1, 1], "not negative"),
            ([1, 1, np.nan, 1], "finite"),
        ],
    )
    def test_bad_weights_are_refused(self, weights, words):
        energy, data = model("rbm")
        with pytest.raises(ValueError, match=words):
            lnz.learning.phases(energy, data[:4], lnz.routes.Enumeration(), weights=weights)
        trainer = lnz.Trainer(SGD)
        with pytest.raises(ValueError, match=words):
            trainer.step(trainer.init(energy, KEY, batch_size=4), data[:4], weights)
        with pytest.raises(ValueError, match=words):
            lnz.fit(energy, data[:4], weights=weights, key=KEY)

    def test_states_of_another_space_are_refused(self):
        energy, data = model("rbm")
        with pytest.raises(ValueError, match="expected 0 or 1"):
            lnz.learning.phases(energy, data * 2, lnz.routes.Enumeration())
        with pytest.raises(ValueError, match="expected 0 or 1"):
            lnz.learning.phases(energy, data, data * 2)
        with pytest.raises(ValueError, match="draws samples"):
            lnz.learning.phases(energy, data, lnz.routes.AnnealedImportanceSampling())
        trainer = lnz.Trainer(SGD)
        state = trainer.init(energy, KEY, batch_size=4)
        for wrong in (data[:4, :3], data[0], data[:0], spins((4, 6))):
            with pytest.raises(ValueError, match="at least one state of shape"):
                trainer.step(state, wrong)


class TestRefusals:
    def test_no_parameters(self):
        with pytest.raises(ValueError, match="no floating-point parameters"):
            lnz.Trainer().init(lnz.Uniform(lnz.Binary(3)), KEY, batch_size=2)

    def test_names_are_no_optimisers_and_no_phases(self):
        energy, data = model("rbm")
        with pytest.raises(TypeError, match=r"optax\.adam"):
            lnz.fit(energy, data, optimizer="adam", key=KEY)
        with pytest.raises(TypeError, match="PersistentChains"):
            lnz.fit(energy, data, negative_phase="cd", key=KEY)
        with pytest.raises(TypeError, match="PersistentChains"):
            lnz.fit(energy, data, negative_phase=lnz.learning.PersistentChains, key=KEY)
        with pytest.raises(TypeError, match="needs a `space`"):
            lnz.fit(lambda x: x.sum(), data, key=KEY)

    def test_a_line_search_is_refused_with_its_reason(self):
        energy, data = model("ising")
        with pytest.raises(TypeError, match="line searches"):
            lnz.fit(energy, data, optimizer=optax.lbfgs(), key=KEY)

    def test_phases_that_cannot_serve(self):
        energy, data = model("rbm")
        couplings = np.triu(np.random.default_rng(0).normal(size=(64, 64)), 1)
        big = lnz.Ising(couplings + couplings.T)
        with pytest.raises(ValueError, match=r"ExactPhase does not support Ising.*not exact"):
            lnz.fit(big, spins((4, 64)), negative_phase=lnz.learning.ExactPhase(), key=KEY)
        with pytest.raises(ValueError, match="ContrastiveDivergence does not support RBM: Langevin moves need"):
            lnz.fit(
                energy, data, negative_phase=lnz.learning.ContrastiveDivergence(kernel=lnz.kernels.Langevin()), key=KEY
            )
        pair = lnz.FunctionEnergy(
            jax.tree_util.Partial(lambda t, x: t * jnp.sum(x[0]) * jnp.sum(x[1]), jnp.ones(())),
            lnz.Product(lnz.Binary(2), lnz.Spin(1)),
        )
        with pytest.raises(ValueError, match="no kernel supports this energy"):
            lnz.fit(pair, (bits((4, 2)), spins((4, 1))), key=KEY)

    @pytest.mark.parametrize("n", [0, -1, 1.5, "2"])
    def test_counts(self, n):
        for make in (
            lambda: lnz.learning.PersistentChains(sweeps=n),
            lambda: lnz.learning.PersistentChains(chains=n),
            lambda: lnz.learning.ContrastiveDivergence(steps=n),
        ):
            with pytest.raises(ValueError, match="integer of at least 1"):
                make()
