"""Rounds of growing work, and limits from few heavy weights, in NumPy's time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.annealing.certificate import upper_limit
from lnz.annealing.rounds import rounds_within


def measured(widths, seen):
    """An estimator whose intervals are those, one after the other."""

    def measure(route, key):
        seen.append((route, str(jax.random.key_data(key))))
        half = np.asarray(widths[len(seen) - 1] / 2)
        return lnz.Estimate(np.asarray(1.0), half / 3, 1 - half, 1 + half, "conditional", "given", route.confidence)

    return measure


def test_rounds_grow_until_the_interval_is_narrow():
    seen, start = [], lnz.AnnealedImportanceSampling(temperatures=10, chains=8, confidence=0.98)
    found = rounds_within(measured([3, 1, 0.2, 9], seen), start, jax.random.key(0), within=0.25, max_seconds=60)
    assert [route.temperatures for route, _ in seen] == [10, 40, 160]
    assert [round(1 - route.confidence, 9) for route, _ in seen] == [0.01, 0.005, 0.0025]  # together at most 0.02
    assert len({key for _, key in seen}) == 3
    assert found.confidence == pytest.approx(0.98)
    assert float(found.upper - found.lower) == pytest.approx(0.2)
    assert found.warnings == []


def test_rounds_end_in_time_and_say_so():
    seen = []
    routes = (lnz.SequentialMonteCarlo(), lnz.ParallelTempering(), lnz.AnnealedImportanceSampling(schedule=(0.0, 1.0)))
    for route, name in zip(routes, ("particles", "iterations", "chains"), strict=True):
        seen.clear()
        found = rounds_within(measured([3, 1, 0.2], seen), route, jax.random.key(0), within=0.25, max_seconds=60)
        assert getattr(seen[-1][0], name) == 16 * getattr(route, name)
    found = rounds_within(measured([3], []), routes[0], jax.random.key(0), within=0.25, max_seconds=1e-9)
    assert found.warnings == [
        "the interval is wider than the 0.25 nats asked for: allow more time, or take another route"
    ]
    with pytest.raises(ValueError, match="must be above 0"):
        rounds_within(measured([3], []), routes[0], jax.random.key(0), within=0, max_seconds=1)
    with pytest.raises(ValueError, match="of routes that draw samples, not of Enumeration"):
        lnz.log_partition(lnz.Ising(np.zeros((3, 3))), route=lnz.Enumeration(), within=0.1)


def test_the_upper_limit_holds_for_few_weights_of_a_log_normal_law():
    """log Z = s²/2. The quartiles of 32 weights alone, or their mean alone, are not enough: both miss it in 4 % to 40 % of the runs."""
    rng = np.random.default_rng(0)
    limit = jax.jit(jax.vmap(lambda w: upper_limit(w, confidence=0.99)))
    for s in (0.3, 1.5, 2.5):
        missed = np.asarray(limit(jnp.asarray(s * rng.normal(size=(3000, 32))))) < s**2 / 2
        assert missed.mean() < 0.01 + 4 * np.sqrt(0.01 / 3000), s
    narrow = np.asarray(limit(jnp.asarray(np.tile(0.3 * rng.normal(size=(1, 32)), (3000, 1)))))[0]
    assert narrow < 0.5
    dead = jnp.asarray(np.where(np.arange(32) < 20, -np.inf, 0.3 * rng.normal(size=32)))
    assert np.isfinite(upper_limit(dead))
    assert upper_limit(jnp.full((4,), -np.inf)) == np.inf
