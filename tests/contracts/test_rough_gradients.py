"""The gradient of every exact route on rough weights in float32, against float64 by a second route.

What is held is a claim, not a tolerance: where log Z is off by at most r, every probability is off by a factor of at most e^{2r}, and so is the mean
of -∂E by 2 r times the range of ∂E. Nothing that the gradient does on its own may cost more.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.routes import EXACT
from lnz._core.numerics import float64

SCALE = 6.0
ELIMINATION = lnz.routes.Elimination(search_seconds=0)


def rough(*shape):
    return (SCALE * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def symmetric(n):
    return np.triu(rough(n, n), 1) + np.triu(rough(n, n), 1).T


def equal(n, coupling):
    return np.float32(coupling) * (np.ones((n, n), np.float32) - np.eye(n, dtype=np.float32))


PLANAR = np.array([(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4), (2, 4), (3, 5), (2, 5), (5, 6), (6, 7), (7, 2)])

# For every route: a model, the route that it is compared with, and the range of an entry of ∂E.
ROUGH = {
    "ClosedForm": (lambda: lnz.Independent(rough(9), space=lnz.Spin(9)), "Enumeration", 2),
    "CompleteGraph": (lambda: lnz.Ising(equal(11, -0.7), rough(11)), "Elimination", 2),
    "Elimination": (lambda: lnz.Ising.sparse(PLANAR, rough(12), rough(8), n=8), "Enumeration", 2),
    "Enumeration": (lambda: lnz.Ising(symmetric(8), rough(8)), "Elimination", 2),
    "Forest": (lambda: lnz.Ising.sparse([(i // 2, i) for i in range(1, 9)], rough(8), rough(9), n=9), "Elimination", 2),
    "ForwardBackward": (lambda: lnz.LinearChain(rough(9, 3), rough(3, 3)), "Elimination", 8),
    "KacWard": (lambda: lnz.Ising.sparse(PLANAR, 3 * rough(12), n=8), "Elimination", 2),
    "SemiMarkov": (lambda: lnz.SemiMarkovChain(rough(6, 3, 2), rough(2, 2)), "Enumeration", 6),
    "Torus": (lambda: lnz.Ising.lattice((4, 3), np.float32(0.44), periodic=True), "Elimination", 48),
    "TransferMatrix": (lambda: lnz.Ising.lattice((5, 3), rough(2, 5, 3), rough(5, 3), periodic=True), "Elimination", 2),
}


def both(model, route):
    """log Z, the width of its interval, and the mean of -∂E."""
    estimate, slopes = jax.jit(lambda m: route.log_partition_and_mean_gradient(m, None))(model)
    claim = float(estimate.upper) - float(estimate.lower)
    return float(estimate.value), claim, [np.asarray(x, float) for x in jax.tree.leaves(slopes)]


def test_every_exact_route_is_listed():
    """Quadrature is approximate, and its error is its own."""
    assert set(ROUGH) | {"Quadrature"} == {type(route).__name__ for route in EXACT}


@pytest.mark.parametrize("name", ROUGH)
def test_the_gradient_is_off_by_no_more_than_log_z_may_be(name):
    make, other, spread = ROUGH[name]
    route = next(route for route in EXACT if type(route).__name__ == name)
    wide = jax.tree.map(lambda x: jnp.asarray(x, float), make())
    truth, slack, slopes = both(wide, ELIMINATION if other == "Elimination" else lnz.routes.Enumeration())
    with float64(False):
        found, claim, gradient = both(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), make()), route)
    assert claim < 1e-2, "a claim so wide says nothing"
    assert abs(found - truth) <= claim + slack
    for x, y in zip(gradient, slopes, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=spread * (claim + slack))
