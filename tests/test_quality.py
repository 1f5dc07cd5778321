"""Quality gates on real data, for `pytest -m slow`: they need the MNIST arrays that the project does not contain."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lnz

DATA = Path(os.environ.get("LNZ_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="set LNZ_DATA to the folder that holds mnist/mnist_train.npz"),
]


def mnist(name: str) -> np.ndarray:
    return (np.load(DATA / name)["images"] >= 128).astype(np.uint8)


def test_sixteen_hidden_units_reach_the_published_likelihood_and_annealing_agrees_with_the_exact_sum():
    """Published for PCD-1 with 16 hidden units: -149.05 nats per test image, or -142.56 with centring (see docs)."""
    train, test = mnist("mnist_train.npz"), mnist("mnist_devtest.npz")
    updates = 18 * 600
    rbm = lnz.RBM.from_data(train, 16, key=jax.random.key(0))
    sgd = optax.sgd(optax.linear_schedule(0.2, 0.0, updates))
    fitted = lnz.fit(rbm, train, optimizer=sgd, batch_size=100, epochs=18, key=jax.random.key(1))
    exact = lnz.log_likelihood(fitted.energy, test, route=lnz.routes.Enumeration())
    assert exact.guarantee == "exact"
    assert exact.value > -149.0
    base = lnz.Independent.from_data(train, lnz.Binary(784))
    route = lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=10_000, chains=256)
    log_z = lnz.log_partition(fitted.energy, route=route, key=jax.random.key(2))
    truth = float(exact.log_z.value)
    assert float(log_z.lower) <= truth <= float(log_z.upper)
    assert abs(float(log_z.value) - truth) < 4 * float(log_z.standard_error) + 0.05
    assert jnp.isfinite(log_z.diagnostics["effective_sample_size"])
