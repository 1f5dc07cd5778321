"""A fully connected conditional random field over pixels, which refines labels by position and colour."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from lnz._core.given import given_array
from lnz.apps._segmentation.filters import PermutohedralLattice

_LEAST = 1e-8  # smallest probability, so that its logarithm is finite


@dataclasses.dataclass(frozen=True)
class DenseCRF:
    """Refine per-pixel probabilities by a fully connected field with two Gaussian kernels, by mean field:

        E(y) = -Σ_i log p_i(y_i) + Σ_(i,j) [y_i ≠ y_j] (a · exp(-|s_i - s_j|² / 2θ_a²) + b · exp(-|s_i - s_j|² / 2θ_b² - |c_i - c_j|² / 2θ_c²)),

    where s is the position of a pixel and c its colour, with both kernels normalised symmetrically, D^-½ K D^-½ with D = K·1. The first kernel
    is summed exactly (it is separable), the second by a `PermutohedralLattice`. All updates are parallel.

    Args:
        position_weight: a, in nats.
        position_width: θ_a, in pixels.
        colour_weight: b, in nats.
        colour_position_width: θ_b, in pixels.
        colour_width: θ_c, in grey levels of 0 … 255.
        iterations: number of mean-field updates.

    Raises:
        ValueError: for a negative weight, a width that is not positive, or fewer than one iteration.

    Source: Krähenbühl, Koltun 2011, "Efficient inference in fully connected CRFs with Gaussian edge potentials".

    Example:
        >>> import numpy as np, lnz
        >>> image = np.zeros((1, 6, 6, 3), np.uint8)
        >>> image[:, :, 3:] = 255
        >>> p = np.where(image[..., :1] > 0, [0.4, 0.6], [0.6, 0.4])
        >>> p[0, 2, 1] = 0.45, 0.55
        >>> lnz.apps.DenseCRF()(image, p).argmax(-1)[0, 2].tolist()
        [0, 0, 0, 1, 1, 1]
    """

    position_weight: float = 3.0
    position_width: float = 3.0
    colour_weight: float = 5.0
    colour_position_width: float = 30.0
    colour_width: float = 13.0
    iterations: int = 5

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = "at least 0" if name.endswith("weight") else "above 0"
            if not np.isfinite(value) or value < 0 or (value == 0 and not name.endswith("weight")):
                raise ValueError(f"{name} must be a number {least}, but is {value}")
        if self.iterations != int(self.iterations):
            raise ValueError(f"iterations must be an integer, but is {self.iterations}")

    def __call__(
        self, images: Num[Any, "n height width 3"], probabilities: Float[Any, "n height width K"]
    ) -> Float[Any, "n height width K"]:
        """Refined probabilities of a batch of images, whose grey levels are from 0 to 255, float32.

        Raises:
            ValueError: where shapes do not match, a grey level is outside 0 … 255, all are floats from 0 to 1, or a probability is NaN or negative.
        """
        images, p = _checked(images, probabilities)
        return self._mean_field(np.log(np.maximum(p, _LEAST)), self.kernels(images))

    def kernels(self, images: Num[Any, "n height width 3"]) -> tuple[Any, Any]:
        """The two normalised kernels of a batch, as functions of arrays (n, height, width, K)."""
        n, height, width, _ = images.shape
        return (
            _normalised(_Position(height, width, self.position_width), (n, height, width)),
            _normalised(_Colour(images, self.colour_position_width, self.colour_width), (n, height, width)),
        )

    def _mean_field(self, log_p: np.ndarray, kernels: tuple[Any, Any]) -> np.ndarray:
        q = _softmax(log_p)
        weights = (self.position_weight, self.colour_weight)
        for _ in range(int(self.iterations)):
            said = log_p
            for weight, kernel in zip(weights, kernels, strict=True):
                if weight:
                    said = said + np.float32(weight) * kernel(q)
            q = _softmax(said)
        return q

    def fitted(
        self,
        images: UInt8[Any, "n height width 3"],
        probabilities: Float[Any, "n height width K"],
        labels: Int[Any, "n height width"],
        *,
        weights: tuple[float, ...] = (0.0, 1.0, 3.0),
        position_widths: tuple[float, ...] = (1.0, 3.0),
        shares: tuple[float, ...] = (0.1, 0.35),
        colour_widths: tuple[float, ...] = (5.0, 10.0, 20.0),
    ) -> DenseCRF:
        """Choose the weights and widths with the highest mean of pixel accuracy and mean IoU on held-out images.

        The colour kernel is chosen first, by itself, and then the position kernel with the weights of both. Negative labels are not scored. The
        weights (0, 0), which mean no refinement, are among the candidates by default.

        Args:
            images, probabilities: as for a call.
            labels: the classes of pixels.
            weights: candidates for a and b.
            position_widths: candidates for θ_a, in pixels.
            shares: candidates for θ_b, as shares of the shorter side of the images.
            colour_widths: candidates for θ_c.
        """
        from lnz.apps._segmentation.pixel_metrics import confusion

        images, p = _checked(images, probabilities)
        log_p, k, side = np.log(np.maximum(p, _LEAST)), p.shape[-1], min(images.shape[1:3])

        def best(candidates: Sequence[DenseCRF]) -> DenseCRF:
            score, chosen, kernels, widths = -1.0, candidates[0], None, None
            for crf in candidates:
                if crf._widths != widths:
                    kernels, widths = crf.kernels(images), crf._widths
                assert kernels is not None
                found = confusion(labels, crf._mean_field(log_p, kernels).argmax(-1), k)
                if found.pixel_accuracy + found.mean_iou > score:
                    score, chosen = found.pixel_accuracy + found.mean_iou, crf
            return chosen

        colour = [
            dataclasses.replace(
                self, position_weight=0.0, colour_weight=b, colour_position_width=share * side, colour_width=width
            )
            for share, width, b in itertools.product(shares, colour_widths, weights)
        ]
        first = best(colour)
        return best(
            [
                dataclasses.replace(first, position_width=width, position_weight=a, colour_weight=b)
                for width, a, b in itertools.product(position_widths, weights, weights)
            ]
        )

    @property
    def _widths(self) -> tuple[float, ...]:
        return self.position_width, self.colour_position_width, self.colour_width


class _Position:
    """Σ_j exp(-|s_i - s_j|² / 2θ²) v_j over the pixels of an image: one matrix along each axis."""

    def __init__(self, height: int, width: int, theta: float):
        self._rows, self._columns = (
            np.exp(-0.5 * (np.subtract.outer(np.arange(m), np.arange(m)) / theta) ** 2).astype(np.float32)
            for m in (height, width)
        )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        n, height, width, k = values.shape
        across = np.matmul(self._columns, values)
        return np.matmul(self._rows, across.reshape(n, height, width * k)).reshape(values.shape)


class _Colour:
    """Σ_j exp(-|s_i - s_j|² / 2θ_s² - |c_i - c_j|² / 2θ_c²) v_j over the pixels of every image of a batch."""

    def __init__(self, images: np.ndarray, theta_s: float, theta_c: float):
        n, height, width, _ = images.shape
        group, down, right = np.meshgrid(*(np.arange(m) for m in (n, height, width)), indexing="ij")
        features = np.concatenate([np.stack([right, down], -1) / theta_s, images / theta_c], axis=-1)
        self._lattice = PermutohedralLattice(features.reshape(n * height * width, 5), group.ravel())

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self._lattice(values.reshape(-1, values.shape[-1])).reshape(values.shape)


def _normalised(kernel: Any, shape: tuple[int, ...]) -> Any:
    """v → D^-½ K D^-½ v with D = K·1."""
    scale = 1 / np.sqrt(kernel(np.ones((*shape, 1), np.float32)) + np.float32(1e-20))
    return lambda values: scale * kernel(scale * values)


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def grey_levels(images: Any) -> np.ndarray:
    """Images as an array. ValueError unless all values are grey levels from 0 to 255; floats from 0 to 1 are invalid, too."""
    images = np.asarray(given_array(images, "images"))
    if images.dtype.kind not in "uif" or not ((images >= 0) & (images <= 255)).all():
        raise ValueError("images are grey levels from 0 to 255, but some values are none of these numbers")
    if images.dtype.kind == "f" and images.size and 0 < images.max() <= 1:
        raise ValueError(
            "images are grey levels from 0 to 255, but these are floats from 0 to 1: multiply them by 255 (colours would count for nothing)"
        )
    return images


def _checked(images: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    images = grey_levels(images)
    p = np.asarray(given_array(probabilities, "probabilities"), np.float32)
    if images.ndim != 4 or images.shape[-1] != 3 or p.ndim != 4 or p.shape[:3] != images.shape[:3]:
        raise ValueError(
            f"images must have shape (n, height, width, 3) and probabilities (n, height, width, K), but got {images.shape} and {p.shape}"
        )
    if not (p >= 0).all():
        raise ValueError("probabilities must be at least 0, but some are negative or NaN")
    return images, p
