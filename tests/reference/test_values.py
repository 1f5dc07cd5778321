"""The table of known values, and every formula behind it against a second one that shares no step with it."""

import doctest
import importlib
import math
import pkgutil

import numpy as np
import pytest

from lnz import reference as ref


def close(a, b, relative=1e-12):
    return abs(a - b) <= relative * max(1.0, abs(b))


@pytest.mark.parametrize("entry", ref.VALUES, ids=lambda entry: entry.id)
def test_listed_value(entry):
    computed = entry.compute()
    assert type(computed) is type(entry.value)
    assert abs(computed - entry.value) <= entry.tolerance, f"{entry.title}: {computed!r}, listed {entry.listed}"


def test_table():
    ids = [entry.id for entry in ref.VALUES]
    assert len(set(ids)) == len(ids)
    assert {i.split("-")[0] for i in ids} == {f"A{k}" for k in range(1, 16)}
    assert all(0 <= entry.tolerance <= 1e-9 * abs(entry.value) for entry in ref.VALUES)
    assert ref.named("A7-10x10").value == 2030049051145980050
    with pytest.raises(KeyError, match="A1-16x16"):
        ref.named("A99")


def test_docstring_examples():
    modules = [ref] + [importlib.import_module(m.name) for m in pkgutil.iter_modules(ref.__path__, "lnz.reference.")]
    results = [doctest.testmod(module) for module in modules]
    assert sum(r.failed for r in results) == 0
    assert sum(r.attempted for r in results) >= 8


# The Ising torus: Kaufman's products against sums over states and against the bulk.


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (2, 5), (3, 4), (4, 3), (6, 5)])
@pytest.mark.parametrize("beta", [1e-12, 0.1, ref.ISING_CRITICAL_BETA, 0.7, 2.0])
def test_kaufman_against_transfer_matrix(rows, columns, beta):
    ones = np.ones((rows, columns))
    assert close(ref.ising_torus_log_z(rows, columns, beta), ref.ising_grid_log_z(ones, ones, beta=beta), 1e-13)


def test_kaufman_negative_coupling():
    ones = np.ones((4, 6))
    exact = ref.ising_grid_log_z(-ones, -ones, beta=0.6)
    assert close(ref.ising_torus_log_z(4, 6, -0.6), exact)
    assert close(ref.ising_torus_log_z(4, 6, 0.3, coupling=-2.0), exact)
    assert ref.ising_torus_bond_sum(4, 6, -0.6) == -ref.ising_torus_bond_sum(4, 6, 0.6)


@pytest.mark.parametrize("beta", [0.01, 0.3, ref.ISING_CRITICAL_BETA, 0.45, 1.1])
def test_bond_sum_is_the_derivative(beta):
    h = 1e-4  # a difference of fourth order
    f = [ref.ising_torus_log_z(7, 6, beta + k * h) for k in (-2, -1, 1, 2)]
    assert close(ref.ising_torus_bond_sum(7, 6, beta), (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h), 1e-9)
    g = [ref.ising_bulk_log_z(beta + 0.3 + k * h) for k in (-2, -1, 1, 2)]
    assert close(ref.ising_bulk_bond_sum(beta + 0.3), (g[0] - 8 * g[1] + 8 * g[2] - g[3]) / (12 * h), 1e-9)


def test_kaufman_extremes():
    for n, m in ((2, 3), (5, 6)):
        assert close(ref.ising_torus_log_z(n, m, 0.0), n * m * math.log(2), 1e-15)
        assert ref.ising_torus_bond_sum(n, m, 0.0) == 0.0
        for k in (19.99, 20.01, 1e6):  # on both sides of the switch to the ordered states
            assert close(ref.ising_torus_log_z(n, m, k), 2 * n * m * k + math.log(2), 1e-14)
            assert close(ref.ising_torus_bond_sum(n, m, k), 2 * n * m, 1e-14)
    # The high-temperature series, ln Z = N ln 2 + 2N ln cosh K + N t⁴ + ..., where rounding would show first.
    assert close(ref.ising_torus_bond_sum(6, 6, 1e-6) / 36, 2e-6 * (1 + 1e-12), 1e-14)
    assert close(ref.ising_bulk_bond_sum(1e-9), 2e-9, 1e-20)
    assert ref.ising_torus_log_z(300, 300, 5e-324) > 0


@pytest.mark.parametrize("beta", [0.2, 0.38, 0.6, 3.0, 25.0])
def test_large_torus_approaches_the_bulk(beta):
    sites = 256 * 256
    degeneracy = math.log(2) if beta > ref.ISING_CRITICAL_BETA else 0.0  # two ordered states
    assert close((ref.ising_torus_log_z(256, 256, beta) - degeneracy) / sites, ref.ising_bulk_log_z(beta), 1e-13)
    assert close(ref.ising_torus_bond_sum(256, 256, beta) / sites, ref.ising_bulk_bond_sum(beta), 1e-11)


def test_onsager_constant():
    k = np.arange(200_000)
    terms = (-1.0) ** k / (2.0 * k + 1) ** 2
    catalan = math.fsum(terms[:-1]) + terms[-1] / 2
    assert close(ref.ising_bulk_log_z(ref.ISING_CRITICAL_BETA), 0.5 * math.log(2) + 2 * catalan / math.pi, 1e-14)


# Grids with any couplings, against enumeration.


def random_grid(seed, rows, columns, q, closed):
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(rows, columns if closed[0] else columns - 1, q, q))
    down = rng.normal(size=(rows if closed[1] else rows - 1, columns, q, q))
    return rng.normal(size=(rows, columns, q)), right, down


def enumerated(unary, right, down):
    rows, columns, q = unary.shape

    def log_weight(x):
        x = x.reshape(-1, rows, columns)
        total = np.zeros(len(x))
        for i, j in np.ndindex(rows, columns):
            total += unary[i, j, x[:, i, j]]
            if j < right.shape[1]:
                total += right[i, j, x[:, i, j], x[:, i, (j + 1) % columns]]
            if i < down.shape[0]:
                total += down[i, j, x[:, i, j], x[:, (i + 1) % rows, j]]
        return total

    return ref.brute_force_log_z(log_weight, [q] * (rows * columns))


@pytest.mark.parametrize("closed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("rows", "columns", "q"), [(3, 2, 3), (2, 3, 3), (4, 3, 2), (2, 2, 5)])
def test_grid_against_enumeration(rows, columns, q, closed):
    grid = random_grid(rows + 10 * columns, rows, columns, q, closed)
    assert close(ref.grid_log_z(*grid), enumerated(*grid))


def test_grid_of_one_line():
    for rows, columns in ((1, 6), (6, 1), (1, 1)):
        grid = random_grid(3, rows, columns, 3, (False, False))
        assert close(ref.grid_log_z(*grid), enumerated(*grid))


def test_grid_with_forbidden_states():
    pair = np.array([[0.0, 0.0], [0.0, -np.inf]])
    right, down = np.broadcast_to(pair, (10, 9, 2, 2)), np.broadcast_to(pair, (9, 10, 2, 2))
    squares = ref.grid_log_z(np.zeros((10, 10, 2)), right, down)
    assert close(squares, math.log(ref.hard_squares_count(10, 10)))
    colours = np.where(np.eye(3, dtype=bool), -np.inf, 0.0)
    right, down = np.broadcast_to(colours, (5, 3, 3, 3)), np.broadcast_to(colours, (4, 4, 3, 3))
    assert close(ref.grid_log_z(np.zeros((5, 4, 3)), right, down), math.log(ref.colourings_count(5, 4)))
    nothing = np.full((2, 2, 2), -np.inf)
    assert ref.grid_log_z(nothing, np.zeros((2, 1, 2, 2)), np.zeros((1, 2, 2, 2))) == -np.inf
    no_pair = np.full((2, 1, 2, 2), -np.inf)
    assert ref.grid_log_z(np.zeros((2, 2, 2)), no_pair, np.zeros((1, 2, 2, 2))) == -np.inf


def test_ising_and_potts_grids():
    rng = np.random.default_rng(1)
    right, down, field = rng.normal(size=(3, 4)), rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    dense = np.zeros((12, 12))
    for i, j in np.ndindex(3, 4):
        for neighbour, value in ((4 * i + (j + 1) % 4, right[i, j]), (4 * ((i + 1) % 3) + j, down[i, j])):
            dense[4 * i + j, neighbour] += value
            dense[neighbour, 4 * i + j] += value
    exact = ref.ising_brute_force_log_z(dense, field.ravel(), beta=0.8)
    assert close(ref.ising_grid_log_z(right, down, field, beta=0.8), exact)
    # Two Potts states are Ising spins at half the coupling: βδ = β/2 + (β/2) s s'.
    shift = 0.8 * (right.sum() + down.sum()) / 2
    half = ref.ising_grid_log_z(right / 2, down / 2, beta=0.8)
    assert close(ref.potts_grid_log_z(right, down, states=2, beta=0.8), half + shift)


def test_brute_force():
    assert close(
        ref.brute_force_log_z(lambda x: x @ np.array([1.0, 2.0]), [2, 3], block=4),
        math.log((1 + math.e) * (1 + math.e**2 + math.e**4)),
    )
    assert ref.brute_force_log_z(lambda x: np.full(len(x), -np.inf), [2, 2]) == -np.inf
    assert ref.brute_force_log_z(lambda x: np.zeros(len(x)), []) == 0.0
    with pytest.raises(ValueError, match="NaN"):
        ref.brute_force_log_z(lambda x: np.full(len(x), np.nan), [2])
    with pytest.raises(ValueError, match="2\\^26"):
        ref.brute_force_log_z(lambda x: np.zeros(len(x)), [2] * 27)


# Planar spin glasses.


@pytest.mark.parametrize("seed", range(5))
def test_kac_ward_against_transfer_matrix(seed):
    rng = np.random.default_rng(seed)
    for rows, columns in ((1, 1), (1, 5), (5, 1), (3, 4), (8, 7)):
        right, down = rng.normal(size=(rows, columns - 1)), rng.normal(size=(rows - 1, columns))
        assert close(ref.kac_ward_log_z(right, down, beta=1.3), ref.ising_grid_log_z(right, down, beta=1.3))


def test_kac_ward_says_when_its_digits_are_lost():
    for beta in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 40.0):
        right, down = ref.bimodal_couplings(7, 7, seed=0)
        try:
            log_z = ref.kac_ward_log_z(right, down, beta=beta)
        except ArithmeticError:
            assert beta > 3.0
            continue
        assert beta < 8.0
        assert close(log_z, ref.ising_grid_log_z(right, down, beta=beta), 1e-10)


def test_bimodal_couplings_are_listed_site_by_site():
    right, down = ref.bimodal_couplings(2, 3, seed=4)
    signs = np.random.default_rng(4).choice([-1.0, 1.0], size=7)
    first = [right[0, 0], down[0, 0], right[0, 1], down[0, 1], down[0, 2], right[1, 0], right[1, 1]]
    np.testing.assert_array_equal(signs, first)


# Counting.


def test_dominoes_and_spanning_trees():
    for rows in range(1, 8):
        for columns in range(1, 8):
            count = ref.dominoes_count(rows, columns)
            log_count = ref.dominoes_log_count(rows, columns)
            assert log_count == -math.inf if count == 0 else close(log_count, math.log(count))
    for rows, columns in ((1, 1), (1, 7), (4, 3), (6, 6)):
        laplacian = np.zeros((rows * columns, rows * columns))
        for i, j in np.ndindex(rows, columns):
            for a, b in ((i + 1, j), (i, j + 1)):
                if a < rows and b < columns:
                    step = np.zeros(rows * columns)
                    step[i * columns + j], step[a * columns + b] = 1, -1
                    laplacian += np.outer(step, step)
        exact = np.linalg.slogdet(laplacian[1:, 1:])[1] if rows * columns > 1 else 0.0
        assert close(ref.spanning_trees_log_count(rows, columns), exact)


def test_counts_of_lines_and_transposes():
    fibonacci = [2, 3]
    for n in range(1, 12):
        assert ref.hard_squares_count(1, n) == ref.hard_squares_count(n, 1) == fibonacci[n - 1]
        assert ref.colourings_count(n, 1, colours=5) == 5 * 4 ** (n - 1)
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    assert ref.hard_squares_count(3, 5) == ref.hard_squares_count(5, 3)
    assert ref.colourings_count(3, 5) == ref.colourings_count(5, 3)
    assert ref.colourings_count(1, 5, colours=4) == 4 * 3**4
    assert ref.colourings_count(4, 6, colours=2) == 2
    assert ref.colourings_count(2, 1, colours=1) == 0


# Continuous targets: the density handed to users must integrate to the log Z handed to users.


def integral_2d(log_density, low, high, points, order=8):
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(low, high, points // order + 1)
    x = ((edges[1:] + edges[:-1])[:, None] / 2 + np.diff(edges)[:, None] / 2 * nodes).ravel()
    w = (np.diff(edges)[:, None] / 2 * weights).ravel()
    total = -np.inf
    for xs, ws in zip(np.array_split(x, 16), np.array_split(w, 16), strict=True):
        values = log_density(np.stack(np.meshgrid(xs, x, indexing="ij"), axis=-1))
        total = np.logaddexp(total, np.logaddexp.reduce(values + np.log(ws)[:, None] + np.log(w), axis=None))
    return float(total)


@pytest.mark.parametrize(
    ("log_density", "log_z", "low", "high", "relative"),
    [
        (ref.gaussian_shells_log_density, ref.gaussian_shells_log_z(2), -6.0, 6.0, 1e-10),
        (ref.eggbox_log_density, ref.eggbox_log_z(), 0.0, 10 * math.pi, 1e-12),
        (ref.many_well_log_density, ref.many_well_log_z(1), -9.0, 9.0, 1e-12),
        (lambda x: ref.many_well_log_density(x, a=1.0, b=-2.0, c=0.3), ref.many_well_log_z(1, a=1.0, b=-2.0, c=0.3),
         -9.0, 9.0, 1e-12),
        (lambda x: ref.rosenbrock_log_density(x, half_width=2.0), ref.rosenbrock_log_z(half_width=2.0),
         -2.0, 2.0, 1e-10),
        (ref.product_binomial_log_density, ref.product_binomial_log_z(), 0.0, 1.0, 1e-12),
        (lambda x: ref.product_binomial_log_density(x, trials=5, successes=2),
         ref.product_binomial_log_z(trials=5, successes=2), 0.0, 1.0, 1e-12),
    ],
    ids=["shells", "eggbox", "wells", "other wells", "rosenbrock", "binomial", "small binomial"],
)  # fmt: skip
def test_density_integrates_to_log_z(log_density, log_z, low, high, relative):
    assert close(integral_2d(log_density, low, high, 1280), log_z, relative)


def test_densities_at_points_known_by_hand():
    box = 2 * math.log(10 * math.pi)
    eggbox = ref.eggbox_log_density(np.pi * np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0], [2.0, 2.0]]))
    np.testing.assert_allclose(eggbox, np.array([243.0, 1.0, 32.0, 243.0]) - box, rtol=1e-13)
    np.testing.assert_array_equal(ref.rosenbrock_log_density(np.array([[1.0, 1.0], [0.0, 1.0]])), [0.0, -101.0])
    on_shell = ref.gaussian_shells_log_density(np.array([[3.5, 2.0, 0.0], [-5.5, 0.0, 0.0]]))
    np.testing.assert_allclose(on_shell, -math.log(0.1 * math.sqrt(2 * math.pi)) - 3 * math.log(12), rtol=1e-13)
    wells = ref.many_well_log_density(np.array([[1.0, 2.0, -1.0, 0.0]]), a=-0.5, b=-6.0, c=1.0)
    np.testing.assert_allclose(wells, [5.5 - 2.0 + 4.5], rtol=1e-13)
    binomial = ref.product_binomial_log_density(np.array([0.5, 0.5]), trials=3, successes=1)
    assert close(float(binomial), math.log(3 * 0.25 * 0.75**2))


def test_shells_without_caps_keep_what_lies_outside_the_box():
    exact = integral_2d(ref.gaussian_shells_log_density, -6.0, 6.0, 1280)
    assert abs(exact - ref.named("A12-2").value) < 1e-10
    assert abs(exact - ref.named("A12-2-unclipped").value) > 1e-8


def test_shells_in_one_and_three_dimensions():
    scale = 0.1 * math.sqrt(2)
    inner, outer = 0.5 * math.erfc(-2 / scale), 0.5 * math.erfc(-0.5 / scale)  # N(2, 0.1²) on [0, ∞), on [0, 2.5]
    assert close(ref.gaussian_shells_log_z(1), math.log(2 * (inner + outer - (1 - inner)) / 12), 1e-12)
    second_moment = 2.0**2 + 0.1**2  # ∫ 4πρ² N(ρ; 2, 0.1²) dρ
    exact = math.log(2 * 4 * math.pi * second_moment / 12**3)
    assert close(ref.gaussian_shells_log_z(3, clipped=False), exact, 1e-13)


def test_rosenbrock_box_approaches_the_plane():
    boxed = ref.rosenbrock_log_z(half_width=1000.0) + 2 * math.log(2000.0)
    assert close(boxed, ref.rosenbrock_log_z(), 1e-12)


@pytest.mark.parametrize("mass_squared", [0.01, 1.0, 30.0])
def test_gaussian_chain(mass_squared):
    exact = ref.gaussian_chain_log_z(7, mass_squared=mass_squared)
    assert close(ref.phi4_chain_log_z(7, mass_squared=mass_squared, quartic=0.0), exact)
    precision = np.diag(np.full(7, mass_squared + 2)) - np.roll(np.eye(7), 1, axis=0) - np.roll(np.eye(7), -1, axis=0)
    assert close(exact, 3.5 * math.log(2 * math.pi) - 0.5 * np.linalg.slogdet(precision)[1])
    phi = np.random.default_rng(0).normal(size=(2, 3, 7))
    density = ref.phi4_chain_log_density(phi, mass_squared=mass_squared, quartic=0.0)
    np.testing.assert_allclose(density, -0.5 * np.einsum("abi,ij,abj->ab", phi, precision, phi), rtol=1e-12)


@pytest.mark.parametrize(("mass_squared", "quartic"), [(-1.0, 0.25), (2.0, 0.1), (-12.0, 3.0), (0.0, 1.0)])
def test_short_chain_against_quadrature(mass_squared, quartic):
    exact = integral_2d(
        lambda x: ref.phi4_chain_log_density(x, mass_squared=mass_squared, quartic=quartic), -6.0, 6.0, 640
    )
    assert close(ref.phi4_chain_log_z(2, mass_squared=mass_squared, quartic=quartic), exact)


def test_densities_are_minus_infinity_outside_and_keep_nan():
    cases = [
        (ref.gaussian_shells_log_density, 6.1),
        (ref.eggbox_log_density, -0.1),
        (lambda x: ref.rosenbrock_log_density(x, half_width=1.0), 1.1),
        (ref.product_binomial_log_density, 1.1),
    ]
    for log_density, beyond in cases:
        values = log_density(np.array([[[0.5, beyond], [beyond, beyond]], [[0.5, 0.5], [np.nan, 0.5]]]))
        assert values.shape == (2, 2)
        assert (values[0] == -np.inf).all()
        assert np.isfinite(values[1, 0])
        assert np.isnan(values[1, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: ref.ising_torus_log_z(1, 4, 0.3),
        lambda: ref.ising_torus_log_z(3, 4, -0.3),
        lambda: ref.ising_torus_log_z(4, 4, math.nan),
        lambda: ref.ising_bulk_log_z(math.inf),
        lambda: ref.ising_brute_force_log_z(np.array([[0.0, 1.0], [0.5, 0.0]]), np.zeros(2)),
        lambda: ref.ising_brute_force_log_z(np.eye(2), np.zeros(2)),
        lambda: ref.grid_log_z(np.full((1, 1, 2), np.nan), np.zeros((1, 0, 2, 2)), np.zeros((0, 1, 2, 2))),
        lambda: ref.grid_log_z(np.zeros((1, 1, 2)), np.zeros((1, 1, 2, 2)), np.zeros((0, 1, 2, 2))),
        lambda: ref.ising_grid_log_z(np.ones((2, 13)), np.ones((2, 13))),
        lambda: ref.ising_grid_log_z(np.ones((4, 4)), np.ones((4, 4)), beta=100.0),
        lambda: ref.kac_ward_log_z(np.full((2, 1), np.nan), np.ones((1, 2))),
        lambda: ref.hard_squares_count(0, 3),
        lambda: ref.phi4_chain_log_z(4, mass_squared=0.0, quartic=0.0),
        lambda: ref.phi4_chain_log_z(4, mass_squared=-1.0, quartic=0.0),
        lambda: ref.phi4_chain_log_z(4, mass_squared=1.0, quartic=-1.0),
        lambda: ref.phi4_chain_log_z(4, mass_squared=1e-9, quartic=0.0),
        lambda: ref.gaussian_chain_log_z(4, mass_squared=0.0),
        lambda: ref.double_well_log_z(c=0.0),
        lambda: ref.double_well_log_z(b=-1e9),
        lambda: ref.many_well_log_density(np.zeros(3)),
        lambda: ref.gaussian_shells_log_z(0),
        lambda: ref.gaussian_shells_log_z(5000),
        lambda: ref.rosenbrock_log_z(half_width=0.0),
        lambda: ref.product_binomial_log_z(trials=3, successes=4),
    ],
)
def test_bad_input_is_refused(call):
    with pytest.raises(ValueError, match=r"\.$"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ref.ising_brute_force_log_z(np.zeros((2, 2)), np.zeros(3)),
        lambda: ref.grid_log_z(np.zeros((2, 2, 2)), np.zeros((2, 1, 2, 2)), np.zeros((1, 3, 2, 2))),
        lambda: ref.grid_log_z(np.zeros((2, 2, 2)), np.zeros((3, 1, 2, 2)), np.zeros((1, 2, 2, 2))),
        lambda: ref.ising_grid_log_z(np.ones((4, 4)), np.ones((4, 4)), np.ones((3, 4))),
        lambda: ref.kac_ward_log_z(np.ones((3, 3)), np.ones((3, 3))),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises((ValueError, TypeError)):  # a TypeError where a run-time type checker looks first
        call()
