"""`RBM`: restricted Boltzmann machines with scikit-learn's interface, and their true likelihood."""

from __future__ import annotations

import math
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lnz._core.estimate import Estimate
from lnz._core.numerics import check_whole_number
from lnz._models.rbm import RBM as Machine
from lnz._models.rbm import GaussianRBM
from lnz._partition import log_partition
from lnz.learning._fit import Record, fit
from lnz.learning._likelihood import LogLikelihood, free_energies, log_likelihood
from lnz.learning._loop import Diverged
from lnz.learning._monitor import Monitor
from lnz.learning._negative import PersistentChains
from lnz.learning._trainer import Trainer, TrainState
from lnz.sklearn._padded_rbm import ascent, learned_part, machine_inside, padded_machine, padded_states
from lnz.sklearn._visible_units import KINDS, VisibleUnits, units_of

_SCALE = 0.01  # standard deviation of the initial weights, as in BernoulliRBM
_BLOCK = 64  # rows of one call of a compiled program


class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A restricted Boltzmann machine: `sklearn.neural_network.BernoulliRBM` with a true log-likelihood and other visible units.

    E(v, h) = -b · φ(v) - c · h - φ(v)ᵀ W h with φ(v) = v (Bernoulli) or onehot(v) (Potts); for Gaussian units
    E(v, h) = Σ_i (v_i - b_i)² / (2 σ_i²) - c · h - Σ_ij (v_i / σ_i²) W_ij h_j. It is learned by stochastic maximum likelihood (persistent chains).

    Args:
        n_components: the number of binary hidden units.
        learning_rate: of plain gradient ascent. Gaussian units need a smaller one, such as 0.01.
        batch_size: examples per update, and the number of chains.
        n_iter: passes over the data.
        verbose: whether to print a line per pass.
        random_state: seed or `RandomState`.
        visible: "bernoulli"; "gaussian" for real columns, which are standardised for learning (the model is one of X itself); or "potts" for
            columns of integers 0 … k-1.
        binarize: entries above it are on (Bernoulli units alone); with None X must hold 0 and 1.
        sweeps: Gibbs sweeps of the chains per update: more where an alarm says that they lag behind.
        monitor: whether `lnz.learning.Monitor` watches long runs. Its alarms are `ConvergenceWarning`s.

    Attributes:
        components_: Wᵀ, shape (n_components, features); Potts units have k features each.
        intercept_hidden_: c, shape (n_components,).
        intercept_visible_: b, shape (features,).
        scale_: σ of Gaussian units, shape (n_features_in_,).
        h_samples_: hidden states of the chains, shape (batch_size, n_components).
        energy_: the model, an `lnz.RBM` or `lnz.GaussianRBM`.
        log_z_: log Z in nats, an `lnz.Estimate` with its interval: exact where the smaller layer allows it. Computed when first asked for.
        n_features_in_, feature_names_in_: of X.

    Raises:
        ValueError: from `fit`, for invalid parameters or data, before any work.
        lnz.learning.Diverged: where learning diverges: lower the learning rate.

    Example:
        >>> import numpy as np, lnz
        >>> X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 0], [1, 1, 0]])
        >>> rbm = lnz.sklearn.RBM(n_components=2, n_iter=20, random_state=0).fit(X)
        >>> rbm.transform(X).shape, rbm.log_z_.guarantee
        ((4, 2), 'exact')

    Source: Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient". As in BernoulliRBM, but for the
    initial visible bias, which is that of independent units fitted to the data.
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        verbose: int = 0,
        random_state: Any = None,
        visible: str = "bernoulli",
        binarize: float | None = 0.5,
        sweeps: int = 1,
        monitor: bool = True,
    ):
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.verbose = verbose
        self.random_state = random_state
        self.visible = visible
        self.binarize = binarize
        self.sweeps = sweeps
        self.monitor = monitor

    def fit(self, X: Any, y: Any = None) -> RBM:
        """Learn from data X (n, features), dense or sparse; y is not used. Returns the estimator."""
        x = self._begun(X)
        inside = self._start(x)
        batch = min(self.batch_size, len(x))
        monitor = Monitor() if self.monitor else None
        updates = self.n_iter * math.ceil(len(x) / batch)
        phase = PersistentChains(self.sweeps, self.batch_size)
        # A run too short for a report of the monitor is cheaper than a program of its own.
        short = updates < Monitor().every(inside, phase, batch)
        machine = padded_machine(inside, self._units) if short else inside
        fitted = fit(
            machine,
            padded_states(self._units.states(x), machine),
            negative_phase=phase,
            optimizer=ascent(self.learning_rate, learned_part(machine, inside)),
            epochs=self.n_iter,
            batch_size=self.batch_size,
            monitor=None if short else monitor,
            key=self._new_key(),
            on_record=self._print if self.verbose else None,
        )
        for alarm in (alarm for report in fitted.reports for alarm in report.alarms):
            warnings.warn(str(alarm), ConvergenceWarning, stacklevel=2)
        self._learned(fitted.state, inside)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RBM:
        """One update by all of X (n, features), continuing from earlier calls of `fit` or `partial_fit`. Returns the estimator."""
        if not hasattr(self, "components_"):
            x = self._begun(X)
            inside = self._start(x)
            machine = padded_machine(inside, self._units)
            trainer = self._trainer(learned_part(machine, inside))
            state = trainer.init(machine, self._new_key(), batch_size=self.batch_size)
        else:
            self._check_parameters()
            x = self._dense(validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False))
            inside, state = self._inside, self._state
            trainer = self._trainer(learned_part(state.energy, inside))
        rows = max(_BLOCK, 1 << (len(x) - 1).bit_length())
        weights = np.arange(rows) < len(x)
        states = np.pad(padded_states(self._units.states(x), state.energy), ((0, rows - len(x)), (0, 0)))
        state, figures = trainer.step(state, states, weights.astype(np.float32))
        if not np.isfinite(float(figures["gradient_norm"])):
            raise Diverged("learning diverged: the gradient is NaN or infinite. Lower the learning rate, or scale X")
        self._learned(state, inside)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """P(h_j = 1 | v) of every row, shape (n, n_components), in the dtype of X."""
        from scipy.special import expit

        x = self._read(X)
        phi = self._units.features(x)
        if self.visible == "gaussian":
            phi = phi / np.square(self.scale_).astype(x.dtype)
        return expit(phi @ self.components_.T.astype(x.dtype) + self.intercept_hidden_.astype(x.dtype))

    def gibbs(self, v: Any) -> np.ndarray:
        """One Gibbs step from visible states (n, features): h given v, then v given h, in the dtype of v (booleans for Bernoulli units)."""
        x = self._read(v)
        rows = max(_BLOCK, 1 << (len(x) - 1).bit_length())
        states = np.pad(x if self.visible == "gaussian" else self._units.states(x), ((0, rows - len(x)), (0, 0)))
        found = np.asarray(_gibbs(self.energy_, self._new_key(), states))[: len(x)]
        return found if self.visible == "bernoulli" else found.astype(x.dtype)

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(v) of every row in nats, shape (n,): -F(v) - log Z, the true log-likelihood, with the error of `log_z_`."""
        x = self._read(X)
        return -free_energies(self.energy_, self._states_of_x(x), block=_BLOCK) - float(self.log_z_)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`, in nats per row; y is not used."""
        return float(np.mean(self.score_samples(X)))

    def log_likelihood(self, X: Any) -> LogLikelihood:
        """The mean log-likelihood of X, with its interval from the error of log Z: see `lnz.log_likelihood`."""
        return log_likelihood(self.energy_, self._states_of_x(self._read(X)), log_z=self.log_z_)

    @property
    def log_z_(self) -> Estimate:
        check_is_fitted(self, "components_")
        if self._log_z is None:
            self._log_z = log_partition(self.energy_, key=self._log_z_key)
            for message in self._log_z.warnings:
                warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self._log_z

    @property
    def _n_features_out(self) -> int:
        return self.components_.shape[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.categorical = tags.input_tags.positive_only = self.visible == "potts"
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_parameters(self) -> None:
        for name in ("n_components", "batch_size", "n_iter", "sweeps"):
            check_whole_number(name, getattr(self, name))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a number above 0, but is {self.learning_rate}")
        if self.visible not in KINDS:
            raise ValueError(f"visible must be one of {', '.join(KINDS)}, but is {self.visible!r}")

    def _begun(self, X: Any) -> np.ndarray:
        self._check_parameters()
        x = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), ensure_min_samples=2)
        self.random_state_ = check_random_state(self.random_state)
        return self._dense(x)

    def _start(self, x: np.ndarray) -> Machine | GaussianRBM:
        """The model of the states before learning; `_units` become those of these data."""
        self._units: VisibleUnits = units_of(self.visible, x, self.binarize)
        shape = (x.shape[1] * self._units.per_unit(), self.n_components)
        return self._units.start(x, self.random_state_.normal(0, _SCALE, shape).astype(np.float32))

    def _learned(self, state: TrainState, inside: Any) -> None:
        self._state, self._inside = state, machine_inside(state.energy, inside)
        self.energy_ = self._units.of_x(self._inside)
        self.components_ = np.asarray(self.energy_.weights).T
        self.intercept_hidden_ = np.asarray(self.energy_.hidden_bias)
        self.intercept_visible_ = np.asarray(self.energy_.visible_bias)
        if isinstance(self.energy_, GaussianRBM):
            self.scale_ = np.exp(np.asarray(self.energy_.log_scale))
        self.h_samples_ = np.asarray(state.negative.hidden[:, : self.n_components])
        self._log_z: Estimate | None = None
        self._log_z_key = self._new_key()

    def _trainer(self, learned: Any) -> Trainer:
        return Trainer(ascent(self.learning_rate, learned), PersistentChains(self.sweeps, self.batch_size))

    def _read(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "components_")
        return self._dense(validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False))

    def _states_of_x(self, x: np.ndarray) -> np.ndarray:
        return x if self.visible == "gaussian" else self._units.states(x)

    def _new_key(self) -> PRNGKeyArray:
        return jax.random.key(int(self.random_state_.randint(np.iinfo(np.int32).max)))

    def _print(self, record: Record) -> None:
        print(
            f"[RBM] iteration {record.epoch:g}, mean free energy of the data {record.figures['energy']:.4f} nats, {record.seconds:.2f}s"
        )

    @staticmethod
    def _dense(x: Any) -> np.ndarray:
        return x.toarray() if hasattr(x, "toarray") else x


@eqx.filter_jit
def _gibbs(energy: Any, key: PRNGKeyArray, states: Any) -> Any:
    up, down = jax.random.split(key)
    return energy.sample_visible(down, energy.sample_hidden(up, states))
