"""Exact log Z of the uniform two-dimensional Ising model without field: finite torus and infinite lattice.

p(s) ∝ exp(K Σ_<ij> s_i s_j), s_i = ±1, K = β J, every site coupled to its four neighbours. All logarithms are natural.
"""

import math

import numpy as np

from lnz.reference._integrals import composite_legendre, log_weighted_sum

ISING_CRITICAL_BETA = 0.5 * math.log1p(math.sqrt(2.0))
"""The critical coupling of the square lattice, ½ ln(1 + √2) (Kramers and Wannier, Physical Review 60, 1941)."""

# Above this only the two ordered states matter: the next term is smaller by exp(-8K) < 1e-69 per site.
_FROZEN = 20.0


def ising_torus_log_z(rows: int, columns: int, beta: float, *, coupling: float = 1.0) -> float:
    """log Z, in nats, of the Ising model on a rows x columns torus.

    With K = β J, s = sinh 2K, n rows, m columns and cosh γ_r = cosh 2K coth 2K - cos(πr/n), γ_0 = 2K + ln tanh K,

        Z = ½ (2s)^{nm/2} [Π 2cosh(mγ_{2r+1}/2) + Π 2sinh(mγ_{2r+1}/2) + Π 2cosh(mγ_{2r}/2) + Π 2sinh(mγ_{2r}/2)],

    r = 0..n-1. γ_0 is negative above the critical temperature. It enters through (e^{2K}-1)^m ± (1+e^{-2K})^m, which
    is (2s)^{m/2} times 2cosh or 2sinh of mγ_0/2 and has the right sign at every K; the other factors are written
    with g_r = s e^{γ_r} and e^{-γ_r}, both regular at K = 0. So K may be zero, critical, tiny or huge.

    Args:
        rows: n ≥ 2. A length of 2 couples the same two spins twice, as the formula does.
        columns: m ≥ 2.
        beta: inverse temperature β, finite. β J < 0 is allowed when both lengths are even, where Z(-K) = Z(K).
        coupling: J, finite.

    Raises:
        ValueError: a length below 2, a value that is not finite, or β J < 0 with an odd length (a frustrated torus,
            where the four terms cancel); `ising_grid_log_z` sums that one.

    Example:
        >>> round(ising_torus_log_z(4, 4, ISING_CRITICAL_BETA), 10)
        15.5219154588

    Source: Kaufman, Physical Review 76, 1232 (1949).
    """
    k = _reduced_coupling(rows, columns, beta * coupling)
    if k > _FROZEN:
        return 2.0 * rows * columns * k + math.log(2.0)
    signs, logs, _ = _kaufman_terms(rows, columns, k)
    return log_weighted_sum(logs, 0.5 * signs)


def ising_torus_bond_sum(rows: int, columns: int, beta: float, *, coupling: float = 1.0) -> float:
    """E[Σ_<ij> s_i s_j] on a rows x columns torus: the derivative of log Z with respect to β, divided by J.

    Each term of Kaufman's sum is differentiated in closed form; the relative error grows as 1e-16/|K| near K = 0.
    Arguments and errors are those of `ising_torus_log_z`. Source: Kaufman, Physical Review 76, 1232 (1949).
    """
    k = _reduced_coupling(rows, columns, beta * coupling)
    sign = math.copysign(1.0, beta * coupling)
    if k == 0.0:
        return 0.0
    if k > _FROZEN:
        return sign * 2.0 * rows * columns
    signs, logs, slopes = _kaufman_terms(rows, columns, k)
    weights = signs * np.exp(logs - logs.max())
    return sign * float(np.sum(weights * slopes) / np.sum(weights))


def ising_bulk_log_z(beta: float, *, coupling: float = 1.0) -> float:
    """log Z per site, in nats, of the infinite square lattice.

        ln(√2 cosh 2K) + (1/π) ∫_0^{π/2} ln(1 + √(1 - κ² sin²φ)) dφ,   κ = 2 sinh 2K / cosh² 2K.

    The integral is computed on panels that shrink geometrically towards φ = π/2, where the root has its kink at the
    critical point. At β_c the value is ½ ln 2 + 2G/π, with Catalan's constant G. Raises ValueError unless β J is
    finite.

    Source: Onsager, Physical Review 65, 117 (1944).
    """
    k = abs(_finite(beta * coupling))
    if k > _FROZEN:
        return 2.0 * k
    root, weights, _ = _onsager_root(k)
    log_cosh = 2 * k + math.log1p(math.exp(-4 * k)) - math.log(2.0)
    return 0.5 * math.log(2.0) + log_cosh + float(np.sum(weights * np.log1p(root))) / math.pi


def ising_bulk_bond_sum(beta: float, *, coupling: float = 1.0) -> float:
    """E[s_i s_right + s_i s_down] in the infinite square lattice: d/dK of `ising_bulk_log_z`; √2 at the critical K.

    Source: Onsager, Physical Review 65, 117 (1944).
    """
    k = _finite(beta * coupling)
    sign, k = math.copysign(1.0, k), abs(k)
    if k > _FROZEN:
        return 2.0 * sign
    s, c = math.sinh(2 * k), math.cosh(2 * k)
    root, weights, cos_squared = _onsager_root(k)
    slope = (2 * s / c**2) * (4 * c * (1 - s**2) / c**4)  # κ dκ/dK
    integral = float(np.sum(weights * cos_squared / (root * (1 + root))))
    return sign * (2 * math.tanh(2 * k) - slope * integral / math.pi)


def _onsager_root(k: float):
    """√(1 - κ² sin²φ) with its quadrature weights and sin²φ, in u = π/2 - φ: √(κ'² + κ² sin²u), κ' = |1-s²|/(1+s²)."""
    edges = 0.5 * math.pi * np.concatenate([[0.0], 2.0 ** np.arange(-52, 1)])
    u, weights = composite_legendre(edges)
    s = math.sinh(2 * k)
    complement, modulus = abs(1 - s * s) / (1 + s * s), 2 * s / (1 + s * s)
    return np.hypot(complement, modulus * np.sin(u)), weights, np.cos(u) ** 2


def _kaufman_terms(n: int, m: int, k: float):
    """Signs, logarithms and d/dK of the logarithms of six terms whose sum is 2Z, for 0 ≤ K ≤ 20.

    The terms are C+ and C- of the odd r, and P C+, P C-, Q C+, -Q C- of the even r > 0, where
    C± = Π (2 g_r)^{m/2} (1 ± e^{-mγ_r}), P = (e^{2K} - 1)^m and Q = (1 + e^{-2K})^m stand for r = 0.
    """
    s, ds = math.sinh(2 * k), 2 * math.cosh(2 * k)

    def products(r):
        """log C+, log C- and their slopes over the angles πr/n, with a = s cosh γ and root = s sinh γ."""
        below = (1 - s) ** 2 + 2 * s * np.sin(np.pi * r / (2 * n)) ** 2  # a - s without cancellation
        a = below + s
        root = np.sqrt(below * (below + 2 * s))
        g = a + root
        slope = (ds * (2 * s - np.cos(np.pi * r / n)) * g - s * ds) / (g * root)  # d log g / dK
        x = s / g  # e^{-γ}
        dx = ds / g - x * slope
        bulk, dbulk = 0.5 * m * np.log(2 * g).sum(), 0.5 * m * slope.sum()
        power, dpower = x**m, m * x ** (m - 1) * dx
        return (
            (bulk + np.log1p(power).sum(), dbulk + (dpower / (1 + power)).sum()),
            (bulk + np.log1p(-power).sum(), dbulk - (dpower / (1 - power)).sum()),
        )

    odd = products(np.arange(1, 2 * n, 2))
    (even_plus, slope_plus), (even_minus, slope_minus) = products(np.arange(2, 2 * n, 2))
    up, down = math.expm1(2 * k), math.exp(-2 * k)
    log_p, slope_p = (m * math.log(up), 2 * m * (up + 1) / up) if k > 0 else (-math.inf, 0.0)
    log_q, slope_q = m * math.log1p(down), -2 * m * down / (1 + down)
    terms = [
        (1.0, *odd[0]),
        (1.0, *odd[1]),
        (1.0, log_p + even_plus, slope_p + slope_plus),
        (1.0, log_p + even_minus, slope_p + slope_minus),
        (1.0, log_q + even_plus, slope_q + slope_plus),
        (-1.0, log_q + even_minus, slope_q + slope_minus),
    ]
    return (np.array(column) for column in zip(*terms, strict=True))


def _reduced_coupling(rows: int, columns: int, k: float) -> float:
    if rows < 2 or columns < 2:
        raise ValueError(f"A torus needs at least 2 rows and 2 columns, got {rows} x {columns}.")
    if _finite(k) < 0 and (rows % 2 or columns % 2):
        raise ValueError(
            f"A {rows} x {columns} torus with βJ = {k} < 0 is frustrated. Use even lengths, or `ising_grid_log_z`."
        )
    return abs(k)


def _finite(k: float) -> float:
    if not math.isfinite(k):
        raise ValueError(f"βJ must be finite, got {k}.")
    return k
