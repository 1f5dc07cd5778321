"""Comparison of two models by the log-likelihood of data, with its uncertainty."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import numpy as np

from lnz._core.capabilities import data_space
from lnz._core.energy import as_energy
from lnz._core.estimate import Guarantee, decimals
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz.learning._gradients import as_arrays
from lnz.learning._likelihood import LogLikelihood, data_energies, log_likelihood

_FIRMNESS: tuple[Guarantee, ...] = ("exact", "bound", "certified", "conditional", "approximate")


class Comparison(eqx.Module):
    """Mean log p_a(v) - log p_b(v) of some data, in nats per example; prints as a sentence.

    Attributes:
        value: above 0 where the data are more probable under a.
        standard_error: standard error from both log Z together, shared by all examples.
        lower: lower bound, from the bounds on both log Z.
        upper: upper bound, likewise.
        confidence: confidence of these bounds, 1 - δ_a - δ_b.
        data_standard_error: standard error of the mean over the data as a sample, by paired differences, without the error of log Z.
        a: the log-likelihood under a.
        b: the log-likelihood under b.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    confidence: float
    data_standard_error: float
    a: LogLikelihood
    b: LogLikelihood

    @property
    def guarantee(self) -> Guarantee:
        """The weaker of the guarantees of both log Z."""
        return _FIRMNESS[max(map(_FIRMNESS.index, (self.a.guarantee, self.b.guarantee)))]

    def __str__(self) -> str:
        digits = max(2, decimals(self.standard_error or self.data_standard_error))
        text = (
            f"log-likelihood of a less that of b = {self.value:+.{digits}f} nats per example over {self.a.n:,} examples"
        )
        if self.guarantee != "exact":
            sure = f" with {100 * self.confidence:g} % confidence" if self.confidence < 1 else ""
            text += f", between {self.lower:+.{digits}f} and {self.upper:+.{digits}f} from the errors of log Z{sure}"
        text += f" ({self.guarantee}; data's own standard error {self.data_standard_error:.2g}). "
        if self.lower > 0 or self.upper < 0:
            return text + f"Given the errors of log Z, {'a' if self.lower > 0 else 'b'} is better on these data"
        return text + "The errors of log Z are too large to decide which is better on these data"


def compare(
    a: object,
    b: object,
    data: State,
    *,
    route: Route | None = None,
    routes: tuple[Route | None, Route | None] | None = None,
    key: jax.Array | None = None,
) -> Comparison:
    """mean_i [log p_a(v_i) - log p_b(v_i)], in nats per example, with separate errors of log Z and of the data.

    Where only a lower bound on a model's likelihood is known (a deep Boltzmann machine's), the difference has only a bound on that side.

    The error of the data is that of the paired differences: effects of an example on both models cancel.

    Args:
        a: an `Energy`, or any callable with a `space`.
        b: another, on the same observed space.
        data: observed states (n, *shape).
        route: for log Z of both; by default `lnz.choose` picks one for each.
        routes: instead of `route`, one for each model.
        key: for routes that draw samples; the models get different random numbers.

    Raises:
        ValueError: for models of different observed spaces, an example that is impossible under both, and the errors of `log_likelihood`, such
            as impossible likelihoods.

    Example:
        >>> import numpy as np, lnz
        >>> data = np.array([[1, 1, 1], [1, 1, -1]])
        >>> up, flat = (lnz.Independent(np.full(3, h), lnz.Spin(3)) for h in (0.5, 0.0))
        >>> round(float(lnz.learning.compare(up, flat, data).value), 3)  # mean of ½ Σ s, less 3 log cosh ½
        0.64
    """
    a, b = as_energy(a), as_energy(b)
    if data_space(a) != data_space(b):
        raise ValueError(
            f"log-likelihoods on {data_space(a)} and on {data_space(b)} cannot be compared: give two models of the same data"
        )
    if route is not None and routes is not None:
        raise ValueError("route is for both models, routes is one per model: give one of them")
    first, second = (route, route) if routes is None else routes
    keys = (None, None) if key is None else jax.random.split(key)
    found_a = log_likelihood(a, data, route=first, key=keys[0])
    found_b = log_likelihood(b, data, route=second, key=keys[1])
    arrays = as_arrays(a, data)
    with np.errstate(invalid="ignore"):
        gain = data_energies(b, arrays) - data_energies(a, arrays)
    if np.isnan(gain).any():
        raise ValueError(f"example {int(np.argmax(np.isnan(gain)))} is impossible under both models: leave it out")
    n, z_a, z_b = len(gain), found_a.log_z, found_b.log_z
    mean = float(gain.mean())
    return Comparison(
        value=mean - float(z_a.value) + float(z_b.value),
        standard_error=math.hypot(float(z_a.standard_error), float(z_b.standard_error)),
        lower=-math.inf if found_b.is_bound else mean - float(z_a.upper) + float(z_b.lower),
        upper=math.inf if found_a.is_bound else mean - float(z_a.lower) + float(z_b.upper),
        confidence=z_a.confidence + z_b.confidence - 1,
        data_standard_error=float(gain.std(ddof=1) / math.sqrt(n)) if n > 1 and math.isfinite(mean) else math.inf,
        a=found_a,
        b=found_b,
    )
