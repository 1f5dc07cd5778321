"""Samples of a finished model: exact where that is affordable, otherwise from annealed chains."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import lnz
from lnz._core.capabilities import observed_space
from lnz._core.energy import Energy
from lnz._core.random import parted
from lnz._models.independent import base_of
from lnz.kernels._kernels import default_kernel
from lnz.kernels._resampling import systematic_on_host
from lnz.routes._exact.exact_samples import exact_sampler

_CHAINS = 512  # that anneal together: as many as measure log Z, by the same program


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
    parts, shares = [], []
    for i in range(-(-n // chains)):
        anneal_key, choice_key, sweep_key = parted(key, 3, i)
        log_weights, states, _ = route.anneal(energy, anneal_key)
        log_weights, source = (
            np.asarray(log_weights),
            np.random.default_rng(np.asarray(jax.random.key_data(choice_key))),
        )
        moved = np.asarray(states)[systematic_on_host(source, log_weights[None])[0]]
        if sweeps:
            moved = lnz.kernels.run_chains(energy, kernel, moved, sweep_key, sweeps)
        order = np.random.default_rng(i).permutation(chains)  # resampling leaves copies side by side
        parts.append(np.asarray(moved)[order])
        shares.append(_effective_share(log_weights))
    return np.concatenate(parts)[:n], float(np.mean(shares))


def _effective_share(log_weights: np.ndarray) -> float:
    weights = np.exp(log_weights - log_weights.max(), dtype=np.float64)
    return float(weights.sum() ** 2 / (weights.size * np.square(weights).sum()))


def _dtype(energy: Energy) -> Any:
    space = observed_space(energy)
    if isinstance(space, lnz.Categorical):
        return np.uint8 if space.k <= 256 else np.int32
    return {lnz.Binary: np.uint8, lnz.Spin: np.int8}.get(type(space), np.float32)
