"""The interval that tightens: log Z inside, words and figures, refusals."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from lnz._core.numerics import float64
from lnz._graphs.anytime_solver import Interval, _Tightening, tighten
from lnz._models.factor_graph import unpacked


def parts(graph: lnz.FactorGraph):
    tables = unpacked(np.asarray(graph.log_potentials), graph.shapes)
    return graph.cardinalities, graph.scopes, [tables[t] for t in graph.table_of]


def glass(n: int, beta: float, seed: int) -> lnz.FactorGraph:
    rng = np.random.default_rng(seed)
    couplings, fields = rng.normal(size=(2, n, n)), rng.normal(size=(n, n))
    return lnz.Ising.lattice((n, n), beta * couplings, beta * fields, periodic=True).factors()


def colourings(n: int, q: int) -> lnz.FactorGraph:
    """Colourings of a grid in which neighbours differ, with a weight for every colour: zeros in every table."""
    rng = np.random.default_rng(1)
    sites = np.arange(n * n).reshape(n, n)
    pairs = ((sites[:, :-1], sites[:, 1:]), (sites[:-1], sites[1:]))
    edges = [edge for a, b in pairs for edge in zip(a.ravel(), b.ravel(), strict=True)]
    hard = np.where(np.eye(q) > 0, -np.inf, 0.0)
    scopes = [*edges, *((i,) for i in range(n * n))]
    return lnz.FactorGraph([q] * n * n, scopes, [hard] * len(edges) + [rng.normal(size=q) for _ in range(n * n)])


def triples(n: int) -> lnz.FactorGraph:
    """Random factors of three variables of 2 to 4 values."""
    rng = np.random.default_rng(2)
    sizes = [int(k) for k in rng.integers(2, 5, size=n)]
    scopes = [tuple(int(i) for i in rng.choice(n, 3, replace=False)) for _ in range(int(0.8 * n))]
    return lnz.FactorGraph(sizes, scopes, [2 * rng.normal(size=[sizes[i] for i in s]) for s in scopes])


MODELS = {
    "glass": lambda: glass(9, 1.0, 0),
    "cold glass": lambda: glass(9, 4.0, 1),
    "colourings": lambda: colourings(8, 3),
    "triples": lambda: triples(30),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_z_lies_inside_and_the_limits_only_come_closer(name):
    """Without elimination, in half a second: on every model the interval is narrower than it began, or closed."""
    graph = MODELS[name]()
    exact = float(lnz.log_partition(graph, route=lnz.routes.Elimination()).value)
    seen: list[float] = []
    found = tighten(
        *parts(graph),
        within=1e-3,
        max_seconds=0.5,
        exact_first=False,
        watch=lambda interval: seen.append(interval.width),
    )
    assert found.lower <= exact <= found.upper
    history = np.array(found.history)
    assert history.shape[1] == 3
    assert len(history) == len(seen)
    assert (history[1:, :2] >= history[:-1, :2]).all()
    assert (history[1:, 2] <= history[:-1, 2]).all()
    assert (history[:, 1] <= exact + 1e-9).all()
    assert (history[:, 2] >= exact - 1e-9).all()
    assert np.isfinite(found.upper)
    assert found.timed_out == (found.width > 1e-3)
    assert ("stopped after" in found.sentence()) == found.timed_out
    assert found.lower <= found.value <= found.upper


def test_a_wide_interval_is_enough_for_those_who_ask_for_one():
    found = tighten(*parts(glass(9, 1.0, 0)), within=40.0, max_seconds=30.0, exact_first=False)
    assert found.width <= 40
    assert not found.timed_out


def test_the_estimate_says_how_it_is_known():
    """A torus that elimination cannot sum in the time: an interval; with time, exact; without fields, by its determinant or formula."""
    rng = np.random.default_rng(0)
    wide = lnz.Ising.lattice((24, 24), rng.normal(size=(2, 24, 24)), rng.normal(size=(24, 24)), periodic=True)
    estimate = lnz.log_partition_bounds(wide, within=0.01, max_seconds=0.5)
    assert estimate.guarantee == "bound"
    assert float(estimate.lower) < float(estimate.value) < float(estimate.upper) < np.inf
    assert "stopped after" in str(estimate)
    assert "lower bound by" in estimate.route
    assert estimate.diagnostics["history"].shape[1] == 3
    assert float(estimate.diagnostics["seconds"]) > 0.1
    small = lnz.Ising.lattice((3, 4), rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4)), periodic=True)
    exact = lnz.log_partition_bounds(small, within=0.1)
    assert exact.guarantee == "exact"
    assert float(exact.value) == pytest.approx(
        float(lnz.log_partition(small, route=lnz.routes.Enumeration()).value), rel=1e-12
    )
    assert lnz.log_partition_bounds(lnz.Ising.lattice((4, 4), 0.4, periodic=True), max_seconds=5).guarantee == "exact"
    assert lnz.log_partition_bounds(lnz.Gaussian(jnp.zeros(2), jnp.eye(2)), within=0.1).guarantee == "exact"


def test_limits_in_float32_are_rounded_outward():
    graph = glass(9, 1.0, 0)
    exact = float(lnz.log_partition(graph, route=lnz.routes.Elimination()).value)
    with float64(False):
        estimate = lnz.log_partition_bounds(graph, within=0.1, max_seconds=30.0)
        assert estimate.lower.dtype == jnp.float32
        assert float(estimate.lower) <= exact + 1e-4
        assert float(estimate.upper) >= exact - 1e-4
        assert float(estimate.lower) < float(estimate.upper)


def test_impossible_models_and_single_values():
    never = lnz.FactorGraph([2, 2], [(0, 1), (0, 1)], [np.where(np.eye(2) == same, 0.0, -np.inf) for same in (0, 1)])
    nothing = tighten(*parts(never), exact_first=True)
    assert nothing.lower == nothing.upper == nothing.value == -np.inf
    assert nothing.exact
    assert nothing.width == 0
    hidden = lnz.FactorGraph(  # no table alone forbids it: an odd cycle of variables that differ
        [2] * 3, [(0, 1), (1, 2), (0, 2)], [np.where(np.eye(2) > 0, -np.inf, 0.0)] * 3
    )
    for exact_first in (True, False):
        assert tighten(*parts(hidden), exact_first=exact_first).value == -np.inf
    assert tighten([1, 1], [(0, 1)], [np.full((1, 1), 2.5)], exact_first=False).value == pytest.approx(2.5)
    assert tighten([], [], []).value == 0
    assert tighten([3, 2], [], []).value == pytest.approx(np.log(6))
    assert tighten([3, 2], [], [], exact_first=False).value == pytest.approx(np.log(6))
    assert Interval().width == np.inf


def test_refusals():
    graph = glass(3, 1.0, 0)
    for options, word in (({"within": 0.0}, "within"), ({"max_seconds": -1.0}, "max_seconds")):
        with pytest.raises(ValueError, match=word):
            lnz.log_partition_bounds(graph, **options)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda g: lnz.log_partition_bounds(g, within=0.1).value)(graph)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.grad(lambda g: lnz.log_partition_bounds(g, max_seconds=1.0).value)(graph)
    with pytest.raises(ValueError, match="NaN"):
        tighten([2], [(0,)], [np.array([np.nan, 0])])
    network = lnz.FunctionEnergy(lambda x: jnp.sum(x) ** 2, lnz.Binary((60,)))
    with pytest.raises(ValueError, match="no factors"):
        lnz.log_partition_bounds(network, within=0.1)


def test_it_runs_without_jax():
    code = (
        "import sys, numpy as np; from lnz._graphs.anytime_solver import tighten; "
        "print(tighten([2, 3], [(0, 1)], [np.zeros((2, 3))], exact_first=False).width < 0.1, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_no_bucket_of_a_wide_factor_is_lost():
    """A factor larger than every table that is allowed is taken alone, and the limits still hold."""
    rng = np.random.default_rng(5)
    wide = rng.normal(size=(2,) * 9)
    pairs = list(itertools.combinations(range(9), 2))
    scopes = [tuple(range(9)), *pairs]
    graph = lnz.FactorGraph([2] * 9, scopes, [wide] + [rng.normal(size=(2, 2)) for _ in pairs])
    exact = float(lnz.log_partition(graph, route=lnz.routes.Enumeration()).value)
    for side in ("lower", "upper"):
        estimate = lnz.log_partition(graph, route=lnz.routes.MiniBucket(i_bound=2, side=side))
        assert float(estimate.lower) <= exact <= float(estimate.upper)


def test_bounds_move_outwards_by_their_rounding():
    graph = glass(3, 1.0, 0)
    search = _Tightening(*parts(graph), 0.1, 60.0, 2.0**30, 0, None)
    search._below(-50.0, "")
    search._above(90.0, "")
    assert -50.0 - 1e-9 < search.found.lower < -50.0
    assert 90.0 < search.found.upper < 90.0 + 1e-9
