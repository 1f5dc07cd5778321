"""Exact, independent samples of the observed states of a model: by a formula, a list of states, or elimination."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import PRNGKeyArray

from lnz._core.capabilities import Normalised, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Binary, State
from lnz._models.layers import BilinearLayers
from lnz._models.rbm import GaussianRBM
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.enumeration import Enumeration

_STATES = 2**20  # the most states to list
_CHEAP = 2.0**24  # the most evaluations by elimination


class ExactSampler(NamedTuple):
    """A sampler of exact samples.

    Attributes:
        draw: from a key and a number n to observed states (n, *shape); also under `jit`.
        how: the method in words.
    """

    draw: Callable[[PRNGKeyArray, int], State]
    how: str


def exact_sampler(energy: Energy) -> ExactSampler | None:
    """The cheapest sampler of exact samples of the observed states, or None where none is affordable.

    Example:
        >>> import jax, lnz
        >>> sampler = exact_sampler(lnz.RBM(visible=784, hidden=12, key=jax.random.key(0)))
        >>> sampler.how, sampler.draw(jax.random.key(1), 5).shape
        ('a list of 4,096 hidden states', (5, 784))
    """
    known = energy.offers(Normalised)
    if known is not None:
        return ExactSampler(known.sample, "a formula")
    space = observed_space(energy)
    if space.discrete and space.count <= _STATES:
        how = f"a list of {space.count:,} states"
        return ExactSampler(lambda key, n: Enumeration().sample(energy, key, n), how)
    if isinstance(energy, BilinearLayers | GaussianRBM):
        hidden = energy.collapsed()
        if hidden.space != space and isinstance(hidden.space, Binary) and hidden.space.count <= _STATES:
            return ExactSampler(
                lambda key, n: _by_hidden(energy, hidden, key, n), f"a list of {hidden.space.count:,} hidden states"
            )
    route = Elimination(max_seconds=10.0)
    if space == energy.space and route.unsupported_reason(energy) is None and route.cost(energy) <= _CHEAP:
        return ExactSampler(lambda key, n: route.sample(energy, key, n), "elimination")
    return None


def _by_hidden(energy: BilinearLayers | GaussianRBM, hidden: Energy, key: PRNGKeyArray, n: int) -> State:
    hidden_key, visible_key = jax.random.split(key)
    h = Enumeration().sample(hidden, hidden_key, n)
    return energy.sample_visible(visible_key, h.astype(bool)).astype(energy.observed.struct.dtype)
