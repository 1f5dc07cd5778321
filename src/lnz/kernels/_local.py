"""Locally informed kernels for discrete states: proposals that follow the gradient of the energy, for bits, spins and categories.

With φ(x) the units' features (x itself, or the indicator of the category) and g = -∇_φ F, changing unit i to the value a gains about
d_i(a) = g_i · (φ(a) - φ(x_i)) nats of log-probability. Each kernel proposes by d and corrects by the exact energies.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.capabilities import Featured, free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.numerics import hangs_on
from lnz._core.spaces import Binary, Categorical, Space, Spin, State
from lnz._models import units
from lnz.kernels._kernels import Kernel, count_problem, step_size_problem


class Slopes(NamedTuple):
    """log p̃ of a state, and the estimated gain d of every change of one unit, 0 for its own value."""

    log_weight: Float[Array, ""]
    gains: Float[Array, "sites values"]


class LocallyInformed(Kernel):
    """A Metropolis-Hastings kernel on the numbers of the units' values, given `propose` and its log-probability both ways."""

    figures: ClassVar[tuple[str, ...]] = ("acceptance",)

    @abc.abstractmethod
    def move(
        self, key: PRNGKeyArray, x: Int[Array, " sites"], slopes: Callable[[Array], Slopes]
    ) -> tuple[Int[Array, " sites"], Float[Array, ""]]:
        """One move of one chain: the proposal, and the log of its acceptance ratio."""

    def unsupported_reason(self, energy: Energy) -> str | None:
        return self.problem() or gradient_refusal(energy)

    def problem(self) -> str | None:
        """What is wrong with the kernel's own options, in words, or None."""
        return None

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        space: Any = observed_space(energy)

        def one(key: PRNGKeyArray, x: Array) -> tuple[Array, Array]:
            propose_key, accept_key = jax.random.split(key)
            y, log_ratio = self.move(propose_key, x, lambda x: slopes_at(energy, x))
            # A NaN compares as false: the move is rejected, and the chain stays where its energy is a number.
            accepted = jnp.log(jax.random.uniform(accept_key, (), log_ratio.dtype)) < log_ratio
            chance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
            return jnp.where(accepted, y, x), chance

        x = numbers_of(space, v)
        x, acceptance = jax.vmap(one)(jax.random.split(key, x.shape[0]), x)
        return values_of(space, x, v.dtype), {"acceptance": jnp.mean(acceptance)}


@dataclasses.dataclass(frozen=True)
class GibbsWithGradients(LocallyInformed):
    """Gibbs with gradients: one unit and its new value are proposed with probability ∝ exp(d_i(a) / 2).

    A step changes at most one unit: for the equivalent of a sweep, use as many steps as there are units.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> ring = lnz.Ising.lattice((4,), 0.5, periodic=True)
        >>> lnz.kernels.run_chains(ring, lnz.kernels.GibbsWithGradients(), jnp.ones((10, 4)), jax.random.key(0), 20).shape
        (10, 4)

    Source: Grathwohl, Swersky, Hashemi, Duvenaud & Maddison 2021, "Oops I took a gradient".
    """

    def move(
        self, key: PRNGKeyArray, x: Int[Array, " sites"], slopes: Callable[[Array], Slopes]
    ) -> tuple[Int[Array, " sites"], Float[Array, ""]]:
        def log_chances(x: Array, at: Slopes) -> Array:
            return jax.nn.log_softmax(changes(x, at.gains / 2).ravel())

        here = slopes(x)
        k, forth = here.gains.shape[1], log_chances(x, here)
        chosen = jax.random.categorical(key, forth).astype(x.dtype)
        site, value = chosen // k, chosen % k
        y = x.at[site].set(value)
        there = slopes(y)
        back = log_chances(y, there)[site * k + x[site]]
        return y, there.log_weight - here.log_weight + back - forth[chosen]


@dataclasses.dataclass(frozen=True)
class DiscreteLangevin(LocallyInformed):
    """Discrete Langevin moves: all units in parallel, each to the value a with probability ∝ exp(d_i(a) / 2 - 1[a ≠ x_i] / 2α).

    The paper has |φ(a) - φ(x_i)|² in place of the indicator: 1 for bits, 4 for spins and 2 for categories, so its α is that many times as large.

    Adjusted (DMALA), p stays invariant. Unadjusted (DULA), every proposal is accepted, and the stationary distribution of the chain
    differs from p by an amount that vanishes as α → 0 where the energy is quadratic in φ, and does not vanish otherwise.

    Attributes:
        step_size: α.
        adjusted: whether proposals are accepted or rejected by Metropolis-Hastings.

    Source: Zhang, Liu & Liu 2022, "A Langevin-like sampler for discrete distributions".
    """

    step_size: float = 0.5
    adjusted: bool = True

    def problem(self) -> str | None:
        return step_size_problem(self.step_size)

    def move(
        self, key: PRNGKeyArray, x: Int[Array, " sites"], slopes: Callable[[Array], Slopes]
    ) -> tuple[Int[Array, " sites"], Float[Array, ""]]:
        def log_chances(x: Array, at: Slopes) -> Array:
            same = jax.nn.one_hot(x, at.gains.shape[1], dtype=at.gains.dtype)
            return jax.nn.log_softmax(at.gains / 2 - (1 - same) / (2 * self.step_size), axis=-1)

        here = slopes(x)
        forth = log_chances(x, here)
        y = jax.random.categorical(key, forth, axis=-1).astype(x.dtype)
        if not self.adjusted:
            return y, jnp.asarray(jnp.inf, forth.dtype)
        there = slopes(y)
        back = log_chances(y, there)
        gain = jnp.sum(chosen_of(back, x)) - jnp.sum(chosen_of(forth, y))
        return y, there.log_weight - here.log_weight + gain


@dataclasses.dataclass(frozen=True)
class PathAuxiliary(LocallyInformed):
    """The path-auxiliary sampler: a path of several changed units, accepted or rejected as a whole.

    The length is uniform in 1 … 2 · length - 1. Units are drawn one after the other without replacement, with the slopes at the path's start
    (the fast variant of the paper): P(i) ∝ Σ_a exp(d_i(a) / 2) among the units left. The way back is the same path reversed, with the slopes
    at its end.

    Attributes:
        length: the mean number of changed units.

    Source: Sun, Dai, Xia & Ramamurthy 2022, "Path auxiliary proposal for MCMC in discrete space".
    """

    length: int = 3

    def problem(self) -> str | None:
        return count_problem("length", self.length)

    def move(
        self, key: PRNGKeyArray, x: Int[Array, " sites"], slopes: Callable[[Array], Slopes]
    ) -> tuple[Int[Array, " sites"], Float[Array, ""]]:
        length_key, order_key, value_key = jax.random.split(key, 3)
        n, place = x.shape[0], jnp.arange(x.shape[0], dtype=jnp.int32)
        steps = jax.random.randint(length_key, (), 1, min(2 * self.length, n + 1), dtype=jnp.int32)

        def weights(x: Array, at: Slopes) -> tuple[Array, Array]:
            each = changes(x, at.gains / 2)
            return each, jax.nn.logsumexp(each, axis=-1)

        def log_chance(order: Array, of_site: Array) -> Array:
            """The log-probability of drawing the first units of the order, one after the other."""
            drawn = of_site[order]
            return jnp.sum(jnp.where(place < steps, drawn - jax.lax.cumlogsumexp(drawn, reverse=True), 0))

        here = slopes(x)
        each, of_site = weights(x, here)
        order = jnp.argsort(-(of_site + jax.random.gumbel(order_key, (n,), of_site.dtype))).astype(jnp.int32)
        changed = jnp.zeros((n,), bool).at[order].set(place < steps)
        y = jnp.where(changed, jax.random.categorical(value_key, each, axis=-1).astype(x.dtype), x)
        there = slopes(y)
        back, back_of_site = weights(y, there)
        reversed_order = order[jnp.where(place < steps, steps - 1 - place, place)]
        forth = log_chance(order, of_site) + jnp.sum(jnp.where(changed, chosen_of(each, y) - of_site, 0))
        back = log_chance(reversed_order, back_of_site) + jnp.sum(
            jnp.where(changed, chosen_of(back, x) - back_of_site, 0)
        )
        return y, there.log_weight - here.log_weight + back - forth


def changes(x: Int[Array, " sites"], gains: Float[Array, "sites values"]) -> Float[Array, "sites values"]:
    """The gains with -inf at every unit's own value."""
    return jnp.where(jax.nn.one_hot(x, gains.shape[1], dtype=bool), -jnp.inf, gains)


def chosen_of(table: Float[Array, "sites values"], x: Int[Array, " sites"]) -> Float[Array, " sites"]:
    """The entries of a table at every unit's value."""
    return jnp.take_along_axis(table, x[:, None], axis=1)[:, 0]


def slopes_at(energy: Energy, x: Int[Array, " sites"]) -> Slopes:
    """The slopes at a state given by the numbers of its values."""
    space: Any = observed_space(energy)
    dtype, featured = float_type(energy), energy.offers(Featured)

    def log_weight(phi: Array) -> Array:
        if featured is not None and isinstance(space, Categorical):
            return -featured.feature_energy(phi.reshape(*space.shape, space.k))
        return -free_energy_of(energy)(phi.reshape(space.shape))

    state = values_of(space, x[None], jnp.int32)[0].reshape(-1)
    phi = units.features(Categorical(space.size, space.k) if isinstance(space, Categorical) else space, state, dtype)
    value, slope = jax.value_and_grad(log_weight)(phi)
    if isinstance(space, Categorical):
        return Slopes(value, slope - chosen_of(slope, x)[:, None])
    low = 0 if isinstance(space, Binary) else -1
    return Slopes(value, slope[:, None] * (jnp.asarray([[low, 1]], dtype) - phi[:, None]))


def float_type(energy: Energy) -> Any:
    """The dtype of the energy's parameters."""
    floats = [leaf for leaf in jax.tree.leaves(energy) if eqx.is_inexact_array(leaf)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def numbers_of(space: Space, v: Array) -> Int[Array, "chains sites"]:
    """The numbers 0, 1, … of every unit's value, from states (n, *shape)."""
    flat = v.reshape(v.shape[0], math.prod(space.shape))
    return flat.astype(jnp.int32) if isinstance(space, Categorical) else (flat.astype(jnp.int32) > 0).astype(jnp.int32)


def values_of(space: Space, x: Int[Array, "chains sites"], dtype: Any) -> Array:
    """States (n, *shape) from the numbers of their values."""
    x = 2 * x - 1 if isinstance(space, Spin) else x
    return x.reshape(x.shape[0], *space.shape).astype(dtype)


def gradient_refusal(energy: Energy) -> str | None:
    """Why the energy has no gradient in its discrete states, in words, or None."""
    space = observed_space(energy)
    if not isinstance(space, Binary | Spin | Categorical):
        return f"locally informed moves need a Binary, Spin or Categorical space, not {space}"
    if isinstance(space, Categorical):
        if energy.offers(Featured) is not None:
            return None
        return (
            f"a {type(energy).__name__} of categories has no gradient in x, whose entries are integers: give it a `feature_energy` of "
            "their indicators (lnz.capabilities.Featured), or use Gibbs"
        )
    # A gradient that depends on nothing is the zero of rounding, comparing or indexing by x.
    slope = jax.grad(free_energy_of(energy))
    if hangs_on(slope, jnp.ones(space.shape, float_type(energy)), or_constants=True):
        return None
    return (
        f"the gradient of this {type(energy).__name__} in x is zero everywhere: it rounds, compares or indexes by x. Use Gibbs, which needs "
        "no gradient"
    )
