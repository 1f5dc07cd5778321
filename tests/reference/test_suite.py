"""The models with known log Z are what they say, by exact routes that share nothing with them; and scores tell right from wrong."""

import math

import equinox as eqx
import jax
import numpy as np
import pytest

import lnz
from lnz import reference
from lnz.reference._names import NAMES

# One of every kind that an exact route serves, small: the others differ in size.
CHECKED = ["torus-4x4-critical", "sherrington-kirkpatrick-12", "rbm-patterns-24x6", "gaussian-20"]


@pytest.mark.parametrize("name", CHECKED)
def test_a_model_has_its_log_z_and_gradient(name):
    (model,) = lnz.reference.reference_models(name)
    energy = model.energy()
    route = lnz.choose(energy).route
    parameters, rest = eqx.partition(energy, eqx.is_inexact_array)
    log_z = lambda p: lnz.log_partition(eqx.combine(p, rest), route=route).value  # noqa: E731
    value, gradient = jax.value_and_grad(log_z)(parameters)
    assert float(value) == pytest.approx(model.log_z, rel=1e-10)
    for found, known in zip(jax.tree.leaves(gradient), jax.tree.leaves(model.gradient()), strict=True):
        np.testing.assert_allclose(found, known, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", [m.name for m in lnz.reference.reference_models() if m.name not in CHECKED])
def test_every_other_model_that_can_be_summed(name):
    (model,) = lnz.reference.reference_models(name)
    route = lnz.choose(model.energy()).route
    if route.random:
        pytest.skip("no exact route serves it")
    value = float(lnz.log_partition(model.energy(), route=route).value)
    if model.slopes is None:
        assert model.gradient() is None
    else:
        gradient = eqx.filter_grad(lambda e: lnz.log_partition(e, route=route).value)(model.energy())
        for found, known in zip(jax.tree.leaves(gradient), jax.tree.leaves(model.gradient()), strict=True):
            np.testing.assert_allclose(found, known, rtol=1e-8, atol=1e-9)
    assert abs(value - model.log_z) < 1e-9 * max(1, abs(model.log_z)) or name == "student-10"
    assert abs(value - model.log_z) < 1e-5  # the tails of Student's law are cut off by the quadrature


def test_the_list_is_whole():
    models = lnz.reference.reference_models()
    assert tuple(m.name for m in models) == NAMES
    assert len(set(NAMES)) == len(NAMES) >= 35
    assert all(m.title and m.source and math.isfinite(m.log_z) for m in models)
    assert sum(m.slopes is not None for m in models) >= 15
    with pytest.raises(ValueError, match="no reference model 'torus': there are torus-4x4-hot"):
        lnz.reference.reference_models("torus")


def test_listed_figures():
    """The figures of `reference.VALUES` for the same problems."""
    pairs = {
        "torus-16x16-critical": "A1-16x16",
        "glass-32x32": "A5-32x32-kac-ward",
        "potts-4-5x5": "A6-q4-5x5",
        "field-quartic-64": "A10-quartic",
        "field-free-64": "A10-free",
        "many-well-32": "A11",
        "shells-30": "A12-30",
        "eggbox": "A13",
        "rosenbrock-box": "A14-box",
        "binomial": "A15",
    }
    for name, listed in pairs.items():
        entry = reference.named(listed)
        assert abs(lnz.reference.reference_models(name)[0].log_z - entry.value) <= entry.tolerance, name


def test_densities_are_the_same_for_numpy_and_jax():
    rng = np.random.default_rng(0)
    means = reference.mixture_means(10, 2, half_width=10.0)
    for density, d in (
        (reference.funnel_log_density, 10),
        (reference.gaussian_shells_log_density, 5),
        (reference.many_well_log_density, 4),
        (lambda x: reference.student_mixture_log_density(x, means), 2),
    ):
        x = rng.uniform(0, 3, size=(5, d))
        np.testing.assert_allclose(jax.jit(density)(x[0]), density(x)[0], rtol=1e-12)


def test_what_is_normalised_by_construction():
    """One-dimensional integrals of the laws' parts, and the mean of p/q under a q that is easy to draw from."""
    u = np.linspace(-1000, 1000, 200_001)
    one = np.trapezoid(np.exp(reference.student_mixture_log_density(u[:, None], np.array([[1.0], [-3.0]]))), u)
    assert one == pytest.approx(1, abs=3e-6)
    one = np.exp(reference.gaussian_mixture_log_density(u[:, None], np.array([[1.0], [-3.0]]), scale=0.7))
    assert np.trapezoid(one, u) == pytest.approx(1, abs=1e-8)
    v, w = np.linspace(-15, 15, 151), np.linspace(-8, 8, 201)  # x_2 in units of e^(v/2)
    grid = np.stack([np.repeat(v, w.size), np.outer(np.exp(v / 2), w).ravel()], axis=1)
    density = np.exp(reference.funnel_log_density(grid, scale=3.0)).reshape(v.size, w.size) * np.exp(v / 2)[:, None]
    assert np.trapezoid(np.trapezoid(density, w, axis=1), v) == pytest.approx(1, abs=1e-5)


def test_ring_and_complete_graph_are_lists_of_states():
    n, j, h = 9, 0.4, -0.25
    couplings = np.zeros((n, n))
    for i in range(n):
        couplings[i, (i + 1) % n] = couplings[(i + 1) % n, i] = j
    log_z, (pairs, spins) = reference.ising_sum(couplings, np.full(n, h))
    found, slopes = reference.ring_sum(n, j, h)
    assert found == pytest.approx(log_z, rel=1e-13)
    np.testing.assert_allclose(slopes, [2 * pairs[couplings > 0].sum() / 2, spins.sum()], rtol=1e-12)
    log_z, (pairs, spins) = reference.ising_sum(0.1 * (1 - np.eye(n)), np.full(n, h))
    found, slopes = reference.complete_graph_sum(n, 0.1, h)
    assert found == pytest.approx(log_z, rel=1e-13)
    np.testing.assert_allclose(slopes, [pairs.sum(), spins.sum()], rtol=1e-12)
    with pytest.raises(ValueError, match="Give fewer hidden units"):
        reference.rbm_sum(np.zeros((3, 21)), np.zeros(3), np.zeros(21))
    with pytest.raises(ValueError, match="Give fewer spins"):
        reference.ising_sum(np.zeros((17, 17)), np.zeros(17))


def test_scores_tell_right_from_wrong():
    right, wrong = (12.8, 0.1), (12.0, 0.1)
    seen = []
    for answer, inside in ((right, True), (wrong, False)):
        (score,) = lnz.reference.score_route(
            lambda energy, key, a=answer: a, models=["torus-4x4-hot"], report=seen.append
        )
        assert score.inside is inside
        assert score.error == pytest.approx(answer[0] - 12.7855233257137)
        assert score.upper - score.value == pytest.approx(2.5758 * 0.1, rel=1e-4)
    assert len(seen) == 2
    scores = lnz.reference.score_route(lnz.routes.Torus(), models=["torus-4x4-hot", "glass-10x10"])
    assert scores[0].inside
    assert scores[0].guarantee == "exact"
    assert scores[1].unsupported_reason
    assert not scores[1].inside
    assert "1 of 1 intervals contain the truth" in str(scores)
    assert "unsupported: " in str(scores)
    assert "NO" not in str(scores)
    assert "NO" in str(lnz.reference.score_route(lambda energy, key: wrong, models=["torus-4x4-hot"]))
    (chosen,) = lnz.reference.score_route(models=lnz.reference.reference_models("torus-4x4-hot"))
    assert chosen.guarantee == "exact"


def test_a_bad_estimator_is_refused():
    with pytest.raises(TypeError, match=r"a callable \(energy, key\)"):
        lnz.reference.score_route("ais", models=["torus-4x4-hot"])
    with pytest.raises(TypeError, match=r"a callable \(energy, key\)"):
        lnz.reference.score_route(lnz.routes.Torus, models=["torus-4x4-hot"])
    with pytest.raises(TypeError, match="a value and its standard error in nats, but this one returned 3"):
        lnz.reference.score_route(lambda energy, key: 3.0, models=["torus-4x4-hot"])
    with pytest.raises(ValueError, match="at least 0, but is -1"):
        lnz.reference.score_route(lambda energy, key: (3.0, -1.0), models=["torus-4x4-hot"])
    with pytest.raises(ValueError, match="no reference model 'x'"):
        lnz.reference.score_route(models=["x"])
