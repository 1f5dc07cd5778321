"""Structured mean field: a lower limit of log Z from a product of trees, or of wider clusters of variables."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from lnz._core.numerics import check_whole_number
from lnz._graphs import messages
from lnz._graphs.ascent import climb
from lnz._graphs.clusters import Clusters
from lnz.routes._bounds.bound_route import LocalRoute, Solved, check_sweeps


@dataclasses.dataclass(frozen=True)
class StructuredMeanField(LocalRoute):
    """A lower limit of log Z for any discrete model with factors, from a product q(x) = Π_c q_c(x_c) of clusters of variables.

    log Z ≥ Σ_f E_q[φ_f] + Σ_c H(q_c), in nats. The variables are divided into clusters on which the model's factors make trees, or graphs that
    can be summed in tables of `max_entries`; each q_c ∝ exp(Σ_f E_q[φ_f | x_c]) in turn is summed exactly. It starts from the best product of
    single variables (`MeanField`) and never goes down, so the limit is at least as good. The gradient is that of the limit at fixed q.

    Attributes:
        max_entries: the most entries of a table; by default the square of the largest number of values, which makes trees.
        restarts: the number of starts of naive mean field.
        max_sweeps: the most updates of every cluster.
        tolerance: the change of the limit at which it has converged, in nats.
        seed: of the starts.

    Raises:
        ValueError: where the energy has no factors.

    Source: Saul, Jordan 1995, "Exploiting tractable substructures in intractable networks"; Xing, Jordan, Russell 2003, "A generalized mean
    field algorithm".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
        >>> naive, trees = lnz.routes.MeanField(), lnz.routes.StructuredMeanField()
        >>> bool(lnz.log_partition(torus, route=trees).lower > lnz.log_partition(torus, route=naive).lower)
        True
    """

    name: ClassVar[str] = "structured mean field"
    max_entries: int | None = None
    restarts: int = 8
    max_sweeps: int = 200
    tolerance: float = 1e-7
    seed: int = 0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance)
        check_whole_number("restarts", self.restarts)
        if self.max_entries is not None:
            check_whole_number("max_entries", self.max_entries)

    @property
    def sides(self) -> tuple[bool, bool]:
        return True, False

    def solve(self, found: messages.Model) -> Solved:
        live = messages.live(found)
        start = climb(found, restarts=self.restarts, max_sweeps=200, tolerance=1e-7, seed=self.seed)
        entries = max(live.sizes, default=1) ** 2 if self.max_entries is None else self.max_entries
        clusters = Clusters(live.sizes, live.scopes, live.tables, entries)
        q = [row[domain] for row, domain in zip(start.q, live.domains, strict=True)]
        value, change, sweeps = clusters.climb(q, self.max_sweeps, self.tolerance)
        variables, factors = messages.restored(found, live.domains, clusters.factor_beliefs())
        return Solved(value, variables, factors, change, change <= self.tolerance, sweeps)
