"""What a run is made with: every setting, with the defaults that depend on the data and the model filled in."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from lnz._cli.errors import BadInput
from lnz.learning._run_check import plan_updates

MODELS = ("rbm", "dbm", "gaussian-rbm", "potts-rbm", "ising", "potts")
UPDATES = 20_000  # in a run, where the epochs are not given
LOOKS = 20  # at the held-out data in a run, where evaluate_every is not given
_LOOK_SHARE = 0.05  # of a run's work that those looks may take, but for
_FEWEST = 8  # looks, which a curve needs
LARGE = 2**15  # parameters; beyond, log Z is measured with less work, and less often
_RATES = {"sgd": 0.05, "momentum": 0.01, "adam": 1e-3}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that a run depends on, apart from the data themselves. Plain numbers and words, as `config.json` holds them."""

    data: str
    array: str | None
    binarise: str
    split: tuple[float, float, float]
    split_seed: int
    model: str
    hidden: int | tuple[int, ...] | None
    categories: int | None
    negative_phase: str
    sweeps: int
    chains: int
    rungs: int
    fast_rate: float
    monitor: bool
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: float
    batch_size: int
    evaluate_every: float
    seed: int
    positive_phase: str = "mean-field"
    pretraining: float = 0.0
    objective: str = "likelihood"
    noise: float = 0.0

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of hidden units, from below."""
        return () if self.hidden is None else (self.hidden,) if isinstance(self.hidden, int) else self.hidden

    def updates(self, n: int) -> int:
        """The number of updates on n training data."""
        return plan_updates(n, self.batch_size, self.epochs, self.evaluate_every).total

    @classmethod
    def from_json(cls, found: Any) -> Settings:
        """The settings of a `config.json`. Raises KeyError or TypeError where it is none."""
        values: dict[str, Any] = {
            field.name: found[field.name]
            if field.default is dataclasses.MISSING
            else found.get(field.name, field.default)
            for field in dataclasses.fields(cls)
        }
        values["split"] = tuple(values["split"])
        values["hidden"] = tuple(values["hidden"]) if isinstance(values["hidden"], list) else values["hidden"]
        return cls(**values)


def fill(given: dict[str, Any], *, rows: int, columns: int, categories: int | None) -> Settings:
    """The settings with the defaults filled in.

    The recipe for the digits (20,000 updates of 5 sweeps, rate 0.2 falling to 0, weight decay 0.001) and the general
    one were measured: see the README. `given` holds None where the user was silent.

    Args:
        given: by the names of `Settings`.
        rows: the number of training data.
        columns: the number of variables.
        categories: the number of values a variable takes, for categorical data.
    """
    model, optimizer = given["model"], given["optimizer"] or ("adam" if given["model"] == "gaussian-rbm" else "sgd")
    given = given | {"model": (model := _deep(model, given["hidden"]))}
    has_hidden, deep = model.endswith(("rbm", "dbm")), model == "dbm"
    recipe = given["data"] == "digits" and model == "rbm" and optimizer == "sgd"
    if not has_hidden and given["hidden"] is not None:
        raise BadInput(f"--hidden: the model {model} has no hidden units. Leave it out, or choose --model rbm")
    for name in ("positive_phase", "pretraining"):
        if not deep and given[name] is not None:
            raise BadInput(
                f"--{name.replace('_', '-')}: is for a deep machine alone. Leave it out, or give several --hidden layers"
            )
    features = columns * (categories or 1)
    usual = min(500, max(16, 2 * features))
    hidden = given["hidden"] or ((usual, usual) if deep else (usual,))
    _refuse_with_objective(given)
    negative_phase = given["negative_phase"] or ("persistent" if given["objective"] == "likelihood" else "none")
    for name in ("chains", "sweeps"):
        if negative_phase == "exact" and given[name] is not None:
            raise BadInput(f"--{name}: the exact negative phase has no chains. Leave it out")
    if negative_phase == "cd" and given["chains"] is not None:
        raise BadInput("--chains: contrastive divergence runs one chain from every datum of a batch. Leave it out")
    if negative_phase not in ("tempered", "trajectory") and given["rungs"] is not None:
        raise BadInput("--rungs: only tempered and trajectory chains have a ladder. Leave it out")
    if negative_phase != "fast-weights" and given["fast_rate"] is not None:
        raise BadInput("--fast-rate: goes with --negative-phase fast-weights alone. Leave it out")
    batch_size = given["batch_size"] or 100
    per_epoch = -(-rows // min(batch_size, rows))
    settings = Settings(
        **(
            given
            | {
                "hidden": (hidden if deep else hidden[0]) if has_hidden else None,
                "categories": categories,
                "negative_phase": negative_phase,
                "sweeps": given["sweeps"] or (60 if negative_phase == "replay" else 5 if recipe else 1),
                "chains": given["chains"] or 100,
                "rungs": given["rungs"] or 10,
                "fast_rate": _or(given["fast_rate"], 0.05),
                "optimizer": optimizer,
                "learning_rate": _or(given["learning_rate"], 0.2 if recipe else _RATES[optimizer]),
                "schedule": given["schedule"] or "linear",
                "weight_decay": _or(given["weight_decay"], 1e-3 if recipe else 1e-4),
                "epochs": given["epochs"] or max(1, round(UPDATES / per_epoch)),
                "batch_size": batch_size,
                "evaluate_every": given["evaluate_every"] or 1.0,
                "positive_phase": given["positive_phase"] or "mean-field",
                "pretraining": given["pretraining"] or 0.0,
                "noise": given["noise"] or (0.3 if model == "gaussian-rbm" else min(0.1, 1 / columns)),
            }
        )
    )
    if given["evaluate_every"] is None:
        sizes = (features, *(settings.layers or (features,)))
        parameters = sum(below * above for below, above in itertools.pairwise(sizes))
        looks = LOOKS if parameters <= LARGE else _looks(settings, settings.updates(rows))
        settings = dataclasses.replace(settings, evaluate_every=settings.epochs / looks)
    return settings


def _refuse_with_objective(given: dict[str, Any]) -> None:
    """Raise BadInput for options of the other way to learn."""
    objective = given["objective"]
    if objective not in ("denoising", "energy-discrepancy") and given["noise"] is not None:
        raise BadInput("--noise: goes with --objective denoising or energy-discrepancy. Leave it out")
    if objective == "likelihood":
        return
    for name in ("negative_phase", "positive_phase", "pretraining", "sweeps", "chains", "rungs", "fast_rate"):
        if given[name] is not None:
            raise BadInput(
                f"--{name.replace('_', '-')}: the objective {objective} has no phases and no chains. Leave it out, or leave --objective out"
            )


def _deep(model: str, hidden: tuple[int, ...] | None) -> str:
    """The model: several layers make a deep one of an RBM over bits."""
    if hidden is None or len(hidden) == 1:
        return model
    if model.endswith("-rbm"):
        raise BadInput(f"--hidden: the model {model} has one layer of hidden units. Give one number")
    return "dbm" if model == "rbm" else model


def _looks(settings: Settings, updates: int) -> int:
    """How many looks at the held-out data a large model can afford, counting products of a row and the weights."""
    chains = settings.batch_size if settings.negative_phase in ("cd", "exact") else settings.chains
    work = updates * (2 * settings.batch_size + chains * (2 + 2 * settings.sweeps))
    temperatures, chains = look_effort(large=True)
    return int(min(LOOKS, max(_FEWEST, _LOOK_SHARE * work / (3 * temperatures * chains))))


def look_effort(*, large: bool) -> tuple[int, int]:
    """Temperatures and chains of the annealing that a look at the held-out data takes."""
    return 500, 64 if large else 128


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
