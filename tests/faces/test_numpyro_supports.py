"""A proper prior with no likelihood but the factor 1 has the evidence 1: Jacobians and densities of every support of NumPyro's."""

import math

import jax
import jax.numpy as jnp
import pytest

import lnz

numpyro = pytest.importorskip("numpyro", reason="the package numpyro is not installed")
dist = pytest.importorskip("numpyro.distributions")

from numpyro.distributions import constraints, transforms  # noqa: E402


@pytest.fixture(autouse=True)
def as_numpyro_needs():
    """NumPyro broadcasts and promotes as JAX does by default."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


class UniformInL1Ball(dist.Distribution):
    support = constraints.l1_ball
    reparametrized_params = ()
    pytree_data_fields = ()

    def __init__(self, d):
        super().__init__(batch_shape=(), event_shape=(d,))

    def sample(self, key, sample_shape=()):
        d = self.event_shape[0]
        places = jax.random.dirichlet(key, jnp.ones(d + 1), sample_shape)[..., :d]
        return places * jax.random.rademacher(jax.random.fold_in(key, 1), places.shape, places.dtype)

    def log_prob(self, value):
        d = self.event_shape[0]
        return math.lgamma(d + 1) - d * math.log(2) + 0 * value.sum(-1)


class PositiveOrdered(dist.TransformedDistribution):
    support = constraints.positive_ordered_vector

    def __init__(self):
        steps = [transforms.OrderedTransform(), transforms.ExpTransform()]
        super().__init__(dist.Normal(0.3, 0.8).expand([4]).to_event(1), steps)


def image(d, *steps):
    """Normal variables under a bijection."""
    return dist.TransformedDistribution(dist.Normal(0.3, 0.8).expand([d]).to_event(1), list(steps))


ROUTE = lnz.routes.FittedSMC(particles=64, replicates=32, mode_probes=0)
SCALE = [[1.0, 0.3], [0.3, 0.5]]

PRIORS = {
    "real": lambda: dist.Normal(2.0, 3.0),
    "real_vector": lambda: dist.MultivariateNormal(jnp.array([1.0, -2.0]), jnp.array(SCALE)),
    "real_matrix": lambda: dist.MatrixNormal(jnp.zeros((2, 2)), jnp.eye(2), jnp.array([[0.5, 0.0], [0.2, 1.5]])),
    "independent": lambda: dist.Gamma(jnp.array([0.8, 3.0]), 1.5).to_event(1),
    "positive": lambda: dist.Gamma(2.5, 1.3),
    "nonnegative": lambda: dist.HalfNormal(2.0),
    "heavy tails": lambda: dist.HalfCauchy(5.0),
    "greater_than": lambda: dist.Pareto(1.5, 3.0),
    "greater_than_eq": lambda: dist.TruncatedNormal(0.5, 1.0, low=0.2),
    "less_than": lambda: dist.TruncatedNormal(0.5, 1.0, high=0.2),
    "interval": lambda: dist.Uniform(-1.0, 4.0),
    "open_interval": lambda: dist.TruncatedNormal(0.5, 1.0, low=-1.0, high=0.7),
    "unit_interval": lambda: dist.Beta(2.0, 3.5),
    "circular": lambda: dist.VonMises(1.0, 2.0),
    "simplex": lambda: dist.Dirichlet(jnp.array([1.5, 2.0, 0.8, 3.0])),
    "ordered_vector": lambda: image(4, transforms.OrderedTransform()),
    "positive_ordered_vector": PositiveOrdered,
    "softplus_positive": lambda: dist.TransformedDistribution(dist.Normal(0.3, 0.8), transforms.SoftplusTransform()),
    "corr_cholesky": lambda: dist.LKJCholesky(4, 1.7),
    "corr_matrix": lambda: dist.LKJ(4, 1.7),
    "lower_cholesky": lambda: image(6, transforms.LowerCholeskyTransform()),
    "softplus_lower_cholesky": lambda: image(6, transforms.SoftplusLowerCholeskyTransform()),
    "scaled_unit_lower_cholesky": lambda: image(6, transforms.ScaledUnitLowerCholeskyTransform()),
    "positive_definite": lambda: dist.Wishart(4.5, jnp.array(SCALE)),
    "zero_sum": lambda: dist.ZeroSumNormal(1.5, (5,)),
    "l1_ball": lambda: UniformInL1Ball(4),
}


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("support", PRIORS)
def test_the_prior_integrates_to_one(support, wide):
    def model():
        numpyro.sample("x", PRIORS[support]())
        numpyro.factor("none", 0.0)

    with jax.enable_x64(wide):
        found = lnz.evidence(model, key=jax.random.key(3), route=ROUTE)
    assert abs(found.value) < 0.06
    assert found.lower <= 0 <= found.upper
    assert found.warnings == []


def test_a_support_that_depends_on_another_variable():
    def model():
        low = numpyro.sample("low", dist.Normal(0.0, 1.0))
        width = numpyro.sample("width", dist.Gamma(2.0, 1.0))
        numpyro.sample("x", dist.Uniform(low, low + width).expand([3]).to_event(1))
        numpyro.factor("none", 0.0)

    found = lnz.evidence(model, key=jax.random.key(3), route=ROUTE)
    assert abs(found.value) < 0.06
    drawn = found.draws(500)
    assert drawn["x"].shape == (500, 3)
    assert (drawn["x"] >= drawn["low"][:, None]).all()
    assert (drawn["x"] <= (drawn["low"] + drawn["width"])[:, None]).all()


def test_a_support_without_a_bijection_is_refused():
    def model():
        numpyro.sample("x", dist.ProjectedNormal(jnp.array([1.0, 0.0])))
        numpyro.factor("none", 0.0)

    ours, numpyros = "has the support .*, which NumPyro does not map to the reals", "Continuous inference cannot handle"
    with pytest.raises(ValueError, match=f"{ours}|{numpyros}"):  # where funsor is installed, NumPyro says so first
        lnz.evidence(model, key=jax.random.key(0))
