"""Do the chains agree, and how much are their states worth? Split R̂ with ranks, and effective sample sizes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What several chains say of each other. Prints as a sentence.

    Attributes:
        r_hat: rank-normalised split R̂ of every entry, the larger of the plain and the folded one: near 1 where all chains tell the same;
            +inf where they stand still at different values, NaN where all states are the same.
        effective_sample_size: independent draws that the states of all chains are worth for the mean of every entry's ranks (bulk ESS); NaN
            where all states are the same.
        chains: how many.
        draws: how many from each.
        cost: what all draws together took: `sweeps`, `seconds`, `energy_calls`, where they were given.
    """

    r_hat: np.ndarray
    effective_sample_size: np.ndarray
    chains: int
    draws: int
    cost: dict[str, float]

    @property
    def least(self) -> float:
        """The smallest effective sample size of an entry; NaN where nothing moved."""
        return _worst(np.nanmin, self.effective_sample_size)

    @property
    def worst(self) -> float:
        """The largest R̂ of an entry; NaN where nothing moved."""
        return _worst(np.nanmax, self.r_hat)

    @property
    def efficiency(self) -> dict[str, float]:
        """The smallest effective sample size per sweep, per second and per energy call, of what was given."""
        return {name: self.least / spent for name, spent in self.cost.items()}

    def __str__(self) -> str:
        still = int(np.isnan(self.r_hat).sum())
        text = f"{self.chains} chains of {self.draws} draws: R̂ at most {self.worst:.3f}, effective sample size at least {self.least:.0f}"
        text += "".join(f", {value:.3g} per {_ONE[name]}" for name, value in self.efficiency.items())
        if still:
            text += f"; {still} of {self.r_hat.size} entries never changed"
        if self.worst > 1.01:
            where = tuple(map(int, np.unravel_index(np.nanargmax(self.r_hat), self.r_hat.shape)))
            text += f". The chains disagree at entry {where}: run them longer, or let them mix faster before their states are used"
        return text


_ONE = {"sweeps": "sweep", "seconds": "second", "energy_calls": "energy call"}


def diagnose_chains(
    samples: Any, *, sweeps: float | None = None, seconds: float | None = None, energy_calls: float | None = None
) -> Diagnosis:
    """Rank-normalised split R̂ and bulk effective sample size of every entry of the states of several chains.

    Every chain is cut in halves, values are replaced by the normal scores of their ranks among all, and R̂ compares the variance between the
    half chains with that within; once for the values and once for their distance from the median.

    Args:
        samples: (chains, draws, *shape), numbers; at least 4 draws. Let the chains start far apart: R̂ sees no mode that none has found.
        sweeps: what all draws together cost, for the effective sample size per sweep.
        seconds: likewise.
        energy_calls: likewise.

    Raises:
        ValueError: for other shapes, NaN or infinite numbers, or a cost that is not above 0.

    Example:
        >>> import numpy as np, lnz
        >>> noise = np.random.default_rng(0).normal(size=(4, 500))
        >>> lnz.diagnose_chains(noise).worst < 1.01
        True
        >>> lnz.diagnose_chains(noise + np.arange(4)[:, None]).worst > 1.1  # four chains at four places
        True

    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, "Rank-normalization, folding, and localization: an improved R̂". The sums are
    BlackJAX's.
    """
    x = np.asarray(samples)
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1] < 4:
        raise ValueError(f"samples need shape (chains, draws, *shape) with at least 4 draws, but have {x.shape}")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or not np.isfinite(x).all():
        raise ValueError("samples must be finite numbers, but some are NaN, infinite or no numbers")
    given = {"sweeps": sweeps, "seconds": seconds, "energy_calls": energy_calls}
    cost = {name: float(spent) for name, spent in given.items() if spent is not None}
    for name, spent in cost.items():
        if not 0 < spent < np.inf:
            raise ValueError(f"{name} must be above 0 and finite, but is {spent}")
    chains, draws = x.shape[:2]
    half = draws // 2
    flat = x.reshape(chains, draws, -1).astype(np.float64)
    halves = np.concatenate([flat[:, :half], flat[:, draws - half :]])  # an odd draw in the middle is left out
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    r_hat, size = _r_hat_and_size(_scores(halves))
    r_hat = np.fmax(r_hat, _r_hat_and_size(_scores(folded))[0])
    return Diagnosis(r_hat.reshape(x.shape[2:]), size.reshape(x.shape[2:]), chains, draws, cost)


def _scores(x: np.ndarray) -> np.ndarray:
    """The normal scores of the ranks among all chains and draws, column by column; ties share their mean rank."""
    from scipy import special, stats

    ranks = stats.rankdata(x.reshape(-1, x.shape[-1]), axis=0)
    return special.ndtri((ranks - 0.375) / (len(ranks) + 0.25)).reshape(x.shape)


@functools.cache
def _compiled() -> Any:
    import jax
    from blackjax import diagnostics

    return jax.jit(lambda z: (diagnostics.potential_scale_reduction(z), diagnostics.effective_sample_size(z)))


def _r_hat_and_size(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import jax

    within, between = z.var(axis=1).mean(axis=0), z.mean(axis=1).var(axis=0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # BlackJAX relies on both
        r_hat, size = map(np.asarray, _compiled()(z))
    moving, apart = within > 1e-12, between > 1e-12
    r_hat = np.where(moving, r_hat, np.where(apart, np.inf, np.nan))
    return r_hat, np.where(moving, size, np.where(apart, 0.0, np.nan))


def _worst(choose: Any, values: np.ndarray) -> float:
    return float(choose(values)) if not np.isnan(values).all() else float("nan")
