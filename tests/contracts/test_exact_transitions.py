"""T10 to rounding: π P = π for the kernels whose draws can be listed. P is summed over every draw of the kernel's own code.

The kernel runs as it is, but its random numbers are given: each draw is forced in turn, and its probability read off the logits, weights or
lengths that the kernel asked for.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import named, potts_sparse
from contracts.routes import as_states
from contracts.transitions import KEY, assert_invariant, forced
from listing import states
from lnz.kernels._local import numbers_of, slopes_at


def transitions(case, moves):
    """P from the proposals of all states: `moves(x, slopes)` gives proposals (m, sites), their probabilities and log acceptance ratios (m,)."""
    energy, space = case.energy, lnz.capabilities.observed_space(case.energy)
    x = numbers_of(space, as_states(case))
    y, chance, log_ratio = jax.jit(jax.vmap(lambda x: moves(x, lambda z: slopes_at(energy, z))))(x)
    k = space.k if isinstance(space, lnz.Categorical) else 2
    code = np.asarray(y) @ k ** np.arange(x.shape[1])[::-1]
    chance, log_ratio = np.asarray(chance), np.asarray(log_ratio)
    taken = np.where(chance > 0, chance * np.exp(np.minimum(np.where(chance > 0, log_ratio, 0), 0)), 0)
    matrix = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        np.add.at(matrix[i], code[i], taken[i])
    np.testing.assert_allclose(chance.sum(axis=1), 1, atol=1e-12)
    return matrix + np.diag(1 - matrix.sum(axis=1))


def gibbs_with_gradients(kernel, sites, k):
    def moves(x, slopes):
        def one(choice):
            seen = []
            with forced(categorical=lambda key, logits: (seen.append(logits), choice)[1]):
                y, log_ratio = kernel.move(KEY, x, slopes)
            return y, jnp.exp(seen[0][choice]), log_ratio

        return jax.vmap(one)(jnp.arange(sites * k))

    return moves


def discrete_langevin(kernel, sites, k):
    values = jnp.asarray(states(range(k), sites))

    def moves(x, slopes):
        def one(value):
            seen = []
            with forced(categorical=lambda key, logits, axis: (seen.append(logits), value)[1]):
                y, log_ratio = kernel.move(KEY, x, slopes)
            log_chance = jnp.take_along_axis(jax.nn.log_softmax(seen[0], axis=-1), value[:, None], axis=1)
            return y, jnp.exp(jnp.sum(log_chance)), log_ratio

        return jax.vmap(one)(values)

    return moves


def path_auxiliary(kernel, sites, k):
    """Lengths, orders of the units (a Gumbel number each, so large that it alone decides), and values."""
    longest = min(2 * kernel.length, sites + 1) - 1
    draws = [
        (length, order, value)
        for length in range(1, longest + 1)
        for order in itertools.permutations(range(sites))
        for value in itertools.product(range(k), repeat=sites)
    ]
    lengths, orders, values = (jnp.asarray(d) for d in zip(*draws, strict=True))

    def moves(x, slopes):
        def one(length, order, value):
            seen = []
            # The place in the order decides: the weights themselves are at most some tens of nats.
            gumbel = jnp.zeros(sites).at[order].set(1e6 * jnp.arange(sites, 0, -1).astype(float))
            with forced(
                randint=lambda key, shape, low, high, dtype: length.astype(dtype),
                gumbel=lambda key, shape, dtype: gumbel.astype(dtype),
                categorical=lambda key, logits, axis: (seen.append(logits), value)[1],
            ):
                y, log_ratio = kernel.move(KEY, x, slopes)
            each = seen[0]
            of_site = jax.nn.logsumexp(each, axis=-1)[order]
            ordered = jnp.sum(of_site - jax.lax.cumlogsumexp(of_site, reverse=True))
            drawn = jnp.take_along_axis(jax.nn.log_softmax(each, axis=-1), value[:, None], axis=1)
            return y, jnp.exp(ordered + jnp.sum(drawn)) / longest, log_ratio

        return jax.vmap(one)(lengths, orders, values)

    return moves


KERNELS = {
    "gibbs with gradients": (lnz.kernels.GibbsWithGradients(), gibbs_with_gradients),
    "discrete langevin": (lnz.kernels.DiscreteLangevin(0.8), discrete_langevin),
    "path auxiliary": (lnz.kernels.PathAuxiliary(2), path_auxiliary),
}
CASES = {"binary": named("rbm"), "spin": named("ising dense"), "categorical": potts_sparse("potts sparse tables", True)}


def law_and_matrix(case, name, kernel=None):
    energy, (given, rule) = case.energy, KERNELS[name]
    k = (
        lnz.capabilities.observed_space(energy).k
        if isinstance(lnz.capabilities.observed_space(energy), lnz.Categorical)
        else 2
    )
    return case.observed_probabilities(case.flat), transitions(
        case, rule(kernel or given, lnz.capabilities.observed_space(energy).size, k)
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=pytest.mark.slow if (name, kind) == ("path auxiliary", "spin") else ())
        for name in KERNELS
        for kind in CASES
    ],
)
def test_the_law_is_left_as_it_is(name, kind):
    assert_invariant(*law_and_matrix(CASES[kind], name))


def test_moves_without_the_correction_are_caught():
    law, matrix = law_and_matrix(
        CASES["binary"], "discrete langevin", lnz.kernels.DiscreteLangevin(0.8, adjusted=False)
    )
    assert np.abs(law @ matrix - law).max() > 1e-3
