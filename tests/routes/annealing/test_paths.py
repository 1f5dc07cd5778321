"""Paths of the user's own and moment-averaged ones: the laws that they say, E[Ẑ] = Z by all routes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.routes._annealing.path import Path

CHAINS = 20_000
ROUNDS = np.random.default_rng(3)


def machine(scale: float) -> lnz.RBM:
    return lnz.RBM.from_parameters(scale * ROUNDS.normal(size=(5, 3)), ROUNDS.normal(size=5), ROUNDS.normal(size=3))


MODEL, MIDDLE = machine(2.0), machine(1.0)  # asymmetric, and of several modes
START = lnz.Independent(np.array([0.5, -0.5, 0.0, 0.3, -1.0]), lnz.Binary(5))
MARGINAL = lnz.FunctionEnergy(lambda v: jnp.square(jnp.sum(v) - 2.2) / 3, lnz.Binary(5))


def curved(beta):
    """Not the geometric path, nor one with evenly spaced parameters."""
    b = jnp.asarray(beta, float)
    return lnz.RBM.from_parameters(
        b**2 * MODEL.weights, b * MODEL.visible_bias, jnp.sin(b * jnp.pi / 2) * MODEL.hidden_bias
    )


def exact(energy) -> float:
    return float(lnz.log_partition(energy, route=lnz.routes.Enumeration()).value)


PATHS = {
    "machines": lambda: [START, MIDDLE, MODEL],  # laws of two kinds: from independent units, and between machines
    "kinds": lambda: [START, MARGINAL, MODEL],  # no kind of its own anywhere
    "function": lambda: curved,
    "moments": lambda: lnz.routes.moment_averaged_path(MODEL, base=START, knots=3),
}
ANNEALING = lnz.routes.AnnealedImportanceSampling


def lattice(beta):
    """A ferromagnet in a field of both signs, whose packed sweeps belong to the geometric path alone."""
    b = jnp.asarray(beta, float)
    fields = jnp.asarray([[0.4, 0.2], [0.3, -0.6], [0.0, 0.1]])
    return lnz.Ising.lattice((3, 2), 0.7 * b**3, b * fields, periodic=False)


@pytest.mark.parametrize(
    "base", [pytest.param(None, marks=pytest.mark.slow), lnz.Independent(np.zeros((3, 2)), lnz.Spin((3, 2)))]
)
def test_a_lattice_along_a_function(base):
    """From a start that is summed here, and from one that is given."""
    model = lattice(1.0)
    route = ANNEALING.from_path(lattice, base=base, temperatures=6, chains=CHAINS)
    log_weights = jax.jit(lambda key: route.anneal(model, key)[0])(jax.random.key(7))
    ratio = np.exp(np.asarray(log_weights) - exact(model))
    assert ratio.std() < 5
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(CHAINS)


@pytest.mark.parametrize("name", PATHS)
def test_the_mean_weight_is_z(name):
    """Wrong log Z at the start, a wrong gain or moves of another law would show in either direction."""
    route = ANNEALING.from_path(PATHS[name](), temperatures=8, chains=CHAINS)
    log_weights = jax.jit(lambda key: route.anneal(MODEL, key)[0])(jax.random.key(7))
    ratio = np.exp(np.asarray(log_weights) - exact(MODEL))
    assert ratio.std() < 5, "too noisy to see a bias"
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(CHAINS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    ("route", "options"),
    [
        (lnz.routes.SequentialMonteCarlo, {"particles": 32, "replicates": 4}),
        (lnz.routes.ParallelTempering, {"rungs": 4, "iterations": 100, "replicates": 4}),
        (lnz.routes.BidirectionalAIS, {"temperatures": 20, "chains": 50}),
        (ANNEALING, {"temperatures": 20, "chains": 50, "schedule": "barrier"}),
        (ANNEALING, {"temperatures": 20, "chains": 50, "schedule": "adaptive", "mode_probes": 4}),
    ],
)
def test_every_route_takes_every_path(name, route, options):
    taken = route.from_path(PATHS[name](), **options)
    many = jax.jit(lambda keys: jax.lax.map(lambda k: lnz.log_partition(MODEL, route=taken, key=k), keys))
    estimates = many(jax.random.split(jax.random.key(11), 100))
    truth, value = exact(MODEL), np.asarray(estimates.value)
    held = (np.asarray(estimates.lower) <= truth) & (truth <= np.asarray(estimates.upper))
    assert held.mean() >= 0.95
    if taken.unbiased:
        ratio = np.exp(value - truth)
        assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / 10


def free_energies(energy) -> np.ndarray:
    v = jnp.asarray(np.indices((2,) * 5).reshape(5, -1).T, float)
    return np.asarray(jax.vmap(lnz.capabilities.free_energy_of(energy))(v))


@pytest.mark.parametrize("name", ["kinds", "function", "machines"])
def test_the_laws_along_the_path_are_those_that_it_says(name):
    way = Path(MODEL, lnz.routes.AnnealingPath(PATHS[name]()))
    at = [free_energies(way.at(jnp.asarray(beta))) for beta in (0.0, 0.25, 0.5, 0.8, 1.0)]
    if name == "function":
        wanted = [free_energies(curved(beta)) for beta in (0.0, 0.25, 0.5, 0.8, 1.0)]
    else:
        middle = PATHS[name]()[1]
        first, knot, last = map(free_energies, (START, middle, MODEL))
        wanted = [first, 0.5 * (first + knot), knot, 0.4 * knot + 0.6 * last, last]
        if (
            name == "machines"
        ):  # paths of the joint energies: through independent units and fair coins, and between parameters
            between = jax.tree.map(lambda a, b: 0.4 * a + 0.6 * b, middle, MODEL)
            joint = middle.tempered(START, jnp.asarray(0.5))
            wanted = [first - 3 * np.log(2), free_energies(joint), knot, free_energies(between), last]
    for found, right in zip(at, wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-9)
    assert way.own is False


def test_the_normaliser_at_the_start_is_that_of_the_law_there():
    for path in (PATHS["machines"](), curved, lambda beta: MODEL.tempered(START, beta)):
        way = Path(MODEL, lnz.routes.AnnealingPath(path))
        assert float(way.log_z0()) == pytest.approx(
            np.logaddexp.reduce(-free_energies(way.at(jnp.zeros(())))), abs=1e-9
        )


def test_averaged_moments_lie_evenly_between_those_of_base_and_model():
    knots = 4
    path = lnz.routes.moment_averaged_path(MODEL, base=START, knots=knots)
    way = Path(MODEL, path)
    v = np.indices((2,) * 5).reshape(5, -1).T.astype(float)

    def moments(beta):
        """E[v], E[h] and E[v hᵀ] by a sum over all states."""
        law = way.at(jnp.asarray(beta))
        p = np.exp(-free_energies(law))
        h = np.asarray(law.hidden_mean(jnp.asarray(v)))
        p /= p.sum()
        return np.concatenate([p @ v, p @ h, ((p[:, None] * v).T @ h).ravel()])

    first, last = moments(0.0), moments(1.0)
    assert np.abs(first - last).max() > 0.2
    for k in range(knots + 1):
        np.testing.assert_allclose(moments(k / knots), first + k / knots * (last - first), atol=2e-4)
    geometric = MODEL.tempered(START, jnp.asarray(0.5))
    assert np.abs(free_energies(geometric) - free_energies(way.at(jnp.asarray(0.5)))).max() > 0.5


@pytest.mark.slow
def test_moments_by_chains_are_near_the_exact_ones():
    """A model too large for short sums, of which the exact ones are known by a longer sum; and a path that is still valid."""
    rng = np.random.default_rng(0)
    model = lnz.RBM.from_parameters(0.5 * rng.normal(size=(20, 17)), rng.normal(size=20) - 1, rng.normal(size=17) - 1)
    path = lnz.routes.moment_averaged_path(model, knots=2, chains=64, updates=300, key=jax.random.key(0))
    slope = jax.jit(lambda machine: lnz.routes.Enumeration().mean_gradient(machine, None))
    start, middle, end = (slope(machine) for machine in (path.start.model, path.energies[0], model))
    wanted = jax.tree.map(lambda a, b: 0.5 * (a + b), start, end)
    gaps = [
        np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (x, wanted)), strict=True)])
        for x in (middle, start)
    ]
    assert np.sqrt(np.mean(gaps[0] ** 2)) < 0.02 < 0.05 < np.sqrt(np.mean(gaps[1] ** 2))


def test_spins_along_moments_of_given_samples(key):
    couplings = np.array([[0, 1.0, -0.7], [1.0, 0, 0.4], [-0.7, 0.4, 0]])
    model = lnz.Ising(couplings, np.array([0.3, -0.2, 0.8]))
    samples = lnz.routes.Enumeration().sample(model, key, 500)
    path = lnz.routes.moment_averaged_path(model, knots=2, samples=samples)
    middle = Path(model, path).at(jnp.asarray(0.5))
    assert isinstance(middle, lnz.Ising)  # with the moves of its kind
    mean = lnz.expectation(middle, lambda s: jnp.outer(s, s).astype(float), route=lnz.routes.Enumeration()).value
    wanted = 0.5 * np.eye(3) + 0.5 * np.asarray(samples.T.astype(float) @ samples.astype(float)) / 500
    np.testing.assert_allclose(mean, wanted, atol=2e-4)
    assert lnz.routes.ParallelTempering.from_base(path).unsupported_reason(model) is None


def test_a_path_found_by_chains(key):
    """Of a model too large for short sums; how near its moments are is asked in a slow test."""
    model = lnz.RBM(visible=40, hidden=30, key=key)
    path = lnz.routes.moment_averaged_path(model, knots=3, chains=8, updates=4, key=key)
    assert len(path.energies) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(path))
    assert float(path.log_normaliser()) == pytest.approx(70 * np.log(2), rel=1e-6)


def test_the_path_ends_at_the_model_where_its_parameters_are_traced(key):
    """A path that was made for another machine: refused where Python can see it, otherwise bent to the model itself."""
    route = ANNEALING.from_path([START, MIDDLE, MODEL], temperatures=8, chains=CHAINS)
    other = jax.tree.map(lambda x: 0.8 * x, MODEL)
    log_weights = jax.jit(lambda model, key: route.anneal(model, key)[0])(other, key)
    ratio = np.exp(np.asarray(log_weights) - exact(other))
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(CHAINS)
    with pytest.raises(ValueError, match=r"the path does not end at the model.*Put the model itself last"):
        lnz.log_partition(other, route=route, key=key)


@pytest.mark.slow
def test_continuous_paths(key):
    """Two modes: through a wide law, and along a function of β that is summed at neither end."""
    end = lnz.FunctionEnergy(lambda x: jnp.sum(jnp.square(jnp.square(x) - 2.0)), lnz.Real((1,)))
    start = lnz.Gaussian([0.0], [0.25])
    x = np.linspace(-6, 6, 4001)
    truth = np.log(np.exp(-((x**2 - 2) ** 2)).sum() * (x[1] - x[0]))
    route = ANNEALING.from_path([start, lnz.Gaussian([0.0], [0.5]), end], temperatures=20, chains=500)
    ratio = np.exp(np.asarray(jax.jit(lambda key: route.anneal(end, key)[0])(key)) - truth)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(500)


def test_bad_paths_are_refused(key):
    def refused(path, words, error=ValueError, **options):
        with pytest.raises(error, match=words):
            lnz.routes.AnnealingPath(path, **options)

    refused([MODEL], "at least two energies")
    refused([START, lnz.RBM(visible=4, hidden=3, key=key), MODEL], "must be on one space, but that 1 of the path is on")
    refused(
        [lnz.RBM(visible=60, hidden=60, key=key), lnz.RBM(visible=60, hidden=60, key=key)],
        "must begin at a distribution with known log Z",
    )
    nan = lnz.FunctionEnergy(lambda v: jnp.sqrt(jnp.sum(v) - 1.5), lnz.Binary(5))
    refused([START, nan, MODEL], "the energy 1 of the path is NaN at a state that the start of the path reaches")
    refused(lambda beta: jax.tree.map(lambda x: x * jnp.sqrt(0.6 - beta), MODEL), "at β = 0.625 is NaN")
    refused(
        lambda beta: lnz.RBM.from_parameters(float(beta) * MODEL.weights, np.zeros(5), np.zeros(3)),
        "must be traceable",
        TypeError,
    )
    refused(lambda beta: 3, "cannot use int as an energy", TypeError)
    refused(curved, "does not begin at its base", base=START)
    refused(curved, "offers neither.*inherit from lnz.capabilities.Normalised", base=MARGINAL)
    refused([MODEL.tempered(START, jnp.zeros(())), MODEL], "begin at the base that it was made from")
    with pytest.raises(ValueError, match="put 0 first, 1 last"):
        ANNEALING.from_path(curved, schedule=(0.0, 0.5, 0.9))
    shifted = lnz.FunctionEnergy(lambda v: MODEL.free_energy(v) + 0.1, lnz.Binary(5))
    assert "does not end at the model" in (ANNEALING.from_path([START, shifted]).unsupported_reason(MODEL) or "")
    assert "the base is on" in (
        ANNEALING.from_path([START, MODEL]).unsupported_reason(lnz.RBM(visible=4, hidden=3, key=key)) or ""
    )


def test_bad_families_are_refused(key):
    made = lnz.routes.moment_averaged_path
    with pytest.raises(ValueError, match="a family whose energy is linear in its parameters"):
        made(MARGINAL)
    with pytest.raises(ValueError, match="independent units on"):
        made(MODEL, base=lnz.Independent(np.zeros(4), lnz.Binary(4)))
    with pytest.raises(ValueError, match="estimated by chains: pass key="):
        made(lnz.RBM(visible=60, hidden=60, key=key))
    with pytest.raises(ValueError, match="knots must be an integer of at least 1"):
        made(MODEL, knots=0)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda model: exact(model) if made(model) is None else 0)(MODEL)
