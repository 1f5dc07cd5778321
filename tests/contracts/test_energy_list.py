"""Every energy of the list passes `lnz.testing.check_energy`, and broken energies do not."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import lnz
from contracts.energies import CASES, named
from lnz._core.capabilities import Annealable, Sweepable


@pytest.mark.slow  # a dozen programs are compiled for each
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_energy(name):
    case = named(name)
    done = lnz.testing.check_energy(case.energy)
    assert "values" in done
    assert ("log Z" in done) == case.discrete


class Chain(Sweepable, Annealable):
    """A chain of spins with everything that can be wrong."""

    couplings: jax.Array
    fault: str = eqx.field(static=True, default="")

    @property
    def space(self):
        return lnz.Spin(4)

    def __call__(self, x):
        if self.fault == "batch":
            return jnp.sum(x) * jnp.ones(2)
        if self.fault == "nan":
            return jnp.log(jnp.sum(x))
        return -jnp.sum(jax.lax.stop_gradient(self.couplings) * x[1:] * x[:-1]) + jnp.sum(self.couplings**2)

    def tempered(self, base, beta):
        return super().tempered(base, 0.9 * beta if self.fault == "path" else beta)

    def gibbs(self, key, v):
        kept = jax.random.uniform(key, v.shape) < 0.5
        return jnp.where(kept, v, -v) if self.fault == "sweep" else v[:, ::1] * self.flip(key, v)

    def flip(self, key, v):
        """All spins of a chain at once, which leaves an energy without fields as it is."""
        return jnp.where(jax.random.uniform(key, (len(v), 1)) < 0.5, 1, -1).astype(v.dtype)


COUPLINGS = jnp.asarray([0.8, -0.5, 1.2])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("batch", "not one real number"),
        ("nan", "is NaN"),
        ("", "∂E differs from differences of the energy"),
    ],
)
def test_a_broken_energy_is_caught(fault, words):
    with pytest.raises(AssertionError, match=words):
        lnz.testing.check_energy(Chain(COUPLINGS, fault))


class Whole(Chain):
    def __call__(self, x):
        return -jnp.sum(self.couplings * x[1:] * x[:-1])


@pytest.mark.parametrize(
    ("fault", "words"), [("path", "does not end at the energy"), ("sweep", "do not have the distribution")]
)
def test_a_broken_capability_is_caught(fault, words):
    with pytest.raises(AssertionError, match=words):
        lnz.testing.check_energy(Whole(COUPLINGS, fault))


def test_a_good_energy_of_the_users_own_passes():
    done = lnz.testing.check_energy(Whole(COUPLINGS))
    assert done == ["values", "dtype", "derivatives", "log Z", "gradient", "curvature", "path", "Gibbs sweep"]
