"""A user's methods and fields may have any names: those of capabilities mean nothing without the class that they come from."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lnz

NAMES = [
    "base",
    "block_energies",
    "collapsed",
    "complete",
    "conditionals",
    "data_energy",
    "factors",
    "feature_energy",
    "free_energy",
    "gibbs",
    "gibbs_sweep",
    "interactions",
    "log_normaliser",
    "sample",
    "sample_hidden",
    "sample_visible",
    "slope",
    "tempered",
    "unwrapped",
    "visible_part",
]
MORE = ["arrays_are_data", "data_space", "hidden_mean", "least_width", "log_latent_volume", "observed", "way"]
KEY = jax.random.key(0)
SPINS = jnp.asarray([[1, 1, -1], [1, -1, -1], [-1, 1, 1], [1, 1, 1]], jnp.float32)
POINTS = jnp.asarray([[0.3, -0.5], [1.0, 0.2]])


class Spins(lnz.Energy):
    theta: jax.Array

    @property
    def space(self):
        return lnz.Spin(3)

    def __call__(self, x):
        theta = jax.tree.leaves(self)[0]
        s = x.astype(theta.dtype)
        return -theta[0] * s[0] * s[1] - theta[1] * s[1] * s[2] - 0.2 * s[0]


class Points(Spins):
    @property
    def space(self):
        return lnz.Real(2)

    def __call__(self, x):
        theta = jax.tree.leaves(self)[0]
        x = x.astype(theta.dtype)
        return jnp.sum((x - theta) ** 2) + 0.1 * x[0] ** 4


THETA = jnp.asarray([0.5, -0.3])


def with_methods(kind, names):
    """An energy with more methods, which take nothing and say something."""

    def mine(self):
        return "mine"

    return type(kind)(f"{kind.__name__}With", (kind,), {**dict.fromkeys(names, mine), "__module__": __name__})(THETA)


def with_fields(kind, names):
    """An energy with more fields, which hold something."""
    body = {name: eqx.field(static=True, default="mine") for name in names}
    annotations = dict.fromkeys(names, str)
    return type(kind)(f"{kind.__name__}Of", (kind,), {**body, "__annotations__": annotations, "__module__": __name__})(
        THETA
    )


ROUTES = lnz.routes
ASK = {
    "default": lambda e: lnz.log_partition(e),
    "enumeration": lambda e: lnz.log_partition(e, route=ROUTES.Enumeration()),
    "ais": lambda e: lnz.log_partition(e, route=ROUTES.AnnealedImportanceSampling(temperatures=3, chains=8), key=KEY),
    "smc": lambda e: lnz.log_partition(e, route=ROUTES.SequentialMonteCarlo(particles=8, replicates=2), key=KEY),
    "tempering": lambda e: lnz.log_partition(
        e, route=ROUTES.ParallelTempering(rungs=2, iterations=8, replicates=2), key=KEY
    ),
    **{
        type(kernel).__name__: lambda e, kernel=kernel: lnz.kernels.run_chains(e, kernel, SPINS, KEY, 2)
        for kernel in (
            lnz.kernels.Gibbs(),
            lnz.kernels.GibbsWithGradients(),
            lnz.kernels.DiscreteLangevin(),
            lnz.kernels.PathAuxiliary(length=1),
        )
    },
    "fit": lambda e: lnz.fit(e, SPINS, optimizer=optax.sgd(0.1), batch_size=2, epochs=1, key=KEY).state.energy,
}
ASK_POINTS = {
    "quadrature": lambda e: lnz.log_partition(e, route=ROUTES.Quadrature(points=9)),
    "annealing": ASK["ais"],
    "langevin": lambda e: lnz.kernels.run_chains(e, lnz.kernels.Langevin(), POINTS, KEY, 2),
    "hmc": lambda e: lnz.kernels.run_chains(e, lnz.kernels.HamiltonianMonteCarlo(), POINTS, KEY, 2),
}
CASES = [*((Spins, name) for name in ASK), *((Points, name) for name in ASK_POINTS)]


def numbers(kind, name, energy):
    answer = (ASK if kind is Spins else ASK_POINTS)[name](energy)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(answer, eqx.is_array))]


@functools.cache
def expected(case):
    """What the energy without these names gives."""
    return numbers(*case, case[0](THETA))


def check(cases, made):
    for case in cases:
        found = numbers(*case, made(case[0]))
        assert len(found) == len(expected(case))
        for one, other in zip(found, expected(case), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=case[1])


HOW = pytest.mark.parametrize("how", [with_methods, with_fields])


@HOW
@pytest.mark.parametrize("case", CASES, ids=[name for _, name in CASES])
def test_all_these_names_at_once_mean_nothing_to_the_library(case, how):
    check([case], lambda kind: how(kind, [*NAMES, *MORE]))


@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_a_name_of_ones_own_means_nothing_to_the_library(name):
    """As a method; as a field, with every route, it is asked for in the slow tests below."""
    check([(Spins, "default"), (Spins, "Gibbs"), (Points, "langevin")], lambda kind: with_methods(kind, [name]))


@pytest.mark.slow
@HOW
@pytest.mark.parametrize("name", [*NAMES, *MORE])
def test_a_name_of_ones_own_means_nothing_to_any_route(name, how):
    check(CASES, lambda kind: how(kind, [name]))


@pytest.mark.parametrize("name", NAMES)
def test_a_function_with_a_name_of_ones_own(name):
    """Of a subclass of `FunctionEnergy`."""
    kind = type(lnz.FunctionEnergy)("Own", (lnz.FunctionEnergy,), {name: lambda self: "mine", "__module__": __name__})
    function = jax.tree_util.Partial(lambda j, s: -j * s[0] * s[1], jnp.asarray(0.5))
    assert float(lnz.log_partition(kind(function, lnz.Spin(2))).value) == pytest.approx(np.log(4 * np.cosh(0.5)))


def test_what_offers_says():
    plain, known = with_methods(Spins, ["sample"]), lnz.Gaussian([0.0], [1.0])
    assert plain.offers(lnz.capabilities.Normalised) is None
    assert known.offers(lnz.capabilities.Normalised) is known
    some = lnz.Mixture([0.0, 0.0], [known, lnz.FunctionEnergy(lambda x: 0.5 * x[0] ** 2, lnz.Real(1))])
    assert some.offers(lnz.capabilities.Normalised) is None
    assert lnz.Mixture([0.0], [known]).offers(lnz.capabilities.Normalised) is not None


def test_a_base_without_the_capability_is_told_which_class_to_inherit():
    route = ROUTES.AnnealedImportanceSampling.from_base(with_methods(Points, ["sample"]), temperatures=3, chains=8)
    with pytest.raises(ValueError, match=r"inherit from lnz\.capabilities\.Normalised"):
        lnz.log_partition(Points(jnp.zeros(2)), route=route, key=KEY)
