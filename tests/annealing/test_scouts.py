"""Scouts warn where the annealed chains miss a mode, and not where they miss none; their weights have mean Z."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.annealing.scouts import MISSED, explored
from lnz.energies.independent import default_base
from lnz.sampling.kernels import default_kernel
from lnz.sampling.path import Path

ROUTE = lnz.AnnealedImportanceSampling(temperatures=40, chains=24, scouts=24)


@eqx.filter_jit
def asked(energy, keys):
    """Value, limits and the flag of many runs, by one compiled program for all RBMs of one shape."""

    def one(key):
        e = ROUTE.log_partition(energy, key)
        return e.value, e.lower, e.upper, e.flags[MISSED]

    return jax.lax.map(one, keys)


@pytest.fixture
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), 60)


def test_a_mode_that_no_chain_finds_is_warned_of_and_the_upper_limit_allows_for_it(keys):
    (model,) = lnz.reference_models("rbm-hidden-mode-40x8")
    value, lower, upper, warned = map(np.asarray, asked(model.energy(), keys))
    assert (np.abs(value - model.log_z) > 1).mean() > 0.5  # the chains are fooled
    assert warned[value < model.log_z - 1].mean() > 0.95
    assert (upper[warned] > model.log_z).mean() > 0.95
    assert (lower <= model.log_z).all()


def test_no_warning_where_every_mode_is_found(keys):
    rng = np.random.default_rng(0)
    energy = lnz.RBM.from_parameters(0.7 * rng.normal(size=(40, 8)), rng.normal(size=40), rng.normal(size=8))
    truth = float(lnz.log_partition(energy).value)
    _, lower, upper, warned = map(np.asarray, asked(energy, keys))
    assert warned.sum() <= 2
    assert ((lower <= truth) & (truth <= upper)).sum() >= 57


@pytest.mark.parametrize("space", ["binary", pytest.param("real", marks=pytest.mark.slow)])
def test_weights_from_a_scouts_own_base_have_mean_z(space):
    """On a law with two unequal modes."""
    if space == "binary":
        weights = np.array([[2.0, -1.0], [1.5, 0.5], [-1.0, 2.5], [0.5, -2.0]])
        energy = lnz.RBM.from_parameters(weights, np.array([-1.0, 0.3, -0.5, 0.2]), np.array([-1.0, 0.4]))
    else:
        energy = lnz.FunctionEnergy(lambda x: jnp.sum((x**2 - 2) ** 2) / 2 - 0.4 * jnp.sum(x), lnz.Real(1))
    truth = float(lnz.log_partition(energy).value)
    path, kernel = Path(energy), default_kernel(energy)
    run = jax.jit(lambda key: explored(path, kernel, key, jnp.asarray(-1.5), scouts=3000, moves=8)[0])
    ratio = np.exp(np.asarray(run(jax.random.key(1))) - truth)
    z = (ratio.mean() - 1) / (ratio.std() / math.sqrt(ratio.size))
    assert abs(z) < 4
    assert ratio.std() < 3


@pytest.mark.slow
def test_far_modes_of_a_density(keys):
    (model,) = lnz.reference_models("apart-2")
    energy = model.energy()
    _, lower, upper, warned = map(np.asarray, asked(energy, keys))
    wrong = (model.log_z < lower) | (model.log_z > upper)
    assert warned.sum() > 30
    assert (wrong & ~warned).sum() <= 3


def test_the_default_base_of_the_real_line_has_wide_tails_and_mass_one():
    base: Any = default_base(lnz.Real(2))
    assert float(base.log_normaliser()) == pytest.approx(0, abs=1e-6)
    x = np.asarray(base.sample(jax.random.key(0), 4000))
    assert 0.01 < (np.abs(x).max(axis=1) > 15).mean() < 0.15
    assert np.quantile(np.abs(x), 0.5) < 2.5


def test_scouts_must_be_a_count():
    with pytest.raises(ValueError, match="scouts must be a whole number of at least 0"):
        lnz.AnnealedImportanceSampling(scouts=-1)
    assert lnz.AnnealedImportanceSampling(10, 10, scouts=40).cost(lnz.Ising(jnp.zeros((2, 2)))) == 300
