"""Deep Boltzmann machines: limits of log p(v), both phases and learning, against sums over every state in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import lnz
from lnz._core.checkpoint import CheckpointError
from lnz.learning._negative import NEGATIVE_PHASES
from lnz.learning._pretraining import TwinLayers

KEY = jax.random.key(31)
SIZES = (4, 3, 2, 3)


def machine(sizes=SIZES, scale=1.2, seed=5):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=pair) * scale for pair in itertools.pairwise(sizes)]
    return lnz.DeepBoltzmannMachine.from_parameters(weights, [rng.normal(size=n) for n in sizes])


def listed(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)))


@functools.cache
def all_layers(sizes):
    """Every state of all layers, the visible units slowest: one array a layer."""
    states = listed(sum(sizes))
    return np.split(states, np.cumsum(sizes)[:-1], axis=1)


def log_weights(energy):
    """-E of every state, in NumPy: (visible states, hidden states)."""
    x = all_layers(energy.sizes)
    total = sum(part @ np.asarray(b) for part, b in zip(x, energy.layer_biases, strict=True))
    total = total + sum(
        np.sum((a @ np.asarray(w)) * b, axis=1) for w, (a, b) in zip(energy.weights, itertools.pairwise(x), strict=True)
    )
    return total.reshape(2 ** energy.sizes[0], -1)


def log_p(energy):
    """log p(v) of every visible state."""
    logits = np.logaddexp.reduce(log_weights(energy), axis=1)
    return logits - np.logaddexp.reduce(logits)


def numbers(v):
    return (np.asarray(v) @ 2 ** np.arange(v.shape[1])[::-1]).astype(int)


def rows(n=23, seed=0):
    return (np.random.default_rng(seed).random((n, SIZES[0])) < [0.8, 0.3, 0.6, 0.1]).astype(np.float64)


def gradient(energy, data):
    """∇ mean log p(data): expectations of x_l x_{l+1}ᵀ and x_l, under the data's posterior less under the model, flat."""
    w, x = log_weights(energy), all_layers(energy.sizes)
    posterior = np.exp(w - np.logaddexp.reduce(w, axis=1)[:, None])
    chosen = np.bincount(numbers(data), minlength=len(w)) / len(data)
    model = np.exp(w - np.logaddexp.reduce(w.ravel()))
    p = (chosen[:, None] * posterior - model).ravel()
    pairs = [np.einsum("s,si,sj->ij", p, a, b) for a, b in itertools.pairwise(x)]
    return np.concatenate([leaf.ravel() for leaf in (*pairs, *(p @ part for part in x))])


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@functools.cache
def limits(energy=None, iterations=(0, 1, 2, 3, 5, 8, 500)):
    energy = machine() if energy is None else energy
    v = jnp.asarray(listed(SIZES[0]))
    many = lambda n: jax.vmap(lambda row: energy.data_energy(row, iterations=n, tolerance=0.0))(v)  # noqa: E731
    return np.asarray(jax.jit(lambda: jax.lax.map(many, jnp.asarray(iterations, jnp.int32)))())


class TestTheMachine:
    def test_one_hidden_layer_is_the_rbm(self):
        rbm = lnz.RBM.from_data(rows(), 3, key=KEY, scale=0.7)
        deep = lnz.DeepBoltzmannMachine.from_data(rows(), 3, key=KEY, scale=0.7)
        np.testing.assert_array_equal(flat(rbm), flat(deep))
        v = jnp.asarray(rows(), jnp.float32)
        assert deep.observed == deep.data_space == rbm.observed
        both = [
            jax.jit(lambda e: (e.gibbs(KEY, v), jax.vmap(lnz.capabilities.data_energy_of(e))(v), e.hidden_mean(v)))(e)
            for e in (rbm, deep)
        ]
        for one, other in zip(*both, strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(deep.mean_field(v[0])[0], rbm.hidden_mean(v)[0], rtol=1e-6)
        assert float(lnz.log_partition(deep).value) == float(lnz.log_partition(rbm).value)
        assert not lnz.log_likelihood(deep, rows()).is_bound
        given, x = deep.given(v[0]), jnp.asarray([1.0, 0, 1])
        assert float(given(x)) == pytest.approx(float(deep((v[0], x)) + deep.layer_biases[0] @ v[0]), abs=1e-5)

    def test_layers_part_and_join(self):
        energy = machine((2, 3, 1, 2, 2))
        layers = [jnp.arange(n, dtype=jnp.float64) for n in energy.sizes]
        even, odd = energy.join(*layers)
        assert even.shape == energy.observed.shape == (5,)
        assert [x.tolist() for x in energy.split(even, odd)] == [x.tolist() for x in layers]
        np.testing.assert_array_equal(energy.visible_part(even), layers[0])

    def test_factors_and_the_smaller_side_have_the_same_sum(self):
        energy = machine((2, 3, 1, 2, 2))
        exact = np.logaddexp.reduce(log_weights(energy).ravel())
        found = lnz.log_partition(energy, route=lnz.routes.Enumeration())
        assert found.value == pytest.approx(exact, abs=1e-10)
        assert found.route == "enumeration of 32 states of Binary(5)"
        assert lnz.log_partition(energy, route=lnz.routes.Elimination()).value == pytest.approx(exact, abs=1e-10)
        assert lnz.routes.Enumeration().cost(machine((5, 3, 6))) == 8

    def test_annealing_from_the_data_covers_the_sum(self):
        energy, data = machine(scale=2.0), rows()
        exact = np.logaddexp.reduce(log_weights(energy).ravel())
        base = lnz.routes.fitted_base(energy, data)
        assert lnz.capabilities.observed_space(base) == energy.observed
        np.testing.assert_allclose(jax.nn.sigmoid(base.potentials[:4]), (data.sum(0) + 1) / 25)
        route = lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=60, chains=400, confidence=0.9999)
        found = lnz.log_partition(energy, route=route, key=KEY)
        assert found.lower < exact < found.upper
        assert found.upper - found.lower < 0.5


class TestADatum:
    def test_mean_field_is_a_limit_that_every_step_raises(self):
        exact = -np.logaddexp.reduce(log_weights(machine()), axis=1)
        found = limits()
        assert (found >= exact - 1e-12).all()
        assert (np.diff(found, axis=0) <= 1e-12).all()
        assert (found[0] - found[-1] > 1e-3).any()
        assert (found[-1] - exact > 1e-3).any(), "a limit, not the sum"

    def test_its_means_stand_still_and_give_the_limit(self):
        energy, v = machine(), jnp.asarray(rows()[0])
        law = energy.mean_field(v, iterations=1000, tolerance=1e-14)
        mu = [np.asarray(v), *map(np.asarray, law)]
        w, b = [np.asarray(x) for x in energy.weights], [np.asarray(x) for x in energy.layer_biases]
        pull = [b[i] + (mu[i - 1] @ w[i - 1]) + (w[i] @ mu[i + 1] if i < 3 else 0) for i in (1, 2, 3)]
        for means, inputs in zip(mu[1:], pull, strict=True):
            np.testing.assert_allclose(means, 1 / (1 + np.exp(-inputs)), atol=1e-12)
        entropy = -sum(np.sum(m * np.log(m) + (1 - m) * np.log1p(-m)) for m in mu[1:])
        energy_mean = -sum(m @ bias for m, bias in zip(mu, b, strict=True)) - sum(
            mu[i] @ w[i] @ mu[i + 1] for i in range(3)
        )
        found = energy.data_energy(v, iterations=1000, tolerance=1e-14)
        assert float(found) == pytest.approx(energy_mean - entropy, abs=1e-12)

    def test_without_weights_between_hidden_layers_it_is_exact(self):
        energy = machine((4, 3, 2))
        energy = lnz.DeepBoltzmannMachine.from_parameters(
            [energy.weights[0], 0 * energy.weights[1]], energy.layer_biases
        )
        found = jax.jit(jax.vmap(energy.data_energy))(jnp.asarray(listed(4)))
        np.testing.assert_allclose(found, -np.logaddexp.reduce(log_weights(energy), axis=1), atol=1e-10)

    def test_clamped_sweeps_keep_and_reach_the_posterior(self):
        energy, v = machine((2, 2, 2, 2), scale=1.5), jnp.asarray([1.0, 0.0])
        weights = log_weights(energy)[2].reshape(4, 4, 4)  # of x_1, x_2, x_3
        law = np.exp(np.logaddexp.reduce(np.logaddexp.reduce(weights, axis=2), axis=0))
        law /= law.sum()
        rng, n = np.random.default_rng(1), 8192
        start = np.concatenate([np.tile(v, (n, 1)), listed(2)[rng.choice(4, n, p=law)]], axis=1)
        far = np.tile([1.0, 0, 1, 1], (n, 1))

        @jax.jit
        def run(start, far):
            keys = jax.random.split(KEY, 30)
            moved = jax.lax.scan(lambda x, key: (energy.gibbs_given(key, x), None), far, keys)[0]
            return energy.gibbs_given(KEY, start), moved

        for x in run(jnp.asarray(start), jnp.asarray(far)):
            assert (np.asarray(x)[:, :2] == [1, 0]).all()
            counts = np.bincount(numbers(np.asarray(x)[:, 2:]), minlength=4)
            assert stats.chisquare(counts, law * n).pvalue > 1e-6

    def test_the_likelihood_says_what_it_is(self):
        energy, data = machine(), rows()
        exact = log_p(energy)[numbers(data)].mean()
        limit = lnz.log_likelihood(energy, data)
        assert limit.is_bound
        assert limit.upper == np.inf
        assert exact - 0.5 < limit.value < exact - 1e-3
        assert limit.value == pytest.approx(-limits()[-1][numbers(data)].mean() - float(limit.log_z.value), abs=1e-4)
        assert str(limit).startswith("log-likelihood at least -")
        summed = lnz.log_likelihood(energy, data, hidden=lnz.routes.Enumeration())
        assert summed.value == pytest.approx(exact, abs=1e-10)
        assert not summed.is_bound
        annealing = lnz.routes.AnnealedImportanceSampling(temperatures=30, chains=50)
        annealed = lnz.log_likelihood(energy, data, hidden=annealing, key=KEY, log_z=limit.log_z)
        assert annealed.is_bound
        with pytest.warns(DeprecationWarning, match="is_limit is now LogLikelihood.is_bound"):
            assert annealed.is_limit
        assert limit.value < annealed.value < exact + 0.05
        with pytest.raises(ValueError, match="pass key"):
            lnz.log_likelihood(energy, data, hidden=annealing)
        with pytest.raises(ValueError, match="have a closed sum: leave out hidden"):
            lnz.log_likelihood(machine((4, 3)), data, hidden=lnz.routes.Enumeration())

    def test_a_comparison_claims_no_more_than_a_limit_allows(self):
        deep, rbm = machine(), lnz.RBM(4, 2, key=KEY, dtype=np.float64)
        found, turned = lnz.learning.compare(deep, rbm, rows()), lnz.learning.compare(rbm, deep, rows())
        assert found.upper == np.inf
        assert turned.lower == -np.inf
        assert found.lower == pytest.approx(-turned.upper)
        assert np.isfinite(found.lower)


QUICK = ("persistent",)  # the others differ in where their chains go, not in what they need of an energy


class TestLearning:
    def test_both_phases_exactly_are_the_gradient_of_the_likelihood(self):
        energy, data = machine(), rows()
        trainer = lnz.Trainer(optax.sgd(1.0), lnz.learning.ExactPhase(), lnz.learning.ExactPosterior())
        state, info = trainer.step(trainer.init(energy, KEY, batch_size=23), data)
        np.testing.assert_allclose(flat(state.energy) - flat(energy), gradient(energy, data), atol=1e-10)
        assert float(info["energy"]) == pytest.approx(
            -np.logaddexp.reduce(log_weights(energy), axis=1)[numbers(data)].mean()
        )

    def test_clamped_chains_come_near_it_and_mean_field_climbs_its_limit(self):
        energy, data, few = machine(), np.repeat(rows(), 400, axis=0), rows()
        wanted = gradient(energy, few)
        negative = lnz.learning.ExactPhase()
        chains = lnz.Trainer(optax.sgd(1.0), negative, lnz.learning.ClampedChains(sweeps=20))
        state, info = chains.step(chains.init(energy, KEY, batch_size=10), data)
        np.testing.assert_allclose(flat(state.energy) - flat(energy), wanted, atol=0.03)
        field = lnz.Trainer(optax.sgd(1.0), negative, lnz.learning.MeanFieldPhase(iterations=1000, tolerance=1e-13))
        state, limit = field.step(field.init(energy, KEY, batch_size=10), few)
        assert float(info["energy"]) == pytest.approx(float(limit["energy"]), abs=0.01)
        found = flat(state.energy) - flat(energy)
        assert np.abs(found - wanted).max() > 0.01, "its bias"
        step = 1e-5 * np.random.default_rng(3).normal(size=found.shape)
        at = lambda moved: float(lnz.log_likelihood(moved, few).value)  # noqa: E731
        unravel = jax.flatten_util.ravel_pytree(energy)[1]
        slope = (at(unravel(jnp.asarray(flat(energy) + step))) - at(unravel(jnp.asarray(flat(energy) - step)))) / 2
        assert slope == pytest.approx(found @ step, rel=1e-2)
        halves = lnz.learning.phases(energy, few, lnz.routes.Enumeration())
        np.testing.assert_allclose(flat(halves.gradient), found, atol=1e-3)

    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NEGATIVE_PHASES]
    )
    def test_every_negative_phase_raises_the_likelihood(self, name):
        start, data = (
            lnz.DeepBoltzmannMachine.from_data(PATTERNS, (4, 3), key=KEY, scale=0.3, dtype=np.float64),
            PATTERNS,
        )
        # From the first state on, single corrections are so large at this learning rate that they undo 200 epochs.
        options = {"exact": {}, "cd": {}, "coupled": {"burn_in": 10}}.get(name, {"chains": 100})
        phase = NEGATIVE_PHASES[name](**options)
        fitted = lnz.fit(
            start, np.repeat(data, 20, axis=0), negative_phase=phase, optimizer=optax.sgd(0.3), epochs=300, batch_size=40,
            evaluate_every=300, key=KEY,
        )  # fmt: skip
        before, after = (log_p(e)[numbers(data)].mean() for e in (start, fitted.energy))
        assert after > before + 0.5, (before, after)
        assert "energy_gap" not in fitted.history[-1].figures

    def test_fit_measures_the_limit_and_goes_on_from_a_file(self, tmp_path):
        start = lnz.DeepBoltzmannMachine.from_data(PATTERNS, (4, 3), key=KEY, scale=0.3)
        options = {
            "positive_phase": lnz.learning.ClampedChains(sweeps=1),
            "batch_size": 1,
            "key": KEY,
            "checkpoint": tmp_path / "run",
        }
        for epochs in (2, 4):
            fitted = lnz.fit(start, PATTERNS, epochs=epochs, evaluate_every=4, validation=PATTERNS, **options)
        assert fitted.history[-1].validation.is_bound
        one = lnz.fit(start, PATTERNS, epochs=4, evaluate_every=4, **(options | {"checkpoint": None}))
        np.testing.assert_array_equal(flat(fitted.energy), flat(one.energy))
        with pytest.raises(CheckpointError, match="its positive phase is ClampedChains"):
            lnz.fit(start, PATTERNS, epochs=4, **(options | {"positive_phase": lnz.learning.MeanFieldPhase()}))

    @pytest.mark.slow
    def test_the_monitor_looks_at_what_data_show(self):
        start = lnz.DeepBoltzmannMachine.from_data(PATTERNS, (4, 3), key=KEY, scale=0.3)
        monitor = lnz.learning.Monitor(share=0.5, chains=64, temperatures=20)
        epochs = monitor.every(start, lnz.learning.PersistentChains(), 20)  # of one update each
        fitted = lnz.fit(start, np.repeat(PATTERNS, 10, axis=0), epochs=epochs, batch_size=20, key=KEY, monitor=monitor)
        assert {"unseen", "dead", "lag", "log_likelihood"} <= set(fitted.reports[-1].figures)

    def test_layers_learned_from_below_are_a_better_start(self):
        """A layer hears from both sides: each pair learns with the doubled pull that its unit will have in the stack."""
        data = np.repeat(PATTERNS, 20, axis=0)
        plain = lnz.DeepBoltzmannMachine.from_data(data, (4, 3), key=KEY, scale=0.3, dtype=np.float64)
        found = lnz.learning.pretrained(
            data, (4, 3), epochs=(150, 50), optimizer=optax.sgd(0.3), scale=0.3, dtype=np.float64, key=KEY
        )
        assert found.sizes == plain.sizes
        assert log_p(found)[numbers(PATTERNS)].mean() > log_p(plain)[numbers(PATTERNS)].mean() + 0.3
        with pytest.raises(ValueError, match="one per layer of the 2 hidden layers"):
            lnz.learning.pretrained(data, (4, 3), epochs=(1, 2, 3), key=KEY)

    @pytest.mark.parametrize(("below", "above"), [(1, 1), (2, 1), (1, 2), (2, 2)])
    def test_twins_are_machines_with_tied_weights(self, below, above):
        rng = np.random.default_rng(2)
        w, b, c = rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2)
        twins = TwinLayers(*map(jnp.asarray, (w, b, c)), below, above)
        rbm = lnz.RBM.from_parameters(np.tile(w, (below, above)), np.tile(b, below), np.tile(c, above))
        v, h = rng.integers(0, 2, (5, 3 * below)).astype(float), rng.integers(0, 2, (5, 2 * above)).astype(float)
        np.testing.assert_allclose(twins.hidden_mean(v), rbm.hidden_mean(v), rtol=1e-12)
        np.testing.assert_allclose(twins.visible_mean(h), rbm.visible_mean(h), rtol=1e-12)


PATTERNS = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])


def test_bad_input_is_refused():
    make = lnz.DeepBoltzmannMachine
    for visible, hidden in ((0, (3,)), (4, ()), (4, (3, 0)), (4, (2.5,)), (True, (2,))):
        with pytest.raises(ValueError, match="numbers of units"):
            make(visible, hidden, key=KEY)
    w, b = np.ones((4, 3)), [np.zeros(4), np.zeros(3)]
    for weights, biases in (
        ([w.T], b),
        ([w], [*b, np.zeros(2)]),
        ([], [b[0]]),
        ([w, np.ones((2, 2))], [*b, np.zeros(2)]),
    ):
        with pytest.raises(ValueError, match="for every pair of neighbouring layers"):
            make.from_parameters(weights, biases)
    with pytest.raises(ValueError, match="the weights contain NaN"):
        make.from_parameters([w * np.nan], b)
    energy, data = machine(), rows()
    with pytest.raises(ValueError, match="shape"):
        lnz.fit(energy, np.ones((5, 6)), key=KEY)
    with pytest.raises(ValueError, match="expected 0 or 1"):
        lnz.log_likelihood(energy, data + 0.5)
    with pytest.raises(ValueError, match="have a closed sum"):
        lnz.fit(machine((4, 3)), data, positive_phase=lnz.learning.MeanFieldPhase(), key=KEY)
    with pytest.raises(ValueError, match=r"is not exact: use lnz\.learning\.MeanFieldPhase"):
        lnz.fit(make(4, (40, 40), key=KEY), data, positive_phase=lnz.learning.ExactPosterior(), key=KEY)
    with pytest.raises(ValueError, match="tolerance"):
        lnz.learning.MeanFieldPhase(tolerance=float("nan"))
    with pytest.raises(ValueError, match="iterations"):
        lnz.learning.MeanFieldPhase(iterations=0)
    with pytest.raises(ValueError, match="sweeps"):
        lnz.learning.ClampedChains(sweeps=0)
    with pytest.raises(TypeError, match="positive_phase must be one such as"):
        lnz.Trainer(positive_phase="mean field")
