"""Objectives without Z. `OBJECTIVES` is the list that the command line and the tests read; one that needs a number of the data's has no default."""

from lnz._core.objective import Objective
from lnz.crf._conditional_objectives import PseudoLikelihood
from lnz.learning._objectives.energy_discrepancy import EnergyDiscrepancy
from lnz.learning._objectives.noise_contrastive import NoiseContrastive
from lnz.learning._objectives.ratio_matching import RatioMatching
from lnz.learning._objectives.score_matching import DenoisingScoreMatching, ScoreMatching, SlicedScoreMatching

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
