"""An infinite Z is seen where the energy is flat in one direction among many, and never where Z is finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate_warning import EstimateWarning
from lnz.routes._annealing.annealing_route import path_flags
from lnz.routes._annealing.path import Path

RNG = np.random.default_rng(1)
MAP = RNG.normal(size=(6, 8))
ROWS = RNG.normal(size=(40, 5))
LABELS = np.sign(ROWS @ np.ones(5))
NOISY = np.where(RNG.random(40) < 0.2, -LABELS, LABELS)


def pinless(x):
    return 0.5 * jnp.sum(jnp.diff(x) ** 2)


def gaussian(dimensions, condition):
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(dimensions, dimensions)))[0]
    root = jnp.asarray(axes * np.logspace(0, -np.log10(condition) / 2, dimensions), float)
    return lambda x: 0.5 * jnp.sum((root.T @ x) ** 2)


def logistic(labels):
    return lambda w: jnp.sum(jax.nn.softplus(-jnp.asarray(labels, float) * (jnp.asarray(ROWS, float) @ w)))


def hidden_plane(dimensions, rows):
    """Logistic regression on labels that one plane separates: the cone of such planes is thin."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, dimensions))
    signed = jnp.asarray(x * np.sign(x @ rng.normal(size=dimensions))[:, None], float)
    return lambda w: jnp.sum(jax.nn.softplus(-signed @ w))


def network(prior):
    """The squares of a small ReLU network, whose layers can be scaled against each other."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 2))
    x, y = jnp.asarray(x, float), jnp.asarray(np.sin(x[:, 0]), float)

    def energy(w):
        hidden = jax.nn.relu(x @ w[:8].reshape(2, 4) + w[8:12][None])
        return 5 * jnp.sum((hidden @ w[12:16] - y) ** 2) + 0.5 * prior * jnp.sum(w**2)

    return energy


INFINITE = {
    "differences, 4": (pinless, 4),
    "differences, 100": (pinless, 100),
    "absolute differences": (lambda x: jnp.sum(jnp.abs(jnp.diff(x))), 6),
    "stiff quartic differences": (lambda x: 100 * jnp.sum(jnp.diff(x) ** 4), 6),
    "a map of too low a rank": (lambda x: jnp.sum((jnp.asarray(MAP, float) @ x) ** 2), 8),
    "about the centre of mass": (lambda x: jnp.sum((x - jnp.mean(x)) ** 2), 7),
    "separable logistic regression": (logistic(LABELS), 5),
    "a plane hidden in 100 dimensions": (hidden_plane(100, 400), 100),
    "a network": (network(0.0), 16),
}
FINITE = {
    "pinned differences": (lambda x: pinless(x) + 0.01 * x[0] ** 2, 30),
    "ill-conditioned": (gaussian(10, 1e8), 10),
    "ill-conditioned, 50": (gaussian(50, 1e4), 50),
    "Cauchy": (lambda x: jnp.sum(jnp.log1p(x**2)), 6),
    "multivariate Student": (lambda x: 3 * jnp.log1p(jnp.sum(x**2)), 5),
    "funnel": (lambda x: x[0] ** 2 / 18 + 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) + 4.5 * x[0], 10),
    "Laplace": (lambda x: jnp.sum(jnp.abs(x)), 5),
    "logistic regression": (logistic(NOISY), 5),
    "a network with a prior": (network(1.0), 16),
    "wells": (lambda x: jnp.sum((x**2 - 1) ** 2) + pinless(x), 8),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", [*INFINITE, *FINITE])
def test_annealing_warns_of_an_infinite_z(name, dtype):
    function, d = (INFINITE | FINITE)[name]
    energy = lnz.FunctionEnergy(lambda x: function(x.astype(float)), lnz.Real(d))
    v = 3 * jax.random.normal(jax.random.key(0), (16, d), dtype)
    flags = jax.jit(lambda v: path_flags(Path(energy, None), v))(v)
    assert bool(flags[EstimateWarning.INFINITE_Z]) == (name in INFINITE)


@pytest.mark.parametrize(
    "name",
    ["differences, 4", pytest.param("differences, 100", marks=pytest.mark.slow), "separable logistic regression"],
)
def test_the_audit_sees_an_infinite_z(name):
    function, d = INFINITE[name]
    assert lnz.audit(lnz.FunctionEnergy(function, lnz.Real(d)))["finite Z"].status == "failed"


@pytest.mark.parametrize("name", [pytest.param("ill-conditioned", marks=pytest.mark.slow), "funnel", "Cauchy"])
def test_the_audit_is_silent_where_z_is_finite(name):
    function, d = FINITE[name]
    assert lnz.audit(lnz.FunctionEnergy(function, lnz.Real(d)))["finite Z"].status == "passed"
