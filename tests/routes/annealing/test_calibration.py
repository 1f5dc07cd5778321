"""benchmarks/calibration.py: its exact values are right, and, slowly, intervals hold on models that nobody tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import lnz


@pytest.fixture(scope="module")
def calibration(benchmark):
    return benchmark("calibration")


@pytest.mark.parametrize("kind", ["chain", "tree", "ring", "small graph", "glass", "rbm"])
def test_log_z_of_discrete_kinds(calibration, kind):
    of = calibration.KINDS[kind]
    model = of.draw(np.random.default_rng(3))
    assert float(lnz.log_partition(of.energy(jax.tree.map(jnp.asarray, model))).value) == pytest.approx(
        of.log_z(model), abs=1e-9
    )


@pytest.mark.parametrize(
    "kind", ["gaussian", "gaussian, ill-conditioned", "student", "plateaus", "walls", "walls of 1e30", "mixture"]
)
def test_log_z_of_continuous_kinds(calibration, kind):
    """By importance sampling in NumPy from a wide distribution around the states that the model draws most."""
    of, rng = calibration.KINDS[kind], np.random.default_rng(4)
    model = of.draw(rng)
    energy = of.energy(jax.tree.map(jnp.asarray, model))
    n, shape = 200_000, energy.space.shape
    if isinstance(energy.space, lnz.Box):
        low, high = np.asarray(energy.space.low), np.asarray(energy.space.high)
        x, log_density = rng.uniform(low, high, (n, *shape)), np.full(n, -np.log(high - low).sum())
    elif kind == "mixture":
        means, widths, _ = model
        pick, u = rng.integers(2, size=n), rng.standard_t(3, (n, *shape))
        x = means[pick] + widths[pick][:, None] * u
        each = [_student((x - m) / w).sum(axis=1) - len(m) * np.log(w) for m, w in zip(means, widths, strict=True)]
        log_density = np.logaddexp(*each) - np.log(2)
    elif kind.startswith("gaussian"):  # in the axes of the model
        root, mean = model
        u = rng.standard_t(3, (n, *shape))
        x, log_density = mean + np.linalg.solve(root.T, u.T).T, _student(u).sum(axis=1) + np.linalg.slogdet(root)[1]
    else:
        _, scales, mean = model
        u = rng.standard_t(1.2, (n, *shape))
        x, log_density = mean + 2 * scales * u, (_student(u, 1.2) - np.log(2 * scales)).sum(axis=1)
    log_weights = -np.asarray(jax.vmap(energy)(jnp.asarray(x))) - log_density
    found = logsumexp(log_weights) - np.log(n)
    error = np.std(np.exp(log_weights - found)) / np.sqrt(n)
    assert error < 0.05
    assert found == pytest.approx(of.log_z(model), abs=4.5 * error + 1e-3)


def _student(u: np.ndarray, degrees: float = 3) -> np.ndarray:
    """The logarithm of Student's density."""
    from scipy.stats import t

    return t.logpdf(u, degrees)


@pytest.mark.slow
@pytest.mark.parametrize("route", ["ais", "smc", "tempering", "both"])
@pytest.mark.parametrize(
    "kind", ["chain", "glass", "rbm", "gaussian", "gaussian, ill-conditioned", "plateaus", "walls", "mixture"]
)
def test_intervals_hold_or_are_warned_of(calibration, kind, route):
    row = calibration.measure(kind, route, 200)
    if row is None:
        pytest.skip("the route does not support the kind")
    assert len(row.silent) <= 0.015 * 200 + 2, row.silent[:3]
    assert row.certified >= 0.998 * 200 - 1
    if calibration.KINDS[kind].easy and route != "tempering":  # which says at this budget that few walkers came round
        assert row.warned <= 0.03 * 200 + 3
