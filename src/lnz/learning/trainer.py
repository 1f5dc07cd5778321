"""Learning one update at a time: `init` and `step`, with the state in the user's hands."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lnz.energy import Energy, as_energy
from lnz.learning.negative import ExactPhase, NegativePhase, PersistentChains
from lnz.learning.phases import mean_free_energy, mean_negative_gradient
from lnz.spaces import State

if TYPE_CHECKING:
    import optax


class TrainState(eqx.Module):
    """All that a training run is: restored from these leaves, it goes on bit for bit.

    Attributes:
        energy: the model with its parameters.
        optimizer: the optimiser's state.
        negative: the negative phase's state, such as the persistent chains.
        step: the number of updates made.
        key: the run's random key; update number t uses `fold_in(key, t)`.
    """

    energy: Energy
    optimizer: Any
    negative: Any
    step: Int[Array, ""]
    key: PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Maximum likelihood by the two phases: θ moves along E_data[-∂F] - E_{p_θ}[-∂F].

    Attributes:
        optimizer: any optax gradient transformation; by default plain gradient ascent, `optax.sgd(0.01)`.
        negative_phase: how the model's expectation is taken.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> trainer = lnz.Trainer(negative_phase=lnz.PersistentChains(sweeps=1))
        >>> state = trainer.init(lnz.RBM(visible=4, hidden=2, key=jax.random.key(0)), jax.random.key(1), batch_size=8)
        >>> state, info = trainer.step(state, jnp.ones((8, 4)))
        >>> int(state.step)
        1
    """

    optimizer: optax.GradientTransformation | None = None
    negative_phase: NegativePhase = dataclasses.field(default_factory=PersistentChains)

    def _optimizer(self) -> optax.GradientTransformation:
        import optax

        return optax.sgd(0.01) if self.optimizer is None else self.optimizer

    def init(self, energy: Any, key: PRNGKeyArray, *, batch_size: int) -> TrainState:
        """The state before the first update. `batch_size` sets the number of persistent chains where that is not given.

        Raises ValueError where the negative phase cannot serve the energy, or the energy has no parameters.
        """
        energy = as_energy(energy)
        reason = self.negative_phase.refusal(energy)
        if reason is not None:
            raise ValueError(f"{type(self.negative_phase).__name__} cannot serve {type(energy).__name__}: {reason}")
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        if not jax.tree.leaves(parameters):
            raise ValueError(f"{type(energy).__name__} has no floating-point parameters to learn")
        run_key, start_key = jax.random.split(key)
        negative = self.negative_phase.init(energy, start_key, batch_size)
        return TrainState(energy, self._optimizer().init(parameters), negative, jnp.zeros((), jnp.int32), run_key)

    @eqx.filter_jit
    def step(self, state: TrainState, data: State, weights: Array | None = None) -> tuple[TrainState, dict[str, Array]]:
        """One update on a batch of observed states (n, *shape), compiled.

        Args:
            state: from `init` or the step before.
            data: the batch. Any size: each phase is a mean over its own number of states.
            weights: of the data, shape (n,); a weight of zero leaves a row out.

        Returns:
            The new state and figures: `energy_gap`, mean F of the data less mean F of the model's states, in nats (absent in the exact
            phase); `gradient_norm`, ‖positive - negative‖; `disagreement`, that norm over ‖positive‖.
        """
        return self.update(state, data, weights)

    def update(
        self, state: TrainState, data: State, weights: Array | None = None, scale: Array | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """`step` without compilation, to be called inside a loop of your own; `scale` multiplies the gradient."""
        energy, phase = state.energy, self.negative_phase
        key = jax.random.fold_in(state.key, state.step)
        figures = {}
        positive = mean_negative_gradient(energy, data, weights)
        if isinstance(phase, ExactPhase):
            negative, chains = phase.chosen(energy).mean_gradient(energy, key), state.negative
        else:
            states, state_weights, chains = phase.draw(energy, state.negative, data, weights, key)
            negative = mean_negative_gradient(energy, states, state_weights)
            figures["energy_gap"] = mean_free_energy(energy, data, weights) - mean_free_energy(
                energy, states, state_weights
            )
        descent = jax.tree.map(jnp.subtract, negative, positive)
        norm = _norm(descent)
        figures |= {"gradient_norm": norm, "disagreement": norm / _norm(positive)}
        if scale is not None:
            descent = jax.tree.map(lambda g: g * scale.astype(g.dtype), descent)
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):  # optimisers rely on JAX's default promotion
            updates, optimizer = self._optimizer().update(descent, state.optimizer, parameters)
        energy = eqx.apply_updates(energy, updates)
        return TrainState(energy, optimizer, chains, state.step + 1, state.key), figures


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))
