"""Models on which a route once was wrong without a word: plateaus where step sizes grow, chains that stand still, modes not looked for."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.numerics import float64
from lnz.kernels._leapfrog import bounced, leapfrog_moves
from lnz.routes._annealing.path import fitted_log_step

ROUTES = lnz.routes
SCHOOLS = np.array([28, 8, -3, 7, -1, 1, 18, 12.0]), np.array([15, 10, 16, 11, 9, 11, 10, 18.0])


def with_numbers(function, *numbers, space):
    """An energy whose numbers are parameters: models of one space share their compiled programs."""
    return lnz.FunctionEnergy(jax.tree_util.Partial(function, *map(jnp.asarray, numbers)), space)


def below_the_simplex(high, x):
    return jnp.where(x.sum() < 1, 0.0, high)


def simplex(d, high):
    """0 below the simplex of a cube, and outside a number that stands for infinity."""
    return with_numbers(below_the_simplex, high, space=lnz.Box([0.0] * d, [1.0] * d))


def in_the_disc(radius, height, x):
    return jnp.where((x**2).sum() < radius**2, -jnp.log(height), 0.0)


def raised_disc(radius, height):
    energy = with_numbers(in_the_disc, radius, height, space=lnz.Box([-10.0] * 2, [10.0] * 2))
    return energy, math.log(400 + (height - 1) * math.pi * radius**2)


@pytest.mark.parametrize(("d", "high"), [(4, 1e30), (3, 1e20), (2, 1e30), (4, 1e8)])
def test_a_large_number_in_the_place_of_infinity(d, high):
    estimate = lnz.log_partition(
        simplex(d, high), route=ROUTES.SequentialMonteCarlo(mode_probes=0), key=jax.random.key(1)
    )
    truth = -math.log(math.factorial(d))
    assert estimate.lower <= truth <= estimate.upper
    assert estimate.diagnostics["temperatures"] < 100


@pytest.mark.parametrize(("radius", "height"), [(5.0, 10.0), (1.0, 10.0), (5.0, 0.1), (0.5, 1000.0)])
def test_tempering_between_plateaus(radius, height):
    energy, truth = raised_disc(radius, height)
    estimate = lnz.log_partition(energy, route=ROUTES.ParallelTempering(mode_probes=0), key=jax.random.key(2))
    assert estimate.lower <= truth <= estimate.upper


@pytest.mark.parametrize("step", [1e14, 1e30, 3.0])
def test_steps_as_long_as_one_likes_leave_a_flat_box_flat(step):
    flat = lnz.FunctionEnergy(lambda x: 0 * x.sum(), lnz.Box([0.0, -1.0], [1.0, 3.0]))
    v = lnz.kernels.run_chains(flat, lnz.kernels.Langevin(step), jnp.zeros((2000, 2)), jax.random.key(0), 20)
    np.testing.assert_allclose(v.mean(axis=0), [0.5, 1.0], atol=0.1)
    np.testing.assert_allclose(v.std(axis=0), np.array([1, 4]) / math.sqrt(12), rtol=0.05)


def test_a_step_size_stays_where_it_makes_a_difference():
    box, line = lnz.Box([0.0], [4.0]), lnz.Real(1)
    free, refused, nowhere = (jnp.full((8,), x) for x in (1.0, 0.0, jnp.nan))
    for space, top in ((box, math.log(8)), (line, 60.0)):
        up, down = jnp.zeros(()), jnp.zeros(())
        for _ in range(300):
            up, down = fitted_log_step(space, up, free), fitted_log_step(space, down, refused)
        assert float(up) == pytest.approx(top)
        assert float(down) == pytest.approx(-60)
    assert fitted_log_step(line, jnp.asarray(0.3), nowhere) == jnp.asarray(0.3)  # no chain knows anything


def test_a_step_in_a_box_is_no_longer_than_the_box():
    """Farther ones lose their digits: after 1e9 widths hardly any place of float32 is left."""
    box = lnz.FunctionEnergy(lambda x: 0 * x.sum(), lnz.Box([0.0], [1.0]))
    v, _ = leapfrog_moves(box, jax.random.key(0), jnp.full((4000, 1), 0.5, jnp.float32), jnp.asarray(1e20))
    assert len(np.unique(np.asarray(v))) > 3500
    far = bounced(box.space, jnp.asarray([[1e9 + 0.25]], jnp.float32), jnp.zeros((1, 1), jnp.float32))[0]
    assert float(far[0, 0]) != 0.25


@functools.cache
def schools():
    """Eight schools (Rubin 1981), centred, in (μ, log τ, θ), with τ's scale and constants left out; and log Z by a sum over log τ."""
    y, sd = SCHOOLS

    def energy(x):
        mu, log_tau, theta = x[0], x[1], x[2:]
        prior = 0.5 * (mu / 5) ** 2 - log_tau + jnp.log1p(jnp.exp(2 * log_tau) / 25)
        pool = jnp.sum(0.5 * jnp.square((theta - mu) * jnp.exp(-log_tau)) + log_tau)
        return prior + pool + 0.5 * jnp.sum(jnp.square((jnp.asarray(y, x.dtype) - theta) / jnp.asarray(sd, x.dtype)))

    grid = np.linspace(-15, 12, 5001)
    variance = np.exp(2 * grid)[:, None] + sd**2
    precision = 1 / 25 + (1 / variance).sum(axis=1)
    mean = (y / variance).sum(axis=1) / precision
    misfit = (y**2 / variance).sum(axis=1) - precision * mean**2
    logs = grid - np.log1p(np.exp(2 * grid) / 25) + 0.5 * (np.log(2 * np.pi * sd**2) - np.log(variance)).sum(axis=1)
    logs += 0.5 * np.log(2 * np.pi / precision) - 0.5 * misfit
    return lnz.FunctionEnergy(energy, lnz.Real(10)), float(np.logaddexp.reduce(logs) + np.log(grid[1] - grid[0]))


@pytest.mark.parametrize("temperatures", [500, 1000])
def test_chains_that_stand_still_are_warned_of(temperatures):
    energy, truth = schools()
    for seed in range(3):
        route = ROUTES.AnnealedImportanceSampling(temperatures=temperatures, mode_probes=0)
        estimate = lnz.log_partition(energy, route=route, key=jax.random.key(seed))
        assert EstimateWarning.STUCK_CHAINS in estimate.warning_codes
        assert estimate.lower < truth


def powers(square, fourth, x):
    return square * jnp.sum(x**2) + fourth * jnp.sum(x**4)


@pytest.mark.parametrize("power", [2, 4])
def test_chains_that_stand_still_in_the_tails_of_the_base_are_not(power):
    energy = with_numbers(powers, *{2: (0.6, 0.0), 4: (0.5, 0.1)}[power], space=lnz.Real(5))
    for seed in range(3):
        route = ROUTES.AnnealedImportanceSampling(mode_probes=0)
        estimate = lnz.log_partition(energy, route=route, key=jax.random.key(seed))
        assert estimate.warning_codes == []


def two_modes(weight, visible=40):
    """An RBM with one hidden unit: its two values are modes of one weight, and the base is at the middle of both."""
    machine = lnz.RBM(visible, 1, key=jax.random.key(0))
    bias = jnp.asarray([visible * (math.log(2) - float(np.logaddexp(0, weight)))])
    parts = (jnp.full((visible, 1), float(weight)), jnp.zeros(visible), bias)
    return eqx.tree_at(lambda m: (m.weights, m.visible_bias, m.hidden_bias), machine, parts)


ANNEALING = [ROUTES.AnnealedImportanceSampling, ROUTES.SequentialMonteCarlo, ROUTES.ParallelTempering]


@pytest.mark.parametrize("route", ANNEALING)
@pytest.mark.parametrize(("weight", "visible"), [(6.0, 40), (-6.0, 40), (8.0, 40)])
def test_every_route_looks_for_modes(route, weight, visible):
    energy = two_modes(weight, visible)
    truth = float(lnz.log_partition(energy).value)
    estimate = lnz.log_partition(energy, route=route(), key=jax.random.key(3))
    assert estimate.warnings or estimate.lower <= truth <= estimate.upper


def test_coexistence_of_a_potts_model_at_a_small_budget():
    """Mean field, q = 10, at its transition: an ordered and a disordered phase of like weight (Wu 1982)."""
    n, q = 50, 10
    coupling = 2 * (q - 1) * math.log(q - 1) / (q - 2) / n
    energy = lnz.Potts(coupling * (1 - np.eye(n)), np.zeros((n, q)), q=q)
    k = np.arange(n + 1.0)
    one = np.exp(
        0.5 * coupling * k * (k - 1) - np.array([math.lgamma(x + 1) for x in k])
    )  # Σ_k e^{J k (k-1) / 2} z^k / k!
    whole = np.ones(1)
    for _ in range(q):
        whole = np.convolve(whole, one)[: n + 1]
    truth = math.log(whole[n]) + math.lgamma(n + 1)
    for seed in range(4):
        route = ROUTES.AnnealedImportanceSampling(temperatures=100, chains=64)
        estimate = lnz.log_partition(energy, route=route, key=jax.random.key(seed))
        assert estimate.warnings or estimate.lower <= truth <= estimate.upper


def easy(name):
    rng = np.random.default_rng(0)
    if name == "glass":
        strengths, fields = 0.3 * rng.normal(size=(2, 4, 4)), 0.3 * rng.normal(size=(4, 4))
        return lnz.Ising.lattice((4, 4), strengths, fields, periodic=True)
    if name == "machine":
        return lnz.RBM.from_parameters(0.3 * rng.normal(size=(20, 6)), rng.normal(size=20), rng.normal(size=6))
    return lnz.Gaussian(np.arange(3.0), np.array([1.0, 2.0, 0.5]))


@pytest.mark.parametrize("route", ANNEALING)
@pytest.mark.parametrize("name", ["glass", pytest.param("machine", marks=pytest.mark.slow), "normal"])
def test_no_false_alarm_on_easy_models(route, name):
    for seed in range(3):
        assert lnz.log_partition(easy(name), route=route(), key=jax.random.key(seed)).warning_codes == []


def in_a_corner(edge, slope, wall, x):
    return jnp.where(x.sum() < edge, slope * x.sum(), wall)


@pytest.mark.parametrize("wall", [np.inf, 1e30])
def test_tempering_where_nearly_all_of_the_box_is_impossible(wall):
    """A twentieth of the cube is possible. Chains that begin outside are moved in; where none is inside, the answer has no error and says so."""
    energy = with_numbers(in_a_corner, 0.65, 0.2, wall, space=lnz.Box([0.0] * 3, [1.0] * 3))
    route = lnz.routes.ParallelTempering(rungs=8, iterations=200, replicates=8, mode_probes=0)
    found = [lnz.log_partition(energy, route=route, key=jax.random.key(i)) for i in range(12)]
    assert all(f.lower <= -3.18129 <= f.upper for f in found)
    settled = [float(f.value) for f in found if np.isfinite(f.standard_error)]
    assert len(settled) >= 9
    assert np.mean(settled) == pytest.approx(-3.18129, abs=4 * np.std(settled) / np.sqrt(len(settled)))
    assert all(f.warnings for f in found if not np.isfinite(f.standard_error))


@pytest.mark.parametrize("wall", [np.inf, 1e30])
def test_tempering_where_no_start_is_possible(wall):
    """A thousandth of the cube: the run says that it came to no equilibrium, instead of NaN."""
    energy = with_numbers(in_a_corner, 0.15, 0.0, wall, space=lnz.Box([0.0] * 3, [1.0] * 3))
    route = lnz.routes.ParallelTempering(rungs=8, iterations=16, replicates=2, mode_probes=0)
    found = lnz.log_partition(energy, route=route, key=jax.random.key(1))
    assert found.lower == -np.inf
    assert found.upper == np.inf
    assert any("base to the model" in str(w) for w in found.warnings)


def test_where_nothing_is_possible_the_pilot_ends_early():
    """No particle has a weight after a few steps, nor will one have later: not 4,096 of them."""
    nowhere = lnz.FunctionEnergy(lambda s: jnp.where(jnp.sum(s) > 9, 0.0, jnp.inf), lnz.Spin(3))
    route = ROUTES.SequentialMonteCarlo(particles=16, replicates=4, mode_probes=0)
    estimate = lnz.log_partition(nowhere, route=route, key=jax.random.key(0))
    assert estimate.diagnostics["temperatures"] < 100
    assert EstimateWarning.ZERO_WEIGHTS in estimate.warning_codes


def test_an_offset_that_single_precision_cannot_hold():
    """Its numbers lie 64 apart at 1e9: an exact sum says so, and so do chains, whose bounds are then worth nothing."""
    offset = lnz.FunctionEnergy(lambda s: jnp.float32(1e9) + 0.5 * jnp.sum(s).astype(jnp.float32), lnz.Spin(6))
    with float64(False):
        exact = lnz.log_partition(offset)
        route = ROUTES.AnnealedImportanceSampling(temperatures=12, chains=16, mode_probes=0)
        sampled = lnz.log_partition(offset, route=route, key=jax.random.key(0))
    truth = 6 * math.log(2 * math.cosh(0.5)) - 1e9
    for estimate in (exact, sampled):
        assert float(estimate.lower) <= truth <= float(estimate.upper)
        assert EstimateWarning.LOST_DIGITS in estimate.warning_codes
        assert "switch on float64" in str(estimate)


def test_samples_that_no_forward_chain_reaches_are_no_sign_of_nothing():
    """Reverse chains start at possible states, so log Z is not -inf, whatever the forward chains say."""
    single = lnz.FunctionEnergy(lambda s: jnp.where(jnp.all(s > 0), 0.0, jnp.inf), lnz.Spin(20))
    route = ROUTES.BidirectionalAIS.from_samples(np.ones((16, 20)), exact=True, temperatures=12, chains=16)
    estimate = lnz.log_partition(single, route=route, key=jax.random.key(0))
    assert 0 < float(estimate.value) <= float(estimate.upper)
    assert EstimateWarning.ZERO_WEIGHTS in estimate.warning_codes
