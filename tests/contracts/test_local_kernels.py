"""Kernels that follow the gradient of a discrete energy leave its law as it is, and reach it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import named, potts_sparse
from contracts.kernels import CATEGORICAL_CALLABLE, GIBBS, agreement
from contracts.routes import as_states

CHAINS, STEPS, SURE = 2048, 50, 1e-6
UNADJUSTED = lnz.kernels.DiscreteLangevin(0.8, adjusted=False)
KERNELS = {
    "gibbs with gradients": lnz.kernels.GibbsWithGradients(),
    "discrete langevin": lnz.kernels.DiscreteLangevin(0.8),
    "path auxiliary": lnz.kernels.PathAuxiliary(2),
}
CASES = [named("rbm"), named("ising dense"), potts_sparse("potts sparse tables", tables=True)]


@functools.cache
def moved(case):
    """By every kernel: chains from the exact law after one step, and from the likeliest state after many. One compiled loop a case."""
    law, states = case.observed_probabilities(case.flat), as_states(case)
    start = states[np.random.default_rng(1).choice(len(law), CHAINS, p=law)]
    far = jnp.broadcast_to(states[int(np.argmax(law))], start.shape)
    kernels = KERNELS | ({"unadjusted": UNADJUSTED} if case is CASES[0] else {})

    def run(energy, key):
        def body(carry, inputs):
            i, key = inputs
            new = {name: kernel.step(energy, key, carry[name][0])[0] for name, kernel in kernels.items()}
            return {name: (v, jnp.where(i == 0, v, carry[name][1])) for name, v in new.items()}, None

        both = jnp.concatenate([start, far])
        keys = jax.random.split(key, STEPS)
        return jax.lax.scan(body, dict.fromkeys(kernels, (both, both)), (jnp.arange(STEPS), keys))[0]

    done = jax.jit(run)(case.energy, jax.random.key(5))
    return {name: (np.asarray(first[:CHAINS]), np.asarray(last[CHAINS:])) for name, (last, first) in done.items()}


@pytest.mark.parametrize(
    "case", [CASES[0], pytest.param(CASES[1], marks=pytest.mark.slow), CASES[2]], ids=["rbm", "ising", "potts"]
)
@pytest.mark.parametrize("name", KERNELS)
def test_the_law_stays_and_is_reached(case, name):
    for x in moved(case)[name]:
        assert agreement(case, x, -case.free_energies(case.flat)) > SURE


def test_unadjusted_moves_are_caught():
    case = CASES[0]
    assert agreement(case, moved(case)["unadjusted"][1], -case.free_energies(case.flat)) < SURE


def test_what_has_no_gradient_is_refused():
    indexed = lnz.FunctionEnergy(
        jax.tree_util.Partial(lambda t, x: -t[x[0].astype(int)] * (x[1] > 0).astype(float), jnp.asarray([0.5, 1.0])),
        lnz.Binary(2),
    )
    categories = next(case for case in GIBBS if case.name == CATEGORICAL_CALLABLE).energy
    for kernel in KERNELS.values():
        assert "gradient of this FunctionEnergy in x is zero everywhere" in str(kernel.unsupported_reason(indexed))
        assert "integers" in str(kernel.unsupported_reason(categories))
        assert "Binary, Spin or Categorical" in str(kernel.unsupported_reason(named("double well").energy))
        assert kernel.unsupported_reason(named("function").energy) is None
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        assert "step size must be above 0" in str(
            lnz.kernels.DiscreteLangevin(bad).unsupported_reason(named("function").energy)
        )
    assert "length must be" in str(lnz.kernels.PathAuxiliary(0).unsupported_reason(named("function").energy))
