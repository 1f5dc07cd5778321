"""Estimates: a value with its error, bounds and guarantee."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import is_traced
from lnz._core.printing import decimals, html_table, is_believed

Guarantee = Literal["exact", "certified", "bound", "conditional", "approximate"]
"""What the bounds of an estimate rest on.

- ``exact``: a finite computation of the quantity itself; the bounds allow for floating-point rounding.
- ``certified``: the bounds hold with the stated probability, without any assumption.
- ``bound``: the bounds always hold.
- ``conditional``: the bounds hold with the stated probability if the assumption named in the estimate is true.
- ``approximate``: a value with an error estimate, and no guarantee.
"""
_LOG_Z = "log Z"


def digits_lost(value: Any, dtype: Any) -> Any:
    """Whether numbers of this dtype lie more than one apart at this value, so that no bound in nats can be told from them."""
    return np.abs(np.where(np.isfinite(value), value, 0)) * float(jnp.finfo(dtype).eps) > 1


class Estimate(eqx.Module):
    """A value with its error, its bounds and what they rest on. A pytree; prints as a sentence, and `float` gives a scalar value.

    Attributes:
        value: the estimate, in nats for log Z; for an expectation, a pytree like f(x).
        standard_error: one standard error of `value` (0 for a deterministic route), like `value`.
        lower: lower bound, like `value`; -inf where none is known.
        upper: upper bound, like `value`; +inf where none is known.
        guarantee: what the bounds rest on: see `Guarantee`.
        route: the route that computed it, in words.
        confidence: the probability with which the bounds hold (1.0 for deterministic ones).
        assumption: what a `conditional` estimate rests on, in words; empty otherwise.
        diagnostics: named arrays, such as the effective sample size.
        flags: for every warning that the route can raise, whether it is raised: booleans, shaped like a batch of estimates.
        quantity: what it estimates, in words.
        base_by_default: whether nobody chose the base of a continuous energy, so that nothing is known of its modes: the sentence then begins with
            the bound that needs no assumption.
    """

    value: Any  # this and the next three: an array, or for an expectation a pytree of arrays
    standard_error: Any  # likewise
    lower: Any  # likewise
    upper: Any  # likewise
    guarantee: Guarantee = eqx.field(static=True)
    route: str = eqx.field(static=True)
    confidence: float = eqx.field(static=True, default=1.0)
    assumption: str = eqx.field(static=True, default="")
    diagnostics: dict[str, Array] = eqx.field(default_factory=dict)
    flags: dict[EstimateWarning, Any] = eqx.field(default_factory=dict)
    quantity: str = eqx.field(static=True, default=_LOG_Z)
    base_by_default: bool = eqx.field(static=True, default=False)

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
        if self.quantity == _LOG_Z and not is_traced(self.value) and self._digits_lost():
            raised.add(EstimateWarning.LOST_DIGITS)
        return [code for code in EstimateWarning if code in raised]

    @property
    def warnings(self) -> list[str]:
        """The messages of `warning_codes`."""
        return [code.message for code in self.warning_codes]

    def to_dict(self) -> dict[str, Any]:
        """The estimate as plain Python values (numbers, lists, strings), as JSON needs them.

        `known` is the name that `guarantee` had in version 0.1; it goes with version 0.3.
        """
        return {
            "quantity": self.quantity,
            "value": _plain(self.value),
            "standard_error": _plain(self.standard_error),
            "lower": _plain(self.lower),
            "upper": _plain(self.upper),
            "guarantee": self.guarantee,
            "known": self.guarantee,
            "confidence": self.confidence,
            "assumption": self.assumption,
            "route": self.route,
            "diagnostics": _plain(self.diagnostics),
            "warnings": [{"code": code.value, "message": code.message} for code in self.warning_codes],
        }

    def __float__(self) -> float:
        """The value of an estimate of one number."""
        leaves = jax.tree.leaves(self.value)
        if len(leaves) != 1 or np.ndim(leaves[0]) != 0:
            raise TypeError(f"only an estimate of one number can be converted to float, but this is {self!r}")
        return float(leaves[0])

    def __repr__(self) -> str:
        numbers = self._numbers()
        if numbers is None:
            return f"Estimate({eqx.tree_pformat(self.value, width=10_000)}, {self.guarantee})"
        value, error, lower, upper = numbers
        digits = decimals(error or upper - lower)
        return f"Estimate({value:.{digits}f} in [{lower:.{digits}f}, {upper:.{digits}f}], {self.guarantee})"

    def __str__(self) -> str:
        return self.sentence()

    def _repr_html_(self) -> str:
        numbers = self._numbers()
        if numbers is None:
            value = eqx.tree_pformat(self.value, width=10_000)
        elif self.guarantee == "exact":
            value = f"{numbers[0]:.10g}"
        else:
            value = self._interval(*numbers)
        rows = {"value": value, "guarantee": self.guarantee, "assumption": self.assumption, "route": self.route}
        rows["warning"] = ". ".join(self.warnings)
        return html_table(self.quantity, {name: text for name, text in rows.items() if text})

    def sentence(self, name: str | None = None) -> str:
        """The estimate in words, for one scalar value (log Z in nats). The name of the quantity may be given."""
        name = self.quantity if name is None else name
        numbers = self._numbers()
        if numbers is None:
            shapes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(self.value))
            return f"{name}: arrays of shape {shapes}, {self.guarantee}, by {self.route}"
        value, error, lower, upper = numbers
        if self.guarantee == "exact":
            if math.isinf(value):
                return f"{name} = {value} (exact), by {self.route}"
            rounding = max(upper - value, value - lower)
            return f"{name} = {value:.10g} (exact up to rounding of {rounding:.1g}), by {self.route}" + self._warned()
        small = 0 < error < 1e-8  # beyond the digits worth printing
        if self.base_by_default and math.isfinite(lower):
            text = f"{name} is {self._certain_first(*numbers)} ({self.guarantee}), by {self.route}"
        else:
            text = f"{name} = {value:.10g} ± {error:.1g}" if small else f"{name} = {self._interval(*numbers)}"
            text += f" ({self.guarantee}{': ' + self.assumption if self.assumption else ''}), by {self.route}"
        if "converged" in self.diagnostics and not float(self.diagnostics["converged"]):
            text += f", not converged: the last change was {float(self.diagnostics['residual']):.2g}"
        if "effective_sample_size" in self.diagnostics:
            text += f", effective sample size {float(self.diagnostics['effective_sample_size']):.0f}"
        return text + self._warned()

    def _warned(self) -> str:
        return "".join(f". Warning: {message}" for message in self.warnings)

    def _interval(self, value: float, error: float, lower: float, upper: float) -> str:
        """The value with its error and its finite bounds, in words; without an error where the interval is over five times as wide."""
        text, digits = _with_error(value, error, lower, upper)
        if not (math.isfinite(lower) or math.isfinite(upper)):
            return text
        if not math.isfinite(upper):
            text += f", at least {lower:.{digits}f}"
        elif not math.isfinite(lower):
            text += f", at most {upper:.{digits}f}"
        else:
            text += f", between {lower:.{digits}f} and {upper:.{digits}f}"
        return text + (f" with {100 * self.confidence:g} % confidence" if self.confidence < 1 else "")

    def _certain_first(self, value: float, error: float, lower: float, upper: float) -> str:
        """What needs no assumption, and then what does."""
        text, digits = _with_error(value, error, lower, upper)
        above = f" and at most {upper:.{digits}f}" if math.isfinite(upper) else ""
        return f"at least {lower:.{digits}f} with {100 * self.confidence:g} % confidence; if {self.assumption}, {text}{above}"

    def _digits_lost(self) -> bool:
        value = np.asarray(self.value)
        return value.dtype.kind == "f" and bool(np.any(digits_lost(value, value.dtype)))

    def _numbers(self) -> tuple[float, float, float, float] | None:
        """Value, standard error and bounds of an estimate of one number; None for arrays, and while JAX traces it."""
        leaves = jax.tree.leaves((self.value, self.standard_error, self.lower, self.upper))
        if len(leaves) != 4 or any(np.ndim(leaf) != 0 or is_traced(leaf) for leaf in leaves):
            return None
        value, error, lower, upper = map(float, leaves)
        return value, error, lower, upper


def _with_error(value: float, error: float, lower: float, upper: float) -> tuple[str, int]:
    """The value, with its error where that is to be believed, and the number of decimals."""
    believed = is_believed(error, lower, upper)
    digits = decimals(error if believed else upper - lower)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error > 0 and believed else ""), digits


def _plain(tree: Any) -> Any:
    """A pytree with its arrays as numbers or nested lists of numbers."""
    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), tree)


def exact(value: Any, *, rounding: Any, route: str, diagnostics: dict[str, Array] | None = None) -> Estimate:
    """An exact estimate whose bounds allow for floating-point rounding."""
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
