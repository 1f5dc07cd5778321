"""Every exact route serves every energy it accepts, with the same value and derivatives as plain NumPy."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.energies import CASES, DISCRETE, Case, named, stencil
from contracts.routes import PAIRS, as_states, exact_routes, measured, pair_id
from listing import log_sum
from lnz._core.numerics import float64

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
every_list = pytest.mark.parametrize(
    "pair", [p for p in PAIRS if p[1].startswith("enum") and p[0].discrete], ids=pair_id
)


def tolerance(pair: tuple[Case, str]) -> float:
    return 1e-8 if pair[1] == "quadrature" else 1e-10


@every_pair
def test_log_partition_agrees_with_the_list(pair):
    case, m = pair[0], measured(*pair)
    truth = np.array([np.real(case.log_z(row)) for row in m.parameters])
    np.testing.assert_allclose(m.value, truth, rtol=tolerance(pair), atol=tolerance(pair))
    assert (m.lower <= truth).all()
    assert (truth <= m.upper).all()
    assert (m.upper - m.lower <= 1e-6 * (1 + np.abs(truth))).all(), "limits that wide say nothing"


@every_pair
def test_gradient_is_the_mean_of_minus_the_energy_gradient(pair):
    """T3 and T5, under jit, vmap and grad. The complex step of the NumPy sum knows nothing of the identity."""
    case, m = pair[0], measured(*pair)
    for row, found in zip(m.parameters, m.gradient, strict=True):
        np.testing.assert_allclose(found, case.gradient(row), rtol=tolerance(pair), atol=tolerance(pair))
        if case.discrete:
            mean = -case.probabilities(row) @ case.energy_gradients(row) if row.size else np.zeros(0)
            np.testing.assert_allclose(found, mean, rtol=1e-10, atol=1e-10)


@every_pair
def test_second_derivatives(pair):
    """T7: ∇² log Z = Cov(∂E) - E[∂²E], against differences of the NumPy gradient and against the covariance."""
    case, m = pair[0], measured(*pair)
    close = 1e-6 if pair[1] == "quadrature" else 1e-8
    for row, direction, found in zip(m.parameters[:3], m.directions, m.curvature, strict=False):
        truth = stencil(case.gradient, row, direction)
        np.testing.assert_allclose(found, truth, rtol=1e-7, atol=close)
    if m.nested is not None:
        np.testing.assert_allclose(m.nested, m.curvature[0], rtol=1e-8, atol=close)
    if case.discrete and case.flat.size:
        p, slopes = case.probabilities(case.flat), case.energy_gradients(case.flat)
        spread = slopes - p @ slopes
        bend = stencil(lambda flat: p @ case.energy_gradients(flat), case.flat, m.directions[0])
        found = spread.T @ (p * (spread @ m.directions[0])) - bend
        np.testing.assert_allclose(found, m.curvature[0], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "route", "words"),
    [
        ("gaussian", "closed form", "exact up to rounding of .*, by a closed form"),
        ("rbm", "enumeration", r"exact up to rounding of .*, by enumeration of 8 states of Binary\(3\)"),
        ("potts odd torus", "enumeration", r"enumeration of 729 states of Categorical\(\(3, 2\), k=3\)"),
        ("double well", "quadrature", r"log Z = 0.692\d* ± .* \(approximate\), by quadrature on 2001\^1"),
    ],
)
def test_routes_say_how_they_know(name, route, words):
    case = named(name)
    estimate = lnz.log_partition(case.energy, route=exact_routes(case)[route])
    assert estimate.guarantee == ("approximate" if route == "quadrature" else "exact")
    assert abs(float(estimate.value) - float(np.real(case.log_z(case.flat)))) <= 1e-9
    assert re.search(words, str(estimate))


@every_list
def test_free_energy_sums_out_the_latent_variables(pair):
    """T6, and its gradient below: the positive phase is the derivative of the free energy."""
    case, m = pair[0], measured(*pair)
    np.testing.assert_allclose(m.free_energies, case.free_energies(case.flat), rtol=1e-11, atol=1e-11)


@every_list
def test_the_phases_cancel_where_the_data_are_the_model(pair):
    """T5: E_p[∇ log p] = 0, with the model's own probabilities as weights of the data."""
    m = measured(*pair)
    np.testing.assert_allclose(m.positive, m.gradient[0], atol=1e-10)


@pytest.mark.parametrize("name", ["rbm", "hard constraints", "product of spaces"])
def test_phases_cancel_where_the_data_are_the_model(name):
    """The same through `lnz.learning.phases`, whose weights of zero leave forbidden states out, infinite energies and all."""
    case = named(name)
    chances = jnp.asarray(case.observed_probabilities(case.flat))
    halves = jax.jit(lambda e, v, w: lnz.learning.phases(e, v, lnz.routes.Enumeration(), weights=w))
    phases = halves(case.energy, as_states(case), chances)
    for leaf in jax.tree.leaves(phases.gradient):
        np.testing.assert_allclose(leaf, 0, atol=1e-11)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(phases.negative)) > 0.1


@pytest.mark.parametrize("pair", [p for p in PAIRS if p[0].thorough and p[0].discrete], ids=pair_id)
def test_expectation_agrees_with_the_list(pair):
    case, m = pair[0], measured(*pair)
    p = case.observed_probabilities(case.flat)
    parts = jax.tree.leaves(case.observed)
    first = parts[0].reshape(len(p), -1)
    values = m.moments.value
    for found, part in zip(jax.tree.leaves(values["state"]), parts, strict=True):
        np.testing.assert_allclose(found, np.tensordot(p, part, axes=1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values["square"], p @ first.sum(axis=1) ** 2, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values["positive"], np.tensordot(p, parts[0] > 0, axes=1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values["one"], 1, rtol=1e-12)
    assert m.moments.guarantee == "exact"
    assert m.moments.lower["square"] <= p @ first.sum(axis=1) ** 2 <= m.moments.upper["square"]


@every_case
def test_the_collapsed_energy_is_no_larger(case):
    """T6: the same Z on a space that is no larger. Its log Z is held to the list of all variables above."""
    small = lnz.capabilities.collapsed(case.energy).space
    assert small.log_size <= lnz.capabilities.observed_space(case.energy).log_size
    assert small.log_size <= case.energy.space.log_size


@pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case.name.replace(" ", "_"))
def test_limits_hold_in_float32(case):
    """Limits allow for rounding: they contain the exact log Z of the rounded parameters, also a thousand times as strong."""
    scales = np.array([1.0, 0.03, 300.0, 1000.0] if case.loud else [1.0, 0.5, 1.5])
    rows = (scales[:, None] * case.flat).astype(np.float32)
    route = next(iter(exact_routes(case).values()))
    with float64(False):
        single = case.single()
        run = jax.jit(jax.vmap(lambda flat: lnz.log_partition(case.at(flat, single), route=route)))
        estimate = run(jnp.asarray(rows))
        assert estimate.value.dtype == jnp.float32
    truth = np.array([np.real(case.log_z(row.astype(float))) for row in rows])
    assert (np.asarray(estimate.lower, float) <= truth).all()
    assert (truth <= np.asarray(estimate.upper, float)).all()
    assert (
        np.asarray(estimate.upper - estimate.lower, float)
        <= 1e-3 * (1 + np.abs(truth).max() + np.abs(rows).max(initial=0))
    ).all()


# ------------------------------------------------------------------------------------------- gauge, order, and extremes


class Shifted(lnz.Energy):
    """E + c(θ), with a c that depends on every parameter."""

    energy: lnz.Energy

    def shift(self):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(self.energy))

    @property
    def space(self):
        return self.energy.space

    def __call__(self, x):
        return self.energy(x) + self.shift()


@pytest.mark.parametrize("name", ["rbm", "ising sparse", "potts dense tables", "hard constraints", "product of spaces"])
def test_gauge(name):
    """T8: a constant c(θ) shifts log Z by -c, and leaves ∇ log p = -∂E - ∇ log Z as it is."""
    case = named(name)

    def both(flat, make):
        energy = make(case.at(flat))
        return lnz.log_partition(energy, route=lnz.routes.Enumeration()).value

    def everything(flat):
        plain, shifted = (jax.value_and_grad(both)(flat, make) for make in (lambda e: e, Shifted))
        return plain, shifted, jax.value_and_grad(lambda flat: Shifted(case.at(flat)).shift())(flat)

    (plain, d_plain), (shifted, d_shifted), (c, dc) = jax.jit(everything)(jnp.asarray(case.flat))
    assert abs(float(plain - shifted - c)) < 1e-10
    np.testing.assert_allclose(d_plain - d_shifted, dc, atol=1e-10)
    assert np.abs(dc).max() > 0.1


def test_centred_and_flipped_rbms_are_the_same_distribution():
    """T8: units h → 1 - h, or offsets (v - μ)ᵀ W (h - λ), change the parameters and log Z, not p(v)."""
    rng = np.random.default_rng(0)
    w, b, c = rng.normal(size=(4, 3)) * 1.5, rng.normal(size=4), rng.normal(size=3)
    states = jnp.asarray(named("rbm").observed)
    mu, lam = rng.uniform(size=4), rng.uniform(size=3)
    machines = {
        "plain": (w, b, c, 0.0),
        "hidden flipped": (-w, b + w.sum(axis=1), -c, c.sum()),
        # -E = (v - μ)ᵀb' + (h - λ)ᵀc' + (v - μ)ᵀW(h - λ) with b' = b + Wλ, c' = c + Wᵀμ
        "centred": (w, b, c, -mu @ (b + w @ lam) - lam @ (c + w.T @ mu) + mu @ w @ lam),
    }
    stacked = lnz.RBM.from_parameters(w, b, c)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *(lnz.RBM.from_parameters(*m[:3]) for m in machines.values()))

    def log_p(rbm):
        return -jax.vmap(rbm.free_energy)(states) - lnz.log_partition(rbm, route=lnz.routes.Enumeration()).value

    table = np.asarray(jax.jit(jax.vmap(log_p))(stacked))
    np.testing.assert_allclose(table[1:], table[[0, 0]], atol=1e-10)
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1, atol=1e-12)


def test_all_log_probabilities_are_at_most_zero():
    for case in (named("rbm"), named("hard constraints"), named("mixture of spins")):
        log_p = -case.free_energies(1.0 * case.flat) - float(lnz.log_partition(case.energy).value)
        assert (log_p <= 0).all()


def forbidden(theta, s):
    return jnp.where(s[0] > -10, jnp.inf, theta)


def not_a_number(theta, s):
    return jnp.where((s[0] < 0) & (s[1] > 0) & (s[4] < 0), jnp.nan, theta * s[0])


def bottomless(theta, s):
    return jnp.where((s[0] < 0) & (s[1] > 0) & (s[2] < 0), -jnp.inf, theta)


def infinite_slope(theta, s):
    """θ · ∞ where a state is forbidden: 0 · ∞ lies in wait in every weighted gradient."""
    return theta * jnp.where((s[0] > 0) & (s[1] > 0), jnp.inf, 1.0) + theta**2 * s[3]


def of(function, space, theta=0.3):
    return lnz.FunctionEnergy(jax.tree_util.Partial(function, jnp.asarray(theta)), space)


IN_BLOCKS = [lnz.routes.Enumeration(), lnz.routes.Enumeration(memory=8 * 8 * 64)]
both_ways = pytest.mark.parametrize("route", IN_BLOCKS, ids=["one block", "blocks"])


@both_ways
def test_no_possible_state(route):
    energy = of(forbidden, lnz.Spin(5))
    estimate = lnz.log_partition(energy, route=route)
    assert float(estimate.value) == -np.inf
    assert "-inf" in str(estimate)
    assert "nan" not in str(estimate)
    assert jax.grad(lambda e: lnz.log_partition(e, route=route).value)(energy).parameters.args[0] == 0
    with pytest.raises(ValueError, match="every state has probability zero"):
        lnz.expectation(energy, lambda s: s, route=route)


@both_ways
def test_nan_energies_are_never_averaged_away(route):
    energy = of(not_a_number, lnz.Spin(5))
    with pytest.raises(ValueError, match="log Z is NaN: the energy FunctionEnergy is NaN for some state"):
        lnz.log_partition(energy, route=route)
    with pytest.raises(ValueError, match=r"E\[f\] is NaN"):
        lnz.expectation(energy, lambda s: s, route=route)
    value, slope = jax.value_and_grad(lambda e: lnz.log_partition(e, route=route).value)(energy)
    assert np.isnan(value)
    assert np.isnan(slope.parameters.args[0])


@both_ways
def test_an_energy_without_a_floor_is_refused(route):
    with pytest.raises(ValueError, match=r"log Z is \+inf: the energy FunctionEnergy is -inf for some state"):
        lnz.log_partition(of(bottomless, lnz.Spin(5)), route=route)


@both_ways
def test_forbidden_states_with_infinite_slopes_leave_no_nan(route):
    def log_z(theta):
        return lnz.log_partition(of(infinite_slope, lnz.Binary(5), theta), route=route).value

    theta = 0.7
    truth = lambda t: np.log(4 * 3) - t + np.log(1 + np.exp(-(t**2)))  # noqa: E731
    value, slope = jax.value_and_grad(log_z)(theta)
    curve = jax.jvp(jax.grad(log_z), (theta,), (1.0,))[1]
    h = 1e-4
    assert abs(value - truth(theta)) < 1e-12
    assert abs(slope - (truth(theta + h) - truth(theta - h)) / (2 * h)) < 1e-7
    assert abs(curve - (truth(theta + h) - 2 * truth(theta) + truth(theta - h)) / h**2) < 1e-6


def shifted(parameters, s):
    return parameters[1] - jnp.dot(parameters[0], s)


def test_rounding_follows_the_energies_and_not_log_z():
    """A gauge that brings log Z to zero leaves the energies large, and their rounding with them."""
    rng = np.random.default_rng(1)
    with float64(False):
        for trial in range(8):
            fields = rng.normal(size=6).astype(np.float32) * 3e3
            shift = np.float32(np.logaddexp(fields.astype(float), -fields.astype(float)).sum())
            parameters = (jnp.asarray(fields), jnp.asarray(shift))
            estimate = lnz.log_partition(lnz.FunctionEnergy(jax.tree_util.Partial(shifted, parameters), lnz.Spin(6)))
            wide = np.asarray(fields, float)
            truth = np.logaddexp(wide, -wide).sum() - float(shift)
            assert float(estimate.lower) <= truth <= float(estimate.upper), trial


def test_limits_of_closed_forms_allow_for_cancellation():
    """Normalised components: a_k and log Z_k cancel, and leave their rounding behind."""
    rng = np.random.default_rng(2)
    with float64(False):
        for n in (50, 500):
            precisions = [np.exp(3 * rng.normal(size=n)).astype(np.float32) for _ in range(2)]
            closed = [0.5 * (n * np.log(2 * np.pi) - np.log(p.astype(float)).sum()) for p in precisions]
            log_weights = np.float32(np.log([0.3, 0.7]) - closed)
            parts = [lnz.Gaussian(np.zeros(n, np.float32), p) for p in precisions]
            estimate = lnz.log_partition(lnz.Mixture(log_weights, parts))
            truth = log_sum(log_weights.astype(float) + closed)
            assert float(estimate.lower) <= truth <= float(estimate.upper)


def test_strong_couplings():
    """A thousand times the couplings: no overflow in any route, and the gradient is the ground state's."""
    case = named("ising dense")
    m = measured(case, "enumeration")
    ground = case.states[0][np.argmax(case.weights(case.flat))]
    np.testing.assert_allclose(m.gradient[3][-5:], ground, atol=1e-12)


def test_batched_energies_with_strong_weights_have_second_derivatives():
    """Products of exponentials overflow at such weights: under vmap that branch must not leak into the other's derivative."""
    case = named("rbm")

    def curvature(flat):
        slope = jax.grad(lambda flat: lnz.log_partition(case.at(flat), route=lnz.routes.Enumeration()).value)
        return jax.grad(lambda flat: jnp.sum(slope(flat)))(flat)

    found = jax.jit(jax.vmap(curvature))(jnp.asarray(np.stack([case.flat, 200 * case.flat])))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(
        found[0], stencil(case.gradient, case.flat, np.ones(case.flat.size)), rtol=1e-7, atol=1e-8
    )


def test_forward_mode_says_what_to_do_instead():
    """A custom reverse rule has no forward mode of its own; over `grad` it composes, as the second derivatives show."""
    case = named("ising chain")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda flat: lnz.log_partition(case.at(flat)).value, (case.flat,), (case.flat,))
