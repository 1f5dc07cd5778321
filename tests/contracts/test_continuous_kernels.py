"""Hamiltonian kernels leave the law as it is and reach it, on the line and in boxes; the unadjusted one has the bias that it says."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz.kernels._continuous import from_reals, to_reals
from lnz.testing._sums import p_value

CHAINS, STEPS, SURE = 2048, 30, 1e-6
KERNELS = {"hmc": lnz.kernels.HamiltonianMonteCarlo(0.25, leapfrogs=4), "nuts": lnz.kernels.NUTS(0.25, doublings=3)}
# Entries in an interval, above a limit, below one, and free, in states of shape (2, 2).
BOX = lnz.Box([[-1.0, 0.5], [-np.inf, -np.inf]], [[2.0, np.inf], [1.0, np.inf]])


def energy():
    def of(theta, x):
        (a, b), (c, d) = x
        return theta[0] * a + jnp.sin(3 * a) + theta[1] * b**2 + (c + 1) ** 2 + theta[2] * (d**2 - 1) ** 2 - 0.3 * d

    return lnz.FunctionEnergy(jax.tree_util.Partial(of, jnp.asarray([1.2, 0.7, 0.5])), BOX)


def entry_laws():
    """The four independent entries: points, and the distribution function at them."""
    log_weights = [
        (-1, 2, lambda x: -1.2 * x - np.sin(3 * x)),
        (0.5, 8, lambda x: -0.7 * x**2),
        (-8, 1, lambda x: -((x + 1) ** 2)),
        (-5, 5, lambda x: -0.5 * (x**2 - 1) ** 2 + 0.3 * x),
    ]
    for low, high, log_weight in log_weights:
        x = np.linspace(low, high, 8001)
        density = np.exp(log_weight(x))
        cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
        yield x, cdf / cdf[-1]


@functools.cache
def moved(name):
    rng = np.random.default_rng(3)
    start = np.stack([np.interp(rng.uniform(size=CHAINS), cdf, x) for x, cdf in entry_laws()], 1).reshape(-1, 2, 2)
    far = np.broadcast_to([[0.5, 3.0], [0.9, -1.0]], start.shape)
    both = jnp.asarray(np.concatenate([start, far]))

    def run(energy, key):
        def body(carry, inputs):
            i, key = inputs
            v = KERNELS[name].step(energy, key, carry[0])[0]
            return (v, jnp.where(i == 2, v, carry[1])), None

        return jax.lax.scan(body, (both, both), (jnp.arange(STEPS), jax.random.split(key, STEPS)))[0]

    last, third = jax.jit(run)(energy(), jax.random.key(8))
    return np.asarray(third[:CHAINS]), np.asarray(last[CHAINS:])


@pytest.mark.parametrize("name", ["hmc", pytest.param("nuts", marks=pytest.mark.slow)])
def test_the_law_stays_and_is_reached(name):
    for v in moved(name):
        BOX.validate(v, batch=True)
        for column, (x, cdf) in zip(v.reshape(-1, 4).T, entry_laws(), strict=True):
            counts = np.bincount(np.minimum((np.interp(column, x, cdf) * 20).astype(int), 19), minlength=20)
            assert p_value(counts, np.ones(20)) > SURE


def mapped(x):
    u = to_reals(BOX, x)
    return u, from_reals(BOX, u), jax.jacfwd(lambda u: from_reals(BOX, u.reshape(2, 2))[0].reshape(-1))(u.reshape(-1))


def test_the_map_of_a_box_and_its_volume():
    x = jnp.asarray([[0.3, 2.5], [-4.0, 7.0]])
    _u, (back, volume), jacobian = jax.jit(mapped)(x)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    np.testing.assert_allclose(volume, np.linalg.slogdet(jacobian)[1], rtol=1e-12)
    assert np.isfinite(jax.jit(mapped)(jnp.asarray([[2.0, 0.5], [1.0, 0.0]]))[0]).all()


def test_the_bias_of_the_unadjusted_kernel_is_what_it_says(key):
    normal = lnz.Gaussian([1.0], [4.0])
    v = np.asarray(lnz.kernels.run_chains(normal, lnz.kernels.UnadjustedLangevin(0.2), jnp.ones((20000, 1)), key, 60))
    biased = 1 / (4 * (1 - 0.2 * 4 / 2))
    assert abs(v.var() / biased - 1) < 6 * np.sqrt(2 / 20000)
    assert abs(v.mean() - 1) < 6 * np.sqrt(biased / 20000)


def test_step_sizes_are_fitted_apart(key):
    narrow = lnz.Gaussian([0.0, 3.0], [400.0, 100.0])
    kernel, v = lnz.kernels.adapted(narrow, lnz.kernels.Langevin(1.0), key, jnp.zeros((64, 2)))
    assert kernel == lnz.kernels.Langevin(kernel.step_size)
    acceptance = jax.jit(lambda v: kernel.step(narrow, key, v))(v)[1]["acceptance"]
    assert abs(float(acceptance) - 0.574) < 0.15
    with pytest.raises(ValueError, match="step size must be above 0"):
        lnz.kernels.adapted(narrow, lnz.kernels.Langevin(0.0), key, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="no step size"):
        lnz.kernels.adapted(narrow, lnz.kernels.UnadjustedLangevin(0.1), key, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="needs states of shape"):
        lnz.kernels.adapted(narrow, lnz.kernels.Langevin(0.1), key, jnp.zeros((4, 3)))


@pytest.mark.parametrize("bad", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_step_sizes_are_refused(bad):
    normal = lnz.Gaussian([1.0], [4.0])
    for kind in (
        lnz.kernels.HamiltonianMonteCarlo,
        lnz.kernels.NUTS,
        lnz.kernels.UnadjustedLangevin,
        lnz.kernels.Langevin,
    ):
        assert "step size must be above 0" in str(kind(bad).unsupported_reason(normal))


def test_what_the_kernels_refuse():
    spins = lnz.Ising.lattice((3,), 0.2, periodic=False)
    assert "leapfrogs" in str(
        lnz.kernels.HamiltonianMonteCarlo(leapfrogs=0).unsupported_reason(lnz.Gaussian([1.0], [4.0]))
    )
    assert "doublings" in str(lnz.kernels.NUTS(doublings=0).unsupported_reason(lnz.Gaussian([1.0], [4.0])))
    assert "Real space" in str(lnz.kernels.NUTS().unsupported_reason(spins))
    assert "leave a Box" in str(lnz.kernels.UnadjustedLangevin().unsupported_reason(energy()))


def test_a_chain_that_reaches_no_energy_stops():
    steep = lnz.FunctionEnergy(lambda x: x[0] ** 4, lnz.Real(1))
    with pytest.raises(FloatingPointError, match=r"chain 1 .* the state"):
        lnz.kernels.run_chains(
            steep, lnz.kernels.UnadjustedLangevin(0.05), jnp.asarray([[0.0], [50.0]]), jax.random.key(0), 12
        )
