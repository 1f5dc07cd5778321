"""Scores of a route, or a user's own estimator, on models whose log Z is known."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lnz._choose import choose
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.route import Route
from lnz._partition import log_partition
from lnz.reference._models import ReferenceModel, reference_models

_CONFIDENCE = 0.99  # of the interval from a value and a standard error


class Score(NamedTuple):
    """One estimate of a known log Z, in nats and seconds. Numbers are NaN where the model is unsupported.

    Attributes:
        model: the model's name.
        log_z: the truth.
        value: the estimate.
        standard_error: its claimed standard error.
        lower: its lower bound.
        upper: its upper bound.
        inside: whether the truth lies between the bounds, up to rounding.
        guarantee: what the bounds rest on (see `Guarantee`); empty where the model is unsupported.
        seconds: the time of the call, compilation included.
        warnings: the warnings of the estimate.
        unsupported_reason: why the route does not support the model; empty where it does.
    """

    model: str
    log_z: float
    value: float
    standard_error: float
    lower: float
    upper: float
    inside: bool
    guarantee: str
    seconds: float
    warnings: tuple[str, ...] = ()
    unsupported_reason: str = ""

    @property
    def refusal(self) -> str:
        """`unsupported_reason`, under its earlier name."""
        return self.unsupported_reason

    @property
    def error(self) -> float:
        """The estimate less the truth."""
        return self.value - self.log_z


class Scores(tuple[Score, ...]):
    """Scores in the order of the models; prints as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        wide = max([5, *(len(s.model) for s in self)])
        lines = [f"{'model':{wide}}  {'log Z':>14}  {'error':>11}  {'claimed':>9}  inside  {'known':12}  {'s':>6}"]
        for s in self:
            head = f"{s.model:{wide}}  {s.log_z:14.6f}"
            if s.unsupported_reason:
                lines.append(f"{head}  unsupported: {s.unsupported_reason}")
                continue
            row = f"{head}  {s.error:+11.3g}  {s.standard_error:9.2g}  {'yes' if s.inside else 'NO':6}  {s.guarantee:12}  {s.seconds:6.1f}"
            lines += [row, *(f"{'':{wide}}  warning: {words}" for words in s.warnings)]
        supported = [s for s in self if not s.unsupported_reason]
        lines.append(f"{sum(s.inside for s in supported)} of {len(supported)} intervals contain the truth")
        return "\n".join(lines)


def score_route(
    route: Route | Callable[[Energy, Any], Any] | None = None,
    *,
    models: Iterable[str | ReferenceModel] | None = None,
    key: Any = None,
    report: Callable[[Score], None] | None = None,
) -> Scores:
    """Score a route, or your own estimator, on models with known log Z: error, claimed error, interval, time.

    Args:
        route: a route; or a callable (energy, key) that returns an `Estimate`, or a value and its standard error in nats, whose interval is
            then the normal one of 99 %; or None for the choice of `lnz.choose`.
        models: names or reference models; by default all of `lnz.reference.reference_models()`.
        key: a random key; by default `jax.random.key(0)`. Every model gets a key of its own.
        report: called with every score as soon as it is computed.

    Raises:
        TypeError: for a route that is neither, or an estimator that returns something else.
        ValueError: for an unknown model. A model that a route does not support is not an error: its score has the reason.

    Example:
        >>> import lnz
        >>> print(lnz.reference.score_route(lnz.routes.Torus(), models=["glass-10x10"]))  # doctest: +ELLIPSIS
        model ... log Z ...
        glass-10x10      144.185034  unsupported: ...
        0 of 0 intervals contain the truth
        >>> (score,) = lnz.reference.score_route(lambda energy, key: (12.8, 0.1), models=["torus-4x4-hot"])
        >>> round(score.error, 4), score.inside
        (0.0145, True)
    """
    if not (route is None or isinstance(route, Route) or callable(route)) or isinstance(route, type):
        raise TypeError(f"a route is a lnz.Route or a callable (energy, key), but got {route!r}")
    chosen = [] if models is None else [m if isinstance(m, ReferenceModel) else reference_models(m)[0] for m in models]
    key = jax.random.key(0) if key is None else key
    scores = []
    for i, model in enumerate(reference_models() if models is None else chosen):
        scores.append(_scored(route, model, jax.random.fold_in(key, i)))
        if report is not None:
            report(scores[-1])
    return Scores(scores)


def _scored(route: Any, model: ReferenceModel, key: Any) -> Score:
    energy, began = model.energy(), time.perf_counter()
    if route is None:
        route = choose(energy).route
    if isinstance(route, Route):
        reason = route.unsupported_reason(energy)
        if reason is not None:
            nothing = math.nan
            return Score(
                model.name,
                model.log_z,
                nothing,
                nothing,
                nothing,
                nothing,
                False,
                "",
                nothing,
                unsupported_reason=reason,
            )
        found: Any = log_partition(energy, route=route, key=key)
    else:
        found = route(energy, key)
    estimate = _as_estimate(found)
    value, error, lower, upper = (
        float(np.asarray(x)) for x in (estimate.value, estimate.standard_error, estimate.lower, estimate.upper)
    )
    seconds = time.perf_counter() - began
    # The energy's parameters are rounded, so its log Z agrees with that of the listed model up to this.
    rounding = 64 * float(jnp.finfo(jnp.result_type(float)).eps) * max(1.0, abs(model.log_z)) + 1e-9
    inside = lower - rounding <= model.log_z <= upper + rounding
    warnings = tuple(estimate.warnings)
    return Score(model.name, model.log_z, value, error, lower, upper, inside, estimate.guarantee, seconds, warnings)


def _as_estimate(found: Any) -> Estimate:
    if isinstance(found, Estimate):
        return found
    try:
        value, error = (float(np.asarray(x)) for x in found)
    except (TypeError, ValueError):
        raise TypeError(
            f"an estimator returns a lnz.Estimate, or a value and its standard error in nats, but this one returned {found!r}"
        ) from None
    if not error >= 0:
        raise ValueError(f"an estimator's standard error must be at least 0, but is {error}")
    half = statistics.NormalDist().inv_cdf(0.5 + _CONFIDENCE / 2) * error
    return Estimate(value, error, value - half, value + half, "approximate", "the user's estimator", _CONFIDENCE)
