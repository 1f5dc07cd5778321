"""Models with many impossible configurations: barren parts, and sums over possible entries alone, against the list of all states."""

import itertools
import math

import numpy as np
import pytest

import lnz
from listing import Listed, random_graph
from lnz._graphs import barren_nodes, sparse_tables
from lnz._graphs.solver import EliminationBudget, Solver

QUICK = EliminationBudget(search_seconds=0)


def solver_of(listed: Listed, budget: EliminationBudget = QUICK) -> Solver:
    return Solver(listed.cardinalities, listed.scopes, listed.tables, budget)


def riddled(seed: int) -> Listed:
    """A random graph with half of its entries impossible, one state excepted; every eighth is left as it came, possible or not."""
    listed, rng = random_graph(seed), np.random.default_rng(seed)
    if seed % 8 == 0:
        return listed
    state = [int(rng.integers(k)) for k in listed.cardinalities]
    tables = []
    for scope, table in zip(listed.scopes, listed.tables, strict=True):
        table = np.where(np.isfinite(table) & (rng.random(table.shape) < 0.6), table, -np.inf)
        table[tuple(state[i] for i in scope)] = rng.normal()
        tables.append(table)
    return Listed(listed.cardinalities, listed.scopes, tables)


def sums_of(model, *, memory: float = 1e9) -> sparse_tables.SparseSums:
    plan = sparse_tables.searched(model.scopes, model.tables, model.sizes, memory=memory, seconds=60, seed=0)
    assert plan.supports
    return sparse_tables.SparseSums(plan, model.scopes, model.tables, model.sizes, most=1e6, seconds=60)


def chi_square(states: np.ndarray, listed: Listed) -> float:
    """Standard deviations by which the counts of all states miss their expectation."""
    p, n = listed.probabilities.ravel(), len(states)
    counts = np.bincount(np.ravel_multi_index(tuple(states.T), listed.cardinalities), minlength=p.size)
    assert counts[p == 0].sum() == 0
    cells = n * p > 5
    observed, expected = np.append(counts[cells], counts[~cells].sum()), np.append(n * p[cells], n * p[~cells].sum())
    chi = np.sum((observed - expected) ** 2 / np.maximum(expected, 1))
    return float((chi - cells.sum()) / math.sqrt(2 * cells.sum() + 1))


@pytest.mark.parametrize("first", [0, 100])
def test_possible_entries_against_the_list_of_states(first):
    """log Z, beliefs and the most probable state of 200 graphs, zeros in many; samples are possible."""
    zeros = 0
    for seed in range(first, first + 100):
        listed = riddled(seed)
        model = solver_of(listed).reduced
        if not model.possible:
            continue
        sums = sums_of(model)
        zeros += any(not np.isfinite(table).all() for table in model.tables)
        assert sums.log_total() + model.constant == pytest.approx(listed.log_z, rel=1e-11, abs=1e-11), seed
        if listed.log_z == -np.inf:
            assert not any(belief.any() for belief in sums.beliefs()[1])
            with pytest.raises(ValueError, match="Z = 0"):
                sums.most_probable()
            continue
        whole = [len(domain) == k for domain, k in zip(model.domains, listed.cardinalities, strict=True)]
        for scope, belief in zip(model.scopes, sums.beliefs()[1], strict=True):
            if all(whole[i] for i in scope):
                np.testing.assert_allclose(belief, listed.marginal(scope), rtol=1e-9, atol=1e-10, err_msg=str(seed))
        best = model.restore(sums.most_probable())[0]
        assert listed.weights[tuple(best)] == pytest.approx(listed.weights.max(), rel=1e-12, abs=1e-12), seed
        for state in model.restore(sums.sample(np.random.default_rng(seed), 5)):
            assert listed.weights[tuple(state)] > -np.inf
    assert zeros > 20


def belief_network(seed: int) -> Listed:
    """p(x) = Π p(x_i | parents) of 7 variables, half of the rows deterministic; the last variable or none is observed."""
    rng = np.random.default_rng(seed)
    cardinalities = tuple(int(k) for k in rng.integers(2, 4, size=7))
    scopes, tables = [], []
    for i, k in enumerate(cardinalities):
        parents = [int(j) for j in rng.permutation(i)[: rng.integers(0, 3)]]
        table = rng.dirichlet(np.ones(k), size=[cardinalities[j] for j in parents])
        sure = np.eye(k)[rng.integers(k, size=table.shape[:-1])]
        table = np.where(rng.random((*table.shape[:-1], 1)) < 0.5, sure, table)
        with np.errstate(divide="ignore"):
            tables.append(np.log(table))
        scopes.append((*parents, i))
    if seed % 2:
        scopes.append((int(rng.integers(7)),))
        tables.append(rng.normal(size=cardinalities[scopes[-1][0]]))
    return Listed(cardinalities, scopes, tables)


def test_barren_parts_leave_and_samples_still_follow_the_law():
    """Belief networks: without evidence nothing is left, and Z = 1. Chi-square of samples below 8 standard deviations, for any seed."""
    for seed in range(40):
        listed = belief_network(seed)
        found = solver_of(listed)
        model, dropped = found.pruned
        assert sum(len(part.variables) for part in dropped) > 0
        assert found.log_partition() == pytest.approx(listed.log_z, abs=1e-12)
        if seed % 2 == 0:
            assert not any(model.scopes)
        states = found.sample(np.random.default_rng(seed), 3000)
        assert chi_square(states, listed) < 8, seed
        for i, marginal in enumerate(found.marginals()):
            np.testing.assert_allclose(marginal, listed.marginal((i,)), atol=1e-10)


def test_barren_parts_of_any_graph():
    for seed in range(400, 520):
        listed = riddled(seed)
        found = solver_of(listed)
        assert found.log_partition() == pytest.approx(listed.log_z, rel=1e-11, abs=1e-11), seed
        if listed.log_z == -np.inf:
            continue
        for state in found.sample(np.random.default_rng(seed), 5):
            assert listed.weights[tuple(state)] > -np.inf


def test_separable_tables():
    """T(a, b, c) = u(b) R(a, c) falls apart, zeros included; a table that only nearly does stays whole."""
    rng = np.random.default_rng(0)
    rest, own = rng.normal(size=(3, 1, 4)), np.array([0.3, -np.inf, 2.0]).reshape(1, 3, 1)
    rest[0, 0, 1] = -np.inf
    parts = barren_nodes.separated((5, 1, 2), rest + own)
    assert sorted(scope for scope, _ in parts) == [(1,), (5, 2)]
    made = sum(table.reshape(3, 1, 4) if len(scope) == 2 else table.reshape(1, 3, 1) for scope, table in parts)
    np.testing.assert_allclose(made, rest + own, rtol=1e-15)
    nearly = rest + own
    nearly[1, 2, 3] += 1e-12
    assert [scope for scope, _ in barren_nodes.separated((5, 1, 2), nearly)] == [(5, 1, 2)]


def code(n: int = 64, bits: int = 8, seed: int = 1) -> tuple[Listed, np.ndarray, np.ndarray]:
    """Parity checks over three of n bits each, whose solutions are a linear code; weights on single bits. And all codewords with their weights."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(1, 2**bits, size=n)
    checks = [t for t in itertools.combinations(range(n), 3) if np.bitwise_xor.reduce(columns[list(t)]) == 0]
    table = np.where(np.indices((2, 2, 2)).sum(axis=0) % 2, -np.inf, 0.0)
    fields = rng.normal(size=n)
    scopes = [*checks, *((i,) for i in range(n))]
    tables = [table] * len(checks) + [np.array([0.0, b]) for b in fields]
    basis: list[int] = []  # of the checks, as bits
    for t in checks:
        row = sum(1 << i for i in t)
        for b in basis:
            row = min(row, row ^ b)
        basis += [row] if row else []
    assert n - len(basis) == bits  # the checks are the code's
    words = np.array([[bin(int(c) & u).count("1") % 2 for c in columns] for u in range(2**bits)])
    return Listed((2,) * n, scopes, tables), words, words @ fields


def test_a_code_is_too_wide_for_full_tables():
    """64 bits, 256 codewords: log Z, marginals, entropy, the most probable word and samples, where full tables are refused."""
    listed, words, weights = code()
    found = solver_of(listed, EliminationBudget(search_seconds=0, max_seconds=20, max_memory=1e9))
    plan = found.plan()
    assert plan.supports
    assert "possible entries only" in str(plan)
    log_z = np.logaddexp.reduce(weights)
    p = np.exp(weights - log_z)
    assert found.log_partition() == pytest.approx(log_z, rel=1e-13)
    np.testing.assert_allclose([m[1] for m in found.marginals()], p @ words, atol=1e-12)
    assert found.entropy() == pytest.approx(-(p * np.log(p)).sum(), rel=1e-10)
    np.testing.assert_array_equal(found.most_probable(), words[weights.argmax()])
    states = found.sample(np.random.default_rng(0), 4000)
    assert (states[:, None] == words[None]).all(axis=2).any(axis=1).all()
    spread = np.sqrt(p @ words * (1 - p @ words) / 4000)
    assert (np.abs(states.mean(axis=0) - p @ words) < 6 * spread + 1e-9).all()


def test_supports_that_grow_too_large_are_refused():
    listed, _, _ = code()
    model = solver_of(listed).reduced
    with pytest.raises(sparse_tables.TooExpensive, match="do not fit"):
        sparse_tables.searched(model.scopes, model.tables, model.sizes, memory=1e4, seconds=60, seed=0)
    with pytest.raises(sparse_tables.TooExpensive, match="time is over"):
        sparse_tables.searched(model.scopes, model.tables, model.sizes, memory=1e9, seconds=0, seed=0)
    with pytest.raises(ValueError, match="too expensive"):
        solver_of(listed, EliminationBudget(search_seconds=0, max_seconds=20, max_memory=1e4)).plan()


def test_blocks_of_a_join_agree_with_the_whole():
    """A join in blocks of 64 rows is the join in one piece."""
    listed, _, weights = code(40, 7, 3)
    model = solver_of(listed).reduced
    sums = sums_of(model)
    whole = sums.beliefs()[1]
    sums.block = 64
    assert sums.log_total() + model.constant == pytest.approx(np.logaddexp.reduce(weights), rel=1e-12)
    for a, b in zip(whole, sums.beliefs()[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_a_graph_with_zeros_is_served_through_the_route():
    listed, _, weights = code()
    route = lnz.routes.Elimination(search_seconds=0, max_seconds=20, max_memory=1e9)
    assert float(lnz.log_partition(listed.graph, route=route).value) == pytest.approx(
        np.logaddexp.reduce(weights), rel=1e-12
    )


def test_a_variable_that_nothing_depends_on():
    """Two tables are constant in variable 0: it leaves both, counts 3 times, and is drawn uniformly."""
    rng = np.random.default_rng(2)
    u, v, pair = rng.normal(size=2), rng.normal(size=2), rng.normal(size=(2, 2))
    tables = [np.broadcast_to(u, (3, 2)), np.broadcast_to(v, (3, 2)), pair]
    listed = Listed((3, 2, 2), [(0, 1), (0, 2), (1, 2)], tables)
    found = solver_of(listed)
    assert not any(found.pruned[0].scopes)
    assert found.log_partition() == pytest.approx(listed.log_z, abs=1e-13)
    assert chi_square(found.sample(np.random.default_rng(0), 3000), listed) < 8
