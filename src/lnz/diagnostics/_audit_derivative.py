"""Checks of the derivative of log Z against differences of log Z itself, and of the causes of a discrepancy."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.capabilities import observed_space
from lnz.diagnostics._audit_report import Check
from lnz.diagnostics._audit_subject import (
    STATES,
    Subject,
    along,
    energies,
    identity,
    moved,
    path_name,
    short_annealing,
)

Z = 6.0  # standard errors beyond which a check fails
GRADIENT = "gradient against difference"
ONE_SIDED = "one-sided derivatives"
CURVATURE = "curvature"


def derivative(subject: Subject, numbers: dict[str, Any]) -> list[Check]:
    """Checks 1, 6 and 10: u·E[-∂E] against central and one-sided differences of log Z, and the curvature of log Z."""
    if not subject.names:
        reason = "the energy has no parameters"
        return [Check(name, "untested", reason) for name in (GRADIENT, ONE_SIDED, CURVATURE)]
    if subject.route is None:
        return [
            sampled(subject, numbers),
            Check(ONE_SIDED, "untested", "log Z has no exact route and no quadrature here"),
            Check(CURVATURE, "untested", "log Z has no exact route here"),
        ]
    observed = observed_space(subject.energy)
    listed = not observed.discrete or observed.count <= STATES
    found = identity(subject.route, subject.energy, jnp.asarray(subject.directions), subject.place, listed)
    found = {name: np.asarray(value) for name, value in found.items()} | subject.log_z
    if not np.isfinite(found["centre"]):
        reason = f"log Z is {found['centre']:g}"
        return [Check(name, "untested", reason) for name in (GRADIENT, ONE_SIDED, CURVATURE)]
    with np.errstate(all="ignore"):
        return _compare(subject, found, numbers)


def _compare(subject: Subject, found: dict[str, np.ndarray], numbers: dict[str, Any]) -> list[Check]:
    steps = subject.steps
    value, error, centre = found["value"], found["error"], found["centre"]
    own = found["centre_error"]
    scale = np.sqrt(np.maximum(found["variance"], 0)) if "variance" in found else np.zeros(len(value))
    forward = _best((value[:, :, 0] - centre) / steps, (error[:, :, 0] + own) / steps, scale, order=1)
    backward = _best((centre - value[:, :, 1]) / steps, (error[:, :, 1] + own) / steps, scale, order=1)
    central = _best((value[:, :, 0] - value[:, :, 1]) / (2 * steps), error.sum(axis=2) / (2 * steps), scale, order=2)
    slope, slope_error = found["slope"], found["slope_error"]
    numbers["derivatives"] = {
        "labels": subject.labels,
        "identity": slope.tolist(),
        "difference": central[0].tolist(),
        "error": (central[1] + slope_error).tolist(),
        "forward": forward[0].tolist(),
        "backward": backward[0].tolist(),
    }
    known = np.isfinite(central[0]) & np.isfinite(slope)
    gap = np.where(known, np.abs(central[0] - slope), -1)
    z = np.where(known, gap / (central[1] + slope_error), -1)
    worst = int(np.argmax(z))
    label, how = subject.labels[worst], type(subject.route).__name__.lower()
    words = f"along {label} the identity gives {slope[worst]:.6g}, the difference quotient {central[0][worst]:.6g}"
    if np.isinf(slope).any():
        gradient = Check(GRADIENT, "untested", f"E[-∂E] is infinite, by {how}: see the mean and variance of ∂E")
    elif not np.isfinite(slope).all():
        bad = int(np.argmin(np.isfinite(slope)))
        gradient = Check(GRADIENT, "failed", f"E[-∂E] along {subject.labels[bad]} is {slope[bad]:g}, by {how}",
                         "find the state whose gradient is not finite", math.inf)  # fmt: skip
    elif not known.any():
        gradient = Check(GRADIENT, "untested", "log Z is not finite on both sides of θ; see the one-sided derivatives")
    elif z[worst] > Z:
        gradient = Check(GRADIENT, "failed", f"{words}: they differ by {gap[worst]:.3g}, by {how}",
                         "do not train on the identity: see the checks below for the reason", float(z[worst]))  # fmt: skip
    else:
        gradient = Check(
            GRADIENT, "passed", f"{len(slope)} directions agree, by {how}; worst {words}", z=float(z[worst])
        )
    sides = _sides(subject, forward, backward, slope, slope_error)
    if "failed" in (gradient.status, sides.status):
        return [gradient, sides, Check(CURVATURE, "untested", "the first derivative is already wrong")]
    return [gradient, sides, _curvature(subject, found, steps)]


def _best(quotient: np.ndarray, noise: np.ndarray, scale: np.ndarray, *, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Richardson's extrapolation at the step where its error estimate is smallest: values and errors (d,); NaN where none is finite.

    `quotient` and `noise` are (d, steps) for halving steps; the quotient's own error falls as step^order. The error includes a millionth of
    the result and of `scale` (d,), so that a smaller discrepancy is never a failure.
    """
    gain = 2**order
    better = (gain * quotient[:, 1:] - quotient[:, :-1]) / (gain - 1)
    spread = (gain * noise[:, 1:] + noise[:, :-1]) / (gain - 1)
    change = np.nan_to_num(np.abs(np.diff(better, axis=1, prepend=np.inf)), nan=np.inf, posinf=np.inf)
    # A change can be small by chance, so the error of a step is at least what the changes of its two neighbours predict for it.
    coarser = np.concatenate([change[:, :1] * np.inf, change[:, :-1]], axis=1) / gain**2
    finer = np.concatenate([change[:, 1:], change[:, -1:]], axis=1) / 2
    error = np.where(
        np.isfinite(better),
        np.maximum(change, np.maximum(np.where(np.isfinite(coarser), coarser, 0), finer)) + spread,
        np.inf,
    )
    error = error + 1e-6 * (np.abs(np.nan_to_num(better)) + scale[:, None])
    pick = np.argmin(error, axis=1)
    rows = np.arange(len(pick))
    value, size = better[rows, pick], error[rows, pick]
    return np.where(np.isfinite(size), value, np.nan), size


def _sides(subject: Subject, forward: Any, backward: Any, slope: np.ndarray, slope_error: np.ndarray) -> Check:
    gaps, sizes = [], []
    for (value, error), other, other_error in (
        (forward, slope, slope_error), (backward, slope, slope_error), (forward, backward[0], backward[1]),
    ):  # fmt: skip
        gaps.append(np.where(np.isfinite(value - other), np.abs(value - other), -1))
        sizes.append(np.where(np.isfinite(error + other_error), error + other_error, np.inf))
    z = np.stack(gaps) / np.stack(sizes)
    side, worst = np.unravel_index(int(np.argmax(z)), z.shape)
    label = subject.labels[worst]
    words = f"along {label}: forward {forward[0][worst]:.6g}, backward {backward[0][worst]:.6g}, identity {slope[worst]:.6g}"
    if z[side, worst] <= Z:
        return Check(ONE_SIDED, "passed", f"no discrepancy beyond the errors; worst {words}", z=float(z[side, worst]))
    if np.isfinite(forward[0][worst]) != np.isfinite(backward[0][worst]) or side != 2:
        cause = "mass escapes to infinity or enters from there as θ moves, or the support moves: no integrable bound of |∂p̃| exists"
    else:
        cause = "log Z has a kink at this θ"
    return Check(
        ONE_SIDED,
        "failed",
        f"{words}; {cause}",
        "move θ away from this point, or use a parametrisation that keeps the mass",
        float(z[side, worst]),
    )


def _curvature(subject: Subject, found: dict[str, np.ndarray], steps: np.ndarray) -> Check:
    """T7: ∇² log Z = Cov(∂E) - E[∂²E] along every direction, and whether E is affine in θ."""
    if "variance" not in found:
        return Check(CURVATURE, "untested", "too many observed states to list")
    value, centre, noise = found["value"], found["centre"], found["error"].sum(axis=2) + 2 * found["centre_error"]
    bend, size = _best((value.sum(axis=2) - 2 * centre) / steps**2, noise / steps**2, found["variance"], order=2)
    truth = found["variance"] + found["bend"]
    known = np.isfinite(bend) & np.isfinite(truth)
    if not known.any():
        return Check(CURVATURE, "untested", "the second differences of log Z are not finite")
    z = np.where(known, np.abs(bend - truth) / (size + 1e-9 * (1 + np.abs(truth))), -1)
    worst = int(np.argmax(z))
    family = bool(np.nanmax(np.abs(found["bend"])) < 1e-9 * (1 + np.nanmax(np.abs(found["variance"]))))
    kind = (
        "E is affine in θ along them: an exponential family, whose log Z is convex"
        if family
        else "E is not affine in θ: not an exponential family, and log Z need not be convex"
    )
    words = f"Cov(∂E) - E[∂²E] is {truth[worst]:.6g} and the second difference of log Z is {bend[worst]:.6g} along {subject.labels[worst]}"
    if z[worst] > Z:
        remedy = "E has kinks in θ that ∂²E misses (as ReLU networks do): use first derivatives, not Newton steps or Fisher information by ∂²E"
        return Check(CURVATURE, "warning", f"{words}; {kind}", remedy, float(z[worst]))
    return Check(CURVATURE, "passed", f"{words}; {kind}", z=float(z[worst]))


def sampled(subject: Subject, numbers: dict[str, Any]) -> Check:
    """Check 1 where log Z has to be sampled: the bridge (BAR) between θ + hu and θ - hu on common random numbers, jackknifed.

    Its gap to the mean of the identities at both ends falls as h²; two steps extrapolate it to h = 0.
    """
    route = short_annealing(subject.energy, None)
    if isinstance(route, str):
        return Check(GRADIENT, "untested", f"no route computes log Z here: {route}")
    rows: dict[str, list[Any]] = {"labels": [], "identity": [], "difference": [], "error": []}
    scores: list[float] = []
    for i, label in list(enumerate(subject.labels))[:3]:
        wide, narrow = (_bridged(subject, route, subject.directions[i], h * subject.scales[i]) for h in (0.04, 0.02))
        parts = (4 * narrow - wide) / 3  # leaving out one block each; the last row leaves out none
        gaps = parts[:, 0] - parts[:, 1]
        n = len(gaps) - 1
        error = math.sqrt((n - 1) / n * float(((gaps[:-1] - gaps[:-1].mean()) ** 2).sum()))
        change = abs(float(gaps[-1] - (narrow[-1, 0] - narrow[-1, 1])))
        scores.append(abs(float(gaps[-1])) / (error + change + 1e-9))
        for name, item in zip(rows, (label, float(parts[-1, 1]), float(parts[-1, 0]), error + change), strict=True):
            rows[name].append(item)
    numbers["derivatives"] = rows
    if not np.isfinite(scores).all():
        return Check(GRADIENT, "untested", "annealing gave values that are not finite")
    i = int(np.argmax(scores))
    words = f"along {rows['labels'][i]} the identity gives {rows['identity'][i]:.5g}, the bridge between θ ± hu {rows['difference'][i]:.5g}, "
    words += f"with a standard error of their gap of {rows['error'][i]:.2g}, by annealing"
    if scores[i] > Z:
        remedy = "do not train on the identity: see the checks below for the reason"
        return Check(GRADIENT, "failed", words, remedy, scores[i])
    return Check(GRADIENT, "passed", words, z=scores[i])


def _bridged(subject: Subject, route: Any, u: np.ndarray, step: float) -> np.ndarray:
    """The difference quotient and the identity along u, without each of 32 blocks of chains and then without none: (33, 2)."""
    ends = [moved(subject.energy, subject.theta + sign * step * u) for sign in (1, -1)]
    pair = [route.anneal(end, subject.key)[:2] for end in ends]
    work = [np.asarray(energies(ends[1], v) - energies(ends[0], v)) for _, v in pair]  # E₋ - E₊ at the states of both
    slopes = [-np.asarray(along(end, jnp.asarray(u)[None], v))[:, 0] for end, (_, v) in zip(ends, pair, strict=True)]
    log_w = [np.asarray(log_w) for log_w, _ in pair]
    blocks = np.arange(log_w[0].size) % 32

    def figures(keep: np.ndarray) -> tuple[float, float]:
        w = [np.exp(x[keep] - x[keep].max()) for x in log_w]
        w = [x / x.sum() for x in w]
        identity = 0.5 * sum(float(a @ slope[keep]) for a, slope in zip(w, slopes, strict=True))
        return _bridge(w, [x[keep] for x in work]) / (2 * step), identity

    return np.asarray([figures(blocks != b) for b in range(33)])


def _bridge(w: list[np.ndarray], work: list[np.ndarray]) -> float:
    """log Z₊ - log Z₋ by Bennett's acceptance ratio from weighted states of both ends; work is E₋ - E₊."""

    def logistic(x: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(0.5 * np.clip(x, -700, 700)))

    c = 0.0
    for _ in range(100):
        up = float(w[1] @ logistic(work[1] - c))  # states of θ₋
        down = float(w[0] @ logistic(c - work[0]))
        if up <= 0 or down <= 0:
            return math.nan
        new = c + math.log(up) - math.log(down)
        if abs(new - c) < 1e-12:
            break
        c = new
    return c


def support(subject: Subject, numbers: dict[str, Any]) -> Check:
    """Check 2: states that are possible at θ + hu and impossible at θ - hu, and the boundary term that is then missing (T4)."""
    name = "support that moves with θ"
    if not subject.names:
        return Check(name, "passed", "the energy has no parameters")
    if observed_space(subject.energy).moving:
        return Check(
            name,
            "warning",
            "the bounds of the box are parameters",
            "log_partition by Quadrature adds the boundary term; chains and phases do not",
        )
    states = joined(subject.states, subject.broad)
    if states is None:
        return Check(name, "untested", "no states are available")
    for u, label in zip(subject.directions, subject.labels, strict=True):
        up, down = (np.asarray(energies(moved(subject.energy, subject.theta + s * 0.05 * u), states)) for s in (1, -1))
        lost = (np.isfinite(up) & (down == np.inf)) | (np.isfinite(down) & (up == np.inf))
        if lost.any():
            where = int(np.argmax(lost))
            example = np.array2string(np.asarray(jax.tree.leaves(states)[0][where]).ravel()[:4], precision=4)
            term = (
                _boundary(subject, u)
                if subject.route is not None and subject.size == 1 and not observed_space(subject.energy).discrete
                else None
            )
            more = f"; the boundary term of d log Z along it is {term:.6g}" if term is not None else ""
            numbers["boundary"] = term
            remedy = (
                "add the boundary term: put x on a lnz.Box whose bounds are parameters, or rescale x to a fixed box"
            )
            words = f"{lost.sum()} of {lost.size} states, such as {example}, are possible on one side of θ along {label} only{more}"
            return Check(name, "failed", words, remedy, math.inf)
    return Check(
        name, "passed", f"none of {len(jax.tree.leaves(states)[0]):,} states becomes possible or impossible near θ"
    )


def _boundary(subject: Subject, u: np.ndarray) -> float | None:
    """The boundary term Σ p(b) db/dθ n over the ends b of a support in one dimension, each found by bisection."""
    energy, h = subject.energy, 1e-4
    shape = observed_space(energy).shape
    xs = np.sort(np.asarray(joined(subject.states, subject.broad)).ravel())
    possible = np.isfinite(np.asarray(energies(energy, jnp.asarray(xs).reshape(-1, *shape))))
    edges = np.flatnonzero(possible[1:] != possible[:-1])
    if not 0 < len(edges) <= 64:
        return None
    inside = np.where(possible[edges], xs[edges], xs[edges + 1])
    outside = np.where(possible[edges], xs[edges + 1], xs[edges])

    def ends(shift: float) -> np.ndarray:
        at = moved(energy, subject.theta + shift * u)
        gap = 2 * np.abs(outside - inside) + 10 * abs(shift) * (1 + np.abs(inside))
        way = np.sign(outside - inside)
        a, b = inside - way * gap, outside + way * gap
        for _ in range(60):
            middle = 0.5 * (a + b)
            fine = np.isfinite(np.asarray(energies(at, jnp.asarray(middle).reshape(-1, *shape))))
            a, b = np.where(fine, middle, a), np.where(fine, b, middle)
        return a

    here, speed = ends(0.0), (ends(h) - ends(-h)) / (2 * h)
    log_z = subject.log_z["centre"]
    density = np.exp(-np.asarray(energies(energy, jnp.asarray(here).reshape(-1, *shape))) - log_z)
    return float(np.sum(density * speed * np.sign(outside - inside)))


def dead_steps(subject: Subject) -> Check:
    """Check 5: parameters that change the energy although its derivative by them is zero almost everywhere."""
    name = "dead steps"
    states = joined(subject.states, subject.broad)
    if not subject.names or states is None:
        return Check(
            name, "untested", "the energy has no parameters" if not subject.names else "no states are available"
        )
    some = jax.tree.map(lambda x: np.asarray(x)[:: max(1, x.shape[0] // 2048)], states)
    parameters = eqx.filter(subject.energy, eqx.is_inexact_array)
    start, dead, idle = 0, [], []
    before, theta = np.asarray(energies(subject.energy, some)), np.asarray(subject.theta)
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        label = path_name(path)
        which = np.unique(np.linspace(0, leaf.size - 1, min(leaf.size, 4)).astype(int)) if leaf.size else []
        rows = np.zeros((len(which), subject.theta.size))
        for row, i in enumerate(which):
            rows[row, start + i] = max(0.5 * abs(theta[start + i]), 0.25)
        start += leaf.size
        flat_slopes = (
            np.abs(np.asarray(along(subject.energy, jnp.asarray(rows), some))).max(axis=0) if len(rows) else []
        )
        for row, steepest in zip(rows, flat_slopes, strict=True):
            away = moved(subject.energy, subject.theta + 0.2 * row)
            if steepest > 0 or float(np.nanmax(np.abs(np.asarray(along(away, jnp.asarray(row)[None], some))))) > 0:
                continue  # it has a derivative, here or nearby
            changed = False
            for sign in (0.2, -0.2, 1, -1):
                after = np.asarray(energies(moved(subject.energy, subject.theta + sign * row), some))
                both = np.isfinite(after) & np.isfinite(before)
                changed |= bool((np.abs(after - before)[both] > 1e-9 * (1 + np.abs(before[both]))).any())
            where = label + (f"[{int(np.flatnonzero(row)[0]) - start + leaf.size}]" if leaf.ndim else "")
            (dead if changed else idle).append(where)
    if dead:
        words = f"∂E/∂θ is 0 at every state for {', '.join(dead[:4])}, but E changes when it changes"
        remedy = (
            "replace the hard threshold, rounding or argmax by a smooth one, or estimate its derivative by differences"
        )
        return Check(name, "failed", words, remedy, math.inf)
    note = f"; {', '.join(idle[:4])} had no effect at these states" if idle else ""
    return Check(name, "passed", f"every parameter that changes E has a derivative{note}")


def joined(states: Any, broad: Any) -> Any:
    if states is None or broad is None:
        return broad if states is None else states

    def both(a: Any, b: Any) -> Any:
        return jax.device_put(np.concatenate([np.asarray(a)[:4096], np.asarray(b).astype(a.dtype)]))

    return jax.tree.map(both, states, broad)
