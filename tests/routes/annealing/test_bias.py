"""Sampled routes are right on average, and their errors are those of their parts: no shift, no quantile of the wrong kind, no spread that is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri, stdtrit

import lnz
from lnz.kernels import Gibbs
from lnz.routes._annealing.certificate import upper_bound_of
from lnz.routes._annealing.parallel_tempering import _sd
from lnz.routes._annealing.path import Path, walk

RNG = np.random.default_rng(3)
COUPLINGS, FIELDS = 0.1 * RNG.normal(size=(2, 3, 3)), 0.1 * RNG.normal(size=(3, 3))
MODEL = lnz.Ising.lattice((3, 3), COUPLINGS, FIELDS, periodic=False)
ROUTES = {
    "bidirectional": lnz.routes.BidirectionalAIS(temperatures=24, chains=512),
    "smc": lnz.routes.SequentialMonteCarlo(particles=256, replicates=4, mode_probes=0),
    "tempering": lnz.routes.ParallelTempering(rungs=3, iterations=512, replicates=8, mode_probes=0),
}


@pytest.mark.parametrize("name", ROUTES)
def test_an_easy_model_has_its_log_z(name):
    """So easy that a hundredth of a nat shows: the shift allowed is over five standard errors."""
    estimate = lnz.log_partition(MODEL, route=ROUTES[name], key=jax.random.key(0))
    assert 0 < estimate.standard_error < 0.005
    assert abs(float(estimate) - float(lnz.log_partition(MODEL))) < 0.025


def test_the_interval_of_tempering_is_that_of_students_t():
    estimate = lnz.log_partition(MODEL, route=ROUTES["tempering"], key=jax.random.key(1))
    assert "stepping-stones-disagree" not in estimate.warning_codes
    half = float(estimate.upper - estimate.lower) / 2
    assert half / float(estimate.standard_error) == pytest.approx(stdtrit(7, 0.995), rel=1e-6)
    assert _sd(np.array([0.0, 1.0, 2.0])) == 1
    assert np.isinf(_sd(np.array([1.0])))


def test_the_upper_bound_allows_for_the_error_of_a_median():
    """Of weights that hardly vary the bound is a median plus its error, which is √(π/2) times that of a mean."""
    n, sd = 400, 0.05
    log_weights = sd * ndtri((np.arange(n) + 0.5) / n)
    errors = (upper_bound_of(log_weights, confidence=0.995) - sd**2 / 2) * np.sqrt(n) / sd
    assert errors / stdtrit(n - 1, 0.995) == pytest.approx(np.sqrt(np.pi / 2), rel=0.02)


def test_the_way_back_is_made_of_reversed_moves():
    """The first site drawn is the last one on the way back, as the ratio of both directions' works needs it (Crooks)."""
    model = lnz.FunctionEnergy(lambda s: -1.5 * s[0] * s[1] - 0.7 * s[0], lnz.Spin(2))
    n, start = 20_000, np.array([1.0, -1.0])
    seen = {}
    for reverse in (False, True):
        going = walk(Path(model), Gibbs(), reverse=reverse)
        x = going.pack(jnp.broadcast_to(jnp.asarray(start), (n, 2)))
        after = going.unpack(going.move(jax.random.key(2), jnp.ones(()), x, jnp.zeros(()))[0])
        seen[reverse] = np.mean(np.asarray(after, float) > 0, axis=0)
    plus = lambda x: 1 / (1 + np.exp(-2 * x))  # noqa: E731
    first = plus(0.7 + 1.5 * start[1])  # of the first site, given the second as it was
    np.testing.assert_allclose(seen[False][0], first, atol=0.02)
    last = plus(1.5 * start[0])
    np.testing.assert_allclose(seen[True][1], last, atol=0.02)
    assert abs(seen[True][0] - seen[False][0]) > 0.1
