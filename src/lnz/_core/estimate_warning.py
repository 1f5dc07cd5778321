"""What may be wrong with an estimate: one code for each warning, and one table of their messages."""

from __future__ import annotations

import enum
from typing import NamedTuple


class EstimateWarning(enum.StrEnum):
    """A reason to doubt an estimate of log Z. The members are strings, so that they can be stored and compared as such."""

    ZERO_WEIGHTS = "zero-weights"
    FEW_EFFECTIVE_SAMPLES = "few-effective-samples"
    UNCOVERED_STATES = "uncovered-states"
    INFINITE_Z = "infinite-z"
    MISSED_MODES = "missed-modes"
    LAGGING_CHAINS = "lagging-chains"
    STUCK_CHAINS = "stuck-chains"
    POPULATIONS_DISAGREE = "populations-disagree"
    UNSETTLED_BASE = "unsettled-base"
    LADDERS_DISAGREE = "ladders-disagree"
    FEW_ROUND_TRIPS = "few-round-trips"
    POOR_RUNG_OVERLAP = "poor-rung-overlap"
    DIVERGENT_INTEGRATION = "divergent-integration"
    STEPPING_STONES_DISAGREE = "stepping-stones-disagree"
    DIRECTIONS_DISAGREE = "directions-disagree"
    POOR_DIRECTION_OVERLAP = "poor-direction-overlap"
    HEAVY_TAILED_EXPECTATION = "heavy-tailed-expectation"
    UNRESOLVED_INTEGRAL = "unresolved-integral"
    UNMIXED_DRAWS = "unmixed-draws"
    POOR_BASE_OVERLAP = "poor-base-overlap"
    LOST_DIGITS = "lost-digits"
    OUT_OF_TIME = "out-of-time"

    @property
    def cause(self) -> str:
        """What was found, and what it means for the estimate."""
        return MESSAGES[self].cause

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return MESSAGES[self].remedy

    @property
    def message(self) -> str:
        """Cause and remedy, as two sentences."""
        return f"{self.cause}. {self.remedy}"


class Message(NamedTuple):
    """The text of a warning: the cause and the remedy, each a sentence without its full stop."""

    cause: str
    remedy: str


MESSAGES = {
    EstimateWarning.ZERO_WEIGHTS: Message(
        "Every chain has weight zero: either no state is possible, or the base does not cover the states that are",
        "Use another base",
    ),
    EstimateWarning.FEW_EFFECTIVE_SAMPLES: Message(
        "A few chains carry the whole estimate, so the standard error is unreliable",
        "Use more temperatures or more chains",
    ),
    EstimateWarning.UNCOVERED_STATES: Message(
        "The model reaches states that the base excludes, so log Z is too low",
        "Use a base whose support covers the model's",
    ),
    EstimateWarning.INFINITE_Z: Message(
        "The energy does not grow fast enough in some directions, so Z looks infinite",
        "Add a term that confines x",
    ),
    EstimateWarning.MISSED_MODES: Message(
        "Mode probes found probability mass that the annealed chains did not reach. Some modes may be missing, and the upper bound covers only "
        "the modes found",
        "Use a base that covers all modes (from_base), or samples of the model (lnz.routes.BidirectionalAIS.from_samples)",
    ),
    EstimateWarning.LAGGING_CHAINS: Message(
        "Chains continued from the end of annealing reached regions that the annealed chains hardly reach. Annealing lags behind the model, "
        "and the upper bound covers only what was found",
        "Use many more temperatures or sweeps, or coordinates in which the model is equally wide everywhere",
    ),
    EstimateWarning.STUCK_CHAINS: Message(
        "Some chains hardly ever moved, because their step size is too large where they are. The region that they stand for is missing from the "
        "estimate, however good the acceptance is on average",
        "Use coordinates in which the model is equally wide everywhere, a base nearer to the model (from_base), or "
        "lnz.routes.SequentialMonteCarlo",
    ),
    EstimateWarning.POPULATIONS_DISAGREE: Message(
        "Populations differ by more than one nat, so the standard error is unreliable",
        "Use more particles, sweeps or temperatures (conditional nearer to 1)",
    ),
    EstimateWarning.UNSETTLED_BASE: Message(
        "In the last round of the pilot run log Z still rose, so the base that was fitted in it has not arrived at the model, and log Z may be too "
        "low",
        "Use more rounds, coordinates in which the model is equally wide everywhere, or a base nearer to the model (from_base)",
    ),
    EstimateWarning.LADDERS_DISAGREE: Message(
        "The ladders disagree about the energies of the model (R-hat above 1.05), so some have not reached equilibrium",
        "Use more iterations or rungs",
    ),
    EstimateWarning.FEW_ROUND_TRIPS: Message(
        "Hardly any walker travelled from the base to the model and back, so modes may be missing",
        "Use more iterations or rungs",
    ),
    EstimateWarning.POOR_RUNG_OVERLAP: Message(
        "Neighbouring rungs hardly overlap, so the standard error is unreliable",
        "Use more rungs",
    ),
    EstimateWarning.DIVERGENT_INTEGRATION: Message(
        "Thermodynamic integration diverges, because the base reaches states that the model excludes",
        "Use another estimator",
    ),
    EstimateWarning.STEPPING_STONES_DISAGREE: Message(
        "Stepping stones up and down the ladder disagree beyond their errors, and the interval was widened to contain both",
        "Use more iterations or rungs",
    ),
    EstimateWarning.DIRECTIONS_DISAGREE: Message(
        "Forward and reverse annealing disagree beyond their errors: modes are missing, or there are too few temperatures. The interval covers both",
        "Use more temperatures, or a base that covers all modes",
    ),
    EstimateWarning.POOR_DIRECTION_OVERLAP: Message(
        "The work distributions of forward and reverse annealing hardly overlap, so the standard error is unreliable (the bounds hold without it)",
        "Use more temperatures",
    ),
    EstimateWarning.HEAVY_TAILED_EXPECTATION: Message(
        "The largest |f| times the weights have a Pareto shape above 0.7, so E[f] may not exist and its standard error is unreliable",
        "Use a bounded function, or more chains or temperatures",
    ),
    EstimateWarning.UNRESOLVED_INTEGRAL: Message(
        "Grids of different points disagree, so they do not resolve the integrand, or its tails are too heavy for them",
        "Use more points (lnz.routes.Quadrature(points=…)), coordinates in which the model is equally wide everywhere, or an annealing route",
    ),
    EstimateWarning.UNMIXED_DRAWS: Message(
        "The chains of the draws disagree (R-hat above 1.05), so some have not reached equilibrium, and log Z rests on where they happen to be",
        "Run the chains longer, or let lnz.evidence find the posterior by itself",
    ),
    EstimateWarning.POOR_BASE_OVERLAP: Message(
        "The draws hardly overlap with the base that was fitted to them, so the standard error is unreliable",
        "Give more draws, or use lnz.evidence",
    ),
    EstimateWarning.LOST_DIGITS: Message(
        "Floating-point numbers of the size of log Z lie more than a nat apart in this precision, and so do the energies: the last digits are "
        "rounding",
        'Subtract a constant from the energy, or switch on float64 (jax.config.update("jax_enable_x64", True))',
    ),
    EstimateWarning.OUT_OF_TIME: Message(
        "Time ran out before the interval was as narrow as requested",
        "Increase max_seconds, or use a route with longer runs",
    ),
}
"""The message of every warning."""
