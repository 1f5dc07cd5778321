"""Unbiased contrastive divergence: its mean is the exact gradient where CD's is not, for every kind of energy; and chains that do not meet."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import bits, model, model_mean, symmetric

import lnz

KEY = jax.random.key(31)


def rbm():
    rng = np.random.default_rng(4)
    return lnz.RBM.from_parameters(rng.normal(size=(4, 3)) * 1.2, rng.normal(size=4), rng.normal(size=3))


def well():
    """Two wells of different depth, one near the data and one not."""

    class Well(lnz.capabilities.Annealable):
        theta: jax.Array

        @property
        def space(self):
            return lnz.Real(1)

        def __call__(self, x):
            return self.theta[0] * (x[0] ** 2 - 1) ** 2 + self.theta[1] * x[0]

        def base(self):
            return lnz.Gaussian([1.2], [4.0])

    return Well(jnp.asarray([0.6, 0.4]))


CASES = {
    "rbm": (rbm, lambda rng: bits((6, 4), 1, 0.8), lnz.learning.CoupledChains()),
    "rbm, later chains": (
        rbm,
        lambda rng: bits((6, 4), 1, 0.8),
        lnz.learning.CoupledChains(start="chains", chains=5, burn_in=0, length=2, lag=3),
    ),
    "potts": (
        lambda: lnz.Potts(symmetric(3, scale=0.5), np.random.default_rng(4).normal(size=(3, 3)) * 0.5, q=3),
        lambda rng: rng.integers(0, 2, (6, 3)),
        lnz.learning.CoupledChains(),
    ),
    "ising": (
        lambda: lnz.Ising(symmetric(4, scale=0.4), np.random.default_rng(4).normal(size=4) * 0.5),
        lambda rng: np.ones((6, 4)),
        lnz.learning.CoupledChains(length=3, kernel=lnz.kernels.GibbsWithGradients()),
    ),
    "continuous": (
        well,
        lambda rng: rng.normal(1, 0.3, (6, 1)),
        lnz.learning.CoupledChains(kernel=lnz.kernels.Langevin(0.1)),
    ),
}


def scores(energy, data, phase, repeats):
    """(mean - exact)² / squared standard error, summed over parameters and divided by their number: about 1 without a bias."""
    route = (
        lnz.routes.Quadrature()
        if isinstance(lnz.capabilities.observed_space(energy), lnz.Real)
        else lnz.routes.Enumeration()
    )
    found = lnz.learning.gradient_error(energy, data, phase, draws=2, repeats=repeats, route=route, key=KEY)
    return ((found.mean - found.exact) ** 2).sum(axis=1) / (found.variance / repeats), found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("ising", "potts", "continuous") else ()) for name in CASES],
)
def test_the_mean_is_the_exact_gradient(name):
    make, data, phase = CASES[name]
    energy, data = make(), data(np.random.default_rng(2))
    # A few pairs that meet late carry much of the variance: on the line a mean of 1,000 is not yet near a normal law.
    squares, _ = scores(energy, data, phase, 8000 if name == "continuous" else 1000)
    assert (squares < 6).all(), squares
    if name == "rbm":
        squares, _ = scores(energy, data, lnz.learning.ContrastiveDivergence(), 1000)
        assert (squares > 30).all(), "CD-1 is seen to be biased by the same test"


def test_data_of_weight_zero_have_no_say():
    energy, data = rbm(), jnp.asarray(bits((3, 4), 1, 0.8), float)
    go = jax.jit(lambda w: lnz.learning.CoupledChains().gradient(energy, (), data, w, KEY))
    mean, gradient, _, figures = go(jnp.asarray([0.5, 0.0, 1.5]))
    # The pairs of the others are the same, so the weighted mean is that of what each gives alone.
    alone = [go(jnp.asarray(w))[:2] for w in ([1.0, 0.0, 0.0], [0.0, 0.0, 1.0])]
    for found, first, last in zip(*map(jax.tree.leaves, ((mean, gradient), *alone)), strict=True):
        np.testing.assert_allclose(found, 0.25 * first + 0.75 * last, atol=1e-12)
    assert float(figures["unmet"]) == 0
    assert float(figures["meeting"]) <= float(figures["longest"])


def test_learning_from_the_step_interface_and_from_fit():
    energy, data = model("ising")
    phase = lnz.learning.CoupledChains(start="chains", chains=50)
    falling = optax.sgd(optax.linear_schedule(0.3, 0.0, 800))
    fitted = lnz.fit(
        energy, data, negative_phase=phase, optimizer=falling, epochs=800, batch_size=37, evaluate_every=800, key=KEY
    )
    assert np.abs(model_mean(energy) - data.mean(axis=0)).max() > 0.3
    assert np.abs(model_mean(fitted.energy) - data.mean(axis=0)).max() < 0.1, "at the maximum, the means are the data's"
    figures = fitted.history[-1].figures
    assert set(phase.figures(energy)) <= set(figures)
    assert figures["unmet"] == 0
    halves = lnz.learning.phases(energy, data, phase, key=KEY)
    wanted = lnz.learning.phases(energy, data, lnz.routes.Enumeration())
    assert jax.tree.all(jax.tree.map(np.array_equal, halves.positive, wanted.positive))
    assert float(jnp.abs(halves.negative.fields - wanted.negative.fields).max()) < 0.6
    with pytest.raises(ValueError, match="pass key="):
        lnz.learning.phases(energy, data, phase)


def test_chains_that_do_not_meet_are_loud():
    """From a state between two modes, one chain goes to the one and one to the other."""
    cold, data = lnz.Ising(1.5 * (np.ones((4, 4)) - np.eye(4))), np.tile([1, 1, -1, -1], (8, 1))
    phase = lnz.learning.CoupledChains(max_moves=3)
    words = "some pairs of coupled chains had not met after 3 moves: increase max_moves"
    options = {"batch_size": 8, "optimizer": optax.sgd(1e-6), "key": KEY}
    with pytest.raises(lnz.kernels.NotMet, match=words):
        lnz.fit(cold, data, negative_phase=phase, epochs=20, **options)
    trainer, many = lnz.Trainer(negative_phase=phase), np.tile(data, (100, 1))
    with pytest.raises(lnz.kernels.NotMet, match=words):
        trainer.step(trainer.init(cold, KEY, batch_size=8), many)
    with pytest.raises(lnz.kernels.NotMet, match=words):
        lnz.learning.phases(cold, many, phase, key=KEY)
    cut = lnz.learning.CoupledChains(max_moves=3, cut=True)
    monitor = lnz.learning.Monitor(share=0.5, chains=8, temperatures=5)
    epochs = 2 * monitor.every(cold, cut, 8)
    fitted = lnz.fit(cold, data, negative_phase=cut, epochs=epochs, evaluate_every=epochs, monitor=monitor, **options)
    assert 0 < fitted.history[-1].figures["unmet"] < 1
    assert fitted.reports[0].figures["unmet"] == pytest.approx(fitted.history[-1].figures["unmet"], rel=0.2)
    alarms = [alarm for look in fitted.reports for alarm in look.alarms if alarm.name == "unmet"]
    assert len(alarms) == 1, "once, as long as it goes on"
    assert "pairs of coupled chains were stopped before they met" in str(alarms[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lnz.learning.CoupledChains(burn_in=-1), "burn_in must be an integer of at least 0"),
        (lambda: lnz.learning.CoupledChains(length=0), "length must be"),
        (lambda: lnz.learning.CoupledChains(lag=0), "lag must be"),
        (lambda: lnz.learning.CoupledChains(start="noise"), 'start must be "data" or "chains"'),
        (lambda: lnz.learning.CoupledChains(chains=5), "leave chains out"),
        (lambda: lnz.learning.CoupledChains(start="chains", chains=0), "chains must be"),
        (lambda: lnz.learning.CoupledChains(length=50, max_moves=20), "max_moves must be at least 50"),
    ],
)
def test_numbers_that_cannot_serve(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_kernels_that_cannot_be_coupled():
    energy, data = model("real")
    for kernel, words in (
        (lnz.kernels.HamiltonianMonteCarlo(), "never meet"),
        (lnz.kernels.Gibbs(), "Gibbs sweeps need"),
    ):
        with pytest.raises(ValueError, match=words):
            lnz.fit(energy, data, negative_phase=lnz.learning.CoupledChains(kernel=kernel), key=KEY)


@pytest.mark.wrong_types  # a stand-in
def test_the_command_line_makes_every_phase():
    from lnz._cli.model_options import negative_phase
    from lnz.learning._negative import NEGATIVE_PHASES

    given = {"objective": "likelihood", "sweeps": 2, "chains": 30, "rungs": 5, "fast_rate": 0.1}
    for name, kind in NEGATIVE_PHASES.items():
        phase = negative_phase(SimpleNamespace(negative_phase=name, **given))  # pyright: ignore[reportArgumentType]
        assert type(phase) is kind
    made = negative_phase(SimpleNamespace(negative_phase="coupled", **given))  # pyright: ignore[reportArgumentType]
    assert made == lnz.learning.CoupledChains(burn_in=2, chains=30, start="chains", max_moves=100_000)
