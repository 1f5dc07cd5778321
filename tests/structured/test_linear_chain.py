"""log Z and gradient of linear chains against every labelling listed in NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from structured.chain_cases import Chain, exists, listed, quick_jit, random_chain, stacked

T, K = 7, 4


def single_precision():
    return jax.enable_x64(False) if hasattr(jax, "enable_x64") else jax.experimental.disable_x64()


def log_z_of(chain: Chain, holes: str) -> jax.Array:
    return lnz.log_partition(lnz.LinearChain(holes=holes, **chain.arguments())).value


@functools.cache
def summed(holes: str):
    """log Z and its gradient with respect to what the user gave, a batch at a time."""

    def one(tables, rest):
        return log_z_of(Chain(**tables, **rest), holes)

    return quick_jit(jax.vmap(jax.value_and_grad(one)))


def split(chains: Chain, dtype):
    given = chains.arguments()
    floats = {name: jnp.asarray(v, dtype) for name, v in given.items() if np.issubdtype(v.dtype, np.floating)}
    return floats, {name: jnp.asarray(v) for name, v in given.items() if name not in floats}


def truths(chain: Chain, holes: str):
    """log Z and its gradient: the marginals, summed where tables are shared."""
    all_of_them = listed(chain, holes)
    live, k = exists(chain), chain.emissions.shape[1]
    nodes, pairs = all_of_them.nodes(k, live), all_of_them.pairs(k)
    first, last = live.copy(), live.copy()
    for i, j in all_of_them.joints:
        first[j], last[i] = False, False
    return all_of_them.log_z, {
        "emissions": nodes,
        "transitions": pairs.sum(axis=0) if chain.transitions.ndim == 2 else pairs[1:],
        "start": nodes[first].sum(axis=0),
        "end": nodes[last].sum(axis=0),
    }


def fuzz(n: int, seed: int, holes: str, own: bool, dtype, close: float) -> int:
    rng = np.random.default_rng(seed)
    chains = [random_chain(rng, T, K, own=own) for _ in range(n)]
    rounded = [
        c._replace(**{f: getattr(c, f).astype(dtype).astype(float) for f in c._fields[:5] if f != "lengths"})
        for c in chains
    ]
    values, gradients = summed(holes)(*split(stacked(chains), dtype))
    values, gradients = np.asarray(values), jax.tree.map(np.asarray, gradients)
    impossible = 0
    for i, chain in enumerate(rounded):
        log_z, marginals = truths(chain, holes)
        impossible += log_z == -np.inf
        np.testing.assert_allclose(values[i], log_z, rtol=close, atol=close, err_msg=f"chain {i} of seed {seed}")
        for name, wanted in marginals.items():
            np.testing.assert_allclose(
                gradients[name][i], wanted, rtol=close, atol=close, err_msg=f"{name} of chain {i}"
            )
    return impossible


@pytest.mark.parametrize(("holes", "own"), [("link", False), ("cut", True)])
def test_value_and_gradient_agree_with_the_list(holes, own):
    assert 0 < fuzz(200, 0, holes, own, np.float64, 1e-10) < 100


def test_value_and_gradient_in_float32():
    with single_precision():
        fuzz(200, 1, "link", False, np.float32, 2e-4)
        summed.cache_clear()
