"""The one list of negative phases, small enough to be run some hundred times."""

from __future__ import annotations

import lnz

PHASES: list[lnz.learning.NegativePhase] = [
    lnz.learning.ExactPhase(),
    lnz.learning.ContrastiveDivergence(),
    lnz.learning.PersistentChains(chains=8),
    lnz.learning.FastWeights(chains=8),
    lnz.learning.TemperedChains(temperatures=4, chains=8),
    lnz.learning.TrajectoryTempered(checkpoints=4, chains=8),
    lnz.learning.JarzynskiWalkers(chains=8, temperatures=10),
    lnz.learning.ReplayBuffer(size=32, sweeps=4, chains=8),
    lnz.learning.CoupledChains(burn_in=3, length=4),
    lnz.learning.CoupledAnnealing(chains=8, temperatures=10),
]

# Those whose expected gradient is the model's, at any number of steps.
UNBIASED = {lnz.learning.ExactPhase, lnz.learning.CoupledChains, lnz.learning.CoupledAnnealing}
