"""Limits of log Z never cross it: thousands of random graphs against a list of all states, in NumPy."""

import itertools
import math

import numpy as np
import pytest

from listing import Listed, random_graph, random_local
from lnz._graphs import messages
from lnz._graphs.anytime_solver import tighten
from lnz._graphs.buckets import bucket_tree, forward
from lnz._graphs.buckets import tighten as tighten_buckets
from lnz._graphs.mean_field import Clusters, climb
from lnz._graphs.orders import least_fill
from lnz._graphs.preprocess import reduce
from lnz.routes._bounds.tree_reweighted import TreeReweighted


def slack(listed: Listed) -> float:
    """What the rounding of the list itself, and of a value without an allowance of its own, may take."""
    finite = [np.abs(t[t > -np.inf]).max(initial=0) for t in listed.tables]
    return 1e-12 * (1 + sum(finite))


def mini_bucket_limits(listed: Listed, seed: int) -> tuple[float, float]:
    """Both limits with tables of a few entries, after a few sweeps, as `tighten` takes them."""
    rng = np.random.default_rng(seed)
    model = reduce(listed.cardinalities, listed.scopes, listed.tables)
    if not model.possible:
        return -math.inf, -math.inf
    scopes = tuple(scope for scope in model.scopes if scope)
    tables = [table for scope, table in zip(model.scopes, model.tables, strict=True) if scope]
    order = least_fill(scopes, tuple(model.sizes), seed)
    tree = bucket_tree(model.sizes, scopes, order, entries=float(rng.integers(1, 40)))
    potentials = tree.arranged(tables)
    found, sweeps = [], int(rng.integers(1, 8))
    for upper in (False, True):
        best = tighten_buckets(tree, potentials, upper=upper, sweeps=sweeps, tolerance=1e-9)
        found.append(best.value + model.constant)
        again = forward(tree, potentials, best.split).value + model.constant  # the best shifts and weights
        assert again == pytest.approx(found[-1], rel=1e-12, abs=1e-9 + slack(listed)), seed
        if not tree.is_split:
            assert again == pytest.approx(listed.log_z, rel=1e-11, abs=1e-9 + slack(listed)), seed
    return found[0], found[1]


def mean_field_limits(listed: Listed, seed: int) -> tuple[float, float]:
    """Naive and structured mean field, the second from the first."""
    rng = np.random.default_rng(seed)
    found = messages.merged(listed.cardinalities, listed.scopes, listed.tables)
    if not found.possible:
        return -math.inf, -math.inf
    best = climb(found, restarts=2, max_sweeps=int(rng.integers(1, 10)), tolerance=1e-6, seed=seed)
    live = messages.live(found)
    clusters = Clusters(live.sizes, live.scopes, live.tables, float(rng.integers(1, 40)))
    q = [row[domain] for row, domain in zip(best.q, live.domains, strict=True)]
    value, _, _ = clusters.climb(q, int(rng.integers(0, 5)), 1e-9)
    if value > -math.inf:
        for scope, belief in zip(live.scopes, clusters.factor_beliefs(), strict=True):
            assert belief.shape == tuple(live.sizes[v] for v in scope)
            assert belief.sum() == pytest.approx(1)
    return best.value + found.constant, value + found.constant


def check(seed: int) -> None:
    """One graph: every limit on its side, and the interval of `tighten` with log Z inside."""
    listed = random_graph(seed) if seed % 2 else random_local(seed, arity=2 + seed % 4 // 2)
    truth, room = listed.log_z, slack(listed)
    lower, upper = mini_bucket_limits(listed, seed)
    assert lower <= truth + room, seed
    assert upper >= truth - room, seed
    naive, structured = mean_field_limits(listed, seed)
    assert naive <= structured + 10 * room <= truth + 20 * room, seed
    if seed % 4 == 0:  # factors of at most two variables
        found = messages.model(listed.graph, np.asarray(listed.graph.log_potentials))
        if found.possible:
            solved = TreeReweighted(trees=2, steps=1, max_sweeps=5, seed=seed).solve(found)
            assert solved.value + found.constant >= truth - 1000 * room, seed
    interval = tighten(listed.cardinalities, listed.scopes, listed.tables, within=0.1, max_seconds=10.0, seed=seed)
    assert interval.exact, seed
    assert interval.lower - room <= truth <= interval.upper + room, seed
    assert interval.width <= 1e-9 + 100 * room, seed


def dense(seed: int) -> Listed:
    """A factor for every pair of six variables, so that nearly every bucket is split; couplings up to ±50 and beyond, some zeros."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(k) for k in rng.integers(2, 4, size=6))
    scopes = list(itertools.combinations(range(6), 2))
    strength, zeros = rng.choice([0.5, 3.0, 30.0]), rng.choice([0.0, 0.0, 0.05])
    tables = [strength * rng.normal(size=[sizes[i] for i in scope]) for scope in scopes]
    return Listed(sizes, scopes, [np.where(rng.random(t.shape) < zeros, -np.inf, t) for t in tables])


@pytest.mark.parametrize("seed", range(60))
def test_limits_hold_where_nearly_every_bucket_is_split(seed):
    listed = dense(seed)
    truth, room = listed.log_z, slack(listed)
    lower, upper = mini_bucket_limits(listed, seed)
    assert lower <= truth + room
    assert upper >= truth - room
    naive, structured = mean_field_limits(listed, seed)
    assert naive <= structured + 10 * room <= truth + 20 * room


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_limits_hold_on_random_graphs(first):
    for seed in range(first, first + 100):
        check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 11000, 500))
def test_limits_hold_on_ten_thousand_random_graphs(first):
    for seed in range(first, first + 500):
        check(seed)
