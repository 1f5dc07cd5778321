"""`CRF`: linear-chain conditional random fields with sklearn-crfsuite's names."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from lnz._core.numerics import check_whole_number
from lnz.apps._tagging.lbfgs import LBFGSState, lbfgs_iteration
from lnz.apps._tagging.owl_qn import owl_qn_iteration, pseudo_gradient
from lnz.apps._tagging.packing import pack
from lnz.apps._tagging.tag_likelihood import Likelihood, TaggingProblem, seen_pairs
from lnz.apps._tagging.tagger import best_tags, gold_scores, summed
from lnz.learning._loop import Diverged
from lnz.sklearn._feature_dicts import AttributeNumbers


class CRF(BaseEstimator):
    """A linear-chain conditional random field with the names and inputs of `sklearn_crfsuite.CRF`, in Python alone.

    log P(y|x) = Σ_t Σ_a x_ta W[a, y_t] + Σ_t A[y_{t-1}, y_t] - log Z(x), fitted by the minimum of -Σ log P(y|x) + c1 ‖θ‖₁ + c2 ‖θ‖² (in nats). X is a
    list of sequences of feature dictionaries, as in python-crfsuite, and y a list of sequences of labels.

    Args:
        algorithm: "lbfgs", as crfsuite's; with c1 > 0 it is the orthant-wise method. Others are not supported.
        min_freq: a weight of an attribute and a label, or of two labels, needs so many occurrences in training.
        all_possible_states: whether attributes and labels that never occur together have weights.
        all_possible_transitions: whether labels that never follow each other have weights. Other transitions have weight 0.
        c1, c2: strengths of the L1 and the L2 penalty.
        max_iterations: the most iterations; None for no bound.
        num_memories: pairs that approximate the curvature.
        epsilon: converged where ‖gradient‖ < epsilon max(1, ‖θ‖).
        period, delta: converged where `period` iterations lower the objective by less than the fraction delta.
        verbose: whether to print the objective of every iteration.

    Attributes:
        classes_: the labels, in the order in which they first occur.
        attributes_: the names of the attributes, such as "word:dog".
        state_features_: {(attribute, label): weight} of the weights that are not 0.
        transition_features_: {(label, next label): weight} of the weights that are not 0.
        objective_: the objective at the end, in nats.
        n_iter_: the number of iterations.

    Raises:
        ValueError: from `fit`, for invalid parameters, X and y of different lengths, or features that are not finite.

    Example:
        >>> import lnz
        >>> X = [[{"word": "a"}, {"word": "dog"}], [{"word": "the"}, {"word": "cat"}]]
        >>> crf = lnz.sklearn.CRF(c2=0.1).fit(X, [["D", "N"], ["D", "N"]])
        >>> crf.predict_single([{"word": "the"}, {"word": "dog"}])
        ['D', 'N']

    Source: Lafferty, McCallum & Pereira 2001, "Conditional random fields"; Okazaki 2007, CRFsuite (the features, penalties and stopping rules).
    """

    def __init__(
        self,
        algorithm: str = "lbfgs",
        *,
        min_freq: float = 0,
        all_possible_states: bool = False,
        all_possible_transitions: bool = False,
        c1: float = 0.0,
        c2: float = 1.0,
        max_iterations: int | None = None,
        num_memories: int = 6,
        epsilon: float = 1e-5,
        period: int = 10,
        delta: float = 1e-5,
        verbose: bool = False,
    ):
        self.algorithm = algorithm
        self.min_freq = min_freq
        self.all_possible_states = all_possible_states
        self.all_possible_transitions = all_possible_transitions
        self.c1 = c1
        self.c2 = c2
        self.max_iterations = max_iterations
        self.num_memories = num_memories
        self.epsilon = epsilon
        self.period = period
        self.delta = delta
        self.verbose = verbose

    def fit(self, X: Sequence[Any], y: Sequence[Sequence[Hashable]]) -> CRF:
        """Learn from sequences of feature dictionaries X and of labels y. Returns the estimator."""
        self._check_parameters()
        numbers = AttributeNumbers()
        inputs, starts = numbers.matrix(X, learn=True)
        lengths = [len(labels) for labels in y]
        if lengths != np.diff(starts).tolist():
            raise ValueError(
                "X and y must have the same number of sequences, and every sequence of y as many labels as X has tokens"
            )
        flat = [label for labels in y for label in labels]
        if not flat:
            raise ValueError("X and y hold no token: give at least one sequence that is not empty")
        self.classes_ = list(dict.fromkeys(flat))
        number = {label: i for i, label in enumerate(self.classes_)}
        tags = np.fromiter((number[label] for label in flat), np.int32, len(flat))
        problem = TaggingProblem.of_bag(
            numbers, [str(label) for label in self.classes_], inputs, tags, starts,
            least=self.min_freq or -math.inf, every=self.all_possible_states,
        )  # fmt: skip
        self._attributes = numbers
        theta = self._minimised(problem)
        self._weights, self._transitions = problem.tables(theta)
        return self

    def predict(self, X: Sequence[Any]) -> np.ndarray:
        """The most probable labels of every sequence, by Viterbi's algorithm: an array of lists."""
        tags, starts = self._over_batches(X, lambda block, mask: best_tags(block, self._transitions, mask)[0])
        labels = [self.classes_[tag] for tag in tags]
        return _as_objects([labels[a:b] for a, b in itertools.pairwise(starts)])

    def predict_single(self, xseq: Sequence[Any]) -> list[Hashable]:
        """The most probable labels of one sequence."""
        return self.predict([xseq])[0]

    def predict_marginals(self, X: Sequence[Any]) -> np.ndarray:
        """P(y_t = label | x) of every token: an array of lists of dictionaries {label: probability}."""

        def nodes(block: np.ndarray, mask: np.ndarray) -> Any:
            return summed(block, np.zeros(mask.shape, np.float32), self._transitions, mask).nodes

        odds, starts = self._over_batches(X, nodes)
        found = [dict(zip(self.classes_, row, strict=True)) for row in odds.astype(float).tolist()]
        return _as_objects([found[a:b] for a, b in itertools.pairwise(starts)])

    def predict_marginals_single(self, xseq: Sequence[Any]) -> list[dict[Hashable, float]]:
        """P(y_t = label | x) of every token of one sequence."""
        return self.predict_marginals([xseq])[0]

    def log_likelihood(self, X: Sequence[Any], y: Sequence[Sequence[Hashable]]) -> float:
        """Σ log P(y|x) over all sequences, in nats. Raises ValueError for a label that did not occur in `fit`."""
        check_is_fitted(self, "classes_")
        inputs, starts = self._attributes.matrix(X)
        number, flat = {label: i for i, label in enumerate(self.classes_)}, [label for labels in y for label in labels]
        unknown = sorted({str(label) for label in flat if label not in number})
        if unknown or [len(labels) for labels in y] != np.diff(starts).tolist():
            raise ValueError(
                f"the labels {', '.join(unknown)} did not occur in fit" if unknown else "X and y have different lengths"
            )
        emissions, packed = inputs @ self._weights, pack(starts)
        tags = np.array([number[label] for label in flat], np.int32)
        levels = packed.spread(gold_scores(packed, emissions, self._transitions, tags))
        blocks = zip(packed.spread(emissions), levels, packed.mask, strict=True)
        return -sum(float(summed(block, level, self._transitions, mask).log_z) for block, level, mask in blocks)

    def score(self, X: Sequence[Any], y: Sequence[Sequence[Hashable]]) -> float:
        """The share of tokens whose label is right."""
        pairs = [
            (a, b) for found, labels in zip(self.predict(X), y, strict=True) for a, b in zip(found, labels, strict=True)
        ]
        return sum(a == b for a, b in pairs) / len(pairs)

    @property
    def attributes_(self) -> list[str]:
        check_is_fitted(self, "classes_")
        return self._attributes.names

    @property
    def num_attributes_(self) -> int:
        check_is_fitted(self, "classes_")
        return self._attributes.count

    @property
    def state_features_(self) -> dict[tuple[str, Hashable], float]:
        check_is_fitted(self, "classes_")
        names = self._attributes.names
        at, label = np.nonzero(self._weights)
        return {
            (names[a], self.classes_[k]): float(self._weights[a, k])
            for a, k in zip(at.tolist(), label.tolist(), strict=True)
        }

    @property
    def transition_features_(self) -> dict[tuple[Hashable, Hashable], float]:
        check_is_fitted(self, "classes_")
        pairs = zip(*(end.tolist() for end in np.nonzero(self._transitions)), strict=True)
        return {(self.classes_[i], self.classes_[j]): float(self._transitions[i, j]) for i, j in pairs}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.dict = True
        tags.target_tags.required = True
        return tags

    def _check_parameters(self) -> None:
        if self.algorithm != "lbfgs":
            raise ValueError(f"algorithm must be 'lbfgs', which maximises the likelihood, but is {self.algorithm!r}")
        for name in ("num_memories", "period"):
            check_whole_number(name, getattr(self, name))
        if self.max_iterations is not None:
            check_whole_number("max_iterations", self.max_iterations)
        for name in ("min_freq", "c1", "c2", "epsilon", "delta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, but is {value}")

    def _minimised(self, problem: TaggingProblem) -> np.ndarray:
        likelihood = Likelihood(problem, np.float64)
        k = len(problem.labels)
        pairs = seen_pairs(problem.tags, problem.packed.place, k).ravel()
        possible = pairs >= max(self.min_freq, 0 if self.all_possible_transitions else 1)
        free = np.concatenate([np.ones(len(problem.at)), possible])

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = likelihood(theta)
            return value + self.c2 * float(theta @ theta), (gradient + 2 * self.c2 * theta) * free

        state = LBFGSState.start(objective, np.zeros(problem.size), self.num_memories)
        values: list[float] = []
        while not self._converged(state, values):
            if self.max_iterations is not None and len(values) == self.max_iterations:
                warnings.warn(
                    f"not converged after {len(values)} iterations: raise max_iterations",
                    ConvergenceWarning,
                    stacklevel=3,
                )
                break
            state = owl_qn_iteration(objective, state, self.c1) if self.c1 else lbfgs_iteration(objective, state)
            values.append(float(state.value) + self.c1 * float(np.abs(state.x).sum()))
            if not math.isfinite(values[-1]):
                raise Diverged(
                    f"the objective is {values[-1]} at iteration {len(values)}: scale the features, or raise c2"
                )
            if self.verbose:
                print(
                    f"iteration {len(values)}: objective {values[-1]:.6f} nats, {np.count_nonzero(state.x):,} active features"
                )
        self.objective_, self.n_iter_ = values[-1] if values else float(state.value), len(values)
        return state.x

    def _converged(self, state: LBFGSState, values: list[float]) -> bool:
        slope = pseudo_gradient(state, self.c1) if self.c1 else state.gradient
        if bool(state.converged) or np.linalg.norm(slope) < self.epsilon * max(1.0, float(np.linalg.norm(state.x))):
            return True
        return len(values) > self.period and values[-1 - self.period] - values[-1] < self.delta * values[-1]

    def _over_batches(self, X: Sequence[Any], function: Any) -> tuple[np.ndarray, np.ndarray]:
        """The results of a function of batches for every token, and where the sequences start."""
        check_is_fitted(self, "classes_")
        inputs, starts = self._attributes.matrix(X)
        packed = pack(starts)
        blocks = zip(packed.spread(inputs @ self._weights), packed.mask, strict=True)
        return packed.gather(np.stack([np.asarray(function(block, mask)) for block, mask in blocks])), starts


def _as_objects(lists: list[Any]) -> np.ndarray:
    found = np.empty(len(lists), object)
    found[:] = lists
    return found
