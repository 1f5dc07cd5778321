"""Unbiased gradients from annealed populations: also where no chain leaves its mode, and the populations are small and poor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import bits, model, model_mean

import lnz
from lnz.learning._gradients import mean_and_gradient

KEY = jax.random.key(31)


@dataclasses.dataclass(frozen=True)
class Once(lnz.learning.CoupledAnnealing):
    """Its first population alone, without what pays for its bias."""

    def gradient(self, energy, state, data, weights, key):
        log_weights, v = self._annealed(energy, data, key)
        return *mean_and_gradient(energy, v, jax.nn.softmax(log_weights)), (), {}


def score(energy, data, phase, repeats=20_000):
    """(mean - exact)² over its squared standard error, all parameters together: about 1 without a bias."""
    found = lnz.learning.gradient_error(
        energy, data, phase, draws=1, repeats=repeats, route=lnz.routes.Enumeration(), key=KEY
    )
    return float(((found.mean[0] - found.exact) ** 2).sum() / (found.variance[0] / repeats))


def test_the_mean_is_the_exact_gradient():
    rng = np.random.default_rng(5)
    energy = lnz.RBM.from_parameters(rng.normal(size=(4, 3)) * 4, rng.normal(size=4), rng.normal(size=3))
    data = bits((6, 4), 1, 0.8)
    assert score(energy, data, lnz.learning.CoupledAnnealing(chains=2, temperatures=2)) < 8
    assert score(energy, data, Once(chains=2, temperatures=2)) > 16, "the same test sees the bias of one population"


@pytest.mark.slow
def test_on_a_line_with_two_wells():
    well, data = model("real")
    found = lnz.learning.gradient_error(
        well, data, lnz.learning.CoupledAnnealing(chains=4, temperatures=4), draws=1, repeats=4000, route=lnz.routes.Quadrature(),
        key=KEY,
    )  # fmt: skip
    assert float(((found.mean[0] - found.exact) ** 2).sum() / (found.variance[0] / 4000)) < 8


def test_modes_that_no_sweep_connects():
    """A cold ferromagnet: learning from it turns the field round, and the running likelihood is that of the model."""
    cold = lnz.Ising(1.5 * (np.ones((4, 4)) - np.eye(4)), 0.3 * np.ones(4))
    data = np.concatenate([np.ones((10, 4)), -np.ones((30, 4))])
    fitted = lnz.fit(
        cold, data, negative_phase=lnz.learning.CoupledAnnealing(), optimizer=optax.sgd(optax.linear_schedule(0.05, 0.0, 400)),
        epochs=400, batch_size=40, evaluate_every=400, key=KEY,
    )  # fmt: skip
    assert model_mean(cold).min() > 0.5
    np.testing.assert_allclose(model_mean(fitted.energy), data.mean(axis=0), atol=0.15)
    figures = fitted.history[-1].figures
    assert 1 <= figures["meeting"] < 2
    assert 0.1 < figures["effective_share"] <= 1
    assert figures["unmet"] == 0
    assert "log_likelihood" in figures


def test_what_is_refused(key):
    energy, data = model("rbm")
    for bad, words in (({"chains": 0}, "chains must be"), ({"temperatures": 0}, "temperatures must be")):
        with pytest.raises(ValueError, match=words):
            lnz.learning.CoupledAnnealing(**bad)
    poor = lnz.learning.CoupledAnnealing(chains=1, temperatures=1, max_moves=1)
    steep = jax.tree.map(lambda leaf: 8 * leaf, energy)
    with pytest.raises(lnz.kernels.NotMet, match=r"annealed chains had not met after 1 moves: .* raise temperatures"):
        lnz.fit(steep, data, negative_phase=poor, epochs=20, key=key)
    without_base = lnz.FunctionEnergy(
        jax.tree_util.Partial(lambda t, x: t * jnp.sum(x[0]), jnp.ones(())), lnz.Product(lnz.Real(1), lnz.Binary(1))
    )
    with pytest.raises(ValueError, match="no kernel supports this energy"):
        lnz.fit(
            without_base, (np.ones((3, 1)), np.ones((3, 1))), negative_phase=lnz.learning.CoupledAnnealing(), key=key
        )
