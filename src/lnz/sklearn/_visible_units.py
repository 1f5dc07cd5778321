"""The visible units of `lnz.sklearn.RBM`: how columns of X become states, and a model of states one of X."""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.validation import check_non_negative

from lnz._core.spaces import Binary, Categorical, Space
from lnz._models.independent import Independent
from lnz._models.rbm import RBM, GaussianRBM

KINDS = ("bernoulli", "gaussian", "potts")
_FEWEST, _MOST = 16, 64  # units after padding: a power of two between these; more are left as they are


def padded_count(units: int) -> int:
    """The number of units after padding, so that small models of many sizes share few compiled programs."""
    return units if units > _MOST else max(_FEWEST, 1 << (units - 1).bit_length())


class VisibleUnits(abc.ABC):
    """The visible units of a machine, whose padding are free units: without bias and weights they influence nothing."""

    @abc.abstractmethod
    def states(self, x: np.ndarray) -> np.ndarray:
        """The observed states of rows of X."""

    @abc.abstractmethod
    def features(self, x: np.ndarray) -> np.ndarray:
        """What the weights multiply, shape (n, features), in the dtype of X."""

    @abc.abstractmethod
    def start(self, x: np.ndarray, weights: np.ndarray) -> RBM | GaussianRBM:
        """The model before learning: these weights (features, hidden), and the biases of independent units fitted to X."""

    @abc.abstractmethod
    def of_x(self, energy: Any) -> RBM | GaussianRBM:
        """A model of the states as one of X."""

    def per_unit(self) -> int:
        """The number of features of a unit."""
        return 1


@dataclasses.dataclass(frozen=True)
class BernoulliUnits(VisibleUnits):
    """Bits: the entries of X above the threshold; without one X holds 0 and 1."""

    threshold: float | None

    def states(self, x: np.ndarray) -> np.ndarray:
        if self.threshold is None:
            Binary(x.shape[1:]).validate(x, batch=True)
            return x.astype(np.float32)
        if 0 <= self.threshold <= 1 and x.size and (x.min() < 0 or x.max() > 1):
            warnings.warn(
                f"X has values from {x.min():.3g} to {x.max():.3g}, outside [0, 1], and those above binarize={self.threshold:g} are read as on. "
                "Scale X, set binarize, or use visible='gaussian'",
                DataConversionWarning,
                stacklevel=4,
            )
        return (x > self.threshold).astype(np.float32)

    def features(self, x: np.ndarray) -> np.ndarray:
        return self.states(x).astype(x.dtype)

    def start(self, x: np.ndarray, weights: np.ndarray) -> RBM:
        return _discrete(Binary(x.shape[1]), self.states(x), weights)

    def of_x(self, energy: RBM) -> RBM:
        return energy


@dataclasses.dataclass(frozen=True)
class PottsUnits(VisibleUnits):
    """Categories 0 … k-1."""

    categories: int

    def states(self, x: np.ndarray) -> np.ndarray:
        check_non_negative(x, "RBM, whose Potts units have the values 0 … k-1")
        Categorical(x.shape[1:], self.categories).validate(x, batch=True)
        return x.astype(np.int32)

    def features(self, x: np.ndarray) -> np.ndarray:
        return np.eye(self.categories, dtype=x.dtype)[self.states(x)].reshape(len(x), -1)

    def start(self, x: np.ndarray, weights: np.ndarray) -> RBM:
        return _discrete(Categorical(x.shape[1], self.categories), self.states(x), weights)

    def of_x(self, energy: RBM) -> RBM:
        return energy

    def per_unit(self) -> int:
        return self.categories


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianUnits(VisibleUnits):
    """Real values, standardised for learning: z = (x - mean) / scale."""

    mean: np.ndarray
    scale: np.ndarray

    def states(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.mean) / self.scale).astype(np.float32)

    def features(self, x: np.ndarray) -> np.ndarray:
        return x

    def start(self, x: np.ndarray, weights: np.ndarray) -> GaussianRBM:
        visible = np.zeros(len(weights), np.float32)
        return gaussian_rbm(weights, visible, np.zeros(weights.shape[1], np.float32), visible)

    def of_x(self, energy: GaussianRBM) -> GaussianRBM:
        """With x = mean + scale z: b = mean + scale b', σ = scale σ', W = scale W' and c = c' - Σ_i mean_i W'_i / (scale_i σ'_i²)."""
        w, b, c, log_scale = _in_double(energy)
        pull = (self.mean / self.scale * np.exp(-2 * log_scale)) @ w
        return gaussian_rbm(
            self.scale[:, None] * w, self.mean + self.scale * b, c - pull, log_scale + np.log(self.scale)
        )


def units_of(kind: str, x: np.ndarray, threshold: float | None) -> VisibleUnits:
    """The units of this kind for these data."""
    if kind == "bernoulli":
        return BernoulliUnits(threshold)
    if kind == "potts":
        return PottsUnits(max(2, math.floor(x.max()) + 1))
    spread = x.std(axis=0, dtype=np.float64)
    mean = x.mean(axis=0, dtype=np.float64)
    return GaussianUnits(mean, np.where(spread > 1e-6 * np.maximum(1, np.abs(mean)), spread, 1.0))


def gaussian_rbm(w: np.ndarray, b: np.ndarray, c: np.ndarray, log_scale: np.ndarray) -> GaussianRBM:
    """The Gaussian machine with these parameters, float32."""
    energy = eqx.filter_eval_shape(lambda key: GaussianRBM(*w.shape, key=key), jax.random.key(0))
    arrays = [jax.device_put(np.asarray(array, np.float32)) for array in (w, b, c, log_scale)]
    return eqx.tree_at(lambda e: (e.weights, e.visible_bias, e.hidden_bias, e.log_scale), energy, arrays)


def _in_double(energy: GaussianRBM) -> tuple[np.ndarray, ...]:
    leaves = (energy.weights, energy.visible_bias, energy.hidden_bias, energy.log_scale)
    return tuple(np.asarray(leaf, np.float64) for leaf in leaves)


def _discrete(space: Space, states: np.ndarray, weights: np.ndarray) -> RBM:
    bias = np.asarray(Independent.from_data(states, space).potentials, np.float32).reshape(-1)
    return RBM.from_parameters(weights, bias, np.zeros(weights.shape[1], np.float32), visible=space)
