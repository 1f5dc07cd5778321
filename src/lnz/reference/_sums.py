"""log Z of small models and its slopes, by direct sums in plain NumPy.

Each function returns log Z in nats and the derivatives of log Z with respect to its array arguments, in their order.
"""

import math

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " n"]


def rbm_sum(
    weights: Float[np.ndarray, "visible hidden"], visible: Float[np.ndarray, " visible"], hidden: Vector
) -> tuple[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """log Σ_{v,h} exp(v·W h + b·v + c·h) over bits, by a sum over all states of the hidden layer (at most 20 units).

    The slopes are E[v_i h_j], E[v_i] and E[h_j].
    """
    n = len(hidden)
    if n > 20:
        raise ValueError(f"The sum goes over 2^{n} hidden states, more than 2^20. Give fewer hidden units.")
    h = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(float)
    inputs = visible + h @ weights.T
    log_weight = h @ hidden + np.logaddexp(0, inputs).sum(axis=1)
    top = log_weight.max()
    p = np.exp(log_weight - top)
    log_z, p = top + math.log(p.sum()), p / p.sum()
    on = np.exp(-np.logaddexp(0, -inputs))
    return float(log_z), ((p[:, None] * on).T @ h, p @ on, p @ h)


def ising_sum(couplings: Float[np.ndarray, "n n"], fields: Vector) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """log Σ_s exp(½ s·J s + h·s) over spins, by a list of all states (at most 16 spins).

    The slopes are ½ E[s_i s_j] off the diagonal, 0 on it, and E[s_i]: the derivatives with respect to the entries of J, not to pairs.
    """
    n = len(fields)
    if n > 16:
        raise ValueError(f"The sum goes over 2^{n} states, more than 2^16. Give fewer spins.")
    s = 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) - 1
    log_weight = 0.5 * np.einsum("ki,ij,kj->k", s, couplings, s, optimize=True) + s @ fields
    top = log_weight.max()
    p = np.exp(log_weight - top)
    log_z, p = top + math.log(p.sum()), p / p.sum()
    pairs = 0.5 * (p[:, None] * s).T @ s
    np.fill_diagonal(pairs, 0)
    return float(log_z), (pairs, p @ s)


def complete_graph_sum(spins: int, coupling: float, field: float = 0.0) -> tuple[float, tuple[float, float]]:
    """log Σ_s exp(J Σ_{i<j} s_i s_j + h Σ_i s_i), the Curie-Weiss model, by a sum over the number of spins that are up.

    The slopes are E[Σ_{i<j} s_i s_j] and E[Σ_i s_i].
    """
    up = np.arange(spins + 1)
    m = 2.0 * up - spins
    bonds = 0.5 * (m**2 - spins)
    count = np.array([math.lgamma(spins + 1) - math.lgamma(k + 1) - math.lgamma(spins - k + 1) for k in up])
    log_weight = count + coupling * bonds + field * m
    top = log_weight.max()
    p = np.exp(log_weight - top)
    return float(top + math.log(p.sum())), (float(p @ bonds / p.sum()), float(p @ m / p.sum()))


def ring_sum(spins: int, coupling: float, field: float) -> tuple[float, tuple[float, float]]:
    """log Σ_s exp(J Σ_i s_i s_{i+1} + h Σ_i s_i) on a ring: log(λ₊ⁿ + λ₋ⁿ), λ± = e^J cosh h ± √(e^{2J} sinh² h + e^{-2J}).

    The slopes are E[Σ_i s_i s_{i+1}] and E[Σ_i s_i], from the derivatives of λ±. Source: Ising 1925.
    """
    j, h = coupling, field
    root = math.sqrt(math.exp(2 * j) * math.sinh(h) ** 2 + math.exp(-2 * j))
    even, odd = math.exp(j) * math.cosh(h), math.exp(j) * math.sinh(h)
    by_j = (math.exp(2 * j) * math.sinh(h) ** 2 - math.exp(-2 * j)) / root  # of the root
    by_h = math.exp(2 * j) * math.sinh(h) * math.cosh(h) / root
    high, low = even + root, even - root
    ratio = (low / high) ** (spins - 1)
    share = spins / (high + low * ratio)
    slopes = (share * ((even + by_j) + ratio * (even - by_j)), share * ((odd + by_h) + ratio * (odd - by_h)))
    return spins * math.log(high) + math.log1p((low / high) ** spins), slopes
