"""Forests, narrow lattices, complete graphs and bipartite ones, against lists of states, elimination and known values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import listing
import lnz
from listing import Listed
from lnz import reference
from lnz._core.numerics import float64
from lnz.routes._exact import transfer_matrix

ELIMINATION = lnz.routes.Elimination(search_seconds=0)


def compiled(route):
    """log Z and its gradient by a route in JAX, compiled without the optimisations that cost more than they save here."""
    return jax.jit(jax.value_and_grad(lambda model: lnz.log_partition(model, route=route).value))


def eliminated(model):
    return jax.value_and_grad(lambda m: lnz.log_partition(m, route=ELIMINATION).value)(model)


def agree(found, wanted, atol=1e-12):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13, atol=atol)


# ------------------------------------------------------------------------------------------------------------- forests


def small_forest(seed):
    """Up to 7 variables of 1 to 4 values; constants, several tables of one variable or pair, in either order, some zeros."""
    rng = np.random.default_rng(seed)
    cardinalities = tuple(int(k) for k in rng.integers(1, 5, size=rng.integers(1, 8)))
    n, strength, zeros = len(cardinalities), rng.choice([0.5, 3.0, 60.0, 700.0]), rng.choice([0.0, 0.15])
    number = rng.permutation(n)
    scopes = [()] if rng.random() < 0.3 else []
    for i in range(n):
        scopes += [(int(number[i]),)] * int(rng.integers(0, 3))
        if i and rng.random() < 0.8:
            pair = [int(number[i]), int(number[rng.integers(i)])]
            scopes += [tuple(int(v) for v in rng.permutation(pair)) for _ in range(rng.integers(1, 3))]
    order = rng.permutation(len(scopes))
    scopes = [scopes[f] for f in order]
    tables = [strength * rng.normal(size=[cardinalities[i] for i in scope]) for scope in scopes]
    tables = [np.where(rng.random(t.shape) < (zeros if t.ndim else 0), -np.inf, t) for t in tables]
    return Listed(cardinalities, scopes, tables)


def union(parts):
    """One graph of many, side by side: one compilation serves them all."""
    cardinalities, scopes, tables = [], [], []
    for part in parts:
        scopes += [tuple(i + len(cardinalities) for i in scope) for scope in part.scopes]
        tables += part.tables
        cardinalities += part.cardinalities
    return lnz.FactorGraph(cardinalities, scopes, tables)


def test_small_forests_against_the_list_of_states():
    """log Z and the marginals of every factor of 250 graphs, weak and violent, with zeros."""
    parts = [part for part in map(small_forest, range(400)) if part.log_z > -np.inf][:250]
    assert len(parts) == 250
    assert sum(np.isneginf(table).any() for part in parts for table in part.tables) > 50
    graph = union(parts)
    log_z, beliefs = compiled(lnz.routes.Forest())(graph)
    assert float(log_z) == pytest.approx(sum(part.log_z for part in parts), rel=1e-13)
    wanted = [part.marginal(scope) for part in parts for scope in part.scopes]
    agree(list(beliefs.tables), wanted, 1e-11)


def test_a_forest_without_possible_states_has_log_z_minus_infinity():
    graph = lnz.FactorGraph([2, 2, 3], [(0, 1), (1,)], [np.array([[0, -np.inf], [1, -np.inf]]), np.array([-np.inf, 0])])
    log_z, beliefs = compiled(lnz.routes.Forest())(graph)
    assert float(log_z) == -np.inf
    agree(beliefs.tables, [np.zeros((2, 2)), np.zeros(2)])


def test_long_chains_and_stars():
    """10,000 spins, in float64 and in float32: neither the terms nor their rounding grow along the way."""
    n, rng = 10_000, np.random.default_rng(1)
    j, h = rng.normal(size=n) * 2, rng.normal(size=n)
    forward, signs = np.zeros(2), np.array([-1.0, 1.0])
    for i in range(n):
        forward = forward + h[i] * signs
        if i < n - 1:
            forward = np.logaddexp.reduce(forward[:, None] + j[i] * np.outer(signs, signs), axis=0)
    chain_log_z = np.logaddexp.reduce(forward)
    arms = lambda s: np.logaddexp(h[1:] + j[1:] * s, -h[1:] - j[1:] * s).sum() + h[0] * s  # noqa: E731
    star_log_z = np.logaddexp(arms(1), arms(-1))
    hub = np.stack([np.zeros(n - 1, int), np.arange(1, n)], 1)

    def check(model, truth, eps):
        estimate = jax.jit(lambda m: lnz.log_partition(m, route=lnz.routes.Forest()))(model)
        assert abs(float(estimate.value) - truth) < 20 * eps * truth
        assert float(estimate.lower) - n * eps <= truth <= float(estimate.upper) + n * eps
        assert float(estimate.upper - estimate.lower) < 1e4 * eps * truth

    chain = lnz.Ising.lattice((n,), j[None], h, periodic=False)
    assert isinstance(lnz.choose(chain).route, lnz.routes.Forest)
    check(chain, chain_log_z, 2e-16)
    check(lnz.Ising.sparse(hub, j[1:], h, n=n), star_log_z, 2e-16)
    with float64(False):
        chain = lnz.Ising.lattice((n,), j[None].astype(np.float32), h.astype(np.float32), periodic=False)
        check(chain, chain_log_z, 1.2e-7)


def test_evidence_parts_the_cycle_it_lies_on():
    ring = lnz.FactorGraph([3] * 4, [(0, 1), (1, 2), (3, 2), (0, 3)], [np.zeros((3, 3))], table_of=[0] * 4)
    assert "cycle" in str(lnz.routes.Forest().unsupported_reason(ring))
    assert lnz.routes.Forest().unsupported_reason(ring.evidence({2: 1})) is None


# ------------------------------------------------------------------------------------------------------------ lattices


def glass():
    right, down = reference.bimodal_couplings(10, 10, seed=0)
    strength = np.zeros((2, 10, 10))
    strength[0, :-1], strength[1, :, :-1] = down, right
    return lnz.Ising.lattice((10, 10), strength, periodic=False)


@pytest.mark.parametrize(
    ("energy", "known"),
    [
        (lnz.Ising.lattice((8, 8), reference.ISING_CRITICAL_BETA, periodic=True), "A1-8x8"),
        (lnz.Potts.lattice((5, 5), reference.potts_critical_beta(3), q=3, periodic=True), "A6-q3-5x5"),
        (glass(), "A5-10x10-kac-ward"),
    ],
    ids=["A1", "A6", "A5"],
)
def test_known_lattices(energy, known):
    estimate = jax.jit(lambda e: lnz.log_partition(e, route=lnz.routes.TransferMatrix()))(energy)
    assert float(estimate.value) == pytest.approx(reference.named(known).value, rel=1e-12)
    assert float(estimate.upper - estimate.lower) < 1e-11 * float(estimate.value)


def lattice(seed, shape, periodic, q):
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=(len(shape), *shape))
    if q == 2:
        return lnz.Ising.lattice(shape, strength, rng.normal(size=shape), periodic=periodic)
    return lnz.Potts.lattice(shape, strength, rng.normal(size=(*shape, q)), q=q, periodic=periodic)


@pytest.mark.parametrize(
    ("shape", "periodic", "q", "stored"),
    [
        ((11, 5), (False, True), 2, 0),  # a backward pass in stretches, with a rest
        ((2, 3, 2), (True, False, True), 3, 2**28),
    ],
    ids=str,
)
def test_lattices_against_elimination(shape, periodic, q, stored, monkeypatch):
    monkeypatch.setattr(transfer_matrix, "_STORED", stored)
    model = lattice(3, shape, periodic, q)
    agree(compiled(lnz.routes.TransferMatrix())(model), eliminated(model))


def test_layers_that_are_bound_too_strongly_are_refused():
    """Fields may be as strong as they like, and so may the bonds inside layers."""
    route, strength = lnz.routes.TransferMatrix(), np.zeros((2, 12, 4))
    strength[1] = 400 * np.random.default_rng(0).normal(size=(12, 4))
    fields = 500 * np.random.default_rng(1).normal(size=(12, 4))

    def make(j, h):
        j, h = np.broadcast_to(j, (2, 12, 4)), np.broadcast_to(h, (12, 4))
        return lnz.Ising.lattice((12, 4), j, h, periodic=False)

    run = compiled(route)
    for model in (make(strength, fields), make(37.0, fields), make(-37.0, 0.1)):
        assert route.unsupported_reason(model) is None
        agree(run(model), eliminated(model))
    strong = make(40.0, 0.1)
    with pytest.raises(ValueError, match="the bonds between its layers span 640 nats, more than the 602"):
        lnz.log_partition(strong, route=route)
    assert not isinstance(lnz.choose(strong).route, lnz.routes.TransferMatrix)
    with pytest.raises(Exception, match="sums may underflow"):
        jax.block_until_ready(run(strong))


# ---------------------------------------------------------------------------------------------------- complete graphs


def complete(n, coupling):
    return coupling * (np.ones((n, n)) - np.eye(n))


def test_complete_graphs_against_the_list_of_states():
    """Every coupling has a slope of its own, also where fields are equal, nearly equal, or all the same."""
    n, rng = 8, np.random.default_rng(4)
    apart = rng.normal(size=n)
    some = apart.copy()
    some[[2, 5]] = some[1]
    near = some.copy()
    near[[2, 5]] += [1e-8, -3e-9]
    noise = 0.3 + 1e-8 * rng.normal(size=n)
    run = compiled(lnz.routes.CompleteGraph())
    for coupling in (-0.7, 0.0, 0.4, 3.0):
        for fields, close in ((apart, 1e-12), (some, 1e-12), (near, 1e-7), (noise, 1e-7), (np.full(n, 0.3), 1e-12)):
            couplings = complete(n, coupling)
            log_z, pairs, means = listing.ising(couplings, fields)
            found, slopes = run(lnz.Ising(couplings, fields))
            assert float(found) == pytest.approx(log_z, rel=1e-13)
            np.testing.assert_allclose(slopes.couplings.strength, 0.5 * pairs * (1 - np.eye(n)), rtol=0, atol=close)
            np.testing.assert_allclose(slopes.fields, means, rtol=0, atol=1e-12)


def test_correlations_of_many_spins_keep_their_digits():
    """Against a sum over the other spins in extended precision, for two sites and for the two whose fields are closest."""
    n, rng = 300, np.random.default_rng(5)
    fields = rng.normal(size=n)
    close = np.argsort(fields)[np.argmin(np.diff(np.sort(fields))) + np.arange(2)]
    fields[close[0]] = fields[close[1]] + 1e-5
    fields = fields.astype(np.float32).astype(float)
    coupling = float(np.float32(1.3 / n))

    def pairs_in(dtype):
        model = lnz.Ising(complete(n, coupling).astype(dtype), fields.astype(dtype))
        return 2 * np.asarray(compiled(lnz.routes.CompleteGraph())(model)[1].couplings.strength, float)

    pairs = pairs_in(float)
    with float64(False):
        np.testing.assert_allclose(pairs_in(np.float32), pairs, rtol=0, atol=1e-6)
    up = 1 / (1 + np.exp(-2 * fields.astype(np.longdouble)))
    for (i, j), atol in (((0, 1), 1e-12), (close, 2e-9)):
        ways = np.ones(1, np.longdouble)
        for p in np.delete(up, [i, j]):
            ways = np.append(ways * (1 - p), 0) + np.append(0, ways * p)
        joint = np.zeros((2, 2), np.longdouble)
        for a, b in np.ndindex(2, 2):
            total = 2.0 * (np.arange(n - 1) + a + b) - n
            chance = (up[i] if a else 1 - up[i]) * (up[j] if b else 1 - up[j])
            joint[a, b] = chance * np.sum(ways * np.exp(coupling / 2 * total**2))
        mean = (joint[0, 0] + joint[1, 1] - joint[0, 1] - joint[1, 0]) / joint.sum()
        assert float(pairs[i, j] - mean) == pytest.approx(0, abs=atol)
        assert pairs[i, j] == pairs[j, i]


def test_potts_states_are_counted_by_colours():
    model = lnz.Potts(complete(5, 0.8), np.tile(np.random.default_rng(3).normal(size=3), (5, 1)), q=3)
    agree(compiled(lnz.routes.CompleteGraph())(model), eliminated(model))


def test_a_magnet_of_a_thousand_spins():
    """Binomial coefficients and site after site agree, and log Z = n log 2 without coupling."""
    n = 1000
    same = lnz.Ising(complete(n, 1.1 / n), 0.02)
    nearly = lnz.Ising(complete(n, 1.1 / n), np.append(np.full(n - 1, 0.02), 0.02 + 1e-15))
    run = jax.jit(lambda m: lnz.log_partition(m, route=lnz.routes.CompleteGraph()).value)
    assert float(run(same)) == pytest.approx(float(run(nearly)), rel=1e-13)
    assert float(run(lnz.Ising(complete(n, 0.0)))) == pytest.approx(n * np.log(2), rel=1e-13)
    assert isinstance(lnz.choose(same).route, lnz.routes.CompleteGraph)


# ---------------------------------------------------------------------------------------------------- bipartite graphs


def test_the_smaller_side_of_a_bipartite_graph():
    """A few sites between two hundred others; components are turned so that the smaller class of each is listed."""
    rng = np.random.default_rng(6)
    edges = np.array([(a, b) for a in range(4) for b in range(4, 200) if rng.random() < 0.7] + [(200, 201), (200, 202)])
    model = lnz.Ising.sparse(edges, rng.normal(size=len(edges)), rng.normal(size=204), n=204)
    assert lnz.capabilities.collapsed(model).space == lnz.Binary(5)
    assert isinstance(lnz.choose(model).route, lnz.routes.Enumeration)
    log_z = jax.jit(lambda m: lnz.log_partition(m, route=lnz.routes.Enumeration()).value)(model)
    assert float(log_z) == pytest.approx(float(lnz.log_partition(model, route=ELIMINATION).value), rel=1e-13)


def test_odd_cycles_and_large_sides_are_left_as_they_are():
    triangle = lnz.Ising.sparse([[0, 1], [1, 2], [2, 0]], 0.3, n=4)
    assert triangle.collapsed() is triangle
    ladder = lnz.Ising.sparse([(i, i + 1) for i in range(99)], 0.3, n=100)
    assert ladder.collapsed() is ladder


# ------------------------------------------------------------------------------------------------------------ choosing


RING = [[0, 1], [1, 2], [2, 0]]


@pytest.mark.parametrize(
    ("route", "model", "why"),
    [
        (lnz.routes.Forest(), lnz.Gaussian([0.0], [1.0]), "Gaussian has no factors"),
        (lnz.routes.Forest(), lnz.Ising(np.zeros((3, 3))), "the width of its graph is at least 2"),
        (lnz.routes.Forest(), lnz.Ising.sparse(RING, 0.2, n=5), "its pairs have a cycle"),
        (
            lnz.routes.Forest(),
            lnz.FactorGraph([2] * 3, [(0, 1, 2)], [np.zeros((2, 2, 2))]),
            "factor 0 joins 3 variables",
        ),
        (
            lnz.routes.Forest(),
            lnz.FactorGraph([9000, 2], [(0, 1)], [np.zeros((9000, 2))]),
            "one variable has 9,000 values",
        ),
        (lnz.routes.TransferMatrix(), lnz.Ising.sparse(RING, 0.2, n=3), "its sites are not a lattice"),
        (lnz.routes.TransferMatrix(), lnz.Gaussian([0.0], [1.0]), "Gaussian is not an Ising or Potts model"),
        (lnz.routes.TransferMatrix(), lattice(0, (30, 30), False, 2), r"a layer of 30 sites has 2\^30 states"),
        (
            lnz.routes.TransferMatrix(max_states=9),
            lattice(0, (4, 3), True, 2),
            "two layers of a periodic lattice have 64",
        ),
        (lnz.routes.CompleteGraph(), lnz.Ising.sparse(RING, 0.2, n=3), "its couplings are not a dense matrix"),
        (lnz.routes.CompleteGraph(), lnz.Ising([[0, 1.0, 1], [1, 0, 2], [1, 2, 0]]), "its couplings are not all equal"),
        (
            lnz.routes.CompleteGraph(max_sites=2),
            lnz.Ising(complete(3, 1.0), np.arange(3.0)),
            "its 3 sites are more than max_sites",
        ),
        (lnz.routes.CompleteGraph(), lnz.Potts(complete(3, 1.0), np.eye(3), q=3), "its sites have different fields"),
        (lnz.routes.CompleteGraph(), lnz.Potts(np.zeros((3, 2, 3, 2)), q=2), "its couplings are tables"),
        (lnz.routes.CompleteGraph(), lnz.Gaussian([0.0], [1.0]), "Gaussian is not an Ising or Potts model"),
    ],
)
def test_refusals(route, model, why):
    with pytest.raises(ValueError, match=f"{type(route).__name__} does not support .*: {why}"):
        lnz.log_partition(model, route=route)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="max_states must be"):
        lnz.routes.TransferMatrix(max_states=0)
    with pytest.raises(ValueError, match="max_sites must be"):
        lnz.routes.CompleteGraph(max_sites=-1)


def test_traced_couplings_are_looked_at_as_it_runs_and_left_by_choose():
    unequal = complete(12, 0.1)
    unequal[2, 3] = unequal[3, 2] = 0.2

    @jax.jit
    def log_z(j):
        model = lnz.Ising(j, 0.2)
        assert "its couplings are traced" in str(lnz.routes.CompleteGraph().unsupported_reason(model))
        return lnz.log_partition(model, route=lnz.routes.CompleteGraph()).value

    assert np.isfinite(float(log_z(complete(12, 0.1))))
    with pytest.raises(Exception, match="its couplings are not all equal"):
        log_z(unequal).block_until_ready()


def test_second_derivatives_by_counting_are_refused():
    def log_z(j):
        return lnz.log_partition(
            lnz.Ising(j * jnp.asarray(complete(4, 1.0)), 0.1), route=lnz.routes.CompleteGraph()
        ).value

    with pytest.raises(ValueError, match="CompleteGraph gives first derivatives only"):
        jax.eval_shape(jax.grad(jax.grad(log_z)), jnp.asarray(0.3))


def test_expectations_over_too_many_states_are_refused():
    with pytest.raises(ValueError, match="TransferMatrix gives log Z and its gradient"):
        lnz.expectation(lattice(7, (9, 9), False, 2), jnp.sum, route=lnz.routes.TransferMatrix())


@pytest.mark.parametrize(
    ("model", "route"),
    [
        (lnz.Ising(np.zeros((4, 4))), lnz.routes.Enumeration),
        (lnz.Ising.lattice((40,), 0.3, 0.1, periodic=False), lnz.routes.Forest),
        (
            lnz.FactorGraph([3] * 9, [(i, i + 1) for i in range(8)], [np.zeros((3, 3))], table_of=[0] * 8),
            lnz.routes.Forest,
        ),
        (lnz.Ising.lattice((40,), 0.3, 0.1, periodic=True), lnz.routes.TransferMatrix),
        (lattice(0, (6, 40), False, 2), lnz.routes.TransferMatrix),
        (lattice(0, (6, 6), True, 2), lnz.routes.TransferMatrix),
        (lnz.Ising.lattice((10, 10), 0.3, periodic=True), lnz.routes.Torus),
        (lnz.Ising.lattice((18, 18), 0.3, periodic=False), lnz.routes.KacWard),
        (lnz.Potts.lattice((5, 30), 0.3, q=3, periodic=(True, False)), lnz.routes.TransferMatrix),
        (lnz.Potts(complete(30, 0.1), q=3), lnz.routes.CompleteGraph),
    ],
)
def test_choose_takes_the_structure(model, route):
    assert type(lnz.choose(model).route) is route


@pytest.mark.parametrize("periodic", [True, False])
def test_choose_is_quick_about_large_lattices(periodic):
    """A width that is known without looking."""
    choice = lnz.choose(lattice(0, (500, 500), periodic, 2))
    assert "the width of its graph is at least 500" in choice.why


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lnz.Ising.lattice((32, 32), 0.44, 0.0, periodic=True), "Torus"),
        (lnz.Ising.lattice((5, 5), -0.3, 0.0, periodic=True), "TransferMatrix"),
        (lnz.Ising.lattice((24, 24), 0.44, 0.0, periodic=False), "KacWard"),
        (lnz.Ising(0.01 * (1 - jnp.eye(40))), "CompleteGraph"),
    ],
)
def test_the_route_under_grad_is_that_of_the_plain_call(model, name):
    seen = []

    def value(m):
        seen.append(type(lnz.choose(m).route).__name__)
        return lnz.log_partition(m).value

    value(model)
    found = jax.grad(value)(model)
    assert seen == [name] * 2
    named = jax.grad(lambda m: lnz.log_partition(m, route=getattr(lnz.routes, name)()).value)(model)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(named), strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_values_are_hidden_the_refusal_names_the_exact_route():
    torus = lnz.Ising.lattice((32, 32), 0.44, 0.0, periodic=True)
    for f in (jax.jit(lambda m: lnz.log_partition(m).value), jax.jit(jax.grad(lambda m: lnz.log_partition(m).value))):
        with pytest.raises(ValueError, match=r"pass key=.*or name an exact route.*name route=lnz.routes.Torus\(\)"):
            f(torus)
    lattice = lnz.Ising.lattice((5, 5), 0.3, 0.0, periodic=False)  # two derivatives: by a route that has them

    def of_fields(h):
        return lnz.log_partition(eqx.tree_at(lambda m: m.fields, lattice, h)).value

    assert np.isfinite(jax.hessian(of_fields)(lattice.fields)).all()
