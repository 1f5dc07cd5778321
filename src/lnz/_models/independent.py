"""Energies with a closed form of log Z and exact samples: bases for annealing and references for comparison."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.capabilities import Annealable, Featured, Normalised, observed_space, require_normalised
from lnz._core.energy import Energy, Kind
from lnz._core.frozen import is_traced
from lnz._core.given import given_array
from lnz._core.numerics import softplus
from lnz._core.spaces import ArrayLike, Binary, Box, Categorical, Real, Space, Spin, State
from lnz._models import units


class Independent(Normalised, Featured):
    """Independent discrete units: E(x) = -Σ_i η_i · φ(x_i), log Z = Σ_i log Σ_{x_i} exp(η_i · φ(x_i)).

    φ(x) is x for `Binary` and `Spin`, the indicator of the category for `Categorical`.

    Args:
        potentials: η, shape of the space; for `Categorical` with a last axis of length k.
        space: `Binary`, `Spin` or `Categorical`.
    """

    potentials: Array
    _space: Space = eqx.field(static=True)

    def __init__(self, potentials: ArrayLike, space: Space):
        self.potentials = as_float(potentials)
        self._space = space
        if self.potentials.shape != units.feature_shape(space):
            raise ValueError(
                f"potentials of {space} must have shape {units.feature_shape(space)}, but got {self.potentials.shape}"
            )

    @classmethod
    def from_data(cls, data: ArrayLike, space: Space, *, smoothing: float = 1.0) -> Independent:
        """The maximum-likelihood units for the data, each category counted `smoothing` extra times (Laplace)."""
        data = given_array(data)
        space.validate(data, batch=True)
        counts = _counts(np.asarray(data), space) + smoothing
        log_p = np.log(counts / counts.sum(axis=-1, keepdims=True))
        if isinstance(space, Categorical):
            return cls(log_p.astype(jnp.result_type(float)), space)
        scale = 1.0 if isinstance(space, Binary) else 0.5
        return cls((scale * (log_p[..., 1] - log_p[..., 0])).astype(jnp.result_type(float)), space)

    @property
    def space(self) -> Space:
        return self._space

    def __call__(self, x: State) -> Array:
        return self.feature_energy(units.features(self._space, x, self.potentials.dtype))

    def feature_energy(self, phi: Array) -> Array:
        """E of the features φ(x) of shape `potentials.shape`, which need not be those of a state."""
        return -jnp.sum(self.potentials * phi)

    def log_normaliser(self) -> Array:
        return jnp.sum(units.log_partition(self._space, self.potentials))

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        draws = units.sample(self._space, key, jnp.broadcast_to(self.potentials, (n, *self.potentials.shape)))
        return draws.astype(self.potentials.dtype) if isinstance(self._space, Binary) else draws


def _counts(data: np.ndarray, space: Space) -> np.ndarray:
    if isinstance(space, Categorical):
        return np.stack([(data == k).sum(axis=0) for k in range(space.k)], axis=-1).astype(float)
    on = (data > 0).sum(axis=0).astype(float)
    return np.stack([len(data) - on, on], axis=-1)


class Gaussian(Normalised):
    """A multivariate normal distribution: E(x) = ½ (x - μ)ᵀ Λ (x - μ), log Z = ½ n log 2π - ½ log det Λ.

    Args:
        mean: μ, shape (n,).
        precision: Λ, shape (n, n), symmetric and positive definite; or (n,), its diagonal.

    Raises:
        ValueError: for shapes that do not match, or a precision that is not symmetric and positive definite.

    Example:
        >>> import lnz
        >>> round(float(lnz.log_partition(lnz.Gaussian([0.0, 0.0], [1.0, 4.0])).value), 4)  # log(2π/2)
        1.1447
    """

    mean: Float[Array, " n"]
    precision: Array

    def __init__(self, mean: ArrayLike, precision: ArrayLike):
        self.mean, self.precision = as_float(mean), as_float(precision)
        n = self.mean.size
        if self.mean.ndim != 1 or self.precision.shape not in ((n,), (n, n)):
            raise ValueError(
                f"a Gaussian needs a mean (n,) and a precision (n, n) or (n,), but got {self.mean.shape} and {self.precision.shape}"
            )
        if not is_traced(self.precision):
            precision = np.asarray(self.precision, np.float64)
            if precision.ndim == 2 and not np.allclose(precision, precision.T, rtol=1e-5, atol=0):
                raise ValueError("the precision of a Gaussian must be symmetric; pass ½ (Λ + Λᵀ)")
            smallest = precision.min() if precision.ndim == 1 else np.linalg.eigvalsh(precision).min()
            if not smallest > 0:
                raise ValueError(
                    f"the precision of a Gaussian must be positive definite, but its smallest eigenvalue is {smallest:g}: Z is infinite"
                )

    @property
    def space(self) -> Space:
        return Real(self.mean.shape)

    def __call__(self, x: State) -> Array:
        d = x.astype(self.mean.dtype) - self.mean
        return 0.5 * jnp.sum(d * (self.precision * d if self.precision.ndim == 1 else self.precision @ d))

    def _root(self) -> Array:
        """Lower-triangular L with L Lᵀ = ½ (Λ + Λᵀ)."""
        if self.precision.ndim == 1:
            return jnp.diag(jnp.sqrt(self.precision))
        return jnp.linalg.cholesky(self.precision, symmetrize_input=True)

    def log_normaliser(self) -> Array:
        n = self.mean.size
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(self._root())))
        return 0.5 * (n * math.log(2 * math.pi) - log_det)

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        noise = jax.random.normal(key, (self.mean.size, n), self.mean.dtype)
        return self.mean[None] + jax.scipy.linalg.solve_triangular(self._root(), noise, lower=True, trans=1).T


class Mixture(Normalised):
    """A mixture of energies on one space: p̃(x) = Σ_k exp(a_k - E_k(x)), Z = Σ_k exp(a_k) Z_k.

    Args:
        log_weights: a, shape (K,), in nats. The weight of a component is exp(a_k) Z_k / Z.
        components: K energies on the same space.
    """

    log_weights: Float[Array, " K"]
    components: tuple[Energy, ...]

    def __init__(self, log_weights: ArrayLike, components: Any):
        self.log_weights, self.components = as_float(log_weights), tuple(components)
        if not self.components or self.log_weights.shape != (len(self.components),):
            raise ValueError(
                f"a mixture needs one log weight per component, but got {self.log_weights.shape} for {len(self.components)} components"
            )
        spaces = {component.space for component in self.components}
        if len(spaces) > 1:
            raise ValueError(f"the components of a mixture must share one space, but got {sorted(map(str, spaces))}")

    @property
    def space(self) -> Space:
        return self.components[0].space

    def __call__(self, x: State) -> Array:
        return -jax.nn.logsumexp(
            self.log_weights - jnp.stack([c(x).astype(self.log_weights.dtype) for c in self.components])
        )

    def offers(self, kind: type[Kind]) -> Kind | None:
        """A mixture has a closed form and samples exactly if all of its components do."""
        all_have = all(component.offers(Normalised) is not None for component in self.components)
        return super().offers(kind) if all_have or not issubclass(kind, Normalised) else None

    def _parts(self) -> list[Normalised]:
        return [require_normalised(component, "a component of a mixture") for component in self.components]

    def _log_masses(self) -> Array:
        dtype = self.log_weights.dtype
        return self.log_weights + jnp.stack([c.log_normaliser().astype(dtype) for c in self._parts()])

    def log_normaliser(self) -> Array:
        return jax.nn.logsumexp(self._log_masses())

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        choice_key, draw_key = jax.random.split(key)
        choice = self._choices(choice_key, n)
        draws = jnp.stack([c.sample(jax.random.fold_in(draw_key, i), n) for i, c in enumerate(self._parts())])
        return jnp.take_along_axis(draws, choice.reshape(1, n, *(1,) * (draws.ndim - 2)), axis=0)[0]

    def _choices(self, key: PRNGKeyArray, n: int) -> Array:
        """The component of each of n samples."""
        return jax.random.categorical(key, self._log_masses(), shape=(n,))


class StratifiedMixture(Mixture):
    """A mixture whose n samples are stratified over its components: n π_k of each, up to rounding, in random order.

    Sample i is drawn from the i-th of n equal shares of the mixture, so that samples are independent given their order, and their distributions
    average to the mixture: a mean over them is unbiased and varies less, and a certified lower bound holds (by the inequality of arithmetic and
    geometric means its capital has no larger expectation). Without stratification, one in 25 runs of 32 chains would have no chain in a component
    of weight 0.1.

    Source: Cochran 1977, "Sampling Techniques", chapter 5.
    """

    def _choices(self, key: PRNGKeyArray, n: int) -> Array:
        order_key, place_key = jax.random.split(key)
        mass = self._log_masses()
        place = (
            jax.random.permutation(order_key, n).astype(mass.dtype) + jax.random.uniform(place_key, (n,), mass.dtype)
        ) / n
        return jnp.minimum(jnp.searchsorted(jnp.cumsum(jax.nn.softmax(mass)), place, side="right"), mass.size - 1)


class Uniform(Normalised):
    """The constant energy 0 on a space of finite size: Z is the number of states, or the volume."""

    _space: Space = eqx.field(static=True)

    def __init__(self, space: Space):
        if space.moving:
            raise ValueError(
                "Uniform needs constant bounds: for bounds that are parameters write lnz.FunctionEnergy(zero, lnz.Box(…))"
            )
        if not np.isfinite(space.log_size):
            raise ValueError(f"{space} has no uniform distribution: its size is infinite")
        self._space = space

    @property
    def space(self) -> Space:
        return self._space

    def __call__(self, x: State) -> Array:
        return jnp.zeros(())

    def log_normaliser(self) -> Array:
        return jnp.asarray(self._space.log_size, jnp.result_type(float))

    def sample(self, key: PRNGKeyArray, n: int) -> Any:
        return self._space.uniform(key, n)


class LogisticReal(Normalised):
    """Independent standard logistic units on the real line: E(x) = Σ_i x_i + 2 log(1 + e^-x_i), log Z = 0.

    The tails are heavier than those of a Gaussian, so that annealing from it covers more models.
    """

    scale: Array
    _space: Space = eqx.field(static=True)

    def __init__(self, space: Space, scale: Any = 1.0):
        self._space, self.scale = space, as_float(scale)

    @property
    def space(self) -> Space:
        return self._space

    def __call__(self, x: State) -> Array:
        z = x.astype(self.scale.dtype) / self.scale
        return jnp.sum(z + 2 * softplus(-z) + jnp.log(self.scale))

    def log_normaliser(self) -> Array:
        return jnp.zeros_like(self.scale)

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        return self.scale * jax.random.logistic(key, (n, *self._space.shape), self.scale.dtype)


class HalfLogistic(LogisticReal):
    """Independent units on a box without some of its bounds, log Z = 0: logistic units on a line, their absolute values from a single bound on, and
    uniform ones between two.

    Args:
        space: a box with constant bounds.
        scale: of the units that are not between two bounds.
    """

    def __init__(self, space: Space, scale: Any = 1.0):
        super().__init__(space, scale)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        space: Any = self._space
        low, high = (np.broadcast_to(np.asarray(bound, float), space.shape) for bound in space.limits)
        return low, high

    def __call__(self, x: State) -> Array:
        low, high = self._bounds()
        dtype = self.scale.dtype
        below, above = np.isfinite(low), np.isfinite(high)
        origin = np.where(below, low, np.where(above, high, 0))
        z = jnp.abs(x.astype(dtype) - jnp.asarray(origin, dtype)) / self.scale  # logistic units are symmetric
        ends = jnp.asarray(np.where(below ^ above, math.log(2), 0), dtype)
        open_ended = z + 2 * softplus(-z) + jnp.log(self.scale) - ends
        width = jnp.asarray(np.where(below & above, high - low, 1), dtype)
        e = jnp.sum(jnp.where(below & above, jnp.log(width), open_ended))
        inside = jnp.all((x >= jnp.asarray(low, x.dtype)) & (x <= jnp.asarray(high, x.dtype)))
        return jnp.where(inside, e, jnp.inf)

    def sample(self, key: PRNGKeyArray, n: int) -> Array:
        low, high = self._bounds()
        unit_key, place_key = jax.random.split(key)
        dtype, shape = self.scale.dtype, (n, *low.shape)
        unit = self.scale * jax.random.logistic(unit_key, shape, dtype)
        place = jax.random.uniform(place_key, shape, dtype)
        below, above = np.isfinite(low), np.isfinite(high)
        start, end = (
            jnp.asarray(np.where(fine, bound, 0), dtype)[None] for fine, bound in ((below, low), (above, high))
        )
        one_sided = jnp.where(below[None], start + jnp.abs(unit), jnp.where(above[None], end - jnp.abs(unit), unit))
        return jnp.where((below & above)[None], start + place * (end - start), one_sided)


def default_base(space: Space) -> Energy:
    """The default reference of a space: uniform where that exists; on the real line logistic units, seven in ten of scale 1, the others wider; on a
    box without some of its bounds, their absolute values from the others on.

    A model may extend farther than its centre suggests (a funnel, Student's distribution). With units of one scale, few chains with large weights
    reach it then, and short runs miss them without any sign: intervals for Neal's funnel missed log Z in a fifth of the runs. The wide ones guard
    against that, as in defensive importance sampling (Hesterberg 1995).
    """
    if isinstance(space, Binary | Spin | Categorical):
        return Independent(jnp.zeros(units.feature_shape(space), jnp.result_type(float)), space)
    if space.bounded if isinstance(space, Box) else np.isfinite(space.log_size):
        return Uniform(space)
    if isinstance(space, Real | Box) and not space.moving:
        units_of = LogisticReal if isinstance(space, Real) else HalfLogistic
        scales = tuple(units_of(space, scale) for scale in (1.0, 3.0, 10.0))
        return StratifiedMixture(jnp.log(jnp.asarray([0.7, 0.2, 0.1])), scales)
    raise ValueError(f"{space} has no default base: pass base=… with a closed form and exact samples")


def own_base(energy: Energy) -> Energy | None:
    """The energy's own reference, `energy.base()`, or None."""
    annealable = energy.offers(Annealable)
    return None if annealable is None else annealable.base()


def base_of(energy: Energy) -> Energy:
    """The energy's own reference, or the default one of its observed space."""
    own = own_base(energy)
    return default_base(observed_space(energy)) if own is None else own


def as_float(x: Any) -> Array:
    x = given_array(x, "parameters")
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    # `jnp.asarray` would compile a program for every shape. `device_put` keeps the memory it is given, hence the copy.
    return x.astype(dtype) if isinstance(x, jax.Array) else jax.device_put(np.array(x, dtype))
