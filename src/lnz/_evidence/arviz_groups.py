"""Draws as ArviZ has them: groups of named arrays (chain, draw, *shape), written and read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lnz.interop._arviz import chains_to_arviz


class Draws(NamedTuple):
    """Draws from a posterior.

    Attributes:
        named: by the names of the variables, (n, *shape).
        log_density: (n,), unconstrained, in nats.
    """

    named: dict[str, np.ndarray]
    log_density: np.ndarray


def to_arviz(draws: Draws, chains: int, attributes: dict[str, Any]) -> Any:
    """Draws in so many chains with attributes: a DataTree with ArviZ 1, an InferenceData before that."""
    posterior = {name: _in_chains(x, chains) for name, x in draws.named.items()}
    energies = -_in_chains(draws.log_density, chains)
    return chains_to_arviz(posterior, energies=energies, attributes=attributes, user="Evidence.to_arviz")


def _in_chains(x: np.ndarray, chains: int) -> np.ndarray:
    return x.reshape(chains, -1, *x.shape[1:])


def variables_of(draws: Any) -> dict[str, Any] | None:
    """The arrays (chain, draw, *shape) of a dict, or of the group `posterior` of an InferenceData or a DataTree; None for an array."""
    if isinstance(draws, dict):
        return draws
    group = getattr(draws, "posterior", draws)
    found = getattr(group, "data_vars", None)
    if found is None:
        return None
    return {str(name): x.transpose("chain", "draw", ...).values for name, x in found.items()}
