"""Trajectory tempering on a ladder of past models of the run."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._kernels import Kernel, compact, default_kernel
from lnz.learning._gradients import cast
from lnz.learning._negative.ladder import gains, mean_probability, rounds
from lnz.learning._negative.negative_phase import NegativePhase, base_samples, between, kernel_refusal

_SMOOTHING = 0.2  # the weight of an update in the smoothed swap probabilities


class Trajectory(NamedTuple):
    """The ladder: parameters of k kept models, each leaf (k, *shape); replicas (k + 1, n, *shape), those of the model in training last; the
    smoothed swap probability of every pair of neighbours; and the number of previous swap rounds."""

    models: Any
    observed: State
    rates: Float[Array, " k"]
    round: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TrajectoryTempered(NegativePhase):
    """Trajectory tempering: replicas on a ladder of frozen models of the training run, with the model in training on top.

    Neighbouring models of a run overlap, also across a first-order transition that no ladder of temperatures crosses. When the model in
    training swaps with the last kept one less often than `target`, it is kept itself. The ladder holds `checkpoints` models: the one whose
    neighbours swap most easily without it is removed (at first, copies of the initial model). The lowest rung is the initial model of the
    run, which must mix by itself: start from small weights.

    Its figures: `swaps`, the mean probability of a swap over pairs of neighbours; `least_swaps`, that of the pair that swaps least; `kept`,
    the share of updates that kept a model.

    Attributes:
        checkpoints: the number k of kept models, at least 2. An update costs k + 1 times that of `PersistentChains`.
        target: the swap probability below which the model is kept, in (0, 1].
        sweeps: rounds per update, each of one kernel step of every replica and one round of swaps.
        chains: replicas per model; by default one per example of a batch.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.

    Source: Béreux, Decelle, Furtlehner, Rosset & Seoane 2025, "Fast training and sampling of restricted Boltzmann machines" (there the
    models are those of a finished run, or are selected during it and all kept, at a swap probability of 0.25 to 0.3). With few rungs a larger
    `target` is needed, so that replicas cross the ladder before the model has changed: on Bars and Stripes 0.3 fails, and 0.7 works.
    """

    checkpoints: int = 10
    target: float = 0.7
    sweeps: int = 1
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoints", "sweeps"):
            check_whole_number(name, getattr(self, name))
        if self.checkpoints < 2:
            raise ValueError("checkpoints must be at least 2: the initial model of the run is always kept")
        if self.chains is not None:
            check_whole_number("chains", self.chains)
        between("target", self.target, 0, 1)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return kernel_refusal(self.kernel, energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Trajectory:
        n, k = self.chains or batch_size, self.checkpoints
        v = compact(energy, base_samples(energy, key, (k + 1) * n))
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        return Trajectory(
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *leaf.shape)), parameters),
            jax.tree.map(lambda leaf: leaf.reshape(k + 1, n, *leaf.shape[1:]), v),
            jnp.ones((k,), jnp.float32),
            jnp.zeros((), jnp.int32),
        )

    def draw(
        self, energy: Energy, state: Trajectory, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Trajectory, dict[str, Array]]:
        present, rest = eqx.partition(energy, eqx.is_inexact_array)
        points = jax.tree.map(lambda old, new: jnp.concatenate([old, new[None]]), state.models, present)

        def rung(point: Energy) -> Energy:
            return eqx.combine(point, rest)

        v, seen, tried, figures = rounds(
            rung, points, self.kernel or default_kernel(energy), fast_key(key),
            state.observed, state.round, self.sweeps,
        )  # fmt: skip
        rates = jnp.where(tried, (1 - _SMOOTHING) * state.rates + _SMOOTHING * seen, state.rates)
        figures |= {"swaps": jnp.mean(rates), "least_swaps": jnp.min(rates)}
        states = cast(energy, jax.tree.map(lambda leaf: leaf[-1], v))
        keep = rates[-1] < self.target
        models, v, rates = jax.lax.cond(keep, lambda: _kept(rung, points, v, rates), lambda: (state.models, v, rates))
        figures["kept"] = keep.astype(jnp.float32)
        return states, None, Trajectory(models, v, rates, state.round + self.sweeps), figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.sweeps * (self.checkpoints + 1) * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return (*(self.kernel or default_kernel(energy)).figures, "swaps", "least_swaps", "kept")

    def positions(self, energy: Energy, state: Trajectory) -> State:
        return cast(energy, jax.tree.map(lambda leaf: leaf[-1], state.observed))


def _kept(rung: Any, points: Any, v: State, rates: Float[Array, " k"]) -> tuple[Any, State, Array]:
    """The kept models, the replicas and the rates, after the model in training became the last kept one and an earlier one was removed.

    Of the models except the first, the one is removed whose neighbours swap most often without it. So a model that differs from the previous
    ones only by the noise of the gradient replaces the last one, and does not lengthen the ladder.
    """
    k = rates.size
    place = jnp.arange(k + 1, dtype=jnp.int32)
    up, down = jnp.minimum(place + 2, k), jnp.maximum(place - 2, 0)
    without = gains(rung, points, v, up)[: k - 1] + gains(rung, points, v, down)[2:]  # of the neighbours of 1 … k - 1
    joined = mean_probability(without)
    out = jnp.argmax(joined).astype(jnp.int32) + 1
    stay = place[:-1] + (place[:-1] >= out).astype(place.dtype)  # indices of the models that are kept, of the k + 1
    rates = jnp.append(rates.at[out - 1].set(joined[out - 1]), jnp.ones((1,), rates.dtype))[stay]
    models = jax.tree.map(lambda leaf: leaf[stay], points)
    return models, jax.tree.map(lambda leaf: leaf[jnp.append(stay, place[-1:])], v), rates
