"""Learning one update at a time: `init` and `step`, with the state in the user's hands."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lnz.energy import Energy, as_energy
from lnz.frozen import is_traced
from lnz.learning.negative import ExactPhase, NegativePhase, PersistentChains
from lnz.learning.phases import as_arrays, as_weights, cast, mean_and_gradient
from lnz.sampling.coupled import NotMet
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
        optimizer: any optax gradient transformation that needs gradients and parameters alone; by default plain gradient ascent,
            `optax.sgd(0.01)`.
        negative_phase: how the model's expectation is taken.

    Raises:
        TypeError: where these are something else, such as a name.

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

    def __post_init__(self) -> None:
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise TypeError(
                f"optimizer must be an optax gradient transformation, such as optax.adam(1e-3), but is {self.optimizer!r}"
            )
        if not isinstance(self.negative_phase, NegativePhase):
            raise TypeError(
                f"negative_phase must be one such as lnz.PersistentChains(sweeps=1), but is {self.negative_phase!r}"
            )

    def _optimizer(self) -> optax.GradientTransformation:
        import optax

        return optax.sgd(0.01) if self.optimizer is None else self.optimizer

    def figures(self, energy: Energy) -> tuple[str, ...]:
        """The names of the figures that an update of this energy gives: see `step`."""
        gap = () if isinstance(self.negative_phase, ExactPhase) else ("energy_gap",)
        seen = self.negative_phase.figures(energy)
        likelihood = ("log_likelihood",) if "log_z" in seen else ()
        return ("energy", *gap, *seen, *likelihood, "gradient_norm", "disagreement")

    def init(self, energy: Any, key: PRNGKeyArray, *, batch_size: int) -> TrainState:
        """The state before the first update. `batch_size` sets the number of persistent chains where that is not given.

        Raises ValueError where the negative phase cannot serve the energy, or the energy has no parameters.
        """
        energy = as_energy(energy)
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        if not jax.tree.leaves(parameters):
            raise ValueError(f"{type(energy).__name__} has no floating-point parameters to learn")
        if energy.observed.moving:
            raise ValueError(
                "the limits of this energy's box are parameters: the two phases miss the boundary term (T4). Give the box constant limits, or "
                "climb lnz.log_partition's own derivative"
            )
        reason = self.negative_phase.refusal(energy)
        if reason is not None:
            raise ValueError(f"{type(self.negative_phase).__name__} cannot serve {type(energy).__name__}: {reason}")
        run_key, start_key = jax.random.split(key)
        negative = self.negative_phase.init(energy, start_key, batch_size)
        return TrainState(energy, self._optimizer().init(parameters), negative, jnp.zeros((), jnp.int32), run_key)

    def step(
        self, state: TrainState, data: State, weights: Any = None, *, scale: Any = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update on a batch of observed states (n, *shape), compiled.

        Args:
            state: from `init` or the step before.
            data: the batch, of any numeric dtype (its values are not checked here). Any size: each phase is a mean over its own number
                of states.
            weights: of the data, shape (n,), not negative; a weight of zero leaves a row out.
            scale: a factor of the gradient. Batches of weighted data differ in total weight: with the batch's mean weight over the mean
                weight of all data, the updates' expectation is the gradient of all data, as in `fit`.

        Returns:
            The new state and figures: `energy`, mean F of the data, in nats; `energy_gap`, that less the mean F of the model's states
            (absent in the exact phase); of persistent chains of two layers `flips`, the share of hidden units that the last sweep changed
            (near 0: the chains are stuck); of Langevin moves `acceptance`; those that the negative phase lists under its name;
            where it gives `log_z`, the running `log_likelihood` of the batch, -`energy` - `log_z`, in nats per datum;
            `gradient_norm`, ‖positive - negative‖; `disagreement`, that norm over ‖positive‖ + ‖negative‖, from 0 (the phases cancel) to 1.

        Raises:
            ValueError: for data of another shape, or weights that are not finite, negative or all zero.
            NotMet: where coupled chains have not met.
        """
        data = as_arrays(state.energy, data)
        wanted = jax.tree.map(lambda struct: struct.shape, state.energy.observed.struct, is_leaf=_is_struct)
        found = jax.tree.map(lambda leaf: leaf.shape[1:], data)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
        if found != wanted or len(sizes) > 1 or sizes & {(), (0,)}:
            raise ValueError(
                f"a batch needs one or more states of shape {wanted} along axis 0, but got "
                f"{jax.tree.map(lambda leaf: leaf.shape, data)}"
            )
        weights = None if weights is None else as_weights(weights, sizes.pop()[0])
        state, figures = self._step(state, data, weights, None if scale is None else jnp.asarray(scale))
        problem = None if is_traced(figures["energy"]) else self.negative_phase.problem(figures)
        if problem is not None:
            raise NotMet(problem)
        return state, figures

    @eqx.filter_jit
    def _step(
        self, state: TrainState, data: State, weights: Array | None, scale: Array | None
    ) -> tuple[TrainState, dict[str, Array]]:
        return self.update(state, data, weights, scale)

    def update(
        self, state: TrainState, data: State, weights: Array | None = None, scale: Array | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """`step` without compilation and checks, to be called inside a loop of your own."""
        energy, phase = state.energy, self.negative_phase
        data = cast(energy, data)
        key = jax.random.fold_in(state.key, state.step)
        data_energy, positive = mean_and_gradient(energy, data, weights)
        figures = {"energy": data_energy}
        model_energy, negative, chains, seen = phase.gradient(energy, state.negative, data, weights, key)
        if model_energy is not None:
            figures["energy_gap"] = data_energy - model_energy
        figures |= seen
        if "log_z" in seen:
            figures["log_likelihood"] = -data_energy - seen["log_z"].astype(data_energy.dtype)
        descent = jax.tree.map(jnp.subtract, negative, positive)
        norm, size = _norm(descent), _norm(positive) + _norm(negative)
        figures |= {"gradient_norm": norm, "disagreement": norm / jnp.where(size > 0, size, 1)}
        if scale is not None:
            descent = jax.tree.map(lambda g: g * scale.astype(g.dtype), descent)
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):  # optimisers rely on JAX's default promotion
            try:
                updates, optimizer = self._optimizer().update(descent, state.optimizer, parameters)
            except TypeError as error:
                if "required keyword-only argument" not in str(error):
                    raise
                raise TypeError(
                    f"the optimiser wants more than gradients and parameters ({error}): line searches need an objective, which "
                    "learning by phases has not. Use one such as optax.adam(1e-3)."
                ) from None
        energy = eqx.apply_updates(energy, _like(updates, parameters))
        return TrainState(energy, _like(optimizer, state.optimizer), chains, state.step + 1, state.key), figures


def _is_struct(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _like(tree: Any, old: Any) -> Any:
    """The tree with the dtypes of the old one: an optimiser may compute in a wider one, but nothing widens from step to step."""
    return jax.tree.map(
        lambda new, old: new.astype(old.dtype) if eqx.is_array(old) and new.dtype != old.dtype else new, tree, old
    )


def _norm(tree: Any) -> Array:
    flat = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.dot(leaf, leaf) for leaf in flat))  # a dot product is vectorised; a sum of squares is not
