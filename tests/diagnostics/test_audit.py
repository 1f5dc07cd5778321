"""The audit finds what THEORY's failure table and a list of planted bugs hold, and passes what is right."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.diagnostics import _audit_states
from lnz.routes._exact import quadrature
from lnz.routes._exact.quadrature_place import locate

GRADIENT, SIDES, SUPPORT, DEAD = (
    "gradient against difference",
    "one-sided derivatives",
    "support that moves with θ",
    "dead steps",
)
TAILS, FINITE, HARD, FLOATS = "mean and variance of ∂E", "finite Z", "hard constraints", "precision"
SIGN, LAW, CHAINS = "sign of E", "samples against p", "chains"
SCALAR, ALONE, SAME = "one number for one state", "no other members of the batch", "the same at every call"
LINE, HALF = lnz.Real(1), lnz.Box(0.0, np.inf, shape=1)


def model(function, theta, space):
    return lnz.FunctionEnergy(jax.tree_util.Partial(function, jnp.asarray(theta)), space)


def failures(report):
    return {check.name for check in report.checks if check.status == "failed"}


class TestTheTable:
    """THEORY, "where the interchange, or an estimator, fails"."""

    def test_moving_support_of_a_constant(self):
        uniform = model(lambda t, x: jnp.where((x[0] >= 0) & (x[0] <= t), 0.0, jnp.inf), 1.3, LINE)
        report = lnz.audit(uniform)
        assert {GRADIENT, SUPPORT} <= failures(report)
        assert report[GRADIENT].z > 6
        assert report.numbers["boundary"] == pytest.approx(1 / 1.3, rel=0.02)
        assert report.numbers["derivatives"]["difference"][0] == pytest.approx(1 / 1.3, rel=0.02)

    def test_moving_support_of_a_slope(self):
        cut = model(lambda t, x: jnp.where((x[0] >= 0) & (x[0] <= t), x[0], jnp.inf), 1.3, lnz.Box(-1.0, 5.0, shape=1))
        report = lnz.audit(cut)
        assert {GRADIENT, SUPPORT} <= failures(report)
        assert report.numbers["boundary"] == pytest.approx(0.374631, rel=0.02)

    def test_the_same_on_a_box_that_moves_is_right(self):
        report = lnz.audit(lnz.FunctionEnergy(lambda x: x[0], lnz.Box(0.0, jnp.asarray([1.3]))))
        assert report.passed, str(report)
        assert "boundary term" in report[SUPPORT].remedy
        found = report.numbers["derivatives"]
        assert (
            pytest.approx(dict(zip(found["labels"], found["identity"], strict=True))["limits[1][0]"], abs=1e-5)
            == 0.374631
        )

    def test_a_step_in_theta(self):
        report = lnz.audit(model(lambda t, x: (x[0] < t).astype(float), 0.4, lnz.Box(0.0, 1.0, shape=1)))
        assert {GRADIENT, DEAD} <= failures(report)
        assert report[GRADIENT].z > 6
        assert "argument 1" in report[DEAD].evidence

    def test_a_step_in_one_parameter_of_a_pytree_is_named(self):
        def energy(t, x):
            return 0.5 * t["scale"] * jnp.sum(x**2) + jnp.round(t["level"]) * jnp.tanh(x[0])

        theta = {"scale": jnp.asarray(1.5), "level": jnp.asarray(0.45)}
        report = lnz.audit(lnz.FunctionEnergy(jax.tree_util.Partial(energy, theta), LINE))
        assert "level" in report[DEAD].evidence
        assert "scale" not in report[DEAD].evidence

    def test_mass_that_escapes(self):
        escape = model(lambda t, x: -jnp.log(jnp.exp(-x[0]) + t**3 * jnp.exp(-(t**2) * x[0])), 0.0, HALF)
        report = lnz.audit(escape)
        assert failures(report) == {SIDES}
        assert report[SIDES].z > 6
        assert report.numbers["derivatives"]["forward"][0] == pytest.approx(1, abs=1e-3)
        away = lnz.audit(model(escape.function.func, 0.5, HALF))
        assert SIDES not in failures(away), "the identity holds for θ > 0"

    def test_a_gradient_without_a_mean(self):
        heavy = lambda t, x: t * jnp.abs(x[0]) + 2 * jnp.log1p(jnp.abs(x[0]))  # noqa: E731
        report = lnz.audit(model(heavy, 0.0, LINE))
        assert failures(report) == {TAILS}
        assert lnz.audit(model(heavy, 0.5, LINE)).passed

    def test_a_gradient_without_a_variance(self):
        location = lnz.audit(model(lambda t, x: 2.4 * jnp.log1p(jnp.abs(x[0] - t)), 0.1, LINE))
        assert location[TAILS].status == "passed", (
            "the gradient of a location is bounded: heavy tails of x alone are no failure"
        )
        scaled = lnz.audit(model(lambda t, x: 2.5 * jnp.log1p(jnp.abs(x[0])) + t * jnp.abs(x[0]), 0.0, LINE))
        assert scaled[TAILS].status == "warning"
        assert "Gaussian error bars" in scaled[TAILS].remedy

    @pytest.mark.parametrize(
        ("function", "space"),
        [
            pytest.param(lambda t, x: -t * x[0] ** 4, LINE, id="quartic", marks=pytest.mark.slow),
            pytest.param(lambda t, x: t * jnp.abs(x[0]) ** 0.0, LINE, id="flat"),
            pytest.param(
                lambda t, x: t * jnp.tanh(jnp.sum(x)), lnz.Real(6), id="bounded network", marks=pytest.mark.slow
            ),
            pytest.param(lambda t, x: t * jnp.log1p(jnp.sum(x**2)), lnz.Real(3), id="tails too heavy"),
            pytest.param(lambda t, x: 0.5 * jnp.sum(x[1:] ** 2) + t, lnz.Real(3), id="a valley"),
        ],
    )
    def test_an_infinite_z(self, function, space):
        report = lnz.audit(model(function, 1.0, space))
        assert FINITE in failures(report)

    def test_a_relu_network_with_one_falling_ray(self):
        """Ten units hold it down in every direction but a narrow cone, where it falls."""
        source = np.random.default_rng(1)
        w = source.normal(size=(40, 4))
        hole = np.asarray([1.0, 0.5, -0.3, 0.8]) / np.linalg.norm([1.0, 0.5, -0.3, 0.8])
        w = w[w @ hole < 0]

        def energy(t, x):
            return 3 * jnp.sum(jax.nn.relu(w @ x)) - t * jax.nn.relu(
                jnp.dot(hole, x) - 0.9 * jnp.sqrt(jnp.sum(x**2) + 1e-12)
            )

        assert FINITE in failures(lnz.audit(model(energy, 1.0, lnz.Real(4))))

    def test_hard_constraints(self, monkeypatch):
        searches = []
        monkeypatch.setattr(quadrature, "locate", lambda *known: searches.append(known) or locate(*known))
        report = lnz.audit(model(lambda t, x: jnp.where(x[0] > 0, x[0] - jnp.log(t * x[0]), jnp.inf), 1.0, LINE))
        assert report.passed
        assert len(searches) == 1, "the search for the mass is compiled once"
        roots = lnz.audit(
            model(
                lambda t, x: jnp.where(x[0] > t - 5, x[0] ** 2 + t, jnp.inf) + 0 * jnp.sqrt(x[0] - 8) ** 2, 1.0, LINE
            ),
            key=jax.random.key(1),
        )
        assert HARD in failures(roots)

    def test_nan_at_impossible_states_is_a_warning(self):
        report = lnz.audit(model(lambda t, x: jnp.where(x[0] > 0, x[0] + x[0] ** (0.5 * t), jnp.inf), 1.0, LINE))
        assert report[HARD].status == "warning"
        assert "0 · NaN" in report[HARD].evidence

    def test_float32(self):
        report = lnz.audit(model(lambda t, x: 0.5 * t * x[0] ** 2 + 3e8 - 3e8 * jnp.cos(1e-7 * x[0]), 1.0, LINE))
        assert report[FLOATS].status in ("failed", "warning")

    def test_a_stuck_chain(self):
        energy = model(lambda t, x: 0.5 * (x[0] ** 2 - t) ** 2, 16.0, LINE)
        source = np.random.default_rng(0)
        stuck = np.sign([1, -1, 1, -1])[:, None, None] * (4 + 0.12 * source.normal(size=(4, 500, 1)))
        assert CHAINS in failures(lnz.audit(energy, samples=stuck))


class TestPlantedBugs:
    def test_a_log_density_for_an_energy(self):
        report = lnz.audit(model(lambda t, x: -0.5 * t * jnp.sum(x**2), 1.0, lnz.Real(2)))
        assert FINITE in failures(report)
        assert "log-density" in report[FINITE].evidence

    def test_a_log_density_of_spins_given_their_samples(self):
        good = lnz.Ising(np.asarray([[0, 1.0, 0.5], [1.0, 0, -0.3], [0.5, -0.3, 0]]), [0.4, 0.2, -0.3])
        states = lnz.Spin(3).decode(jnp.arange(8))
        p = np.exp(-np.asarray(jax.vmap(good)(states), np.float64))
        drawn = np.asarray(states)[np.random.default_rng(0).choice(8, 4000, p=p / p.sum())]
        upside_down = model(lambda t, x: -good(x) * t, 1.0, lnz.Spin(3))
        report = lnz.audit(upside_down, samples=drawn)
        assert {SIGN, LAW} <= failures(report)
        right = lnz.audit(good, samples=drawn)
        assert right.passed, str(right)
        assert right[LAW].status == right[SIGN].status == "passed"

    def test_another_temperature(self):
        drawn = np.random.default_rng(0).normal(size=(4, 2000, 2)) * np.sqrt(0.5)
        normal = model(lambda t, x: 0.5 * t * jnp.sum(x**2), 1.0, lnz.Real(2))
        assert LAW in failures(lnz.audit(normal, samples=drawn))
        right = lnz.audit(normal, samples=drawn * np.sqrt(2))
        assert right.passed, str(right)
        assert right[CHAINS].status == "passed"

    @pytest.mark.parametrize(
        ("function", "check", "words"),
        [
            (lambda x: x**2, SCALAR, "shape"),
            (lambda x: jnp.sum(x**2, keepdims=True), SCALAR, "shape"),
            (lambda x: jnp.sum(x**2) + 1j, SCALAR, "complex"),
            (lambda x: jnp.sum(x > 0), SCALAR, "int"),
            (lambda x: jnp.sum(x**2, axis=1), SCALAR, "6 states give 6 numbers"),
            (lambda x: jnp.sum(jnp.sum(x**2, axis=1)), SCALAR, "summed into the energy"),
            (lambda x: jnp.mean(jnp.linalg.norm(x, axis=1)), SCALAR, "summed into the energy"),
            (lambda x: jnp.sum(((x - x.mean(0)) / x.std(0)) ** 4, axis=1), ALONE, "batch change"),
            (lambda x: jnp.sum(x**2, axis=1) + jnp.var(x[:, 0]), ALONE, "batch change"),
            (lambda x: jnp.sum(x**2) + np.random.default_rng().normal(), SAME, "differ"),
            (lambda x: jnp.sum((x * (np.random.default_rng().random(3) < 0.5)) ** 2), SAME, "differ"),
        ],
    )  # fmt: skip
    def test_the_interface(self, function, check, words):
        report = lnz.audit(function, space=lnz.Real(3))
        assert check in failures(report)
        assert words in report[check].evidence

    def test_a_batch_in_the_state(self):
        report = lnz.audit(lambda x: jnp.sum(x**4 - x**2), space=lnz.Real((8, 2)))
        assert report[ALONE].status == "warning"
        assert "8 rows" in report[ALONE].evidence


class TestBadInput:
    @pytest.mark.parametrize(
        ("energy", "space", "error", "words"),
        [
            (lambda x: x, None, TypeError, "has no space: pass space="),
            (3.0, lnz.Real(1), TypeError, "must be a callable"),
            (lambda x, key: x[0] ** 2, lnz.Real(1), ValueError, "cannot be called on a state"),
            (lambda x: {}[0], lnz.Real(1), ValueError, "cannot be called on a state .* KeyError"),
            (lambda x: (x[0], x[0]), lnz.Real(1), ValueError, "it returns tuple"),
            (lambda x: x[0] * jnp.nan, lnz.Real(1), ValueError, "NaN or infinite at every state"),
        ],
    )
    def test_it_says_why(self, energy, space, error, words):
        with pytest.raises(error, match=words):
            lnz.audit(energy, space=space)

    def test_samples_of_another_shape(self):
        with pytest.raises(ValueError, match="shape"):
            lnz.audit(lnz.Gaussian(np.zeros(2), np.ones(2)), samples=np.zeros((5, 3)))


def test_where_log_z_must_be_sampled_the_bridge_agrees_and_sees_what_is_missing():
    """Eight dimensions: no exact route. A normal is right; a wall that moves with θ is found by its samples."""
    widths = np.exp(np.linspace(-0.5, 0.5, 8))
    right = lnz.audit(model(lambda t, x: 0.5 * t * jnp.sum(widths * x**2), 1.3, lnz.Real(8)))
    assert right.passed, str(right)
    assert "bridge" in right[GRADIENT].evidence
    wall = lnz.audit(model(lambda t, x: jnp.where(x[0] < t, 0.5 * jnp.sum(x**2), jnp.inf), 0.5, lnz.Real(8)))
    assert {GRADIENT, SUPPORT} & failures(wall)


def test_the_report():
    report = lnz.audit(lnz.Gaussian(np.zeros(1), np.ones(1)))
    assert report.passed
    assert str(report).startswith("Audit of Gaussian on Real(1)\npassed   one number for one state")
    plain = report.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert {"energy", "passed", "seconds", "checks"} == set(plain)
    with pytest.raises(KeyError, match="no check is named"):
        report["colour"]
    again = lnz.audit(lnz.Gaussian(np.zeros(1), np.ones(1)))
    assert again.checks == report.checks, "the same key gives the same audit"


def test_it_leaves_the_callers_settings_alone():
    before = jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_enable_x64", False)
    try:
        report = lnz.audit(lnz.Gaussian(np.zeros(1, np.float32), np.ones(1, np.float32)))
        assert jnp.zeros(()).dtype == jnp.float32
    finally:
        jax.config.update("jax_enable_x64", before[0])
    assert report.passed, str(report)
    assert (jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion) == before


def test_annealing_in_a_process_of_float32():
    """The audit computes in float64 within a process that is set to float32, which callbacks of other threads do not see."""
    script = """
import jax, jax.numpy as jnp, lnz
def energy(scale, x):
    return scale * jnp.sum(jnp.diff(x) ** 2)
report = lnz.audit(lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.array(0.5)), lnz.Real(4)), key=jax.random.key(0))
print(report.passed, [check.name for check in report.checks if check.status == "failed"])
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "False ['finite Z']", found.stderr[-2000:]


def test_an_error_of_the_audit_itself_is_raised(monkeypatch):
    """What an energy or JAX says is "untested"; a fault of a check is none of the energy's."""

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(_audit_states, "finite_z", broken)
    with pytest.raises(ZeroDivisionError):
        lnz.audit(lnz.Independent(np.zeros(2), lnz.Binary(2)), key=jax.random.key(0))
