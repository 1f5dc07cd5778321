"""The exact likelihood of tagged sentences under a chain CRF with sparse features, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.packing import Packed, pack
from lnz.apps._tagging.tagger import Tagger, bag, gold_scores, summed
from lnz.io._conll import Sentences


@runtime_checkable
class Features(Protocol):
    """Whatever numbers the features of tokens, such as a `FeatureMap`."""

    @property
    def count(self) -> int: ...


class TaggingProblem(NamedTuple):
    """Tagged sentences, ready for training: θ is one weight for each feature and label that occur together, then the transitions.

    Attributes:
        features: the numbers of the features: a map from windows to feature ids.
        labels: the tags.
        bag: the features of every token, a sparse matrix.
        tags: the label index of every token.
        packed: the positions of the tokens.
        at, label: the feature and the label of every weight; their order is that of the weights' table.
    """

    features: Features
    labels: list[str]
    bag: Any
    tags: Int[np.ndarray, " tokens"]
    packed: Packed
    at: Int[np.ndarray, " weights"]
    label: Int[np.ndarray, " weights"]

    @classmethod
    def of(cls, sentences: Sentences, features: FeatureMap) -> TaggingProblem:
        """The training problem of sentences whose last column holds the labels."""
        tags, labels = sentences.columns[features.columns]
        return cls.of_bag(features, labels, bag(features.ids(sentences), features.count), tags, sentences.starts)

    @classmethod
    def of_bag(
        cls,
        features: Features,
        labels: Sequence[str],
        inputs: Any,
        tags: Int[np.ndarray, " tokens"],
        starts: Int[np.ndarray, " ends"],
        *,
        least: float = 0.0,
        every: bool = False,
    ) -> TaggingProblem:
        """The training problem of tokens whose features are the rows of a sparse matrix.

        Args:
            least: a feature and a label have a weight where the values of the feature at tokens with the label add up to so much.
            every: whether features and labels that never occur together have weights, too.
        """
        from scipy.sparse import csr_matrix

        k = len(labels)
        tokens = np.arange(len(tags) + 1)
        indicators = csr_matrix((np.ones(len(tags), np.float32), tags, tokens), shape=(len(tags), k))
        seen = (inputs.T @ indicators).tocoo()
        kept = seen.data >= least
        at, label = seen.row[kept], seen.col[kept]
        if every and least <= 0:
            at, label = np.indices((features.count, k)).reshape(2, -1)
        order = np.lexsort((label, at))
        at, label = at[order].astype(np.int32), label[order].astype(np.int32)
        return cls(features, list(labels), inputs, tags, pack(starts), at, label)

    @property
    def size(self) -> int:
        """The length of θ."""
        return len(self.at) + len(self.labels) ** 2

    def tables(self, theta: Float[np.ndarray, " size"]) -> tuple[np.ndarray, np.ndarray]:
        """The weights (features, labels) and the transitions of θ, float32."""
        k = len(self.labels)
        weights = np.zeros((self.features.count, k), np.float32)
        weights[self.at, self.label] = theta[: len(self.at)]
        return weights, theta[len(self.at) :].reshape(k, k).astype(np.float32)

    def tagger(self, theta: Float[np.ndarray, " size"]) -> Tagger:
        assert isinstance(self.features, FeatureMap)
        return Tagger(self.features, self.labels, *self.tables(theta))


class Likelihood:
    """-Σ log P(y|x) of a problem's sentences, in nats, and its gradient by T1: X^T (μ - onehot(y)), and expected less observed pairs.

    Emissions and their gradient are two products with the sparse matrix X of the features; μ comes from forward-backward.

    Args:
        sums: the dtype in which the gradient adds up tokens. A feature of a hundred thousand tokens needs float64 for more than four digits.
    """

    def __init__(self, problem: TaggingProblem, sums: type[np.floating[Any]] = np.float32):
        self._problem = problem
        self._sums = sums
        self._bag, self._back = (
            problem.bag,
            problem.bag.T.tocsr().astype(sums),
        )  # CSR rows of the transpose, each of which the product writes once
        self._seen = seen_pairs(problem.tags, problem.packed.place, len(problem.labels))

    def __call__(self, theta: Float[np.ndarray, " size"]) -> tuple[float, Float[np.ndarray, " size"]]:
        problem = self._problem
        weights, transitions = problem.tables(theta)
        emissions = self._bag @ weights
        levels = problem.packed.spread(gold_scores(problem.packed, emissions, transitions, problem.tags))
        blocks = problem.packed.spread(emissions)
        found = [
            summed(block, level, transitions, mask)
            for block, level, mask in zip(blocks, levels, problem.packed.mask, strict=True)
        ]
        value = sum(float(sums.log_z) for sums in found)
        pairs = sum(np.asarray(sums.pairs, np.float64) for sums in found) - self._seen
        errors = problem.packed.gather(np.stack([np.asarray(sums.nodes, self._sums) for sums in found]))
        errors[np.arange(len(errors)), problem.tags] -= 1
        gradient = (self._back @ errors)[problem.at, problem.label]
        return value, np.concatenate([gradient, pairs.ravel()], dtype=np.float64)


def seen_pairs(tags: Int[np.ndarray, " tokens"], place: Int[np.ndarray, " tokens"], k: int) -> Float[np.ndarray, "k k"]:
    """The number of times that each label follows each other label within sentences, whose tokens are adjacent."""
    joined = np.flatnonzero(np.diff(place) == 1)
    counts = np.bincount(tags[joined].astype(np.int64) * k + tags[joined + 1], minlength=k * k)
    return counts.reshape(k, k).astype(np.float64)
