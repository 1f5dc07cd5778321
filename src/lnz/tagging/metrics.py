"""How good tags are: chunks found, tokens right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

_ENDS = ("E", "S")  # a tag after which a chunk never goes on
_BEGINS = ("B", "S")  # a tag that always begins one
_AFTER = ("E", "S", "O")  # after one of these, an I or E begins a chunk


class Chunks(NamedTuple):
    """Chunks of many sentences, in order.

    Attributes:
        starts: the first token of each, counted over all sentences, int64 (chunks,).
        ends: the last token of each.
        types: which type each has, an index into `names`.
        names: the types, such as NP; "_" where a tag has none.
    """

    starts: Int[np.ndarray, " chunks"]
    ends: Int[np.ndarray, " chunks"]
    types: Int[np.ndarray, " chunks"]
    names: list[str]


class ChunkScore(NamedTuple):
    """Precision, recall and F1 of chunks, as fractions (0 where nothing was found or is there), and the counts behind them."""

    precision: float
    recall: float
    f1: float
    right: int
    found: int
    there: int


def is_chunking(labels: Sequence[str]) -> bool:
    """Whether labels are chunk tags: O, or B, I, E or S alone or before a type, and not O alone."""
    begins = [label for label in labels if label != "O"]
    return bool(begins) and all(label[:1] in ("B", "I", "E", "S") and label[1:2] in ("", "-") for label in begins)


def chunks(tags: Int[np.ndarray, " tokens"], labels: Sequence[str], starts: Int[np.ndarray, " sentences+1"]) -> Chunks:
    """The chunks of tags, by seqeval's rule, which is that of conlleval: lenient, so that an I which follows nothing of its type begins one.

    A chunk begins at B or S, at I or E after O, E or S, and wherever the type changes. It ends before B, S or O, after E or S, and
    wherever the type changes; and with its sentence.

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
    prefix = np.asarray([label[:1] for label in labels])
    kinds = [label[1:].split("-", 1)[-1] or "_" for label in labels]
    names = list(dict.fromkeys(kind for kind, label in zip(kinds, labels, strict=True) if label != "O"))
    numbers = {name: i for i, name in enumerate(["_", *(name for name in names if name != "_")])}
    kind = np.asarray([numbers[name] if label != "O" else 0 for name, label in zip(kinds, labels, strict=True)], int)
    # one O after every sentence, so that no chunk goes beyond it
    sentences = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    at = np.arange(len(tags)) + sentences
    size = len(tags) + len(starts) - 1
    prefixes, types = np.full(size, "O"), np.zeros(size, int)
    prefixes[at], types[at] = prefix[tags], kind[tags]
    token = np.zeros(size, np.int64)
    token[at] = np.arange(len(tags))
    before, type_before = np.append("O", prefixes[:-1]), np.append(0, types[:-1])
    changed = types != type_before
    outside, outside_before = np.isin(prefixes, ("O", ".")), np.isin(before, ("O", "."))
    ends = np.isin(before, _ENDS) | (np.isin(before, ("B", "I")) & np.isin(prefixes, ("B", "S", "O")))
    ends |= ~outside_before & changed
    begins = np.isin(prefixes, _BEGINS) | (np.isin(before, _AFTER) & np.isin(prefixes, ("I", "E")))
    begins |= ~outside & changed
    latest = np.maximum.accumulate(np.where(begins, np.arange(size), 0))
    last = np.flatnonzero(ends) - 1
    order = [names.index(name) if name in names else -1 for name in numbers]
    return Chunks(token[latest[last]], token[last], np.asarray(order, int)[types[last]], names)


def chunk_score(
    found: Int[np.ndarray, " tokens"],
    there: Int[np.ndarray, " tokens"],
    labels: Sequence[str],
    starts: Int[np.ndarray, " sentences+1"],
) -> ChunkScore:
    """F1 of the chunks found, over all types and sentences: a chunk is right where its first token, its last and its type are.

        F1 = 2 P R / (P + R), P = right / found, R = right / there.

    Args as those of `chunks`.

    Example:
        >>> import numpy as np
        >>> labels, starts = ["B-NP", "I-NP", "O"], np.asarray([0, 4])
        >>> chunk_score(np.asarray([0, 2, 0, 1]), np.asarray([0, 1, 0, 1]), labels, starts).f1
        0.5
    """
    mine, true = (chunks(tags, labels, starts) for tags in (found, there))
    size = np.int64(len(found) + 1)
    keys = [(part.types * size + part.starts) * size + part.ends for part in (mine, true)]
    right = len(np.intersect1d(*keys))
    precision, recall = (right / len(key) if len(key) else 0.0 for key in keys)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return ChunkScore(precision, recall, f1, right, len(keys[0]), len(keys[1]))
