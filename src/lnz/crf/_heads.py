"""Small networks from node features to log-potentials of nodes and of ordered pairs. Any other network can take their place."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from lnz._core.numerics import check_whole_number
from lnz._core.spaces import ArrayLike
from lnz._models.structures import Structure


class UnaryHead(eqx.Module):
    """Log-potentials of the labels of every node from its features x_i: W x_i + b, or with a hidden layer W relu(V x_i + c) + b.

    Args:
        features: the number of features of a node.
        labels: K.
        hidden: the width of the hidden layer; 0 for none.
        key: a random key. The output layer starts at 0.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> head = lnz.crf.UnaryHead(5, 3, key=jax.random.key(0))
        >>> head(jnp.ones((4, 6, 5))).shape
        (4, 6, 3)
    """

    hidden: tuple[Float[Array, "F H"], Float[Array, " H"]] | None
    weight: Float[Array, "H K"]
    bias: Float[Array, " K"]

    def __init__(self, features: int, labels: int, *, hidden: int = 0, key: PRNGKeyArray):
        check_whole_number("features", features)
        check_whole_number("labels", labels)
        self.hidden = (_drawn(key, (features, hidden)), jnp.zeros(hidden)) if hidden else None
        self.weight = jnp.zeros((hidden or features, labels))
        self.bias = jnp.zeros(labels)

    def __call__(
        self, x: Float[ArrayLike, "*nodes F"], *, mask: Bool[ArrayLike, "*nodes"] | None = None
    ) -> Float[Array, "*nodes K"]:
        """The unary log-potentials. Features of masked nodes, which can be NaN, are ignored."""
        rows = _rows(x, mask)
        if self.hidden is not None:
            weight, bias = self.hidden
            rows = jax.nn.relu(rows @ weight + bias[None])
        return (rows @ self.weight + self.bias[None]).reshape(*x.shape[:-1], -1)


class PairwiseHead(eqx.Module):
    """Log-potentials of ordered label pairs [from, to] from the features of the two ends of every edge:

        table_ij = U relu(V x_i + W x_j + c) + b,

    with separate weights for every group of edges. V x_i and W x_j are computed once per node and added along the edges afterwards: features
    of nodes are never copied to edges.

    Args:
        features: the number of features of a node.
        labels: K.
        hidden: the width of the hidden layer.
        groups: the structure's groups of edges, such as 2 for down and right of a grid.
        key: a random key. U and b start at 0, so that edges have no effect at first.

    Source: Lin, Shen, van den Hengel, Reid 2016, "Efficient piecewise training of deep structured models".

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> grid, x = lnz.crf.Grid((4, 6)), jnp.ones((4, 6, 5))
        >>> head = lnz.crf.PairwiseHead(5, 3, groups=2, key=jax.random.key(0))
        >>> head(x, grid).shape == (len(grid.edges), 3, 3)
        True
        >>> field = lnz.RandomField(grid, jnp.zeros((4, 6, 3)), head(x, grid))
    """

    first: Float[Array, "G F H"]
    second: Float[Array, "G F H"]
    bias: Float[Array, "G H"]
    out: Float[Array, "G H K K"]
    out_bias: Float[Array, "G K K"]

    def __init__(self, features: int, labels: int, *, hidden: int = 64, groups: int = 1, key: PRNGKeyArray):
        for name, n in (("features", features), ("labels", labels), ("hidden", hidden), ("groups", groups)):
            check_whole_number(name, n)
        first_key, second_key = jax.random.split(key)
        self.first = _drawn(first_key, (groups, features, hidden))
        self.second = _drawn(second_key, (groups, features, hidden))
        self.bias = jnp.zeros((groups, hidden))
        self.out = jnp.zeros((groups, hidden, labels, labels))
        self.out_bias = jnp.zeros((groups, labels, labels))

    def __call__(
        self, x: Float[ArrayLike, "*nodes F"], structure: Structure, *, mask: Bool[ArrayLike, "*nodes"] | None = None
    ) -> Float[Array, "E K K"]:
        """The tables of all edges, in the order of `structure.edges`. Features of masked nodes, which can be NaN, are ignored.

        Raises:
            ValueError: where the groups or nodes of the structure do not match the head or the features.
        """
        groups, hidden, k, _ = self.out.shape
        if len(structure.groups) != groups or x.shape[:-1] != structure.shape:
            raise ValueError(
                f"this head needs {groups} groups of edges and features of shape {(*structure.shape, self.first.shape[1])}, but the "
                f"structure has {len(structure.groups)} groups and the features have shape {x.shape}"
            )
        rows, tables = _rows(x, mask), []
        begin = 0
        for g, count in enumerate(structure.groups):
            near, _ = structure.at_ends(rows @ self.first[g])
            _, far = structure.at_ends(rows @ self.second[g])
            inner = jax.nn.relu(near[begin : begin + count] + far[begin : begin + count] + self.bias[g][None])
            tables.append((inner @ self.out[g].reshape(hidden, k * k)).reshape(count, k, k) + self.out_bias[g][None])
            begin += count
        return jnp.concatenate(tables) if tables else jnp.zeros((0, k, k))


def _rows(x: Array, mask: ArrayLike) -> Array:
    x = x if mask is None else jnp.where(mask[..., None], x, jnp.zeros_like(x))
    return x.reshape(-1, x.shape[-1])


def _drawn(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape) / math.sqrt(shape[-2])
