"""What the tests of learning share: small models with data, and comparisons bit for bit."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz.learning._likelihood import free_energies


def bits(shape, seed=0, p=0.5):
    """Binary data, uint8."""
    return (np.random.default_rng(seed).random(shape) < p).astype(np.uint8)


def spins(shape, seed=0):
    return (2 * bits(shape, seed).astype(np.int8) - 1).astype(np.int8)


def symmetric(n, seed=0, scale=0.3, dtype=np.float64):
    j = np.random.default_rng(seed).normal(scale=scale, size=(n, n)).astype(dtype)
    return np.triu(j, 1) + np.triu(j, 1).T


class Quartic(eqx.Module):
    """A double well with two parameters, for a FunctionEnergy on the line."""

    well: jax.Array
    tilt: jax.Array

    def __call__(self, x):
        return jnp.sum(self.well * (x**2 - 1) ** 2 + self.tilt * x)


class Network(lnz.Energy):
    """A user's own Energy that holds an Equinox network, activation functions and all, as plain fields."""

    net: eqx.nn.MLP
    n: int

    def __init__(self, n, key, dtype=None):
        self.net = eqx.nn.MLP(n, "scalar", 4, 1, activation=jnp.tanh, key=key, dtype=dtype)
        self.n = n

    @property
    def space(self):
        return lnz.Binary(self.n)

    def __call__(self, x):
        return self.net(x)


def pair_energy(parameters, s):
    return -(parameters["pair"] * s[0] * s[1] + jnp.dot(parameters["field"], s))


def nnx_module(n):
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(n, 3, rngs=rngs, param_dtype=jnp.result_type(float))

        def __call__(self, x):
            return -jnp.sum(jnp.tanh(self.hidden(x)))

    return Net(nnx.Rngs(0))


def model(name):
    """An energy and data of its observed space, small enough for every exact route."""
    key = jax.random.key(5)
    rng = np.random.default_rng(3)
    if name == "rbm":
        return lnz.RBM(visible=5, hidden=3, key=key, scale=0.5), bits((37, 5))
    if name == "spin rbm":
        return lnz.RBM(visible=lnz.Spin(4), hidden=3, key=key, scale=0.5), spins((37, 4))
    if name == "potts rbm":
        space = lnz.Categorical(3, k=3)
        return lnz.RBM(visible=space, hidden=2, key=key, scale=0.5), rng.integers(0, 3, (37, 3)).astype(np.uint8)
    if name == "gaussian rbm":
        return lnz.GaussianRBM(visible=2, hidden=3, key=key, scale=0.3), rng.normal(1, 2, (37, 2))
    if name == "ising":
        return lnz.Ising(symmetric(4), rng.normal(size=4)), spins((37, 4))
    if name == "potts":
        return lnz.Potts(symmetric(3), 0.0, q=3), rng.integers(0, 3, (37, 3))
    if name == "lattice":
        return lnz.Ising.lattice((2, 3), 0.3, periodic=False), spins((37, 2, 3))
    if name == "gaussian":
        return lnz.Gaussian([0.0, 0.0], [1.0, 1.0]), rng.normal(1, 2, (37, 2))
    if name == "partial":
        parameters = {"pair": jnp.asarray(0.2), "field": jnp.zeros(3)}
        return lnz.FunctionEnergy(jax.tree_util.Partial(pair_energy, parameters), lnz.Spin(3)), spins((37, 3))
    if name == "real":
        return lnz.FunctionEnergy(Quartic(jnp.asarray(0.5), jnp.asarray(0.1)), lnz.Real(1)), rng.normal(1, 0.3, (37, 1))
    if name == "equinox":
        net = eqx.nn.MLP(4, "scalar", 5, 1, key=key)
        return lnz.FunctionEnergy(net, lnz.Binary(4)), bits((37, 4), 7, 0.8)
    if name == "nnx":
        return lnz.FunctionEnergy(nnx_module(4), lnz.Binary(4)), bits((37, 4), 7, 0.8)
    if name == "own class":
        return Network(4, key), bits((37, 4), 7, 0.8)
    raise KeyError(name)


def same(one, two):
    """Whether two pytrees hold the same arrays, bit for bit and dtype for dtype."""
    one, two = eqx.filter(one, eqx.is_array), eqx.filter(two, eqx.is_array)
    if jax.tree.structure(one) != jax.tree.structure(two):
        return False
    raw = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf  # noqa: E731
    pairs = zip(map(raw, jax.tree.leaves(one)), map(raw, jax.tree.leaves(two)), strict=True)
    return all(a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def arrays(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))]


def distance(one, two):
    """The largest difference between two pytrees' float arrays."""
    return max(float(np.abs(a - b).max()) for a, b in zip(arrays(one), arrays(two), strict=True))


@functools.cache
def listed(space):
    """Every state of a discrete space, by one program."""
    return np.asarray(jax.jit(space.decode)(np.arange(space.count)))


def law(energy):
    """Every observed state (on a grid where they are real) and its log weight, in NumPy: a check that shares no route with the library."""
    space = lnz.capabilities.observed_space(energy)
    if space.discrete:
        states = listed(space)
        return states, -free_energies(energy, states)
    line = np.linspace(-12, 12, 241)
    states = np.stack(np.meshgrid(*[line] * space.shape[0], indexing="ij"), axis=-1).reshape(-1, *space.shape)
    return states, -free_energies(energy, states) + space.shape[0] * np.log(line[1] - line[0])


def likelihood(energy, data):
    """Mean log p of the data, in nats."""
    _, logits = law(energy)
    return float(np.mean(-free_energies(energy, np.asarray(data))) - np.logaddexp.reduce(logits))


def model_mean(energy, f=lambda states: states):
    """E_p[f(v)]."""
    states, logits = law(energy)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    return np.tensordot(p, f(states), axes=1)


def pairs(states):
    """s sᵀ of every state."""
    return states[:, :, None] * states[:, None, :]
