"""The alarm *refused*: chains whose moves are no longer accepted are heard of before the run is lost, and only they are."""

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import lnz

KEY = jax.random.key(3)
NORMAL = lnz.Gaussian(np.zeros(2), np.ones(2))


def narrower(slope, x):
    return slope * (x @ x) / 2


ADAM = optax.adam(0.05)


@pytest.mark.parametrize(("width", "fires"), [(0.05, True), (0.9, False)])
def test_it_fires_where_the_law_gets_narrower_than_the_step_and_only_there(width, fires):
    """Data 20 times narrower than the base: the law outgrows the step of its chains while it is still wider than the data."""
    data = width * np.random.default_rng(0).normal(size=(64, 2))
    start = lnz.Tilted(jax.tree_util.Partial(narrower, jax.numpy.zeros(())), NORMAL)
    phase = lnz.learning.ReplayBuffer(size=256, chains=32, sweeps=2, restart=0.01, kernel=lnz.kernels.Langevin(0.5))
    fitted = lnz.fit(
        start, data, negative_phase=phase, optimizer=ADAM, batch_size=64, epochs=2000, evaluate_every=2000,
        monitor=lnz.learning.Monitor(share=0.5, chains=8, temperatures=4), key=KEY,
    )  # fmt: skip
    assert len([look for look in fitted.reports if look.figures]) == 1
    fired = [(look.step, alarm) for look in fitted.reports for alarm in look.alarms if alarm.name == "refused"]
    slope = float(jax.tree.leaves(eqx.filter(fitted.energy, eqx.is_inexact_array))[0])
    assert bool(fired) == fires
    assert slope < 0.5 / width**2, "the law is still wider than the data's"
    if fires:
        assert "smaller step size" in str(fired[0][1])
