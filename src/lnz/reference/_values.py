"""Known values: every problem with its source, its listed figure and the function that computes it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lnz.reference import _combinatorics as combinatorics
from lnz.reference import _lattices as lattices
from lnz.reference import _onsager as onsager
from lnz.reference import _phi4 as phi4
from lnz.reference import _planar_glass as planar_glass
from lnz.reference import _targets as targets


@dataclass(frozen=True)
class ReferenceValue:
    """A figure known from theory, and an independent computation of it.

    Attributes:
        id: a short unique name, such as "A1-16x16".
        title: the problem with its parameters, and the quantity (log Z in nats if none is named).
        source: the formula or method, and who gave it.
        listed: the figure as it is listed, digit for digit.
        compute: a function without arguments that computes the figure again, in at most a second or so.
    """

    id: str
    title: str
    source: str
    listed: str
    compute: Callable[[], float | int]

    @property
    def value(self) -> float | int:
        """The listed figure as a number: an int for a count, else a float."""
        return int(self.listed) if self.listed.isdecimal() else float(self.listed)

    @property
    def tolerance(self) -> float:
        """The largest difference that still agrees: relative 1e-10, or half the last listed digit; zero for a count."""
        if isinstance(self.value, int):
            return 0.0
        decimals = len(self.listed.partition(".")[2])
        return max(1e-10 * abs(self.value), 0.5 * 10.0**-decimals)


def _ising() -> list[ReferenceValue]:
    beta = onsager.ISING_CRITICAL_BETA
    critical = {
        4: "15.5219154587553",
        8: "60.14178078906915",
        10: "93.61030051022211",
        16: "238.6422566351329",
        24: "536.144603523626",
        32: "952.6480795485428",
        64: "3808.672283419809",
    }
    other = [
        (16, 0.2, "188.0398879559832"),
        (16, 0.4, "225.2288467558758"),
        (16, 0.5, "263.2962104340212"),
        (16, 1.0, "512.7823078079418"),
        (4, 0.3, "12.7855233257137"),
    ]
    kaufman, formula = "Kaufman 1949: four products", "Onsager 1944"
    values = [
        ReferenceValue(
            f"A1-{n}x{n}",
            f"Ising torus {n} x {n}, J = 1, β_c",
            kaufman,
            text,
            partial(onsager.ising_torus_log_z, n, n, beta),
        )
        for n, text in critical.items()
    ]
    values += [
        ReferenceValue(
            f"A2-{n}x{n}-{b}",
            f"Ising torus {n} x {n}, J = 1, β = {b}",
            kaufman,
            text,
            partial(onsager.ising_torus_log_z, n, n, b),
        )
        for n, b, text in other
    ]
    values += [
        ReferenceValue(
            f"A3-{n}x{n}",
            f"Ising torus {n} x {n}, J = 1, β_c: E[Σ s_i s_j] per site",
            f"{kaufman}, differentiated",
            text,
            lambda n=n: onsager.ising_torus_bond_sum(n, n, beta) / n**2,
        )
        for n, text in ((16, "1.45306485281"), (32, "1.43365846614625"))
    ]
    bulk = "infinite square lattice, β_c"
    return [
        *values,
        ReferenceValue(
            "A3-bulk",
            f"Ising, {bulk}: E[Σ s_i s_j] per site, √2",
            formula,
            "1.41421356237310",
            partial(onsager.ising_bulk_bond_sum, beta),
        ),
        ReferenceValue(
            "A4",
            f"Ising, {bulk}: log Z per site, ½ ln 2 + 2G/π",
            f"{formula}: integral",
            "0.9296953983416102",
            partial(onsager.ising_bulk_log_z, beta),
        ),
    ]


def _lattice() -> list[ReferenceValue]:
    def glass(rows, columns, method):
        return method(*planar_glass.bimodal_couplings(rows, columns, seed=0))

    title = "±1 spin glass, free {0} x {0}, β = 1, seed 0"
    values = [
        ReferenceValue(f"A5-{n}x{n}-{name}", title.format(n), source, text, partial(glass, n, n, method))
        for n, name, source, text, method in (
            (10, "kac-ward", "Kac and Ward 1952: determinant", "144.18503387877", planar_glass.kac_ward_log_z),
            (10, "transfer", "transfer matrix", "144.18503387877", lattices.ising_grid_log_z),
            (32, "kac-ward", "Kac and Ward 1952: determinant", "1500.7500049954172", planar_glass.kac_ward_log_z),
        )
    ]
    potts = [
        (2, 4, "29.623892851068"),
        (2, 5, "45.920638454672"),
        (3, 3, "19.688939731847"),
        (3, 4, "34.172608137824"),
        (3, 5, "52.801145601693"),
        (3, 6, "75.571951800165"),
        (4, 4, "37.498931787159"),
        (4, 5, "57.832683491055"),
    ]
    return values + [
        ReferenceValue(
            f"A6-q{q}-{n}x{n}",
            f"Potts torus {n} x {n}, {q} states, β_c = ln(1 + √{q})",
            "transfer matrix",
            text,
            partial(lattices.potts_torus_log_z, n, n, states=q, beta=lattices.potts_critical_beta(q)),
        )
        for q, n, text in potts
    ]


def _counting() -> list[ReferenceValue]:
    squares = ["2", "7", "63", "1234", "55447", "5598861", "1280128950", "660647962955", "770548397261707"]
    squares.append("2030049051145980050")
    colourings = ["18", "246", "7812", "580986", "101596896"]
    values = [
        ReferenceValue(
            f"A7-{n}x{n}",
            f"hard squares, free {n} x {n}: count",
            "transfer matrix in integers; Baxter, Enting and Tsang 1980",
            text,
            partial(combinatorics.hard_squares_count, n, n),
        )
        for n, text in enumerate(squares, 1)
    ]
    values += [
        ReferenceValue(
            f"A8-{n}x{n}",
            f"3-colourings, free {n} x {n}: count",
            "transfer matrix in integers; Lieb 1967",
            text,
            partial(combinatorics.colourings_count, n, n),
        )
        for n, text in enumerate(colourings, 2)
    ]
    return [
        *values,
        ReferenceValue(
            "A7-10x10-log",
            "hard squares, free 10 x 10",
            "transfer matrix in integers",
            "42.15459162978",
            lambda: math.log(combinatorics.hard_squares_count(10, 10)),
        ),
        ReferenceValue(
            "A9-domino-8x8",
            "domino tilings of 8 x 8: count",
            "transfer matrix in integers",
            "12988816",
            partial(combinatorics.dominoes_count, 8, 8),
        ),
        ReferenceValue(
            "A9-domino-20x20",
            "domino tilings of 20 x 20",
            "Kasteleyn 1961; Temperley and Fisher 1961: product",
            "110.763088774543",
            partial(combinatorics.dominoes_log_count, 20, 20),
        ),
        ReferenceValue(
            "A9-trees-10x10",
            "spanning trees of 10 x 10",
            "Kirchhoff 1847: matrix-tree theorem",
            "98.4480429176376",
            partial(combinatorics.spanning_trees_log_count, 10, 10),
        ),
    ]


def _continuous() -> list[ReferenceValue]:
    shells = {
        5: "-5.673601236",
        10: "-14.59049107",
        20: "-36.08654764",
        30: "-60.12776734",
        50: "-112.4151236",
        100: "-255.8343348",
    }
    transfer, quadrature = "transfer operator, Gauss-Legendre", "Gauss-Legendre quadrature"
    binomial = "two-parameter binomial, n = 100, y = 50"
    rows = [
        (
            "A10-quartic",
            "φ⁴ chain, N = 64, m² = -1, λ = 0.25",
            transfer,
            "51.1911464460",
            partial(phi4.phi4_chain_log_z, 64, mass_squared=-1.0, quartic=0.25),
        ),
        (
            "A10-free",
            "φ⁴ chain, N = 64, m² = 1, λ = 0",
            transfer,
            "28.0145093213",
            partial(phi4.phi4_chain_log_z, 64, mass_squared=1.0, quartic=0.0),
        ),
        (
            "A10-fourier",
            "Gaussian chain, N = 64, m² = 1",
            "Fourier modes",
            "28.0145093213",
            partial(phi4.gaussian_chain_log_z, 64, mass_squared=1.0),
        ),
        ("A11-pair", "many-well, one pair", quadrature, "10.2934797071", partial(targets.many_well_log_z, 1)),
        (
            "A11-well",
            "double well: the integral itself",
            quadrature,
            "11784.509265128",
            lambda: math.exp(targets.double_well_log_z()),
        ),
        ("A11", "many-well, 32 dimensions", quadrature, "164.695675313", targets.many_well_log_z),
        *(
            (
                f"A12-{d}",
                f"two Gaussian shells, {d} dimensions, prior U[-6,6]^{d}",
                "radial quadrature; Feroz, Hobson and Bridges 2009",
                text,
                partial(targets.gaussian_shells_log_z, d),
            )
            for d, text in shells.items()
        ),
        # In two dimensions the part of the shells outside the box matters in the ninth digit. Quadrature over the radius
        # alone keeps that part, although the prior is zero there; both figures are here.
        (
            "A12-2",
            "two Gaussian shells, 2 dimensions, prior U[-6,6]^2",
            "radial quadrature less the caps outside the box",
            "-1.745641884522",
            partial(targets.gaussian_shells_log_z, 2),
        ),
        (
            "A12-2-unclipped",
            "two Gaussian shells, 2 dimensions, with the part outside the prior's box",
            "radial quadrature; Feroz, Hobson and Bridges 2009",
            "-1.745641872",
            partial(targets.gaussian_shells_log_z, 2, clipped=False),
        ),
        (
            "A13",
            "eggbox, prior U[0,10π]²",
            "trapezoidal rule over a period; Feroz, Hobson and Bridges 2009",
            "235.85594033225",
            targets.eggbox_log_z,
        ),
        ("A14-plane", "Rosenbrock on R²", "ln(π/10)", "-1.157855207", targets.rosenbrock_log_z),
        (
            "A14-box",
            "Rosenbrock, prior U[-5,5]²",
            quadrature,
            "-5.804132364",
            partial(targets.rosenbrock_log_z, half_width=5.0),
        ),
        ("A15", binomial, "[ψ(n+2) - ψ(y+1)]/(n+1)", "-4.9745518713212", targets.product_binomial_log_z),
    ]
    return [ReferenceValue(*row) for row in rows]


VALUES: tuple[ReferenceValue, ...] = (*_ising(), *_lattice(), *_counting(), *_continuous())
"""Every listed figure, for one loop: `abs(v.compute() - v.value) <= v.tolerance` for all v."""


def named(identifier: str) -> ReferenceValue:
    """The entry of VALUES with this id. Raises KeyError, with the ids there are, for any other."""
    for entry in VALUES:
        if entry.id == identifier:
            return entry
    raise KeyError(f"No reference value {identifier!r}. There are: {', '.join(v.id for v in VALUES)}.")
