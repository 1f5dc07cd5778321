"""Batches, n-best, evidence as data and second derivatives of the exact engine, against plain lists of all states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from listing import Listed, random_graph
from lnz._graphs import contraction
from lnz._graphs.solver import EliminationBudget, Solver
from lnz._models.factor_graph import packed
from lnz.routes._exact import batched_elimination

QUICK = lnz.routes.Elimination(search_seconds=0)


def members_of(listed: Listed, seed: int, members: int, *, widest: float = 700.0) -> list[np.ndarray]:
    """Tables for many models on a graph's structure (…, members): each as weak or violent as it likes, with zeros of its own."""
    rng = np.random.default_rng(seed)
    strengths = rng.choice([0.5, 3.0, min(60.0, widest), widest], size=members)
    zeros = rng.choice([0.0, 0.1, 0.4], size=members)
    tables = [strengths * rng.normal(size=(*table.shape, members)) for table in listed.tables]
    return [np.where(rng.random(table.shape) < zeros, -np.inf, table) for table in tables]


def listed_batch(listed: Listed, tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """log Z (members,) and the probabilities of all states (…, members)."""
    states, weights = np.indices(listed.cardinalities), np.zeros((*listed.cardinalities, tables[0].shape[-1]))
    for scope, table in zip(listed.scopes, tables, strict=True):
        weights += table[tuple(states[i] for i in scope)]
    own = tuple(range(weights.ndim - 1))
    top = weights.max(axis=own)
    top[top == -np.inf] = 0
    p = np.exp(weights - top)
    total = p.sum(axis=own)
    with np.errstate(divide="ignore"):
        return np.log(total) + top, p / np.where(total > 0, total, 1)


def within(budget: EliminationBudget, listed: Listed, tables: list[np.ndarray]) -> batched_elimination.BatchSums:
    """log Z and the beliefs, in more memory where they need it."""
    try:
        return batched_elimination.log_partitions(listed.cardinalities, listed.scopes, tables, budget, beliefs=True)
    except ValueError:
        free = EliminationBudget(search_seconds=0)
        return batched_elimination.log_partitions(listed.cardinalities, listed.scopes, tables, free, beliefs=True)


def summed_to(p: np.ndarray, scope: tuple[int, ...]) -> np.ndarray:
    p = p.sum(axis=tuple(a for a in range(p.ndim - 1) if a not in scope))
    return np.transpose(p, [*(sorted(scope).index(i) for i in scope), len(scope)])


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_ten_thousand_models_on_a_thousand_random_structures(first):
    """Cardinalities 1 to 5, arities 0 to 4, zeros, disconnected parts, scopes repeated in another order: log Z and all beliefs."""
    for seed in range(first, first + 250):
        listed = random_graph(seed)
        if not listed.scopes:
            continue
        tables = members_of(listed, seed, 10)
        truth, p = listed_batch(listed, tables)
        budget = EliminationBudget(
            search_seconds=0, max_memory=[None, None, None, 4000.0, 200.0][seed % 5]
        )  # at once, in blocks, one by one
        found = within(budget, listed, tables)
        np.testing.assert_allclose(found.log_z, truth, rtol=1e-11, atol=1e-11, err_msg=str(seed))
        for scope, belief in zip(listed.scopes, found.beliefs, strict=True):
            np.testing.assert_allclose(belief, summed_to(p, scope), rtol=1e-9, atol=1e-10, err_msg=str(seed))
        if seed % 5 == 0:
            alone = batched_elimination.log_partitions(
                listed.cardinalities, listed.scopes, tables, EliminationBudget(search_seconds=0)
            )
            np.testing.assert_allclose(alone.log_z, truth, rtol=1e-11, atol=1e-11, err_msg=str(seed))
            assert not alone.beliefs


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10_000, 500))
def test_ten_thousand_random_structures(first):
    for seed in range(first, first + 500):
        listed = random_graph(seed)
        solver = Solver(listed.cardinalities, listed.scopes, listed.tables, EliminationBudget(search_seconds=0))
        log_z, beliefs = solver.log_partition_and_factor_marginals()
        assert log_z == pytest.approx(listed.log_z, rel=1e-11, abs=1e-11), seed
        assert solver.log_partition() == pytest.approx(listed.log_z, rel=1e-11, abs=1e-11), seed
        for scope, belief in zip(listed.scopes, beliefs, strict=True):
            np.testing.assert_allclose(belief, listed.marginal(scope), rtol=1e-9, atol=1e-10, err_msg=str(seed))
        for i, marginal in enumerate(solver.marginals()):
            np.testing.assert_allclose(marginal, listed.marginal((i,)), rtol=1e-9, atol=1e-10, err_msg=str(seed))


def test_the_derivative_of_every_belief_is_a_covariance():
    """T7 on 200 random structures, three members each: dP(x_f)/dε along t is P(x_f, ·) (t - E[t]) summed."""
    for seed in range(200):
        listed = random_graph(seed)
        if not listed.scopes:
            continue
        tables = members_of(listed, seed, 3, widest=20.0)
        directions = [np.random.default_rng(seed).normal(size=table.shape) for table in tables]
        given = [
            np.where(x > -np.inf, t, np.inf) for x, t in zip(tables, directions, strict=True)
        ]  # there, it does not count
        found = batched_elimination.curvature(
            listed.cardinalities, listed.scopes, tables, given, EliminationBudget(search_seconds=0)
        )
        _, p = listed_batch(listed, tables)
        states = np.indices(listed.cardinalities)
        total = sum(t[tuple(states[i] for i in s)] for s, t in zip(listed.scopes, directions, strict=True))
        moved = p * (total - (p * total).sum(axis=tuple(range(p.ndim - 1))))
        for scope, derivative in zip(listed.scopes, found, strict=True):
            np.testing.assert_allclose(derivative, summed_to(moved, scope), rtol=1e-9, atol=1e-11, err_msg=str(seed))


def test_no_state_is_possible_though_every_factor_allows_some():
    """An odd cycle in two colours: all beliefs are zero, those of variables with one value too."""
    differ, never = np.where(np.eye(2) > 0, -np.inf, 0.0), np.full((2, 2), -np.inf)
    scopes = [(0, 1), (1, 2), (2, 0), (3,), ()]
    tables = [differ, differ, differ, np.zeros(1), np.zeros(())]
    one = Solver((2, 2, 2, 1), scopes, tables, EliminationBudget(search_seconds=0))
    assert one.log_partition() == -np.inf
    assert not any(belief.any() for belief in [*one.factor_marginals(), *one.marginals()])
    for other in (differ, never):  # the second member allows no value at all
        both = [np.stack([differ, other], axis=-1), *(np.stack([t, t], axis=-1) for t in tables[1:])]
        found = batched_elimination.log_partitions(
            (2, 2, 2, 1), scopes, both, EliminationBudget(search_seconds=0), beliefs=True
        )
        assert (found.log_z == -np.inf).all()
        assert not any(belief.any() for belief in found.beliefs)


def test_second_derivatives_refuse_what_needs_logarithms_or_slices():
    budget, zeros = EliminationBudget(search_seconds=0), [np.zeros((2, 2, 1))] * 2
    violent = [np.array([[0.0, -2000.0], [-1500.0, 0.0]])[..., None]] * 2
    with pytest.raises(ValueError, match="differ by more than"):
        batched_elimination.curvature((2, 2, 2), [(0, 1), (1, 2)], violent, zeros, budget)
    with pytest.raises(ValueError, match=r"not supported in slices, but need .* raise max_memory"):
        batched_elimination.curvature(
            (2, 2, 2), [(0, 1), (1, 2)], zeros, zeros, EliminationBudget(search_seconds=0, max_memory=50)
        )


def test_n_best_of_random_graphs():
    """500 graphs, many with ties, half of them in slices: the n largest weights in order, all states different."""
    sliced = fewer = ties = 0
    for seed in range(500):
        listed = random_graph(seed)
        if seed % 3 == 0:  # weights in few steps
            tables = [np.where(t > -np.inf, np.round(np.clip(t, -2, 2)), t) for t in listed.tables]
            listed = Listed(listed.cardinalities, listed.scopes, tables)
        n = int(np.random.default_rng(seed).integers(1, 30))
        parts = listed.cardinalities, listed.scopes, listed.tables
        solver = Solver(*parts, EliminationBudget(search_seconds=0))
        if seed % 2:
            memory = 0.7 * solver.plan(every=True).all_bytes
            with_little = Solver(*parts, EliminationBudget(search_seconds=0, max_memory=memory))
            try:
                sliced += with_little.plan(every=True).slices > 1
                solver = with_little
            except ValueError:
                pass
        truth = np.sort(listed.weights.ravel())[::-1]
        truth = truth[truth > -np.inf][:n]
        if not len(truth):
            with pytest.raises(ValueError, match="Z = 0"):
                solver.n_best(n)
            continue
        fewer, ties = fewer + (len(truth) < n), ties + (len(np.unique(truth)) < len(truth))
        labels, weights = solver.n_best(n)
        assert len(np.unique(labels, axis=0)) == len(truth), seed
        np.testing.assert_allclose(weights, truth, rtol=1e-12, atol=1e-11, err_msg=str(seed))
        np.testing.assert_allclose(listed.weights[tuple(labels.T)], weights, rtol=1e-12, atol=1e-11)
    assert min(sliced, fewer, ties) > 20


def test_n_best_states_of_models():
    """States of the model's space, latent ones included; a grid's hundred best are the best of its ranked neighbours."""
    rng = np.random.default_rng(5)
    rbm = lnz.RBM.from_parameters(rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=2))
    states, log_weights = lnz.crf.n_best(rbm, 100, route=QUICK)
    energies = np.asarray(jax.jit(jax.vmap(rbm))(states))
    np.testing.assert_allclose(log_weights, -energies, rtol=1e-12)
    assert len(log_weights) == 32
    assert np.logaddexp.reduce(log_weights) == pytest.approx(QUICK.solver(rbm).log_partition())
    grid = lnz.Ising.lattice((12, 12), rng.normal(size=(2, 12, 12)), rng.normal(size=(12, 12)), periodic=False)
    spins, log_weights = lnz.crf.n_best(grid, 100, route=QUICK)
    assert len(np.unique(np.asarray(spins).reshape(100, -1), axis=0)) == 100
    assert (np.diff(log_weights) <= 0).all()
    solver = QUICK.solver(grid)
    flipped = np.asarray(spins[0]).ravel() * (1 - 2 * np.eye(144)) > 0
    places = [tuple(flipped[:, i].astype(int) for i in scope) for scope in solver.scopes]
    one_flip = np.sort(sum(table[place] for place, table in zip(places, solver.tables, strict=True)))[::-1]
    assert log_weights[1] >= one_flip[0] - 1e-12
    assert (np.isin(one_flip.round(9), log_weights.round(9)) | (one_flip <= log_weights[-1] + 1e-9)).all()
    for n in (0, 2.5):
        with pytest.raises(ValueError, match="integer of at least 1"):
            lnz.crf.n_best(rbm, n)  # pyright: ignore[reportArgumentType]


def log_z_of(flat, graph, route):
    return lnz.log_partition(packed(*_parts(graph), flat), route=route).value


def _parts(graph):
    return graph.cardinalities, graph.scopes, graph.table_of, graph.shapes


GRAPH = lnz.FactorGraph(
    [2, 3, 2, 1, 2],
    [(0, 1), (2, 1), (1,), (), (4, 0)],
    [np.random.default_rng(0).normal(size=shape) for shape in [(2, 3), (3,), (), (2, 2)]],
    table_of=[0, 0, 1, 2, 3],
)


def derivatives(log_z):
    """Of a nested batch of parameters: value, gradient and both along x, and the Hessian by forward over reverse and by reverse over reverse."""

    def everything(x):
        g = lambda x: log_z(jnp.sin(x))  # noqa: E731
        first = jax.jvp(jax.value_and_grad(log_z), (x,), (x,))
        return first, jax.hessian(g)(x), jax.grad(lambda x: jnp.sum(jax.grad(g)(x) ** 2))(x)

    return jax.jit(jax.vmap(jax.vmap(everything)))


def test_a_vmap_of_values_gradients_and_hessians():
    """Against log Σ_states exp(Σ counts · φ), which JAX differentiates by itself."""
    states = np.indices(GRAPH.cardinalities).reshape(5, -1)
    counts = np.zeros((states.shape[1], GRAPH.log_potentials.size))
    for scope, t in zip(GRAPH.scopes, GRAPH.table_of, strict=True):
        entry = np.ravel_multi_index([*states[list(scope)]], GRAPH.shapes[t]) if scope else 0
        np.add.at(counts, (np.arange(len(counts)), GRAPH.offsets[t] + entry), 1)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, GRAPH.log_potentials.size)))
    compiled = derivatives(functools.partial(log_z_of, graph=GRAPH, route=QUICK))
    found, wanted = compiled(x), derivatives(lambda x: jax.nn.logsumexp(jnp.asarray(counts) @ x))(x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
    ((value, gradient), _), hessian, _ = compiled(x.at[0, 1, 0].set(jnp.nan))
    for leaf in (value, gradient, hessian):  # the others are what they were
        assert np.isnan(leaf[0, 1]).all()
        assert np.isnan(leaf).reshape(6, -1).any(axis=1).sum() == 1


def test_the_engine_walks_once_for_value_and_gradient_and_once_for_a_vmap(monkeypatch):
    walks = []
    upward = contraction.upward

    def counted(*arguments, **options):
        walks.append(1)
        return upward(*arguments, **options)

    monkeypatch.setattr(contraction, "upward", counted)
    f = functools.partial(log_z_of, graph=GRAPH, route=QUICK)
    jax.value_and_grad(f)(GRAPH.log_potentials)
    assert len(walks) == 1
    jax.vmap(f)(jnp.zeros((50, GRAPH.log_potentials.size)))
    assert len(walks) == 2


def test_third_derivatives_are_refused_in_words():
    f = functools.partial(log_z_of, graph=GRAPH, route=QUICK)
    with pytest.raises(
        ValueError, match=r"first and second derivatives only. For third .* route=lnz.routes.Enumeration"
    ):
        jax.grad(lambda x: jnp.sum(jax.hessian(f)(x)))(GRAPH.log_potentials)


def test_evidence_of_many_examples_in_one_pass():
    """log Z(x) for a batch of x: the same variables observed, by `evidence`; different ones, by `clamped`."""
    examples = np.stack(np.meshgrid(np.arange(3), np.arange(2), indexing="ij"), -1).reshape(-1, 2)
    labels = np.full((6, 5), -1)
    labels[:, [1, 4]], labels[:, 2] = examples, 1
    mixed = np.where(np.random.default_rng(2).random(labels.shape) < 0.5, labels, -1)

    def everything(graph, examples, labels):
        given = jax.vmap(lambda x: log_z_of_graph(graph.evidence({1: x[0], 4: x[1], 2: 1})))
        return given(examples), jax.vmap(lambda row: log_z_of_graph(graph.clamped(row)))(labels)

    compiled = jax.jit(everything)
    given, clamped = compiled(GRAPH, jnp.asarray(examples), jnp.asarray(np.concatenate([labels, mixed])))
    truth = [
        QUICK.solver(GRAPH.evidence({i: int(v) for i, v in enumerate(row) if v >= 0})).log_partition()
        for row in np.concatenate([labels, mixed])
    ]
    np.testing.assert_allclose(given, truth[:6], rtol=1e-12)
    np.testing.assert_allclose(clamped, truth, rtol=1e-12)
    not_there, impossible = examples.copy(), labels.copy()
    not_there[:2, 0], impossible[:2, 1] = (3, -1), (3, -2)
    given, clamped = compiled(GRAPH, jnp.asarray(not_there), jnp.asarray(np.concatenate([impossible, mixed])))
    assert np.isnan(given).tolist() == [True, True, False, False, False, False]
    assert (np.asarray(clamped) == -np.inf).tolist() == [True, True] + [False] * 10


def log_z_of_graph(graph):
    return lnz.log_partition(graph, route=QUICK).value


def test_the_gradient_given_evidence_is_the_conditional_marginals():
    """And a likelihood's gradient is marginals minus indicators (T1): log P(y | x) = log Z(x, y) - log Z(x)."""
    labels = jnp.asarray([1, -1, 0, -1, -1])

    given = GRAPH.evidence({0: 1, 2: 0})
    beliefs = QUICK.factor_marginals(given)
    gradient = jax.jit(jax.grad(lambda graph: log_z_of_graph(graph.clamped(labels))))
    found = gradient(GRAPH).tables
    np.testing.assert_allclose(found[0][1] + found[0][0], beliefs[0][0] + beliefs[1][0], atol=1e-12)
    assert float(found[3][:, 0].sum()) == 0


def test_labels_that_do_not_exist():
    with pytest.raises(ValueError, match="label 3 of variable 1 does not exist: its values are 0 … 2"):
        GRAPH.clamped(np.array([0, 3, -1, 0, 0]))
    with pytest.raises(ValueError, match="labels must be 5 integers, but are float64"):
        GRAPH.clamped(np.zeros(5))
