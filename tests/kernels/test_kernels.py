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


@pytest.mark.wrong_types
def test_the_key_comes_after_the_states_and_the_old_order_warns():
    energy, v, key = lnz.Ising(jnp.zeros((3, 3))), jnp.ones((5, 3)), jax.random.key(0)
    found = lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), v, key, 3)
    with pytest.warns(DeprecationWarning, match="states before the key"):
        again = lnz.kernels.run_chains(energy, lnz.kernels.Gibbs(), key, v, 3)
    assert (found == again).all()


@pytest.mark.parametrize(
    ("energy", "v"),
    [
        (lnz.RBM(visible=4, hidden=3, scale=1.0, key=jax.random.key(0)), jnp.ones((5, 4), bool)),
        (lnz.Ising.lattice((4, 4), 0.3, periodic=True), jnp.ones((5, 4, 4), jnp.float32)),
        (lnz.FunctionEnergy(lambda x: jnp.sum(x), lnz.Binary(3)), jnp.zeros((5, 3))),
        (lnz.Gaussian(jnp.zeros(2), jnp.asarray([1.0, 3.0])), jnp.ones((5, 2))),
    ],
    ids=["layers", "classes", "sites", "langevin"],
)
def test_a_number_of_sweeps_that_is_an_argument_gives_the_same_states(energy, v):
    """Outside `jit` one program serves every number of sweeps; inside, the number is part of the program."""
    kernel, key = default_kernel(energy), jax.random.key(3)
    for sweeps in (1, 4):
        inside = jax.jit(lambda v, sweeps=sweeps: lnz.kernels.run_chains(energy, kernel, v, key, sweeps))(v)
        found = lnz.kernels.run_chains(energy, kernel, v, key, sweeps)
        assert found.dtype == v.dtype
        np.testing.assert_allclose(found, inside, rtol=1e-12)
    assert (lnz.kernels.run_chains(energy, kernel, v, key, 0) == v).all()
    with pytest.raises(ValueError, match="sweeps must be an integer of at least 0, but is -1"):
        lnz.kernels.run_chains(energy, kernel, v, key, -1)


def test_a_step_size_that_is_an_array():
    v = jnp.zeros((4, 1))
    energy = named("double well").energy
    found = [
        lnz.kernels.run_chains(energy, lnz.kernels.Langevin(step), v, jax.random.key(0), 3)
        for step in (0.1, jnp.asarray(0.1))
    ]
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_chains_are_a_differentiable_function_of_parameters_inside_jit():
    def mean(scale):
        energy = lnz.Gaussian(jnp.zeros(1), scale * jnp.ones(1))
        return jnp.mean(
            lnz.kernels.run_chains(energy, lnz.kernels.UnadjustedLangevin(0.1), jnp.ones((4, 1)), jax.random.key(0), 3)
        )

    eps = 1e-6
    difference = (mean(1.3 + eps) - mean(1.3 - eps)) / (2 * eps)
    assert float(jax.grad(mean)(1.3)) == pytest.approx(float(difference), rel=1e-6)
