"""What every negative phase must satisfy: unbiased where it says so, compiled or not, its state kept bit for bit, refusals as values."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import lnz
from contracts.energies import named
from contracts.negative_phases import PHASES, UNBIASED
from lnz._core.checkpoint import load_tree, save_tree

KEY = jax.random.key(5)
every_phase = pytest.mark.parametrize("phase", PHASES, ids=lambda phase: type(phase).__name__)
DATA = jnp.asarray(np.random.default_rng(0).integers(0, 2, (6, 4)), float)


def model() -> lnz.Energy:
    case = named("rbm")
    return case.at(jnp.asarray(0.5 * case.flat))


def begun(phase, energy):
    return eqx.filter_jit(phase.init)(energy, KEY, len(DATA))


def update(phase, energy, state, key):
    """The mean of -∂F as one vector, and the next state."""
    _, gradient, state, _ = phase.gradient(energy, state, DATA, None, key)
    return ravel_pytree(gradient)[0], state


@every_phase
def test_the_state_goes_through_a_file_bit_for_bit(phase, tmp_path):
    """Two updates are the same as one, a file, and another; the state keeps its structure, shapes and dtypes."""
    energy = model()
    assert phase.unsupported_reason(energy) is None
    step = jax.jit(lambda energy, state, key: update(phase, energy, state, key))
    start = begun(phase, energy)
    first, state = step(energy, start, jax.random.key(1))
    kind = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)  # noqa: E731
    assert kind(state) == kind(start)
    save_tree(tmp_path / "state", state)
    restored = load_tree(tmp_path / "state", start)
    for found, kept in zip(
        *(jax.tree.leaves(step(energy, s, jax.random.key(2))) for s in (restored, state)), strict=True
    ):
        np.testing.assert_array_equal(*(jax.random.key_data(x) if _is_key(x) else x for x in (found, kept)))
    assert np.isfinite(first).all()
    assert first.shape == named("rbm").flat.shape


def _is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("phase", [p for p in PHASES if type(p) in UNBIASED], ids=lambda phase: type(phase).__name__)
def test_the_expected_gradient_is_that_of_log_z(phase):
    energy, seeds = model(), 400
    state = begun(phase, energy)
    many = jax.jit(lambda energy, keys: jax.lax.map(lambda key: update(phase, energy, state, key)[0], keys))
    found = np.asarray(many(energy, jax.random.split(jax.random.key(3), seeds)))
    exact = ravel_pytree(jax.grad(lambda e: lnz.log_partition(e, route=lnz.routes.Enumeration()).value)(energy))[0]
    error = found.std(axis=0, ddof=1) / np.sqrt(seeds) + 1e-12
    assert np.abs((found.mean(axis=0) - exact) / error).max() < 4.5  # of 19 parameters
    assert np.abs(exact).max() > 0.1


@every_phase
def test_a_refusal_is_a_value(phase):
    """Whatever the energy, `unsupported_reason` says why in words or returns None, and raises nothing."""
    for name in (
        "rbm",
        "ising dense",
        "gaussian",
        "double well",
        "function on a box",
        "product of spaces",
        "linear chain",
    ):
        reason = phase.unsupported_reason(named(name).energy)
        assert reason is None or (isinstance(reason, str) and reason)
