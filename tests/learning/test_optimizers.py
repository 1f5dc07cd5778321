"""An optimiser and its numbers apart: the same updates, and equal recipes where numbers alone differ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lnz.learning._optimizers import Recipe, rebuilt, with_numbers_apart

PARAMETERS = {"a": jnp.linspace(-1, 2, 6, dtype=jnp.float32).reshape(2, 3), "b": None, "c": jnp.arange(3.0)}
KINDS = {
    "sgd": optax.sgd,
    "nesterov": lambda rate: optax.sgd(rate, momentum=1 - rate, nesterov=True),
    "adam": lambda rate: optax.adam(rate, b1=1 - rate),
    "clipped adamw with a schedule": lambda rate: optax.chain(
        optax.clip_by_global_norm(10 * rate), optax.adamw(optax.cosine_decay_schedule(rate, round(100 * rate)))
    ),
    "steps": lambda rate: optax.sgd(optax.piecewise_constant_schedule(rate, {round(20 * rate): 0.5})),
    "rmsprop": optax.rmsprop,
    "every second update": lambda rate: optax.MultiSteps(optax.adam(rate), 2),
    "finite updates": lambda rate: optax.apply_if_finite(optax.sgd(rate), 3),
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate),
}


def run(optimizer, updates=4):
    """Some updates of the parameters, without a program that knows the numbers."""
    parameters, state = PARAMETERS, optimizer.init(PARAMETERS)
    static, numbers = with_numbers_apart(optimizer, parameters, state)
    step = jax.jit(lambda numbers, *rest: rebuilt(static, numbers).update(*rest))
    for i in range(updates):
        gradient = jax.tree.map(lambda leaf, i=i: jnp.sin(leaf + i), parameters)
        change, state = step(numbers, gradient, state, parameters)
        parameters = optax.apply_updates(parameters, change)
    return static, parameters


def run_directly(optimizer, updates=4):
    parameters, state = PARAMETERS, optimizer.init(PARAMETERS)
    for i in range(updates):
        gradient = jax.tree.map(lambda leaf, i=i: jnp.sin(leaf + i), parameters)
        change, state = jax.jit(optimizer.update)(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, change)
    return parameters


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("kind", KINDS)
def test_the_updates_are_the_optimisers_own(kind):
    for rate in (0.1, 0.3):
        _, found = run(KINDS[kind](rate))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, run_directly(KINDS[kind](rate)))


@pytest.mark.parametrize("kind", KINDS)
def test_recipes_are_equal_where_numbers_alone_differ(kind):
    (one, slow), (other, fast) = run(KINDS[kind](0.1)), run(KINDS[kind](0.3))
    assert isinstance(one, Recipe)
    assert one == other
    assert hash(one) == hash(other)
    assert not np.array_equal(slow["a"], fast["a"])


def test_recipes_of_other_kinds_or_shapes_differ():
    recipes = [run(KINDS[kind](0.1))[0] for kind in KINDS]
    assert len(set(recipes)) == len(KINDS)
    clipped = [run(optax.chain(optax.clip(c), optax.sgd(0.1)))[0] for c in (0.1, 0.2)]
    assert clipped[0] == clipped[1] != run(optax.sgd(0.1))[0]


def test_an_optimiser_with_a_loop_stays_whole():
    def update(updates, state, params=None):
        return jax.tree.map(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: 0.9 * x, x), updates), state

    optimizer = optax.GradientTransformation(lambda params: (), update)
    static, found = run(optimizer)
    assert static is optimizer
    jax.tree.map(np.testing.assert_array_equal, found, run_directly(optimizer))
