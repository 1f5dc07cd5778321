"""Evidence of a log likelihood with a prior that needs no other package: an energy, a box, a transform of the unit cube; and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.numerics import float64

KEY = jax.random.key(0)
Y = np.array([0.8, 1.9, 1.3, 0.4])


def normal(x, y=Y):
    """Data about the sum of the coordinates."""
    return jax.scipy.stats.norm.logpdf(jnp.asarray(y, x.dtype), jnp.sum(x), 1.0).sum()


def truth(y, variance):
    """log N(y; 0, I + variance)."""
    n = len(y)
    quadratic = y @ y - variance / (1 + n * variance) * y.sum() ** 2
    return -0.5 * (quadratic + np.log(1 + n * variance) + n * np.log(2 * np.pi))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_gaussian_prior(d):
    found = lnz.evidence(normal, prior=lnz.Gaussian(np.zeros(d), np.full(d, 0.25)), key=KEY)
    assert abs(found.value - truth(Y, 4 * d)) < 0.04
    assert found.lower <= truth(Y, 4 * d) <= found.upper
    assert found.draws(100)["x"].shape == (100, d)


def test_data_are_arguments():
    other = np.array([3.0, 2.0])
    prior = lnz.Gaussian(np.zeros(4), np.full(4, 0.25))
    by_place = lnz.evidence(normal, other, prior=prior, key=KEY)
    by_name = lnz.evidence(normal, y=other, prior=prior, key=KEY)
    assert by_place.value == by_name.value
    assert abs(by_place.value - truth(other, 16)) < 0.04


def test_a_prior_whose_energy_is_not_normalised_counts_as_if_it_were():
    mixture = lnz.Mixture([1.0, 2.0], [lnz.Gaussian(np.full(4, m), np.full(4, 9.0)) for m in (-1.0, 1.0)])
    found = lnz.evidence(lambda x: jnp.zeros((), x.dtype), prior=mixture, key=KEY)
    assert abs(found.value) < 0.04


def bump(x):
    return jax.scipy.stats.norm.logpdf(x, 1.0, 0.5).sum()


def test_a_uniform_prior_on_a_box():
    box = lnz.Box(np.array([-3.0, 0.0, 0.5, -1.0]), np.array([3.0, 2.0, 2.5, 4.0]))
    low, high = (np.asarray(side) for side in box.limits)
    cdf = jax.scipy.stats.norm.cdf
    exact = float(np.log(np.asarray((cdf(high, 1.0, 0.5) - cdf(low, 1.0, 0.5)) / (high - low))).sum())
    found = lnz.evidence(bump, prior=lnz.Uniform(box), key=KEY)
    assert abs(found.value - exact) < 0.04
    drawn = found.draws(1000)["x"]
    assert ((low <= drawn) & (drawn <= high)).all()


def test_a_transform_of_the_unit_cube():
    """The same as a prior N(0, 2²), in float32 as in float64."""

    def transform(u):
        return 2 * jax.scipy.stats.norm.ppf(u)

    for wide in (True, False):
        with float64(wide):
            found = lnz.evidence(normal, prior_transform=transform, dimensions=4, key=KEY)
        assert abs(found.value - truth(Y, 16)) < 0.04
        assert found.warnings == []


def test_an_energy_is_the_whole_model():
    energy = lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(x**2), lnz.Real(4))
    found = lnz.evidence(energy, key=KEY)
    assert abs(found.value - 2 * np.log(2 * np.pi)) < 0.04
    assert lnz.evidence(lnz.Gaussian([0.0], [2.0]), key=KEY).guarantee == "exact"


def test_narrower_by_repeated_runs():
    prior, seen = lnz.Gaussian(np.zeros(4), np.full(4, 0.25)), []
    one = lnz.evidence(normal, prior=prior, key=KEY)
    many = lnz.evidence(
        normal, prior=prior, key=KEY, within=0.1, max_seconds=20, progress=lambda runs, estimate: seen.append(runs)
    )
    assert many.upper - many.lower <= 0.1 < one.upper - one.lower
    assert many.lower <= truth(Y, 16) <= many.upper
    assert seen
    assert many.draws(50)["x"].shape == (50, 4)


def test_the_result_in_words_and_as_plain_values():
    found = lnz.evidence(normal, prior=lnz.Gaussian(np.zeros(4), np.full(4, 0.25)), key=KEY)
    assert str(found).startswith("log evidence = -6.")
    assert repr(found).startswith("Evidence(-6.")
    assert float(found) == found.value == found.to_dict()["value"]
    assert found.to_dict()["quantity"] == "log evidence"


REFUSED = {
    "two priors": (
        lambda: lnz.evidence(normal, prior=lnz.Gaussian([0.0], [1.0]), prior_transform=jnp.sum, key=KEY),
        ValueError,
        "say the same thing",
    ),
    "a discrete prior": (
        lambda: lnz.evidence(normal, prior=lnz.Independent(np.zeros(2), lnz.Binary(2)), key=KEY),
        ValueError,
        r"the prior is on Binary\(2\), but priors are energies on lnz.Real",
    ),
    "a prior without samples": (
        lambda: lnz.evidence(normal, prior=lnz.FunctionEnergy(jnp.sum, lnz.Real(2)), key=KEY),
        ValueError,
        "the prior must have a closed form of log Z and exact samples",
    ),
    "a likelihood of each observation": (
        lambda: lnz.evidence(lambda x: x, prior=lnz.Gaussian(np.zeros(3), np.ones(3)), key=KEY),
        ValueError,
        r"must be one number, but has shape \(3,\): sum over the data",
    ),
    "not a number": (
        lambda: lnz.evidence(lambda x: jnp.log(x[0]), prior=lnz.Gaussian(np.zeros(3), np.ones(3)), key=KEY),
        ValueError,
        r"the log density is NaN at 5\d\d of 1,024 draws from the prior, first at x = \[-\d",
    ),
    "plus infinity": (
        lambda: lnz.evidence(
            lambda x: jnp.where(x[0] > 2, jnp.inf, 0.0), prior=lnz.Gaussian(np.zeros(3), np.ones(3)), key=KEY
        ),
        ValueError,
        r"the log density is \+inf at \d\d of 1,024 draws from the prior",
    ),
    "never possible": (
        lambda: lnz.evidence(
            lambda x: jnp.where(x[0] > 50, 0.0, -jnp.inf), prior=lnz.Gaussian(np.zeros(3), np.ones(3)), key=KEY
        ),
        ValueError,
        "the prior never reaches the likelihood's support. Use a prior that covers",
    ),
    "no model": (lambda: lnz.evidence(3.0, key=KEY), TypeError, "a model is a NumPyro model, a PyMC model, a log"),
    "an energy and a prior": (
        lambda: lnz.evidence(lnz.Gaussian([0.0], [1.0]), prior=lnz.Gaussian([0.0], [1.0]), key=KEY),
        TypeError,
        "an energy is the whole of -log p",
    ),
}


@pytest.mark.wrong_types
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as found:
        call()
    assert "\n" not in str(found.value)
