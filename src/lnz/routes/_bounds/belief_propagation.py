"""Belief propagation: sum-product on a factor graph, and the Bethe free energy."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from lnz._core.energy import Energy, ModelLike
from lnz._core.estimate import Estimate, Guarantee
from lnz._graphs import messages
from lnz._graphs.propagation import Schedule, propagated
from lnz._models.factor_graph import FactorGraph
from lnz._models.random_field import RandomField
from lnz.routes._bounds import parallel_propagation
from lnz.routes._bounds.bound_route import LocalRoute, Solved, check_sweeps


@dataclasses.dataclass(frozen=True)
class BeliefPropagation(LocalRoute):
    """Sum-product on the factors of a discrete model: exact where the factor graph is a forest, otherwise an approximation without a bound.

    m_f→i(x_i) = log Σ_{x_f \\ x_i} exp(φ_f(x_f) + Σ_{j≠i} n_j→f(x_j)), n_i→f = Σ_{g≠f} m_g→i, and the value, in nats, is the negated Bethe
    free energy Σ_f log Z_f + Σ_i (1 - d_i) log Z_i. On a forest one pass up and one down give log Z and every marginal. Elsewhere classes of
    factors that share no variable take turns; the diagnostics `residual`, `converged` and `sweeps` describe the last state. Factors over the
    same variables are merged first, and observed variables break cycles. The gradient is the factors' beliefs.

    Attributes:
        damping: the share of the old message in the new one, in [0, 1).
        max_sweeps: the maximum number of updates of every message.
        tolerance: the change of a log message below which it has converged, in nats.
        schedule: "classes", or "residual": in every step the quarter of the factors whose messages would change most is updated, which
            converges on some graphs where sweeps oscillate, in more and cheaper steps (`sweeps` counts them). "parallel": all messages
            at once, of a `lnz.RandomField` only, in JAX: for many inputs under `jit` and `vmap`, and for training. It computes in the field's
            own precision, and changes within rounding do not count. It needs `damping` (0.5, say) on many graphs; on a forest `damping` is
            ignored.

    Raises:
        ValueError: where the energy has no factors, or the schedule is "parallel" and it is not a `lnz.RandomField`.

    Source: Kschischang, Frey, Loeliger 2001, "Factor graphs and the sum-product algorithm"; Yedidia, Freeman, Weiss 2005 (Bethe);
    Elidan, McGraw, Koller 2006, "Residual belief propagation".

    Example:
        >>> import lnz
        >>> chain = lnz.Ising.lattice((100,), 0.5, periodic=False)
        >>> print(lnz.log_partition(chain, route=lnz.routes.BeliefPropagation()).guarantee)
        exact
        >>> import jax, jax.numpy as jnp
        >>> def bethe(unary):
        ...     field = lnz.RandomField(lnz.crf.Grid((3, 3)), unary, 0.5 * jnp.eye(2))
        ...     return lnz.log_partition(field, route=lnz.routes.BeliefPropagation(schedule="parallel")).value
        >>> jax.vmap(bethe)(jnp.zeros((2, 3, 3, 2))).round(3).tolist()
        [9.609000205993652, 9.609000205993652]
    """

    name: ClassVar[str] = "belief propagation"
    damping: float = 0.0
    max_sweeps: int = 1000
    tolerance: float = 1e-9
    schedule: Schedule | Literal["parallel"] = "classes"

    def __post_init__(self) -> None:
        check_sweeps(self.max_sweeps, self.tolerance, self.damping)
        if self.schedule not in ("classes", "residual", "parallel"):
            raise ValueError(f'schedule must be "classes", "residual" or "parallel", but is {self.schedule!r}')

    def unsupported_reason(self, energy: Energy) -> str | None:
        if self.schedule == "parallel" and not isinstance(energy, RandomField):
            return 'the schedule "parallel" is for a RandomField: use the schedule "classes"'
        return super().unsupported_reason(energy)

    def log_partition_and_mean_gradient(self, energy: Energy, key: Any = None) -> tuple[Estimate, Any]:
        if self.schedule != "parallel":
            return super().log_partition_and_mean_gradient(energy, key)
        assert isinstance(energy, RandomField)
        settings = {"damping": self.damping, "max_sweeps": self.max_sweeps, "tolerance": self.tolerance}
        return parallel_propagation.estimated(energy, **settings)

    def beliefs(self, energy: ModelLike) -> list[np.ndarray]:
        if self.schedule != "parallel":
            return super().beliefs(energy)
        means = self.log_partition_and_mean_gradient(energy)[1].unary
        return list(np.asarray(means).reshape(-1, means.shape[-1]))

    def guarantee(self, graph: FactorGraph) -> Guarantee:
        scopes = messages.layout(graph.cardinalities, graph.scopes).scopes
        return "exact" if messages.forest_layers(scopes) is not None else "approximate"

    @property
    def sides(self) -> tuple[bool, bool]:
        return False, False

    def solve(self, found: messages.Model) -> Solved:
        if self.schedule == "parallel":
            raise ValueError(
                'the schedule "parallel" has no solution in NumPy: use log_partition, or the schedule "classes"'
            )
        passed, residual, sweeps = messages.passed_on_forest(found), 0.0, 1
        if passed is None:
            passed, residual, sweeps = propagated(
                found,
                damping=self.damping,
                max_sweeps=self.max_sweeps,
                tolerance=self.tolerance,
                schedule=self.schedule,
            )
        return Solved(passed.log_z(), *passed.marginals(), residual, residual <= self.tolerance, sweeps)
