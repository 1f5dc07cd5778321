"""Mean field: lower bounds of log Z from the best product of independent variables, or of trees and wider clusters of variables."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.numerics import check_whole_number
from lnz._graphs import messages
from lnz._graphs.mean_field import Clusters, climb, outer
from lnz._models.random_field import RandomField
from lnz.routes._bounds import parallel_mean_field
from lnz.routes._bounds.bound_route import LocalRoute, Solved, check_sweeps


@dataclasses.dataclass(frozen=True)
class MeanField(LocalRoute):
    """A lower bound of log Z for any discrete model with factors: the best product q(x) = Π_i q_i(x_i) found by coordinate ascent.

    log Z ≥ Σ_f E_q[φ_f] + Σ_i H(q_i), in nats, for every q. Each q_i ∝ exp(E_q[Σ_f φ_f | x_i]) in turn, variables without a common factor at
    once, from several starts at once: one uniform, the others random. Where some states are impossible, the starts are possible states found
    by a search; if it finds none the bound is -inf, which is valid but vacuous. The gradient is that of the bound at fixed q.

    Attributes:
        restarts: the number of starts.
        max_sweeps: the maximum number of updates of every variable.
        tolerance: the change of a probability below which it has converged.
        seed: the random seed of the starts.
        schedule: "ascent" as above, for one model at a time. Of a `lnz.RandomField` also, in JAX, for many inputs under `jit` and `vmap`, and
            for training, from one start, the nodes' own log-potentials: "coloured" (nodes without a common factor at once) and "sequential" (in
            the order of their numbers), whose value never decreases without damping, and "parallel" (all nodes at once), which may oscillate.
        damping: the share of the old probabilities in the new ones, in [0, 1); for schedules other than "ascent".

    Raises:
        ValueError: where the energy has no factors, or the schedule needs a `lnz.RandomField` and it is another model.

    Source: Jordan, Ghahramani, Jaakkola, Saul 1999, "An introduction to variational methods for graphical models".

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)  # log Z = 12.7855
        >>> bool(lnz.log_partition(torus, route=lnz.routes.MeanField()).lower < 12.7855)
        True
    """

    name: ClassVar[str] = "mean field"
    restarts: int = 8
    max_sweeps: int = 200
    tolerance: float = 1e-7
    seed: int = 0
    schedule: Literal["ascent", "parallel", "coloured", "sequential"] = "ascent"
    damping: float = 0.0

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance, self.damping)
        check_whole_number("restarts", self.restarts)
        if self.schedule not in ("ascent", *parallel_mean_field.SCHEDULES):
            raise ValueError(
                f'schedule must be "ascent", "parallel", "coloured" or "sequential", but is {self.schedule!r}'
            )
        if self.schedule == "ascent" and self.damping:
            raise ValueError('the schedule "ascent" has no damping: leave out damping')

    def unsupported_reason(self, energy: Energy) -> str | None:
        if self.schedule != "ascent" and not isinstance(energy, RandomField):
            return f'the schedule "{self.schedule}" is for a RandomField: use the schedule "ascent"'
        return super().unsupported_reason(energy)

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any = None) -> tuple[Estimate, Any]:
        if self.schedule == "ascent" or not isinstance(energy, RandomField):
            return super().log_partition_and_mean_gradient(energy, key)
        return parallel_mean_field.estimated(
            energy,
            schedule=self.schedule,
            damping=self.damping,
            max_sweeps=self.max_sweeps,
            tolerance=self.tolerance,
        )

    @property
    def sides(self) -> tuple[bool, bool]:
        return True, False

    def solve(self, found: messages.Model) -> Solved:
        best = climb(
            found, restarts=self.restarts, max_sweeps=self.max_sweeps, tolerance=self.tolerance, seed=self.seed
        )
        factors = [
            outer(best.q[i, :k] for i, k in zip(scope, table.shape, strict=True))
            for scope, table in zip(found.scopes, found.tables, strict=True)
        ]
        return Solved(best.value, best.q, factors, best.residual, best.residual <= self.tolerance, best.sweeps)


@dataclasses.dataclass(frozen=True)
class StructuredMeanField(LocalRoute):
    """A lower bound of log Z for any discrete model with factors, from a product q(x) = Π_c q_c(x_c) of clusters of variables.

    log Z ≥ Σ_f E_q[φ_f] + Σ_c H(q_c), in nats. The variables are divided into clusters on which the model's factors make trees, or graphs that
    can be summed in tables of `max_entries`; each q_c ∝ exp(Σ_f E_q[φ_f | x_c]) in turn is summed exactly. It starts from the best product of
    single variables (`MeanField`) and never decreases, so the bound is at least as good. The gradient is that of the bound at fixed q.

    Attributes:
        max_entries: the maximum number of entries of a table; by default the square of the largest number of values, which makes trees.
        restarts: the number of starts of naive mean field.
        max_sweeps: the maximum number of updates of every cluster.
        tolerance: the change of the bound below which it has converged, in nats.
        seed: the random seed of the starts.

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
