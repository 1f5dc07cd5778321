"""Features of a window, chunks, and packed rows: against plain loops and cases worked by hand."""

import itertools

import numpy as np
import pytest

import lnz
from lnz.apps._tagging.chunk_metrics import chunks, continues, is_chunking
from lnz.apps._tagging.features import FeatureMap, default_templates, parse, reference_templates, shape
from lnz.apps._tagging.packing import pack
from lnz.io import DataError, Sentences

TEXT = Sentences.of(
    [
        [("The", "D", "B"), ("dog", "N", "I"), ("The", "D", "B")],
        [("42.5", "C", "O")],
        [("dog", "N", "B"), ("McDog's", "N", "I")],
    ]
)


def seen(sentences, template, boundary=True):
    """The feature of every token as text, found token by token; None where there is none."""
    values = [[c.values[i] for i in c.codes] for c in sentences.columns]
    found = []
    for a, b in itertools.pairwise(sentences.starts.tolist()):
        for t in range(a, b):
            texts = []
            for part in parse(template):
                at, name = t + part.offset, part.attribute
                if not a <= at < b:
                    texts.append("<boundary>" if boundary or " " not in template else None)
                    continue
                word = values[0][at]
                n = int(name[-1]) if name[-1].isdigit() else 0
                kinds = {
                    "word": word,
                    "lower": word.lower(),
                    "shape": shape(word),
                    "kind": shape(word, runs=False),
                    f"prefix{n}": word[:n] if len(word) > n else None,
                    f"suffix{n}": word[-n:] if len(word) > n else None,
                    f"column{n}": values[n][at] if n < len(values) else None,
                }
                texts.append(kinds[name])
            parts = template.split()
            found.append(
                None
                if None in texts
                else " ".join(
                    f"{p[: p.index('[')]}[{int(p[p.index('[') + 1 : -1])}]={x}"
                    for p, x in zip(parts, texts, strict=True)
                )
            )
    return found


def read_back(features, sentences):
    """The same from the feature map: one list a template."""
    ids = features.ids(sentences)
    assert ids.dtype == np.int32
    assert ids.shape == (sentences.tokens, len(features.templates))
    return [[None if i == features.count else features.words(int(i)) for i in column] for column in ids.T]


@pytest.mark.parametrize("boundary", [True, False])
def test_features_are_those_of_a_plain_loop(boundary):
    templates = [*default_templates(2), "kind[0] column1[-1] lower[2]", "shape[1] word[-2]"]
    features = FeatureMap.fit(TEXT.first_columns(2), templates, boundary=boundary)
    other = Sentences.of([[("dog", "D"), ("The", "N"), ("cat", "N")], [("The", "X")]])
    for sentences in (TEXT, other):
        for template, found in zip(templates, read_back(features, sentences), strict=True):
            known = set(seen(TEXT, template, boundary)) - {None}
            assert found == [x if x in known else None for x in seen(sentences, template, boundary)], template
    distinct = sum(len(set(seen(TEXT, template, boundary)) - {None}) for template in templates)
    assert features.count == distinct


def test_rare_features_are_left_out():
    features = FeatureMap.fit(TEXT.first_columns(1), ["word[0]", "word[-1] word[0]"], min_count=2)
    assert [features.words(i) for i in range(features.count)] == ["word[0]=The", "word[0]=dog"]


def test_many_combinations_are_searched_and_few_are_tabled(monkeypatch):
    sentences = TEXT.first_columns(2)
    tabled = FeatureMap.fit(sentences, default_templates(2)).ids(TEXT)
    monkeypatch.setattr("lnz.apps._tagging.features._DENSE", 0)
    np.testing.assert_array_equal(FeatureMap.fit(sentences, default_templates(2)).ids(TEXT), tabled)
    assert FeatureMap.fit(sentences, ["word[0]"], min_count=9).ids(TEXT).tolist() == [[0]] * 6


def test_shapes():
    assert [shape(w) for w in ("NATO", "McDonald's", "1,024", "…", "Ü3")] == ["X", "XxXx'x", "9,9", "…", "X9"]
    assert shape("1,024", runs=False) == "9,999"


def test_the_reference_templates():
    assert len(reference_templates(2)) == 7 + 12  # words and bigrams; 5 + 4 + 3 of the part of speech
    assert "column1[-2] column1[-1] column1[0]" in reference_templates(2)
    assert len(reference_templates(1)) == 7


@pytest.mark.parametrize(
    "template", ["word", "word[x]", "column0[0]", "prefix0[0]", "wörd[0]", "", "word[0] word[1] word[2] word[3]"]
)
def test_templates_that_cannot_be_read(template):
    with pytest.raises(ValueError, match="template"):
        FeatureMap.fit(TEXT, [template])


def test_columns_that_are_not_there():
    with pytest.raises(DataError, match="the features need column3, but there are 2 columns between"):
        FeatureMap.fit(TEXT, ["column3[0]"])
    with pytest.raises(DataError, match="its sentences have 1 of the 3 columns that the features need"):
        FeatureMap.fit(TEXT, ["word[0]"]).ids(TEXT.first_columns(1))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-NP I-NP O B-VP", ["NP 0 1", "VP 3 3"]),
        ("I-NP I-NP O I-VP", ["NP 0 1", "VP 3 3"]),  # an I that follows nothing of its type begins a chunk
        ("B-NP B-NP I-VP I-NP", ["NP 0 0", "NP 1 1", "VP 2 2", "NP 3 3"]),
        ("B-NP E-NP S-NP E-NP", ["NP 0 1", "NP 2 2", "NP 3 3"]),
        ("B-NP E-NP I-NP I-NP", ["NP 0 1", "NP 2 3"]),
        ("B I O B", ["_ 0 1", "_ 3 3"]),
        ("B-a-b I-a-b I-a O", ["a-b 0 1", "a 2 2"]),
        ("O O", []),
    ],
)
def test_chunks_worked_by_hand(tags, found):
    tags = tags.split()
    labels = sorted(set(tags))
    parts = chunks(np.asarray([labels.index(t) for t in tags]), labels, np.asarray([0, len(tags)]))
    assert [f"{parts.names[k]} {a} {b}" for a, b, k in zip(*parts[:3], strict=True)] == found


def test_no_chunk_goes_beyond_its_sentence():
    parts = chunks(np.asarray([0, 1, 1, 1]), ["B-X", "I-X"], np.asarray([0, 2, 2, 4]))
    assert (parts.starts.tolist(), parts.ends.tolist()) == ([0, 2], [1, 3])


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("U-X U-X O", [(0, 0), (1, 1)]),
        ("B-X L-X U-X B-X I-X L-X", [(0, 1), (2, 2), (3, 5)]),
        ("L-X I-X U-Y U-X", [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("O L-X L-X B-X B-X L-X", [(1, 1), (2, 2), (3, 3), (4, 5)]),
    ],
)
def test_chunks_of_bilou_are_those_of_iobes(tags, spans):
    """By seqeval's scheme BILOU; its lenient rule would join two units side by side."""
    for text in (tags, tags.replace("L-", "E-").replace("U-", "S-")):
        labels = sorted(set(text.split()))
        coded = np.asarray([labels.index(tag) for tag in text.split()])
        found = chunks(coded, labels, np.asarray([0, len(coded)]))
        assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == spans
        assert is_chunking(labels)


def test_f1_of_chunks():
    labels, starts = ["B-X", "I-X", "B-Y", "O"], np.asarray([0, 3, 6])
    there = np.asarray([0, 1, 3, 2, 3, 0])  # X 0-1, Y 3, X 5
    found = np.asarray([0, 1, 1, 2, 0, 0])  # X 0-2, Y 3, X 4, X 5
    score = lnz.apps.chunk_score(found, there, labels, starts)
    assert (score.right, score.found, score.there) == (2, 4, 3)
    assert score.f1 == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    outside = np.full(6, 3)
    assert lnz.apps.chunk_score(outside, there, labels, starts).f1 == 0
    assert lnz.apps.chunk_score(outside, outside, labels, starts) == (0, 0, 0, 0, 0, 0)


def test_which_tags_go_on_with_a_chunk():
    labels = ["B-X", "I-X", "I-Y", "O", "E-X"]
    assert np.argwhere(continues(labels)).tolist() == [[0, 1], [0, 4], [1, 1], [1, 4], [2, 2]]


def test_which_labels_are_those_of_chunks():
    assert is_chunking(["B-NP", "O", "I-NP"])
    assert is_chunking(["B", "I"])
    assert not is_chunking(["NN", "IN", "O"])
    assert not is_chunking(["O"])


@pytest.mark.parametrize("seed", range(5))
def test_packed_sentences_do_not_touch(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, size=rng.integers(1, 40))
    starts = np.append(0, np.cumsum(lengths))
    packed = pack(starts, rows=4, length=16)
    assert len(np.unique(packed.place)) == starts[-1]
    length = packed.mask.shape[2]
    row, column = np.divmod(packed.place, length)
    at = np.split(np.arange(starts[-1]), starts[1:-1])
    for tokens in at:
        assert len(np.unique(row[tokens])) <= 1
        assert (np.diff(column[tokens]) == 1).all()
    first = {(row[t[0]], column[t[0]]) for t in at if len(t)}
    for r, c in zip(row, column, strict=True):
        assert c == 0 or not packed.mask.reshape(-1, length)[r, c - 1] or (r, c) not in first
    assert length >= lengths.max() + 1
    np.testing.assert_array_equal(packed.gather(packed.spread(np.arange(starts[-1]))), np.arange(starts[-1]))


def test_rows_are_filled():
    lengths = np.random.default_rng(0).integers(1, 60, size=4000)
    packed = pack(np.append(0, np.cumsum(lengths)))
    assert packed.mask.shape[1:] == (64, 128)
    rows = packed.mask.reshape(-1, 128).any(axis=1).sum()
    assert (lengths + 1).sum() > 0.99 * rows * 128
