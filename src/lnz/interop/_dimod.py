"""Binary quadratic models of dimod, read as energies and written: spins or bits, linear and quadratic biases, an offset."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lnz._core.packages import package
from lnz.io._data import DataError

if TYPE_CHECKING:
    from lnz._models.factor_graph import FactorGraph
    from lnz._models.pairwise import Ising


class BQM(NamedTuple):
    """A binary quadratic model as an energy without its offset, and the offset as a constant.

    log Z of the model is log Z of `energy` plus `constant`. States of the energy are the model's own: ±1 where it is an
    `Ising`, and 0 or 1 where it is a `FactorGraph`.

    Attributes:
        energy: E(x) = β (E_bqm(x) - offset), an `Ising` for SPIN and a `FactorGraph` for BINARY.
        variables: the model's name of every entry of a state.
        constant: -β offset, in nats.
    """

    energy: Ising | FactorGraph
    variables: list[Hashable]
    constant: float


def from_bqm(bqm: Any, *, beta: float = 1.0) -> BQM:
    """A binary quadratic model of dimod at an inverse temperature: p(x) ∝ exp(-β E_bqm(x)).

    E_bqm(x) = Σ_i a_i x_i + Σ_{i<j} b_ij x_i x_j + offset, with x = ±1 (SPIN) or 0, 1 (BINARY).

    Args:
        bqm: a `dimod.BinaryQuadraticModel`.
        beta: β, a finite number.

    Raises:
        DataError: for another kind of model, one without variables, or biases that are not finite.

    Example:
        >>> import dimod, lnz  # doctest: +SKIP
        >>> bqm = dimod.BinaryQuadraticModel({}, {"ab": -1.0}, 3.0, "SPIN")  # doctest: +SKIP
        >>> model = lnz.interop.from_bqm(bqm, beta=0.5)  # doctest: +SKIP
        >>> log_z = lnz.log_partition(model.energy).value + model.constant  # doctest: +SKIP
        >>> print(model.variables, round(float(log_z), 5))  # log(2 e^(0.5 - 1.5) + 2 e^(-0.5 - 1.5))  # doctest: +SKIP
        ['a', 'b'] 0.00641
    """
    kind = getattr(getattr(bqm, "vartype", None), "name", None)
    if kind not in ("SPIN", "BINARY") or not hasattr(bqm, "to_numpy_vectors"):
        raise DataError(f"from_bqm needs a dimod.BinaryQuadraticModel, but got {type(bqm).__name__}. Convert it first")
    if not math.isfinite(beta):
        raise DataError(f"beta is {beta}. Give a finite inverse temperature")
    import lnz

    vectors, variables = bqm.to_numpy_vectors(), list(bqm.variables)
    linear, pairs = (np.asarray(x, float) for x in (vectors.linear_biases, vectors.quadratic.biases))
    edges = np.stack([vectors.quadratic.row_indices, vectors.quadratic.col_indices], axis=1).astype(int)
    offset, n = float(vectors.offset), len(variables)
    if not n:
        raise DataError("the binary quadratic model has no variables. Its log Z is minus beta times its offset")
    for name, biases, of in (("linear", linear, range(n)), ("quadratic", pairs, edges)):
        bad = np.flatnonzero(~np.isfinite(biases))
        if len(bad):
            who = ", ".join(repr(variables[i]) for i in np.atleast_1d(of[bad[0]]))
            raise DataError(f"the {name} bias of {who} is {biases[bad[0]]}. Biases must be finite")
    if not math.isfinite(offset):
        raise DataError(f"the offset is {offset}. It must be finite")
    h, j = -beta * linear, -beta * pairs
    if kind == "SPIN":
        return BQM(lnz.Ising.sparse(edges, j, h, n=n), variables, -beta * offset)
    tables = [np.array([0, x]) for x in h] + [np.array([[0, 0], [0, x]]) for x in j]
    scopes = [(i,) for i in range(n)] + [tuple(edge) for edge in edges.tolist()]
    return BQM(lnz.FactorGraph([2] * n, scopes, tables), variables, -beta * offset)


def to_bqm(
    energy: Ising | FactorGraph,
    *,
    variables: Sequence[Hashable] | None = None,
    beta: float = 1.0,
    constant: float = 0.0,
) -> Any:
    """A `dimod.BinaryQuadraticModel` with E(x) - constant = β E_bqm(x): SPIN from an `Ising`, BINARY from a factor graph of pairs.

    Args:
        energy: an `Ising`, or a `FactorGraph` of variables of two values with factors of at most two.
        variables: a name for every variable; by default its number.
        beta: β, finite and not 0.
        constant: the constant to add to log Z, as returned by `from_bqm`: it becomes part of the offset.

    Raises:
        ModuleNotFoundError: where dimod is not installed.
        ValueError: for another energy, larger factors or variables, impossible configurations, or names that do not match.
    """
    dimod = package("dimod", "to_bqm")
    import lnz

    if not math.isfinite(beta) or beta == 0:
        raise ValueError(f"beta is {beta}. Give a finite inverse temperature that is not 0")
    if isinstance(energy, lnz.Ising):
        edges, strength = energy.couplings.pairs()
        kind, linear, pairs = "SPIN", np.asarray(energy.fields, float).ravel(), np.asarray(strength, float)
    elif isinstance(energy, lnz.FactorGraph):
        kind, (linear, edges, pairs, rest) = "BINARY", _polynomial(energy)
        constant = constant + rest
    else:
        raise ValueError(f"to_bqm needs an lnz.Ising or an lnz.FactorGraph, but got {type(energy).__name__}")
    names = list(range(len(linear)) if variables is None else variables)
    if len(names) != len(linear) or len(set(names)) != len(names):
        raise ValueError(f"{len(linear)} variables need as many different names, but got {len(names)}")
    quadratic = (edges[:, 0], edges[:, 1], -pairs / beta)
    return dimod.BinaryQuadraticModel.from_numpy_vectors(
        -linear / beta, quadratic, -constant / beta, kind, variable_order=names
    )


def _polynomial(graph: FactorGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Log-potentials of bits as a polynomial: its linear terms, the edges and strengths of its pairs, and its constant."""
    linear, edges, pairs, constant = np.zeros(len(graph.cardinalities)), [], [], 0.0
    if any(k != 2 for k in graph.cardinalities):
        i = next(i for i, k in enumerate(graph.cardinalities) if k != 2)
        raise ValueError(f"variable {i} has {graph.cardinalities[i]} values, but those of a BQM have two")
    tables = [np.asarray(table, float) for table in graph.tables]
    for f, (scope, t) in enumerate(zip(graph.scopes, graph.table_of, strict=True)):
        table = tables[t]
        if len(scope) > 2:
            raise ValueError(f"factor {f} has {len(scope)} variables, but those of a BQM have at most two")
        if not np.isfinite(table).all():
            raise ValueError(f"factor {f} makes a configuration impossible, which no finite bias can. Use a penalty")
        constant += float(table.flat[0])
        for axis, i in enumerate(scope):
            linear[i] += table[tuple(int(a == axis) for a in range(len(scope)))] - table.flat[0]
        if len(scope) == 2:
            edges.append(scope)
            pairs.append(table[1, 1] - table[1, 0] - table[0, 1] + table[0, 0])
    return linear, np.array(edges, int).reshape(-1, 2), np.array(pairs, float), constant
