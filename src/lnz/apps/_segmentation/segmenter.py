"""A segmenter: neural potentials, a refinement by a dense field, and predictions from both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from lnz._core.checkpoint import CheckpointError, load_arrays, load_tree, save_tree
from lnz.apps._segmentation.dense_crf import DenseCRF, grey_levels
from lnz.apps._segmentation.neural_potentials import Architecture, Potentials, upsampled
from lnz.crf._conditional_objectives import UnrolledMeanField

_BATCH = 16  # images that are predicted together


class Prediction(NamedTuple):
    """Probabilities of the classes of every pixel after each stage of a prediction, arrays (n, height, width, K).

    Attributes:
        unary: probabilities by the unary net alone.
        context: probabilities after mean field on the coarse map.
        refined: probabilities after the dense field.
    """

    unary: Float[np.ndarray, "n height width K"]
    context: Float[np.ndarray, "n height width K"]
    refined: Float[np.ndarray, "n height width K"]

    @property
    def labels(self) -> Int[np.ndarray, "n height width"]:
        """The most probable classes."""
        return self.refined.argmax(-1)

    @property
    def confidence(self) -> Float[np.ndarray, "n height width"]:
        """The probability of that class."""
        return self.refined.max(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A trained segmenter: potentials on a coarse map, decoded by mean field, and a dense field that refines the result.

    Attributes:
        potentials: the networks.
        dense: the refinement.

    Example:
        >>> import jax, numpy as np, lnz
        >>> from lnz.apps._segmentation.neural_potentials import Architecture, Potentials
        >>> small = Architecture(classes=2, height=12, width=16, centre=(0.0,) * 3, spread=(1.0,) * 3, stride=2, channels=8, features=8)
        >>> segmenter = lnz.apps.Segmenter(Potentials(small, jax.random.key(0)))
        >>> segmenter.predict(np.zeros((1, 12, 16, 3), np.uint8)).labels.shape
        (1, 12, 16)
    """

    potentials: Potentials
    dense: DenseCRF = dataclasses.field(default_factory=DenseCRF)

    def predict(self, images: UInt8[Any, "n height width 3"], *, steps: int = 3) -> Prediction:
        """The probabilities of every pixel's class: by the unary net, by mean field on the coarse map, and refined by the dense field.

        Probabilities on the coarse map are interpolated bilinearly to pixels.

        Args:
            images: colours, 0 … 255, of the size of the training images.
            steps: number of parallel mean-field updates.
        """
        unary, context = self.coarse(images, steps=steps)
        parts = (slice(i, i + _BATCH) for i in range(0, len(images), _BATCH))
        return Prediction(unary, context, np.concatenate([self.dense(images[i], context[i]) for i in parts]))

    def coarse(
        self, images: UInt8[Any, "n height width 3"], *, steps: int = 3
    ) -> tuple[Float[np.ndarray, "n height width K"], Float[np.ndarray, "n height width K"]]:
        """The first two parts of a prediction: by the unary net, and by mean field."""
        images, parts = grey_levels(images), []
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            whole = np.concatenate([batch, np.repeat(batch[-1:], _BATCH - len(batch), 0)])
            found = _coarse(self.potentials, jnp.asarray(whole), steps)
            parts.append([np.asarray(p)[: len(batch)] for p in found])
        unary, context = (np.concatenate(p) for p in zip(*parts, strict=True))
        return unary, context

    def save(self, path: str | Path) -> None:
        """Write the segmenter to one file, atomically."""
        about = {
            "architecture": dataclasses.asdict(self.potentials.architecture),
            "dense": dataclasses.asdict(self.dense),
        }
        save_tree(path, eqx.filter(self.potentials, eqx.is_array), {"segmenter": about})

    @classmethod
    def load(cls, path: str | Path) -> Segmenter:
        """Read a segmenter written by `save`. CheckpointError where the file is damaged or does not hold a segmenter."""
        about = load_arrays(path)[1].get("segmenter")
        if about is None:
            raise CheckpointError(f"{path}: does not hold a segmenter. Give a file written by `Segmenter.save`")
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in about["architecture"].items()}
        arrays, rest = eqx.partition(Potentials(Architecture(**values), jax.random.key(0)), eqx.is_array)
        return cls(eqx.combine(load_tree(path, arrays), rest), DenseCRF(**about["dense"]))


@eqx.filter_jit
def _coarse(model: Potentials, images: Array, steps: int) -> list[Array]:
    """Probabilities of every pixel by the unary net, and after mean field."""
    decoding = UnrolledMeanField(steps)

    def one(x: Array) -> tuple[Array, Array]:
        field = model.field(x)
        return jax.nn.softmax(field.rows), jax.nn.softmax(decoding.logits(field)).astype(jnp.float32)

    return [upsampled(model.architecture, p) for p in jax.vmap(one)(model.features(images))]
