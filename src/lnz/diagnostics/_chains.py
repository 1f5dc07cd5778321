"""R-hat and effective sample size of several chains."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lnz._core.convergence import ess as ess
from lnz._core.convergence import r_hat as r_hat
from lnz._core.convergence import r_hat_threshold
from lnz._core.spaces import ArrayLike


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """R-hat and effective sample size of every entry of the states of several chains. Prints as a sentence.

    Attributes:
        r_hat: R̂ of every entry by `lnz.diagnostics.r_hat`; NaN where all states are the same.
        effective_sample_size: effective sample size of every entry by `lnz.diagnostics.ess`; NaN where all states are the same.
        chains: number of chains.
        draws: number of draws per chain.
        cost: cost of all draws together: `sweeps`, `seconds`, `energy_calls`, where they were given.
    """

    r_hat: np.ndarray
    effective_sample_size: np.ndarray
    chains: int
    draws: int
    cost: dict[str, float]

    @property
    def least(self) -> float:
        """The smallest effective sample size of an entry; NaN where all entries are constant."""
        return _worst(np.nanmin, self.effective_sample_size)

    @property
    def worst(self) -> float:
        """The largest R̂ of an entry; NaN where all entries are constant."""
        return _worst(np.nanmax, self.r_hat)

    @property
    def unmixed(self) -> bool:
        """Whether the chains disagree at an entry, by the threshold of all of lnz (`r_hat_threshold`)."""
        return self.worst > r_hat_threshold(self.chains, self.draws, self.r_hat.size)

    @property
    def efficiency(self) -> dict[str, float]:
        """The smallest effective sample size per sweep, per second and per energy call, for the costs that were given."""
        return {name: self.least / spent for name, spent in self.cost.items()}

    def __str__(self) -> str:
        still = int(np.isnan(self.r_hat).sum())
        text = f"{self.chains} chains of {self.draws} draws: R̂ at most {self.worst:.3f}, effective sample size at least {self.least:.0f}"
        text += "".join(f", {value:.3g} per {_ONE[name]}" for name, value in self.efficiency.items())
        if still:
            text += f"; {still} of {self.r_hat.size} entries never changed"
        if self.unmixed:
            where = tuple(map(int, np.unravel_index(np.nanargmax(self.r_hat), self.r_hat.shape)))
            text += f". The chains disagree at entry {where}: run them longer, or use a kernel that mixes faster"
        return text


_ONE = {"sweeps": "sweep", "seconds": "second", "energy_calls": "energy call"}


def diagnose_chains(
    samples: ArrayLike, *, sweeps: float | None = None, seconds: float | None = None, energy_calls: float | None = None
) -> Diagnosis:
    """Rank-normalised split R̂ and bulk effective sample size of every entry of the states of several chains.

    Chains are unmixed above R̂ = 1.05; for chains so short that independent draws often exceed it, above the value that these exceed once in a
    thousand.

    Args:
        samples: (chains, draws, *shape), numbers; at least 4 draws. Start the chains far apart: R̂ cannot detect a mode that no chain has found.
        sweeps: number of sweeps for all draws together, for the effective sample size per sweep.
        seconds: time for all draws together, likewise.
        energy_calls: energy evaluations for all draws together, likewise.

    Raises:
        ValueError: for other shapes, NaN or infinite numbers, or a cost that is not above 0.

    Example:
        >>> import numpy as np, lnz
        >>> noise = np.random.default_rng(0).normal(size=(4, 500))
        >>> lnz.diagnose_chains(noise).worst < 1.01
        True
        >>> lnz.diagnose_chains(noise + np.arange(4)[:, None]).worst > 1.1  # four chains at four places
        True

    Source: see `lnz.diagnostics.r_hat` and `lnz.diagnostics.ess`.
    """
    x = np.asarray(samples)
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[1] < 4:
        raise ValueError(f"samples must have shape (chains, draws, *shape) with at least 4 draws, but have {x.shape}")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or not np.isfinite(x).all():
        raise ValueError("samples must be finite numbers, but some are NaN, infinite or not numeric")
    given = {"sweeps": sweeps, "seconds": seconds, "energy_calls": energy_calls}
    cost = {name: float(spent) for name, spent in given.items() if spent is not None}
    for name, spent in cost.items():
        if not 0 < spent < np.inf:
            raise ValueError(f"{name} must be above 0 and finite, but is {spent}")
    return Diagnosis(r_hat(x), ess(x), x.shape[0], x.shape[1], cost)


def _worst(choose: Any, values: np.ndarray) -> float:
    return float(choose(values)) if not np.isnan(values).all() else float("nan")
