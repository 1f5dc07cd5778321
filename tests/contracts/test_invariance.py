"""Every kernel leaves its energy's law as it is, at β = 1 and on the way there; and broken kernels are caught by the same test."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import lnz
from contracts.energies import listed, named
from contracts.kernels import GIBBS, agreement, base_of, numbered, tempered_weights
from contracts.routes import as_states
from listing import log_sum
from lnz._models.pairwise import LatticeCouplings
from lnz.kernels._leapfrog import leapfrog_moves
from lnz.testing._sums import p_value

CHAINS = 4096
SURE = 1e-6  # forty tests with a hundred seeds each would raise a false alarm once in 250 suites
BETAS = np.array([0.0, 0.37, 1.0])
every_gibbs = pytest.mark.parametrize("case", GIBBS, ids=lambda case: case.name.replace(" ", "_"))


@functools.cache
def moved(case):
    """One compiled program a case: F_β of every state, a step from the exact law, and thirty from one state; at every β."""
    rng, base, states = np.random.default_rng(1), base_of(case), as_states(case)
    laws = [np.exp(w - log_sum(w)) for w in (tempered_weights(case, base, beta) for beta in BETAS)]
    starts = jnp.stack([states[rng.choice(len(law), CHAINS, p=law)] for law in laws])
    possible = states[int(np.argmax(laws[-1]))]

    def at(beta, start, key, energy, base):
        tempered = lnz.capabilities.tempered(energy, base, beta)
        one, far = once_and_often(
            tempered, lnz.kernels.Gibbs(), key, start, jnp.broadcast_to(possible, start.shape), 30
        )
        return jax.vmap(lnz.capabilities.free_energy_of(tempered))(states), one, far

    run = jax.jit(jax.vmap(at, in_axes=(0, 0, 0, None, None)))
    keys = jax.random.split(jax.random.key(7), len(BETAS))
    return jax.tree.map(np.asarray, run(jnp.asarray(BETAS), starts, keys, case.energy, base))


def once_and_often(energy, kernel, key, start, far, sweeps):
    """Chains from `start` after one step, and chains from `far` after many: both in one loop, so that it is compiled once."""

    def body(carry, inputs):
        v, first = carry
        i, key = inputs
        v = kernel.step(energy, key, v)[0]
        return (v, jnp.where(i == 0, v, first)), None

    both = jnp.concatenate([start, far])
    inputs = (jnp.arange(sweeps), jax.random.split(key, sweeps))
    (last, first), _ = jax.lax.scan(body, (both, both), inputs)
    return first[: len(start)], last[len(start) :]


@every_gibbs
def test_the_tempered_path_runs_from_the_base_to_the_energy(case):
    base, free = base_of(case), moved(case)[0]
    for beta, found in zip(BETAS, free, strict=True):
        np.testing.assert_allclose(found, -tempered_weights(case, base, beta), rtol=1e-10, atol=1e-10)
    start = jax.vmap(base)(as_states(case))
    np.testing.assert_allclose(
        free[0],
        start - lnz.capabilities.log_latent_volume(lnz.capabilities.tempered(case.energy, base, 0.0)),
        atol=1e-10,
    )
    np.testing.assert_allclose(free[2], case.free_energies(case.flat), rtol=1e-10, atol=1e-10)


@every_gibbs
def test_one_gibbs_sweep_leaves_the_law_as_it_is(case):
    base, one = base_of(case), moved(case)[1]
    for beta, x in zip(BETAS, one, strict=True):
        assert agreement(case, x, tempered_weights(case, base, beta)) > SURE, beta


@every_gibbs
def test_gibbs_sweeps_reach_the_law_from_one_state(case):
    """A kernel that does nothing, or forgets a site, leaves every law as it is: it must also get there."""
    base, far = base_of(case), moved(case)[2]
    for beta, x in zip(BETAS[:2], far[:2], strict=True):
        assert agreement(case, x, tempered_weights(case, base, beta)) > SURE, beta


@pytest.mark.parametrize("name", ["rbm", "small rbm of categories"])
def test_the_gibbs_sweep_of_the_rbm_itself(name):
    """At β = 1 it is written apart from the path's."""
    case = next(case for case in GIBBS if case.name == name)
    law = case.observed_probabilities(case.flat)
    start = as_states(case)[np.random.default_rng(2).choice(len(law), CHAINS, p=law)]
    far = jnp.broadcast_to(start[:1], start.shape)
    weak = case.at(jnp.asarray(0.3 * case.flat))
    one, end = jax.jit(
        lambda e, weak, key: (e.gibbs(key, start), lnz.kernels.run_chains(weak, lnz.kernels.Gibbs(), far, key, 30))
    )(case.energy, weak, jax.random.key(3))
    assert agreement(case, np.asarray(one), -case.free_energies(case.flat)) > SURE
    assert agreement(case, np.asarray(end), -case.free_energies(0.3 * case.flat)) > SURE


# -------------------------------------------------------------------------------------------------- continuous states


def gaussian_rbm_law(case, base, beta):
    """p(h), the means (8, 2) and the precisions (2,) of v given h, on the path from the base: the square completed by hand."""
    weights, b, c, log_scale = case.leaves(case.flat)
    h, precision = listed(lnz.Binary(3)), np.exp(-2 * log_scale)
    warm, cold = (1 - beta) * np.asarray(base.precision), beta * precision
    total, pull = warm + cold, warm * np.asarray(base.mean) + cold * (b + h @ weights.T)
    means = pull / total
    u = h @ weights.T
    constant = beta * (h @ c) + beta * ((b * u + u**2 / 2) @ precision)
    square = 0.5 * np.sum(total * means**2, axis=1) - 0.5 * np.sum(warm * np.asarray(base.mean) ** 2)
    square = square - 0.5 * np.sum(cold * (b + u) ** 2, axis=1)
    log_p = constant + square
    return np.exp(log_p - log_sum(log_p)), means, total


def test_gaussian_rbm_on_its_path():
    case, rng = named("gaussian rbm"), np.random.default_rng(5)
    base = lnz.Gaussian([1.5, -0.5], [0.4, 1.3])
    laws = [gaussian_rbm_law(case, base, beta) for beta in BETAS]
    starts = []
    for p, means, precision in laws:
        chosen = rng.choice(8, CHAINS, p=p)
        starts.append(means[chosen] + rng.normal(size=(CHAINS, 2)) / np.sqrt(precision))
    points = jnp.asarray(rng.normal(size=(30, 2)) * 2)

    def at(beta, start, key, energy, base):
        tempered = lnz.capabilities.tempered(energy, base, beta)
        one, far = once_and_often(tempered, lnz.kernels.Gibbs(), key, start, jnp.full_like(start, 3.0), 40)
        return jax.vmap(lnz.capabilities.free_energy_of(tempered))(points), one, far

    run = jax.jit(jax.vmap(at, in_axes=(0, 0, 0, None, None)))
    free, one, far = run(
        jnp.asarray(BETAS), jnp.stack(starts), jax.random.split(jax.random.key(1), 3), case.energy, base
    )
    own = jax.jit(lambda e, key, v: e.gibbs(key, v))(case.energy, jax.random.key(4), starts[2])

    start = jax.vmap(base)(points)
    np.testing.assert_allclose(free[0], start - 3 * np.log(2), atol=1e-10)
    np.testing.assert_allclose(free[2], jax.vmap(lnz.capabilities.free_energy_of(case.energy))(points), atol=1e-10)

    def cells(x, law):
        """Six by six cells, and their exact chances."""
        p, means, precision = law
        centre = p @ means
        spread = np.sqrt(p @ (means - centre) ** 2 + 1 / precision)
        edges = centre + spread * np.linspace(-1.2, 1.2, 5)[:, None]
        cdf = stats.norm.cdf((edges[:, None] - means[None]) * np.sqrt(precision))
        cdf = np.concatenate([np.zeros((1, 8, 2)), cdf, np.ones((1, 8, 2))])
        mass = np.diff(cdf, axis=0)
        chances = np.einsum("h,ih,jh->ij", p, mass[..., 0], mass[..., 1])
        found = [np.searchsorted(edges[:, i], np.asarray(x)[:, i]) for i in range(2)]
        return np.bincount(6 * found[0] + found[1], minlength=36), chances.ravel()

    for x, law in [*zip(one, laws, strict=True), *zip(far[:2], laws[:2], strict=False), (own, laws[2])]:
        assert p_value(*cells(x, law)) > SURE


def grid_law(log_weight, low, high, n=4001):
    """Nodes, and the law's distribution function at them, of a density on an interval."""
    x = np.linspace(low, high, n)
    density = np.exp(log_weight(x) - log_weight(x).max())
    cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return x, cdf / cdf[-1]


@functools.cache
def langevin_cases():
    well, box = named("double well").energy, lnz.Box(-1.0, 2.0, shape=1)
    ramp = lnz.FunctionEnergy(jax.tree_util.Partial(lambda t, x: t * x[0] + jnp.sin(3 * x[0]), jnp.asarray(1.2)), box)
    t = np.asarray(well.parameters.args[0])
    return {
        "double well": (well, lambda x: -t[0] * (x**2 - t[1]) ** 2 - t[2] * x, -5, 5, 0.15),
        "box": (ramp, lambda x: -1.2 * x - np.sin(3 * x), -1, 2, 0.3),
        "on the path": (
            lnz.capabilities.tempered(well, lnz.Gaussian([0.7], [0.5]), jnp.asarray(0.37)),
            lambda x: -0.37 * (t[0] * (x**2 - t[1]) ** 2 + t[2] * x) - 0.63 * 0.25 * (x - 0.7) ** 2,
            -8,
            8,
            0.3,
        ),
    }


def langevin_p_values(name, step):
    energy, log_weight, low, high, _ = langevin_cases()[name]
    x, cdf = grid_law(log_weight, low, high)
    start = jnp.asarray(np.interp(np.random.default_rng(6).uniform(size=2 * CHAINS), cdf, x)[:, None])
    far = jnp.full_like(start, 0.3)

    def several(key, v, n):
        return jax.lax.scan(lambda v, key: (step(energy, key, v), None), v, jax.random.split(key, n))[0]

    one, end = jax.jit(lambda key: (several(key, start, 4), several(key, far, 200)))(jax.random.key(2))
    edges = np.interp(np.linspace(0, 1, 25)[1:-1], cdf, x)
    return [
        p_value(np.bincount(np.searchsorted(edges, v[:, 0]), minlength=24), np.ones(24))
        for v in map(np.asarray, (one, end))
    ]


@pytest.mark.parametrize("name", ["double well", "box", "on the path"])
def test_langevin_moves_leave_the_law_as_it_is_and_reach_it(name):
    size = langevin_cases()[name][4]
    stay, reach = langevin_p_values(name, lambda e, key, v: lnz.kernels.Langevin(size).step(e, key, v)[0])
    assert stay > SURE
    assert reach > SURE


def test_several_leapfrogs_between_walls_with_a_step_size_of_each_chain_leave_the_law_as_it_is():
    def step(energy, key, v):
        sizes = jnp.linspace(0.05, 1.5, len(v))  # the longest moves meet both walls
        return leapfrog_moves(energy, key, v, sizes, moves=2, leapfrogs=3)[0]

    assert min(langevin_p_values("box", step)) > SURE


# ------------------------------------------------------------------------------------------------ the test can fail


def test_unadjusted_langevin_moves_are_caught():
    def unadjusted(energy, key, v):
        slope = jax.vmap(jax.grad(lnz.capabilities.free_energy_of(energy)))(v)
        return v - 0.15 * slope + jnp.sqrt(0.3) * jax.random.normal(key, v.shape)

    assert min(langevin_p_values("double well", unadjusted)) < SURE


def test_langevin_moves_at_the_wrong_temperature_are_caught():
    def hot(energy, key, v):
        return leapfrog_moves(
            lnz.capabilities.tempered(energy, lnz.Gaussian([0.0], [1e-9]), jnp.asarray(0.8)), key, v, jnp.asarray(0.15)
        )[0]

    assert min(langevin_p_values("double well", hot)) < SURE


def caught(case, step):
    """Whether the one-sweep test of above would go red for this step."""
    law = case.observed_probabilities(case.flat)
    start = as_states(case)[np.random.default_rng(2).choice(len(law), CHAINS, p=law)]
    x = jax.jit(lambda key: step(case.energy, key, start))(jax.random.key(11))
    counts = np.bincount(numbered(lnz.capabilities.observed_space(case.energy), np.asarray(x)), minlength=len(law))
    return p_value(counts, law) < SURE


def test_a_wrong_temperature_is_caught():
    case = named("rbm")
    assert caught(case, lambda e, key, v: jax.tree.map(lambda x: 0.9 * x, e).gibbs(key, v))
    assert not caught(case, lambda e, key, v: e.gibbs(key, v))


def test_a_wrong_sign_is_caught():
    case = named("potts sparse")
    assert caught(case, lambda e, key, v: jax.tree.map(jnp.negative, e).gibbs(key, v))


class OneClass(LatticeCouplings):
    """A lattice whose sites are updated all at once: neighbours in one block."""

    def colours(self):
        return np.ones((1, *self.shape), bool)


def test_neighbours_in_one_block_are_caught():
    case = named("ising grid")

    def step(energy, key, v):
        couplings = OneClass(energy.couplings.strength, energy.couplings.shape, energy.couplings.periodic)
        return lnz.Ising(couplings, energy.fields).gibbs(key, v)

    assert caught(case, step)


@pytest.mark.parametrize(
    "name", ["ising grid", "ising ring", "ising 3d torus", "ising sparse", "potts odd torus", "ising dense"]
)
def test_colour_classes_hold_no_neighbours_and_every_site(name):
    couplings = named(name).energy.couplings
    classes = couplings.colours()
    assert (classes.sum(axis=0) == 1).all()
    sites = int(np.prod(couplings.sites))
    field = jax.vmap(couplings.local_field)(jnp.eye(sites).reshape(sites, *couplings.sites))
    matrix = np.asarray(field).reshape(sites, sites)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    for members in classes.reshape(len(classes), sites):
        assert not matrix[np.ix_(members, members)].any()
