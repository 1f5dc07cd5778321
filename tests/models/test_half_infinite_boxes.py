"""Boxes without some of their bounds, in any number of dimensions: the default base, and annealing from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate_warning import EstimateWarning
from lnz._models.independent import HalfLogistic, default_base
from lnz.routes._annealing.annealing_route import _far_out

INF = np.inf
MIXED = lnz.Box([0.0, -INF, 0.0, -1.0, -INF], [INF, 2.0, 1.0, INF, INF])
RATES = np.array([1.0, 2.0, 0.5, 3.0, 1.5])
ROUTE = lnz.routes.AnnealedImportanceSampling(temperatures=60, chains=128)


@pytest.mark.parametrize(
    "space", [lnz.Box(0.0, INF, shape=1), lnz.Box(-INF, 3.0, shape=1), lnz.Box([0.0, -1.0], [INF, 1.0])]
)
@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_the_base_is_normalised(space, scale):
    base = HalfLogistic(space, scale)
    estimate = lnz.log_partition(lnz.FunctionEnergy(base.__call__, space), route=lnz.routes.Quadrature())
    assert float(estimate.lower) <= float(base.log_normaliser()) <= float(estimate.upper)
    assert float(estimate.standard_error) < 1e-2


def test_samples_of_the_base_are_in_the_box_and_of_its_distribution():
    base, space = HalfLogistic(MIXED, 2.0), MIXED
    samples = np.asarray(base.sample(jax.random.key(0), 4000))
    space.validate(samples, batch=True)
    assert np.isfinite(jax.vmap(base)(jnp.asarray(samples))).all()
    # |z| of a standard logistic unit has median log 3
    np.testing.assert_allclose(np.median(samples[:, 0]), 2 * np.log(3), rtol=0.1)
    np.testing.assert_allclose(np.median(samples[:, 1]), 2 - 2 * np.log(3), atol=0.2)
    np.testing.assert_allclose(np.median(samples[:, 2]), 0.5, atol=0.05)
    assert float(base(jnp.asarray([-0.1, 0.0, 0.5, 0.0, 0.0]))) == INF


def exponential(space):
    """Σ a_i x_i on half-lines from `low` on, up to `high`, and its log Z."""
    low, high = (np.asarray(bound) for bound in space.limits)
    masses = np.exp(-RATES * low) - np.exp(-RATES * high)
    return lnz.FunctionEnergy(lambda x: jnp.sum(jnp.asarray(RATES, x.dtype) * x), space), np.log(masses / RATES).sum()


@pytest.mark.parametrize(
    "space", [lnz.Box(0.0, INF, shape=5), lnz.Box([0.0, -1.0, 2.0, 0.0, 0.0], [INF, INF, INF, 1.0, 0.5])]
)
def test_annealing_on_half_lines(space, key):
    energy, truth = exponential(space)
    assert isinstance(lnz.choose(energy).route, lnz.routes.AnnealedImportanceSampling)
    estimate = lnz.log_partition(energy, route=ROUTE, key=key)
    assert float(estimate.lower) <= truth <= float(estimate.upper)
    assert EstimateWarning.INFINITE_Z not in estimate.warning_codes


def test_half_normal_units_leftwards(key):
    energy = lnz.FunctionEnergy(lambda x: jnp.sum(x**2) / 18, lnz.Box(-INF, 0.0, shape=4))
    estimate = lnz.log_partition(energy, route=ROUTE, key=key)
    assert float(estimate.lower) <= 4 * (np.log(3) + 0.5 * np.log(np.pi / 2)) <= float(estimate.upper)


def test_an_infinite_z_on_half_lines_is_warned_about(key):
    energy = lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(jnp.log1p(x)), lnz.Box(0.0, INF, shape=5))
    assert EstimateWarning.INFINITE_Z in lnz.log_partition(energy, route=ROUTE, key=key).warning_codes


def test_the_default_base_is_wide_too():
    assert sorted(float(c.scale) for c in default_base(MIXED).components) == [1.0, 3.0, 10.0]


def test_rays_to_where_an_infinite_z_would_show_stay_in_the_box():
    """Bounded coordinates stay where they are, half-infinite ones grow inwards."""
    low, high = np.array([0.0, -1.0, -np.inf, -np.inf]), np.array([np.inf, 1.0, 2.0, np.inf])
    energy = lnz.FunctionEnergy(lambda x: jnp.sum(x**2), lnz.Box(low, high))
    x = np.asarray(_far_out(energy, jnp.full((3, 4), 0.5))[0])
    assert ((x >= low) & (x <= high)).all()
    assert (np.abs(x).max(axis=1) > 100).all()
    for i in (0, 2, 3):
        assert np.abs(x[:, i]).max() > 100
