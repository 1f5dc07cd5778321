"""`lnz.sklearn.CRF` against sklearn-crfsuite: the same weights, labels, marginals and likelihood; and on CoNLL-2000 the same F1."""

import itertools
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import lnz

DATA = Path(os.environ.get("LNZ_DATA", Path(__file__).parents[2] / "shared" / "data")) / "conll2000"
LABELS = ["A", "B", "I", "O"]


def sentences(n, seed=0):
    rng, X, y = np.random.default_rng(seed), [], []
    for _ in range(n):
        words = [f"w{i}" for i in rng.integers(0, 30, rng.integers(0, 12))]
        noise = rng.integers(0, 4, len(words)) * (rng.random(len(words)) < 0.3)
        y.append([LABELS[(int(word[1:]) + e) % 4] for word, e in zip(words, noise, strict=True)])
        X.append(
            [
                {"word": word, "bias": 1.0, "x": float(rng.random()), "on": bool(rng.random() < 0.5), "ends": [word[:1], word[-1]],
                 "inner": {"last": word[-1], "half": 0.5}}
                for word in words
            ]
        )  # fmt: skip
    return X, y


X, Y = sentences(150)
X_TEST, Y_TEST = sentences(60, 1)
EXACT = {"max_iterations": 3000, "delta": 1e-10, "epsilon": 1e-7}


@pytest.mark.parametrize(
    "options",
    [
        {"c2": 0.1},
        {"c2": 1.0, "all_possible_transitions": True, "all_possible_states": True},
        {"c1": 0.3, "c2": 0.05},
        {"c1": 0.5, "c2": 0.0},
        {"c2": 0.1, "min_freq": 3},
    ],
    ids=str,
)
def test_weights_labels_and_marginals_are_crfsuites(options):
    theirs = pytest.importorskip("sklearn_crfsuite").CRF(algorithm="lbfgs", **options, **EXACT)
    full = [len(labels) > 0 for labels in Y]
    X_full, y_full = list(itertools.compress(X, full)), list(itertools.compress(Y, full))
    theirs.fit(X_full, y_full)
    ours = lnz.sklearn.CRF(**options, **EXACT).fit(X_full, y_full)
    assert ours.classes_ == theirs.classes_
    for a, b in (
        (ours.state_features_, theirs.state_features_),
        (ours.transition_features_, theirs.transition_features_),
    ):
        assert max(abs(a.get(name, 0) - b.get(name, 0)) for name in set(a) | set(b)) < 0.1
        assert {name for name, w in a.items() if abs(w) > 0.1} <= set(b)
    assert list(map(list, ours.predict(X_TEST))) == list(map(list, theirs.predict(X_TEST)))
    for found, wanted in zip(ours.predict_marginals(X_TEST), theirs.predict_marginals(X_TEST), strict=True):
        for p, q in zip(found, wanted, strict=True):
            assert all(abs(p[label] - q[label]) < 5e-3 for label in LABELS)
    assert ours.objective_ == pytest.approx(theirs.training_log_.last_iteration["loss"], rel=5e-4)
    assert ours.score(X_TEST, Y_TEST) == pytest.approx(theirs.score(X_TEST, Y_TEST))


def test_likelihood_and_marginals_are_sums_over_all_labellings():
    crf = lnz.sklearn.CRF(c2=0.1).fit(X, Y)
    state, transition = crf.state_features_, crf.transition_features_
    x, y = [{"word": "w3"}, {"word": "w7", "x": 0.3}, ["bias", "never"]], ["O", "B", "A"]

    def score(labels):
        values = [{"word:w3": 1}, {"word:w7": 1, "x": 0.3}, {"bias": 1}]
        own = sum(
            v * state.get((name, label), 0)
            for token, label in zip(values, labels, strict=True)
            for name, v in token.items()
        )
        return own + sum(transition.get(pair, 0) for pair in itertools.pairwise(labels))

    every = list(itertools.product(LABELS, repeat=3))
    log_z = np.logaddexp.reduce([score(labels) for labels in every])
    assert crf.log_likelihood([x], [y]) == pytest.approx(score(y) - log_z, abs=1e-4)
    for t, odds in enumerate(crf.predict_marginals_single(x)):
        for label in LABELS:
            truth = sum(np.exp(score(labels) - log_z) for labels in every if labels[t] == label)
            assert odds[label] == pytest.approx(truth, abs=1e-4)
    assert tuple(crf.predict_single(x)) == max(every, key=score)


def test_which_weights_there_are():
    x, y = [[{"w": "a"}, {"w": "b"}, {"w": "c"}], [{"w": "a"}, {"w": "b"}]], [["D", "N", "V"], ["D", "N"]]
    seen = lnz.sklearn.CRF().fit(x, y)
    assert set(seen.transition_features_) == {("D", "N"), ("N", "V")}
    assert set(seen.state_features_) == {("w:a", "D"), ("w:b", "N"), ("w:c", "V")}
    every = lnz.sklearn.CRF(all_possible_transitions=True, all_possible_states=True).fit(x, y)
    assert len(every.transition_features_) == len(every.state_features_) == 9
    often = lnz.sklearn.CRF(min_freq=2).fit(x, y)
    assert set(often.transition_features_) == {("D", "N")}
    assert set(often.state_features_) == {("w:a", "D"), ("w:b", "N")}
    assert seen.attributes_ == ["w:a", "w:b", "w:c"]


def test_empty_sequences_and_single_tokens():
    crf = lnz.sklearn.CRF().fit(X, Y)
    assert crf.predict([[], X[1][:1], []])[0] == []
    assert crf.predict_single([]) == []
    assert crf.predict_marginals_single([]) == []
    assert crf.log_likelihood([[]], [[]]) == 0
    assert crf.log_likelihood(X, Y) == pytest.approx(
        sum(crf.log_likelihood([a], [b]) for a, b in zip(X, Y, strict=True)), rel=1e-4
    )


def test_labels_need_not_be_strings():
    numbers = [[LABELS.index(label) for label in labels] for labels in Y]
    crf = lnz.sklearn.CRF().fit(X, numbers)
    assert crf.score(X, numbers) == lnz.sklearn.CRF().fit(X, Y).score(X, Y)
    assert set(crf.classes_) == {0, 1, 2, 3}


def test_clone_pickle_parameters_and_search():
    crf = lnz.sklearn.CRF(c1=0.1, c2=0.2)
    assert clone(crf).get_params() == crf.get_params() == crf.set_params(c1=0.1).get_params()
    assert repr(crf) == "CRF(c1=0.1, c2=0.2)"
    copy = pickle.loads(pickle.dumps(crf.fit(X, Y)))
    assert copy.predict_marginals_single(X[3]) == crf.predict_marginals_single(X[3])
    assert cross_val_score(lnz.sklearn.CRF(), X, Y, cv=3).min() > 0.5
    search = GridSearchCV(lnz.sklearn.CRF(), {"c2": [0.1, 1e4]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"c2": 0.1}
    with pytest.raises(NotFittedError):
        lnz.sklearn.CRF().predict(X)


@pytest.mark.parametrize(
    ("options", "x", "y", "message"),
    [
        ({"algorithm": "ap"}, X, Y, "algorithm must be 'lbfgs', which maximises the likelihood, but is 'ap'"),
        ({"c1": -1}, X, Y, "c1 must be a number of at least 0"),
        ({"max_iterations": 0}, X, Y, "max_iterations"),
        ({}, X, Y[1:], "X and y must have the same number of sequences"),
        ({}, X[:1] + X[2:3], [Y[0], Y[2] + ["A"]], "as many labels as X has tokens"),
        ({}, [[]], [[]], "X and y hold no token"),
        ({}, [[{"x": float("nan")}]], [["A"]], "the feature 'x' is nan"),
        ({}, ["dog"], [["A"]], "wrap a single sequence in a list"),
        ({}, [["dog"]], [["A"]], "a token must be a dictionary of features or a list of their names"),
    ],
)
def test_bad_input_is_refused(options, x, y, message):
    with pytest.raises(ValueError, match=message):
        lnz.sklearn.CRF(**options).fit(x, y)


def test_a_fit_cut_short_says_so_and_another_label_is_refused():
    with pytest.warns(ConvergenceWarning, match="not converged after 2 iterations"):
        crf = lnz.sklearn.CRF(max_iterations=2).fit(X, Y)
    assert crf.n_iter_ == 2
    with pytest.raises(ValueError, match="the labels Q did not occur in fit"):
        crf.log_likelihood([[{"word": "w1"}]], [["Q"]])


SCRIPT = """
import jax, lnz
assert not jax.config.jax_enable_x64
X = [[{"word": "a"}, {"word": "dog"}, {"word": "barks"}], [{"word": "the"}, {"word": "cat"}]] * 3
crf = lnz.sklearn.CRF(c1=0.01, c2=0.1).fit(X, [["D", "N", "V"], ["D", "N"]] * 3)
print(*crf.predict_single([{"word": "the"}, {"word": "dog"}]), round(sum(crf.predict_marginals_single(X[0])[1].values()), 4))
"""


def test_it_runs_in_single_precision(single_precision):
    assert single_precision(SCRIPT).split() == ["D", "N", "1.0"]


def chunking_features(words, tags, t):
    """The words and part-of-speech tags of a window, and their bigrams."""
    found = {"bias": 1.0}
    for i in range(-2, 3):
        if 0 <= t + i < len(words):
            found[f"w[{i}]"], found[f"p[{i}]"] = words[t + i], tags[t + i]
    for name, values in (("w", words), ("p", tags)):
        for i in (-1, 0):
            if t + i >= 0 and t + i + 1 < len(words):
                found[f"{name}[{i}]{name}[{i + 1}]"] = f"{values[t + i]} {values[t + i + 1]}"
    return found


def chunking(name):
    read = lnz.io.read_conll(DATA / name)
    columns = [[values[code] for code in codes] for codes, values in read.columns]
    X, y = [], []
    for a, b in itertools.pairwise(read.starts.tolist()):
        words, tags, labels = (column[a:b] for column in columns)
        X.append([chunking_features(words, tags, t) for t in range(b - a)])
        y.append(labels)
    return read, X, y


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="set LNZ_DATA to the folder that holds conll2000")
def test_conll_2000_has_the_f1_of_crfsuite():
    crfsuite = pytest.importorskip("sklearn_crfsuite")
    options = {"algorithm": "lbfgs", "c1": 0.1, "c2": 0.1, "max_iterations": 100, "all_possible_transitions": True}
    _, X, y = chunking("train.txt.gz")
    test, X_test, y_test = chunking("devtest.txt.gz")
    labels = sorted({label for sequence in (*y, *y_test) for label in sequence})
    number = {label: i for i, label in enumerate(labels)}
    gold = np.array([number[label] for sequence in y_test for label in sequence], np.int32)
    scores = []
    for crf in (lnz.sklearn.CRF(**options), crfsuite.CRF(**options)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            crf.fit(X, y)
        found = np.array([number[label] for sequence in crf.predict(X_test) for label in sequence], np.int32)
        scores.append(100 * lnz.apps.chunk_score(found, gold, labels, test.starts).f1)
    assert abs(scores[0] - scores[1]) < 0.1
    assert scores[0] > 93
