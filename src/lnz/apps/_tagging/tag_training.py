"""Training of taggers: exact likelihood with an L2 penalty, by L-BFGS or by Adam on batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.numerics import check_whole_number
from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.lbfgs import LBFGSState, lbfgs_iteration
from lnz.apps._tagging.packing import LENGTH, Packed
from lnz.apps._tagging.tag_likelihood import Likelihood, TaggingProblem, seen_pairs
from lnz.apps._tagging.tagger import Tagger, gold_scores, joined_text, summed
from lnz.io._conll import Sentences
from lnz.io._data import DataError
from lnz.learning._loop import Diverged, Problem, renamed, run
from lnz.learning._resume import Keeper, digest

_PERIOD, _DELTA = 10, 1e-5  # L-BFGS is done when this many iterations lower the objective by less than this fraction
_EVERY = 10  # iterations of L-BFGS between two evaluations
_MOST_LABELS = 1000


class TaggerEvaluation(NamedTuple):
    """An evaluation of a tagger in training.

    Attributes:
        step: iterations of L-BFGS, or epochs of Adam.
        objective: -Σ log P(y|x) + l2 ‖θ‖² on the training sentences, in nats; for Adam the mean over an epoch of batches.
        validation: nats per sentence of the validation sentences; None where there are none.
        tagger: the best on the validation sentences so far, or the last where there are none.
    """

    step: int
    objective: float
    validation: float | None
    tagger: Tagger


class FittedTagger(NamedTuple):
    """A trained tagger.

    Attributes:
        tagger: the best on the validation sentences, or the last where there are none.
        step: the iteration or epoch of that tagger.
        evaluations: the step, the objective and the validation's nats per sentence of every evaluation.
        finished: whether training converged or stopped early, before the largest number of iterations or epochs.
    """

    tagger: Tagger
    step: int
    evaluations: list[tuple[int, float, float | None]]
    finished: bool

    @property
    def looks(self) -> list[tuple[int, float, float | None]]:
        """The name of `evaluations` in version 0.1."""
        return renamed("FittedTagger.looks", self.evaluations, "FittedTagger.evaluations", None)


def fit_tagger(
    sentences: Sentences,
    *,
    checkpoint: str | Path | None = None,
    on_evaluation: Callable[[TaggerEvaluation], Any] | None = None,
    on_look: Callable[[TaggerEvaluation], Any] | None = None,
    **options: Unpack[Options],
) -> FittedTagger:
    """Train a tagger on sentences whose last column holds the tags: minimise -Σ log P(y|x) + l2 ‖θ‖², in nats.

    θ has a weight for each feature and label that occur together in training, and one for every pair of labels. L-BFGS uses the whole
    gradient, and has converged when ten iterations lower the objective by less than a hundred-thousandth. Adam uses gradients of batches of
    sentences, with a learning rate that falls to 0 along a cosine. With validation sentences training stops early when `patience` evaluations
    in a row (every ten iterations, or every epoch) have not lowered their nats per sentence, and the best tagger is kept.

    Args:
        sentences: tagged sentences, as `lnz.io.read_conll` reads them.
        templates: features such as "word[-1] word[0]", of `word`, `lower`, `shape`, `kind`, `prefixN`, `suffixN` and `columnN`; by default
            those of the CoNLL-2000 chunkers with prefixes, suffixes and shapes.
        boundary: whether a position beyond the sentence counts as a value in templates of several parts.
        min_count: features with fewer occurrences are left out.
        l2: strength of the L2 penalty, crfsuite's c2.
        optimizer: "lbfgs" or "adam".
        iterations: largest number of L-BFGS iterations.
        epochs, learning_rate, batch_tokens, seed: options of Adam; the seed is that of the batches.
        validation: sentences for early stopping.
        patience: evaluations in a row without improvement after which training stops.
        checkpoint: a file that is written at every evaluation and at an interruption, and resumed from if it exists: to the same tagger, bit
            for bit.
        on_evaluation: called with every `TaggerEvaluation`, before the checkpoint that follows it.
        on_look: its name in version 0.1.

    Raises:
        DataError: sentences without a label column, tags of the validation sentences that are not in training, too many labels.
        ValueError: invalid options.
        CheckpointError: a checkpoint that is damaged, or of another run.
        Diverged: where the objective becomes NaN or infinite.
        Interrupted: on Ctrl-C, after saving the state.

    Example:
        >>> import lnz
        >>> text = lnz.io.Sentences.of([[("a", "D"), ("dog", "N")], [("the", "D"), ("cat", "N")]])
        >>> lnz.apps.fit_tagger(text, templates=["word[0]"], l2=0.1).tagger
        Tagger(4 features, 2 labels)
    """
    return Training(sentences, **options).run(checkpoint, renamed("on_look=", on_look, "on_evaluation=", on_evaluation))


class Options(TypedDict, total=False):
    """The options of `fit_tagger`."""

    templates: Sequence[str] | None
    boundary: bool
    min_count: int
    l2: float
    optimizer: Literal["lbfgs", "adam"]
    iterations: int
    epochs: int
    learning_rate: float
    batch_tokens: int
    validation: Sentences | None
    patience: int
    seed: int


class _Progress(NamedTuple):
    """Progress of training.

    Attributes:
        solver: the solver's state, an `LBFGSState` or an `_AdamState`.
        best: θ of the best tagger so far, float32.
        objectives: objectives of the last steps.
        evaluations: the step, the objective and the validation's nats per sentence of every evaluation.
    """

    solver: Any
    best: np.ndarray
    objectives: tuple[float, ...] = ()
    evaluations: tuple[tuple[int, float, float | None], ...] = ()

    @property
    def step(self) -> int:
        return int(self.solver.iteration)

    @property
    def best_evaluation(self) -> int:
        """The index of the best evaluation: the first with the lowest score, or the last where there are no scores."""
        scores = [score for _, _, score in self.evaluations if score is not None]
        return len(self.evaluations) - 1 if len(scores) < len(self.evaluations) else scores.index(min(scores))


class Training(Problem[_Progress, TaggerEvaluation]):
    """The training run of `fit_tagger`: the constructor checks all arguments, and `run` trains."""

    def __init__(
        self,
        sentences: Sentences,
        *,
        templates: Sequence[str] | None = None,
        boundary: bool = True,
        min_count: int = 1,
        l2: float = 1.0,
        optimizer: Literal["lbfgs", "adam"] = "lbfgs",
        iterations: int = 500,
        epochs: int = 20,
        learning_rate: float = 0.03,
        batch_tokens: int = 1024,
        validation: Sentences | None = None,
        patience: int = 3,
        seed: int = 0,
    ):
        counts = {
            "iterations": iterations,
            "epochs": epochs,
            "batch_tokens": batch_tokens,
            "patience": patience,
            "min_count": min_count,
        }
        for name, number in counts.items():
            check_whole_number(name, number)
        if not (math.isfinite(l2) and l2 >= 0):
            raise ValueError(f"l2 must be a number of at least 0, but is {l2}")
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ValueError(f"learning_rate must be a number above 0, but is {learning_rate}")
        if optimizer not in ("lbfgs", "adam"):
            raise ValueError(f'optimizer must be "lbfgs" or "adam", but is {optimizer!r}')
        check_labels(sentences)
        inputs = sentences.first_columns(len(sentences.columns) - 1)
        features = FeatureMap.fit(inputs, templates, min_count=min_count, boundary=boundary)
        self.problem = TaggingProblem.of(sentences, features)
        self._gold = None
        if validation is not None:
            self._gold = self.problem.tagger(np.zeros(self.problem.size)).gold(validation)
        self.sentences = sentences
        self._validation, self._patience = validation, patience
        self.settings: dict[str, Any] = {
            "templates": features.templates,
            "boundary": boundary,
            "min_count": min_count,
            "l2": l2,
            "optimizer": optimizer,
            "data": _fingerprint(sentences),
            "validation": None if validation is None else _fingerprint(validation),
        }
        if optimizer == "lbfgs":
            self._limit, self._every = iterations, _EVERY
            self._solver = _LBFGS(self.problem, l2)
        else:
            self._limit, self._every = epochs, 1
            rows = max(1, batch_tokens // LENGTH)
            self._solver = _Adam(self.problem, l2, epochs, learning_rate, rows, len(sentences), seed)
            self.settings |= {"epochs": epochs, "learning_rate": learning_rate, "rows": rows, "seed": seed}

    def run(
        self,
        checkpoint: str | Path | None = None,
        on_evaluation: Callable[[TaggerEvaluation], Any] | None = None,
    ) -> FittedTagger:
        """Train from the start, or from the checkpoint if it exists."""
        start = _Progress(self._solver.init(), np.zeros(self.problem.size, np.float32))
        found, _ = run(self, start, Keeper(checkpoint, self.settings), on_evaluation=on_evaluation)
        step = found.evaluations[found.best_evaluation][0]
        return FittedTagger(self.problem.tagger(found.best), step, list(found.evaluations), self._enough(found))

    def number(self, state: _Progress) -> int:
        return state.step

    def finished(self, state: _Progress) -> bool:
        return self._evaluated(state) and (state.step >= self._limit or self._enough(state))

    def step(self, state: _Progress) -> _Progress:
        solver = self._solver.step(state.solver)
        if int(solver.iteration) == state.step:  # nothing more to gain
            return state._replace(solver=solver)
        objectives = (*state.objectives, float(solver.value))[-1 - _PERIOD :]
        return state._replace(solver=solver, objectives=objectives)

    def evaluate(self, state: _Progress) -> TaggerEvaluation | None:
        step, objective = state.step, float(state.solver.value)
        due = self._solver.converged(state) or step >= self._limit or (step and step % self._every == 0)
        if self._evaluated(state) or not due:
            return None
        if not math.isfinite(objective):
            raise Diverged(
                f"the objective is {objective} at step {step}: training has diverged. Lower the learning rate"
            )
        tagger, score = self.problem.tagger(np.asarray(state.solver.x)), None
        if self._validation is not None and self._gold is not None:
            score = tagger.negative_log_likelihood(self._validation, self._gold) / len(self._validation)
        evaluation = TaggerEvaluation(step, objective, score, tagger)
        if self.close(state, evaluation).best is state.best:
            evaluation = evaluation._replace(tagger=self.problem.tagger(state.best))
        return evaluation

    def close(self, state: _Progress, evaluation: TaggerEvaluation) -> _Progress:
        after = state._replace(evaluations=(*state.evaluations, evaluation[:3]))
        if after.best_evaluation == len(after.evaluations) - 1:
            after = after._replace(best=np.asarray(state.solver.x, np.float32))
        return after

    def pack(self, state: _Progress) -> tuple[Any, dict[str, Any]]:
        return (state.solver, state.best), {"objectives": state.objectives, "evaluations": state.evaluations}

    def unpack(self, tree: Any, about: dict[str, Any]) -> _Progress:
        evaluations = tuple((step, objective, score) for step, objective, score in about["evaluations"])
        solver, best = tree
        return _Progress(solver, best, tuple(about["objectives"]), evaluations)

    def _evaluated(self, state: _Progress) -> bool:
        return bool(state.evaluations) and state.evaluations[-1][0] == state.step

    def _enough(self, state: _Progress) -> bool:
        """Whether the solver has converged, or the validation sentences have stopped improving."""
        stale = len(state.evaluations) - 1 - state.best_evaluation if state.evaluations else 0
        return self._solver.converged(state) or stale >= self._patience


def _fingerprint(sentences: Sentences) -> str:
    return digest((sentences.starts, [(codes, joined_text(values)) for codes, values in sentences.columns]))


def check_labels(sentences: Sentences) -> None:
    """Raise DataError where sentences have no column of labels, or one with too many values."""
    if len(sentences.columns) < 2:
        raise DataError(
            f"{sentences.source}: has one column, so there are no labels. Give a file with the word first and the label last"
        )
    labels = sentences.columns[-1].values
    if len(labels) > _MOST_LABELS:
        raise DataError(
            f"{sentences.source}: its last column has {len(labels):,} different values, so it does not hold labels. Put the label last"
        )


class _LBFGS:
    """L-BFGS with the whole gradient. It has converged when ten iterations gain too little, or rounding prevents any gain."""

    def __init__(self, problem: TaggingProblem, l2: float):
        self._likelihood = Likelihood(problem)
        self._l2 = l2
        self._size = problem.size

    def init(self) -> LBFGSState:
        return LBFGSState.start(self._objective, np.zeros(self._size))

    def step(self, state: LBFGSState) -> LBFGSState:
        return lbfgs_iteration(self._objective, state)

    def converged(self, progress: _Progress) -> bool:
        values = progress.objectives
        little = len(values) > _PERIOD and values[0] - values[-1] < _DELTA * values[-1]
        return little or bool(progress.solver.converged)

    def _objective(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._likelihood(theta)
        return value + self._l2 * float(theta @ theta), gradient + 2 * self._l2 * theta


class _AdamState(NamedTuple):
    """θ, the objective over the last epoch, the moments, and the number of epochs."""

    x: Any
    value: np.ndarray
    moments: Any
    iteration: np.ndarray


class _Adam:
    """Adam on batches of packed rows, in a new order in each epoch."""

    def __init__(
        self, problem: TaggingProblem, l2: float, epochs: int, rate: float, rows: int, sentences: int, seed: int
    ):
        import optax

        self._batches = Batches(problem, rows)
        self._l2 = l2
        self._seed = seed
        self._size = problem.size
        count = self._batches.count
        self._optimizer = optax.adam(optax.cosine_decay_schedule(rate, epochs * count))

        @jax.jit
        def update(theta: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
            gradient = (
                count / sentences * gradient + 2 * l2 / sentences * theta
            )  # over an epoch, the gradient of the objective
            with jax.numpy_dtype_promotion("standard"):  # optax relies on JAX's default promotion
                changes, state = self._optimizer.update(gradient, state, theta)
            return optax.apply_updates(theta, changes), state

        self._update = update

    def init(self) -> _AdamState:
        theta = jnp.zeros((self._size,), jnp.float32)
        return _AdamState(theta, np.asarray(0.0), self._optimizer.init(theta), np.asarray(0))

    def step(self, state: _AdamState) -> _AdamState:
        theta, moments, total = state.x, state.moments, 0.0
        for rows in self._batches.shuffled(self._seed, int(state.iteration)):
            value, gradient = self._batches.likelihood(rows, np.asarray(theta))
            total += value + self._l2 * float(jnp.vdot(theta, theta)) / self._batches.count
            theta, moments = self._update(theta, moments, gradient)
        return _AdamState(theta, np.asarray(total), moments, np.asarray(state.iteration + 1))

    def converged(self, _: _Progress) -> bool:
        return False


class Batches:
    """Batches of a problem's packed rows, with the likelihood's gradient of each."""

    def __init__(self, problem: TaggingProblem, rows: int):
        self._problem = problem
        mask = problem.packed.mask
        self._length = mask.shape[2]
        self._mask = mask.reshape(-1, self._length)
        self._order = np.argsort(problem.packed.place)
        self._filled = self._mask.sum(axis=1)
        self._ends = np.cumsum(self._filled)
        self._rows = np.flatnonzero(self._filled)
        self._size = min(rows, len(self._rows))
        self._ranges = np.searchsorted(problem.at, np.arange(problem.features.count + 1))
        self.count = -(-len(self._rows) // self._size)
        self._drawn: tuple[int, int, np.random.Generator] | None = None  # seed and epoch of the generator's position

    def shuffled(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The rows of every batch of an epoch; epochs of one seed are drawn in sequence from one generator."""
        if self._drawn is None or self._drawn[:2] != (seed, epoch):
            generator = np.random.default_rng(seed)
            for _ in range(epoch):
                generator.permutation(self._rows)
        else:
            generator = self._drawn[2]
        order = generator.permutation(self._rows)
        self._drawn = (seed, epoch + 1, generator)
        return [order[i : i + self._size] for i in range(0, len(order), self._size)]

    def likelihood(self, rows: np.ndarray, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """-Σ log P of the rows, and its gradient; over an epoch both sum to those of all sentences."""
        problem, k = self._problem, len(self._problem.labels)
        which = np.concatenate([self._order[self._ends[r] - self._filled[r] : self._ends[r]] for r in rows])
        mask = np.zeros((1, self._size, self._length), bool)
        mask[0, : len(rows)] = self._mask[rows]
        packed, tags = Packed(np.flatnonzero(mask), mask), problem.tags[which]
        inputs = problem.bag[which]
        used, inputs.indices = np.unique(inputs.indices, return_inverse=True)
        inputs = type(inputs)((inputs.data, inputs.indices, inputs.indptr), shape=(len(which), len(used)))
        starts, stops = self._ranges[used], self._ranges[used + 1]
        row = np.repeat(np.arange(len(used)), stops - starts)
        at = np.arange(len(row)) + np.repeat(starts - np.append(0, np.cumsum(stops - starts)[:-1]), stops - starts)
        weights = np.zeros((len(used), k), np.float32)
        weights[row, problem.label[at]] = theta[at]
        transitions = theta[len(problem.at) :].reshape(k, k)
        emissions = inputs @ weights
        level = gold_scores(packed, emissions, transitions, tags)
        sums = summed(packed.spread(emissions)[0], packed.spread(level)[0], transitions, mask[0])
        errors = packed.gather(np.asarray(sums.nodes, np.float32)[None])
        errors[np.arange(len(which)), tags] -= 1
        gradient = np.zeros(problem.size, np.float32)
        gradient[at] = (inputs.T @ errors)[row, problem.label[at]]
        gradient[len(problem.at) :] = (np.asarray(sums.pairs) - seen_pairs(tags, packed.place, k)).ravel()
        return float(sums.log_z), gradient
