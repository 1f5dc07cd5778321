"""Every question about a chain, against every labelling listed in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from crf.chain_cases import Chain, exists, listed, random_chain, stacked

T, K, BEST = 5, 3, 7


def build(chain, holes):
    return lnz.LinearChain(holes=holes, **chain.arguments())


def everything(chain: Chain, labels, sets, key, holes: str):
    crf = build(chain, holes)
    return {
        "log p": lnz.crf.log_probability(crf, labels),
        "loss": lnz.crf.negative_log_likelihood(crf, labels),
        "partial": lnz.crf.partial_log_probability(crf, sets),
        "nodes": lnz.marginals(crf),
        "edges": lnz.crf.edge_marginals(crf),
        "entropy": lnz.crf.entropy(crf),
        "map": lnz.map_state(crf),
        "mpm": lnz.crf.mpm_state(crf),
        "best": lnz.crf.n_best(crf, BEST),
        "samples": lnz.exact_samples(crf, key, 300),
        "energy": crf(jnp.where(crf.mask, labels, 0)),
    }


@pytest.fixture(scope="module", params=["link", pytest.param("cut", marks=pytest.mark.slow)])
def cases(request):
    holes, n = request.param, 120
    rng = np.random.default_rng(3)
    chains = [random_chain(rng, T, K, own=holes == "cut") for _ in range(n)]
    labels = rng.integers(0, K, size=(n, T))
    labels[~np.stack([exists(c) for c in chains])] = -100
    sets = rng.random((n, T, K)) < 0.7
    keys = jax.random.split(jax.random.key(8), n)
    run = jax.jit(jax.vmap(lambda *a: everything(*a, holes)))
    found = jax.tree.map(np.asarray, run(jax.tree.map(jnp.asarray, stacked(chains)), labels, sets, keys))
    return [
        (c, listed(c, holes), labels[i], sets[i], jax.tree.map(lambda x, i=i: x[i], found))
        for i, c in enumerate(chains)
    ]


def log_p_of(all_of_them, labels, live):
    row = (all_of_them.labels == np.where(live, labels, 0)).all(axis=1)
    return (all_of_them.scores[row][0] - all_of_them.log_z) if all_of_them.log_z > -np.inf else -np.inf


def test_probabilities(cases):
    hard = 0
    for chain, truth, labels, sets, found in cases:
        live = exists(chain)
        wanted = log_p_of(truth, labels, live)
        np.testing.assert_allclose(found["log p"], wanted, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found["loss"], -wanted, rtol=1e-10, atol=1e-10)
        inside = (sets[np.arange(T), truth.labels] | ~live).all(axis=1)
        with np.errstate(divide="ignore"):
            wanted = np.log(truth.p[inside].sum())
        np.testing.assert_allclose(found["partial"], wanted, rtol=1e-9, atol=1e-9)
        assert found["log p"] <= 0
        assert found["partial"] <= 0
        score = truth.scores[(truth.labels == np.where(live, labels, 0)).all(axis=1)][0]
        np.testing.assert_allclose(found["energy"], -score, rtol=1e-12)
        hard += wanted == -np.inf
    assert 0 < hard < len(cases) / 2


def test_marginals_and_entropy(cases):
    for chain, truth, _, _, found in cases:
        live = exists(chain)
        np.testing.assert_allclose(found["nodes"], truth.nodes(K, live), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found["edges"], truth.pairs(K)[1:], rtol=1e-10, atol=1e-10)
        if truth.log_z > -np.inf:
            possible = truth.p > 0
            np.testing.assert_allclose(found["entropy"], -(truth.p[possible] @ np.log(truth.p[possible])), atol=1e-9)
            assert found["entropy"] >= 0


def test_decoding(cases):
    for chain, truth, _, _, found in cases:
        live = exists(chain)
        assert (found["map"][~live] == 0).all()
        if truth.log_z == -np.inf:
            assert (found["best"].log_weights == -np.inf).all()
            continue
        order = np.sort(truth.scores)[::-1]
        np.testing.assert_allclose(log_p_of(truth, found["map"], live), order[0] - truth.log_z, rtol=1e-12, atol=1e-10)
        nodes = truth.nodes(K, live)
        np.testing.assert_allclose(nodes[np.arange(T), found["mpm"]], nodes.max(axis=1), atol=1e-10)
        top = np.full(BEST, -np.inf)
        top[: len(order)] = order[:BEST]
        np.testing.assert_allclose(found["best"].log_weights, top, rtol=1e-10, atol=1e-10)
        rows = [tuple(r) for r, s in zip(found["best"].states, top, strict=True) if s > -np.inf]
        assert len(set(rows)) == len(rows)
        for row, s in zip(rows, top, strict=False):
            np.testing.assert_allclose(log_p_of(truth, np.array(row), live), s - truth.log_z, rtol=1e-10, atol=1e-10)


def test_samples(cases):
    """Pooled over chains, Σ_samples (1[y_t = k] - p) / √(n p (1 - p)) is near the standard normal law; the impossible never comes."""
    scores = []
    for chain, truth, _, _, found in cases:
        live = exists(chain)
        if truth.log_z == -np.inf:
            continue
        samples = found["samples"]
        assert (samples[:, ~live] == 0).all()
        code = samples @ K ** np.arange(T)
        chances = dict(zip((truth.labels @ K ** np.arange(T)).tolist(), truth.p, strict=True))
        assert all(chances[c] > 0 for c in code.tolist())
        for p, c in ((p, c) for c, p in chances.items() if 0.02 < p < 0.98):
            scores.append(((code == c).sum() - 300 * p) / np.sqrt(300 * p * (1 - p)))
    scores = np.array(scores)
    assert len(scores) > 200
    assert abs(scores).max() < 5
    assert abs((scores**2).mean() - 1) < 6 * np.sqrt(2 / len(scores))
