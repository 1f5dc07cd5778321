"""Planar Ising models and the uniform torus, against sums over all states, elimination and published values."""

import itertools

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from scipy.spatial import Delaunay

import lnz
from listing import log_sum, normalised, states
from lnz._core.frozen import Frozen, is_traced
from lnz.reference import _planar_glass as planar_glass
from lnz.routes._exact import kac_ward
from lnz.routes._exact.even_subgraphs import even_subgraphs
from lnz.routes._exact.planar_embedding import dual


def enumerated(n, edges, couplings):
    """log Z and E[s_i s_j] of every edge."""
    s = states([-1, 1], n)
    pairs = s[:, edges[:, 0]] * s[:, edges[:, 1]]
    logits = pairs @ couplings
    return log_sum(logits), normalised(logits) @ pairs


def value_and_slope(edges, couplings, n, route):
    def log_z(j):
        estimate = lnz.log_partition(lnz.Ising.sparse(edges, j, n=n), route=route)
        return estimate.value, estimate

    (_, estimate), slope = jax.value_and_grad(log_z, has_aux=True)(jnp.asarray(couplings))
    return estimate, np.asarray(slope)


def random_planar(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    graph = nx.empty_graph(n)
    for a, b in rng.permutation(list(itertools.combinations(range(n), 2)) or np.zeros((0, 2), int)):
        graph.add_edge(int(a), int(b))
        if rng.random() < [0, 0.3, 0.7][seed % 3] or not nx.check_planarity(graph)[0]:
            graph.remove_edge(int(a), int(b))
    return graph


def holed_grid():
    graph = nx.grid_2d_graph(4, 4)
    graph.remove_nodes_from([(1, 1), (0, 3)])
    return nx.convert_node_labels_to_integers(graph)


GRAPHS = {
    **{f"random {seed}": random_planar(seed) for seed in range(6)},
    "no site's neighbour": nx.empty_graph(3),
    "one bond": nx.path_graph(2),
    "K4": nx.complete_graph(4),
    "wheel": nx.wheel_graph(12),
    "star": nx.star_graph(11),
    "tree": nx.balanced_tree(2, 2),
    "cube": nx.convert_node_labels_to_integers(nx.hypercube_graph(3)),
    "two circles and a site": nx.disjoint_union_all([nx.cycle_graph(5), nx.cycle_graph(4), nx.empty_graph(1)]),
    "circles that share a site": nx.Graph([(0, 1), (1, 2), (2, 0), (0, 3), (3, 4), (4, 0), (0, 5), (5, 6)]),
    "ladder": nx.circular_ladder_graph(5),
    "outerplanar": nx.Graph([*nx.cycle_graph(8).edges, (0, 2), (2, 7), (2, 5), (5, 7), (3, 5)]),
    "triangles": nx.convert_node_labels_to_integers(nx.triangular_lattice_graph(3, 4)),
    "grid with holes": holed_grid(),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_against_all_states(name):
    graph, rng = GRAPHS[name], np.random.default_rng(len(name))
    edges, n = np.array(graph.edges, int).reshape(-1, 2), len(graph)
    for scale in (0.3, 2.0, 12.0):
        couplings = scale * rng.normal(size=len(edges)) * (rng.random(len(edges)) > 0.2)
        log_z, pairs = enumerated(n, edges, couplings)
        estimate, slope = value_and_slope(edges, couplings, n, lnz.routes.KacWard())
        assert abs(float(estimate.value) - log_z) < 1e-12 * (1 + log_z)
        assert float(estimate.lower) <= log_z <= float(estimate.upper)
        np.testing.assert_allclose(slope, pairs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0, 8.0])
def test_a_frozen_glass_keeps_its_digits(beta):
    rng = np.random.default_rng(4)
    edges = np.array(nx.convert_node_labels_to_integers(nx.grid_2d_graph(7, 7)).edges)
    couplings = beta * rng.choice([-1.0, 1.0], len(edges))
    ours, slope = value_and_slope(edges, couplings, 49, lnz.routes.KacWard())
    other, other_slope = value_and_slope(edges, couplings, 49, lnz.routes.Elimination(search_seconds=0.05))
    assert abs(float(ours.value) - float(other.value)) < 1e-11 * float(other.value)
    assert float(ours.upper - ours.value) < 1e-9 * float(other.value)
    np.testing.assert_allclose(slope, other_slope, rtol=0, atol=1e-8)


def test_couplings_too_strong_for_the_digits_are_refused_as_it_runs():
    edges = np.array(nx.convert_node_labels_to_integers(nx.grid_2d_graph(8, 8)).edges)
    couplings = 20 * np.random.default_rng(0).choice([-1.0, 1.0], len(edges))
    with pytest.raises(jax.errors.JaxRuntimeError, match="couplings up to 20 are too strong"):
        value_and_slope(edges, couplings, 64, lnz.routes.KacWard())


@pytest.mark.parametrize("coupling", [20.0, 300.0])
def test_a_strong_magnet_has_two_states(coupling):
    model = lnz.Ising.lattice((6, 5), coupling, periodic=False)
    assert float(lnz.log_partition(model, route=lnz.routes.KacWard()).value) == pytest.approx(
        49 * coupling + np.log(2), 1e-14
    )


@pytest.mark.parametrize(("size", "log_z"), [(32, 1500.7500049954172), (64, 6144.355165254338)])
def test_spin_glass_on_a_lattice(size, log_z):
    right, down = planar_glass.bimodal_couplings(size, size, seed=0)
    strength = np.zeros((2, size, size))
    strength[0, :-1], strength[1, :, :-1] = down, right
    model = lnz.Ising.lattice((size, size), strength, periodic=False)
    estimate = lnz.log_partition(model, route=lnz.routes.KacWard())
    assert abs(float(estimate.value) - log_z) < 1e-11 * log_z
    assert float(estimate.upper - estimate.value) < 1e-10 * log_z
    assert isinstance(lnz.choose(model).route, lnz.routes.KacWard)


@pytest.mark.parametrize(
    "model",
    [
        lnz.Ising.lattice((3, 4), np.random.default_rng(0).normal(size=(2, 3, 4)), periodic=False),
        lnz.Ising.lattice((1, 6), 0.7, periodic=False),
        lnz.Ising.lattice((6, 1), np.random.default_rng(1).normal(size=(2, 6, 1)), periodic=False),
        lnz.Ising.lattice((7,), -0.7, periodic=True),
        lnz.Ising.lattice((2, 5), np.random.default_rng(2).normal(size=(2, 2, 5)), periodic=True),
        lnz.Ising.lattice((2, 2, 3), -0.4, periodic=False),
        lnz.Ising(np.array([[0, 1, -2.0], [1, 0, 0.5], [-2, 0.5, 0]])),
    ],
    ids=lambda m: type(m.couplings).__name__ + str(m.couplings.sites),
)
def test_every_kind_of_couplings_gets_its_gradient(model):
    ours, other = (
        jax.value_and_grad(lambda m, route=route: lnz.log_partition(m, route=route).value)(model)
        for route in (lnz.routes.KacWard(), lnz.routes.Elimination(search_seconds=0.05))
    )
    assert float(ours[0]) == pytest.approx(float(other[0]), abs=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), ours[1], other[1])


def test_under_jit_and_vmap():
    @jax.jit
    @jax.vmap
    def both(k):
        return jax.value_and_grad(
            lambda k: lnz.log_partition(lnz.Ising.lattice((3, 3), k, periodic=False), route=lnz.routes.KacWard()).value
        )(k)

    value, slope = both(jnp.asarray([-0.4, 0.0, 0.4]))
    assert value[0] == pytest.approx(float(value[2]), abs=1e-12)  # a lattice of two colours
    assert slope[0] == pytest.approx(-float(slope[2]), abs=1e-12)
    assert value[1] == pytest.approx(9 * np.log(2), abs=1e-13)


RING = [[0, 1], [1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lnz.Ising.sparse(RING, 1.0, jnp.asarray([0, 1e-9, 0]), n=3), "its fields are not zero"),
        (lnz.Ising.sparse(np.array(nx.complete_bipartite_graph(3, 3).edges), 1.0, n=6), "its graph is not planar"),
        (lnz.Ising.sparse(np.array(nx.complete_graph(5).edges), 1.0, n=5), "10 bonds between 5 sites are more than"),
        (lnz.Ising(np.zeros((5, 5))), "dense couplings join all 5 sites"),
        (lnz.Ising.lattice((3, 3), 1.0, periodic=True), "a periodic lattice of two"),
        (lnz.Ising.lattice((3, 3, 3), 1.0, periodic=False), "a lattice of three"),
        (lnz.Potts.sparse(RING, 1.0, n=3, q=2), "Potts is not an Ising model"),
    ],
)
def test_refusals(model, why):
    with pytest.raises(ValueError, match=f"KacWard does not support .*: {why}"):
        lnz.log_partition(model, route=lnz.routes.KacWard())


def test_more_bonds_than_asked_for():
    assert (
        lnz.routes.KacWard(max_edges=2).unsupported_reason(lnz.Ising.sparse(RING, 1.0, n=3))
        == "its 3 bonds are more than max_edges, 2"
    )
    with pytest.raises(ValueError, match="max_edges must be"):
        lnz.routes.KacWard(max_edges=-1)


@pytest.mark.parametrize("route", [lnz.routes.KacWard(), lnz.routes.Torus()])
def test_traced_fields_are_checked_as_it_runs_and_left_by_choose(route):
    def log_z(h, route):
        model = lnz.Ising.lattice((2, 8), 0.3, h, periodic=True)
        if route is None and is_traced(h):
            assert not isinstance(lnz.choose(model).route, lnz.routes.KacWard | lnz.routes.Torus)
        return lnz.log_partition(model, route=route or lnz.routes.Elimination()).value

    zero = jnp.zeros((2, 8))
    assert float(jax.jit(lambda h: log_z(h, route))(zero)) == pytest.approx(float(log_z(zero, None)), 1e-13)
    with pytest.raises(jax.errors.JaxRuntimeError, match="its fields are not zero"):
        jax.jit(lambda h: log_z(h, route))(zero + 0.1).block_until_ready()
    jax.jit(lambda h: log_z(h, None))(zero)


@pytest.mark.parametrize("route", [lnz.routes.KacWard(), lnz.routes.Torus()])
def test_curvature_in_the_fields_is_refused(route):
    def slope(h):
        return jax.grad(
            lambda h: lnz.log_partition(lnz.Ising.lattice((2, 4), 0.3, h, periodic=True), route=route).value
        )(h)

    with pytest.raises((ValueError, NotImplementedError), match=r"second derivative|first derivatives only"):
        jax.jacrev(slope)(jnp.zeros((2, 4)))


def test_nan_raises():
    model = jax.jit(lambda j: lnz.Ising.sparse(RING, j, n=3))(jnp.asarray([1.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="log Z is NaN"):
        lnz.log_partition(model, route=lnz.routes.KacWard())


def test_rotations_that_are_no_drawing_are_seen():
    """K4 on a torus: two neighbours of one site exchanged."""
    edges, place = list(itertools.combinations(range(4), 2)), {}
    for k, (a, b) in enumerate(edges):
        place[a, b], place[b, a] = 2 * k, 2 * k + 1
    around = {0: [1, 2, 3], 1: [0, 3, 2], 2: [0, 1, 3], 3: [0, 2, 1]}
    flat = np.zeros(12, int)
    for v, ws in around.items():
        for a, b in zip(ws, ws[1:] + ws[:1], strict=True):
            flat[place[v, a]] = place[v, b]
    all_even = 2.0 ** (6 - 4 + 1)
    assert np.exp(even_subgraphs(flat).total(np.zeros(6)).log_total) == pytest.approx(all_even)
    twisted = flat.copy()
    for a, b in zip(*((ws := [2, 1, 3]), ws[1:] + ws[:1]), strict=True):
        twisted[place[0, a]] = place[0, b]
    with pytest.raises(ValueError, match="not those of a graph in the plane"):
        even_subgraphs(twisted)
    assert np.exp(even_subgraphs(dual(flat)).total(np.zeros(6)).log_total) == pytest.approx(8)


CRITICAL = 0.5 * np.log1p(np.sqrt(2))


def on_torus(k, shape, route):
    return lnz.log_partition(lnz.Ising.lattice(shape, k, periodic=True), route=route).value


@pytest.mark.parametrize(
    ("size", "k", "log_z"),
    [
        (4, CRITICAL, 15.5219154587553),
        (8, CRITICAL, 60.14178078906915),
        (16, CRITICAL, 238.6422566351329),
        (64, CRITICAL, 3808.672283419809),
        (16, 0.2, 188.0398879559832),
        (16, 0.4, 225.2288467558758),
        (16, 0.5, 263.2962104340212),
        (16, 1.0, 512.7823078079418),
        (4, 0.3, 12.7855233257137),
    ],
)
def test_torus_values(size, k, log_z):
    assert float(on_torus(k, (size, size), lnz.routes.Torus())) == pytest.approx(log_z, rel=1e-13)


@pytest.mark.parametrize("shape", [(4, 3), (2, 6)])
def test_torus_and_its_derivatives(shape):
    """log Z, the mean and the variance of the sum over bonds."""
    ks = np.array([-0.6, 0.0, 0.3, CRITICAL, 3.0, 12.0, 40.0])
    ks = ks[ks >= 0] if shape[1] % 2 else ks
    s = states([-1.0, 1.0], shape[0] * shape[1]).reshape(-1, *shape)
    bonds = (s * (np.roll(s, 1, 1) + np.roll(s, 1, 2))).sum((1, 2))
    f = lambda k: on_torus(k, shape, lnz.routes.Torus())  # noqa: E731
    ours = jax.jit(jax.vmap(lambda k: (f(k), jax.grad(f)(k), jax.grad(jax.grad(f))(k))))(jnp.asarray(ks))
    log_z = np.logaddexp.reduce(np.outer(ks, bonds), axis=1)
    p = np.exp(np.outer(ks, bonds) - log_z[:, None])
    variance = p @ bonds**2 - (p @ bonds) ** 2
    for x, y in zip(ours, (log_z, p @ bonds, variance), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lnz.Ising.lattice((4, 4), np.ones((2, 4, 4)), periodic=True), "more than one number"),
        (lnz.Ising.lattice((4, 4), 1.0, periodic=False), "not a periodic lattice of two"),
        (lnz.Ising.lattice((4, 4), 1.0, 0.5, periodic=True), "its fields are not zero"),
        (lnz.Ising.lattice((4, 3), -1.0, periodic=True), "a negative coupling is frustrated on a torus of 4 x 3"),
    ],
)
def test_torus_refusals(model, why):
    with pytest.raises(ValueError, match=f"Torus does not support Ising: .*{why}"):
        lnz.log_partition(model, route=lnz.routes.Torus())


def test_choose_takes_the_formula():
    assert isinstance(lnz.choose(lnz.Ising.lattice((32, 32), 0.4, periodic=True)).route, lnz.routes.Torus)


def irregular(seed, n=9, bonds=15):
    """Bonds of a random triangulation, with normal couplings of unit size."""
    source = np.random.default_rng(seed)
    triangles = Delaunay(source.normal(size=(n, 2))).simplices.tolist()
    edges = sorted({tuple(sorted(pair)) for corners in triangles for pair in itertools.combinations(corners, 2)})
    source.shuffle(edges)
    edges = np.array(edges[:bonds])
    return edges, source.normal(size=len(edges))


def correlations(edges, couplings):
    states = np.array(list(itertools.product([-1, 1], repeat=int(edges.max()) + 1)))
    pairs = states[:, edges[:, 0]] * states[:, edges[:, 1]]
    log_w = pairs @ couplings
    p = np.exp(log_w - log_w.max())
    return p @ pairs / p.sum()


@pytest.mark.parametrize("scale", [5.0, 20.0, 40.0])
def test_correlations_under_strong_couplings_are_those_of_all_states(scale):
    """Where log Z keeps its digits, the entries of the inverse may not: differences of log Z confirm or replace them."""
    for seed in range(12):
        edges, couplings = irregular(seed)
        plane = kac_ward._drawn(Frozen(edges), 9, None)
        found = kac_ward._solve(plane, scale * couplings, np.zeros(9))[1]
        np.testing.assert_allclose(found, correlations(edges, scale * couplings), atol=1e-6)


def test_correlations_that_nothing_confirms_are_refused(monkeypatch):
    monkeypatch.setattr(kac_ward, "_FEW", 0)
    edges, couplings = irregular(next(seed for seed in range(60) if _loses_digits(seed)))
    plane = kac_ward._drawn(Frozen(edges), 9, None)
    with pytest.raises(FloatingPointError, match="rounding changes the correlations"):
        kac_ward._solve(plane, 40 * couplings, np.zeros(9))


def _loses_digits(seed):
    """Whether the entries of the inverse alone are wrong at 40 times these couplings."""
    edges, couplings = irregular(seed)
    plane = kac_ward._drawn(Frozen(edges), 9, None)
    try:
        kac_ward._solve(plane, 40 * couplings, np.zeros(9))
    except FloatingPointError:
        return True
    return False
