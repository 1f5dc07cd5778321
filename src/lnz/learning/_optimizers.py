"""Optimisers with their numbers as arguments, so that another learning rate needs no other program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

if TYPE_CHECKING:
    import optax


class _Steps(NamedTuple):
    """Operations, each a primitive or `_Branches` with its settings and the places of its inputs, and the places of what they give."""

    operations: tuple[Any, ...]
    outputs: tuple[tuple[bool, int], ...]

    def follow(self, values: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
        """What the operations make of these values."""
        known = list(values)

        def read(where: tuple[bool, int]) -> Any:
            is_number, i = where
            return numbers[i] if is_number else known[i]

        for operation, settings, inputs in self.operations:
            inputs = list(map(read, inputs))
            if isinstance(operation, _Branches):
                known += operation.follow(inputs, numbers)
                continue
            found = operation.bind(*inputs, **dict(settings))
            known += found if operation.multiple_results else [found]
        return [read(where) for where in self.outputs]


class _Branches(NamedTuple):
    """Steps of which one is followed: `jax.lax.cond`, as in `optax.MultiSteps` and `optax.apply_if_finite`."""

    branches: tuple[_Steps, ...]

    def follow(self, inputs: list[Any], numbers: Sequence[Any]) -> list[Any]:
        """What the branch of the first input makes of the others."""
        which, *values = inputs
        return jax.lax.switch(which, [lambda *x, b=b: b.follow(x, numbers) for b in self.branches], *values)


class Recipe:
    """The operations of an optimiser's update without its numbers: equal, by content, for optimisers that differ in numbers alone.

    A recipe is the optimiser's own trace, in which every number, such as a learning rate or the steps of a schedule, is an input. It stands
    where a `Trainer` has an optimiser.
    """

    __slots__ = ("_hash", "steps", "tree")

    def __init__(self, steps: _Steps, tree: Any):
        self.steps = steps
        self.tree = tree
        self._hash = hash((steps, tree))  # a TypeError where a parameter has no hash

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Recipe) and (self.steps, self.tree) == (other.steps, other.tree))

    def init(self, params: Any) -> Any:
        raise TypeError("a recipe has no initial state: that is the optimiser's own")

    def update(self, updates: Any, state: Any, params: Any = None, numbers: Sequence[Any] = ()) -> tuple[Any, Any]:
        """The update and the new state of the optimiser with these numbers."""
        return jax.tree.unflatten(self.tree, self.steps.follow(jax.tree.leaves((updates, state, params)), numbers))


class _Recorder:
    """Reads a trace: operations over places of values, (False, place), and of numbers, (True, place)."""

    def __init__(self, arguments: int, numbers: list[Any]):
        self.operations: list[Any] = []
        self.numbers = numbers
        self.places = arguments

    def steps(self, closed: ClosedJaxpr) -> _Steps:
        """A whole trace of the arguments."""
        outputs = self.record(closed.jaxpr, closed.consts, [(False, i) for i in range(self.places)])
        return _Steps(tuple(self.operations), tuple(outputs))

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
            else:
                self.operations.append((*self.operation(eqn), tuple(inputs)))
                outputs = [(False, self.places + i) for i in range(len(eqn.outvars))]
                self.places += len(eqn.outvars)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def operation(self, eqn: Any) -> tuple[Any, tuple[Any, ...]]:
        """A primitive, or branches, and its settings."""
        if eqn.primitive.name == "cond" and not eqn.effects:
            arguments = len(eqn.invars) - 1
            return _Branches(tuple(_Recorder(arguments, self.numbers).steps(b) for b in eqn.params["branches"])), ()
        if eqn.effects or any(map(_is_program, jax.tree.leaves(list(eqn.params.values())))):
            raise TypeError(f"{eqn.primitive} has a program of its own")
        return eqn.primitive, tuple(sorted(eqn.params.items()))


def _is_program(x: Any) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr) or callable(x)


def with_numbers_apart(optimizer: optax.GradientTransformation, parameters: Any, state: Any) -> tuple[Any, list[Any]]:
    """What is static of an optimiser, a `Recipe`, and its numbers. `rebuilt` puts the two together.

    An optimiser whose trace holds loops or programs of its own, or keys, is its own recipe: another object of that kind is another program.
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
    numbers: list[Any] = []
    steps = _Recorder(len(closed.in_avals), numbers).steps(closed)
    return Recipe(steps, jax.tree.structure(out)), numbers


def rebuilt(static: Any, numbers: list[Any]) -> Any:
    """The optimiser of what `with_numbers_apart` returned."""
    if not isinstance(static, Recipe):
        return static
    import optax

    return optax.GradientTransformation(static.init, functools.partial(static.update, numbers=numbers))
