"""Sparse features of a window of tokens, as feature ids for an embedding bag."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lnz.io._conll import Column, Sentences
from lnz.io._data import DataError

NONE, BOUNDARY, _FIRST = 0, 1, 2  # symbols: unknown or missing; beyond the sentence; the first observed value
_DENSE = 1 << 22  # largest size of a table from keys to feature ids; larger sets of keys are searched
_PART = re.compile(r"(word|lower|shape|kind|prefix([1-9])|suffix([1-9])|column([1-9]\d?))\[([+-]?\d)\]")


class Part(NamedTuple):
    """An attribute of the token at an offset."""

    attribute: str
    offset: int


def parse(template: str) -> tuple[Part, ...]:
    """The parts of a template such as "word[-1] word[0]".

    An attribute is `word`, `lower` (in lower case), `shape` (Xx9: runs of capitals, small letters and digits), `kind` (the same,
    every character for itself), `prefixN` and `suffixN` (N characters; none of words that are not longer), or `columnN` (N = 1 is
    the first column behind the word).

    Raises:
        ValueError: where a part is none of these.
    """
    parts = []
    for text in template.split():
        found = _PART.fullmatch(text)
        if found is None:
            raise ValueError(
                f"{text!r} in the template {template!r} is not an attribute with an offset. Write, for example, word[-1], suffix3[0] or column1[+1]"
            )
        parts.append(Part(found[1], int(found[5])))
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"the template {template!r} has {len(parts)} parts. Give one to three")
    return tuple(parts)


def reference_templates(columns: int) -> list[str]:
    """Words -2 … 2, word bigrams, and of every column between the word and the label single values, bigrams and trigrams within -2 … 2."""
    templates = [f"word[{i}]" for i in range(-2, 3)] + ["word[-1] word[0]", "word[0] word[1]"]
    for c in range(1, columns):
        at = [f"column{c}[{i}]" for i in range(-2, 3)]
        templates += [" ".join(at[i : i + n]) for n in (1, 2, 3) for i in range(6 - n)]
    return templates


def default_templates(columns: int) -> list[str]:
    """The reference templates with prefixes, suffixes and shapes."""
    affixes = [f"{side}{n}[0]" for side in ("prefix", "suffix") for n in range(1, 5)]
    near = [f"{name}[{i}]" for name in ("suffix3", "shape") for i in (-1, 1)]
    return [*reference_templates(columns), "lower[0]", "shape[0]", *affixes, *near]


def shape(word: str, *, runs: bool = True) -> str:
    """The shape of a word: X for capitals, x for small letters, 9 for digits, other characters unchanged, runs of one kind once.

    Example:
        >>> shape("McDonald's"), shape("1,024"), shape("1,024", runs=False)
        ("XxXx'x", '9,9', '9,999')
    """
    kinds = "".join("X" if c.isupper() else "x" if c.isalpha() else "9" if c.isdigit() else c for c in word)
    return re.sub(r"(.)\1+", r"\1", kinds) if runs else kinds


def _attribute(name: str) -> tuple[int, Callable[[str], str | None]]:
    """The column of an attribute, and the function from a value of the column to the attribute's value, or to None where it has none."""
    if name.startswith("column"):
        return int(name.removeprefix("column")), str
    n = int(name[-1]) if name[-1].isdigit() else 0
    if name.startswith("prefix"):
        return 0, lambda word: word[:n] if len(word) > n else None
    if name.startswith("suffix"):
        return 0, lambda word: word[-n:] if len(word) > n else None
    return 0, {"word": str, "lower": str.lower, "shape": shape, "kind": functools.partial(shape, runs=False)}[name]


class FeatureMap:
    """The map from sentences to feature ids: for every template, the combinations of values that occurred in training.

    Attributes:
        templates: templates such as "word[-1] word[0]"; see `parse`.
        columns: number of columns of the sentences, the label not counted.
        symbols: the observed values of each attribute; their symbols count from 2.
        keys: the combinations of symbols of each template that are features, sorted, int64.
        boundary: whether a position beyond the sentence is a symbol in templates of several parts; in those of one part it always is.

    The features of a template have consecutive ids, in the order of its keys; the id `count` means no feature.
    """

    def __init__(
        self,
        templates: Sequence[str],
        columns: int,
        symbols: dict[str, list[str]],
        keys: Sequence[Int[np.ndarray, " features"]],
        *,
        boundary: bool = True,
    ):
        self.templates = list(templates)
        self.columns = columns
        self.symbols = symbols
        self.keys, self.boundary = list(keys), boundary
        self._parts = [parse(template) for template in self.templates]
        self._numbers: dict[str, dict[str | None, int]] = {
            name: {value: i for i, value in enumerate(values, _FIRST)} for name, values in symbols.items()
        }
        self._offsets = np.cumsum([0, *map(len, self.keys)]).tolist()
        self._lookups = [self._lookup(i) for i in range(len(self.keys))]

    @classmethod
    def fit(
        cls, sentences: Sentences, templates: Sequence[str] | None = None, *, min_count: int = 1, boundary: bool = True
    ) -> FeatureMap:
        """The features with at least `min_count` occurrences in sentences without labels.

        Raises:
            DataError: a template that names a missing column.
            ValueError: a template that cannot be parsed, or no template.
        """
        width = len(sentences.columns)
        templates = default_templates(width) if templates is None else list(templates)
        if not templates or min_count < 1:
            raise ValueError("features need at least one template and a min_count of at least 1")
        parts = [part for template in templates for part in parse(template)]
        names = dict.fromkeys(part.attribute for part in parts)
        symbols = {}
        for name in names:
            column, value = _attribute(name)
            if column >= width:
                raise DataError(
                    f"{sentences.source}: the features need {name}, but there are {width - 1} columns between the word and the label. "
                    "Leave such features out"
                )
            found = dict.fromkeys(map(value, sentences.columns[column].values))
            symbols[name] = [text for text in found if text is not None]
        empty = np.empty(0, np.int64)
        features = cls(templates, width, symbols, [empty] * len(templates), boundary=boundary)
        for i, key in enumerate(features._keys(sentences)):
            found, counts = np.unique(key, return_counts=True)
            features.keys[i] = found[(counts >= min_count) & (found >= 0)]
        return cls(templates, width, symbols, features.keys, boundary=boundary)

    @property
    def count(self) -> int:
        """The number of features."""
        return self._offsets[-1]

    def ids(self, sentences: Sentences) -> Int[np.ndarray, "tokens slots"]:
        """The features of every token, int32: one slot per template, `count` where a token has no feature of it.

        Raises:
            DataError: where the sentences have fewer columns than the training sentences.
        """
        if len(sentences.columns) < self.columns:
            raise DataError(
                f"{sentences.source}: its sentences have {len(sentences.columns)} of the {self.columns} columns that the features need. Add "
                "the missing columns, in the order of the training file"
            )
        ids = np.empty((sentences.tokens, len(self.templates)), np.int32)
        for slot, (key, lookup) in enumerate(zip(self._keys(sentences), self._lookups, strict=True)):
            ids[:, slot] = lookup(key)
        return ids

    def words(self, feature: int) -> str:
        """The text of a feature, such as "word[-1]=the word[0]=dog"."""
        template = int(np.searchsorted(self._offsets, feature, side="right")) - 1
        key, texts = int(self.keys[template][feature - self._offsets[template]]), []
        for part in reversed(self._parts[template]):
            values = self.symbols[part.attribute]
            key, symbol = divmod(key, len(values) + _FIRST)
            text = "<none>" if symbol == NONE else "<boundary>" if symbol == BOUNDARY else values[symbol - _FIRST]
            texts.append(f"{part.attribute}[{part.offset}]={text}")
        return " ".join(reversed(texts))

    def _sizes(self, template: int) -> list[int]:
        return [len(self.symbols[part.attribute]) + _FIRST for part in self._parts[template]]

    def _keys(self, sentences: Sentences) -> Any:
        """The key of every token for each template: its symbols as the digits of one number; -1 where one is missing."""
        symbols = {name: self._symbols(name, sentences.columns) for name in self.symbols}
        where = np.arange(sentences.tokens)
        first = np.repeat(sentences.starts[:-1], sentences.lengths)
        last = np.repeat(sentences.starts[1:], sentences.lengths)
        seen: dict[Part, np.ndarray] = {}

        def at(part: Part) -> np.ndarray:
            if part not in seen:
                place = where + part.offset
                inside = (place >= first) & (place < last)
                seen[part] = np.where(inside, symbols[part.attribute][np.clip(place, 0, len(where) - 1)], BOUNDARY)
            return seen[part]

        for template, parts in enumerate(self._parts):
            key, missing = np.zeros(len(where), np.int64), np.zeros(len(where), bool)
            least = BOUNDARY if self.boundary or len(parts) == 1 else _FIRST
            for part, size in zip(parts, self._sizes(template), strict=True):
                key = key * size + at(part)
                missing |= at(part) < least
            key[missing] = -1
            yield key

    def _symbols(self, name: str, columns: Sequence[Column]) -> Int[np.ndarray, " tokens"]:
        """The symbol of an attribute for every token, computed once for each different value of the column."""
        column, value = _attribute(name)
        numbers = self._numbers[name]
        codes, values = columns[column]
        table = np.fromiter((numbers.get(value(text), NONE) for text in values), np.int32, len(values))
        return table[codes]

    def _lookup(self, template: int) -> Callable[[np.ndarray], np.ndarray]:
        """The ids of keys. A key of -1 indexes the last entry of a table, which belongs to no key."""
        keys, start, none = self.keys[template], self._offsets[template], self.count
        size = 1
        for factor in self._sizes(template):
            size *= factor
        if size >= 1 << 63:
            raise DataError(f"the template {self.templates[template]!r} has too many combinations. Give it fewer parts")
        if size <= _DENSE:
            table = np.full(size + 1, none, np.int32)
            table[keys] = np.arange(start, start + len(keys), dtype=np.int32)
            return lambda key: table[key]
        if len(keys) == 0:
            return lambda key: np.full(len(key), none, np.int32)

        def search(key: np.ndarray) -> np.ndarray:
            at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            return np.where(keys[at] == key, start + at, none)

        return search
