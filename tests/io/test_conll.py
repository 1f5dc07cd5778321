"""Column files: what is read is what is there, and every malformed file is refused in one line that says where."""

import gzip
import time
import tracemalloc

import numpy as np
import pytest

from lnz.io import DataError, Sentences, _text_blocks, read_conll

TEXT = "the DT B-NP\ndog NN I-NP\nbarks VBZ B-VP\n\nquietly RB O\n. . O\n"
LINES = [
    ["the", "DT", "B-NP"],
    ["dog", "NN", "I-NP"],
    ["barks", "VBZ", "B-VP"],
    ["quietly", "RB", "O"],
    [".", ".", "O"],
]


def save(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(found):
    """The tokens' columns as lists."""
    return [list(row) for row in zip(*([c.values[i] for i in c.codes] for c in found.columns), strict=True)]


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        TEXT.removesuffix("\n"),
        TEXT + "\n\n\n",
        "\n \n" + TEXT,
        TEXT.replace("\n", "\r\n"),
        TEXT.replace(" ", "\t"),
        TEXT.replace(" ", "  \t") + " ",
        "\ufeff" + TEXT,
        "-DOCSTART- -X- O\n\n" + TEXT,
        TEXT.replace("\n\n", "\n\n-DOCSTART- -X- -X- O\n\n"),
        TEXT.replace("\n\n", "\n-DOCSTART-\n"),
        "# sent_id = 1\n# newdoc\n" + TEXT.replace("\n\n", "\n\n# text = x\n#\n"),
        "# y =\n" + TEXT,
    ],
)
def test_the_tokens_of_a_file(tmp_path, text):
    for path in (save(tmp_path / "x", text), save(tmp_path / "x.gz", gzip.compress(text.encode()))):
        found = read_conll(path)
        assert table(found) == LINES
        assert found.starts.tolist() == [0, 3, 5]
        assert found.lengths.tolist() == [3, 2]
        lines = text.removeprefix("\ufeff").split("\n")
        assert [lines[i - 1].split()[0] for i in found.lines] == [row[0] for row in LINES]


def test_a_hash_is_a_word_where_it_stands_like_one(tmp_path):
    found = read_conll(save(tmp_path / "x", "# # B-NP\n1 CD I-NP\n# # B-NP\n\n# # O\n"))
    assert table(found) == [["#", "#", "B-NP"], ["1", "CD", "I-NP"], ["#", "#", "B-NP"], ["#", "#", "O"]]
    assert found.starts.tolist() == [0, 3, 4]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 19])
def test_lines_that_lie_across_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr("lnz.io._text_blocks._BLOCK", block)
    path = save(tmp_path / "x", "\ufeff# a\n" + TEXT) if block > 2 else save(tmp_path / "x", TEXT)
    found = read_conll(path)
    assert table(found) == LINES
    assert found.starts.tolist() == [0, 3, 5]
    with pytest.raises(DataError, match=r"x: line 3: 'barks' has 1 column, "):
        read_conll(save(tmp_path / "x", TEXT.replace("barks VBZ B-VP", "barks")))


def test_spaces_that_are_no_ascii_belong_to_words(tmp_path):
    found = read_conll(save(tmp_path / "x", "10\u00a0000 CD\nl\u2028m NN\n"))
    assert table(found) == [["10\u00a0000", "CD"], ["l\u2028m", "NN"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty (0 bytes). Write it again"),
        (b"\n \n\n", "holds no tokens. Give a column file: a token a line, the word first"),
        (b"-DOCSTART- O\n# x\n", "holds no tokens"),
        (
            b"a b\nc d e\n",
            "line 2: 'c d e' has 3 columns, and the lines before have 2. Give every token the same columns",
        ),
        (b"a b\n\n\nc\n", "line 4: 'c' has 1 column, and the lines before have 2"),
        (b"a b\n# c d\n", "line 2: '# c d' has 3 columns"),
        (b"a b\nc \xff\n", "line 2: is not text in UTF-8. Save the file in that encoding"),
        (b"a b\nc d\n\0\0", "line 3: is not text. Give a column file, plain or gzipped"),
        ("a b\n".encode("utf-16"), "line 1: is not text"),
        (b"a b\n" + b"x" * 300_000, "line 2: is longer than 64 KiB. Give a column file, a token a line"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "the gzip file is cut short. Fetch or write it again"),
        (b"\x1f\x8bnonsense", "not a whole gzip file"),
    ],
    ids=range(12),
)
def test_files_that_are_refused(tmp_path, content, message):
    path = save(tmp_path / "x", content)
    with pytest.raises(DataError) as caught:
        read_conll(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_paths_that_are_no_files(tmp_path, name):
    with pytest.raises(DataError, match="Check the spelling"):
        read_conll(tmp_path / name)


def test_sentences_from_lists():
    found = Sentences.of([LINES[:3], [], LINES[3:]])
    assert table(found) == LINES
    assert found.starts.tolist() == [0, 3, 5]
    assert repr(found) == "Sentences(2 sentences, 5 tokens, 3 columns from the sentences)"
    again = found.take(np.asarray([1, 0, 1]))
    assert table(again) == [*LINES[3:], *LINES[:3], *LINES[3:]]
    assert again.starts.tolist() == [0, 2, 5, 7]
    assert again.columns[1].values == found.columns[1].values
    assert found.take(np.asarray([1])).columns[1].values == ["RB", "."]
    assert table(found.first_columns(1)) == [row[:1] for row in LINES]
    for bad in ([[("a b", "O")]], [[("", "O")]], [[()]]):
        with pytest.raises(DataError, match="a column is empty or holds white space"):
            Sentences.of(bad)
    with pytest.raises(DataError, match="line 2: 'b' has 1 column"):
        Sentences.of([[("a", "O"), ("b",)]])
    with pytest.raises(DataError, match="holds no tokens"):
        Sentences.of([])


def test_nine_thousand_sentences_in_little_time_and_memory(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.zipf(1.3, size=200_000) % 20_000]
    lines = [f"{word} T{i % 7} L{i % 3}\n" + "\n" * (i % 23 == 0) for i, word in enumerate(words)]
    path = save(tmp_path / "x.gz", gzip.compress("".join(lines).encode(), 1))
    began = time.process_time()
    found = read_conll(path)
    assert time.process_time() - began < 1.0  # 0.2 s where nothing else runs
    assert found.tokens == 200_000
    tracemalloc.start()
    read_conll(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # four numbers a token, the values, and a block


@pytest.mark.parametrize(
    "text",
    [
        "New York\tB-LOC\nLos Angeles\tB-LOC\n\nin\tO\n",
        "# text = New York\n-DOCSTART- O\nNew York\tB-LOC\r\nLos Angeles \tB-LOC\r\n \r\nin\tO",
        "\ufeff New York\t\tB-LOC\t\nLos Angeles\tB-LOC\n\n\nin\tO\n",
        "New York\tB-LOC\rLos Angeles\tB-LOC\r\rin\tO\r",
    ],
)
@pytest.mark.parametrize("block", [1 << 18, 5])
def test_words_with_spaces_between_tabs(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr("lnz.io._text_blocks._BLOCK", block)
    found = read_conll(save(tmp_path / "x", text))
    assert table(found) == [["New York", "B-LOC"], ["Los Angeles", "B-LOC"], ["in", "O"]]
    assert found.starts.tolist() == [0, 2, 3]


def test_one_line_without_a_tab_leaves_white_space_between_columns(tmp_path):
    assert table(read_conll(save(tmp_path / "x", "the DT\tB\ndog NN I\n"))) == [["the", "DT", "B"], ["dog", "NN", "I"]]
    with pytest.raises(DataError, match="line 2: 'in a row O' has 2 columns, and the lines before have 3"):
        read_conll(save(tmp_path / "x", "a\tb\tO\nin a row\tO\n"))


def test_carriage_returns_alone_end_lines(tmp_path):
    found = read_conll(save(tmp_path / "x", TEXT.replace("\n", "\r")))
    assert table(found) == LINES
    assert found.starts.tolist() == [0, 3, 5]
    assert found.lines.tolist() == [1, 2, 3, 5, 6]
    assert (
        table(read_conll(save(tmp_path / "x", TEXT.replace("DT", "DT\r")))) == LINES
    )  # white space where there are LF


def test_a_packed_file_of_more_text_than_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.txt.gz"
    path.write_bytes(gzip.compress(b"word TAG\n" * 2000))
    monkeypatch.setattr(_text_blocks, "_UNPACKED_LIMIT", 1000)
    with pytest.raises(DataError, match=r"unpacks to more than 0 GiB of text\. Use a smaller file"):
        read_conll(path)
