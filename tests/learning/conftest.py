"""Compilation is most of what these tests cost: compile the programs that run for milliseconds without the slow optimisations."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    if request.module.__name__.endswith(
        "test_trainer"
    ):  # the bits of two programs are compared there: leave them as users have them
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
