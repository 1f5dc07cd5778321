"""Discrete models of pgmpy, Markov networks, Bayesian networks and factor graphs, read as factor graphs, and written."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lnz._core.packages import package
from lnz.io._data import DataError
from lnz.io._uai import potentials

if TYPE_CHECKING:
    from lnz._models.factor_graph import FactorGraph

# A class of pgmpy to the method that gives its tables; the second names are those of versions before 1.0.
_TABLES = {
    "DiscreteMarkovNetwork": "get_factors",
    "MarkovNetwork": "get_factors",
    "FactorGraph": "get_factors",
    "DiscreteBayesianNetwork": "get_cpds",
    "BayesianNetwork": "get_cpds",
}


class PgmpyModel(NamedTuple):
    """A model of pgmpy as a factor graph.

    Attributes:
        graph: variables and states by number, with log-potentials in nats.
        variables: the name of every variable.
        states: of every variable, the names of its states.
    """

    graph: FactorGraph
    variables: list[Hashable]
    states: list[list[Hashable]]

    def numbers(self, observed: Mapping[Hashable, Hashable]) -> dict[int, int]:
        """Evidence by name, {variable: state}, as numbers for `FactorGraph.evidence`. Raises ValueError for an unknown name."""
        found = {}
        for variable, state in observed.items():
            if variable not in self.variables:
                raise ValueError(f"the model has no variable {variable!r}. Choose one of {self.variables}")
            i = self.variables.index(variable)
            if state not in self.states[i]:
                raise ValueError(f"variable {variable!r} has no state {state!r}. Choose one of {self.states[i]}")
            found[i] = self.states[i].index(state)
        return found


def from_pgmpy(model: Any) -> PgmpyModel:
    """A discrete model of pgmpy as a factor graph: p(x) = 1/Z ∏_a ψ_a(x_a), with log ψ_a in nats, and -inf where ψ_a = 0.

    Variables are numbered in the order of the model's nodes. Z is that of the model: 1 for a Bayesian network, and the
    probability of the evidence once there is some.

    Args:
        model: a `DiscreteMarkovNetwork`, `DiscreteBayesianNetwork` or `FactorGraph` of pgmpy, or what these were called before
            version 1.0.

    Raises:
        DataError: for another kind of model; tables that are missing, negative or not finite, or that disagree about the
            states of a variable.

    Example:
        >>> import lnz
        >>> from pgmpy.factors.discrete import TabularCPD  # doctest: +SKIP
        >>> from pgmpy.models import DiscreteBayesianNetwork  # doctest: +SKIP
        >>> network = DiscreteBayesianNetwork([("rain", "wet")])  # doctest: +SKIP
        >>> rain = TabularCPD("rain", 2, [[0.8], [0.2]])  # doctest: +SKIP
        >>> network.add_cpds(rain, TabularCPD("wet", 2, [[0.9, 0.1], [0.1, 0.9]], ["rain"], [2]))  # doctest: +SKIP
        >>> model = lnz.interop.from_pgmpy(network)  # doctest: +SKIP
        >>> wet = model.graph.evidence(model.numbers({"wet": 1}))  # doctest: +SKIP
        >>> print(round(float(lnz.log_partition(wet).value), 4))  # doctest: +SKIP
        -1.3471
    """
    kind = next((cls.__name__ for cls in type(model).__mro__ if cls.__name__ in _TABLES), None)
    if kind is None:
        raise DataError(f"from_pgmpy reads {', '.join(_TABLES)} of pgmpy, but got {type(model).__name__}")
    tables = list(getattr(model, _TABLES[kind])())
    variables = list(model.nodes)
    if kind == "FactorGraph":  # whose other nodes are the factors, or their names
        used = {v for table in tables for v in getattr(table, "variables", ())}
        variables = [node for node in variables if node in used]
    number = {variable: i for i, variable in enumerate(variables)}
    states: list[list[Hashable] | None] = [None] * len(variables)
    scopes, logs = [], []
    for f, table in enumerate(tables):
        if not (hasattr(table, "values") and hasattr(table, "variables")):
            raise DataError(f"factor {f} is a {type(table).__name__}, not a table. Only discrete models can be read")
        values = np.asarray(table.values, np.float64)
        for variable, k in zip(table.variables, values.shape, strict=True):
            if variable not in number:
                raise DataError(f"factor {f} names {variable!r}, which is not a node of the model. Add it")
            found, known = list(table.state_names.get(variable, range(k))), states[number[variable]]
            if known is not None and found != known:
                raise DataError(
                    f"two factors define different states of {variable!r}, {known} and {found}. Make them equal"
                )
            states[number[variable]] = found
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise DataError(f"the table of {_named(table.variables)} holds a potential that is negative or not finite")
        scopes.append(tuple(number[variable] for variable in table.variables))
        with np.errstate(divide="ignore"):
            logs.append(np.log(values))
    missing = [v for v, found in zip(variables, states, strict=True) if found is None]
    described = {scope[0] for scope in scopes} if _TABLES[kind] == "get_cpds" else set(range(len(variables)))
    missing += [v for i, v in enumerate(variables) if i not in described and v not in missing]
    if missing:
        what = "conditional probabilities" if _TABLES[kind] == "get_cpds" else "factor"
        raise DataError(f"the model has no {what} for {_named(missing)}. Add what is missing")
    import lnz

    named = [list(found) for found in states if found is not None]
    return PgmpyModel(lnz.FactorGraph([len(found) for found in named], scopes, logs), variables, named)


def to_pgmpy(
    graph: FactorGraph,
    *,
    variables: Sequence[Hashable] | None = None,
    states: Sequence[Sequence[Hashable]] | None = None,
) -> Any:
    """A factor graph as a `DiscreteMarkovNetwork` of pgmpy (`MarkovNetwork` before version 1.0), with ψ = exp(log-potential).

    pgmpy needs a factor for every variable and supports no constants: a variable without factors gets a table of ones, and a
    constant becomes a table over the first variable.

    Args:
        graph: the factor graph; of other models, their `factors()`.
        variables: the name of every variable; by default x0, x1, …
        states: of every variable, the names of its states; by default 0, 1, …

    Raises:
        ModuleNotFoundError: where pgmpy is not installed.
        ValueError: log-potentials beyond the range of float64 potentials, or names that do not match.
    """
    models, discrete = package("pgmpy.models", "to_pgmpy"), package("pgmpy.factors.discrete", "to_pgmpy")
    n = len(graph.cardinalities)
    if n == 0:
        raise ValueError("the graph has no variables, and a model of pgmpy needs one. Add one with a single value")
    names = [f"x{i}" for i in range(n)] if variables is None else list(variables)
    of = [list(range(k)) for k in graph.cardinalities] if states is None else [list(found) for found in states]
    if len(set(names)) != n or [len(set(found)) for found in of] != list(graph.cardinalities):
        raise ValueError(
            f"names do not match: {n} variables with {list(graph.cardinalities)} states need as many names"
        )
    network = getattr(models, "DiscreteMarkovNetwork", None) or models.MarkovNetwork
    made = network()
    made.add_nodes_from(names)
    factors = [
        (scope or (0,), table if scope else np.full(graph.cardinalities[0], table))
        for scope, table in zip(graph.scopes, potentials(graph), strict=True)
    ]
    factors += [((i,), np.ones(graph.cardinalities[i])) for i in set(range(n)).difference(*graph.scopes)]
    for scope, table in factors:
        here = [names[i] for i in scope]
        made.add_edges_from(itertools.combinations(here, 2))
        known = {names[i]: of[i] for i in scope}
        made.add_factors(discrete.DiscreteFactor(here, list(table.shape), table, state_names=known))
    return made


def _named(variables: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, variables))
