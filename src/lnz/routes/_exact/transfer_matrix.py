"""log Z of Ising and Potts models on narrow lattices, layer by layer."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.frozen import is_traced
from lnz._models.pairwise import Ising, LatticeCouplings, Potts
from lnz.routes._exact.structural import Structured

_BLOCK = 16  # joint states of the sites of one matrix product: measured to be fastest
# Bytes of layers that a backward pass may keep; above, it keeps every √n-th and recomputes the others.
_STORED = 2.0**28


@dataclasses.dataclass(frozen=True)
class TransferMatrix(Structured):
    """Exact log Z of an Ising or Potts model on a lattice that is narrow in all directions but one, free or periodic in each.

        Z = 1ᵀ D_L K_{L-1} D_{L-1} … K_1 D_1 1, or the trace of the product where the long direction is periodic,

    with D_l the weights of the states of layer l (its fields and the bonds inside), diagonal, and K_l = ⊗_i exp(J_li φ(x)·φ(x')) the bonds from
    layer l to the next: a Kronecker product over sites, which is applied a few sites at a time. Couplings and fields may differ from site to
    site. For w sites in a layer of q states each, a layer takes about w q^w operations, and the whole q^w numbers of memory; where the long direction
    is periodic, as for twice as many sites.

    All in JAX: `jit`, `vmap` over parameters, and derivatives of any order. The backward pass recomputes the inside of a layer, and keeps
    one vector of 8 q^w bytes per layer; above 256 MB it keeps 2 √L of them and takes one more forward pass. Weights are scaled to a sum of one after
    every layer; no sum can underflow unless the bonds between layers are strong, which is an error.

    Attributes:
        max_states: the maximum number of states of a layer (of two, where the long direction is periodic).

    Raises:
        ValueError: for a model that is not an Ising or Potts lattice, a layer of too many states, or couplings that are too strong, in words.
        jax.errors.JaxRuntimeError: as the sum runs, for traced couplings that are too strong.

    Source: Kramers and Wannier 1941, "Statistics of the two-dimensional ferromagnet".

    Example:
        >>> import lnz
        >>> strip = lnz.Ising.lattice((100, 6), 0.4, 0.1, periodic=(False, True))
        >>> print(round(float(lnz.log_partition(strip, route=lnz.routes.TransferMatrix()).value), 2))
        567.63
    """

    max_states: int = 2**21

    def __post_init__(self) -> None:
        if not self.max_states >= 1:
            raise ValueError(f"max_states must be a number of at least 1, but is {self.max_states!r}")

    def misfit(self, energy: Energy) -> str | None:
        if not isinstance(energy, Ising | Potts):
            return f"{type(energy).__name__} is not an Ising or Potts model"
        couplings, q = energy.couplings, _states(energy)
        if not isinstance(couplings, LatticeCouplings):
            return "its sites are not a lattice"
        sides = sorted(couplings.shape)
        if q > 1 and math.prod(sides[:-1]) * math.log(q) > math.log(self.max_states):
            return f"a layer of {math.prod(sides[:-1])} sites has {q}^{math.prod(sides[:-1])} states, more than max_states, {self.max_states:,}"
        cut = _cut(couplings.shape, couplings.closed, q)
        if cut.states > self.max_states:
            return f"two layers of a periodic lattice have {cut.states:,} states, more than max_states, {self.max_states:,}"
        if not is_traced(couplings.strength):
            strength = np.broadcast_to(np.asarray(couplings.strength), (len(couplings.shape), *couplings.shape))
            along = np.moveaxis(strength[cut.axis], cut.axis, 0).reshape(cut.length, -1)
            factor = 2 if isinstance(energy, Ising) else 1
            span, most = float(_span(factor * along)), _most_span(jnp.result_type(float))
            if not span <= most:
                return (
                    f"the bonds between its layers span {span:.0f} nats, more than the {most:.0f} that cannot underflow"
                )
        return None

    def cost(self, energy: Energy) -> float:
        return self._cut(energy).states / 2.0

    def _cut(self, energy: Any) -> _Cut:
        return _cut(energy.couplings.shape, energy.couplings.closed, _states(energy))

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        cut, energy = self._cut(energy), widen(energy)
        value = _log_z(cut, energy)
        layers = _layers(cut, energy)
        size = sum(jnp.sum(jnp.abs(x)) for x in layers) + 8 * cut.length * (cut.width + 2) + jnp.abs(value)
        kind = "layers" if cut.first == 1 else "layers in a ring"
        return exact(
            value,
            rounding=jax.lax.stop_gradient(jnp.finfo(value.dtype).eps * size),
            route=f"transfer matrices of {cut.length:,} {kind} of {cut.width} sites",
        )

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        cut = self._cut(energy)
        return eqx.filter_grad(lambda e: _log_z(cut, widen(e)))(energy)


class _Layers(NamedTuple):
    """The log-potentials of every layer, layers first.

    Attributes:
        unary: those of every site's states, (layers, width, q).
        inner: the strengths of the bonds inside the layer, (layers, bonds).
        across: those of the bonds to the next layer, (layers, width).
    """

    unary: Array
    inner: Array
    across: Array


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """The division of a lattice into layers, and of their states into those of two halves.

    Attributes:
        axis: the long direction, of `length` layers.
        width: sites in a layer.
        first: states of the first layer where the long direction is periodic, otherwise 1: the columns of the product.
        kernel: φ(x)·φ(x'), (q, q).
        bonds: the position of every bond inside a layer in the flat (axes, width).
        left, right: features of the states of the two halves, (states, log-potentials): site states and bonds inside the half.
        left_bonds, right_bonds: the indices of these bonds.
        split: the first site of the right half.
        crossing: bonds between the halves.
        left_end, right_end: for every crossing bond, the state of its left site as an indicator, (states, crossing, q), and
            φ(·)·φ(x) of its right site's state, (crossing, q, states).
    """

    axis: int
    length: int
    width: int
    first: int
    kernel: np.ndarray
    bonds: np.ndarray
    left: np.ndarray
    right: np.ndarray
    left_bonds: np.ndarray
    right_bonds: np.ndarray
    split: int
    crossing: np.ndarray
    left_end: np.ndarray
    right_end: np.ndarray

    @property
    def states(self) -> int:
        return len(self.left) * len(self.right) * self.first


def _states(energy: Any) -> int:
    return energy.fields.shape[-1] if isinstance(energy, Potts) else 2


@functools.lru_cache(maxsize=32)
def _cut(shape: tuple[int, ...], closed: tuple[bool, ...], q: int) -> _Cut:
    """The cut with the fewest states: sites of a layer, twice as many where the long direction is periodic."""
    n = math.prod(shape)
    layers = [(n // a * (2 if c else 1), -a) for a, c in zip(shape, closed, strict=True)]
    axis = layers.index(min(layers))
    width, length = n // shape[axis], shape[axis]
    number = np.arange(width).reshape([a for i, a in enumerate(shape) if i != axis])
    ends, places = [np.zeros((0, 2), int)], [np.zeros(0, int)]
    others = [i for i in range(len(shape)) if i != axis]
    for along, other in enumerate(others):
        here = number if closed[other] else number.take(range(shape[other] - 1), along)
        there = np.roll(number, -1, along).take(range(here.shape[along]), along)
        ends.append(np.stack([here.ravel(), there.ravel()], 1))
        places.append(other * width + here.ravel())
    bonds, split = np.concatenate(ends), width // 2
    halves = (bonds >= split).sum(1)
    crossing = np.flatnonzero(halves == 1)
    kernel = np.eye(q)
    left, right = (np.indices((q,) * k).reshape(k, q**k) for k in (split, width - split))

    def features(states: np.ndarray, inside: np.ndarray) -> np.ndarray:
        sites = kernel[states].transpose(1, 0, 2).reshape(states.shape[1], -1)
        return np.concatenate([sites, kernel[states[inside[:, 0]], states[inside[:, 1]]].T], 1)

    a, b = np.sort(bonds[crossing], 1).T
    left_bonds, right_bonds = np.flatnonzero(halves == 0), np.flatnonzero(halves == 2)
    return _Cut(
        axis=axis,
        length=length,
        width=width,
        first=q**width if closed[axis] else 1,
        kernel=kernel,
        bonds=np.concatenate(places),
        left=features(left, bonds[left_bonds]),
        right=features(right, bonds[right_bonds] - split),
        left_bonds=left_bonds,
        right_bonds=right_bonds,
        split=split,
        crossing=crossing,
        left_end=kernel[left[a]].transpose(1, 0, 2),
        right_end=kernel[:, right[b - split]].transpose(1, 0, 2),
    )


def _layers(cut: _Cut, energy: Any) -> _Layers:
    """The log-potentials of δ(x, x'), also for spins: s s' = 2 δ(s, s') - 1."""
    couplings, q = energy.couplings, _states(energy)
    rank = len(couplings.shape)
    strength = jnp.broadcast_to(couplings.strength, (rank, *couplings.shape))
    strength = jnp.moveaxis(strength, 1 + cut.axis, 1).reshape(rank, cut.length, cut.width)
    fields = energy.fields
    if isinstance(energy, Ising):
        strength = 2 * strength
        fields = jnp.stack([-fields, fields], -1)
    unary = jnp.moveaxis(fields, cut.axis, 0).reshape(cut.length, cut.width, q)
    inner = strength.transpose(1, 0, 2).reshape(cut.length, -1)[:, cut.bonds]
    across = strength[cut.axis] if cut.first > 1 else strength[cut.axis, :-1]
    return _Layers(unary, inner, across)


def _span(across: Any) -> Any:
    """The largest possible difference, in nats, between entries of two consecutive Kronecker products."""
    return 2 * abs(across).sum(1).max(initial=0)


def _most_span(dtype: Any) -> float:
    """Nats that weights may span without underflow, with room for sums over the states of a layer."""
    return 0.85 * -math.log(float(jnp.finfo(dtype).tiny))


def _log_z(cut: _Cut, energy: Any) -> Array:
    unary, inner, across = layers = _layers(cut, energy)
    dtype = unary.dtype
    constant = -0.5 * (jnp.sum(inner) + jnp.sum(across)) if isinstance(energy, Ising) else jnp.zeros((), dtype)
    if is_traced(across):
        strong = jax.lax.stop_gradient(_span(across)) > _most_span(dtype)
        words = "TransferMatrix does not support this model: the bonds between its layers are so strong that sums may underflow"
        unary = eqx.error_if(unary, strong, words)
        layers = _Layers(unary, inner, across)
    start, top = _layer_weights(cut, layers.unary[0], layers.inner[0])
    v = start[:, None] if cut.first == 1 else jnp.diag(start)

    def step(v: Array, layer: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        unary, inner, across = layer
        v, shift = _across(cut, v, across)
        weights, top = _layer_weights(cut, unary, inner)
        v = weights[:, None] * v
        total = jax.lax.stop_gradient(jnp.sum(v))
        return v / total, shift + top + jnp.log(total)

    inside = (layers.unary[1:], layers.inner[1:], layers.across[: cut.length - 1])
    v, logs = _scan(step, v, inside, cut.length - 1, v.size * dtype.itemsize)
    if cut.first == 1:
        return constant + top + logs + jnp.log(jnp.sum(v))
    v, shift = _across(cut, v, layers.across[-1])
    return constant + top + logs + shift + jnp.log(jnp.trace(v))


def _scan(step: Any, v: Array, xs: Any, length: int, size: int) -> tuple[Array, Array]:
    """The last state of a loop and the sum over its outputs, by a backward pass of bounded memory."""
    step = jax.checkpoint(step, prevent_cse=False)
    if length * size <= _STORED:
        v, logs = jax.lax.scan(step, v, xs)
        return v, jnp.sum(logs)
    inner = math.isqrt(length)
    outer = length // inner
    whole = jax.tree.map(lambda x: x[: outer * inner].reshape(outer, inner, *x.shape[1:]), xs)
    stretch = jax.checkpoint(lambda v, xs: jax.lax.scan(step, v, xs), prevent_cse=False)
    v, logs = jax.lax.scan(stretch, v, whole)
    v, rest = jax.lax.scan(step, v, jax.tree.map(lambda x: x[outer * inner :], xs))
    return v, jnp.sum(logs) + jnp.sum(rest)


def _layer_weights(cut: _Cut, unary: Array, inner: Array) -> tuple[Array, Array]:
    """D of one layer, scaled to a largest entry of one, and the logarithm of the scale."""
    dtype = unary.dtype

    def half(features: np.ndarray, sites: Array, bonds: np.ndarray) -> Array:
        return jnp.asarray(features, dtype) @ jnp.concatenate([sites.reshape(-1), inner[bonds]])

    left = half(cut.left, unary[: cut.split], cut.left_bonds)
    right = half(cut.right, unary[cut.split :], cut.right_bonds)
    ends = jnp.asarray(cut.left_end, dtype).reshape(len(left), -1)
    others = inner[cut.crossing][:, None, None] * jnp.asarray(cut.right_end, dtype)
    logs = left[:, None] + right[None] + ends @ others.reshape(ends.shape[1], len(right))
    top = jax.lax.stop_gradient(jnp.max(logs))
    return jnp.exp(logs - top).reshape(-1), top


def _across(cut: _Cut, v: Array, across: Array) -> tuple[Array, Array]:
    """K v for v (states, columns), scaled so that the largest entry of K is one, and the logarithm of the scale."""
    top = jax.lax.stop_gradient(jnp.maximum(across, 0))
    sites = jnp.exp(across[:, None, None] * jnp.asarray(cut.kernel, v.dtype)[None] - top[:, None, None])
    at_once = max(1, int(math.log(_BLOCK + 0.5) / math.log(max(len(cut.kernel), 2))))
    even = cut.width - cut.width % at_once
    blocks = [
        *_kronecker(sites[:even].reshape(even // at_once, at_once, *sites.shape[1:])),
        *_kronecker(sites[None, even:]),
    ]
    flat = v.reshape(-1)
    for block in blocks[: -(-cut.width // at_once)]:
        # The leading sites are multiplied and moved to the end: after all of them, the columns come first.
        flat = jax.lax.dot_general(flat.reshape(len(block), -1), block, (((0,), (0,)), ((), ()))).reshape(-1)
    return flat.reshape(v.shape[::-1]).T, jnp.sum(top)


def _kronecker(matrices: Array) -> Array:
    """The Kronecker product over axis 1: from (n, m, q, q) to (n, q^m, q^m)."""
    product = jnp.ones((len(matrices), 1, 1), matrices.dtype)
    for i in range(matrices.shape[1]):
        both = product[:, :, None, :, None] * matrices[:, i, None, :, None, :]
        size = both.shape[1] * both.shape[2]
        product = both.reshape(len(matrices), size, size)
    return product
