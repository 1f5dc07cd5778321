"""Every kernel of the list leaves the distribution of an energy invariant; the biased one is caught by the same test."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import listed, named
from contracts.kernels import BIASED, KERNELS, numbered
from listing import log_sum
from lnz.testing._sums import p_value

CHAINS, SURE = 4096, 1e-6


def attractive() -> lnz.Energy:
    """Spins that every discrete kernel supports, cluster moves among them."""
    rng = np.random.default_rng(3)
    return lnz.Ising.lattice((2, 3), np.abs(rng.normal(size=(2, 2, 3))), rng.normal(size=(2, 3)), periodic=False)


def on_spins(kernel):
    """Counts of the states after one step from the exact distribution, and that distribution."""
    energy = attractive()
    states = listed(energy.space)
    log_weights = -np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(states)))
    chances = np.exp(log_weights - log_sum(log_weights))
    start = jnp.asarray(states[np.random.default_rng(1).choice(len(states), CHAINS, p=chances)])
    moved = jax.jit(lambda key, v: kernel.step(energy, key, v)[0])(jax.random.key(2), start)
    assert (np.asarray(moved) != np.asarray(start)).any(), "a kernel that does nothing is invariant too"
    return np.bincount(numbered(energy.space, np.asarray(moved)), minlength=len(chances)), chances


def on_the_line(kernel):
    """Likewise in 24 cells of equal probability of the double well, after four steps."""
    energy = named("double well").energy
    a, b, c = np.asarray(energy.parameters.args[0])
    x = np.linspace(-5, 5, 4001)
    density = np.exp(-a * (x**2 - b) ** 2 - c * x)
    cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    cdf /= cdf[-1]
    v = jnp.asarray(np.interp(np.random.default_rng(6).uniform(size=CHAINS), cdf, x)[:, None])

    def several(key, v):
        return jax.lax.scan(lambda v, key: (kernel.step(energy, key, v)[0], None), v, jax.random.split(key, 4))[0]

    v = np.asarray(jax.jit(several)(jax.random.key(2), v))
    cells = np.searchsorted(np.interp(np.linspace(0, 1, 25)[1:-1], cdf, x), v[:, 0])
    return np.bincount(cells, minlength=24), np.ones(24)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: type(kernel).__name__)
def test_every_kernel_leaves_the_distribution_invariant(kernel):
    on = on_spins if kernel.unsupported_reason(attractive()) is None else on_the_line
    assert on is on_spins or kernel.unsupported_reason(named("double well").energy) is None
    assert (p_value(*on(kernel)) < SURE) == (type(kernel) in BIASED)
