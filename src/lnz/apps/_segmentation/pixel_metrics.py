"""Metrics of pixel labels: pixel accuracy and the intersection over union of every class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lnz._core.given import given_array
from lnz._core.spaces import ArrayLike


class Confusion(NamedTuple):
    """Counts of pixels by true and predicted class.

    Attributes:
        counts: integers (K, K), with true classes as rows and predicted classes as columns.
    """

    counts: Int[Any, "K K"]

    @property
    def pixel_accuracy(self) -> float:
        """The share of correctly classified pixels; NaN without any pixel."""
        total = self.counts.sum()
        return float(np.trace(self.counts) / total) if total else float("nan")

    @property
    def iou(self) -> np.ndarray:
        """|true ∩ predicted| / |true ∪ predicted| of every class, NaN for a class that is neither true nor predicted for any pixel."""
        hit = np.diag(self.counts).astype(float)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """The mean of `iou` over the classes that are true or predicted for some pixel."""
        found = self.iou
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def confusion(truth: ArrayLike, found: ArrayLike, classes: int) -> Confusion:
    """Count pixels by true and predicted class. Pixels whose true class is negative are left out.

    Raises:
        ValueError: where the shapes differ, or a class is `classes` or more.

    Example:
        >>> import lnz
        >>> score = lnz.apps.confusion([[0, 1], [1, -1]], [[0, 1], [0, 0]], 2)
        >>> round(score.pixel_accuracy, 3), score.mean_iou
        (0.667, 0.5)
    """
    truth, found = (np.asarray(given_array(labels, "labels")) for labels in (truth, found))
    if truth.shape != found.shape:
        raise ValueError(f"labels of shape {truth.shape} cannot be compared with labels of shape {found.shape}")
    scored = truth >= 0
    pairs = truth[scored].astype(np.int64), found[scored].astype(np.int64)
    if any(len(y) and not (y.min() >= 0 and y.max() < classes) for y in pairs):
        raise ValueError(f"labels of {classes} classes must be in [0, {classes - 1}], but some are not")
    return Confusion(np.bincount(pairs[0] * classes + pairs[1], minlength=classes**2).reshape(classes, classes))
