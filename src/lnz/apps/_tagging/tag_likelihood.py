"""The exact likelihood of tagged sentences under a chain CRF with sparse features, and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.packing import Packed, pack
from lnz.apps._tagging.tagger import Tagger, bag, gold_scores, summed
from lnz.io._conll import Sentences


class TaggingProblem(NamedTuple):
    """Tagged sentences, ready for training: θ is one weight for each feature and label that occur together, then the transitions.

    Attributes:
        features: the map from windows to feature ids.
        labels: the tags.
        bag: the features of every token, a sparse matrix.
        tags: the label index of every token.
        packed: the positions of the tokens.
        at, label: the feature and the label of every weight; their order is that of the weights' table.
    """

    features: FeatureMap
    labels: list[str]
    bag: Any
    tags: Int[np.ndarray, " tokens"]
    packed: Packed
    at: Int[np.ndarray, " weights"]
    label: Int[np.ndarray, " weights"]

    @classmethod
    def of(cls, sentences: Sentences, features: FeatureMap) -> TaggingProblem:
        """The training problem of sentences whose last column holds the labels."""
        from scipy.sparse import csr_matrix

        tags, labels = sentences.columns[features.columns]
        inputs = bag(features.ids(sentences), features.count)
        tokens = np.arange(len(tags) + 1)
        indicators = csr_matrix((np.ones(len(tags), np.float32), tags, tokens), shape=(len(tags), len(labels)))
        seen = (inputs.T @ indicators).tocoo()
        order = np.lexsort((seen.col, seen.row))
        at, label = seen.row[order].astype(np.int32), seen.col[order].astype(np.int32)
        return cls(features, labels, inputs, tags, pack(sentences.starts), at, label)

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
        return Tagger(self.features, self.labels, *self.tables(theta))


class Likelihood:
    """-Σ log P(y|x) of a problem's sentences, in nats, and its gradient by T1: X^T (μ - onehot(y)), and expected less observed pairs.

    Emissions and their gradient are two products with the sparse matrix X of the features; μ comes from forward-backward.
    """

    def __init__(self, problem: TaggingProblem):
        self._problem = problem
        self._bag, self._back = (
            problem.bag,
            problem.bag.T.tocsr(),
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
        errors = problem.packed.gather(np.stack([np.asarray(sums.nodes, np.float32) for sums in found]))
        errors[np.arange(len(errors)), problem.tags] -= 1
        gradient = (self._back @ errors)[problem.at, problem.label]
        return value, np.concatenate([gradient, pairs.ravel()], dtype=np.float64)


def seen_pairs(tags: Int[np.ndarray, " tokens"], place: Int[np.ndarray, " tokens"], k: int) -> Float[np.ndarray, "k k"]:
    """The number of times that each label follows each other label within sentences, whose tokens are adjacent."""
    joined = np.flatnonzero(np.diff(place) == 1)
    counts = np.bincount(tags[joined].astype(np.int64) * k + tags[joined + 1], minlength=k * k)
    return counts.reshape(k, k).astype(np.float64)
