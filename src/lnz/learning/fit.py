"""`fit`: a whole training run, with its likelihood measured as it goes, checkpoints, and a clear end when something breaks."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz.energy import Energy, as_energy
from lnz.formats.checkpoint import load_tree, save_tree
from lnz.learning.likelihood import LogLikelihood, log_likelihood
from lnz.learning.negative import NegativePhase, PersistentChains
from lnz.learning.trainer import Trainer, TrainState
from lnz.route import Route, choose
from lnz.spaces import State

if TYPE_CHECKING:
    import optax

_CHUNK_SECONDS = 0.5  # how long the compiled loop runs between two looks at the clock


class Diverged(RuntimeError):
    """Training met a NaN or infinite energy or gradient."""


class Interrupted(RuntimeError):
    """Training was interrupted (Ctrl-C); its state was saved where a checkpoint path was given."""


@dataclasses.dataclass(frozen=True)
class Record:
    """One look at a run.

    Attributes:
        step: updates made.
        epoch: passes over the data made.
        seconds: since this call of `fit` began.
        figures: means over the updates since the last record: see `Trainer.step`.
        validation: log-likelihood of the validation data, where there are any.
    """

    step: int
    epoch: float
    seconds: float
    figures: dict[str, float]
    validation: LogLikelihood | None = None


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes:
        energy: the model after the last update.
        state: the whole training state, chains included; pass it to `fit(..., state=...)` or `Trainer.step` to go on.
        history: one `Record` an evaluation.
        best: the model with the best validation likelihood, or `energy` where there are no validation data.
        best_step: the update after which that was.
    """

    energy: Energy
    state: TrainState
    history: list[Record]
    best: Energy
    best_step: int


def fit(
    energy: Any,
    data: State,
    *,
    negative_phase: NegativePhase | None = None,
    optimizer: optax.GradientTransformation | None = None,
    epochs: float = 10,
    batch_size: int = 100,
    weights: Any = None,
    validation: State | None = None,
    evaluate_every: float = 1,
    route: Route | None = None,
    key: PRNGKeyArray,
    checkpoint: str | Path | None = None,
    state: TrainState | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> Fitted:
    """Fit an energy to data by maximum likelihood, θ moving along E_data[-∂F] - E_{p_θ}[-∂F].

    Every epoch visits the data once in a random order of its own. Update number t depends only on the state, the data, the options and t,
    so that a run that is killed and resumed is bit for bit the run that was never killed.

    Args:
        energy: an `Energy`, or any callable with a `space`; its float arrays are where learning starts.
        data: observed states (n, *shape).
        negative_phase: how the model's expectation is taken; by default `PersistentChains(sweeps=1)`.
        optimizer: any optax gradient transformation; by default `optax.sgd(0.01)`.
        epochs: passes over the data.
        batch_size: data an update; the last batch of an epoch may be smaller, and no bias comes from it.
        weights: of the data, shape (n,), not negative.
        validation: observed states whose log-likelihood is measured as learning goes.
        evaluate_every: epochs between two records.
        route: for log Z in that measurement; by default `lnz.choose(energy)`.
        key: random key of the whole run.
        checkpoint: a file. The state is written there, atomically, at every record and at the end; if the file exists, the run resumes
            from it (`<name>.best` beside it holds the best model so far).
        state: a state to go on from, instead of `energy` and a checkpoint.
        on_progress: called with (updates made, updates in all) about twice a second.
        on_record: called with every `Record`.

    Raises:
        ValueError: for data, weights or options that cannot serve, before any work.
        Diverged: on a NaN or infinite energy or gradient, with the step and the last good checkpoint.
        Interrupted: on Ctrl-C, after saving the state.

    Example:
        >>> import jax, lnz
        >>> data = lnz.Binary(6).uniform(jax.random.key(0), 200)
        >>> fitted = lnz.fit(lnz.RBM(visible=6, hidden=3, key=jax.random.key(1)), data, epochs=2, key=jax.random.key(2))
        >>> int(fitted.state.step)
        4
    """
    energy = as_energy(energy)
    negative_phase = PersistentChains() if negative_phase is None else negative_phase
    n, weights = _check(energy, data, weights, validation, batch_size, epochs, evaluate_every)
    trainer = Trainer(optimizer, negative_phase)
    batch = min(batch_size, n)
    per_epoch = -(-n // batch)
    total = math.ceil(epochs * per_epoch)
    every = max(1, round(evaluate_every * per_epoch))
    state = trainer.init(energy, key, batch_size=batch) if state is None else state
    best = _Best(state.energy)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        state = load_tree(path, state)
        best.load(path)
    saved_step = int(state.step) if path is not None and path.exists() else None
    if validation is not None:
        route = choose(state.energy).route if route is None else route
        validation = jax.tree.map(jnp.asarray, validation)

    order_key = jax.random.fold_in(jax.random.fold_in(state.key, 0x6F726465), 0)
    run = _compiled_loop(trainer, batch, n)
    device_data = jax.tree.map(jnp.asarray, data)
    history: list[Record] = []
    began, sums, since = time.perf_counter(), None, 0
    order, order_epoch, chunk = None, -1, 1

    def save() -> None:
        nonlocal saved_step
        if path is not None:
            save_tree(path, state, {"step": int(state.step)})
            saved_step = int(state.step)

    try:
        while (step := int(state.step)) < total:
            epoch, first = divmod(step, per_epoch)
            if epoch != order_epoch:
                order, order_epoch = _order(order_key, epoch, n, per_epoch * batch), epoch
            stop = min(first + chunk, per_epoch, total - epoch * per_epoch, first + every - step % every)
            tick = time.perf_counter()
            state, chunk_sums, bad = run(state, device_data, weights, order, first, stop)
            if int(bad) >= 0:
                where = (
                    "no checkpoint was kept"
                    if saved_step is None
                    else f"the last good checkpoint is {path}, at step {saved_step}"
                )
                raise Diverged(
                    f"the energies or gradients became NaN or infinite at step {epoch * per_epoch + int(bad)}; {where}. "
                    "Lower the learning rate, or check the data's scale."
                )
            spent = time.perf_counter() - tick
            if spent < _CHUNK_SECONDS / 2:
                chunk *= 2
            elif spent > 2 * _CHUNK_SECONDS:
                chunk = max(1, chunk // 2)
            sums = chunk_sums if sums is None else jax.tree.map(jnp.add, sums, chunk_sums)
            since += stop - first
            step = int(state.step)
            if on_progress is not None:
                on_progress(step, total)
            if step % every == 0 or step == total:
                likelihood = None
                if validation is not None:
                    likelihood = log_likelihood(
                        state.energy, validation, route=route, key=jax.random.fold_in(order_key, step)
                    )
                figures = {name: float(value) / since for name, value in sums.items()}
                record = Record(step, step / per_epoch, time.perf_counter() - began, figures, likelihood)
                history.append(record)
                if best.update(state.energy, record):
                    best.save(path)
                save()
                if on_record is not None:
                    on_record(record)
                sums, since = None, 0
    except KeyboardInterrupt:
        save()
        where = (
            "nothing was saved (no checkpoint was asked for)"
            if path is None
            else f"the state at step {int(state.step)} is saved in {path}"
        )
        raise Interrupted(f"interrupted: {where}") from None
    return Fitted(
        state.energy,
        state,
        history,
        best.energy if validation is not None else state.energy,
        best.step if validation is not None else int(state.step),
    )


def _check(
    energy: Energy,
    data: State,
    weights: Any,
    validation: State | None,
    batch_size: int,
    epochs: float,
    evaluate_every: float,
) -> tuple[int, Array | None]:
    energy.observed.validate(data, batch=True)
    n = jax.tree.leaves(data)[0].shape[0]
    if n < 2:
        raise ValueError(f"learning needs at least two data, but got {n}")
    if validation is not None:
        energy.observed.validate(validation, batch=True)
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, but is {batch_size!r}")
    if not (math.isfinite(epochs) and epochs > 0 and math.isfinite(evaluate_every) and evaluate_every > 0):
        raise ValueError(f"epochs and evaluate_every must be above 0, but are {epochs} and {evaluate_every}")
    if weights is None:
        return n, None
    weights = np.asarray(weights, np.float32)
    if weights.shape != (n,):
        raise ValueError(f"weights need shape ({n},), one a datum, but got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise ValueError("weights must be finite, not negative, and not all zero")
    return n, jnp.asarray(weights / weights.mean())


def _order(key: PRNGKeyArray, epoch: int, n: int, padded: int) -> Array:
    return jnp.pad(jax.random.permutation(jax.random.fold_in(key, epoch), n), (0, padded - n)).astype(jnp.int32)


@functools.lru_cache(maxsize=16)
def _compiled_loop(trainer: Trainer, batch: int, n: int) -> Callable[..., Any]:
    """A compiled loop over the batches first … stop-1 of an epoch, for any first and stop."""

    def loop(state: TrainState, data: State, weights: Array | None, order: Array, first: Array, stop: Array) -> Any:
        def update(i: Array, state: TrainState) -> tuple[TrainState, dict[str, Array]]:
            rows = jax.lax.dynamic_slice(order, (i * batch,), (batch,))
            present = (i * batch + jnp.arange(batch, dtype=jnp.int32)) < n
            w = present.astype(jnp.float32) if weights is None else jnp.where(present, weights[rows], 0)
            scale = None if weights is None else jnp.sum(w) / jnp.sum(present)
            if n % batch == 0 and weights is None:
                w = None
            return trainer.update(state, jax.tree.map(lambda leaf: leaf[rows], data), w, scale)

        figures = jax.eval_shape(update, first, state)[1]
        sums = jax.tree.map(lambda s: jnp.zeros((), jnp.float32), figures)

        def body(i: Array, carry: Any) -> Any:
            state, sums, bad = carry
            new, figures = update(i, state)
            fine = jnp.all(jnp.stack([jnp.isfinite(f) for f in jax.tree.leaves(figures)]))
            sums = jax.tree.map(lambda s, f: s + f.astype(jnp.float32), sums, figures)
            return new, sums, jnp.where((bad < 0) & ~fine, i, bad)

        return jax.lax.fori_loop(first, stop, body, (state, sums, jnp.asarray(-1, jnp.result_type(first))))

    dynamic_loop = eqx.filter_jit(loop)

    def run(state: TrainState, data: State, weights: Array | None, order: Array, first: int, stop: int) -> Any:
        return dynamic_loop(state, data, weights, order, jnp.asarray(first, jnp.int32), jnp.asarray(stop, jnp.int32))

    return run


class _Best:
    """The best model so far by validation likelihood."""

    def __init__(self, energy: Energy):
        self.energy, self.step, self.value = energy, 0, -math.inf

    def update(self, energy: Energy, record: Record) -> bool:
        better = record.validation is not None and record.validation.value > self.value
        if better:
            self.energy, self.step, self.value = energy, record.step, record.validation.value
        return better

    def save(self, path: Path | None) -> None:
        if path is not None:
            save_tree(best_path(path), self.energy, {"step": self.step, "value": self.value})

    def load(self, path: Path) -> None:
        if best_path(path).exists():
            self.energy, about = load_tree(best_path(path), self.energy, with_metadata=True)
            self.step, self.value = int(about["step"]), float(about["value"])


def best_path(checkpoint: Path) -> Path:
    """Where `fit` keeps the best model beside a checkpoint."""
    return checkpoint.with_name(checkpoint.name + ".best")
