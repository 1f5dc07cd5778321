"""Swendsen-Wang moves keep the law and reach it; components are those of a graph library."""

import jax
import jax.numpy as jnp
import networkx
import numpy as np
import pytest

import lnz
from contracts.energies import named, potts_sparse
from contracts.kernels import agreement
from contracts.routes import as_states
from lnz.kernels._swendsen_wang import components

CHAINS, STEPS, SURE = 2048, 25, 1e-6


def cases():
    """Spins with couplings of both signs, and equal-states couplings of at least 0, all with fields."""
    ising, potts = named("ising sparse"), potts_sparse("potts sparse", tables=False)
    return {"ising": (ising, ising.flat), "potts": (potts, np.concatenate([np.abs(potts.flat[:4]), potts.flat[4:]]))}


@pytest.mark.parametrize("name", ["ising", "potts"])
def test_the_law_stays_and_is_reached(name):
    case, flat = cases()[name]
    law, states = case.observed_probabilities(flat), as_states(case)
    start = states[np.random.default_rng(1).choice(len(law), CHAINS, p=law)]
    both = jnp.concatenate([start, jnp.broadcast_to(states[:1], start.shape)])

    def run(energy, key):
        def body(carry, inputs):
            i, key = inputs
            v = lnz.kernels.SwendsenWang().step(energy, key, carry[0])[0]
            return (v, jnp.where(i == 0, v, carry[1])), None

        return jax.lax.scan(body, (both, both), (jnp.arange(STEPS), jax.random.split(key, STEPS)))[0]

    last, first = jax.jit(run)(case.at(jnp.asarray(flat)), jax.random.key(4))
    for x in (first[:CHAINS], last[CHAINS:]):
        assert agreement(case, np.asarray(x), -case.free_energies(flat)) > SURE


def test_components_are_those_of_a_graph_library():
    rng, n = np.random.default_rng(5), 60
    find = jax.jit(components, static_argnums=3)
    for share in np.linspace(0, 1, 12):
        edges = np.stack([np.arange(n), rng.permutation(n)], 1)  # long rings and chains
        present = rng.random(n) < share
        found = np.asarray(find(*jnp.asarray(edges, jnp.int32).T, jnp.asarray(present), n))
        graph = networkx.Graph(edges[present].tolist())
        graph.add_nodes_from(range(n))
        for members in networkx.connected_components(graph):
            assert set(found[list(members)]) == {min(members)}


def test_what_is_refused():
    assert "couplings of at least 0" in str(lnz.kernels.SwendsenWang().unsupported_reason(named("potts sparse").energy))
    assert "one coupling per pair" in str(
        lnz.kernels.SwendsenWang().unsupported_reason(named("potts dense tables").energy)
    )
    assert "for Ising and Potts models" in str(lnz.kernels.SwendsenWang().unsupported_reason(named("rbm").energy))
    with pytest.raises(Exception, match="negative Potts coupling"):
        jax.jit(lambda e, v: lnz.kernels.run_chains(e, lnz.kernels.SwendsenWang(), v, jax.random.key(0), 1))(
            named("potts sparse").energy, jnp.zeros((2, 4), jnp.int32)
        )
