"""Walls that throw chains back; annealing in boxes of many dimensions, and by Hamiltonian moves. That moves keep their laws is a contract."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import named
from lnz.kernels._leapfrog import bounced

INF = math.inf


def thrown_back(x, p, low, high):
    """One coordinate, wall after wall."""
    while not low <= x <= high:
        x, p = (2 * low - x, -p) if x < low else (2 * high - x, -p)
    return x, p


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (0.5, INF), (-INF, 1.0), (-INF, INF)], ids=["two", "low", "high", "none"]
)
def test_walls_throw_back_as_often_as_they_are_met(low, high):
    rng = np.random.default_rng(0)
    x, p = rng.normal(0, 10, (200, 3)), rng.normal(size=(200, 3))
    found = bounced(lnz.Box(low, high, shape=3), jnp.asarray(x), jnp.asarray(p))
    pairs = zip(x.ravel(), p.ravel(), strict=True)
    wanted = np.array([thrown_back(*pair, low, high) for pair in pairs]).reshape(200, 3, 2)
    np.testing.assert_allclose(found[0], wanted[..., 0], atol=1e-5)
    np.testing.assert_allclose(found[1], wanted[..., 1])


def test_a_move_between_walls_can_be_run_back():
    space, rng = lnz.Box(-1.0, 2.0, shape=3), np.random.default_rng(1)
    v, p = jnp.asarray(rng.uniform(-1, 2, (200, 3))), jnp.asarray(rng.normal(size=(200, 3)))
    x, q = bounced(space, v + 4 * p, p)
    back, turned = bounced(space, x - 4 * q, -q)
    np.testing.assert_allclose(back, v, atol=1e-5)
    np.testing.assert_allclose(turned, -p)


def off_centre(d):
    """A normal law in a corner's direction, far from all walls: log Z = ½ d log 2π + d log 0.4."""
    return lnz.FunctionEnergy(lambda x: jnp.sum(jnp.square(x - 1.5)) / 0.32, lnz.Box(-6.0, 6.0, shape=d)), d * (
        0.5 * math.log(2 * math.pi) + math.log(0.4)
    )


@pytest.mark.parametrize("leapfrogs", [1, 3])
def test_annealing_in_a_box_of_many_dimensions_does_not_lag(key, leapfrogs):
    energy, log_z = off_centre(64)
    route = lnz.routes.SequentialMonteCarlo(particles=64, replicates=4, conditional=0.9, sweeps=4, leapfrogs=leapfrogs)
    estimate = jax.jit(lambda key: route.log_partition(energy, key))(key)
    assert abs(float(estimate.value) - log_z) < 3  # 10.5 on average where moves over a wall are refused


def test_hamiltonian_moves_leave_the_estimate_unbiased(key):
    energy = lnz.FunctionEnergy(
        lambda x: -jnp.logaddexp(-2 * jnp.square(x[0] - 2), -8 * jnp.square(x[0] + 1.5) - 1), lnz.Real(1)
    )
    log_z = math.log(math.sqrt(math.pi / 2) + math.exp(-1) * math.sqrt(math.pi / 8))
    route = lnz.routes.SequentialMonteCarlo(particles=4, replicates=2000, conditional=0.7, leapfrogs=4)
    estimate = jax.jit(lambda key: route.log_partition(energy, key))(key)
    relative = math.expm1(float(estimate.value) - log_z)
    assert abs(relative) < 5 * float(estimate.standard_error)
    assert float(estimate.standard_error) < 0.05


def test_leapfrogs_are_of_continuous_states():
    route = lnz.routes.SequentialMonteCarlo(leapfrogs=3)
    assert "has Gibbs sweeps: leave leapfrogs at 1" in str(route.unsupported_reason(named("rbm").energy))
    assert route.unsupported_reason(named("double well").energy) is None
    assert "leapfrogs=3" in repr(route)
    assert route.cost(named("double well").energy) == 3 * dataclasses.replace(route, leapfrogs=1).cost(
        named("double well").energy
    )
    with pytest.raises(ValueError, match="leapfrogs"):
        lnz.routes.SequentialMonteCarlo(leapfrogs=0)
