"""`fit`: a whole training run with evaluations of the likelihood, checkpoints, and clear errors."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.checkpoint import CheckpointError
from lnz._core.energy import Energy, ModelLike, as_energy
from lnz._core.objective import Objective
from lnz._core.route import Route
from lnz._core.spaces import ArrayLike, State
from lnz.kernels._coupled import NotMet
from lnz.learning._likelihood import LogLikelihood, log_likelihood
from lnz.learning._loop import Batches, Diverged, Problem, measure_key, no_sums, orders, padded, renamed, run, updates
from lnz.learning._monitor import WATCHED, Monitor, MonitorReport, Watch
from lnz.learning._negative import NegativePhase
from lnz.learning._positive import PositivePhase
from lnz.learning._regularisers import Regularisers
from lnz.learning._resume import Best, Keeper, Progress, describe, digest
from lnz.learning._run_check import Plan, checked_data, checked_validation, plan_updates
from lnz.learning._trainer import Trainer, TrainState

if TYPE_CHECKING:
    import optax

_STRETCH_ROWS = 2**16  # largest number of rows of data in the epochs of one call of the compiled loop
_CHUNK_SECONDS = 0.5  # duration of one call of the compiled loop


@dataclasses.dataclass(frozen=True)
class Record:
    """One evaluation of a run.

    Attributes:
        step: number of updates.
        epoch: number of passes over the data.
        seconds: time since this call of `fit` began.
        figures: means over the updates since the last record: see `Trainer.step`.
        validation: log-likelihood of the validation data, where there are any.
    """

    step: int
    epoch: float
    seconds: float
    figures: dict[str, float]
    validation: LogLikelihood | None = None


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes:
        energy: the model after the last update.
        state: the whole training state, chains included; pass it to `fit(..., state=...)` or `Trainer.step` to continue.
        history: one `Record` per evaluation.
        best: the model with the best validation likelihood, or `energy` where there are no validation data.
        best_step: the number of updates of `best`.
        reports: the reports of the monitor, if there is one.
    """

    energy: Energy
    state: TrainState
    history: list[Record]
    best: Energy
    best_step: int
    reports: list[MonitorReport]

    @property
    def looks(self) -> list[MonitorReport]:
        """The name of `reports` in version 0.1."""
        return renamed("Fitted.looks", self.reports, "Fitted.reports", None)


def fit(
    energy: ModelLike,
    data: State,
    *,
    negative_phase: NegativePhase | None = None,
    positive_phase: PositivePhase | None = None,
    objective: Objective | None = None,
    regularisers: Regularisers | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: float = 10,
    batch_size: int = 100,
    weights: ArrayLike = None,
    validation: State | None = None,
    evaluate_every: float = 1,
    route: Route | None = None,
    monitor: Monitor | None = None,
    key: PRNGKeyArray,
    checkpoint: str | Path | None = None,
    state: TrainState | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
    on_report: Callable[[MonitorReport], None] | None = None,
    on_look: Callable[[MonitorReport], None] | None = None,
) -> Fitted:
    """Fit an energy to data by maximum likelihood, with θ along E_data[-∂F] - E_{p_θ}[-∂F], or by an objective without Z.

    Every epoch visits the data once, in a new random order. Update number t depends only on the state, the data, the options and t, so that a
    run that is killed and resumed equals an uninterrupted run bit for bit.

    Args:
        energy: an `Energy`, or any callable with a `space`; its float arrays are the initial parameters.
        data: observed states (n, *shape), n ≥ 2, of any numeric dtype; batches are cast to the parameters' dtype.
        negative_phase: how the model's expectation is estimated; by default `PersistentChains(sweeps=1)`.
        positive_phase: how the data's expectation is estimated, where the hidden units have no closed sum (deep Boltzmann machines); by
            default `MeanFieldPhase()`.
        objective: instead of the phases, an objective such as `lnz.crf.PseudoLikelihood()` or `lnz.learning.ScoreMatching()`.
        regularisers: departures from maximum likelihood for neural energies, such as `lnz.learning.Regularisers(data_noise=0.02)`; by default
            none.
        optimizer: any optax gradient transformation; by default `optax.sgd(0.01)`.
        epochs: total passes over the data, those of a resumed state included; a fraction is rounded up to whole updates.
        batch_size: examples per update; the last batch of an epoch can be smaller, without bias.
        weights: weights of the data, shape (n,), not negative; an example of weight k counts as k equal examples, one of weight zero is left
            out.
        validation: observed states whose log-likelihood is measured during learning.
        evaluate_every: epochs between two records; the last update always has one.
        route: for log Z of the validation likelihood; by default `lnz.choose(energy)`.
        monitor: a monitor of the chains (mixing, lag, blind spots) with alarms, such as `lnz.learning.Monitor()`. It does not change the run.
        key: random key of the whole run.
        checkpoint: a file. The state is written there, atomically, before the first update, at every record and at the end; if the file
            exists, the run resumes from it (`<name>.best` beside it holds the best model so far). A file of another model, key, batch size,
            negative phase, objective or regularisers, or of other data, is an error; the optimiser's settings are not compared.
        state: a state to continue from, instead of `energy` and `key`.
        on_progress: called with (number of updates, total number of updates) about twice a second.
        on_record: called with every `Record`, before the checkpoint that follows it: after a kill a record can be repeated, but is never
            lost.
        on_report: called with every `MonitorReport` of the monitor, alarms included.
        on_look: the name of `on_report` in version 0.1.

    Raises:
        ValueError: for invalid data, weights or options, before any work; for validation data that are impossible under the estimated log Z
            (see `log_likelihood`).
        CheckpointError: for a checkpoint that is damaged, or of another run.
        WriteError: where a checkpoint cannot be written (a full disk, no such folder).
        Diverged: on a NaN or infinite energy, gradient or parameter, with the step and the last good checkpoint.
        NotMet: where coupled chains have not met within the maximum number of moves.
        Interrupted: on Ctrl-C, after saving the state.

    Example:
        >>> import jax, lnz
        >>> data = lnz.Binary(6).uniform(jax.random.key(0), 200)
        >>> fitted = lnz.fit(lnz.RBM(visible=6, hidden=3, key=jax.random.key(1)), data, epochs=2, key=jax.random.key(2))
        >>> int(fitted.state.step)
        4
    """
    on_report = renamed("on_look=", on_look, "on_report=", on_report)
    energy = as_energy(energy) if state is None else state.energy
    trainer = Trainer(optimizer, negative_phase, positive_phase, objective, regularisers or Regularisers())
    data, weights, n = checked_data(energy, data, weights)
    validation, route = checked_validation(energy, validation, route, key)
    plan = plan_updates(n, batch_size, epochs, evaluate_every)
    keeper = Keeper(checkpoint)
    if keeper.exists() and state is not None:
        raise ValueError(
            f"a state was passed, but the checkpoint {checkpoint} exists as well, and a run can start from only one: pass one of them"
        )
    if checkpoint is not None:
        keeper.settings = {
            "model": describe(energy),
            "data": f"fingerprint {digest((data, weights))}",
            "batch size": plan.batch,
            "negative phase": repr(trainer.negative_phase),
        }
        if positive_phase is not None:
            keeper.settings["positive phase"] = repr(positive_phase)
        if objective is not None:
            keeper.settings["objective"] = repr(objective)
        if trainer.regularisers != Regularisers():
            keeper.settings["regularisers"] = repr(trainer.regularisers)
    state = trainer.init(energy, key, batch_size=plan.batch) if state is None else state
    sums = no_sums(trainer.figures(state.energy))
    step = int(state.step)
    progress = Progress(state, sums, 0, step, Best(state.energy, step, -math.inf))

    problem = _FitProblem(trainer, plan, keeper, state.key, data, weights, validation, route, monitor)
    reports: list[MonitorReport] = []

    def on_step(progress: Progress) -> None:
        report = problem.report(progress)
        if report is not None:
            reports.append(report)
            if on_report is not None:
                on_report(report)
        if on_progress is not None:
            on_progress(progress.step, plan.total)

    progress, history = run(problem, progress, keeper, on_evaluation=on_record, on_step=on_step)
    best = progress.best if validation is not None else Best(progress.state.energy, progress.step, math.nan)
    return Fitted(progress.state.energy, progress.state, history, best.energy, best.step, reports)


class _FitProblem(Problem[Progress, Record]):
    """The updates of `fit`, in stretches of about half a second."""

    def __init__(
        self, trainer: Trainer, plan: Plan, keeper: Keeper, key: PRNGKeyArray, data: State, weights: Array | None,
        validation: State | None, route: Route | None, monitor: Monitor | None,
    ):  # fmt: skip
        self.trainer, self.plan = trainer, plan
        self.keeper = keeper
        self.monitor = monitor
        self.key = key
        self.data = jax.tree.map(np.asarray, data)
        self.validation, self.route = validation, route
        # Small epochs share one call of the compiled loop, because a call costs as much as several updates of a small model.
        self.epochs = max(1, _STRETCH_ROWS // (plan.per_epoch * plan.batch))
        n = jax.device_put(np.int32(plan.n))
        self.batches = functools.partial(
            Batches, jax.tree.map(padded, self.data), None if weights is None else padded(weights), n
        )
        self.order = None
        self.order_block = -1
        self.chunk = 1
        self.watch: Watch | None = None
        self.began = time.perf_counter()

    def number(self, state: Progress) -> int:
        return state.step

    def finished(self, state: Progress) -> bool:
        return state.step >= self.plan.total

    def step(self, state: Progress) -> Progress:
        """Updates for about `_CHUNK_SECONDS`, up to the next record or the end of the epochs whose order is known."""
        plan, progress = self.plan, state
        if self.monitor is not None and self.watch is None:
            self.watch = Watch(self.monitor, self.trainer, progress.state.energy, self.data, plan.batch, progress.step)
        length = plan.per_epoch * self.epochs
        block, first = divmod(progress.step, length)
        if block != self.order_block:
            begun = block * self.epochs
            count = min(self.epochs, -(-plan.total // plan.per_epoch) - begun)
            order = orders(progress.state.key, begun, count, plan.n, plan.batch)
            self.order, self.order_block = padded(order, _STRETCH_ROWS), block
        to_record = plan.every - progress.step % plan.every
        to_report = plan.total if self.watch is None else self.watch.next_stop(progress.step) - progress.step
        stop = first + min(self.chunk, length - first, plan.total - progress.step, to_record, to_report)
        tick = time.perf_counter()
        batches = self.batches(self.order)
        after, sums, bad = updates(self.trainer, plan.batch, progress.state, progress.sums, batches, first, stop)
        if int(bad) >= 0:
            raise Diverged(
                f"learning diverged: the energies, gradients or parameters became NaN or infinite at step {block * length + int(bad)}; "
                f"{self.keeper}. Lower the learning rate, or check the data's scale."
            )
        problem = self.trainer.problem(sums)
        if problem is not None:
            raise NotMet(f"before step {block * length + stop}, {problem}; {self.keeper}")
        if self.watch is not None:
            self.watch.note({name: float(sums[name]) - float(progress.sums[name]) for name in WATCHED if name in sums})
        spent = time.perf_counter() - tick
        if spent < _CHUNK_SECONDS / 2:
            self.chunk *= 2
        elif spent > 2 * _CHUNK_SECONDS:
            self.chunk = max(1, self.chunk // 2)
        return dataclasses.replace(progress, state=after, sums=sums, since=progress.since + stop - first)

    def report(self, progress: Progress) -> MonitorReport | None:
        """The report of the monitor after this step, if one is due."""
        return None if self.watch is None else self.watch.see(progress.state, progress.step)

    def evaluate(self, state: Progress) -> Record | None:
        step, likelihood = state.step, None
        if step == state.recorded or (step % self.plan.every and step != self.plan.total):
            return None
        if self.validation is not None:
            key = measure_key(state.state.key, step)
            likelihood = log_likelihood(state.state.energy, self.validation, route=self.route, key=key)
        figures = {name: float(total) / state.since for name, total in state.sums.items()}
        return Record(step, step / self.plan.per_epoch, time.perf_counter() - self.began, figures, likelihood)

    def close(self, state: Progress, evaluation: Record) -> Progress:
        best = state.best
        if evaluation.validation is not None and evaluation.validation.value > best.value:
            best = Best(state.state.energy, evaluation.step, evaluation.validation.value)
            self.keeper.save_best(best)
        sums = no_sums(tuple(state.sums))
        return dataclasses.replace(state, sums=sums, since=0, recorded=evaluation.step, best=best)

    def pack(self, state: Progress) -> tuple[TrainState, dict[str, Any]]:
        return state.state, {
            "sums": {name: float(total) for name, total in state.sums.items()},
            "since": state.since,
            "recorded": state.recorded,
            "best_step": state.best.step if state.best.value > -math.inf else None,
        }

    def unpack(self, tree: TrainState, about: dict[str, Any]) -> Progress:
        if not bool(jnp.all(_key_data(tree.key) == _key_data(self.key))):
            raise CheckpointError(
                f"{self.keeper.path} is a checkpoint of another run: its key is different. Use the settings and "
                "data of that run, or another checkpoint file."
            )
        best = Best(tree.energy, int(tree.step), -math.inf)
        if about["best_step"] is not None:
            best = self.keeper.load_best(tree.energy)
        sums = {name: jax.device_put(np.float32(total)) for name, total in about["sums"].items()}
        return Progress(tree, sums, about["since"], about["recorded"], best)


def _key_data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
