"""Which programs XLA's older emitters compile: those of short states alone."""

import jax.numpy as jnp
import pytest

import lnz
from lnz.routes._annealing.path import Path
from lnz.routes._annealing.programs import _small


@pytest.mark.parametrize("brief", [False, True])
@pytest.mark.parametrize(("d", "small"), [(10, True), (32, True), (50, False), (71, False)])
def test_a_state_of_many_reals_is_not_small(d, small, brief):
    """Chains in 50 dimensions took minutes to compile with the older emitters."""
    energy = lnz.FunctionEnergy(lambda x: 0.5 * jnp.sum(x[1:] ** 2) + 0.5 * x[0] ** 2, lnz.Real(d))
    assert _small(Path(energy), (), brief) == small


def test_discrete_states_may_be_longer():
    path = Path(lnz.Ising(jnp.zeros((8, 8))))
    assert _small(path, (), True)
    assert not _small(path, (), False)
