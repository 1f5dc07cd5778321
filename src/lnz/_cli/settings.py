"""What a run of `lnz train` is made with: the options that `config.json` keeps."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, Any, Literal

from lnz._cli.errors import BadInput
from lnz._cli.options import LATER, Argument, InData, InLearning, InRun, Option, not_negative, positive

KINDS = {
    "rbm": "binary",
    "dbm": "binary",
    "gaussian-rbm": "real",
    "potts-rbm": "categorical",
    "ising": "spin",
    "potts": "categorical",
}
"""The kind of data of every model."""

Model = Literal["rbm", "dbm", "gaussian-rbm", "potts-rbm", "ising", "potts"]
Objective = Literal[
    "likelihood",
    "pseudo-likelihood",
    "ratio-matching",
    "score-matching",
    "sliced",
    "denoising",
    "noise-contrastive",
    "energy-discrepancy",
]
Phase = Literal[
    "exact",
    "cd",
    "persistent",
    "fast-weights",
    "tempered",
    "trajectory",
    "jarzynski",
    "replay",
    "coupled",
    "coupled-annealing",
]

_FIRST_RUNS = {"positive_phase": "mean-field", "pretraining": 0.0, "objective": "likelihood", "noise": 0.0}
"""Settings that runs of version 0.1 lack, and what they were made with."""

_OF_DEEP = ("positive_phase", "pretraining")


def _layers(text: str) -> tuple[int, ...]:
    found = tuple(int(part) if part.strip().isdigit() else 0 for part in text.split(","))
    if not all(found):
        raise BadInput(
            f"{text!r} is not a number of units. Give one such as 500, or several for a deep machine, such as 500,1000"
        )
    return found


def _fractions(text: str) -> tuple[float, ...]:
    try:
        parts = tuple(float(part) for part in text.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts) or abs(sum(parts) - 1) > 1e-6:
        raise BadInput(f"{text!r} are not three fractions that add up to 1. Give, for example, 0.7,0.1,0.2")
    if parts[0] <= 0:
        raise BadInput(f"the training part has a fraction of {parts[0]:g}. Give it more than 0")
    return parts


def _rule(text: str) -> str:
    try:
        known = text in ("auto", "stochastic", "never") or math.isfinite(float(text))
    except ValueError:
        known = False
    if not known:
        raise BadInput(f"{text!r} is not a rule. Give a threshold, auto, stochastic or never")
    return text


_Model = functools.partial(Option, group="Model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a run depends on, apart from the data themselves. `lnz._cli.defaults.fill` replaces every LATER."""

    data: Annotated[
        str,
        Argument(
            help="**digits** (1,797 handwritten digits, 8x8), or a file: .npy, .npz, .csv, .tsv, .parquet, "
            "MNIST's idx, or a folder of images.",
        ),
    ] = LATER
    array: Annotated[str | None, InData(help="Name of the array to read from an .npz file.")] = None
    binarise: Annotated[
        str,
        InData(
            read=_rule,
            help="Rule that turns grey values into 0 and 1 where the model needs bits: auto (threshold at half the scale of 1, 16 or 255), a "
            "THRESHOLD, stochastic (drawn once), or never.",
        ),
    ] = "auto"
    split: Annotated[
        tuple[float, float, float],
        InData(
            read=_fractions,
            metavar="TRAIN,VALIDATION,TEST",
            help="Fractions of the data for training, validation and test. The model that is best on the validation data is kept.",
        ),
    ] = (0.7, 0.1, 0.2)
    split_seed: Annotated[
        int, InData(metavar="N", min=0, max=2**32 - 1, help="Seed of the random split, and of nothing else.")
    ] = 0
    model: Annotated[Model, _Model(help="Model to train.")] = "rbm"
    hidden: Annotated[
        int | tuple[int, ...] | None,
        _Model(
            read=_layers,
            metavar="N[,N…]",
            help="Number of hidden units. Several layers, as in 500,1000, make a deep Boltzmann machine (dbm). "
            "[twice the visible units, 16 to 500]",
        ),
    ] = LATER
    categories: Annotated[
        int | None,
        _Model(min=2, help="Number of values that each variable of a Potts model takes. [1 + the largest value]"),
    ] = LATER
    objective: Annotated[
        Objective,
        InLearning(help="Objective to maximise: the likelihood, whose gradient has two phases, or one without log Z."),
    ] = "likelihood"
    noise: Annotated[
        float,
        InLearning(
            read=positive,
            help="Noise of denoising and energy-discrepancy: the standard deviation of a normal perturbation, relative to that of the data, or "
            "for discrete data the probability that a unit changes. [0.3; one change per example]",
        ),
    ] = LATER
    negative_phase: Annotated[
        Phase,
        InLearning(
            help="Source of model samples for the likelihood's gradient: chains restarted at the data (cd), persistent chains (persistent; "
            "fast-weights: with a faster copy of the weights), replicas at several temperatures (tempered) or at earlier models of the run "
            "(trajectory), weighted walkers that track log Z (jarzynski), a buffer of chains (replay), coupled pairs of chains or of annealed "
            "populations, whose gradient is unbiased (coupled, coupled-annealing), or exact sums (exact). [persistent]",
        ),
    ] = LATER
    positive_phase: Annotated[
        Literal["mean-field", "chains"],
        InLearning(
            help="Inference of a dbm's hidden units given the data: mean field, or chains with the data held fixed. [mean-field]"
        ),
    ] = LATER
    pretraining: Annotated[
        float,
        InLearning(
            read=not_negative,
            metavar="EPOCHS",
            help="Epochs of layer-by-layer training of a dbm, before its layers are trained together. [0]",
        ),
    ] = LATER
    sweeps: Annotated[
        int, InLearning("--sweeps --steps", min=1, help="Gibbs sweeps per update. [1; digits 5; replay 60]")
    ] = LATER
    chains: Annotated[
        int, InLearning(min=1, help="Number of persistent chains, or of replicas at each temperature. [100]")
    ] = LATER
    rungs: Annotated[
        int,
        InLearning(min=2, help="Number of temperatures or earlier models of tempered and trajectory chains. [10]"),
    ] = LATER
    fast_rate: Annotated[float, InLearning(read=not_negative, help="Learning rate of the fast weights. [0.05]")] = LATER
    monitor: Annotated[
        bool, InLearning(help="Monitor the chains, at about 5 % of the run time, and warn when they fail.")
    ] = True
    optimizer: Annotated[
        Literal["sgd", "momentum", "adam"], InLearning(help="Optimiser of the parameters. [sgd; gaussian-rbm adam]")
    ] = LATER
    learning_rate: Annotated[
        float,
        InLearning(read=positive, help="Initial learning rate. [sgd 0.05 (digits 0.2), momentum 0.01, adam 0.001]"),
    ] = LATER
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        InLearning(help="Schedule of the learning rate; linear and cosine fall to 0. [linear]"),
    ] = LATER
    weight_decay: Annotated[
        float,
        InLearning(read=not_negative, help="L2 penalty on weights and couplings. [0.0001; digits 0.001]"),
    ] = LATER
    epochs: Annotated[
        float,
        InLearning(read=positive, help="Number of passes over the training data. [enough for 20,000 updates]"),
    ] = LATER
    batch_size: Annotated[int, InLearning(min=1, help="Number of examples per update. [100]")] = LATER
    evaluate_every: Annotated[
        float,
        InLearning(
            read=positive,
            help="Epochs between two evaluations on the validation data, each with a checkpoint. "
            "[20 evaluations per run; fewer for large models, about 5 % of the work]",
        ),
    ] = LATER
    seed: Annotated[
        int,
        InRun(
            metavar="N",
            min=0,
            max=2**32 - 1,
            help="Seed of the initial weights, the chains and the estimate of log Z.",
        ),
    ] = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of hidden units, from below."""
        return () if self.hidden is None else (self.hidden,) if isinstance(self.hidden, int) else self.hidden

    @classmethod
    def from_json(cls, found: Any) -> Settings:
        """The settings of a `config.json`. Raises KeyError or TypeError where it is none."""
        found = _FIRST_RUNS | found
        values: dict[str, Any] = {field.name: found[field.name] for field in dataclasses.fields(cls)}
        values["split"] = tuple(values["split"])
        values["hidden"] = tuple(values["hidden"]) if isinstance(values["hidden"], list) else values["hidden"]
        return cls(**values)

    def check(self) -> None:
        """Raise BadInput for options that conflict, whatever the data are."""
        if self.array is not None and self.data == "digits":
            raise BadInput("--array: the digits hold one array. Leave it out")
        if self.categories is not None and KINDS[self.model] != "categorical":
            raise BadInput(
                f"--categories: the model {self.model} is not over categories. Leave it out, or choose --model potts"
            )
        if len(self.layers) > 1 and self.model.endswith("-rbm"):
            raise BadInput(f"--hidden: the model {self.model} has one layer of hidden units. Give one number")
        if self.hidden is not None and not self.model.endswith(("rbm", "dbm")):
            raise BadInput(f"--hidden: the model {self.model} has no hidden units. Leave it out, or choose --model rbm")
        deep = self.model == "dbm" or len(self.layers) > 1
        if not deep:
            self._refuse("is for deep machines only. Leave it out, or give several --hidden layers", *_OF_DEEP)
        if self.objective not in ("denoising", "energy-discrepancy"):
            self._refuse("goes with --objective denoising or energy-discrepancy. Leave it out", "noise")
        if self.objective != "likelihood":
            why = f"the objective {self.objective} has no phases and no chains. Leave it out, or leave --objective out"
            self._refuse(why, "negative_phase", *_OF_DEEP, "sweeps", "chains", "rungs", "fast_rate")
        if self.negative_phase == "exact":
            self._refuse("the exact negative phase has no chains. Leave it out", "chains", "sweeps")
        if self.negative_phase == "cd":
            self._refuse("contrastive divergence runs one chain from every example of a batch. Leave it out", "chains")
        if self.negative_phase not in ("tempered", "trajectory"):
            self._refuse("only tempered and trajectory chains have several temperatures. Leave it out", "rungs")
        if self.negative_phase != "fast-weights":
            self._refuse("goes with --negative-phase fast-weights only. Leave it out", "fast_rate")

    def _refuse(self, why: str, *names: str) -> None:
        """Raise BadInput for the first of the options that was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise BadInput(f"--{name.replace('_', '-')}: {why}")
