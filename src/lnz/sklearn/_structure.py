"""Which variables interact: trees of most mutual information, and pseudo-likelihood with a group penalty, chosen by EBIC. In NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lnz.sklearn._pairwise_tables import MISSING, PairwiseTables, uniform

_PENALTIES = 20  # of a path, from the one above which there is no edge down to a hundredth of it
_STEPS = 1000  # of proximal gradient for one penalty
_FLAT = 1e-5  # largest change of a parameter by a step, at which it ends
_WORSE = 4  # supports without an improvement, after which denser ones are not tried


class OneHot(NamedTuple):
    """Rows as indicators of values, zeros where an entry is missing.

    Attributes:
        rows: (n, values of all variables).
        starts: the first column of every variable, and the number of columns.
    """

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, cardinalities: tuple[int, ...]) -> OneHot:
        starts = np.cumsum([0, *cardinalities])
        rows = np.zeros((len(codes), starts[-1]))
        at = np.nonzero(codes != MISSING)
        rows[at[0], starts[at[1]] + codes[at]] = 1
        return cls(rows, starts)

    def part(self, i: int) -> slice:
        return slice(self.starts[i], self.starts[i + 1])

    def owner(self) -> np.ndarray:
        """The variable of every column."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


def chow_liu(codes: np.ndarray, cardinalities: tuple[int, ...], smoothing: float) -> np.ndarray:
    """The edges (variables - 1, 2) of the tree with the most mutual information, from rows in which both entries are known.

    Source: Chow & Liu 1968, "Approximating discrete probability distributions with dependence trees".
    """
    from scipy.sparse.csgraph import minimum_spanning_tree

    data = OneHot.of(codes, cardinalities)
    counts, n = data.rows.T @ data.rows, len(cardinalities)
    information = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            block = counts[data.part(i), data.part(j)]
            share = (block + smoothing / block.size) / max(block.sum() + smoothing, 1e-300)
            product = share.sum(axis=1, keepdims=True) * share.sum(axis=0, keepdims=True)
            there = share > 0
            information[i, j] = float((share[there] * np.log(share[there] / product[there])).sum())
    tree = (
        minimum_spanning_tree(-1 - np.triu(information, 1) - np.tril(np.full((n, n), -1.0))).tocoo() if n > 1 else None
    )
    return (
        np.zeros((0, 2), int) if tree is None else np.sort(np.stack([tree.row, tree.col], axis=1).astype(int), axis=1)
    )


class PseudoLikelihood:
    """-Σ_i log p(x_i | the others) per row in nats, of a symmetric matrix of tables J (zero blocks on the diagonal) and fields h."""

    def __init__(self, data: OneHot):
        self.data = data
        owner = data.owner()
        self.apart = owner[:, None] != owner[None]

    def __call__(self, j: np.ndarray, h: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """The value, its gradients with respect to J (both of the entries that are one parameter) and h, and -log p(x_i | …) of every variable."""
        rows, starts = self.data.rows, self.data.starts
        logits = rows @ j + h
        top = np.maximum.reduceat(logits, starts[:-1], axis=1)
        owner = self.data.owner()
        weights = np.exp(logits - top[:, owner])
        totals = np.add.reduceat(weights, starts[:-1], axis=1)
        each = (np.log(totals) + top - np.add.reduceat(rows * logits, starts[:-1], axis=1)).sum(axis=0)
        error = (weights / totals[:, owner] - rows) / len(rows)
        slope = rows.T @ error
        return float(each.sum()) / len(rows), np.where(self.apart, slope + slope.T, 0), error.sum(axis=0), each


def fit_pseudo_likelihood(
    codes: np.ndarray, cardinalities: tuple[int, ...], edges: np.ndarray, *, smoothing: float, max_iter: int, tol: float
) -> tuple[PairwiseTables, int, bool]:
    """The tables on these edges of most pseudo-likelihood, with the penalty smoothing/(2n) ‖θ‖²; iterations, and whether they converged.

    Source: Besag 1975, "Statistical analysis of non-lattice data".
    """
    from scipy.optimize import minimize

    loss = PseudoLikelihood(OneHot.of(codes, cardinalities))
    start, starts = uniform(cardinalities, edges), loss.data.starts.tolist()
    strength = smoothing / len(codes)
    places = [
        np.ravel_multi_index(np.ix_(*(np.arange(starts[i], starts[i + 1]) for i in edge)), loss.apart.shape).ravel()
        for edge in edges.tolist()
    ]
    place = np.concatenate([np.zeros(0, int), *places])

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        h, j = values[: starts[-1]], np.zeros(loss.apart.shape)
        j.flat[place] = values[starts[-1] :]
        value, slope_j, slope_h, _ = loss(j + j.T, h)
        slope = np.concatenate([slope_h, slope_j.flat[place]])
        return value + strength / 2 * float(values @ values), slope + strength * values

    options: Any = {"maxiter": max_iter, "gtol": tol, "ftol": 0.0, "maxfun": 10 * max_iter}
    found = minimize(objective, start.values, jac=True, method="L-BFGS-B", options=options)
    fitted = PairwiseTables(start.cardinalities, edges, found.x)
    return fitted, max(1, int(found.nit)), bool(np.max(np.abs(found.jac)) <= 10 * tol)


def by_ebic(codes: np.ndarray, cardinalities: tuple[int, ...], gamma: float, smoothing: float) -> np.ndarray:
    """The edges (m, 2) of least EBIC among the supports along a path of group penalties on the tables of pairs.

    The penalty of a pair is λ sqrt(entries) ‖table‖, an absolute value for two spins. Each support is refitted without it. The criterion is the sum
    over the variables of -2 log p(x_i | …) + d_i (log n + 2 γ log(variables - 1)), with d_i = Σ_j (k_i - 1)(k_j - 1) over the neighbours.

    Source: Ravikumar, Wainwright & Lafferty 2010, "High-dimensional Ising model selection using l1-regularized logistic regression"; Barber & Drton
    2015, "High-dimensional Ising model selection with Bayesian information criteria".
    """
    codes = codes[(codes != MISSING).all(axis=1)]
    if len(codes) < 2:
        raise ValueError(
            "edges='ebic' needs at least two rows without missing entries: use 'chow-liu', or give the edges"
        )
    data, n = OneHot.of(codes, cardinalities), len(cardinalities)
    pairs = np.stack(np.triu_indices(n, 1), axis=1)
    loss, best, least = PseudoLikelihood(data), np.zeros((0, 2), int), np.inf
    seen: set[bytes] = set()
    worse = 0
    for support in _supports(loss, cardinalities):
        if support.tobytes() in seen:
            continue
        seen.add(support.tobytes())
        edges = pairs[support]
        fitted, _, _ = fit_pseudo_likelihood(codes, cardinalities, edges, smoothing=smoothing, max_iter=200, tol=1e-6)
        free = 2 * sum((cardinalities[i] - 1) * (cardinalities[j] - 1) for i, j in edges.tolist())
        price = np.log(len(codes)) + 2 * gamma * np.log(max(n - 1, 1))
        criterion = 2 * float(loss(*_matrix(fitted, data))[3].sum()) + free * price
        worse = 0 if criterion < least else worse + 1
        if criterion < least:
            best, least = edges, criterion
        if worse == _WORSE:
            break
    return best


def _matrix(model: PairwiseTables, data: OneHot) -> tuple[np.ndarray, np.ndarray]:
    """J and h of tables."""
    j, n = np.zeros((data.starts[-1],) * 2), len(model.cardinalities)
    for (a, b), table in zip(model.edges.tolist(), model.tables[n:], strict=True):
        j[data.part(a), data.part(b)] = table
    return j + j.T, model.values[: data.starts[-1]]


def _supports(loss: PseudoLikelihood, cardinalities: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Which pairs have a table that is not zero, for every penalty of a path: booleans in the order of `np.triu_indices`."""
    data, n = loss.data, len(cardinalities)
    upper = np.triu_indices(n, 1)
    weight = np.sqrt(np.outer(cardinalities, cardinalities))
    owner = data.owner()
    shares = (data.rows.sum(axis=0) + 1 / np.repeat(cardinalities, cardinalities)) / (len(data.rows) + 1)
    j, h = np.zeros(loss.apart.shape), np.log(shares)
    norms = _norms(loss(j, h)[1], data.starts) / weight
    top = float(norms[upper].max(initial=0))
    if top <= 0:
        yield np.zeros(len(upper[0]), bool)
        return
    # The curvature is at most half the largest eigenvalue of the second moments (of indicators and a 1), in each of a parameter's two places.
    step = 1 / (np.linalg.eigvalsh(data.rows.T @ data.rows / len(data.rows))[-1] + 1)
    for penalty in np.geomspace(top, top / 100, _PENALTIES):
        j, h = _descended(loss, j, h, penalty * weight[owner][:, owner], step)
        yield _norms(j, data.starts)[upper] > 0


def _descended(
    loss: PseudoLikelihood, j: np.ndarray, h: np.ndarray, penalty: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
    """The minimum with a penalty on every table, by accelerated proximal gradient (FISTA)."""
    at_j, at_h, momentum = j, h, 1.0
    owner = loss.data.owner()
    for _ in range(_STEPS):
        _, slope_j, slope_h, _ = loss(at_j, at_h)
        moved, new_h = at_j - step * slope_j, at_h - step * slope_h
        norms = np.maximum(_norms(moved, loss.data.starts)[owner][:, owner], 1e-300)
        new_j = moved * np.maximum(0, 1 - step * penalty / norms)
        change = max(float(np.abs(new_j - j).max()), float(np.abs(new_h - h).max()))
        after = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        share = (momentum - 1) / after
        at_j, at_h = new_j + share * (new_j - j), new_h + share * (new_h - h)
        j, h, momentum = new_j, new_h, after
        if change < _FLAT:
            break
    return j, h


def _norms(j: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The Frobenius norm of every block (variables, variables)."""
    squares = np.add.reduceat(np.add.reduceat(np.square(j), starts[:-1], axis=0), starts[:-1], axis=1)
    return np.sqrt(squares)
