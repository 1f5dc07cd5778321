"""Models compared by their evidence: Bayes factors and posterior probabilities, with intervals."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lnz._core.estimate import Estimate, Guarantee
from lnz._evidence.evidence import Evidence

_WEAKEST: tuple[Guarantee, ...] = ("approximate", "conditional", "certified", "bound", "exact")


class BayesFactor(NamedTuple):
    """The logarithm of a Bayes factor, log p(y | a) - log p(y | b), in nats.

    Attributes:
        value: the difference of the log evidences.
        lower: the lower end of its interval.
        upper: the upper end.
    """

    value: float
    lower: float
    upper: float

    @property
    def decided(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.lower > 0 or self.upper < 0

    def __str__(self) -> str:
        digits = _decimals(self.upper - self.lower)
        return (
            f"log Bayes factor = {self.value:.{digits}f}, between {self.lower:.{digits}f} and {self.upper:.{digits}f}"
        )


class ComparedModel(NamedTuple):
    """A model among others.

    Attributes:
        name: of the model.
        log_evidence: log p(y | model), in nats.
        lower: the lower end of its interval.
        upper: the upper end.
        log_bayes_factor: against the model of the largest evidence; 0 for that model.
        probability: the posterior probability of the model.
        probability_lower: its least value where all log evidences are in their intervals.
        probability_upper: its largest.
        warnings: of its estimate.
    """

    name: str
    log_evidence: float
    lower: float
    upper: float
    log_bayes_factor: BayesFactor
    probability: float
    probability_lower: float
    probability_upper: float
    warnings: list[str]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Models by falling evidence. Prints as a table, in notebooks as an HTML one.

    Attributes:
        models: the models, that of the largest log evidence first.
        guarantee: the weakest guarantee among their estimates.
        confidence: of the interval of a Bayes factor.
        confidence_of_all: of all intervals of probabilities together, at least.
    """

    models: tuple[ComparedModel, ...]
    guarantee: Guarantee
    confidence: float
    confidence_of_all: float

    def __getitem__(self, name: str) -> ComparedModel:
        found = [model for model in self.models if model.name == name]
        if not found:
            raise KeyError(f"there is no model {name!r} among {', '.join(repr(model.name) for model in self.models)}")
        return found[0]

    def log_bayes_factor(self, a: str, b: str) -> BayesFactor:
        """The log Bayes factor of model a against model b, in nats, with its interval."""
        return _factor(self[a], self[b])

    def __str__(self) -> str:
        rows = [_HEAD, *map(_row, self.models)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([*lines, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEAD)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(model)) + "</tr>" for model in self.models
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _notes(self) -> list[str]:
        found = [
            f"In nats; log Bayes factors against {self.models[0].name}, with {100 * self.confidence:g} % intervals ({self.guarantee})."
        ]
        return found + [f"{model.name}: {words}." for model in self.models for words in model.warnings]


_HEAD = ("model", "log evidence", "interval", "log Bayes factor", "interval", "probability", "interval")


def _row(model: ComparedModel) -> tuple[str, ...]:
    digits = _decimals(model.upper - model.lower)
    factor = model.log_bayes_factor
    more = _decimals(factor.upper - factor.lower)
    return (
        model.name,
        f"{model.log_evidence:.{digits}f}",
        f"{model.lower:.{digits}f} to {model.upper:.{digits}f}",
        f"{factor.value:.{more}f}",
        f"{factor.lower:.{more}f} to {factor.upper:.{more}f}" if factor != _NONE else "",
        f"{model.probability:.3f}",
        f"{model.probability_lower:.3f} to {model.probability_upper:.3f}",
    )


def compare_evidence(
    models: Mapping[str, Evidence | Estimate], *, prior: Mapping[str, float] | None = None
) -> Comparison:
    """Bayes factors and posterior probabilities of models of the same data, from their log evidences, with intervals.

    log BF_ab = log p(y | a) - log p(y | b), p(a | y) = π_a p(y | a) / Σ_k π_k p(y | k).

    The interval of a Bayes factor joins the distances of both values from the ends of their own intervals as the root of the sum of squares, for
    independent estimates: give every evidence a key of its own. That of a probability has its extremes while every log evidence is in its own.

    Args:
        models: the evidence of each model by its name, in nats: what `lnz.evidence` or `lnz.evidence_from_draws` returned, or an `Estimate` of log Z.
        prior: π, the prior weight of each model, above 0; equal by default.

    Raises:
        TypeError: for what is not an evidence or an estimate.
        ValueError: for no models, a log evidence that is not finite, or weights that are not above 0 or of other models.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def narrow(x):
        ...     return jax.scipy.stats.norm.logpdf(x[0], 1.0, 0.1)
        >>> found = {
        ...     name: lnz.evidence(narrow, prior=lnz.Gaussian([0.0], [1 / sd**2]), key=jax.random.key(0))
        ...     for name, sd in (("tight", 1.0), ("vague", 100.0))
        ... }
        >>> round(lnz.compare_evidence(found).log_bayes_factor("tight", "vague").value, 2)
        4.11

    Source: Kass & Raftery 1995, "Bayes factors"; Zou, Huo & Taleban 2009 (the interval of a difference).
    """
    estimates = {name: _estimate(name, found) for name, found in models.items()}
    if not estimates:
        raise ValueError("there is nothing to compare: give the evidence of at least one model")
    weights = _log_weights(prior, list(estimates))
    names = sorted(estimates, key=lambda name: -float(estimates[name].value))
    best = estimates[names[0]]
    value, lower, upper = np.asarray([[end + weights[name] for end in _ends(estimates[name])] for name in names]).T
    rows = []
    for i, name in enumerate(names):
        others = np.arange(len(names)) != i
        estimate = estimates[name]
        rows.append(
            ComparedModel(
                name=name,
                log_evidence=float(estimate.value),
                lower=float(estimate.lower),
                upper=float(estimate.upper),
                log_bayes_factor=_NONE if i == 0 else _apart(_ends(estimate), _ends(best)),
                probability=_share(value[i], value[others]),
                probability_lower=_share(lower[i], upper[others]),
                probability_upper=_share(upper[i], lower[others]),
                warnings=estimate.warnings,
            )
        )
    doubts = sum(1 - estimate.confidence for estimate in estimates.values())
    return Comparison(
        models=tuple(rows),
        guarantee=min([estimate.guarantee for estimate in estimates.values()], key=_strength),
        confidence=min(estimate.confidence for estimate in estimates.values()),
        confidence_of_all=max(1 - doubts, 0.0),
    )


def _strength(guarantee: Guarantee) -> int:
    return _WEAKEST.index(guarantee)


_NONE = BayesFactor(0.0, 0.0, 0.0)


def _estimate(name: str, found: object) -> Estimate:
    estimate = found.estimate if isinstance(found, Evidence) else found
    if not isinstance(estimate, Estimate):
        raise TypeError(
            f"{name!r} is {type(found).__name__}, not an evidence: give what lnz.evidence returned, or an Estimate of log Z"
        )
    if not math.isfinite(float(estimate)):
        raise ValueError(
            f"the log evidence of {name!r} is {float(estimate)}: a model whose data are impossible has no place in a comparison"
        )
    return estimate


def _log_weights(prior: Mapping[str, float] | None, names: list[str]) -> dict[str, float]:
    if prior is None:
        return dict.fromkeys(names, 0.0)
    if set(prior) != set(names):
        raise ValueError(
            f"the prior weights are of {sorted(prior)}, but the models are {sorted(names)}: give one for each"
        )
    if not all(0 < weight < math.inf for weight in prior.values()):
        raise ValueError(f"prior weights must be above 0 and finite, but are {dict(prior)}")
    return {name: math.log(weight) for name, weight in prior.items()}


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return float(estimate.value), float(estimate.lower), float(estimate.upper)


def _factor(a: ComparedModel, b: ComparedModel) -> BayesFactor:
    if a.name == b.name:
        return _NONE
    return _apart((a.log_evidence, a.lower, a.upper), (b.log_evidence, b.lower, b.upper))


def _apart(a: tuple[float, float, float], b: tuple[float, float, float]) -> BayesFactor:
    """The difference of two values, and its interval from theirs."""
    (value, low, high), (other, other_low, other_high) = a, b
    below, above = math.hypot(value - low, other_high - other), math.hypot(high - value, other - other_low)
    return BayesFactor(value - other, value - other - below, value - other + above)


def _share(one: float, others: np.ndarray) -> float:
    """e^one / (e^one + Σ e^others)."""
    if not others.size:
        return 1.0
    return float(np.exp(-np.logaddexp(0, np.logaddexp.reduce(others) - one)))


def _decimals(width: float) -> int:
    """Decimals that tell the ends of an interval apart."""
    return 2 if not 0 < width < math.inf else min(max(1 - math.floor(math.log10(width)), 1), 8)
