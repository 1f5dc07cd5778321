"""Kernels for continuous states of any shape: unadjusted Langevin, Hamiltonian Monte Carlo and NUTS, and the adaptation of step sizes.

A bounded domain is mapped to all of R^n entry by entry, and the density there has the Jacobian of the map: log p(u) = -F(x(u)) + log |dx/du|.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.numerics import softplus
from lnz._core.spaces import Box, Real, Space, State
from lnz.kernels._kernels import Kernel, Langevin, count_problem, step_size_problem


class Hamiltonian(Kernel):
    """A kernel of BlackJAX that follows Hamiltonian trajectories of the density on R^n."""

    figures: ClassVar[tuple[str, ...]] = ("acceptance", "divergent")
    step_size: float

    @abc.abstractmethod
    def trajectory(self, key: PRNGKeyArray, start: Any, log_density: Any, mass: Array) -> tuple[Any, Any]:
        """BlackJAX's move: the state afterwards, and its diagnostics."""

    def problem(self) -> str | None:
        """What is wrong with the kernel's own options, in words, or None."""
        return step_size_problem(self.step_size)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return continuous_refusal(energy) or self.problem()

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        from blackjax.mcmc import hmc

        space: Any = observed_space(energy)
        mass = jnp.ones((int(np.prod(space.shape)),), v.dtype)

        def log_density(u: Array) -> Array:
            x, volume = from_reals(space, u.reshape(space.shape))
            return (-free_energy_of(energy)(x) + volume).astype(u.dtype)

        def move(key: PRNGKeyArray, x: Array) -> tuple[Array, Array, Array]:
            start = hmc.init(to_reals(space, x).reshape(-1), log_density)
            after, info = self.trajectory(key, start, log_density, mass)
            moved = from_reals(space, after.position.reshape(space.shape))[0]
            # A rejected move gives back the very state, not what the map and its inverse make of it.
            return (
                jnp.where(jnp.all(after.position == start.position), x, moved),
                info.acceptance_rate,
                info.is_divergent,
            )

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # BlackJAX relies on both
            moved, acceptance, divergent = jax.vmap(move)(jax.random.split(key, v.shape[0]), v)
        return moved, {"acceptance": jnp.mean(acceptance), "divergent": jnp.mean(divergent.astype(acceptance.dtype))}


@dataclasses.dataclass(frozen=True)
class HamiltonianMonteCarlo(Hamiltonian):
    """Hamiltonian Monte Carlo: `leapfrogs` steps of size ε with a normal momentum, accepted or not. The kernel is BlackJAX's.

    Attributes:
        step_size: ε. `adapted` fits it.
        leapfrogs: gradient evaluations per move.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> energy = lnz.FunctionEnergy(lambda x: jnp.sum(x**2) / 2, lnz.Real((2, 3)))
        >>> lnz.kernels.run_chains(energy, lnz.kernels.HamiltonianMonteCarlo(0.5), jnp.zeros((4, 2, 3)), jax.random.key(0), 5).shape
        (4, 2, 3)

    Source: Duane, Kennedy, Pendleton & Roweth 1987; Neal 2011, "MCMC using Hamiltonian dynamics".
    """

    step_size: float = 0.1
    leapfrogs: int = 10

    def problem(self) -> str | None:
        return count_problem("leapfrogs", self.leapfrogs) or super().problem()

    def trajectory(self, key: PRNGKeyArray, start: Any, log_density: Any, mass: Array) -> tuple[Any, Any]:
        from blackjax.mcmc import hmc

        return hmc.build_kernel()(key, start, log_density, self.step_size, mass, int(self.leapfrogs))


@dataclasses.dataclass(frozen=True)
class NUTS(Hamiltonian):
    """The no-U-turn sampler: Hamiltonian trajectories doubled until they turn back. The kernel is BlackJAX's.

    Attributes:
        step_size: ε. `adapted` fits it.
        doublings: the largest number of doublings; a trajectory has up to 2^doublings steps.

    Source: Hoffman & Gelman 2014, "The no-U-turn sampler".
    """

    step_size: float = 0.1
    doublings: int = 10

    def problem(self) -> str | None:
        return count_problem("doublings", self.doublings) or super().problem()

    def trajectory(self, key: PRNGKeyArray, start: Any, log_density: Any, mass: Array) -> tuple[Any, Any]:
        from blackjax.mcmc import nuts

        return nuts.build_kernel()(key, start, log_density, self.step_size, mass, int(self.doublings))


@dataclasses.dataclass(frozen=True)
class UnadjustedLangevin(Kernel):
    """Langevin moves without a correction (ULA): v' = v - ε ∇F(v) + √(2εT) ξ.

    The stationary distribution of the chain is not p: it differs by an amount of order ε (for a normal distribution of precision λ its variance is
    1 / (λ (1 - ελ/2))), and where ε is too large for the curvature the chain runs away. `Langevin` has the correction.

    With a temperature T below 1, as networks are often trained, the stationary distribution is p^(1/T): the energy that is learned is then T times
    too flat.

    Attributes:
        step_size: ε.
        temperature: T; 1 for p itself.

    Source: Roberts & Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete approximations".
    """

    step_size: float = 0.01
    temperature: float = 1.0

    def unsupported_reason(self, energy: Energy) -> str | None:
        if isinstance(observed_space(energy), Box):
            return "unadjusted Langevin moves leave a Box: use Langevin, HamiltonianMonteCarlo or NUTS"
        if not 0 < self.temperature < float("inf"):
            return f"the temperature must be above 0 and finite, but is {self.temperature}"
        return continuous_refusal(energy) or step_size_problem(self.step_size)

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        slope = jax.vmap(jax.grad(free_energy_of(energy)))(v)
        epsilon = jnp.asarray(self.step_size, v.dtype)
        noise = jax.random.normal(key, v.shape, v.dtype)
        return v - epsilon * slope + jnp.sqrt(2 * self.temperature * epsilon) * noise, {}


def continuous_refusal(energy: Energy) -> str | None:
    """Why the states are not points of R^n or of a fixed box, in words, or None."""
    space = observed_space(energy)
    if not isinstance(space, Real | Box):
        return f"Hamiltonian and Langevin moves need a Real space or a Box, not {space}"
    if space.moving:
        return "the bounds of its box are parameters: chains do not see the boundary term of the derivative (T4)"
    return None


def from_reals(space: Space, u: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, ""]]:
    """The state x(u) of a point u of R^n, and log |dx/du|: the identity on `Real`, and for a `Box` entry by entry

    x = low + (high - low) / (1 + e^-u) between two bounds, x = low + e^u above one and x = high - e^u below one.
    """
    low, high, below, above = _finite_bounds(space, u.dtype)
    width, sign = jnp.where(below & above, high - low, 1), jnp.where(below, 1, -1).astype(u.dtype)
    two = jnp.where(below & above, jnp.log(width) - softplus(u) - softplus(-u), 0)
    size = jnp.exp(jnp.where(below ^ above, u, 0))
    one_sided = jnp.where(below, low, high) + sign * size
    x = jnp.where(below & above, low + width * jax.nn.sigmoid(u), jnp.where(below ^ above, one_sided, u))
    return x, jnp.sum(jnp.where(below ^ above, u, two))


def to_reals(space: Space, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The point u with x(u) = x; a state on a bound goes to the nearest point inside that the dtype knows."""
    low, high, below, above = _finite_bounds(space, x.dtype)
    least = jnp.finfo(x.dtype).eps
    width = jnp.where(below & above, high - low, 1)
    share = jnp.clip((x - low) / width, least, 1 - least)
    inside = jnp.log(share) - jnp.log1p(-share)
    one_sided = jnp.log(jnp.maximum(jnp.where(below, x - low, high - x), jnp.finfo(x.dtype).tiny))
    return jnp.where(below & above, inside, jnp.where(below ^ above, one_sided, x))


def _finite_bounds(space: Any, dtype: Any) -> tuple[Array, Array, np.ndarray, np.ndarray]:
    """Finite stand-ins for the bounds, and which of them exist."""
    low, high = map(np.asarray, space.limits)
    below, above = np.isfinite(low), np.isfinite(high)
    return jnp.asarray(np.where(below, low, 0), dtype), jnp.asarray(np.where(above, high, 0), dtype), below, above


def adapted(
    energy: Energy,
    kernel: Any,
    key: PRNGKeyArray,
    v: State,
    *,
    moves: int = 300,
    target: float | None = None,
) -> tuple[Any, State]:
    """The kernel with a fitted step size, and the chains after the moves it took: adaptation is apart from sampling.

    Dual averaging drives the mean acceptance rate over all chains to the target. Draw from the kernel that comes out, and throw the moves
    that fitted it away: a kernel that changes with its chain's past need not leave p invariant.

    Args:
        kernel: `Langevin`, `HamiltonianMonteCarlo` or `NUTS`.
        v: states (chains, *shape).
        moves: of the adaptation.
        target: acceptance rate; by default 0.574 for Langevin moves, 0.8 otherwise.

    Raises:
        ValueError: where the kernel does not support the energy, or no step size of finite size was found.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> narrow = lnz.FunctionEnergy(lambda x: 5000 * jnp.sum(x**2), lnz.Real(2))
        >>> kernel, v = lnz.kernels.adapted(narrow, lnz.kernels.HamiltonianMonteCarlo(), jax.random.key(0), jnp.zeros((8, 2)))
        >>> 0.001 < kernel.step_size < 0.02
        True

    Source: Hoffman & Gelman 2014, section 3.2 (after Nesterov 2009).
    """
    from blackjax.optimizers.dual_averaging import dual_averaging

    reason = kernel.unsupported_reason(energy)
    if reason is not None:
        raise ValueError(reason)
    if "step_size" not in vars(kernel) or "acceptance" not in kernel.figures:
        raise ValueError(f"{type(kernel).__name__} has no step size that can be fitted to an acceptance rate")
    observed_space(energy).validate(v, batch=True)
    goal = target if target is not None else 0.574 if isinstance(kernel, Langevin) else 0.8
    if not 0 < goal < 1:
        raise ValueError(f"the target acceptance rate must be between 0 and 1, but is {goal}")
    init, update, final = dual_averaging()

    def body(carry: tuple[Any, State], key: PRNGKeyArray) -> tuple[tuple[Any, State], None]:
        state, v = carry
        now = dataclasses.replace(kernel, step_size=jnp.exp(state.log_x))
        v, figures = now.step(energy, key, v)
        rate = figures["acceptance"]
        with jax.numpy_dtype_promotion("standard"):
            new = update(state, goal - jnp.where(jnp.isnan(rate), 0, rate))
        return (jax.tree.map(lambda a, b: a.astype(b.dtype), new, state), v), None

    @jax.jit
    def run(energy: Energy, key: PRNGKeyArray, v: State) -> tuple[Array, State]:
        dtype = v.dtype
        with jax.numpy_dtype_promotion("standard"):
            first = jax.tree.map(
                lambda x: jnp.asarray(x, dtype if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else None),
                init(jnp.asarray(kernel.step_size, dtype)),
            )
        (state, v), _ = jax.lax.scan(body, (first, v), jax.random.split(key, moves))
        return final(state), v

    step_size, v = run(energy, key, v)
    found = float(step_size)
    problem = step_size_problem(found)
    if problem is not None:
        raise ValueError(f"{problem}: the acceptance rate could not be fitted; start from a smaller step size")
    return dataclasses.replace(kernel, step_size=found), v
