"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lnz._core.objective import Objective
from lnz.apps._segmentation.neural_potentials import Architecture, NetworkSettings
from lnz.apps._segmentation.reading import LabelledImages
from lnz.crf._conditional_objectives import Likelihood, PseudoLikelihood, UnrolledMeanField
from lnz.crf._piecewise import Piecewise
from lnz.routes._bounds.belief_propagation import BeliefPropagation
from lnz.routes._exact.elimination import Elimination

OBJECTIVES: dict[str, Objective] = {
    "piecewise": Piecewise(),
    "piecewise-inside": Piecewise(unaries="inside"),
    "pseudo-likelihood": PseudoLikelihood(),
    "bethe": Likelihood(BeliefPropagation(schedule="parallel")),
    "mean-field": UnrolledMeanField(3),
    "exact": Likelihood(Elimination()),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(NetworkSettings):
    """Settings of a training run, plain numbers and words, with those of `NetworkSettings`.

    Attributes:
        objective: one of `piecewise` (as published: every potential with a softmax of its own), `piecewise-inside` (pairs with their nodes'
            potentials), `pseudo-likelihood`, `bethe` (the log Z of belief propagation), `mean-field` (three updates, differentiated through) and
            `exact` (where the map is narrow enough).
        epochs: epochs of the unary net and the trunk.
        context_epochs: epochs of the nets of nodes and pairs, on the trained trunk; 0 for no context.
        batch_size: images per update.
        learning_rate: largest learning rate of Adam in each stage; it rises for a tenth of the updates and falls to 0 along a half cosine.
        weight_decay: λ of AdamW, which decays weights by λ times the learning rate per update.
        validation: the share of held-out images, which select the best epoch of each stage and the parameters fitted after training. 0 for
            none.
        patience: epochs without a better validation loss after which a stage ends.
        vary: whether training images are mirrored, shifted, scaled, rotated, and varied in brightness and contrast, at random.
        seed: seed of the initial weights, the order of the images and the split.
    """

    objective: str = "piecewise"
    epochs: int = 100
    context_epochs: int = 6
    batch_size: int = 8
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    validation: float = 0.1
    patience: int = 20
    vary: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, but is {self.objective!r}")
        for name, least in (("epochs", 1), ("context_epochs", 0), ("batch_size", 1), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number above 0, but is {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number of at least 0, but is {self.weight_decay}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be a share of at least 0 and below 1, but is {self.validation}")

    def architecture(self, data: LabelledImages) -> Architecture:
        """The architecture for these images. DataError where they are too small for it."""
        colours = data.images.reshape(-1, 3)
        spread = np.maximum(colours.std(0, dtype=float), 1.0)
        return Architecture(
            classes=data.classes,
            height=data.images.shape[1],
            width=data.images.shape[2],
            centre=_rgb(colours.mean(0, dtype=float)),
            spread=_rgb(spread),
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(NetworkSettings)},
        )


def _rgb(colour: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = map(float, colour)
    return red, green, blue
