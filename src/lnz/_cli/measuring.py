"""Log Z and likelihoods of a finished model, and their form in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz._cli.commands import Effort
from lnz._cli.defaults import LARGE
from lnz._cli.errors import BadInput
from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.frozen import Frozen
from lnz._core.route import Route
from lnz.learning._likelihood import free_energies

ROUTES: dict[str, Callable[..., Any]] = {
    "ais": lnz.routes.AnnealedImportanceSampling,
    "smc": lnz.routes.SequentialMonteCarlo,
    "tempering": lnz.routes.ParallelTempering,
    "bidirectional": lnz.routes.BidirectionalAIS,
}
"""The routes with samples, by the names they have on the command line."""


def size(energy: Energy) -> int:
    """The number of parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(energy))


def choose_route(energy: Energy, base: Energy | None, effort: Effort, *, path: str = "geometric") -> Route:
    """An exact route where one is affordable, otherwise annealing from a base that was fitted to the data.

    Args:
        path: of a named route that anneals: `geometric`, or `moments` for averaged moments, fitted with the same random numbers each time.
    """
    large = size(energy) > LARGE
    if path == "moments":
        base = lnz.routes.moment_averaged_path(energy, base=base, key=jax.random.key(0))
    options: dict[str, Any] = {"base": None if base is None else Frozen(base), "confidence": effort.confidence}
    if effort.route in ("smc", "tempering"):
        return ROUTES[effort.route](**options)
    temperatures, chains = effort.temperatures or (4_000 if large else 10_000), effort.chains or (256 if large else 512)
    annealing = ROUTES.get(effort.route, ROUTES["ais"])(temperatures=temperatures, chains=chains, **options)
    if effort.route in ROUTES:
        return annealing
    choice = lnz.choose(energy, lnz.Budget(evaluations=2.0**32) if effort.route == "exact" else lnz.Budget())
    if choice.route.random and effort.route == "exact":
        raise BadInput(f"--route exact: no exact route supports this model. {choice.why}")
    return annealing if choice.route.random else choice.route


def estimate_json(estimate: lnz.Estimate) -> dict[str, Any]:
    """An estimate of log Z as plain values: messages of the warnings, and their codes beside them."""
    found = estimate.to_dict()
    kept = ("standard_error", "lower", "upper", "known", "guarantee", "route", "confidence", "assumption")
    return {
        "log_z": found["value"],
        "sentence": str(estimate),
        **{name: found[name] for name in kept},
        "effective_sample_size": found["diagnostics"].get("effective_sample_size"),
        "warnings": [warning["message"] for warning in found["warnings"]],
        "warning_codes": [warning["code"] for warning in found["warnings"]],
    }


def estimate_from_json(found: dict[str, Any]) -> lnz.Estimate:
    """The estimate of log Z in the results of a run."""
    low, high = found["lower"], found["upper"]
    effective = found["effective_sample_size"]
    return lnz.Estimate(
        value=jnp.asarray(found["log_z"]),
        standard_error=jnp.asarray(found["standard_error"]),
        lower=jnp.asarray(-math.inf if low is None else low),
        upper=jnp.asarray(math.inf if high is None else high),
        **{name: found[name] for name in ("guarantee", "route", "confidence", "assumption")},
        diagnostics={} if effective is None else {"effective_sample_size": jnp.asarray(effective)},
        flags={EstimateWarning(code): jnp.asarray(True) for code in found["warning_codes"]},
    )


def likelihood_json(found: lnz.learning.LogLikelihood, *, split: str | None) -> dict[str, Any]:
    """A log-likelihood as plain values, in nats per example. The error and the bounds without a prefix come from log Z alone."""
    log_z = estimate_json(found.log_z)
    return {
        "log_likelihood": found.value,
        "log_z": log_z["log_z"],
        "standard_error": found.standard_error,
        "lower": found.lower,
        "upper": found.upper,
        "is_bound": found.is_bound,
        "is_limit": found.is_bound,  # its name in version 0.1
        "known": found.guarantee,
        "guarantee": found.guarantee,
        "route": log_z["route"],
        "n": found.n,
        "data_standard_error": found.data_standard_error,
        "log_z_standard_error": log_z["standard_error"],
        "log_z_lower": log_z["lower"],
        "log_z_upper": log_z["upper"],
        "confidence": log_z["confidence"],
        "assumption": log_z["assumption"],
        "effective_sample_size": log_z["effective_sample_size"],
        "split": split,
    }


def agreement(energy: Energy, train: np.ndarray, states: np.ndarray, route: Route) -> dict[str, Any]:
    """The relative gradient error: the difference of the two phases on the training data (10,000 of them at most).

    The negative phase is exact where log Z is, otherwise a mean over states of the model.
    """
    seen = train[:10_000]
    exact = not route.random
    halves = lnz.learning.phases(energy, seen, route if exact else states)
    positive, negative, gap = (_norm(tree) for tree in (halves.positive, halves.negative, halves.gradient))
    apart = None  # where data show a part of a state alone, F is another's
    if data_space(energy) == observed_space(energy):
        apart = float(free_energies(energy, seen).mean() - free_energies(energy, states).mean())
    return {
        "disagreement": gap / max(positive + negative, 1e-300),
        "energy_gap": apart,
        "states": len(states),
        "negative_phase": "exact" if exact else "model samples",
    }


def _norm(tree: Any) -> float:
    return math.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(tree)))
