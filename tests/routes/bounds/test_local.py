"""Belief propagation, tree-reweighted and mean-field limits against a list of all states, on random graphs."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from listing import random_local
from lnz._graphs import messages
from lnz._graphs.buckets import backward, bucket_tree, forward, tighten
from lnz._graphs.orders import least_fill
from lnz.routes._bounds.bound_route import LocalRoute


def solved(route: LocalRoute, graph: lnz.FactorGraph):
    """The value, without JAX around it, and the beliefs."""
    found = messages.model(graph, np.asarray(graph.log_potentials))
    if not found.possible:
        return -np.inf, None
    answer = route.solve(found)
    return answer.value + found.constant, answer


def slack(listed) -> float:
    """What rounding may take: 1e-9 of the largest number in play."""
    finite = [np.abs(t[t > -np.inf]).max(initial=0) for t in listed.tables]
    return 1e-9 * (1 + sum(finite))


@pytest.mark.parametrize("first", range(0, 2000, 250))
def test_limits_do_not_cross_the_exact_value(first):
    """2,000 graphs; on every other one, where all factors are pairs, both limits. Few sweeps: the limits hold at any iterate."""
    rng = np.random.default_rng(first)
    finite = 0
    for seed in range(first, first + 250):
        listed = random_local(seed, arity=2 + seed % 2)
        truth, room, few = listed.log_z, slack(listed), int(rng.integers(1, 20))
        low, _ = solved(lnz.routes.MeanField(restarts=3, max_sweeps=few, seed=seed), listed.graph)
        assert low <= truth + room, seed
        finite += math.isfinite(low) or truth == -np.inf
        if seed % 2 == 0:
            steps, trees = int(rng.integers(0, 3)), int(rng.integers(1, 5))
            route = lnz.routes.TreeReweighted(trees=trees, steps=steps, max_sweeps=few, damping=0.3, seed=seed)
            high, _ = solved(route, listed.graph)
            assert high >= truth - room, seed
            assert high < np.inf
        width = int(rng.integers(1, 5))
        high, _ = solved(lnz.routes.MiniBucket(i_bound=width, max_sweeps=5, seed=seed), listed.graph)
        assert truth - room <= high < np.inf, seed
        low, _ = solved(lnz.routes.MiniBucket(i_bound=width, side="lower", max_sweeps=5, seed=seed), listed.graph)
        assert low <= truth + room, seed
    assert finite > 230  # a possible start is found nearly always


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_belief_propagation_is_exact_on_forests(first):
    """log Z and the marginals of variables and factors of 400 random forests."""
    route = lnz.routes.BeliefPropagation(damping=0.5, max_sweeps=1)
    for seed in range(first, first + 100):
        listed = random_local(seed, forest=True)
        value, answer = solved(route, listed.graph)
        if listed.log_z == -np.inf:
            assert value == -np.inf, seed
            continue
        assert value == pytest.approx(listed.log_z, rel=1e-11, abs=slack(listed)), seed
        assert route.guarantee(listed.graph) == "exact"
        flat = messages.pulled(listed.graph, answer.variables, answer.factors)
        truth = np.concatenate([np.zeros(0), *(listed.marginal(scope).ravel() for scope in listed.scopes)])
        np.testing.assert_allclose(flat, truth, rtol=1e-8, atol=1e-9, err_msg=str(seed))
        for i, belief in enumerate(route.beliefs(listed.graph)):
            np.testing.assert_allclose(belief, listed.marginal((i,)), rtol=1e-8, atol=1e-9, err_msg=str(seed))


def test_the_bethe_approximation_is_close_where_coupling_is_weak_and_says_when_it_did_not_converge():
    rng = np.random.default_rng(3)
    edges = list(itertools.combinations(range(8), 2))
    weak = lnz.Ising.sparse(edges, 0.1 * rng.normal(size=len(edges)), rng.normal(size=8), n=8)
    estimate = lnz.log_partition(weak, route=lnz.routes.BeliefPropagation())
    assert estimate.guarantee == "approximate"
    assert float(estimate.diagnostics["converged"]) == 1
    assert float(estimate.value) == pytest.approx(float(lnz.log_partition(weak).value), abs=0.01)
    wild = lnz.Ising.sparse(edges, 3 * rng.normal(size=len(edges)), 0.1 * rng.normal(size=8), n=8)
    stopped = lnz.log_partition(wild, route=lnz.routes.BeliefPropagation(max_sweeps=3))
    assert float(stopped.diagnostics["converged"]) == 0
    assert float(stopped.diagnostics["residual"]) > 0.01
    assert "not converged" in str(stopped)
    assert "not converged" not in str(estimate)


def test_belief_propagation_solves_single_cycles_with_zeros():
    """A cycle whose zeros leave one state: arc consistency and messages find it."""
    diagonal = np.where(np.eye(3) > 0, 0.5, -np.inf)
    graph = lnz.FactorGraph(
        [3] * 4, [(0, 1), (1, 2), (2, 3), (3, 0), (0,)], [diagonal] * 4 + [np.array([-np.inf, 1.0, -np.inf])]
    )
    assert float(lnz.log_partition(graph, route=lnz.routes.BeliefPropagation()).value) == pytest.approx(3.0)
    assert float(lnz.log_partition(graph, route=lnz.routes.TreeReweighted()).upper) == pytest.approx(3.0)
    assert float(lnz.log_partition(graph, route=lnz.routes.MeanField()).lower) == pytest.approx(3.0)


ROUTES = [
    lnz.routes.BeliefPropagation(tolerance=1e-12),
    lnz.routes.TreeReweighted(tolerance=1e-12, max_sweeps=3000, steps=0),
    lnz.routes.MeanField(tolerance=1e-12, max_sweeps=3000),
    lnz.routes.StructuredMeanField(tolerance=1e-13, max_sweeps=3000),
    lnz.routes.MiniBucket(i_bound=3, max_sweeps=1000, tolerance=1e-12),
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: type(r).__name__)
def test_the_gradient_is_that_of_the_value(route):
    """Difference quotients of the converged value, through factors(); under jit, vmap and grad."""
    rng = np.random.default_rng(8)
    edges = list(itertools.combinations(range(5), 2))
    model = lnz.Potts.sparse(edges, 0.4 * rng.normal(size=len(edges)), rng.normal(size=(5, 3)), n=5, q=3)
    value = lambda m: lnz.log_partition(m, route=route).value  # noqa: E731
    slope = eqx.filter_grad(value)(model)
    for field in (lambda m: m.fields, lambda m: m.couplings.strength):
        direction = jnp.asarray(rng.normal(size=field(model).shape))
        moved = [eqx.tree_at(field, model, field(model) + s * 1e-4 * direction) for s in (1, -1)]
        quotient = float(value(moved[0]) - value(moved[1])) / 2e-4
        assert float(jnp.sum(field(slope) * direction)) == pytest.approx(quotient, abs=2e-6)
    many = jax.jit(jax.vmap(lambda h: value(eqx.tree_at(lambda m: m.fields, model, h))))
    assert float(many(model.fields[None])[0]) == pytest.approx(float(value(model)), rel=1e-12)


@pytest.mark.parametrize("upper", [True, False])
def test_the_gradient_of_mini_buckets_is_that_at_fixed_shifts_and_weights(upper):
    """Difference quotients of random graphs' limits, whose shifts and weights have moved and do not stand still."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sizes = [int(k) for k in rng.integers(2, 4, size=6)]
        scopes = list(itertools.combinations(range(6), 2))
        graph = lnz.FactorGraph(sizes, scopes, [2 * rng.normal(size=[sizes[i] for i in s]) for s in scopes])
        live = messages.live(messages.model(graph, np.asarray(graph.log_potentials)))
        order = least_fill(live.scopes, live.sizes, seed)
        tree = bucket_tree(live.sizes, live.scopes, order, entries=30.0)
        potentials = tree.arranged(live.tables)
        split = tighten(tree, potentials, upper=upper, sweeps=4, tolerance=1e-9).split
        assert tree.is_split
        beliefs = backward(tree, forward(tree, potentials, split)).beliefs
        directions = [rng.normal(size=table.shape) for table in live.tables]
        values = []
        for step in (1e-4, -1e-4):
            moved = [t + step * d for t, d in zip(live.tables, directions, strict=True)]
            values.append(forward(tree, tree.arranged(moved), split).value)
        slope = sum(float((b * d).sum()) for b, d in zip(beliefs, directions, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5, abs=1e-5), seed


def test_structured_mean_field_is_at_least_as_good_as_naive():
    """Spin glasses, from weak to strong: trees above single variables, and wider clusters above log Z nowhere."""
    rng = np.random.default_rng(6)
    for beta in (0.3, 1.0, 4.0):
        grid = lnz.Ising.lattice((5, 5), beta * rng.normal(size=(2, 5, 5)), rng.normal(size=(5, 5)), periodic=False)
        exact = float(lnz.log_partition(grid, route=lnz.routes.Elimination()).value)
        naive, _ = solved(lnz.routes.MeanField(), grid.factors())
        trees, _ = solved(lnz.routes.StructuredMeanField(), grid.factors())
        whole, _ = solved(lnz.routes.StructuredMeanField(max_entries=64), grid.factors())
        assert naive < trees <= exact + 1e-9
        assert whole == pytest.approx(exact, rel=1e-12)  # one cluster: the grid itself


def test_the_residual_schedule_finds_the_same_fixed_point():
    rng = np.random.default_rng(3)
    edges = list(itertools.combinations(range(8), 2))
    weak = lnz.Ising.sparse(edges, 0.1 * rng.normal(size=len(edges)), rng.normal(size=8), n=8).factors()
    one, first = solved(lnz.routes.BeliefPropagation(), weak)
    other, second = solved(lnz.routes.BeliefPropagation(schedule="residual", max_sweeps=5000), weak)
    assert second.converged
    assert other == pytest.approx(one, rel=1e-10)
    np.testing.assert_allclose(second.variables, first.variables, atol=1e-8)
    assert not solved(lnz.routes.BeliefPropagation(schedule="residual", max_sweeps=2), weak)[1].converged
    assert "residual" in repr(lnz.routes.BeliefPropagation(schedule="residual"))


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: type(r).__name__)
def test_models_with_factors_and_shared_tables(route):
    torus = lnz.Ising.lattice((4, 3), 0.2, 0.3, periodic=True)
    exact = float(lnz.log_partition(torus).value)
    estimate = lnz.log_partition(torus, route=route)
    assert float(estimate.lower) - 1e-9 <= exact <= float(estimate.upper) + 1e-9
    assert float(estimate.value) == pytest.approx(exact, abs=1.0)
    assert len(route.beliefs(torus)) == 12
    shared = lnz.FactorGraph(
        [2] * 3, [(0, 1), (2, 1), (0,)], [np.array([[0.3, 1], [0, 2]]), np.ones(2)], table_of=[0, 0, 1]
    )
    found, truth = (
        jax.grad(lambda t, r=r: _value(shared, t, r))(shared.log_potentials) for r in (route, lnz.routes.Elimination())
    )
    assert float(jnp.sum(found)) == pytest.approx(float(jnp.sum(truth)), rel=1e-9)
    if not isinstance(route, lnz.routes.MeanField):  # a chain: all exact
        np.testing.assert_allclose(found, truth, rtol=1e-9)


def _value(graph: lnz.FactorGraph, flat: jax.Array, route: lnz.Route) -> jax.Array:
    return lnz.log_partition(eqx.tree_at(lambda g: g.log_potentials, graph, flat), route=route).value


def test_more_trees_tighten_and_forests_are_exact():
    rng = np.random.default_rng(1)
    grid = lnz.Ising.lattice((5, 5), 0.6 * rng.normal(size=(2, 5, 5)), rng.normal(size=(5, 5)), periodic=False)
    exact = float(lnz.log_partition(grid).value)
    values = [
        float(lnz.log_partition(grid, route=lnz.routes.TreeReweighted(steps=steps)).value) for steps in (0, 4, 16)
    ]
    assert values[0] > values[1] > values[2] > exact
    chain = lnz.Ising.lattice((300,), 1.5, 0.2, periodic=False)
    np.testing.assert_allclose(
        float(lnz.log_partition(chain, route=lnz.routes.TreeReweighted()).value),
        float(lnz.log_partition(chain, route=lnz.routes.Elimination()).value),
        rtol=1e-12,
    )


def test_mini_buckets_tighten_with_their_width_until_they_are_exact():
    """Widths 2 to 9 on a spin glass with fields; at the width of the order nothing is split, and the beliefs are the marginals."""
    rng = np.random.default_rng(4)
    grid = lnz.Ising.lattice((6, 6), rng.normal(size=(2, 6, 6)), rng.normal(size=(6, 6)), periodic=False)
    exact = float(lnz.log_partition(grid, route=lnz.routes.Elimination()).value)
    limits = [
        [
            float(lnz.log_partition(grid, route=lnz.routes.MiniBucket(i_bound=i, side=side, max_sweeps=10)).value)
            for i in (2, 5, 9)
        ]
        for side in ("upper", "lower")
    ]
    (loose, near, met), (below, closer, equal) = limits
    assert loose > near > exact > closer > below
    np.testing.assert_allclose([met, equal], exact, rtol=1e-12)
    for side in ("upper", "lower"):
        for mine, truth in zip(lnz.routes.MiniBucket(side=side).beliefs(grid), lnz.marginals(grid), strict=True):
            np.testing.assert_allclose(mine, truth, atol=1e-10)


def test_refusals():
    triple = lnz.FactorGraph([2] * 3, [(0, 1, 2)], [np.zeros((2, 2, 2))])
    with pytest.raises(ValueError, match="at most 2 variables, but one has 3"):
        lnz.log_partition(triple, route=lnz.routes.TreeReweighted())
    with pytest.raises(ValueError, match="has no factors"):
        lnz.log_partition(lnz.Gaussian(jnp.zeros(2), jnp.eye(2)), route=lnz.routes.BeliefPropagation())
    with pytest.raises(ValueError, match="not E\\[f\\]"):
        lnz.expectation(triple, lambda x: x, route=lnz.routes.BeliefPropagation())
    with pytest.raises(ValueError, match="log Z is NaN"):
        lnz.log_partition(
            eqx.tree_at(lambda g: g.log_potentials, triple, jnp.full(8, jnp.nan)), route=lnz.routes.MeanField()
        )
    for make, word in [
        (lambda: lnz.routes.BeliefPropagation(damping=1.0), "damping"),
        (lambda: lnz.routes.TreeReweighted(trees=0), "trees"),
        (lambda: lnz.routes.MeanField(restarts=0), "restarts"),
        (lambda: lnz.routes.MiniBucket(i_bound=0), "i_bound"),
        (lambda: lnz.routes.MiniBucket(side="both"), "side"),
        (lambda: lnz.routes.MeanField(max_sweeps=0), "max_sweeps"),
        (lambda: lnz.routes.StructuredMeanField(restarts=0), "restarts"),
        (lambda: lnz.routes.StructuredMeanField(max_entries=0), "max_entries"),
        (lambda: lnz.routes.MiniBucket(max_sweeps=0), "max_sweeps"),
        (lambda: lnz.routes.BeliefPropagation(schedule="random"), "schedule"),
        (lambda: lnz.routes.BeliefPropagation(tolerance=0.0), "tolerance"),
    ]:
        with pytest.raises(ValueError, match=word):
            make()


@pytest.mark.parametrize("graph", [([2] * 20, []), ([3] * 30, []), ([2] * 7, [(0, 1), (2, 3)]), ([5, 2, 2], [(0,)])])
def test_structured_mean_field_that_is_exact_stays_below_the_truth(graph):
    """A cluster's sum is rounded down where it becomes part of a lower bound: the value itself never exceeds log Z."""
    sizes, scopes = graph
    model = lnz.FactorGraph(sizes, scopes, [np.zeros([sizes[i] for i in scope]) for scope in scopes])
    truth = sum(np.log(np.longdouble(k)) for k in sizes)
    found = lnz.log_partition(model, route=lnz.routes.StructuredMeanField())
    assert float(found.lower) < float(found.value) <= truth
    assert float(found.value) > truth - 1e-11


def test_the_rounding_is_that_of_a_factors_largest_entry():
    """A factor adds one of its entries to a state's sum: many labels or shared tables do not add up."""
    k, eps = 60, np.finfo(float).eps
    tables = np.random.default_rng(0).normal(size=(2, k, k))
    chain = lnz.FactorGraph([k] * 3, [(0, 1), (1, 2)], list(tables))
    found = lnz.log_partition(chain, route=lnz.routes.BeliefPropagation())
    size = sum(np.abs(table).max() for table in tables)
    assert 16 * eps * size < float(found.upper - found.value) < 33 * eps * (1 + size + abs(float(found.value)))
    field = lnz.RandomField(lnz.crf.Chain(3), np.zeros((3, k)), tables)
    for route in (lnz.routes.BeliefPropagation(schedule="parallel"), lnz.routes.MeanField(schedule="parallel")):
        found = lnz.log_partition(field, route=route)
        assert 16 * eps * size < float(found.value - found.lower) < 33 * eps * (1 + size + abs(float(found.value)))
    shared = lnz.RandomField(lnz.crf.Chain(50), np.zeros((50, 2)), np.asarray([[9.0, 0.0], [0.0, 0.0]]))
    found = lnz.log_partition(shared, route=lnz.routes.BeliefPropagation(schedule="parallel"))
    assert float(found.upper - found.value) > 32 * eps * 49 * 9


def test_messages_that_are_wholly_damped_stand_still():
    """In turn and in parallel; half damped ones go half of the way."""
    rng = np.random.default_rng(0)
    graph = lnz.FactorGraph([2] * 4, [(0, 1), (1, 2), (2, 3), (3, 0)], list(rng.normal(size=(4, 2, 2))))
    found = messages.model(graph, np.asarray(graph.log_potentials))
    for way in (lambda m, d: m.sweep(d), lambda m, d: m.largest_first(d, 1.0)):
        ends = []
        for damping in (1.0, 0.5, 0.0):
            passed = messages.Messages(found, [range(len(found.scopes))])
            before = passed.messages.copy()
            way(passed, damping)
            ends.append(passed.messages - before)
        assert not ends[0].any()
        assert np.abs(ends[2]).max() > 0.1
        np.testing.assert_allclose(ends[1], ends[2] / 2, atol=1e-12)


def test_both_sides_of_an_unsplit_bucket_tree_allow_for_rounding():
    """Where nothing is split both bounds are log Z, and rounding alone is between them."""
    rng = np.random.default_rng(0)
    graph = lnz.FactorGraph([2] * 4, [(0, 1), (1, 2), (2, 3)], list(rng.normal(size=(3, 2, 2))))
    upper, lower = (
        float(lnz.log_partition(graph, route=lnz.routes.MiniBucket(i_bound=9, side=side)).value)
        for side in ("upper", "lower")
    )
    assert lower < float(lnz.log_partition(graph)) < upper < lower + 1e-12
