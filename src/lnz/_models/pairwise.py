"""Pairwise Boltzmann machines: Ising and Potts energies with dense, sparse or lattice couplings."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import (
    Annealable,
    BlockSweepable,
    Blockwise,
    Conditional,
    Factored,
    Featured,
    Marginal,
    Sweep,
)
from lnz._core.energy import Energy
from lnz._core.frozen import Frozen, is_traced
from lnz._core.spaces import ArrayLike, Categorical, Space, Spin, State
from lnz._models import units
from lnz._models.bipartite import SmallerSide, two_sides
from lnz._models.checkerboard import checkerboard_sweep
from lnz._models.colouring import Blocks, colour_classes, lattice_colours
from lnz._models.factor_graph import FactorGraph, pairwise_graph
from lnz._models.independent import Independent, as_float
from lnz._models.sweeps import class_sweep, layout, neighbour_sum


class Couplings(eqx.Module):
    """Which sites interact and how strongly: a symmetric linear map from the sites' features to their local fields.

    Features have the sites' shape first and then any number of feature axes (none for spins, one of length q for Potts states).
    """

    strength: eqx.AbstractVar[Array]

    @property
    @abc.abstractmethod
    def sites(self) -> tuple[int, ...]:
        """The shape of the sites."""

    @abc.abstractmethod
    def local_field(self, x: Array) -> Array:
        """Σ_j J_ij x_j for every site i: like x."""

    @abc.abstractmethod
    def colours(self) -> np.ndarray:
        """Classes of sites without an interaction inside a class: one boolean mask per class, shape (classes, *sites)."""

    @abc.abstractmethod
    def pairs(self) -> tuple[np.ndarray, Array]:
        """The bonds, edges (m, 2) between sites in their flat numbering, and their strengths (m,), or tables (m, q, q)."""

    @abc.abstractmethod
    def scaled(self, factor: Array) -> Couplings:
        """The couplings times a factor."""


class DenseCouplings(Couplings):
    """Couplings between all pairs: J (n, n), or tables J_ij(a, b) of shape (n, q, n, q); symmetric, with zero diagonal blocks.

    Only the symmetric part off the diagonal counts, so that an optimiser that changes the rest (by noise, or by the sign of a rounding
    error) cannot make the Gibbs sweeps disagree with the energy.
    """

    strength: Array

    def matrix(self) -> Array:
        """½ (J + Jᵀ) with a zero diagonal: like J."""
        half = self.strength.ndim // 2
        both = 0.5 * (self.strength + self.strength.transpose(*range(half, 2 * half), *range(half)))
        same = np.eye(len(self.strength), dtype=bool).reshape(
            *self.strength.shape[:1], *(1,) * (half - 1), -1, *(1,) * (half - 1)
        )
        return jnp.where(same, jnp.zeros_like(both), both)

    @property
    def sites(self) -> tuple[int, ...]:
        return self.strength.shape[:1]

    def local_field(self, x: Array) -> Array:
        return jnp.tensordot(self.matrix(), x, axes=self.strength.ndim // 2)

    def colours(self) -> np.ndarray:
        return np.eye(self.strength.shape[0], dtype=bool)

    def pairs(self) -> tuple[np.ndarray, Array]:
        i, j = np.triu_indices(len(self.strength), 1)
        matrix = self.matrix() if self.strength.ndim == 2 else self.matrix().transpose(0, 2, 1, 3)
        return np.stack([i, j], axis=1), matrix[i, j]

    def scaled(self, factor: Array) -> Couplings:
        return DenseCouplings(self.strength * factor)


class SparseCouplings(Couplings):
    """Couplings on the edges of a graph: strength (m,), or tables J_ij(a, b) of shape (m, q, q); edges (m, 2), each pair once."""

    strength: Array
    edges: Frozen = eqx.field(static=True)
    n: int = eqx.field(static=True)

    @property
    def sites(self) -> tuple[int, ...]:
        return (self.n,)

    def local_field(self, x: Array) -> Array:
        i, j = self.edges.value.T
        zero = jnp.zeros(x.shape, x.dtype)
        if self.strength.ndim == 3:
            forth, back = jnp.einsum("mab,mb->ma", self.strength, x[j]), jnp.einsum("mab,ma->mb", self.strength, x[i])
        else:
            strength = self.strength.reshape(-1, *(1,) * (x.ndim - 1))
            forth, back = strength * x[j], strength * x[i]
        return zero.at[i].add(forth).at[j].add(back)

    def colours(self) -> np.ndarray:
        classes = colour_classes(self.edges, self.n)
        return np.stack([np.isin(np.arange(self.n), members) for members in classes])

    def pairs(self) -> tuple[np.ndarray, Array]:
        return self.edges.value, self.strength

    def scaled(self, factor: Array) -> Couplings:
        return SparseCouplings(self.strength * factor, self.edges, self.n)


class LatticeCouplings(Couplings):
    """Nearest-neighbour couplings on a hypercubic lattice, one strength per axis and site, or one for all.

    strength broadcasts to (axes, *shape); strength[a, i] couples site i with its next site along axis a. With a free boundary the last
    site of an axis has no next one. A periodic axis of length 2 couples its sites twice.
    """

    strength: Array
    shape: tuple[int, ...] = eqx.field(static=True)
    periodic: bool | tuple[bool, ...] = eqx.field(static=True)

    @property
    def closed(self) -> tuple[bool, ...]:
        """Whether each axis is periodic."""
        return self.periodic if isinstance(self.periodic, tuple) else (self.periodic,) * len(self.shape)

    @property
    def sites(self) -> tuple[int, ...]:
        return self.shape

    def local_field(self, x: Array) -> Array:
        strength = jnp.broadcast_to(self.strength, (len(self.shape), *self.shape))
        total = jnp.zeros_like(x)
        for axis in range(len(self.shape)):
            j = strength[axis]
            if not self.closed[axis]:
                last = np.arange(self.shape[axis]) == self.shape[axis] - 1
                j = jnp.where(
                    np.expand_dims(last, tuple(a for a in range(len(self.shape)) if a != axis)), jnp.zeros_like(j), j
                )
            j = j.reshape(*self.shape, *(1,) * (x.ndim - len(self.shape)))
            total = total + j * jnp.roll(x, -1, axis) + jnp.roll(j * x, 1, axis)
        return total

    def colours(self) -> np.ndarray:
        colour = lattice_colours(self.shape, self.closed)
        return np.stack([colour == c for c in range(colour.max(initial=0) + 1)])

    def _bonds(self) -> tuple[np.ndarray, np.ndarray]:
        """The edges (m, 2), and the position of each one's strength in the flattened (axes, *shape)."""
        number = np.arange(int(np.prod(self.shape))).reshape(self.shape)
        edges, places = [], []
        for axis, length in enumerate(self.shape):
            here = number if self.closed[axis] else number.take(range(length - 1), axis)
            there = np.roll(number, -1, axis).take(range(here.shape[axis]), axis)
            edges.append(np.stack([here, there], -1).reshape(-1, 2))
            places.append(axis * number.size + here.reshape(-1))
        return np.concatenate(edges), np.concatenate(places)

    def pairs(self) -> tuple[np.ndarray, Array]:
        edges, places = self._bonds()
        return edges, jnp.broadcast_to(self.strength, (len(self.shape), *self.shape)).reshape(-1)[places]

    def at_bonds(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """Values of the bonds (m,), in the order of `pairs`, at the positions of their strengths: (axes, *shape), and `fill` at the others."""
        full = np.full(len(self.shape) * int(np.prod(self.shape)), fill)
        full[self._bonds()[1]] = values
        return full.reshape(len(self.shape), *self.shape)

    def scaled(self, factor: Array) -> Couplings:
        return LatticeCouplings(self.strength * factor, self.shape, self.periodic)


def _dense(strength: Any) -> DenseCouplings:
    strength = as_float(strength)
    half = strength.ndim // 2
    if strength.ndim not in (2, 4) or strength.shape[:half] != strength.shape[half:]:
        raise ValueError(f"dense couplings need shape (n, n), or (n, q, n, q) for tables, but got {strength.shape}")
    if not is_traced(strength):
        _check_finite("couplings", strength)
        j = np.asarray(strength)
        if not np.allclose(j, j.transpose(*range(half, 2 * half), *range(half))):
            raise ValueError("dense couplings must be symmetric; pass ½ (J + Jᵀ)")
        if np.diagonal(j, axis1=0, axis2=half).any():
            raise ValueError("dense couplings must have a zero diagonal: a site does not interact with itself")
    return DenseCouplings(strength)


def _sparse(edges: Any, strength: Any, n: int) -> SparseCouplings:
    edges, strength = np.asarray(edges), as_float(strength)
    if edges.size and (edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer)):
        raise ValueError(f"edges must be pairs of integers (m, 2), but got {edges.dtype} of shape {edges.shape}")
    edges = edges.astype(int).reshape(-1, 2)
    strength = jnp.broadcast_to(strength, (len(edges),)) if strength.ndim == 0 else strength
    if strength.shape[:1] != (len(edges),) or strength.ndim not in (1, 3):
        raise ValueError(
            f"sparse couplings need one strength per edge: {len(edges)} edges, but strengths of shape {strength.shape}"
        )
    if len(edges) and (edges.min() < 0 or edges.max() >= n):
        raise ValueError(f"an edge names a site outside 0 … {n - 1}")
    _check_finite("couplings", strength)
    if (edges[:, 0] == edges[:, 1]).any():
        raise ValueError(f"an edge joins site {edges[edges[:, 0] == edges[:, 1]][0, 0]} to itself")
    if len(np.unique(np.sort(edges, axis=1), axis=0)) != len(edges):
        raise ValueError("an edge is listed twice: give each pair once, with the sum of its strengths")
    return SparseCouplings(strength, Frozen(edges), int(n))


def _lattice(shape: Any, strength: Any, periodic: bool | Sequence[bool]) -> LatticeCouplings:
    shape, strength = tuple(int(length) for length in shape), as_float(strength)
    if not shape or min(shape) < 1:
        raise ValueError(f"a lattice needs a shape of lengths of at least 1, but got {shape}")
    if strength.ndim and np.broadcast_shapes(strength.shape, (len(shape), *shape)) != (len(shape), *shape):
        raise ValueError(
            f"lattice couplings must broadcast to (axes, *shape) = {(len(shape), *shape)}, but got {strength.shape}"
        )
    _check_finite("couplings", strength)
    closed = (bool(periodic),) * len(shape) if np.ndim(periodic) == 0 else tuple(map(bool, np.asarray(periodic)))
    if len(closed) != len(shape):
        raise ValueError(f"periodic must be one boolean, or one per axis of {shape}, but got {periodic!r}")
    if any(c and length < 2 for c, length in zip(closed, shape, strict=True)):
        raise ValueError(
            f"a periodic lattice needs lengths of at least 2, but got {shape}: a site would be its own neighbour"
        )
    return LatticeCouplings(strength, shape, closed[0] if len(set(closed)) == 1 else closed)


class Pairwise(Factored, BlockSweepable, Featured, Conditional, Annealable):
    """The common base of Ising and Potts energies: E(x) = -½ Σ_ij J_ij φ(x_i)·φ(x_j) - Σ_i h_i · φ(x_i), and Gibbs sweeps by colour classes."""

    couplings: eqx.AbstractVar[Couplings]
    fields: eqx.AbstractVar[Array]

    def _features(self, x: Array) -> Array:
        return units.features(self.space, x, self.fields.dtype)

    def __call__(self, x: State) -> Array:
        return self.feature_energy(self._features(x))

    def feature_energy(self, phi: Array) -> Array:
        """E of the features φ(x) of shape `fields.shape`, which need not be those of a state."""
        return -jnp.sum(phi * (0.5 * self.couplings.local_field(phi) + self.fields))

    def conditionals(self, x: State) -> Array:
        """log p(x_i | the other sites) of every site and value, up to a constant per site: shape (sites, values)."""
        pull = self.couplings.local_field(self._features(x)) + self.fields
        if isinstance(self.space, Categorical):
            return pull.reshape(-1, self.space.k)
        return jnp.stack([-pull.reshape(-1), pull.reshape(-1)], axis=1)

    @property
    def least_width(self) -> int:
        if isinstance(self.couplings, DenseCouplings):
            return len(self.fields) - 1
        if isinstance(self.couplings, LatticeCouplings):  # it contains a grid of its two longest sides
            return min(sorted(self.couplings.shape)[-2:]) if len(self.couplings.shape) > 1 else 0
        return 0

    def interactions(self) -> np.ndarray:
        """The pairs of sites (m, 2) that interact, in the flat numbering of the sites."""
        return self.couplings.pairs()[0]

    def gibbs_sweep(self, blocks: Blocks | None = None) -> Sweep:
        """The Gibbs sweep over colour classes, or over given blocks (`colouring.block_problem` checks them)."""
        couplings = self.couplings
        if isinstance(couplings, DenseCouplings) and blocks is None:
            return self._dense_sweep(couplings.matrix())
        classes = couplings.colours().reshape(-1, int(np.prod(couplings.sites))) if blocks is None else None
        if (
            isinstance(couplings, LatticeCouplings)
            and isinstance(self.space, Spin)
            and classes is not None
            and len(classes) == 2
        ):
            return checkerboard_sweep(couplings.shape, couplings.closed, couplings.strength, self.fields)
        members = blocks if classes is None else [np.flatnonzero(row) for row in classes]
        return self._class_sweep(members or [])

    def _class_sweep(self, classes: Sequence[Any]) -> Sweep:
        edges, strength = self.couplings.pairs()
        sites, dtype = layout(classes), self.fields.dtype
        gather = neighbour_sum(edges.T.reshape(-1), sites)
        # Every pair occurs for its first and for its second site; tables have the neighbour's value first. The last entry is a term of 0.
        near = jnp.asarray(np.append(sites.place[edges[:, ::-1].T.reshape(-1)], 0), jnp.int32)
        other_way = strength.transpose(0, 2, 1) if strength.ndim == 3 else strength
        j = jnp.concatenate([other_way, strength, jnp.zeros((1, *strength.shape[1:]), strength.dtype)]).astype(dtype)
        fields = self.fields.reshape(len(sites.place), *self.fields.shape[len(self.couplings.sites) :])
        fields = fields[np.maximum(sites.order, 0)]

        def potentials(c: Array, x: Array) -> Array:
            def term(entries: Array) -> Array:
                label, strength = x[near[entries]], j[entries]
                if isinstance(self.space, Spin):
                    return strength[:, None] * (2 * label.astype(jnp.int8) - 1).astype(dtype)
                if strength.ndim == 1:
                    return strength[:, None, None] * jax.nn.one_hot(label, fields.shape[-1], dtype=dtype)
                return jax.vmap(lambda table, label: table[label])(strength, label)

            own = fields[c][:, None]
            return gather(c, jnp.broadcast_to(own, (own.shape[0], x.shape[1], *own.shape[2:])), term)

        def energy(x: Array) -> Array:
            # Every pair is in the potentials of both its sites: E = -½ Σ_i s_i (h_i + the potential of i).
            def less(c: Array, total: Array) -> Array:
                up = jax.lax.dynamic_slice_in_dim(x, c * length, length)
                terms = jnp.where(up, 0.5, -0.5).astype(dtype) * (fields[c][:, None] + potentials(c, x))
                return total - jnp.sum(jnp.where(present[c][:, None], terms, 0), axis=0)

            return jax.lax.fori_loop(0, len(sites.order), less, jnp.zeros(x.shape[1:], dtype))

        length, present = sites.order.shape[1], jnp.asarray(sites.order >= 0)
        sweep = class_sweep(self.space, sites, potentials)
        return sweep._replace(energy=energy) if isinstance(self.space, Spin) else sweep

    def _dense_sweep(self, matrix: Array) -> Sweep:
        """Site after site, in order. States are packed as features with chains last, (n, chains) or (n · q, chains): one product per site."""
        dtype, n = self.fields.dtype, len(self.fields)
        q = self.space.k if isinstance(self.space, Categorical) else 0
        if q:
            tables = (
                matrix if matrix.ndim == 4 else matrix[:, None, :, None] * jnp.eye(q, dtype=matrix.dtype)[None, :, None]
            )
            rows = tables.reshape(n, q, n * q).astype(dtype)
        else:
            rows = matrix.reshape(n, 1, n).astype(dtype)
        fields = self.fields.reshape(n, -1, 1)

        def update(i: Array, carry: tuple[PRNGKeyArray, Array]) -> tuple[PRNGKeyArray, Array]:
            key, phi = carry
            pull, site_key = rows[i] @ phi + fields[i], jax.random.fold_in(key, i)
            if q:
                drawn = units.sample_first_axis(site_key, pull)
                new = (drawn[None] == jnp.arange(q, dtype=jnp.int32)[:, None]).astype(dtype)
            else:
                new = units.sample(Spin(()), site_key, pull)
            return key, jax.lax.dynamic_update_slice_in_dim(phi, new, i * len(new), 0)

        def step(key: PRNGKeyArray, phi: Array) -> Array:
            return jax.lax.fori_loop(0, n, update, (key, phi))[1]

        def back(key: PRNGKeyArray, phi: Array) -> Array:
            return jax.lax.fori_loop(0, n, lambda i, carry: update(n - 1 - i, carry), (key, phi))[1]

        def pack(v: Array) -> Array:
            return jax.vmap(self._features)(v).reshape(v.shape[0], -1).T

        def unpack(phi: Array) -> Array:
            return jnp.argmax(phi.reshape(n, q, -1), axis=1).T if q else phi.T

        return Sweep(pack, step, back, unpack)

    def base(self) -> Energy:
        return Independent(self.fields * 0, self.space)

    @property
    def tempers_free_energy(self) -> bool:
        return True

    def tempered(self, base: Energy, beta: ArrayLike) -> Energy:
        slope = self.slope(base)
        if slope is None or not isinstance(base, Independent | Pairwise):
            return super().tempered(base, beta)
        beta = jnp.asarray(beta, self.fields.dtype)
        start = base.potentials if isinstance(base, Independent) else base.fields
        couplings: Any = slope.couplings.scaled(beta)
        if isinstance(base, Pairwise):
            strength = _strengths(base.couplings).astype(couplings.strength.dtype) + couplings.strength
            couplings = eqx.tree_at(lambda c: c.strength, couplings, strength)
        fields = start.astype(self.fields.dtype) + beta * slope.fields
        return eqx.tree_at(lambda e: (e.couplings, e.fields), self, (couplings, fields))

    def slope(self, base: Energy) -> Pairwise | None:
        """E - E_base as a model of this kind; None for a base that is neither independent nor a model with the same bonds."""
        if isinstance(base, Independent):
            return eqx.tree_at(lambda e: e.fields, self, self.fields - base.potentials.astype(self.fields.dtype))
        if type(base) is not type(self) or not _same_bonds(base.couplings, self.couplings):
            return None
        ends: Any = base
        own, other = _strengths(self.couplings), _strengths(ends.couplings).astype(self.fields.dtype)
        fields = self.fields - ends.fields.astype(self.fields.dtype)
        return eqx.tree_at(lambda e: (e.couplings.strength, e.fields), self, (own - other, fields))


def _strengths(couplings: Couplings) -> Array:
    """One strength per bond and axis, also where a lattice has one for all."""
    if isinstance(couplings, LatticeCouplings):
        return jnp.broadcast_to(couplings.strength, (len(couplings.shape), *couplings.shape))
    return couplings.strength


def _same_bonds(a: Couplings, b: Couplings) -> bool:
    """Whether both have the same bonds in the same order, so that their strengths can be added."""
    same = type(a) is type(b) and a.sites == b.sites
    if isinstance(a, SparseCouplings) and isinstance(b, SparseCouplings):
        same = same and a.edges == b.edges
    if isinstance(a, LatticeCouplings) and isinstance(b, LatticeCouplings):
        same = same and a.closed == b.closed
    return same and _strengths(a).shape == _strengths(b).shape


class Ising(Pairwise, Marginal, Blockwise):
    """An Ising model of spins s_i = ±1: E(s) = -½ Σ_ij J_ij s_i s_j - Σ_i h_i s_i, each pair once in Σ_{i<j} J_ij s_i s_j.

    Args:
        couplings: J, shape (n, n), symmetric with zero diagonal. `Ising.sparse` takes an edge list, `Ising.lattice` a lattice.
        fields: h, of the sites' shape or a number; by default 0.

    The inverse temperature is part of the parameters: p(s) ∝ exp(-E(s)), so pass β J and β h.

    Raises:
        ValueError: for couplings that are not symmetric, have a diagonal, repeat an edge or do not match the fields.

    Example:
        >>> import lnz
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
        >>> round(float(lnz.log_partition(torus).value), 4)  # Kaufman 1949: 12.7855
        12.7855
    """

    couplings: Couplings
    fields: Array

    def __init__(self, couplings: ArrayLike, fields: ArrayLike = 0.0):
        self.couplings = couplings if isinstance(couplings, Couplings) else _dense(couplings)
        if isinstance(self.couplings, DenseCouplings | SparseCouplings) and self.couplings.strength.ndim > 2:
            raise ValueError("an Ising model has one coupling per pair; for tables J_ij(a, b) use lnz.Potts")
        self.fields = _fields(fields, self.couplings.sites, self.couplings)

    @classmethod
    def sparse(cls, edges: ArrayLike, couplings: ArrayLike, fields: ArrayLike = 0.0, *, n: int) -> Ising:
        """A model on a graph of n sites: edges (m, 2), each pair once; couplings (m,) or one number."""
        return cls(_sparse(edges, couplings, n), fields)

    @classmethod
    def lattice(
        cls, shape: Any, couplings: ArrayLike, fields: ArrayLike = 0.0, *, periodic: bool | Sequence[bool]
    ) -> Ising:
        """A model on a hypercubic lattice, periodic or not, or one boolean per axis: (False, True) is a cylinder.

        couplings broadcast to (axes, *shape): the strength towards the next site along each axis.
        """
        return cls(_lattice(shape, couplings, periodic), fields)

    @property
    def space(self) -> Space:
        return Spin(self.couplings.sites)

    @property
    def observed(self) -> Space:
        return self.space

    def free_energy(self, v: State) -> Array:
        return self(v)

    def collapsed(self) -> Energy:
        """The marginal of the smaller side, for a graph without odd cycles."""
        if not isinstance(self.couplings, SparseCouplings):
            return self
        sides = two_sides(self.couplings.edges, self.couplings.n)
        return self if sides is None else SmallerSide(sides, self.couplings.strength, self.fields)

    def factors(self) -> FactorGraph:
        """One factor per bond, J s s', and one per site, h s, over labels 0 for -1 and 1 for +1."""
        edges, strength = self.couplings.pairs()
        sign = jnp.asarray([-1, 1], self.fields.dtype)
        pairs = strength.astype(sign.dtype)[:, None, None] * (sign[:, None] * sign[None])[None]
        return pairwise_graph([2] * self.fields.size, edges, pairs, [self.fields.reshape(-1, 1) * sign[None]])

    def block_energies(self, size: int) -> Callable[[Array], Array]:
        """Energies of 2^k consecutive states: the energy of the low spins once, and their coupling to the high spins by one product."""
        n, low = self.fields.size, size.bit_length() - 1
        high = n - low
        unit = jnp.eye(n, dtype=self.fields.dtype).reshape(n, *self.fields.shape)
        j, h = jax.vmap(self.couplings.local_field)(unit).reshape(n, n), self.fields.reshape(-1)
        s = Spin(low).decode(jnp.arange(size, dtype=jnp.uint32)).astype(h.dtype)
        inner = -jnp.sum(s * (0.5 * (s @ j[high:, high:]) + h[high:][None]), axis=1)
        pull = s @ j[high:, :high]

        def energies(first: Array) -> Array:
            t = first.reshape(-1)[:high].astype(h.dtype)
            return inner - pull @ t - jnp.dot(t, 0.5 * (j[:high, :high] @ t) + h[:high])

        return energies


class Potts(Pairwise):
    """A Potts model with q states per site: E(x) = -½ Σ_ij J_ij δ(x_i, x_j) - Σ_i h_i(x_i), or with tables J_ij(x_i, x_j).

    Args:
        couplings: as for `Ising`: dense (n, n), or `Potts.sparse`, `Potts.lattice`. Tables are dense (n, q, n, q), symmetric under the
            exchange of both pairs, or sparse (m, q, q), as in direct coupling analysis of proteins.
        fields: h, of shape (*sites, q), or a number; by default 0.
        q: the number of states.
    """

    couplings: Couplings
    fields: Array

    def __init__(self, couplings: ArrayLike, fields: ArrayLike = 0.0, *, q: int):
        self.couplings = couplings if isinstance(couplings, Couplings) else _dense(couplings)
        if not isinstance(q, int | np.integer) or q < 1:
            raise ValueError(f"a Potts model needs an integer q of at least 1, the number of states, but got {q!r}")
        tables = self.couplings.strength
        of_pairs = tables.shape[1::2] if isinstance(self.couplings, DenseCouplings) else tables.shape[1:]
        if (
            isinstance(self.couplings, DenseCouplings | SparseCouplings)
            and tables.ndim > 2
            and set(of_pairs) != {int(q)}
        ):
            raise ValueError(f"coupling tables of shape {tables.shape} do not match q = {q} states")
        self.fields = _fields(fields, (*self.couplings.sites, int(q)), self.couplings)

    @classmethod
    def sparse(cls, edges: ArrayLike, couplings: ArrayLike, fields: ArrayLike = 0.0, *, n: int, q: int) -> Potts:
        """A model on a graph of n sites: edges (m, 2), each pair once; couplings (m,), tables (m, q, q), or one number."""
        return cls(_sparse(edges, couplings, n), fields, q=q)

    @classmethod
    def lattice(
        cls, shape: Any, couplings: ArrayLike, fields: ArrayLike = 0.0, *, q: int, periodic: bool | Sequence[bool]
    ) -> Potts:
        """A model on a hypercubic lattice, periodic or not, or one boolean per axis; couplings broadcast to (axes, *shape)."""
        return cls(_lattice(shape, couplings, periodic), fields, q=q)

    @property
    def space(self) -> Space:
        return Categorical(self.couplings.sites, self.fields.shape[-1])

    def factors(self) -> FactorGraph:
        """One factor per bond, J δ or its table, and one per site."""
        edges, strength = self.couplings.pairs()
        q = self.fields.shape[-1]
        if strength.ndim == 1:
            strength = strength[:, None, None] * jnp.eye(q, dtype=strength.dtype)[None]
        return pairwise_graph(
            [q] * (self.fields.size // q), edges, strength.astype(self.fields.dtype), [self.fields.reshape(-1, q)]
        )


def _check_finite(name: str, values: Array) -> None:
    if not is_traced(values) and not np.isfinite(np.asarray(values)).all():
        raise ValueError(
            f"{name} must be finite, but some are NaN or infinite; for states of zero probability write an lnz.FunctionEnergy that is +inf there"
        )


def _fields(fields: Any, shape: tuple[int, ...], couplings: Any) -> Array:
    fields = as_float(fields) if not isinstance(fields, int | float) else jnp.asarray(fields, couplings.strength.dtype)
    _check_finite("fields", fields)
    if fields.ndim == 0:
        return jnp.broadcast_to(fields, shape)
    if fields.shape != shape:
        raise ValueError(f"fields must have shape {shape}, to match the couplings, but got {fields.shape}")
    return fields
