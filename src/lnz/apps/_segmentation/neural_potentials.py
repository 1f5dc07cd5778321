"""Neural potentials of a segmentation: their architecture, and the field of an image."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from lnz._models.random_field import RandomField
from lnz._models.structures import Grid
from lnz.apps._segmentation.network import RELATIONS, Relation, Trunk, relation_offsets, resized
from lnz.crf._heads import PairwiseHead, UnaryHead
from lnz.io._data import DataError

_NODES = 20  # along the shorter side of a map, where the stride is chosen by the size of the images


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Settings of the networks that do not depend on the images.

    Attributes:
        stride: pixels per node of the coarse map, along each axis: 1, 2 or 4; 0 for the largest that leaves 20 nodes along the shorter side.
        channels: channels of the first convolution.
        depth: number of times that the trunk halves its map.
        features: features per node.
        hidden: width of the hidden layers of the nets of nodes and pairs.
        scales: image scales that the trunk processes.
        reach: side of the range boxes, as a multiple of the shorter side of the map.
        neighbours: rows and columns that are kept of a range box.
    """

    stride: int = 0
    channels: int = 24
    depth: int = 3
    features: int = 64
    hidden: int = 48
    scales: tuple[float, ...] = (1.0, 0.5)
    reach: float = 0.4
    neighbours: int = 3

    def __post_init__(self) -> None:
        if self.stride not in (0, 1, 2, 4):
            raise ValueError(f"stride must be 1, 2 or 4, but is {self.stride}")
        if not 0 < self.reach < 2 or self.neighbours < 2:
            raise ValueError(
                f"reach must be above 0 and neighbours at least 2, but got {self.reach} and {self.neighbours}"
            )
        if not self.scales or not all(0 < scale <= 2 for scale in self.scales):
            raise ValueError(f"scales of the image must be above 0 and at most 2, but are {self.scales}")
        for name, least in (("channels", 1), ("depth", 0), ("features", 1), ("hidden", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(NetworkSettings):
    """The architecture of a segmenter: plain numbers, saved with it.

    Attributes:
        classes: K.
        height, width: size of the images.
        centre, spread: mean and standard deviation of every colour, in units of 0 … 255.
    """

    classes: int
    height: int
    width: int
    centre: tuple[float, float, float]
    spread: tuple[float, float, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise ValueError(f"classes must be at least 1, but is {self.classes}")
        if not self.stride:
            fits = [s for s in (4, 2) if min(self.height, self.width) > s * (_NODES - 1)]
            object.__setattr__(self, "stride", fits[0] if fits else 1)
        if min(self.height, self.width) < 2 * self.stride:
            raise DataError(
                f"images of {self.width} x {self.height} pixels give no map at a stride of {self.stride}: use larger images or a smaller stride"
            )
        try:
            self.offsets  # noqa: B018
        except ValueError as error:
            raise DataError(f"images of {self.width} x {self.height} pixels: {error}") from None

    @property
    def map_shape(self) -> tuple[int, int]:
        """The shape of the coarse map."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def offsets(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The offsets of every relation."""
        return relation_offsets(self.map_shape, self.reach, self.neighbours)


class Potentials(eqx.Module):
    """The potentials of a conditional random field for segmentation, as networks of the image:

        E(y, x) = -Σ_p U(y_p; x) - Σ_r s_r Σ_(p,q) V_r(y_p, y_q; x),

    on a coarse map, U being K outputs for a node's features, V_r the K² outputs for the features of an ordered pair in relation r ("surrounding",
    "above/below"), and s_r a scale of the relation, 1 unless fitted.

    Attributes:
        trunk, unary, pairs: the networks.
        scales: s_r, shape (relations,).
        architecture: sizes of the networks and images.

    Source: Lin, Shen, van den Hengel, Reid 2016, "Efficient piecewise training of deep structured models for semantic segmentation".
    """

    trunk: Trunk
    unary: UnaryHead
    pairs: tuple[PairwiseHead, ...]
    scales: Float[Array, " relations"]
    architecture: Architecture = eqx.field(static=True)

    def __init__(self, architecture: Architecture, key: Any):
        a = architecture
        keys = jax.random.split(key, 2 + len(RELATIONS))
        self.trunk = Trunk(
            keys[0], stride=a.stride, width=a.channels, features=a.features, scales=a.scales, depth=a.depth
        )
        unary = UnaryHead(a.features, a.classes, hidden=a.hidden, key=keys[1])
        pairs = tuple(PairwiseHead(a.features, a.classes, hidden=a.hidden, key=k) for k in keys[2:])
        self.unary, self.pairs = jax.tree.map(lambda x: x.astype(jnp.float32), (unary, pairs))
        self.scales = jnp.ones(len(RELATIONS), jnp.float32)
        self.architecture = a

    @property
    def structure(self) -> Grid:
        """The grid of the coarse map, with the offsets of each relation next to each other."""
        a = self.architecture
        return Grid(a.map_shape, [offset for offsets in a.offsets for offset in offsets])

    def features(self, images: Num[Any, "n height width 3"]) -> Float[Array, "n rows columns features"]:
        """The feature vector of every node."""
        a = self.architecture
        images = jnp.asarray(images)
        if images.shape[1:] != (a.height, a.width, 3):
            raise DataError(
                f"this segmenter needs images of {a.width} x {a.height} pixels in 3 colours, but got an array of shape {images.shape}"
            )
        colours = images.astype(jnp.float32) - jnp.asarray(a.centre, jnp.float32)[None, None, None]
        return self.trunk(colours / jnp.asarray(a.spread, jnp.float32)[None, None, None])

    def field(
        self, features: Float[Array, "rows columns features"], *, mask: Any = None, context: bool = True
    ) -> RandomField:
        """The field of one image, given the features of its nodes; without `context`, of unary log-potentials alone."""
        unary = self.unary(features)
        if not context:
            return RandomField(Grid(self.architecture.map_shape, []), unary, mask=mask)
        tables = []
        for net, offsets, scale in zip(self.pairs, self.architecture.offsets, self.scales, strict=True):
            if offsets:
                tables.append(scale * net(features, Relation(self.architecture.map_shape, offsets)))
        return RandomField(self.structure, unary, jnp.concatenate(tables), mask=mask)


def upsampled(a: Architecture, p: Float[Array, "n nodes K"]) -> Float[Array, "n height width K"]:
    """Probabilities of nodes, interpolated to pixels."""
    rows, columns = a.map_shape
    whole = resized(p.reshape(-1, rows, columns, a.classes), rows * a.stride, columns * a.stride)
    return whole[:, : a.height, : a.width]
