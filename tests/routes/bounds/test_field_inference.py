"""Belief propagation, mean field and decoding of random fields in JAX, against the engines in NumPy and against sums over all labellings."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._graphs import messages

K = 3
GRID = lnz.crf.Grid((2, 3), [(0, 1), (1, -1), (1, 0)])
GRAPH = lnz.crf.Graph(
    5, [(0, 1), (3, 2), (1, 3)], factors=[(4,), (2, 0, 4), (1, 0), (0, 1, 3), (3, 1, 0)], groups=[2, 1]
)
TREE = lnz.crf.Tree([-1, 0, 0, 1, 1, -1])
ROUTE = lnz.routes.BeliefPropagation(schedule="parallel", damping=0.4, tolerance=1e-12, max_sweeps=3000)


def field_of(structure, unary, pairwise, factors=(), mask=None):
    return lnz.RandomField(structure, unary, pairwise, factors=factors, mask=mask)


@functools.partial(jax.jit, static_argnums=0)
def by_propagation(structure, *arrays):
    def one(unary, pairwise, factors, mask):
        return ROUTE.log_partition_and_mean_gradient(field_of(structure, unary, pairwise, factors, mask))

    return jax.vmap(one)(*arrays)


def drawn(structure, count, tables, seed, hard=0.0, dtype=np.float64):
    """A batch of log-potentials with a mask each."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(count, *structure.shape, K)), rng.normal(size=(count, tables, K, K))]
    factors = [rng.normal(size=(count, *(K,) * len(scope))) for scope in structure.factors]
    for x in (*arrays, *factors):
        x[rng.random(x.shape) < hard] = -np.inf
    factors = tuple(jnp.asarray(x, dtype) for x in factors)
    return (*(jnp.asarray(x, dtype) for x in arrays), factors, jnp.ones((count, *structure.shape), bool))


def weights_of(field):
    """All labellings, and their log-weights."""
    n = field.structure.nodes
    states = np.array(list(itertools.product(range(K), repeat=n)))
    rows, (i, j) = np.asarray(field.rows), field.structure.edges.T
    with np.errstate(invalid="ignore"):
        total = rows[np.arange(n), states].sum(1) + np.asarray(field.edge_tables)[
            np.arange(len(i)), states[:, i], states[:, j]
        ].sum(1)
        for scopes, tables in zip(field.structure.scopes_by_arity, field.higher, strict=True):
            for scope, table in zip(scopes, np.asarray(tables), strict=True):
                total = total + table[tuple(states[:, scope].T)]
    return states, total


def log_sum(x):
    return np.log(np.sum(np.exp(x - x.max()))) + x.max()


def fixed_point(field):
    """The value and the gradient of the engine in NumPy."""
    graph = field.factors()
    found = messages.model(graph, np.asarray(graph.log_potentials))
    solved = lnz.routes.BeliefPropagation(damping=0.4, tolerance=1e-13, max_sweeps=5000).solve(found)
    assert solved.converged
    flat = messages.pulled(graph, solved.variables, solved.factors)
    return solved.value + found.constant, flat


def flattened(gradient, b):
    return np.concatenate([np.ravel(x[b]) for x in (gradient.unary, gradient.pairwise, *gradient.higher)])


@pytest.mark.parametrize(("structure", "tables", "hard"), [(GRID, 17, 0.06), (GRAPH, 2, 0.0)], ids=["grid", "graph"])
def test_all_messages_at_once_end_where_sweeps_over_classes_end(structure, tables, hard):
    tables = len(structure.edges) if tables == 17 else tables
    unary, pairwise, factors, mask = drawn(structure, 4, tables, seed=11, hard=hard)
    if structure is GRID:  # one grid that falls into two chains
        mask = mask.at[1].set(jnp.asarray([[True, False, True], [True, False, True]]))
        unary = unary.at[1, 0, 1].set(jnp.nan)
    estimate, gradient = by_propagation(structure, unary, pairwise, factors, mask)
    assert estimate.guarantee == "approximate"
    assert (np.asarray(estimate.diagnostics["converged"]) == 1).all()
    for b in range(4):
        field = field_of(structure, unary[b], pairwise[b], [f[b] for f in factors], mask[b])
        value, means = fixed_point(field)
        assert float(estimate.value[b]) == pytest.approx(value, abs=1e-9)
        np.testing.assert_allclose(flattened(gradient, b), means, atol=1e-8)
        if b == 1 and structure is GRID:
            assert value == pytest.approx(log_sum(weights_of(field)[1]), abs=1e-10)
    again, _ = by_propagation(
        structure, *jax.tree.map(lambda x: x[jnp.asarray([2, 2, 2, 2])], (unary, pairwise, factors, mask))
    )
    np.testing.assert_array_equal(
        again.value, np.repeat(estimate.value[2], 4)
    )  # who is finished waits, and does not move


def test_the_derivative_is_that_of_the_value():
    base = drawn(GRAPH, 4, 2, seed=3)[:3]
    rng = np.random.default_rng(4)
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape[1:])), base)
    first = jax.tree.map(lambda x, d: jnp.stack([x[0] + h * d for h in (0.0, 1e-4, -1e-4, 0.0)]), base, way)
    estimate, gradient = by_propagation(GRAPH, *first, jnp.ones((4, 5), bool))
    slope = (estimate.value[1] - estimate.value[2]) / 2e-4
    stacked = [jnp.stack([way[2][f] for f in numbers]) for numbers in GRAPH.by_arity]
    tables = way[1][np.repeat([0, 1], GRAPH.groups)]  # a mask gives each edge a table of its own
    pairs = zip((way[0], tables, *stacked), (gradient.unary, gradient.pairwise, *gradient.higher), strict=True)
    assert float(sum(jnp.sum(d * g[0]) for d, g in pairs)) == pytest.approx(float(slope), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_trees_are_exact_and_what_underflows_is_not_lost(dtype):
    """Also where neighbours contradict each other by more than the smallest number of the dtype."""
    edges = len(TREE.edges)
    unary, pairwise, _, mask = drawn(TREE, 5, edges, seed=5, hard=0.08, dtype=dtype)
    scale = 1500 if dtype == np.float64 else 150
    strong = jnp.zeros((6, K), dtype).at[0, 0].set(scale).at[3, 2].set(scale).at[4, 1].set(0.9 * scale)
    unary = unary.at[3].set(strong)
    pairwise = pairwise.at[3].set(
        1.1 * scale * jnp.eye(K, dtype=dtype)[None] + jnp.where(pairwise[3] > -jnp.inf, pairwise[3], 0)
    )
    unary = unary.at[4, 5].set(-jnp.inf)
    mask = mask.at[2].set(jnp.asarray([True, True, False, True, True, True]))
    estimate, gradient = by_propagation(TREE, unary, pairwise, (), mask)
    assert estimate.guarantee == "exact"
    assert float(estimate.value[4]) == -np.inf
    assert not np.any(gradient.unary[4])
    for b in range(4):
        field = field_of(TREE, unary[b], pairwise[b], mask=mask[b])
        states, weights = weights_of(field)
        if not (weights > -np.inf).any():
            assert float(estimate.value[b]) == -np.inf
            continue
        weights = weights.astype(np.float64)
        truth = log_sum(weights)
        assert float(estimate.lower[b]) <= truth <= float(estimate.upper[b])
        p = np.exp(weights - truth)
        want = np.stack([[p[states[:, i] == v].sum() for v in range(K)] for i in range(6)])
        np.testing.assert_allclose(gradient.unary[b], want, atol=1e-10 if dtype == np.float64 else 3e-4)


@pytest.mark.slow
def test_in_float32_a_change_that_is_rounding_counts_as_none():
    unary, pairwise, factors, mask = drawn(GRAPH, 4, 2, seed=11, dtype=np.float32)
    estimate, _ = by_propagation(GRAPH, unary, pairwise, factors, mask)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (unary, pairwise, factors))
    precise, _ = by_propagation(GRAPH, *wide, mask)
    np.testing.assert_allclose(estimate.value, precise.value, rtol=2e-6)
    assert float(estimate.diagnostics["sweeps"].max()) < 3000


def by_hand(field, schedule, damping, sweeps):
    """Mean field in NumPy, node after node or all at once."""
    n, rows = field.structure.nodes, np.array(field.rows)
    rows[4] += field.higher[0][0]  # a factor of one node is its own log-potential, too
    states, total = weights_of(field)
    q = np.exp(rows - rows.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    for _ in range(sweeps):
        old = q.copy()
        seen = old if schedule == "parallel" else q
        for i in range(n):
            others = [seen[j, states[:, j]] for j in range(n) if j != i]
            law = np.prod(others, axis=0)
            logits = np.array([law[states[:, i] == v] @ total[states[:, i] == v] for v in range(K)])
            new = np.exp(logits - logits.max())
            q[i] = damping * old[i] + (1 - damping) * new / new.sum()
    law = np.prod([q[i, states[:, i]] for i in range(n)], axis=0)
    return law @ total - np.sum(q * np.log(q)), q


@pytest.mark.parametrize(("schedule", "damping"), [("parallel", 0.3), ("sequential", 0.0)])
def test_sweeps_of_mean_field_by_hand(schedule, damping):
    unary, pairwise, factors, _ = (jax.tree.map(lambda y: y[0], x) for x in drawn(GRAPH, 1, 2, seed=1))
    field = field_of(GRAPH, unary, pairwise, factors)
    route = lnz.routes.MeanField(schedule=schedule, damping=damping, max_sweeps=3)
    estimate, gradient = eqx.filter_jit(route.log_partition_and_mean_gradient)(field)
    value, q = by_hand(field, schedule, damping, 3)
    assert float(estimate.value) == pytest.approx(value, abs=1e-10)
    assert float(estimate.lower) <= log_sum(weights_of(field)[1])
    assert float(estimate.diagnostics["sweeps"]) == 3
    np.testing.assert_allclose(gradient.unary, q, atol=1e-10)
    pairs = np.stack([np.outer(q[i], q[j]) for i, j in GRAPH.edges])
    np.testing.assert_allclose(gradient.pairwise, [pairs[:2].sum(0), pairs[2]], atol=1e-10)
    np.testing.assert_allclose(gradient.higher[2][0], np.einsum("a,b,c->abc", q[2], q[0], q[4]), atol=1e-10)


def test_coordinate_ascent_of_many_grids_ends_where_no_node_can_do_better():
    """Hard constraints, masks, vmap: the value is a limit, and each q_i is the best given the others."""
    unary, pairwise, _, mask = drawn(GRID, 6, 1, seed=8, hard=0.05)
    mask = mask.at[3, 0, 1].set(False)
    route = lnz.routes.MeanField(schedule="coloured", tolerance=1e-12, max_sweeps=2000)

    @jax.jit
    @jax.vmap
    def run(unary, pairwise, mask):
        return route.log_partition_and_mean_gradient(field_of(GRID, unary, pairwise, mask=mask))

    estimate, gradient = run(unary, pairwise, mask)
    finite = 0
    for b in range(6):
        field = field_of(GRID, unary[b], pairwise[b], mask=mask[b])
        weights = weights_of(field)[1]
        truth = log_sum(weights) if (weights > -np.inf).any() else -np.inf
        assert float(estimate.lower[b]) <= truth
        if estimate.value[b] == -np.inf:
            assert not np.any(gradient.unary[b])
            continue
        finite += 1
        q = np.asarray(gradient.unary[b]).reshape(6, K)
        logits = np.asarray(field.expected(jnp.asarray(q)))
        best = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(q, best / best.sum(1, keepdims=True), atol=1e-9)
    assert finite >= 4


def test_unrolled_steps_and_their_derivative():
    unary, pairwise, factors, mask = (jax.tree.map(lambda y: y[0], x) for x in drawn(GRAPH, 1, 2, seed=1))
    field = field_of(GRAPH, unary, pairwise, factors)
    _, q = by_hand(field, "parallel", 0.0, 2)

    @jax.jit
    @jax.value_and_grad
    def loss(arrays, mask):
        return -jnp.sum(lnz.routes.mean_field_steps(field_of(GRAPH, *arrays, mask), 2)[:, 1])

    arrays = (unary, pairwise, factors)
    value, gradient = loss(arrays, mask)
    assert float(value) == pytest.approx(-np.log(q[:, 1]).sum(), abs=1e-10)
    rng = np.random.default_rng(0)
    way = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arrays)
    ahead, behind = (loss(jax.tree.map(lambda x, d, h=h: x + h * d, arrays, way), mask)[0] for h in (1e-5, -1e-5))
    slope = sum(jnp.sum(d * g) for d, g in zip(jax.tree.leaves(way), jax.tree.leaves(gradient), strict=True))
    assert float(slope) == pytest.approx(float(ahead - behind) / 2e-5, abs=1e-6)
    hard = (unary.at[0, 2].set(-jnp.inf), pairwise.at[0, 0, 0].set(-jnp.inf), factors)
    _, gradient = loss(hard, mask)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient))


def test_max_product_is_exact_on_trees_with_ties_and_no_single_label_betters_it_elsewhere():
    decoder = lnz.routes.BeliefPropagation(schedule="parallel", damping=0.3, max_sweeps=100, tolerance=1e-9)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(structure, unary, pairwise, mask):
        one = lambda u, p, m: lnz.map_state(field_of(structure, u, p, mask=m), route=decoder)  # noqa: E731
        return jax.vmap(one)(unary, pairwise, mask)

    found = 0
    for structure in (TREE, GRID):
        edges = len(structure.edges)
        unary, pairwise, _, mask = drawn(structure, 6, edges, seed=2)
        unary = unary.at[0].set(0)
        pairwise = pairwise.at[0].set(
            jnp.asarray(np.broadcast_to(np.eye(K)[::-1], (edges, K, K)))
        )  # everything is tied
        mask = mask.reshape(6, -1).at[1, 1].set(False).reshape(mask.shape)
        labels = np.asarray(decode(structure, unary, pairwise, mask))
        for b in range(6):
            field = field_of(structure, unary[b], pairwise[b], mask=mask[b])
            states, weights = weights_of(field)
            here = weights[(states == labels[b].ravel()).all(1)][0]
            near = (states != labels[b].ravel()).sum(1) <= 1
            assert weights[near].max() <= here + 1e-12
            found += here >= weights.max() - 1e-12
            assert structure is GRID or here == pytest.approx(weights.max())
    assert found >= 10


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: lnz.log_partition(lnz.Ising.lattice((3,), 1.0, periodic=False), route=ROUTE), "is for a RandomField"),
        (
            lambda: lnz.log_partition(
                lnz.Ising.lattice((3,), 1.0, periodic=False), route=lnz.routes.MeanField(schedule="parallel")
            ),
            "RandomField",
        ),
        (lambda: lnz.routes.BeliefPropagation(schedule="flooding"), "schedule must be"),
        (lambda: lnz.routes.MeanField(schedule="classes"), "schedule must be"),
        (lambda: lnz.routes.MeanField(damping=0.5), "has no damping"),
        (lambda: lnz.routes.mean_field_steps(lnz.RandomField(TREE, np.zeros((6, K))), -1), "steps must be"),
        (
            lambda: lnz.map_state(lnz.Ising.lattice((3,), 1.0, periodic=False), route=lnz.routes.BeliefPropagation()),
            "max-product needs",
        ),
        (
            lambda: lnz.map_state(lnz.RandomField(GRID, np.zeros((2, 3, K))), route=lnz.routes.BeliefPropagation()),
            "max-product",
        ),
    ],
)
def test_what_is_not_served_is_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()
