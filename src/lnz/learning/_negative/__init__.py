"""Negative phases: estimates of expectations under p_θ. `NEGATIVE_PHASES` is the list that the command line and the tests use."""

from lnz.learning._negative.contrastive import ContrastiveDivergence
from lnz.learning._negative.coupled_annealing import CoupledAnnealing
from lnz.learning._negative.coupled_chains import CoupledChains
from lnz.learning._negative.exact_phase import ExactPhase
from lnz.learning._negative.fast_weights import FastWeights
from lnz.learning._negative.jarzynski import JarzynskiWalkers
from lnz.learning._negative.negative_phase import NegativePhase
from lnz.learning._negative.persistent import Layers, PersistentChains
from lnz.learning._negative.replay import ReplayBuffer
from lnz.learning._negative.tempered import TemperedChains
from lnz.learning._negative.trajectory import TrajectoryTempered

NEGATIVE_PHASES: dict[str, type[NegativePhase]] = {
    "exact": ExactPhase,
    "cd": ContrastiveDivergence,
    "persistent": PersistentChains,
    "fast-weights": FastWeights,
    "tempered": TemperedChains,
    "trajectory": TrajectoryTempered,
    "jarzynski": JarzynskiWalkers,
    "replay": ReplayBuffer,
    "coupled": CoupledChains,
    "coupled-annealing": CoupledAnnealing,
}

__all__ = [
    "NEGATIVE_PHASES",
    "ContrastiveDivergence",
    "CoupledAnnealing",
    "CoupledChains",
    "ExactPhase",
    "FastWeights",
    "JarzynskiWalkers",
    "Layers",
    "NegativePhase",
    "PersistentChains",
    "ReplayBuffer",
    "TemperedChains",
    "TrajectoryTempered",
]
