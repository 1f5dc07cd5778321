"""Arrays as hashable constants: structure that belongs to an energy but not to its parameters."""

from __future__ import annotations

import contextlib
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np


class Frozen:
    """A constant pytree that is hashed and compared by content.

    JAX needs everything outside a pytree's leaves to be hashable. Edge lists, colour classes and the parts of a user's model other than
    float arrays are wrapped in this class, so that an energy's leaves are its parameters and nothing else.

    Arrays must be concrete; they are copied to NumPy and made read-only. Typed random keys are kept as they are.

    Example:
        >>> Frozen(np.arange(3)) == Frozen(np.arange(3))
        True
    """

    __slots__ = ("_hash", "_identity", "value")

    def __init__(self, value: Any):
        leaves, treedef = jax.tree.flatten(value)
        leaves = [_constant(leaf) for leaf in leaves]
        self.value = jax.tree.unflatten(treedef, leaves)
        self._identity = (treedef, tuple(_fingerprint(leaf) for leaf in leaves))
        self._hash = hash(self._identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frozen) and self._identity == other._identity)

    def __repr__(self) -> str:
        return f"Frozen({self.value!r})"


def is_traced(x: Any) -> bool:
    """Whether x is being traced by a JAX transformation, so that its value is unknown."""
    return isinstance(x, jax.core.Tracer)


def known_values(tree: Any) -> Any:
    """The tree with the values of float arrays that are traced by one differentiation outside `jit` and `vmap`; all else as it is.

    Arrays under a second differentiation stay traced: routes that are chosen by value may have a first derivative alone.
    """
    return jax.tree.map(lambda leaf: _known(leaf) if eqx.is_inexact_array(leaf) and is_traced(leaf) else leaf, tree)


def _known(x: Any) -> Any:
    """What the forward rule of a differentiated function is given: the value below the tracer."""
    below = []

    @jax.custom_vjp
    def look(x: Any) -> Any:
        return x

    def forward(x: Any) -> tuple[Any, None]:
        below.append(x)
        return x, None

    look.defvjp(forward, lambda _, cotangent: (cotangent,))
    with contextlib.suppress(TypeError):  # forward mode asks the rule too, and then refuses
        look(x)
    return below[0] if below and not is_traced(below[0]) else x


def same_structure(a: Any, b: Any) -> bool:
    """Whether two pytrees have the same structure and shapes, and differ in values alone."""
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _constant(leaf: Any) -> Any:
    if is_traced(leaf):
        raise TypeError(
            "a structural array (an edge list, a counter, a constant) is being traced; build the energy outside jit, vmap and grad, "
            "and pass only its float parameters through them"
        )
    if isinstance(leaf, (np.ndarray, jax.Array)) and not _is_key(leaf):
        array = np.array(leaf)
        array.setflags(write=False)
        return array
    return leaf


def _fingerprint(leaf: Any) -> Any:
    if _is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return (str(leaf.dtype), data.shape, data.tobytes())
    if isinstance(leaf, np.ndarray):
        return (str(leaf.dtype), leaf.shape, leaf.tobytes())
    # 1, 1.0 and True are equal in Python, as are 0.0 and -0.0, but an energy may distinguish them.
    return (type(leaf), repr(leaf) if isinstance(leaf, float | complex) else leaf)
