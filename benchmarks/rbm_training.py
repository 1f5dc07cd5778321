"""One update of an RBM with persistent chains (784 visible, 500 hidden, 500 data, 500 chains), float32, one thread.

    python benchmarks/rbm_training.py [--repeats 7]

Goals: with 10 sweeps at least 3 times as fast as rbms and as ebmkit, and within 1.35 of the matrix products alone; with
1 sweep at least 3 times as fast as scikit-learn.
"""

import argparse
from collections.abc import Callable
from typing import Any

import peers
from timing import measure, one_thread

EPOCHS = 20  # updates in one call of scikit-learn's `fit`


def lnz_updates(model: peers.Model, data: peers.Array, *, sweeps: int) -> dict[str, Callable[[], Any]]:
    """lnz's candidates, each doing one update of the parameters with `sweeps` block Gibbs sweeps of its chains."""
    import jax
    import optax

    import lnz
    from lnz._core.random import fast_key

    trainer = lnz.Trainer(optax.sgd(0.01), lnz.learning.PersistentChains(sweeps=sweeps))
    batch = jax.numpy.asarray(data)

    def candidate(key: Any) -> Callable[[], Any]:
        state = trainer.init(lnz.RBM.from_parameters(*model), key, batch_size=len(data))

        def update() -> Any:
            nonlocal state
            state, _ = trainer.step(state, batch)
            return state.energy.weights  # pyright: ignore[reportAttributeAccessIssue]

        return update

    key = jax.random.key(0)
    return {"lnz": candidate(key), "lnz, opt-in bits (threefry13)": candidate(fast_key(key, bits="threefry13"))}


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    model, data = peers.random_model(784, 500), peers.random_data(500, 784)

    candidates = lnz_updates(model, data, sweeps=10) | {
        "matrix products alone, JAX (23)": peers.jax_products(model, data),
        "plain JAX scan, jax.random.bernoulli": peers.jax_pcd(model, data),
        "plain torch loop, tuned": peers.torch_pcd(model, data),
        "ebmkit": peers.ebmkit_pcd(model, data),
        "rbms": peers.rbms_pcd(model, data),
    }
    measure(candidates, repeats=repeats, title="PCD-10, one update")

    candidates = lnz_updates(model, data, sweeps=1) | {
        "matrix products alone, JAX (5)": peers.jax_products(model, data, sweeps=1),
        "plain JAX scan, jax.random.bernoulli": peers.jax_pcd(model, data, sweeps=1),
        "plain torch loop, tuned": peers.torch_pcd(model, data, sweeps=1),
        "scikit-learn, fit (float32)": peers.sklearn_fit(model, data, updates=EPOCHS),
        "scikit-learn, partial_fit (float64)": peers.sklearn_pcd1(model, data),
    }
    units = {"scikit-learn, fit (float32)": EPOCHS}
    measure(candidates, repeats=repeats, units=units, title="PCD-1, one update")


if __name__ == "__main__":
    main()
