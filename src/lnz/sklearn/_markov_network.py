"""`MarkovNetwork` and `Ising`: undirected graphical models of columns of categories and of two-valued columns."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from lnz._choose import choose
from lnz._core.energy import Energy
from lnz._core.estimate import Estimate
from lnz._core.numerics import check_whole_number
from lnz._models.factor_graph import FactorGraph
from lnz._models.pairwise import Ising as IsingEnergy
from lnz._partition import log_partition
from lnz.interop._pgmpy import to_pgmpy
from lnz.kernels._kernels import default_kernel, run_chains
from lnz.routes._exact.elimination import Elimination
from lnz.sklearn._categories import declared_categories, encoded, found_categories
from lnz.sklearn._pairwise_tables import MISSING, PairwiseTables, maximum_likelihood, uniform
from lnz.sklearn._structure import by_ebic, chow_liu, fit_pseudo_likelihood

_SWEEPS = 1000  # Gibbs sweeps of a sample, where exact ones are too expensive


class _Pairwise(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What `MarkovNetwork` and `Ising` share: the graph, its tables, and sums over missing entries."""

    categories_: list[np.ndarray]

    def __init__(
        self,
        edges: str | Sequence[tuple[Hashable, Hashable]] = "chow-liu",
        *,
        smoothing: float = 1.0,
        gamma: float = 0.5,
        max_iter: int = 500,
        tol: float = 1e-6,
        random_state: Any = None,
    ):
        self.edges = edges
        self.smoothing = smoothing
        self.gamma = gamma
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    @abc.abstractmethod
    def _begun(self, X: Any) -> np.ndarray:
        """The codes of training data (n, columns), with the categories kept."""

    @abc.abstractmethod
    def _codes(self, X: Any) -> np.ndarray:
        """The codes of other data."""

    @abc.abstractmethod
    def _kept(self, tables: PairwiseTables) -> Energy:
        """The model as an energy, after its parameters have been kept as attributes."""

    def fit(self, X: Any, y: Any = None) -> Any:
        """Learn the graph, where it is not given, and the tables from X (n, columns), in which entries may be missing; y is not used."""
        self._check_parameters()
        codes = self._begun(X)
        self.random_state_ = check_random_state(self.random_state)
        cardinalities = tuple(map(len, self.categories_))
        edges = self._graph(codes, cardinalities)
        start = uniform(cardinalities, edges)
        wide = start.too_wide()
        if wide is None:
            fitted, self.n_iter_, converged = maximum_likelihood(
                start, codes, smoothing=self.smoothing, max_iter=self.max_iter, tol=self.tol
            )
        elif (codes == MISSING).any():
            raise ValueError(
                f"X has missing entries, and sums over them are too expensive on this graph ({wide}). Drop those rows, or give fewer edges"
            )
        else:
            fitted, self.n_iter_, converged = fit_pseudo_likelihood(
                codes, cardinalities, edges, smoothing=self.smoothing, max_iter=self.max_iter, tol=self.tol
            )
        if not converged:
            warnings.warn(
                f"not converged after {self.n_iter_} iterations: raise max_iter, tol or smoothing",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.objective_ = "likelihood" if wide is None else "pseudo-likelihood"
        self.edges_ = edges
        self._tables = fitted
        self.energy_ = self._kept(fitted)
        self._log_z: Estimate | None = None
        self._exact_log_z: float | None = fitted.log_z() if wide is None else None
        return self

    @property
    def log_z_(self) -> Estimate:
        check_is_fitted(self, "edges_")
        if self._log_z is None:
            exact = self._exact_log_z is not None
            route = Elimination() if exact else choose(self.energy_).route
            self._log_z = log_partition(self.energy_, route=route, key=jax.random.key(0) if route.random else None)
            for message in self._log_z.warnings:
                warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self._log_z

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of the known entries of every row, in nats, shape (n,): missing ones are summed out. -inf where a row is impossible."""
        codes = self._read(X)
        complete = (codes != MISSING).all(axis=1)
        log_sums = np.empty(len(codes))
        log_sums[complete] = self._tables.log_weights(codes[complete])
        if not complete.all():
            rows, back = np.unique(codes[~complete], axis=0, return_inverse=True)
            log_sums[~complete] = self._tables.sums(rows).log_z[back.ravel()]
        return log_sums - self._tables_log_z()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`, in nats per row; y is not used."""
        return float(np.mean(self.score_samples(X)))

    def predict_proba(self, X: Any) -> np.ndarray:
        """P(entry = value | the known entries of its row), shape (n, values of all columns): the columns of `OneHotEncoder`, by `categories_`.

        Known entries have probability 1. Raises ValueError where sums over the missing entries are too expensive.
        """
        codes = self._read(X)
        rows, back = np.unique(codes, axis=0, return_inverse=True)
        found = self._tables.sums(rows, beliefs=True)
        return np.concatenate(found.beliefs[: rows.shape[1]], axis=0).T[back.ravel()]

    def transform(self, X: Any) -> np.ndarray:
        """X with every missing entry replaced by its most probable value given the known entries of its row."""
        codes = self._read(X)
        filled = codes.copy()
        open_rows = np.flatnonzero((codes == MISSING).any(axis=1))
        if len(open_rows):
            found = self._tables.sums(codes[open_rows], beliefs=True).beliefs[: codes.shape[1]]
            best = np.stack([belief.argmax(axis=0) for belief in found], axis=1)
            filled[open_rows] = np.where(codes[open_rows] == MISSING, best, codes[open_rows])
        return self._decoded(filled)

    def sample(self, n_samples: int = 1) -> np.ndarray:
        """Rows of the model (n_samples, columns): exact where the graph's width allows, otherwise chains of 1,000 Gibbs sweeps."""
        check_is_fitted(self, "edges_")
        check_whole_number("n_samples", n_samples)
        if self._exact_log_z is not None:
            rng = np.random.default_rng(self.random_state_.randint(np.iinfo(np.int32).max, size=4))
            return self._decoded(self._tables.solver().sample(rng, n_samples))
        key = jax.random.key(int(self.random_state_.randint(np.iinfo(np.int32).max)))
        graph = self._tables.graph()
        start = graph.space.uniform(jax.random.fold_in(key, 1), n_samples)
        return self._decoded(np.asarray(run_chains(graph, default_kernel(graph), start, key, _SWEEPS)).astype(int))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _check_parameters(self) -> None:
        check_whole_number("max_iter", self.max_iter)
        for name in ("smoothing", "gamma", "tol"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, but is {value}")
        if isinstance(self.edges, str) and self.edges not in ("chow-liu", "ebic"):
            raise ValueError(f"edges must be 'chow-liu', 'ebic' or a list of pairs of columns, but is {self.edges!r}")

    def _graph(self, codes: np.ndarray, cardinalities: tuple[int, ...]) -> np.ndarray:
        if isinstance(self.edges, str):
            if self.edges == "chow-liu":
                return chow_liu(codes, cardinalities, self.smoothing)
            return by_ebic(codes, cardinalities, self.gamma, max(self.smoothing, 1e-3))
        return _numbered(self.edges, list(getattr(self, "feature_names_in_", [])), codes.shape[1])

    def _read(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "edges_")
        return self._codes(X)

    def _tables_log_z(self) -> float:
        """log Z of the tables, which can differ from that of the energy by a constant."""
        if self._exact_log_z is not None:
            return self._exact_log_z
        return float(self.log_z_) + self._constant

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        columns = [categories[codes[:, i]] for i, categories in enumerate(self.categories_)]
        dtypes = {column.dtype for column in columns}
        if len(dtypes) > 1 and any(dtype.kind not in "iufb" for dtype in dtypes):
            columns = [column.astype(object) for column in columns]
        return np.stack(columns, axis=1)

    _constant = 0.0


class MarkovNetwork(_Pairwise):
    """A Markov network (undirected graphical model) of columns of categories: log p(x) = Σ_i φ_i(x_i) + Σ_(i,j) φ_ij(x_i, x_j) - log Z.

    The tables are those of maximum likelihood, by exact sums where the width of the graph allows, otherwise of pseudo-likelihood. X is an array or
    a data frame of strings or numbers; NaN, None and NA are missing entries, which are summed out (so they may be missing at random).

    Args:
        edges: "chow-liu" (the tree of most mutual information), "ebic" (pseudo-likelihood with an l1 penalty on groups, chosen by the extended
            Bayesian information criterion), or pairs of columns, by number or name.
        smoothing: rows of uniform values that are added in expectation; with pseudo-likelihood, the strength of an L2 penalty.
        gamma: γ of EBIC: 0 is BIC, larger values give fewer edges.
        max_iter, tol: of the optimiser and of expectation maximisation; tol is the largest error of a moment.
        random_state: of `sample`.

    Attributes:
        edges_: pairs of column numbers, shape (m, 2).
        categories_: of every column, its values, as in `OneHotEncoder`; a column of dtype "category" keeps its own.
        energy_: the model, an `lnz.FactorGraph` of these codes.
        log_z_: log Z in nats, an `lnz.Estimate`: exact where the width of the graph allows.
        objective_: "likelihood" or "pseudo-likelihood", which was maximised.
        n_iter_, n_features_in_, feature_names_in_: as elsewhere in scikit-learn.

    Raises:
        ValueError: from `fit`, for invalid parameters or data, before any work; from others for values that were not seen in `fit`, and for
            missing entries that are too expensive to sum out.

    Example:
        >>> import numpy as np, lnz
        >>> X = np.array([["rain", "wet"], ["rain", "wet"], ["sun", "dry"], ["sun", "dry"], ["sun", "wet"]], dtype=object)
        >>> network = lnz.sklearn.MarkovNetwork(smoothing=0).fit(X)
        >>> network.predict_proba(np.array([["sun", None]], dtype=object)).round(3)  # rain, sun, dry, wet
        array([[0.   , 1.   , 0.667, 0.333]])

    Source: Koller & Friedman 2009, "Probabilistic Graphical Models", chapters 19 and 20; `lnz.sklearn._structure` names those of the graphs.
    """

    def _begun(self, X: Any) -> np.ndarray:
        declared = declared_categories(X)
        x: Any = validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=2)
        names = self._names(x.shape[1])
        declared = declared or [None] * x.shape[1]
        self.categories_ = [
            found_categories(x[:, i], name) if own is None else own
            for i, (name, own) in enumerate(zip(names, declared, strict=True))
        ]
        return self._encoded(x)

    def _codes(self, X: Any) -> np.ndarray:
        x: Any = validate_data(self, X, dtype=None, ensure_all_finite="allow-nan", reset=False)
        return self._encoded(x)

    def _encoded(self, x: np.ndarray) -> np.ndarray:
        columns = zip(x.T, self.categories_, self._names(x.shape[1]), strict=True)
        return np.stack([encoded(column, categories, name) for column, categories, name in columns], axis=1)

    def _names(self, n: int) -> list[str]:
        return [f"column {name!r}" for name in getattr(self, "feature_names_in_", range(n))]

    def _kept(self, tables: PairwiseTables) -> FactorGraph:
        return tables.graph()

    def to_pgmpy(self) -> Any:
        """The fitted model as a `DiscreteMarkovNetwork` of pgmpy, with the names of the columns and their values.

        `MarkovNetwork(list(network.edges()))` goes the other way: it learns the tables on the graph of a network of pgmpy.

        Raises ModuleNotFoundError where pgmpy is not installed.
        """
        check_is_fitted(self, "edges_")
        names = list(getattr(self, "feature_names_in_", range(len(self.categories_))))
        return to_pgmpy(
            self._tables.graph(), variables=names, states=[categories.tolist() for categories in self.categories_]
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        return tags


class Ising(_Pairwise):
    """An Ising model of two-valued columns: log p(s) = Σ_(i<j) J_ij s_i s_j + Σ_i h_i s_i - log Z, with s_i = ±1.

    As `MarkovNetwork`, for spins: with "ebic" the penalty is the l1 norm of the couplings. NaN is a missing entry.

    Args:
        edges: "chow-liu", "ebic", or pairs of columns, by number or name.
        binarize: entries above it are +1, the others -1.
        smoothing, gamma, max_iter, tol, random_state: see `MarkovNetwork`.

    Attributes:
        couplings_: J, symmetric with a zero diagonal, shape (columns, columns).
        fields_: h, shape (columns,).
        energy_: the model, an `lnz.Ising`.
        edges_, categories_, log_z_, objective_, n_iter_, n_features_in_, feature_names_in_: see `MarkovNetwork`; the categories are -1 and 1.

    Raises:
        ValueError: as `MarkovNetwork`.

    Example:
        >>> import numpy as np, lnz
        >>> spins = np.array([[1, 1, -1], [1, 1, 1], [-1, -1, 1], [-1, -1, -1]])
        >>> ising = lnz.sklearn.Ising(edges=[(0, 1)]).fit(spins)
        >>> float(ising.couplings_[0, 1].round(3)), round(float(ising.log_z_), 3)  # ½ log(2.25 / 0.25), log(8 cosh J)
        (1.099, 2.59)

    Source: Ravikumar, Wainwright & Lafferty 2010, "High-dimensional Ising model selection using l1-regularized logistic regression".
    """

    def __init__(
        self,
        edges: str | Sequence[tuple[Hashable, Hashable]] = "chow-liu",
        *,
        binarize: float = 0.0,
        smoothing: float = 1.0,
        gamma: float = 0.5,
        max_iter: int = 500,
        tol: float = 1e-6,
        random_state: Any = None,
    ):
        super().__init__(edges, smoothing=smoothing, gamma=gamma, max_iter=max_iter, tol=tol, random_state=random_state)
        self.binarize = binarize

    def _begun(self, X: Any) -> np.ndarray:
        x: Any = validate_data(
            self, X, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan", ensure_min_samples=2
        )
        self.categories_ = [np.array([-1, 1], x.dtype)] * x.shape[1]
        return self._signs(x)

    def _codes(self, X: Any) -> np.ndarray:
        x: Any = validate_data(self, X, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan", reset=False)
        return self._signs(x)

    def _signs(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), MISSING, x > self.binarize).astype(int)

    def _kept(self, tables: PairwiseTables) -> IsingEnergy:
        """E = -Σ J s s - Σ h s, whose log Z is that of the tables less the mean of each."""
        n = len(tables.cardinalities)
        self.fields_, self.couplings_ = np.zeros(n), np.zeros((n, n))
        signs, self._constant = np.array([-1.0, 1.0]), 0.0
        for scope, table in zip(tables.scopes, tables.tables, strict=True):
            self._constant += float(table.mean())
            for axis, i in enumerate(scope):
                self.fields_[i] += float(np.moveaxis(table, axis, -1).reshape(-1, 2).mean(axis=0) @ signs) / 2
            if len(scope) == 2:
                self.couplings_[scope] = self.couplings_[scope[::-1]] = signs @ table @ signs / 4
        strengths = self.couplings_[tuple(self.edges_.T)]
        return IsingEnergy.sparse(self.edges_, strengths, self.fields_, n=n)


def _numbered(edges: Any, names: list[Any], n: int) -> np.ndarray:
    """Pairs of columns by number, (m, 2). ValueError for a pair that is not one of different columns of X, or is there twice."""
    found: list[tuple[int, int]] = []
    for edge in edges:
        if not isinstance(edge, tuple | list | np.ndarray) or len(edge) != 2:
            raise ValueError(f"an edge must be a pair of columns, but is {edge!r}")
        ends = sorted(names.index(end) if end in names else end for end in edge)
        if not all(isinstance(end, int | np.integer) and 0 <= end < n for end in ends) or ends[0] == ends[1]:
            raise ValueError(
                f"the edge {tuple(edge)!r} must name two different columns of X, by name or by a number from 0 to {n - 1}"
            )
        found.append((int(ends[0]), int(ends[1])))
    if len(set(found)) < len(found):
        raise ValueError("an edge is listed twice: give each pair once")
    return np.array(found, int).reshape(-1, 2)
