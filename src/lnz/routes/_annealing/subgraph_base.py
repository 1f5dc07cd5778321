"""A base that keeps some of the bonds of a pairwise model, with exact log Z and samples by elimination, so that fewer bonds are annealed."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.spaces import ArrayLike
from lnz._models.pairwise import Ising, LatticeCouplings, Potts
from lnz.routes._annealing.user_path import KnownDistribution
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.exact_samples import exact_sampler

_BLOCK = {1: (), 2: (4,), 3: (2, 2)}  # the cross-section of the bars into which a lattice is cut


class SubgraphBase(KnownDistribution):
    """An Ising or Potts model with some of its bonds left out, as a base to anneal from: see `subgraph_base`.

    Attributes:
        model: with all bonds, those left out having strength 0.
        sampler: the same distribution with the kept bonds alone, as a sparse model.
        log_z: its log Z, in nats.
    """

    @property
    def kept(self) -> Energy:
        """The sparse model of the kept bonds."""
        return self.sampler


def subgraph_base(model: Ising | Potts, keep: ArrayLike = None) -> SubgraphBase:
    """A base for annealing that keeps bonds of the model: E_0 = E without the other bonds, with exact log Z_0 and samples by elimination.

    Kept bonds need not be annealed, so log weights spread less: on the critical 16 x 16 torus, a base of bars of four rows needs a fifth of the
    sweeps that independent spins need for the same error. Any base is valid for the route it is given to; the nearer, the better.

    Args:
        model: an Ising or Potts model with one coupling per pair.
        keep: which bonds are kept, booleans (m,) in the order of `model.couplings.pairs()`. By default bars along the last axis of a lattice, 4 rows
            wide in two dimensions and 2 x 2 in three; elsewhere a spanning forest of the strongest bonds.

    Raises:
        ValueError: for traced parameters, coupling tables, `keep` of another shape, and bonds that are too many to be summed exactly.

    Example:
        >>> import jax, lnz
        >>> torus = lnz.Ising.lattice((8, 8), 0.4407, periodic=True)
        >>> route = lnz.routes.AnnealedImportanceSampling.from_base(lnz.routes.subgraph_base(torus), temperatures=500, chains=128)
        >>> estimate = lnz.log_partition(torus, route=route, key=jax.random.key(0))
        >>> bool(abs(estimate.value - 60.143) < 0.2)  # Kaufman 1949
        True

    Source: Neal 2001 (any distribution with known log Z may be the start); Hamze & de Freitas 2004, "From fields to trees" (trees as exact parts).
    """
    if not isinstance(model, Ising | Potts):
        raise ValueError(
            f"a base of kept bonds needs an Ising or Potts model, not a {type(model).__name__}: give another base"
        )
    if any(map(is_traced, jax.tree.leaves(model))):
        raise ValueError("the base is computed when it is made, so its model cannot be traced: make it outside jit")
    edges, strength = model.couplings.pairs()
    if strength.ndim != 1:
        raise ValueError("a base of kept bonds needs one coupling per pair, not tables: give another base")
    strength, sites = np.asarray(strength), model.couplings.sites
    n = int(np.prod(sites))
    kept = _default(model, edges, strength, n) if keep is None else np.asarray(keep)
    if kept.shape != strength.shape or kept.dtype != bool:
        raise ValueError(
            f"keep needs one boolean per bond, shape {strength.shape}, but is {kept.dtype} of shape {kept.shape}"
        )
    fields = model.fields.reshape(n, *model.fields.shape[len(sites) :])
    pairs, where = np.unique(np.sort(edges[kept], axis=1), axis=0, return_inverse=True)
    merged = np.zeros(len(pairs), strength.dtype)  # a periodic axis of length 2 couples its sites twice
    np.add.at(merged, where.reshape(-1), strength[kept])
    if isinstance(model, Ising):
        solved: Any = Ising.sparse(pairs, merged, fields, n=n)
    else:
        solved = Potts.sparse(pairs, merged, fields, n=n, q=fields.shape[-1])
    route = Elimination(max_seconds=10.0)
    reason = route.unsupported_reason(solved)
    if reason is None and exact_sampler(solved) is None:
        reason = "exact samples of them would take too long"
    if reason is not None:
        raise ValueError(f"the kept bonds are too many for an exact base: {reason}. Keep fewer")
    mask = jnp.asarray(_mask(model.couplings, kept))
    full = jnp.broadcast_to(model.couplings.strength, mask.shape)
    cut = eqx.tree_at(lambda e: e.couplings.strength, model, jnp.where(mask, full, jnp.zeros_like(full)))
    return SubgraphBase(cut, solved, route.log_partition(solved, None).value)


def _default(model: Any, edges: np.ndarray, strength: np.ndarray, n: int) -> np.ndarray:
    couplings = model.couplings
    if not isinstance(couplings, LatticeCouplings):
        return _forest(edges, strength, n)
    shape = couplings.shape
    block = (*_BLOCK.get(len(shape), (1,) * (len(shape) - 1)), shape[-1])
    first, second = (np.stack(np.unravel_index(ends, shape), axis=1) for ends in edges.T)
    bar = np.array(block)
    beside = np.abs(first - second).max(axis=1) <= 1  # or across the boundary
    across_last = (first[:, :-1] == second[:, :-1]).all(axis=1)
    return ((first // bar == second // bar).all(axis=1) & beside) | across_last


def _forest(edges: np.ndarray, strength: np.ndarray, n: int) -> np.ndarray:
    """A spanning forest of the largest |J|."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    rank = np.empty(len(edges))
    rank[np.argsort(-np.abs(strength), kind="stable")] = np.arange(1, len(edges) + 1)
    graph = coo_matrix((rank, edges.T), shape=(n, n)).tocsr()
    chosen = minimum_spanning_tree(graph).data.astype(int)
    return np.isin(rank, chosen)


def _mask(couplings: Any, kept: np.ndarray) -> np.ndarray:
    """The indices of the kept bonds in the array of all strengths."""
    if isinstance(couplings, LatticeCouplings):
        return couplings.at_bonds(kept, False)
    if len(couplings.sites) == 1 and couplings.strength.ndim == 1:
        return kept
    i, j = couplings.pairs()[0].T
    mask = np.zeros(couplings.strength.shape, bool)
    mask[i, j] = mask[j, i] = kept
    return mask
