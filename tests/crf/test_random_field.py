"""Conditional random fields over every structure, against sums over all labellings in plain NumPy."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import listing
import lnz
from lnz._core.numerics import float64

STRUCTURES = {
    "chain": lnz.crf.Chain(5),
    "tree": lnz.crf.Tree([-1, 0, 0, 1, 1, -1]),
    "grid": lnz.crf.Grid((2, 3)),
    "diagonal": lnz.crf.Grid((2, 3), [(0, 1), (1, -1), (-1, 0), (1, 2)]),
    "cube": lnz.crf.Grid((2, 1, 2)),
    "complete": lnz.crf.Graph.complete(4),
    "groups": lnz.crf.Graph(5, [(1, 0), (4, 2), (2, 3), (0, 3)], groups=[1, 3]),
    "factors": lnz.crf.Graph(5, [(0, 1), (3, 2)], factors=[(4,), (2, 0, 4), (1, 2), (0, 1, 3)]),
    "star": lnz.crf.Graph(7, [(i, 0) for i in range(1, 7)]),
}
K = 3


def made(name: str, per: str, hard: bool, masked: bool, seed: int = 0, k: int = K):
    """A field, and its log-weights over all labellings, (count,), with the labellings (count, n)."""
    structure, rng = STRUCTURES[name], np.random.default_rng([seed, *name.encode()])
    n, edges, scopes = structure.nodes, structure.edges, structure.factors
    unary = rng.normal(size=(n, k)) * 1.3
    groups = np.repeat(np.arange(len(structure.groups)), structure.groups)
    tables = rng.normal(size=({"one": 1, "group": len(structure.groups), "edge": len(edges)}[per], k, k)) * 1.3
    of = {"one": np.zeros(len(edges), int), "group": groups, "edge": np.arange(len(edges))}[per]
    factors = [rng.normal(size=(k,) * len(scope)) for scope in scopes]
    if hard:
        unary[rng.random(unary.shape) < 0.15] = -np.inf
        tables[rng.random(tables.shape) < 0.1] = -np.inf
        factors = [np.where(rng.random(table.shape) < 0.1, -np.inf, table) for table in factors]
    mask = rng.random(n) < 0.7 if masked else np.ones(n, bool)
    states = listing.states(range(k), n)
    weights = np.zeros(len(states))
    for i in range(n):
        weights += unary[i, states[:, i]] if mask[i] else np.where(states[:, i] == 0, 0, -np.inf)
    for e, (i, j) in enumerate(edges):
        if mask[i] and mask[j]:
            weights += tables[of[e], states[:, i], states[:, j]]
    for scope, table in zip(scopes, factors, strict=True):
        if mask[list(scope)].all():
            weights += table[tuple(states[:, i] for i in scope)]
    if masked:  # what stands where nothing is may hold anything
        unary[~mask] = np.nan
        if per == "edge":
            tables[~(mask[edges[:, 0]] & mask[edges[:, 1]])] = np.nan
    given = tables[0] if per == "one" else tables
    field = lnz.RandomField(
        structure,
        unary.reshape(*structure.shape, k),
        given,
        factors=factors,
        mask=mask.reshape(structure.shape) if masked else None,
    )
    return field, weights, states, mask


def log_sum(x):
    return np.log(np.exp(x - x.max()).sum()) + x.max()


KINDS = [("one", False, False), ("edge", True, True), ("group", False, True), ("edge", True, False)]
CASES = [(name, *KINDS[number % 4]) for number, name in enumerate(STRUCTURES)]


@pytest.mark.parametrize(("name", "per", "hard", "masked"), CASES)
def test_every_query_against_all_labellings(name, per, hard, masked):
    for seed in itertools.count():
        field, weights, states, mask = made(name, per, hard, masked, seed)
        if (weights > -np.inf).sum() > 3:
            break
    n, shape = field.structure.nodes, field.structure.shape
    log_z = log_sum(weights)
    p = np.exp(weights - log_z)
    assert float(lnz.log_partition(field).value) == pytest.approx(log_z, abs=1e-10)
    nodes = np.stack([[p[states[:, i] == v].sum() for v in range(K)] for i in range(n)])
    np.testing.assert_allclose(lnz.marginals(field).reshape(n, K), nodes * mask[:, None], atol=1e-10)
    for got, (i, j) in zip(lnz.crf.edge_marginals(field), field.structure.edges, strict=True):
        pair = [[p[(states[:, i] == a) & (states[:, j] == b)].sum() for b in range(K)] for a in range(K)]
        np.testing.assert_allclose(got, np.array(pair) * (mask[i] and mask[j]), atol=1e-10)
    for got, scope in zip(lnz.crf.factor_marginals(field), field.structure.factors, strict=True):
        want = np.zeros((K,) * len(scope))
        np.add.at(want, tuple(states[:, i] for i in scope), p)
        np.testing.assert_allclose(got, want * mask[list(scope)].all(), atol=1e-10)
    assert float(lnz.crf.entropy(field)) == pytest.approx(-np.sum(p[p > 0] * np.log(p[p > 0])), abs=1e-9)
    best = int(np.argmax(weights))
    np.testing.assert_array_equal(np.ravel(lnz.map_state(field)), states[best])
    np.testing.assert_array_equal(np.ravel(lnz.crf.mpm_state(field)), np.argmax(nodes, 1))
    ranked = lnz.crf.n_best(field, 3)
    np.testing.assert_allclose(ranked.log_weights, np.sort(weights)[::-1][:3], atol=1e-9)
    labels = jnp.asarray(np.where(mask, states[best], -100).reshape(shape))
    assert float(lnz.crf.log_probability(field, labels)) == pytest.approx(weights[best] - log_z, abs=1e-10)
    allowed = np.random.default_rng(1).random((n, K)) < 0.7
    inside = np.all(allowed[np.arange(n), states] | ~mask, axis=1) & (weights > -np.inf)
    want = log_sum(weights[inside]) - log_z if inside.any() else -np.inf
    got = lnz.crf.partial_log_probability(field, jnp.asarray(allowed.reshape(*shape, K)))
    assert float(got) == pytest.approx(want, abs=1e-10)


@pytest.mark.parametrize("name", ["diagonal", "factors", "star"])
def test_likelihood_gradient_is_marginals_less_indicators(name):
    field, weights, states, _ = made(name, "edge", False, False)
    y = states[int(np.argsort(weights)[7])].reshape(field.structure.shape)
    gradient = eqx.filter_grad(lambda f: lnz.crf.negative_log_likelihood(f, jnp.asarray(y)))(field)
    want = np.asarray(lnz.marginals(field)) - (y[..., None] == np.arange(K))
    np.testing.assert_allclose(gradient.unary, want, atol=1e-10)
    i, j = field.structure.edges.T
    at = np.zeros((len(i), K, K))
    at[np.arange(len(i)), y.ravel()[i], y.ravel()[j]] = 1
    np.testing.assert_allclose(gradient.pairwise, np.asarray(lnz.crf.edge_marginals(field)) - at, atol=1e-10)


@pytest.mark.parametrize("name", ["diagonal", "factors", "star", "groups"])
def test_conditionals_mean_field_updates_and_gibbs_sweeps(name):
    field, weights, states, _ = made(name, "group", False, False)
    n, rng = field.structure.nodes, np.random.default_rng(3)
    y = states[11]
    logits = np.asarray(field.conditionals(jnp.asarray(y.reshape(field.structure.shape))))
    q = rng.dirichlet(np.ones(K), n)
    expected = np.asarray(field.expected(jnp.asarray(q)))
    for i in range(n):
        others = np.delete(np.arange(n), i)
        rows = [int(np.flatnonzero((states[:, others] == y[others]).all(1) & (states[:, i] == v))[0]) for v in range(K)]
        np.testing.assert_allclose(logits[i] - logits[i, 0], weights[rows] - weights[rows[0]], atol=1e-10)
        law = np.prod([q[j, states[:, j]] for j in others], axis=0)
        mean = np.array([law[states[:, i] == v] @ weights[states[:, i] == v] for v in range(K)])
        np.testing.assert_allclose(expected[i] - expected[i, 0], mean - mean[0], atol=1e-10)


def test_what_is_impossible_counts_in_an_expectation_only_where_it_may_happen():
    tables = np.array([[0.5, -np.inf], [-np.inf, 0.25]])
    field = lnz.RandomField(lnz.crf.Chain(3), np.zeros((3, 2)), tables)
    q = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    np.testing.assert_allclose(field.expected(jnp.asarray(q)), [[-np.inf] * 2, [-np.inf] * 2, [-np.inf] * 2])
    sure = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(field.expected(jnp.asarray(sure)), [[0.5, -np.inf], [1.0, -np.inf], [0.5, -np.inf]])


def test_allowed_labels_and_pairs_are_log_potentials_of_minus_infinity():
    rng = np.random.default_rng(2)
    unary, tables = rng.normal(size=(2, 2, K)), rng.normal(size=(2, K, K))
    allowed, pairs = rng.random((2, 2, K)) < 0.7, rng.random((K, K)) < 0.7
    first = np.array([True, False, True])
    for given in (allowed, first):
        got = lnz.RandomField(GRID, unary, tables, allowed=given, allowed_pairs=pairs)
        want = lnz.RandomField(GRID, np.where(given, unary, -np.inf), np.where(pairs, tables, -np.inf))
        np.testing.assert_array_equal(got.unary, want.unary)
        np.testing.assert_array_equal(got.pairwise, want.pairwise)


def test_one_sweep_of_gibbs_leaves_the_law_as_it_is():
    field, weights, states, _ = made("diagonal", "group", True, True)
    p = np.exp(weights - log_sum(weights))
    colours, shape = field.structure.colours, field.structure.shape
    for i, j in field.structure.edges:
        assert colours[i] != colours[j]
    rng, count = np.random.default_rng(0), 60_000
    start = states[rng.choice(len(p), count, p=p)].reshape(count, *shape)
    after = np.asarray(
        jax.jit(lambda key, v: field.gibbs(key, v))(jax.random.key(0), jnp.asarray(start, jnp.int32))
    ).reshape(count, -1)
    index = after @ K ** np.arange(after.shape[1])[::-1]
    seen = np.bincount(index, minlength=len(p))
    assert (seen[p == 0] == 0).all()
    moved = (after != start.reshape(count, -1)).mean()
    assert moved > 0.02
    likely = count * p > 5
    chi = ((seen - count * p)[likely] ** 2 / (count * p)[likely]).sum()
    assert abs(chi - likely.sum()) < 5 * np.sqrt(2 * likely.sum())


def test_masks_and_queries_go_through_jit_and_vmap():
    grid = STRUCTURES["diagonal"]
    rng = np.random.default_rng(5)
    unary, tables = rng.normal(size=(4, 2, 3, K)), rng.normal(size=(4, K, K))
    masks = rng.random((4, 2, 3)) < 0.7
    labels = rng.integers(0, K, (4, 2, 3))
    labels[~masks] = -100

    def asked(unary, mask, y, key):
        field = lnz.RandomField(grid, unary, jnp.asarray(tables), mask=mask)
        routes = [lnz.routes.Enumeration(), lnz.routes.Elimination()]
        return (
            [lnz.crf.log_probability(field, y, route=route) for route in routes],
            lnz.marginals(field),
            lnz.map_state(field),
            lnz.crf.n_best(field, 2),
            lnz.exact_samples(field, key, 5),
            lnz.crf.entropy(field),
        )

    keys = jax.random.split(jax.random.key(0), 4)
    many = jax.jit(jax.vmap(asked))(jnp.asarray(unary), jnp.asarray(masks), jnp.asarray(labels), keys)
    for b in range(4):
        field = lnz.RandomField(grid, unary[b], tables, mask=jnp.asarray(masks[b]))
        want = lnz.crf.log_probability(field, jnp.asarray(labels[b]))
        np.testing.assert_allclose([x[b] for x in many[0]], [want, want], atol=1e-10)
        np.testing.assert_allclose(many[1][b], lnz.marginals(field), atol=1e-10)
        np.testing.assert_array_equal(many[2][b], lnz.map_state(field))
        np.testing.assert_allclose(many[3].log_weights[b], lnz.crf.n_best(field, 2).log_weights, atol=1e-9)
        np.testing.assert_allclose(many[3].log_weights[b], -jax.vmap(field)(many[3].states[b]), atol=1e-9)
        assert (np.asarray(many[4][b])[:, ~masks[b]] == 0).all()
        np.testing.assert_allclose(many[5][b], lnz.crf.entropy(field), atol=1e-10)


def test_divergence_of_two_fields():
    p, weights, _, _ = made("groups", "edge", True, False, 1)
    q, others, _, _ = made("groups", "edge", False, False, 2)
    a, b = weights - log_sum(weights), others - log_sum(others)
    possible = a > -np.inf
    want = np.sum(np.exp(a[possible]) * (a - b)[possible])
    assert float(lnz.crf.kl_divergence(p, q)) == pytest.approx(want, abs=1e-10)
    assert float(lnz.crf.kl_divergence(q, p)) == np.inf
    assert float(lnz.crf.kl_divergence(p, p)) == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="same structure"):
        lnz.crf.kl_divergence(p, made("complete", "edge", False, False)[0])


def test_a_field_with_no_node_left_and_one_with_no_labelling():
    grid = lnz.crf.Grid((2, 2))
    none = lnz.RandomField(grid, np.full((2, 2, 3), np.nan), mask=np.zeros((2, 2), bool))
    assert float(lnz.log_partition(none).value) == 0
    assert float(lnz.crf.log_probability(none, jnp.full((2, 2), -100))) == 0
    never = lnz.RandomField(grid, np.zeros((2, 2, 3)), allowed_pairs=np.zeros((3, 3), bool))
    assert float(lnz.log_partition(never).value) == -np.inf
    gradient = eqx.filter_grad(lambda f: lnz.log_partition(f).value)(never)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))
    for asked in (lnz.marginals, lnz.crf.edge_marginals, lnz.crf.entropy, lnz.map_state):
        with pytest.raises(ValueError, match="possible"):
            asked(never)


def test_traced_labels_out_of_range_are_not_taken_for_others():
    tables = np.array([[0.5, -np.inf], [-np.inf, 0.25]])

    def nats(unary, y):
        field = lnz.RandomField(lnz.crf.Chain(3), unary, tables)
        return lnz.crf.negative_log_likelihood(field, y, route=lnz.routes.Elimination())

    value, slope = jax.jit(jax.value_and_grad(nats))(jnp.zeros((3, 2)), jnp.asarray([0, 5, 1]))
    assert np.isnan(value)
    assert np.isnan(slope).any()


def test_in_float32_an_unlikely_labelling_keeps_its_digits():
    rng = np.random.default_rng(0)
    unary, tables = 30 * rng.normal(size=(12, 2, K)), 5 * rng.normal(size=(2, K, K))
    y = jnp.asarray(rng.integers(0, K, (12, 2)))
    exact = lnz.crf.log_probability(lnz.RandomField(lnz.crf.Grid((12, 2)), unary, tables), y)
    single = lnz.RandomField(lnz.crf.Grid((12, 2)), unary.astype(np.float32), tables.astype(np.float32))
    with float64(False):
        got = lnz.crf.log_probability(single, y, route=lnz.routes.Elimination())
    assert float(got) == pytest.approx(float(exact), rel=2e-6)


GRID = lnz.crf.Grid((2, 2))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: lnz.crf.Grid((2, 2), [(0, 2)]), "reaches beyond"),
        (lambda: lnz.crf.Grid((2, 2), [(0, 0)]), "not all 0"),
        (lambda: lnz.crf.Grid((2, 2), [(0, 1), (0, 1)]), "twice"),
        (lambda: lnz.crf.Grid((2, 0)), "at least one node"),
        (lambda: lnz.crf.Tree([1, 2, 0]), "cycle"),
        (lambda: lnz.crf.Tree([-1, 5]), "has the parent 5"),
        (lambda: lnz.crf.Graph(3, [(0, 3)]), "outside"),
        (lambda: lnz.crf.Graph(3, [(1, 1)]), "different nodes"),
        (lambda: lnz.crf.Graph(3, [(0, 1)], groups=[2]), "numbers of edges"),
        (lambda: lnz.crf.Graph(3, [(0.5, 1)]), "integers"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 3, 4))), "have shape"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), np.zeros((3, 3))), "pairwise tables of 4 labels"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), [np.zeros((4, 4))]), "one entry for each"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), [np.zeros((4, 4)), np.zeros((3, 4, 4))]), "group 1"),
        (lambda: lnz.RandomField(GRID, np.full((2, 2, 4), np.nan)), "unary hold nan"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), np.full((4, 4), np.inf)), "pairwise hold inf"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), factors=[np.zeros(4)]), "0 factors"),
        (lambda: lnz.RandomField(GRID, np.zeros((2, 2, 4)), mask=np.ones(4, bool)), "mask must be booleans"),
        (
            lambda: lnz.crf.log_probability(lnz.RandomField(GRID, np.zeros((2, 2, 4))), np.full((2, 2), 4)),
            r"labels must be in \[0, 3\]",
        ),
        (lambda: lnz.crf.log_probability(lnz.RandomField(GRID, np.zeros((2, 2, 4))), np.zeros(4, int)), "of shape"),
    ],
)
def test_bad_input_is_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@pytest.mark.parametrize("name", ["chain", "diagonal", "groups"])
@pytest.mark.parametrize("per", ["one", "group", "edge"])
def test_nested_lists_are_read_as_arrays(name, per):
    structure = STRUCTURES[name]
    count = {"one": 1, "group": len(structure.groups), "edge": len(structure.edges)}[per]
    tables = np.random.default_rng(4).normal(size=(count, K, K))
    pairwise, unary = tables[0] if per == "one" else tables, np.zeros((*structure.shape, K))
    array, lists = (
        lnz.RandomField(structure, u, p) for u, p in ((unary, pairwise), (unary.tolist(), pairwise.tolist()))
    )
    np.testing.assert_array_equal(array.edge_tables, lists.edge_tables)
