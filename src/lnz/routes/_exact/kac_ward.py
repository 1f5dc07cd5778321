"""log Z and all bond correlations of planar Ising models without fields."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import Frozen, is_traced
from lnz._models.pairwise import DenseCouplings, Ising, LatticeCouplings
from lnz.routes._exact.even_subgraphs import EvenSubgraphs, even_subgraphs
from lnz.routes._exact.numpy_callback import on_host
from lnz.routes._exact.planar_embedding import dual
from lnz.routes._exact.structural import Structured

# Up to such couplings any reference state is used; above, one that is probable under weaker couplings.
_WEAK = 1.5
# Rounding error of log Z, in nats, above which an error is raised.
_MOST_ROUNDING = 1e-3
# Number of bonds up to which differences of log Z can replace correlations that are lost to rounding.
_FEW = 500


@dataclasses.dataclass(frozen=True)
class KacWard(Structured):
    """Exact log Z of an Ising model on any planar graph without fields, whatever the couplings: of either sign, frustrated, zero.

        Z = 2^c e^{Σ J_e} Σ_{even subgraphs of the dual graph} Π e^{-2 J_e},

    for c components: the bonds between unequal spins are the walls around domains. The sum is the Pfaffian of a real matrix of two rows
    per bond, the real form of the determinant of Kac and Ward on the dual graph, where every term is positive. Nested dissection
    gives its logarithm, and the entries of the inverse that are E[s_i s_j] of every bond, in about N^1.5 operations for N spins.

    The graph is embedded by networkx, and the embedding is checked (Euler's formula, and a sign for every face); a free two-dimensional
    lattice is its own embedding. Terms are relative to a reference state. Where couplings are strong, it is one that is probable under
    weaker couplings, and little is lost to rounding up to |J| of about 8 in a ±J glass.

    It works under `jit`, `vmap` and `grad` by a callback; second derivatives are not supported.

    Attributes:
        max_edges: the maximum number of bonds of a supported model.

    Raises:
        ValueError: for a model that is not Ising, has fields, or is not planar, in words. Traced fields are checked when
            the sum runs, which then fails; `choose` leaves such models to other routes.
        jax.errors.JaxRuntimeError: as the sum runs, with the reason, where rounding may have changed log Z by more than 0.001 nats, or where
            differences of log Z do not confirm the correlations of more than 500 bonds (of fewer, they replace them).

    Source: Kac and Ward 1952; Kasteleyn 1963; Thomas and Middleton 2009 (the dual form); Lipton, Rose and Tarjan 1979 (dissection).

    Example:
        >>> import lnz
        >>> grid = lnz.Ising.lattice((20, 20), 0.5, periodic=False)
        >>> print(round(float(lnz.log_partition(grid, route=lnz.routes.KacWard()).value), 4))
        397.5118
    """

    max_edges: int = 200_000

    def __post_init__(self) -> None:
        if not self.max_edges >= 0:
            raise ValueError(f"max_edges must be a number of at least 0, but is {self.max_edges!r}")

    def misfit(self, energy: Energy) -> str | None:
        reason = without_fields(energy)
        if reason is not None or not isinstance(energy, Ising):
            return reason
        couplings = energy.couplings
        n = math.prod(couplings.sites)
        if isinstance(couplings, DenseCouplings) and n > 4:
            return f"dense couplings join all {n} sites, which is not planar; give the bonds alone by lnz.Ising.sparse"
        if isinstance(couplings, LatticeCouplings):
            if sum(a > 2 and closed for a, closed in zip(couplings.shape, couplings.closed, strict=True)) > 1:
                return "a periodic lattice of two and more dimensions is not planar"
            if sum(a > 2 for a in couplings.shape) > 2:
                return "a lattice of three and more dimensions is not planar"
        edges = _edges(couplings)
        if len(edges) > self.max_edges:
            return f"its {len(edges):,} bonds are more than max_edges, {self.max_edges:,}"
        plane = _plane_of(couplings, edges)
        return plane if isinstance(plane, str) else None

    def unseen(self, energy: Energy) -> str | None:
        if isinstance(energy, Ising) and is_traced(energy.fields):
            return "its fields are traced, so that it is unknown whether they are zero: name route=lnz.routes.KacWard() if they are"
        return None

    def cost(self, energy: Energy) -> float:
        plane = self._plane(energy)
        sizes = [len(part.inside) + len(part.boundary) for part in plane.walls.parts]
        return sum(8.0 * size**3 for size in sizes) / max(1, len(plane.bond))

    def _plane(self, energy: Any) -> _Plane:
        plane = _plane_of(energy.couplings, _edges(energy.couplings))
        if isinstance(plane, str):
            raise ValueError(f"KacWard does not support {type(energy).__name__}: {plane}")
        return plane

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        return self.log_partition_and_mean_gradient(energy)[0]

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂E] from E[s_i s_j] of every bond; the mean of every spin is zero."""
        return self.log_partition_and_mean_gradient(energy)[1]

    def log_partition_and_mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> tuple[Estimate, Any]:
        plane, dtype = self._plane(energy), jnp.result_type(float)
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
        (strength, fields), pull_back = jax.vjp(lambda p: _bonds(eqx.combine(p, constants)), parameters)

        def run(strength: Any, fields: Any) -> tuple[Any, ...]:
            log_z, correlation, rounding = _solve(plane, strength, fields)
            return np.asarray(log_z, dtype), np.asarray(rounding, dtype), correlation.astype(strength.dtype)

        shape = jax.ShapeDtypeStruct((), dtype)
        shapes = (shape, shape, jax.ShapeDtypeStruct(strength.shape, strength.dtype))
        log_z, rounding, correlation = on_host(run, shapes, strength, fields, route=self)
        rounding = rounding + 8 * jnp.finfo(dtype).eps * (1 + jnp.abs(log_z))
        route = f"Pfaffian of a planar graph with {len(plane.first):,} bonds"
        estimate = exact(log_z, rounding=jax.lax.stop_gradient(rounding), route=route)
        return estimate, pull_back((correlation, jnp.zeros_like(fields)))[0]


def without_fields(energy: Energy) -> str | None:
    """Why an energy is not an Ising model without fields, or None. Traced fields count as zero."""
    if not isinstance(energy, Ising):
        return f"{type(energy).__name__} is not an Ising model"
    if not is_traced(energy.fields) and np.asarray(energy.fields).any():
        return "its fields are not zero"
    return None


class _Plane(NamedTuple):
    """A planar graph with an embedding.

    Attributes:
        walls: the even subgraphs of its dual, whose edge k crosses the bond k.
        first, second: the sites of every bond, each pair once.
        bond: the bond of every coupling of the model.
        n: the number of sites.
        components: the number of connected components, isolated sites included.
    """

    walls: EvenSubgraphs
    first: np.ndarray
    second: np.ndarray
    bond: np.ndarray
    n: int
    components: int


def _bonds(energy: Any) -> tuple[Array, Array]:
    energy = widen(energy)
    return energy.couplings.pairs()[1], energy.fields


def _edges(couplings: Any) -> np.ndarray:
    found: list[np.ndarray] = []
    jax.eval_shape(lambda: found.append(couplings.pairs()[0]))
    return found[0].reshape(-1, 2)


def _plane_of(couplings: Any, edges: np.ndarray) -> _Plane | str:
    flat = isinstance(couplings, LatticeCouplings) and not any(couplings.closed) and len(couplings.shape) == 2
    return _drawn(Frozen(edges), math.prod(couplings.sites), couplings.shape if flat else None)


@functools.lru_cache(maxsize=16)
def _drawn(edges: Frozen, n: int, shape: tuple[int, ...] | None) -> _Plane | str:
    """The embedded graph, or why it is not planar."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    unique, bond = np.unique(np.sort(edges.value, axis=1), axis=0, return_inverse=True)
    if n > 2 and len(unique) > 3 * n - 6:
        return f"{len(unique):,} bonds between {n:,} sites are more than a planar graph can have"
    ends = unique.ravel()
    if shape is not None:
        down = (unique[:, 1] - unique[:, 0] != 1) | (shape[1] == 1)
        order = np.where(down[:, None], [[1, 3]], [[0, 2]]).ravel()  # right, down, left, up
    else:
        order = _drawing(n, unique)
        if order is None:
            return "its graph is not planar"
    after = np.empty(len(ends), np.int64)
    around = np.lexsort((order, ends))
    starts = np.flatnonzero(np.diff(ends[around], prepend=-1))
    following = np.arange(1, len(ends) + 1)
    following[np.append(starts[1:], len(ends))[: len(starts)] - 1] = starts
    after[around] = around[following]
    matrix = coo_array((np.ones(len(unique)), (unique[:, 0], unique[:, 1])), shape=(n, n))
    components = int(connected_components(matrix, directed=False)[0])
    return _Plane(even_subgraphs(dual(after)), unique[:, 0], unique[:, 1], bond.reshape(-1), n, components)


def _drawing(n: int, unique: np.ndarray) -> np.ndarray | None:
    """The place of every bond's two ends in the order around their sites, in an embedding without crossings; None if there is none."""
    import networkx

    graph = networkx.Graph()
    graph.add_edges_from(unique.tolist())
    planar, embedding = networkx.check_planarity(graph)
    if not planar:
        return None
    place = {(v, w): i for v in embedding for i, w in enumerate(embedding.neighbors_cw_order(v))}
    return np.array([(place[a, b], place[b, a]) for a, b in unique.tolist()], np.int64).ravel()


def _solve(plane: _Plane, strength: Any, fields: Any) -> tuple[float, np.ndarray, float]:
    """log Z, E[s_i s_j] for every coupling of the model, and the rounding of log Z."""
    if np.asarray(fields).any():
        raise ValueError("KacWard does not support Ising: its fields are not zero")
    j = np.bincount(plane.bond, weights=np.asarray(strength, np.float64), minlength=len(plane.first))
    if not np.isfinite(j).all():
        return np.nan, np.full(len(plane.bond), np.nan), np.nan
    spins, largest = np.ones(plane.n), float(np.abs(j).max(initial=0))
    steps = max(0, math.ceil(math.log2(largest / _WEAK))) if largest > 0 else 0
    frustrated = steps and not _satisfied(plane, j, spins := _aligned(plane, j))
    sign = correlation = j  # of the last step, at full strength
    for step in range(steps if frustrated else 0, -1, -1):
        sign = spins[plane.first] * spins[plane.second]
        gauged = j * sign * 0.5**step
        summed = plane.walls.total(-2 * gauged)
        correlation = sign * (1 - 2 * summed.used)
        if not summed.rounding < _MOST_ROUNDING:
            raise FloatingPointError(
                f"rounding may change log Z by {summed.rounding:.1g} nats: couplings up to {largest:g} are too strong for this graph. Use "
                "lnz.routes.Elimination(), or weaker couplings"
            )
        spins = _aligned(plane, correlation)
    if steps:
        correlation = _confirmed(plane, gauged, correlation * sign, summed.rounding) * sign
    terms = [gauged, [plane.components * math.log(2), summed.log_total]]
    return math.fsum(np.concatenate(terms)), correlation[plane.bond], summed.rounding


def _confirmed(plane: _Plane, gauged: np.ndarray, correlation: np.ndarray, rounding: float) -> np.ndarray:
    """The correlations of every bond, if log Z changes along a random direction as they say; otherwise all from differences of log Z.

    Where couplings are strong, entries of the inverse may be lost to rounding while its determinant is exact.
    """

    step = min(max(rounding ** (1 / 3), 1e-4), 1e-2)
    noise = 1e-6 + 4 * (rounding / step + step**2)

    def change(direction: np.ndarray) -> float:
        """The derivative of log Z, by differences of the sum over walls."""
        up, down = (plane.walls.total(-2 * (gauged + h * direction)).log_total for h in (step, -step))
        return float(direction.sum() + (up - down) / (2 * step))

    source = np.random.default_rng(len(gauged))
    for direction in source.normal(size=(2, len(gauged))):
        if not abs(change(direction) - direction @ correlation) < noise * np.linalg.norm(direction):
            break
    else:
        return correlation
    if len(gauged) > _FEW or noise > _MOST_ROUNDING:
        raise FloatingPointError(
            "rounding changes the correlations of its bonds, which are the derivative of log Z: the couplings are too strong for this graph. Use "
            "lnz.routes.Elimination(), or weaker couplings"
        )
    differences = np.array([change(one) for one in np.eye(len(gauged))])
    return np.where(np.abs(differences - correlation) > 1e-3, differences, correlation)  # which are rough themselves


def _satisfied(plane: _Plane, j: np.ndarray, spins: np.ndarray) -> bool:
    return bool((j * spins[plane.first] * spins[plane.second] >= 0).all())


def _aligned(plane: _Plane, correlation: np.ndarray) -> np.ndarray:
    """Spins that follow the sign of the strongest correlations, as far as they form no cycle."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    ends = (np.append(plane.first, np.full(plane.n, plane.n)), np.append(plane.second, np.arange(plane.n)))
    rank = np.empty(len(correlation))
    rank[np.argsort(-np.abs(correlation), kind="stable")] = np.arange(1, len(correlation) + 1)
    cost = np.append(rank, np.full(plane.n, len(correlation) + 1.0))  # an extra site is joined to every site weakly
    ends = tuple(np.asarray(end, np.int32) for end in ends)  # SciPy before 1.15 accepts no other integers
    tree = minimum_spanning_tree(coo_array((cost, ends), shape=(plane.n + 1,) * 2).tocsr())
    order, parent = breadth_first_order(tree, plane.n, directed=False)
    sign = np.where(correlation < 0, -1.0, 1.0)
    of = {(a, b): s for a, b, s in zip(plane.first.tolist(), plane.second.tolist(), sign.tolist(), strict=True)}
    spins = np.ones(plane.n + 1)
    for v in order[1:].tolist():
        u = int(parent[v])
        spins[v] = spins[u] * of.get((min(u, v), max(u, v)), 1.0)
    return spins[:-1]
