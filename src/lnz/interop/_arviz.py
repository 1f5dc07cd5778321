"""States of several chains as ArviZ has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lnz._core.packages import package


def chains_to_arviz(
    states: Any, *, energies: Any = None, attributes: Mapping[str, Any] | None = None, user: str = "chains_to_arviz"
) -> Any:
    """States of several chains for ArviZ: an xarray DataTree with ArviZ 1, an InferenceData before that.

    Args:
        states: an array (chains, draws, *shape), or a mapping of names to such arrays; an array is called "x".
        energies: E of every state in nats, shape (chains, draws): the group `sample_stats` has `lp`, -E.
        attributes: attributes of the whole.
        user: what needs ArviZ, for the message where it is missing.

    Raises:
        ModuleNotFoundError: where ArviZ is not installed.
        ValueError: for arrays without the axes chains and draws, or of different numbers of them.

    Example:
        >>> import jax, jax.numpy as jnp, lnz  # doctest: +SKIP
        >>> ising, gibbs = lnz.Ising.lattice((4, 4), 0.3, periodic=False), lnz.kernels.Gibbs()  # doctest: +SKIP
        >>> s, draws = ising.space.uniform(jax.random.key(0), 4), []  # doctest: +SKIP
        >>> for i in range(100):  # doctest: +SKIP
        ...     s = lnz.kernels.run_chains(ising, gibbs, s, jax.random.key(i), 10)
        ...     draws.append(s)
        >>> idata = lnz.interop.chains_to_arviz(jnp.stack(draws, axis=1))  # doctest: +SKIP
        >>> idata.posterior["x"].shape  # doctest: +SKIP
        (4, 100, 4, 4)
    """
    arviz = package("arviz", user)
    named = states if isinstance(states, Mapping) else {"x": states}
    posterior = {name: np.asarray(array) for name, array in named.items()}
    stats = {} if energies is None else {"lp": -np.asarray(energies)}
    leads = {array.shape[:2] for array in (*posterior.values(), *stats.values())}
    if len(leads) != 1 or len(leads.pop()) < 2:
        shapes = {name: array.shape for name, array in (posterior | stats).items()}
        raise ValueError(
            f"every array must have the same numbers of chains and draws along its first two axes, but the shapes are {shapes}"
        )
    groups = {"posterior": posterior} | ({"sample_stats": stats} if stats else {})
    about = dict(attributes or {})
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.from_dict(**groups, attrs=about)
    return arviz.from_dict(groups, attrs={"/": about})
