"""Maps from independent variables to a density near a model: each coordinate given the earlier ones, fitted to states by least squares. In NumPy."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

_FREEDOM = (2.0, 4.0, 8.0)
_FARTHEST, _FARTHEST_SEEN_BY_SCALES = 5.0, 4.5  # standard deviations beyond which features stay as they are
_EXTREME = 0.002  # the quantile of the fitted states beyond which hinges stay as they are
_STEEPEST = 12.0  # the largest |log scale| of a standardised coordinate
_SCALE_RIDGE = 0.02  # of a state
_FITS = 6
_SELECTING = (0, 2, 4)  # the fits that look for terms
_CAPPED = 0.98  # the quantile of the weights at which they are capped
_HINGES = (None, -1.0, 0.0, 1.0)
_TERMS = 8  # the most terms of a location
_ALONE = 2**18  # multiplications of a matrix product for which BLAS starts no thread
_LOOKED_AT = 24  # candidates whose gain is computed
_SIGNIFICANT = 30.0  # squared standard errors that a term's coefficient is from 0


class Features(NamedTuple):
    """Standardised coordinates (d, n) as locations and scales see them: clipped, so that what is fitted stays bounded where no state was.

    Attributes:
        near: within five standard deviations.
        seen: within the fitted states.
        nearer: within four standard deviations.
    """

    near: np.ndarray
    seen: np.ndarray
    nearer: np.ndarray


class Term(NamedTuple):
    """A term of a location: c · z_a · z_b, or with a hinge κ, c · z_a · max(z_b - κ, 0), without z_a where a is None."""

    a: int | None
    b: int
    hinge: float | None
    c: float

    def factors(self, features: Features) -> tuple[np.ndarray, np.ndarray]:
        """The two factors, (n,)."""
        z = features.near if self.hinge is None else features.seen
        first = np.ones_like(z[self.b]) if self.a is None else z[self.a]
        return first, z[self.b] if self.hinge is None else np.maximum(z[self.b] - self.hinge, 0)


class Placed(NamedTuple):
    """States of a map, and what its derivative needs.

    Attributes:
        x: (d, n), in the model's order of coordinates.
        log_volume: the log determinant of the map's derivative, (n,).
        noise: what was mapped, (d, n), in the map's order, as all below.
        z: standardised coordinates.
        features: of them.
        scale: of the coordinates.
        free: where the scale is not clipped.
    """

    x: np.ndarray
    log_volume: np.ndarray
    noise: np.ndarray
    z: np.ndarray
    features: Features
    scale: np.ndarray
    free: np.ndarray


class TriangularMap(NamedTuple):
    """A map from independent Student's t variables to R^d; its coordinates follow each other in some order.

    z_i = m_i + exp(s_i) noise_i, where the log scale s_i is quadratic in the earlier z, and the location m_i linear, with products and hinges of
    them where these explain more; x = centre + width z. Funnels, ridges and hierarchical models are the images of such maps, or near to them.

    Attributes:
        order: of the model's coordinates. Everything below is in this order.
        centre: of the coordinates.
        width: of the coordinates.
        extremes: the least and largest z of the states that it was fitted to, (d, 2).
        location: the constant (d,) and linear (d, d) coefficients of m, the latter strictly lower triangular.
        terms: the other terms of m, coordinate by coordinate.
        log_scale: the constant, linear and quadratic coefficients of s.
        freedom: degrees of freedom of the variables.
    """

    order: Int[np.ndarray, " d"]
    centre: np.ndarray
    width: np.ndarray
    extremes: np.ndarray
    location: tuple[np.ndarray, np.ndarray]
    terms: list[list[Term]]
    log_scale: tuple[np.ndarray, np.ndarray, np.ndarray]
    freedom: np.ndarray

    def drawn(self, rng: np.random.Generator, n: int) -> Float[np.ndarray, "d n"]:
        """The variables of n exact samples."""
        return rng.standard_t(self.freedom, (n, len(self.order))).T

    def place(self, noise: Float[np.ndarray, "d n"]) -> Placed:
        """The states to which variables are mapped."""
        (m0, m1), (s0, s1, s2) = self.location, self.log_scale
        z, log_scale, clipped, nearer2 = (np.empty_like(noise) for _ in range(4))
        features = Features(*(np.empty_like(noise) for _ in Features._fields))
        near, seen, nearer = features
        for i in range(len(noise)):
            log_scale[i] = s0[i] + times(s1[i, :i], nearer[:i]) + times(s2[i, :i], nearer2[:i])
            clipped[i] = np.minimum(np.maximum(log_scale[i], -_STEEPEST), _STEEPEST)
            location = m0[i] + times(m1[i, :i], near[:i]) + _summed(self.terms[i], features)
            z[i] = location + np.exp(clipped[i]) * noise[i]
            near[i], seen[i], nearer[i] = features_of(z[i], self.extremes[i])
            nearer2[i] = np.square(nearer[i])
        x = np.empty_like(noise)
        x[self.order] = self.centre[:, None] + self.width[:, None] * z
        log_volume = clipped.sum(axis=0) + np.log(self.width).sum()
        return Placed(x, log_volume, noise, z, features, np.exp(clipped), clipped == log_scale)

    def pulled(self, at: Placed, gradient: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "d n"]:
        """The gradient by the variables of f(x) + log volume, from that of f by x."""
        (_, m1), (_, s1, s2) = self.location, self.log_scale
        by_x = gradient[self.order] * self.width[:, None]
        by_z, by_scale, by_near, by_seen = (
            np.empty_like(by_x),
            np.empty_like(by_x),
            np.zeros_like(by_x),
            np.zeros_like(by_x),
        )
        inside = [f == at.z for f in at.features]
        for j in range(len(by_x) - 1, -1, -1):
            later = slice(j + 1, None)
            linear = times(m1[later, j], by_z[later]) + by_near[j]
            by_log_scale = times(s1[later, j], by_scale[later])
            by_log_scale += 2 * at.features.nearer[j] * times(s2[later, j], by_scale[later])
            by_z[j] = by_x[j] + inside[0][j] * linear + inside[1][j] * by_seen[j] + inside[2][j] * by_log_scale
            by_scale[j] = (by_z[j] * at.scale[j] * at.noise[j] + 1) * at.free[j]
            for term in self.terms[j]:
                first, second = term.factors(at.features)
                by_features, bends = (by_near, 1.0) if term.hinge is None else (by_seen, second > 0)
                by_features[term.b] += term.c * by_z[j] * first * bends
                if term.a is not None:
                    by_features[term.a] += term.c * by_z[j] * second
        return by_z * at.scale

    def variables(self, x: Float[np.ndarray, "d n"]) -> Float[np.ndarray, "d n"]:
        """The variables that are mapped to these states."""
        z = (x[self.order] - self.centre[:, None]) / self.width[:, None]
        features = Features(*map(np.stack, zip(*map(features_of, z, self.extremes), strict=True)))
        (m0, m1), (s0, s1, s2) = self.location, self.log_scale
        location = m0[:, None] + times(m1, features.near) + [_summed(terms, features) for terms in self.terms]
        log_scale = s0[:, None] + times(s1, features.nearer) + times(s2, np.square(features.nearer))
        return (z - location) * np.exp(-log_scale.clip(-_STEEPEST, _STEEPEST))

    def log_density(self, noise: Float[np.ndarray, "d n"]) -> tuple[np.ndarray, np.ndarray]:
        """That of the variables, (n,), and its gradient (d, n)."""
        nu = self.freedom[:, None]
        tails = 0.5 * (nu + 1) * np.log1p(np.square(noise) / nu)
        return (_log_peak(nu) - tails).sum(axis=0), -(nu + 1) * noise / (nu + np.square(noise))


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b on one thread, in blocks: small products wait for BLAS's threads, whose number would change the last digits."""
    if a.ndim == 1 or b.ndim == 1:
        left, right = "mk"[2 - a.ndim :], "kn"[: b.ndim]
        return np.einsum(f"{left},{right}->{left[:-1]}{right[1:]}", a, b)
    (m, k), n = a.shape, b.shape[1]
    if m * k * n <= _ALONE:
        return a @ b
    if k >= max(m, n):
        size = max(_ALONE // (m * n), 1)
        return sum((a[:, i : i + size] @ b[i : i + size] for i in range(0, k, size)), np.zeros((m, n)))
    if m > n:
        return times(b.T, a.T).T
    size = max(_ALONE // (m * k), 1)
    return np.concatenate([a @ b[:, i : i + size] for i in range(0, n, size)], axis=1)


def features_of(z: np.ndarray, extremes: np.ndarray) -> Features:
    """The features of one coordinate, (n,) each."""
    near = np.minimum(np.maximum(z, -_FARTHEST), _FARTHEST)
    seen = np.minimum(np.maximum(z, extremes[0]), extremes[1])
    nearer = np.minimum(np.maximum(z, -_FARTHEST_SEEN_BY_SCALES), _FARTHEST_SEEN_BY_SCALES)
    return Features(near, seen, nearer)


def _summed(terms: list[Term], features: Features) -> np.ndarray:
    """The sum of terms, (n,)."""
    total = np.zeros(features.near.shape[1])
    for term in terms:
        total += term.c * np.multiply(*term.factors(features))
    return total


def _log_peak(nu: np.ndarray) -> np.ndarray:
    """The log density of Student's t at 0."""
    from scipy.special import gammaln

    return gammaln(0.5 * (nu + 1)) - gammaln(0.5 * nu) - 0.5 * np.log(nu * math.pi)


# -------------------------------------------------------------------------------------------------------------- the fit


def fitted_map(x: Float[np.ndarray, "d n"], widen: float, order: Any = None) -> TriangularMap:
    """The map fitted to equally weighted states, with scales that are `widen` times as large; by default in the likelier of two orders."""
    orders = [np.arange(len(x)), np.arange(len(x))[::-1]] if order is None else [order]
    tries = [_fitted_in_order(x, each, widen) for each in orders]
    return max(tries, key=lambda each: each[1])[0]


def _fitted_in_order(x: np.ndarray, order: np.ndarray, widen: float) -> tuple[TriangularMap, float]:
    """By iterated weighted least squares, held by a ridge, one coordinate after another; and the mean log likelihood of standardised states."""
    d = len(x)
    centre, width = x.mean(axis=1)[order], x.std(axis=1)[order]
    width = np.where(width > 0, width, 1.0)
    z = (x[order] - centre[:, None]) / width[:, None]
    extremes = np.quantile(z, [_EXTREME, 1 - _EXTREME], axis=1).T.clip(-_FARTHEST, _FARTHEST)
    features = Features(*map(np.stack, zip(*map(features_of, z, extremes), strict=True)))
    m0, m1, s0, s1, s2, freedom = (np.zeros(shape) for shape in (d, (d, d), d, (d, d), (d, d), d))
    log_likelihood, terms = 0.0, []
    rows = np.vstack([np.ones((1, x.shape[1])), features.nearer, np.square(features.nearer)])
    gram = times(rows, rows.T)
    for i in range(d):
        earlier = np.r_[: i + 1, d + 1 : d + i + 1]
        found = _regressed(Features(*(f[:i] for f in features)), z[i], rows[earlier], gram[np.ix_(earlier, earlier)])
        m0[i], m1[i, :i] = found.location[0], found.location[1:]
        s0[i], s1[i, :i], s2[i, :i] = found.log_scale[0] + math.log(widen), *found.log_scale[1:].reshape(2, i)
        terms.append(found.terms)
        freedom[i] = found.freedom
        log_likelihood += found.log_likelihood
    return TriangularMap(order, centre, width, extremes, (m0, m1), terms, (s0, s1, s2), freedom), log_likelihood


class _Regressed(NamedTuple):
    """A t variable given earlier ones: coefficients of the location, its terms, coefficients of the log scale, and how likely the states are."""

    location: np.ndarray
    terms: list[Term]
    log_scale: np.ndarray
    freedom: float
    log_likelihood: float


def _regressed(features: Features, y: np.ndarray, scale_rows: np.ndarray, scale_gram: np.ndarray) -> _Regressed:
    """The regression of y (n,) on k features; the rows that log scales are linear in, (1 + 2 k, n), and their products."""
    from scipy.linalg import cho_factor, cho_solve

    k, n = features.near.shape
    rows = np.vstack([np.ones((1, n)), features.near])
    scale_ridge = _SCALE_RIDGE * n * np.concatenate([[1e-9], np.ones(2 * k)])
    nu, weights, terms, log_scale = max(_FREEDOM), np.ones(n), [], np.zeros(1 + 2 * k)
    information = cho_factor(scale_gram * (2 * nu / (nu + 3)) + np.diag(scale_ridge))
    for fit in range(_FITS):
        weights = weights / weights.mean()
        a, rest = _solved(rows, weights, y)
        while k and fit in _SELECTING and len(terms) < _TERMS:
            term = _best_term(features, rows, weights, rest)
            if term is None:
                break
            terms.append(term)
            rows = np.vstack([rows, np.multiply(*term.factors(features))])
            a, rest = _solved(rows, weights, y)
        rest2 = np.square(rest)
        if fit == 0:
            log_scale[0] = 0.5 * math.log(rest2.mean() + 1e-12)
        r2 = rest2 * np.exp(-2 * _clipped(times(log_scale, scale_rows)))
        score = (nu + 1) * r2 / (nu + r2) - 1
        log_scale = log_scale + cho_solve(information, times(scale_rows, score) - scale_ridge * log_scale)
        scales = _clipped(times(log_scale, scale_rows))
        weights = np.exp(-2 * scales) * (nu + 1) / (nu + rest2 * np.exp(-2 * scales))
        weights = np.minimum(weights, np.quantile(weights, _CAPPED))
    likelihood, shift, nu = max((*_scaled(rest2, times(log_scale, scale_rows), nu), nu) for nu in _FREEDOM)
    log_scale[0] += shift
    terms = [term._replace(c=float(c)) for term, c in zip(terms, a[1 + k :], strict=True)]
    return _Regressed(a[: 1 + k], terms, log_scale, nu, likelihood)


def _solved(rows: np.ndarray, weights: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted ridge regression: coefficients and residuals."""
    from scipy.linalg import cho_factor, cho_solve

    weighted = rows * weights
    ridge = 1e-3 * math.log(len(y)) * np.eye(len(rows))
    a = cho_solve(cho_factor(times(weighted, rows.T) + ridge), times(weighted, y))
    return a, y - times(a, rows)


def _best_term(features: Features, rows: np.ndarray, weights: np.ndarray, rest: np.ndarray) -> Term | None:
    """The term that explains most of the residuals, or None where none explains enough."""
    from scipy.linalg import cho_factor, cho_solve

    candidates = []
    for hinge in _HINGES:
        z = features.near if hinge is None else features.seen
        seconds = z if hinge is None else np.maximum(z - hinge, 0)
        firsts = z if hinge is None else np.vstack([np.ones((1, z.shape[1])), z])
        pulls = np.square(times(seconds * (weights * rest), firsts.T))
        sizes = times(np.square(seconds) * weights, np.square(firsts).T)
        share = pulls / (sizes + 1e-12)
        for b, a in zip(*np.unravel_index(np.argsort(-share, axis=None)[:_LOOKED_AT], share.shape), strict=True):
            first = int(a) if hinge is None else int(a) - 1
            candidates.append((share[b, a], Term(None if first < 0 else first, int(b), hinge, 0.0)))
    candidates = [term for _, term in sorted(candidates, key=lambda each: -each[0])[:_LOOKED_AT]]
    tried = np.stack([np.multiply(*term.factors(features)) for term in candidates])
    weighted = rows * weights
    gram = times(weighted, rows.T)
    gram = gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    apart = tried - times(cho_solve(cho_factor(gram), times(weighted, tried.T)).T, rows)
    gains = np.square(times(apart, weights * rest)) / (times(np.square(apart), np.square(weights * rest)) + 1e-12)
    best = int(np.argmax(gains))
    return candidates[best] if gains[best] > _SIGNIFICANT else None


def _scaled(rest2: np.ndarray, log_scales: np.ndarray, nu: float) -> tuple[float, float]:
    """The mean log likelihood of t residuals at the best change of their log scales, and that change."""
    shift = 0.0
    for _ in range(8):
        r2 = rest2 * np.exp(-2 * _clipped(log_scales + shift))
        shift += (((nu + 1) * r2 / (nu + r2)).mean() - 1) * (nu + 3) / (2 * nu)
    scales = _clipped(log_scales + shift)
    tails = 0.5 * (nu + 1) * np.log1p(rest2 * np.exp(-2 * scales) / nu)
    return float((_log_peak(np.asarray(nu)) - scales - tails).mean()), shift


def _clipped(log_scales: np.ndarray) -> np.ndarray:
    return log_scales.clip(-_STEEPEST, _STEEPEST)
