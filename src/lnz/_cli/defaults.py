"""The defaults of `lnz train` that depend on the data and the model."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from lnz._cli.settings import Settings
from lnz.learning._run_check import plan_updates

UPDATES = 20_000  # in a run, where the epochs are not given
EVALUATIONS = 20  # on the held-out data in a run, where evaluate_every is not given
_EVALUATION_SHARE = 0.05  # of a run's work that those may take, but for
_FEWEST = 8  # evaluations, which a curve needs
LARGE = 2**15  # parameters; beyond, log Z is measured with less work, and less often
_RATES = {"sgd": 0.05, "momentum": 0.01, "adam": 1e-3}


def fill(given: Settings, *, rows: int, columns: int, categories: int | None) -> Settings:
    """The settings with every LATER replaced.

    The recipe for the digits (20,000 updates of 5 sweeps, rate 0.2 falling to 0, weight decay 0.001) and the general
    one were measured: see the README.

    Args:
        given: what the user said.
        rows: the number of training examples.
        columns: the number of variables.
        categories: the number of values a variable takes, for categorical data.
    """
    model = "dbm" if given.model == "rbm" and len(given.layers) > 1 else given.model
    optimizer = given.optimizer or ("adam" if model == "gaussian-rbm" else "sgd")
    recipe = given.data == "digits" and model == "rbm" and optimizer == "sgd"
    features = columns * (categories or 1)
    usual = min(500, max(16, 2 * features))
    hidden = given.layers or ((usual, usual) if model == "dbm" else (usual,))
    negative_phase = given.negative_phase or ("persistent" if given.objective == "likelihood" else "none")
    batch_size = given.batch_size or 100
    per_epoch = -(-rows // min(batch_size, rows))
    settings = dataclasses.replace(
        given,
        model=model,
        hidden=hidden if model == "dbm" else hidden[0] if model.endswith("rbm") else None,
        categories=categories,
        negative_phase=negative_phase,
        sweeps=given.sweeps or (60 if negative_phase == "replay" else 5 if recipe else 1),
        chains=given.chains or 100,
        rungs=given.rungs or 10,
        fast_rate=_or(given.fast_rate, 0.05),
        optimizer=optimizer,
        learning_rate=given.learning_rate or (0.2 if recipe else _RATES[optimizer]),
        schedule=given.schedule or "linear",
        weight_decay=_or(given.weight_decay, 1e-3 if recipe else 1e-4),
        epochs=given.epochs or max(1, round(UPDATES / per_epoch)),
        batch_size=batch_size,
        evaluate_every=given.evaluate_every or 1.0,
        positive_phase=given.positive_phase or "mean-field",
        pretraining=given.pretraining or 0.0,
        noise=given.noise or (0.3 if model == "gaussian-rbm" else min(0.1, 1 / columns)),
    )
    if given.evaluate_every is None:
        sizes = (features, *(settings.layers or (features,)))
        parameters = sum(below * above for below, above in itertools.pairwise(sizes))
        count = EVALUATIONS if parameters <= LARGE else _evaluations(settings, updates(settings, rows))
        settings = dataclasses.replace(settings, evaluate_every=settings.epochs / count)
    return settings


def updates(settings: Settings, n: int) -> int:
    """The number of updates on n training examples."""
    return plan_updates(n, settings.batch_size, settings.epochs, settings.evaluate_every).total


def evaluation_effort(*, large: bool) -> tuple[int, int]:
    """Temperatures and chains of the annealing of one evaluation on the held-out data."""
    return 500, 64 if large else 128


def _evaluations(settings: Settings, updates: int) -> int:
    """The number of evaluations that a large model can afford, counting products of a row and the weights."""
    chains = settings.batch_size if settings.negative_phase in ("cd", "exact") else settings.chains
    work = updates * (2 * settings.batch_size + chains * (2 + 2 * settings.sweeps))
    temperatures, chains = evaluation_effort(large=True)
    return int(min(EVALUATIONS, max(_FEWEST, _EVALUATION_SHARE * work / (3 * temperatures * chains))))


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
