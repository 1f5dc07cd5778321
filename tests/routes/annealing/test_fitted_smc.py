"""SMC from a base that a pilot fits: exact weights whatever was fitted, right on models of many scales, and words where it has not arrived."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.routes import ON_HOST
from lnz._core.estimate_warning import EstimateWarning
from lnz.routes._annealing import fitted_smc
from lnz.routes._annealing.fitted_smc import annealed, elsewhere, fallen, has_forgotten, outward, plain_map, target_of
from lnz.routes._annealing.triangular_map import fitted_map, times

ROUTE = lnz.routes.FittedSMC()
SCHOOLS = np.array([28, 8, -3, 7, -1, 1, 18, 12.0]), np.array([15, 10, 16, 11, 9, 11, 10, 18.0])
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def funnel(d):
    """Neal's funnel, log Z = 0."""

    def energy(x):
        rest = 0.5 * x[1:] ** 2 * jnp.exp(-x[0]) + 0.5 * x[0]
        return x[0] ** 2 / 18 + math.log(3) + jnp.sum(rest) + d * HALF_LOG_2PI

    return lnz.FunctionEnergy(energy, lnz.Real(d)), 0.0


def banana(d):
    def energy(x):
        return jnp.sum(100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2) / 20

    return lnz.FunctionEnergy(energy, lnz.Real(d)), d / 2 * math.log(2 * math.pi)


def rotated(d):
    """A normal distribution whose variances, from 10^-3 to 10^3, lie in no axis."""
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0]
    variances = 10.0 ** np.linspace(-3, 3, d)
    root = jnp.asarray(axes / np.sqrt(variances))
    log_z = d * HALF_LOG_2PI + 0.5 * np.log(variances).sum()
    return lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum((x @ root) ** 2), lnz.Real(d)), log_z


def schools():
    """Eight schools (Rubin 1981), centred, in (μ, log τ, θ), with μ ~ N(0, 5²) and τ half-Cauchy of scale 5."""
    y, sd = map(jnp.asarray, SCHOOLS)

    def energy(x):
        mean, log_tau, theta = x[0], x[1], x[2:]
        prior = 0.5 * (mean / 5) ** 2 + math.log(5) + HALF_LOG_2PI - math.log(2 / math.pi / 5)
        prior = prior + jnp.log1p(jnp.exp(2 * log_tau) / 25) - log_tau
        each = 0.5 * (theta - mean) ** 2 * jnp.exp(-2 * log_tau) + log_tau + 0.5 * ((y - theta) / sd) ** 2 + jnp.log(sd)
        return prior + jnp.sum(each) + 16 * HALF_LOG_2PI

    return lnz.FunctionEnergy(energy, lnz.Real(10)), -31.3113


def two_alike(separation, d):
    """Two standard normal distributions, each of mass 1; or one, without a separation."""

    def energy(x):
        one = 0.5 * jnp.sum(x**2)
        both = one if separation is None else -jnp.logaddexp(-one, -0.5 * jnp.sum((x - separation) ** 2))
        return both + d * HALF_LOG_2PI

    return lnz.FunctionEnergy(energy, lnz.Real(d))


@functools.cache
def curved_states():
    """States with a ridge, a neck and a bend."""
    x = np.random.default_rng(0).normal(size=(4, 3000))
    x[1] = x[0] ** 2 + 0.1 * x[1]
    x[2] = x[0] * np.maximum(x[1], 0) + np.exp(0.5 * x[0]) * x[2]
    return x


def test_a_map_has_its_inverse_its_volume_and_its_derivative():
    fitted = fitted_map(curved_states(), 1.0)
    noise = fitted.drawn(np.random.default_rng(1), 5)
    placed, mix = fitted.place(noise), np.random.default_rng(2).normal(size=(4, 4))
    np.testing.assert_allclose(fitted.variables(placed.x), noise, atol=1e-9)
    assert len(fitted.terms[2]) > 0  # so that all of its parts are differentiated
    pulled = fitted.pulled(placed, mix.T @ np.cos(mix @ placed.x))
    jacobian = np.empty((4, 4, 5))
    for i in range(4):
        step = 1e-6 * np.eye(4)[:, [i]]
        above, below = fitted.place(noise + step), fitted.place(noise - step)
        values = [np.sin(mix @ each.x).sum(axis=0) + each.log_volume for each in (above, below)]
        np.testing.assert_allclose(pulled[i], (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-6)
        jacobian[:, i] = (above.x - below.x) / 2e-6
    np.testing.assert_allclose(placed.log_volume, np.linalg.slogdet(jacobian.transpose(2, 0, 1))[1], atol=1e-6)


@pytest.mark.parametrize(
    "shapes", [((3,), (3, 9)), ((9, 3), (3,)), ((5,), (5,)), ((3, 4), (4, 5)), ((2, 3), (3, 300_000))]
)
def test_products_in_blocks(shapes):
    a, b = (np.random.default_rng(0).normal(size=shape) for shape in shapes)
    np.testing.assert_allclose(times(a, b), a @ b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(times(b.T, a.T), b.T @ a.T, rtol=1e-12, atol=1e-12)


def test_products_of_long_rows_in_blocks():
    a = np.random.default_rng(0).normal(size=(4, 100_001))
    np.testing.assert_allclose(times(a, a.T), a @ a.T, rtol=1e-11, atol=1e-9)


@pytest.mark.slow
def test_numbers_are_those_of_one_thread_however_many_there_are():
    code = """
import jax, jax.numpy as jnp, lnz
energy = lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(x**2) + 0.1 * jnp.sum(jnp.cos(3 * x)), lnz.Real(20))
print(float(lnz.log_partition(energy, key=jax.random.key(0)).value).hex())
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OPENBLAS_NUM_THREADS": n, "JAX_ENABLE_X64": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in "14"
    }
    assert len(found) == 1


def test_a_fitted_map_is_likelier_than_independent_variables():
    x = curved_states()
    fitted = fitted_map(x, 1.0)
    noise = fitted.variables(x)
    log_density = fitted.log_density(noise)[0] - fitted.place(noise).log_volume
    normal = -0.5 * np.linalg.slogdet(np.cov(x))[1] - 2 * math.log(2 * math.pi) - 2
    assert log_density.mean() > normal + 2


def test_estimates_of_z_have_mean_z_however_little_the_pilot_found():
    """Thousands of populations of four particles from one base: independent estimates of Z."""
    energy, log_z = funnel(4)
    (route,) = ON_HOST
    estimate = lnz.log_partition(energy, route=route, key=jax.random.key(1))
    assert estimate.diagnostics["replicate_sd"] > 0.1  # else there is nothing to see
    assert abs(math.expm1(float(estimate.value) - log_z)) < 4 * float(estimate.standard_error) < 0.2
    assert estimate.lower <= log_z


@pytest.mark.parametrize(
    ("model", "d"),
    [
        (rotated, 6),
        pytest.param(funnel, 10, marks=pytest.mark.slow),
        pytest.param(banana, 10, marks=pytest.mark.slow),
        pytest.param(rotated, 10, marks=pytest.mark.slow),
        pytest.param(schools, None, marks=pytest.mark.slow),
    ],
)
def test_models_of_many_scales(model, d):
    energy, log_z = model() if d is None else model(d)
    estimates = [lnz.log_partition(energy, key=jax.random.key(seed)) for seed in range(1 if d == 6 else 6)]
    assert np.abs(np.mean([float(e.value) for e in estimates]) - log_z) < 0.05
    assert sum(bool(e.lower <= log_z <= e.upper) for e in estimates) >= len(estimates) - 1
    assert not any(e.warnings for e in estimates)
    widths = [float(e.upper - e.lower) for e in estimates]
    assert np.median(widths) < 0.3
    assert max(widths) < 1.0  # of a run that met the heavy tail of its weights


def test_a_pilot_that_has_not_arrived_says_so():
    energy, log_z = banana(10)
    estimate = lnz.log_partition(
        energy, route=lnz.routes.FittedSMC(particles=32, replicates=16, rounds=1, mode_probes=0), key=jax.random.key(0)
    )
    assert estimate.flags[EstimateWarning.UNSETTLED_BASE]
    assert estimate.lower <= log_z


@pytest.mark.parametrize(("separation", "mass"), [(6.0, 0.0), (None, -np.inf)])
def test_chains_from_dispersed_starts_weigh_a_mode_that_the_base_misses(separation, mass):
    energy = two_alike(separation, 4)
    rng, target = np.random.default_rng(0), target_of(energy)
    base = fitted_map(rng.normal(size=(4, 2000)), 1.1)
    found, _, states = elsewhere(target, base, rng, 8 * rng.normal(size=(4, 1024)), limit=6.0)
    assert found == pytest.approx(mass, abs=0.3)
    assert (states.min(axis=0) > 0).all()


def wide_and_narrow(d, separation):
    """Two normal distributions of mass 1 each, of standard deviations 1 and 0.3; log Z = log 2."""

    def energy(x):
        narrow = -0.5 * jnp.sum(x.at[0].add(-separation) ** 2) / 0.09 - d * math.log(0.3)
        return d * HALF_LOG_2PI - jnp.logaddexp(-0.5 * jnp.sum(x**2), narrow)

    return lnz.FunctionEnergy(energy, lnz.Real(d))


@pytest.mark.parametrize(("separation", "seen"), [(6.0, True), (0.0, False)])
def test_slopes_of_a_narrow_mode_are_seen_far_from_where_any_chain_goes(separation, seen):
    rng, target = np.random.default_rng(0), target_of(wide_and_narrow(6, separation))
    base = fitted_map(rng.normal(size=(6, 2000)), 1.1)
    base = base._replace(log_scale=tuple(0 * c for c in base.log_scale), terms=[[]] * 6)
    x = outward(target, base, rng, 64)
    assert x.shape[1] == (64 if seen else 0)
    if seen:
        assert (np.median(x[0]), np.abs(x[1:]).mean() < 2) == (pytest.approx(separation, abs=2), True)


def test_no_points_are_looked_at_where_there_are_too_many_dimensions_for_them():
    base = fitted_map(np.random.default_rng(0).normal(size=(17, 2000)), 1.1)
    assert outward(lambda x: pytest.fail("looked at"), base, np.random.default_rng(0), 64).shape == (17, 0)


def test_a_pilot_begins_again_with_a_mode_that_it_had_missed():
    estimates = [lnz.log_partition(wide_and_narrow(6, 6.0), key=jax.random.key(seed)) for seed in range(3)]
    assert [float(e.value) for e in estimates] == pytest.approx([math.log(2)] * 3, abs=0.1)
    assert not any(e.warnings for e in estimates)


def test_moves_that_are_fitted_on_the_way_make_log_z_no_higher_in_many_dimensions():
    """Fitted to the particles that they move, they did, by nats."""
    d = 60
    scale = np.geomspace(0.01, 1, d)[:, None]
    rng = np.random.default_rng(0)
    base = plain_map(rng.normal(size=(d, 1000)))
    ran = annealed(lambda x: (-0.5 * np.square(x / scale).sum(axis=0), -x / scale**2), base, rng, (8, 64))
    truth = d * HALF_LOG_2PI + np.log(scale).sum()
    assert np.median(ran.log_z) == pytest.approx(truth, abs=1.5)


def test_moves_end_where_particles_have_forgotten_or_forget_no_more():
    assert not has_forgotten([0.9, 0.1])  # two moves say little
    assert has_forgotten([0.9, 0.6, 0.3])
    assert not has_forgotten([0.99 - 0.02 * i for i in range(20)])  # slow, but on its way
    assert has_forgotten([0.9, 0.8] + 6 * [0.75])


def test_a_base_that_loses_modes_is_seen_by_log_z_that_falls():
    assert fallen([(-3.0, 0.5), (-1.0, 0.1), (-0.9, 0.1)]) is None
    assert fallen([(0.0, 0.5), (-1.0, 0.1)]) is None  # two errors
    assert fallen([(0.0, 0.2), (-1.0, 0.1)]) == pytest.approx(0.6)
    assert fallen([(5.0, 0.01), (4.9, 0.01)]) is None  # too little to matter
    assert fallen([(0.0, 0.1), (0.2, 0.1), (-1.0, 0.1), (-1.0, 0.1)]) == pytest.approx(0.5)


@pytest.mark.parametrize("mode_probes", [0, 16])
@pytest.mark.parametrize("seen", [50.0, -50.0])
def test_where_annealing_answers_its_interval_reaches_what_the_pilot_saw(monkeypatch, mode_probes, seen):
    monkeypatch.setattr(fitted_smc, "fallen", lambda found: seen)
    route = lnz.routes.FittedSMC(particles=16, replicates=4, rounds=1, mode_probes=mode_probes)
    estimate = lnz.log_partition(rotated(3)[0], route=route, key=jax.random.key(0))
    assert estimate.route.startswith("annealed importance sampling")
    assert estimate.flags[EstimateWarning.MISSED_MODES] == (seen > 0)
    assert estimate.upper == seen if seen > 0 else estimate.upper > 0


@pytest.mark.slow
def test_more_modes_than_a_map_resolves_are_left_to_annealing_with_an_interval_that_reaches_what_the_pilot_saw():
    energy = lnz.FunctionEnergy(lambda x: -lnz.reference.many_well_log_density(x), lnz.Real(24))
    estimate = lnz.log_partition(energy, key=jax.random.key(0))
    assert estimate.route.startswith("annealed importance sampling")
    assert estimate.lower <= lnz.reference.many_well_log_z(12) <= estimate.upper


def test_rounds_end_where_the_base_comes_no_nearer():
    """A chain of double wells, whose many modes no map resolves."""
    energy = lnz.FunctionEnergy(lambda x: jnp.sum((x**2 - 1) ** 2) - 0.5 * jnp.sum(x[1:] * x[:-1]), lnz.Real(8))
    estimate = lnz.log_partition(energy, key=jax.random.key(0))
    assert estimate.diagnostics["temperatures"] > 2
    assert len(estimate.diagnostics["pilot_log_z"]) <= 6
    assert float(estimate.value) == pytest.approx(6.066, abs=0.1)  # benchmarks/evidence.py: by quadrature


def test_the_derivative_is_the_mean_of_that_of_the_energy():
    def log_z(scale):
        energy = lnz.FunctionEnergy(jax.tree_util.Partial(lambda a, x: 0.5 * a * jnp.sum(x**2), scale), lnz.Real(5))
        return lnz.log_partition(energy, key=jax.random.key(0)).value

    value, slope = jax.value_and_grad(log_z)(jnp.asarray(2.0))
    assert float(value) == pytest.approx(2.5 * math.log(math.pi), abs=0.02)
    assert float(slope) == pytest.approx(-1.25, abs=0.1)


def test_impossible_states_have_no_mass_and_a_nan_is_refused():
    def half(other):
        return lnz.FunctionEnergy(lambda x: jnp.where(x[0, 0] > 0.5, other, 0.5 * jnp.sum(x**2)), lnz.Real((2, 2)))

    possible = lnz.log_partition(half(jnp.inf), key=jax.random.key(0))
    assert float(possible.value) == pytest.approx(2 * math.log(2 * math.pi) + math.log(0.691462), abs=0.05)
    with pytest.raises(ValueError, match="log Z is NaN"):
        lnz.log_partition(half(jnp.nan), key=jax.random.key(0))


def test_runs_are_not_joined_to_an_interval_that_none_of_their_pilots_would_sign():
    with pytest.raises(ValueError, match="not joined to a narrower interval"):
        lnz.log_partition_to_accuracy(rotated(6)[0], ROUTE, jax.random.key(0))


def test_where_it_is_chosen_and_where_it_cannot_be():
    def choice(d):
        return lnz.choose(lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(x**2), lnz.Real(d))).route

    assert isinstance(choice(6), lnz.routes.FittedSMC)
    assert isinstance(choice(65), lnz.routes.AnnealedImportanceSampling)
    assert "real vectors" in ROUTE.unsupported_reason(lnz.Ising(jnp.zeros((2, 2))))
    energy = rotated(6)[0]
    wide = lnz.Gaussian(jnp.zeros(6), jnp.full(6, 1e-2))
    assert ROUTE.unsupported_reason(energy) is None
    assert lnz.routes.FittedSMC.from_base(wide).unsupported_reason(energy) is None
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda a: ROUTE.require(lnz.FunctionEnergy(jax.tree_util.Partial(jnp.dot, a), lnz.Real(6)), None))(
            jnp.zeros(6)
        )
    with pytest.raises(ValueError, match="rounds"):
        lnz.routes.FittedSMC(rounds=0)
