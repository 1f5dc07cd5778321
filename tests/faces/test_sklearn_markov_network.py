"""`lnz.sklearn.MarkovNetwork` and `Ising` against sums over all states, closed forms, lnz's own objectives, and graphs that are known."""

import itertools
import pickle

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import lnz
from lnz.sklearn import _pairwise_tables
from lnz.sklearn._structure import fit_pseudo_likelihood

RNG = np.random.default_rng(8)
KINDS = (2, 3, 4, 2)
CYCLE = [(0, 1), (1, 2), (2, 3), (0, 3)]


def random_model(cardinalities, edges, strength=1.0):
    tables = [
        strength * RNG.normal(size=[cardinalities[i] for i in scope])
        for scope in [*((i,) for i in range(len(cardinalities))), *edges]
    ]
    return _pairwise_tables.uniform(cardinalities, np.array(edges)).with_values(tables)


def every_state(cardinalities):
    return np.array(list(itertools.product(*map(range, cardinalities))))


def probabilities(model):
    log_weights = model.log_weights(every_state(model.cardinalities))
    return np.exp(log_weights - np.logaddexp.reduce(log_weights))


def rows_of(model, n, seed=0):
    return model.solver().sample(np.random.default_rng(seed), n)


MODEL = random_model(KINDS, CYCLE, 0.5)
ROWS = rows_of(MODEL, 400)
HOLES = np.where(np.random.default_rng(1).random(ROWS.shape) < 0.25, np.nan, ROWS)
HOLES[:4] = np.vstack([ROWS[:3], [np.nan] * 4])


@pytest.mark.parametrize("edges", [CYCLE, CYCLE[:3], "chow-liu", "ebic", []], ids=str)
def test_rows_have_the_probability_of_enumeration_missing_entries_summed_out(edges):
    network = lnz.sklearn.MarkovNetwork(edges).fit(ROWS)
    states = every_state(KINDS)
    p = np.exp(network.score_samples(states))
    assert p.sum() == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(p, probabilities(network._tables), atol=1e-9)
    assert network.log_z_.guarantee == "exact"
    assert float(network.log_z_) == pytest.approx(network._tables.log_z(), abs=1e-5)
    rows = HOLES[:40]
    fits = (np.isnan(rows)[:, None] | (rows[:, None] == states)).all(axis=2)
    np.testing.assert_allclose(np.exp(network.score_samples(rows)), fits @ p, atol=1e-9)
    odds = network.predict_proba(rows)
    assert odds.shape == (40, sum(KINDS))
    start = 0
    for i, k in enumerate(KINDS):
        truth = np.stack([(fits * p * (states[:, i] == value)).sum(1) for value in range(k)], 1) / (fits @ p)[:, None]
        np.testing.assert_allclose(odds[:, start : start + k], truth, atol=1e-9)
        filled = network.transform(rows)[:, i]
        np.testing.assert_array_equal(filled, np.where(np.isnan(rows[:, i]), truth.argmax(1), rows[:, i]))
        start += k


def test_the_moments_of_a_fit_are_those_of_the_data():
    network = lnz.sklearn.MarkovNetwork(CYCLE, smoothing=2.0).fit(ROWS)
    assert network.objective_ == "likelihood"
    p, states = np.exp(network.score_samples(every_state(KINDS))), every_state(KINDS)
    for i, j in CYCLE:
        model = np.zeros((KINDS[i], KINDS[j]))
        np.add.at(model, (states[:, i], states[:, j]), p)
        data = np.zeros_like(model)
        np.add.at(data, (ROWS[:, i], ROWS[:, j]), 1)
        np.testing.assert_allclose(model, (data + 2 / data.size) / 402, atol=1e-5)


def test_a_tree_in_closed_form_is_what_the_optimiser_finds(monkeypatch):
    closed = lnz.sklearn.MarkovNetwork(CYCLE[:3]).fit(ROWS)
    monkeypatch.setattr(_pairwise_tables.PairwiseTables, "is_forest", lambda self: False)
    searched = lnz.sklearn.MarkovNetwork(CYCLE[:3]).fit(ROWS)
    np.testing.assert_allclose(closed.score_samples(ROWS), searched.score_samples(ROWS), atol=1e-4)


def test_expectation_maximisation_finds_the_most_likely_model_of_incomplete_rows():
    network = lnz.sklearn.MarkovNetwork(CYCLE, smoothing=0.5, tol=1e-8).fit(HOLES)
    tables, states = network._tables, every_state(KINDS)

    def objective(values):
        model = _pairwise_tables.PairwiseTables(KINDS, tables.edges, values)
        p = probabilities(model)
        fits = (np.isnan(HOLES)[:, None] | (HOLES[:, None] == states)).all(axis=2)
        spread = sum(0.5 * table.mean() for table in model.tables) - 0.5 * model.log_z()
        return float(np.log(fits @ p).sum() + spread)

    best, rng = objective(tables.values), np.random.default_rng(3)
    for _ in range(20):
        direction = rng.normal(size=tables.values.size)
        up, down = (objective(tables.values + h * direction) for h in (1e-3, -1e-3))
        assert abs(up - down) / 2e-3 < 0.02
        assert max(up, down) < best + 1e-6
    dropped = lnz.sklearn.MarkovNetwork(CYCLE, smoothing=0.5).fit(HOLES[~np.isnan(HOLES).any(axis=1)])
    assert network.score(HOLES) > dropped.score(HOLES)


def test_pseudo_likelihood_is_lnzs_own_and_its_minimum_is_flat():
    fitted, _, converged = fit_pseudo_likelihood(ROWS, KINDS, np.array(CYCLE), smoothing=1e-9, max_iter=1000, tol=1e-7)
    assert converged

    def loss(energy):
        return jax.numpy.mean(jax.vmap(lambda x: lnz.crf.PseudoLikelihood().loss(energy, x))(jax.numpy.asarray(ROWS)))

    from lnz.sklearn._structure import OneHot, PseudoLikelihood, _matrix

    data = OneHot.of(ROWS, KINDS)
    assert PseudoLikelihood(data)(*_matrix(MODEL, data))[0] == pytest.approx(float(loss(MODEL.graph())), rel=1e-9)
    gradient = jax.grad(loss)(fitted.graph()).log_potentials
    assert float(abs(gradient).max()) < 1e-5


def test_chow_liu_and_ebic_find_the_graph_that_the_rows_come_from():
    tree = [(0, 1), (1, 2), (1, 3), (3, 4)]
    weak = random_model((2, 3, 2, 3, 2), tree, 0.2)
    strong = [table + 1.5 * np.eye(*table.shape) if table.ndim == 2 else table for table in weak.tables]
    rows = rows_of(weak.with_values(strong), 4000)
    assert sorted(map(tuple, lnz.sklearn.MarkovNetwork().fit(rows).edges_)) == tree
    assert sorted(map(tuple, lnz.sklearn.MarkovNetwork("ebic").fit(rows).edges_)) == tree
    ring = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)]
    couplings = np.array([0.6, -0.5, 0.7, 0.5, -0.6, 0.8])
    truth = lnz.Ising.sparse(np.array(ring), couplings, np.linspace(-0.3, 0.4, 6), n=6)
    spins = np.asarray(lnz.exact_samples(truth, jax.random.key(1), 4000))
    ising = lnz.sklearn.Ising("ebic", smoothing=0).fit(spins)
    assert sorted(map(tuple, ising.edges_)) == sorted(ring)
    np.testing.assert_allclose([ising.couplings_[i, j] for i, j in ring], couplings, atol=0.1)
    np.testing.assert_allclose(ising.fields_, np.linspace(-0.3, 0.4, 6), atol=0.1)
    assert ising.score(spins) == pytest.approx(lnz.log_likelihood(ising.energy_, spins).value, abs=1e-5)
    assert ising.score(spins) == pytest.approx(lnz.log_likelihood(truth, spins).value, abs=0.01)
    noise = np.random.default_rng(0).integers(0, 2, (1000, 8))
    assert len(lnz.sklearn.Ising("ebic", gamma=1).fit(noise).edges_) == 0
    assert len(lnz.sklearn.Ising("ebic", gamma=0).fit(noise[:50]).edges_) > 0


@pytest.mark.parametrize(
    "estimator",
    [lnz.sklearn.MarkovNetwork(CYCLE, random_state=3), lnz.sklearn.Ising(CYCLE, random_state=3, binarize=0.5)],
    ids=["categories", "spins"],
)
def test_samples_have_the_probabilities_of_the_model(estimator):
    network = estimator.fit(ROWS)
    drawn = network.sample(20_000)
    assert drawn.shape == (20_000, 4)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    p = np.exp(network.score_samples(np.unique(drawn, axis=0)))
    seen = p * len(drawn) > 5
    chi = ((counts - p * len(drawn)) ** 2 / (p * len(drawn)))[seen].sum()
    assert chi < seen.sum() + 5 * np.sqrt(2 * seen.sum())


def test_a_graph_too_wide_is_fitted_by_pseudo_likelihood_and_says_so(monkeypatch):
    monkeypatch.setattr(_pairwise_tables.PairwiseTables, "too_wide", lambda self: "its tables need 1 TiB")
    spins = 2 * RNG.integers(0, 2, (300, 4)) - 1
    spins[:, 1] = spins[:, 0]
    spins[:30, 1] *= -1
    ising = lnz.sklearn.Ising(CYCLE, random_state=0).fit(spins)
    assert ising.objective_ == "pseudo-likelihood"
    assert ising.couplings_[0, 1] == pytest.approx(np.arctanh(0.8), abs=0.1)
    states = 2.0 * every_state((2,) * 4) - 1
    assert np.exp(ising.score_samples(states)).sum() == pytest.approx(1, abs=1e-5)
    assert np.corrcoef(ising.sample(500).T)[0, 1] > 0.6
    with pytest.raises(ValueError, match="X has missing entries, and sums over them are too expensive on this graph"):
        lnz.sklearn.Ising(CYCLE).fit(np.where(spins == spins[0], np.nan, spins))


def test_wide_graphs_complete_rows_that_are_nearly_known():
    n = 60
    edges = [(i, j) for i in range(n) for j in range(i + 1, n)]
    spins = 2.0 * RNG.integers(0, 2, (80, n)) - 1
    ising = lnz.sklearn.Ising(edges, max_iter=20, tol=1e-1).fit(spins)
    assert ising.objective_ == "pseudo-likelihood"
    row = spins[:1].copy()
    row[0, [3, 7]] = np.nan
    found = ising.predict_proba(row)[0].reshape(n, 2)
    s = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)])
    whole = np.repeat(spins[:1], 4, axis=0)
    whole[:, [3, 7]] = s
    weight = np.exp(-np.array([float(ising.energy_(w)) for w in whole]))
    weight /= weight.sum()
    np.testing.assert_allclose(found[3], [weight[:2].sum(), weight[2:].sum()], atol=1e-5)
    np.testing.assert_allclose(found[7], [weight[::2].sum(), weight[1::2].sum()], atol=1e-5)


def test_data_frames_with_categories_strings_and_missing_values():
    pandas = pytest.importorskip("pandas")
    words = np.array(["low", "middle", "high"])
    frame = pandas.DataFrame(
        {
            "size": pandas.Categorical(words[ROWS[:, 1]], categories=["low", "middle", "high", "never"]),
            "colour": np.array(["red", "blue"])[ROWS[:, 0]],
            "n": ROWS[:, 2].astype(float),
        }
    )
    frame.loc[frame.index[:20], "n"] = np.nan
    frame.loc[frame.index[10:30], "colour"] = None
    frame.loc[frame.index[25:40], "size"] = None
    network = lnz.sklearn.MarkovNetwork([("colour", "size"), ("size", "n")], random_state=0).fit(frame)
    assert [list(c) for c in network.categories_] == [["low", "middle", "high", "never"], ["blue", "red"], [0, 1, 2, 3]]
    assert network.edges_.tolist() == [[0, 1], [0, 2]]
    assert np.isfinite(network.score_samples(frame)).all()
    filled = network.set_output(transform="pandas").transform(frame)
    assert list(filled.columns) == ["size", "colour", "n"]
    assert not filled.isna().any().any()
    known = ~frame["colour"].isna()
    assert (filled["colour"][known] == frame["colour"][known]).all()
    assert set(network.sample(50)[:, 1]) <= {"red", "blue"}
    codes = np.stack(
        [
            np.array([list(c).index(v) if v == v and v is not None else np.nan for v in frame[name]])
            for name, c in zip(frame, network.categories_, strict=True)
        ],
        1,
    )
    numbers = lnz.sklearn.MarkovNetwork([(0, 1), (0, 2)]).fit(np.where(np.isnan(codes), np.nan, codes))
    assert numbers.score(codes) == pytest.approx(network.score(frame), abs=0.02)  # but for the value that never occurs
    with pytest.raises(ValueError, match="column 'colour' has the value 'green', which was not seen in fit"):
        network.score(frame.replace({"colour": {"red": "green"}}))


def test_columns_of_objects_keep_their_kind_and_refuse_what_is_near_a_value():
    table = np.array([[True, 1, 0.5], [False, 2, 1.5], [True, 1, None]], object)
    network = lnz.sklearn.MarkovNetwork().fit(table)
    assert [c.dtype.kind for c in network.categories_] == ["b", "i", "f"]
    assert network.transform(table)[0].tolist() == [True, 1, 0.5]
    for row in ([2, 1, 0.5], [True, 1.5, 0.5], [True, 1, "0.7"]):
        with pytest.raises(ValueError, match="was not seen in fit"):
            network.score_samples(np.array([row], object))
    with pytest.raises(ValueError, match="column 1 held numbers in fit, and now holds something else"):
        network.score_samples(np.array([[True, "one", 0.5]], object))


def test_clone_pickle_pipeline_and_search():
    network = clone(lnz.sklearn.MarkovNetwork(CYCLE, random_state=1)).fit(ROWS)
    copy = pickle.loads(pickle.dumps(network))
    np.testing.assert_array_equal(copy.score_samples(HOLES), network.score_samples(HOLES))
    np.testing.assert_array_equal(copy.sample(5), network.sample(5))
    assert float(copy.log_z_) == float(network.log_z_)
    pipe = make_pipeline(lnz.sklearn.MarkovNetwork(), OneHotEncoder(handle_unknown="ignore"), LogisticRegression())
    assert pipe.fit(HOLES[:, 1:], ROWS[:, 0]).score(HOLES[:, 1:], ROWS[:, 0]) > 0.55
    search = GridSearchCV(lnz.sklearn.MarkovNetwork(), {"smoothing": [1, 1e4]}, cv=2).fit(ROWS)
    assert search.best_params_ == {"smoothing": 1}


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({"edges": "tree"}, ROWS, ValueError, "edges must be 'chow-liu', 'ebic' or a list of pairs of columns, but is 'tree'"),
        ({"edges": [(0, 4)]}, ROWS, ValueError, r"the edge \(0, 4\) must name two different columns of X"),
        ({"edges": [(1, 1)]}, ROWS, ValueError, "must name two different columns"),
        ({"edges": [(0, 1), (1, 0)]}, ROWS, ValueError, "an edge is listed twice"),
        ({"edges": [3]}, ROWS, ValueError, "an edge must be a pair of columns, but is 3"),
        ({"smoothing": -1}, ROWS, ValueError, "smoothing must be a number of at least 0, but is -1"),
        ({}, np.array([[1.0, np.inf], [0, 1]]), ValueError, "infinity"),
        ({}, np.array([[1.0, np.nan], [0, np.nan]]), ValueError, "column 1 has no entry that is known"),
        ({}, np.arange(2002.0)[:, None], ValueError, "column 0 has 2,002 different values"),
        ({}, np.array([["a", 1], ["b", "c"]], object), TypeError, "holds both strings and numbers"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(options, x, error, message):
    with pytest.raises(error, match=message):
        lnz.sklearn.MarkovNetwork(**options).fit(x)


def test_a_fit_cut_short_says_so():
    with pytest.warns(ConvergenceWarning, match="not converged after 1 iterations: raise max_iter"):
        lnz.sklearn.MarkovNetwork(CYCLE, max_iter=1).fit(ROWS)


SCRIPT = """
import numpy as np, jax, lnz
assert not jax.config.jax_enable_x64
x = np.random.default_rng(0).integers(0, 3, (200, 4)).astype(float)
x[:5, 1] = np.nan
network = lnz.sklearn.MarkovNetwork([(0, 1), (1, 2), (0, 2)]).fit(x)
ising = lnz.sklearn.Ising(binarize=1).fit(x)
print(abs(float(network.log_z_) - network._tables.log_z()) < 1e-4, np.isfinite(ising.score(x)), ising.log_z_.guarantee)
"""


def test_it_runs_in_single_precision(single_precision):
    assert single_precision(SCRIPT).split() == ["True", "True", "exact"]
