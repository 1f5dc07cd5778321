"""A number that may be wrong carries its error, and says how it is known."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import is_traced

Guarantee = Literal["exact", "certified", "bound", "conditional", "approximate"]
"""How an estimate is known.

- ``exact``: a finite computation of the quantity itself; the limits allow for floating-point rounding.
- ``certified``: the limits hold with the stated probability, without any assumption.
- ``bound``: the limits hold always.
- ``conditional``: the limits hold with the stated probability if the assumption named in the estimate is true.
- ``approximate``: a value with an error estimate, and no promise.
"""


class Estimate(eqx.Module):
    """A value with its error, and how it is known. A pytree; prints as a sentence.

    Attributes:
        value: the estimate, in nats for log Z; for an expectation, a pytree like f(x).
        standard_error: one standard error of `value` (0 for a deterministic route), like `value`.
        lower: lower limit, like `value`; -inf where none is known.
        upper: upper limit, like `value`; +inf where none is known.
        guarantee: what the bounds rest on: see `Guarantee`.
        route: the route that made it, in words.
        confidence: the probability with which the limits hold (1.0 for deterministic ones).
        assumption: what a `conditional` estimate rests on, in words; empty otherwise.
        diagnostics: named arrays, such as the effective sample size.
        flags: whether each warning that the route can raise is raised: booleans, shaped like a batch of estimates.
        quantity: what it estimates, in words.
    """

    value: Any
    standard_error: Any
    lower: Any
    upper: Any
    guarantee: Guarantee = eqx.field(static=True)
    route: str = eqx.field(static=True)
    confidence: float = eqx.field(static=True, default=1.0)
    assumption: str = eqx.field(static=True, default="")
    diagnostics: dict[str, Array] = eqx.field(default_factory=dict)
    flags: dict[EstimateWarning, Any] = eqx.field(default_factory=dict)
    quantity: str = eqx.field(static=True, default="log Z")

    @property
    def known(self) -> Guarantee:
        """Deprecated: the name of `guarantee` in version 0.1."""
        warnings.warn(
            "Estimate.known is now Estimate.guarantee; the old name goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.guarantee

    @property
    def warning_codes(self) -> list[EstimateWarning]:
        """The warnings that are raised; for a batch of estimates, those that any member raises. Empty while JAX traces them."""
        raised = {code for code, flag in self.flags.items() if not is_traced(flag) and np.any(np.asarray(flag))}
        return [code for code in EstimateWarning if code in raised]

    @property
    def warnings(self) -> list[str]:
        """The messages of `warning_codes`."""
        return [code.message for code in self.warning_codes]

    def sentence(self, name: str | None = None) -> str:
        """The estimate in words, for one scalar value (log Z in nats). The name of the quantity may be given."""
        name = self.quantity if name is None else name
        leaves = jax.tree.leaves(self.value)
        if len(leaves) != 1 or np.ndim(leaves[0]) != 0 or is_traced(leaves[0]):
            shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
            return f"{name}: arrays of shape {shapes}, {self.guarantee}, by {self.route}"
        value, error = float(leaves[0]), float(jax.tree.leaves(self.standard_error)[0])
        lower, upper = float(jax.tree.leaves(self.lower)[0]), float(jax.tree.leaves(self.upper)[0])
        if self.guarantee == "exact":
            if math.isinf(value):
                return f"{name} = {value} (exact), by {self.route}"
            rounding = max(upper - value, value - lower)
            return f"{name} = {value:.10g} (exact up to rounding of {rounding:.1g}), by {self.route}"
        digits = decimals(error)
        small = 0 < error < 1e-8  # beyond the digits worth printing
        text = f"{name} = {value:.10g} ± {error:.1g}" if small else f"{name} = {value:.{digits}f}"
        if error > 0 and not small:
            text += f" ± {error:.{digits}f}"
        if not small and (math.isfinite(lower) or math.isfinite(upper)):
            between = f"between {lower:.{digits}f} and {upper:.{digits}f}"
            if not math.isfinite(upper):
                between = f"at least {lower:.{digits}f}"
            elif not math.isfinite(lower):
                between = f"at most {upper:.{digits}f}"
            text += f", {between}"
            if self.confidence < 1:
                text += f" with {100 * self.confidence:g} % confidence"
        text += f" ({self.guarantee}{': ' + self.assumption if self.assumption else ''}), by {self.route}"
        if "converged" in self.diagnostics and not float(self.diagnostics["converged"]):
            text += f", not converged: the last change was {float(self.diagnostics['residual']):.2g}"
        if "effective_sample_size" in self.diagnostics:
            text += f", effective sample size {float(self.diagnostics['effective_sample_size']):.0f}"
        return text + "".join(f". Warning: {words}" for words in self.warnings)

    def __str__(self) -> str:
        return self.sentence()


def decimals(error: float) -> int:
    """How many decimals to print so that an error of this size shows two digits."""
    return int(np.clip(1 - math.floor(math.log10(error)), 0, 12)) if error > 0 and math.isfinite(error) else 4


def exact(value: Array, *, rounding: Array, route: str, diagnostics: dict[str, Array] | None = None) -> Estimate:
    """An exact estimate whose limits allow for floating-point rounding."""
    zero = jax.tree.map(lambda leaf: leaf * 0, rounding)
    return Estimate(
        value=value,
        standard_error=zero,
        lower=jax.tree.map(lambda v, r: v - r, value, rounding),
        upper=jax.tree.map(lambda v, r: v + r, value, rounding),
        guarantee="exact",
        route=route,
        diagnostics=diagnostics or {},
    )
