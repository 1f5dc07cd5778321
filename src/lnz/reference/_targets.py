"""Continuous targets with known log Z: each as the log of a density in plain NumPy and its integral, in nats.

`*_log_density(x)` takes points (..., dimension) as a NumPy or JAX array, and returns an unnormalised log density (...)
of the same library; `*_log_z` is the logarithm of its integral over all of R^d. A target with a uniform prior
includes the prior's density and is -inf outside its box, so log Z is the log evidence.
"""

import math

import numpy as np

from lnz.reference._densities import Points, Values
from lnz.reference._integrals import composite_legendre, log_weighted_sum

_LOG_2PI = math.log(2 * math.pi)
_SHELL_RADIUS, _SHELL_WIDTH, _SHELL_OFFSET, _SHELL_BOX = 2.0, 0.1, 3.5, 6.0


def many_well_log_density(x: Points, *, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> Values:
    """Σ over pairs of -(a u + b u² + c u⁴) - ½ v², where x = (u_1, v_1, u_2, v_2, ...).

    Source: Noé, Olsson, Köhler and Wu, Science 365 (2019), for the pair; Midgley and others, ICLR 2023, for 16 of them.
    """
    xp = x.__array_namespace__()
    if x.shape[-1] % 2:
        raise ValueError(f"Many wells come in pairs of coordinates, got {x.shape[-1]} coordinates.")
    u, v = x[..., 0::2], x[..., 1::2]
    return -xp.sum(a * u + b * u**2 + c * u**4 + 0.5 * v**2, axis=-1)


def double_well_log_z(*, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> float:
    """log ∫ exp(-(a u + b u² + c u⁴)) du, in nats, by Gauss-Legendre quadrature; c > 0."""
    if not (c > 0 and math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        raise ValueError(f"The double well needs finite a and b and c > 0, got a={a}, b={b}, c={c}.")
    cutoff = 1e-3
    while c * cutoff**4 - abs(b) * cutoff**2 - abs(a) * cutoff < 60:  # the integrand is 1 at the origin
        cutoff *= 1.1
    panels = math.ceil(cutoff * math.sqrt(2 * abs(b) + 12 * c * cutoff**2)) + 1
    if panels > 100_000:
        raise ValueError(f"The wells are too narrow for their distance: {panels} panels of quadrature. Rescale u.")
    u, weights = composite_legendre(np.linspace(-cutoff, cutoff, panels + 1))
    return log_weighted_sum(-(a * u + b * u**2 + c * u**4), weights)


def many_well_log_z(pairs: int = 16, *, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> float:
    """log Z, in nats, of `many_well_log_density` in 2·pairs dimensions: pairs · (`double_well_log_z` + ½ ln 2π)."""
    return pairs * (double_well_log_z(a=a, b=b, c=c) + 0.5 * _LOG_2PI)


def gaussian_shells_log_density(x: Points) -> Values:
    """log of the uniform prior on [-6, 6]^d times Σ_± N(|x ∓ 3.5 e_1|; 2, 0.1²): two thin shells; -inf outside the box.

    Source: Feroz, Hobson and Bridges, Monthly Notices of the Royal Astronomical Society 398, 1601 (2009).
    """
    xp = x.__array_namespace__()
    rest = xp.sum(x[..., 1:] ** 2, axis=-1)
    parts = []
    for centre in (-_SHELL_OFFSET, _SHELL_OFFSET):
        deviation = (xp.sqrt((x[..., 0] - centre) ** 2 + rest) - _SHELL_RADIUS) / _SHELL_WIDTH
        parts.append(-0.5 * deviation**2 - math.log(_SHELL_WIDTH) - 0.5 * _LOG_2PI)
    outside = xp.any(abs(x) > _SHELL_BOX, axis=-1)
    with np.errstate(invalid="ignore"):  # NaN in, NaN out
        value = xp.logaddexp(*parts) - x.shape[-1] * math.log(2 * _SHELL_BOX)
    return xp.where(outside, -np.inf, value)


def gaussian_shells_log_z(dimension: int, *, clipped: bool = True) -> float:
    """log Z, in nats, of `gaussian_shells_log_density`, by quadrature over the distance ρ from a centre.

        Z = (2 / 12^d) ∫ S_d ρ^{d-1} N(ρ; 2, 0.1²) (1 - cap(ρ)) dρ,   S_d = 2 π^{d/2} / Γ(d/2),

    where cap(ρ) is the share of the sphere of radius ρ cut off by the face of the box at distance 2.5 (a regularised
    incomplete beta function). The cap lies five widths out and is often ignored; that is `clipped=False`, which is
    too high by 1.2e-8 for d = 2, 5.8e-11 for d = 5 and less than 1e-13 from d = 10 on.

    Raises:
        ValueError: a dimension below 1, or so high that the shells meet the other faces (about 1000).
    """
    from scipy.special import betainc

    if dimension < 1:
        raise ValueError(f"The dimension must be at least 1, got {dimension}.")
    peak = 0.5 * (_SHELL_RADIUS + math.sqrt(_SHELL_RADIUS**2 + 4 * _SHELL_WIDTH**2 * (dimension - 1)))
    lower, upper = max(0.0, peak - 12 * _SHELL_WIDTH), peak + 12 * _SHELL_WIDTH
    if upper > _SHELL_BOX:
        raise ValueError(f"In {dimension} dimensions the shells reach the faces of the box. Use a lower dimension.")
    face = _SHELL_BOX - _SHELL_OFFSET
    edges = np.unique(np.concatenate([np.linspace(lower, upper, 49), [min(max(face, lower), upper)]]))
    rho, weights = composite_legendre(edges)
    log_f = (dimension - 1) * np.log(rho) - 0.5 * ((rho - _SHELL_RADIUS) / _SHELL_WIDTH) ** 2
    if clipped:
        cosine = np.minimum(face / rho, 1.0)
        share = np.where(rho > face, 0.5, 0.0)
        if dimension > 1:
            share = share * betainc((dimension - 1) / 2, 0.5, 1 - cosine**2)
        weights = weights * (1 - share)
    log_sphere = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
    log_normal = -math.log(_SHELL_WIDTH) - 0.5 * _LOG_2PI
    return (
        math.log(2) - dimension * math.log(2 * _SHELL_BOX) + log_sphere + log_normal + log_weighted_sum(log_f, weights)
    )


def eggbox_log_density(x: Points) -> Values:
    """(2 + cos(x/2) cos(y/2))^5 with a uniform prior on [0, 10π]²: 18 equal peaks, those on the edge cut.

    Source: Feroz, Hobson and Bridges, Monthly Notices of the Royal Astronomical Society 398, 1601 (2009).
    """
    xp = x.__array_namespace__()
    side = 10 * math.pi
    outside = xp.any((x < 0) | (x > side), axis=-1)
    value = (2 + xp.cos(x[..., 0] / 2) * xp.cos(x[..., 1] / 2)) ** 5 - 2 * math.log(side)
    return xp.where(outside, -np.inf, value)


def eggbox_log_z() -> float:
    """log Z, in nats, of `eggbox_log_density`: log of the mean of exp((2 + cos u cos v)^5) over one period in u and v.

    The box holds five half periods of each cosine, and reflecting one half period changes its sign, so that the mean
    over the box is the mean over a period. The trapezoidal rule converges there faster than any power.
    """
    nodes = 512
    cosine = np.cos(2 * np.pi * np.arange(nodes) / nodes)
    values = (2 + cosine[:, None] * cosine).ravel() ** 5
    return log_weighted_sum(values, np.full(values.shape, 1 / nodes**2))


def rosenbrock_log_density(x: Points, *, half_width: float | None = None) -> Values:
    """-[100 (y - x²)² + (1 - x)²], on R², or with a uniform prior on [-half_width, half_width]².

    Source: Rosenbrock, The Computer Journal 3, 175 (1960).
    """
    xp = x.__array_namespace__()
    value = -(100 * (x[..., 1] - x[..., 0] ** 2) ** 2 + (1 - x[..., 0]) ** 2)
    if half_width is None:
        return value
    outside = xp.any(abs(x) > half_width, axis=-1)
    return xp.where(outside, -np.inf, value - 2 * math.log(2 * half_width))


def rosenbrock_log_z(*, half_width: float | None = None) -> float:
    """log Z, in nats, of `rosenbrock_log_density`: ln(π/10) on R²; in a box of half-width w

        Z = (1/4w²) ∫_{-w}^{w} e^{-(1-x)²} (√π/20) [erf(10(w - x²)) + erf(10(w + x²))] dx

    by Gauss-Legendre quadrature. Raises ValueError unless 0 < half_width ≤ 1000.
    """
    if half_width is None:
        return math.log(math.pi / 10)
    if not 0 < half_width <= 1000:
        raise ValueError(f"The half-width must lie in (0, 1000], got {half_width}.")
    from scipy.special import erf

    reach = min(half_width, 10.0)  # beyond it the integrand is below exp(-81)
    root = math.sqrt(half_width)  # where the parabola leaves the box
    layer = 1.0 / (20 * root)
    near_edge = root + layer * np.linspace(-10, 10, 41)
    edges = np.concatenate([np.linspace(-reach, reach, 401), near_edge, -near_edge])
    x, weights = composite_legendre(np.unique(np.clip(edges, -reach, reach)))
    inner = erf(10 * (half_width - x**2)) + erf(10 * (half_width + x**2))
    total = float(np.sum(weights * np.exp(-((1 - x) ** 2)) * inner)) * math.sqrt(math.pi) / 20
    return math.log(total) - 2 * math.log(2 * half_width)


def product_binomial_log_density(x: Points, *, trials: int = 100, successes: int = 50) -> Values:
    """log Binomial(y; n, p_1 p_2) with a uniform prior on p in [0,1]²: only the product is identified; -inf outside.

    Source: the unidentifiable example of Pigeons (Surjanovic and others, 2023).
    """
    xp = x.__array_namespace__()
    outside = xp.any((x < 0) | (x > 1), axis=-1)
    p = xp.where(outside, 0.5, x[..., 0] * x[..., 1])
    choose = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    with np.errstate(divide="ignore"):
        hit = successes * xp.log(p) if successes else 0.0
        miss = (trials - successes) * xp.log1p(-p) if successes < trials else 0.0
    return xp.where(outside, -np.inf, choose + hit + miss)


def product_binomial_log_z(*, trials: int = 100, successes: int = 50) -> float:
    """log Z, in nats, of `product_binomial_log_density`: Z = [ψ(n+2) - ψ(y+1)] / (n+1) = Σ_{k=y+1}^{n+1} 1/k / (n+1).

    Source: p_1 p_2 has the density -ln u, so Z is a derivative of a beta function.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"Successes must lie between 0 and the trials, got {successes} of {trials}.")
    return math.log(math.fsum(1 / k for k in range(successes + 1, trials + 2))) - math.log(trials + 1)
