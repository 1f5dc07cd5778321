"""Properties over what was never mixed: the dtype of every array argument, impossible and huge entries, short sequences, and JAX's transformations.

Few examples by default, always the same ones; `-m slow` draws many. Shapes are fixed, so that little compiles.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lnz
from listing import Listed, ising, log_sum, states

INTEGERS = [np.int8, np.int16, np.int32, np.int64, np.uint8, list]
NUMBERS = [*INTEGERS, bool, np.float16, np.float32, np.float64]
few = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


def holds(examples: int, *strategies: st.SearchStrategy):
    """A property as two tests: a quick one of few examples, and a slow one of many."""

    def tests_of(f):
        def run(many):
            settings(max_examples=40 * examples if many else examples, **few)(given(*strategies)(f))()

        run.__name__, run.__doc__ = f.__name__, f.__doc__
        choices = [False, pytest.param(True, marks=pytest.mark.slow)]
        return pytest.mark.parametrize("many", choices, ids=["few", "many"])(run)

    return tests_of


def as_given(x, dtype):
    """The same numbers as a user may pass them."""
    x = np.asarray(x)
    return x.tolist() if dtype is list else x.astype(dtype)


def entries(*shape):
    """Potentials that every dtype holds, and with them those of floats: impossible and huge ones."""
    n = int(np.prod(shape))
    plain = st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(0, 1), min_size=n, max_size=n))
    rough = st.tuples(
        st.sampled_from([np.float32, np.float64, list]),
        st.lists(st.sampled_from([0.0, 1.5, -2.25, -np.inf, -1e4, 700.0]), min_size=n, max_size=n),
    )
    return st.one_of(plain, rough).map(lambda found: as_given(np.reshape(found[1], shape), found[0]))


def chain_of(nodes, pairs, length):
    """log Z and the log-weights of all sequences of a chain of two labels, listed."""
    y = states(range(2), length)
    with np.errstate(invalid="ignore"):
        weights = nodes[np.arange(length), y].sum(axis=1) + pairs[y[:, :-1], y[:, 1:]].sum(axis=1)
    return log_sum(weights), weights, y


@holds(8, entries(5, 2), entries(2, 2), st.sampled_from(INTEGERS), st.sampled_from(INTEGERS), st.integers(0, 5))
def test_chains(nodes, pairs, index, label, length):
    chain = lnz.LinearChain(nodes, pairs, as_given(length, index))
    log_z, weights, y = chain_of(np.asarray(nodes, float), np.asarray(pairs, float), length)
    estimate = lnz.log_partition(chain)
    if log_z == -np.inf:
        assert float(estimate) == -np.inf
        return
    assert float(estimate.lower) <= log_z <= float(estimate.upper)
    best = int(np.argmax(weights))
    labels = np.zeros(5, int)
    labels[:length] = y[best]
    found = float(lnz.crf.log_probability(chain, as_given(labels, label)))
    assert found == pytest.approx(weights[best] - log_z, rel=1e-6, abs=1e-6)
    means = np.asarray(lnz.marginals(chain))
    p = np.exp(weights - log_z)
    for t in range(5):
        wanted = [p[y[:, t] == k].sum() for k in range(2)] if t < length else [0, 0]
        np.testing.assert_allclose(means[t], wanted, atol=1e-6)


@holds(8, entries(2, 3), entries(3, 2), st.sampled_from(INTEGERS), st.sampled_from([-1, 0, 1]))
def test_factor_graphs(first, second, index, seen):
    graph = lnz.FactorGraph(as_given([2, 3, 2], index), [(0, 1), (1, 2)], [first, second])
    listed = Listed((2, 3, 2), [(0, 1), (1, 2)], [np.asarray(first, float), np.asarray(second, float)])
    weights = listed.weights if seen < 0 else listed.weights[seen]
    evidence = as_given([seen, -1, -1], list if index is np.uint8 else index)
    found = lnz.log_partition(graph.clamped(evidence), route=lnz.routes.Elimination(search_seconds=0))
    log_z = log_sum(weights.ravel())
    assert float(found.lower) <= log_z <= float(found.upper)


@holds(
    5,
    st.sampled_from(INTEGERS),
    *[st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(0, 1), min_size=4, max_size=4))] * 2,
)
def test_couplings_by_edges(index, couplings, fields):
    edges = [(0, 1), (1, 2), (2, 3), (3, 0)]
    model = lnz.Ising.sparse(as_given(edges, index), as_given(*couplings[::-1]), as_given(*fields[::-1]), n=4)
    dense = np.zeros((4, 4))
    for (i, j), coupling in zip(edges, couplings[1], strict=True):
        dense[i, j] = dense[j, i] = coupling
    found = lnz.log_partition(model, route=lnz.routes.Elimination(search_seconds=0))
    assert float(found) == pytest.approx(ising(dense, np.asarray(fields[1], float))[0], abs=2e-3)


MACHINE = lnz.RBM(visible=4, hidden=3, key=jax.random.key(0), scale=0.5)
ROWS = states(range(2), 4)[[3, 9, 14]]
TRUTH = np.asarray(jax.vmap(MACHINE.free_energy)(jnp.asarray(ROWS, float)))


@holds(6, st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))
def test_rows_of_data(dtype, kind):
    rows, weights = as_given(ROWS, dtype), as_given(np.ones(3), kind)
    likelihood = lnz.log_likelihood(MACHINE, rows)
    assert likelihood.value == pytest.approx(-TRUTH.mean() - float(likelihood.log_z), abs=1e-6)
    parts = lnz.learning.phases(MACHINE, rows, lnz.routes.Enumeration(), weights=weights)
    wanted = lnz.learning.phases(MACHINE, ROWS.astype(float), lnz.routes.Enumeration())
    for x, z in zip(jax.tree.leaves(parts.gradient), jax.tree.leaves(wanted.gradient), strict=True):
        np.testing.assert_allclose(x, z, atol=1e-6)


def test_transformations_give_the_plain_calls_numbers():
    """A chain under `jit`, `vmap` and `grad`, on the quick branch and where sums must be by logarithms."""
    rng = np.random.default_rng(0)
    nodes = np.stack([rng.normal(size=(5, 2)), 400 * rng.normal(size=(5, 2))])
    pairs = np.stack([rng.normal(size=(2, 2)), np.array([[0.0, -1e4], [300.0, -np.inf]])])

    def log_z(nodes, pairs, length):
        return lnz.log_partition(lnz.LinearChain(nodes, pairs, length)).value

    lengths = jnp.asarray([4, 5], jnp.int8)
    plain = [float(log_z(*x)) for x in zip(nodes, pairs, (4, 5), strict=True)]
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(log_z)))(nodes, pairs, lengths)
    np.testing.assert_allclose(values, plain, rtol=1e-12)
    for row, (x, j, n) in enumerate(zip(nodes, pairs, (4, 5), strict=True)):
        np.testing.assert_allclose(values[row], chain_of(x, j, n)[0], rtol=1e-12)
        np.testing.assert_allclose(slopes[row], lnz.marginals(lnz.LinearChain(x, j, n)), atol=1e-9)
