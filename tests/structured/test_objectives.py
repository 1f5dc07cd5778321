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


@eqx.filter_jit
def every_objective(field, y):
    return {name: eqx.filter_value_and_grad(lambda f, o=o: o.loss(f, y))(field) for name, o in OBJECTIVES.items()}


def compared(field, tables, y, mask, structure):
    n, e = structure.nodes, len(structure.edges)
    labels = np.where(mask, y, -100).reshape(structure.shape)
    for name, (value, gradient) in every_objective(field, jnp.asarray(labels)).items():
        want, tables_want = value_and_gradient(structure, tables, name, y, mask)
        assert float(value) == pytest.approx(want, abs=1e-9), name
        got = [*gradient.unary.reshape(n, K), *gradient.pairwise]
        found = dict(
            zip((int(f) for fs in structure.by_arity for f in fs), itertools.chain(*gradient.higher), strict=True)
        )
        got += [found[f] for f in range(len(structure.factors))]
        scopes = scopes_of(structure)
        for a in range(n + e, len(scopes)) if mask.all() else ():
            np.testing.assert_allclose(got[a], tables_want[a], atol=1e-10, err_msg=f"{name} {scopes[a]}")
        for a in range(n + e):
            if all(mask[list(scopes[a])]):
                np.testing.assert_allclose(got[a], tables_want[a], atol=1e-10, err_msg=f"{name} {scopes[a]}")


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_gradient_of_every_objective_is_its_marginals_less_indicators(name):
    structure, rng = STRUCTURES[name], np.random.default_rng(7)
    n = structure.nodes
    y = rng.integers(0, K, n)
    for hard in (0.0, 0.2):
        tables = random_tables(structure, rng, hard)
        for table, scope in zip(tables, scopes_of(structure), strict=True):
            table[tuple(y[list(scope)])] = rng.normal()  # the labels are possible
        compared(field_of(structure, tables), tables, y, np.ones(n, bool), structure)
