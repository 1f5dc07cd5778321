"""The annealing path: distributions p_β from a known base to an energy, and how chains move along it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import (
    BlockSweepable,
    Normalised,
    Sweep,
    Sweepable,
    TwoLayer,
    complete,
    data_space,
    free_energy_of,
    log_latent_volume,
    mixed,
    observed_space,
    require_normalised,
    slope,
    tempered,
    tempers_free_energy,
)
from lnz._core.energy import Energy
from lnz._core.frozen import Frozen
from lnz._core.given import given_array
from lnz._core.spaces import ArrayLike, Box, Real, Space, State
from lnz._models.independent import Gaussian, Independent, base_of, own_base
from lnz.kernels._continuous import HamiltonianMonteCarlo
from lnz.kernels._kernels import Gibbs, Kernel, Langevin, compact
from lnz.kernels._leapfrog import box_widths, leapfrog_chains

_EXTREME = 60.0  # of the logarithm of a step size
_ROWS = 4096  # rows of the data that are completed for the means of unobserved variables


class WrappedModel(Normalised):
    """A base that wraps a model, to give it a closed form and samples."""

    @property
    @abc.abstractmethod
    def unwrapped(self) -> Energy:
        """The model, whose path through joint energies can be used."""


class PathBase(Normalised):
    """A base with a path of its own to an energy."""

    @abc.abstractmethod
    def way(self, energy: Energy, beta: Any) -> Energy:
        """The distribution at β on the path to the energy, which is at β = 1."""

    @abc.abstractmethod
    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why the path does not lead to the energy, in words, or None."""


def unwrapped(base: Energy) -> Energy:
    """A base, or the model that it wraps to give it a closed form and samples."""
    return base.unwrapped if isinstance(base, WrappedModel) else base


class Path(eqx.Module):
    """The distributions p_β ∝ exp(-F_β), 0 ≤ β ≤ 1, from a base with known log Z_0 and exact samples to an energy.

    `tempered(energy, base, beta)` defines the path: the geometric one, p_β ∝ p_0^(1-β) p^β, unless the energy has its own. A
    `PathBase` has another path, and reports where that does not lead to the energy.

    Args:
        energy: the model, β = 1.
        base: β = 0; by default the energy's own `base()`. A `Frozen` one is a constant of compiled programs.
    """

    energy: Energy
    _base: Any
    given: Any = eqx.field(static=True)  # the base as it was given, where that is a constant: None or `Frozen`

    def __init__(self, energy: Energy, base: Energy | Frozen | None = None):
        self.energy = energy
        self.given = base if base is None or isinstance(base, Frozen) else ...
        base = base.value if isinstance(base, Frozen) else base
        self._base = None if base is None else jax.tree.map(jnp.asarray, base)

    @property
    def base(self) -> Any:
        """The base, as an energy."""
        return base_of(self.energy) if self._base is None else self._base

    @property
    def by_default(self) -> bool:
        """Whether nobody chose the base of a continuous energy."""
        continuous = isinstance(observed_space(self.energy), Real | Box)
        return continuous and self.given is None and own_base(self.energy) is None

    @property
    def origin(self) -> Energy:
        """The base, or the model that it wraps."""
        return unwrapped(self.base)

    def unsupported_reason(self) -> str | None:
        """Why chains cannot follow the path, in words, or None."""
        base, energy = self.base, self.energy
        if not isinstance(base, Energy) or base.offers(Normalised) is None:
            return (
                f"the base {type(base).__name__} lacks a closed form or exact samples: inherit from lnz.capabilities.Normalised (`log_normaliser` "
                "and `sample`) to give them"
            )
        if observed_space(base) != observed_space(energy):
            return f"the base is on {observed_space(base)}, the energy's data on {observed_space(energy)}"
        return base.unsupported_reason(energy) if isinstance(base, PathBase) else None

    @property
    def own(self) -> bool:
        """Whether the path is the energy's own (`tempered`), not that of a base."""
        return not isinstance(self.base, PathBase)

    def at(self, beta: Any) -> Energy:
        """The distribution at β, as an energy."""
        base = self.base
        return base.way(self.energy, beta) if isinstance(base, PathBase) else tempered(self.energy, self.origin, beta)

    @property
    def _known(self) -> Normalised:
        return require_normalised(self.base, "the base of a path")

    def log_z0(self) -> Array:
        """log Z at β = 0, in nats."""
        return (self._known.log_normaliser() + log_latent_volume(self.at(jnp.zeros(())))).astype(jnp.result_type(float))

    def start(self, key: PRNGKeyArray, n: int) -> State:
        """n exact samples of the base, in the dtype in which moves are fastest."""
        return self.compact(self._known.sample(key, n))

    def compact(self, v: State) -> State:
        """States in the dtype in which moves are fastest."""
        return compact(self.at(jnp.zeros(())), v)

    def public(self, v: State) -> State:
        """States in the dtype of the base's samples."""
        sampled = jax.eval_shape(lambda: self._known.sample(jax.random.key(0), 1))
        return jax.tree.map(lambda x, s: x.astype(s.dtype), v, sampled)

    def gain(self, v: State, before: Any, after: Any) -> Array:
        """The gain in log weight of each state (n, *shape) from β = `before` to `after`: F_before(v) - F_after(v), in nats.

        -inf where p_after = 0; in the widest dtype that JAX is set to.
        """
        dtype = jnp.result_type(float)
        if self.own and tempers_free_energy(self.energy):
            # F_β = (1 - β) F_0 + β F_1: one difference of energies is enough for every β, and rounds less.
            start, end = (jax.vmap(free_energy_of(e))(v).astype(dtype) for e in (self.origin, self.energy))
            step = jnp.asarray(after, dtype) - jnp.asarray(before, dtype)
            return jnp.where(step == 0, 0, step * (start - end))
        warm, cold = (jax.vmap(free_energy_of(self.at(beta)))(v).astype(dtype) for beta in (before, after))
        return jnp.where(cold == jnp.inf, -jnp.inf, warm - cold)


def fitted_base(space: Space | Energy, data: ArrayLike) -> Energy:
    """A base from data: independent units with the data's means (and, of real entries, their variances).

    Args:
        space: the space of the data: `Binary`, `Spin`, `Categorical` or `Real`; or an energy. Where data are only a part of its states (a deep
            Boltzmann machine), the rest is drawn for some of them, by its `complete`, and its means are part of the base.
        data: observed states (n, *shape).

    Raises:
        ValueError: for data that the space does not contain, or real data with an entry that never varies.

    Example:
        >>> import numpy as np, lnz
        >>> base = lnz.routes.fitted_base(lnz.Binary(2), np.array([[0, 1], [1, 1], [0, 1]]))
        >>> [round(float(p), 3) for p in base.potentials]  # log odds, with one count added to each value
        [-0.405, 1.386]
    """
    data = tuple(map(given_array, data)) if isinstance(data, tuple) else given_array(data)
    if isinstance(space, Energy):
        data_space(space).validate(data, batch=True)
        if data_space(space) != observed_space(space):
            rows = np.linspace(0, len(data) - 1, min(len(data), _ROWS)).astype(np.int64)
            data = _completed(space, jnp.asarray(np.asarray(data)[rows]), jax.random.key(0))
        space = observed_space(space)
    if not isinstance(space, Real):
        return Independent.from_data(data, space)
    space.validate(data, batch=True)
    values = np.asarray(data, np.float64)
    if values.ndim != 2 or not (values.std(axis=0) > 0).all():
        raise ValueError(
            f"a base is fitted to real data of shape (n, d) in which every entry varies, but got shape {values.shape}: drop constant entries"
        )
    dtype = jnp.result_type(float)
    return Gaussian(values.mean(axis=0).astype(dtype), (1 / values.var(axis=0)).astype(dtype))


@eqx.filter_jit
def _completed(energy: Energy, v: Array, key: PRNGKeyArray) -> Array:
    return complete(energy, key, v.astype(observed_space(energy).struct.dtype))


# ----------------------------------------------------------------------------------------------------------- how chains move


def first_log_step(energy: Energy) -> Array:
    """The logarithm of the initial step size, for kernels that have one."""
    size = sum(math.prod(s.shape) for s in jax.tree.leaves(observed_space(energy).struct))
    return jnp.asarray(math.log(0.5 * max(size, 1) ** (-1 / 3)), jnp.result_type(float))


def has_step(kernel: Kernel) -> bool:
    """Whether the kernel has a step size to be fitted."""
    return isinstance(kernel, Langevin | HamiltonianMonteCarlo)


def move(
    kernel: Kernel,
    energy: Energy,
    key: PRNGKeyArray,
    v: State,
    log_step: Array,
    *,
    sweeps: int = 1,
    reverse: bool = False,
) -> tuple[State, Array]:
    """`sweeps` moves that leave the energy's distribution invariant, and the acceptance of each chain (one 1 for kernels without a step size).

    With `reverse`, moves of the kernel's reversal where that is known (see `reversible`). Hamiltonian moves stay in a box by its walls, not by
    the kernel's own map to the reals: an annealed chain starts all over the box, where the map would make its distribution steep.
    """
    if has_step(kernel):
        at = jax.vmap(jax.value_and_grad(free_energy_of(energy)))
        v, _, chances = _leapfrogs(kernel, energy, at, lambda here: here, key, v, at(v), log_step, sweeps)
        return v, chances

    def once(v: State, key: PRNGKeyArray) -> State:
        moved = kernel.reversal(energy, key, v) if reverse and isinstance(kernel, Gibbs) else None
        return kernel.step(energy, key, v)[0] if moved is None else moved

    one = jnp.ones((), log_step.dtype)
    if sweeps == 1:
        return once(v, key), one
    return jax.lax.scan(lambda v, key: (once(v, key), None), v, jax.random.split(key, sweeps))[0], one


def _leapfrogs(
    kernel: Kernel,
    energy: Energy,
    at: Callable[[Array], Any],
    force: Callable[[Any], tuple[Array, Array]],
    key: PRNGKeyArray,
    v: Array,
    here: Any,
    log_step: Array,
    sweeps: int,
) -> tuple[Array, Any, Array]:
    leapfrogs = kernel.leapfrogs if isinstance(kernel, HamiltonianMonteCarlo) else 1
    space = observed_space(energy)
    return leapfrog_chains(at, force, space, key, v, here, jnp.exp(log_step), moves=sweeps, leapfrogs=leapfrogs)


class Walk(NamedTuple):
    """Chains along a path in the fastest layout: `pack`, then any number of gains and moves, then `unpack`.

    Attributes:
        pack: from states as given by `Path.start` to the layout.
        unpack: from the layout to states, in a dtype of the layout's own.
        gain: as `Path.gain`, of packed states.
        move: from a key, β, packed states and the logarithm of the step size to new states and the acceptance, as `move` returns it.
    """

    pack: Callable[[State], Any]
    unpack: Callable[[Any], State]
    gain: Callable[[Any, Any, Any], Array]
    move: Callable[[PRNGKeyArray, Any, Any, Array], tuple[Any, Array]]


def walk(path: Path, kernel: Kernel, *, sweeps: int = 1, reverse: bool = False, rows: bool = False) -> Walk:
    """The walk of a kernel, or of its reversal, with `sweeps` moves at every β.

    Chains stay in the layout of sweeps where it gives energies too, unless they must be `rows`, the first axis of every leaf. Along geometric
    paths chains with a step size keep the energies and forces of both ends, which give those at every β.
    """
    if has_step(kernel) and path.own and tempers_free_energy(path.energy):
        return _forced(path, kernel, sweeps)

    def step(key: PRNGKeyArray, beta: Any, v: State, log_step: Array) -> tuple[State, Array]:
        return move(kernel, path.at(beta), key, v, log_step, sweeps=sweeps, reverse=reverse)

    sweep, difference = (None, None) if rows else _lattice(path, kernel)
    if sweep is None or difference is None or not isinstance(kernel, Gibbs):
        return Walk(lambda v: v, lambda v: v, path.gain, step)

    def gain(x: Any, before: Any, after: Any) -> Array:
        dtype = jnp.result_type(float)
        return (jnp.asarray(before, dtype) - jnp.asarray(after, dtype)) * difference(x).astype(dtype)

    def packed_step(key: PRNGKeyArray, beta: Any, x: Any, log_step: Array) -> tuple[Any, Array]:
        at: Any = kernel.sweep(path.at(beta))
        once = at.back if reverse else at.step
        if sweeps == 1:
            return once(key, x), jnp.ones((), log_step.dtype)
        keys = jax.random.split(key, sweeps)
        return jax.lax.scan(lambda x, key: (once(key, x), None), x, keys)[0], jnp.ones((), log_step.dtype)

    return Walk(sweep.pack, sweep.unpack, gain, packed_step)


class _Forced(NamedTuple):
    """States, and the energies and forces of both ends of the path there."""

    v: Array
    ends: tuple[tuple[Array, Array], tuple[Array, Array]]


def _forced(path: Path, kernel: Kernel, sweeps: int) -> Walk:
    """The walk of chains that keep the energies and forces of both ends: one evaluation a move serves both it and every gain."""
    dtype = jnp.result_type(float)
    both = [jax.vmap(jax.value_and_grad(free_energy_of(energy))) for energy in (path.origin, path.energy)]

    def at(v: Array) -> Any:
        return tuple(f(v) for f in both)

    def gain(x: _Forced, before: Any, after: Any) -> Array:
        (start, _), (end, _) = x.ends
        step = jnp.asarray(after, dtype) - jnp.asarray(before, dtype)
        return jnp.where(step == 0, 0, step * (start.astype(dtype) - end.astype(dtype)))

    def step(key: PRNGKeyArray, beta: Any, x: _Forced, log_step: Array) -> tuple[_Forced, Array]:
        def force(ends: Any) -> tuple[Array, Array]:
            return jax.tree.map(lambda warm, cold: mixed(warm, cold.astype(warm.dtype), beta), *ends)

        v, ends, chances = _leapfrogs(kernel, path.energy, at, force, key, x.v, x.ends, log_step, sweeps)
        return _Forced(v, ends), chances

    return Walk(lambda v: _Forced(v, at(v)), lambda x: x.v, gain, step)


def _lattice(path: Path, kernel: Kernel) -> tuple[Sweep | None, Callable[[Any], Array] | None]:
    """The layout of the path's sweeps and the energy difference in it, for paths that have both."""
    difference = slope(path.energy, path.origin)
    if difference is None or not isinstance(kernel, Gibbs):
        return None, None
    sweep = kernel.sweep(difference)
    return (None, None) if sweep is None else (sweep, sweep.energy)


def fitted_log_step(space: Space, log_step: Array, chances: Float[Array, "*k n"], *, rate: float = 1.0) -> Array:
    """The step size adapted to the acceptance of a move, towards 57 %, which is best for Langevin moves.

    It stays as it is where every chain is at an impossible point, and within what makes a difference: where every move is accepted, as on a
    plateau or in a flat box, it would grow for ever.
    """
    possible = ~jnp.isnan(chances)
    some = jnp.sum(possible, axis=-1)
    mean = jnp.sum(jnp.where(possible, chances, 0), axis=-1) / jnp.maximum(some, 1).astype(chances.dtype)
    new = log_step + jnp.where(some > 0, rate * (mean - 0.574), 0)
    widest = float(np.max(box_widths(space), initial=0)) if isinstance(space, Box) else math.inf
    most = min(2 * math.log(widest) - math.log(2), _EXTREME) if widest > 0 else _EXTREME
    return jnp.clip(new, -_EXTREME, most)


def reversible(kernel: Kernel, path: Path) -> bool:
    """Whether the reversal of every move is known: Langevin and Hamiltonian moves and block Gibbs moves of two layers are their own, sweeps over
    sites or colour classes are reversed by the opposite order. The reversal of a `Sweepable` energy's own sweep is unknown."""
    energy = path.at(jnp.zeros(()))
    by_sites = energy.offers(Sweepable) is None or energy.offers(BlockSweepable) is not None
    return has_step(kernel) or (isinstance(kernel, Gibbs) and (by_sites or energy.offers(TwoLayer) is not None))
