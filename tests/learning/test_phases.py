"""Negative phases against the exact gradient: frozen parameters, a moving path, modes far apart."""

import dataclasses
from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import law, model, same, symmetric

import lnz
from lnz.learning._negative import NEGATIVE_PHASES
from lnz.learning._negative.ladder import swapped

KEY = jax.random.key(77)
N = 2000


def scaled(energy, factor):
    return jax.tree.map(lambda leaf: leaf * factor if eqx.is_inexact_array(leaf) else leaf, energy)


def target(name):
    """Asymmetric models with several modes."""
    rng = np.random.default_rng(4)
    if name == "rbm":
        return lnz.RBM.from_parameters(rng.normal(size=(4, 3)) * 1.5, rng.normal(size=4), rng.normal(size=3))
    if name == "ising":
        return lnz.Ising(symmetric(4, scale=0.6), rng.normal(size=4) * 0.5)
    return lnz.Potts(symmetric(3, scale=0.7), rng.normal(size=(3, 3)) * 0.5, q=3)


def log_z(energy):
    return float(np.logaddexp.reduce(law(energy)[1]))


def run(phase, energy, state, draws):
    """The last of some draws under frozen parameters: states, weights, state, figures."""

    @eqx.filter_jit
    def go(energy, state, key):
        def body(state, key):
            states, weights, state, figures = phase.draw(energy, state, DATA, None, key)
            return state, (states, weights, figures)

        state, out = jax.lax.scan(body, state, jax.random.split(key, draws))
        return (*jax.tree.map(lambda leaf: leaf[-1], out), state)

    return go(energy, state, KEY)


DATA = jnp.zeros((2, 1))  # no phase that is tested with `run` looks at it


@eqx.filter_jit
def gradients_and_mean(energy, states, every):
    """-∂F of each of some states, and its exact mean."""
    of_state = eqx.filter_grad(lambda e, v: -lnz.capabilities.free_energy_of(e)(v))
    log_z = eqx.filter_grad(lambda e: jax.nn.logsumexp(-jax.vmap(lnz.capabilities.free_energy_of(e))(every)))
    return jax.vmap(of_state, (None, 0))(energy, states), log_z(energy)


def begun(phase, energy, key, n):
    """The state of a phase before the first update, by one program."""
    return eqx.filter_jit(phase.init)(energy, key, n)


def z_scores(energy, states, weights):
    """Of the mean negative gradient against the exact one, entry by entry."""
    gradients, exact = gradients_and_mean(energy, states, law(energy)[0])
    w = np.ones(len(states)) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    scores = []
    for g, e in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        g = np.asarray(g, float).reshape(len(states), -1)
        mean = w @ g
        error = np.sqrt((w**2) @ (g - mean) ** 2)
        scores.append((mean - np.asarray(e).reshape(-1)) / np.maximum(error, 1e-6))
    return np.abs(np.concatenate(scores))


CASES = {
    "persistent": lnz.learning.PersistentChains(chains=N, sweeps=2),
    "tempered": lnz.learning.TemperedChains(chains=N, temperatures=3),
    "trajectory": lnz.learning.TrajectoryTempered(chains=N, checkpoints=3, target=1e-6),
    "jarzynski": lnz.learning.JarzynskiWalkers(chains=N, temperatures=3),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tempered", "rbm"),
        ("trajectory", "rbm"),
        ("jarzynski", "rbm"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("trajectory", "ising"), ("jarzynski", "potts"), ("tempered", "potts")]
        ),
    ],
)
def test_under_frozen_parameters_the_mean_is_the_exact_gradient(name, kind):
    energy, phase = target(kind), CASES[name]
    state = begun(phase, energy, KEY, 2)
    if name == "trajectory":  # a ladder of other models, as a run would leave it
        rungs = [scaled(energy, f) for f in (0.1, 0.4, 0.7)]
        models = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[eqx.filter(e, eqx.is_inexact_array) for e in rungs])
        state = state._replace(models=models)
    states, weights, figures, _ = run(phase, energy, state, 25)
    assert set(figures) == set(phase.figures(energy))
    assert states.dtype == (jnp.int32 if kind == "potts" else jnp.float64)
    z = z_scores(energy, states, weights)
    assert z.max() < 5
    assert (z**2).mean() < 2.5
    if name == "tempered" or name == "trajectory":
        assert 0.05 < float(figures["swaps"]) < 0.99, "swaps that always happen test nothing"


def test_swaps_keep_the_joint_law():
    """Pairs (x_0, x_1) drawn from p_0 p_1 stay so, at temperatures far apart, for an energy with latent units."""
    energy = target("rbm")
    rung, betas = lambda beta: lnz.capabilities.tempered(energy, energy.base(), beta), jnp.asarray([0.3, 1.0])
    rng, n = np.random.default_rng(0), 40_000
    drawn, laws = [], []
    for beta in betas:
        states, logits = law(rung(beta))
        laws.append(np.exp(logits - np.logaddexp.reduce(logits)))
        drawn.append(states[rng.choice(len(states), n, p=laws[-1])])
    after, rates, pairs = swapped(rung, betas, KEY, jnp.asarray(np.stack(drawn)), jnp.asarray(0))
    codes = np.asarray(after) @ 2 ** np.arange(3, -1, -1)
    counts = np.bincount((codes[0] * 16 + codes[1]).astype(int), minlength=256)
    expected = n * np.outer(*laws).ravel()
    kept = expected > 5
    assert ((counts - expected) ** 2 / expected)[kept].sum() < kept.sum() + 5 * np.sqrt(2 * kept.sum())
    assert 0.1 < float(rates[0]) < 0.9
    assert float(rates[0]) == pytest.approx((np.asarray(after)[1] != drawn[1]).any(axis=1).mean(), abs=0.2)
    still, rates, pairs = swapped(rung, betas, KEY, after, jnp.asarray(1))
    assert same(still, after)
    assert float(pairs[0]) == 0


class TestFarModes:
    """A ferromagnet whose modes no Gibbs sweep connects, and chains that start in one of them."""

    @pytest.mark.parametrize(
        ("name", "found"),
        [("persistent", False), ("tempered", True), pytest.param("trajectory", True, marks=pytest.mark.slow)],
    )
    def test_tempering_finds_the_mode_that_other_chains_miss(self, name, found):
        energy = lnz.Ising(0.8 * (np.ones((6, 6)) - np.eye(6)))
        phase = dataclasses.replace(CASES[name], chains=200, **({"checkpoints": 4} if name == "trajectory" else {}))
        start = lnz.Ising(np.zeros((6, 6)))
        state = begun(phase, start, KEY, 2)
        if name == "trajectory":
            rungs = [scaled(energy, f) for f in (0.0, 0.25, 0.4, 0.6)]
            models = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *[eqx.filter(e, eqx.is_inexact_array) for e in rungs]
            )
            state = state._replace(models=models)
        state = jax.tree.map(
            lambda leaf: jnp.ones_like(leaf) if leaf.shape[-1:] == (6,) and leaf.ndim < 4 else leaf, state
        )
        if name == "trajectory":
            state = state._replace(models=models)
        states, _, _, _ = run(phase, energy, state, 100)
        share = float((np.asarray(states).mean(axis=1) < 0).mean())
        assert (0.3 < share < 0.7) if found else share == 0

    def test_fast_weights_leave_a_mode(self):
        energy = lnz.Ising(0.5 * (np.ones((6, 6)) - np.eye(6)), 0.0)
        data, shares = jnp.asarray(law(energy)[0])[:64].astype(jnp.float64), []
        for rate in (0.0, 0.3):
            phase = lnz.learning.FastWeights(chains=200, fast_rate=rate)
            state = begun(phase, energy, KEY, 2)._replace(observed=jnp.ones((200, 6)))

            @eqx.filter_jit
            def go(state, phase=phase):
                body = lambda s, k: (phase.draw(energy, s, data, None, k)[2], None)  # noqa: E731
                return jax.lax.scan(body, state, jax.random.split(KEY, 30))[0]

            shares.append(float((np.asarray(go(state).observed).mean(axis=1) < 0).mean()))
        assert shares[0] < 0.1
        assert shares[1] > 0.2


class TestJarzynski:
    def path(self, factor):
        return scaled(target("rbm"), factor)

    def walk(self, phase, key, steps):
        """The walkers' last weights, and log Ẑ at every point of a path from 0.3 θ to θ."""
        factors = jnp.linspace(0.3, 1, steps)

        def body(state, inputs):
            factor, key = inputs
            states, weights, state, figures = phase.draw(self.path(factor), state, DATA, None, key)
            return state, (figures["log_z"], figures["effective_share"], figures["resampled"], states, weights)

        start, go = jax.random.split(key)
        state = begun(phase, self.path(0.3), start, 2)
        return jax.lax.scan(body, state, (factors, jax.random.split(go, steps)))[1]

    def test_log_z_along_a_moving_path(self):
        phase = lnz.learning.JarzynskiWalkers(chains=N, threshold=0.9, temperatures=3)
        found, share, again, states, weights = jax.jit(lambda key: self.walk(phase, key, 40))(KEY)
        exact = [log_z(self.path(f)) for f in np.linspace(0.3, 1, 40)]
        assert exact[-1] - exact[0] > 1, "log Z must move"
        assert 0 < float(again.sum()) < 40, "with resampling now and then"
        assert np.abs(np.asarray(found) - exact).max() < 0.1
        assert float(share.min()) > 0.5
        assert z_scores(self.path(1.0), states[-1], weights[-1]).max() < 5

    @pytest.mark.parametrize("threshold", [pytest.param(1e-9, marks=pytest.mark.slow), 0.8])
    def test_z_is_unbiased_with_few_walkers_that_hardly_move(self, threshold):
        phase = lnz.learning.JarzynskiWalkers(chains=5, threshold=threshold, temperatures=2)
        found = jax.jit(jax.vmap(lambda key: self.walk(phase, key, 4)[0][-1]))(jax.random.split(KEY, 3000))
        ratio = np.exp(np.asarray(found) - log_z(self.path(1.0)))
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))
        assert ratio.std() > 0.1


def test_the_ladder_keeps_the_models_that_it_needs():
    """The first model stays, the last is the newest, order is kept, and a model is added only where swaps have become rare."""
    start = lnz.Ising(np.zeros((4, 4)))
    phase = lnz.learning.TrajectoryTempered(chains=100, checkpoints=2, target=0.7)
    state, kept, fields = begun(phase, start, KEY, 2), 0.0, []
    draw = eqx.filter_jit(lambda e, s, k: phase.draw(e, s, DATA, None, k)[2:])
    for t in range(120):
        energy = eqx.tree_at(lambda e: e.fields, start, jnp.full((4,), 0.04 * t))
        state, figures = draw(energy, state, jax.random.fold_in(KEY, t))
        kept += float(figures["kept"])
        fields.append(np.asarray(state.models.fields[:, 0]))
    assert 2 <= kept < 40
    assert fields[-1][0] == 0
    assert fields[-1][1] > 0.5
    assert float(state.rates.min()) > 0.05
    assert (np.diff(fields[0]) == 0).all()


@pytest.mark.parametrize("name", ["trajectory", "jarzynski"])
def test_a_run_cut_in_two_is_bit_for_bit_the_run_that_was_not(name, tmp_path):
    energy, data = model("spin rbm")
    phase = dataclasses.replace(CASES[name], chains=500)
    options = {"negative_phase": phase, "optimizer": optax.adam(0.02), "batch_size": 10, "key": KEY}
    whole = lnz.fit(energy, data, epochs=6, **options)
    path = tmp_path / "checkpoint"
    lnz.fit(energy, data, epochs=1.5, checkpoint=path, **options)
    again = lnz.fit(energy, data, epochs=6, checkpoint=path, **options)
    assert same(whole.state, again.state)
    assert again.history[-1].figures["energy_gap"] == whole.history[-1].figures["energy_gap"]
    if name == "jarzynski":  # the running likelihood of the last epoch's batches, which are all the data once
        exact = lnz.log_likelihood(whole.energy, data, route=lnz.routes.Enumeration()).value
        assert whole.history[-1].figures["log_likelihood"] == pytest.approx(exact, abs=0.1)
        assert lnz.log_likelihood(energy, data, route=lnz.routes.Enumeration()).value < exact - 0.2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lnz.learning.TemperedChains(temperatures=0), "temperatures must be an integer of at least 1"),
        (lambda: lnz.learning.TemperedChains(chains=0), "chains must be"),
        (lambda: lnz.learning.TrajectoryTempered(checkpoints=1), "checkpoints must be at least 2"),
        (lambda: lnz.learning.TrajectoryTempered(target=0.0), "target must be above 0 and at most 1"),
        (lambda: lnz.learning.JarzynskiWalkers(threshold=1.5), "threshold must be above 0 and at most 1"),
        (lambda: lnz.learning.JarzynskiWalkers(sweeps=0), "sweeps must be"),
        (lambda: lnz.learning.FastWeights(fast_rate=-1.0), "fast_rate must be finite and not negative"),
        (lambda: lnz.learning.FastWeights(decay=float("nan")), "decay must be above 0"),
    ],
)
def test_numbers_that_cannot_serve(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", ["tempered", "trajectory", "jarzynski", "fast-weights"])
def test_energies_that_cannot_be_served(name):
    energy = lnz.FunctionEnergy(
        jax.tree_util.Partial(lambda t, x: t * jnp.sum(x[0]), jnp.ones(())), lnz.Product(lnz.Real(1), lnz.Binary(1))
    )
    with pytest.raises(ValueError, match="no kernel supports this energy"):
        lnz.fit(energy, (np.ones((3, 1)), np.ones((3, 1))), negative_phase=NEGATIVE_PHASES[name](), key=KEY)


def test_the_command_line_names_every_phase():
    from lnz._cli.settings import Phase

    assert get_args(Phase) == tuple(NEGATIVE_PHASES)
