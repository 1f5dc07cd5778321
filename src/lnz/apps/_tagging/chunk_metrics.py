"""Metrics of tags: chunks, and their precision, recall and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Chunks(NamedTuple):
    """Chunks of many sentences, in order.

    Attributes:
        starts: the first token of each chunk, counted over all sentences, int64 (chunks,).
        ends: the last token of each chunk.
        types: the type of each chunk, an index into `names`.
        names: the types, such as NP; "_" for tags without a type.
    """

    starts: Int[np.ndarray, " chunks"]
    ends: Int[np.ndarray, " chunks"]
    types: Int[np.ndarray, " chunks"]
    names: list[str]


class ChunkScore(NamedTuple):
    """Precision, recall and F1 of chunks, as fractions (0 where there are no predicted or no true chunks), and the counts behind them."""

    precision: float
    recall: float
    f1: float
    right: int
    found: int
    there: int


_SAME = {"L": "E", "U": "S"}  # the letters of BILOU, and those of IOBES that mean the same


def is_chunking(labels: Sequence[str]) -> bool:
    """Whether labels are chunk tags: O, or B, I, E, S, L or U alone or before a type, but not only O."""
    begins = [label for label in labels if label != "O"]
    return bool(begins) and all(
        label[:1] in ("B", "I", *_SAME.values(), *_SAME) and label[1:2] in ("", "-") for label in begins
    )


def chunks(tags: Int[np.ndarray, " tokens"], labels: Sequence[str], starts: Int[np.ndarray, " ends"]) -> Chunks:
    """The chunks of tags by the lenient rule of seqeval and conlleval, where an I without a chunk of its type before it begins one.

    A chunk begins at B or S, at I or E after O, E or S, and wherever the type changes. It ends before B, S or O, after E or S, and
    wherever the type changes, and with its sentence. The last (L) and unit (U) of BILOU count as E and S, as in seqeval's scheme of that name; its
    lenient rule does not know them, and would join two adjacent units into one chunk.

    Args:
        tags: the label of every token, as an index into `labels`.
        labels: such as B-NP, I-NP, O.
        starts: where each sentence starts, and at the end the number of tokens.

    Example:
        >>> import numpy as np
        >>> found = chunks(np.asarray([0, 1, 2, 1]), ["B-NP", "I-NP", "O"], np.asarray([0, 4]))
        >>> found.starts.tolist(), found.ends.tolist(), found.names
        ([0, 3], [1, 3], ['NP'])

    Source: Nakayama 2018, seqeval; Tjong Kim Sang and Buchholz 2000, conlleval.
    """
    rules = _rules(labels)
    # an O after every sentence, so that no chunk goes beyond it
    at = np.arange(len(tags)) + np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    size = len(tags) + len(starts) - 1
    now, token = np.full(size, len(labels)), np.zeros(size, np.int64)
    now[at], token[at] = tags, np.arange(len(tags))
    before = np.append(len(labels), now[:-1])
    latest = np.maximum.accumulate(np.where(rules.begins[before, now], np.arange(size), 0))
    last = np.flatnonzero(rules.ends[before, now]) - 1
    return Chunks(token[latest[last]], token[last], rules.types[now[last]], rules.names)


def continues(labels: Sequence[str]) -> Bool[np.ndarray, "labels labels"]:
    """Whether a tag `[, j]` that follows a tag `[i, ]` continues its chunk."""
    rules = _rules(labels)
    inside = rules.types >= 0
    return (~rules.ends & ~rules.begins & inside[:, None] & inside)[:-1, :-1]


class _Rules(NamedTuple):
    """For all pairs of a tag and the next one (O is the last index): whether a chunk ends between them, and whether one begins at the second."""

    ends: Bool[np.ndarray, "labels+1 labels+1"]
    begins: Bool[np.ndarray, "labels+1 labels+1"]
    types: Int[np.ndarray, " labels+1"]  # of every tag, an index into the names; -1 of O
    names: list[str]


def _rules(labels: Sequence[str]) -> _Rules:
    tags = [*labels, "O"]
    letter = np.asarray([_SAME.get(tag[:1], tag[:1]) for tag in tags])
    kinds = [tag[1:].split("-", 1)[-1] or "_" for tag in tags]
    outside = np.isin(letter, ("O", "."))
    names = list(dict.fromkeys(kind for kind, out in zip(kinds, outside, strict=True) if not out))
    types = np.asarray([-1 if out else names.index(kind) for kind, out in zip(kinds, outside, strict=True)])
    kind = np.asarray(kinds)
    before, now = letter[:, None], letter[None]
    changed = kind[:, None] != kind
    ends = np.isin(before, ("E", "S")) | (np.isin(before, ("B", "I")) & np.isin(now, ("B", "S", "O")))
    begins = np.isin(now, ("B", "S")) | (np.isin(before, ("E", "S", "O")) & np.isin(now, ("I", "E")))
    return _Rules(ends | (~outside[:, None] & changed), begins | (~outside & changed), types, names)


def chunk_score(
    found: Int[np.ndarray, " tokens"],
    there: Int[np.ndarray, " tokens"],
    labels: Sequence[str],
    starts: Int[np.ndarray, " ends"],
) -> ChunkScore:
    """F1 of predicted chunks over all types and sentences; a chunk is right where its first token, last token and type are.

        F1 = 2 P R / (P + R), P = right / found, R = right / there.

    The arguments are those of `chunks`.

    Example:
        >>> import numpy as np
        >>> labels, starts = ["B-NP", "I-NP", "O"], np.asarray([0, 4])
        >>> chunk_score(np.asarray([0, 2, 0, 1]), np.asarray([0, 1, 0, 1]), labels, starts).f1
        0.5
    """
    mine, true = (chunks(tags, labels, starts) for tags in (found, there))
    size = np.int64(len(found) + 1)
    keys = [(part.types * size + part.starts) * size + part.ends for part in (mine, true)]
    right = len(np.intersect1d(keys[0], keys[1], assume_unique=True))
    precision, recall = (right / len(key) if len(key) else 0.0 for key in keys)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return ChunkScore(precision, recall, f1, right, len(keys[0]), len(keys[1]))
