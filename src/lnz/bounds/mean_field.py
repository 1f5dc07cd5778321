"""Naive mean field: a lower limit of log Z from the best product of independent variables."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from lnz.bounds import local
from lnz.bounds.ascent import climb
from lnz.bounds.route import LocalRoute, Solved, check_counts, check_sweeps


@dataclasses.dataclass(frozen=True)
class MeanField(LocalRoute):
    """A lower limit of log Z for any discrete model with factors: the best of the products q(x) = Π_i q_i(x_i) that coordinate ascent finds.

    log Z ≥ Σ_f E_q[φ_f] + Σ_i H(q_i), in nats, for every q. Each q_i ∝ exp(E_q[Σ_f φ_f | x_i]) in turn, variables without a common factor at
    once, from several starts side by side: one even, the others random. Where some states are impossible, the starts are possible states that
    a search finds; if it finds none the limit is -inf, which says nothing. The gradient is that of the limit at fixed q.

    Attributes:
        restarts: the number of starts.
        max_sweeps: the most updates of every variable.
        tolerance: the change of a probability at which it has converged.
        seed: of the starts.

    Raises:
        ValueError: where the energy has no factors.

    Source: Jordan, Ghahramani, Jaakkola, Saul 1999, "An introduction to variational methods for graphical models".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.MeanField()).lower < 12.7855)
        True
    """

    name: ClassVar[str] = "mean field"
    restarts: int = 8
    max_sweeps: int = 200
    tolerance: float = 1e-7
    seed: int = 0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance)
        check_counts(restarts=self.restarts)

    @property
    def sides(self) -> tuple[bool, bool]:
        return True, False

    def solve(self, found: local.Model) -> Solved:
        best = climb(
            found, restarts=self.restarts, max_sweeps=self.max_sweeps, tolerance=self.tolerance, seed=self.seed
        )
        factors = []
        for scope, table in zip(found.scopes, found.tables, strict=True):
            product = np.ones(())
            for i, k in zip(scope, table.shape, strict=True):
                product = product[..., None] * best.q[i, :k]
            factors.append(product)
        return Solved(best.value, best.q, factors, best.residual, best.residual <= self.tolerance, best.sweeps)
