"""Bennett's ratio and MBAR against exact ratios, a closed form and pymbar; and schedules."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.routes._annealing.bridge import overlap
from lnz.routes._annealing.programs import on_host
from lnz.routes._annealing.schedule import checked_schedule, conditional_ess, fixed_betas

MEANS, WIDTHS = np.array([0.0, 1.0, 2.2, 2.0]), np.array([1.0, 0.7, 1.2, 0.5])
COUNTS = np.array([400, 700, 300, 600])
TRUTH = np.log(WIDTHS / WIDTHS[0]) + np.array([0.0, 0.3, -1.1, 2.0])


def pooled(seed):
    """Samples of four Gaussians of different widths and constants, and every energy of each: (4, N)."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(m, s, n) for m, s, n in zip(MEANS, WIDTHS, COUNTS, strict=True)])
    shift = np.array([0.0, 0.3, -1.1, 2.0])
    return 0.5 * ((x[None] - MEANS[:, None]) / WIDTHS[:, None]) ** 2 - shift[:, None]


@pytest.fixture(scope="module")
def many():
    """MBAR of all four laws, and BAR of the first two, over a hundred seeds."""
    u = jnp.asarray(np.stack([pooled(seed) for seed in range(100)]))
    first, second = slice(0, COUNTS[0]), slice(COUNTS[0], COUNTS[0] + COUNTS[1])

    def one(u):
        forward, reverse = u[0, first] - u[1, first], u[1, second] - u[0, second]
        c = lnz.routes.bar(forward, reverse)
        return lnz.routes.mbar(u, jnp.asarray(COUNTS)), c, on_host(overlap, forward, reverse, c)

    return jax.jit(lambda u: jax.lax.map(one, u))(u)


def test_the_ratios_are_those_of_the_widths(many):
    full, pair, shared = jax.tree.map(np.asarray, many)
    for found, truth in [(pair, TRUTH[1]), *((full.log_z[:, k], TRUTH[k]) for k in (1, 2, 3))]:
        z = (found.mean() - truth) / (found.std(ddof=1) / 10)
        assert abs(z) < 4.5
        assert found.std() < 0.2
    assert full.log_z[:, 1].std() < 1.05 * pair.std()  # more laws say more
    x = np.linspace(-8, 10, 4001)
    p, q = (
        np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi) for m, s in zip(MEANS[:2], WIDTHS[:2], strict=True)
    )
    assert abs(shared.mean() - np.trapezoid(2 * p * q / (p + q), x)) < 0.02
    np.testing.assert_allclose(full.overlap.sum(axis=2), 1, atol=1e-8)


def test_mbar_is_self_consistent_and_as_pymbar_has_it():
    u = pooled(3)
    log_z = np.asarray(lnz.routes.mbar(jnp.asarray(u), jnp.asarray(COUNTS)).log_z)
    mixture = np.log(np.sum(COUNTS[:, None] * np.exp(-u - log_z[:, None]), axis=0))
    again = np.log(np.exp(-u - mixture[None]).sum(axis=1))
    np.testing.assert_allclose(again - again[0], log_z, atol=1e-9)
    pymbar = pytest.importorskip("pymbar")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its solver's options
        np.testing.assert_allclose(-pymbar.MBAR(u, COUNTS).f_k, log_z, atol=1e-6)
        forward, reverse = u[1, :400] - u[0, :400], u[0, 400:1100] - u[1, 400:1100]
        theirs = pymbar.bar(forward, reverse)["Delta_f"]
    np.testing.assert_allclose(-theirs, lnz.routes.bar(-jnp.asarray(forward), -jnp.asarray(reverse)), atol=1e-6)


def test_laws_without_overlap_show_it():
    u = jnp.asarray(np.concatenate([np.zeros((1, 40)), np.where(np.arange(40) < 20, 60.0, -60.0)[None]]))
    with pytest.warns(RuntimeWarning, match="hardly overlap"):
        found = lnz.routes.mbar(u, jnp.asarray([20, 20]))
    assert float(found.overlap[0, 1]) < 1e-8
    assert float(overlap(-u[1, :20], u[1, 20:], found.log_z[1])) < 1e-8
    assert np.isfinite(np.asarray(found.log_z)).all()


def test_impossible_and_undefined_works():
    some = jnp.asarray([0.0, -jnp.inf, 1.0])
    assert np.isfinite(float(lnz.routes.bar(some, jnp.asarray([-0.5, 0.0]))))
    assert float(lnz.routes.bar(jnp.full((3,), -jnp.inf), jnp.asarray([-0.5, 0.0]))) == -np.inf
    assert np.isnan(float(lnz.routes.bar(some * jnp.nan, jnp.asarray([0.0]))))


@pytest.mark.wrong_types
def test_schedules_run_from_zero_to_one():
    assert checked_schedule([0, 0.1, 1]) == (0.0, 0.1, 1.0)
    for bad in ([0.1, 1], [0, 0.9], [0, 0.6, 0.5, 1], [1.0], [0, float("nan"), 1]):
        with pytest.raises(ValueError, match="inverse temperatures that rise from 0 to 1"):
            checked_schedule(bad)
    with pytest.raises(ValueError, match="unknown schedule 'cubic'"):
        lnz.routes.AnnealedImportanceSampling(schedule="cubic")
    assert lnz.routes.AnnealedImportanceSampling(schedule=[0, 0.5, 1]).temperatures == 2
    for name in ("linear", "sigmoid", "quadratic"):
        betas = np.asarray(fixed_betas(name, 7))
        assert betas[0] == 0
        assert betas[-1] == pytest.approx(1, abs=1e-12)
        assert (np.diff(betas) > 0).all()


def test_the_conditional_effective_sample_size():
    gains = jnp.asarray([0.0, 1.0, -jnp.inf, 0.5])
    w = np.exp([0.0, 1.0, 0.5])
    assert float(conditional_ess(gains)) == pytest.approx(w.sum() ** 2 / (3 * (w**2).sum()))
    assert float(conditional_ess(jnp.zeros(5))) == pytest.approx(1)


def separated(means, n=300, seed=0):
    """Energies of n samples of each of some unit normals, every one further offset by 1,000 than the one before."""
    means, rng = np.asarray(means, float), np.random.default_rng(seed)
    x = np.concatenate([rng.normal(mean, 1, n) for mean in means])
    return 0.5 * (x - means[:, None]) ** 2 + 1000.0 * np.arange(len(means))[:, None]


def balanced(u, n):
    """The same ratio of two distributions, by a root in NumPy on logarithms."""
    scipy = pytest.importorskip("scipy.optimize")
    a, b = u[0, :n] - u[1, :n], u[1, n:] - u[0, n:]

    def gap(c):
        return np.logaddexp.reduce(-np.logaddexp(0, c - a)) - np.logaddexp.reduce(-np.logaddexp(0, -c - b))

    return scipy.brentq(gap, -5000, 5000)


def test_bar_where_most_weights_are_zero():
    """A weight of -inf is one of zero, and counts among the samples: a fraction p of the states that are possible gives log p."""
    nothing = -jnp.inf
    for possible, impossible in ((1, 99), (3, 5), (40, 2)):
        found = lnz.routes.bar(jnp.asarray([0.0] * possible + [nothing] * impossible), jnp.zeros(30))
        assert float(found) == pytest.approx(np.log(possible / (possible + impossible)), abs=1e-9)
    back = lnz.routes.bar(jnp.zeros(30), jnp.asarray([0.0] + [nothing] * 99))
    assert float(back) == pytest.approx(np.log(100), abs=1e-9)
    both = lnz.routes.bar(jnp.asarray([2.0, nothing, nothing, nothing]), jnp.asarray([-2.0, nothing]))
    assert float(both) == pytest.approx(2 + np.log(0.25) - np.log(0.5), abs=1e-9)
    assert float(lnz.routes.bar([nothing] * 3, [0.0])) == -np.inf
    assert float(lnz.routes.bar([0.0], [nothing] * 3)) == np.inf
    assert np.isnan(float(lnz.routes.bar([nothing], [nothing])))


def test_bar_of_works_without_overlap():
    a, b = np.asarray([-900.0, -1000.0]), np.asarray([-1000.0, -980.0])
    scale = balanced(np.stack([np.concatenate([a, 0 * b]), np.concatenate([0 * a, b])]), 2)
    assert float(lnz.routes.bar(a, b)) == pytest.approx(scale, abs=1e-6)


def test_bar_of_lists_integers_and_single_precision():
    for kind in (list, np.asarray, lambda x: np.asarray(x, np.float32), lambda x: jnp.asarray(x, jnp.int8)):
        assert float(lnz.routes.bar(kind([0, 1]), kind([-1, 0]))) == pytest.approx(0.5, abs=1e-6)
    with pytest.raises(ValueError, match="one array of at least one number"):
        lnz.routes.bar([], [0.0])


@pytest.mark.parametrize("distance", [12.0, 20.0, 40.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mbar_where_two_distributions_hardly_overlap(distance, dtype):
    u = separated([0.0, distance])
    with jax.enable_x64(dtype == np.float64):
        with pytest.warns(RuntimeWarning, match="hardly overlap"):
            found = lnz.routes.mbar(u, [300, 300])
        assert bool(found.converged)
        assert bool(found.poor_overlap)
    assert float(found.log_z[1]) == pytest.approx(balanced(u, 300), abs=0.01)


def test_mbar_says_where_it_did_not_converge():
    blocks = separated([0.0, 1.0, 60.0, 61.0])
    with pytest.warns(RuntimeWarning, match="did not converge"):
        assert not bool(lnz.routes.mbar(blocks, [300] * 4).converged)
    apart = np.where(np.eye(2, dtype=bool).repeat(5, axis=1), 0.0, np.inf)
    with pytest.warns(RuntimeWarning, match="did not converge"):
        assert not bool(lnz.routes.mbar(apart, [5, 5]).converged)
    near = lnz.routes.mbar(separated([0.0, 1.0, 2.0]), [300] * 3)
    assert bool(near.converged)
    assert not bool(near.poor_overlap)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([3, 2], "add up to 5"),
        ([4, 0], "at least one sample"),
        ([5, -1], "at least one sample"),
        ([4], "as many counts"),
    ],
)
def test_mbar_refuses_counts_that_are_not_those_of_the_samples(counts, words):
    with pytest.raises(ValueError, match=words):
        lnz.routes.mbar(jnp.zeros((2, 4)), counts)
