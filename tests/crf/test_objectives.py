"""Objectives of conditional models against sums over listed labellings in plain NumPy (T1, T2)."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import listing
import lnz

K = 3
STRUCTURES = {
    "chain": lnz.crf.Chain(5),
    "tree": lnz.crf.Tree([-1, 0, 0, 1, -1]),
    "grid": lnz.crf.Grid((2, 3), [(0, 1), (1, -1), (-1, 0), (1, 2)]),
    "complete": lnz.crf.Graph.complete(4),
    "factors": lnz.crf.Graph(5, [(0, 1), (3, 2)], factors=[(4,), (2, 0, 4), (1, 2), (0, 1, 3)], groups=[1, 1]),
}
OBJECTIVES = {
    "exact": lnz.crf.Likelihood(),
    "apart": lnz.crf.Piecewise(),
    "inside": lnz.crf.Piecewise(unaries="inside"),
    "shared": lnz.crf.Piecewise(unaries="shared"),
    "pseudo": lnz.crf.PseudoLikelihood(),
    "pseudo apart": lnz.crf.PiecewisePseudoLikelihood(),
    "pseudo shared": lnz.crf.PiecewisePseudoLikelihood(unaries="shared"),
}


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
        states[:, list(nodes)] = listing.states(range(K), len(nodes))
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


@jax.jit
def everything(field, y):
    """Value and gradient of every objective, and the gaps of both bounds."""
    found = {name: eqx.filter_value_and_grad(lambda f, o=o: o.loss(f, y))(field) for name, o in OBJECTIVES.items()}
    return found, [
        lnz.crf.piecewise_gap(field, unaries=unaries, route=lnz.routes.Elimination()) for unaries in ("apart", "shared")
    ]


def possible(structure, rng, hard, mask):
    """A field where labels y are possible and what is masked is NaN; its tables, and y."""
    y, tables = rng.integers(0, K, structure.nodes), random_tables(structure, rng, hard)
    for table, scope in zip(tables, scopes_of(structure), strict=True):
        table[tuple(y[list(scope)])] = rng.normal()
        if not mask[list(scope)].all():
            table[...] = np.nan
    labels = jnp.asarray(np.where(mask, y, -100).reshape(structure.shape))
    return field_of(structure, tables, mask), tables, y, labels


def check_gradients(structure):
    rng = np.random.default_rng(7)
    n, scopes = structure.nodes, scopes_of(structure)
    numbers = [int(f) for numbers in structure.by_arity for f in numbers]
    for share, hard in ((1.0, 0.2), (0.7, 0.2), (0.7, 0.0)):
        mask = rng.random(n) < share
        field, tables, y, labels = possible(structure, rng, hard, mask)
        for name, (value, gradient) in everything(field, labels)[0].items():
            want, tables_want = value_and_gradient(structure, tables, name, y, mask)
            assert float(value) == pytest.approx(want, abs=1e-9), name
            of_factors = dict(zip(numbers, itertools.chain(*gradient.higher), strict=True))
            got = [*gradient.unary.reshape(n, K), *gradient.pairwise, *(of_factors[f] for f in range(len(numbers)))]
            for table, table_want, scope in zip(got, tables_want, scopes, strict=True):
                if mask[list(scope)].all():
                    np.testing.assert_allclose(table, table_want, atol=1e-10, err_msg=f"{name} {scope}")
                else:
                    assert np.isfinite(table).all()


SMALL = lnz.crf.Graph(5, [(0, 1), (3, 2), (1, 2)], factors=[(4,), (2, 0, 4)])


def test_the_gradient_of_every_objective_is_its_marginals_less_indicators():
    check_gradients(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
def test_the_gradients_on_every_structure(name):
    check_gradients(STRUCTURES[name])


def test_the_gap_is_what_pieces_lose_and_nothing_where_they_share_no_node():
    rng = np.random.default_rng(2)

    def asked(mask):
        field, _, _, labels = possible(SMALL, rng, 0.0, np.array(mask, bool))
        found, gaps = everything(field, labels)
        for unaries, gap in zip(("apart", "shared"), gaps, strict=True):
            assert float(gap) == pytest.approx(float(found[unaries][0] - found["exact"][0]), abs=1e-9)
        return map(float, gaps)

    assert min(asked([1, 1, 1, 1, 1])) > 0.5
    apart, shared = asked([1, 1, 0, 1, 0])  # one edge, and one node alone
    assert apart > 0.1
    assert abs(shared) < 1e-9
    assert max(map(abs, asked([1, 0, 0, 1, 0]))) < 1e-9  # no edge
    with pytest.raises(ValueError, match="bound"):
        lnz.crf.piecewise_gap(lnz.RandomField(lnz.crf.Chain(2), np.zeros((2, 2))), unaries="inside")


def test_labels_that_are_impossible_or_wrong():
    rng, whole = np.random.default_rng(3), np.ones(5, bool)
    field, tables, y, labels = possible(SMALL, rng, 0.0, whole)
    tables[5][y[0], y[1]] = -np.inf
    for name, (value, gradient) in everything(field_of(SMALL, tables, whole), labels)[0].items():
        assert value == jnp.inf, name
        assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradient)), name
    wrong = labels.at[1].set(K)
    for name, (value, _) in everything(field, wrong)[0].items():
        assert jnp.isnan(value), name
    for objective in (*OBJECTIVES.values(), lnz.crf.SampledLikelihood()):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 2\]"):
            objective.loss(field, wrong, key=jax.random.key(0))
    with pytest.raises(ValueError, match="random key"):
        lnz.crf.SampledLikelihood().loss(field, labels)
    for build in (lambda: lnz.crf.Piecewise(unaries="in"), lambda: lnz.crf.PiecewisePseudoLikelihood(unaries="in")):
        with pytest.raises(ValueError, match="unaries must be"):
            build()
    for build in (lambda: lnz.crf.SampledLikelihood(sweeps=0), lambda: lnz.crf.UnrolledMeanField(0)):
        with pytest.raises(ValueError, match="at least 1"):
            build()


@pytest.mark.parametrize("name", STRUCTURES)
def test_pieces_bound_the_whole(name):
    """Σ_a log Z_a ≥ log Z, so that a piecewise loss is at least the negative log-likelihood (T2): 60 random fields a structure."""
    structure, rng, count = STRUCTURES[name], np.random.default_rng([1, *name.encode()]), 60
    n, scopes = structure.nodes, scopes_of(structure)
    states = listing.states(range(K), n)
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
        return [lnz.crf.Piecewise(unaries=u).loss(field, y.reshape(structure.shape)) for u in ("apart", "shared")]

    given = [jnp.asarray(t) for t in tables], jnp.asarray(states[chosen])
    apart, shared = jax.jit(jax.vmap(asked))(*given)
    assert (apart >= nll - 1e-9).all()
    assert (shared >= nll - 1e-9).all()
    assert (np.asarray(apart) > nll + 0.1).any()


def test_chains_with_any_mask_are_fields():
    """A chain's objectives are those of the nodes that exist: holes that link, and holes that cut."""
    rng, t = np.random.default_rng(3), 6
    emissions, pairs, ends = rng.normal(size=(t, K)), rng.normal(size=(t - 1, K, K)), rng.normal(size=(2, K))
    mask, y = np.array([False, True, True, False, True, False]), np.array([0, 2, 1, 0, 0, 0])
    names, exists = ["inside", "apart", "pseudo"], np.ones(3, bool)
    link = [*(emissions[mask] + np.array([ends[0], 0 * ends[0], ends[1]])), *pairs[[1, 3]]]
    cut = [*(emissions[mask] + np.array([ends[0], ends[1], ends[0] + ends[1]])), pairs[1]]
    cases = {"link": (lnz.crf.Chain(3), link), "cut": (lnz.crf.Graph(3, [(0, 1)]), cut)}
    for holes, (structure, tables) in cases.items():

        @jax.jit
        def asked(mask, holes=holes):
            chain = lnz.LinearChain(emissions, pairs, mask=mask, start=ends[0], end=ends[1], holes=holes)
            return [OBJECTIVES[name].loss(chain, jnp.where(mask, y, -100)) for name in names]

        for name, value in zip(names, asked(mask), strict=True):
            want, _ = value_and_gradient(structure, tables, name, y[mask], exists)
            assert float(value) == pytest.approx(want, abs=1e-10), (holes, name)


def test_sampled_gradients_have_the_law_that_their_chains_have():
    """Persistent chains that start at exact samples: the mean gradient is μ - onehot. CD starts at the labels."""
    structure, rng, count = lnz.crf.Grid((2, 2)), np.random.default_rng(4), 20_000
    mask = np.array([True, True, True, False])
    field, tables, y, labels = possible(structure, rng, 0.0, mask)
    states = np.pad(listing.states(range(K), 3), ((0, 0), (0, 1)))
    used = [(t, list(s)) for t, s in zip(tables, scopes_of(structure), strict=True) if mask[list(s)].all()]
    p = np.exp(sum(t[tuple(states[:, s].T)] for t, s in used))
    chains = jnp.asarray(states[rng.choice(len(p), count, p=p / p.sum())].reshape(count, 2, 2))
    objective = lnz.crf.SampledLikelihood(sweeps=2, samples=3)

    @jax.jit
    def asked(field, chains, key):
        moved = objective.moved(field, chains, key)
        gradient = eqx.filter_grad(lambda f: objective.loss(f, labels, chains=moved))(field)
        from_labels = jnp.broadcast_to(jnp.where(mask.reshape(2, 2), labels, 0), (3, 2, 2))
        same = objective.loss(field, labels, chains=objective.moved(field, from_labels, key))
        return moved, gradient, objective.loss(field, labels, key=key), same

    moved, gradient, loss, same = asked(field, chains, jax.random.key(2))
    _, want = value_and_gradient(structure, tables, "exact", y, mask)
    assert (np.asarray(moved)[:, 1, 1] == 0).all()
    assert (np.asarray(moved) != np.asarray(chains)).mean() > 0.1
    for got, table, scope in zip(
        [*gradient.unary.reshape(4, K), *gradient.pairwise], want, scopes_of(structure), strict=True
    ):
        if mask[list(scope)].all():
            np.testing.assert_allclose(got, table, atol=5 * 0.5 / np.sqrt(count))
    assert float(loss) == float(same)


def test_persistent_chains_of_a_chain_with_holes_stay_in_its_own_order():
    mask = jnp.asarray([True, False, True])
    chain = lnz.LinearChain(np.array([[9.0, 0], [0, 0], [0, 9.0]]), np.zeros((2, 2)), mask=mask)
    objective = lnz.crf.SampledLikelihood()
    moved = objective.moved(chain, jnp.ones((50, 3), int), jax.random.key(0))
    assert np.asarray(moved).mean(0) == pytest.approx([0, 0, 1], abs=0.05)
    assert float(objective.loss(chain, jnp.asarray([0, -1, 1]), chains=jnp.asarray([[0, 0, 1]]))) == 0


def test_unrolled_mean_field_is_the_update_so_many_times():
    structure, rng = STRUCTURES["factors"], np.random.default_rng(5)
    tables, y = random_tables(structure, rng), rng.integers(0, K, 5)
    q = np.stack([np.exp(t) / np.exp(t).sum() for t in tables[:5]])
    for _ in range(3):
        logits = np.stack(tables[:5])
        for table, scope in zip(tables[5:], scopes_of(structure)[5:], strict=True):
            for axis, node in enumerate(scope):
                mean = np.moveaxis(table, axis, -1)
                for other in (i for a, i in enumerate(scope) if a != axis):
                    mean = np.tensordot(q[other], mean, 1)
                logits[node] += mean
        q = np.exp(logits - logits.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    loss = jax.jit(lambda f, y: lnz.crf.UnrolledMeanField(3).loss(f, y))(field_of(structure, tables), jnp.asarray(y))
    assert float(loss) == pytest.approx(-np.log(q[np.arange(5), y]).sum(), abs=1e-9)
