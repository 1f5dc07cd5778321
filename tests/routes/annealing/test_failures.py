"""What can go wrong with an annealed log Z is refused, or flagged, by every route: never a quiet number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen

ROUTES = {
    "ais": lnz.routes.AnnealedImportanceSampling(temperatures=8, chains=32),
    "smc": lnz.routes.SequentialMonteCarlo(particles=16, replicates=4, conditional=0.5),
    "tempering": lnz.routes.ParallelTempering(rungs=3, iterations=16, replicates=2),
}


class HalfBase(lnz.capabilities.Normalised):
    """Uniform over the states whose first spin is up."""

    @property
    def space(self):
        return lnz.Spin(3)

    def __call__(self, x):
        return jnp.where(x[0] > 0, 0.0, jnp.inf).astype(jnp.result_type(float))

    def log_normaliser(self):
        return jnp.asarray(np.log(4.0), jnp.result_type(float))

    def sample(self, key, n):
        free = jax.random.rademacher(key, (n, 2), jnp.int8)
        return jnp.concatenate([jnp.ones((n, 1), jnp.int8), free], axis=1)


@pytest.mark.parametrize("name", ["ais", "smc", pytest.param("tempering", marks=pytest.mark.slow)])
def test_an_energy_that_is_nan_somewhere_is_an_error(name):
    energy = lnz.FunctionEnergy(lambda s: jnp.sqrt(1.0 + 1.5 * s[0] * s[1]) + 0.1 * s[2], lnz.Spin(3))
    with pytest.raises(ValueError, match="log Z is NaN: the energy FunctionEnergy is NaN for some state"):
        lnz.log_partition(energy, route=ROUTES[name], key=jax.random.key(0))


@pytest.mark.parametrize("name", ["ais", pytest.param("smc", marks=pytest.mark.slow), "tempering"])
def test_a_base_that_excludes_what_the_model_allows_is_flagged(name):
    """Half of Z is out of reach, and chains see that at the end of the path."""
    energy = lnz.Ising(np.array([[0, 0.3, 0], [0.3, 0, -0.4], [0, -0.4, 0]]), np.array([0.2, 0.0, 0.1]))
    route = dataclasses.replace(ROUTES[name], base=Frozen(HalfBase()))
    estimate = lnz.log_partition(energy, route=route, key=jax.random.key(0))
    assert EstimateWarning.UNCOVERED_STATES in estimate.warning_codes


@pytest.mark.parametrize("name", ["ais", "smc"])
def test_a_model_without_a_state_in_reach_is_flagged(name):
    """Impossible but for one state of 2^20, which no chain finds: zero weight everywhere."""
    energy = lnz.FunctionEnergy(lambda s: jnp.where(jnp.all(s > 0), 0.0, jnp.inf), lnz.Spin(20))
    estimate = lnz.log_partition(energy, route=ROUTES[name], key=jax.random.key(1))
    assert float(estimate.lower) == -np.inf
    assert estimate.warnings
    assert EstimateWarning.ZERO_WEIGHTS in estimate.warning_codes or float(estimate.value) > -np.inf


def test_an_estimate_too_small_for_the_data_is_an_error():
    """Σ over distinct data of p > 1, from annealing that is too short for two deep modes."""
    rbm = lnz.RBM.from_parameters(np.full((12, 4), 4.0), np.full(12, -8.0), np.full(4, -24.0))
    data = np.stack([np.zeros(12), np.ones(12)])
    truth = lnz.log_partition(rbm, route=lnz.routes.Enumeration())
    assert lnz.log_likelihood(rbm, data, log_z=truth).value < -0.5
    short = lnz.log_partition(
        rbm, route=lnz.routes.AnnealedImportanceSampling(temperatures=2, chains=20), key=jax.random.key(0)
    )
    assert short.value < truth.value - 0.5
    claimed = lnz.Estimate(**{**short.__dict__, "standard_error": jnp.asarray(0.0)})
    with pytest.raises(ValueError, match="an impossible likelihood"):
        lnz.log_likelihood(rbm, data, log_z=claimed)


def test_a_base_with_a_field_called_model_is_taken_as_it_is():
    class Shifted(lnz.capabilities.Normalised):
        model: lnz.Gaussian

        @property
        def space(self):
            return self.model.space

        def __call__(self, x):
            return self.model(x) + 3.0

        def log_normaliser(self):
            return self.model.log_normaliser() - 3.0

        def sample(self, key, n):
            return self.model.sample(key, n)

    energy = lnz.Gaussian([0.5, 0.0], [2.0, 1.0])
    route = lnz.routes.AnnealedImportanceSampling.from_base(
        Shifted(lnz.Gaussian([0.0, 0.0], [1.0, 1.0])), temperatures=20, chains=100
    )
    estimate = lnz.log_partition(energy, route=route, key=jax.random.key(0))
    assert abs(float(estimate.value) - float(energy.log_normaliser())) < 0.3
