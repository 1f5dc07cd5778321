"""The evidence of a model by one call, and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._choose import Budget, choose, chosen_route
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate, Guarantee, exact
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.route import Route
from lnz._core.spaces import Real
from lnz._evidence.arviz_groups import Draws, to_arviz
from lnz._evidence.likelihood_posterior import posterior_of_cube, posterior_of_prior
from lnz._evidence.numpyro_posterior import numpyro_posterior
from lnz._evidence.posterior import CHECKED, Posterior, refuse_bad_values
from lnz._evidence.pymc_posterior import PyMCPosterior, pymc_posterior, pytensor_settings
from lnz._models.independent import default_base
from lnz._partition import log_partition, log_partition_to_accuracy, refuse_nan
from lnz.kernels._resampling import systematic_on_host
from lnz.routes._annealing.annealing_route import AnnealingRoute, Weighted
from lnz.routes._annealing.fitted_smc import FittedSMC

_BUDGET = Budget(evaluations=2.0**21)  # quadrature in two dimensions, not in three
_ROUTE_OF_DRAWS = 1  # folded into the key where draws need a run of their own


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """The evidence of a model, p(y) = ∫ p(y | x) p(x) dx, as an estimate of its logarithm, and the posterior that was found on the way.

    Attributes:
        estimate: of log p(y), in nats, with its error, bounds and guarantee.
    """

    estimate: Estimate
    _posterior: Energy
    _run: Weighted | None
    _key: PRNGKeyArray

    @property
    def value(self) -> float:
        """log p(y), in nats."""
        return float(self.estimate.value)

    @property
    def standard_error(self) -> float:
        """One standard error of `value`."""
        return float(self.estimate.standard_error)

    @property
    def lower(self) -> float:
        """The lower end of the interval, in nats."""
        return float(self.estimate.lower)

    @property
    def upper(self) -> float:
        """The upper end of the interval, in nats."""
        return float(self.estimate.upper)

    @property
    def guarantee(self) -> Guarantee:
        """What the interval rests on."""
        return self.estimate.guarantee

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the estimate, each with its remedy."""
        return self.estimate.warnings

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return self.estimate.sentence("log evidence")

    def __repr__(self) -> str:
        return repr(self.estimate).replace("Estimate", "Evidence", 1)

    def to_dict(self) -> dict[str, Any]:
        """The estimate as plain Python values, as JSON needs them."""
        return self.estimate.to_dict() | {"quantity": "log evidence"}

    def draws(self, n: int = 4000) -> dict[str, np.ndarray]:
        """n draws from the posterior, equally weighted, by the names of the variables in their own space: (n, *shape) each.

        They are resampled from the weighted states of the run that gave the estimate; where that was not by states (a quadrature), from those of
        a run of their own.

        Raises:
            ValueError: for a model whose variables are not real.
        """
        return self._drawn(n).named

    def to_arviz(self, *, draws: int = 1000, chains: int = 4) -> Any:
        """The posterior and the evidence for ArviZ: an xarray DataTree with ArviZ 1, an InferenceData before that.

        The group `posterior` holds equally weighted draws, (chain, draw, *shape) by the names of the variables; `sample_stats` their log density
        `lp`, unconstrained, in nats. The attributes are log_evidence, log_evidence_se, log_evidence_lower, log_evidence_upper, guarantee, confidence
        and warnings.

        Args:
            draws: in each chain.
            chains: parts that the draws are dealt into, for ArviZ's sake.

        Raises:
            ModuleNotFoundError: where ArviZ is not installed.
        """
        attributes = {
            "log_evidence": self.value,
            "log_evidence_se": self.standard_error,
            "log_evidence_lower": self.lower,
            "log_evidence_upper": self.upper,
            "guarantee": self.guarantee,
            "confidence": self.estimate.confidence,
            "warnings": " ".join(f"{words}." for words in self.warnings),
        }
        return to_arviz(self._drawn(draws * chains), chains, attributes)

    def _drawn(self, n: int) -> Draws:
        with settings_of(self._posterior):
            run, rng = self._run, np.random.default_rng(np.asarray(jax.random.key_data(self._key)).ravel())
            if run is None:
                run = _run_for_draws(self._posterior, jax.random.fold_in(self._key, _ROUTE_OF_DRAWS))
            log_weights = np.asarray(run.log_weights, np.float64).reshape(1, -1)
            chosen = _resampled(rng, log_weights, n)
            rows = jnp.asarray(run.states)[chosen]
            energies = _energies(self._posterior, rows)
            named = _named(self._posterior, rows) if isinstance(self._posterior, Posterior) else {"x": rows}
            return Draws({name: np.asarray(x) for name, x in named.items()}, -np.asarray(energies))


def evidence(
    model: Any,
    *args: Any,
    key: PRNGKeyArray,
    prior: Any = None,
    prior_transform: Callable[[Array], Any] | None = None,
    dimensions: int | None = None,
    route: Route | None = None,
    within: float | None = None,
    max_seconds: float = 60.0,
    progress: Callable[[int, Estimate], None] | None = None,
    **kwargs: Any,
) -> Evidence:
    """The log evidence log p(y) = log ∫ p(y | x) p(x) dx of a model, in nats, with an interval, and its posterior.

    Variables are mapped to the reals with their Jacobians, and the prior is where annealing begins. Sequential Monte Carlo from a fitted base
    (`lnz.routes.FittedSMC`) computes the integral; quadrature does in up to three dimensions, annealed importance sampling in more than 64.

    Args:
        model: what has an evidence:

            - a NumPyro model, a function with sample sites, called as model(*args, **kwargs). Discrete latent sites are summed out where NumPyro can
              enumerate them;
            - a PyMC model;
            - a log likelihood in JAX, log_likelihood(x, *args, **kwargs) of one state x, in nats, with `prior` or `prior_transform`;
            - an energy -log p(x, y), such as `lnz.FunctionEnergy`.
        *args: of the model: its data. A keyword argument of the model with one of the names below needs `functools.partial`.
        key: a random key.
        prior: of a log likelihood: a NumPyro distribution, a dict of them (then x is a dict of their values), or an energy with exact samples, as
            `lnz.Gaussian`, or `lnz.Uniform` of a bounded box.
        prior_transform: of a log likelihood, as for dynesty: a function in JAX from the unit cube to x.
        dimensions: of that cube.
        route: how to compute the integral; by default `lnz.choose` picks one.
        within: the width of the interval, in nats, that more and larger runs are made for.
        max_seconds: for these runs, about.
        progress: called after each of these runs with their number and its estimate.
        **kwargs: of the model.

    Returns:
        An `Evidence`: its `estimate`, and draws from the posterior by `draws()` and `to_arviz()`.

    Raises:
        ModuleNotFoundError: where NumPyro is needed and not installed.
        TypeError: for what is not a model, or a prior of another kind.
        ValueError: where the evidence is undefined (improper priors) or nothing is observed; for data of another shape, or outside the support of
            their distribution; for a log density that is NaN or +inf somewhere, or 0 on all of the prior; for discrete variables that cannot be
            summed out.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> y = jnp.asarray([0.8, 1.9, 1.3, 0.4])
        >>> def log_likelihood(x):
        ...     return jax.scipy.stats.norm.logpdf(y, x[0], 1.0).sum()
        >>> found = lnz.evidence(log_likelihood, prior=lnz.Gaussian([0.0], [0.25]), key=jax.random.key(0))
        >>> round(found.value, 3)  # log N(y; 0, I + 4)
        -5.865

    Source: the routes name theirs; Chopin & Papaspiliopoulos 2020, "An Introduction to Sequential Monte Carlo", chapter 17.
    """
    with settings_of(model):
        posterior = posterior_of(model, args, kwargs, prior, prior_transform, dimensions)
        if isinstance(posterior, Posterior) and posterior.space != Real(0):
            _refuse_at_prior(posterior, key)
        estimate, run = _computed(posterior, key, route, within, max_seconds, progress)
        return Evidence(estimate, posterior, run, key)


def posterior_of(
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prior: Any = None,
    prior_transform: Callable[[Array], Any] | None = None,
    dimensions: int | None = None,
) -> Energy:
    """-log p(x, y) of a model as an energy; raises the errors of `evidence`."""
    if prior is not None and prior_transform is not None:
        raise ValueError("prior and prior_transform say the same thing: give one of them")
    known = prior is not None or prior_transform is not None
    if isinstance(model, Energy) or is_pymc(model):
        kind = "an energy" if isinstance(model, Energy) else "a PyMC model"
        if args or kwargs or known:
            raise TypeError(
                f"{kind} is the whole of -log p(x, y): leave out the prior and other arguments. A prior belongs to a log likelihood, a function"
            )
        return model if isinstance(model, Energy) else pymc_posterior(model)
    if not callable(model):
        raise TypeError(
            f"a model is a NumPyro model, a PyMC model, a log likelihood with a prior, or an lnz energy, but got {type(model).__name__}"
        )
    if prior_transform is not None:
        return posterior_of_cube(model, prior_transform, dimensions, args, kwargs)
    return numpyro_posterior(model, args, kwargs) if prior is None else posterior_of_prior(model, prior, args, kwargs)


def is_pymc(model: Any) -> bool:
    """Whether the model is PyMC's, which has been imported then."""
    pymc = sys.modules.get("pymc")
    return pymc is not None and isinstance(model, pymc.Model)


def settings_of(model: Any) -> contextlib.AbstractContextManager[None]:
    """The settings of JAX under which a model runs."""
    needed = is_pymc(model) or isinstance(model, PyMCPosterior)
    return pytensor_settings() if needed else contextlib.nullcontext()


def _refuse_at_prior(posterior: Posterior, key: PRNGKeyArray, spread: float = 0.0) -> None:
    """Refuse a log density that is NaN or +inf at draws from the prior, or so many times as far from each other."""
    own = posterior.base()
    base: Any = default_base(posterior.space) if own is None else own
    where = "points around the origin" if own is None else "draws from the prior"
    rows = np.asarray(base.sample(key, CHECKED), np.float64)
    if spread:
        rows, where = rows + spread * (np.roll(rows, 1, axis=0) - rows), "points around the prior"
    refuse_bad_values(posterior, rows, where, posterior.named)


def _computed(
    energy: Energy,
    key: PRNGKeyArray,
    route: Route | None,
    within: float | None,
    max_seconds: float,
    progress: Callable[[int, Estimate], None] | None,
) -> tuple[Estimate, Weighted | None]:
    """log Z, and the states of the run where there are some."""
    if energy.space == Real(0):
        value = -energy(jnp.zeros(0, jnp.result_type(float)))
        eps = float(jnp.finfo(value.dtype).eps)
        return exact(
            value, rounding=8 * eps * jnp.abs(value), route="the likelihood itself, without latent variables"
        ), None
    route = choose(energy, _BUDGET).route if route is None else route
    if not isinstance(route, AnnealingRoute):
        return log_partition(energy, route=route, key=key), None
    route.require(energy, key)
    if within is None:
        run = route.run(energy, key)
    elif isinstance(route, FittedSMC):
        run = _within(energy, key, route, within, max_seconds, progress)
    else:
        options: Any = {"within": within, "max_seconds": max_seconds, "progress": progress}
        return log_partition_to_accuracy(energy, route, key, **options), None
    if isinstance(energy, Posterior) and math.isnan(float(run.estimate.value)):
        for spread in (1.0, 4.0):
            _refuse_at_prior(energy, key, spread)
    refuse_nan(run.estimate, energy)
    return run.estimate, run


def _within(
    energy: Energy,
    key: PRNGKeyArray,
    route: FittedSMC,
    within: float,
    max_seconds: float,
    progress: Callable[[int, Estimate], None] | None,
) -> Weighted:
    """The first of runs with ever more populations whose interval is narrow enough, or the last one before time runs out.

    The runs are not joined, as `log_partition_to_accuracy` does: what every base hardly reaches would be missing from the joint interval, while that
    of one run covers what its pilot found.
    """
    if not (within > 0 and max_seconds > 0):
        raise ValueError(f"within and max_seconds must be above 0, but are {within} and {max_seconds}")
    begun, runs = time.perf_counter(), 0
    while True:
        run = route.run(energy, jax.random.fold_in(key, runs))
        runs += 1
        spent, estimate = time.perf_counter() - begun, run.estimate
        if progress is not None:
            progress(runs, estimate)
        wide = not float(estimate.upper - estimate.lower) <= within
        if not wide or math.isnan(float(estimate.value)) or spent * (1 + 2 / runs) > max_seconds:
            flags = {**estimate.flags, EstimateWarning.OUT_OF_TIME: jnp.asarray(wide)}
            return Weighted(dataclasses.replace(estimate, flags=flags), run.states, run.log_weights)
        route = dataclasses.replace(route, replicates=2 * route.replicates)


def _run_for_draws(energy: Energy, key: PRNGKeyArray) -> Weighted:
    route = FittedSMC(mode_probes=0)
    reason = route.unsupported_reason(energy)
    if reason is None:
        return route.run(energy, key)
    other = chosen_route(energy, key)
    if not isinstance(other, AnnealingRoute):
        raise ValueError(f"no posterior draws of this model: {reason}")
    return other.run(energy, key)


def _resampled(rng: np.random.Generator, log_weights: np.ndarray, n: int) -> np.ndarray:
    """n numbers of states by their weights, in random order."""
    size = log_weights.size
    copies = -(-n // size)
    chosen = np.concatenate([systematic_on_host(rng, log_weights)[0] for _ in range(copies)])
    return rng.permutation(chosen)[:n]


@eqx.filter_jit
def _energies(energy: Energy, rows: Array) -> Array:
    return jax.vmap(energy)(rows)


@eqx.filter_jit
def _named(posterior: Posterior, rows: Array) -> dict[str, Array]:
    return jax.vmap(posterior.named)(rows)
