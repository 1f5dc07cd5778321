"""The one list of energies that every contract test runs over, each with its log-weight written again in plain NumPy.

The NumPy twin takes the parameters as the energy's float leaves, in order, and accepts complex numbers: derivatives are then
taken by the complex step, Im f(θ + iε) / ε, exact to rounding and independent of JAX. All models are asymmetric and have several modes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree

import lnz
from listing import lattice_bonds, log_sum, states

Leaves = Sequence[np.ndarray]
STEP = 1e-30
Periodic = bool | tuple[bool, ...]


def listed(space: lnz.Space) -> Any:
    """Every state of a discrete space in lexicographic order, without the library's help."""
    if isinstance(space, lnz.Product):
        parts = [listed(part) for part in space.spaces]
        index = np.array(list(itertools.product(*(range(len(part)) for part in parts))))
        return tuple(part[index[:, i]] for i, part in enumerate(parts))
    values = {lnz.Binary: (0.0, 1.0), lnz.Spin: (-1.0, 1.0)}.get(type(space), range(getattr(space, "k", 0)))
    return states(values, space.size).reshape(-1, *space.shape)


@dataclasses.dataclass(frozen=True)
class Case:
    """One energy of the list.

    Attributes:
        build: makes the energy.
        log_weight: -E of the listed states (of all variables, latent ones included); None for continuous energies.
        closed: log Z of the leaves, for continuous energies.
        loud: whether a thousand times the parameters is still a model.
        thorough: whether the list in blocks, expectations and nested reverse derivatives are tested too, at the price of compiling them.
        points: nodes a dimension for quadrature; 0 leaves it out.
    """

    name: str
    build: Callable[[], lnz.Energy]
    log_weight: Callable[..., np.ndarray] | None = None
    closed: Callable[[Leaves], Any] | None = None
    loud: bool = True
    thorough: bool = False
    points: int = 0

    @functools.cached_property
    def energy(self) -> lnz.Energy:
        return self.build()

    @functools.cached_property
    def discrete(self) -> bool:
        return self.log_weight is not None

    @functools.cached_property
    def flat(self) -> np.ndarray:
        return np.asarray(ravel_pytree(eqx.filter(self.energy, eqx.is_inexact_array))[0])

    @functools.cached_property
    def states(self) -> tuple[np.ndarray, ...]:
        """Every state of all variables, as a tuple of arrays."""
        states = listed(self.energy.space)
        return states if isinstance(states, tuple) else (states,)

    @functools.cached_property
    def observed(self) -> Any:
        """Every observed state."""
        return listed(lnz.capabilities.observed_space(self.energy))

    def leaves(self, flat: np.ndarray) -> list[np.ndarray]:
        shapes = [leaf.shape for leaf in jax.tree.leaves(eqx.filter(self.energy, eqx.is_inexact_array))]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        return (
            [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
            if shapes
            else []
        )

    def at(self, flat: Any, energy: lnz.Energy | None = None) -> lnz.Energy:
        """The energy with these parameters, in one vector that may be traced."""
        parameters, constants = eqx.partition(self.energy if energy is None else energy, eqx.is_inexact_array)
        return eqx.combine(ravel_pytree(parameters)[1](flat), constants)

    def single(self) -> lnz.Energy:
        """The energy in float32."""
        return jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, self.energy)

    def weights(self, flat: np.ndarray) -> np.ndarray:
        return self.log_weight(self.leaves(flat), *self.states)

    def log_z(self, flat: np.ndarray) -> Any:
        return self.closed(self.leaves(flat)) if self.closed else log_sum(self.weights(flat))

    def gradient(self, flat: np.ndarray) -> np.ndarray:
        """∇ log Z."""
        return complex_step(self.log_z, flat)

    def energy_gradients(self, flat: np.ndarray) -> np.ndarray:
        """∂E of every state: shape (states, parameters). States of probability zero are left at 0."""

        def possible(flat: np.ndarray) -> np.ndarray:
            weights = self.weights(flat)
            return np.where(np.real(weights) > -np.inf, -weights, 0)

        return complex_step(possible, flat)

    def probabilities(self, flat: np.ndarray) -> np.ndarray:
        return np.exp(self.weights(flat) - self.log_z(flat))

    def free_energies(self, flat: np.ndarray) -> np.ndarray:
        """-log Σ_h exp(-E(v, h)) of every observed state."""
        count = len(jax.tree.leaves(self.observed)[0])
        return -np.array([log_sum(row) for row in self.weights(flat).reshape(count, -1)])

    def observed_probabilities(self, flat: np.ndarray) -> np.ndarray:
        return np.exp(-self.free_energies(flat) - self.log_z(flat))


def complex_step(f: Callable[[np.ndarray], Any], flat: np.ndarray) -> np.ndarray:
    """The Jacobian of f at flat, parameters last."""
    moved = flat[None] + 1j * STEP * np.eye(flat.size)
    return np.stack([np.imag(f(row)) / STEP for row in moved], axis=-1) if flat.size else np.zeros((0,))


def stencil(f: Callable[[np.ndarray], np.ndarray], flat: np.ndarray, u: np.ndarray, h: float = 3e-4) -> np.ndarray:
    """The derivative of f along u, from five points."""
    return (8 * (f(flat + h * u) - f(flat - h * u)) - (f(flat + 2 * h * u) - f(flat - 2 * h * u))) / (12 * h)


# ---------------------------------------------------------------------------------------------------------- the models


def draws(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def onehot(x: np.ndarray, k: int) -> np.ndarray:
    return np.eye(k)[np.asarray(x, int)]


def rbm(name: str, visible: lnz.Space, hidden: int, **about: Any) -> Case:
    rng = draws(name)
    k = getattr(visible, "k", 1)
    features = visible.shape[0] * k

    def log_weight(leaves: Leaves, v: np.ndarray, h: np.ndarray) -> np.ndarray:
        weights, b, c = leaves
        phi = onehot(v, k).reshape(len(v), -1) if k > 1 else v
        return phi @ b + h @ c + np.sum((phi @ weights) * h, axis=1)

    def build() -> lnz.Energy:
        return lnz.RBM.from_parameters(
            jnp.asarray(rng.normal(size=(features, hidden)) * 1.6),
            jnp.asarray(rng.normal(size=features)),
            jnp.asarray(rng.normal(size=hidden)),
            visible=visible,
        )

    return Case(name, build, log_weight, **about)


def deep_boltzmann_machine() -> Case:
    """Four layers: the even ones, 0 and 2, are observed states, and the odd ones, 1 and 3, latent."""
    name, sizes = "deep boltzmann machine", (2, 3, 2, 1)
    rng = draws(name)

    def log_weight(leaves: Leaves, even: np.ndarray, odd: np.ndarray) -> np.ndarray:
        x = even[:, :2], odd[:, :3], even[:, 2:], odd[:, 3:]
        total = sum(part @ bias for part, bias in zip(x, leaves[3:], strict=True))
        return total + sum(np.sum((x[i] @ leaves[i]) * x[i + 1], axis=1) for i in range(3))

    def build() -> lnz.Energy:
        weights = [rng.normal(size=pair) * 1.6 for pair in itertools.pairwise(sizes)]
        return lnz.DeepBoltzmannMachine.from_parameters(weights, [rng.normal(size=n) for n in sizes])

    return Case(name, build, log_weight)


def gaussian_rbm() -> Case:
    rng = draws("gaussian rbm")

    def build() -> lnz.Energy:
        made = lnz.GaussianRBM(2, 3, key=jax.random.key(0), dtype=jnp.float64)
        values = (rng.normal(size=(2, 3)) * 1.5, rng.normal(size=2), rng.normal(size=3), rng.normal(size=2) * 0.3)
        fields = lambda e: (e.weights, e.visible_bias, e.hidden_bias, e.log_scale)  # noqa: E731
        return eqx.tree_at(fields, made, tuple(map(jnp.asarray, values)))

    def closed(leaves: Leaves) -> Any:
        weights, b, c, log_scale = leaves
        h = listed(lnz.Binary(3))
        precision = np.exp(-2 * log_scale)
        u = h @ weights.T
        return log_sum(h @ c + (b * u + u**2 / 2) @ precision) + np.sum(log_scale + 0.5 * np.log(2 * np.pi))

    return Case("gaussian rbm", build, closed=closed, loud=False)


def symmetric(rng: np.random.Generator, n: int, scale: float = 1.0) -> np.ndarray:
    upper = np.triu(rng.normal(size=(n, n)) * scale, 1)
    return upper + upper.T


def ising_dense() -> Case:
    rng = draws("ising dense")

    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        couplings, fields = leaves
        couplings = couplings * (1 - np.eye(5))
        return 0.5 * np.sum((s @ couplings) * s, axis=1) + s @ fields

    return Case("ising dense", lambda: lnz.Ising(symmetric(rng, 5), rng.normal(size=5)), log_weight)


EDGES = np.array([[0, 1], [4, 1], [1, 2], [2, 4], [0, 4]])  # a graph with a triangle, and site 3 alone
TWO_SIDES = np.array([[0, 1], [4, 1], [5, 1], [4, 2], [5, 2]])  # sites 1, 2 between 0, 4, 5, and site 3 alone


def ising_sparse(name: str, edges: np.ndarray, n: int) -> Case:
    rng = draws(name)

    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        strength, fields = leaves
        return sum(j * s[:, a] * s[:, b] for j, (a, b) in zip(strength, edges, strict=True)) + s @ fields

    return Case(name, lambda: lnz.Ising.sparse(edges, rng.normal(size=5), rng.normal(size=n), n=n), log_weight)


def ising_lattice(name: str, shape: tuple[int, ...], periodic: Periodic, **about: Any) -> Case:
    rng = draws(name)

    axes, sites, ends = (np.asarray(part).T for part in zip(*lattice_bonds(shape, periodic), strict=True))
    known: list[Any] = [
        None,
        None,
    ]  # the last states, and their products over bonds and spins, complex for the complex step

    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        strength, fields = leaves
        if known[0] is not s:
            pairs = s[(slice(None), *sites)] * s[(slice(None), *ends)]
            known[:] = s, np.concatenate([pairs, s.reshape(len(s), -1)], axis=1).astype(complex)
        weights = known[1] @ np.concatenate([strength[(axes, *sites)], fields.ravel()])
        return weights if np.iscomplexobj(fields) else weights.real

    def build() -> lnz.Energy:
        return lnz.Ising.lattice(
            shape, rng.normal(size=(len(shape), *shape)), rng.normal(size=shape), periodic=periodic
        )

    return Case(name, build, log_weight, **about)


def potts_dense() -> Case:
    rng, n, q = draws("potts dense"), 4, 3

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        couplings, fields = leaves
        phi = onehot(x, q)
        couplings = couplings * (1 - np.eye(n))
        return 0.5 * np.einsum("sia,ij,sja->s", phi, couplings, phi) + np.einsum("sia,ia->s", phi, fields)

    return Case("potts dense", lambda: lnz.Potts(symmetric(rng, n), rng.normal(size=(n, q)), q=q), log_weight)


def potts_dense_tables() -> Case:
    rng, n, q = draws("potts dense tables"), 3, 3

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        tables, fields = leaves
        phi = onehot(x, q)
        tables = tables * (1 - np.eye(n))[:, None, :, None]
        return 0.5 * np.einsum("sia,iajb,sjb->s", phi, tables, phi) + np.einsum("sia,ia->s", phi, fields)

    def build() -> lnz.Energy:
        tables = rng.normal(size=(n, q, n, q))
        tables = tables + tables.transpose(2, 3, 0, 1)
        tables[np.arange(n), :, np.arange(n)] = 0
        return lnz.Potts(tables, rng.normal(size=(n, q)), q=q)

    return Case("potts dense tables", build, log_weight)


def potts_sparse(name: str, tables: bool, **about: Any) -> Case:
    rng, n, q = draws(name), 4, 3
    edges = np.array([[0, 1], [3, 1], [1, 2], [2, 3]])

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        strength, fields = leaves
        total = np.einsum("sia,ia->s", onehot(x, q), fields)
        for j, (a, b) in zip(strength, edges, strict=True):
            total = total + (j[x[:, a], x[:, b]] if tables else j * (x[:, a] == x[:, b]))
        return total

    strengths = rng.normal(size=(4, q, q) if tables else 4) * 1.5
    return Case(
        name, lambda: lnz.Potts.sparse(edges, strengths, rng.normal(size=(n, q)), n=n, q=q), log_weight, **about
    )


def potts_lattice(name: str, shape: tuple[int, ...], q: int, periodic: Periodic) -> Case:
    rng = draws(name)

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        strength, fields = leaves
        total = np.sum(onehot(x, q) * fields, axis=tuple(range(1, x.ndim + 1)))
        for axis, site, end in lattice_bonds(shape, periodic):
            same = x[(slice(None), *site)] == x[(slice(None), *end)]
            total = total + strength[(axis, *site)] * same
        return total

    def build() -> lnz.Energy:
        couplings = rng.normal(size=(len(shape), *shape)) * 1.4
        return lnz.Potts.lattice(shape, couplings, rng.normal(size=(*shape, q)), q=q, periodic=periodic)

    return Case(name, build, log_weight)


def random_field() -> Case:
    rng, k = draws("random field"), 3
    structure = lnz.crf.Graph(4, [(1, 0), (2, 1), (0, 2), (2, 3)], factors=[(3, 0), (1, 3, 0)], groups=[1, 3])

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        unary, tables, pair, triple = leaves
        total = sum(unary[i, x[:, i]] for i in range(4)) + pair[0, x[:, 3], x[:, 0]]
        total = total + triple[0, x[:, 1], x[:, 3], x[:, 0]]
        for (i, j), t in zip([(1, 0), (2, 1), (0, 2), (2, 3)], [0, 1, 1, 1], strict=True):
            total = total + tables[t, x[:, i], x[:, j]]
        return total

    def build() -> lnz.Energy:
        factors = [rng.normal(size=(k, k)), rng.normal(size=(k, k, k))]
        return lnz.RandomField(structure, rng.normal(size=(4, k)), 1.5 * rng.normal(size=(2, k, k)), factors=factors)

    return Case("random field", build, log_weight)


def independent(name: str, space: lnz.Space) -> Case:
    rng = draws(name)
    k = getattr(space, "k", 1)

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        phi = onehot(x, k) if k > 1 else x
        return phi.reshape(len(x), -1) @ leaves[0].ravel()

    shape = (*space.shape, k) if k > 1 else space.shape
    return Case(name, lambda: lnz.Independent(rng.normal(size=shape) * 1.3, space), log_weight)


def gaussian_log_z(mean: np.ndarray, precision: np.ndarray) -> Any:
    matrix = np.diag(precision) if precision.ndim == 1 else 0.5 * (precision + precision.T)
    return 0.5 * (mean.size * np.log(2 * np.pi) - np.log(np.linalg.det(matrix)))


def positive_definite(rng: np.random.Generator, n: int) -> np.ndarray:
    root = rng.normal(size=(n, n))
    return root @ root.T + 0.5 * np.eye(n)


def gaussian(name: str, full: bool) -> Case:
    rng = draws(name)
    precision = positive_definite(rng, 2) if full else np.exp(rng.normal(size=2))
    return Case(
        name, lambda: lnz.Gaussian(rng.normal(size=2), precision), closed=lambda leaves: gaussian_log_z(*leaves)
    )


def mixture_of_gaussians() -> Case:
    rng = draws("mixture of gaussians")

    def build() -> lnz.Energy:
        parts = [lnz.Gaussian([2.0, -1.0], positive_definite(rng, 2)), lnz.Gaussian([-2.5, 0.5], [0.8, 2.0])]
        return lnz.Mixture([0.4, -0.9], parts)

    def closed(leaves: Leaves) -> Any:
        a, *rest = leaves
        return log_sum(np.stack([a[0] + gaussian_log_z(*rest[:2]), a[1] + gaussian_log_z(*rest[2:])]))

    return Case("mixture of gaussians", build, closed=closed, loud=False)


def mixture_of_spins() -> Case:
    rng = draws("mixture of spins")

    def build() -> lnz.Energy:
        parts = [lnz.Independent(rng.normal(size=3) * 2, lnz.Spin(3)) for _ in range(2)]
        return lnz.Mixture([0.7, -0.4], parts)

    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        a, first, second = leaves
        terms = np.stack([a[0] + s @ first, a[1] + s @ second])
        top = np.real(terms).max(axis=0)
        return np.log(np.exp(terms - top).sum(axis=0)) + top

    return Case("mixture of spins", build, log_weight)


def uniform() -> Case:
    space = lnz.Product(lnz.Binary(2), lnz.Categorical(1, k=3))
    return Case("uniform", lambda: lnz.Uniform(space), lambda leaves, b, c: np.zeros(len(b)))


def uniform_box() -> Case:
    box = lnz.Box([-1.0, 0.0], [2.0, 1.5])
    return Case("uniform on a box", lambda: lnz.Uniform(box), closed=lambda leaves: np.log(4.5))


def curved(theta: Any, s: Any) -> Any:
    """Neither affine nor even in its parameters."""
    return (
        -jnp.exp(theta[0]) * s[0] * s[1]
        - theta[1] ** 2 * s[2] * s[3]
        - jnp.sin(theta[0] * theta[2]) * s[4]
        - theta[2] * s[0] * s[2] * s[4]
    )


def function() -> Case:
    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        t, s = leaves[0], s.T
        pair = np.exp(t[0]) * s[0] * s[1] + t[1] ** 2 * s[2] * s[3]
        return pair + np.sin(t[0] * t[2]) * s[4] + t[2] * s[0] * s[2] * s[4]

    theta = jnp.asarray([-0.4, 1.1, 0.7])
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(curved, theta), lnz.Spin(5))  # noqa: E731
    return Case("function", build, log_weight, loud=False)


def linear_chain() -> Case:
    """Four nodes, of which the third is masked."""
    rng, k = draws("linear chain"), 3

    def build() -> lnz.Energy:
        emissions, start, end = rng.normal(size=(4, k)) * 1.3, rng.normal(size=k), rng.normal(size=k)
        transitions, mask = rng.normal(size=(k, k)), np.array([True, True, False, True])
        return lnz.LinearChain(emissions, transitions, start=start, end=end, mask=mask)

    def log_weight(leaves: Leaves, y: np.ndarray) -> np.ndarray:
        emissions, transitions, start, end = leaves
        total = start[y[:, 0]] + end[y[:, 3]] + sum(emissions[t, y[:, t]] for t in (0, 1, 3))
        total = total + transitions[y[:, 0], y[:, 1]] + transitions[y[:, 1], y[:, 3]]
        return np.where(y[:, 2] == 0, total, -np.inf)

    return Case("linear chain", build, log_weight, loud=False)


def semi_markov_chain() -> Case:
    rng, k = draws("semi-Markov chain"), 2

    def build() -> lnz.Energy:
        segments, sides = rng.normal(size=(4, 2, k)) * 1.3, rng.normal(size=(2, k))
        return lnz.SemiMarkovChain(segments, rng.normal(size=(k, k)), start=sides[0], end=sides[1])

    def log_weight(leaves: Leaves, codes: np.ndarray) -> np.ndarray:
        segments, transitions, start, end = leaves
        found = []
        for row in codes:
            total, before, last = 0.0, -1, None
            for t, code in enumerate(row):
                if not code:
                    continue
                d, label = (code - 1) // k + 1, (code - 1) % k
                total = total + segments[t, d - 1, label] + (start[label] if last is None else transitions[last, label])
                total = total if t - d == before else -np.inf
                before, last = t, label
            found.append(total + end[last] if before == len(row) - 1 else -np.inf)
        return np.array(found)

    return Case("semi-Markov chain", build, log_weight, loud=False)


def network_log_weight(
    first: np.ndarray, b: np.ndarray, second: np.ndarray, c: np.ndarray, x: np.ndarray
) -> np.ndarray:
    return -((np.tanh(x @ first + b) @ second)[:, 0] + c.ravel()[0])


def equinox_network() -> Case:
    def build() -> lnz.Energy:
        key = jax.random.key(3)
        network = eqx.nn.MLP(4, "scalar", 5, 1, activation=jnp.tanh, key=key, dtype=jnp.float64)
        return lnz.FunctionEnergy(jax.tree.map(lambda x: 3 * x if eqx.is_array(x) else x, network), lnz.Binary(4))

    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        first, b, second, c = leaves
        return network_log_weight(first.T, b, second.reshape(-1, 5).T, c, x)

    return Case("equinox network", build, log_weight, loud=False)


class FlaxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 5, rngs=rngs, param_dtype=jnp.float64)
        self.second = nnx.Linear(5, 1, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * self.second(jnp.tanh(2 * self.first(x)))[0]


def flax_network() -> Case:
    def log_weight(leaves: Leaves, x: np.ndarray) -> np.ndarray:
        shaped = {leaf.shape: leaf for leaf in leaves}
        first, b, second, c = (shaped[shape] for shape in ((4, 5), (5,), (5, 1), (1,)))
        return 2 * network_log_weight(2 * first, 2 * b, second, c, x)

    build = lambda: lnz.FunctionEnergy(FlaxNetwork(nnx.Rngs(7)), lnz.Spin(4))  # noqa: E731
    return Case("flax network", build, log_weight, loud=False)


def no_neighbours(theta: Any, s: Any) -> Any:
    return jnp.where(jnp.any(s[1:] * s[:-1] == 1), jnp.inf, -jnp.dot(theta, s) - theta[0] ** 2 * s[4])


def hard() -> Case:
    def log_weight(leaves: Leaves, s: np.ndarray) -> np.ndarray:
        t = leaves[0]
        allowed = (s[:, 1:] * s[:, :-1]).sum(axis=1) == 0
        return np.where(allowed, s @ t + t[0] ** 2 * s[:, 4], -np.inf)

    theta = jnp.asarray([0.8, -0.3, 1.2, 0.1, -0.6])
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(no_neighbours, theta), lnz.Binary(5))  # noqa: E731
    return Case("hard constraints", build, log_weight, loud=False, thorough=True)


def mixed(theta: Any, x: Any) -> Any:
    bits, colour, spins = x
    return -(theta[0] * bits[0] * spins[1] + theta[1] * spins[0] * bits[1] * bits[0] + theta[2 + colour[0]] * spins[0])


def product() -> Case:
    space = lnz.Product(lnz.Binary(2), lnz.Categorical(1, k=3), lnz.Spin(2))

    def log_weight(leaves: Leaves, bits: np.ndarray, colour: np.ndarray, spins: np.ndarray) -> np.ndarray:
        t, (b, s) = leaves[0], (bits.T, spins.T)
        return t[0] * b[0] * s[1] + t[1] * s[0] * b[1] * b[0] + t[2 + colour[:, 0]] * s[0]

    theta = jnp.asarray([1.3, -0.7, 0.4, -1.6, 0.9])
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(mixed, theta), space)  # noqa: E731
    return Case("product of spaces", build, log_weight, thorough=True)


def double_well() -> Case:
    def energy(theta: Any, x: Any) -> Any:
        return theta[0] * (x[0] ** 2 - theta[1]) ** 2 + theta[2] * x[0]

    def closed(leaves: Leaves) -> Any:
        x, t = np.linspace(-8, 8, 8001), leaves[0]
        return log_sum(-t[0] * (x**2 - t[1]) ** 2 - t[2] * x) + np.log(x[1] - x[0])

    theta = jnp.asarray([0.6, 2.0, 0.35])
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(energy, theta), lnz.Real(1))  # noqa: E731
    return Case("double well", build, closed=closed, loud=False, thorough=True, points=2001)


def boxed() -> Case:
    def energy(theta: Any, x: Any) -> Any:
        return theta[0] * x[0] + theta[1] ** 3 * x[0] * x[1] + theta[2] * x[1] ** 2

    def closed(leaves: Leaves) -> Any:
        nodes, weights = np.polynomial.legendre.leggauss(60)
        x, y, t = 0.5 + 1.5 * nodes[:, None], 0.75 + 0.75 * nodes[None], leaves[0]
        area = np.log(1.5 * weights[:, None] * 0.75 * weights[None])
        return log_sum((area - t[0] * x - t[1] ** 3 * x * y - t[2] * y**2).ravel())

    theta = jnp.asarray([1.7, -1.2, 2.3])
    box = lnz.Box([-1.0, 0.0], [2.0, 1.5])
    build = lambda: lnz.FunctionEnergy(jax.tree_util.Partial(energy, theta), box)  # noqa: E731
    return Case("function on a box", build, closed=closed, loud=False, points=129)


CASES = [
    rbm("rbm", lnz.Binary(4), 3, thorough=True),
    rbm("rbm with many hidden units", lnz.Binary(2), 4),
    rbm("rbm of spins", lnz.Spin(4), 3),
    rbm("rbm of categories", lnz.Categorical(3, k=3), 3),
    deep_boltzmann_machine(),
    gaussian_rbm(),
    ising_dense(),
    ising_sparse("ising sparse", EDGES, 5),
    ising_sparse("ising of two sides", TWO_SIDES, 6),
    ising_lattice("ising chain", (5,), periodic=False),
    ising_lattice("ising ring", (5,), periodic=True),
    ising_lattice("ising grid", (3, 2), periodic=False),
    ising_lattice("ising cylinder", (2, 4), (True, False)),
    ising_lattice("ising odd torus", (3, 3), periodic=True),
    ising_lattice("ising 3d", (2, 2, 2), periodic=False),
    ising_lattice("ising 3d torus", (2, 3, 2), periodic=True),
    potts_dense(),
    potts_dense_tables(),
    potts_sparse("potts sparse", tables=False),
    potts_sparse("potts sparse tables", tables=True, thorough=True),
    potts_lattice("potts grid", (2, 3), 3, periodic=False),
    potts_lattice("potts odd torus", (3, 2), 3, periodic=True),
    random_field(),
    independent("independent bits", lnz.Binary(4)),
    independent("independent spins", lnz.Spin((2, 2))),
    independent("independent categories", lnz.Categorical(3, k=3)),
    gaussian("gaussian", full=True),
    gaussian("diagonal gaussian", full=False),
    mixture_of_gaussians(),
    mixture_of_spins(),
    uniform(),
    uniform_box(),
    linear_chain(),
    semi_markov_chain(),
    function(),
    equinox_network(),
    flax_network(),
    hard(),
    product(),
    double_well(),
    boxed(),
]
DISCRETE = [case for case in CASES if case.discrete]


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
