"""Every warning of an estimate: what raises it, where it is silent, and what it says."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.estimate import Estimate
from lnz._core.estimate_warning import MESSAGES, EstimateWarning
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.annealing_route import from_weights, path_flags
from lnz.routes._annealing.fitted_smc import still_rises
from lnz.routes._annealing.mode_probes import _compared, compared, searched
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.schedule import fixed_ladder

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
COUPLINGS = np.triu(RNG.normal(size=(40, 40)), 1)
FIELDS = RNG.normal(size=40)
WEIGHTS = RNG.normal(size=(20, 6))


def glass(strength):
    return lnz.Ising(strength * (COUPLINGS + COUPLINGS.T), strength * FIELDS)


def machine(strength):
    return lnz.RBM.from_parameters(strength * WEIGHTS, strength * FIELDS[:20], strength * FIELDS[20:26])


NARROW = lnz.FunctionEnergy(lambda x: 1e4 * jnp.sum(jnp.square(x - 0.3)), lnz.Box(np.zeros(2), np.ones(2)))


def weighed(log_weights, stuck=0.0):
    figures = {"stuck_chains": jnp.asarray(stuck)}
    estimate = from_weights(
        jnp.asarray(log_weights, float), confidence=0.99, route="", assumption="", diagnostics=figures, flags={}
    )
    return estimate.flags


def at_path_end(f, base=None):
    x = jnp.asarray(3 + np.random.default_rng(0).normal(size=(5, 2)))
    return path_flags(Path(lnz.FunctionEnergy(f, lnz.Real(2)), base), x)


def bowl(x):
    return jnp.sum(x**2)


def within_a_box(x):
    return jnp.where(jnp.all(jnp.abs(x) < 1), 0.0, jnp.inf)


@functools.cache
def probed(missing_mode):
    rng = np.random.default_rng(0)
    energy = lnz.RBM.from_parameters(0.7 * rng.normal(size=(40, 8)), rng.normal(size=40), rng.normal(size=8))
    if missing_mode:
        energy = lnz.reference.reference_models("rbm-hidden-mode-40x8")[0].energy()
    route = lnz.routes.AnnealedImportanceSampling(temperatures=40, chains=24, mode_probes=24)
    return lnz.log_partition(energy, route=route, key=KEY).flags


def moved_on(shift):
    """Chains that annealing left so far from where the model is."""
    ends = 0.3 + shift + 0.5**0.5 * 0.01 * jax.random.normal(KEY, (200, 2))
    value = jnp.asarray(-5.0)
    estimate = Estimate(value, value, value - 1, value + 1, "conditional", "", 0.99)
    ladder = fixed_ladder(np.linspace(0, 1, 201))
    ladder = ladder._replace(log_steps=jnp.full_like(ladder.log_steps, np.log(3e-3)))
    options = {"kernel": default_kernel(NARROW), "mode_probes": 64, "sweeps": 1}
    search = searched(Path(NARROW), jax.random.key(1), ends, jnp.zeros(200), ladder, **options)
    found = compared(estimate, *(-jax.vmap(NARROW)(v) for v in reversed(search.groups)))
    return found.flags


def populations(strength):
    route = lnz.routes.SequentialMonteCarlo(particles=4, replicates=4, conditional=0.5)
    return lnz.log_partition(glass(strength), route=route, key=KEY).flags


@functools.cache
def ladders(strength, rungs=3):
    route = lnz.routes.ParallelTempering(rungs=rungs, iterations=64, replicates=8)
    return lnz.log_partition(glass(strength), route=route, key=KEY).flags


def integrated(penalty):
    """Thermodynamic integration where states with the first spin down cost so much."""
    energy = lnz.FunctionEnergy(lambda s: jnp.where(s[0] > 0, 0.3 * s[1] * s[2], penalty), lnz.Spin(3))
    route = lnz.routes.ParallelTempering(rungs=3, iterations=16, replicates=2, estimator="thermodynamic integration")
    return jax.jit(route.log_partition)(energy, KEY).flags


@functools.cache
def directions(strength):
    """Reverse chains from states whose units are all off."""
    route, samples = lnz.routes.BidirectionalAIS(temperatures=8, chains=256), jnp.zeros((256, 20))
    return jax.jit(lambda energy: route.between(energy, samples, KEY, exact=False).estimate)(machine(strength)).flags


def repeated(*, within, max_seconds):
    route = lnz.routes.AnnealedImportanceSampling(temperatures=8, chains=16)
    return lnz.log_partition_to_accuracy(glass(0.01), route, KEY, within=within, max_seconds=max_seconds).flags


def averaged(f):
    """An expectation of a normal distribution in the plane, by annealing."""
    route = lnz.routes.AnnealedImportanceSampling(temperatures=30, chains=1024)
    return lnz.expectation(lnz.FunctionEnergy(bowl, lnz.Real(2)), f, route=route, key=KEY).flags


def integral(width):
    """Quadrature of a ridge in a box."""
    ridge = lnz.FunctionEnergy(lambda x: x[1] ** 2 + ((x[0] - x[1]) / width) ** 2, lnz.Box(-3.0, 3.0, shape=2))
    return lnz.log_partition(ridge, route=lnz.routes.Quadrature(points=129)).flags


def of_size(offset):
    """Weights of chains in a model whose energy has an offset: where digits are lost, nothing is certain."""
    estimate = from_weights(
        jnp.asarray(np.linspace(0, 1, 64)) - offset, confidence=0.99, route="", assumption="", diagnostics={}, flags={}
    )
    code = EstimateWarning.LOST_DIGITS
    assert (code in estimate.warning_codes) == np.isneginf(float(estimate.lower))
    return {code: code in estimate.warning_codes}


def rounds(before):
    return {EstimateWarning.UNSETTLED_BASE: still_rises([(-3.0, 0.5), (before, 0.1), (0.0, 0.02)], 0.2)}


def bridged(apart):
    """Two normal chains, so far apart, of the same model; and a model that the base of half of the draws does not cover."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2, 600, 1)) + apart * np.array([-1.0, 1.0])[:, None, None]

    def modes(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - apart) ** 2), -0.5 * jnp.sum((x + apart) ** 2))

    return lnz.evidence_from_draws(draws, modes, key=KEY).estimate.flags


def narrow(width):
    """Draws on a ring: the narrower, the less a unimodal base overlaps with them."""
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, size=(2, 600))
    radius = 1 + width * np.random.default_rng(1).normal(size=(2, 600))
    draws = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    def ring(x):
        r = jnp.sqrt(jnp.sum(x**2))
        return -0.5 * ((r - 1) / width) ** 2 - jnp.log(r)

    return lnz.evidence_from_draws(draws, ring, key=KEY).estimate.flags


class Case(NamedTuple):
    raised: Callable[[], dict[EstimateWarning, Any]]
    silent: Callable[[], dict[EstimateWarning, Any]]


EVEN = Case(lambda: weighed([30.0] + [0.0] * 63), lambda: weighed(np.linspace(0, 1, 64)))
CASES = {
    EstimateWarning.ZERO_WEIGHTS: EVEN._replace(raised=lambda: weighed([-np.inf] * 64)),
    EstimateWarning.FEW_EFFECTIVE_SAMPLES: EVEN,
    EstimateWarning.UNCOVERED_STATES: Case(
        lambda: at_path_end(bowl, lnz.FunctionEnergy(within_a_box, lnz.Real(2))), lambda: at_path_end(bowl)
    ),
    EstimateWarning.INFINITE_Z: Case(lambda: at_path_end(lambda x: x[0] ** 2), lambda: at_path_end(bowl)),
    EstimateWarning.MISSED_MODES: Case(lambda: probed(True), lambda: probed(False)),
    EstimateWarning.LAGGING_CHAINS: Case(lambda: moved_on(0.6), lambda: moved_on(0.0)),
    EstimateWarning.STUCK_CHAINS: Case(
        lambda: weighed(np.linspace(0, 1, 64), 0.3), lambda: weighed(np.linspace(0, 1, 64), 0.02)
    ),
    EstimateWarning.POPULATIONS_DISAGREE: Case(lambda: populations(1.0), lambda: populations(0.01)),
    EstimateWarning.UNSETTLED_BASE: Case(lambda: rounds(-0.5), lambda: rounds(-0.1)),
    EstimateWarning.LADDERS_DISAGREE: Case(lambda: ladders(1.0), lambda: ladders(0.01)),
    EstimateWarning.FEW_ROUND_TRIPS: Case(lambda: ladders(1.0), lambda: ladders(0.01)),
    EstimateWarning.POOR_RUNG_OVERLAP: Case(lambda: ladders(1.0), lambda: ladders(0.01)),
    EstimateWarning.DIVERGENT_INTEGRATION: Case(lambda: integrated(np.inf), lambda: integrated(1.0)),
    EstimateWarning.STEPPING_STONES_DISAGREE: Case(lambda: ladders(1.0, 2), lambda: ladders(0.01, 2)),
    EstimateWarning.DIRECTIONS_DISAGREE: Case(lambda: directions(1.0), lambda: directions(0.1)),
    EstimateWarning.POOR_DIRECTION_OVERLAP: Case(lambda: directions(30.0), lambda: directions(0.1)),
    EstimateWarning.HEAVY_TAILED_EXPECTATION: Case(
        lambda: averaged(lambda x: jnp.exp(2.0 * x[0] ** 2)), lambda: averaged(lambda x: jnp.append(x, x**2))
    ),
    EstimateWarning.UNRESOLVED_INTEGRAL: Case(lambda: integral(1e-4), lambda: integral(1.0)),
    EstimateWarning.UNMIXED_DRAWS: Case(lambda: bridged(3.0), lambda: bridged(0.0)),
    EstimateWarning.POOR_BASE_OVERLAP: Case(lambda: narrow(0.003), lambda: narrow(0.2)),
    EstimateWarning.LOST_DIGITS: Case(lambda: of_size(2e16), lambda: of_size(4e15)),
    EstimateWarning.OUT_OF_TIME: Case(
        lambda: repeated(within=1e-9, max_seconds=1e-3), lambda: repeated(within=9.0, max_seconds=600.0)
    ),
}


@pytest.mark.parametrize("code", EstimateWarning)
def test_every_warning_is_raised_where_it_applies_and_silent_elsewhere(code):
    case = CASES[code]
    assert bool(case.raised()[code])
    assert not bool(case.silent()[code])


def test_every_warning_has_a_cause_and_a_remedy():
    assert set(MESSAGES) == set(EstimateWarning)
    for code in EstimateWarning:
        assert code.message == f"{code.cause}. {code.remedy}"
        assert all(text[0].isupper() and not text.endswith(".") for text in (code.cause, code.remedy))


def test_an_estimate_lists_its_warnings_in_the_order_of_the_table():
    flags = {EstimateWarning.OUT_OF_TIME: jnp.asarray([False, True]), EstimateWarning.INFINITE_Z: jnp.asarray(True)}
    flags |= {EstimateWarning.ZERO_WEIGHTS: jnp.asarray(False)}
    zero = jnp.zeros(2)
    estimate = Estimate(zero, zero, zero, zero, "conditional", "", flags=flags)
    assert estimate.warning_codes == [EstimateWarning.INFINITE_Z, EstimateWarning.OUT_OF_TIME]
    assert estimate.warnings == [code.message for code in estimate.warning_codes]
    assert jax.jit(lambda e: jnp.asarray(len(e.warning_codes)))(estimate) == 0  # nothing is known while it is traced


@pytest.mark.parametrize(("nu", "power", "heavy"), [(1.0, 1, True), (1.1, 1, True), (3.0, 2, False), (5.0, 1, False)])
def test_an_average_of_a_heavy_tail_is_warned_about(nu, power, heavy):
    """E|x|^k of independent Student units, which annealed chains in the middle give no sign of: the tail of f e^-E is looked at far out."""
    energy = lnz.FunctionEnergy(lambda x: 0.5 * (nu + 1) * jnp.sum(jnp.log1p(x**2 / nu)), lnz.Real(4))
    route = lnz.routes.AnnealedImportanceSampling(temperatures=20, chains=256)
    estimate = lnz.expectation(energy, lambda x: jnp.abs(x) ** power, route=route, key=KEY)
    assert (EstimateWarning.HEAVY_TAILED_EXPECTATION in estimate.warning_codes) == heavy


@pytest.mark.parametrize(("found", "missed"), [(5.0, True), (0.5, False)])
def test_mode_probes_whose_weights_lie_above_the_upper_bound_have_found_more(found, missed):
    """Though the way back from none of them is long: their weights have mean Z as well, and show that it is above what annealing allows for."""
    calm = np.zeros(64)
    upper, _, raised = _compared(0.0, 1.0, calm, calm, calm, np.full(64, found), confidence=0.99)
    assert bool(raised[EstimateWarning.MISSED_MODES]) == missed
    assert (upper > found) if missed else upper == 1
