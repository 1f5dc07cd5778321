"""Numbers are arguments: a second call compiles nothing, nor does a call in which only numbers changed; the first compiles few programs."""

import functools
from collections.abc import Callable

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lnz
from lnz._core.capabilities import observed_space

REQUESTS = "/jax/core/compile/backend_compile_duration"  # one for each program, whether compiled or found in the persistent cache


@pytest.fixture
def programs():
    """A function that runs a call to its end and returns the number of programs that it asked XLA for."""
    asked = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: asked.append(name))

    def count(call: Callable[[], object]) -> int:
        before = len(asked)
        jax.block_until_ready(call())
        return asked[before:].count(REQUESTS)

    yield count
    jax.monitoring.clear_event_listeners()


def chain_gradient(scale: float) -> object:
    unary, pairwise = scale * jnp.arange(30.0).reshape(5, 2, 3), scale * jnp.eye(3)
    values = jax.vmap(lambda u, t: lnz.log_partition(lnz.LinearChain(u, t)).value, (0, None))
    return jax.grad(lambda u, t: values(u, t).sum(), argnums=(0, 1))(unary, pairwise)


def fit(change: int) -> object:
    """Other data of another length, and another learning rate, seed and number of epochs; the exact likelihood included."""
    data = np.random.default_rng(change).integers(0, 2, (200 + 33 * change, 12)).astype(bool)
    key = jax.random.key(change)
    rbm = lnz.RBM.from_data(data, hidden=4, key=key)
    fitted = lnz.fit(rbm, data, optimizer=optax.adam(0.01 + change), epochs=1 + change, key=key)
    return lnz.log_likelihood(fitted.energy, data).value


def run_chains(change: int, energy: lnz.Energy, kernel: lnz.kernels.Kernel) -> object:
    """Other parameters, key and number of sweeps."""
    energy = jax.tree.map(lambda leaf: leaf / (1 + change), energy)
    start = np.ones((4, *observed_space(energy).shape), np.float32)
    return lnz.kernels.run_chains(energy, kernel, start, jax.random.key(change), 3 + change)


def stochastic(
    change: int, energy: lnz.Energy, route: type[lnz.Route], other: dict[str, object], **options: object
) -> object:
    """Other parameters, key and confidence, and the other numbers of this route."""
    energy = jax.tree.map(lambda leaf: leaf / (1 + change), energy)
    options |= {"confidence": 0.99 - 0.04 * change} | (other if change else {})
    return lnz.log_partition(energy, route=route(**options), key=jax.random.key(change)).value


def gradient(change: int, energy: lnz.Energy) -> object:
    route = lnz.routes.AnnealedImportanceSampling(temperatures=20 + change, chains=32 - change)
    return jax.grad(lambda e: lnz.log_partition(e, route=route, key=jax.random.key(change)).value)(energy)


AIS, BOTH = lnz.routes.AnnealedImportanceSampling, lnz.routes.BidirectionalAIS
SMC, TEMPERING = lnz.routes.SequentialMonteCarlo, lnz.routes.ParallelTempering
FEWER = {"temperatures": 25, "chains": 59}
SMALL = {"temperatures": 30, "chains": 60, "mode_probes": 4, "other": FEWER}

RBM = lnz.RBM(visible=5, hidden=3, key=jax.random.key(0))
TORUS = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
NORMAL = lnz.Gaussian(np.zeros(2, np.float32), np.ones(2, np.float32))


# Each line: a call, its argument, the argument with other numbers, and the most programs that the first call may ask for.
CALLS = [
    (chain_gradient, 1.0, 2.0, 20),
    (fit, 0, 1, 20),
    (functools.partial(run_chains, energy=RBM, kernel=lnz.kernels.Gibbs()), 0, 1, 6),
    (functools.partial(run_chains, energy=TORUS, kernel=lnz.kernels.Gibbs()), 0, 1, 6),
    (functools.partial(run_chains, energy=NORMAL, kernel=lnz.kernels.Langevin()), 0, 1, 6),
    (functools.partial(stochastic, energy=RBM, route=AIS, **SMALL), 0, 1, 11),
    (functools.partial(stochastic, energy=NORMAL, route=AIS, **SMALL), 0, 1, 12),
    (functools.partial(stochastic, energy=TORUS, route=AIS, schedule="barrier", chains=60, other=FEWER), 0, 1, 12),
    (functools.partial(stochastic, energy=TORUS, route=BOTH, temperatures=30, other={"temperatures": 25}), 0, 1, 14),
    (functools.partial(stochastic, energy=TORUS, route=SMC, particles=8, other={"conditional": 0.9}), 0, 1, 12),
    (functools.partial(stochastic, energy=TORUS, route=TEMPERING, rungs=4, iterations=16, other={}), 0, 1, 12),
    (functools.partial(gradient, energy=RBM), 0, 1, 19),
]


@pytest.mark.parametrize(
    ("call", "first", "changed", "most"), CALLS, ids=lambda x: getattr(getattr(x, "func", x), "__name__", "")
)
def test_only_the_first_call_compiles(programs, call, first, changed, most):
    jax.clear_caches()
    assert programs(lambda: call(first)) <= most
    assert programs(lambda: call(first)) == 0
    assert programs(lambda: call(changed)) == 0
