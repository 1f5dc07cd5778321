"""Quadrature of integrals that are known: the claimed error covers the true one, or the limitation is written down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import lnz
from lnz._core.estimate_warning import EstimateWarning

L2P = np.log(2 * np.pi)


def normal(t, x):
    """Independent normals at t[0] with standard deviations t[1:]."""
    return 0.5 * jnp.sum(((x - t[0]) / t[1:]) ** 2)


def correlated(t, x):
    z, r = (x - t[0]) / t[1], t[2]
    return 0.5 * (z[0] ** 2 - 2 * r * z[0] * z[1] + z[1] ** 2) / (1 - r**2)


def tailed(t, x):
    """Student's t of any dimension."""
    return 0.5 * (t[2] + x.size) * jnp.log1p(jnp.sum(((x - t[0]) / t[1]) ** 2) / t[2])


def tailed_log_z(n, t):
    _, s, nu = t
    return special.gammaln(nu / 2) - special.gammaln((nu + n) / 2) + n * (0.5 * np.log(nu * np.pi) + np.log(s))


def kinked(t, x):
    return jnp.sum(jnp.abs(x - t[0])) / t[1]


def two_modes(t, x):
    """Normals at ± t[0] with standard deviations t[1] and t[2], of weights 0.3 and 0.7: log Z = ½ n log 2π."""
    n = x.size
    first = jnp.log(0.3) - n * jnp.log(t[1]) - 0.5 * jnp.sum(((x - t[0]) / t[1]) ** 2)
    second = jnp.log(0.7) - n * jnp.log(t[2]) - 0.5 * jnp.sum(((x + t[0]) / t[2]) ** 2)
    return -jnp.logaddexp(first, second)


def gamma(t, x):
    return t[1] * x[0] - (t[0] - 1) * jnp.log(x[0])


def gamma_leftwards(t, x):
    return gamma(t, 3 - x)


def step(t, x):
    return jnp.where(x[0] > t[0], x[0] - t[0], jnp.inf)


def rosenbrock(t, x):
    return t[0] * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


PLACES = [(c, s) for c in (0.0, 50.0, -50.0) for s in (1e-3, 1.0, 1e3)]
SHAPES = [(a, b) for a in (0.5, 1.0, 5.0) for b in (1e-3, 1.0, 1e3)]
HALF = lnz.Box(0.0, np.inf, shape=1)
UNIT = lnz.Box(0.0, 1.0, shape=1)
FAMILIES = {
    "normal": (normal, lnz.Real(1), PLACES, lambda t: L2P / 2 + np.log(t[1])),
    "normal, 2 dimensions": (
        correlated,
        lnz.Real(2),
        [(c, s, r) for c, s in PLACES[:6] for r in (0.0, -0.99)],
        lambda t: L2P + 2 * np.log(t[1]) + 0.5 * np.log(1 - t[2] ** 2),
    ),
    "normal, 3 dimensions of different scales": (
        normal,
        lnz.Real(3),
        [(0.0, 1.0, 1e-3, 1e3), (50.0, 1e-3, 1e-3, 2e-3)],
        lambda t: 1.5 * L2P + np.log(t[1:]).sum(),
    ),
    "heavy tails": (
        tailed,
        lnz.Real(1),
        [(c, s, nu) for c, s in ((0.0, 1e-3), (50.0, 1.0), (0.0, 1e3)) for nu in (1.0, 2.0, 5.0)],
        lambda t: tailed_log_z(1, t),
    ),
    "heavy tails, 2 dimensions": (
        tailed,
        lnz.Real(2),
        [(0.0, 1.0, 1.0), (3.0, 1.0, 2.0)],
        lambda t: tailed_log_z(2, t),
    ),
    "kinked": (kinked, lnz.Real(1), PLACES, lambda t: np.log(2 * t[1])),
    "kinked, 2 dimensions": (kinked, lnz.Real(2), [(0.3, 1e-3), (50.0, 1.0)], lambda t: 2 * np.log(2 * t[1])),
    "two far modes": (
        two_modes,
        lnz.Real(1),
        [(50.0, 1.0, 1.0), (50.0, 0.1, 0.1), (50.0, 1.0, 0.01), (500.0, 1.0, 1.0), (5.0, 0.01, 0.01)],
        lambda t: L2P / 2,
    ),
    "two far modes, 2 dimensions": (two_modes, lnz.Real(2), [(5.0, 1.0, 1.0), (20.0, 1.0, 2.0)], lambda t: L2P),
    "half a line": (gamma, HALF, SHAPES, lambda t: special.gammaln(t[0]) - t[0] * np.log(t[1])),
    "half a line leftwards": (
        gamma_leftwards,
        lnz.Box(-np.inf, 3.0, shape=1),
        SHAPES,
        lambda t: special.gammaln(t[0]) - t[0] * np.log(t[1]),
    ),
    "normal on half a line": (
        normal,
        HALF,
        [(c, s) for c, s in PLACES if c >= 0],
        lambda t: L2P / 2 + np.log(t[1]) + stats.norm.logsf(-t[0] / t[1]),
    ),
    "normal on an interval": (
        normal,
        UNIT,
        [(0.3, s) for s in (1e-3, 0.1, 1e3)],
        lambda t: L2P / 2 + np.log(t[1]) + np.log(np.diff(stats.norm.cdf([-t[0] / t[1], (1 - t[0]) / t[1]]))[0]),
    ),
    "kinked on an interval": (
        kinked,
        UNIT,
        [(0.3, s) for s in (1e-3, 0.1, 1e3)],
        lambda t: np.log(t[1] * (2 - np.exp(-t[0] / t[1]) - np.exp(-(1 - t[0]) / t[1]))),
    ),
    "a step on a line": (step, lnz.Real(1), [(0.3,), (0.0,), (1.7,), (-20.0,)], lambda t: 0.0),
    "half a plane": (
        lambda t, x: t[0] * x[0] + 0.5 * x[1] ** 2,
        lnz.Box([0.0, -np.inf], [np.inf, np.inf]),
        [(2.0,), (1e-3,)],
        lambda t: L2P / 2 - np.log(t[0]),
    ),
    "Rosenbrock (A14)": (rosenbrock, lnz.Real(2), [(100.0,)], lambda t: lnz.reference.rosenbrock_log_z()),
    "Rosenbrock on a box (A14)": (
        rosenbrock,
        lnz.Box(-5.0, 5.0, shape=2),
        [(100.0,)],
        lambda t: lnz.reference.rosenbrock_log_z(half_width=5.0) + np.log(100),  # that one's prior is normalised
    ),
    "a scalar": (lambda t, x: normal(t, x[None]), lnz.Real(()), [(3.0, 2.0)], lambda t: L2P / 2 + np.log(2)),
}


def integrals(function, space, parameters):
    """Every integral of the family by one compiled program."""

    def one(t):
        energy = lnz.FunctionEnergy(jax.tree_util.Partial(function, t), space)
        return lnz.log_partition(energy, route=lnz.routes.Quadrature())

    return jax.jit(lambda rows: jax.lax.map(one, rows))(jnp.asarray(parameters))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_claimed_error_covers_the_true_one(name):
    function, space, parameters, log_z = FAMILIES[name]
    estimate = integrals(function, space, parameters)
    truth = np.array([log_z(np.asarray(t)) for t in parameters])
    assert estimate.guarantee == "approximate"
    assert (estimate.lower <= truth).all()
    assert (truth <= estimate.upper).all()
    assert (estimate.standard_error < 0.02).all(), "an error that wide says nothing"
    if name.startswith("normal") or ("leftwards" not in name and name.startswith("half")):
        np.testing.assert_allclose(estimate.value, truth, rtol=1e-10, atol=1e-10)


def test_a_needle_far_from_the_rest_can_be_missed():
    """The known limitation, as the class says: a mode narrower than about 1/10,000 of its distance from the rest."""
    assert "they miss a mode" in " ".join(lnz.routes.Quadrature.__doc__.split())
    estimate = integrals(two_modes, lnz.Real(1), [(300.0, 1.0, 0.01)])
    assert float(estimate.value[0]) < L2P / 2 - 1  # 70 % of the mass lie in the needle
    assert estimate.guarantee == "approximate"


def test_means_come_with_their_errors():
    """E[x], E[x²] of a gamma law and of a bounded one, with a claim that covers the error."""
    t = (2.5, 0.4)
    energy = lnz.FunctionEnergy(jax.tree_util.Partial(gamma, jnp.asarray(t)), HALF)
    moments = lnz.expectation(energy, lambda x: {"x": x, "square": x[0] ** 2, "large": x[0] > 5})
    truth = {
        "x": t[0] / t[1],
        "square": t[0] * (t[0] + 1) / t[1] ** 2,
        "large": stats.gamma.sf(5, t[0], scale=1 / t[1]),
    }
    for name, value in truth.items():
        assert abs(float(jnp.squeeze(moments.value[name])) - value) <= float(jnp.squeeze(moments.standard_error[name]))
        assert float(jnp.squeeze(moments.standard_error[name])) < 1e-3 * (1 + value)


@pytest.mark.parametrize(
    ("energy", "why"),
    [
        (lnz.Gaussian(np.zeros(4), np.ones(4)), "4 dimensions, but quadrature supports one to three"),
        (lnz.Ising(np.zeros((2, 2))), r"Spin\(2\) is not continuous"),
        (
            lnz.FunctionEnergy(lambda x: x[1][0] ** 2, lnz.Product(lnz.Binary(1), lnz.Real(1))),
            "is not a plain real space or box",
        ),
    ],
)
def test_what_quadrature_refuses(energy, why):
    with pytest.raises(ValueError, match=f"Quadrature does not support .*{why}"):
        lnz.log_partition(energy, route=lnz.routes.Quadrature())


@pytest.mark.parametrize("points", [0, 8, -5, 100.0])
def test_too_few_points(points):
    with pytest.raises(ValueError, match="points must be an integer of at least 9, but is"):
        lnz.routes.Quadrature(points=points)


INFINITE = {
    "flat": (lambda x: 0 * x[0], lnz.Real(1)),
    "no floor": (lambda x: -(x[0] ** 4), lnz.Real(1)),
    "a falling ray": (lambda x: jnp.where(x[0] > 0, -0.1 * x[0], -x[0]), lnz.Real(1)),
    "tails 1/|x|": (lambda x: jnp.log1p(jnp.abs(x[0])), lnz.Real(1)),
    "tails 1/r² in the plane": (lambda x: 2 * jnp.log1p(jnp.sqrt(jnp.sum(x**2) + 1e-12)), lnz.Real(2)),
    "a valley": (lambda x: x[0] ** 2, lnz.Real(2)),
    "a valley in space": (lambda x: x[0] ** 2 + x[1] ** 2, lnz.Real(3)),
    "flat on half a line": (lambda x: 0 * x[0], HALF),
    "tails 1/x on half a line": (lambda x: jnp.log1p(x[0]), HALF),
    "a pole at the end": (lambda x: jnp.log(x[0]) + x[0], HALF),
}


@pytest.mark.parametrize("name", INFINITE)
def test_an_infinite_z_is_refused(name):
    """THEORY, the failure table: Z = ∞."""
    energy = lnz.FunctionEnergy(*INFINITE[name])
    points = 4097 if energy.space.shape == (1,) else None
    with pytest.raises(ValueError, match=r"log Z is \+inf: .* still grows at the ends of the range"):
        lnz.log_partition(energy, route=lnz.routes.Quadrature(points=points))


def test_an_infinite_z_stays_in_the_value_inside_a_transformation():
    energy = lnz.FunctionEnergy(*INFINITE["tails 1/|x|"])
    estimate = jax.jit(lambda: lnz.log_partition(energy, route=lnz.routes.Quadrature(points=4097)))()
    assert float(estimate.value) == float(estimate.upper) == np.inf
    assert np.isfinite(float(estimate.lower))
    with pytest.raises(ValueError, match="Z is infinite"):
        lnz.expectation(energy, lambda x: x, route=lnz.routes.Quadrature(points=4097))


@pytest.mark.parametrize("power", [1.2, 1.3, 1.5, 2.0])
def test_heavy_tails_that_have_an_integral_are_no_infinity(power):
    """∫ (1 + |x|)^-a dx = 2 / (a - 1)."""
    energy = lnz.FunctionEnergy(lambda x: power * jnp.log1p(jnp.abs(x[0])), lnz.Real(1))
    estimate = lnz.log_partition(energy, route=lnz.routes.Quadrature())
    assert float(estimate.lower) <= np.log(2 / (power - 1)) <= float(estimate.upper)


def ridge(angle, ratio, x, centre=0.0, scale=1.0):
    """A normal distribution of standard deviations `scale` along the angle and `scale * ratio` across it."""
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    return 0.5 * (jnp.dot(along, x - centre) / scale) ** 2 + 0.5 * (jnp.dot(across, x - centre) / (scale * ratio)) ** 2


def elongated(x):
    """A rotated normal distribution in three dimensions with standard deviations 1, 0.1 and 1e-4."""
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    return 0.5 * jnp.sum((jnp.asarray([1.0, 1e1, 1e4]) * (jnp.asarray(axes) @ x)) ** 2)


RIDGES = {
    "diagonal, 1e-4": (lambda x: ridge(np.pi / 4, 1e-4, x), lnz.Real(2), L2P - np.log(1e4)),
    "1e-6": (lambda x: ridge(0.3, 1e-6, x), lnz.Real(2), L2P - np.log(1e6)),
    "off the centre, wide": (
        lambda x: ridge(-0.7, 1e-4, x, 50.0, 1e3),
        lnz.Real(2),
        L2P + 2 * np.log(1e3) - np.log(1e4),
    ),
    "of Laplace's distribution": (
        lambda x: 1e4 * jnp.abs(x[0] - x[1]) + jnp.abs(x[0] + x[1]),
        lnz.Real(2),
        np.log(2e-4),
    ),
    "of Student's distribution": (
        lambda x: 1.5 * jnp.log1p((x[0] + x[1]) ** 2 + 1e6 * (x[0] - x[1] - 1) ** 2),
        lnz.Real(2),
        L2P - np.log(2e3),
    ),
    "in space": (elongated, lnz.Real(3), 1.5 * L2P - np.log(1e5)),
}


@pytest.mark.parametrize("name", RIDGES)
def test_a_narrow_ridge_is_resolved_in_every_direction(name):
    function, space, truth = RIDGES[name]
    estimate = lnz.log_partition(lnz.FunctionEnergy(function, space), route=lnz.routes.Quadrature())
    assert float(estimate.lower) <= truth <= float(estimate.upper)
    assert not estimate.warnings
    assert float(estimate.standard_error) < 0.05


def test_an_integral_that_is_not_resolved_is_warned_about():
    """A box has no axes to turn."""
    energy = lnz.FunctionEnergy(lambda x: ridge(np.pi / 4, 1e-4, x), lnz.Box(-5.0, 5.0, shape=2))
    estimate = lnz.log_partition(energy, route=lnz.routes.Quadrature())
    assert estimate.warning_codes == [EstimateWarning.UNRESOLVED_INTEGRAL]
    wide = lnz.FunctionEnergy(lambda x: ridge(np.pi / 4, 1e-1, x), lnz.Box(-5.0, 5.0, shape=2))
    assert not lnz.log_partition(wide, route=lnz.routes.Quadrature()).warnings


def hierarchical(x):
    """x[0] is the logarithm of the scale of the others: log Z = 0."""
    scores = [jax.scipy.stats.norm.logpdf(v, 0.0, jnp.exp(x[0])) for v in x[1:]]
    return -jax.scipy.stats.norm.logpdf(x[0]) - sum(scores)


@pytest.mark.parametrize(
    ("function", "dimensions", "truth"),
    [
        (lambda x: x[0] ** 2 / 18 + 0.5 * x[1] ** 2 * jnp.exp(-x[0]) + x[0] / 2, 2, L2P + np.log(3)),
        (hierarchical, 2, 0.0),
        (hierarchical, 3, 0.0),
        (lambda x: hierarchical(x) + 0.5 * (x[1] - 0.7) ** 2, 2, None),
    ],
)
def test_overflow_far_out_is_no_nan(function, dimensions, truth):
    """exp(-x) and 1/scale² overflow in the corners of the grid, where 0 · ∞ and ∞ - ∞ are NaN, and so is -log 0 + ∞."""
    energy = lnz.FunctionEnergy(function, lnz.Real(dimensions))
    estimate = lnz.log_partition(energy, route=lnz.routes.Quadrature())
    if truth is None:  # by one dimension less: x[1] is normal with variance 1 + exp(2 x[0])
        s, w = np.polynomial.hermite_e.hermegauss(80)
        spread = 1 + np.exp(2 * s)
        truth = np.log(np.sum(w * np.exp(-0.5 * 0.49 / spread) / np.sqrt(spread)) / np.sqrt(2 * np.pi))
    assert float(estimate.lower) <= truth <= float(estimate.upper)
    assert float(estimate.standard_error) < 0.05


def test_an_energy_that_is_nan_where_mass_may_be_is_refused():
    with pytest.raises(ValueError, match="log Z is NaN"):
        lnz.log_partition(
            lnz.FunctionEnergy(lambda x: x[0] - jnp.log(x[0]), lnz.Real(1)), route=lnz.routes.Quadrature()
        )


@pytest.mark.parametrize("function", [lambda x: x[0] ** 2 - x[1] ** 2, lambda x: x[0] * x[1]])
def test_an_indefinite_form_has_an_infinite_z(function):
    with pytest.raises(ValueError, match=r"log Z is \+inf: .* still grows"):
        lnz.log_partition(lnz.FunctionEnergy(function, lnz.Real(2)), route=lnz.routes.Quadrature())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_rotated_valley_without_end_has_an_infinite_z(dimensions):
    energy = lnz.FunctionEnergy(lambda x: jnp.sum(jnp.diff(x) ** 2), lnz.Real(dimensions))
    with pytest.raises(ValueError, match=r"log Z is \+inf: .* still grows"):
        lnz.log_partition(energy, route=lnz.routes.Quadrature())


def student(nu, dimensions=1):
    return lnz.FunctionEnergy(lambda x: 0.5 * (nu + dimensions) * jnp.log1p(jnp.sum(x**2) / nu), lnz.Real(dimensions))


HALF_CAUCHY = lnz.FunctionEnergy(lambda x: jnp.log1p(x[0] ** 2), HALF)
EXPONENTIAL = lnz.FunctionEnergy(lambda x: x[0], HALF)
BELL = lnz.FunctionEnergy(lambda x: 0.5 * x[0] ** 2, lnz.Real(1))


@pytest.mark.parametrize(
    ("energy", "f"),
    [
        (student(1.0), lambda x: jnp.abs(x[0])),
        (student(1.0), lambda x: jnp.exp(jnp.abs(x[0]))),
        (student(2.0), lambda x: -(x[0] ** 2)),
        (student(1.0, 2), lambda x: jnp.sqrt(jnp.sum(x**2))),
        (HALF_CAUCHY, lambda x: x[0]),
        (EXPONENTIAL, lambda x: 1 / x[0]),
    ],
)
def test_an_expectation_of_one_sign_without_a_mean_is_infinite(energy, f):
    estimate = lnz.expectation(energy, f, route=lnz.routes.Quadrature())
    assert np.isinf(float(estimate.value))
    assert np.isfinite(float(estimate.lower if float(estimate.value) > 0 else estimate.upper))


@pytest.mark.parametrize("f", [lambda x: x[0], lambda x: x[0] ** 3])
def test_an_expectation_that_does_not_exist_is_refused(f):
    with pytest.raises(ValueError, match=r"E\[f\] does not exist"):
        lnz.expectation(student(1.0), f, route=lnz.routes.Quadrature())


def test_an_expectation_beyond_the_range_of_floats_is_refused():
    """f e^-E is 1 everywhere, although e^-E is 0 in floats where f is not yet infinite; a little less grows slowly enough to be seen."""
    with pytest.raises(ValueError, match=r"E\[f\] does not exist"):
        lnz.expectation(BELL, lambda x: jnp.exp(0.5 * x[0] ** 2), route=lnz.routes.Quadrature())
    exact = lnz.expectation(BELL, lambda x: jnp.exp(0.4 * x[0] ** 2), route=lnz.routes.Quadrature())
    assert float(exact.value) == pytest.approx(np.sqrt(5), rel=1e-9)


@pytest.mark.parametrize(("nu", "power"), [(1.1, 1), (1.5, 1), (3.0, 2), (3.0, 1)])
def test_a_slow_tail_of_an_expectation_is_in_its_error(nu, power):
    """E|t|^k = ν^(k/2) Γ((k + 1)/2) Γ((ν - k)/2) / (√π Γ(ν/2))."""
    logs = special.gammaln((power + 1) / 2) + special.gammaln((nu - power) / 2) - special.gammaln(nu / 2)
    truth = nu ** (power / 2) * np.exp(logs) / np.sqrt(np.pi)
    estimate = lnz.expectation(student(nu), lambda x: jnp.abs(x[0]) ** power, route=lnz.routes.Quadrature())
    assert float(estimate.lower) <= truth <= float(estimate.upper)
    assert bool(estimate.warnings) == (nu - power < 1.5)
