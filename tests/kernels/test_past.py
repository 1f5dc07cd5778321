"""Coupling from the past: samples of the exact law, whatever the size of the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.random import fast_key
from lnz.kernels._coupling_from_the_past import chains_since

FIELDS = np.array([[0.3, -0.2, 0.0], [-0.5, 0.1, 0.4]])
CASES = {
    "checkerboard": lnz.Ising.lattice((2, 3), 0.5 * np.array([1.0, 0.6]).reshape(2, 1, 1), FIELDS, periodic=False),
    "classes": lnz.Ising.sparse(
        np.array([[0, 1], [1, 2], [0, 2], [2, 3]]), np.array([0.9, 0.2, 0.5, 0.7]), np.array([0.2, -0.4, 0.0, 0.3]), n=4
    ),
}


def states_and_law(energy):
    sites = energy.couplings.sites
    size = int(np.prod(sites))
    listed = 2 * (np.arange(2**size)[:, None] >> np.arange(size) & 1) - 1
    energies = np.asarray(jax.vmap(energy)(listed.reshape(-1, *sites).astype(np.int8)), np.float64)
    return energies, np.exp(-energies - np.logaddexp.reduce(-energies))


def follows(drawn, p, groups=16):
    """χ² of groups of states of about the same probability."""
    n, size = len(drawn), drawn[0].size
    number = (drawn.reshape(n, -1) > 0) @ (1 << np.arange(size))
    order = np.argsort(p)
    group = np.minimum((np.cumsum(p[order]) * groups).astype(int), groups - 1)
    expected = np.bincount(group, p[order] * n, minlength=groups)
    found = np.bincount(group, np.bincount(number, minlength=len(p))[order], minlength=groups)
    there = expected > 0
    freedom = there.sum() - 1
    chi = ((found - expected)[there] ** 2 / expected[there]).sum()
    return chi < freedom + 5 * np.sqrt(2 * freedom) + 5, number


@pytest.mark.parametrize("name", CASES)
def test_samples_have_the_exact_law(name):
    energy, n = CASES[name], 20_000
    energies, p = states_and_law(energy)
    drawn = np.asarray(lnz.kernels.coupling_from_the_past(energy, jax.random.key(7), n))
    assert drawn.shape == (n, *energy.couplings.sites)
    assert set(np.unique(drawn)) == {-1, 1}
    fine, number = follows(drawn, p)
    assert fine
    first, second = (np.asarray(energies[number[i::2]]) for i in (0, 1))  # neighbours are independent
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(n / 2)


def test_an_earlier_start_changes_nothing():
    """Sweeps nearer to now keep their random numbers, so pairs that have met stay where they are, however long ago they started."""
    energy, key = CASES["classes"], fast_key(jax.random.key(3))
    ends = {ago: chains_since(energy, key, jnp.asarray(ago, jnp.int32), 200) for ago in (8, 64, 256)}
    assert int(ends[8][1]) > 0
    assert int(ends[64][1]) == int(ends[256][1]) == 0
    np.testing.assert_array_equal(ends[64][0], ends[256][0])
    same = (np.asarray(ends[8][0]) == np.asarray(ends[256][0])).all(axis=1)
    assert (~same).sum() <= int(ends[8][1])


def test_what_cannot_be_coupled_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="needs couplings of at least 0"):
        lnz.kernels.coupling_from_the_past(lnz.Ising(np.array([[0, -0.1], [-0.1, 0]])), key, 3)
    with pytest.raises(ValueError, match="needs an Ising model"):
        lnz.kernels.coupling_from_the_past(lnz.RBM(visible=3, hidden=2, key=key), key, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="too cold"):
        lnz.kernels.coupling_from_the_past(CASES["classes"], key, 50, max_sweeps=1)
    with pytest.raises(ValueError, match="must be at least 1"):
        lnz.kernels.coupling_from_the_past(CASES["classes"], key, 0)
    with pytest.raises(ValueError, match="being traced"):
        jax.jit(lambda e: lnz.kernels.coupling_from_the_past(e, key, 3))(CASES["classes"])
