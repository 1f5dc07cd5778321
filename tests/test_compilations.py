"""Numbers are arguments: a second call compiles nothing, nor does a call in which only numbers changed; the first compiles few programs."""

from collections.abc import Callable

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest

import lnz

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


# Each line: a call, its argument, the argument with other numbers, and the most programs that the first call may ask for.
CALLS = [
    (chain_gradient, 1.0, 2.0, 20),
]


@pytest.mark.parametrize(("call", "first", "changed", "most"), CALLS, ids=lambda x: getattr(x, "__name__", ""))
def test_only_the_first_call_compiles(programs, call, first, changed, most):
    jax.clear_caches()
    assert programs(lambda: call(first)) <= most
    assert programs(lambda: call(first)) == 0
    assert programs(lambda: call(changed)) == 0
