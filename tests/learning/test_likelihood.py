"""The likelihood of data, with its two errors apart, and the refusal of one that cannot be."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning_cases import bits, law, likelihood, model, spins

import lnz
from lnz.learning._likelihood import LogLikelihood, free_energies


@pytest.mark.parametrize("name", ["rbm", "potts rbm", "gaussian rbm", "lattice", "real"])
def test_it_is_what_the_definition_says(name):
    energy, data = model(name)
    found = lnz.log_likelihood(energy, data)
    assert found.value == pytest.approx(likelihood(energy, data), abs=2e-6)
    assert found.guarantee == ("approximate" if name == "real" else "exact")
    assert found.standard_error < 1e-9
    assert found.lower <= found.value <= found.upper
    each = -free_energies(energy, np.asarray(data))
    assert found.data_standard_error == pytest.approx(each.std(ddof=1) / math.sqrt(len(data)))
    assert found.n == len(data)


def test_data_of_any_dtype_and_in_any_number():
    energy, data = model("rbm")
    exact = lnz.log_likelihood(energy, data).value
    for kind in (data.astype(bool), data.astype(float), jnp.asarray(data), data.tolist()):
        assert lnz.log_likelihood(energy, kind).value == exact
    whole = free_energies(energy, data)
    assert (free_energies(energy, data, block=10) == whole).all(), "37 data in blocks of 10"
    assert lnz.log_likelihood(energy, data[:1]).data_standard_error == math.inf


def test_the_two_errors_are_apart():
    energy, data = model("rbm")
    log_z = dataclasses.replace(with_log_z(energy, 0.02, error=0.1), guarantee="conditional")
    log_z = dataclasses.replace(log_z, lower=log_z.value - 0.3, upper=log_z.value + 0.2)
    found = lnz.log_likelihood(energy, data, log_z=log_z)
    assert found.standard_error == float(log_z.standard_error) > 0
    assert (found.lower, found.upper) == (pytest.approx(found.value - 0.2), pytest.approx(found.value + 0.3))
    assert found.lower < likelihood(energy, data) < found.upper
    assert found.guarantee == "conditional"
    assert "conditional" in str(found)
    assert f"{len(data)} examples" in str(found)
    assert "nats per example" in str(lnz.log_likelihood(energy, data))


def with_log_z(energy, change, error=0.0):
    """The exact estimate of log Z, made wrong by `change` nats."""
    exact = lnz.log_partition(energy)
    move = lambda x: x + change  # noqa: E731
    return dataclasses.replace(
        exact,
        value=move(exact.value),
        lower=move(exact.lower),
        upper=move(exact.upper),
        standard_error=jnp.asarray(error),
    )


class TestImpossible:
    """Σ over distinct data of p > 1 proves that Ẑ is too small (THEORY)."""

    @pytest.mark.parametrize("name", ["rbm", "potts rbm"])
    def test_a_log_z_that_is_too_small(self, name):
        energy, _ = model(name)
        states, _ = law(energy)
        assert isinstance(lnz.log_likelihood(energy, states), LogLikelihood)
        with pytest.raises(
            ValueError, match=r"impossible likelihood: the .* distinct data .* too small by at least 0\.01 nats"
        ):
            lnz.log_likelihood(energy, states, log_z=with_log_z(energy, -0.01))
        lnz.log_likelihood(energy, states, log_z=with_log_z(energy, 0.01))

    def test_equal_data_count_once(self):
        energy, _ = model("rbm")
        states, logits = law(energy)
        twice = np.repeat(states, 2, axis=0)
        assert lnz.log_likelihood(energy, twice).value == pytest.approx(
            lnz.log_likelihood(energy, states).value, abs=1e-6
        )
        p = np.exp(logits - np.logaddexp.reduce(logits))
        some = np.argsort(p)[-20:]  # they hold part of the mass, so the proof needs a larger error
        slack = -math.log(p[some].sum())
        lnz.log_likelihood(energy, states[some], log_z=with_log_z(energy, -slack + 0.01))
        with pytest.raises(ValueError, match="the 20 distinct data"):
            lnz.log_likelihood(energy, np.tile(states[some], (3, 1)), log_z=with_log_z(energy, -slack - 0.01))

    def test_within_the_error_of_log_z_nothing_is_proved(self):
        energy, _ = model("rbm")
        states, _ = law(energy)
        lnz.log_likelihood(energy, states, log_z=with_log_z(energy, -0.01, error=0.01))
        with pytest.raises(ValueError, match="impossible"):
            lnz.log_likelihood(energy, states, log_z=with_log_z(energy, -0.1, error=0.01))

    def test_parts_of_a_product_space(self):
        def interact(theta, x):
            return -theta * jnp.sum(x[0]) * jnp.sum(x[1])

        energy = lnz.FunctionEnergy(
            jax.tree_util.Partial(interact, jnp.asarray(0.7)),
            lnz.Product(lnz.Binary(2), lnz.Spin(1), lnz.Categorical(1, k=3)),
        )
        states = energy.space.decode(jnp.arange(energy.space.count))
        lnz.log_likelihood(energy, states)
        with pytest.raises(ValueError, match="the 24 distinct data"):
            lnz.log_likelihood(energy, states, log_z=with_log_z(energy, -0.01))

    def test_a_density_may_exceed_one(self):
        narrow = lnz.Gaussian([0.0], [1e6])
        assert lnz.log_likelihood(narrow, np.zeros((3, 1))).value > 5


class TestRefusals:
    def test_no_data(self):
        with pytest.raises(ValueError, match="no data is not defined"):
            lnz.log_likelihood(model("rbm")[0], bits((0, 5)))

    def test_data_outside_the_space(self):
        with pytest.raises(ValueError, match="expected 0 or 1"):
            lnz.log_likelihood(model("rbm")[0], spins((3, 5)))
        with pytest.raises(ValueError, match="nan"):
            lnz.log_likelihood(model("rbm")[0], np.full((3, 5), np.nan))

    def test_an_energy_that_is_nan_or_minus_infinity(self):
        exact = lnz.log_partition(lnz.Ising(np.zeros((2, 2))))
        for bad in (jnp.nan, -jnp.inf):
            energy = lnz.FunctionEnergy(lambda x, bad=bad: jnp.where(x[0] > 0, bad, 0.0), lnz.Spin(2))
            with pytest.raises(ValueError, match="the energy of example 1 is NaN or -inf"):
                lnz.log_likelihood(energy, [[-1, 1], [1, 1]], log_z=exact)

    def test_a_log_z_that_is_no_number(self):
        energy, data = model("rbm")
        for bad in (-jnp.inf, jnp.nan):
            with pytest.raises(ValueError, match=r"log Z is -?(inf|nan)"):
                lnz.log_likelihood(energy, data, log_z=with_log_z(energy, bad))

    def test_data_of_probability_zero_are_minus_infinity_and_no_error(self):
        energy = lnz.FunctionEnergy(lambda x: jnp.where(x[0] > 0, jnp.inf, 0.0), lnz.Spin(2))
        found = lnz.log_likelihood(energy, [[-1, 1], [1, 1]])
        assert found.value == -math.inf
        assert found.data_standard_error == math.inf
        assert lnz.log_likelihood(energy, [[1, -1], [1, 1]]).value == -math.inf
        assert "-inf" in str(found)
