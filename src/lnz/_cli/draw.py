"""Samples of a finished model: exact where that is affordable, otherwise from annealed chains."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz._core.capabilities import observed_space
from lnz._core.energy import Energy
from lnz._core.random import fast_key
from lnz._models.independent import base_of
from lnz.kernels._kernels import default_kernel
from lnz.kernels._resampling import systematic
from lnz.routes._exact.exact_samples import exact_sampler

_CHAINS = 1024  # that anneal together


def draw(
    energy: Energy, base: Energy | None, n: int, key: Any, *, temperatures: int = 1000, sweeps: int = 100
) -> tuple[np.ndarray, str]:
    """n observed states of the model, and how they were drawn, in words.

    Args:
        energy: the model.
        base: what annealed chains start from; by default the energy's own.
        n: the number of states.
        key: random key.
        temperatures: of the annealing that brings the chains to the model.
        sweeps: that follow at the model itself, after resampling by the annealing weights.

    Returns:
        The states, shape (n, *shape), uint8 for bits, int8 for spins, float32 for reals; and a description.
    """
    sampler = exact_sampler(energy)
    if sampler is None:
        states, share = _draw_annealed(energy, base, key, n, temperatures, sweeps)
        how = f"annealed chains ({temperatures:,} temperatures, then {sweeps:,} sweeps), effective share {share:.0%}"
    else:
        states, how = sampler.draw(key, n), "exact and independent"
    return np.asarray(states).astype(_dtype(energy)), how


def _draw_annealed(
    energy: Energy, base: Energy | None, key: Any, n: int, temperatures: int, sweeps: int
) -> tuple[np.ndarray, float]:
    """States resampled from annealed chains by their weights, and the effective share of those chains."""
    chains = min(_CHAINS, max(n, 128))
    route = lnz.routes.AnnealedImportanceSampling.from_base(
        base_of(energy) if base is None else base, temperatures=temperatures, chains=chains
    )
    route.require(energy, key)
    kernel = default_kernel(energy)

    @eqx.filter_jit
    def block(energy: Energy, key: Any) -> tuple[Any, Any]:
        anneal_key, choice_key, sweep_key = jax.random.split(key, 3)
        log_weights, states, _ = route.anneal(energy, anneal_key)
        share = jax.nn.softmax(log_weights)
        chosen = systematic(choice_key, log_weights)
        moved = (
            lnz.kernels.run_chains(energy, kernel, states[chosen], fast_key(sweep_key), sweeps)
            if sweeps
            else states[chosen]
        )
        return moved, 1 / (chains * jnp.sum(share**2))

    parts, shares = [], []
    for i in range(-(-n // chains)):
        moved, share = block(energy, jax.random.fold_in(key, i))
        order = np.random.default_rng(i).permutation(chains)  # resampling leaves copies side by side
        parts.append(np.asarray(moved)[order])
        shares.append(float(share))
    return np.concatenate(parts)[:n], float(np.mean(shares))


def _dtype(energy: Energy) -> Any:
    space = observed_space(energy)
    if isinstance(space, lnz.Categorical):
        return np.uint8 if space.k <= 256 else np.int32
    return {lnz.Binary: np.uint8, lnz.Spin: np.int8}.get(type(space), np.float32)
