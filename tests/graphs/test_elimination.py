"""The exact engine against a plain list of all states, on random graphs, on models with factors, and on known values."""

import itertools
import math
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from listing import Listed, random_graph
from lnz._graphs import contraction, orders, table_products
from lnz._graphs.solver import EliminationBudget, Solver
from lnz._models.factor_graph import states_of

QUICK = lnz.routes.Elimination(search_seconds=0)


def fits(solver: Solver) -> bool:
    """Whether all tables fit at once, or in slices."""
    try:
        return bool(solver.plan(every=True))
    except ValueError:
        return False


@pytest.mark.parametrize("first", range(0, 320, 80))
def test_random_graphs_against_the_list_of_states(first):
    """log Z, marginals, beliefs, entropy and MAP of 320 graphs; every other one in slices, from little memory."""
    sliced = 0
    for seed in range(first, first + 80):
        listed = random_graph(seed)
        truth, parts = listed.log_z, (listed.cardinalities, listed.scopes, listed.tables)
        solver = Solver(*parts, EliminationBudget(search_seconds=0))
        if seed % 2:
            less = Solver(
                *parts, EliminationBudget(search_seconds=0, max_memory=0.7 * solver.plan(every=True).all_bytes)
            )
            if fits(less):
                solver, sliced = less, sliced + 1
        log_z, beliefs = solver.log_partition_and_factor_marginals()
        for found in (solver.log_partition(), log_z):
            assert found == pytest.approx(truth, rel=1e-11, abs=1e-11), seed
        for i, marginal in enumerate(solver.marginals()):
            np.testing.assert_allclose(marginal, listed.marginal((i,)), rtol=1e-9, atol=1e-10, err_msg=str(seed))
        for scope, belief in zip(listed.scopes, beliefs, strict=True):
            np.testing.assert_allclose(belief, listed.marginal(scope), rtol=1e-9, atol=1e-10, err_msg=str(seed))
        if truth == -np.inf:
            with pytest.raises(ValueError, match="Z = 0"):
                solver.most_probable()
            continue
        best = tuple(solver.most_probable())
        assert listed.weights[best] == pytest.approx(listed.weights.max(), rel=1e-12, abs=1e-12), seed
        p, weights = listed.probabilities, listed.weights
        entropy = -sum(q * (w - truth) for q, w in zip(p.ravel(), weights.ravel(), strict=True) if q > 0)
        assert solver.entropy() == pytest.approx(entropy, rel=1e-8, abs=1e-8 * (1 + abs(truth)))
    assert sliced > 10


@pytest.mark.parametrize("seed", [3, 40, 77, 160])
def test_the_route_gives_what_the_solver_finds(seed):
    listed = random_graph(seed)
    graph, solver = (
        listed.graph,
        Solver(listed.cardinalities, listed.scopes, listed.tables, EliminationBudget(search_seconds=0)),
    )
    assert listed.log_z > -np.inf
    assert float(QUICK.log_partition(graph).value) == pytest.approx(listed.log_z, rel=1e-11, abs=1e-11)
    for found, wanted in (
        (lnz.marginals(graph, route=QUICK), solver.marginals()),
        (QUICK.factor_marginals(graph), solver.factor_marginals()),
        ([QUICK.entropy(graph), lnz.map_state(graph, route=QUICK)], [solver.entropy(), solver.most_probable()]),
    ):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", range(6))
def test_evidence_and_joint_marginals(seed):
    good = lambda found: found.log_z > -np.inf and len(found.cardinalities) > 2  # noqa: E731
    listed = next(filter(good, map(random_graph, range(1000 + 100 * seed, 2000))))
    graph = listed.graph
    observed = {i: k - 1 for i, k in enumerate(listed.cardinalities) if i % 2}
    index = tuple(observed.get(i, slice(None)) for i in range(len(listed.cardinalities)))
    mass = listed.probabilities[index].sum()
    found = float(lnz.log_partition(graph.evidence(observed), route=QUICK).value)
    np.testing.assert_allclose(np.exp(found - listed.log_z), mass, rtol=1e-9, atol=1e-300)
    pair = (len(listed.cardinalities) - 1, 0)
    np.testing.assert_allclose(QUICK.joint(graph, pair), listed.marginal(pair), rtol=1e-9, atol=1e-12)


def test_samples_follow_the_exact_law():
    """Chi-square of all states, in one piece and in slices. The 10^-6 quantile, for any seed."""
    rng = np.random.default_rng(5)
    scopes = [(0, 1), (2, 1), (2, 3), (4, 3), (0, 4), (1, 4), (4, 2, 0)]
    sizes = (3, 2, 3, 2, 4)
    tables = [rng.normal(size=[sizes[i] for i in scope]) for scope in scopes]
    tables[2] = np.where(rng.random(tables[2].shape) < 0.3, -np.inf, tables[2])
    listed = Listed(sizes, scopes, tables)
    graph, n = listed.graph, 40_000
    p = listed.probabilities.ravel()
    for route in (QUICK, lnz.routes.Elimination(search_seconds=0, max_memory=0.75 * QUICK.plan(graph).all_bytes)):
        states = np.asarray(route.sample(graph, jax.random.key(4), n))
        graph.space.validate(states, batch=True)
        counts = np.bincount(np.ravel_multi_index(tuple(states.T), listed.cardinalities), minlength=p.size)
        assert counts[p == 0].sum() == 0
        cells = n * p > 5
        # Rows are independent, whatever slice they are from: the next one differs as often as any other.
        differ, other = (np.mean(states[s:] != states[: n - s], axis=0) for s in (1, n // 2))
        np.testing.assert_allclose(differ, other, atol=6 * 0.5 / np.sqrt(n // 2))
        observed = np.append(counts[cells], counts[~cells].sum())
        expected = np.maximum(np.append(n * p[cells], n * p[~cells].sum()), 1e-9)
        chi = np.sum((observed - expected) ** 2 / np.maximum(expected, 1))
        assert chi < cells.sum() + 5 * math.sqrt(2 * cells.sum()) + 20
    again = np.asarray(lnz.exact_samples(graph, jax.random.key(4), 5, route=QUICK))
    np.testing.assert_array_equal(again, lnz.exact_samples(graph, jax.random.key(4), 5, route=QUICK))


def models():
    rng = np.random.default_rng(7)
    j = np.triu(rng.normal(size=(5, 5)), 1)
    tables = rng.normal(size=(3, 3, 3, 3))
    tables = tables + tables.transpose(2, 3, 0, 1)
    tables[np.arange(3), :, np.arange(3)] = 0
    edges = [[0, 1], [3, 1], [2, 3]]
    rbm = lambda visible, features: lnz.RBM.from_parameters(  # noqa: E731
        rng.normal(size=(features, 3)), rng.normal(size=features), rng.normal(size=3), visible=visible
    )
    return {
        "dense Ising": lnz.Ising(j + j.T, rng.normal(size=5)),
        "sparse Ising": lnz.Ising.sparse(edges, rng.normal(size=3), rng.normal(size=4), n=4),
        "Ising torus": lnz.Ising.lattice((3, 3), rng.normal(size=(2, 3, 3)), rng.normal(size=(3, 3)), periodic=True),
        "Ising of length 2": lnz.Ising.lattice((2, 4), rng.normal(size=(2, 2, 4)), 0.3, periodic=True),
        "free Ising": lnz.Ising.lattice((3, 4), rng.normal(size=(2, 3, 4)), 0.2, periodic=False),
        "Potts": lnz.Potts.lattice((2, 3), 0.7, rng.normal(size=(2, 3, 3)), q=3, periodic=True),
        "dense Potts tables": lnz.Potts(tables, rng.normal(size=(3, 3)), q=3),
        "sparse Potts tables": lnz.Potts.sparse(edges, rng.normal(size=(3, 3, 3)), 0.1, n=4, q=3),
        "RBM": rbm(None, 4),
        "spin RBM": rbm(lnz.Spin(4), 4),
        "categorical RBM": rbm(lnz.Categorical(2, k=3), 6),
    }


@pytest.mark.parametrize("name", models())
def test_models_with_factors_inherit_the_route(name):
    """The factors are the energy, up to their labels; log Z and its gradient are those of enumeration (T1)."""
    model = models()[name]
    graph = model.factors()
    labels = np.indices(graph.cardinalities).reshape(len(graph.cardinalities), -1).T
    states = states_of(model.space, labels)

    def everything(model):
        weights, pull_back = jax.vjp(lambda m: -jax.vmap(m)(states), model)
        truth = jax.nn.logsumexp(weights), pull_back(jax.nn.softmax(weights))[0]
        return weights, truth, (QUICK.log_partition(model).value, QUICK.mean_gradient(model))

    weights, truth, found = jax.jit(everything)(model)
    tables = [np.asarray(table) for table in np.split(np.asarray(graph.log_potentials), graph.offsets[1:])]
    tables = [table.reshape(shape) for table, shape in zip(tables, graph.shapes, strict=True)]
    listed = Listed(graph.cardinalities, list(graph.scopes), tables)
    np.testing.assert_allclose(weights, listed.weights.ravel(), atol=1e-12)
    for leaf, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-12, atol=1e-12)


def test_under_jit_vmap_and_float32():
    model = lnz.Ising.lattice((2, 3), 0.4, 0.1, periodic=False)
    strengths = jnp.asarray([0.1, 0.5, 1.5])

    def log_z(j, route):
        return lnz.log_partition(eqx.tree_at(lambda m: m.couplings.strength, model, j), route=route).value

    found, wanted = (
        jax.jit(jax.vmap(jax.value_and_grad(log_z), (0, None)), static_argnums=1)(strengths, r)
        for r in (QUICK, lnz.routes.Enumeration())
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model)
    estimate = lnz.log_partition(single, route=QUICK)
    assert float(estimate.lower) <= float(lnz.log_partition(model).value) + 1e-5
    assert "elimination of 6 variables from 13 factors" in str(estimate)


@pytest.mark.parametrize("sign", [-1, 1])
def test_log_z_of_a_hundred_thousand_nats(sign):
    """log Z = ±10^5 neither overflows nor underflows: a transfer matrix in logarithms agrees."""
    n, strength = 400, sign * 260.0
    table = np.array([[strength, 0.0], [0.0, strength - 1]]) - (300 if sign < 0 else 0)
    graph = lnz.FactorGraph([2] * n, [(i, i + 1) for i in range(n - 1)], [table], table_of=[0] * (n - 1))
    forward = np.zeros(2)
    for _ in range(n - 1):
        forward = np.logaddexp.reduce(forward[:, None] + table, axis=0)
    truth = np.logaddexp.reduce(forward)
    assert abs(truth) > 5e4
    assert float(lnz.log_partition(graph, route=QUICK).value) == pytest.approx(truth, rel=1e-13)


def test_what_is_improbable_is_not_made_impossible():
    """Weights of e^-3000 decide, because hard constraints forbid everything else; linear arithmetic would say Z = 0."""
    tables = [np.array([0.0, -3000.0]), np.array([[-np.inf, 0.0], [0.0, 0.0]]), np.array([0.0, -2000.0])]
    graph = lnz.FactorGraph([2, 2, 2], [(0,), (0, 1), (1,), (1, 2), (2,)], tables, table_of=[0, 1, 2, 1, 0])
    listed = Listed((2, 2, 2), list(graph.scopes), [tables[t] for t in graph.table_of])
    assert float(lnz.log_partition(graph, route=QUICK).value) == pytest.approx(listed.log_z, rel=1e-14)
    for i, marginal in enumerate(lnz.marginals(graph, route=QUICK)):
        np.testing.assert_allclose(marginal, listed.marginal((i,)), rtol=1e-10, atol=0)


def test_no_possible_state():
    graph = lnz.FactorGraph(
        [2, 2], [(0, 1), (0,)], [np.array([[0, -np.inf], [-np.inf, -np.inf]]), np.array([-np.inf, 0])]
    )
    estimate = lnz.log_partition(graph, route=QUICK)
    assert float(estimate.value) == -np.inf
    assert "log Z = -inf" in str(estimate)
    gradient = jax.grad(lambda g: lnz.log_partition(g, route=QUICK).value)(graph)
    assert not np.asarray(gradient.log_potentials).any()
    with pytest.raises(ValueError, match="no state is possible: Z = 0"):
        lnz.exact_samples(graph, jax.random.key(0), 3)


def lattice(length: int, table: np.ndarray) -> lnz.FactorGraph:
    number = np.arange(length**2).reshape(length, length)
    pairs = [
        *zip(number[:, :-1].ravel(), number[:, 1:].ravel(), strict=True),
        *zip(number[:-1].ravel(), number[1:].ravel(), strict=True),
    ]
    return lnz.FactorGraph([len(table)] * length**2, pairs, [table], table_of=[0] * len(pairs))


CRITICAL = math.log(1 + math.sqrt(2)) / 2
NO_TWO_ONES = np.array([[0, 0], [0, -np.inf]])
DIFFERENT = np.where(np.eye(3) > 0, -np.inf, 0.0)


def potts(q: int, length: int) -> lnz.Energy:
    return lnz.Potts.lattice((length, length), math.log(1 + math.sqrt(q)), q=q, periodic=True)


@pytest.mark.parametrize(
    ("make", "truth"),
    [
        (lambda: lnz.Ising.lattice((8, 8), CRITICAL, periodic=True), 60.14178078906915),
        (lambda: potts(3, 6), 75.571951800165),
        (lambda: potts(4, 5), 57.832683491055),
        (lambda: lattice(10, NO_TWO_ONES), math.log(2030049051145980050)),
        (lambda: lattice(6, DIFFERENT), math.log(101596896)),
    ],
    ids=["Ising torus (Kaufman)", "Potts torus q=3", "Potts torus q=4", "hard squares 10x10", "3-colourings 6x6"],
)
def test_known_values(make, truth):
    assert float(lnz.log_partition(make(), route=lnz.routes.Elimination()).value) == pytest.approx(truth, rel=1e-12)


def test_a_glass_in_slices_agrees_with_the_whole():
    rng = np.random.default_rng(2)
    glass = lnz.Ising.lattice((8, 8), rng.normal(size=(2, 8, 8)), rng.normal(size=(8, 8)), periodic=False)
    whole = lnz.routes.Elimination(search_seconds=0)
    part = lnz.routes.Elimination(max_memory=whole.plan(glass).all_bytes / 1.5, search_seconds=0)
    assert "slices over" in str(part.solver(glass).plan(every=True))
    solvers = part.solver(glass), whole.solver(glass)
    (log_z, beliefs), (whole_log_z, whole_beliefs) = (s.log_partition_and_factor_marginals() for s in solvers)
    assert log_z == pytest.approx(whole_log_z, rel=1e-13)
    assert solvers[0].log_partition() == pytest.approx(whole_log_z, rel=1e-13)
    for found, wanted in zip(beliefs, whole_beliefs, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    best, wanted = (lnz.map_state(glass, route=route) for route in (part, whole))
    assert float(glass(best)) == pytest.approx(float(glass(wanted)))


def test_what_is_too_dear_is_refused_with_the_figures():
    torus = lnz.Ising.lattice((40, 40), 0.4, periodic=True)
    route = lnz.routes.Elimination(search_seconds=0.1)
    with pytest.raises(
        ValueError, match=r"exact elimination is too expensive: .*(width \d+, 10\^\d+|more than 2\^48 entries)"
    ):
        lnz.log_partition(torus, route=route)
    with pytest.raises(ValueError, match="has no factors"):
        lnz.log_partition(lnz.Gaussian([0.0], [1.0]), route=route)
    with pytest.raises(ValueError, match="width of its graph is at least 63"):
        lnz.log_partition(lnz.Ising(jnp.zeros((64, 64))), route=route)
    with pytest.raises(ValueError, match="average f over"):
        lnz.expectation(lnz.Ising.lattice((8, 8), 0.4, periodic=True), lambda s: s, route=route)
    uneven = jnp.asarray(np.add.outer(np.arange(64.0), np.arange(64.0)) * (1 - np.eye(64)))
    assert isinstance(lnz.choose(lnz.Ising(uneven)).route, lnz.routes.AnnealedImportanceSampling)
    with pytest.raises(ValueError, match="max_memory must be"):
        lnz.routes.Elimination(max_memory=0)


def test_a_plan_prints_as_a_sentence_and_predicts_the_memory():
    plan = lnz.routes.Elimination().plan(lnz.Ising.lattice((8, 8), 0.4, periodic=True))
    assert 8 <= plan.width <= 20
    assert "width" in str(plan)
    assert plan.peak_bytes <= plan.all_bytes


def test_orders_of_a_large_tree_are_found_at_once():
    """A random tree of 1,500 variables has width 1."""
    rng = np.random.default_rng(0)
    scopes = [(int(rng.integers(i)), i) for i in range(1, 1500)]
    plan = orders.search(scopes, [3] * 1500, seconds=0)
    assert plan.width <= 2
    assert plan.all_bytes < 1e6


def test_the_search_lasts_no_longer_than_it_can_spare(monkeypatch):
    """By a clock that ticks a millisecond a look: one order of an easy graph, more where time is given, fewer than a third of the work."""
    ticks, calls, greedy_order = itertools.count(), [], orders.greedy_order
    monkeypatch.setattr(orders.time, "thread_time", lambda: 1e-3 * next(ticks))
    monkeypatch.setattr(orders, "greedy_order", lambda *args: calls.append(1) or greedy_order(*args))
    ring = [(i, (i + 1) % 12) for i in range(12)]
    assert orders.search(ring, [2] * 12).method == "randomised min-fill"
    assert len(calls) == 1
    orders.search(ring, [2] * 12, seconds=0.1)
    assert len(calls) > 5
    grid = [(5 * i + j, 5 * i + j + step) for i in range(5) for j in range(5) for step in (1, 5) if j < 4 or step == 5]
    began = next(ticks)
    plan = orders.search([pair for pair in grid if pair[1] < 25], [40] * 25)
    spent = 1e-3 * (next(ticks) - began)
    assert 0.02 < spent < plan.seconds / 3 + 0.01


def test_matrix_products_and_broadcasts_agree():
    """Every way of contracting two tables, against einsum, in both arithmetics."""
    rng = np.random.default_rng(3)
    sizes = [2, 3, 4, 2, 5, 3, 6, 4]
    for trial in range(150):
        a, b = (tuple(int(i) for i in rng.permutation(8)[: rng.integers(1, 7)]) for _ in range(2))
        union = sorted({*a, *b})
        inside = tuple(int(i) for i in rng.permutation(union)[: rng.integers(0, len(union) + 1)])
        outside = tuple(i for i in range(8) if i not in union and rng.random() < 0.3)  # the result is constant in those
        out = inside + outside
        x, y = (rng.random([sizes[i] for i in scope]) for scope in (a, b))
        wanted = np.einsum(x, a, y, b, inside).reshape([sizes[i] for i in inside] + [1] * len(outside))
        wanted = np.broadcast_to(wanted, [sizes[i] for i in out])
        linear = table_products.permuted(
            *table_products.reduce_product(table_products.SUM, x, a, y, b, out, sizes), out
        )
        logs = table_products.permuted(
            *table_products.reduce_product(table_products.LOG_SUM, np.log(x), a, np.log(y), b, out, sizes), out
        )
        np.testing.assert_allclose(linear, wanted, rtol=1e-12, err_msg=str(trial))
        np.testing.assert_allclose(np.exp(logs), wanted, rtol=1e-11, err_msg=str(trial))


def test_a_matrix_product_is_spread_over_variables_of_neither_table():
    sizes, rng = [9, 8, 20, 3], np.random.default_rng(4)
    x, y = rng.random((9, 20)), rng.random((20, 8))
    found, scope = table_products.reduce_product(table_products.SUM, x, (0, 2), y, (2, 1), (3, 1, 0), sizes)
    wanted = np.broadcast_to((x @ y).T, (3, 8, 9))
    np.testing.assert_allclose(table_products.permuted(found, scope, (3, 1, 0)), wanted, rtol=1e-13)


@pytest.mark.parametrize(
    "route", [lnz.routes.KacWard(), lnz.routes.BeliefPropagation(), lnz.routes.MeanField()], ids=str
)
def test_second_derivatives_are_refused_in_words(route):
    def log_z(coupling):
        grid = lnz.Ising.lattice((2, 3), coupling, periodic=False)
        return lnz.log_partition(grid, route=route).value

    assert np.isfinite(float(jax.grad(log_z)(jnp.asarray(0.3))))
    with pytest.raises(
        ValueError, match=rf"{type(route).__name__} gives first derivatives only. .* route=lnz.routes.Enumeration"
    ):
        jax.grad(jax.grad(log_z))(jnp.asarray(0.3))


def test_choose_is_quick_about_what_is_hopeless():
    """A 40x40 torus is too wide by far: the first look takes seconds, and what it found is remembered."""
    torus = lnz.Ising.lattice((40, 40), 0.3, periodic=True)
    began = time.perf_counter()
    assert not isinstance(lnz.choose(torus).route, lnz.routes.Elimination)
    first = time.perf_counter() - began
    began = time.perf_counter()
    lnz.choose(torus)
    assert time.perf_counter() - began < max(2.0, first)
    assert first < 30


def test_sums_of_many_terms_have_room_in_a_floats_range():
    """Entries whose products fit, but whose sum over e^200 terms would not: brought to the middle of the range, or else to logarithms."""
    high = contraction.ScaledTable(np.exp([399.0, 400.0]), (0,), 0.0, 399.0, 400.0)
    one = contraction.ScaledTable(np.ones(2), (0,), 0.0, 0.0, 0.0)
    assert not any(table.logs for table in contraction.compatible(high, one, 200.0))
    assert contraction.compatible(high, one, 300.0)[0].high < 1
    wide = contraction.from_logs(np.array([-250.0, 250.0]), (0,))
    assert not contraction.compatible(wide, wide, 100.0)[0].logs
    assert contraction.compatible(wide, wide, 300.0)[0].logs
