"""What chains have in common: swaps between the rungs of a ladder, and resampling by weights."""

import jax
import jax.numpy as jnp
import numpy as np

from lnz.kernels._exchange import swap_neighbours
from lnz.kernels._resampling import systematic

KEY = jax.random.key(5)


def test_systematic_resampling_keeps_every_share():
    log_w = np.random.default_rng(0).normal(size=(3, 40)) * 2
    log_w[1, :20] = -np.inf
    share = np.exp(log_w) / np.exp(log_w).sum(axis=1, keepdims=True)
    for seed in range(5):
        kept = np.asarray(systematic(jax.random.key(seed), jnp.asarray(log_w)))
        counts = np.stack([np.bincount(row, minlength=40) for row in kept])
        assert (np.abs(counts - 40 * share) < 1 + 1e-9).all()
        assert not counts[1, :20].any()


def test_resampling_keeps_the_counts():
    weights = jnp.asarray([0.0, 3.0, 0.5, 1.5, 0.0, 1.0, 0.0])
    counts = np.stack([np.bincount(systematic(k, jnp.log(weights)), minlength=7) for k in jax.random.split(KEY, 40)])
    expected = 7 * np.asarray(weights) / 6
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected)).all()
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=0.35)


def test_swaps_are_between_neighbours_whose_turn_it_is():
    """Certain swaps, impossible ones and those of an impossible start, of five rungs: even pairs, then odd pairs."""
    replicas = (jnp.arange(10).reshape(5, 2), jnp.arange(5.0)[:, None, None] * jnp.ones((5, 2, 3)))
    ratios = jnp.asarray([[1.0, -jnp.inf], [1.0, 1.0], [jnp.nan, 1.0], [1.0, -jnp.inf]])
    (even, rung), turn = swap_neighbours(KEY, replicas, ratios, jnp.asarray(4))
    assert turn.tolist() == [True, False, True, False]
    assert even.tolist() == [[2, 1], [0, 3], [4, 7], [6, 5], [8, 9]]
    assert rung[:, 1, 2].tolist() == [0, 1, 3, 2, 4]
    (odd, _), turn = swap_neighbours(KEY, replicas, ratios, jnp.asarray(7))
    assert turn.tolist() == [False, True, False, True]
    assert odd.tolist() == [[0, 1], [4, 5], [2, 3], [8, 7], [6, 9]]


def test_swaps_are_as_frequent_as_their_ratio():
    replicas, n = jnp.stack([jnp.zeros(4000), jnp.ones(4000)]), 4000
    swapped, _ = swap_neighbours(KEY, replicas, jnp.full((1, n), np.log(0.3)), jnp.asarray(0))
    assert abs(float(swapped[0].mean()) - 0.3) < 4 * np.sqrt(0.21 / n)
    np.testing.assert_array_equal(swapped[0] + swapped[1], 1)
