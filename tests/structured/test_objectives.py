"""Objectives of conditional models against sums over listed labellings in plain NumPy (T1, T2)."""

import itertools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import lnz

K = 3
STRUCTURES = {
    "chain": lnz.Chain(5),
    "tree": lnz.Tree([-1, 0, 0, 1, -1]),
    "grid": lnz.Grid((2, 3), [(0, 1), (1, -1), (-1, 0), (1, 2)]),
    "complete": lnz.Graph.complete(4),
    "factors": lnz.Graph(5, [(0, 1), (3, 2)], factors=[(4,), (2, 0, 4), (1, 2), (0, 1, 3)], groups=[1, 1]),
}
OBJECTIVES = {
    "exact": lnz.Likelihood(),
    "apart": lnz.Piecewise(),
    "inside": lnz.Piecewise(unaries="inside"),
    "shared": lnz.Piecewise(unaries="shared"),
    "pseudo": lnz.PseudoLikelihood(),
    "pseudo apart": lnz.PiecewisePseudoLikelihood(),
    "pseudo inside": lnz.PiecewisePseudoLikelihood(unaries="inside"),
    "pseudo shared": lnz.PiecewisePseudoLikelihood(unaries="shared"),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_in_haste():
    """What these tests cost is compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def scopes_of(structure):
    """The scopes of a field's log-potentials: nodes, edges, factors."""
    return (
        [(i,) for i in range(structure.nodes)] + [tuple(map(int, e)) for e in structure.edges] + list(structure.factors)
    )


def random_tables(structure, rng, hard=0.0):
    tables = [rng.normal(size=(K,) * len(scope)) * 1.3 for scope in scopes_of(structure)]
    return [np.where(rng.random(t.shape) < hard, -np.inf, t) for t in tables]


def field_of(structure, tables, mask=None):
    n, e = structure.nodes, len(structure.edges)
    return lnz.RandomField(
        structure,
        jnp.stack([jnp.asarray(t) for t in tables[:n]]).reshape(*structure.shape, K),
        jnp.stack([jnp.asarray(t) for t in tables[n : n + e]]),
        factors=tables[n + e :],
        mask=None if mask is None else jnp.asarray(mask).reshape(structure.shape),
    )


def terms(structure, name, y, mask):
    """An objective as sums over sets of labellings: (labellings (S, n), the weight with which each table counts (tables,))."""
    n, scopes = structure.nodes, scopes_of(structure)
    exists = np.array([all(mask[i] for i in scope) for scope in scopes])

    def varied(nodes):
        states = np.repeat(y[None], K ** len(nodes), 0)
        states[:, list(nodes)] = list(itertools.product(range(K), repeat=len(nodes)))
        return states

    nodes = np.flatnonzero(mask)
    if name == "exact":
        return [(varied(nodes), exists.astype(float))]
    if name == "pseudo":
        return [
            (varied([i]), np.array([x and i in s for x, s in zip(exists, scopes, strict=True)], float)) for i in nodes
        ]
    unaries = name.split()[-1]
    joint = [a for a in range(n, len(scopes)) if exists[a]]
    pieces = []
    for a in [*nodes, *joint] if unaries == "apart" else joint:
        weights = np.zeros(len(scopes))
        weights[a] = 1
        pieces.append((scopes[a], weights))
    if unaries != "apart":
        count = [sum(i in scopes[a] for a in joint) for i in range(n)]
        for scope, weights in pieces:
            weights[list(scope)] = [1 / count[i] if unaries == "shared" else 1 for i in scope]
        for i in nodes:
            if not count[i]:
                pieces.append(((i,), np.eye(len(scopes))[i]))
    if name.startswith("pseudo"):
        return [(varied([i]), weights) for scope, weights in pieces for i in scope]
    return [(varied(scope), weights) for scope, weights in pieces]


def value_and_gradient(structure, tables, name, y, mask):
    """Σ_a [log Σ_s exp(w_a · φ(s)) - w_a · φ(y)], and Σ_a w_a (μ_a - onehot(y)) of every table."""
    scopes, value = scopes_of(structure), 0.0
    gradient = [np.zeros_like(t) for t in tables]
    for states, weights in terms(structure, name, y, mask):
        used = np.flatnonzero(weights)
        at = {a: tuple(states[:, i] for i in scopes[a]) for a in used}
        scores = sum((weights[a] * tables[a][at[a]] for a in used), np.zeros(len(states)))
        here = sum((weights[a] * tables[a][tuple(y[list(scopes[a])])] for a in used), 0.0)
        log_z = scores.max() + np.log(np.exp(scores - scores.max()).sum())
        value += log_z - here
        for a in used:
            np.add.at(gradient[a], at[a], weights[a] * np.exp(scores - log_z))
            gradient[a][tuple(y[list(scopes[a])])] -= weights[a]
    return value, gradient


def losses(field, y):
    return {name: eqx.filter_value_and_grad(lambda f, o=o: o.loss(f, y))(field) for name, o in OBJECTIVES.items()}


def check_gradients(structure):
    rng, run = np.random.default_rng(7), None
    n, e, scopes = structure.nodes, len(structure.edges), scopes_of(structure)
    for masked, hard in ((False, 0.2), (True, 0.2), (True, 0.0)):
        y, mask = rng.integers(0, K, n), rng.random(n) < (0.7 if masked else 1.1)
        tables = random_tables(structure, rng, hard)
        for table, scope in zip(tables, scopes, strict=True):
            table[tuple(y[list(scope)])] = rng.normal()  # the labels are possible
            if not mask[list(scope)].all():
                table[...] = np.nan  # what is not there is not looked at
        field = field_of(structure, tables, mask)
        labels = jnp.asarray(np.where(mask, y, -100).reshape(structure.shape))
        run = run or jax.jit(losses)
        for name, (value, gradient) in run(field, labels).items():
            want, tables_want = value_and_gradient(structure, tables, name, y, mask)
            assert float(value) == pytest.approx(want, abs=1e-9), name
            numbers = [int(f) for numbers in structure.by_arity for f in numbers]
            of_factors = dict(zip(numbers, itertools.chain(*gradient.higher), strict=True))
            got = [*gradient.unary.reshape(n, K), *gradient.pairwise, *(of_factors[f] for f in range(len(numbers)))]
            for a, scope in enumerate(scopes):
                if mask[list(scope)].all():
                    np.testing.assert_allclose(got[a], tables_want[a], atol=1e-10, err_msg=f"{name} {scope}")
                else:
                    assert np.isfinite(got[a]).all()
    assert e == len(gradient.pairwise)


def test_the_gradient_of_every_objective_is_its_marginals_less_indicators():
    check_gradients(lnz.Graph(5, [(0, 1), (3, 2), (1, 2)], factors=[(4,), (2, 0, 4)]))


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_gradients_on_every_structure(name):
    check_gradients(STRUCTURES[name])


@pytest.mark.parametrize("name", STRUCTURES)
def test_pieces_bound_the_whole(name):
    """Σ_a log Z_a ≥ log Z, so that a piecewise loss is at least the negative log-likelihood (T2): 60 random fields a structure."""
    structure, rng, count = STRUCTURES[name], np.random.default_rng([1, *name.encode()]), 60
    n, scopes = structure.nodes, scopes_of(structure)
    states = np.array(list(itertools.product(range(K), repeat=n)))
    scale = rng.choice([0.1, 1.0, 4.0], (len(scopes), count))
    tables = [
        rng.normal(size=(count, *(K,) * len(s))) * c.reshape(-1, *(1,) * len(s))
        for s, c in zip(scopes, scale, strict=True)
    ]
    scores = sum(t[(slice(None), *states[:, s].T)] for s, t in zip(map(list, scopes), tables, strict=True))
    chosen = rng.integers(0, len(states), count)
    top = scores.max(1)
    nll = top + np.log(np.exp(scores - top[:, None]).sum(1)) - scores[np.arange(count), chosen]

    def asked(tables, y):
        field = field_of(structure, tables)
        return [lnz.Piecewise(unaries=u).loss(field, y.reshape(structure.shape)) for u in ("apart", "shared")]

    given = [jnp.asarray(t) for t in tables], jnp.asarray(states[chosen])
    apart, shared = jax.jit(jax.vmap(asked))(*given)
    assert (apart >= nll - 1e-9).all()
    assert (shared >= nll - 1e-9).all()
    assert (np.asarray(apart) > nll + 0.1).any()


def test_the_gap_is_what_pieces_lose_and_nothing_where_they_share_no_node():
    rng = np.random.default_rng(2)
    field = field_of(STRUCTURES["complete"], random_tables(STRUCTURES["complete"], rng))
    y = jnp.asarray([0, 2, 1, 1])
    for unaries in ("apart", "shared"):
        gap = lnz.piecewise_gap(field, unaries=unaries)
        lost = lnz.Piecewise(unaries=unaries).loss(field, y) - lnz.negative_log_likelihood(field, y)
        assert float(gap) == pytest.approx(float(lost), abs=1e-9)
        assert float(gap) > 1
    apart = lnz.Graph(7, [(0, 1), (2, 3)], factors=[(4, 5)])
    tables = random_tables(apart, rng)
    assert abs(float(lnz.piecewise_gap(field_of(apart, tables), unaries="shared"))) < 1e-9
    none = lnz.RandomField(lnz.Graph(3, []), rng.normal(size=(3, K)))
    assert abs(float(lnz.piecewise_gap(none))) < 1e-9
    with pytest.raises(ValueError, match="bound"):
        lnz.piecewise_gap(field, unaries="inside")


def test_chains_with_any_mask_are_fields():
    """A chain's objectives are those of the field without its masked nodes: holes that link, and holes that cut."""
    rng, t = np.random.default_rng(3), 6
    emissions, pairs, ends = rng.normal(size=(t, K)), rng.normal(size=(t - 1, K, K)), rng.normal(size=(2, K))
    mask, y = np.array([False, True, True, False, True, False]), np.array([0, 2, 1, 0, 0, 0])
    link = emissions[mask] + np.array([ends[0], 0 * ends[0], ends[1]])
    cut = emissions[mask] + np.array([ends[0], ends[1], ends[0] + ends[1]])
    graphs = {
        "link": lnz.RandomField(lnz.Chain(3), link, pairs[[1, 3]]),
        "cut": lnz.RandomField(lnz.Graph(3, [(0, 1)]), cut, pairs[1:2]),
    }
    names = ["inside", "apart", "pseudo"]

    def asked(mask, holes):
        chain = lnz.LinearChain(emissions, pairs, mask=mask, start=ends[0], end=ends[1], holes=holes)
        labels = jnp.where(mask, y, -100)
        return [OBJECTIVES[name].loss(chain, labels) for name in names]

    for holes, field in graphs.items():
        for got in (asked(jnp.asarray(mask), holes), jax.jit(asked, static_argnums=1)(mask, holes)):
            for name, value in zip(names, got, strict=True):
                want = OBJECTIVES[name].loss(field, jnp.asarray(y[mask]))
                assert float(value) == pytest.approx(float(want), abs=1e-10), (holes, name)


def test_sampled_gradients_have_the_law_that_their_chains_have():
    """Persistent chains at exact samples: the mean gradient is μ - onehot. CD-1 is one sweep from the labels, and moves."""
    structure = lnz.Grid((2, 2))
    rng = np.random.default_rng(4)
    tables = random_tables(structure, rng)
    field, y = field_of(structure, tables, np.array([1, 1, 1, 0], bool)), jnp.asarray([[0, 1], [2, -7]])
    objective = lnz.SampledLikelihood(sweeps=2, samples=3)
    chains = lnz.exact_samples(field, jax.random.key(1), 20_000)

    @eqx.filter_jit
    def asked(field, chains, key):
        moved = objective.moved(field, chains, key)
        return moved, eqx.filter_grad(lambda f: objective.loss(f, y, chains=moved))(field)

    moved, gradient = asked(field, chains, jax.random.key(2))
    exact = eqx.filter_grad(lambda f: lnz.negative_log_likelihood(f, y))(field)
    assert (np.asarray(moved)[:, 1, 1] == 0).all()
    for got, want in ((gradient.unary, exact.unary), (gradient.pairwise, exact.pairwise)):
        np.testing.assert_allclose(got, want, atol=5 * 0.5 / np.sqrt(20_000))
    key = jax.random.key(5)
    start = jnp.broadcast_to(jnp.where(y < 0, 0, y), (3, 2, 2))
    want = objective.loss(field, y, chains=objective.moved(field, start, key))
    assert float(objective.loss(field, y, key=key)) == float(want)
    with pytest.raises(ValueError, match="random key"):
        objective.loss(field, y)


def test_persistent_chains_of_a_chain_with_holes_stay_in_its_own_order():
    chain = lnz.LinearChain(
        np.array([[9.0, 0], [0, 0], [0, 9.0]]), np.zeros((2, 2)), mask=jnp.asarray([True, False, True])
    )
    objective = lnz.SampledLikelihood()
    moved = objective.moved(chain, jnp.ones((50, 3), int), jax.random.key(0))
    assert np.asarray(moved).mean(0) == pytest.approx([0, 0, 1], abs=0.05)
    same = objective.loss(chain, jnp.asarray([0, -1, 1]), chains=jnp.asarray([[0, 0, 1]]))
    assert float(same) == 0


def test_labels_that_are_impossible_or_wrong():
    field = lnz.RandomField(lnz.Chain(3), np.zeros((3, K)), allowed_pairs=~np.eye(K, dtype=bool))
    y = jnp.asarray([0, 0, 1])
    names = [*OBJECTIVES, "sampled"]
    objectives = {**OBJECTIVES, "sampled": lnz.SampledLikelihood()}
    for name in names:
        gradient = eqx.filter_grad(lambda f, n=name: objectives[n].loss(f, y, key=jax.random.key(0)))(field)
        assert objectives[name].loss(field, y, key=jax.random.key(0)) == jnp.inf, name
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient)), name
        with pytest.raises(ValueError, match="between 0 and 2"):
            objectives[name].loss(field, jnp.asarray([1, 3, 1]), key=jax.random.key(0))
        traced = jax.jit(lambda y, n=name: objectives[n].loss(field, y, key=jax.random.key(0)))
        assert jnp.isnan(traced(jnp.asarray([1, 3, 1]))), name
    for build in (lambda: lnz.Piecewise(unaries="in"), lambda: lnz.PiecewisePseudoLikelihood(unaries="in")):
        with pytest.raises(ValueError, match="unaries must be"):
            build()
    for build in (lambda: lnz.SampledLikelihood(sweeps=0), lambda: lnz.UnrolledMeanField(0)):
        with pytest.raises(ValueError, match="at least 1"):
            build()
