"""Factor graphs as energies: their shape, their sharing, their evidence, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from listing import random_graph

TABLES = [np.array([[0.3, -0.2, 0.9], [0.1, 0.5, -np.inf]]), np.array(0.7), np.array([-0.4, 1.1])]


def shared() -> lnz.FactorGraph:
    return lnz.FactorGraph([2, 3, 2], [(0, 1), (2, 1), (), (2,)], TABLES, table_of=[0, 0, 1, 2])


@pytest.mark.parametrize("seed", range(3))
def test_the_energy_of_every_state(seed):
    listed = random_graph(seed + 40)
    graph = listed.graph
    states = np.indices(listed.cardinalities).reshape(len(listed.cardinalities), listed.weights.size).T
    found = -jax.jit(jax.vmap(graph))(states).reshape(listed.cardinalities)
    np.testing.assert_allclose(found, listed.weights, rtol=1e-12, atol=1e-12)


def test_labels_are_states_of_mixed_cardinality():
    space = lnz.crf.MixedCategorical([2, 1, 3])
    assert space.count == 6
    assert space.decode(jnp.arange(6)).tolist() == [[a, 0, c] for a in range(2) for c in range(3)]
    draws = np.asarray(space.uniform(jax.random.key(0), 600))
    assert draws.max(axis=0).tolist() == [1, 0, 2]
    space.validate(draws, batch=True)
    with pytest.raises(ValueError, match="an integer of at least 0 and below"):
        space.validate(np.array([0, 1, 0]))
    with pytest.raises(ValueError, match="at least 1"):
        lnz.crf.MixedCategorical([2, 0])
    assert lnz.FactorGraph([3, 3], [], []).space == lnz.Categorical(2, k=3)


def test_shared_tables_gather_the_marginals_of_their_factors():
    graph = shared()
    gradient = jax.grad(lambda g: lnz.log_partition(g, route=lnz.routes.Elimination()).value)(graph)
    beliefs = lnz.routes.Elimination().factor_marginals(graph)
    np.testing.assert_allclose(gradient.tables[0], beliefs[0] + beliefs[1], atol=1e-14)
    assert [float(table.sum()) for table in gradient.tables] == pytest.approx([2, 1, 1])
    assert gradient.tables[0][1, 2] == 0


def test_evidence_leaves_the_sum_over_the_others():
    graph = shared()
    given = graph.evidence({1: 2})
    assert given.cardinalities == (2, 1, 2)
    assert given.table_of == (0, 0, 1, 2)  # both factors kept the same part of table 0
    parts = [float(lnz.log_partition(graph.evidence({1: value})).value) for value in range(3)]
    assert np.logaddexp.reduce(parts) == pytest.approx(float(lnz.log_partition(graph).value), abs=1e-13)
    apart = graph.evidence({0: 0})
    assert apart.table_of == (0, 1, 2, 3)
    with pytest.raises(ValueError, match=r"evidence gives variable 1 the value 3, but its values are 0 … 2"):
        graph.evidence({1: 3})
    with pytest.raises(ValueError, match="evidence names variable 5"):
        graph.evidence({5: 0})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: lnz.FactorGraph([2, 0], [], []), "variable 1 has cardinality 0"),
        (lambda: lnz.FactorGraph([2], [(0, 0)], [np.zeros((2, 2))]), "names a variable twice"),
        (lambda: lnz.FactorGraph([2], [(1,)], [np.zeros(2)]), "names a variable outside"),
        (lambda: lnz.FactorGraph([2, 3], [(1, 0)], [np.zeros((2, 3))]), r"must have shape \(3, 2\), but has \(2, 3\)"),
        (lambda: lnz.FactorGraph([2], [(0,)], [np.zeros(2)], table_of=[1]), "names table 1"),
        (lambda: lnz.FactorGraph([2], [(0,)], [np.zeros(2)], table_of=[]), "every factor needs one table"),
        (lambda: lnz.FactorGraph([2], [(0,), ()], [np.array([0, np.nan]), 0.0]), "table 0 has the log-potential nan"),
        (lambda: lnz.FactorGraph([2], [(), (0,)], [0.0, np.array([0, np.inf])]), "table 1 has the log-potential inf"),
        (lambda: lnz.FactorGraph([2.5], [], []), "cardinalities must be integers"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_graph_is_saved_and_read_again(tmp_path):
    lnz.save(tmp_path / "graph.lnz", shared())
    again = lnz.load(tmp_path / "graph.lnz")
    assert jax.tree.structure(again) == jax.tree.structure(shared())
    np.testing.assert_array_equal(again.log_potentials, shared().log_potentials)
