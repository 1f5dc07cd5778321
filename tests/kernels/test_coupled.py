"""Coupled chains: their mean is the exact gradient whatever the burn-in, they follow the kernel's law, and they stay together."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lnz
from contracts.energies import named, potts_sparse
from lnz.kernels._coupled import NotMet, coupled_step


def gradient_of(case):
    def f(v):
        slope = eqx.filter_grad(lambda energy: -lnz.capabilities.free_energy_of(energy)(v))(case.energy)
        return ravel_pytree(eqx.filter(slope, eqx.is_inexact_array))[0]

    return f


CASES = [named("rbm"), pytest.param(named("ising sparse"), marks=pytest.mark.slow), potts_sparse("potts sparse", False)]


@pytest.mark.parametrize("case", CASES, ids=["rbm", "ising", "potts"])
def test_the_mean_of_many_is_the_exact_gradient(case, key):
    found = lnz.kernels.unbiased_expectation(
        case.energy, gradient_of(case), key, burn_in=1, length=2, estimates=4000, batch=2000
    )
    z = (np.asarray(found.value) - case.gradient(case.flat)) / np.maximum(found.standard_error, 1e-12)
    assert np.abs(z).max() < 5, z
    assert found.diagnostics["meeting_times"].shape == (4000,)
    assert found.diagnostics["meeting_times"].min() >= 1
    assert float(found.diagnostics["moves"]) >= 2 * 4000
    assert "coupled chains (4,000 pairs, Gibbs)" in str(found)


@functools.cache
def wells():
    """Two wells of a normal law's width, and the exact mean of x and x²."""
    energy = lnz.FunctionEnergy(
        jax.tree_util.Partial(lambda t, x: t[0] * (x[0] ** 2 - 1) ** 2 + t[1] * x[0], jnp.asarray([0.6, 0.4])),
        lnz.Real(1),
    )
    x = np.linspace(-6, 6, 4001)
    p = np.exp(-0.6 * (x**2 - 1) ** 2 - 0.4 * x)
    return energy, np.array([p @ x, p @ x**2]) / p.sum()


def test_langevin_chains_meet_by_reflection(key):
    energy, exact = wells()
    based = Based(energy)
    f = lambda x: jnp.concatenate([x, x**2])  # noqa: E731
    found = lnz.kernels.unbiased_expectation(
        based, f, key, kernel=lnz.kernels.Langevin(0.05), burn_in=2, length=5, estimates=4000, batch=4000
    )
    z = (np.asarray(found.value) - exact) / found.standard_error
    assert np.abs(z).max() < 5, z
    # Each of the two chains moves by the kernel's own law: from 0.3 and -0.2, against BlackJAX's moves.
    x, y = jnp.full((20000, 1), 0.3), jnp.full((20000, 1), -0.2)

    def moves(x, y):
        pair = coupled_step(based, lnz.kernels.Langevin(0.05), key, x, y)
        own = lnz.kernels.Langevin(0.05).step(based, jax.random.key(9), jnp.concatenate([x, y]))[0]
        return pair, (own[:20000], own[20000:]), coupled_step(based, lnz.kernels.Langevin(0.05), key, x, x)

    pair, owns, same = jax.tree.map(np.asarray, jax.jit(moves)(x, y))
    for start, moved, own in zip((x, y), pair, owns, strict=True):
        for power in (1, 2):
            a, b = moved**power, own**power
            assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var()) / 20000)
        assert abs(np.mean(moved == start) - np.mean(own == start)) < 0.02
    assert 0.05 < np.mean(pair[0] == pair[1]) < 0.9
    assert (same[0] == same[1]).all()


class Based(lnz.capabilities.Annealable):
    """The energy with a normal base to start from."""

    energy: lnz.Energy

    @property
    def space(self):
        return self.energy.space

    def __call__(self, x):
        return self.energy(x)

    def base(self):
        return lnz.Gaussian([1.2], [16.0])


def test_what_is_refused(key):
    energy, _ = wells()
    ring = lnz.Ising.lattice((4,), 2.5, periodic=True)
    f = lambda s: s[0]  # noqa: E731
    with pytest.raises(ValueError, match="never meet"):
        lnz.kernels.unbiased_expectation(energy, f, key, kernel=lnz.kernels.HamiltonianMonteCarlo())
    with pytest.raises(ValueError, match="Gibbs sweeps need"):
        lnz.kernels.unbiased_expectation(energy, f, key, kernel=lnz.kernels.Gibbs())
    with pytest.raises(ValueError, match="length must be"):
        lnz.kernels.unbiased_expectation(ring, f, key, length=0)
    with pytest.raises(ValueError, match="max_moves"):
        lnz.kernels.unbiased_expectation(ring, f, key, max_moves=5)
    with pytest.raises(NotMet, match="had not met after 3 moves"):
        lnz.kernels.unbiased_expectation(ring, f, key, burn_in=0, length=2, max_moves=3, estimates=50)


@pytest.mark.slow
def test_a_function_without_a_value_is_an_error(key):
    weak = lnz.Ising.lattice((4,), 0.2, periodic=True)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        lnz.kernels.unbiased_expectation(weak, lambda s: s[0] / 0.0, key, burn_in=0, length=2, estimates=2)
