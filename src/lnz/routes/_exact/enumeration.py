"""log Z and expectations by listing every state, in blocks of bounded memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Blockwise, FreeEnergy, collapsed, observed_space
from lnz._core.energy import Energy, Gradient, widen
from lnz._core.estimate import Estimate, exact
from lnz._core.numerics import log_sum_exp
from lnz._core.route import Route
from lnz._core.spaces import State


@dataclasses.dataclass(frozen=True)
class Enumeration(Route):
    """The sum over every state, exact up to rounding, in the widest dtype that JAX is configured for.

    log Z and its gradient are summed over the energy's smallest form (for an RBM its smaller layer); expectations over the observed
    states.

    Attributes:
        memory: the most bytes of one block of states.
    """

    memory: int = 48 * 2**20

    def __post_init__(self) -> None:
        if not self.memory >= 1:
            raise ValueError(f"memory must be a number of bytes of at least 1, but is {self.memory!r}")

    def unsupported_reason(self, energy: Energy) -> str | None:
        space = collapsed(energy).space
        if not space.discrete:
            return f"{space} is continuous"
        return None if space.count <= 2**32 else f"{space} has 10^{space.log_size / math.log(10):.0f} states"

    def cost(self, energy: Energy) -> float:
        return float(collapsed(energy).space.count)

    def log_partition(self, energy: Energy, key: PRNGKeyArray | None = None) -> Estimate:
        energy = collapsed(widen(energy))
        log_z, largest, _ = self._fold(energy, lambda states, logits: (logits, ()))
        return exact(
            log_z,
            rounding=_rounding(log_z, largest, energy),
            route=f"enumeration of {energy.space.count:,} states of {energy.space}",
        )

    def mean_gradient(self, energy: Energy, key: PRNGKeyArray | None = None) -> Gradient:
        """E[-∂E] in one pass: a block's weighted sum of gradients is one reverse pass over the block."""
        parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

        def rebuilt(parameters: Any) -> Energy:
            return collapsed(widen(eqx.combine(parameters, constants)))

        def block(states: State, logits: Array) -> tuple[Array, Any]:
            # States of zero probability are replaced by the block's most probable one, so that 0 · ∞ cannot arise in their gradient.
            best = jnp.argmax(logits)
            possible = logits != -jnp.inf
            states = jax.tree.map(lambda x: jnp.where(possible.reshape(-1, *(1,) * (x.ndim - 1)), x, x[best]), states)
            energies, pull_back = jax.vjp(lambda p: jax.vmap(rebuilt(p))(states), parameters)
            logits = jnp.where(possible, -energies.astype(logits.dtype), -jnp.inf)
            return logits, pull_back(-_softmax(logits).astype(energies.dtype))[0]

        return self._fold(rebuilt(parameters), block)[2]

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: PRNGKeyArray | None = None) -> Estimate:
        marginal = self._observed(energy, 2**32)

        def block(states: State, logits: Array) -> tuple[Array, Any]:
            weights, values = _softmax(logits), jax.vmap(f)(states)
            mean = jax.tree.map(lambda x: _mean(weights, x), values)
            size = jax.tree.map(lambda x: _mean(weights, jnp.abs(x)), values)
            return logits, (mean, size)

        log_z, largest, (mean, size) = self._fold(marginal, block)
        mean = jax.tree.map(lambda m: jnp.where(log_z == -jnp.inf, jnp.nan, m), mean)  # no state is possible
        relative = _rounding(log_z, largest, marginal)
        rounding = jax.tree.map(lambda s: jax.lax.stop_gradient(relative.astype(s.dtype) * (1 + s)), size)
        return exact(
            mean, rounding=rounding, route=f"enumeration of {marginal.space.count:,} states of {marginal.space}"
        )

    def sample(self, energy: Energy, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples of the observed states. All probabilities are held at once: up to 2^24 states."""
        marginal = self._observed(energy, 2**24)
        cumulative = jnp.cumsum(jax.nn.softmax(self._logits(marginal)))
        u = jax.random.uniform(key, (n,), cumulative.dtype) * cumulative[-1]
        index = jnp.searchsorted(cumulative, u, side="right")
        last = jnp.searchsorted(cumulative, cumulative[-1], side="left")  # where u was rounded up to the total
        return marginal.space.decode(jnp.minimum(index, last))

    def probabilities(self, energy: Energy) -> Array:
        """p(v) of every observed state, in the order of `space.decode`: shape (count,). Up to 2^24 states."""
        return jax.nn.softmax(self._logits(self._observed(energy, 2**24)))

    def _observed(self, energy: Energy, most: int) -> FreeEnergy:
        """The marginal of the observed states. Raises ValueError where there are more than `most`."""
        space = observed_space(energy)
        if not space.discrete:
            raise ValueError(
                f"the observed states of {type(energy).__name__} are continuous, {space}, and cannot be listed: use lnz.routes.Quadrature() in "
                "one to three dimensions, or a stochastic route"
            )
        if space.count > most:
            raise ValueError(
                f"{space} has 10^{space.log_size / math.log(10):.0f} states, more than the {most:,} that can be listed here: use a "
                "stochastic route"
            )
        return FreeEnergy(widen(energy))

    def _logits(self, energy: Energy) -> Array:
        block, blocks = self._blocks(energy)
        lister = self._lister(energy, block)
        starts = (jnp.arange(blocks, dtype=jnp.uint32) * np.uint32(block)).astype(jnp.uint32)
        logits = jax.lax.map(lambda start: lister(start)[1], starts)
        return logits.reshape(-1)[: energy.space.count]

    def _blocks(self, energy: Energy) -> tuple[int, int]:
        """The block size, a power of two, and the number of blocks."""
        count = energy.space.count
        fit = max(1, self.memory // max(1, bytes_per_state(energy)))
        block = min(2 ** int(math.log2(fit)), 2 ** math.ceil(math.log2(max(count, 1))), 2**20)
        return block, -(-count // block)

    def _lister(self, energy: Energy, block: int) -> Callable[[Array], tuple[State, Array]]:
        """A function of a block's first index to its states and their -E. What all blocks share is computed once, outside the loop."""
        count, dtype = energy.space.count, jnp.result_type(float)
        blockwise = energy.offers(Blockwise)
        block_energies = None if blockwise is None else blockwise.block_energies(block)

        def one(start: Array) -> tuple[State, Array]:
            index = start.astype(jnp.uint32) + jnp.arange(block, dtype=jnp.uint32)
            inside = (index <= np.uint32(count - 1)) & (index >= start.astype(jnp.uint32))
            states = energy.space.decode(jnp.where(inside, index, jnp.zeros_like(index)))
            if block_energies is None:
                return states, jnp.where(inside, -jax.vmap(energy)(states).astype(dtype), -jnp.inf)
            return states, -block_energies(jax.tree.map(lambda x: x[0], states))

        return one

    def _fold(
        self, energy: Energy, block_mean: Callable[[State, Array], tuple[Array, Any]]
    ) -> tuple[Array, Array, Any]:
        """log Z, the largest finite |E|, and the p-weighted mean over all states.

        `block_mean(states, logits)` gives the logits of a block and its mean.
        """
        block, blocks = self._blocks(energy)
        lister = self._lister(energy, block)

        def one(start: Array) -> tuple[Array, Array, Any]:
            logits, mean = block_mean(*lister(start))
            size = jax.lax.stop_gradient(jnp.abs(logits))
            return log_sum_exp(logits), jnp.max(jnp.where(jnp.isfinite(size), size, 0)), mean

        if blocks == 1:
            log_z, largest, mean = one(jnp.zeros((), jnp.int32))
            return log_z, largest, jax.tree.map(lambda m: _keep(log_z != -jnp.inf, m), mean)

        def step(carry: tuple[Array, Array, Array, Any], start: Array) -> tuple[tuple[Array, Array, Array, Any], None]:
            log_z, lost, largest, mean = carry
            log_b, largest_b, block_value = one(start)
            new, carry_lost = _add_logs(log_z, log_b, lost)
            old_share, new_share = _share(log_z, new), _share(log_b, new)
            mean = jax.tree.map(
                lambda m, b: old_share.astype(m.dtype) * m + _keep(log_b != -jnp.inf, new_share.astype(b.dtype) * b),
                mean,
                block_value,
            )
            return (new, carry_lost, jnp.maximum(largest, largest_b), mean), None

        shapes = jax.eval_shape(one, jax.ShapeDtypeStruct((), jnp.int32))
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[2])
        zero = jnp.zeros((), shapes[0].dtype)
        start = (zero - jnp.inf, zero, zero, empty)
        starts = (jnp.arange(blocks, dtype=jnp.uint32) * np.uint32(block)).astype(jnp.uint32)
        (log_z, lost, largest, mean), _ = jax.lax.scan(step, start, starts)
        return log_z + lost, largest, mean


def _add_logs(a: Array, b: Array, lost: Array) -> tuple[Array, Array]:
    """log(e^a + e^b), and the rounding error of the running sum, accumulated (compensated summation)."""
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    usual = jnp.isfinite(high)  # except where both are -inf, or one is +inf or NaN, which must be kept
    gain = jnp.where(usual, jnp.log1p(jnp.exp(jnp.where(usual, low - high, 0))), 0)
    total = high + gain
    return total, lost + jnp.where(usual, gain - (total - high), 0)


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(part == -jnp.inf, 0, jnp.exp(jnp.where(part == -jnp.inf, 0, part - whole)))


def _keep(condition: Array, x: Array) -> Array:
    return jnp.where(condition, x, jnp.zeros_like(x))


def _softmax(logits: Array) -> Array:
    top = jax.lax.stop_gradient(jnp.max(logits))
    shifted = jnp.exp(logits - jnp.where(jnp.isfinite(top), top, 0))
    total = jnp.sum(shifted)
    return shifted / jnp.where(total == 0, 1, total)


def _mean(weights: Array, values: Array) -> Array:
    """Σ_i w_i x_i over the first axis; values of zero weight are ignored, even infinite ones."""
    values = values if jnp.issubdtype(values.dtype, jnp.inexact) else values.astype(weights.dtype)
    w = weights.reshape(-1, *(1,) * (values.ndim - 1)).astype(values.dtype)
    return jnp.sum(jnp.where(w == 0, 0, w * values), axis=0)


def _rounding(log_z: Array, largest: Array, energy: Energy) -> Array:
    """A generous allowance for rounding: some units in the last place of the largest energy in the list, and of log Z."""
    eps = jnp.finfo(log_z.dtype).eps
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(energy.space.struct))
    scale = 1 + largest + jnp.abs(jnp.where(jnp.isfinite(log_z), log_z, 0))
    return jax.lax.stop_gradient(eps * (16 + math.sqrt(size)) * scale)


def bytes_per_state(energy: Energy) -> int:
    """Bytes of the two largest intermediate arrays of one evaluation, as a reverse pass holds them."""
    arrays, rest = eqx.partition(energy, eqx.is_array)
    jaxpr = jax.make_jaxpr(lambda a, x: eqx.combine(a, rest)(x))(arrays, energy.space.struct)
    sizes = [
        var.aval.size * var.aval.dtype.itemsize
        for eqn in jaxpr.jaxpr.eqns
        for var in eqn.outvars
        if hasattr(var.aval, "size")
    ]
    return sum(sorted(sizes, reverse=True)[:2]) + 64
