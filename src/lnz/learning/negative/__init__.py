"""Negative phases: how learning draws from p_θ. `NEGATIVE_PHASES` is the list that the command line and the tests read."""

from lnz.learning.negative.contrastive import ContrastiveDivergence
from lnz.learning.negative.coupled import CoupledChains
from lnz.learning.negative.coupled_annealing import CoupledAnnealing
from lnz.learning.negative.exact import ExactPhase
from lnz.learning.negative.fast import FastWeights
from lnz.learning.negative.jarzynski import JarzynskiWalkers
from lnz.learning.negative.persistent import Layers, PersistentChains
from lnz.learning.negative.protocol import NegativePhase
from lnz.learning.negative.replay import ReplayBuffer
from lnz.learning.negative.tempered import TemperedChains
from lnz.learning.negative.trajectory import TrajectoryTempered

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
