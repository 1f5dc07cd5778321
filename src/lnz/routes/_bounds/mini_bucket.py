"""Weighted mini-buckets: elimination in tables of bounded size, for an upper or a lower bound of log Z."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import numpy as np

from lnz._core.numerics import check_whole_number
from lnz._graphs import messages
from lnz._graphs.buckets import backward, bucket_tree, forward, tighten
from lnz._graphs.orders import least_fill
from lnz.routes._bounds.bound_route import LocalRoute, Solved, check_sweeps


@dataclasses.dataclass(frozen=True)
class MiniBucket(LocalRoute):
    """An upper or lower bound of log Z for any discrete model with factors, by elimination in tables of at most `i_bound` variables.

    Variables are summed out one after another from the factors that contain them. Where their product would be too wide they are split into
    mini-buckets r with weights Σ_r w_r = 1, and by Hölder's inequality Σ_x Π_r f_r ≤ Π_r (Σ_x f_r^{1/w_r})^{w_r} where all w_r > 0; it is ≥
    where exactly one is. Sweeps up and down shift factors of the shared variables between mini-buckets until their beliefs agree, and weights
    until their conditional entropies do; the bound holds after any sweep, and the best one is kept. With an `i_bound` beyond the width of the
    order nothing is split, and the bound is log Z. The lower bound is -inf where impossible states fall into a split bucket. The value, in nats,
    is the bound; its gradient is that of the bound at fixed shifts and weights, and so of the bound itself where they have converged.

    Attributes:
        i_bound: the maximum number of variables of one table; a wider factor is a mini-bucket of its own.
        side: "upper" or "lower".
        max_entries: the maximum number of entries of one table; a larger factor is a mini-bucket of its own.
        max_sweeps: the maximum number of sweeps; with 1, factors are shifted during the only one.
        tolerance: the change of the bound below which it has converged, in nats.
        seed: the random seed of the order of elimination, by least fill.

    Raises:
        ValueError: where the energy has no factors.

    Source: Dechter, Rish 2003, "Mini-buckets"; Liu, Ihler 2011, "Bounding the partition function using Hölder's inequality".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.routes.MiniBucket(i_bound=5)).upper > 12.7855)
        True
    """

    name: ClassVar[str] = "mini-buckets"
    i_bound: int = 8
    side: Literal["upper", "lower"] = "upper"
    max_entries: int = 2**22
    max_sweeps: int = 100
    tolerance: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance)
        check_whole_number("i_bound", self.i_bound)
        check_whole_number("max_entries", self.max_entries)
        if self.side not in ("upper", "lower"):
            raise ValueError(f'side must be "upper" or "lower", but is {self.side!r}')

    @property
    def sides(self) -> tuple[bool, bool]:
        return self.side == "lower", self.side == "upper"

    def solve(self, found: messages.Model) -> Solved:
        live = messages.live(found)
        order = least_fill(live.scopes, live.sizes, self.seed)
        tree = bucket_tree(live.sizes, live.scopes, order, entries=self.max_entries, variables=self.i_bound)
        potentials, upper = tree.arranged(live.tables), self.side == "upper"
        best = tighten(tree, potentials, upper=upper, sweeps=self.max_sweeps, tolerance=self.tolerance)
        run = forward(tree, potentials, best.split)
        possible = run.value > -np.inf
        beliefs = backward(tree, run).beliefs if possible else [np.zeros(table.shape) for table in live.tables]
        variables, factors = messages.restored(found, live.domains, beliefs)
        value, _, change, still, sweeps, _ = best
        return Solved(value, variables, factors, change, still, sweeps)
