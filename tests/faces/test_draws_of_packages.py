"""Evidence from draws in the variables' own space, as NumPyro, PyMC and ArviZ have them: exact draws of conjugate posteriors."""

import warnings

import jax
import numpy as np
import pytest
from conjugate_models import ALPHA, CATEGORIES, COUNTS, TRUTH, Y

import lnz

KEY = jax.random.key(0)
RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True)
def as_these_need():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def normal_draws():
    """Mean and variance of seven data under the conjugate prior, as a regression on a constant."""
    n, precision = len(Y), 1 + len(Y)
    mean, a = Y.sum() / precision, 2 + n / 2
    b = 1.5 + 0.5 * (Y @ Y - precision * mean**2)
    variance = b / RNG.gamma(a, size=(4, 500))
    w = mean + np.sqrt(variance / precision) * RNG.normal(size=(4, 500))
    return {"variance": variance, "w": w[..., None]}


DRAWS = {
    "normal": normal_draws(),
    "dirichlet-multinomial": {"p": RNG.dirichlet(ALPHA + CATEGORIES, size=(4, 500))},
    "poisson-gamma": {"rate": RNG.gamma(2.5 + COUNTS.sum(), 1 / 5.8, size=(4, 500))},
}


@pytest.mark.parametrize("name", DRAWS)
def test_numpyro(name):
    pytest.importorskip("numpyro", reason="the package numpyro is not installed")
    from test_numpyro_evidence import MODELS

    model, args, kwargs = MODELS[name]
    found = lnz.evidence_from_draws({**DRAWS[name], "other": np.zeros((4, 500))}, model, *args, key=KEY, **kwargs)
    assert abs(found.value - TRUTH[name]) < 0.05
    assert found.lower <= TRUTH[name] <= found.upper
    assert found.warnings == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DRAWS)
def test_pymc(name):
    pm = pytest.importorskip("pymc", reason="the package pymc is not installed")
    from test_pymc_evidence import MODELS

    with pm.Model() as model:
        MODELS[name]()
    found = lnz.evidence_from_draws(DRAWS[name], model, key=KEY)
    assert abs(found.value - TRUTH[name]) < 0.05
    assert found.warnings == []


def test_groups_of_arviz():
    arviz = pytest.importorskip("arviz", reason="the package arviz is not installed")
    pytest.importorskip("numpyro", reason="the package numpyro is not installed")
    xarray = pytest.importorskip("xarray", reason="the package xarray is not installed")
    from test_numpyro_evidence import regression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = arviz.from_dict(posterior=DRAWS["normal"])
    x = np.ones((7, 1))
    by_arviz = lnz.evidence_from_draws(data, regression, x, Y, key=KEY)
    dataset = data.posterior.transpose("draw", ...)  # another order of axes
    tree = xarray.DataTree.from_dict({"posterior": dataset})
    by_tree = lnz.evidence_from_draws(tree, regression, x, Y, key=KEY)
    assert by_arviz.value == by_tree.value == lnz.evidence_from_draws(dataset, regression, x, Y, key=KEY).value
    assert abs(by_arviz.value - TRUTH["normal"]) < 0.05
    assert by_tree.to_arviz().attrs["log_evidence"] == by_tree.value


def test_draws_that_are_refused():
    numpyro = pytest.importorskip("numpyro", reason="the package numpyro is not installed")
    from test_numpyro_evidence import poisson_gamma, regression

    del numpyro
    x, draws = np.ones((7, 1)), DRAWS["normal"]
    with pytest.raises(ValueError, match="the draws lack 'w' of the model; they have 'variance'"):
        lnz.evidence_from_draws({"variance": draws["variance"]}, regression, x, Y, key=KEY)
    with pytest.raises(ValueError, match=r"not of this model: .* for w"):
        lnz.evidence_from_draws({**draws, "w": draws["w"] + 1}, regression, x, Y, key=KEY)
    with pytest.raises(ValueError, match="the draws are not of this model"):
        lnz.evidence_from_draws(DRAWS["poisson-gamma"], poisson_gamma, COUNTS + 3, key=KEY)
    with pytest.raises(ValueError, match=r"draws lie outside the support of the model, first at variance = -"):
        lnz.evidence_from_draws({**draws, "variance": draws["variance"] - 1}, regression, x, Y, key=KEY)
