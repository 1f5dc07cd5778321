"""Evidence of PyMC's models: closed forms, posteriors in the variables' own space, what is refused, and settings that stay as they are."""

import os
import warnings

import jax
import numpy as np
import pytest
from conjugate_models import (
    ALPHA,
    CATEGORIES,
    COUNTS,
    KERNEL,
    REGRESSED,
    SCHOOLS_SD,
    SCHOOLS_Y,
    SIGNAL,
    TRUTH,
    X,
    Y,
)

import lnz

FLAGS = os.environ.get("XLA_FLAGS")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pm = pytest.importorskip("pymc", reason="the package pymc is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def as_pytensor_needs():
    """PyTensor broadcasts and promotes as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def regression(x, y):
    variance = pm.InverseGamma("variance", 2.0, 1.5)
    w = pm.Normal("w", 0.0, variance**0.5, shape=x.shape[1])
    pm.Normal("y", x @ w, variance**0.5, observed=y)


def schools(*, centred):
    mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
    theta = pm.Normal("theta", mu, tau, shape=8) if centred else mu + tau * pm.Normal("z", 0, 1, shape=8)
    pm.Normal("y", pm.Deterministic("effect", theta), SCHOOLS_SD, observed=SCHOOLS_Y)


MODELS = {
    "normal": lambda: regression(np.ones((7, 1)), Y),
    "regression": lambda: regression(X, REGRESSED),
    "beta-binomial": lambda: pm.Binomial("y", 20, pm.Beta("p", 2.0, 3.5), observed=14),
    "dirichlet-multinomial": lambda: pm.Multinomial("y", 12, pm.Dirichlet("p", ALPHA), observed=CATEGORIES),
    "poisson-gamma": lambda: pm.Poisson("y", pm.Gamma("rate", alpha=2.5, beta=0.8), observed=COUNTS),
    "gaussian process": lambda: pm.Normal("y", pm.MvNormal("f", np.zeros(8), cov=KERNEL), 0.3, observed=SIGNAL),
    "schools": lambda: schools(centred=True),
    "schools, not centred": lambda: schools(centred=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_is_that_of_the_closed_form(name):
    with pm.Model() as model:
        MODELS[name]()
    found = lnz.evidence(model, key=jax.random.key(5))
    assert abs(found.value - TRUTH[name]) < 0.05
    rounding = 1e-6  # PyTensor's logarithms of gamma functions, where quadrature is exact to 1e-11
    assert found.lower - rounding <= TRUTH[name] <= found.upper + rounding
    assert found.warnings == []


@pytest.mark.parametrize("wide", [True, False])
def test_draws_have_the_variables_own_names_and_settings_stay(wide):
    with pm.Model() as model:
        schools(centred=False)
    with jax.enable_x64(wide):
        drawn = lnz.evidence(model, key=jax.random.key(1)).draws(4000)
        assert bool(jax.config.jax_enable_x64) == wide
    assert os.environ.get("XLA_FLAGS") == FLAGS
    assert set(drawn) == {"mu", "tau", "z", "effect"}
    assert drawn["effect"].shape == (4000, 8)
    assert abs(drawn["tau"].mean() - 3.6) < 0.4
    np.testing.assert_allclose(drawn["effect"], drawn["mu"][:, None] + drawn["tau"][:, None] * drawn["z"], rtol=1e-5)


def test_a_prior_far_from_the_origin():
    with pm.Model() as model:
        a = pm.Normal("a", 1000.0, 2.0, shape=4)
        pm.Normal("y", a, 1.0, observed=np.array([1001.0, 998.0, 1003.0, 999.5]))
    truth = -0.5 * (1 + 4 + 9 + 0.25) / 5 - 2 * np.log(2 * np.pi * 5)
    found = lnz.evidence(model, key=jax.random.key(2))
    assert abs(found.value - truth) < 0.05


def flat():
    pm.Normal("y", pm.Flat("a"), 1.0, observed=1.0)


def half_flat():
    pm.Normal("y", 0.0, pm.HalfFlat("a"), observed=1.0)


def discrete():
    pm.Normal("y", pm.Poisson("n", 2.0), 1.0, observed=1.0)


REFUSED = {
    "flat": (flat, r"'a' has an improper prior \(pm.Flat\), so the evidence is undefined"),
    "half flat": (half_flat, r"'a' has an improper prior \(pm.HalfFlat\), so the evidence is undefined"),
    "discrete": (discrete, "'n' is discrete, and PyMC's models are not enumerated"),
    "nothing observed": (lambda: pm.Normal("a"), "no observed variables, so it has no evidence"),
    "impossible data": (
        lambda: pm.Exponential("y", pm.Gamma("rate", 2.0, 1.0), observed=-1.0),
        "the density is 0 at all of 1,024 points",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    build, message = REFUSED[case]
    with pm.Model() as model:
        build()
    with pytest.raises(ValueError, match=message):
        lnz.evidence(model, key=jax.random.key(0))


@pytest.mark.wrong_types
def test_arguments_of_a_model_that_takes_none():
    with pm.Model() as model:
        schools(centred=True)
    with pytest.raises(TypeError, match="a PyMC model is the whole of"):
        lnz.evidence(model, Y, key=jax.random.key(0))
