"""Exact log Z of the φ⁴ chain: a one-dimensional lattice field, by its transfer operator."""

import math
from typing import Any

import numpy as np

from lnz.reference._densities import Points, Values
from lnz.reference._integrals import composite_legendre


def phi4_chain_log_density(phi: Points, *, mass_squared: Any, quartic: Any) -> Values:
    """-S(φ) of the periodic φ⁴ chain, the log of its unnormalised density, in nats.

    S = Σ_i ½(φ_{i+1} - φ_i)² + ½ m² φ_i² + λ φ_i⁴,   φ_{N+1} = φ_1
    """
    xp = phi.__array_namespace__()  # NumPy or JAX
    gradient = xp.roll(phi, -1, axis=-1) - phi
    squared = phi**2
    return -xp.sum(0.5 * gradient**2 + 0.5 * mass_squared * squared + quartic * squared**2, axis=-1)


def phi4_chain_log_z(sites: int, *, mass_squared: float, quartic: float) -> float:
    """log Z = log ∫ exp(-S) d^Nφ, in nats, of the periodic φ⁴ chain of `phi4_chain_log_density`.

    Z = Tr T^N with the kernel T(x,y) = exp(-½V(x) - ½(x-y)² - ½V(y)), V(φ) = ½m²φ² + λφ⁴. Gauss-Legendre nodes x_k and
    weights w_k turn it into the symmetric matrix √w_k T(x_k,x_l) √w_l, whose eigenvalues t give log Σ t^N.

    Args:
        sites: N ≥ 2.
        mass_squared: m²; negative values (two wells) need quartic > 0.
        quartic: λ ≥ 0; λ = 0 is the Gaussian chain and needs m² > 0.

    Raises:
        ValueError: a chain without a finite Z, or one so flat or so steep that more than 2000 nodes were needed.

    Example:
        >>> round(phi4_chain_log_z(64, mass_squared=-1.0, quartic=0.25), 8)
        51.19114645

    Source: the transfer operator of Scalapino, Sears and Ferrell, Physical Review B 6, 3409 (1972).
    """
    if sites < 2:
        raise ValueError(f"A chain needs at least 2 sites, got {sites}.")
    if (
        not (math.isfinite(mass_squared) and math.isfinite(quartic))
        or quartic < 0
        or (quartic == 0 and mass_squared <= 0)
    ):
        raise ValueError(
            f"Z is infinite or undefined for m² = {mass_squared}, λ = {quartic}. Use λ > 0, or λ = 0, m² > 0."
        )

    # V rises by 80 nats above its minimum at `cutoff`: ½m²u + λu² = min V + 80 with u = φ².
    lowest = -(mass_squared**2) / (16 * quartic) if mass_squared < 0 else 0.0
    level = lowest + 80.0
    if quartic == 0:
        u = 2 * level / mass_squared
    else:
        # The root in the form that does not cancel for the given sign of m².
        root = math.sqrt(mass_squared**2 / 4 + 4 * quartic * level)
        u = 2 * level / (root + mass_squared / 2) if mass_squared > 0 else (root - mass_squared / 2) / (2 * quartic)
    cutoff = math.sqrt(u)
    curvature = 1.0 + abs(mass_squared) + 12 * quartic * u
    order = 20
    panels = max(4, math.ceil(cutoff * math.sqrt(curvature) / 4))
    if panels * order > 2000:
        raise ValueError(f"The transfer operator needs {panels * order} nodes, more than 2000. Rescale φ.")
    x, weights = composite_legendre(np.linspace(-cutoff, cutoff, panels + 1), order)
    potential = 0.5 * mass_squared * x**2 + quartic * x**4 - lowest
    half_log = 0.5 * (np.log(weights) - potential)
    kernel = np.exp(half_log[:, None] - 0.5 * (x[:, None] - x) ** 2 + half_log)
    eigenvalues = np.linalg.eigvalsh(kernel)
    largest = eigenvalues[-1]
    return sites * (math.log(largest) - lowest) + math.log(float(np.sum((eigenvalues / largest) ** sites)))


def gaussian_chain_log_z(sites: int, *, mass_squared: float) -> float:
    """log Z, in nats, of the chain with λ = 0 in closed form: N/2 ln 2π - ½ Σ_k ln(m² + 4 sin²(πk/N)), k = 0..N-1."""
    if sites < 2 or not mass_squared > 0:
        raise ValueError(f"The Gaussian chain needs at least 2 sites and m² > 0, got {sites} and {mass_squared}.")
    spectrum = mass_squared + 4 * np.sin(np.pi * np.arange(sites) / sites) ** 2
    return 0.5 * sites * math.log(2 * math.pi) - 0.5 * float(np.log(spectrum).sum())
