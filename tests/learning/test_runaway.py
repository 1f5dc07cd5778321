"""The alarm *runaway*: chains that are driven ever farther above the data are heard of long before any number overflows, and only they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lnz

KEY = jax.random.key(3)
ADAM = optax.adam(0.05)


def steeper(slope, x):
    """As steep far away as near: chains of too long a step leap over the middle and back, and nothing overflows."""
    return slope * jnp.sqrt(1 + x @ x)


def magnified(network, x):
    return network(2 * x)


def runaways(looks):
    return [alarm for look in looks for alarm in look.alarms if alarm.name == "runaway"]


@pytest.mark.parametrize(("width", "fires"), [(0.05, True), (0.9, False)])
def test_it_fires_where_a_slope_outgrows_unadjusted_moves_and_only_there(width, fires):
    """Where ε times the slope is longer than the data are wide, chains stay outside them, and every update makes the slope steeper."""
    data = width * np.random.default_rng(0).normal(size=(64, 2))
    start = lnz.Tilted(jax.tree_util.Partial(steeper, jnp.zeros(())), lnz.Gaussian(np.zeros(2), np.ones(2)))
    phase = lnz.learning.ReplayBuffer(size=256, chains=32, sweeps=2, kernel=lnz.kernels.UnadjustedLangevin(0.2))
    monitor = lnz.learning.Monitor(share=0.5, chains=8, temperatures=4)
    snapshots = monitor.every(start, phase, 64) // 8
    fitted = lnz.fit(
        start,
        data,
        negative_phase=phase,
        optimizer=ADAM,
        batch_size=64,
        epochs=1000,
        evaluate_every=snapshots,
        monitor=monitor,
        key=KEY,
    )
    slope = float(jax.tree.leaves(eqx.filter(fitted.energy, eqx.is_inexact_array))[0])
    assert (slope > 30) == fires
    assert [len(look.alarms) for look in fitted.reports] == [1] * fires, (
        "before a look is due, and once as long as it goes on"
    )
    if fires:
        (alarm,) = runaways(fitted.reports)
        gap = {record.step: -record.figures["energy_gap"] for record in fitted.history}
        assert gap[alarm.step] > 10 * np.sqrt(2) > gap[alarm.step - snapshots]
        assert (
            f"{gap[alarm.step]:,.3g} nats above the data, while states of a distribution over 2 entries differ by about 1.4"
            in str(alarm)
        )
        assert "Langevin instead of UnadjustedLangevin" in alarm.remedy


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "penalty", "fires"),
    [
        (lnz.kernels.UnadjustedLangevin(0.05), 0.0, True),
        (lnz.kernels.UnadjustedLangevin(0.05), 0.1, False),
        (lnz.kernels.Langevin(0.05), 0.0, False),
    ],
)
def test_a_network_runs_away_and_the_remedies_hold_it(kernel, penalty, fires):
    """Eight normal laws on a circle, learned by a network of 2 x 32 units; without a remedy the gap reaches millions of nats."""
    rng = np.random.default_rng(0)
    angle = rng.integers(8, size=20_000) * np.pi / 4
    data = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.25 * rng.normal(size=(20_000, 2))
    network = eqx.nn.MLP(2, "scalar", 32, 2, activation=jax.nn.silu, dtype=jnp.float64, key=jax.random.key(0))
    start = lnz.Tilted(jax.tree_util.Partial(magnified, network), lnz.Gaussian(np.zeros(2), np.full(2, 0.16)))
    phase = lnz.learning.ReplayBuffer(size=2000, chains=100, sweeps=10, kernel=kernel)
    fitted = lnz.fit(
        start, data, negative_phase=phase, optimizer=optax.adam(1e-3), batch_size=100, epochs=12.5, evaluate_every=12.5,
        monitor=lnz.learning.Monitor(share=0.5, chains=64, temperatures=30), key=jax.random.key(0),
        regularisers=lnz.learning.Regularisers(energy_penalty=penalty),
    )  # fmt: skip
    alarms = runaways(fitted.reports)
    assert len(alarms) == fires
