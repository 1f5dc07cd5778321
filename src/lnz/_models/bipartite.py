"""Ising models on bipartite graphs as energies of the smaller side: the larger one is summed out in closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lnz._core.capabilities import Blockwise
from lnz._core.frozen import Frozen
from lnz._core.spaces import Binary, Space, State
from lnz._models.rbm import RBM, HiddenEnergy

_MOST = 32  # sites of the smaller side: more cannot be enumerated


class Sides(NamedTuple):
    """The two sides of a bipartite graph: sites by their numbers, and the row and column of every edge."""

    small: np.ndarray
    large: np.ndarray
    row: np.ndarray
    column: np.ndarray


@functools.lru_cache(maxsize=64)
def two_sides(edges: Frozen, n: int) -> Sides | None:
    """The sides of a graph without odd cycles, as unequal as possible (the sides of any component may be swapped); None if both are large."""
    ends = edges.value
    degree = np.bincount(ends.ravel(), minlength=n)
    if not len(ends) or len(ends) > _MOST * degree.max():
        return None  # every edge has an end on the smaller side
    near: list[list[int]] = [[] for _ in range(n)]
    for i, j in ends.tolist():
        near[i].append(j)
        near[j].append(i)
    side, small = np.full(n, -1), []
    for root in range(n):
        if side[root] >= 0:
            continue
        side[root], members = 0, [root]
        for i in members:
            for j in near[i]:
                if side[j] < 0:
                    side[j] = 1 - side[i]
                    members.append(j)
                elif side[j] == side[i]:
                    return None
        ones = [i for i in members if side[i] == 1]
        small += ones if 2 * len(ones) <= len(members) else [i for i in members if side[i] == 0]
        if len(small) > _MOST:
            return None
    inside = np.zeros(n, bool)
    inside[small] = True
    small, large = (np.flatnonzero(side).astype(np.int32) for side in (inside, ~inside))
    place = np.empty(n, np.int32)
    place[small], place[large] = np.arange(len(small)), np.arange(len(large))
    first = inside[ends[:, 0]]
    row, column = np.where(first, ends[:, 0], ends[:, 1]), np.where(first, ends[:, 1], ends[:, 0])
    return Sides(small, large, place[row], place[column])


class SmallerSide(Blockwise):
    """The marginal of the smaller side A of an Ising model on a bipartite graph: E(s_A) = -h_A · s_A - Σ_b log 2cosh(h_b + Σ_a J_ab s_a).

    Z is that of the model. In bits it is the hidden layer of an RBM, up to a constant.
    """

    marginal: HiddenEnergy
    constant: Array

    def __init__(self, sides: Sides, couplings: Float[Array, " edges"], fields: Float[Array, " sites"]):
        j = jnp.zeros((len(sides.large), len(sides.small)), fields.dtype)
        j = j.at[sides.column, sides.row].add(couplings.astype(fields.dtype))
        a, b = fields[sides.small], fields[sides.large]
        rbm = RBM.from_parameters(4 * j, 2 * (b - jnp.sum(j, 1)), 2 * (a - jnp.sum(j, 0)))
        self.marginal = HiddenEnergy(rbm)
        self.constant = jnp.sum(fields) - jnp.sum(j)

    @property
    def space(self) -> Space:
        return Binary(self.marginal.rbm.hidden_bias.size)

    def __call__(self, x: State) -> Array:
        return self.marginal(x) + self.constant

    def block_energies(self, size: int) -> Callable[[Array], Array]:
        energies = self.marginal.block_energies(size)
        return lambda first: energies(first) + self.constant
