"""Langevin moves in a box, and what kernels refuse. That kernels keep their laws is in the contract suite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import named
from lnz.kernels._kernels import default_kernel


def test_langevin_moves_stay_in_a_box(key):
    energy = lnz.FunctionEnergy(lambda x: -2.0 * x[0], lnz.Box([0.0], [1.0]))
    v = lnz.kernels.run_chains(energy, lnz.kernels.Langevin(step_size=0.05), jnp.full((4000, 1), 0.5), key, 60)
    assert (v >= 0).all()
    assert (v <= 1).all()
    mean = 1 / (1 - np.exp(-2)) - 0.5
    assert abs(float(v.mean()) - mean) < 6 * float(v.std()) / np.sqrt(4000)


def test_kernels_refuse_what_they_cannot_serve():
    mixed = named("product of spaces").energy
    with pytest.raises(ValueError, match="no kernel supports this energy: Gibbs sweeps need an energy with its own"):
        default_kernel(mixed)
    assert "step size must be above 0" in str(
        lnz.kernels.Langevin(step_size=0.0).unsupported_reason(named("double well").energy)
    )
    assert "Langevin moves need a Real space" in str(lnz.kernels.Langevin().unsupported_reason(named("rbm").energy))


def test_the_key_comes_after_the_states_and_the_old_order_warns():
    energy, v, key = lnz.Ising(jnp.zeros((3, 3))), jnp.ones((5, 3)), jax.random.key(0)
    found = lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), v, key, 3)
    with pytest.warns(DeprecationWarning, match="states before the key"):
        again = lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), key, v, 3)
    assert (found == again).all()
