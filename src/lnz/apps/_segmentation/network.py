"""A small FeatMap-Net (images at several scales, convolutions, sliding pyramids), and the relations between nodes of its map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._models.structures import Grid, Structure

RELATIONS = ("surrounding", "above/below")
_LEVELS = 3  # of the sliding pyramid: windows of 1, 5 and 9 nodes
_GROUP = 8  # channels that are normalised together


class Convolution(eqx.Module):
    """A convolution over height and width, same size, with biases."""

    weight: Float[Array, "rows columns inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, key: PRNGKeyArray, inputs: int, outputs: int, size: int = 3):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # JAX would compile a program for every shape
        weights = rng.normal(scale=math.sqrt(2 / (inputs * size**2)), size=(size, size, inputs, outputs))
        self.weight = jnp.asarray(weights, jnp.float32)
        self.bias = jnp.zeros(outputs, jnp.float32)

    def __call__(self, x: Float[Array, "n height width inputs"]) -> Float[Array, "n height width outputs"]:
        out = jax.lax.conv_general_dilated(x, self.weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out + self.bias[None, None, None]


class Block(eqx.Module):
    """A convolution with group normalisation and a rectifier."""

    convolution: Convolution
    gain: Float[Array, " outputs"]
    shift: Float[Array, " outputs"]

    def __init__(self, key: PRNGKeyArray, inputs: int, outputs: int, size: int = 3):
        self.convolution = Convolution(key, inputs, outputs, size)
        self.gain, self.shift = jnp.ones(outputs, jnp.float32), jnp.zeros(outputs, jnp.float32)

    def __call__(self, x: Float[Array, "n height width inputs"]) -> Float[Array, "n height width outputs"]:
        x = self.convolution(x)
        n, height, width, channels = x.shape
        groups = math.gcd(channels, max(1, channels // _GROUP))
        grouped = x.reshape(n, height, width, groups, channels // groups)
        mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
        variance = jnp.mean((grouped - mean) ** 2, (1, 2, 4), keepdims=True)
        x = ((grouped - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape)
        return jax.nn.relu(x * self.gain[None, None, None] + self.shift[None, None, None])


class Hourglass(eqx.Module):
    """A U-Net: halves its map several times, and doubles it again, joined with the maps on the way down.

    Source: Ronneberger, Fischer, Brox 2015, "U-Net: convolutional networks for biomedical image segmentation".
    """

    down: tuple[tuple[Block, Block], ...]
    up: tuple[Block, ...]

    def __init__(self, key: PRNGKeyArray, width: int, depth: int):
        widths = [width * 2 ** min(i, 2) for i in range(depth + 1)]
        keys = iter(jax.random.split(key, 3 * depth))
        pairs = list(itertools.pairwise(widths))
        self.down = tuple((Block(next(keys), a, b), Block(next(keys), b, b)) for a, b in pairs)
        self.up = tuple(Block(next(keys), a + b, a) for a, b in reversed(pairs))

    def __call__(self, x: Float[Array, "n a b width"], depth: int) -> Float[Array, "n a b width"]:
        passed = []
        for first, second in self.down[:depth]:
            passed.append(x)
            x = first(_halved(x))
            x = x + second(x)
        for block in self.up[len(self.up) - depth :]:
            finer = passed.pop()
            x = block(jnp.concatenate([_doubled(x)[:, : finer.shape[1], : finer.shape[2]], finer], -1))
        return x


class Trunk(eqx.Module):
    """Maps images to a feature vector for every node of the coarse map, one node per stride x stride pixels."""

    stem: tuple[Block, ...]
    hourglass: Hourglass
    last: tuple[Block, ...]
    mix: Block
    stride: int = eqx.field(static=True)
    scales: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self, key: PRNGKeyArray, *, stride: int, width: int, features: int, scales: Sequence[float], depth: int
    ):
        keys = iter(jax.random.split(key, 4 + len(scales)))
        self.stride, self.scales = stride, tuple(scales)
        if stride == 4:
            self.stem = (Block(next(keys), 12, width), Block(next(keys), 4 * width, 2 * width))
            width = 2 * width
        else:
            self.stem = (Block(next(keys), 3 * stride**2, width),)
        self.hourglass = Hourglass(next(keys), width, depth)
        self.last = tuple(Block(next(keys), width, width) for _ in scales)
        self.mix = Block(next(keys), width * len(scales) * _LEVELS, features, 1)

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """The shape of the map of an image."""
        return -(-height // self.stride), -(-width // self.stride)

    def __call__(self, x: Float[Array, "n height width 3"]) -> Float[Array, "n rows columns features"]:
        _, height, width, _ = x.shape
        rows, columns = self.map_shape(height, width)
        x = jnp.pad(x, ((0, 0), (0, rows * self.stride - height), (0, columns * self.stride - width), (0, 0)), "edge")
        maps = []
        for scale, last in zip(self.scales, self.last, strict=True):
            r, c = (max(1, round(scale * m)) for m in (rows, columns))
            y = x if (r, c) == (rows, columns) else resized(x, r * self.stride, c * self.stride)
            for block in self.stem:
                y = block(_folded(y) if self.stride > 1 else y)
            smaller = max(0, round(-math.log2(scale)))  # the coarsest maps of all scales are alike
            y = last(self.hourglass(y, max(0, len(self.hourglass.up) - smaller)))
            maps.append(resized(y, rows, columns))
        whole = jnp.concatenate(maps, -1)
        pyramid = [whole]
        for _ in range(_LEVELS - 1):
            pyramid.append(sliding_maximum(pyramid[-1]))
        return self.mix(jnp.concatenate(pyramid, -1))


class Relation(Grid):
    """The pairs of nodes of one relation on a map. All offsets are one group of edges, for which one net computes the potentials."""

    @property
    def group_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((len(self.edges),),)

    def collected(self, first: Array, second: Array) -> Array:
        return Structure.collected(self, first, second)


def relation_offsets(shape: tuple[int, int], reach: float, neighbours: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The offsets (down, right) of the pairs of every relation on a map: for *surrounding*, then for *above/below*.

    Both boxes have sides of `reach` times the shorter side of the map: one is centred on the node, the other lies below it, so that its pairs are
    (above, below). In each, `neighbours` evenly spaced rows and columns are kept; an offset belongs to the first relation that has it.

    Raises:
        ValueError: where a box reaches beyond the map, or no node has a neighbour in it.
    """
    side = reach * min(shape)
    half, whole = int(side / 2 + 0.5), int(side + 0.5)
    if half < 1:
        raise ValueError(
            f"a box of {reach} times the shorter side of a map of {shape[0]} x {shape[1]} nodes holds no neighbours: use larger images, a smaller "
            "stride or a larger range"
        )
    if whole >= shape[0] or half >= min(shape):
        raise ValueError(
            f"a range box of {whole} nodes is larger than the map of {shape[0]} x {shape[1]} nodes: use a smaller range"
        )
    across = _spaced(-half, half, neighbours)
    around = [(r, c) for r in across for c in across if (r, c) > (0, 0)]
    below = [(r, c) for r in _spaced(1, whole, neighbours) for c in across]
    return tuple(around), tuple(offset for offset in below if offset not in around)


def resized(x: Float[Array, "n a b c"], rows: int, columns: int) -> Float[Array, "n rows columns c"]:
    """Bilinear interpolation; where the map becomes smaller, the mean over the area of a pixel."""
    if x.shape[1:3] == (rows, columns):
        return x
    return jax.image.resize(x, (x.shape[0], rows, columns, x.shape[3]), "linear")


def sliding_maximum(x: Float[Array, "n a b c"]) -> Float[Array, "n a b c"]:
    """The maximum of every channel over a window of 5 x 5 nodes around every node."""
    for axis in (1, 2):
        three = _larger(x, _larger(_shifted(x, 1, axis), _shifted(x, -1, axis)))
        x = _larger(_shifted(three, 1, axis), _shifted(three, -1, axis))
    return x


def _larger(a: Array, b: Array) -> Array:
    """max(a, b), where the whole gradient of equal numbers goes to the first: half the work of splitting it."""
    return jnp.where(a >= b, a, b)


def _shifted(x: Array, step: int, axis: int) -> Array:
    """x at i + step along an axis, -inf beyond the edge."""
    margin, n = [(0, 0)] * x.ndim, x.shape[axis]
    margin[axis] = (max(0, -step), max(0, step))
    return jax.lax.slice_in_dim(jnp.pad(x, margin, constant_values=-jnp.inf), max(0, step), max(0, step) + n, axis=axis)


def _halved(x: Array) -> Array:
    """The maximum of every channel over 2 x 2 nodes."""
    _, a, b, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, a % 2), (0, b % 2), (0, 0)), "edge")
    x = _larger(x[:, ::2], x[:, 1::2])
    return _larger(x[:, :, ::2], x[:, :, 1::2])


def _doubled(x: Array) -> Array:
    """Repeat every node as 2 x 2 nodes."""
    return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)


def _folded(x: Array) -> Array:
    """Merge 2 x 2 nodes into the channels of one node."""
    n, a, b, c = x.shape
    return x.reshape(n, a // 2, 2, b // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, a // 2, b // 2, 4 * c)


def _spaced(first: int, last: int, n: int) -> list[int]:
    """At most n evenly spaced integers from first to last."""
    n = min(n, last - first + 1)
    return sorted({round(first + i * (last - first) / max(n - 1, 1)) for i in range(n)})
