"""Training one update at a time by `init` and `step`, with an explicit state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy, ModelLike, as_energy, check_scalar
from lnz._core.frozen import is_traced
from lnz._core.objective import Objective
from lnz._core.random import fast_key
from lnz._core.spaces import ArrayLike, State
from lnz.kernels._coupled import NotMet
from lnz.learning._gradients import as_arrays, as_weights, cast, mean_and_gradient, weighted_mean
from lnz.learning._negative import ExactPhase, NegativePhase, PersistentChains
from lnz.learning._optimizers import rebuilt, with_numbers_apart
from lnz.learning._positive import PositivePhase, default_positive_phase
from lnz.learning._regularisers import Regularisers

if TYPE_CHECKING:
    import optax

# Folded into an update's key: for the noise on the data, and for the positive phase.
_NOISE, _POSITIVE = 0x6E6F6973, 0x706F7369


class TrainState(eqx.Module):
    """The complete state of a training run, from which it can be resumed bit for bit.

    Attributes:
        energy: the model with its parameters.
        optimizer: the optimiser's state.
        negative: the negative phase's state, such as the persistent chains.
        step: the number of updates so far.
        key: the run's random key; update number t uses `fold_in(key, t)`.
    """

    energy: Energy
    optimizer: Any
    negative: Any
    step: Int[Array, ""]
    key: PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Maximum likelihood by the two phases, θ along E_data[-∂F] - E_{p_θ}[-∂F], or an objective without Z, θ along -E_data[∂loss].

    Attributes:
        optimizer: any optax gradient transformation that needs only gradients and parameters; by default plain gradient ascent,
            `optax.sgd(0.01)`.
        negative_phase: how the model's expectation is estimated; by default `PersistentChains(sweeps=1)`.
        positive_phase: how the data's expectation is estimated, where the hidden units have no closed sum (deep Boltzmann machines); by
            default the closed sum, or else `MeanFieldPhase()`.
        objective: instead of phases, an objective such as `lnz.learning.ScoreMatching()`.
        regularisers: departures from maximum likelihood for neural energies; by default none.

    Raises:
        TypeError: where these are something else, such as a name.
        ValueError: where there are both a negative phase and an objective, or a penalty on the energies of states that are never drawn.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> trainer = lnz.Trainer(negative_phase=lnz.learning.PersistentChains(sweeps=1))
        >>> state = trainer.init(lnz.RBM(visible=4, hidden=2, key=jax.random.key(0)), jax.random.key(1), batch_size=8)
        >>> state, info = trainer.step(state, jnp.ones((8, 4)))
        >>> int(state.step)
        1
    """

    optimizer: optax.GradientTransformation | None = None
    negative_phase: NegativePhase | None = None
    positive_phase: PositivePhase | None = None
    objective: Objective | None = None
    regularisers: Regularisers = dataclasses.field(default_factory=Regularisers)

    def __post_init__(self) -> None:
        if self.objective is not None and (self.negative_phase is not None or self.positive_phase is not None):
            raise ValueError("an objective without Z has no phases: give either an objective or phases")
        if self.objective is None and self.negative_phase is None:
            object.__setattr__(self, "negative_phase", PersistentChains())
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise TypeError(
                f"optimizer must be an optax gradient transformation, such as optax.adam(1e-3), but is {self.optimizer!r}"
            )
        if self.objective is not None and not isinstance(self.objective, Objective):
            raise TypeError(f"objective must be one such as lnz.crf.PseudoLikelihood(), but is {self.objective!r}")
        if not isinstance(self.regularisers, Regularisers):
            raise TypeError(f"regularisers must be lnz.learning.Regularisers(…), but is {self.regularisers!r}")
        if self.regularisers.energy_penalty and (self.negative_phase is None or not self.negative_phase.by_states):
            raise ValueError(
                "energy_penalty applies to the energies of data and chains: it needs a negative phase that draws states"
            )
        if self.objective is None and not isinstance(self.negative_phase, NegativePhase):
            raise TypeError(
                f"negative_phase must be one such as lnz.learning.PersistentChains(sweeps=1), but is {self.negative_phase!r}"
            )
        if not isinstance(self.positive_phase, PositivePhase | None):
            raise TypeError(
                f"positive_phase must be one such as lnz.learning.MeanFieldPhase(), but is {self.positive_phase!r}"
            )

    def _positive_phase(self, energy: Energy) -> PositivePhase:
        return default_positive_phase(energy) if self.positive_phase is None else self.positive_phase

    def _optimizer(self) -> Any:
        import optax

        return optax.sgd(0.01) if self.optimizer is None else self.optimizer

    def numbers_apart(self, state: TrainState) -> tuple[Trainer, list[Array]]:
        """This trainer without the numbers of its optimiser, and the numbers: trainers that differ in those alone become equal."""
        parameters = eqx.filter(state.energy, eqx.is_inexact_array)
        optimizer, numbers = with_numbers_apart(self._optimizer(), parameters, state.optimizer)
        return dataclasses.replace(self, optimizer=optimizer), numbers

    def with_numbers(self, numbers: list[Array]) -> Trainer:
        """The trainer with the numbers of `numbers_apart`, which may be traced."""
        return dataclasses.replace(self, optimizer=rebuilt(self.optimizer, numbers))

    @property
    def draws(self) -> bool:
        """Whether updates draw states that represent the model."""
        return self.negative_phase is not None and not isinstance(self.negative_phase, ExactPhase)

    def figures(self, energy: Energy) -> tuple[str, ...]:
        """The names of the figures of an update of this energy: see `step`."""
        if self.negative_phase is None:
            return ("objective", "gradient_norm")
        gap = ("energy_gap",) if self.draws and data_space(energy) == observed_space(energy) else ()
        seen = self.negative_phase.figures(energy)
        likelihood = ("log_likelihood",) if "log_z" in seen else ()
        return ("energy", *gap, *seen, *likelihood, "gradient_norm", "disagreement")

    def problem(self, figures: Mapping[str, Array]) -> str | None:
        """The failure, according to the figures of updates, that must stop learning, as a sentence, or None."""
        return None if self.negative_phase is None else self.negative_phase.problem(figures)

    def init(self, energy: ModelLike, key: PRNGKeyArray, *, batch_size: int) -> TrainState:
        """The state before the first update. `batch_size` sets the number of persistent chains where that is not given.

        Raises ValueError where the negative phase does not support the energy, or the energy has no parameters.
        """
        energy = as_energy(energy)
        parameters = eqx.filter(energy, eqx.is_inexact_array)
        if not jax.tree.leaves(parameters):
            raise ValueError(f"{type(energy).__name__} has no floating-point parameters to learn")
        if observed_space(energy).moving:
            raise ValueError(
                "the bounds of this energy's box are parameters: the two phases lack the boundary term (T4). Give the box constant bounds, or "
                "use the derivative of lnz.log_partition itself"
            )
        check_scalar(energy)
        positive = None if self.objective is not None else self._positive_phase(energy)
        for part in (self.negative_phase, positive, self.objective, self.regularisers):
            reason = None if part is None else part.unsupported_reason(energy)
            if reason is not None:
                raise ValueError(f"{type(part).__name__} does not support {type(energy).__name__}: {reason}")
        if self.objective is not None and data_space(energy) != observed_space(energy):
            raise ValueError(
                f"{type(self.objective).__name__} does not support {type(energy).__name__}: its data leave units unobserved. Learn by phases."
            )
        run_key, negative = _begun(self.negative_phase, energy, key, batch_size)
        optimizer = self._optimizer().init(parameters)
        return TrainState(energy, optimizer, negative, jax.device_put(np.zeros((), np.int32)), run_key)

    def step(
        self, state: TrainState, data: State, weights: ArrayLike = None, *, scale: Any = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """One update on a batch of observed states (n, *shape), compiled.

        Args:
            state: from `init` or the previous step.
            data: the batch, of any numeric dtype (its values are not checked here) and any size, since each phase is a mean over its own
                states.
            weights: weights of the data, shape (n,), not negative; a weight of zero leaves a row out.
            scale: a factor of the gradient. Batches of weighted data differ in total weight: with the batch's mean weight over the mean
                weight of all data, the updates' expectation is the gradient of all data, as in `fit`.

        Returns:
            The new state and figures: `energy`, mean F of the data, in nats (or a bound on it, see `positive_phase`); `energy_gap`, `energy`
            less the mean F of the model's states (absent in the exact phase, and where data are only a part of a state, since the two are not
            comparable); for persistent chains of two layers `flips`, the share of hidden units that the last sweep changed (near 0: the
            chains are stuck); for Langevin moves `acceptance`; the figures documented by the negative phase; where it gives `log_z`, the
            running `log_likelihood` of the batch, -`energy` - `log_z`, in nats per example; `gradient_norm`, ‖positive - negative‖ before
            any clipping; `disagreement`, that norm over ‖positive‖ + ‖negative‖, from 0 (the phases cancel) to 1. With an objective in
            place of the phases: `objective`, its mean over the batch, and `gradient_norm`.

        Raises:
            ValueError: for data of another shape, or weights that are not finite, negative or all zero.
            NotMet: where coupled chains have not met.
        """
        data = as_arrays(state.energy, data)
        wanted = jax.tree.map(lambda struct: struct.shape, data_space(state.energy).struct, is_leaf=_is_struct)
        found = jax.tree.map(lambda leaf: leaf.shape[1:], data)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
        if found != wanted or len(sizes) > 1 or sizes & {(), (0,)}:
            raise ValueError(
                f"a batch must hold at least one state of shape {wanted} along axis 0, but got "
                f"{jax.tree.map(lambda leaf: leaf.shape, data)}"
            )
        weights = None if weights is None else as_weights(weights, sizes.pop()[0])
        trainer, numbers = self.numbers_apart(state)
        scale = scale if scale is None or is_traced(scale) else np.asarray(scale)
        state, figures = _step(trainer, numbers, state, data, weights, scale)
        problem = None if is_traced(figures["gradient_norm"]) else self.problem(figures)
        if problem is not None:
            raise NotMet(problem)
        return state, figures

    def update(
        self, state: TrainState, data: State, weights: Array | None = None, scale: Array | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """`step` without compilation and checks, to be called inside a loop of your own."""
        energy = state.energy
        key = jax.random.fold_in(fast_key(state.key), state.step)
        data = self.regularisers.noisy(cast(energy, data), jax.random.fold_in(key, _NOISE))
        if self.objective is not None:
            loss, descent = _objective_gradient(self.objective, energy, data, weights, key)
            chains, figures = state.negative, {"objective": loss, "gradient_norm": _norm(descent)}
        else:
            descent, chains, figures = self._phases(energy, state.negative, data, weights, key)
        descent = self.regularisers.clipped(descent, figures["gradient_norm"])
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
                    f"the optimiser needs more than gradients and parameters ({error}): line searches need an objective, which "
                    "learning by phases does not have. Use one such as optax.adam(1e-3)."
                ) from None
        energy = eqx.apply_updates(energy, _like(updates, parameters))
        return TrainState(energy, _like(optimizer, state.optimizer), chains, state.step + 1, state.key), figures

    def _phases(
        self, energy: Energy, chains: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Any, Any, dict[str, Array]]:
        """The negative minus the positive phase, the state of the negative phase for the next update, and figures."""
        phase, penalty = self.negative_phase, self.regularisers.energy_penalty
        assert phase is not None
        if penalty:
            data_energy, positive = mean_and_gradient(energy, data, weights, penalty=penalty)
            states, state_weights, chains, seen = phase.draw(energy, chains, data, weights, key)
            model_energy, negative = mean_and_gradient(energy, states, state_weights, penalty=-penalty)
        else:
            positive_key = jax.random.fold_in(key, _POSITIVE)
            data_energy, positive = self._positive_phase(energy).mean_and_gradient(energy, data, weights, positive_key)
            model_energy, negative, chains, seen = phase.gradient(energy, chains, data, weights, key)
        figures = {"energy": data_energy, **seen}
        if model_energy is not None and data_space(energy) == observed_space(energy):
            figures["energy_gap"] = data_energy - model_energy
        if "log_z" in seen:
            figures["log_likelihood"] = -data_energy - seen["log_z"].astype(data_energy.dtype)
        descent = jax.tree.map(jnp.subtract, negative, positive)
        norm, size = _norm(descent), _norm(positive) + _norm(negative)
        return descent, chains, figures | {"gradient_norm": norm, "disagreement": norm / jnp.where(size > 0, size, 1)}


@eqx.filter_jit
def _begun(phase: NegativePhase | None, energy: Energy, key: PRNGKeyArray, batch_size: int) -> tuple[PRNGKeyArray, Any]:
    """The key of a run, and the state of its negative phase before the first update."""
    run_key, start_key = jax.random.split(fast_key(key))
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        run_key = jax.random.wrap_key_data(jax.random.key_data(run_key), impl=jax.random.key_impl(key))
    return run_key, () if phase is None else phase.init(energy, start_key, batch_size)


@eqx.filter_jit
def _step(
    trainer: Trainer, numbers: list[Array], state: TrainState, data: State, weights: Array | None, scale: Array | None
) -> tuple[TrainState, dict[str, Array]]:
    return trainer.with_numbers(numbers).update(state, data, weights, scale)


def _objective_gradient(
    objective: Objective, energy: Energy, data: State, weights: Array | None, key: PRNGKeyArray
) -> tuple[Array, Any]:
    """The objective's weighted mean over a batch, and its gradient; every row has its own key."""
    n = jax.tree.leaves(data)[0].shape[0]
    keys = jax.random.split(fast_key(key), n)

    def mean(energy: Energy) -> Array:
        each = jax.vmap(lambda v, key: objective.loss(energy, v, key=key))
        return weighted_mean(lambda v: each(v, keys), data, weights)

    return eqx.filter_value_and_grad(mean)(energy)


def _is_struct(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def _like(tree: Any, old: Any) -> Any:
    """The tree with the dtypes of the old one, since an optimiser can compute in wider ones, which the state must not keep."""
    return jax.tree.map(
        lambda new, old: new.astype(old.dtype) if eqx.is_array(old) and new.dtype != old.dtype else new, tree, old
    )


def _norm(tree: Any) -> Array:
    flat = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.dot(leaf, leaf) for leaf in flat))  # a dot product is vectorised; a sum of squares is not
