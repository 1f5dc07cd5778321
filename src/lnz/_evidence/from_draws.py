"""The evidence from posterior draws that exist: a bridge between them and a base that is fitted to half of them."""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.convergence import ess, r_hat, r_hat_threshold
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import EstimateWarning
from lnz._core.given import given_array
from lnz._core.spaces import Real
from lnz._evidence.arviz_groups import variables_of
from lnz._evidence.evidence import Evidence, is_pymc, posterior_of, settings_of
from lnz._evidence.posterior import Part, Posterior, joined, place_of, refuse_bad_values, split
from lnz.routes._annealing.annealing_route import Weighted
from lnz.routes._annealing.bridge import bar_of, overlap
from lnz.routes._annealing.certificate import lower_bound_of
from lnz.routes._annealing.fitted_smc import target_of
from lnz.routes._annealing.triangular_map import TriangularMap, fitted_map

_LARGEST = 64  # dimensions up to which a map with curved terms is fitted
_WIDEN = 1.05  # of fitted scales
_LEAST_BASE = 2048  # samples of a base
_FEWEST = 50.0  # effective draws
_PER_DIMENSION = 5  # draws of either half, for each dimension
_STEIN_ERRORS, _STEIN_EFFECT = 5.0, 0.15  # a departure that chance does not explain, and one that matters
_LITTLE_OVERLAP = 0.03


class DensityPosterior(Posterior):
    """A log density of unbounded variables: of one array, or of a dict of named arrays."""

    args: Any
    kwargs: Any
    log_density: Callable[..., Any] = eqx.field(static=True)
    _parts: tuple[Part, ...] = eqx.field(static=True)
    single: bool = eqx.field(static=True)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def named(self, z: Float[Array, " d"]) -> dict[str, Array]:
        return split(z, self._parts)

    def unconstrained(self, values: dict[str, Array]) -> Float[Array, " d"]:
        return joined(values, self._parts)

    def __call__(self, x: Float[Array, " d"]) -> Array:
        values = split(x, self._parts)
        value = jnp.asarray(self.log_density(values["x"] if self.single else values, *self.args, **self.kwargs))
        if value.shape != ():
            raise ValueError(
                f"the log density of one state must be one number, but has shape {value.shape}: sum over the data"
            )
        return -value.astype(x.dtype)


def evidence_from_draws(
    draws: Any, model: Any, *args: Any, key: PRNGKeyArray, confidence: float = 0.99, **kwargs: Any
) -> Evidence:
    """The log evidence, in nats, from draws of the posterior that exist, by bridge sampling between them and a fitted base.

    A base, the image of independent variables under a triangular map, is fitted to half of every chain. Its samples and the other half tell log Z by
    Bennett's acceptance ratio; then the halves change places, and the mean of both is the value. The error counts draws by their effective number, so
    that autocorrelation and chains that disagree make it larger. The interval rests on the draws: a mode that no chain has visited is missing.

    Args:
        draws: an ArviZ InferenceData or DataTree with a group `posterior`; a dict of arrays (chains, draws, *shape) by name; or an array (chains,
            draws, *shape).
        model: the model that was drawn from: a NumPyro model with its arguments, a PyMC model, an energy on real arrays, or a log density in JAX of
            one state (a dict where the draws have names), with all of its constants. The variables of a density or an energy are unbounded: give the
            unconstrained draws, and count the Jacobians.
        *args: of the model or the log density.
        key: a random key.
        confidence: of the interval.
        **kwargs: of the model or the log density.

    Returns:
        An `Evidence`. The diagnostics of its `estimate` have both halves (`log_z_of_halves`), their `overlap` with their bases, the smallest
        `effective_sample_size`, the largest `r_hat` and `certified_lower`, a bound from the base's samples that needs no assumption.

    Raises:
        ValueError: for draws that are too few, that miss variables, or that are of another model: E[∂ log p] = 0 and E[(x_i - c_i) ∂_i log p] = -1
            hold for draws of p (Stein's identity), and are tested; the errors of `evidence`.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, lnz
        >>> draws = np.random.default_rng(0).normal(size=(4, 500, 3))
        >>> found = lnz.evidence_from_draws(draws, lambda x: -0.5 * jnp.sum(x**2), key=jax.random.key(0))
        >>> bool(abs(found.value - 1.5 * np.log(2 * np.pi)) < 0.03)
        True

    Source: Meng & Wong 1996; Meng & Schilling 2002 (warps); Gronau et al. 2017, "A tutorial on bridge sampling"; Bennett 1976.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, but is {confidence}")
    with settings_of(model):
        named, single = _named_draws(draws)
        posterior = _posterior(model, named, single, args, kwargs)
        x = _rows(posterior, named)
        _refuse_few(x)
        checks = _checked(posterior, x)
        estimate = _bridged(posterior, x, key, confidence, checks)
        run = Weighted(estimate, jnp.asarray(x.reshape(-1, x.shape[2])), jnp.zeros((1, x.shape[0] * x.shape[1])))
        return Evidence(estimate, posterior, run, key)


# ------------------------------------------------------------------------------------------------------------- the draws


def _named_draws(draws: Any) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays (chains, draws, *shape) by name, and whether there was but one without a name."""
    found = variables_of(draws)
    single = found is None
    named = {"x": draws} if found is None else found
    arrays = {name: np.asarray(given_array(x, f"the draws of {name!r}")) for name, x in named.items()}
    if not arrays:
        raise ValueError("there are no draws: the group posterior has no variables")
    for name, x in arrays.items():
        if x.ndim < 2 or (single and x.ndim < 3):
            raise ValueError(
                f"the draws of {name!r} have shape {x.shape}, but need the axes (chains, draws, …): add an axis for one chain by draws[None]"
            )
        if x.dtype.kind not in "fiub":
            raise ValueError(f"the draws of {name!r} are {x.dtype}, not numbers: leave them out")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise ValueError(
                f"{int((~np.isfinite(x)).sum()):,} of {x.size:,} draws of {name!r} are NaN or infinite: leave out what diverged"
            )
    if len(sizes := {x.shape[:2] for x in arrays.values()}) > 1:
        raise ValueError(f"the variables have different numbers of chains and draws: {sorted(sizes)}")
    return arrays, single


def _posterior(
    model: Any, named: dict[str, np.ndarray], single: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Posterior:
    if isinstance(model, Energy):
        if isinstance(model.space, Real):
            return _of_energy(model)
        raise ValueError(f"draws of an energy on {model.space} are not bridged: give an energy on lnz.Real(…)")
    if is_pymc(model) or not callable(model) or _is_numpyro(model, args, kwargs):
        found: Any = posterior_of(model, args, kwargs)
        missing = sorted(set(found.latent_names) - set(named))
        if missing:
            raise ValueError(
                f"the draws lack {', '.join(map(repr, missing))} of the model; they have {', '.join(map(repr, sorted(named)))}. Keep them all"
            )
        return found
    parts = tuple(Part(name, x.shape[2:]) for name, x in named.items())
    return DensityPosterior(args, kwargs, model, parts, single)


def _of_energy(energy: Energy) -> Posterior:
    """The energy as a log density of its state."""
    return DensityPosterior((energy,), {}, _minus, (Part("x", energy.space.shape),), True)


def _minus(x: Array, energy: Energy) -> Array:
    return -energy(x)


def _is_numpyro(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function is called without a state, as a NumPyro model is and a log density is not."""
    try:
        inspect.signature(model).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _rows(posterior: Posterior, named: dict[str, np.ndarray]) -> Float[np.ndarray, "m n d"]:
    """The draws in unconstrained coordinates."""
    chains, n = next(iter(named.values())).shape[:2]
    flat = {name: jnp.asarray(x.reshape(chains * n, *x.shape[2:])) for name, x in named.items()}
    wanted = {name: flat[name] for name in posterior.latent_names}
    shapes = {part.name: part.shape for part in posterior.parts}
    if isinstance(posterior, DensityPosterior):
        for name, x in wanted.items():
            if x.shape[1:] != shapes[name]:
                raise ValueError(
                    f"the draws of {name!r} have states of shape {x.shape[1:]}, but the energy is on {shapes[name]}"
                )
    rows = np.asarray(_unconstrained(posterior, wanted), np.float64)
    if (bad := ~np.isfinite(rows).all(axis=1)).any():
        place = place_of({name: x[np.argmax(bad)] for name, x in wanted.items()})
        raise ValueError(
            f"{int(bad.sum()):,} of {len(rows):,} draws lie outside the support of the model, first at {place}: they are of another model, or "
            "rounded to its end"
        )
    return rows.reshape(chains, n, -1)


@eqx.filter_jit
def _unconstrained(posterior: Posterior, values: dict[str, Array]) -> Float[Array, "n d"]:
    return jax.vmap(posterior.unconstrained)(values)


# ------------------------------------------------------------------------------------------------------------ the checks


def _refuse_few(x: np.ndarray) -> None:
    chains, n, d = x.shape
    need = max(2 * _PER_DIMENSION * d, 2 * int(_FEWEST))
    if chains * n < need or n < 8:
        raise ValueError(
            f"{chains} chains of {n} draws are too few: {d} dimensions need at least {need:,} draws, and 8 in a chain. Draw more"
        )
    # Chain by chain: that they disagree is warned about.
    effective = np.sum([ess(chain[None]) for chain in x], axis=0)
    still = np.isnan(effective)
    if still.any() or effective.min() < _FEWEST:
        worst = 0.0 if still.any() else float(effective.min())
        raise ValueError(
            f"the draws are worth {worst:.0f} independent ones in their slowest coordinate, fewer than {_FEWEST:.0f}: run the chains longer, or in "
            "coordinates that mix faster"
        )


class _Checks(NamedTuple):
    """What the draws say about themselves: the smallest effective sample size, the largest R-hat and whether it is too large."""

    effective: float
    r_hat: float
    unmixed: bool


def _checked(posterior: Posterior, x: np.ndarray) -> _Checks:
    """Diagnostics of the draws; raises ValueError where they are not of this model."""
    chains, n, d = x.shape
    rows = x.reshape(-1, d)
    refuse_bad_values(posterior, rows, "draws", posterior.named)
    values, slopes = target_of(posterior)(np.ascontiguousarray(rows.T))
    if impossible := int((values == -np.inf).sum()):
        raise ValueError(
            f"{impossible:,} of {len(rows):,} draws have density 0 under the model: they are of another model, or of other data"
        )
    spread = rows.std(axis=0)
    slopes = slopes.T.reshape(x.shape)
    for statistic, wanted, what in (
        (spread * slopes, 0.0, "the slope of the log density has mean {found:.2f} instead of 0"),
        ((x - rows.mean(axis=0)) * slopes, -1.0, "E[(x - c) ∂ log p] is {found:.2f} instead of -1"),
    ):
        found, error = statistic.mean(axis=(0, 1)), _mean_error(statistic)
        off = np.abs(found - wanted)
        worst = int(np.argmax(off / np.maximum(error, 1e-12) * (off > _STEIN_EFFECT)))
        if off[worst] > max(_STEIN_EFFECT, _STEIN_ERRORS * error[worst]):
            words = what.format(found=found[worst])
            raise ValueError(
                f"the draws are not of this model: {words} (± {error[worst]:.2g}) for {_coordinate(posterior, worst)}. Check that model, data and "
                "parametrisation are those that were drawn from, and that the sampler reported no divergences"
            )
    worst_r = float(np.nanmax(r_hat(x)))
    return _Checks(float(ess(x).min()), worst_r, worst_r > r_hat_threshold(chains, n, d))


def _mean_error(statistic: Float[np.ndarray, "m n d"]) -> Float[np.ndarray, " d"]:
    """The standard error of the mean of autocorrelated numbers."""
    size = statistic.shape[0] * statistic.shape[1]
    effective = np.clip(np.nan_to_num(ess(statistic), nan=size), 1, size)
    return statistic.std(axis=(0, 1)) / np.sqrt(effective)


def _coordinate(posterior: Posterior, i: int) -> str:
    """The name of a coordinate of the vector."""
    for part in posterior.parts:
        size = math.prod(part.shape)
        if i < size:
            place = ", ".join(str(int(j)) for j in np.unravel_index(i, part.shape)) if part.shape else ""
            return f"{part.name}[{place}]" if place else part.name
        i -= size
    raise IndexError(i)


# ------------------------------------------------------------------------------------------------------------ the bridge


class _Half(NamedTuple):
    """A bridge from one half of the draws to a base that was fitted to the other."""

    log_z: float
    error: float
    overlap: float
    forward: np.ndarray


def _bridged(posterior: Posterior, x: np.ndarray, key: PRNGKeyArray, confidence: float, checks: _Checks) -> Estimate:
    rng, half = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel()), x.shape[1] // 2
    first, second = x[:, :half], x[:, x.shape[1] - half :]
    with np.errstate(all="ignore"):
        halves = [_half(posterior, *pair, rng) for pair in ((first, second), (second, first))]
    value = 0.5 * (halves[0].log_z + halves[1].log_z)
    apart = abs(halves[0].log_z - halves[1].log_z)
    # Where the base's family has the posterior, both errors are the same bilinear form of the two halves' noise: they do not average out.
    error = math.hypot(halves[0].error, halves[1].error) / math.sqrt(2)
    error = max(error, 0.5 * apart) if checks.unmixed or apart > 4 * error else error
    reach = statistics.NormalDist().inv_cdf(0.5 + confidence / 2) * error
    shared = min(each.overlap for each in halves)
    sure = max(lower_bound_of(each.forward, confidence=1 - (1 - confidence) / 2) for each in halves)
    figures = {
        "log_z_of_halves": np.asarray([each.log_z for each in halves]),
        "overlap": shared,
        "effective_sample_size": checks.effective,
        "r_hat": checks.r_hat,
        "certified_lower": sure,
    }
    return Estimate(
        value=jnp.asarray(value),
        standard_error=jnp.asarray(error),
        lower=jnp.asarray(value - reach),
        upper=jnp.asarray(value + reach),
        guarantee="conditional",
        route=f"bridge sampling from {x.shape[0] * x.shape[1]:,} draws to a fitted base",
        confidence=confidence,
        assumption="the draws are of the model and reach every mode",
        diagnostics={name: jnp.asarray(figure) for name, figure in figures.items()},
        flags={
            EstimateWarning.UNMIXED_DRAWS: jnp.asarray(checks.unmixed),
            EstimateWarning.POOR_BASE_OVERLAP: jnp.asarray(not shared >= _LITTLE_OVERLAP),
        },
    )


def _half(posterior: Posterior, fitted: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> _Half:
    chains, n, d = x.shape
    states = np.ascontiguousarray(fitted.reshape(-1, d).T)
    base = fitted_map(states, _WIDEN) if d <= _LARGEST else _linear_map(states)
    target, rows = target_of(posterior), np.ascontiguousarray(x.reshape(-1, d).T)
    noise = base.drawn(rng, max(_LEAST_BASE, chains * n))
    placed = base.place(noise)
    forward = _possible(target(placed.x)[0]) - (base.log_density(noise)[0] - placed.log_volume)
    back = base.variables(rows)
    reverse = (base.log_density(back)[0] - base.place(back).log_volume) - target(rows)[0]
    log_z = float(bar_of(forward, reverse))
    shift = math.log(reverse.size / forward.size)
    a, b = _logistic(shift + forward - log_z), _logistic(log_z + reverse - shift)
    of_base = a.std() / math.sqrt(a.size) / a.mean()
    of_draws = float(_mean_error(b.reshape(chains, n, 1))[0]) / b.mean()
    slope = (a * (1 - a)).mean() / a.mean() + (b * (1 - b)).mean() / b.mean()
    return _Half(log_z, math.hypot(of_base, of_draws) / slope, float(overlap(forward, reverse, log_z)), forward)


def _possible(log_density: np.ndarray) -> np.ndarray:
    """Log densities at samples of a base, far out among them: NaN, where overflows meet, counts as a density of 0."""
    return np.where(np.isnan(log_density), -np.inf, log_density)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _linear_map(x: Float[np.ndarray, "d n"]) -> TriangularMap:
    """The map whose image has the mean and the covariance of the states."""
    d = len(x)
    centre, width = x.mean(axis=1), x.std(axis=1)
    root = np.linalg.cholesky(np.corrcoef(x) + 1e-9 * np.eye(d))
    linear = np.tril(np.eye(d) - np.diag(np.diag(root)) @ np.linalg.inv(root), -1)
    none = np.zeros((d, d))
    scales = np.log(np.diag(root)) + math.log(_WIDEN)
    ends = np.tile([-1.0, 1.0], (d, 1))
    return TriangularMap(
        np.arange(d), centre, width, ends, (np.zeros(d), linear), [[]] * d, (scales, none, none), np.full(d, 8.0)
    )
