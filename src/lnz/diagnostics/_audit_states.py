"""Checks on states: finite Z along rays, tails of the gradient, hard constraints and precision, and samples against p."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.convergence import pareto_shape, r_hat, r_hat_threshold
from lnz._core.energy import Energy
from lnz._core.random import folded
from lnz._core.spaces import Categorical, Spin, limits_of
from lnz.diagnostics._audit_derivative import Z, joined
from lnz.diagnostics._audit_report import Check
from lnz.diagnostics._audit_subject import Subject, along, energies, norms, uniform
from lnz.routes._annealing.flat_directions import LARGEST, flattest, lowest
from lnz.routes._exact.quadrature import Quadrature

_RADII = 2.0 ** np.arange(-4, 41)
_RAYS = 64


def finite_z(subject: Subject, numbers: dict[str, Any]) -> Check:
    """Check 3: E along random, coordinate and adversarial rays, and the integral over a growing range."""
    name = "finite Z"
    space = observed_space(subject.energy)
    if space.discrete:
        bad = subject.broad is not None and bool((np.asarray(energies(subject.energy, subject.broad)) == -np.inf).any())
        if bad:
            return Check(name, "failed", "E is -inf for some state", "bound the energy from below", math.inf)
        return Check(name, "passed", "a finite sum, and no state with E = -inf was found")
    if not subject.unbounded:
        low = np.asarray(energies(subject.energy, subject.broad)).min() if subject.broad is not None else 0.0
        if low == -np.inf:
            return Check(name, "failed", "E is -inf somewhere in the box", "bound the energy from below", math.inf)
        return Check(name, "passed", f"a bounded box; the lowest energy found is {low:.4g}")
    rays, kinds = _rays(subject)
    table = np.asarray(_along_rays(subject.energy, jnp.asarray(rays), jnp.asarray(_RADII)))
    numbers["rays"] = {
        "radii": _RADII.tolist(),
        "energies": np.where(np.isfinite(table), table, np.nan).tolist(),
        "kinds": kinds,
        "dimensions": subject.size,
    }
    with np.errstate(all="ignore"):
        slope = (table[:, -1] - table[:, -5]) / (np.log(_RADII[-1]) - np.log(_RADII[-5]))
    over = np.isnan(slope) | np.isinf(slope)  # overflow of floats: the last finite values decide
    for i in np.flatnonzero(over):
        finite = np.flatnonzero(np.isfinite(table[i]))
        if np.isposinf(table[i, -1]) or (len(finite) > 8 and table[i, finite[-1]] > table[i, finite[-5]]):
            slope[i] = np.inf
        elif np.isneginf(table[i]).any():
            slope[i] = -np.inf
        elif len(finite) > 8:
            a, b = finite[-5], finite[-1]
            slope[i] = (table[i, b] - table[i, a]) / (np.log(_RADII[b]) - np.log(_RADII[a]))
    random = np.asarray([kind == "random" for kind in kinds])
    lowest = np.min(np.where(np.isfinite(table), table, np.inf), axis=1)
    falls = (slope < -0.5) & (lowest < np.min(np.where(np.isfinite(table), table, np.inf)[:, :5], axis=1) - 50)
    falls |= np.isneginf(slope)
    slow = random & (slope < subject.size * (1 - 1e-6))
    sign = " (is it a log-density rather than an energy?)" if falls.mean() > 0.5 else ""
    if falls.any():
        return Check(name, "failed", f"E falls without bound along {falls.sum()} of {len(rays)} rays, such as {kinds[int(np.argmax(falls))]}{sign}",
                     "add a term that grows in every direction, such as ‖x‖², or bound the space", math.inf)  # fmt: skip
    open_ended = _valleys(subject, rays[slope < 1 - 1e-6])
    remedy = "add a term that grows in every direction, such as ‖x‖², or bound the space"
    if open_ended:
        words = f"along {open_ended} rays E grows by less than 1 per factor e of the radius, and the valley around them does not narrow"
        return Check(name, "failed", words, remedy, math.inf)
    if slow.any():
        words = f"along {slow.sum()} of {random.sum()} random rays E grows by {float(np.min(slope[slow])):.3g} per factor e of the radius"
        return Check(name, "failed", f"{words}, and Z needs more than {subject.size}", remedy, math.inf)
    if isinstance(subject.route, Quadrature):
        value = float(subject.log_z["centre"])
        if value == math.inf:
            return Check(
                name,
                "failed",
                "the integral still grows at the ends of the range",
                "add a term that grows in every direction",
                math.inf,
            )
        if math.isnan(value):
            return Check(name, "failed", "log Z is NaN", "find the state whose energy is NaN", math.inf)
    least = float(np.min(slope[random])) if random.any() else math.inf
    return Check(
        name,
        "passed",
        f"E grows along {len(rays)} rays, by at least {least:.3g} per factor e of the radius along the random ones",
    )


def _valleys(subject: Subject, rays: np.ndarray) -> int:
    """The number of rays along a valley that does not narrow: a step aside raises E no more far out than nearby."""
    if not len(rays) or subject.size == 1:
        return 0
    low, high = (np.asarray(bound).ravel() for bound in limits_of(observed_space(subject.energy)))
    origin = np.where(np.isfinite(low), low, np.where(np.isfinite(high), high, 0))
    aside = np.random.default_rng(5).normal(size=(16, subject.size)) / math.sqrt(subject.size)

    def rise(radius: float) -> np.ndarray:
        on = origin + radius * rays
        states = np.clip(np.concatenate([on[:, None], on[:, None] + aside[None]], axis=1), low, high)
        e = np.asarray(energies(subject.energy, jnp.asarray(states.reshape(-1, *observed_space(subject.energy).shape))))
        e = e.reshape(len(rays), -1)
        return np.median(e[:, 1:] - e[:, :1], axis=1)

    near, far = rise(1e2), rise(1e5)
    return int((far <= 1.5 * np.abs(near) + 1).sum())


@eqx.filter_jit
def _along_rays(energy: Energy, rays: Array, radii: Array) -> Array:
    low, high = (jnp.asarray(bound) for bound in limits_of(observed_space(energy)))
    origin = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high, 0))
    shape = observed_space(energy).shape
    return jax.lax.map(
        lambda u: jax.vmap(lambda r: free_energy_of(energy)((origin.ravel() + r * u).reshape(shape)))(radii), rays
    )


@eqx.filter_jit
def _flat_rays(energy: Energy, rays: Array) -> tuple[Array, Array]:
    """The directions in which the energy grows least from the origin, and those of low energy far out, by descent from given ones."""
    shape = observed_space(energy).shape

    def at(x: Array) -> Array:
        return free_energy_of(energy)(x.reshape(shape))

    origin = jnp.zeros((rays.shape[1],))
    flat = flattest(at, origin, 1.0) if rays.shape[1] <= LARGEST else rays[:0]
    return flat, lowest(at, rays, 1e3)


def _rays(subject: Subject) -> tuple[np.ndarray, list[str]]:
    """Unit vectors into the space, and the kind of each."""
    d = subject.size
    source = np.random.default_rng(3)
    random = source.normal(size=(_RAYS, d))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    axes = np.eye(d)[: min(d, 16)]
    low, high = (np.asarray(bound).ravel() for bound in limits_of(observed_space(subject.energy)))
    open_everywhere = np.isinf(low).all() and np.isinf(high).all()
    found = _flat_rays(subject.energy, jnp.asarray(random)) if open_everywhere else (random[:0], random[:0])
    flat, adversarial = (np.asarray(found_rays) for found_rays in found)
    rays = np.concatenate([random, axes, -axes, flat, adversarial])
    kinds = ["random"] * len(random) + ["a coordinate"] * 2 * len(axes)
    kinds += ["a direction of least curvature"] * len(flat) + ["a direction of descent"] * len(adversarial)
    flips = np.where(np.isfinite(low), 1.0, np.where(np.isfinite(high), -1.0, 0.0))
    rays = np.where(flips != 0, np.abs(rays) * flips, rays)
    bounded = np.isfinite(low) & np.isfinite(high)
    rays = np.where(bounded, 0, rays)
    good = np.isfinite(rays).all(axis=1) & (np.abs(rays).max(axis=1) > 0)
    return rays[good], [kind for kind, fine in zip(kinds, good, strict=True) if fine]


def tails(subject: Subject, numbers: dict[str, Any]) -> Check:
    """Check 4: the mean and the variance of |∂E| under p_θ exist."""
    name = "mean and variance of ∂E"
    if not subject.names:
        return Check(name, "passed", "the energy has no parameters")
    if subject.states is None:
        return Check(name, "untested", f"no states of p are available: {subject.origin}")
    found = np.asarray(norms(subject.energy, subject.states))
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found)).any(axis=1).sum())
        return Check(
            name,
            "failed",
            f"∂E is not finite at {bad} of {len(found)} states of p",
            "find the operation that is not differentiable there",
            math.inf,
        )
    if observed_space(subject.energy).discrete:
        return Check(
            name, "passed", f"finitely many states, so every moment exists; the largest ‖∂E‖ found is {found.max():.4g}"
        )
    numbers["tails"] = {"sizes": np.sort(found.max(axis=1))[::-1][:2000].tolist()}
    if isinstance(subject.route, Quadrature):  # p itself is known on a grid, without sampling noise
        states, log_p = subject.grid
        k, noise = _grid_shape(np.asarray(norms(subject.energy, states)), np.asarray(log_p)), 0.05
        words = f"tail exponent k = {k:.2f} of ‖∂E‖ over a grid of {log_p.size:,} states"
    else:
        k = max((pareto_shape(column) for column in found.T), default=math.nan)
        noise = 2 * (1 + max(k, 0)) / math.sqrt(min(0.2 * len(found), 3 * math.sqrt(len(found))))
        words = f"Pareto shape k = {k:.2f} of ‖∂E‖ over {len(found):,} states ({subject.origin})"
    numbers["tails"]["k"] = k
    if math.isnan(k):
        return Check(name, "untested", f"too few states: {len(found)}")
    if k > 1 - noise:
        return Check(
            name,
            "failed",
            f"{words}: E[∂E] has no mean",
            "the gradient does not exist as an expectation: make the tails lighter, or hold this parameter constant",
        )
    if k - noise > 0.5:
        return Check(
            name,
            "warning",
            f"{words}: no finite variance",
            "do not quote Gaussian error bars of gradient averages; make the tails lighter",
        )
    return Check(name, "passed", words)


def _grid_shape(sizes: np.ndarray, log_p: np.ndarray) -> float:
    """The largest tail exponent, d log g / d log(1/tail probability) between tails of 1e-3 and 1e-6, of the columns g of `sizes`."""
    p = np.exp(log_p - log_p.max())
    p, found = p / p.sum(), []
    for g in sizes.T:
        order = np.argsort(np.where(np.isfinite(g) & (p > 0), g, -1))[::-1]
        tail = np.cumsum(p[order])
        far, near = (g[order][min(int(np.searchsorted(tail, level)), tail.size - 1)] for level in (1e-6, 1e-3))
        found.append(math.log(far / near) / math.log(1e3) if near > 1e-300 and far > near else -1.0)
    return max(found)


def precision(subject: Subject) -> list[Check]:
    """Check 7: NaN in gradients, at possible and impossible states, and float32 against float64."""
    constraints, floats = "hard constraints", "precision"
    states = joined(subject.states, subject.broad)
    if states is None:
        return [Check(n, "untested", "no states are available") for n in (constraints, floats)]
    states = jax.tree.map(lambda x: x[:: max(1, x.shape[0] // 4096)], states)
    e = np.asarray(energies(subject.energy, states))
    if np.isnan(e).any():
        first = Check(
            constraints,
            "failed",
            f"E is NaN at {int(np.isnan(e).sum())} of {e.size} states",
            "guard the logarithm, square root or division",
            math.inf,
        )
    elif subject.names:
        slopes = np.asarray(along(subject.energy, jnp.ones((1, subject.theta.size)), states))[:, 0]
        bad, possible = ~np.isfinite(slopes), np.isfinite(e)
        if (bad & possible).any():
            first = Check(constraints, "failed", f"∂E is not finite at {int((bad & possible).sum())} of {int(possible.sum())} possible states",
                          "the branch that `where` does not select is still differentiated: make its argument safe too", math.inf)  # fmt: skip
        elif bad.any():
            first = Check(constraints, "warning", f"∂E is NaN at {int(bad.sum())} impossible states (E = +inf), and 0 · NaN is NaN",
                          "lnz leaves such states out, but averages of your own do not: make the unselected branch's argument safe")  # fmt: skip
        else:
            impossible = int((e == np.inf).sum())
            first = Check(
                constraints,
                "passed",
                f"energies and gradients are finite at {int(possible.sum()):,} states; {impossible:,} are impossible",
            )
    else:
        first = Check(constraints, "passed", f"no energy of {e.size:,} states is NaN")
    own = np.isfinite(e) if subject.states is None else np.isfinite(e) & (np.arange(e.size) < 4096)
    try:
        narrow = np.asarray(energies(_narrow(subject.energy), jax.tree.map(_narrow_array, states)), np.float64)
    except Exception as error:
        return [first, Check(floats, "untested", f"the energy does not run in float32: {type(error).__name__}")]
    sensible = own & (np.abs(e) < 1e6)
    if not sensible.any():
        return [first, Check(floats, "untested", "no state has an energy below 10^6")]
    worst = float(np.max(np.abs(np.where(sensible, narrow - np.where(sensible, e, 0), 0))))
    words = f"float32 and float64 energies differ by at most {worst:.2g} nats over {int(sensible.sum()):,} states"
    if not math.isfinite(worst) or worst > 0.5:
        return [
            first,
            Check(floats, "failed", words, "compute in float64, or subtract a large constant from E", math.inf),
        ]
    if worst > 0.02:
        return [
            first,
            Check(
                floats,
                "warning",
                f"{words}: log p in float32 can exceed 0 by that much",
                "compute likelihoods in float64",
            ),
        ]
    return [first, Check(floats, "passed", words)]


def _narrow_array(x: Any) -> Any:
    return x.astype(jnp.float32) if eqx.is_inexact_array(x) else x


def _narrow(energy: Energy) -> Energy:
    return jax.tree.map(_narrow_array, energy)


def samples(subject: Subject, given: Any, numbers: dict[str, Any]) -> list[Check]:
    """Checks 8 and 9 on the user's samples: the sign of E, Stein's identity or single-site conditionals (T10), and split R̂."""
    sign, agreement, mixing = "sign of E", "samples against p", "chains"
    if given is None:
        reason = "no samples were given"
        return [Check(n, "untested", reason) for n in (sign, agreement, mixing)]
    states = subject.states
    found = [_sign(subject, states, sign)]
    if isinstance(given, tuple):
        return [*found, *(Check(name, "untested", "product spaces are not supported") for name in (agreement, mixing))]
    chains = np.asarray(given)
    several = chains.ndim == len(observed_space(subject.energy).shape) + 2
    n, m = (chains.shape[0], chains.shape[1]) if several else (1, chains.shape[0])
    # Batch means: each chain is cut into enough pieces to estimate their spread.
    groups = n * max(1, min(-(-32 // n), m // 20))
    if groups < 2:
        return [*found, *(Check(name, "untested", f"{m} samples are too few") for name in (agreement, mixing))]
    try:
        residual = (
            np.asarray(_stein(subject.energy, states))
            if not observed_space(subject.energy).discrete
            else np.asarray(_conditional(subject.energy, states))
        )
    except (TypeError, NotImplementedError, AttributeError) as error:
        found.append(Check(agreement, "untested", f"no identity supports this space: {error}"))
    else:
        pieces = groups // n
        residual = residual.reshape(n, m, -1)[:, : m // pieces * pieces].reshape(groups, -1, residual.shape[-1])
        means = residual.mean(axis=1)
        error = means.std(axis=0, ddof=1) / math.sqrt(groups) + 1e-12
        t = np.abs(means.mean(axis=0)) / error
        worst = float(np.max(t))
        threshold = _student_threshold(groups, residual.shape[-1])
        kind = "conditional" if observed_space(subject.energy).discrete else "Stein"
        words = f"the largest of {residual.shape[-1]} {kind} residuals is {worst:.1f} standard errors from 0"
        if worst > threshold:
            found.append(
                Check(
                    agreement,
                    "failed",
                    words,
                    "the samples are not of this p: run the chains longer, or check the kernel, the temperature and the energy",
                    worst,
                )
            )
        else:
            found.append(Check(agreement, "passed", words, z=worst))
    if not several:
        found.append(Check(mixing, "untested", "one chain was given", "give samples as (chains, draws, *shape) for R̂"))
        return found
    return [
        *found,
        _mixing(mixing, chains.reshape(n, m, -1), np.asarray(energies(subject.energy, states)).reshape(n, m, 1)),
    ]


def _mixing(name: str, chains: np.ndarray, energy: np.ndarray) -> Check:
    """The largest R-hat of the entries of chains (chains, draws, entries) and of their energies (chains, draws, 1)."""
    n, m, entries = chains.shape
    if m < 4:
        return Check(name, "untested", f"R̂ needs 4 draws from every chain, but has {m}")
    found = np.concatenate([r_hat(chains), r_hat(energy)])
    worst = float(np.nanmax(found, initial=0))  # NaN of an entry that never changes
    if worst > r_hat_threshold(n, m, entries + 1):
        return Check(name, "failed", f"split R̂ is {worst:.3g} over {n} chains: they are in different modes, or have not converged",
                     "run longer, start far apart, or use tempering", worst)  # fmt: skip
    return Check(name, "passed", f"split R̂ is {worst:.4g} over {n} chains")


def _sign(subject: Subject, states: Any, name: str) -> Check:
    """The sign of E: E_q[E - E_q] - E_p[E - E_q] is a sum of two divergences, above 0 for samples of p, and negative for -E."""
    space = observed_space(subject.energy)
    finite_base = space.discrete or not subject.unbounded
    e = np.asarray(energies(subject.energy, states))
    if not np.isfinite(e).all():
        return Check(
            name,
            "failed",
            f"{int((~np.isfinite(e)).sum())} of the samples are impossible under E",
            "check E, which is +inf or NaN where the data are",
            math.inf,
        )
    if finite_base:
        other = np.asarray(energies(subject.energy, uniform(space, folded(subject.key, 5), 4096)))
        other = other[np.isfinite(other)]
        against = "uniform states"
    else:
        flat = np.asarray(states).reshape(e.size, -1)
        noise = flat + np.random.default_rng(0).normal(size=flat.shape) * (flat.std(axis=0) + 1e-9)
        other = np.asarray(energies(subject.energy, jnp.asarray(noise).reshape(e.size, *space.shape)))
        other, against = other[np.isfinite(other)], "the samples with added noise of the same spread"
    if other.size < 100:
        return Check(name, "untested", "too few states of finite energy for a comparison")
    # Medians, because an energy can be very large far from the data.
    gap = float(np.median(other) - np.median(e))
    error = (
        math.sqrt(
            np.median(np.abs(other - np.median(other))) ** 2 / other.size
            + np.median(np.abs(e - np.median(e))) ** 2 / e.size
        )
        * 1.86
        + 1e-12
    )
    z = gap / error
    words = f"E of the samples has median {np.median(e):.4g}, of {against} {np.median(other):.4g}"
    if z < -Z:
        return Check(
            name,
            "failed",
            f"{words}: E is higher where the samples are",
            "E may be a log-density: p = exp(-E), so return minus the log-density",
            -z,
        )
    return Check(name, "passed", words, z=z)


@eqx.filter_jit
def _stein(energy: Energy, states: Array) -> Array:
    """∇ log p · f + div f for f = (x_i - m)/(1 + (x_i - m)²/s²) e_i and e_i/(1 + …): (n, 2 d), whose means under p are 0."""
    shape = observed_space(energy).shape
    flat = states.reshape(states.shape[0], -1)
    m, s = jnp.median(flat, axis=0), jnp.std(flat, axis=0) + 1e-12

    def one(x: Array) -> Array:
        score = -jax.grad(lambda v: free_energy_of(energy)(v.reshape(shape)))(x)
        y = (x - m) / s
        weight = 1 / (1 + y**2)
        return jnp.concatenate(
            [score * y * weight + (1 - y**2) * weight**2 / s, score * weight - 2 * y * weight**2 / s]
        )

    return jax.lax.map(one, flat, batch_size=512)


@eqx.filter_jit
def _conditional(energy: Energy, states: Array) -> Array:
    """x_i - E[x_i | the rest] of every site, by conditionals computed from E: (n, sites), whose means under p are 0."""
    space: Any = observed_space(energy)
    if not isinstance(states, jax.Array) or isinstance(space, tuple):
        raise TypeError("product spaces have no single sites")
    values = (
        jnp.asarray([-1.0, 1.0])
        if isinstance(space, Spin)
        else jnp.arange(space.k if isinstance(space, Categorical) else 2).astype(float)
    )
    flat = states.reshape(states.shape[0], -1)

    def one(x: Array) -> Array:
        def site(i: Array) -> Array:
            e = jax.vmap(lambda value: free_energy_of(energy)(x.at[i].set(value.astype(x.dtype)).reshape(space.shape)))(
                values
            )
            return x[i].astype(float) - jnp.sum(jax.nn.softmax(-e) * values)

        return jax.vmap(site)(jnp.arange(min(x.size, 64)))

    return jax.lax.map(one, flat, batch_size=256)


def _student_threshold(groups: int, tests: int) -> float:
    """The threshold that the largest of `tests` Student t values exceeds with a probability of one in a million."""
    from scipy.special import stdtrit

    return -float(stdtrit(groups - 1, 0.5e-6 / tests))
