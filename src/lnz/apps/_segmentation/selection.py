"""Choices on held-out images after training: the scale of each relation, and the dense field."""

from __future__ import annotations

import dataclasses
import itertools

import equinox as eqx
import jax.numpy as jnp

from lnz.apps._segmentation.pixel_metrics import Confusion, confusion
from lnz.apps._segmentation.reading import LabelledImages
from lnz.apps._segmentation.segmenter import Prediction, Segmenter

_SCALES = (0.0, 0.1, 0.25, 0.5, 1.0)


def scores(prediction: Prediction, data: LabelledImages) -> dict[str, Confusion]:
    """The confusion matrix of every stage of a prediction."""
    assert data.labels is not None
    classes = prediction.unary.shape[-1]
    return {stage: confusion(data.labels, p.argmax(-1), classes) for stage, p in prediction._asdict().items()}


def fitted_scales(segmenter: Segmenter, data: LabelledImages, *, scales: tuple[float, ...] = _SCALES) -> Segmenter:
    """The segmenter whose scales of relations give the highest pixel accuracy plus mean IoU on held-out images, after mean field.

    Pieces are trained independently, so that evidence on which they agree is counted once per piece; scales below 1 correct for that.
    """
    assert data.labels is not None
    best, chosen = -1.0, segmenter
    for pair in itertools.product(scales, repeat=len(segmenter.potentials.pairs)):
        potentials = eqx.tree_at(lambda p: p.scales, segmenter.potentials, jnp.asarray(pair, jnp.float32))
        candidate = dataclasses.replace(segmenter, potentials=potentials)
        _, context = candidate.coarse(data.images)
        found = confusion(data.labels, context.argmax(-1), context.shape[-1])
        if found.pixel_accuracy + found.mean_iou > best:
            best, chosen = found.pixel_accuracy + found.mean_iou, candidate
    return chosen


def fitted_dense(segmenter: Segmenter, data: LabelledImages) -> Segmenter:
    """The segmenter with the dense field that refines held-out images best: see `DenseCRF.fitted`."""
    assert data.labels is not None
    _, context = segmenter.coarse(data.images)
    return dataclasses.replace(segmenter, dense=segmenter.dense.fitted(data.images, context, data.labels))
