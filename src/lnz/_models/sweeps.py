"""Gibbs sweeps over classes of sites: a fast layout of states, and the loop over the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Sweep
from lnz._core.spaces import Categorical, Space
from lnz._models import units


class Layout(NamedTuple):
    """Sites ordered by class, each class padded to the longest.

    Attributes:
        order: (classes, length), the site at every place, or -1.
        place: (sites,), the place of every site in the flattened order.
    """

    order: np.ndarray
    place: np.ndarray


def layout(classes: Sequence[Any]) -> Layout:
    """The layout of these classes, which contain every site once."""
    length = max((len(members) for members in classes), default=0)
    order = np.full((len(classes), length), -1)
    for row, members in zip(order, classes, strict=True):
        row[: len(members)] = members
    place = np.empty(int((order >= 0).sum()), np.int32)
    place[order[order >= 0]] = np.flatnonzero(order.ravel() >= 0)
    return Layout(order, place)


def neighbour_sum(owner: np.ndarray, sites: Layout) -> Callable[[Array, Array, Callable[[Array], Array]], Array]:
    """A function that sums the terms of every site of a class, from the class number, the sites' own potentials, and the terms of any entries.

    It adds column after column of a table of every site's entries; or, if a few sites own most entries, scatters all entries of the class.

    Args:
        owner: (entries,), the site to whose sum each entry belongs. Entry number -1 must be a term of 0.
        sites: the layout of the sites.
    """
    degree = np.bincount(owner, minlength=len(sites.place))
    few = sites.order.size * degree.max(initial=0) <= 8 * len(owner) + 64
    return _sum_by_columns(owner, degree, sites) if few else _sum_by_scatter(owner, sites)


def _sum_by_columns(owner: np.ndarray, degree: np.ndarray, sites: Layout) -> Callable[..., Array]:
    table = np.full((len(degree) + 1, degree.max(initial=0)), -1, np.int32)  # the last row is for places without a site
    by_site = np.argsort(owner, kind="stable")
    table[owner[by_site], np.arange(len(owner)) - np.repeat(np.cumsum(degree) - degree, degree)] = by_site
    columns = jnp.asarray(table[sites.order].transpose(0, 2, 1))

    def total(c: Array, own: Array, term: Callable[[Array], Array]) -> Array:
        unroll = max(1, min(8, columns.shape[1]))
        return jax.lax.scan(lambda sum_, entries: (sum_ + term(entries), None), own, columns[c], unroll=unroll)[0]

    return total


def _sum_by_scatter(owner: np.ndarray, sites: Layout) -> Callable[..., Array]:
    classes, length = sites.order.shape
    class_of, row = np.divmod(sites.place[owner], length)
    most = np.bincount(class_of, minlength=classes).max(initial=0)
    entries = np.full((classes, most), -1, np.int32)
    rows = np.zeros((classes, most), np.int32)
    for c in range(classes):
        mine = np.flatnonzero(class_of == c)
        entries[c, : len(mine)] = mine
        rows[c, : len(mine)] = row[mine]
    entries, rows = jnp.asarray(entries), jnp.asarray(rows)
    return lambda c, own, term: own.at[rows[c]].add(term(entries[c]))


def class_sweep(space: Space, sites: Layout, potentials: Callable[[Array, Array], Array]) -> Sweep:
    """A Gibbs sweep that draws class after class from the log-potentials of its sites given all others.

    States are packed as (classes · length, chains): booleans (spin up) or int32 categories.

    Args:
        space: the space of the states, `Spin` or `Categorical`.
        sites: the layout of the sites.
        potentials: class number and packed states to log-potentials (length, chains) or (length, chains, k).
    """
    sweep = _ClassSweep(space, sites, potentials)
    return Sweep(sweep.pack, sweep.step, sweep.back, sweep.unpack)


class _ClassSweep(NamedTuple):
    """The functions of `class_sweep`."""

    space: Space
    sites: Layout
    potentials: Callable[[Array, Array], Array]

    @property
    def categorical(self) -> bool:
        return isinstance(self.space, Categorical)

    def pack(self, v: Array) -> Array:
        flat = v.reshape(v.shape[0], -1).T
        # A place without a site holds the value of site 0: it is drawn with its class, and never read.
        source = np.maximum(self.sites.order.ravel(), 0).astype(np.int32)
        return (flat.astype(jnp.int32) if self.categorical else flat > 0)[source]

    def step(self, key: PRNGKeyArray, x: Array) -> Array:
        return jax.lax.fori_loop(0, len(self.sites.order), lambda c, x: self._drawn(key, c, x), x)

    def back(self, key: PRNGKeyArray, x: Array) -> Array:
        last = len(self.sites.order) - 1
        return jax.lax.fori_loop(0, last + 1, lambda i, x: self._drawn(key, last - i, x), x)

    def _drawn(self, key: PRNGKeyArray, c: Array, x: Array) -> Array:
        """The states with the sites of class c drawn again."""
        site_key = jax.random.fold_in(key, c)
        pull = self.potentials(c, x)
        if self.categorical:
            new = units.sample_first_axis(site_key, jnp.moveaxis(pull, -1, 0))
        else:
            new = jax.random.uniform(site_key, pull.shape, pull.dtype) < jax.nn.sigmoid(2 * pull)
        return jax.lax.dynamic_update_slice_in_dim(x, new, c * self.sites.order.shape[1], 0)

    def unpack(self, x: Array) -> Array:
        flat = x[self.sites.place].T.reshape(x.shape[1], *self.space.shape)
        return flat if self.categorical else jnp.where(flat, 1, -1).astype(jnp.int8)
