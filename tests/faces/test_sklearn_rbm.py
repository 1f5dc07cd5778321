"""`lnz.sklearn.RBM` against enumeration, against scikit-learn's own machine, and in scikit-learn's machinery."""

import itertools
import pickle

import jax
import jax.monitoring
import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline

import lnz
from lnz.learning import Alarm, ExactPhase, MonitorReport
from lnz.sklearn._padded_rbm import ascent, learned_part, machine_inside, padded_machine, padded_states
from lnz.sklearn._visible_units import gaussian_rbm, units_of

RNG = np.random.default_rng(3)
BITS = (RNG.random((60, 5)) < [0.9, 0.2, 0.5, 0.7, 0.4]).astype(float)
BITS[:, 1] = BITS[:, 0] * (RNG.random(60) < 0.8)
MODES = ((RNG.random((80, 1)) < 0.6) ^ (RNG.random((80, 6)) < 0.05)).astype(float)  # all on or all off, nearly
THREES = RNG.integers(0, 3, (60, 4))
REALS = RNG.normal([3, -100, 0.5], [0.1, 40, 1], (200, 3))


def fitted(x, **options):
    return lnz.sklearn.RBM(n_components=4, n_iter=30, random_state=0, **options).fit(x)


def every_log_p(rbm, values, n):
    """log p of every state, by Σ_h exp(-E(v, h)) over every hidden state."""
    states = np.array(list(itertools.product(values, repeat=n)), float)
    phi = np.eye(3)[states.astype(int)].reshape(len(states), -1) if len(values) == 3 else states
    hidden = np.array(list(itertools.product([0, 1], repeat=len(rbm.components_))), float)
    joint = (
        (phi @ rbm.intercept_visible_)[:, None] + hidden @ rbm.intercept_hidden_ + phi @ rbm.components_.T @ hidden.T
    )
    log_weight = np.logaddexp.reduce(joint, axis=1)
    return states, log_weight - np.logaddexp.reduce(log_weight)


@pytest.mark.parametrize(("x", "values", "visible"), [(BITS, [0, 1], "bernoulli"), (THREES, [0, 1, 2], "potts")])
def test_score_samples_is_the_enumerated_log_likelihood(x, values, visible):
    rbm = fitted(x, visible=visible)
    states, log_p = every_log_p(rbm, values, x.shape[1])
    np.testing.assert_allclose(rbm.score_samples(states), log_p, atol=2e-5)
    assert rbm.log_z_.guarantee == "exact"
    assert rbm.log_likelihood(x).value == pytest.approx(rbm.score(x), abs=1e-5)
    assert rbm.score(x) > -x.shape[1] * np.log(len(values))  # better than the uniform distribution


def test_gaussian_units_are_a_density_of_x_itself():
    rbm = fitted(REALS, visible="gaussian", learning_rate=0.01)
    hidden = np.array(list(itertools.product([0, 1], repeat=4)), float)
    variance = np.square(rbm.scale_.astype(float))
    mean = rbm.intercept_visible_ + hidden @ rbm.components_
    log_weight = hidden @ rbm.intercept_hidden_ + (
        (mean**2 - rbm.intercept_visible_.astype(float) ** 2) / (2 * variance)
    ).sum(axis=1)
    log_weight -= np.logaddexp.reduce(log_weight)
    normal = -((REALS[:, None] - mean) ** 2 / (2 * variance) + np.log(2 * np.pi * variance) / 2).sum(axis=2)
    truth = np.logaddexp.reduce(normal + log_weight, axis=1)
    np.testing.assert_allclose(rbm.score_samples(REALS), truth, atol=1e-3)
    naive = (
        -(((REALS - REALS.mean(0)) / REALS.std(0)) ** 2 / 2 + np.log(2 * np.pi * REALS.var(0)) / 2).sum(axis=1).mean()
    )
    assert naive - 0.3 < rbm.score(REALS) < naive + 0.3
    odds = rbm.intercept_hidden_ + (REALS / variance) @ rbm.components_.T
    np.testing.assert_allclose(rbm.transform(REALS), 1 / (1 + np.exp(-odds)), atol=1e-4)


def test_a_machine_of_standardised_values_is_written_in_the_units_of_x():
    x = REALS[:50]
    units = units_of("gaussian", x, None)
    parameters = [RNG.normal(size=shape).astype(np.float32) for shape in ((3, 4), 3, 4, 3)]
    inside = gaussian_rbm(*parameters)
    own = lnz.log_partition(inside.collapsed(), route=lnz.routes.Enumeration()).value
    outside = units.of_x(inside)
    other = lnz.log_partition(outside.collapsed(), route=lnz.routes.Enumeration()).value
    log_p = -np.array([float(inside.free_energy(jax.numpy.asarray(row))) for row in units.states(x)]) - float(own)
    of_x = -np.array([float(outside.free_energy(jax.numpy.asarray(row.astype(np.float32)))) for row in x]) - float(
        other
    )
    np.testing.assert_allclose(of_x, log_p - np.log(units.scale).sum(), atol=2e-2)


@pytest.mark.parametrize(
    ("visible", "x"),
    [("bernoulli", BITS), ("potts", THREES), ("gaussian", REALS)],
    ids=["bernoulli", "potts", "gaussian"],
)
def test_padding_changes_neither_the_distribution_nor_its_gradient(visible, x):
    units = units_of(visible, x.astype(float), 0.5)
    inside = units.start(x.astype(float), RNG.normal(0, 0.5, (x.shape[1] * units.per_unit(), 3)).astype(np.float32))
    machine = padded_machine(inside, units)
    states = units.states(x.astype(float))
    again = machine_inside(machine, inside)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(again), strict=True))

    def gradient(energy, data):
        def mean(energy):
            free = jax.numpy.mean(jax.vmap(energy.free_energy)(jax.numpy.asarray(data)))
            return free + lnz.log_partition(energy, route=lnz.routes.Enumeration()).value.astype(free.dtype)

        return jax.tree.leaves(jax.grad(mean)(energy))

    own, wide = gradient(inside, states), gradient(machine, padded_states(states, machine))
    kept = learned_part(machine, inside)
    for a, b, m in zip(own, wide, jax.tree.leaves(kept), strict=True):
        corner = np.asarray(b)[tuple(slice(n) for n in a.shape)]
        np.testing.assert_allclose(corner, a, atol=2e-5)
        assert m.sum() == a.size
    optimizer = ascent(0.1, kept)
    trainer = lnz.Trainer(optimizer, ExactPhase(lnz.routes.Enumeration()))
    state = trainer.init(machine, jax.random.key(0), batch_size=4)
    state, _ = trainer.step(state, padded_states(states, machine))
    for leaf, m in zip(jax.tree.leaves(state.energy), jax.tree.leaves(kept), strict=True):
        assert not np.asarray(leaf)[np.asarray(m) == 0].any()


def test_it_learns_what_sklearn_learns_and_says_how_likely_it_is():
    from sklearn.datasets import load_digits

    x = (load_digits().data[:600] > 7).astype(float)
    options = {"n_components": 12, "learning_rate": 0.05, "n_iter": 20, "random_state": 0}
    ours, theirs = lnz.sklearn.RBM(**options).fit(x), BernoulliRBM(**options).fit(x)
    energy = lnz.RBM.from_parameters(
        *(a.astype(np.float32) for a in (theirs.components_.T, theirs.intercept_visible_, theirs.intercept_hidden_))
    )
    assert ours.score(x) > lnz.log_likelihood(energy, x).value - 0.3
    assert ours.components_.shape == theirs.components_.shape
    assert ours.h_samples_.shape == theirs.h_samples_.shape
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        setattr(theirs, name, getattr(ours, name).astype(float))
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), atol=1e-6)
    assert set(theirs.get_params()) <= set(ours.get_params())


def test_sweeps_are_those_of_the_chains():
    one, three = (lnz.sklearn.RBM(n_components=4, n_iter=100, sweeps=n, random_state=0).fit(MODES) for n in (1, 3))
    assert (one.components_ != three.components_).any()
    independent = sum(c * np.log(c / 80) for col in MODES.T for c in (col.sum(), 80 - col.sum())) / 80
    assert min(one.score(MODES), three.score(MODES)) > independent + 1


def test_gibbs_has_the_model_as_its_stationary_distribution():
    rbm = fitted(BITS)
    states, log_p = every_log_p(rbm, [0, 1], 5)
    start = states[RNG.choice(len(states), 20_000, p=np.exp(log_p))]
    after = rbm.gibbs(start)
    assert after.dtype == bool
    counts = np.bincount(after.astype(int) @ 2 ** np.arange(5)[::-1], minlength=32)
    expected = np.exp(log_p) * len(start)
    assert ((counts - expected) ** 2 / expected).sum() < 70  # 31 degrees of freedom: exceeded with probability 1e-4
    assert (rbm.gibbs(start[:50]) != after[:50]).any()


def test_partial_fit_learns_and_goes_on_after_fit():
    rbm = lnz.sklearn.RBM(n_components=4, random_state=0)
    for _ in range(100):
        for i in range(0, 80, 13):
            rbm.partial_fit(MODES[i : i + 13])
    independent = sum(c * np.log(c / 80) for col in MODES.T for c in (col.sum(), 80 - col.sum())) / 80
    assert rbm.score(MODES) > independent + 1
    before = rbm.components_
    assert (rbm.partial_fit(MODES).components_ != before).any()
    whole = fitted(BITS)
    log_z = float(whole.log_z_)
    assert float(whole.partial_fit(BITS).log_z_) != log_z


def test_small_models_of_many_sizes_share_one_program(monkeypatch):
    asked = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: asked.append(name))
    for n, hidden in ((3, 2), (5, 9), (9, 16)):
        x = (RNG.random((30 + n, n)) < 0.5).astype(float)
        before = len([name for name in asked if "backend_compile" in name])
        lnz.sklearn.RBM(n_components=hidden, n_iter=1 + n, learning_rate=0.1 / n, random_state=n).fit(x)
        last = len([name for name in asked if "backend_compile" in name]) - before
    jax.monitoring.clear_event_listeners()
    assert last == 0


def test_clone_pickle_pipeline_search_and_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(BITS, columns=list("abcde"))
    rbm = clone(fitted(frame)).set_output(transform="pandas").fit(frame)
    shown = rbm.transform(frame)
    assert list(shown.columns) == ["rbm0", "rbm1", "rbm2", "rbm3"]
    assert list(rbm.feature_names_in_) == list("abcde")
    copy = pickle.loads(pickle.dumps(rbm))
    np.testing.assert_array_equal(copy.transform(frame), shown)
    assert copy.score(frame) == rbm.score(frame)
    copy.partial_fit(frame)
    y = BITS[:, 0].astype(int)
    pipe = make_pipeline(lnz.sklearn.RBM(n_components=4, random_state=0), LogisticRegression())
    search = GridSearchCV(pipe, {"rbm__n_iter": [1, 20]}, cv=2).fit(BITS, y)
    assert search.best_score_ > 0.6
    alone = GridSearchCV(lnz.sklearn.RBM(n_components=4, random_state=0), {"n_iter": [1, 100]}, cv=2).fit(MODES)
    assert alone.best_params_ == {"n_iter": 100}


def test_alarms_of_the_monitor_are_warnings(monkeypatch):
    import lnz.sklearn._rbm as module

    alarm = Alarm(8, "lag", "the chains mix slowly", "Raise sweeps")
    real = module.fit

    def with_alarm(*arguments, **options):
        assert options["monitor"] is not None
        return real(*arguments, **options | {"monitor": None})._replace(reports=[MonitorReport(8, {}, (alarm,))])

    monkeypatch.setattr(module, "fit", with_alarm)
    monkeypatch.setattr(module.Monitor, "every", lambda self, *_: 8)
    with pytest.warns(ConvergenceWarning, match="update 8: the chains mix slowly. Raise sweeps"):
        fitted(BITS)


@pytest.mark.parametrize(
    ("options", "x", "error", "message"),
    [
        ({"n_components": 0}, BITS, ValueError, "n_components"),
        ({"n_iter": 1.5}, BITS, ValueError, "n_iter"),
        ({"sweeps": 0}, BITS, ValueError, "sweeps"),
        ({"learning_rate": -1}, BITS, ValueError, "learning_rate must be a number above 0"),
        ({"visible": "spins"}, BITS, ValueError, "visible must be one of bernoulli, gaussian, potts, but is 'spins'"),
        ({"binarize": None}, BITS / 2, ValueError, "0 or 1"),
        ({"visible": "potts"}, BITS / 2, ValueError, "an integer in"),
        ({}, BITS * np.nan, ValueError, "NaN"),
        ({}, BITS[:1], ValueError, "1 sample"),
    ],
)
def test_bad_input_is_refused(options, x, error, message):
    with pytest.raises(error, match=message):
        lnz.sklearn.RBM(**options).fit(x)


def test_values_outside_the_unit_interval_are_read_aloud():
    with pytest.warns(DataConversionWarning, match=r"outside \[0, 1\]"):
        fitted(BITS * 255)
    fitted(BITS * 255, binarize=127)
    with pytest.raises(NotFittedError):
        _ = lnz.sklearn.RBM().log_z_


SCRIPT = """
import numpy as np, jax, lnz
assert not jax.config.jax_enable_x64
x = (np.random.default_rng(0).random((60, 5)) < 0.4).astype(float)
for visible, data in (("bernoulli", x), ("potts", x.astype(int)), ("gaussian", x)):
    rbm = lnz.sklearn.RBM(n_components=3, visible=visible, learning_rate=0.01, random_state=0).fit(data)
    assert np.isfinite(rbm.score_samples(data)).all() and rbm.transform(data).dtype == np.float64
    rbm.partial_fit(data), rbm.gibbs(data)
print(round(float(np.exp(lnz.sklearn.RBM(n_components=3, random_state=0).fit(x).score_samples(
    np.indices((2,) * 5).reshape(5, -1).T)).sum()), 3))
"""


def test_it_runs_in_single_precision(single_precision):
    assert single_precision(SCRIPT).strip() == "1.0"
