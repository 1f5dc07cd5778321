"""Mode probes warn where the annealed chains miss a mode or lag behind, and not where nothing is missed; their weights have mean Z."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._models.independent import StratifiedMixture, default_base
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.mode_probes import ON, along, compared, searched
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.schedule import fixed_ladder

ROUTE = lnz.routes.AnnealedImportanceSampling(temperatures=40, chains=24, mode_probes=24)


def stepping(steps, log_step):
    """A straight ladder whose step size is the same everywhere."""
    ladder = fixed_ladder(np.linspace(0, 1, steps + 1))
    return ladder._replace(log_steps=jnp.full_like(ladder.log_steps, log_step))


@eqx.filter_jit
def asked(energy, keys):
    """Value, limits and the flag of many runs, by one compiled program for all RBMs of one shape."""

    def one(key):
        e = ROUTE.log_partition(energy, key)
        return (
            e.value,
            e.lower,
            e.upper,
            e.flags[EstimateWarning.MISSED_MODES] | e.flags[EstimateWarning.LAGGING_CHAINS],
        )

    return jax.lax.map(one, keys)


@pytest.fixture
def keys(seed=0):
    return jax.random.split(jax.random.key(seed), 60)


def test_a_mode_that_no_chain_finds_is_warned_of_and_the_upper_limit_allows_for_it(keys):
    (model,) = lnz.reference.reference_models("rbm-hidden-mode-40x8")
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


@pytest.mark.parametrize("space", ["binary", "real"])
def test_weights_from_a_scouts_own_base_have_mean_z(space):
    """On a law with two unequal modes. (On the line, one to which chains come from afar: where moves are refused, the mean rests on rare weights.)"""
    base, log_step, moves = None, -1.5, 8
    if space == "binary":
        weights = np.array([[2.0, -1.0], [1.5, 0.5], [-1.0, 2.5], [0.5, -2.0]])
        energy = lnz.RBM.from_parameters(weights, np.array([-1.0, 0.3, -0.5, 0.2]), np.array([-1.0, 0.4]))
    else:
        energy = lnz.FunctionEnergy(
            lambda x: -jnp.logaddexp(-0.5 * (x[0] - 1.5) ** 2, -1 - 0.5 * (x[0] + 1.5) ** 2), lnz.Real(1)
        )
        base, log_step, moves = lnz.Gaussian([0.0], [11.0]), -0.3, 16
    truth = float(lnz.log_partition(energy).value)
    path, kernel = Path(energy, base), default_kernel(energy)
    ends, weights = path.public(path.start(jax.random.key(2), 8)), jnp.zeros(8)
    ladder, options = stepping(2 * moves, log_step), {"kernel": kernel, "mode_probes": 3000, "sweeps": 1}
    found = searched(path, jax.random.key(1), ends, weights, ladder, **options).found
    ratio = np.exp(np.asarray(found) - truth)
    z = (ratio.mean() - 1) / (ratio.std() / math.sqrt(ratio.size))
    assert abs(z) < 4
    assert ratio.std() < 3


@pytest.mark.slow
def test_far_modes_of_a_density(keys):
    (model,) = lnz.reference.reference_models("apart-2")
    energy = model.energy()
    _, lower, upper, warned = map(np.asarray, asked(energy, keys))
    wrong = (model.log_z < lower) | (model.log_z > upper)
    assert warned.sum() > 30
    assert (wrong & ~warned).sum() <= 3


def test_a_mode_too_narrow_for_chains_to_enter_is_warned_of(keys):
    """Beside a normal density one of a fifth of its width, of half of the weight or of none: one program."""

    class Two(lnz.Energy):
        log_weight: jax.Array
        space = lnz.Real(3)

        def __call__(self, x):
            away = jnp.sum(jnp.square(x - jnp.asarray([3.0, -2.0, 3.0])))
            return -jnp.logaddexp(-0.5 * jnp.sum(jnp.square(x)), self.log_weight + 3 * math.log(5) - 12.5 * away)

    def found(log_weight):
        value, *_, warned = map(np.asarray, asked(Two(jnp.asarray(log_weight)), keys[:30]))
        return value - 1.5 * math.log(2 * math.pi), warned

    value, warned = found(0.0)
    missed = value < 0.4
    assert missed.sum() > 10
    assert warned[missed].mean() > 0.9
    assert found(-50.0)[1].sum() <= 1


@pytest.mark.slow
def test_chains_that_do_not_get_into_a_funnel_are_warned_of(keys):
    (model,) = lnz.reference.reference_models("funnel-10")
    route = lnz.routes.AnnealedImportanceSampling(temperatures=100, chains=64, mode_probes=32)

    def one(energy, key):
        e = route.log_partition(energy, key)
        return e.lower, e.upper, e.flags[EstimateWarning.LAGGING_CHAINS]

    run = eqx.filter_jit(lambda energy: jax.lax.map(lambda key: one(energy, key), keys))
    lower, upper, warned = map(np.asarray, run(model.energy()))
    assert warned.sum() > 30
    assert ((lower <= model.log_z) & (model.log_z <= upper)).sum() >= 57


def test_an_eighth_of_the_mode_probes_with_more_work_than_usual_is_a_warning():
    """Work that is no outlier of its own: between two and three interquartile ranges, and as many nats, above the upper quartile."""
    usual, value = np.linspace(0, 4, 32), jnp.zeros(())
    given: Any = {"value": value, "standard_error": value, "lower": value - 1, "upper": value + 1}
    estimate = Estimate(
        **given, guarantee="conditional", route="", confidence=0.99, assumption="", diagnostics={}, flags={}
    )
    low, high = np.quantile(usual, [0.25, 0.75])
    for several, more, found in ((4, 2.5, 0.0), (3, 2.5, 0.0), (4, 1.5, 0.0), (4, 2.5, -9.0), (1, 3.5, 0.0)):
        probes = np.where(np.arange(32) < several, high + more * (high - low) + more, 2.0)
        flags = compared(estimate, usual, usual, probes, found=np.full(32, found)).flags
        assert bool(flags[EstimateWarning.MISSED_MODES]) is (found == 0 and (more > 3 or (several == 4 and more > 2)))


def test_mode_probes_that_never_move_have_finite_weights():
    """Steps that are too large by far, so that bases are fitted to single points: the interval must stay an interval."""
    path, ends = Path(CAGE), 1e-3 * jax.random.normal(jax.random.key(0), (64, 3))
    options = {"kernel": default_kernel(CAGE), "mode_probes": 64, "sweeps": 1}
    found = searched(path, jax.random.key(1), ends, jnp.zeros(64), stepping(20, 12.0), **options).found
    assert found is not None
    assert not np.isnan(np.asarray(found)).any()


CAGE = lnz.FunctionEnergy(lambda x: 5e5 * jnp.sum(jnp.square(x)), lnz.Real(3))
NARROW = lnz.FunctionEnergy(lambda x: 1e4 * jnp.sum(jnp.square(x - 0.3)), lnz.Box(np.zeros(2), np.ones(2)))


@pytest.mark.parametrize("narrow", [True, False])
def test_ends_that_move_on_to_where_the_way_back_is_longer_are_a_warning(narrow):
    """Ends that stand for the model stay where they are; others go down, with small steps where the step size is far too large."""
    ends = 0.3 + 0.5**0.5 * 0.01 * jax.random.normal(jax.random.key(0), (200, 2))
    ends = ends if narrow else ends + 0.6
    value = jnp.asarray(-5.0, jnp.result_type(float))
    given: Any = {"value": value, "standard_error": value, "lower": value - 1, "upper": value + 1}
    estimate = Estimate(
        **given, guarantee="conditional", route="", confidence=0.99, assumption="", diagnostics={}, flags={}
    )
    options = {"kernel": default_kernel(NARROW), "mode_probes": 64, "sweeps": 1}
    ladder = stepping(200, np.log(3e-3))
    search = searched(Path(NARROW), jax.random.key(1), ends, jnp.zeros(200), ladder, **options)
    assert search.found is None
    found = compared(estimate, *(-jax.vmap(NARROW)(v) for v in reversed(search.groups)))
    assert EstimateWarning.MISSED_MODES not in found.flags  # mode probes do not know boxes
    assert bool(found.flags[EstimateWarning.LAGGING_CHAINS]) is not narrow
    usual, after = (-1e4 * np.square(np.asarray(v) - 0.3).sum(axis=1) for v in reversed(search.groups))
    low, high = np.quantile(usual, [0.25, 0.75])
    left = after > high + 3 * (high - low) + 3
    assert float(found.diagnostics["ends_that_left"]) == pytest.approx(left.mean())
    upper = -np.log(np.mean(np.exp(-after[left]))) if left.any() else -4.0
    assert float(found.upper) == pytest.approx(max(upper, -4.0), rel=1e-4)


def test_moving_on_leaves_the_law_as_it_is_and_gets_into_narrow_places():
    """A funnel in the plane: x_1 ~ N(0, 2²), x_2 ~ N(0, e^{2 x_1}), and a step size that fits its wide end."""
    energy = lnz.FunctionEnergy(lambda x: x[0] ** 2 / 8 + x[0] + 0.5 * jnp.exp(-2 * x[0]) * x[1] ** 2, lnz.Real(2))
    path, kernel = Path(energy), default_kernel(energy)
    rng, n = np.random.default_rng(0), 4000
    v = 2 * rng.normal(size=n)
    x = np.stack([v, np.exp(v) * rng.normal(size=n)], axis=1)
    flat = stepping(60, 0.0)
    flat = flat._replace(betas=jnp.ones_like(flat.betas))

    def on(x):
        return along(path, jax.random.key(2), [x, x], flat, ON, kernel=kernel, sweeps=1).states[0][:, 0]

    after = np.asarray(on(jnp.asarray(x, jnp.float32)), np.float64) / 2
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15)):
        assert abs((after**power).mean() - mean) < 4 * math.sqrt(variance / n)
    wide = np.where(v[:, None] > -0.5, x, [[0.0, 1.0]])
    # Over 200 keys 0.042, give or take 0.003; moves of one step size bring 0.025 there, and never 0.03.
    assert (np.asarray(on(jnp.asarray(wide, jnp.float32))) < -2).mean() > 0.03


def test_the_default_base_of_the_real_line_has_wide_tails_and_mass_one():
    base: Any = default_base(lnz.Real(2))
    assert float(base.log_normaliser()) == pytest.approx(0, abs=1e-6)
    x = np.asarray(base.sample(jax.random.key(0), 4000))
    assert 0.01 < (np.abs(x).max(axis=1) > 15).mean() < 0.15
    assert np.quantile(np.abs(x), 0.5) < 2.5


def test_a_stratified_mixture_shares_out_its_components_evenly_and_without_bias():
    """Counts are n π to within one in every draw; every place of the batch, and the mean of the counts, has the law of the mixture."""
    far = tuple(lnz.Gaussian([100.0 * i], [1.0 + i]) for i in range(3))
    mixture = StratifiedMixture([0.3, -0.4, -1.0], far)
    masses = np.exp([0.3, -0.4, -1.0]) * np.sqrt(2 * np.pi / np.array([1.0, 2.0, 3.0]))
    share, n, repeats = masses / masses.sum(), 10, 4000
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: mixture.sample(k, n)))(jax.random.split(jax.random.key(1), repeats)))
    which = np.rint(drawn[..., 0] / 100).astype(int)
    counts = (which[..., None] == np.arange(3)).sum(axis=1)
    assert (np.abs(counts - n * share) < 2).all()
    assert counts.min(axis=0)[1] >= 1
    mean = counts.mean(axis=0) / n
    np.testing.assert_allclose(mean, share, atol=4 * 0.5 / n / math.sqrt(repeats) + 1e-9)
    for place in range(n):  # no place of the batch is special
        seen = np.bincount(which[:, place], minlength=3) / repeats
        np.testing.assert_allclose(seen, share, atol=4 * 0.5 / math.sqrt(repeats))
    assert np.std(drawn[..., 0][which == 1] - 100) == pytest.approx(2**-0.5, rel=0.03)


def test_scouts_must_be_a_count():
    with pytest.raises(ValueError, match="mode probes must be an integer of at least 0"):
        lnz.routes.AnnealedImportanceSampling(mode_probes=-1)
    assert lnz.routes.AnnealedImportanceSampling(10, 10, mode_probes=40).cost(lnz.Ising(jnp.zeros((2, 2)))) == 600
