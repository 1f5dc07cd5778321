"""Exact samples of attractive Ising models by coupling from the past."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, Shaped

from lnz._core.frozen import is_traced
from lnz._core.random import fast_key
from lnz._models.pairwise import Ising


def coupling_from_the_past(
    energy: Ising, key: PRNGKeyArray, n: int, *, max_sweeps: int = 2**15
) -> Shaped[Array, "n ..."]:
    """n independent exact samples of an Ising model without negative couplings: spins of the space's dtype, shape (n, *sites).

    Two chains start T sweeps ago, all spins up and all spins down, and make the same random choices. A Gibbs sweep keeps their order where no
    coupling is negative, so if they have met by now, chains from every other start have met them too, and their state is an exact sample. T
    doubles until all n pairs have met; the most recent sweeps keep their random numbers.

    Pairs meet soon above the critical temperature, in about 10³ sweeps at it for 16 x 16 sites, and hardly ever far below it without a field.

    Args:
        energy: an `Ising` model with couplings of at least 0; fields may have any sign.
        key: a random key.
        n: the number of samples.
        max_sweeps: the largest T.

    Raises:
        ValueError: for another model, negative or traced couplings, n below 1, or pairs that have not met after `max_sweeps`: leaving those out
            would cause a bias.

    Example:
        >>> import jax, lnz
        >>> torus = lnz.Ising.lattice((8, 8), 0.4, periodic=True)
        >>> samples = lnz.kernels.coupling_from_the_past(torus, jax.random.key(0), 100)
        >>> route = lnz.routes.BidirectionalAIS.from_samples(samples, exact=True, temperatures=200)
        >>> estimate = lnz.log_partition(torus, route=route, key=jax.random.key(1))
        >>> estimate.guarantee, bool(estimate.lower < 56.6 < estimate.upper)
        ('certified', True)

    Source: Propp & Wilson 1996, "Exact sampling with coupled Markov chains and applications to statistical mechanics".
    """
    if not isinstance(energy, Ising):
        raise ValueError(
            f"coupling from the past needs an Ising model, not a {type(energy).__name__}: its Gibbs sweeps must preserve an order of states"
        )
    strength = energy.couplings.pairs()[1]
    if is_traced(strength) or is_traced(energy.fields):
        raise ValueError("coupling from the past checks the couplings, which are being traced: call it outside jit")
    if (np.asarray(strength) < 0).any():
        raise ValueError(
            "coupling from the past needs couplings of at least 0: with negative ones two chains that meet prove nothing. "
            "Draw samples by elimination, or from long chains with exact=False"
        )
    if n < 1 or max_sweeps < 1:
        raise ValueError(f"n and max_sweeps must be at least 1, but are {n} and {max_sweeps}")
    key, ago = fast_key(key), 1
    while True:
        ago = min(ago, max_sweeps)
        up, apart = chains_since(energy, key, jnp.asarray(ago, jnp.int32), n)
        if not int(apart):
            return up.astype(energy.space.struct.dtype)
        if ago == max_sweeps:
            raise ValueError(
                f"{int(apart):,} of {n:,} pairs of chains have not met in {max_sweeps:,} sweeps, so the model is too cold for coupling from the "
                "past: increase max_sweeps, or draw samples from long chains with exact=False"
            )
        ago *= 2


@eqx.filter_jit
def chains_since(energy: Ising, key: PRNGKeyArray, ago: Array, n: int) -> tuple[Array, Array]:
    """The states now (n, *sites) of chains that started all up `ago` sweeps ago, and the number of chains from all down that differ."""
    sweep = energy.gibbs_sweep()
    ends = tuple(sweep.pack(jnp.full((n, *energy.couplings.sites), s, jnp.int8)) for s in (1, -1))

    def step(i: Array, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        # The sweep that is so many before now has the same numbers for every start.
        now = jax.random.fold_in(key, ago - i)
        return sweep.step(now, ends[0]), sweep.step(now, ends[1])

    up, down = map(sweep.unpack, jax.lax.fori_loop(jnp.zeros_like(ago), ago, step, ends))
    apart = jnp.any((up != down).reshape(n, -1), axis=1)
    return up, jnp.sum(apart.astype(jnp.int32))
