"""Semi-Markov chains against every segmentation listed in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz

T, L, K = 6, 3, 2


@functools.cache
def segmentations(n):
    """Every way to cut n nodes into labelled segments of at most L: tuples of (end, duration, label)."""
    if n == 0:
        return [()]
    return [(*rest, (n - 1, d, k)) for d in range(1, min(L, n) + 1) for rest in segmentations(n - d) for k in range(K)]


def listed(segments, transitions, n, start, end):
    """States and log-weights, without the library's help."""
    states, scores = [], []
    for parts in segmentations(n):
        code, score, last = np.zeros(T, int), 0.0, None
        for t, d, k in parts:
            code[t] = 1 + (d - 1) * K + k
            score += segments[t, d - 1, k] + (start[k] if last is None else transitions[last, k])
            last = k
        states.append(code)
        scores.append(score + (0 if last is None else end[last]))
    return np.array(states), np.array(scores)


def random_case(rng):
    scale = rng.choice([0.3, 1.0, 5.0, 40.0])
    segments, transitions = rng.normal(size=(T, L, K)) * scale, rng.normal(size=(K, K)) * scale
    start, end, n = rng.normal(size=K), rng.normal(size=K), int(rng.integers(0, T + 1))
    hard = rng.choice([0.0, 0.2])
    for x in (segments, transitions, start, end):
        x[rng.random(x.shape) < hard] = -np.inf
    used = segments.copy()
    unused = (np.arange(T)[:, None] >= n) | (np.arange(1, L + 1) > np.arange(1, T + 1)[:, None])
    segments[unused] = rng.choice([np.nan, np.inf, -100.0], size=(unused.sum(), K))
    return (segments, transitions, start, end, np.int32(n)), used


@pytest.fixture(scope="module")
def cases():
    """Chains with junk where nothing is, their lists, and what the library says of a batch of them."""
    rng = np.random.default_rng(2)
    drawn = [random_case(rng) for _ in range(60)]

    def one(tables, n, state, key):
        def chain(tables):
            segments, transitions, start, end = tables
            return lnz.SemiMarkovChain(segments, transitions, n, start=start, end=end)

        log_z, slopes = jax.value_and_grad(lambda tables: lnz.log_partition(chain(tables)).value)(tables)
        crf = chain(tables)
        samples = lnz.exact_samples(crf, key, 200)
        return log_z, slopes, crf(state), lnz.map_state(crf), samples, lnz.crf.negative_log_likelihood(crf, state)

    lists = [listed(used, tables[1], tables[4], *tables[2:4]) for tables, used in drawn]
    states = np.array([codes[rng.integers(len(codes))] for codes, _ in lists])
    stacked = [np.stack(x) for x in zip(*(tables for tables, _ in drawn), strict=True)]
    keys = jax.random.split(jax.random.key(4), len(drawn))
    given = jax.tree.map(jnp.asarray, (tuple(stacked[:4]), stacked[4], states))
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(*given, keys))
    return [
        (tables, codes, scores, states[i], jax.tree.map(lambda x, i=i: x[i], found))
        for i, ((tables, _), (codes, scores)) in enumerate(zip(drawn, lists, strict=True))
    ]


def total(scores):
    top = scores.max()
    return -np.inf if top == -np.inf else top + np.log(np.exp(scores - top).sum())


def test_log_z_and_marginals(cases):
    impossible = 0
    for _, codes, scores, _, (log_z, slopes, *_) in cases:
        truth = total(scores)
        np.testing.assert_allclose(log_z, truth, rtol=1e-12, atol=1e-12)
        impossible += truth == -np.inf
        p = np.exp(scores - truth) if truth > -np.inf else np.zeros(len(scores))
        wanted = [np.zeros((T, L, K)), np.zeros((K, K)), np.zeros(K), np.zeros(K)]
        for code, share in zip(codes, p, strict=True):
            ends = np.flatnonzero(code)
            d, k = (code[ends] - 1) // K, (code[ends] - 1) % K
            np.add.at(wanted[0], (ends, d, k), share)
            np.add.at(wanted[1], (k[:-1], k[1:]), share)
            if len(k):
                wanted[2][k[0]] += share
                wanted[3][k[-1]] += share
        for found, expected in zip(slopes, wanted, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)
    assert 0 < impossible < len(cases) / 2


def test_energies_and_decoding(cases):
    for _, codes, scores, state, (_, _, energy, best, _, nll) in cases:
        score = scores[(codes == state).all(1)][0]
        np.testing.assert_allclose(energy, -score, rtol=1e-12)
        if scores.max() > -np.inf:
            np.testing.assert_allclose(nll, total(scores) - score, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(scores[(codes == best).all(1)][0], scores.max(), rtol=1e-12)


def test_samples(cases):
    """Standardised counts of segmentations are near the normal law, and the impossible never comes."""
    z = []
    for _, codes, scores, _, (_, _, _, _, samples, _) in cases:
        if scores.max() == -np.inf:
            continue
        p = np.exp(scores - total(scores))
        base = (L * K + 1) ** np.arange(T)
        chances = dict(zip((codes @ base).tolist(), p, strict=True))
        drawn = samples @ base
        assert all(chances[c] > 0 for c in drawn.tolist())
        z += [
            ((drawn == c).sum() - 200 * q) / np.sqrt(200 * q * (1 - q)) for c, q in chances.items() if 0.05 < q < 0.95
        ]
    z = np.array(z)
    assert len(z) > 50
    assert abs(z).max() < 5
    assert abs((z**2).mean() - 1) < 6 * np.sqrt(2 / len(z))


def test_what_is_no_segmentation_is_impossible():
    rng = np.random.default_rng(0)
    chain = lnz.SemiMarkovChain(rng.normal(size=(3, 2, 2)), rng.normal(size=(2, 2)), 2)
    states = np.array(list(np.ndindex(5, 5, 5)), np.int32)
    energies = jax.jit(jax.vmap(chain))(jnp.asarray(states))
    possible = states[np.isfinite(energies)].tolist()
    assert possible == [[0, 3, 0], [0, 4, 0], [1, 1, 0], [1, 2, 0], [2, 1, 0], [2, 2, 0]]
    assert np.isinf(energies[states.tolist().index([0, 0, 0])])
    for state in possible:
        assert chain.encode(*chain.decode(state)).tolist() == state


def test_bad_input():
    zeros, table = jnp.zeros((3, 2, 2)), jnp.zeros((2, 2))
    chain = lnz.SemiMarkovChain(zeros, table)
    with pytest.raises(ValueError, match=r"shape \(T, L, K\)"):
        lnz.SemiMarkovChain(jnp.zeros((1, 3, 2, 2)), table)
    with pytest.raises(ValueError, match="transitions of 2 labels must have shape"):
        lnz.SemiMarkovChain(zeros, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"a length must be in \[0, 3\], the number of nodes of the array, but is 4"):
        lnz.SemiMarkovChain(zeros, table, 4)
    with pytest.raises(ValueError, match="segments hold nan at"):
        lnz.SemiMarkovChain(zeros.at[2, 1, 0].set(jnp.nan), table)
    with pytest.raises(ValueError, match="the durations add up to 2, but the sequence has 3 nodes"):
        chain.encode([1, 1], [0, 0])
    with pytest.raises(ValueError, match="duration from 1 to 2"):
        chain.encode([3], [0])
    with pytest.raises(ValueError, match="n best segmentations"):
        lnz.crf.n_best(chain, 2)
    impossible = lnz.SemiMarkovChain(jnp.full((3, 2, 2), -jnp.inf), table)
    with pytest.raises(ValueError, match="no segmentation is possible"):
        lnz.map_state(impossible)
    with pytest.raises(ValueError, match="SemiMarkov does not support LinearChain"):
        lnz.log_partition(lnz.LinearChain(jnp.zeros((2, 2)), table), route=lnz.routes.SemiMarkov())


def test_lengths_beyond_the_array_give_nan_where_they_are_traced():
    value = jax.jit(lambda n: lnz.log_partition(lnz.SemiMarkovChain(jnp.zeros((3, 2, 2)), jnp.zeros((2, 2)), n)).value)
    assert np.isnan(value(4))
    assert value(0) == 0
