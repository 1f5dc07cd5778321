"""Gibbs sweeps by classes of sites: every layout finds the right neighbours, and blocks with neighbours in them are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.frozen import Frozen
from lnz._models.colouring import block_problem, colour_classes
from lnz._models.sweeps import layout, neighbour_sum
from lnz.testing._sums import p_value

COLD = 1e4
CHAINS = 64


def lattice(kind, shape, periodic, sites_alike):
    rng = np.random.default_rng(sum(shape))
    strengths = {"one": (), "axes": (len(shape),) + (1,) * len(shape), "all": (len(shape), *shape)}[sites_alike]
    j, options = COLD * rng.normal(size=strengths), {"periodic": periodic}
    if kind is lnz.Potts:
        return lnz.Potts.lattice(shape, j, COLD * rng.normal(size=(*shape, 3)), q=3, **options)
    return lnz.Ising.lattice(shape, j, COLD * rng.normal(size=shape), **options)


def star():
    """A hub of forty sites: one owns half the pairs, which a table by columns would waste."""
    rng, edges = np.random.default_rng(1), np.array([[0, i] for i in range(1, 41)])
    return lnz.Ising.sparse(edges, COLD * rng.normal(size=40), COLD * rng.normal(size=41), n=41)


def mixed_graph():
    """Variables of 2, 3, 2 and 4 values, pairs and a triple, a shared table, and two impossible configurations."""
    rng = np.random.default_rng(2)
    pair, triple = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 4))
    pair[1, 2] = triple[0, 1, 3] = -np.inf
    scopes, tables = [(0, 1), (2, 1), (2, 1, 3), (3,)], [pair, triple, rng.normal(size=4)]
    return lnz.FactorGraph([2, 3, 2, 4], scopes, tables, table_of=[0, 0, 1, 2])


ENERGIES = {
    "torus, couplings of axes": lattice(lnz.Ising, (4, 6), True, "axes"),
    "odd width, free": lattice(lnz.Ising, (4, 5), False, "all"),
    "cylinder": lattice(lnz.Ising, (3, 4), (False, True), "one"),
    "one column": lattice(lnz.Ising, (5, 1), False, "one"),
    "two rows twice coupled": lattice(lnz.Ising, (2, 2), True, "axes"),
    "chain": lattice(lnz.Ising, (7,), False, "all"),
    "three dimensions": lattice(lnz.Ising, (2, 4, 3), (True, True, False), "one"),
    "odd torus": lattice(lnz.Ising, (3, 5), True, "all"),
    "potts": lattice(lnz.Potts, (4, 3), (True, False), "all"),
    "star": star(),
}


SLOW = (
    "cylinder",
    "one column",
    "two rows twice coupled",
    "chain",
)  # their branches are those of others, at other sizes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in ENERGIES]
)
def test_cold_sweeps_go_downhill_as_by_hand(name):
    """At zero temperature a sweep is no game of chance: every class takes its best values, given all others."""
    energy = ENERGIES[name]
    sites = energy.couplings.sites
    n, spins = int(np.prod(sites)), isinstance(energy, lnz.Ising)
    edges, strength = map(np.asarray, energy.couplings.pairs())
    j, h = np.zeros((n, n)), np.asarray(energy.fields).reshape(n, -1)
    np.add.at(j, tuple(edges.T), strength)
    x = np.array(energy.space.uniform(jax.random.key(1), CHAINS)).reshape(CHAINS, n)
    swept = jax.jit(lambda key, x: energy.gibbs(key, x))(jax.random.key(2), jnp.asarray(x.reshape(CHAINS, *sites)))
    for row in energy.couplings.colours().reshape(-1, n):
        phi = x[:, None] if spins else np.eye(3)[x].transpose(0, 2, 1)  # chains, values, sites
        pull = phi @ (j + j.T) + h.T[None]
        best = np.sign(pull[:, 0]) if spins else pull.argmax(axis=1)
        x = np.where(row, best, x)
    np.testing.assert_array_equal(swept, x.reshape(CHAINS, *sites))
    assert swept.dtype == energy.space.struct.dtype


def test_a_factor_graph_with_zeros_keeps_its_law():
    energy = mixed_graph()
    states = np.array(list(itertools.product(*map(range, energy.cardinalities))))
    law = np.exp(-np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(states))))
    law /= law.sum()
    start = jnp.asarray(states[np.random.default_rng(3).choice(len(law), 4096, p=law)])
    far = jnp.broadcast_to(jnp.asarray([0, 0, 0, 0]), start.shape)
    blocks = lnz.kernels.Gibbs(blocks=[[3, 0], [1], [2]])

    def run(key):
        both = jnp.concatenate([start, far])
        once = blocks.step(energy, key, both)[0]
        # Site after site, by the energy alone, which knows nothing of tables.
        alone = lnz.kernels.Gibbs().step(lnz.FunctionEnergy(energy, energy.space), key, start)[0]
        return once[:4096], lnz.kernels.run_chains(energy, blocks, both, key, 25)[4096:], alone

    for v in jax.jit(run)(jax.random.key(5)):
        numbers = np.ravel_multi_index(tuple(np.asarray(v).T), energy.cardinalities)
        assert p_value(np.bincount(numbers, minlength=len(law)), law) > 1e-6


@pytest.mark.parametrize("crowded", [False, True])
def test_terms_are_summed_for_their_owners(crowded):
    rng, n = np.random.default_rng(4), 30
    owner = np.where(rng.random(90) < 0.8, 7, rng.integers(0, n, 90)) if crowded else np.repeat(np.arange(n), 3)
    sites = layout([np.arange(0, n, 2), np.arange(1, n, 2)[::-1]])
    weights = np.append(rng.normal(size=90), 0)
    total = neighbour_sum(owner, sites)
    term = lambda entries: jnp.asarray(weights)[entries][:, None]  # noqa: E731
    found = np.concatenate([total(jnp.asarray(c), jnp.zeros((15, 1)), term)[:, 0] for c in (0, 1)])
    np.testing.assert_allclose(found[sites.place], np.bincount(owner, weights[:-1], n), atol=1e-12)


def test_blocks_are_checked():
    ring = lnz.Ising.lattice((4,), 0.5, periodic=True)
    start = jnp.ones((2, 4))
    for blocks, words in [
        ([[0, 1], [2, 3]], "sites 0 and 1 are neighbours, but both are in block 0"),
        ([[0, 2], [1]], "site 3 is in no block"),
        ([[0, 2], [1, 3, 0]], "site 0 is in 2 blocks"),
        ([[0, 2], [1, 4]], "names site 4"),
    ]:
        with pytest.raises(ValueError, match=words):
            lnz.kernels.run_chains(ring, lnz.kernels.Gibbs(blocks=blocks), start, jax.random.key(0), 1)
        with pytest.raises(ValueError, match=words):
            lnz.kernels.Gibbs(blocks=blocks).step(ring, jax.random.key(0), start)
    with pytest.raises(ValueError, match="numbers of sites"):
        lnz.kernels.Gibbs(blocks=[[0.5]])
    assert "does not define which sites interact" in str(
        lnz.kernels.Gibbs(blocks=[[0]]).unsupported_reason(lnz.FunctionEnergy(lambda x: x.sum(), lnz.Binary(1)))
    )


def test_colour_classes_of_graphs_are_independent_and_even():
    rng = np.random.default_rng(6)
    for n in (1, 5, 40, 300):
        edges = np.unique(np.sort(rng.integers(0, n, (3 * n, 2)), axis=1), axis=0)
        edges = edges[edges[:, 0] != edges[:, 1]]
        classes = colour_classes(Frozen(edges), n)
        assert block_problem(classes, edges, n) is None
    sizes = list(map(len, classes))
    assert max(sizes) < 3 * max(1, sorted(sizes)[len(sizes) // 2])
