"""Spaces of states: whether Z is a sum or an integral, and the listing, sampling and validation of states."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.frozen import is_traced
from lnz._core.given import ArrayLike as ArrayLike
from lnz._core.given import given_array

Shape = int | Sequence[int]
State = Any  # an array, or for a product space a tuple of them
Struct = Any  # a `jax.ShapeDtypeStruct`, or for a product space a tuple of them


def _as_shape(shape: Any) -> tuple[int, ...]:
    lengths = tuple(shape) if np.ndim(shape) else (shape,)
    if not all(isinstance(n, int | np.integer) and n >= 0 for n in lengths):
        raise ValueError(f"a space needs a shape of integers of at least 0, but got {shape!r}")
    return tuple(int(n) for n in lengths)


class Space(abc.ABC):
    """A set of states x. Spaces are static: hashable, compared by value, never traced.

    Attributes:
        shape: the shape of one state (for a product: a tuple of shapes).
        discrete: True where Z is a sum, False where it is an integral.
        moving: True where the bounds of the space are parameters.
    """

    discrete: ClassVar[bool]
    shape: Any  # a tuple of integers, or for a product space a tuple of such tuples
    moving = False

    @property
    @abc.abstractmethod
    def log_size(self) -> float:
        """The log of the number of states (discrete) or of the volume (continuous; may be infinite), in nats."""

    @property
    @abc.abstractmethod
    def struct(self) -> Struct:
        """One state's shape and dtype, as `jax.ShapeDtypeStruct` (for a product: a tuple of them)."""

    @abc.abstractmethod
    def uniform(self, key: PRNGKeyArray, n: int) -> State:
        """n independent states, uniform over the space: shape (n, *shape). Raises ValueError where no such distribution exists."""

    @abc.abstractmethod
    def problem(self, x: np.ndarray) -> str | None:
        """What is wrong with the values of x, as a sentence, or None. The shape has been checked already."""

    def decode(self, index: Array) -> State:
        """The states with the given numbers in 0 … count-1, in lexicographic order: shape (*index.shape, *shape)."""
        raise TypeError(f"{self} is continuous: its states cannot be listed. Use quadrature or a stochastic route.")

    @property
    def count(self) -> int:
        """The number of states, as a Python int. Raises TypeError for a continuous space."""
        raise TypeError(f"{self} is continuous: its states cannot be counted")

    def validate(self, x: ArrayLike, *, batch: bool = False) -> None:
        """Raise ValueError if x is not a state (or, with batch=True, not an array of states along axis 0).

        The shape is always checked, the values unless x is being traced.
        """
        shape = np.shape(x)
        state_shape = shape[1:] if batch else shape
        if (batch and len(shape) == 0) or state_shape != self.shape:
            wanted = ("n", *self.shape) if batch else self.shape
            raise ValueError(
                f"{self} needs {'states' if batch else 'a state'} of shape {_words(wanted)}, but got {shape}"
            )
        if not is_traced(x):
            trouble = self.problem(np.asarray(given_array(x)))
            if trouble is not None:
                raise ValueError(trouble)


def _words(shape: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _wrong_value(space: Space, x: np.ndarray, good: np.ndarray, expected: str) -> str | None:
    """The first entry of x that is not good, and what was expected; None if all entries are good."""
    if good.all():
        return None
    position = tuple(int(i) for i in np.argwhere(~good)[0])
    index = f"[{', '.join(map(str, position))}]" if position else ""
    return f"x{index} = {x[position]} is not in {space}: expected {expected}"


def _wrong_dtype(space: Space, x: np.ndarray, expected: str) -> str:
    return f"x has dtype {x.dtype}, which is not in {space}: expected {expected}"


@dataclasses.dataclass(frozen=True, repr=False)
class _Discrete(Space):
    shape: tuple[int, ...]
    discrete: ClassVar[bool] = True

    def __init__(self, shape: Shape = ()):
        object.__setattr__(self, "shape", _as_shape(shape))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0] if len(self.shape) == 1 else self.shape})"

    @property
    def categories(self) -> int:
        return 2

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def count(self) -> int:
        return self.categories**self.size

    @property
    def log_size(self) -> float:
        return self.size * math.log(self.categories)

    @property
    def struct(self) -> Struct:
        return jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))

    def _from_digits(self, digits: Array) -> Array:
        return digits.astype(self.struct.dtype)

    def decode(self, index: Array) -> Array:
        if self.count > 2**32:
            raise ValueError(f"{self} has {self.categories}^{self.size} states: too many to number")
        index = jnp.asarray(index).astype(jnp.uint32)
        place = np.asarray([self.categories**i for i in reversed(range(self.size))], np.uint32)
        place = place.reshape((1,) * index.ndim + (self.size,))
        digits = (index[..., None] // place) % np.uint32(self.categories)
        return self._from_digits(digits.reshape(*index.shape, *self.shape))

    def uniform(self, key: PRNGKeyArray, n: int) -> Array:
        return self._from_digits(jax.random.randint(key, (n, *self.shape), 0, self.categories))


class Binary(_Discrete):
    """States with entries 0 or 1: {0, 1}^shape.

    Example:
        >>> Binary(3).count
        8
    """

    def problem(self, x: np.ndarray) -> str | None:
        if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool):
            return _wrong_dtype(self, x, "numbers or booleans")
        return _wrong_value(self, x, (x == 0) | (x == 1), "0 or 1")


class Spin(_Discrete):
    """States with entries -1 or +1: {-1, +1}^shape. Booleans and zeros are invalid."""

    def _from_digits(self, digits: Array) -> Array:
        one = jnp.ones((), self.struct.dtype)
        return jnp.where(digits == 0, -one, one)

    def problem(self, x: np.ndarray) -> str | None:
        if not np.issubdtype(x.dtype, np.number):
            return _wrong_dtype(self, x, "the numbers -1 and +1 (convert 0/1 data by 2 * x - 1)")
        good = (x == 1) | (x == -1)
        hint = "" if good.all() or not np.isin(x, (0, 1)).all() else " (convert 0/1 data by 2 * x - 1)"
        return _wrong_value(self, x, good, f"-1 or +1{hint}")


@dataclasses.dataclass(frozen=True, repr=False)
class Categorical(_Discrete):
    """States with integer entries 0 … k-1: {0, …, k-1}^shape.

    Args:
        shape: the shape of a state.
        k: the number of categories, at least 1.
    """

    k: int

    def __init__(self, shape: Shape = (), k: int = 2):
        super().__init__(shape)
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"Categorical needs an integer k of at least 1, but got k={k!r}")
        object.__setattr__(self, "k", int(k))

    def __repr__(self) -> str:
        return f"Categorical({self.shape[0] if len(self.shape) == 1 else self.shape}, k={self.k})"

    @property
    def categories(self) -> int:
        return self.k

    @property
    def struct(self) -> Struct:
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype("int32"))

    def problem(self, x: np.ndarray) -> str | None:
        if not np.issubdtype(x.dtype, np.number):
            return _wrong_dtype(self, x, "integers")
        good = (x >= 0) & (x < self.k) & (x == np.floor(x))
        return _wrong_value(self, x, good, f"an integer in [0, {self.k - 1}]")


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class MixedCategorical(_Discrete):
    """States with integer entries, each with its own number of values: entry i in 0 … k_i - 1.

    Args:
        cardinalities: k_i, one integer of at least 1 per entry.

    Example:
        >>> MixedCategorical([2, 3, 1]).count
        6
    """

    cardinalities: tuple[int, ...]

    def __init__(self, cardinalities: Sequence[int]):
        if not all(isinstance(k, int | np.integer) and k >= 1 for k in cardinalities):
            raise ValueError(f"MixedCategorical needs integers of at least 1, but got {cardinalities!r}")
        super().__init__(len(cardinalities))
        object.__setattr__(self, "cardinalities", tuple(int(k) for k in cardinalities))

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.cardinalities[:6])) + (", …" if len(self.cardinalities) > 6 else "")
        return f"MixedCategorical([{shown}])"

    @property
    def count(self) -> int:
        return math.prod(self.cardinalities)

    @property
    def log_size(self) -> float:
        return sum(map(math.log, self.cardinalities))

    @property
    def struct(self) -> Struct:
        return jax.ShapeDtypeStruct(self.shape, jnp.dtype("int32"))

    def decode(self, index: Array) -> Array:
        if self.count > 2**32:
            raise ValueError(f"{self} has {self.count} states: too many to number")
        index, digits = jnp.asarray(index).astype(jnp.uint32), []
        for k in reversed(self.cardinalities):
            digits.append(index % np.uint32(k))
            index = index // np.uint32(k)
        return jnp.stack(digits[::-1], axis=-1).astype(self.struct.dtype)

    def uniform(self, key: PRNGKeyArray, n: int) -> Array:
        return jax.random.randint(key, (n, *self.shape), 0, jnp.asarray(self.cardinalities, jnp.int32)[None], jnp.int32)

    def problem(self, x: np.ndarray) -> str | None:
        if not np.issubdtype(x.dtype, np.number):
            return _wrong_dtype(self, x, "integers")
        good = (x >= 0) & (x < np.asarray(self.cardinalities)) & (x == np.floor(x))
        return _wrong_value(self, x, good, "an integer of at least 0 and below the number of values of its entry")


@dataclasses.dataclass(frozen=True, repr=False)
class Real(Space):
    """States with real entries: R^shape. Z is an integral against Lebesgue measure."""

    shape: tuple[int, ...]
    discrete: ClassVar[bool] = False

    def __init__(self, shape: Shape = ()):
        object.__setattr__(self, "shape", _as_shape(shape))

    def __repr__(self) -> str:
        return f"Real({self.shape[0] if len(self.shape) == 1 else self.shape})"

    @property
    def log_size(self) -> float:
        return math.inf if self.shape != (0,) else 0.0

    @property
    def struct(self) -> Struct:
        return jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper bound of every entry, each of shape `shape`."""
        return np.full(self.shape, -np.inf), np.full(self.shape, np.inf)

    def uniform(self, key: PRNGKeyArray, n: int) -> Array:
        raise ValueError(
            f"{self} has no uniform distribution: give the energy a base that can be sampled, such as a Gaussian"
        )

    def problem(self, x: np.ndarray) -> str | None:
        if not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
            return _wrong_dtype(self, x, "real numbers")
        return _wrong_value(self, x, np.isfinite(x), "a finite number")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Box(Space):
    """States with real entries between bounds: Π [low_i, high_i]. A bound may be infinite.

    Bounds that are numbers or NumPy arrays are constants. Bounds that are JAX arrays are parameters: the support moves with them, and
    the derivative of log Z by `Quadrature` gains the boundary term (T4); other routes and learning do not support such a box. They must
    be finite.

    Args:
        low: lower bound, a number or an array that broadcasts to `shape`.
        high: upper bound, likewise; above `low` everywhere.
        shape: the shape of a state; by default that of the bounds.
    """

    shape: tuple[int, ...]
    low: Any  # a tuple of floats; a JAX array where the box moves
    high: Any  # likewise
    discrete: ClassVar[bool] = False

    def __init__(self, low: ArrayLike, high: ArrayLike, shape: Shape | None = None):
        shape = np.broadcast_shapes(np.shape(low), np.shape(high)) if shape is None else _as_shape(shape)
        if any(np.broadcast_shapes(np.shape(bound), shape) != shape for bound in (low, high)):
            raise ValueError(
                f"a Box's bounds must broadcast to its shape {shape}, but have {np.shape(low)} and {np.shape(high)}"
            )
        object.__setattr__(self, "shape", shape)
        known = [np.asarray(bound, np.float64) for bound in (low, high) if not is_traced(bound)]
        if (len(known) == 2 and not (known[0] < known[1]).all()) or any(np.isnan(bound).any() for bound in known):
            raise ValueError("a Box needs low < high in every entry (and no NaN): check the bounds")
        if isinstance(low, jax.Array) or isinstance(high, jax.Array):
            if any(np.isinf(bound).any() for bound in known):
                raise ValueError("a Box whose bounds are parameters must be bounded: give finite bounds on both sides")
            dtype = jnp.result_type(*(x for x in (low, high) if isinstance(x, jax.Array)))
            dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
            low, high = (jnp.broadcast_to(jnp.asarray(bound).astype(dtype), shape) for bound in (low, high))
        else:
            low, high = (tuple(np.broadcast_to(bound, shape).ravel().tolist()) for bound in known)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def moving(self) -> bool:
        """Whether the bounds are parameters."""
        return not isinstance(self.low, tuple)

    @property
    def bounded(self) -> bool:
        """Whether every bound is finite."""
        return self.moving or bool(np.isfinite(np.asarray([*self.low, *self.high])).all())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Box) or self.shape != other.shape or self.moving != other.moving:
            return False
        return True if self.moving else (self.low, self.high) == (other.low, other.high)

    def __hash__(self) -> int:
        return hash((self.shape, "moving" if self.moving else (self.low, self.high)))

    def __repr__(self) -> str:
        if self.moving:
            return f"Box(bounds are parameters, shape={self.shape})"

        def side(bound: tuple[float, ...]) -> str:
            return (
                f"{bound[0]:g}"
                if len(set(bound)) == 1
                else "[" + ", ".join(f"{v:g}" for v in bound[:4]) + (", …]" if len(bound) > 4 else "]")
            )

        return f"Box({side(self.low)}, {side(self.high)}, shape={self.shape})" if self.low else "Box(shape=())"

    @property
    def limits(self) -> tuple[Any, Any]:
        """The lower and the upper bound of every entry, each of shape `shape`: NumPy arrays, or JAX arrays where the box moves."""
        if self.moving:
            return self.low, self.high
        return np.asarray(self.low).reshape(self.shape), np.asarray(self.high).reshape(self.shape)

    @property
    def log_size(self) -> Any:  # a float, or a JAX array where the box moves
        low, high = self.limits
        return jnp.sum(jnp.log(high - low)) if self.moving else float(np.log(high - low).sum())

    @property
    def struct(self) -> Struct:
        return jax.ShapeDtypeStruct(self.shape, jnp.result_type(float))

    def uniform(self, key: PRNGKeyArray, n: int) -> Array:
        if not self.bounded:
            raise ValueError(
                f"{self} is unbounded and has no uniform distribution: give the energy a base that can be sampled"
            )
        low, high = (jnp.asarray(bound, self.struct.dtype) for bound in self.limits)
        u = jax.random.uniform(key, (n, *self.shape), self.struct.dtype)
        return low[None] + u * (high - low)[None]

    def problem(self, x: np.ndarray) -> str | None:
        if not np.issubdtype(x.dtype, np.number) or np.issubdtype(x.dtype, np.complexfloating):
            return _wrong_dtype(self, x, "real numbers")
        low, high = map(np.asarray, self.limits)
        return _wrong_value(self, x, (x >= low) & (x <= high) & np.isfinite(x), "a finite number within the bounds")


def limits_of(space: Space) -> tuple[Any, Any]:
    """The lower and the upper bounds of every entry of a `Real` space or a `Box`, as arrays."""
    assert isinstance(space, Real | Box), f"{space} has no bounds"
    return space.limits


@dataclasses.dataclass(frozen=True, repr=False)
class Product(Space):
    """Tuples of states, one from each space. Discrete if all its spaces are.

    Example:
        >>> Product(Binary(2), Categorical(1, k=3)).count
        12
    """

    spaces: tuple[Space, ...]

    def __init__(self, *spaces: Space):
        if not spaces or not all(isinstance(space, Space) for space in spaces):
            raise ValueError("Product needs one or more spaces, as Product(Binary(2), Real(3))")
        if any(space.moving for space in spaces):
            raise ValueError("a Box whose bounds are parameters cannot be part of a Product: give it constant bounds")
        object.__setattr__(self, "spaces", spaces)

    def __repr__(self) -> str:
        return "Product(" + ", ".join(map(repr, self.spaces)) + ")"

    @property
    def discrete(self) -> bool:
        return all(space.discrete for space in self.spaces)

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(space.shape for space in self.spaces)

    @property
    def struct(self) -> Struct:
        return tuple(space.struct for space in self.spaces)

    @property
    def log_size(self) -> float:
        return sum(space.log_size for space in self.spaces)

    @property
    def count(self) -> int:
        return math.prod(space.count for space in self.spaces)

    def decode(self, index: Array) -> tuple[State, ...]:
        if self.count > 2**32:
            raise ValueError(f"{self} has {self.count} states: too many to number")
        index = jnp.asarray(index).astype(jnp.uint32)
        states = []
        for space in reversed(self.spaces):
            if space.count == 2**32:
                states.append(space.decode(index))
                index = jnp.zeros_like(index)
            else:
                states.append(space.decode(index % np.uint32(space.count)))
                index = index // np.uint32(space.count)
        return tuple(reversed(states))

    def uniform(self, key: PRNGKeyArray, n: int) -> tuple[State, ...]:
        return tuple(space.uniform(jax.random.fold_in(key, i), n) for i, space in enumerate(self.spaces))

    def problem(self, x: np.ndarray) -> str | None:
        raise NotImplementedError

    def validate(self, x: ArrayLike, *, batch: bool = False) -> None:
        if not isinstance(x, tuple) or len(x) != len(self.spaces):
            raise ValueError(f"{self} needs a tuple of {len(self.spaces)} states, but got {type(x).__name__}")
        for space, part in zip(self.spaces, x, strict=True):
            space.validate(part, batch=batch)
        if batch and len({np.shape(leaf)[0] for leaf in jax.tree.leaves(x)}) > 1:
            raise ValueError(
                f"{self} got parts with different numbers of states: {[np.shape(leaf)[0] for leaf in jax.tree.leaves(x)]}"
            )
