"""Two layers of units, each independent given the other."""

from __future__ import annotations

import abc

import jax
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities.sweepable import Sweepable


class TwoLayer(Sweepable):
    """An energy of two layers, observed v and hidden h, whose units are independent given the other layer."""

    @abc.abstractmethod
    def sample_hidden(self, key: PRNGKeyArray, v: Array) -> Array:
        """h ~ p(h|v) of a batch of observed states (n, *visible): booleans (n, hidden)."""

    @abc.abstractmethod
    def sample_visible(self, key: PRNGKeyArray, h: Array) -> Array:
        """v ~ p(v|h) of a batch of hidden states (n, hidden)."""

    def gibbs(self, key: PRNGKeyArray, v: Array) -> Array:
        """One sweep of block Gibbs on a batch of observed states: h ~ p(h|v), then v ~ p(v|h)."""
        hidden_key, visible_key = jax.random.split(key)
        return self.sample_visible(visible_key, self.sample_hidden(hidden_key, v)).astype(v.dtype)
