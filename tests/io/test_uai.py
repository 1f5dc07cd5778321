"""UAI files: what is read is what was written, and every malformed file is refused at once, in one line that says where."""

import gzip
import math
import time
import tracemalloc

import jax
import numpy as np
import pytest

import lnz
from lnz.io import (
    DataError,
    WriteError,
    read_uai,
    read_uai_evidence,
    read_uai_mar,
    read_uai_pr,
    write_uai,
    write_uai_evidence,
    write_uai_mar,
    write_uai_pr,
)
from lnz.io._uai import read_uai_model

MODEL = """MARKOV
3
2 3 2
4
1 0
2 0 1
2 2 1
0

2
 0.5 2.5

6
 1 2 3
 4 0 6e-1

6 1 1 1 2 2 2
1
 1.5
"""
MODELS = {
    "markov": MODEL,
    "bayes": "BAYES 2 2 2 2 1 0 2 0 1 2 0.25 0.75 4 1 0 .5 .5",
    "one": "MARKOV\n1\n1\n0\n",
    "wide": "MARKOV 4 1 2 1 3 1 4 3 0 1 2 6 1 0 2 0 3 0",
}


def save(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def random_graph(seed):
    rng = np.random.default_rng(seed)
    cardinalities = rng.integers(1, 5, rng.integers(1, 7)).tolist()
    scopes = [
        tuple(rng.permutation(len(cardinalities))[: rng.integers(0, 1 + min(4, len(cardinalities)))].tolist())
        for _ in range(rng.integers(0, 6))
    ]
    tables = [10 * rng.normal(size=[cardinalities[i] for i in scope]) for scope in scopes]
    return lnz.FactorGraph(cardinalities, scopes, [np.where(rng.random(t.shape) < 0.2, -np.inf, t) for t in tables])


def test_a_model_as_it_stands_in_its_file(tmp_path):
    model = read_uai_model(save(tmp_path / "x.uai", MODEL))
    assert model.kind == "MARKOV"
    assert model.cardinalities == [2, 3, 2]
    assert model.scopes == [(0,), (0, 1), (2, 1), ()]
    np.testing.assert_array_equal(model.tables[1], [[1, 2, 3], [4, 0, 0.6]])
    np.testing.assert_array_equal(model.tables[2], [[1, 1, 1], [2, 2, 2]])
    assert model.tables[3].shape == ()
    assert float(model.tables[3]) == 1.5


def test_the_graph_holds_logarithms_and_minus_infinity(tmp_path):
    graph = read_uai(save(tmp_path / "x.uai", MODEL))
    assert graph.scopes == ((0,), (0, 1), (2, 1), ())
    np.testing.assert_array_equal(graph.tables[1][1], np.asarray([math.log(4), -math.inf, math.log(0.6)]))
    energy = float(graph(np.asarray([1, 2, 0])))
    assert energy == pytest.approx(-math.log(2.5 * 0.6 * 1 * 1.5))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\t \n\n", " "])
def test_white_space_does_not_matter(tmp_path, line_end):
    model = read_uai_model(save(tmp_path / "x.uai", line_end + MODEL.replace("\n", line_end).rstrip()))
    np.testing.assert_array_equal(model.tables[1], [[1, 2, 3], [4, 0, 0.6]])


def test_gzip_is_seen_by_its_first_bytes(tmp_path):
    packed = gzip.compress(MODEL.encode(), mtime=0)
    for name in ("x.uai.gz", "x.uai"):
        assert read_uai_model(save(tmp_path / name, packed)).cardinalities == [2, 3, 2]
    assert read_uai_evidence(save(tmp_path / "e.gz", gzip.compress(b"1 2 1", mtime=0))) == {2: 1}


def test_words_that_lie_across_two_blocks(tmp_path, monkeypatch):
    for block in (1, 2, 3, 7, 64):
        monkeypatch.setattr("lnz.io._text_blocks._BLOCK", block)
        text = MODEL if block >= 6 else MODEL.removeprefix("MARKOV\n")
        path = save(tmp_path / "x.txt", text)
        if block >= 6:
            np.testing.assert_array_equal(read_uai_model(path).tables[1], [[1, 2, 3], [4, 0, 0.6]])
        with lnz.io._words.Numbers(path, ("MARKOV",) if block >= 6 else ()) as numbers:
            np.testing.assert_array_equal(numbers.rest(), np.asarray(MODEL.split()[1:], float))
            message = str(numbers.error(19, "bad. Correct it"))
        assert message == f"{path}: line {14 - (block < 6)}, word 2: bad. Correct it"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("seed", range(20))
def test_a_graph_survives_being_written(tmp_path, seed, suffix):
    graph = random_graph(seed)
    write_uai(tmp_path / f"x.uai{suffix}", graph)
    back = read_uai(tmp_path / f"x.uai{suffix}")
    assert (back.cardinalities, back.scopes) == (graph.cardinalities, graph.scopes)
    np.testing.assert_allclose(back.log_potentials, graph.log_potentials, rtol=1e-13, atol=1e-15)


def test_shared_tables_are_written_for_each_factor(tmp_path):
    graph = lnz.FactorGraph([2, 2, 2], [(0, 1), (1, 2)], [np.log([[1.0, 2.0], [3.0, 4.0]])], table_of=[0, 0])
    write_uai(tmp_path / "x.uai", graph)
    first, second = read_uai_model(tmp_path / "x.uai").tables
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(second, [[1, 2], [3, 4]])


@pytest.mark.parametrize("log", [710.0, -750.0])
def test_a_potential_that_no_float_holds_is_not_written(tmp_path, log):
    graph = lnz.FactorGraph([2], [(0,)], [np.asarray([0.0, log])])
    with pytest.raises(ValueError, match=f"the table of factor 0 holds the log-potential {log:g}, whose exponential"):
        write_uai(tmp_path / "x.uai", graph)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WriteError, match="its folder does not exist"):
        write_uai_pr(tmp_path / "none" / "x.PR", 1.0)


# Evidence


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("2 0 1 2 0", {0: 1, 2: 0}),
        ("1\n2 0 1 2 0\n", {0: 1, 2: 0}),
        ("0", {}),
        ("0\n", {}),
        ("1\n0\n", {}),
        ("1 1 1", {1: 1}),
        ("1 1 1 1", {1: 1}),
        ("\n 1\t7\r\n 3", {7: 3}),
    ],
)
def test_both_dialects_of_evidence(tmp_path, text, evidence):
    assert read_uai_evidence(save(tmp_path / "x.evid", text)) == evidence


def test_evidence_that_was_written(tmp_path):
    for evidence in ({}, {4: 0}, {3: 1, 0: 12}):
        write_uai_evidence(tmp_path / "x.evid", evidence)
        assert read_uai_evidence(tmp_path / "x.evid") == evidence
    with pytest.raises(ValueError, match=r"0: -1 are not integers"):
        write_uai_evidence(tmp_path / "x.evid", {0: -1})


def test_evidence_leaves_one_value_of_a_variable(tmp_path):
    path = save(tmp_path / "x.uai", MODEL)
    save(tmp_path / "x.uai.evid", "1 0 1")
    assert read_uai(path).cardinalities == (2, 3, 2)  # the file beside it is not read unless it is named
    wanted = read_uai(path).evidence({0: 1, 1: 2})
    for evidence in ({0: 1, 1: 2}, save(tmp_path / "e", "1 2 0 1 1 2")):
        found = read_uai(path, evidence=evidence)
        assert found.cardinalities == wanted.cardinalities == (1, 1, 2)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        np.testing.assert_array_equal(found.log_potentials, wanted.log_potentials)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2 0 1",
            "line 1, word 1: declares 2 observations, but 2 numbers follow. Write a variable and a value for each",
        ),
        ("1 0 1 7 7", "line 1, word 1: declares 1 observations, but 4 numbers follow"),
        ("2\n1 0 1\n1 2 0", "line 1, word 1: holds 2 samples of evidence. Give a file for each"),
        ("1\n0 -1", "line 2, word 2: -1 is not an integer"),
        ("1 0.5 1", "line 1, word 2: 0.5 is not an integer"),
        ("2 0 1\n0 1", "line 2, word 1: variable 0 is observed twice"),
        ("1 3 0", "line 1, word 2: variable 3 is not in the model. Variables are numbered from 0 to 2"),
        ("1 1\n3", "line 2, word 1: variable 1 has no value 3. Its values are numbered from 0 to 2"),
        ("1 0 x", "line 1, word 3: 'x' is not a finite number"),
        (" \n", "holds nothing but white space. Write 0 where nothing was observed"),
        ("", "the file is empty (0 bytes)"),
        ("1e300 0 1", "line 1, word 1: declares 1e+300 observations"),
        ("\x00\x01", r"line 1, word 1: '\x00\x01' is not a finite number"),
    ],
)
def test_bad_evidence(tmp_path, text, message):
    path = save(tmp_path / "x.evid", text)
    with pytest.raises(DataError) as caught:
        read_uai(save(tmp_path / "x.uai", MODEL), evidence=path)
    assert str(caught.value).startswith(f"{path}: {message}"), caught.value


@pytest.mark.parametrize(("evidence", "message"), [({3: 0}, "variable 3 is not in"), ({0: -1}, "variable 0 has no")])
def test_bad_evidence_that_no_file_holds(tmp_path, evidence, message):
    with pytest.raises(DataError, match=f"evidence: {message}"):
        read_uai(save(tmp_path / "x.uai", MODEL), evidence=evidence)


# Results


def test_results_survive_being_written(tmp_path):
    for value in (-17.215511111111111, 0.0, 1e5, -math.inf):
        write_uai_pr(tmp_path / "x.PR", value)
        assert read_uai_pr(tmp_path / "x.PR") == value
    assert (tmp_path / "x.PR").read_text() == "PR\n-inf\n"
    marginals = [np.asarray([0.25, 0.75]), np.asarray([1.0]), np.asarray([0.1, 0.2, 0.7])]
    write_uai_mar(tmp_path / "x.MAR.gz", marginals)
    for found, wanted in zip(read_uai_mar(tmp_path / "x.MAR.gz"), marginals, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_results_behind_a_number_of_samples(tmp_path):
    assert read_uai_pr(save(tmp_path / "x.PR", "PR\n1\n-3.5\n")) == -3.5
    found = read_uai_mar(save(tmp_path / "x.MAR", "MAR\n1\n2 2 0.5 0.5 1 1.0"))
    assert [part.tolist() for part in found] == [[0.5, 0.5], [1.0]]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_results_that_are_none(tmp_path, value):
    with pytest.raises(ValueError, match="Give a finite number"):
        write_uai_pr(tmp_path / "x.PR", value)
    with pytest.raises(ValueError, match="the marginal of variable 0 holds no probabilities"):
        write_uai_mar(tmp_path / "x.MAR", [np.asarray([value, 1.0])])


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_uai_pr, "MAR\n1", "line 1: starts with 'MAR'. Give a file that starts with PR"),
        (read_uai_pr, "PR\n", "line 1: the file ends before log10 Z"),
        (read_uai_pr, "PR\nnan", "line 2, word 1: 'nan' is not a finite number"),
        (read_uai_pr, "PR\n2 3 4", "line 2, word 1: 3 numbers. Give one, log10 Z"),
        (read_uai_mar, "MAR\n1 2 .5", "line 2: the file ends too soon, or too late"),
        (read_uai_mar, "MAR\n1 2 .5 .5 .5", "line 2: the file ends too soon, or too late"),
        (read_uai_mar, "MAR\n1 2 1.5 -.5", "line 2, word 4: -0.5 is not a probability"),
        (read_uai_mar, "MAR", "line 1: the file ends too soon"),
    ],
)
def test_bad_results(tmp_path, reader, text, message):
    path = save(tmp_path / "x", text)
    with pytest.raises(DataError) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}: {message}"), caught.value


# Malformed models


def changed(old, new):
    assert old in MODEL
    return MODEL.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty (0 bytes). Write it again"),
        (" \n ", "line 2: holds nothing but white space"),
        (changed("MARKOV", "CREDAL"), "line 1: starts with 'CREDAL'. Give a file that starts with MARKOV or BAYES"),
        (b"\x7fELF\x02\x01" + bytes(range(256)), r"line 1: starts with '\x7fELF\x02\x01\x00"),
        (MODEL.encode("utf-16"), r"line 1: starts with "),
        (changed("3\n2 3 2", "0\n"), "line 2, word 1: 0 is not a number of variables. Write an integer from 1 up"),
        (changed("3\n2 3 2", "-3\n2 3 2"), "line 2, word 1: -3 is not a number of variables"),
        (changed("3\n2 3 2", "2.5\n2 3 2"), "line 2, word 1: 2.5 is not a number of variables"),
        (
            changed("3\n2 3 2", "1000000000\n2 3 2"),
            "line 2, word 1: declares 1000000000 variables, more than a file of",
        ),
        (changed("2 3 2", "2 0 2"), "line 3, word 2: variable 1 has cardinality 0. Write an integer from 1 up"),
        (changed("2 3 2", "2 3 -2"), "line 3, word 3: variable 2 has cardinality -2"),
        (changed("2 3 2", "2 3.5 2"), "line 3, word 2: variable 1 has cardinality 3.5"),
        (changed("2 3 2", "2 nan 2"), "line 3, word 2: 'nan' is not a finite number. Write one in plain digits"),
        (changed("2 3 2", "2 1000000000000 2"), "line 6, word 1: the tables up to factor 1 take 2e+12 numbers or more"),
        (changed("2 3 2\n4", "2 3 2\n-1"), "line 4, word 1: -1 is not a number of factors"),
        (changed("2 3 2\n4", "2 3 2\n1e9"), "line 4, word 1: declares 1000000000 factors, more than a file of"),
        (changed("2 0 1", "2 0 3"), "line 6, word 3: the scope of factor 1 names variable 3. Variables are numbered"),
        (changed("2 0 1", "2 0 -1"), "line 6, word 3: the scope of factor 1 names variable -1"),
        (changed("2 0 1", "2 0 .5"), "line 6, word 3: the scope of factor 1 names variable 0.5"),
        (changed("2 0 1", "2 1 1"), "line 6, word 3: variable 1 is twice in the scope of factor 1. Name each once"),
        (changed("2 0 1", "4 0 1"), "line 6, word 1: the scope of factor 1 has 4 variables, and there are 3"),
        (changed("2 0 1", "-1 0 1"), "line 6, word 1: the scope of factor 1 has -1 variables"),
        (changed("2\n 0.5 2.5", "3\n 0.5 2.5"), "line 10, word 1: the table of factor 0 declares 3 entries, but its"),
        (
            changed("2\n 0.5 2.5", "2\n -.5 2.5"),
            "line 11, word 1: the table of factor 0 holds -0.5. Potentials",
        ),
        (changed("4 0 6e-1", "4 0 -1"), "line 15, word 3: the table of factor 1 holds -1"),
        (changed("4 0 6e-1", "4 0 NaN"), "line 15, word 3: 'NaN' is not a finite number"),
        (changed("4 0 6e-1", "4 inf 1"), "line 15, word 2: 'inf' is not a finite number"),
        (changed("4 0 6e-1", "4 0 1e999"), "line 15, word 3: '1e999' is not a finite number"),
        (changed("4 0 6e-1", "4 0 1_0"), "line 15, word 3: '1_0' is not a finite number"),
        (changed("4 0 6e-1", "4 0 1-1"), "line 15, word 3: '1-1' is not a finite number"),
        (changed("4 0 6e-1", "4 0 " + "1" * 9000), "line 15, word 3: '111"),
        (changed("4 0 6e-1", "4 0 __import__('os')"), "line 15, word 3: \"__import__('os')\" is not a finite number"),
        (changed("4 0 6e-1", "4 0"), "line 17, word 2: the table of factor 2 declares 1 entries, but its scope has 6"),
        (changed("4 0 6e-1", "4 0 1 1"), "line 15, word 4: the table of factor 2 declares 1 entries"),
        (MODEL[: MODEL.index("4\n1 0")], "line 3: the file ends before the number of factors. Fetch or write it again"),
        ("MARKOV", "line 1: the file ends before the number of variables"),
        ("MARKOV 3\n2 1     ", "line 2: the file ends after 2 of 3 cardinalities"),
        (f"MARKOV 2 2 2 2 2 0 {' ' * 20}", "line 1: the file ends within the scope of factor 0 of 2"),
        (f"MARKOV 2 2 2 2 1 0 {' ' * 20}", "line 1: the file ends after 1 of 2 scopes"),
        (
            MODEL[: MODEL.index("6e-1")] + " " * 20,
            "line 15: the file ends after 5 of 6 entries of the table of factor 1",
        ),
        (MODEL[: MODEL.index("6 1 1")], "line 16: the file ends after 2 of 4 tables"),
        (MODEL[: MODEL.index("\n2\n 0.5")] + " " * 60, "line 9: the file ends after 0 of 4 tables"),
        (MODEL + "7\n", "line 20, word 1: the file goes on after the last table. Remove what follows"),
        (MODEL + "\n\nend", "line 22, word 1: 'end' is not a finite number"),
        (MODEL + "\0", r"line 20, word 1: '\x00' is not a finite number"),
        (gzip.compress(MODEL.encode(), mtime=0)[:-5], "the gzip file is cut short. Fetch or write it again"),
        (gzip.compress(MODEL.encode(), mtime=0)[:40], "the gzip file is cut short"),
        (gzip.compress(MODEL.encode(), mtime=0)[:-5] + b"12345", "not a whole gzip file (CRC check failed"),
        (b"\x1f\x8b" + b"x" * 50, "not a whole gzip file"),
        (
            gzip.compress(b"MARKOV 1000000000 2", mtime=0),
            "line 1, word 2: declares 1000000000 variables, more than a file of",
        ),
        (gzip.compress(b"MARKOV 100 2", mtime=0) + b"rubbish", "not a whole gzip file"),
        (
            "MARKOV 80 " + "1 " * 80 + "1 80 " + " ".join(map(str, range(80))) + " 1 1",
            "line 1, word 84: factor 0 has 80",
        ),
    ],
)
def test_a_malformed_model_is_refused_in_one_line(tmp_path, text, message):
    path = save(tmp_path / "x.uai", text)
    with pytest.raises(DataError) as caught:
        read_uai(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {message}"), line
    assert "\n" not in line
    assert len(line) < len(str(path)) + 200
    assert ". " in line.removeprefix(str(path))  # a remedy follows the cause


@pytest.mark.parametrize("path", ["none.uai", "."])
def test_what_is_no_file(tmp_path, path):
    with pytest.raises(DataError, match=r"there is no such file|is not a regular file"):
        read_uai(tmp_path / path)


@pytest.mark.parametrize(
    "text",
    [
        b"MARKOV 1000000000 2 2",
        b"MARKOV 2 1000000 1000000 1 2 0 1 1000000000000 1 1",
        b"MARKOV 1 2 1000000000 1 0",
        gzip.compress(b"MARKOV 1000000000 2 2", mtime=0),
        gzip.compress(b"MARKOV " + b" " * 10_000_000, mtime=0),
        gzip.compress(b"MARKOV 20000000 " + b"2 " * 20_000_000, 1, mtime=0),
        gzip.compress(b"MARKOV 1 2 20000000 " + b"0 " * 20_000_000, 1, mtime=0),
        b"MARKOV 1 " + b"9" * 300 + b" 1 1 0 " + b"9" * 300,
        b"MARKOV 3000 " + b"1000000000 " * 3000 + b"1 3000 " + " ".join(map(str, range(3000))).encode(),
        b"1000000000 0 1",
    ],
)
def test_what_a_file_only_declares_takes_neither_memory_nor_time(tmp_path, text):
    path = save(tmp_path / "x.uai", text)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(DataError):
            (read_uai_evidence if text[:1].isdigit() else read_uai)(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 2


def mutated(rng, data):
    """A file that is cut, or some of whose bytes or numbers are changed."""
    kind = rng.integers(5)
    if kind == 0:
        return data[: rng.integers(len(data) + 1)]
    if kind == 1:
        changed = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        return bytes(changed)
    words = data.split()
    i, j = rng.integers(len(words), size=2)
    if kind == 2:
        words[i], words[j] = words[j], words[i]
    elif kind == 3:
        words[i : i + 1] = [] if rng.random() < 0.5 else [words[i], words[j]]
    else:
        odd = "-1 0 1 2 3 7 1e9 1000000000000 1e300 1e999 nan -inf 2.5 -0 +1 .5 1. e5 0x10 1_0 \0 \xff ''"
        words[i] = str(rng.choice(odd.split(" "))).encode("latin-1")
    return b" ".join(words)


def test_ten_thousand_damaged_files_parse_or_are_refused(tmp_path):
    rng = np.random.default_rng(2026)
    valid = [text.encode() for text in MODELS.values()]
    valid += [gzip.compress(valid[0], mtime=0), b"2 0 1 2 0", b"1\n2 0 1 2 0\n"]
    parsed, start = 0, time.process_time()
    path = tmp_path / "x"
    for i in range(10_000):
        which = i % len(valid)
        path.write_bytes(mutated(rng, valid[which]))
        try:
            if which < 5:
                graph = read_uai(path)
                assert not np.isnan(graph.log_potentials).any()
                if which < 4:  # every word of the file was needed
                    parts = [graph.cardinalities, graph.scopes, graph.log_potentials, *graph.scopes, graph.scopes]
                    assert len(path.read_bytes().split()) == 3 + sum(map(len, parts))
            else:
                evidence = read_uai_evidence(path)
                assert all(variable >= 0 and value >= 0 for variable, value in evidence.items())
            parsed += 1
        except DataError as error:
            line = str(error)
            assert line.startswith(f"{path}: ")
            assert "\n" not in line
            assert len(line) < len(str(path)) + 250
    assert 500 < parsed < 9_500
    assert time.process_time() - start < 20


@pytest.mark.parametrize("block", [1 << 18, 20])
@pytest.mark.parametrize(
    "text",
    [
        "markov 1 3 1 1 0 3 0.5 2.5 1",
        "# a coin\nMarkov 1 3 # one variable\n1 1 0\n\n3 0.5 2.5 1\n#",
        "c a coin\nMARKOV 1 3\n  # 7 8 9\n1 1 0 3 0.5 2.5 1 # the end",
        "c\nBayes\nc 5\n1\n3 1 1 0\n3 0.5 2.5 1\nc\n",
    ],
)
def test_comments_and_lower_case(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr("lnz.io._text_blocks._BLOCK", block)
    path = tmp_path / "x.uai"
    path.write_text(text)
    model = read_uai_model(path)
    assert model.kind in ("MARKOV", "BAYES")
    assert model.tables[0].tolist() == [0.5, 2.5, 1.0]
    path.write_text(text.replace("2.5", "oops"))
    place = next((i, row.split().index("2.5")) for i, row in enumerate(text.split("\n")) if "2.5" in row)
    with pytest.raises(ValueError, match=rf"line {place[0] + 1}, word {place[1] + 1}: 'oops' is not a finite number"):
        read_uai_model(path)


def test_a_packed_file_is_the_same_at_any_time(tmp_path, monkeypatch):
    graph = read_uai(save(tmp_path / "m.uai", MODEL))
    for name, now in (("a", 1e9), ("b", 1.5e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        write_uai(tmp_path / f"{name}.uai.gz", graph)
    assert (tmp_path / "a.uai.gz").read_bytes() == (tmp_path / "b.uai.gz").read_bytes()
