"""Optimisers with their numbers as arguments, so that another learning rate needs no other program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

if TYPE_CHECKING:
    import optax


class Recipe:
    """The operations of an optimiser's update without its numbers: equal, by content, for optimisers that differ in numbers alone.

    A recipe is the optimiser's own trace, in which every number, such as a learning rate or the steps of a schedule, is an input. It stands
    where a `Trainer` has an optimiser.
    """

    __slots__ = ("_hash", "_identity", "operations", "outputs", "tree")

    def __init__(self, operations: tuple[Any, ...], outputs: tuple[Any, ...], tree: Any):
        self.operations, self.outputs, self.tree = operations, outputs, tree
        self._identity = (tuple((*op[:1], tuple(sorted(op[1].items())), *op[2:]) for op in operations), outputs, tree)
        self._hash = hash(self._identity)  # a TypeError where a parameter has no hash

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Recipe) and self._identity == other._identity)

    def init(self, params: Any) -> Any:
        raise TypeError("a recipe has no initial state: that is the optimiser's own")

    def update(self, updates: Any, state: Any, params: Any = None, numbers: Sequence[Any] = ()) -> tuple[Any, Any]:
        """The update and the new state of the optimiser with these numbers."""
        values = jax.tree.leaves((updates, state, params))

        def read(where: tuple[bool, int]) -> Any:
            is_number, i = where
            return numbers[i] if is_number else values[i]

        for primitive, settings, inputs in self.operations:
            found = primitive.bind(*map(read, inputs), **settings)
            values.extend(found if primitive.multiple_results else [found])
        return jax.tree.unflatten(self.tree, [read(where) for where in self.outputs])


class _Recorder:
    """Reads a trace: operations over places of values, (False, place), and of numbers, (True, place)."""

    def __init__(self, arguments: int):
        self.operations: list[Any] = []
        self.numbers: list[Any] = []
        self.places = arguments

    def number(self, value: Any, aval: Any) -> tuple[bool, int]:
        self.numbers.append(np.asarray(value, aval.dtype) if aval.shape == () else value)
        return True, len(self.numbers) - 1

    def record(self, jaxpr: Any, constants: Any, inputs: list[Any]) -> list[Any]:
        """The places of the outputs of a trace whose inputs are at these places. Calls of compiled functions are opened."""
        known = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {v: self.number(c, v.aval) for v, c in zip(jaxpr.constvars, constants, strict=True)}

        def read(atom: Any) -> Any:
            return self.number(atom.val, atom.aval) if isinstance(atom, Literal) else known[atom]

        for eqn in jaxpr.eqns:
            inputs, inner = [read(atom) for atom in eqn.invars], eqn.params.get("jaxpr")
            if inner is not None and eqn.primitive.name in ("jit", "pjit"):
                outputs = self.record(inner.jaxpr, inner.consts, inputs)
            elif eqn.effects or any(map(_is_program, jax.tree.leaves(list(eqn.params.values())))):
                raise TypeError(f"{eqn.primitive} has a program of its own")
            else:
                self.operations.append((eqn.primitive, eqn.params, tuple(inputs)))
                outputs = [(False, self.places + i) for i in range(len(eqn.outvars))]
                self.places += len(eqn.outvars)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def _is_program(x: Any) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr) or callable(x)


def with_numbers_apart(optimizer: optax.GradientTransformation, parameters: Any, state: Any) -> tuple[Any, list[Any]]:
    """What is static of an optimiser, a `Recipe`, and its numbers. `rebuilt` puts the two together.

    An optimiser whose trace holds programs of its own (the branches of `optax.MultiSteps` or `optax.apply_if_finite`), or keys, is its own
    recipe: another object of that kind is another program.
    """
    leaves, tree = jax.tree.flatten((parameters, state))
    try:
        avals = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        return _traced(optimizer, tree, avals)
    except TypeError:
        return optimizer, []


@functools.lru_cache(maxsize=64)
def _traced(optimizer: optax.GradientTransformation, tree: Any, avals: Any) -> tuple[Any, list[Any]]:
    leaves = [jax.ShapeDtypeStruct(*aval) for aval in avals]
    parameters, state = jax.tree.unflatten(tree, leaves)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in `Trainer.update`
        closed, out = jax.make_jaxpr(optimizer.update, return_shape=True)(parameters, state, parameters)
    recorder = _Recorder(len(closed.in_avals))
    places = [(False, i) for i in range(len(closed.in_avals))]
    outputs = recorder.record(closed.jaxpr, closed.consts, places)
    operations = tuple(recorder.operations)
    return Recipe(operations, tuple(outputs), jax.tree.structure(out)), recorder.numbers


def rebuilt(static: Any, numbers: list[Any]) -> Any:
    """The optimiser of what `with_numbers_apart` returned."""
    if not isinstance(static, Recipe):
        return static
    import optax

    return optax.GradientTransformation(static.init, functools.partial(static.update, numbers=numbers))
