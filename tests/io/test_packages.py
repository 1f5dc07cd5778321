"""Models of dimod and pgmpy: the same energies and the same Z, there and back, and refusals in words. Without a package its tests skip.

dimod is a development dependency. pgmpy is not, being heavy; stand-ins with the few attributes that are read take its place.
"""

import doctest
import itertools
import math
import sys
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import lnz
from lnz.interop import from_bqm, from_pgmpy, to_bqm, to_pgmpy
from lnz.io import DataError


def needed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pgmpy warns of itself as it loads
        return pytest.importorskip(name, reason=f"{name} is not installed")


def log_z(energy):
    return float(lnz.routes.Elimination().log_partition(energy).value)


def listed(graph):
    """ψ(x) of every state as one array, by plain multiplication."""
    total = np.ones(graph.cardinalities)
    states = np.indices(graph.cardinalities)
    tables = [np.exp(np.asarray(table)) for table in graph.tables]
    for scope, t in zip(graph.scopes, graph.table_of, strict=True):
        total = total * tables[t][tuple(states[i] for i in scope)]
    return total


@pytest.mark.parametrize("name", ["dimod", "pgmpy"])
def test_the_examples_of_the_docstrings(name):
    needed(name)
    function = {"dimod": from_bqm, "pgmpy": from_pgmpy}[name]
    text = (function.__doc__ or "").replace("# doctest: +SKIP", "")
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    said = []
    assert doctest.DocTestRunner().run(test, out=said.append) == (0, len(test.examples)), "".join(said)


@pytest.mark.parametrize("name", ["dimod", "pgmpy"])
def test_a_missing_package_is_named(name, monkeypatch):
    for module in (name, "pgmpy.models"):
        monkeypatch.setitem(sys.modules, module, None)
    write = {"dimod": to_bqm, "pgmpy": to_pgmpy}[name]
    with pytest.raises(ModuleNotFoundError, match=rf"needs the package {name}, .* pip install {name}$"):
        write(lnz.FactorGraph([2], [], []))


def random_bqm(dimod, seed, kind):
    """Five variables with names of several kinds, all biases asymmetric."""
    rng = np.random.default_rng(seed)
    names = ["a", 7, ("x", 1), "last", 0]
    bqm = dimod.BinaryQuadraticModel({v: rng.normal() for v in names}, {}, rng.normal() * 3, kind)
    for i, j in itertools.combinations(names, 2):
        if rng.random() < 0.6:
            bqm.add_quadratic(j, i, rng.normal())
    return bqm


@pytest.mark.parametrize("kind", ["SPIN", "BINARY"])
@pytest.mark.parametrize("seed", range(2))
def test_a_bqm_has_the_same_energies_and_comes_back(seed, kind):
    dimod = needed("dimod")
    bqm, beta = random_bqm(dimod, seed, kind), 0.7
    model = from_bqm(bqm, beta=beta)
    assert isinstance(model.energy, lnz.Ising if kind == "SPIN" else lnz.FactorGraph)
    states = np.array(list(itertools.product((-1, 1) if kind == "SPIN" else (0, 1), repeat=5)))
    energies = bqm.energies((states, model.variables))
    found = jax.vmap(model.energy)(np.asarray(states, model.energy.space.struct.dtype))
    np.testing.assert_allclose(found - model.constant, beta * energies, atol=1e-12)
    assert math.isclose(log_z(model.energy) + model.constant, np.log(np.exp(-beta * energies).sum()), rel_tol=1e-12)
    back = to_bqm(model.energy, variables=model.variables, beta=beta, constant=model.constant)
    assert back.vartype == bqm.vartype
    assert list(back.variables) == list(bqm.variables)
    assert back.is_almost_equal(bqm, places=12)


def test_an_ising_lattice_and_a_graph_of_bits_become_bqms():
    dimod = needed("dimod")
    rng = np.random.default_rng(5)
    lattice = lnz.Ising.lattice((2, 3), rng.normal(size=(2, 2, 3)), rng.normal(size=(2, 3)), periodic=False)
    tables = [rng.normal(size=(2,) * n) for n in (2, 1, 2, 0)]
    graph = lnz.FactorGraph([2, 2, 2], [(2, 0), (1,), (0, 2), (), (2, 0)], tables, table_of=[0, 1, 2, 3, 0])
    for energy, values in ((lattice, (-1, 1)), (graph, (0, 1))):
        states = np.array(list(itertools.product(values, repeat=math.prod(energy.space.shape))))
        bqm = to_bqm(energy, beta=2.5)
        found = jax.vmap(energy)(states.reshape(-1, *energy.space.shape).astype(energy.space.struct.dtype))
        np.testing.assert_allclose(found, 2.5 * bqm.energies(states), atol=1e-12)
        assert bqm.vartype == dimod.as_vartype(values)


@pytest.mark.parametrize(
    ("energy", "options", "words"),
    [
        (lnz.FactorGraph([2, 3], [], []), {}, "variable 1 has 3 values"),
        (lnz.FactorGraph([2] * 3, [(0, 1, 2)], [np.zeros((2, 2, 2))]), {}, "factor 0 has 3 variables"),
        (lnz.FactorGraph([2], [(0,)], [np.array([0, -np.inf])]), {}, "factor 0 makes a configuration impossible"),
        (lnz.FactorGraph([2], [], []), {"beta": 0.0}, "beta is 0"),
        (lnz.FactorGraph([2, 2], [], []), {"variables": ["a", "a"]}, "2 variables need as many different names"),
        (lnz.Gaussian([0.0], [1.0]), {}, "got Gaussian"),
    ],
)
def test_what_no_bqm_can_say_is_refused(energy, options, words):
    needed("dimod")
    with pytest.raises(ValueError, match=words):
        to_bqm(energy, **options)


def bqm_stand_in(linear, pairs=(), offset=0.0, kind="SPIN"):
    rows, columns, biases = (np.array(x) for x in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int),) * 3
    quadratic = SimpleNamespace(row_indices=rows, col_indices=columns, biases=biases)
    vectors = SimpleNamespace(linear_biases=np.array(linear, float), quadratic=quadratic, offset=offset)
    names = [f"v{i}" for i in range(len(linear))]
    return SimpleNamespace(vartype=SimpleNamespace(name=kind), variables=names, to_numpy_vectors=lambda: vectors)


@pytest.mark.parametrize(
    ("bqm", "beta", "words"),
    [
        ({("a", "b"): 1.0}, 1.0, "dimod.BinaryQuadraticModel, but got dict"),
        (bqm_stand_in([1.0]), math.inf, "beta is inf"),
        (bqm_stand_in([]), 1.0, "no variables"),
        (bqm_stand_in([0.0, math.nan]), 1.0, "the linear bias of 'v1' is nan"),
        (bqm_stand_in([0.0, 0.0, 0.0], [(2, 1, math.inf)]), 1.0, "the quadratic bias of 'v2', 'v1' is inf"),
        (bqm_stand_in([0.0], offset=math.nan), 1.0, "the offset is nan"),
    ],
)
def test_a_bad_bqm_is_refused_in_one_line(bqm, beta, words):
    with pytest.raises(DataError, match=words):
        from_bqm(bqm, beta=beta)


class Table(SimpleNamespace):
    """What `from_pgmpy` reads of a factor or of a conditional probability table."""

    def __init__(self, variables, values, **state_names):
        values = np.asarray(values, float)
        super().__init__(variables=variables, values=values, state_names=state_names, cardinality=values.shape)

    __hash__ = object.__hash__  # a node of a graph


class DiscreteMarkovNetwork:
    def __init__(self, nodes, *tables):
        self.nodes, self.tables = nodes, list(tables)

    def get_factors(self):
        return self.tables


class DiscreteBayesianNetwork(DiscreteMarkovNetwork):
    def get_cpds(self):
        return self.tables


class FactorGraph(DiscreteMarkovNetwork):
    def __init__(self, nodes, *tables):
        super().__init__([*nodes, *tables], *tables)


RAIN = Table(["rain"], [0.8, 0.2], rain=["no", "yes"])
WET = Table(["wet", "rain"], [[0.9, 0.1], [0.1, 0.7], [0.0, 0.2]], wet=["dry", "damp", "wet"], rain=["no", "yes"])


@pytest.mark.parametrize("kind", [DiscreteMarkovNetwork, DiscreteBayesianNetwork, FactorGraph])
def test_tables_are_read_with_their_names(kind):
    model = from_pgmpy(kind(["wet", "rain"], RAIN, WET))
    assert (model.variables, model.states) == (["wet", "rain"], [["dry", "damp", "wet"], ["no", "yes"]])
    assert model.graph.scopes == ((1,), (0, 1))
    np.testing.assert_allclose(listed(model.graph), WET.values * RAIN.values)
    given = model.graph.evidence(model.numbers({"wet": "wet"}))
    assert math.isclose(log_z(given), math.log(0.2 * 0.2))


@pytest.mark.parametrize(
    ("observed", "words"), [({"snow": 0}, "no variable 'snow'"), ({"rain": "maybe"}, "'rain' has no state 'maybe'")]
)
def test_evidence_by_an_unknown_name_is_refused(observed, words):
    model = from_pgmpy(DiscreteMarkovNetwork(["wet", "rain"], RAIN, WET))
    with pytest.raises(ValueError, match=words):
        model.numbers(observed)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (object(), "but got object"),
        (DiscreteMarkovNetwork(["rain"], SimpleNamespace(variables=["rain"])), "factor 0 is a SimpleNamespace, not a"),
        (DiscreteMarkovNetwork(["rain"], RAIN, WET), "factor 1 names 'wet', which is not a node"),
        (DiscreteMarkovNetwork(["rain", "wet"], RAIN), "no factor for 'wet'"),
        (DiscreteBayesianNetwork(["rain", "wet"], WET), "no conditional probabilities for 'rain'"),
        (DiscreteMarkovNetwork(["a"], Table(["a"], [1, -1])), "the table of 'a' holds a potential that is negative"),
        (
            DiscreteMarkovNetwork(["a"], Table(["a"], [1, np.nan])),
            "the table of 'a' holds a potential that is negative",
        ),
        (DiscreteMarkovNetwork(["a"], Table(["a"], [1, 1], a=[0, 1]), Table(["a"], [1, 2], a=[1, 0])), "states of 'a'"),
        (DiscreteMarkovNetwork(["a"], Table(["a"], [1, 1]), Table(["a"], [1, 2, 3])), "states of 'a', .0, 1. and"),
    ],
)
def test_a_bad_model_of_pgmpy_is_refused_in_one_line(model, words):
    with pytest.raises(DataError, match=words):
        from_pgmpy(model)


def random_graph(seed):
    rng = np.random.default_rng(seed)
    cardinalities = [2, 3, 1, 2, 4]
    scopes = [(1, 0), (3,), (), (0, 1, 3), (4, 2), (1, 0)][: rng.integers(3, 7)]
    tables = [rng.normal(size=[cardinalities[i] for i in scope]) for scope in scopes]
    tables[0][0, 0] = -np.inf
    return lnz.FactorGraph(cardinalities, scopes, tables)


@pytest.mark.parametrize("seed", range(4))
def test_a_graph_goes_to_pgmpy_and_back_with_the_same_partition_function(seed):
    needed("pgmpy")
    graph, names = random_graph(seed), ["a", "b", "c", "d", "e"]
    states = [[f"{name}{s}" for s in range(k)] for name, k in zip(names, graph.cardinalities, strict=True)]
    network = to_pgmpy(graph, variables=names, states=states)
    assert network.check_model()
    assert math.isclose(network.get_partition_function(), listed(graph).sum(), rel_tol=1e-12)
    for model in (network, network.to_factor_graph()):
        back = from_pgmpy(model)
        order = [back.variables.index(name) for name in names]
        assert [back.states[i] for i in order] == states
        np.testing.assert_allclose(listed(back.graph).transpose(order), listed(graph), rtol=1e-12)
        assert math.isclose(log_z(back.graph), math.log(listed(graph).sum()), rel_tol=1e-12)
    assert math.isclose(to_pgmpy(graph).get_partition_function(), listed(graph).sum(), rel_tol=1e-12)


def test_a_bayesian_network_of_pgmpy_answers_as_pgmpy_does():
    needed("pgmpy")
    inference = needed("pgmpy.inference")
    from pgmpy.factors.discrete import TabularCPD
    from pgmpy.models import DiscreteBayesianNetwork

    network = DiscreteBayesianNetwork([("rain", "wet"), ("sprinkler", "wet")])
    names = {"rain": ["no", "yes"], "sprinkler": ["off", "on"], "wet": ["dry", "damp", "wet"]}
    given = [[0.9, 0.3, 0.2, 0.1], [0.1, 0.4, 0.3, 0.2], [0.0, 0.3, 0.5, 0.7]]
    network.add_cpds(
        TabularCPD("rain", 2, [[0.8], [0.2]], state_names=names),
        TabularCPD("sprinkler", 2, [[0.6], [0.4]], state_names=names),
        TabularCPD("wet", 3, given, ["rain", "sprinkler"], [2, 2], state_names=names),
    )
    model = from_pgmpy(network)
    assert math.isclose(log_z(model.graph), 0, abs_tol=1e-12)
    wet = model.graph.evidence(model.numbers({"wet": "wet"}))
    assert math.isclose(log_z(wet), math.log(0.8 * 0.4 * 0.3 + 0.2 * 0.6 * 0.5 + 0.2 * 0.4 * 0.7), rel_tol=1e-12)
    theirs = inference.VariableElimination(network).query(["rain"], {"wet": "wet"}, show_progress=False)
    np.testing.assert_allclose(lnz.marginals(wet)[model.variables.index("rain")], theirs.values, rtol=1e-12)


@pytest.mark.parametrize(
    ("graph", "options", "words"),
    [
        (lnz.FactorGraph([], [()], [np.zeros(())]), {}, "no variables"),
        (
            lnz.FactorGraph([2], [(0,)], [np.array([0, 800.0])]),
            {},
            "800, whose exponential is outside the range of float64",
        ),
        (lnz.FactorGraph([2, 2], [], []), {"variables": ["a", "a"]}, "names do not match"),
        (lnz.FactorGraph([2], [], []), {"states": [["a"]]}, "names do not match"),
    ],
)
def test_what_pgmpy_cannot_say_is_refused(graph, options, words):
    needed("pgmpy")
    with pytest.raises(ValueError, match=words):
        to_pgmpy(graph, **options)
