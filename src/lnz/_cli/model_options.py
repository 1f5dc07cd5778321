"""From settings to the model, its optimiser and its negative phase."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lnz
from lnz._cli.dataset import Coding, Dataset
from lnz._cli.settings import Settings
from lnz._core.capabilities import data_space, observed_space
from lnz._core.energy import Energy
from lnz._core.spaces import Space
from lnz._models.pairwise import Pairwise
from lnz.learning._negative import NegativePhase
from lnz.learning._objectives import OBJECTIVES, Objective
from lnz.learning._positive import PositivePhase


def build(settings: Settings, dataset: Dataset, key: Any) -> Energy:
    """The initial model: small random weights or zero couplings, and biases fitted to the training data."""
    space, train = dataset.coding.space, dataset.train
    if settings.model == "dbm":
        return lnz.DeepBoltzmannMachine.from_data(train, settings.layers, key=key)
    if settings.model in ("rbm", "potts-rbm"):
        return lnz.RBM.from_data(train, settings.layers[0], key=key, visible=space)
    if settings.model == "gaussian-rbm":
        return lnz.GaussianRBM(visible=dataset.coding.columns, hidden=settings.layers[0], key=key)
    fields = lnz.Independent.from_data(train, space).potentials.astype(jnp.float32)
    n = dataset.coding.columns
    if settings.model == "ising":
        return lnz.Ising(jnp.zeros((n, n), jnp.float32), fields)
    q = dataset.coding.categories or 1
    return lnz.Potts(jnp.zeros((n, q, n, q), jnp.float32), fields, q=q)


def learner(settings: Settings, model: Energy, base: Energy | None = None, key: Any = None) -> Energy:
    """What training changes: the model, and a parameter for log Z where the objective learns it, initialised by annealing from the base."""
    if settings.objective != "noise-contrastive":
        return model
    if base is None:
        return lnz.SelfNormalised(model)
    route = lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=50, chains=64)
    return lnz.SelfNormalised(model, lnz.log_partition(model, route=route, key=key).value)


def learned(energy: Energy) -> Any:
    """The model inside what training has changed."""
    return energy.energy if isinstance(energy, lnz.SelfNormalised) else energy


def started(settings: Settings, dataset: Dataset, key: Any) -> Energy:
    """The initial model; a deep machine after the pretraining of its layers."""
    if not settings.pretraining:
        return build(settings, dataset, key)
    return lnz.learning.pretrained(
        dataset.train, settings.layers, epochs=settings.pretraining, batch_size=settings.batch_size, key=key
    )


def annealing_base(energy: Energy, base: Energy, train: np.ndarray) -> Energy:
    """The base of annealing: independent units, for a deep machine those of its upper layers too."""
    return base if data_space(energy) == observed_space(energy) else lnz.routes.fitted_base(energy, train)


def positive_phase(settings: Settings) -> PositivePhase | None:
    """The positive phase of a deep machine; None where the hidden units have a closed sum."""
    if settings.model != "dbm" or len(settings.layers) == 1:
        return None
    return lnz.learning.ClampedChains() if settings.positive_phase == "chains" else lnz.learning.MeanFieldPhase()


def factorised(space: Space, train: np.ndarray) -> Energy:
    """Independent units fitted to the training data: the base of annealing, and the baseline of the likelihood."""
    if isinstance(space, lnz.Real):
        mean, variance = train.mean(axis=0, dtype=np.float64), train.var(axis=0, dtype=np.float64)
        return lnz.Gaussian(jnp.asarray(mean), jnp.asarray(1 / variance))
    return lnz.Independent.from_data(train, space)


class Standard:
    """Real data standardised to mean 0 and variance 1, and the way back. Other data stay as they are."""

    def __init__(self, coding: Coding, train: np.ndarray):
        self.real = coding.kind == "real"
        self.mean = train.mean(axis=0, dtype=np.float64) if self.real else np.zeros(())
        self.scale = train.std(axis=0, dtype=np.float64) if self.real else np.ones(())

    def data(self, states: np.ndarray) -> np.ndarray:
        """The states in standard units."""
        return ((states - self.mean) / self.scale).astype(np.float32) if self.real else states

    @property
    def log_volume(self) -> float:
        """The log density in standard units minus that in the data's own: Σ_i log scale_i."""
        return float(np.log(self.scale).sum())

    def model(self, energy: Any) -> Energy:
        """A model of standard units u as the same model of the data x = mean + scale u, in float64.

        b becomes mean + scale b, σ becomes scale σ, W becomes scale W, and c takes up what the mean adds to the hidden inputs.
        """
        if not self.real:
            return energy
        weights, bias, hidden, log_scale = (
            np.asarray(p, np.float64)
            for p in (energy.weights, energy.visible_bias, energy.hidden_bias, energy.log_scale)
        )
        shift = (self.mean / self.scale * np.exp(-2 * log_scale)) @ weights
        parts = (
            self.scale[:, None] * weights,
            self.mean + self.scale * bias,
            hidden - shift,
            log_scale + np.log(self.scale),
        )
        return eqx.tree_at(
            lambda m: (m.weights, m.visible_bias, m.hidden_bias, m.log_scale), energy, tuple(map(jnp.asarray, parts))
        )


def objective(settings: Settings, base: Energy) -> Objective | None:
    """The objective without log Z that the settings name; `base` is the noise distribution. None for the likelihood."""
    if settings.objective == "likelihood":
        return None
    kind = OBJECTIVES[settings.objective]
    if kind is lnz.learning.NoiseContrastive:
        return lnz.learning.NoiseContrastive(base)
    if kind in (lnz.learning.DenoisingScoreMatching, lnz.learning.EnergyDiscrepancy):
        return kind(settings.noise)
    return kind()


def negative_phase(settings: Settings) -> NegativePhase | None:
    """The negative phase that the settings name; None for an objective that has none."""
    if settings.objective != "likelihood":
        return None
    sweeps, chains, rungs = settings.sweeps, settings.chains, settings.rungs
    makers = {
        "exact": lambda: lnz.learning.ExactPhase(),
        "cd": lambda: lnz.learning.ContrastiveDivergence(steps=sweeps),
        "persistent": lambda: lnz.learning.PersistentChains(sweeps=sweeps, chains=chains),
        "fast-weights": lambda: lnz.learning.FastWeights(sweeps=sweeps, chains=chains, fast_rate=settings.fast_rate),
        "tempered": lambda: lnz.learning.TemperedChains(sweeps=sweeps, chains=chains, temperatures=rungs),
        "trajectory": lambda: lnz.learning.TrajectoryTempered(sweeps=sweeps, chains=chains, checkpoints=rungs),
        "jarzynski": lambda: lnz.learning.JarzynskiWalkers(sweeps=sweeps, chains=chains),
        "replay": lambda: lnz.learning.ReplayBuffer(sweeps=sweeps, chains=chains, size=max(10_000, chains)),
        "coupled": lambda: lnz.learning.CoupledChains(burn_in=sweeps, start="chains", chains=chains, max_moves=100_000),
        "coupled-annealing": lambda: lnz.learning.CoupledAnnealing(chains=chains),
    }
    return makers[settings.negative_phase]()


def optimiser(settings: Settings, updates: int) -> Any:
    """The optimiser with its schedule. Weight decay is part of the gradient, and of weights and couplings only."""
    import optax

    rate = settings.learning_rate
    schedules = {
        "constant": lambda: optax.constant_schedule(rate),
        "linear": lambda: optax.linear_schedule(rate, 0.0, updates),
        "cosine": lambda: optax.cosine_decay_schedule(rate, updates),
    }
    schedule = schedules[settings.schedule]()
    chosen = {
        "sgd": lambda: optax.sgd(schedule),
        "momentum": lambda: optax.sgd(schedule, momentum=0.9),
        "adam": lambda: optax.adam(schedule),
    }[settings.optimizer]()
    decay = settings.weight_decay
    return optax.chain(optax.add_decayed_weights(decay, mask=_interactions) if decay else optax.identity(), chosen)


def _interactions(parameters: Any) -> Any:
    """A mask of the weights or couplings."""

    def where(parameters: Any) -> Any:
        model = learned(parameters)
        return model.couplings if isinstance(model, Pairwise) else model.weights

    nothing = jax.tree.map(lambda _: False, parameters)
    return eqx.tree_at(where, nothing, replace_fn=lambda part: jax.tree.map(lambda _: True, part))


def words(settings: Settings, coding: Coding) -> str:
    """The model in words."""
    n = coding.columns
    hidden = " and ".join(f"{units:,}" for units in settings.layers)
    kinds = {
        "rbm": f"restricted Boltzmann machine, {n:,} binary visible and {hidden} hidden units",
        "dbm": f"deep Boltzmann machine, {n:,} binary visible units and layers of {hidden} hidden units",
        "gaussian-rbm": f"Gaussian-Bernoulli restricted Boltzmann machine, {n:,} visible and {hidden} hidden units",
        "potts-rbm": f"restricted Boltzmann machine, {n:,} visible units of {coding.categories} categories and {hidden} hidden units",
        "ising": f"Ising model, {n:,} spins, all pairs coupled",
        "potts": f"Potts model, {n:,} sites of {coding.categories} states, all pairs coupled by tables",
    }
    return kinds[settings.model]
