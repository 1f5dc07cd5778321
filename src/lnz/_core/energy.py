"""What can be normalised: a callable pytree that maps one state to one number, E_θ(x), with θ in its leaves."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.frozen import Frozen
from lnz._core.spaces import Box, Space, State

# Methods that routes and kernels ask an energy for, by name. A field of such a name would be taken for one of them.
_ASKED_FOR = {
    "base",
    "tempered",
    "collapsed",
    "free_energy",
    "data_energy",
    "completed",
    "shown",
    "factors",
    "log_normaliser",
    "sample",
    "gibbs",
    "gibbs_sweep",
    "interactions",
    "feature_energy",
    "conditionals",
    "block_energies",
    "slope",
    "sample_hidden",
    "sample_visible",
    "unwrapped",
}


class Energy(eqx.Module):
    """An energy E_θ(x): one state in, one scalar out, p_θ(x) = exp(-E_θ(x)) / Z(θ).

    Its array leaves are θ, so `jax.grad` with respect to the energy is ∇_θ. Batches go through `jax.vmap`.

    A subclass gives `space` and `__call__`. It may offer more, and routes and kernels ask for it:

    - `free_energy(v)` and `observed`, where latent variables are summed out in closed form (T6): the marginal of the observed part is
      p(v) = exp(-F(v)) / Z with the same Z.
    - `data_space`, `data_energy(v)`, `complete(key, v)` and `visible_part(x)`, where data show a part of the observed state alone, and the rest has
      no closed sum (deep Boltzmann machines).
    - `collapsed()`: another energy with the same Z for every θ, on the smallest space that is at hand.
    - `factors()`: for discrete models, a `FactorGraph` over the entries of the space, its tables differentiable functions of θ.
    - `log_normaliser()`: log Z in closed form; `sample(key, n)`: exact samples.
    - `gibbs(key, v)`: one sweep of Gibbs moves on a batch of observed states. `gibbs_sweep(blocks)`: the same as an `energies.sweeps.Sweep`
      in a layout of its own, over given blocks or its own; `interactions()` then lists the pairs of sites that no block may hold.
    - `feature_energy(phi)`: for discrete models, the (free) energy as a smooth function of the units' features, for kernels that need slopes.
    - `conditionals(v)`: for discrete units, log p(v_i | the rest) of every unit and value, up to a constant a unit, shape (units, values).
    - `block_energies(size)`: for binary or spin states, a function of the first state of an aligned block of `size` = 2^k consecutive states
      to the energies of all of them, cheaper than one by one.
    - `base()`: a reference with a closed form and exact samples; `tempered(base, beta)`: the geometric path from it, as an energy.
      `slope(base)`: E - E_base as an energy with a `gibbs_sweep` that knows energies, so that chains stay in its layout.

    Raises:
        TypeError: when a class is defined with a field that has the name of one of these methods.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        taken = sorted(_ASKED_FOR & set(inspect.get_annotations(cls)))
        if taken:
            raise TypeError(
                f"{cls.__name__} has a field {taken[0]!r}, but routes and kernels ask an energy for a method of that name: rename the field"
            )

    @property
    @abc.abstractmethod
    def space(self) -> Space:
        """Where x lives."""

    @abc.abstractmethod
    def __call__(self, x: State) -> Array:
        """E_θ(x) of one state, in nats: a scalar."""

    @property
    def observed(self) -> Space:
        """Where chains live, and the data: the space without the latent variables that have a closed sum."""
        return self.space

    def free_energy(self, v: State) -> Array:
        """F_θ(v) = -log Σ_h exp(-E_θ(v, h)) of one observed state, in nats. Without latent variables, E itself."""
        return self(v)

    @property
    def data_space(self) -> Space:
        """Where the data live: the observed space, or the part of it that data show."""
        return self.observed

    def data_energy(self, v: State) -> Array:
        """-log Σ exp(-E) over all that one datum does not show, in nats, or an upper limit of it. Where data show the observed state, F_θ(v)."""
        return self.free_energy(v)

    def complete(self, key: PRNGKeyArray, v: State) -> State:
        """Observed states that show the data (n, *shape): what the data leave open is drawn, by an approximation of its law."""
        return v

    def visible_part(self, x: State) -> State:
        """The part of observed states (*batch, *shape) that data show."""
        return x

    def collapsed(self) -> Energy:
        """An energy on the smallest space at hand with the same Z(θ) for every θ."""
        return FreeEnergy(self) if type(self).free_energy is not Energy.free_energy else self

    def tempered(self, base: Energy, beta: Array) -> Energy:
        """The energy at inverse temperature beta on the geometric path from `base` (0) to this energy (1)."""
        return Tempered(base, self, beta)

    @property
    def arrays_are_data(self) -> bool:
        """Whether the boolean and integer arrays may be traced and batched under every route, since none looks at them when it is compiled."""
        return False

    @property
    def tempers_free_energy(self) -> bool:
        """Whether the free energy of `tempered(base, beta)` is (1 - beta) F_0 + beta F_1 for every base."""
        return type(self).tempered is Energy.tempered

    @property
    def least_width(self) -> int:
        """Of an energy with `factors()`: a width that its graph is known to have at least, without looking."""
        return 0

    @property
    def log_latent_volume(self) -> float:
        """Of an energy that `tempered` made: what log Z at beta = 0 has above the base's own, in nats.

        n log 2 where the path runs through the joint energy of n binary latent variables, 0 where it is that of the free energy.
        """
        return 0.0


class FreeEnergy(Energy):
    """The marginal of an energy's observed part: E(v) = F_θ(v), the same log Z."""

    energy: Energy

    @property
    def space(self) -> Space:
        return self.energy.observed

    def __call__(self, x: State) -> Array:
        return self.energy.free_energy(x)


class Tempered(Energy):
    """The geometric path between two energies: E_β = (1 - β) E_0 + β E_1, at one β in [0, 1].

    At β = 0 the other end is left out altogether, so that 0 · ∞ never arises where p̃_1 = 0.
    """

    start: Energy
    end: Energy
    beta: Array

    @property
    def space(self) -> Space:
        return self.end.observed

    def __call__(self, x: State) -> Array:
        start, end = self.start.free_energy(x), self.end.free_energy(x)
        beta = jnp.asarray(self.beta, jnp.result_type(start))
        cold = jnp.where(beta > 0, beta * jnp.where(beta > 0, end.astype(start.dtype), 0), 0)
        warm = jnp.where(beta < 1, (1 - beta) * jnp.where(beta < 1, start, 0), 0)
        return cold + warm


class FunctionEnergy(Energy):
    """An energy from any callable: a plain function, a `jax.tree_util.Partial`, an Equinox module, a Flax NNX module.

    The callable takes one state and returns one scalar, E(x) in nats. Its floating-point arrays are the parameters; whatever else it
    holds (integers, strings, activation functions, random keys) is kept as a constant. So is what a plain function finds outside its
    arguments: a later change of it goes unnoticed. Objects that are no pytrees, whose contents JAX cannot see at all, are refused.

    Args:
        function: the callable.
        space: where x lives.

    Raises:
        TypeError: if `function` is not callable, is a class rather than an instance, or an object that is no pytree.
        ValueError: if the energy of one state is not a real scalar.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> def energy(coupling, s):
        ...     return -coupling * s[0] * s[1]
        >>> model = lnz.FunctionEnergy(jax.tree_util.Partial(energy, jnp.asarray(0.5)), lnz.Spin(2))
        >>> round(float(lnz.log_partition(model).value), 4)  # log(4 cosh 0.5)
        1.5064
    """

    parameters: Any
    limits: Any
    _constants: Frozen = eqx.field(static=True)
    _space: Space = eqx.field(static=True)

    def __init__(self, function: Callable[..., Any], space: Space):
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"an energy must be a callable that maps one state to one number, but got {function!r}")
        if _is_opaque(function):
            raise TypeError(
                f"JAX cannot see into a {type(getattr(function, '__self__', function)).__name__}: its parameters would get no gradient, and a "
                "change of them would go unnoticed. Make it an Equinox module, or pass jax.tree_util.Partial(function, parameters)."
            )
        if not isinstance(space, Space):
            raise TypeError(f"an energy needs a space, such as lnz.Binary(8) or lnz.Real(2), but got {space!r}")
        self.parameters, constants = eqx.partition(function, eqx.is_inexact_array)
        self._constants = Frozen(constants)
        # The limits of a box that moves are leaves; what is static is then the shape alone.
        self.limits = space.limits if isinstance(space, Box) and space.moving else None
        self._space = Box(np.full(space.shape, -1.0), np.full(space.shape, 1.0)) if space.moving else space
        check_scalar(self)

    @property
    def function(self) -> Callable[[State], Array]:
        """The callable, put together again."""
        return eqx.combine(self.parameters, jax.tree.map(_thaw, self._constants.value))

    @property
    def space(self) -> Space:
        return self._space if self.limits is None else Box(*self.limits)

    def __call__(self, x: State) -> Array:
        return self.function(x)


def _is_opaque(function: Any) -> bool:
    """Whether a callable is an object of a class that is no pytree, or a method of one: neither a function nor a wrapped one."""
    owner = function.__self__ if inspect.ismethod(function) else function
    plain = inspect.isroutine(owner) or isinstance(owner, functools.partial) or hasattr(owner, "__wrapped__")
    return not plain and jax.tree_util.all_leaves([owner])


def _thaw(leaf: Any) -> Any:
    return jnp.asarray(leaf) if eqx.is_array_like(leaf) and not isinstance(leaf, bool | int | float | complex) else leaf


def check_scalar(energy: Energy) -> None:
    """Raise ValueError unless the energy maps one state to one real scalar (seen without computing it)."""
    out = eqx.filter_eval_shape(lambda e, x: e(x), energy, energy.space.struct)
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"shape {out.shape}, dtype {out.dtype}" if isinstance(out, jax.ShapeDtypeStruct) else type(out).__name__
        raise ValueError(
            f"an energy must return one real number for one state of {energy.space}, but this one returns {got}. "
            "Sum over the entries of x, not over a batch: batches go through jax.vmap."
        )


def as_energy(model: Any) -> Energy:
    """Any energy as an `Energy`: a member of the library as it is, a callable with a `space` attribute wrapped.

    Raises TypeError for anything else, with the remedy.
    """
    if isinstance(model, Energy):
        return model
    space = getattr(model, "space", None)
    if callable(model) and isinstance(space, Space):
        return FunctionEnergy(model, space)
    raise TypeError(
        f"cannot use {type(model).__name__} as an energy: it needs a `space`. Wrap it as lnz.FunctionEnergy(function, space), for "
        "example lnz.FunctionEnergy(f, lnz.Spin(10))"
    )


def widen(energy: Any) -> Any:
    """The energy with its floating-point parameters in the widest dtype that JAX is set to (float64 under `jax_enable_x64`)."""
    dtype = jnp.result_type(float)
    cast = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) and leaf.dtype != dtype else leaf  # noqa: E731
    return jax.tree.map(cast, energy)
