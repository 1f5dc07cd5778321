"""Known values of log Z (numbers as in `lnz.reference.VALUES`) through lnz's own energies and routes, at sizes that can be enumerated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz import reference

BETA_C = reference.ISING_CRITICAL_BETA


def value(energy, **options):
    estimate = lnz.log_partition(energy, **options)
    assert estimate.guarantee == "exact"
    return float(estimate.value)


def test_a1_a2_ising_torus():
    assert value(lnz.Ising.lattice((4, 4), BETA_C, periodic=True)) == pytest.approx(15.5219154587553, rel=1e-12)
    assert value(lnz.Ising.lattice((4, 4), 0.3, periodic=True)) == pytest.approx(12.7855233257137, rel=1e-12)
    for shape, beta in (((3, 5), 0.7), ((4, 2), -0.4), ((2, 4), 0.25)):
        known = reference.ising_torus_log_z(*shape, beta)
        assert value(lnz.Ising.lattice(shape, beta, periodic=True)) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5)])
def test_a3_its_derivative_by_the_inverse_temperature(shape):
    torus = lambda beta: lnz.log_partition(lnz.Ising.lattice(shape, beta, periodic=True)).value  # noqa: E731
    known = reference.ising_torus_bond_sum(*shape, BETA_C)
    assert float(jax.grad(torus)(jnp.asarray(BETA_C))) == pytest.approx(known, rel=1e-12)


def test_a4_small_tori_approach_the_bulk():
    """Onsager's bulk value per site; finite tori lie above it at the critical point and come nearer."""
    bulk = reference.ising_bulk_log_z(BETA_C)
    assert bulk == pytest.approx(0.9296953983416102, rel=1e-12)
    above = [value(lnz.Ising.lattice((n, n), BETA_C, periodic=True)) / n**2 - bulk for n in (2, 3, 4)]
    assert above[0] > above[1] > above[2] > 0


def test_a6_potts_torus():
    for q, side, known in ((2, 4, 29.623892851068), (3, 3, 19.688939731847)):
        potts = lnz.Potts.lattice((side, side), reference.potts_critical_beta(q), q=q, periodic=True)
        assert value(potts) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize(("side", "count"), [(1, 2), (2, 7), (3, 63), (4, 1234)])
def test_a7_hard_squares(side, count):
    """Independent sets of a grid: states that are forbidden have energy +inf."""

    def energy(x):
        clash = jnp.any(x[1:] & x[:-1]) | jnp.any(x[:, 1:] & x[:, :-1])
        return jnp.where(clash, jnp.inf, 0.0)

    space = lnz.Binary((side, side))
    assert value(lnz.FunctionEnergy(lambda x: energy(x.astype(bool)), space)) == pytest.approx(np.log(count), rel=1e-12)


@pytest.mark.parametrize(("side", "count"), [(2, 18), (3, 246)])
def test_a8_colourings(side, count):
    def energy(x):
        clash = jnp.any(x[1:] == x[:-1]) | jnp.any(x[:, 1:] == x[:, :-1])
        return jnp.where(clash, jnp.inf, 0.0)

    space = lnz.Categorical((side, side), 3)
    assert value(lnz.FunctionEnergy(energy, space)) == pytest.approx(np.log(count), rel=1e-12)


@pytest.mark.parametrize(("visible", "hidden"), [(14, 6), (6, 14), (200, 5)])
def test_a18_rbm_by_its_smaller_layer(visible, hidden):
    """Summed here in NumPy over the other layer where that is small, over the hidden one otherwise."""
    rng = np.random.default_rng(3)
    w, b, c = rng.normal(size=(visible, hidden)), rng.normal(size=visible), rng.normal(size=hidden)
    rows, outer, inner, bias = (w, c, b, visible) if visible < hidden else (w.T, b, c, hidden)
    if visible == 200:
        rows, outer, inner, bias = w.T, b, c, hidden
    states = (np.arange(2**bias)[:, None] >> np.arange(bias)) & 1
    known = np.logaddexp.reduce(states @ inner + np.logaddexp(0, outer + states @ rows).sum(axis=1))
    estimate = lnz.log_partition(lnz.RBM.from_parameters(w, b, c))
    assert float(estimate.value) == pytest.approx(known, rel=1e-12)
    assert f"{2 ** min(visible, hidden):,} states" in str(estimate)
