"""Sequential Monte Carlo, parallel tempering and annealing in both directions against exact sums: T9, unbiasedness, coverage, and their warnings."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import named
from lnz._core.estimate_warning import EstimateWarning
from lnz.routes._annealing.annealing_route import from_weights, path_flags
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.replica_exchange import equal_rejections

SEEDS = 100
SMC = lnz.routes.SequentialMonteCarlo(particles=24, replicates=6, conditional=0.8)
TEMPERING = lnz.routes.ParallelTempering(rungs=5, iterations=160, replicates=6, estimator="mbar")
BOTH = lnz.routes.BidirectionalAIS(temperatures=24, chains=32)


def glass():
    """An Ising model on 3x4 sites with random couplings and fields at β = 1.3: frustrated, asymmetric; and its log Z by a list of states."""
    rng = np.random.default_rng(12)
    couplings, fields = 1.3 * rng.normal(size=(2, 3, 4)), 1.3 * 0.3 * rng.normal(size=(3, 4))
    energy = lnz.Ising.lattice((3, 4), couplings, fields, periodic=(False, True))
    s = 2.0 * ((np.arange(4096)[:, None] >> np.arange(12)) & 1).reshape(-1, 3, 4) - 1
    weight = s.reshape(4096, -1) @ fields.ravel()
    weight += (couplings[0, :2] * s[:, :2] * s[:, 1:]).sum(axis=(1, 2)) + (couplings[1] * s * np.roll(s, -1, 2)).sum(
        axis=(1, 2)
    )
    return energy, np.log(np.exp(weight).sum())


def many(energy, route, seeds=SEEDS):
    run = jax.jit(lambda e, keys: jax.lax.map(lambda k: route.log_partition(e, k), keys))
    return jax.tree.map(np.asarray, run(energy, jax.random.split(jax.random.key(5), seeds)))


def unbiased(estimates, truth):
    ratio = np.exp(estimates.value - truth)
    assert ratio.std() < 1, "too noisy to see a bias"
    return abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))


def covered(estimates, truth):
    return ((estimates.lower <= truth) & (truth <= estimates.upper)).mean()


@functools.cache
def population():
    return many(glass()[0], SMC)


@functools.cache
def ladder():
    return many(glass()[0], TEMPERING, seeds=60)


@functools.cache
def sandwich():
    """Both directions of a small RBM: from exact samples, and from a given sample, in one program."""
    case = named("rbm")

    def both(energy, keys, samples):
        exact = jax.lax.map(lambda k: BOTH.log_partition(energy, k), keys)

        def once(key):
            there, reverse, _ = BOTH.both_ways(BOTH.path(energy), samples, key)
            return there.log_weights, reverse

        works = jax.lax.map(once, keys)
        return exact, works

    samples = lnz.routes.Enumeration().sample(case.energy, jax.random.key(2), 32)
    found = jax.jit(both)(case.energy, jax.random.split(jax.random.key(5), SEEDS), samples)
    return jax.tree.map(np.asarray, found), float(np.real(case.log_z(case.flat)))


def test_populations_are_unbiased_and_their_limits_hold():
    estimates, truth = population(), glass()[1]
    assert unbiased(estimates, truth)
    assert covered(estimates, truth) >= 0.95
    assert (estimates.lower > truth).sum() <= 5
    error = (estimates.value - truth).std()
    assert 0.6 < np.sqrt(np.mean(estimates.standard_error**2)) / error < 1.6


def test_expectations_and_gradients_are_by_the_weights():
    """Three temperatures, so that the chains alone are far from the model: their weights make the difference."""
    energy = lnz.Ising([[0, 0.9, -0.4], [0.9, 0, 0.7], [-0.4, 0.7, 0]], [0.8, -0.3, 0.5])
    route, key = lnz.routes.AnnealedImportanceSampling(temperatures=3, chains=20_000, mode_probes=0), jax.random.key(3)
    exact = lnz.expectation(energy, lambda s: s.astype(jnp.float64), route=lnz.routes.Enumeration()).value
    found = lnz.expectation(energy, lambda s: s.astype(jnp.float64), route=route, key=key).value
    np.testing.assert_allclose(found, exact, atol=0.04)
    gradient = jax.grad(lambda e: lnz.log_partition(e, route=route, key=key).value)(energy)
    np.testing.assert_allclose(gradient.fields, exact, atol=0.04)


@pytest.mark.slow
def test_a_ladder_gives_one_answer_by_every_estimator():
    """T9: MBAR, BAR, stepping stone both ways, and the brackets of thermodynamic integration."""
    estimates, truth = ladder(), glass()[1]
    found = estimates.diagnostics
    for value in (estimates.value, found["bar"], found["stepping_stone"], found["reverse_stepping_stone"]):
        assert abs(value.mean() - truth) < 5 * value.std(ddof=1) / np.sqrt(len(value)) + 0.01
        assert value.std() < 0.3
    assert found["thermodynamic_left"].mean() < truth < found["thermodynamic_right"].mean()
    assert covered(estimates, truth) >= 0.93
    error = (estimates.value - truth).std()
    assert 0.6 < np.sqrt(np.mean(estimates.standard_error**2)) / error < 1.6
    assert np.abs(estimates.value - found["bar"]).max() < 0.2
    assert found["r_hat"].mean() < 1.05
    assert found["round_trips"].min() > 6
    assert 0.3 < found["least_swap_acceptance"].min() < 0.95
    assert np.mean([any(raised) for raised in zip(*estimates.flags.values(), strict=True)]) < 0.1


@pytest.mark.slow
def test_annealing_and_tempering_agree():
    """T9 across routes."""
    a, b = population(), ladder()
    difference = a.value.mean() - b.value.mean()
    assert abs(difference) < 5 * np.hypot(a.value.std() / 10, b.value.std() / np.sqrt(60)) + 0.5 * a.value.var()


def test_the_sandwich_is_certified():
    (estimates, _), truth = sandwich()
    assert estimates.guarantee == "certified"
    assert "from a list of 16 states" in estimates.assumption
    assert covered(estimates, truth) >= 0.95
    assert abs(estimates.value.mean() - truth) < 5 * estimates.value.std(ddof=1) / 10 + 0.005
    error = (estimates.value - truth).std()
    assert 0.6 < np.sqrt(np.mean(estimates.standard_error**2)) / error < 1.6
    assert (estimates.diagnostics["overlap"] > 0.3).all()
    assert np.mean([any(raised) for raised in zip(*estimates.flags.values(), strict=True)]) < 0.05


def test_works_have_crooks_symmetry():
    """E_F[f(a) e^(a - log Z)] = E_R[f(-b)] for any f of the work, and so E[e^b] = 1/Z."""
    (_, (forward, reverse)), truth = sandwich()
    assert abs(np.exp(reverse + truth).mean() - 1) < 4 * np.exp(reverse + truth).std() / np.sqrt(reverse.size)
    edges = np.quantile(forward, [0.2, 0.5, 0.8])
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        left = np.where((forward >= low) & (forward < high), np.exp(forward - truth), 0).ravel()
        right = ((-reverse >= low) & (-reverse < high)).astype(float).ravel()
        # The given samples are the same for every seed: their error is that of 32 starts, not of all chains.
        right_error = right.reshape(SEEDS, -1).mean(axis=0).std() / np.sqrt(32)
        assert abs(left.mean() - right.mean()) < 4.5 * np.hypot(left.std() / np.sqrt(left.size), right_error)


@pytest.mark.slow
def test_one_mode_of_two_carries_its_warning():
    """Reverse chains that know only the mode of 1 % would put log Z below the truth by 4.6; forward chains find both."""
    weights, bias = np.full((4, 3), 4.0), np.full(4, -6.0)
    rbm = lnz.RBM.from_parameters(weights, bias, np.full(3, -6.0))
    states = ((np.arange(16)[:, None] >> np.arange(4)) & 1).astype(float)
    truth = float(lnz.log_partition(rbm, route=lnz.routes.Enumeration()).value)
    p = np.asarray(lnz.routes.Enumeration().probabilities(rbm))
    rare = states[15] if p[15] < p[0] else states[0]
    assert 1e-4 < min(p[0], p[15]) < 0.3
    run = jax.jit(
        lambda keys: jax.lax.map(lambda k: BOTH.between(rbm, jnp.tile(rare, (32, 1)), k, exact=False).estimate, keys)
    )
    estimates = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(1), SEEDS)))
    wrong = ~((estimates.lower <= truth) & (truth <= estimates.upper))
    warned = np.any(list(estimates.flags.values()), axis=0)
    assert warned.mean() > 0.9
    assert (warned | ~wrong).all()
    assert estimates.guarantee == "conditional"


@pytest.mark.slow
def test_runs_are_joined_until_the_interval_is_narrow(key):
    energy, truth = glass()
    route = lnz.routes.AnnealedImportanceSampling(temperatures=40, chains=64)
    estimate = lnz.log_partition_to_accuracy(energy, route, key, within=0.3, max_seconds=600)
    assert estimate.upper - estimate.lower <= 0.3
    assert estimate.lower < truth < estimate.upper
    assert estimate.warnings == []
    assert "runs of annealed importance sampling" in str(estimate)
    assert int(estimate.diagnostics["runs"]) in (2, 4, 8, 16, 32, 64)
    assert estimate.diagnostics["effective_sample_size"] > 64
    hasty = lnz.log_partition_to_accuracy(energy, route, key, within=1e-3, max_seconds=1e-3)
    assert int(hasty.diagnostics["runs"]) == 1
    assert hasty.warning_codes[-1] is EstimateWarning.OUT_OF_TIME
    with pytest.raises(ValueError, match="gives no weights with mean Z"):
        lnz.log_partition_to_accuracy(energy, lnz.routes.ParallelTempering(), key, within=0.1)
    with pytest.raises(ValueError, match="must be above 0"):
        lnz.log_partition_to_accuracy(energy, route, key, within=-1.0)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda e: lnz.log_partition_to_accuracy(e, route, key, within=0.1))(energy)


@pytest.mark.slow
def test_a_constant_model_has_no_error(key):
    """Where the model is its base, everything is exact, and nothing divides by zero."""
    flat = lnz.Independent(np.zeros(3), lnz.Spin(3))
    for route in (
        lnz.routes.SequentialMonteCarlo(particles=4, replicates=3),
        lnz.routes.ParallelTempering(rungs=3, iterations=8, replicates=2),
    ):
        estimate = many(flat, route, seeds=2)
        np.testing.assert_allclose(estimate.value, 3 * np.log(2), rtol=1e-6)
        np.testing.assert_allclose(estimate.standard_error, 0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 2 particles"):
        lnz.routes.SequentialMonteCarlo(particles=1)
    with pytest.raises(ValueError, match="conditional is a share"):
        lnz.routes.SequentialMonteCarlo(conditional=1.0)
    with pytest.raises(ValueError, match="at least 2 rungs"):
        lnz.routes.ParallelTempering(rungs=1)
    with pytest.raises(ValueError, match="unknown estimator 'wham'"):
        lnz.routes.ParallelTempering(estimator="wham")
    with pytest.raises(ValueError, match="exact=True describes samples"):
        lnz.routes.BidirectionalAIS(exact=True)
    for route in (lnz.routes.SequentialMonteCarlo, lnz.routes.ParallelTempering, lnz.routes.BidirectionalAIS):
        with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
            route(confidence=1.0)
        with pytest.raises(ValueError, match="draws samples: pass key="):
            lnz.log_partition(named("rbm").energy, route=route())
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="no exact samples of it are available"):
        lnz.log_partition(named("double well").energy, route=lnz.routes.BidirectionalAIS(), key=key)
    with pytest.raises(ValueError, match="its samples are not states of the energy"):
        lnz.log_partition(
            named("rbm").energy,
            route=lnz.routes.BidirectionalAIS.from_samples(np.full((3, 4), 2.0), exact=True),
            key=key,
        )
    with pytest.raises(ValueError, match="every entry varies"):
        lnz.routes.fitted_base(lnz.Real(2), np.zeros((5, 2)))


def test_warnings_say_what_is_wrong():
    about = {"confidence": 0.99, "route": "chains", "assumption": "", "diagnostics": {}, "flags": {}}
    estimate = jax.jit(functools.partial(from_weights, **about))
    assert estimate(jnp.full((64,), -jnp.inf)).warning_codes == [EstimateWarning.ZERO_WEIGHTS]
    lonely = estimate(jnp.asarray([30.0] + [0.0] * 63))
    assert lonely.warnings == [EstimateWarning.FEW_EFFECTIVE_SAMPLES.message]
    assert "Warning: A few chains carry the whole estimate" in str(lonely)
    assert estimate(jnp.asarray(np.random.default_rng(0).normal(size=64))).warnings == []


def flagged(energy, base, points):
    found = jax.jit(lambda v: path_flags(Path(energy, base), v))(jnp.asarray(points))
    return [code for code, raised in found.items() if bool(raised)]


def test_an_infinite_z_and_an_uncovered_model_are_flagged():
    x = np.random.default_rng(0).normal(size=(5, 2))
    energy = lambda f: lnz.FunctionEnergy(f, lnz.Real(2))  # noqa: E731
    for f in (
        lambda x: -jnp.sum(x**4),
        lambda x: x[0] ** 2,  # flat along the other axis
        lambda x: jnp.sum(jnp.maximum(x, 0)),  # a falling ray, or a flat quarter
        lambda x: 0.5 * jnp.log1p(jnp.sum(x**2)),
    ):
        assert flagged(energy(f), None, x) == [EstimateWarning.INFINITE_Z]
    for f in (
        lambda x: jnp.sum(x**4),
        lambda x: 1.5 * jnp.log1p(jnp.sum(x**2)),
        lambda x: jnp.sum(jnp.log1p(x**2)),
        lambda x: jnp.sum(jnp.abs(x)),
    ):
        assert flagged(energy(f), None, x) == []
    narrow = energy(lambda x: jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, jnp.inf))
    assert flagged(energy(lambda x: jnp.sum(x**2)), narrow, 3 + x) == [EstimateWarning.UNCOVERED_STATES]


def test_a_fitted_base_has_the_means_of_the_data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 2)) * [2.0, 0.5] + [1.0, -3.0]
    base = lnz.routes.fitted_base(lnz.Real(2), x)
    np.testing.assert_allclose(base.mean, x.mean(axis=0))
    np.testing.assert_allclose(base.precision, 1 / x.var(axis=0))


# ------------------------------------------------------------------------------------------------------- the diagnostics


@pytest.mark.slow
def test_equal_rejections_share_the_barrier():
    betas, density = jnp.linspace(0, 1, 9), lambda b: 1 + 30 * np.exp(-(((np.asarray(b) - 0.7) / 0.05) ** 2))
    for _ in range(12):
        cuts = [np.linspace(a, b, 50) for a, b in itertools.pairwise(np.asarray(betas))]
        rejected = jnp.asarray([np.trapezoid(density(x), x) for x in cuts])
        betas = equal_rejections(betas, rejected / 10)
    assert betas[0] == 0
    assert betas[-1] == 1
    assert float(rejected.max() / rejected.min()) < 1.5


def test_thermodynamic_integration_behind_a_wall_says_that_it_diverges():
    energy = lnz.FunctionEnergy(lambda s: jnp.where(s[0] > 0, 0.3 * s[1] * s[2], jnp.inf), lnz.Spin(3))
    route = lnz.routes.ParallelTempering(rungs=3, iterations=16, replicates=2, estimator="thermodynamic integration")
    found = lnz.log_partition(energy, route=route, key=jax.random.key(0))
    assert "Thermodynamic integration diverges" in str(found)
    assert float(found.value) == float(found.lower) == -np.inf
    assert float(found.upper) > np.log(4 * np.cosh(0.3))
