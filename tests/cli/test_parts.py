"""The parts behind the commands: coding, defaults, units, samples, strict JSON."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._cli import model_options
from lnz._cli.dataset import Coding, Dataset, choose_coding, divide
from lnz._cli.defaults import fill, updates
from lnz._cli.draw import _draw_annealed, draw
from lnz._cli.output import strict
from lnz._cli.settings import KINDS, Settings
from lnz.io import Data, digits
from lnz.learning._negative import NEGATIVE_PHASES
from lnz.learning._objectives import OBJECTIVES


def filled(columns, rows=90, categories=None, data="x.npy", **options):
    return fill(Settings(data=data, **options), rows=rows, columns=columns, categories=categories)


def rows(values):
    return Data(np.asarray(values), "x.npy")


def test_the_recipe_for_digits():
    settings = filled(64, rows=1258, data="digits")
    assert (settings.hidden, settings.sweeps, settings.chains, settings.batch_size) == (128, 5, 100, 100)
    assert (settings.optimizer, settings.learning_rate, settings.schedule) == ("sgd", 0.2, "linear")
    assert settings.weight_decay == 1e-3
    assert abs(updates(settings, 1258) - 20_000) < 10
    assert settings.epochs / settings.evaluate_every == pytest.approx(20)


def test_general_defaults():
    settings = filled(784, rows=42_000)
    assert (settings.hidden, settings.sweeps, settings.learning_rate, settings.weight_decay) == (500, 1, 0.05, 1e-4)
    assert abs(updates(settings, 42_000) - 20_000) < 420
    looks = settings.epochs / settings.evaluate_every
    assert looks == pytest.approx(8)  # fewer make no curve, more would take over 5 % of the work
    assert filled(5, model="gaussian-rbm").optimizer == "adam"
    assert filled(5, weight_decay=0.0).weight_decay == 0
    assert filled(5, model="potts", categories=3).hidden is None


def test_every_negative_phase_gets_its_options():
    for name, kind in NEGATIVE_PHASES.items():
        options = {} if name == "exact" else {"sweeps": 3, "seed": 0}
        if name in ("tempered", "trajectory"):
            options["rungs"] = 7
        phase = model_options.negative_phase(filled(5, negative_phase=name, **options))
        assert type(phase) is kind
        found = {field.name: getattr(phase, field.name) for field in dataclasses.fields(phase)}
        assert found.get("sweeps", found.get("steps", 3)) == 3
        assert found.get("chains", 100) == 100
        assert name not in ("tempered", "trajectory") or 7 in found.values()
    assert model_options.negative_phase(filled(5, negative_phase="fast-weights", fast_rate=0.0)).fast_rate == 0


def test_every_objective_gets_its_options():
    for name, kind in OBJECTIVES.items():
        settings = filled(20, objective=name)
        assert model_options.negative_phase(settings) is None
        objective = model_options.objective(settings, lnz.Independent(np.zeros(20), lnz.Binary(20)))
        assert type(objective) is kind
        assert getattr(objective, "noise", 0.05) == 0.05 or name == "noise-contrastive"
    assert model_options.objective(filled(20, objective="denoising", model="gaussian-rbm"), None).noise == 0.3


def test_digits_are_split_and_coded():
    coding = choose_coding(digits(), "rbm", binarise="auto", categories=None)
    assert coding.threshold == 8
    assert coding.image_shape == (8, 8)
    found = divide(digits(), coding, fractions=(0.7, 0.1, 0.2), split_seed=0, seed=0, notes=[])
    assert {name: len(part) for name, part in found.parts().items()} == {"train": 1258, "validation": 180, "test": 359}
    order = np.random.RandomState(0).permutation(1797)
    expected = (digits().rows[np.sort(order[1438:])] >= 8).astype(np.uint8)
    assert np.array_equal(found.test, expected)
    assert Coding.from_json(json.loads(json.dumps(found.about()["coding"]))) == coding


def test_spins_from_bits_and_from_spins():
    bits = np.random.default_rng(0).integers(0, 2, (30, 3))
    first = choose_coding(rows(bits), "ising", binarise="auto", categories=None)
    second = choose_coding(rows(2 * bits - 1), "ising", binarise="auto", categories=None)
    coded = [c.encode(rows(x), seed=0, notes=[]) for c, x in ((first, bits), (second, 2 * bits - 1))]
    assert np.array_equal(coded[0], 2 * bits - 1)
    assert np.array_equal(coded[1], 2 * bits - 1)
    assert coded[0].dtype == np.int8


def test_bits_drawn_once():
    grey = np.random.default_rng(0).random((2000, 2))
    coding = choose_coding(rows(grey), "rbm", binarise="stochastic", categories=None)
    first, again, other = (coding.encode(rows(grey), seed=seed, notes=[], fitting=True) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert abs(first.mean() - grey.mean()) < 0.05
    assert not np.array_equal(first, grey >= 0.5)


def test_real_data_and_back():
    """A model of standardised data gives the same density as its image in the data's own units."""
    generator = np.random.default_rng(5)
    data = (np.array([50.0, -3.0, 0.2]) + np.array([9.0, 0.1, 2.0]) * generator.normal(size=(40, 3))).astype(np.float32)
    coding = Coding("real", 3)
    standard = model_options.Standard(coding, data)
    u = standard.data(data)
    assert np.allclose(u.mean(axis=0), 0, atol=1e-4)
    assert np.allclose(u.std(axis=0), 1, atol=1e-4)
    keys = jax.random.split(jax.random.key(1), 4)
    rbm = lnz.GaussianRBM.__new__(lnz.GaussianRBM)
    for name, value in {
        "weights": jax.random.normal(keys[0], (3, 4)),
        "visible_bias": jax.random.normal(keys[1], (3,)),
        "hidden_bias": jax.random.normal(keys[2], (4,)),
        "log_scale": 0.3 * jax.random.normal(keys[3], (3,)),
    }.items():
        object.__setattr__(rbm, name, value)
    inside = lnz.log_likelihood(rbm, u.astype(np.float64))
    outside = lnz.log_likelihood(standard.model(rbm), data.astype(np.float64))
    assert outside.value == pytest.approx(inside.value - standard.log_volume, abs=1e-4)
    assert model_options.Standard(Coding("binary", 3), data).model(rbm) is rbm


def test_weight_decay_spares_biases_and_fields():
    dataset = Dataset("x", Coding("categorical", 3, categories=2), *(np.zeros((4, 3), np.uint8),) * 3, "")
    options = {"model": "potts", "weight_decay": 0.5, "learning_rate": 1.0, "schedule": "constant"}
    settings = filled(3, rows=4, categories=2, **options)
    energy = model_options.build(settings, dataset, jax.random.key(0))
    energy = jax.tree.map(jnp.ones_like, energy)
    optimiser = model_options.optimiser(settings, 10)
    nothing = jax.tree.map(jnp.zeros_like, energy)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, _ = optimiser.update(nothing, optimiser.init(energy), energy)
    assert np.allclose(updates.couplings.strength, -0.5)
    assert np.allclose(updates.fields, 0)


@pytest.mark.parametrize("model", ["rbm", "gaussian-rbm", "potts-rbm", "dbm", "ising", "potts"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weight_decay_finds_the_weights_of_every_model(model, wrapped):
    coding = Coding(KINDS[model], 3, categories=2)
    dataset = Dataset("x", coding, *(np.ones((4, 3), np.int8),) * 3, "")
    hidden = {"dbm": (2, 2), "ising": None, "potts": None}.get(model, 2)
    settings = filled(3, rows=4, categories=coding.categories, model=model, hidden=hidden)
    energy = model_options.build(settings, dataset, jax.random.key(0))
    energy = lnz.SelfNormalised(energy) if wrapped else energy
    named = jax.tree_util.tree_flatten_with_path(model_options._interactions(energy))[0]
    decayed = {jax.tree_util.keystr(path).removeprefix(".energy") for path, chosen in named if chosen}
    weights = {
        "dbm": {".weights[0]", ".weights[1]"},
        "ising": {".couplings.strength"},
        "potts": {".couplings.strength"},
    }
    assert decayed == weights.get(model, {".weights"})


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_end_where_they_should(name, schedule):
    settings = filled(3, rows=100, optimizer=name, schedule=schedule, weight_decay=0.0, learning_rate=0.5)
    optimiser = model_options.optimiser(settings, 8)
    parameters, step = {"w": jnp.ones(3)}, []
    state = optimiser.init(parameters)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(9):
            updates, state = optimiser.update({"w": jnp.ones(3)}, state, parameters)
            step.append(float(jnp.linalg.norm(updates["w"])))
    assert step[0] > 0
    assert (step[-1] > 0.5 * step[0]) == (schedule == "constant")


def exact_pair_means(rbm):
    w, b, c = (np.asarray(p, float) for p in (rbm.weights, rbm.visible_bias, rbm.hidden_bias))
    v = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
    log_p = v @ b + np.logaddexp(0, c + v @ w).sum(axis=1)
    p = np.exp(log_p - np.logaddexp.reduce(log_p))
    return np.einsum("s,si,sj->ij", p, v, v)


def small_rbm():
    keys = jax.random.split(jax.random.key(3), 3)
    return lnz.RBM.from_parameters(
        3.0 * jax.random.normal(keys[0], (4, 3)), jax.random.normal(keys[1], (4,)), jax.random.normal(keys[2], (3,))
    )


def test_samples_follow_the_model():
    """Exact samples and annealed ones have the model's pair means; annealing starts far away and does not sweep after."""
    rbm, n = small_rbm(), 4000
    expected = exact_pair_means(rbm)
    states, how = draw(rbm, None, n, jax.random.key(0))
    assert how == "exact and independent"
    annealed, share = _draw_annealed(rbm, None, jax.random.key(0), n, 1, 0)
    assert 0.1 < share < 0.95  # so few temperatures that the weights matter
    for found, effective in ((states.astype(float), n), (annealed.astype(float), n * share)):
        assert found.shape == (n, 4)
        error = np.sqrt(expected * (1 - expected) / effective)
        assert (np.abs(found.T @ found / n - expected) < 6 * error).all()


def test_exact_samples_by_the_hidden_layer():
    rng = np.random.default_rng(0)
    rbm = lnz.RBM.from_parameters(rng.normal(size=(30, 2)), rng.normal(size=30), rng.normal(size=2))
    states, how = draw(rbm, None, 4000, jax.random.key(1))
    assert how == "exact and independent"
    w, b, c = (np.asarray(p, float) for p in (rbm.weights, rbm.visible_bias, rbm.hidden_bias))
    h = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    inputs = b + h @ w.T
    log_p = h @ c + np.logaddexp(0, inputs).sum(axis=1)
    mean = np.exp(log_p - np.logaddexp.reduce(log_p)) @ (1 / (1 + np.exp(-inputs)))
    assert (np.abs(states.mean(axis=0) - mean) < 6 * np.sqrt(mean * (1 - mean) / 4000) + 1e-9).all()


def test_strict_json():
    found = strict({"a": np.float32(0.5), "b": float("nan"), "c": [np.inf, jnp.ones(())], "d": (None, True, "x", 3)})
    assert found == {"a": 0.5, "b": None, "c": [None, 1.0], "d": [None, True, "x", 3]}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
