"""Taggers: likelihood, gradient and confidence against sums over all labellings; the command line from training to tags."""

import contextlib
import gzip
import itertools
import json

import numpy as np
import pytest
import scipy.optimize

import lnz
from lnz._cli import run as run_command
from lnz._core.checkpoint import CheckpointError
from lnz.apps._tagging.features import FeatureMap
from lnz.apps._tagging.lbfgs import LBFGSState, lbfgs_iteration
from lnz.apps._tagging.tag_likelihood import Likelihood, TaggingProblem
from lnz.apps._tagging.tag_training import Batches, Training
from lnz.io import DataError, Sentences, read_conll

WORDS = {
    "D": ["the", "a"],
    "A": ["big", "old", "Red"],
    "N": ["dog", "cat", "house"],
    "V": ["sees", "likes"],
    "R": ["often"],
}


def sentences(n, seed):
    """Noun phrases around a verb. The word `run` is a noun after a determiner or an adjective, and else a verb."""
    rng = np.random.default_rng(seed)

    def phrase():
        kinds = [*["D"] * rng.integers(0, 2), *["A"] * rng.integers(0, 3), "N"]
        words = [str(rng.choice(WORDS[kind])) for kind in kinds]
        if len(words) > 1 and rng.random() < 0.3:
            words[-1] = "run"
        return [(w, w[-1], "B-NP" if i == 0 else "I-NP") for i, w in enumerate(words)]

    def sentence():
        verb = "run" if rng.random() < 0.3 else str(rng.choice(WORDS["V"]))
        often = [("often", "n", "O")] * rng.integers(0, 2)
        return [*phrase(), *often, (verb, verb[-1], "B-VP"), *phrase(), (".", ".", "O")]

    return [sentence() for _ in range(n)]


def text(rows, columns=3):
    return "\n".join("\n".join(" ".join(token[:columns]) for token in sentence) + "\n" for sentence in rows)


@pytest.fixture(scope="module", autouse=True)
def one_shape():
    """Batches of 8 rows, here four labels each: one compiled program for all of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lnz.apps._tagging.packing.ROWS", 8)
        yield


@pytest.fixture(scope="module")
def random_tagger():
    """A tagger with random weights, not trained: 4 labels, two of one chunk type."""
    rng = np.random.default_rng(5)
    rows = [
        [(str(rng.integers(0, 4)), str(rng.choice(["B-X", "I-X", "B-Y", "O"]))) for _ in range(n)]
        for n in (1, 4, 5, 3, 2)
    ]
    data = Sentences.of(rows)
    features = FeatureMap.fit(data.first_columns(1), ["word[0]", "word[-1] word[0]", "word[1]"])
    problem = TaggingProblem.of(data, features)
    theta = rng.normal(size=problem.size) * 1.5
    return data, problem, theta, problem.tagger(theta)


def labellings(tagger, data):
    """Of every sentence: the gold labelling, all labellings, and their probabilities."""
    emissions = np.asarray(tagger.emissions(data), np.float64)
    gold, k = tagger.gold(data), len(tagger.labels)
    for a, b in itertools.pairwise(data.starts.tolist()):
        every = np.asarray(list(itertools.product(range(k), repeat=b - a)))
        scores = emissions[np.arange(a, b), every].sum(axis=1)
        scores += tagger.transitions.astype(float)[every[:, :-1], every[:, 1:]].sum(axis=1)
        p = np.exp(scores - scores.max())
        yield gold[a:b], every, p / p.sum()


def test_the_likelihood_and_its_gradient_are_sums_over_all_labellings(random_tagger):
    data, problem, theta, tagger = random_tagger
    value, expected = 0.0, np.zeros(problem.size)
    index = {(int(f), int(y)): i for i, (f, y) in enumerate(zip(problem.at, problem.label, strict=True))}
    ids, k = problem.features.ids(data), len(tagger.labels)
    for (a, b), (gold, every, p) in zip(itertools.pairwise(data.starts), labellings(tagger, data), strict=True):
        value -= np.log(p[(every == gold).all(axis=1)][0])
        for labels, weight in [*zip(every, p, strict=True), (gold, -1.0)]:
            for t, y in enumerate(labels):
                for f in ids[a + t]:
                    if (int(f), int(y)) in index:
                        expected[index[int(f), int(y)]] += weight
            for y, z in itertools.pairwise(labels):
                expected[len(problem.at) + y * k + z] += weight
        assert b > a
    found, gradient = Likelihood(problem)(theta)
    assert found == pytest.approx(value, rel=2e-6)
    np.testing.assert_allclose(gradient, expected, atol=2e-6 * len(ids))
    assert tagger.negative_log_likelihood(data, tagger.gold(data)) == pytest.approx(value, rel=2e-6)


def test_tags_and_confidence_are_those_of_all_labellings(random_tagger):
    data, _, _, tagger = random_tagger
    tagged, at = tagger.tag_with_confidence(data), 0
    np.testing.assert_array_equal(tagged.tags, tagger.tag(data))
    spans = zip(*tagged.chunks[:3], tagged.chunk_confidence, strict=True)
    sure = {(int(a), int(b)): (int(kind), p) for a, b, kind, p in spans}
    goes_on = {"B-X": {"I-X"}, "I-X": {"I-X"}, "B-Y": set()}
    checked = 0
    for _, every, p in labellings(tagger, data):
        best = every[p.argmax()]
        n = len(best)
        np.testing.assert_array_equal(tagged.tags[at : at + n], best)
        np.testing.assert_allclose(
            tagged.confidence[at : at + n], [p[every[:, t] == best[t]].sum() for t in range(n)], atol=1e-6
        )
        for (a, b), (_, q) in sure.items():
            if at <= a < at + n:
                inside = (every[:, a - at : b - at + 1] == best[a - at : b - at + 1]).all(axis=1)
                if b - at + 1 < n:
                    on = [tagger.labels.index(label) for label in goes_on[tagger.labels[best[b - at]]]]
                    inside &= ~np.isin(every[:, b - at + 1], on)
                assert q == pytest.approx(p[inside].sum(), abs=1e-6)
                checked += 1
        at += n
    assert checked == len(sure) > 3


def test_batches_add_up_to_the_whole():
    problem = Training(Sentences.of(sentences(120, 3)), min_count=2).problem
    theta = np.random.default_rng(0).normal(size=problem.size)
    batches = Batches(problem, 8)
    parts = [batches.likelihood(rows, theta.astype(np.float32)) for rows in batches.shuffled(0, 0)]
    value, gradient = Likelihood(problem)(theta)
    assert len(parts) == batches.count == 2
    assert sum(part[0] for part in parts) == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(sum(part[1] for part in parts), gradient, atol=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Column files, and a run trained on one of them."""
    path = tmp_path_factory.mktemp("tagging")
    (path / "train.txt").write_text(text(sentences(60, 0)))
    with gzip.open(path / "test.txt.gz", "wt") as file:
        file.write(text(sentences(60, 1)))
    outcome = call("train", path / "train.txt", "--out", path / "run", "--l2", 0.1, "--json")
    assert outcome[0] == 0, outcome[2]
    (path / "trained.json").write_text(outcome[1])
    return path


def call(*args):
    """The exit code, stdout and stderr of one command."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lnz._cli.process._done", True)  # these tests have JAX's settings from conftest.py
        code = run_command(["tag", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


def refused(*args):
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("lnz: error: ")]
    assert len(lines) == 1, err
    return lines[0].removeprefix("lnz: error: ")


def test_a_run_trained_and_evaluated(folder):
    trained = json.loads((folder / "trained.json").read_text())
    assert trained["ended"] == "converged"
    assert {"config.json", "tagger.safetensors", "metrics.jsonl", "results.json"} <= {
        p.name for p in (folder / "run").iterdir()
    }
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["objective"] == trained["objective"] < lines[0]["objective"]
    code, out, _ = call("evaluate", folder / "run", folder / "test.txt.gz", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["f1"] > 0.97
    assert found["accuracy"] > 0.98
    assert 0 < found["nll"] < 0.5
    data = read_conll(folder / "test.txt.gz")
    tagger = lnz.apps.Tagger.load(folder / "run/tagger.safetensors")
    assert found["nll"] == pytest.approx(tagger.negative_log_likelihood(data, tagger.gold(data)) / 60)
    score = lnz.apps.chunk_score(tagger.tag(data), tagger.gold(data), tagger.labels, data.starts)
    assert (found["f1"], found["chunks"]) == (score.f1, score.there)
    code, out, _ = call("evaluate", folder / "run", folder / "test.txt.gz")
    assert f"Chunk F1  {100 * score.f1:.2f} %" in out
    assert "nats per sentence, over 60; exact" in out


def test_transitions_do_their_part(folder):
    """Without them the word `run` could not be told by its neighbours' tags alone: the weights of pairs differ from 0."""
    tagger = lnz.apps.Tagger.load(folder / "run/tagger.safetensors")
    o, inside = tagger.labels.index("O"), tagger.labels.index("I-NP")
    assert tagger.transitions[inside, inside] > tagger.transitions[o, inside]


def test_apply_prints_tags_with_their_probabilities(folder, tmp_path):
    rows = sentences(60, 2)
    path = tmp_path / "plain.txt"
    path.write_text(text(rows, 2))
    code, out, _ = call("apply", folder / "run", path)
    assert code == 0
    blocks = [[line.split() for line in block.split("\n")] for block in out.removesuffix("\n").split("\n\n")]
    assert [[token[:2] for token in block] for block in blocks] == [[list(token[:2]) for token in row] for row in rows]
    data = read_conll(path)
    tagger = lnz.apps.Tagger.load(folder / "run/tagger.safetensors")
    tagged = tagger.tag_with_confidence(data)
    flat = [token for block in blocks for token in block]
    assert [token[2] for token in flat] == [tagger.labels[tag] for tag in tagged.tags]
    np.testing.assert_allclose([float(token[3]) for token in flat], tagged.confidence, atol=6e-5)
    for token in flat:
        assert (token[4] == "-") == (token[2] == "O")
        assert token[4] == "-" or float(token[4]) <= float(token[3]) + 1e-4
    out_file = tmp_path / "tagged.txt.gz"
    assert call("apply", folder / "run", path, "--out", out_file)[0] == 0
    assert gzip.decompress(out_file.read_bytes()).decode() == out
    assert "exists already" in refused("apply", folder / "run", path, "--out", out_file)
    found = json.loads(call("apply", folder / "run", path, "--json")[1])["sentences"]
    assert [part["tags"] for part in found] == [[token[2] for token in block] for block in blocks]
    assert [c["type"] for part in found for c in part["chunks"]] == [
        tagged.chunks.names[k] for k in tagged.chunks.types
    ]
    first = found[0]["chunks"][0]
    assert (
        found[0]["words"][first["start"] : first["end"] + 1]
        == [row[0] for row in rows[0]][first["start"] : first["end"] + 1]
    )
    with gzip.open(tmp_path / "gold.txt.gz", "wt") as file:
        file.write(text(rows))
    assert call("apply", folder / "run", tmp_path / "gold.txt.gz")[1] == out  # labels are not looked at


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "the e\n",
            "has 2 columns, but 3 are needed: those of the training file, the label last. Give a file with labels",
        ),
        ("the e O\ndog g\n", "line 2: 'dog g' has 2 columns"),
        ("", "the file is empty"),
        ("\n", "holds no tokens"),
    ],
)
def test_files_that_cannot_be_evaluated(folder, tmp_path, content, message):
    (tmp_path / "x.txt").write_text(content)
    assert refused("evaluate", folder / "run", tmp_path / "x.txt").startswith(f"{tmp_path / 'x.txt'}: {message}")


def test_training_that_is_refused_leaves_everything_as_it_was(folder, tmp_path):
    before = {p.name: p.read_bytes() for p in (folder / "run").iterdir()}
    train, run = folder / "train.txt", folder / "run"
    for args, message in [
        ((train, "--out", run), "exists already. Go on with it by --resume"),
        ((train, "--out", run, "--force", "--l2", -1), "--l2: -1 is below 0"),
        ((train, "--out", run, "--force", "--learning-rate", "nan"), "--learning-rate: nan is not above 0"),
        (
            (train, "--out", run, "--force", "--template", "wurd[0]"),
            "'wurd[0]' in the template 'wurd[0]' is not an attribute",
        ),
        ((train, "--out", run, "--force", "--template", "column7[0]"), "the features need column7, but there are 1"),
        ((train, "--out", folder, "--force"), "is a folder that holds no run, so it is never replaced"),
        ((tmp_path / "words.txt", "--out", run, "--force"), "has one column, so there are no labels. Give a file"),
        (
            (tmp_path / "many.txt", "--out", run, "--force"),
            "its last column has 1,200 different values, so it does not hold",
        ),
        ((train, "--out", run, "--force", "--validation", tmp_path / "odd.txt"), "line 3: the tag 'X' does not occur"),
        ((tmp_path / "none.txt", "--out", run, "--force"), "there is no such file"),
    ]:
        (tmp_path / "words.txt").write_text("the\ndog\n")
        (tmp_path / "many.txt").write_text("".join(f"w t{i}\n" for i in range(1200)))
        (tmp_path / "odd.txt").write_text("a a O\n\nb b X\n")
        assert message in refused("train", *args)
    assert {p.name: p.read_bytes() for p in (folder / "run").iterdir()} == before


def test_runs_of_the_wrong_kind(folder, tmp_path):
    assert "there is no such run folder" in refused("apply", tmp_path / "none", folder / "train.txt")
    (tmp_path / "config.json").write_text('{"settings": {}}')
    assert "is a run of `lnz train`, not of `lnz tag train`" in refused("apply", tmp_path, folder / "train.txt")
    (tmp_path / "config.json").write_text('{"kind": "tagger"}')
    assert "was interrupted before its first tagger was saved" in refused("apply", tmp_path, folder / "train.txt")
    (tmp_path / "config.json").write_text("[")
    assert "cannot be read (JSONDecodeError)" in refused("apply", tmp_path, folder / "train.txt")
    whole = (folder / "run/tagger.safetensors").read_bytes()
    (tmp_path / "config.json").write_text('{"kind": "tagger"}')
    (tmp_path / "tagger.safetensors").write_bytes(whole[:-3])
    assert "is cut short or not a checkpoint" in refused("apply", tmp_path, folder / "train.txt")
    (tmp_path / "wide.txt").write_text("a b c d e\n")
    assert "has 5 columns, and the run was trained on 2 and a label" in refused(
        "apply", folder / "run", tmp_path / "wide.txt"
    )
    assert run_command(["evaluate", str(folder / "run")]) == 2


def test_an_interrupted_run_keeps_its_last_tagger(folder, tmp_path, monkeypatch):
    step = Training.step

    def interrupted(self, state):
        if state.step >= 20:
            raise KeyboardInterrupt
        return step(self, state)

    monkeypatch.setattr(Training, "step", interrupted)
    code, _, err = call("train", folder / "train.txt", "--out", tmp_path / "run", "--l2", 0.1)
    assert code == 130
    assert f"interrupted; the tagger of step 20 is saved in {tmp_path / 'run'}" in err
    code, out, err = call("evaluate", tmp_path / "run", folder / "test.txt.gz", "--json")
    assert code == 0
    assert "its training was interrupted; this is the last tagger that it saved" in err
    assert json.loads(out)["f1"] > 0.9


def test_adam_stops_by_the_validation_sentences_and_keeps_the_best():
    train, held_out = Sentences.of(sentences(120, 0)), Sentences.of(sentences(60, 1))
    options = {"l2": 0.01, "learning_rate": 0.3, "epochs": 60, "batch_tokens": 1024, "patience": 2}
    fitted = lnz.apps.fit_tagger(train, optimizer="adam", validation=held_out, **options)
    scores = [score for _, _, score in fitted.evaluations]
    assert fitted.finished
    assert len(scores) < 60
    assert fitted.step == np.argmin(scores) + 1 == len(scores) - 2
    gold = fitted.tagger.gold(held_out)
    assert fitted.tagger.negative_log_likelihood(held_out, gold) / 60 == pytest.approx(min(scores))
    assert min(scores) < 0.5


def test_both_solvers_find_the_same_optimum():
    train = Sentences.of(sentences(120, 0))
    exact = lnz.apps.fit_tagger(train)
    rough = lnz.apps.fit_tagger(train, optimizer="adam", epochs=150, batch_tokens=1024, learning_rate=0.1)
    problem = Training(train).problem

    def objective(tagger):
        theta = np.concatenate([tagger.weights[problem.at, problem.label], tagger.transitions.ravel()]).astype(float)
        return Likelihood(problem)(theta)[0] + theta @ theta

    assert exact.evaluations[-1][1] == pytest.approx(objective(exact.tagger), rel=1e-5)
    assert objective(exact.tagger) - 1e-3 < objective(rough.tagger) < 1.02 * objective(exact.tagger)


def test_a_saved_tagger_is_the_same(random_tagger, tmp_path):
    data, _, _, tagger = random_tagger
    tagger.save(tmp_path / "x")
    again = lnz.apps.Tagger.load(tmp_path / "x")
    assert (again.labels, again.features.templates) == (tagger.labels, tagger.features.templates)
    np.testing.assert_array_equal(again.weights, tagger.weights)
    np.testing.assert_array_equal(again.transitions, tagger.transitions)
    np.testing.assert_array_equal(again.emissions(data), tagger.emissions(data))
    lnz.save(tmp_path / "y", lnz.Gaussian([0.0], [1.0]))
    with pytest.raises(CheckpointError, match="does not hold a tagger"):
        lnz.apps.Tagger.load(tmp_path / "y")
    with pytest.raises(ValueError, match="finite"):
        lnz.apps.Tagger(tagger.features, tagger.labels, np.full_like(tagger.weights, np.nan), tagger.transitions)
    with pytest.raises(ValueError, match="have shapes"):
        lnz.apps.Tagger(tagger.features, tagger.labels, tagger.weights[1:], tagger.transitions)
    with pytest.raises(DataError, match="has 1 column, but 2 are needed"):
        tagger.gold(data.first_columns(1))


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_a_run_interrupted_after_any_step_goes_on_to_the_same_tagger(optimizer, tmp_path, monkeypatch):
    train, held_out = Sentences.of(sentences(60, 0)), Sentences.of(sentences(30, 1))
    options = {"l2": 0.01, "optimizer": optimizer, "learning_rate": 0.3, "epochs": 7, "batch_tokens": 512}
    options |= {"validation": held_out, "patience": 2}
    whole = lnz.apps.fit_tagger(train, **options)
    step, made = Training.step, []

    def interrupted(self, state):
        made.append(state.step)
        if len(made) > 1:
            raise KeyboardInterrupt
        return step(self, state)

    for _ in range(200):
        made.clear()
        with monkeypatch.context() as patch, contextlib.suppress(lnz.learning.Interrupted):
            patch.setattr(Training, "step", interrupted)
            found = lnz.apps.fit_tagger(train, checkpoint=tmp_path / "run", **options)
            break
    assert found.evaluations == whole.evaluations
    assert (found.step, found.finished) == (whole.step, whole.finished)
    np.testing.assert_array_equal(found.tagger.weights, whole.tagger.weights)
    np.testing.assert_array_equal(found.tagger.transitions, whole.tagger.transitions)
    with pytest.raises(CheckpointError, match=r"its l2 is 0\.01, but this run's is 0\.1"):
        lnz.apps.fit_tagger(train, checkpoint=tmp_path / "run", **options | {"l2": 0.1})
    with pytest.raises(CheckpointError, match="checkpoint of another"):
        lnz.apps.fit_tagger(held_out, checkpoint=tmp_path / "run", **options)


def test_lbfgs_takes_the_steps_of_scipys():
    """The same values after the same numbers of evaluations, line searches included, until rounding parts them."""

    def valley(x):
        across, along = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        gradient = np.zeros_like(x)
        gradient[:-1] -= 400 * x[:-1] * across + 2 * along
        gradient[1:] += 200 * across
        return float(100 * across @ across + along @ along), gradient

    counted, found = [], []

    def objective(x):
        counted.append(x)
        return valley(x)

    options = {"maxcor": 6, "maxls": 10, "maxiter": 40, "ftol": 0, "gtol": 1e-6}
    wanted = []

    def callback(intermediate_result):
        wanted.append((len(counted), float(intermediate_result.fun)))

    scipy.optimize.minimize(
        objective, np.full(20, -1.2), jac=True, method="L-BFGS-B", callback=callback, options=options
    )
    counted.clear()
    state = LBFGSState.start(objective, np.full(20, -1.2))
    while state.iteration < 40:
        state = lbfgs_iteration(objective, state)
        found.append((len(counted), float(state.value)))
    assert [count for count, _ in found] == [count for count, _ in wanted]
    assert found[-1][0] > 45, "every step was taken at once"
    np.testing.assert_allclose([value for _, value in found], [value for _, value in wanted], rtol=1e-8)
    while not state.converged:
        state = lbfgs_iteration(objective, state)
    np.testing.assert_allclose(state.x, 1, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"iterations": 0}, {"patience": 1.5}, {"optimizer": "sgd"}, {"l2": np.nan}, {"templates": []}]
)
def test_options_that_cannot_serve(random_tagger, options):
    with pytest.raises(ValueError, match=next(iter(options)).removeprefix("templates") or "template"):
        lnz.apps.fit_tagger(random_tagger[0], **options)


def test_a_tag_not_seen_in_training_is_an_error(folder, tmp_path):
    (tmp_path / "x.txt").write_text("the e O\ndog g B-ZZ\n")
    code, out = call("evaluate", folder / "run", tmp_path / "x.txt")[:2]
    assert code == 0
    assert "B-ZZ in training: 1 tokens, each an error; the file has probability 0" in out
    found = json.loads(call("evaluate", folder / "run", tmp_path / "x.txt", "--json")[1])
    assert found["unseen_tags"] == ["B-ZZ"]
    assert found["nll"] is None
    assert found["accuracy"] <= 0.5
    assert found["chunks"] == 1
    assert found["recall"] == 0
