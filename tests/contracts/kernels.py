"""The one list of kernels, each with an energy it supports, and the test that a distribution is left invariant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from contracts.energies import Case, listed, named, potts_sparse, rbm
from listing import log_sum
from lnz.testing._sums import p_value

CATEGORICAL_CALLABLE = "function of categories"


def coloured(theta: jax.Array, x: jax.Array) -> jax.Array:
    """A chain of three sites of three categories, as a plain function: no structure for a kernel to use."""
    return -(theta[0, x[0]] + theta[1, x[1]] * theta[1, x[0]] + theta[2, x[2]] * theta[0, x[1]])


def function_of_categories() -> Case:
    theta = np.random.default_rng(8).normal(size=(3, 3)) * 1.3

    def log_weight(leaves, x):
        t = leaves[0]
        return t[0][x[:, 0]] + t[1][x[:, 1]] * t[1][x[:, 0]] + t[2][x[:, 2]] * t[0][x[:, 1]]

    space = lnz.Categorical(3, k=3)
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(coloured, jnp.asarray(theta)), space)  # noqa: E731
    return Case(CATEGORICAL_CALLABLE, build, log_weight)


# Every way in which the library moves discrete states: block Gibbs, colour classes, site after site, and by the energy alone.
GIBBS = [
    named("rbm"),
    named("rbm of spins"),
    named("deep boltzmann machine"),
    rbm("small rbm of categories", lnz.Categorical(2, k=3), 3),
    named("ising dense"),
    named("ising sparse"),
    named("ising grid"),
    named("ising ring"),
    named("potts dense"),
    named("potts dense tables"),
    potts_sparse("potts sparse tables", tables=True),
    named("potts odd torus"),
    named("function"),
    named("hard constraints"),
    function_of_categories(),
]


KERNELS: list[lnz.kernels.Kernel] = [
    lnz.kernels.DiscreteLangevin(0.8),
    lnz.kernels.Gibbs(),
    lnz.kernels.GibbsWithGradients(),
    lnz.kernels.HamiltonianMonteCarlo(0.25, leapfrogs=4),
    lnz.kernels.Langevin(0.15),
    lnz.kernels.NUTS(0.25, doublings=3),
    lnz.kernels.PathAuxiliary(2),
    lnz.kernels.SwendsenWang(),
    lnz.kernels.UnadjustedLangevin(0.15),
]
BIASED = {lnz.kernels.UnadjustedLangevin}  # by the size of its steps, as it says


def base_of(case: Case) -> lnz.Independent:
    """An asymmetric base, so that the wrong end of the path shows."""
    space = lnz.capabilities.observed_space(case.energy)
    shape = (*space.shape, space.k) if isinstance(space, lnz.Categorical) else space.shape
    return lnz.Independent(np.random.default_rng(4).normal(size=shape), space)


def base_weights(base: lnz.Independent) -> np.ndarray:
    """-E of the base at every state, in plain NumPy."""
    states, eta = listed(base.space), np.asarray(base.potentials)
    if isinstance(base.space, lnz.Categorical):
        return np.sum(np.eye(base.space.k)[states] * eta, axis=tuple(range(1, states.ndim + 1)))
    return states.reshape(len(states), -1) @ eta.ravel()


def tempered_weights(case: Case, base: lnz.Independent, beta: float) -> np.ndarray:
    """-F_β(v) of every observed state, from the list of all variables: the path runs through the joint energy."""
    joint = case.weights(case.flat).reshape(len(listed(base.space)), -1)
    with np.errstate(invalid="ignore"):
        cold = np.where(beta > 0, beta * joint, 0) if beta > 0 else np.zeros_like(joint)
    return (1 - beta) * base_weights(base) + np.array([log_sum(row) for row in cold])


def numbered(space: lnz.Space, x: np.ndarray) -> np.ndarray:
    """The number of each state in the list of all."""
    x = np.asarray(x).reshape(len(x), -1)
    digits = (x > 0).astype(int) if not isinstance(space, lnz.Categorical) else x.astype(int)
    k = space.k if isinstance(space, lnz.Categorical) else 2
    return digits @ k ** np.arange(digits.shape[1])[::-1]


def agreement(case: Case, x: np.ndarray, log_weights: np.ndarray) -> float:
    chances = np.exp(log_weights - log_sum(log_weights))
    counts = np.bincount(numbered(lnz.capabilities.observed_space(case.energy), x), minlength=len(chances))
    return p_value(counts, chances)
