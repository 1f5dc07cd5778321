"""Training of taggers: exact likelihood with L2, by L-BFGS or by Adam on batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from lnz._core.numerics import check_whole_number
from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.packing import LENGTH, Packed
from lnz.apps._tagging.tag_likelihood import Likelihood, Problem, seen_pairs
from lnz.apps._tagging.tagger import Tagger, gold_scores, summed
from lnz.io._conll import Sentences
from lnz.io._data import DataError

_CORRECTIONS = 6  # pairs of vectors that L-BFGS keeps
_PERIOD, _DELTA = 10, 1e-5  # L-BFGS is done when this many iterations lower the objective by less than this fraction
_LOOK = 10  # iterations of L-BFGS between two looks
_MOST_LABELS = 1000


class Evaluation(NamedTuple):
    """What is known at a moment of training.

    Attributes:
        step: iterations of L-BFGS, or epochs of Adam.
        objective: -Σ log P(y|x) + l2 ‖θ‖² on the training sentences, in nats; of Adam the mean over an epoch of batches.
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
        step: the iteration or epoch it comes from.
        looks: of every look the step, the objective and the validation's nats per sentence.
        finished: whether training ended by itself, and not by the limit on iterations or epochs.
    """

    tagger: Tagger
    step: int
    looks: list[tuple[int, float, float | None]]
    finished: bool


def fit_tagger(
    sentences: Sentences, *, on_look: Callable[[Evaluation], Any] | None = None, **options: Unpack[Options]
) -> FittedTagger:
    """Train a tagger on sentences whose last column are the tags: minimise -Σ log P(y|x) + l2 ‖θ‖², in nats.

    θ has a weight for each feature and label that come together in training, and one for every pair of labels. L-BFGS takes the whole
    gradient, and is done when ten iterations lower the objective by less than a hundred-thousandth. Adam takes it from batches of sentences,
    at a rate that falls to 0 along a cosine. With validation sentences training stops early, when `patience` looks in a row (each ten
    iterations, or each epoch) have not lowered their nats per sentence, and the best tagger is kept.

    Args:
        sentences: tagged sentences, as `lnz.io.read_conll` reads them.
        templates: features such as "word[-1] word[0]", of `word`, `lower`, `shape`, `kind`, `prefixN`, `suffixN` and `columnN`; by default
            those of the CoNLL-2000 chunkers with prefixes, suffixes and shapes.
        boundary: whether a place beyond the sentence counts as a value in templates of several parts.
        min_count: features that come less often are left out.
        l2: c2 of crfsuite.
        optimizer: "lbfgs" or "adam".
        iterations: of L-BFGS, at most.
        epochs, learning_rate, batch_tokens, seed: of Adam; the seed is that of the batches.
        validation: sentences to stop by.
        patience: looks.
        on_look: called at every look; Ctrl-C passes through.

    Raises:
        DataError: sentences without a label column, tags of the validation sentences that training has not, too many labels.
        ValueError: options that cannot serve.

    Example:
        >>> import lnz
        >>> text = lnz.io.Sentences.of([[("a", "D"), ("dog", "N")], [("the", "D"), ("cat", "N")]])
        >>> lnz.apps.fit_tagger(text, templates=["word[0]"], l2=0.1).tagger
        Tagger(4 features, 2 labels)
    """
    return Training(sentences, **options).run(on_look)


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


class Training:
    """What `fit_tagger` does in two steps: everything that can be refused is refused here, and `run` does the work."""

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
        self.problem = Problem.of(sentences, features)
        self._gold = None
        if validation is not None:
            self._gold = self.problem.tagger(np.zeros(self.problem.size)).gold(validation)
        self._validation, self._patience = validation, patience
        if optimizer == "lbfgs":
            self._solve = lambda record: _lbfgs(self.problem, l2, iterations, record)
        else:
            rows = max(1, batch_tokens // LENGTH)
            self._solve = lambda record: _adam(
                self.problem, l2, epochs, learning_rate, rows, len(sentences), seed, record
            )

    def run(self, on_look: Callable[[Evaluation], Any] | None = None) -> FittedTagger:
        """Train; `on_look` is called at every look."""
        record = _Record(self.problem, self._validation, self._gold, self._patience, on_look)
        finished = self._solve(record)
        assert record.best is not None
        return FittedTagger(record.best, record.best_step, record.looks, finished)


def check_labels(sentences: Sentences) -> None:
    """Raise DataError where sentences have no column of labels, or one that is none."""
    if len(sentences.columns) < 2:
        raise DataError(
            f"{sentences.source}: has one column, so there are no labels. Give a file with the word first and the label last"
        )
    labels = sentences.columns[-1].values
    if len(labels) > _MOST_LABELS:
        raise DataError(
            f"{sentences.source}: its last column has {len(labels):,} different values, so it does not hold labels. Put the label last"
        )


class _Record:
    """The looks, the best tagger, and when to stop."""

    def __init__(self, problem: Problem, validation: Sentences | None, gold: Any, patience: int, on_look: Any):
        self._problem, self._validation, self._gold = problem, validation, gold
        self._patience, self._on_look = patience, on_look
        self.looks: list[tuple[int, float, float | None]] = []
        self.best: Tagger | None = None
        self.best_step, self._least, self._worse = 0, math.inf, 0

    def look(self, step: int, objective: float, theta: np.ndarray) -> bool:
        """Look at the tagger; whether the validation sentences say that it is enough."""
        if not math.isfinite(objective):
            raise ValueError(
                f"the objective is {objective} at step {step}: training has diverged. Lower the learning rate"
            )
        tagger, score = self._problem.tagger(theta), None
        if self._validation is not None:
            score = tagger.negative_log_likelihood(self._validation, self._gold) / len(self._validation)
        self.looks.append((step, objective, score))
        if score is None or score < self._least:
            self.best, self.best_step, self._worse = tagger, step, 0
            self._least = math.inf if score is None else score
        else:
            self._worse += 1
        if self._on_look is not None:
            self._on_look(Evaluation(step, objective, score, self.best or tagger))
        return self._worse >= self._patience


def _lbfgs(problem: Problem, l2: float, iterations: int, record: _Record) -> bool:
    """Steps with the whole gradient; whether they came to an end before the limit."""
    from scipy.optimize import minimize

    likelihood, values, ended = Likelihood(problem), [], False

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = likelihood(theta)
        return value + l2 * float(theta @ theta), gradient + 2 * l2 * theta

    def callback(intermediate_result: Any) -> None:
        nonlocal ended
        values.append(float(intermediate_result.fun))
        step, value = len(values), values[-1]
        ended = step > _PERIOD and values[-1 - _PERIOD] - value < _DELTA * value
        if not ended and step % _LOOK == 0:
            ended = record.look(step, value, intermediate_result.x)
        if ended:
            raise StopIteration

    options = {"maxcor": _CORRECTIONS, "maxiter": iterations, "maxfun": 20 * iterations + 20, "maxls": 10}
    options |= {"ftol": 0.0, "gtol": 1e-6}
    found = minimize(objective, np.zeros(problem.size), jac=True, method="L-BFGS-B", callback=callback, options=options)
    if not record.looks or record.looks[-1][0] < len(values):
        record.look(len(values), float(found.fun), found.x)
    return ended or len(values) < iterations  # or rounding leaves nothing to gain


def _adam(
    problem: Problem, l2: float, epochs: int, rate: float, rows: int, sentences: int, seed: int, record: _Record
) -> bool:
    """Epochs of batches of packed rows, in a new order each; whether the validation sentences ended them."""
    import optax

    batches = Batches(problem, rows)
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, epochs * batches.count))
    theta = jnp.zeros((problem.size,), jnp.float32)
    state = optimizer.init(theta)

    @jax.jit
    def update(theta: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        gradient = (
            batches.count / sentences * gradient + 2 * l2 / sentences * theta
        )  # over an epoch that of the objective
        with jax.numpy_dtype_promotion("standard"):  # which optax counts on
            changes, state = optimizer.update(gradient, state, theta)
        return optax.apply_updates(theta, changes), state

    generator = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows_of_batch in batches.shuffled(generator):
            value, gradient = batches.likelihood(rows_of_batch, np.asarray(theta))
            total += value + l2 * float(jnp.vdot(theta, theta)) / batches.count
            theta, state = update(theta, state, gradient)
        if record.look(epoch, total, np.asarray(theta)):
            return True
    return False


class Batches:
    """Batches of a problem's packed rows, with the likelihood's gradient of each."""

    def __init__(self, problem: Problem, rows: int):
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

    def shuffled(self, generator: np.random.Generator) -> list[np.ndarray]:
        """The rows of every batch of an epoch."""
        order = generator.permutation(self._rows)
        return [order[i : i + self._size] for i in range(0, len(order), self._size)]

    def likelihood(self, rows: np.ndarray, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """-Σ log P of the rows, and its gradient: over an epoch they add up to the whole."""
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
