"""Two modes far apart, of which the data and CD's chains know one: what is learned, by the exact likelihood, and what the monitor says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from learning_cases import law, likelihood

import lnz
from lnz.learning._monitor import Watch

# Spins that pull each other into line, and data that are the half of the model's own law with most spins up: to CD nothing is amiss.
SPINS = 8
START = lnz.Ising(0.3 * (np.ones((SPINS, SPINS)) - np.eye(SPINS)))


def up_half():
    states, logits = law(START)
    p = np.exp(logits - logits.max()) * (states.sum(axis=1) > 0)
    return states[np.random.default_rng(0).choice(len(states), 200, p=p / p.sum())].astype(float)


def learned(phase, data):
    """The model after some tens of updates, at the monitor's stops, and the monitor's look at it."""
    trainer, monitor = lnz.Trainer(optax.sgd(0.02), phase), lnz.learning.Monitor(chains=256, temperatures=30)
    state = trainer.init(START, jax.random.key(5), batch_size=len(data))
    watch, step, look = Watch(monitor, trainer, START, jnp.asarray(data), len(data), 0), 0, None
    while look is None:
        step = watch.next_stop(step)
        for _ in range(4):
            state, _ = trainer.step(state, data)
        look = watch.see(state, step)
    states, logits = law(state.energy)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    return p[states.sum(axis=1) < 0].sum(), likelihood(state.energy, data), look


def test_cd_misses_the_mode_and_is_told_so_and_tempered_chains_find_it():
    data = up_half()
    far_cd, likelihood_cd, look_cd = learned(lnz.learning.ContrastiveDivergence(), data)
    assert far_cd > 0.3, "CD has taken the far mode away"
    assert [alarm.name for alarm in look_cd.alarms] == ["unseen"]
    assert "farther from the data than the states of ContrastiveDivergence" in str(look_cd.alarms[0])
    assert "Use chains that do not start at the data" in str(look_cd.alarms[0])
    assert look_cd.figures["unseen"] == pytest.approx(far_cd, abs=0.15)
    assert look_cd.figures["log_likelihood"] == pytest.approx(likelihood_cd, abs=0.3)
    far, found, look = learned(lnz.learning.TemperedChains(chains=200, temperatures=6), data)
    assert far < 0.06
    assert found > likelihood_cd + 0.3
    assert look.alarms == ()
