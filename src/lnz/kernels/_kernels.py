"""Markov kernels: each leaves p_θ of an energy invariant, on a batch of chains of observed states."""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import BlockSweepable, Sweep, Sweepable, TwoLayer, free_energy_of, observed_space
from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import Binary, Box, Categorical, MixedCategorical, Real, Spin, State
from lnz._models import units
from lnz._models.colouring import block_problem
from lnz.kernels._leapfrog import leapfrog_moves

_SITES = Binary | Spin | Categorical | MixedCategorical


class Kernel(abc.ABC):
    """A Markov kernel that leaves p(v) ∝ exp(-F(v)) invariant. Kernels are static: frozen dataclasses of plain numbers."""

    figures: ClassVar[tuple[str, ...]] = ()
    """The names of the figures that a move returns."""

    @abc.abstractmethod
    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why this kernel does not support the energy, in words, or None."""

    @abc.abstractmethod
    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        """One move of a batch of states (n, *shape): the new states and named figures, such as the acceptance rate."""


@dataclasses.dataclass(frozen=True)
class Gibbs(Kernel):
    """One Gibbs sweep: the energy's own blocks (`Sweepable`) where it offers them, otherwise site after site.

    Ising and Potts models and factor graphs are swept by colour classes. Sites of one block are drawn in parallel, so no two of them may
    interact.

    Attributes:
        blocks: blocks of sites, in the flat numbering, in the order of the sweep; every site in one of them. By default the model's own
            colour classes. Supported by pairwise models and factor graphs.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> ring = lnz.Ising.lattice((4,), 0.5, periodic=True)
        >>> s = lnz.kernels.run_chains(ring, lnz.kernels.Gibbs(blocks=[[0, 2], [1, 3]]), jnp.ones((10, 4)), jax.random.key(0), 5)
        >>> s.shape
        (10, 4)

    Source: Geman & Geman 1984.
    """

    blocks: Any = None

    def __post_init__(self) -> None:
        if self.blocks is not None:
            blocks = tuple(tuple(np.asarray(block).tolist()) for block in self.blocks)
            if not all(isinstance(site, int) for block in blocks for site in block):
                raise ValueError(f"blocks must be lists of the numbers of sites, but got {self.blocks!r}")
            object.__setattr__(self, "blocks", blocks)

    def unsupported_reason(self, energy: Energy) -> str | None:
        if self.blocks is not None:
            sweepable = energy.offers(BlockSweepable)
            if sweepable is None:
                return f"a {type(energy).__name__} does not define which sites interact: leave the blocks out"
            return block_problem(self.blocks, sweepable.interactions(), math.prod(observed_space(energy).shape))
        if energy.offers(Sweepable) is not None or isinstance(observed_space(energy), _SITES):
            return None
        return (
            "Gibbs sweeps need an energy with its own (lnz.capabilities.Sweepable) or a Binary, Spin, Categorical or MixedCategorical space, not "
            f"{observed_space(energy)}"
        )

    def sweep(self, energy: Energy) -> Sweep | None:
        """The sweep in a layout of its own, for energies that have one. Raises ValueError for invalid blocks."""
        if self.blocks is not None:
            reason = self.unsupported_reason(energy)
            if reason is not None:
                raise ValueError(reason)
        sweepable = energy.offers(BlockSweepable)
        return None if sweepable is None else sweepable.gibbs_sweep(self.blocks)

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        sweep = self.sweep(energy)
        if sweep is not None:
            return sweep.once(key, v), {}
        sweepable = energy.offers(Sweepable)
        return (_single_site_sweep(energy, key, v) if sweepable is None else sweepable.gibbs(key, v)), {}

    def reversal(self, energy: Energy, key: PRNGKeyArray, v: State) -> State | None:
        """One move of the sweep's reversal, all blocks in the opposite order; None for an energy's own `gibbs`, whose order is unknown."""
        sweep = self.sweep(energy)
        if sweep is not None:
            return sweep.reversal().once(key, v)
        layers = energy.offers(TwoLayer)
        if layers is not None:  # from v through h to v: its own reversal
            return layers.gibbs(key, v)
        return None if energy.offers(Sweepable) is not None else _single_site_sweep(energy, key, v, last_first=True)


def _single_site_sweep(energy: Energy, key: PRNGKeyArray, v: Array, *, last_first: bool = False) -> Array:
    """Every site once, in order, from its exact conditional distribution: one energy evaluation per site and value."""
    space: Any = observed_space(energy)
    counts = units.value_counts(space)
    values = np.array([-1, 1]) if isinstance(space, Spin) else np.arange(counts.max(initial=1))
    choices, present = jnp.asarray(values).astype(v.dtype), jnp.asarray(np.arange(len(values)) < counts[:, None])
    flat = v.reshape(v.shape[0], space.size)

    def logit(flat: Array, site: Array, value: Array, exists: Array) -> Array:
        changed = flat.at[:, site].set(value).reshape(v.shape)
        return jnp.where(exists, -jax.vmap(free_energy_of(energy))(changed), -jnp.inf)

    def update(i: Array, flat: Array) -> Array:
        site = space.size - 1 - i if last_first else i
        logits = jax.lax.map(lambda choice: logit(flat, site, *choice), (choices, present[site]))
        drawn = jax.random.categorical(jax.random.fold_in(key, site), logits, axis=0)
        return flat.at[:, site].set(choices[drawn])

    return jax.lax.fori_loop(0, space.size, update, flat).reshape(v.shape)


@dataclasses.dataclass(frozen=True)
class Langevin(Kernel):
    """The Metropolis-adjusted Langevin algorithm: v' = v - ε ∇F(v) + √(2ε) ξ, accepted or not, so that p stays invariant.

    In a box, a move that meets a wall is reflected (see `leapfrog_moves`).

    Attributes:
        step_size: ε.

    Source: Roberts & Tweedie 1996.
    """

    figures: ClassVar[tuple[str, ...]] = ("acceptance",)
    step_size: float | Array = 0.1

    def unsupported_reason(self, energy: Energy) -> str | None:
        space = observed_space(energy)
        if not isinstance(space, Real | Box):
            return f"Langevin moves need a Real space or a Box, not {space}"
        return step_size_problem(self.step_size)

    def step(self, energy: Energy, key: PRNGKeyArray, v: State) -> tuple[State, dict[str, Array]]:
        moved, acceptance = leapfrog_moves(energy, key, v, jnp.asarray(self.step_size, v.dtype))
        return moved, {"acceptance": acceptance}


def step_size_problem(step_size: Any) -> str | None:
    """What is wrong with a step size, in words, or None. A traced one cannot be checked."""
    if is_traced(step_size) or 0 < step_size < math.inf:
        return None
    return f"the step size must be above 0 and finite, but is {step_size}"


def count_problem(name: str, n: Any) -> str | None:
    """What is wrong with a number of things, in words, or None."""
    good = isinstance(n, int | np.integer) and n >= 1
    return None if good else f"{name} must be an integer of at least 1, but is {n!r}"


def default_kernel(energy: Energy) -> Kernel:
    """Gibbs sweeps where the energy allows them, Langevin moves otherwise. Raises ValueError if neither supports it."""
    kernels = (Gibbs(), Langevin())
    reasons = [kernel.unsupported_reason(energy) for kernel in kernels]
    for kernel, reason in zip(kernels, reasons, strict=True):
        if reason is None:
            return kernel
    raise ValueError("no kernel supports this energy: " + "; ".join(str(reason) for reason in reasons))


def run_chains(energy: Energy, kernel: Kernel, v: State, key: PRNGKeyArray, sweeps: int) -> State:
    """The states after `sweeps` moves of the kernel, in the dtype they came in.

    The order of version 0.1, the key before the states, is accepted with a DeprecationWarning where the key is a `jax.random.key`.

    Raises:
        ValueError: where the kernel does not support the energy, or a state is outside its space.
        FloatingPointError: where a chain has come to a state whose energy is NaN or infinite. Inside `jit` this is not checked.
    """
    if _is_key(v) and not _is_key(key):
        warnings.warn(
            "run_chains takes the states before the key: run_chains(energy, kernel, v, key, sweeps); the other order goes with version 0.3",
            DeprecationWarning,
            stacklevel=2,
        )
        v, key = key, v
    if not is_traced(v):
        reason = kernel.unsupported_reason(energy)
        if reason is not None:
            raise ValueError(reason)
        observed_space(energy).validate(v, batch=True)
    if any(map(is_traced, jax.tree.leaves((energy, v, key, sweeps)))) or not _is_static(kernel):
        return moved_chains(energy, kernel, key, v, sweeps)[0]
    check_whole_number("sweeps", sweeps, 0)
    if sweeps == 0:
        return jax.tree.map(jnp.asarray, v)
    moved, energies = _moved_with_energies(energy, kernel, key, v, np.int32(sweeps))
    _require_finite(np.asarray(energies), moved)
    return moved


def _is_key(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_static(kernel: Kernel) -> bool:
    try:
        hash(kernel)
    except TypeError:  # a step size that is an array
        return False
    return True


@eqx.filter_jit
def _moved_with_energies(
    energy: Energy, kernel: Kernel, key: PRNGKeyArray, v: State, sweeps: Any
) -> tuple[State, Array]:
    """One program for any number of sweeps: the states of `moved_chains` and their energies F, shape (n,)."""
    by_layers = energy.offers(TwoLayer) is not None
    sweep = kernel.sweep(energy) if isinstance(kernel, Gibbs) and not by_layers else None
    if sweep is not None and sweep.energy is not None:
        packed = _swept(sweep, fast_key(key), v, sweeps)
        return sweep.unpack(packed).astype(v.dtype), sweep.energy(packed)
    moved = moved_chains(energy, kernel, key, v, sweeps)[0]
    return moved, jax.vmap(free_energy_of(energy))(moved)


def _swept(sweep: Sweep, key: PRNGKeyArray, v: State, sweeps: Any) -> Any:
    """The packed states after the sweeps."""
    return jax.lax.fori_loop(0, sweeps, lambda i, x: sweep.step(jax.random.fold_in(key, i), x), sweep.pack(v))


def _require_finite(energies: np.ndarray, v: State) -> None:
    """Raise FloatingPointError if one of the energies of the states (n, *shape) is not finite; the message names the first."""
    bad = np.flatnonzero(~np.isfinite(energies))
    if len(bad):
        with np.printoptions(threshold=20):
            state = jax.tree.map(lambda x: np.asarray(x[int(bad[0])]), v)
            raise FloatingPointError(
                f"chain {bad[0]} has reached energy {energies[bad[0]]}, at the state {state!r}: try a smaller step size, or a start where p > 0"
            )


def moved_chains(
    energy: Energy, kernel: Kernel, key: PRNGKeyArray, v: State, sweeps: Any
) -> tuple[State, dict[str, Array]]:
    """The states that `run_chains` returns, and the means of the kernel's figures over the moves.

    Move i has the key `fold_in(key, i)`. `sweeps`, at least 1, may be traced; if not, the result can be differentiated in reverse.
    """
    key = fast_key(key)
    layers = energy.offers(TwoLayer) if isinstance(kernel, Gibbs) else None
    if layers is not None:
        first_key, key = jax.random.split(key)
        moved, _, _ = run_layers(layers, key, layers.sample_hidden(first_key, v), sweeps)
        return moved.astype(v.dtype), {}

    sweep = kernel.sweep(energy) if isinstance(kernel, Gibbs) else None
    if sweep is not None:
        return sweep.unpack(_swept(sweep, key, v, sweeps)).astype(v.dtype), {}

    def body(i: Array, carry: tuple[State, dict[str, Array]]) -> tuple[State, dict[str, Array]]:
        v, totals = carry
        v, info = kernel.step(energy, jax.random.fold_in(key, i), v)
        return v, {name: total + jnp.mean(info[name]).astype(total.dtype) for name, total in totals.items()}

    totals = {name: jnp.zeros((), jnp.float32) for name in kernel.figures}
    moved, totals = jax.lax.fori_loop(0, sweeps, body, (compact(energy, v), totals))
    moved = jax.tree.map(lambda new, old: new.astype(old.dtype), moved, v)
    return moved, {name: total / jnp.asarray(sweeps, total.dtype) for name, total in totals.items()}


def run_layers(energy: TwoLayer, key: PRNGKeyArray, h: Array, sweeps: Any) -> tuple[Array, Array, Array]:
    """Block Gibbs from the hidden layer, `sweeps` times v ~ p(v|h) and h ~ p(h|v): v, h, and the share of h that the last sweep changed.

    The first and the last half sweep are outside the loop, and both layers are carried through it. So the gradient at v can share the last
    product v W, and both layers are stored as booleans: this saves 17 % of a PCD-1 update, 7 % of PCD-10.
    """

    def half(i: Any) -> PRNGKeyArray:
        return jax.random.fold_in(key, i)

    def body(i: Array, layers: tuple[Array, Array]) -> tuple[Array, Array]:
        h = energy.sample_hidden(half(2 * i + 1), layers[0])
        return energy.sample_visible(half(2 * i + 2), h), h

    layers = energy.sample_visible(half(0), h), h
    v, before = layers if isinstance(sweeps, int) and sweeps == 1 else jax.lax.fori_loop(0, sweeps - 1, body, layers)
    h = energy.sample_hidden(half(2 * sweeps - 1), v)
    return v, h, jnp.mean((h != before).astype(jnp.float32))


def compact(energy: Energy, v: State) -> State:
    """Chains in the fastest dtype: booleans for binary states of an energy with its own Gibbs sweeps, otherwise unchanged."""
    binary = isinstance(observed_space(energy), Binary) and energy.offers(Sweepable) is not None
    return v.astype(bool) if binary else v
