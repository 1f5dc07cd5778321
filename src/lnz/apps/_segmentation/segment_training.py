"""Training a segmenter: first the unary net, then its context by any objective. An interrupted and resumed run gives the same result."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._models.random_field import RandomField
from lnz._models.structures import Grid
from lnz.apps._segmentation.neural_potentials import Potentials
from lnz.apps._segmentation.reading import VOID, LabelledImages, check_for_training
from lnz.apps._segmentation.segment_settings import OBJECTIVES, Settings
from lnz.apps._segmentation.segmenter import Segmenter
from lnz.apps._segmentation.variation import varied
from lnz.crf._conditional_objectives import Likelihood, PseudoLikelihood
from lnz.io._data import DataError
from lnz.learning._loop import Diverged, Problem, orders, renamed, run
from lnz.learning._resume import Keeper, digest

STAGES = ("unary", "context")
_CLIP = 5.0  # the largest norm of a gradient
_WARM = 0.1  # of a stage's updates, in which the learning rate rises


class SegmenterEvaluation(NamedTuple):
    """The evaluation of a segmenter after an epoch.

    Attributes:
        stage: "unary" or "context".
        epoch: the epoch within the stage, from 1.
        loss: the mean objective of the epoch, in nats per node.
        validation: the mean objective on the held-out images, or None.
        step: epochs of both stages so far.
    """

    stage: str
    epoch: int
    loss: float
    validation: float | None
    step: int


class _State(eqx.Module):
    """The arrays of a training state."""

    model: Potentials
    optimizer: Any
    best: Potentials
    best_loss: Array
    stage: Array  # 0, 1; 2 when all is done
    epoch: Array  # of the stage, epochs done
    stale: Array  # epochs since the best one
    step: Array  # updates of the stage


class _Progress(NamedTuple):
    """Progress of training: the arrays, the mean objective of an epoch that is not evaluated yet, and the evaluations."""

    state: _State
    loss: float | None = None
    evaluations: tuple[SegmenterEvaluation, ...] = ()


class Training(Problem[_Progress, SegmenterEvaluation]):
    """A training run whose steps are epochs.

    Args:
        data: labelled images.
        settings: all other settings.

    Raises:
        DataError: for data that cannot be learned from: see `lnz.apps.read_segmentation`, `check_for_training` and `Architecture`.
        ValueError: where the objective does not support the field, such as exact sums on a wide map.
    """

    def __init__(self, data: LabelledImages, settings: Settings):
        check_for_training(data)
        held = round(settings.validation * len(data))
        if settings.validation > 0 and not 1 <= held < len(data):
            raise DataError(
                f"{data.source}: with a validation share of {settings.validation:g}, {len(data)} images leave none to hold out, or none to train "
                "on. Give more images, or another share"
            )
        self.settings, self.architecture = settings, settings.architecture(data)
        self.key, self._optimizer = jax.random.key(settings.seed), _adam(settings.weight_decay)
        order = np.random.default_rng(settings.seed).permutation(len(data))
        self.train, self.held_out = data[order[held:]], data[order[:held]] if held else None
        self.batch = min(settings.batch_size, len(self.train))
        self._parts = {
            name: (jnp.asarray(part.images), jnp.asarray(part.labels, jnp.int32))
            for name, part in (("train", self.train), ("held_out", self.held_out))
            if part is not None and part.labels is not None
        }
        self._check_objective()

    def init(self) -> _Progress:
        """The state before the first epoch."""
        model = Potentials(self.architecture, jax.random.fold_in(self.key, 0))
        return _Progress(self._begun(model, 0))

    def number(self, state: _Progress) -> int:
        return len(state.evaluations) + (state.loss is not None)

    def finished(self, state: _Progress) -> bool:
        return int(state.state.stage) >= len(STAGES)

    def step(self, state: _Progress) -> _Progress:
        """One pass over the training images."""
        old = state.state
        stage, number = int(old.stage), int(old.epoch)
        key = jax.random.fold_in(self.key, 1 + stage)
        n = len(self.train)
        order = orders(key, number, 1, n, self.batch)
        batches = -(-n // self.batch)
        model, optimizer, step = old.model, old.optimizer, int(old.step)
        losses = []
        for i in range(batches):
            rows = jnp.asarray(order[i * self.batch : (i + 1) * self.batch])
            here = jnp.arange(i * self.batch, (i + 1) * self.batch, dtype=jnp.int32) < n
            rate = self._rate(stage, step, batches)
            model, optimizer, loss = _update(
                self.settings.objective,
                self.settings.vary,
                self._optimizer,
                model,
                optimizer,
                *self._parts["train"],
                rows,
                here,
                jax.random.fold_in(key, step),
                rate,
                stage,
            )
            losses.append(loss)
            step += 1
        total = float(jnp.mean(jnp.stack(losses)))
        if not math.isfinite(total):
            raise Diverged(
                f"the objective became {total} in epoch {number + 1} of the stage {STAGES[stage]}. Use a lower learning rate"
            )
        step = jnp.asarray(step, jnp.int32)
        new = _State(model, optimizer, old.best, old.best_loss, old.stage, old.epoch + 1, old.stale, step)
        return state._replace(state=new, loss=total)

    def evaluate(self, state: _Progress) -> SegmenterEvaluation | None:
        if state.loss is None:
            return None
        stage = int(state.state.stage)
        held = self.validation_loss(state.state.model, stage) if self.held_out is not None else None
        return SegmenterEvaluation(STAGES[stage], int(state.state.epoch), state.loss, held, self.number(state))

    def close(self, state: _Progress, evaluation: SegmenterEvaluation) -> _Progress:
        """Keep the best model, and begin the next stage from it if this stage is finished."""
        old, held = state.state, evaluation.validation
        better = held is None or held < float(old.best_loss)
        new = _State(
            old.model,
            old.optimizer,
            old.model if better else old.best,
            jnp.asarray(held if better and held is not None else old.best_loss, jnp.float32),
            old.stage,
            old.epoch,
            jnp.zeros((), jnp.int32) if better else old.stale + 1,
            old.step,
        )
        stage = int(new.stage)
        if int(new.epoch) >= self._epochs(stage) or int(new.stale) >= self.settings.patience:
            stage += 1
            while stage < len(STAGES) and not self._epochs(stage):
                stage += 1
            new = self._begun(new.best, stage)
        return _Progress(new, None, (*state.evaluations, evaluation))

    def pack(self, state: _Progress) -> tuple[Any, dict[str, Any]]:
        about = {"loss": state.loss, "evaluations": [list(evaluation) for evaluation in state.evaluations]}
        return state.state, about

    def unpack(self, tree: Any, about: dict[str, Any]) -> _Progress:
        evaluations = tuple(SegmenterEvaluation(*evaluation) for evaluation in about["evaluations"])
        return _Progress(tree, about["loss"], evaluations)

    def keeper(self, checkpoint: str | Path | None) -> Keeper:
        """The checkpoint of this run, with the settings that must agree for a resumption."""
        settings = dataclasses.asdict(self.settings) | {"scales": list(self.settings.scales)}
        return Keeper(checkpoint, settings | {"data": digest(self._parts)})

    def validation_loss(self, model: Potentials, stage: int) -> float:
        """The objective of a stage on the held-out images, in nats per node."""
        images, labels = self._parts["held_out"]
        sums, nodes = 0.0, 0.0
        for start in range(0, len(images), self.batch):
            rows = np.minimum(np.arange(start, start + self.batch), len(images) - 1)
            here = np.arange(start, start + self.batch) < len(images)
            a, b = _measured(model, images[rows], labels[rows], jnp.asarray(here), stage, self.settings.objective)
            sums, nodes = sums + float(a), nodes + float(b)
        return sums / nodes

    def _epochs(self, stage: int) -> int:
        return (self.settings.epochs, self.settings.context_epochs)[stage]

    def _rate(self, stage: int, step: int, batches: int) -> Array:
        share = (step + 1) / (self._epochs(stage) * batches)
        rising = min(1.0, share / _WARM)
        return jnp.asarray(self.settings.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * share)), jnp.float32)

    def _begun(self, model: Potentials, stage: int) -> _State:
        """The state at the start of a stage. The optimiser works on one vector of all weights, which compiles much faster than many leaves."""
        moments = self._optimizer.init(ravel_pytree(eqx.filter(model, eqx.is_inexact_array))[0])
        zero = jnp.zeros((), jnp.int32)
        infinite = jnp.asarray(jnp.inf, jnp.float32)
        return _State(model, moments, model, infinite, jnp.asarray(stage, jnp.int32), zero, zero, zero)

    def _check_objective(self) -> None:
        """Raise ValueError where the objective cannot compute log Z on this map."""
        objective, a = OBJECTIVES[self.settings.objective], self.architecture
        if not self.settings.context_epochs or not isinstance(objective, Likelihood):
            return
        structure = Grid(a.map_shape, [offset for offsets in a.offsets for offset in offsets])
        field = RandomField(structure, jnp.zeros((*a.map_shape, a.classes)))
        jax.eval_shape(objective.loss, field, jnp.zeros(a.map_shape, jnp.int32))


class FittedSegmenter(NamedTuple):
    """What `fit_segmenter` returns.

    Attributes:
        segmenter: the best one.
        evaluations: one per epoch.
        training: the run, with its training and held-out images.
    """

    segmenter: Segmenter
    evaluations: list[SegmenterEvaluation]
    training: Training

    @property
    def looks(self) -> list[SegmenterEvaluation]:
        """The name of `evaluations` in version 0.1."""
        return renamed("FittedSegmenter.looks", self.evaluations, "FittedSegmenter.evaluations", None)


def fit_segmenter(
    data: LabelledImages,
    *,
    checkpoint: str | Path | None = None,
    on_evaluation: Callable[[SegmenterEvaluation], None] | None = None,
    on_look: Callable[[SegmenterEvaluation], None] | None = None,
    **settings: Any,
) -> FittedSegmenter:
    """Train a segmenter on labelled images: trunk and unary net by cross-entropy, then nodes and pairs by the objective.

    The scale of each relation, and then the weights and widths of the dense field, are chosen last, on held-out images; without such images
    they keep the value 1 and their defaults.

    Args:
        data: labelled images, see `lnz.apps.read_segmentation`.
        checkpoint: a file that is written after every epoch and at an interruption, and resumed from if it exists.
        on_evaluation: called after every epoch, before the checkpoint that follows.
        on_look: its name in version 0.1.
        settings: see `lnz.apps._segmentation.segment_settings.Settings`.

    Raises:
        DataError: for data that cannot be learned from.
        ValueError: for invalid settings.
        CheckpointError: where the checkpoint is damaged or of another run.
        Diverged: where the objective becomes NaN or infinite.
        Interrupted: on Ctrl-C, after saving the state.

    Source: Lin, Shen, van den Hengel, Reid 2016, "Efficient piecewise training of deep structured models for semantic segmentation".

    Example:
        >>> import numpy as np, lnz
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, (6, 1, 4)).repeat(8, 1).repeat(4, 2)  # stripes
        >>> images = (50 + 150 * labels[..., None].repeat(3, -1)).astype(np.uint8)
        >>> data = lnz.apps.LabelledImages(images, labels, 2, tuple("abcdef"), "stripes")
        >>> fitted = lnz.apps.fit_segmenter(data, stride=2, channels=8, epochs=12, context_epochs=2, validation=0, learning_rate=0.01, vary=False)
        >>> bool((fitted.segmenter.predict(images).labels == labels).mean() > 0.9)
        True
    """
    from lnz.apps._segmentation.selection import fitted_dense, fitted_scales

    on_evaluation = renamed("on_look=", on_look, "on_evaluation=", on_evaluation)
    training = Training(data, Settings(**settings))
    found, _ = run(training, training.init(), training.keeper(checkpoint), on_evaluation=on_evaluation)
    segmenter = Segmenter(found.state.model)
    if training.held_out is not None:
        if training.settings.context_epochs:
            segmenter = fitted_scales(segmenter, training.held_out)
        segmenter = fitted_dense(segmenter, training.held_out)
    return FittedSegmenter(segmenter, list(found.evaluations), training)


@functools.lru_cache(maxsize=16)
def _adam(weight_decay: float) -> Any:
    """AdamW without its learning rate; one object for equal settings, so that compiled programs are shared."""
    import optax

    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.scale_by_adam(), optax.add_decayed_weights(weight_decay))


def coarse_labels(labels: Int[Array, "n height width"], stride: int, classes: int) -> Int[Array, "n rows columns"]:
    """The most frequent class among the pixels of every node, -1 where at least half of them are not scored."""
    n, height, width = labels.shape
    rows, columns = -(-height // stride), -(-width // stride)
    counts = jax.nn.one_hot(labels, classes, dtype=jnp.int32)
    counts = jnp.pad(counts, ((0, 0), (0, rows * stride - height), (0, columns * stride - width), (0, 0)))
    counts = counts.reshape(n, rows, stride, columns, stride, classes).sum((2, 4), dtype=jnp.int32)
    across, down = (np.minimum(stride, m - stride * np.arange(-(-m // stride))) for m in (width, height))
    scored = 2 * counts.sum(-1, dtype=jnp.int32) > jnp.asarray(np.outer(down, across), jnp.int32)[None]
    return jnp.where(scored, jnp.argmax(counts, -1).astype(jnp.int32), VOID)


def _sum(model: Any, images: Array, labels: Array, here: Array, stage: int, objective: str) -> tuple[Array, Array]:
    """The objective of a stage summed over the images that are present, and the number of their nodes."""
    features = model.features(images)
    if stage == 1:
        features = jax.lax.stop_gradient(features)

    def one(x: Array, y: Array) -> Array:
        field = model.field(x, mask=y >= 0, context=stage == 1)
        chosen = (
            OBJECTIVES[objective] if stage == 1 else PseudoLikelihood()
        )  # without edges: the cross-entropy of nodes
        return chosen.loss(field, y)

    a = model.architecture
    labels = jnp.where(here[:, None, None], coarse_labels(labels, a.stride, a.classes), VOID)
    nats = jax.vmap(one)(features, labels)
    return jnp.sum(nats), jnp.maximum(jnp.sum(labels >= 0), 1).astype(nats.dtype)


_measured = eqx.filter_jit(_sum)


@eqx.filter_jit
def _update(
    objective: str,
    vary: bool,
    optimizer: Any,
    model: Potentials,
    moments: Any,
    images: Array,
    labels: Array,
    rows: Array,
    here: Array,
    key: PRNGKeyArray,
    rate: Array,
    stage: int,
) -> tuple[Potentials, Any, Array]:
    """One step of Adam on a batch. The scales of relations are never trained, the trunk only in the first stage, the pairs only in the second."""
    x, y = images[rows], labels[rows]
    x = x.astype(jnp.float32)
    if vary:
        x, y = varied(x, y, key, model.architecture)

    def mean(model: Potentials) -> Array:
        total, nodes = _sum(model, x, y, here, stage, objective)
        return total / nodes

    loss, gradient = eqx.filter_value_and_grad(mean)(model)
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    weights, restored = ravel_pytree(arrays)
    trained, _ = ravel_pytree(_trained(arrays, stage))
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):  # optax relies on JAX's default promotion
        change, after = optimizer.update(ravel_pytree(gradient)[0], moments, weights)
    moments = jax.tree.map(lambda new, old: new.astype(old.dtype), after, moments)
    weights = weights - (rate * trained * change).astype(weights.dtype)
    return eqx.combine(restored(weights), rest), moments, loss.astype(jnp.float32)


def _trained(arrays: Potentials, stage: int) -> Potentials:
    """1 for a weight that is trained in a stage, 0 for one that is not."""
    ones, zeros = (jax.tree.map(lambda x, of=of: jnp.full_like(x, of), arrays) for of in (1, 0))
    return eqx.tree_at(
        lambda m: (m.trunk, m.unary, m.pairs),
        zeros,
        (zeros.trunk if stage else ones.trunk, ones.unary, ones.pairs if stage else zeros.pairs),
    )
