"""The training loop: `run` drives any training problem, and `updates` computes those of `fit`."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._core.random import folded, permutations
from lnz._core.spaces import ArrayLike, State
from lnz.learning._resume import Keeper
from lnz.learning._trainer import Trainer, TrainState

S = TypeVar("S")  # a state
E = TypeVar("E")  # an evaluation

_ORDER, _MEASURE = 0x6F726465, 0x6D656173  # beyond any number of updates, whose keys are fold_in(key, t)
_ROWS = 2048  # the rows of small data, padded


class Diverged(RuntimeError):
    """Training met a NaN or infinite energy, gradient or parameter."""


class Interrupted(RuntimeError):
    """Training was interrupted (Ctrl-C); its state was saved where a checkpoint path was given."""


class Problem(abc.ABC, Generic[S, E]):
    """Training as a sequence of steps, for `run`. States are immutable, so that an interruption always finds a complete one."""

    @abc.abstractmethod
    def number(self, state: S) -> int:
        """The number of updates, iterations or epochs so far."""

    @abc.abstractmethod
    def finished(self, state: S) -> bool:
        """Whether the last step was made and evaluated."""

    @abc.abstractmethod
    def step(self, state: S) -> S:
        """The state after some more work, which can end anywhere."""

    @abc.abstractmethod
    def evaluate(self, state: S) -> E | None:
        """An evaluation of the state, if one is due."""

    @abc.abstractmethod
    def close(self, state: S, evaluation: E) -> S:
        """The state after its evaluation has been reported."""

    @abc.abstractmethod
    def pack(self, state: S) -> tuple[Any, dict[str, Any]]:
        """A state as a pytree of arrays, and further values for JSON."""

    @abc.abstractmethod
    def unpack(self, tree: Any, about: dict[str, Any]) -> S:
        """The state that was packed."""


def run(
    problem: Problem[S, E],
    state: S,
    keeper: Keeper,
    *,
    on_evaluation: Callable[[E], Any] | None = None,
    on_step: Callable[[S], Any] | None = None,
) -> tuple[S, list[E]]:
    """Train to the end from a state, or from the checkpoint if there is one: the last state, and the evaluations made.

    The checkpoint is written before the first step, after every evaluation, and at an interruption. `on_evaluation` is called before the
    checkpoint that follows it: after a kill an evaluation can be repeated, but is never lost.

    Raises Interrupted on Ctrl-C, after saving the state.
    """

    def save() -> None:
        keeper.save(problem.number(state), *problem.pack(state))

    if keeper.exists():
        state = problem.unpack(*keeper.load(problem.pack(state)[0]))
    else:
        save()
    evaluations: list[E] = []
    try:
        while True:
            evaluation = problem.evaluate(state)
            if evaluation is not None:
                evaluations.append(evaluation)
                if on_evaluation is not None:
                    on_evaluation(evaluation)
                state = problem.close(state, evaluation)
                save()
            if problem.finished(state):
                return state, evaluations
            state = problem.step(state)
            if on_step is not None:
                on_step(state)
    except KeyboardInterrupt:
        save()
        where = "nothing was saved, because there is no checkpoint. Pass checkpoint=…, a file, to be able to resume."
        if keeper.path is not None:
            where = f"the state is saved in {keeper.path}. The same call resumes from there."
        raise Interrupted(f"interrupted at step {problem.number(state)}: {where}") from None


def renamed(old: str, value: Any, new: str, instead: Any) -> Any:
    """The argument given by its name of version 0.1, with a warning, otherwise the one given by its new name."""
    if value is None:
        return instead
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
    return value


def orders(key: PRNGKeyArray, first: int, count: int, n: int, batch: int) -> Int[np.ndarray, " padded"]:
    """The order of the rows of the data in `count` epochs of the run with this key, each padded with row 0 to whole batches."""
    epochs = permutations(key, _ORDER, range(first, first + count), n)
    return np.pad(epochs, ((0, 0), (0, -n % batch))).astype(np.int32).reshape(-1)


def measure_key(key: PRNGKeyArray, step: int) -> PRNGKeyArray:
    """The key of the likelihood measured after some updates of the run with this key."""
    return folded(key, _MEASURE, step)


def padded(array: ArrayLike, least: int = _ROWS) -> Array:
    """An array with rows of zeros after its own, so that few lengths occur, and few programs are compiled: powers of two up to 2**16, then its
    multiples."""
    array = np.asarray(array)
    n, step = len(array), 2**16
    rows = max(least, 2 ** math.ceil(math.log2(n)) if n <= step else -(-n // step) * step)
    longer = np.zeros((rows, *array.shape[1:]), array.dtype)
    longer[:n] = array
    return jax.device_put(longer)


class Batches(NamedTuple):
    """What the updates of some epochs are made from: see `updates`.

    Attributes:
        data: the observed states, `padded`.
        weights: their weights, with mean 1 over the data, `padded`; or None.
        n: the number of data.
        order: the rows of the epochs' batches, from `orders`, `padded`.
    """

    data: State
    weights: Array | None
    n: Array
    order: Array


def no_sums(names: tuple[str, ...]) -> dict[str, Array]:
    """The sums of the figures of no updates."""
    return {name: jax.device_put(np.zeros((), np.float32)) for name in names}


def updates(
    trainer: Trainer, batch: int, state: TrainState, sums: Any, batches: Batches, first: int, stop: int
) -> tuple[TrainState, Any, Array]:
    """Updates by the batches first … stop - 1 of some epochs: one compiled program for all data, learning rates, and numbers of updates.

    Returns the new state, the sums with every update's figures added in order, and the first batch whose update gave a NaN or infinite
    energy, gradient or parameter (-1: none).

    A short last batch is padded with rows of weight zero. A weighted batch's gradient is scaled by its mean weight, so that its expectation
    over orders is the gradient of all data.
    """
    trainer, numbers = trainer.numbers_apart(state)
    return _updates(trainer, numbers, batch, state, sums, batches, np.int32(first), np.int32(stop))


@eqx.filter_jit
def _updates(
    trainer: Trainer, numbers: list[Array], batch: int, state: TrainState, sums: Any, batches: Batches, first: Any, stop: Any
) -> tuple[TrainState, Any, Array]:  # fmt: skip
    trainer = trainer.with_numbers(numbers)
    arrays, rest = eqx.partition(state, eqx.is_array)
    data, weights, n, order = batches

    def update(i: Array, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
        rows = jax.lax.dynamic_slice(order, (i * batch,), (batch,))
        present = i % -(-n // batch) * batch + jnp.arange(batch, dtype=jnp.int32) < n
        w, scale = present.astype(jnp.float32), None
        if weights is not None:
            w = jnp.where(present, weights[rows], 0)
            scale = jnp.sum(w) / jnp.sum(present).astype(w.dtype)
        return trainer.update(state, jax.tree.map(lambda leaf: leaf[rows], data), w, scale)

    def body(i: Array, carry: Any) -> Any:
        arrays, sums, bad = carry
        state, figures = update(i, eqx.combine(arrays, rest))
        fine = _finite((figures, eqx.filter(state.energy, eqx.is_inexact_array)))
        sums = {name: total + figures[name].astype(jnp.float32) for name, total in sums.items()}
        return eqx.filter(state, eqx.is_array), sums, jnp.where((bad < 0) & ~fine, i, bad)

    arrays, sums, bad = jax.lax.fori_loop(first, stop, body, (arrays, sums, jnp.asarray(-1, jnp.int32)))
    return eqx.combine(arrays, rest), sums, bad


def _finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
