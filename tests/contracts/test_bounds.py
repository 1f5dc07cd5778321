"""What every limit of log Z must satisfy, for every energy of the list that has factors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from contracts.routes import BOUNDS, LIMITED, pair_id


@pytest.mark.parametrize("pair", LIMITED, ids=pair_id)
def test_the_limit_is_on_its_side_and_its_gradient_is_that_of_the_limit(pair):
    case, name = pair

    def limit(flat):
        estimate = lnz.log_partition(case.at(flat), route=BOUNDS[name])
        return estimate.value, (estimate.lower, estimate.upper, estimate.diagnostics["converged"])

    both = jax.jit(jax.value_and_grad(limit, has_aux=True))
    rng = np.random.default_rng(3)
    direction = rng.normal(size=case.flat.size)
    (value, (lower, upper, converged)), slope = both(jnp.asarray(case.flat))
    truth = float(case.log_z(case.flat))
    assert float(lower) <= truth <= float(upper)
    assert np.isfinite(float(value))
    assert np.isfinite(np.asarray(slope)).all()
    if converged:  # otherwise the derivative is that of a limit that only touches this one
        ahead, behind = (float(both(jnp.asarray(case.flat + step * direction))[0][0]) for step in (1e-3, -1e-3))
        assert float(slope @ direction) == pytest.approx((ahead - behind) / 2e-3, rel=2e-3, abs=2e-3)


def test_the_list_covers_every_limit_and_most_kinds_of_energy():
    assert {name for _, name in LIMITED} == set(BOUNDS)
    assert len({type(case.energy) for case, _ in LIMITED}) >= 3
