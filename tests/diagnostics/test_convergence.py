"""R-hat, effective sample size and autocorrelation time against plain sums, and all who use them alike on chains that agree and do not."""

import functools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lnz
from lnz._core.convergence import R_HAT_THRESHOLD, _mean_ranks, _r_hat_of, autocorrelation_time, r_hat_threshold
from lnz.diagnostics import EstimateWarning, ess, r_hat
from lnz.diagnostics._audit_states import _mixing
from lnz.learning._monitor import Watch, alarms
from lnz.routes._annealing import parallel_tempering

KEY = jax.random.key(3)


def autoregression(rho, chains, draws, seed):
    rng = np.random.default_rng(seed)
    x = [rng.normal(size=chains)]
    for _ in range(draws - 1):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * rng.normal(size=chains))
    return np.stack(x, axis=1)


def split(chains):
    half = len(chains[0]) // 2
    return [list(part) for chain in chains for part in (chain[:half], chain[len(chain) - half :])]


def scores(chains):
    """Normal scores by counting: a value's rank is the mean of the places that it and its equals take."""
    every = sorted(v for chain in chains for v in chain)
    normal, n = statistics.NormalDist(), len(every)

    def score(v):
        places = [place for place, other in enumerate(every, start=1) if other == v]
        return normal.inv_cdf((sum(places) / len(places) - 3 / 8) / (n + 1 / 4))

    return [[score(v) for v in chain] for chain in chains]


def plain_r_hat(chains):
    """Vehtari et al. 2021, equations 3, 4 and 14, and the folded values of section 4.1, number by number."""

    def ratio(z):
        n, means = len(z[0]), [statistics.fmean(chain) for chain in z]
        between, within = n * statistics.variance(means), statistics.fmean(statistics.variance(chain) for chain in z)
        return math.sqrt(((n - 1) / n * within + between / n) / within)

    halves = split(chains)
    middle = statistics.median(v for chain in halves for v in chain)
    folded = [[abs(v - middle) for v in chain] for chain in halves]
    return max(ratio(scores(halves)), ratio(scores(folded)))


def plain_ess(chains):
    """Equations 10 and 11 there, and Geyer's initial monotone sequence of pairs."""
    z = np.asarray(scores(split(chains)))
    m, n = z.shape
    within, means = z.var(axis=1, ddof=1).mean(), z.mean(axis=1)
    total = (n - 1) / n * within + means.var(ddof=1)
    rho = [1.0]
    for t in range(1, n):
        covariance = np.mean([(row[: n - t] - mean) @ (row[t:] - mean) / n for row, mean in zip(z, means, strict=True)])
        rho.append(1 - (within - covariance) / total)
    tau, least, k = -1.0, math.inf, 0
    while 2 * k + 1 < n and rho[2 * k] + rho[2 * k + 1] > 0:
        least = min(least, rho[2 * k] + rho[2 * k + 1])
        tau, k = tau + 2 * least, k + 1
    tau += max(rho[2 * k], 0) if 2 * k < n else 0
    return m * n / max(tau, 1 / math.log10(m * n))


CHAINS = {
    "independent": autoregression(0.0, 4, 40, 0),
    "slow": autoregression(0.9, 4, 41, 1),
    "a last even correlation": autoregression(0.4, 4, 40, 21),  # of a pair whose sum is negative
    "anticorrelated": autoregression(-0.4, 3, 60, 2),
    "heavy tails": np.random.default_rng(3).standard_cauchy((4, 50)),
    "bits": (autoregression(0.5, 5, 32, 4) > 0.3).astype(float),
    "one chain": autoregression(0.3, 1, 80, 5),
    "a drift": autoregression(0.0, 4, 40, 6) + np.linspace(0, 2, 40),
    "another place": autoregression(0.0, 4, 40, 7) + np.asarray([[0], [0], [0], [2]]),
    "another width": autoregression(0.0, 4, 40, 8) * np.asarray([[1], [1], [1], [9]]),
}


@pytest.mark.parametrize("name", CHAINS)
def test_against_plain_sums(name):
    x = CHAINS[name]
    both = np.stack([x, x**3 + 1], axis=-1)  # ranks of the values do not change; their distances from the median do
    expected = [plain_r_hat(entry.tolist()) for entry in (x, x**3 + 1)]
    np.testing.assert_allclose(r_hat(both), expected, rtol=1e-9)
    np.testing.assert_allclose(jax.jit(r_hat)(jnp.asarray(both)), expected, rtol=1e-5)
    np.testing.assert_allclose(ess(both), plain_ess(x.tolist()), rtol=1e-9)


def test_against_the_sums_of_blackjax():
    from blackjax.diagnostics import effective_sample_size, potential_scale_reduction

    x = CHAINS["independent"]
    z = jnp.asarray(scores(split(x.tolist())))
    folded = np.abs(np.asarray(split(x.tolist())) - np.median(x))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ratios = [float(potential_scale_reduction(jnp.asarray(s))) for s in (z, scores(folded.tolist()))]
        size = float(effective_sample_size(z))
    assert float(r_hat(x)) == pytest.approx(max(ratios), rel=1e-5)
    assert float(ess(x)) == pytest.approx(size, rel=1e-4)


def test_chains_that_stand_still_and_values_that_are_none():
    same, apart = np.full((4, 10), 0.1), np.tile(np.arange(4.0)[:, None] / 7, (1, 10))
    for kind in (np.asarray, jnp.asarray):
        assert np.isnan(r_hat(kind(same)))
        assert r_hat(kind(apart)) == np.inf
        assert np.isnan(r_hat(kind(np.where(np.eye(4, 10) > 0, np.nan, apart))))
    assert np.isnan(ess(same))
    assert ess(apart) == 0
    assert np.isnan(ess(np.where(np.eye(4, 10) > 0, np.nan, CHAINS["independent"][:, :10])))
    lost = np.where(np.arange(40) % 5 == 0, np.inf, CHAINS["independent"])  # an energy may be infinite
    assert r_hat(lost) < 1.1
    assert r_hat(jnp.asarray(lost)) < 1.1


@pytest.mark.parametrize("shape", [(5,), (0, 8), (2, 3)])
@pytest.mark.parametrize("measure", [r_hat, ess])
def test_what_is_refused(measure, shape):
    with pytest.raises(ValueError, match="at least 4 draws"):
        measure(np.zeros(shape))


class TestAutocorrelationTime:
    @pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
    def test_the_time_of_an_autoregression(self, rho):
        """τ = (1 + ρ) / (1 - ρ)."""
        rng, n = np.random.default_rng(0), 400
        steps = [0, 64, 128, 192, 224, 240, 248, 252, 254, 255, 256]
        x, kept = rng.normal(size=(n, 5)), []
        for t in range(257):
            if t in steps:
                kept.append(x)
            x = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=x.shape)
        tau, lower_bound = autocorrelation_time(steps, np.stack(kept))
        assert tau == pytest.approx((1 + rho) / (1 - rho), rel=0.25)
        assert lower_bound == (rho == 0.99)

    def test_chains_that_stay_apart_never_mix(self):
        apart = np.repeat(np.where(np.arange(50) % 2, 1.0, -1.0)[None, :, None], 9, axis=0)
        noise = 0.1 * np.random.default_rng(1).normal(size=apart.shape)
        tau, lower_bound = autocorrelation_time(range(9), apart + noise)
        assert lower_bound
        assert tau > 100
        assert r_hat((apart + noise)[:, :, 0].T) > 1.5
        assert r_hat(noise[:, :, 0].T) == pytest.approx(1, abs=0.1)


# ---------------------------------------------------------------------------------------------------- who calls chains unmixed


def by_diagnosis(x):
    found = lnz.diagnose_chains(x)
    assert found.unmixed == ("disagree" in str(found))
    return found.unmixed


def by_audit(x):
    return _mixing("chains", x[..., None], np.zeros((*x.shape, 1))).status == "failed"


def by_monitor(x):
    """Chains whose energies are these numbers, as snapshots: the last 8 of every chain."""
    energy = lnz.FunctionEnergy(lambda v: v[0], lnz.Box(-1e9, 1e9, shape=1))
    trainer = lnz.Trainer(negative_phase=lnz.learning.PersistentChains())
    watch = Watch(lnz.learning.Monitor(), trainer, energy, jnp.zeros((4, 1)), 4, 0)
    watch.snapshots = [(watch.gap * k, jnp.asarray(x[:, k - 1, None], jnp.float32)) for k in range(1, 9)]
    figures, threshold = watch._mixing(energy, watch.every)
    return "r_hat" in {alarm.name for alarm in alarms(8, {**figures, "lag": 0.0, "r_hat_threshold": threshold})}


@functools.cache
def tempered(chains, draws):
    """A run of tempering with so many ladders, in NumPy."""
    route = lnz.routes.ParallelTempering(rungs=2, iterations=draws, replicates=chains)
    path = route.path(lnz.Ising.lattice((2, 2), 0.1, periodic=False))
    options = {"iterations": draws, "sweeps": 1, "rungs": 2, "replicates": chains, "everywhere": False}
    kernel = lnz.kernels.Gibbs()
    ladder = parallel_tempering.pilot(path, KEY, 0.9, kernel=kernel).ladder("barrier", 1)
    return jax.tree.map(
        np.asarray, parallel_tempering._tempered(path, jax.random.split(KEY), ladder, kernel=kernel, **options)
    )


def by_tempering(x):
    """A run whose ladders have these energies at the model."""
    run = tempered(*x.shape)
    run = run._replace(swaps=run.swaps._replace(down=x.T[:, None, :]))
    return bool(
        parallel_tempering._finished(run, None, estimator="bar", confidence=0.99, dtype=np.float64)[2][
            EstimateWarning.LADDERS_DISAGREE
        ]
    )


FOUR, SNAPSHOTS = (4, 400), (128, 8)  # the monitor keeps 8 snapshots, of many chains
USERS = [(by_diagnosis, FOUR), (by_audit, FOUR), (by_tempering, FOUR), (by_monitor, SNAPSHOTS)]


@pytest.mark.parametrize(("unmixed", "shape"), USERS)
def test_chains_of_different_width_are_unmixed_for_all(unmixed, shape):
    x = np.random.default_rng(0).normal(size=shape)
    width = np.where(np.arange(shape[0]) < shape[0] // 2, 1, 4)[:, None]
    assert not unmixed(x)
    assert unmixed(width * x)
    assert unmixed(x + 0.8 * (width == 4))


DRAWN = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(shape),
    "bits": lambda rng, shape: rng.integers(0, 2, shape).astype(float),
    "rare": lambda rng, shape: (rng.uniform(size=shape) < 0.05).astype(float),
}


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("shape", [(4, 400), (4, 16), (2, 8), (128, 8), (4, 100, 30)])
def test_independent_draws_are_called_unmixed_once_in_a_thousand(kind, shape):
    """200 runs: more than 3 false alarms have a chance below 1e-4 at that rate. Threshold 1.05 alone would give dozens in the short runs."""
    rng = np.random.default_rng(11)
    raised = [lnz.diagnose_chains(DRAWN[kind](rng, shape)).unmixed for _ in range(200)]
    assert sum(raised) <= 3


def test_well_mixed_chains_are_unmixed_for_none():
    """100 runs of each user: at most one false alarm in a thousand, so that more than 2 have a chance below 2e-4."""
    rng = np.random.default_rng(12)
    four, many = rng.normal(size=(100, *FOUR)), rng.normal(size=(100, *SNAPSHOTS))
    assert sum(map(by_diagnosis, four)) <= 2
    assert sum(map(by_audit, four)) <= 2
    assert sum(map(by_tempering, four)) <= 2
    assert sum(map(by_monitor, many)) <= 2


def test_learning_that_moves_all_chains_alike_is_no_disagreement():
    """The energies of all chains may fall and narrow as the model learns; the monitor compares chains, not times."""
    x = np.random.default_rng(13).normal(size=SNAPSHOTS)
    assert not by_monitor(x * np.linspace(3, 1, 8) - 5 * np.arange(8))
    assert by_monitor(x + 2 * x[:, :1])


def test_the_threshold():
    assert r_hat_threshold(4, 1000) == r_hat_threshold(128, 8) == R_HAT_THRESHOLD
    assert r_hat_threshold(4, 8) > r_hat_threshold(4, 16) > 1.15
    assert r_hat_threshold(4, 16, quantities=100) > r_hat_threshold(4, 16)


def test_ranks_are_those_of_scipy():
    source = np.random.default_rng(0)
    ties = source.integers(0, 5, (50, 4)).astype(float)
    for x in (
        source.normal(size=(50, 3)),
        ties,
        np.where(ties == 0, np.inf, ties),
        np.where(source.random((50, 4)) < 0.01, np.nan, ties),
    ):
        np.testing.assert_array_equal(_mean_ranks(x), stats.rankdata(x, axis=0))


def test_r_hat_of_four_numbers():
    """Two chains of two draws: the variance within is ½, that of the means 2, so R-hat² = ½ + 2 / ½."""
    assert float(_r_hat_of(np.array([[0.0, 1.0], [2.0, 3.0]]), np)) == pytest.approx(math.sqrt(0.5 + 4))


@pytest.mark.parametrize(("steps", "open_ended"), [(range(30), False), (range(2), True)], ids=["whole", "tail"])
def test_the_autocorrelation_time_of_an_autoregressive_chain(steps, open_ended):
    """Correlations ½^t sum to τ = 3, also where a tail must be assumed."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(4000, 1))]
    for _ in steps[1:]:
        states.append(0.5 * states[-1] + math.sqrt(0.75) * rng.normal(size=(4000, 1)))
    tau, lower_bound = autocorrelation_time(list(steps), np.array(states))
    assert tau == pytest.approx(3, rel=0.1)
    assert lower_bound == open_ended
