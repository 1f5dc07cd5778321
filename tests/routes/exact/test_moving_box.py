"""T4: where the limits of a box are parameters, the derivative of log Z has a boundary term, or is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz


def slope(x):
    return x[0]


def log_z(energy, *limits):
    return lnz.log_partition(lnz.FunctionEnergy(energy, lnz.Box(*limits))).value


def test_uniform_on_an_interval_that_grows():
    """log Z = log θ: the interior term is 0, the boundary term 1/θ."""
    value, found = jax.value_and_grad(lambda t: log_z(lambda x: 0.0 * x[0], 0.0, t))(jnp.asarray([2.5]))
    assert float(value) == pytest.approx(np.log(2.5), abs=1e-12)
    assert float(found[0]) == pytest.approx(1 / 2.5, abs=1e-10)


def test_a_slope_cut_off():
    """THEORY: E = x on [0, θ], θ = 1.3: the truth is 0.374631, the naive identity gives 0."""
    found = jax.grad(lambda t: log_z(slope, 0.0, t))(jnp.asarray([1.3]))
    assert float(found[0]) == pytest.approx(np.exp(-1.3) / (1 - np.exp(-1.3)), abs=1e-10)
    assert float(found[0]) == pytest.approx(0.374631, abs=1e-6)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_every_limit_and_every_parameter(dimensions):
    """Both limits of every dimension and a parameter of the energy, against differences of log Z itself."""

    def energy(t, x):
        return 0.5 * t * jnp.sum(x**2) + jnp.sum(jnp.sin(x)) * x[0]

    def f(flat):
        low, high, t = flat[:dimensions], flat[dimensions:-1], flat[-1]
        model = lnz.FunctionEnergy(jax.tree_util.Partial(energy, t), lnz.Box(low, high))
        return lnz.log_partition(model, route=lnz.routes.Quadrature(points=65)).value

    at = jnp.asarray(np.r_[np.linspace(-1, -0.4, dimensions), np.linspace(0.7, 1.5, dimensions), 1.3])
    found, h = jax.grad(f)(at), 1e-5
    for i in range(at.size):
        step = jnp.zeros_like(at).at[i].set(h)
        assert float(found[i]) == pytest.approx(float(f(at + step) - f(at - step)) / (2 * h), abs=1e-8)


def test_an_energy_class_whose_space_depends_on_its_parameters():
    class Cut(lnz.Energy):
        theta: jax.Array

        @property
        def space(self):
            return lnz.Box(jnp.zeros(1), self.theta[None])

        def __call__(self, x):
            return self.theta * x[0]

    def exact(t):
        return jnp.log((1 - jnp.exp(-(t**2))) / t)

    t = jnp.asarray(1.3)
    found = jax.grad(lambda e: lnz.log_partition(e).value)(Cut(t)).theta
    assert float(found) == pytest.approx(float(jax.grad(exact)(t)), abs=1e-10)


def test_what_would_miss_the_boundary_term_is_refused():
    energy = lnz.FunctionEnergy(slope, lnz.Box(0.0, jnp.asarray([1.3])))
    with pytest.raises(ValueError, match="boundary term"):
        lnz.log_partition(energy, route=lnz.routes.AnnealedImportanceSampling(), key=jax.random.key(0))
    with pytest.raises(ValueError, match="boundary term"):
        lnz.fit(energy, np.ones((3, 1)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="boundary term"):
        lnz.learning.phases(energy, np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="must be bounded"):
        lnz.Box(0.0, jnp.asarray([jnp.inf]))
    with pytest.raises(ValueError, match="low < high"):
        lnz.Box(2.0, jnp.asarray([1.3]))


def test_a_moving_box_is_no_part_of_a_product():
    with pytest.raises(ValueError, match="constant bounds"):
        lnz.Product(lnz.Box(jnp.zeros(1), jnp.ones(1), shape=1), lnz.Spin(2))
