"""Energies that define their own Gibbs sweeps."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy


class Sweepable(Energy):
    """An energy with a Gibbs sweep of its own, faster or better than one site after the other."""

    @abc.abstractmethod
    def gibbs(self, key: PRNGKeyArray, v: Array) -> Array:
        """One sweep of Gibbs moves on a batch of observed states (n, *shape)."""


class BlockSweepable(Sweepable):
    """An energy whose Gibbs sweep goes over blocks of sites, its own or given ones, in a layout of its own."""

    @abc.abstractmethod
    def gibbs_sweep(self, blocks: Any = None) -> Sweep:
        """The sweep over the energy's own blocks, or over given lists of sites in their flat numbering."""

    @abc.abstractmethod
    def interactions(self) -> np.ndarray:
        """The pairs of sites (m, 2) that interact, in the flat numbering of the sites; no block may contain both sites of a pair."""

    def gibbs(self, key: PRNGKeyArray, v: Array) -> Array:
        """One Gibbs sweep of a batch of states (n, *shape): every block once, its sites in parallel."""
        return self.gibbs_sweep().once(key, v)


class Sweep(NamedTuple):
    """One Gibbs sweep, on states in the fastest layout: run `pack`, then `step` any number of times, then `unpack`.

    Attributes:
        pack: states (n, *shape) to the layout, any pytree.
        step: a random key and packed states to packed states: every site is drawn once from its conditional distribution.
        back: the step with its classes in the opposite order. Drawing one class leaves the distribution in detailed balance, so this is the reversal
            of `step`: p(x) P(x → y) = p(y) P_back(y → x).
        unpack: packed states to states (n, *shape), in a dtype of the sweep's own.
        energy: packed states to energies (n,) in nats, where the layout makes that cheap.
    """

    pack: Callable[[Array], Any]
    step: Callable[[PRNGKeyArray, Any], Any]
    back: Callable[[PRNGKeyArray, Any], Any]
    unpack: Callable[[Any], Array]
    energy: Callable[[Any], Array] | None = None

    def once(self, key: PRNGKeyArray, v: Array) -> Array:
        """One sweep of states (n, *shape), in their dtype."""
        return self.unpack(self.step(key, self.pack(v))).astype(v.dtype)

    def reversal(self) -> Sweep:
        """The sweep whose step is `back`."""
        return self._replace(step=self.back, back=self.step)
