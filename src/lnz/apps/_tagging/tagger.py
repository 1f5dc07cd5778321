"""A chain CRF over sparse features, with emissions by an embedding bag and one table of transitions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lnz._core.checkpoint import CheckpointError, load_arrays, save_tree
from lnz._models.linear_chain import LinearChain
from lnz.apps._tagging.chunk_metrics import Chunks, chunks, continues
from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.packing import Packed, pack
from lnz.crf._decoding import map_state
from lnz.crf._queries import edge_marginals, marginals
from lnz.io._conll import Sentences, counted
from lnz.io._data import DataError, listed, quoted
from lnz.routes._exact.forward_backward import chain_sums


class Tagged(NamedTuple):
    """The most probable tags of sentences, and their probabilities.

    Attributes:
        tags: the label index of every token, int32 (tokens,).
        confidence: P(y_t = tag | x) of every token.
        chunks: the chunks of these tags.
        chunk_confidence: the probability of every chunk that its tokens have these tags and that it ends there.
    """

    tags: Int[np.ndarray, " tokens"]
    confidence: Float[np.ndarray, " tokens"]
    chunks: Chunks
    chunk_confidence: Float[np.ndarray, " chunks"]


class Tagger:
    """A conditional random field over the tags y of a sentence x, with sparse features of every token's window:

        log P(y|x) = Σ_t Σ_{f at t} W[f, y_t] + Σ_t A[y_{t-1}, y_t] - log Z(x), in nats.

    `lnz.apps.fit_tagger` trains one. Sentences are those of `lnz.io.read_conll`; columns after those of training (the labels) are
    ignored.

    Attributes:
        features: the map from windows to feature ids.
        labels: the tags, in the order of the columns of W.
        weights: W, shape (features, labels), float32.
        transitions: A[from, to], shape (labels, labels), float32.

    Example:
        >>> import lnz
        >>> text = lnz.io.Sentences.of([[("a", "D"), ("dog", "N"), ("barks", "V")], [("the", "D"), ("cat", "N"), ("sleeps", "V")]] * 5)
        >>> tagger = lnz.apps.fit_tagger(text).tagger
        >>> [tagger.labels[tag] for tag in tagger.tag(lnz.io.Sentences.of([[("the",), ("dog",), ("sleeps",)]]))]
        ['D', 'N', 'V']

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields".
    """

    def __init__(self, features: FeatureMap, labels: Sequence[str], weights: Any, transitions: Any):
        self.features, self.labels = features, list(labels)
        self.weights = np.ascontiguousarray(weights, np.float32)
        self.transitions = np.ascontiguousarray(transitions, np.float32)
        k = len(self.labels)
        if self.weights.shape != (features.count, k) or self.transitions.shape != (k, k):
            raise ValueError(
                f"weights and transitions of {features.count} features and {k} labels must have shapes ({features.count}, {k}) and ({k}, {k}), but "
                f"got {self.weights.shape} and {self.transitions.shape}"
            )
        if not (np.isfinite(self.weights).all() and np.isfinite(self.transitions).all()):
            raise ValueError("weights and transitions must be finite numbers. Train again, with a larger l2")

    def emissions(self, sentences: Sentences) -> Float[np.ndarray, "tokens labels"]:
        """The log-potentials of every label at every token, in nats: arguments of `lnz.LinearChain`, with `transitions`. DataError as `tag`."""
        return bag(self.features.ids(sentences), self.features.count) @ self.weights

    def tag(self, sentences: Sentences) -> Int[np.ndarray, " tokens"]:
        """The most probable tags of all sentences, by Viterbi's algorithm: indices into `labels`, int32.

        Raises:
            DataError: where the sentences have fewer columns than those of training, the labels not counted.
        """
        return self._over_batches(sentences, best_tags)[0]

    def tag_with_confidence(self, sentences: Sentences) -> Tagged:
        """The most probable tags, and the probability of every tag and every chunk. DataError as `tag`."""
        goes_on = continues(self.labels)
        tags, own, next_tag, on = self._over_batches(sentences, _best_tags_and_odds, goes_on)
        found = chunks(tags, self.labels, sentences.starts)
        least = np.finfo(own.dtype).tiny
        step = np.log(np.maximum(next_tag / np.maximum(own, least), least))  # log P(next tag | this one)
        along = np.append(0, np.cumsum(step, dtype=np.float64))
        inside = np.exp(along[found.ends] - along[found.starts])
        stops = np.maximum(1 - on / np.maximum(own, least), 0)
        return Tagged(tags, np.minimum(own, 1), found, np.minimum(own[found.starts] * inside * stops[found.ends], 1))

    def negative_log_likelihood(self, sentences: Sentences, tags: Int[np.ndarray, " tokens"]) -> float:
        """-Σ log P(y|x) over all sentences, in nats. DataError as `tag`."""
        packed = pack(sentences.starts)
        emissions, tags = self.emissions(sentences), np.asarray(tags)
        value = 0.0
        levels = packed.spread(gold_scores(packed, emissions, self.transitions, tags))
        for block, level, mask in zip(packed.spread(emissions), levels, packed.mask, strict=True):
            value += float(summed(block, level, self.transitions, mask).log_z)
        return max(value, 0.0)

    def gold(self, sentences: Sentences) -> Int[np.ndarray, " tokens"]:
        """The tags that sentences have in their last column, as indices into `labels`.

        Raises:
            DataError: where there is no such column, or it holds a tag that did not occur in training, with the line.
        """
        width = self.features.columns + 1
        if len(sentences.columns) != width:
            raise DataError(
                f"{sentences.source}: has {counted(len(sentences.columns))}, but {width} are needed: those of the training file, the label last. "
                "Give a file with labels"
            )
        codes, values = sentences.columns[-1]
        numbers = {label: i for i, label in enumerate(self.labels)}
        table = np.asarray([numbers.get(value, -1) for value in values], np.int32)
        found = table[codes]
        if len(unseen := np.flatnonzero(found < 0)):
            raise DataError(
                f"{sentences.place(int(unseen[0]))}: the tag {quoted(values[codes[unseen[0]]])} does not occur in training, which had "
                f"{listed(self.labels)}. Correct it, or train with it"
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tagger to one safetensors file, atomically. Weights that are 0 take no room. Raises WriteError."""
        at, label = np.nonzero(self.weights)
        arrays = {
            "features": at.astype(np.int32),
            "labels": label.astype(np.int32),
            "weights": self.weights[at, label],
            "transitions": self.transitions,
            "keys": np.concatenate([np.empty(0, np.int64), *self.features.keys]),
            **{f"symbols.{name}": joined_text(values) for name, values in self.features.symbols.items()},
        }
        about = {
            "templates": self.features.templates,
            "features": [len(keys) for keys in self.features.keys],
            "columns": self.features.columns,
            "boundary": self.features.boundary,
            "labels": self.labels,
        }
        save_tree(str(path), arrays, {"tagger": about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tagger:
        """Read a tagger written by `save`.

        Raises:
            CheckpointError: if the file is missing, truncated or damaged, or does not hold a tagger.
        """
        found, metadata = load_arrays(str(path))
        if "tagger" not in metadata:
            raise CheckpointError(f"{path} does not hold a tagger. Give a file written by Tagger.save.")
        about, arrays = metadata["tagger"], {name[2:-2]: array for name, array in found.items()}
        symbols = {name[8:]: _strings(array) for name, array in arrays.items() if name.startswith("symbols.")}
        keys = np.split(arrays["keys"], np.cumsum(about["features"])[:-1])
        features = FeatureMap(about["templates"], about["columns"], symbols, keys, boundary=about["boundary"])
        weights = np.zeros((features.count, len(about["labels"])), np.float32)
        weights[arrays["features"], arrays["labels"]] = arrays["weights"]
        return cls(features, about["labels"], weights, arrays["transitions"])

    def __repr__(self) -> str:
        return f"Tagger({self.features.count:,} features, {len(self.labels)} labels)"

    def _over_batches(self, sentences: Sentences, function: Any, *more: Any) -> list[np.ndarray]:
        packed = pack(sentences.starts)
        blocks = packed.spread(self.emissions(sentences))
        found = [
            function(block, self.transitions, mask, *more) for block, mask in zip(blocks, packed.mask, strict=True)
        ]
        return [packed.gather(np.stack([np.asarray(part) for part in parts])) for parts in zip(*found, strict=True)]


def bag(ids: Int[np.ndarray, "tokens slots"], count: int) -> Any:
    """The tokens' features as a sparse matrix (tokens, count) of ones: its product with the weights is an embedding bag."""
    from scipy.sparse import csr_matrix

    there = ids < count
    ends = np.append(0, np.cumsum(there.sum(axis=1)))
    return csr_matrix((np.ones(ends[-1], np.float32), ids[there], ends), shape=(len(ids), count))


class Sums(NamedTuple):
    """Σ log Z of the sentences of a batch, in nats; P(y_t = k) at every position; and the expected number of every pair of labels."""

    log_z: Float[Array, ""]
    nodes: Float[Array, "rows length labels"]
    pairs: Float[Array, "labels labels"]


@jax.jit
def summed(
    emissions: Float[Any, "rows length labels"],
    level: Float[Any, "rows length"],
    transitions: Float[Any, "labels labels"],
    mask: Bool[Any, "rows length"],
) -> Sums:
    """The sums of a batch of packed sentences, with `level` subtracted from every emission; that of gold tags gives -log P instead of log Z."""
    relative = emissions - level[..., None]
    found = jax.vmap(lambda e, m: chain_sums(_chain(e, transitions, m).potentials()))(relative, mask)
    return Sums(jnp.sum(found.log_z), found.nodes, jnp.sum(found.pairs, axis=0))


def gold_scores(packed: Packed, emissions: np.ndarray, transitions: np.ndarray, tags: np.ndarray) -> np.ndarray:
    """The log-potential of every token's gold tag, the transition to it included. The tokens of a sentence are adjacent."""
    joined = np.append(False, np.diff(packed.place) == 1)
    before = np.append(tags[:1], tags[:-1])
    return emissions[np.arange(len(tags)), tags] + np.where(joined, transitions[before, tags], np.float32(0))


def _chain(emissions: Any, transitions: Any, mask: Any) -> LinearChain:
    """A row of sentences as a chain, cut at empty positions."""
    return LinearChain(emissions, transitions, mask=mask, holes="cut")


@jax.jit
def best_tags(emissions: Any, transitions: Any, mask: Any) -> tuple[Array]:
    return (jax.vmap(lambda e, m: map_state(_chain(e, transitions, m)))(emissions, mask),)


@jax.jit
def _best_tags_and_odds(emissions: Any, transitions: Any, mask: Any, goes_on: Any) -> tuple[Array, ...]:
    """For every position: its tag, P(tag), P(tag and the next tag), and P(tag and a next tag that continues its chunk).

    At the end of a sentence the third is P(tag) itself, and the last is 0.
    """

    def row(e: Array, m: Array) -> tuple[Array, ...]:
        chain = _chain(e, transitions, m)
        tags = map_state(chain)
        places = jnp.arange(len(tags) - 1)
        own = marginals(chain)[jnp.arange(len(tags)), tags]
        edges = edge_marginals(chain)[places, tags[:-1]]
        following = jnp.where(m[:-1] & m[1:], edges[places, tags[1:]], own[:-1])
        on = jnp.sum(jnp.where(goes_on[tags[:-1]], edges, 0), axis=1)
        return tags, own, jnp.append(following, own[-1]), jnp.append(on, jnp.zeros((), own.dtype))

    return jax.vmap(row)(emissions, mask)


def joined_text(values: Sequence[str]) -> np.ndarray:
    """Words as an array of bytes, one line per word."""
    return np.frombuffer("\n".join(values).encode(), np.uint8)


def _strings(array: np.ndarray) -> list[str]:
    return array.tobytes().decode().split("\n") if len(array) else []
