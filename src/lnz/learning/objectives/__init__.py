"""Objectives without Z. `OBJECTIVES` is the list that the command line and the tests read; one that needs a number of the data's has no default."""

from lnz.learning.objectives.energy_discrepancy import EnergyDiscrepancy
from lnz.learning.objectives.noise_contrastive import NoiseContrastive
from lnz.learning.objectives.ratio_matching import RatioMatching
from lnz.learning.objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching
from lnz.structured.objectives import Objective, PseudoLikelihood

OBJECTIVES: dict[str, type[Objective]] = {
    "pseudo-likelihood": PseudoLikelihood,
    "ratio-matching": RatioMatching,
    "score-matching": ScoreMatching,
    "sliced": SlicedScoreMatching,
    "denoising": DenoisingScoreMatching,
    "noise-contrastive": NoiseContrastive,
    "energy-discrepancy": EnergyDiscrepancy,
}

__all__ = [
    "OBJECTIVES",
    "DenoisingScoreMatching",
    "EnergyDiscrepancy",
    "NoiseContrastive",
    "Objective",
    "PseudoLikelihood",
    "RatioMatching",
    "ScoreMatching",
    "SlicedScoreMatching",
]
