"""Evidence from draws that exist: coverage over many seeds of autocorrelated draws, what is warned about and refused, and comparisons."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln, ndtr, stdtrit

import lnz
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.numerics import float64

KEY = jax.random.key(0)
MIXING = np.random.default_rng(5).normal(size=(6, 6)) + 2 * np.eye(6)
PRECISION = np.linalg.inv(MIXING @ MIXING.T)
LOG_2PI = math.log(2 * math.pi)


def chains(rng, n, d, memory, m=4):
    """Stationary autoregressive normal chains (m, n, d)."""
    x = np.empty((m, n, d))
    x[:, 0] = rng.normal(size=(m, d))
    for t in range(1, n):
        x[:, t] = memory * x[:, t - 1] + math.sqrt(1 - memory**2) * rng.normal(size=(m, d))
    return x


def gaussian(x):
    return -0.5 * x @ (jnp.asarray(PRECISION, x.dtype) @ x)


def student(x):
    """Of four degrees of freedom."""
    return -2.5 * jnp.sum(jnp.log1p(x**2 / 4))


def bananas(x):
    return -0.5 * jnp.sum(x[::2] ** 2 + 4 * (x[1::2] - x[::2] ** 2) ** 2)


def waves(x):
    """Outside of the family of the base."""
    return -0.5 * (x[0] ** 2 + 4 * (x[1] - jnp.sin(2 * x[0])) ** 2)


def bent(z):
    x = z.copy()
    x[..., 1::2] = 0.5 * z[..., 1::2] + z[..., ::2] ** 2
    return x


CASES = {
    "gaussian": (lambda z: z @ MIXING.T, gaussian, 6, 3 * LOG_2PI - 0.5 * np.linalg.slogdet(PRECISION)[1]),
    "student": (
        lambda z: stdtrit(4, ndtr(z)),
        student,
        4,
        4 * (0.5 * math.log(4 * math.pi) + gammaln(2) - gammaln(2.5)),
    ),
    "bananas": (bent, bananas, 4, 2 * LOG_2PI - 2 * math.log(2)),
    "waves": (
        lambda z: np.stack([z[..., 0], 0.5 * z[..., 1] + np.sin(2 * z[..., 0])], axis=-1),
        waves,
        2,
        LOG_2PI - math.log(2),
    ),
}


@pytest.mark.parametrize("memory", [0.0, 0.8])
@pytest.mark.parametrize("name", CASES)
def test_the_interval_holds_and_the_error_is_the_spread(name, memory):
    """100 seeds: three misses of a 99 % interval have a probability of 0.02 if it holds; the error may be too large by half."""
    place, log_density, d, truth = CASES[name]
    found = [
        lnz.evidence_from_draws(
            place(chains(np.random.default_rng(seed), 400, d, memory)), log_density, key=jax.random.key(seed)
        )
        for seed in range(100)
    ]
    missed = sum(not each.lower <= truth <= each.upper for each in found)
    z = np.asarray([(each.value - truth) / each.standard_error for each in found])
    assert missed <= 3
    assert 0.5 < z.std() < 1.25
    assert abs(z.mean()) < 0.35
    assert np.mean([each.standard_error for each in found]) < 0.04
    assert sum(float(each.estimate.diagnostics["certified_lower"]) > truth for each in found) <= 3


def test_autocorrelation_makes_the_error_larger():
    place, log_density, d, _ = CASES["gaussian"]
    errors = [
        np.mean(
            [
                lnz.evidence_from_draws(
                    place(chains(np.random.default_rng(s), 800, d, memory)), log_density, key=KEY
                ).standard_error
                for s in range(10)
            ]
        )
        for memory in (0.0, 0.9)
    ]
    assert errors[1] > 1.5 * errors[0]


def test_many_dimensions_have_a_linear_base():
    d = 80
    scales = np.exp(np.linspace(-3, 3, d))
    draws = scales * chains(np.random.default_rng(1), 2000, d, 0.5)
    found = lnz.evidence_from_draws(draws, lambda x: -0.5 * jnp.sum((x / jnp.asarray(scales, x.dtype)) ** 2), key=KEY)
    truth = d / 2 * LOG_2PI + np.log(scales).sum()
    assert abs(found.value - truth) < 4 * found.standard_error + 0.01
    assert found.warnings == []


def test_named_draws_and_an_energy():
    rng = np.random.default_rng(3)
    named = {"a": rng.normal(size=(4, 300)), "b": 2 * rng.normal(size=(4, 300, 2, 2))}
    found = lnz.evidence_from_draws(
        named, lambda x, scale: -0.5 * (x["a"] ** 2 + jnp.sum((x["b"] / scale) ** 2)), 2.0, key=KEY
    )
    assert abs(found.value - (2.5 * LOG_2PI + 4 * math.log(2))) < 0.05
    assert found.draws(10)["b"].shape == (10, 2, 2)
    energy = lnz.Gaussian(np.zeros(3), np.full(3, 4.0))
    other = lnz.evidence_from_draws(0.5 * rng.normal(size=(2, 500, 3)), energy, key=KEY)
    assert abs(other.value - float(energy.log_normaliser())) < 0.03


def test_float32():
    with float64(False):
        found = lnz.evidence_from_draws(bent(chains(np.random.default_rng(0), 400, 4, 0.5)), bananas, key=KEY)
    assert abs(found.value - CASES["bananas"][3]) < 0.05


def test_chains_in_different_places_are_warned_about():
    def two_modes(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 4) ** 2), -0.5 * jnp.sum((x + 4) ** 2))

    apart = np.array([4.0, 4.0, 4.0, -4.0])[:, None, None]
    draws = apart + np.random.default_rng(2).normal(size=(4, 500, 2))
    found = lnz.evidence_from_draws(draws, two_modes, key=KEY)
    assert EstimateWarning.UNMIXED_DRAWS in found.estimate.warning_codes
    assert lnz.evidence_from_draws(GOOD, normal, key=KEY).warnings == []


def normal(x):
    return -0.5 * jnp.sum(x**2)


GOOD = np.random.default_rng(0).normal(size=(4, 500, 3))
REFUSED = {
    "too few": (lambda: GOOD[:, :10], normal, "4 chains of 10 draws are too few: 3 dimensions need at least 100 draws"),
    "a slow chain": (
        lambda: np.cumsum(GOOD, axis=1) / 20,
        normal,
        r"the draws are worth \d+ independent ones in their slowest coordinate",
    ),
    "a constant": (lambda: GOOD * np.array([1.0, 0.0, 1.0]), normal, "worth 0 independent ones"),
    "another scale": (
        lambda: 1.3 * GOOD,
        normal,
        r"not of this model: E\[\(x - c\) ∂ log p\] is -1\.\d+ instead of -1",
    ),
    "another place": (lambda: GOOD + 0.5, normal, "the slope of the log density has mean -0.5.* instead of 0 .* for x"),
    "impossible ones": (
        lambda: GOOD,
        lambda x: jnp.where(x[0] > 0, normal(x), -jnp.inf),
        r"of 2,000 draws have density 0 under the model",
    ),
    "NaN in a density": (
        lambda: GOOD,
        lambda x: jnp.log(x[0]),
        r"the log density is NaN at [\d,]+ of 2,000 draws, first at x = \[-\d",
    ),
    "NaN in the draws": (
        lambda: np.where(GOOD > 3, np.nan, GOOD),
        normal,
        "draws of 'x' are NaN or infinite: leave out",
    ),
    "no chains": (lambda: GOOD[0], normal, r"need the axes \(chains, draws, …\)"),
    "a density of each": (lambda: GOOD, lambda x: x, r"must be one number, but has shape \(3,\)"),
    "another energy": (
        lambda: GOOD,
        lnz.Gaussian(np.zeros(2), np.ones(2)),
        r"the draws of 'x' have states of shape \(3,\), but the energy is on \(2,\)",
    ),
    "unequal": (
        lambda: {"a": GOOD, "b": GOOD[:, 1:]},
        lambda x: jnp.sum(x["a"]),
        "different numbers of chains and draws",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    draws, log_density, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as found:
        lnz.evidence_from_draws(draws(), log_density, key=KEY)
    assert "\n" not in str(found.value)


# ---------------------------------------------------------------------------------------------------------- comparisons


def estimate(value, below, above, confidence=0.99):
    ends = [jnp.asarray(float(x)) for x in (value, 0.1, value - below, value + above)]
    return lnz.Estimate(*ends, "conditional", "test", confidence)


def test_a_bayes_factor_joins_both_intervals():
    found = lnz.compare_evidence({"a": estimate(-10, 0.3, 0.1), "b": estimate(-12, 0.2, 0.4), "c": estimate(-11, 1, 1)})
    assert [model.name for model in found.models] == ["a", "c", "b"]
    factor = found.log_bayes_factor("a", "b")
    assert factor.value == 2
    assert factor.lower == pytest.approx(2 - math.hypot(0.3, 0.4))
    assert factor.upper == pytest.approx(2 + math.hypot(0.1, 0.2))
    assert factor.decided
    assert not found.log_bayes_factor("c", "b").decided
    back = found.log_bayes_factor("b", "a")
    assert (back.value, back.lower, back.upper) == (-factor.value, -factor.upper, -factor.lower)
    assert found.confidence_of_all == pytest.approx(0.97)
    assert found["b"].log_bayes_factor == back


def test_probabilities_and_their_extremes():
    models = {"a": estimate(-10, 0.3, 0.1), "b": estimate(-12, 0.2, 0.4)}
    found = lnz.compare_evidence(models, prior={"a": 1.0, "b": 3.0})
    assert found["a"].probability == pytest.approx(1 / (1 + 3 * math.exp(-2)))
    assert found["a"].probability_lower == pytest.approx(1 / (1 + 3 * math.exp(-2 + 0.7)))
    assert found["a"].probability_upper == pytest.approx(1 / (1 + 3 * math.exp(-2 - 0.3)))
    assert found["a"].probability + found["b"].probability == pytest.approx(1)
    assert lnz.compare_evidence({"only": models["a"]})["only"].probability == 1


def test_the_table_in_words_and_in_html():
    found = lnz.compare_evidence({"<a>": estimate(-10, 0.3, 0.1), "b": estimate(-12, 0.2, 0.4)})
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "model",
        "log",
        "evidence",
        "interval",
        "log",
        "Bayes",
        "factor",
        "interval",
        "probability",
        "interval",
    ]
    assert lines[1].split() == ["<a>", "-10.00", "-10.30", "to", "-9.90", "0.00", "0.881", "0.786", "to", "0.909"]
    assert "-2.00  -2.22 to -1.50" in lines[2]
    assert lines[3] == "In nats; log Bayes factors against <a>, with 99 % intervals (conditional)."
    assert "<td>&lt;a&gt;</td>" in found._repr_html_()


@pytest.mark.wrong_types
def test_comparisons_that_are_refused():
    one = {"a": estimate(0, 1, 1)}
    with pytest.raises(ValueError, match="there is nothing to compare"):
        lnz.compare_evidence({})
    with pytest.raises(TypeError, match="'a' is float, not an evidence"):
        lnz.compare_evidence({"a": 3.0})
    with pytest.raises(ValueError, match="the log evidence of 'a' is -inf"):
        lnz.compare_evidence({"a": estimate(-math.inf, 0, 0)})
    with pytest.raises(ValueError, match="prior weights are of"):
        lnz.compare_evidence(one, prior={"b": 1.0})
    with pytest.raises(ValueError, match="must be above 0"):
        lnz.compare_evidence(one, prior={"a": 0.0})
    with pytest.raises(KeyError, match="there is no model 'b' among 'a'"):
        lnz.compare_evidence(one)["b"]
