"""User-defined annealing paths from a known distribution to the model: through given energies, or along a function of β."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.capabilities import (
    Annealable,
    Normalised,
    Sweepable,
    free_energy_of,
    log_latent_volume,
    observed_space,
    require_normalised,
    tempered,
)
from lnz._core.energy import Energy, as_energy
from lnz._core.frozen import Frozen, is_traced, same_structure
from lnz._core.spaces import Space, State
from lnz.kernels._kernels import Gibbs, default_kernel
from lnz.routes._annealing.path import PathBase, WrappedModel, unwrapped
from lnz.routes._exact.exact_routes import exact_route
from lnz.routes._exact.exact_samples import exact_sampler

_STATES = 32  # samples of the start at which energies are compared
_STOPS = 9  # inverse temperatures at which a function is checked
_ROUNDING = 1e-5
_MODEL = 1e-4


class AnnealingPath(PathBase):
    """The distributions p_β ∝ exp(-F_β), 0 ≤ β ≤ 1, along which a route anneals: through given energies, or a function of β.

    Energies E_0, …, E_K are at β = 0, 1/K, …, 1, and between two of them the path is the geometric one, that of `E_{k+1}.tempered(E_k, β)`
    (between RBMs of one size that of the joint energies: machines whose parameters are interpolated). Any path gives weights with mean Z; the
    nearer neighbours are to each other, the less the weights spread. Schedules act on the path's β.

    `AnnealedImportanceSampling.from_path`, and the same of every annealing route, wraps it; it may also be given as the `base` of a route.

    Args:
        path: a list of energies on one space, the first known and the last the model; or a callable from β, a scalar that is traced, to the
            energy at β, of which that at 1 is the model. Both are kept as constants: where the model's parameters move on (in training), the
            path still ends at the model itself.
        base: the distribution at β = 0, with `log_normaliser()` and `sample(key, n)`. It may be left out where E_0 has these itself, or is
            small or simple enough to be summed exactly.

    Raises:
        TypeError: for a callable that cannot be traced, or a value that is not an energy.
        ValueError: for energies on different spaces, a start that is not known, or an energy that is NaN at a state that the start reaches.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def colder(beta):
        ...     return lnz.Ising.lattice((4, 4), 0.3 * beta**2, periodic=True)
        >>> route = lnz.routes.AnnealedImportanceSampling.from_path(colder, temperatures=200)
        >>> torus = lnz.Ising.lattice((4, 4), 0.3, periodic=True)
        >>> estimate = lnz.log_partition(torus, route=route, key=jax.random.key(0))
        >>> bool(estimate.lower < 12.7855 < estimate.upper)  # Kaufman 1949
        True

    Source: Neal 2001 (any sequence of distributions); Gelman & Meng 1998 (paths and what they cost).
    """

    start: Normalised
    energies: tuple[Energy, ...]
    _function: Frozen | None = eqx.field(static=True)

    def __init__(self, path: Sequence[Any] | Callable[[Array], Any], *, base: Energy | None = None):
        if callable(path):
            self._function = Frozen(path)
            first = _traceable(path)
            stops = [(f"at β = {beta:g}", as_energy(path(jnp.asarray(beta)))) for beta in np.linspace(0, 1, _STOPS)]
            self.energies = tuple(energy for _, energy in stops[1:])  # which also distinguish one function from another
        else:
            energies = [as_energy(energy) for energy in path]
            if len(energies) < 2:
                raise ValueError(
                    f"a path needs at least two energies, from one that is known to the model, but got {len(energies)}"
                )
            self._function = None
            first, self.energies = energies[0], tuple(energies[1:])
            if log_latent_volume(first):
                raise ValueError(
                    f"a path cannot begin at a {type(first).__name__}: begin at the base that it was made from"
                )
            stops = [(f"{k} of the path", energy) for k, energy in enumerate(energies)]
        if any(map(is_traced, jax.tree.leaves((self.energies, first)))):
            raise TypeError("a path is checked when it is made: make it outside jit, vmap and grad")
        for where, energy in stops:
            if observed_space(energy) != observed_space(first):
                raise ValueError(
                    f"the energies of a path must be on one space, but that {where} is on {observed_space(energy)} and the first on "
                    f"{observed_space(first)}: sum out what they do not share, or give energies on one space"
                )
        self.start = known(first) if base is None else _base_of(first, as_energy(base))
        v = self._states()
        for where, energy in stops:
            if np.isnan(_free_energies(energy, v)).any():
                raise ValueError(
                    f"the energy {where} is NaN at a state that the start of the path reaches: an intermediate energy must be a number, or "
                    "+inf where its distribution has no mass"
                )
        ours, theirs = _free_energies(self.start, v), _free_energies(first, v) + log_latent_volume(first)
        if not _agree(ours, theirs, _ROUNDING):
            raise ValueError(
                f"the path does not begin at its base: at one state that is {ours[0]:.6g} nats, the path's first energy {theirs[0]:.6g}. "
                "They must be equal, constants included"
            )

    @property
    def space(self) -> Space:
        return observed_space(self.start)

    def __call__(self, x: State) -> Array:
        return free_energy_of(self.start)(x)

    def log_normaliser(self) -> Array:
        """log Z at β = 0, in nats."""
        return self.start.log_normaliser()

    def sample(self, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples of the distribution at β = 0."""
        return self.start.sample(key, n)

    def unsupported_reason(self, energy: Energy) -> str | None:
        """Why the path does not lead to the energy, in words, or None. Under `jit` its end is not compared, and the model replaces it."""
        kernel = default_kernel(energy)
        for beta in (0.0, *(np.arange(len(self.energies)) + 0.5) / len(self.energies)):
            part = self._part_at(energy, beta)
            reason = kernel.unsupported_reason(part)
            if reason is not None:
                return f"the moves along the path do not support its distribution at β = {beta:.3g}: {reason}"
        last = self.energies[-1]
        if any(map(is_traced, (*jax.tree.leaves(energy), jnp.zeros(())))) or _same_leaves(last, energy):
            return None  # this zero is traced where values are unknown
        v = self._states()
        ours, theirs = _free_energies(last, v), _free_energies(energy, v)
        if _agree(ours, theirs, _MODEL):
            return None
        i = int(np.argmax(np.where(ours == theirs, 0, np.abs(ours - theirs))))
        return (
            f"the path does not end at the model: at the same state its last energy is {ours[i]:.6g} nats and that of the model "
            f"{theirs[i]:.6g}. Put the model itself last (an energy that differs by a constant has another log Z)"
        )

    def way(self, energy: Energy, beta: Any) -> Energy:
        """The distribution at β on the way to the energy, which replaces the path's last energy at β = 1."""
        beta = jnp.asarray(beta)
        if self._function is not None:
            return _one_of((as_energy(self._function.value(beta)), energy), (beta >= 1).astype(jnp.int32))
        pieces = self._pieces(energy)
        k = jnp.clip(jnp.floor(beta * len(pieces)).astype(jnp.int32), 0, len(pieces) - 1)
        t = jnp.clip(beta * len(pieces) - k.astype(beta.dtype), 0, 1)
        groups: list[list[tuple[Energy, Energy]]] = []
        for piece in pieces:
            alike = groups and same_structure(groups[-1][-1], piece)
            groups[-1].append(piece) if alike else groups.append([piece])
        energies, first, group = [], 0, jnp.zeros((), jnp.int32)
        for pieces_alike in groups:
            within = jnp.clip(k - first, 0, len(pieces_alike) - 1)
            start, end = jax.tree.map(lambda *leaves, at=within: _stacked(leaves)[at], *pieces_alike)
            energies.append(tempered(end, start, t))
            group = jnp.where(k >= first, len(energies) - 1, group).astype(jnp.int32)
            first += len(pieces_alike)
        return _one_of(tuple(energies), group)

    def _part_at(self, energy: Energy, beta: float) -> Energy:
        """One distribution of the path by itself, not as one of several."""
        if self._function is not None:
            return as_energy(self._function.value(jnp.asarray(beta)))
        start, end = self._pieces(energy)[min(int(beta * len(self.energies)), len(self.energies) - 1)]
        return tempered(end, start, jnp.asarray(0.5))

    def _pieces(self, energy: Energy) -> list[tuple[Energy, Energy]]:
        """The energies of the path, the last one replaced by the model."""
        knots = [unwrapped(self.start), *self.energies[:-1], energy]
        return list(itertools.pairwise(knots))

    def _states(self) -> State:
        return self.sample(jax.random.key(0), _STATES)


class KnownDistribution(WrappedModel):
    """An energy with known log Z and exact samples.

    Attributes:
        model: the energy.
        sampler: an energy of the same distribution on the observed states that `exact_sampler` can sample.
        log_z: in nats; where `tempered` made the model, without `log_latent_volume`.
    """

    model: Energy
    sampler: Energy
    log_z: Any

    @property
    def unwrapped(self) -> Energy:
        """The model, whose path through joint energies can be used."""
        return self.model

    @property
    def space(self) -> Space:
        return observed_space(self.model)

    def __call__(self, x: State) -> Array:
        return free_energy_of(self.model)(x) + log_latent_volume(self.model)

    def log_normaliser(self) -> Array:
        """log Z in nats, as computed when the energy was made."""
        return jnp.asarray(self.log_z)

    def sample(self, key: PRNGKeyArray, n: int) -> State:
        """n independent exact samples."""
        drawn: Any = exact_sampler(self.sampler)
        struct = observed_space(self.model).struct
        return jax.tree.map(lambda x, s: x.reshape(n, *s.shape).astype(s.dtype), drawn.draw(key, n), struct)


def known(energy: Energy) -> Normalised:
    """The energy with log Z and exact samples: unchanged where it has them, otherwise by an exact sum.

    Raises ValueError where there is neither a formula nor an affordable exact sum.
    """
    normalised = energy.offers(Normalised)
    if normalised is not None:
        return normalised
    choice, _ = exact_route(energy)
    if choice is None or exact_sampler(energy) is None:
        raise ValueError(
            f"the path must begin at a distribution with known log Z and exact samples, but {type(energy).__name__} has no closed form "
            "and is too large to be summed exactly: begin with lnz.Independent, lnz.Gaussian or the like, or give the first distribution as base=…"
        )
    return KnownDistribution(energy, energy, choice.route.log_partition(energy, None).value - log_latent_volume(energy))


class OneOf(Sweepable, Annealable):
    """One of several energies on the same space, by a number that may be traced: the distribution of a path whose parts are of different kinds."""

    energies: tuple[Energy, ...]
    which: Int[Array, ""]

    @property
    def space(self) -> Space:
        return observed_space(self.energies[0])

    @property
    def log_latent_volume(self) -> float:
        return log_latent_volume(self.energies[0])

    def __call__(self, x: State) -> Array:
        dtype = jnp.result_type(float)
        x = jax.tree.map(lambda x, s: x.astype(s.dtype), x, self.space.struct)
        return jax.lax.switch(
            self.which, [lambda x, one=one: free_energy_of(one)(x).astype(dtype) for one in self.energies], x
        )

    def gibbs(self, key: PRNGKeyArray, v: Array) -> Array:
        """One sweep of the chosen energy."""

        def sweep(one: Energy) -> Callable[[PRNGKeyArray, Array], Array]:
            return lambda key, v: Gibbs().step(one, key, v)[0].astype(v.dtype)

        wide = v.astype(self.space.struct.dtype)
        return jax.lax.switch(self.which, [sweep(one) for one in self.energies], key, wide).astype(v.dtype)


def _one_of(energies: tuple[Energy, ...], which: Int[Array, ""]) -> Energy:
    """The chosen energy. Where all are alike in all but their numbers, one of the same kind, so that its moves stay what they are."""
    if len(energies) == 1:
        return energies[0]
    if all(same_structure(energies[0], other) for other in energies):
        return jax.tree.map(lambda *leaves: _stacked(leaves)[which], *energies)
    return OneOf(energies, which)


def _stacked(leaves: Sequence[Array]) -> Array:
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    dtype = np.result_type(*(leaf.dtype for leaf in leaves))
    return jnp.stack([leaf.astype(dtype) for leaf in leaves])


def _same_leaves(a: Any, b: Any) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return same_structure(a, b) and all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def _free_energies(energy: Energy, v: State) -> Float[np.ndarray, " n"]:
    v = jax.tree.map(lambda x, s: x.astype(s.dtype), v, observed_space(energy).struct)
    return np.asarray(jax.vmap(free_energy_of(energy))(v), np.float64)


def _agree(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    """Whether two lists of energies are equal up to rounding; +inf equals +inf."""
    finite = np.isfinite(a) & np.isfinite(b)
    near = np.abs(a[finite] - b[finite]) <= tolerance * (1 + np.abs(a[finite]))
    return bool((a[~finite] == b[~finite]).all() and near.all())


def _base_of(first: Energy, base: Energy) -> Normalised:
    """The given base of the path. Raises ValueError for one without log Z or samples, or on another space."""
    known_base = require_normalised(base, "the base of a path")
    if observed_space(base) != observed_space(first):
        raise ValueError(
            f"the base is on {observed_space(base)}, the path on {observed_space(first)}: give both on one space"
        )
    return known_base


def _traceable(path: Callable[[Array], Any]) -> Energy:
    """The energy at β = 0 of a function. Raises TypeError for one that cannot be traced, or does not return an energy."""
    try:
        eqx.filter_eval_shape(lambda beta: as_energy(path(beta)), jax.ShapeDtypeStruct((), jnp.result_type(float)))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            "the function of a path must be traceable: write it with jax.numpy, without float(β), NumPy or branches on β's value"
        ) from error
    return as_energy(path(jnp.zeros(())))
