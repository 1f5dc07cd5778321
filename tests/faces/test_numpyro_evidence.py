"""Evidence of NumPyro's models: closed forms, posteriors in the sites' own space, discrete sites, and what is refused."""

import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
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

numpyro = pytest.importorskip("numpyro", reason="the package numpyro is not installed")
dist = pytest.importorskip("numpyro.distributions")


@pytest.fixture(autouse=True)
def as_numpyro_needs():
    """NumPyro broadcasts and promotes as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def regression(x, y=None):
    variance = numpyro.sample("variance", dist.InverseGamma(2.0, 1.5))
    w = numpyro.sample("w", dist.Normal(0.0, jnp.sqrt(variance)).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, jnp.sqrt(variance)), obs=y)


def beta_binomial(y=None):
    p = numpyro.sample("p", dist.Beta(2.0, 3.5))
    numpyro.sample("y", dist.Binomial(20, p), obs=y)


def dirichlet_multinomial(y=None):
    p = numpyro.sample("p", dist.Dirichlet(jnp.asarray(ALPHA)))
    numpyro.sample("y", dist.Multinomial(12, p), obs=y)


def poisson_gamma(y=None):
    rate = numpyro.sample("rate", dist.Gamma(2.5, 0.8))
    with numpyro.plate("data", 5):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def gaussian_process(y=None):
    f = numpyro.sample("f", dist.MultivariateNormal(jnp.zeros(8), jnp.asarray(KERNEL)))
    numpyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)


def schools(sd, y=None, *, centred=True):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        if centred:
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        else:
            theta = numpyro.deterministic("theta", mu + tau * numpyro.sample("z", dist.Normal(0, 1)))
        numpyro.sample("y", dist.Normal(theta, sd), obs=y)


MODELS = {
    "normal": (regression, (np.ones((7, 1)),), {"y": Y}),
    "regression": (regression, (X,), {"y": REGRESSED}),
    "beta-binomial": (beta_binomial, (14,), {}),
    "dirichlet-multinomial": (dirichlet_multinomial, (CATEGORIES,), {}),
    "poisson-gamma": (poisson_gamma, (COUNTS,), {}),
    "gaussian process": (gaussian_process, (SIGNAL,), {}),
    "schools": (schools, (SCHOOLS_SD,), {"y": SCHOOLS_Y}),
    "schools, not centred": (schools, (SCHOOLS_SD,), {"y": SCHOOLS_Y, "centred": False}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_evidence_is_that_of_the_closed_form(name):
    model, args, kwargs = MODELS[name]
    found = lnz.evidence(model, *args, key=jax.random.key(5), **kwargs)
    assert abs(found.value - TRUTH[name]) < 0.05
    assert found.lower <= TRUTH[name] <= found.upper
    assert found.warnings == []


def test_everything_in_float32_as_users_have_it():
    """In a process of its own, as a user would write it; the same model gives the same answer with the data in another order."""
    code = """
        import jax, numpy as np, lnz
        import test_numpyro_evidence as t
        found = lnz.evidence(t.schools, t.SCHOOLS_SD, y=t.SCHOOLS_Y, key=jax.random.key(0))
        assert np.asarray(found.estimate.value).dtype == np.float32
        assert abs(found.value + 31.3113) < 0.05 and found.lower < -31.3113 < found.upper, found
        assert str(found).startswith("log evidence = -31."), found
        drawn = found.draws(4000)
        assert drawn["theta"].shape == (4000, 8) and (drawn["tau"] > 0).all()
        print(drawn["mu"].mean(), drawn["tau"].mean())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**_environment(), "PYTHONPATH": ":".join([*sys.path, __file__.rpartition("/")[0]])},
    )
    assert done.returncode == 0, done.stderr
    mu, tau = map(float, done.stdout.split())
    assert abs(mu - 4.4) < 0.3  # by quadrature 4.41 and 3.61
    assert abs(tau - 3.6) < 0.4


def _environment():
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("JAX_ENABLE")}


def test_draws_are_of_the_conjugate_posterior():
    found = lnz.evidence(poisson_gamma, COUNTS, key=jax.random.key(1))
    drawn = found.draws(4000)["rate"]
    a, b = 2.5 + 14, 0.8 + 5
    assert abs(drawn.mean() - a / b) < 5 * np.sqrt(a) / b / np.sqrt(1000)
    assert abs(drawn.var() / (a / b**2) - 1) < 0.2


def test_a_model_without_latent_sites_is_its_likelihood():
    def fixed(y):
        numpyro.sample("y", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=y)

    y = np.array([0.2, -1.0, 0.7])
    found = lnz.evidence(fixed, y, key=jax.random.key(0))
    assert found.guarantee == "exact"
    assert abs(found.value - (-0.5 * (y @ y) - 1.5 * np.log(2 * np.pi))) < 1e-9


def test_data_that_lie_outside_for_some_parameters():
    """Ends that the data exclude; without validation, NumPyro's own density would count them."""
    y = np.array([0.4, 1.9, 1.1])

    def model(y):
        end = numpyro.sample("end", dist.Pareto(1.0, 1.5))
        numpyro.sample("y", dist.Uniform(0.0, end, validate_args=False).expand([3]).to_event(1), obs=y)

    truth = np.log(1.5) - np.log(4.5) - 4.5 * np.log(1.9)  # 1.5 ∫_{1.9} e^-(2.5 + 3) de
    found = lnz.evidence(model, y, key=jax.random.key(0))
    assert abs(found.value - truth) < 0.02


def mixture(y):
    p = numpyro.sample("p", dist.Beta(1.5, 2.0))
    means = numpyro.sample("means", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(means[z], 0.5), obs=y)


def test_discrete_sites_are_summed_out():
    pytest.importorskip("funsor", reason="the package funsor is not installed")

    def summed(y):
        p = numpyro.sample("p", dist.Beta(1.5, 2.0))
        means = numpyro.sample("means", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        parts = dist.MixtureSameFamily(dist.Categorical(jnp.stack([1 - p, p])), dist.Normal(means, 0.5))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", parts, obs=y)

    a, b = (lnz.evidence(model, Y, key=jax.random.key(2)) for model in (mixture, summed))
    assert abs(a.value - b.value) < 0.05
    assert set(a.draws(100)) == {"p", "means"}


def test_enumeration_needs_a_package():
    try:
        import funsor  # noqa: F401

        pytest.skip("funsor is installed")
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match="Summing out the discrete site 'z' needs the package funsor"):
            lnz.evidence(mixture, Y, key=jax.random.key(2))


def sampled(*sites):
    """A model of a latent x and what else is given."""

    def model():
        for name, distribution, obs in sites:
            numpyro.sample(name, distribution, obs=obs)

    return model


NORMAL = dist.Normal(0.0, 1.0)
REFUSED = {
    "nothing observed": (
        lambda: lnz.evidence(schools, SCHOOLS_SD, key=KEY),
        "no observed sites, so it has no evidence",
    ),
    "no sites": (lambda: lnz.evidence(lambda: None, key=KEY), "no NumPyro sample sites: give the prior"),
    "another length": (
        lambda: lnz.evidence(schools, SCHOOLS_SD, y=SCHOOLS_Y[:5], key=KEY),
        "does not run on these data: .*Check the shapes of the data",
    ),
    "a column": (
        lambda: lnz.evidence(sampled(("x", NORMAL, None), ("y", NORMAL.expand([7]), Y[:, None])), key=KEY),
        r"site 'y' have shape \(7, 1\), but its distribution has shape \(7,\): they would be counted more than once",
    ),
    "an improper prior": (
        lambda: lnz.evidence(
            sampled(("x", dist.ImproperUniform(dist.constraints.real, (), ()), None), ("y", NORMAL, 1.0)), key=KEY
        ),
        r"site 'x' has an improper prior \(ImproperUniform\), so the evidence is undefined",
    ),
    "infinitely many values": (
        lambda: lnz.evidence(sampled(("x", dist.Poisson(2.0), None), ("y", NORMAL, 1.0)), key=KEY),
        r"site 'x' is discrete \(Poisson\) with infinitely many values",
    ),
    "a constant": (
        lambda: lnz.evidence(sampled(("x", dist.Delta(1.0), None), ("y", NORMAL, 1.0)), key=KEY),
        "Delta prior, .* use numpyro.deterministic",
    ),
    "negative data": (
        lambda: lnz.evidence(sampled(("x", NORMAL, None), ("y", dist.Gamma(2.0).expand([7]), Y)), key=KEY),
        "1 of 7 data of site 'y' lie outside the support of .* at all of 16 draws",
    ),
    "missing data": (
        lambda: lnz.evidence(sampled(("x", NORMAL, None), ("y", NORMAL.expand([2]), np.array([np.nan, 1.0]))), key=KEY),
        "data of site 'y' have 1 NaN: leave these out, or mask them",
    ),
    "NaN": (
        lambda: lnz.evidence(lambda x: jnp.log(x), prior=NORMAL, key=KEY),
        r"the log density is NaN at 5\d\d of 1,024 draws from the prior, first at x = -\d",
    ),
    "no support": (
        lambda: lnz.evidence(lambda x: jnp.where(x > 100, 0.0, -jnp.inf), prior=NORMAL, key=KEY),
        "the prior never reaches the likelihood's support",
    ),
    "NumPy": (
        lambda: lnz.evidence(lambda x: np.log1p(np.exp(np.asarray(x))), prior=NORMAL, key=KEY),
        "cannot be traced by JAX",
    ),
    "a part of the data": (
        lambda: lnz.evidence(subsampled, key=KEY),
        "plate 'data' takes 2 of 7 data at random, so the likelihood is itself an estimate",
    ),
    "two priors": (
        lambda: lnz.evidence(jnp.sum, prior=NORMAL, prior_transform=jnp.sum, key=KEY),
        "prior and prior_transform say the same thing",
    ),
    "a cube of no size": (
        lambda: lnz.evidence(jnp.sum, prior_transform=jnp.sum, key=KEY),
        "prior_transform needs the number of dimensions",
    ),
}
KEY = jax.random.key(0)


def subsampled():
    numpyro.sample("x", NORMAL)
    with numpyro.plate("data", 7, subsample_size=2) as rows:
        numpyro.sample("y", NORMAL, obs=jnp.asarray(Y)[rows])


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_prior_of_several_distributions():
    """A line with a prior on slope and scale, as a log likelihood of named values."""

    def log_likelihood(values, x, y):
        return jax.scipy.stats.norm.logpdf(y, x @ values["w"], jnp.sqrt(values["variance"])).sum()

    prior = {"variance": dist.InverseGamma(2.0, 1.5), "w": dist.Normal(0.0, 1.0).expand([3]).to_event(1)}
    found = lnz.evidence(log_likelihood, X, REGRESSED, prior=prior, key=jax.random.key(4))

    def same(x, y):
        w = numpyro.sample("w", prior["w"])
        variance = numpyro.sample("variance", prior["variance"])
        numpyro.sample("y", dist.Normal(x @ w, jnp.sqrt(variance)).to_event(1), obs=y)

    other = lnz.evidence(same, X, REGRESSED, key=jax.random.key(5))
    assert abs(found.value - other.value) < 0.05
    assert found.draws(10)["w"].shape == (10, 3)


@pytest.mark.wrong_types
def test_a_prior_of_another_kind():
    with pytest.raises(TypeError, match="prior must be a NumPyro distribution, a dict of them"):
        lnz.evidence(jnp.sum, prior=3.0, key=KEY)


def test_arviz_groups():
    arviz = pytest.importorskip("arviz", reason="the package arviz is not installed")
    found = lnz.evidence(schools, SCHOOLS_SD, y=SCHOOLS_Y, centred=False, key=jax.random.key(0))
    groups = found.to_arviz(draws=250, chains=4)
    assert groups.attrs["log_evidence"] == found.value
    assert groups.attrs["log_evidence_se"] == found.standard_error
    assert groups.attrs["log_evidence_lower"] < found.value < groups.attrs["log_evidence_upper"]
    assert groups.attrs["guarantee"] == "conditional"
    assert groups.posterior["theta"].shape == (4, 250, 8)  # deterministic
    assert groups.sample_stats["lp"].shape == (4, 250)
    assert float(arviz.rhat(groups)["theta"].max()) < 1.05
