"""Models whose log Z is known, as energies: a list with formula and source of each."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from lnz import reference
from lnz._core.energy import Energy, FunctionEnergy, Gradient
from lnz._core.spaces import Binary, Box, Categorical, Real
from lnz._models.independent import Gaussian
from lnz._models.pairwise import Ising, Potts
from lnz._models.rbm import RBM
from lnz.reference._names import check_names


@dataclasses.dataclass(frozen=True)
class ReferenceModel:
    """A model whose log Z is known by a computation that shares nothing with the routes.

    Attributes:
        name: a short unique name, such as "torus-8x8-critical".
        title: what it is, with its parameters.
        source: the formula or method behind log Z, and who gave it.
        build: makes the energy; its parameters are in the widest dtype that JAX is set to.
        compute: log Z in nats, and the known slopes of log Z: numbers that `slopes` turns into a gradient.
        slopes: from the energy and those numbers, the arrays of ∇_θ log Z in the order of the energy's arrays; None where no gradient is known.
    """

    name: str
    title: str
    source: str
    build: Callable[[], Energy]
    compute: Callable[[], tuple[float, Any]]
    slopes: Callable[[Any, Any], tuple[Any, ...]] | None = None

    @functools.cached_property
    def _computed(self) -> tuple[float, Any]:
        return self.compute()

    @property
    def log_z(self) -> float:
        """log Z, in nats."""
        return float(self._computed[0])

    def energy(self) -> Energy:
        """The energy."""
        return self.build()

    def gradient(self) -> Gradient:
        """∇_θ log Z = E_p[-∂_θ E], a pytree like the energy's float arrays, or None where it is not known."""
        if self.slopes is None:
            return None
        energy = eqx.filter(self.energy(), eqx.is_inexact_array)
        leaves, structure = jax.tree.flatten(energy)
        known = self.slopes(energy, self._computed[1])
        filled = [jnp.asarray(np.broadcast_to(k, a.shape), a.dtype) for k, a in zip(known, leaves, strict=True)]
        return jax.tree.unflatten(structure, filled)


def reference_models(*names: str) -> tuple[ReferenceModel, ...]:
    """Models whose log Z, and often ∇ log Z, is known exactly: ground truth for any estimator.

    Args:
        names: the models; all where none is given.

    Raises:
        ValueError: for an unknown name; the message lists the names.

    Example:
        >>> import lnz
        >>> (torus,) = lnz.reference.reference_models("torus-4x4-hot")
        >>> round(torus.log_z, 10), torus.source
        (12.7855233257, 'Kaufman 1949: four products')
        >>> round(float(lnz.log_partition(torus.energy()).value), 4)
        12.7855
    """
    check_names(names)
    known = {model.name: model for model in MODELS}
    return tuple(known[name] for name in names) if names else MODELS


# ------------------------------------------------------------------------------------------------------------ lattices

_CRITICAL = reference.ISING_CRITICAL_BETA


def _torus(n: int, beta: float, how: str) -> ReferenceModel:
    def compute() -> tuple[float, float]:
        return reference.ising_torus_log_z(n, n, beta), reference.ising_torus_bond_sum(n, n, beta)

    shown = "β_c" if beta == _CRITICAL else f"β = {beta}"
    return ReferenceModel(
        f"torus-{n}x{n}-{how}",
        f"Ising torus {n} x {n}, J = 1, {shown}",
        "Kaufman 1949: four products",
        lambda: Ising.lattice((n, n), beta, periodic=True),
        compute,
        lambda _, bonds: (bonds, 0.0),
    )


def _disguised(n: int) -> ReferenceModel:
    """The critical torus with every spin redefined by a random sign: it looks like a glass, with one planted state of least energy."""

    def build() -> Energy:
        sign = np.random.default_rng(5).choice([-1.0, 1.0], size=(n, n))
        couplings = _CRITICAL * np.stack([sign * np.roll(sign, -1, 0), sign * np.roll(sign, -1, 1)])
        return Ising.lattice((n, n), couplings, periodic=True)

    def slopes(energy: Any, bonds: float) -> tuple[Any, ...]:
        return np.sign(energy.couplings.strength) * bonds / (2 * n * n), 0.0

    def compute() -> tuple[float, float]:
        return reference.ising_torus_log_z(n, n, _CRITICAL), reference.ising_torus_bond_sum(n, n, _CRITICAL)

    title, source = f"planted state on an Ising torus {n} x {n}, β_c", "Mattis 1976: a gauge of the uniform torus"
    return ReferenceModel(f"planted-{n}x{n}", title, source, build, compute, slopes)


def _glass(n: int) -> ReferenceModel:
    def build() -> Energy:
        right, down = reference.bimodal_couplings(n, n, seed=0)
        couplings = np.zeros((2, n, n))
        couplings[0, : n - 1], couplings[1, :, : n - 1] = down, right
        return Ising.lattice((n, n), couplings, periodic=False)

    def compute() -> tuple[float, None]:
        return reference.kac_ward_log_z(*reference.bimodal_couplings(n, n, seed=0)), None

    title, source = f"±1 spin glass, free {n} x {n}, β = 1", "Kac and Ward 1952: determinant"
    return ReferenceModel(f"glass-{n}x{n}", title, source, build, compute)


def _potts(q: int, n: int) -> ReferenceModel:
    beta = reference.potts_critical_beta(q)
    return ReferenceModel(
        f"potts-{q}-{n}x{n}",
        f"Potts torus {n} x {n}, {q} states, β_c = ln(1 + √{q})",
        "transfer matrix",
        lambda: Potts.lattice((n, n), beta, q=q, periodic=True),
        lambda: (reference.potts_torus_log_z(n, n, states=q, beta=beta), None),
    )


def _clashes(values: Any) -> Any:
    """An energy that is ∞ where two neighbours on a grid conflict, by a function of both."""

    def energy(x: Any) -> Any:
        clash = jnp.any(values(x[1:], x[:-1])) | jnp.any(values(x[:, 1:], x[:, :-1]))
        return jnp.where(clash, jnp.inf, jnp.zeros(()))

    return energy


_hard_squares = _clashes(lambda a, b: (a > 0) & (b > 0))
_colourings = _clashes(lambda a, b: a == b)


def _counted(name: str, title: str, source: str, energy: Any, space: Any, count: Callable[[], int]) -> ReferenceModel:
    return ReferenceModel(name, title, source, lambda: FunctionEnergy(energy, space), lambda: (math.log(count()), None))


# ---------------------------------------------------------------------------------------------------- sums with a gradient


def _ring() -> ReferenceModel:
    n, j, h = 20, 0.8, -0.3
    edges = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    return ReferenceModel(
        "ring-20",
        "Ising ring of 20 spins, J = 0.8, h = -0.3",
        "Ising 1925: eigenvalues of the 2 x 2 transfer matrix",
        lambda: Ising.sparse(edges, j, h, n=n),
        lambda: reference.ring_sum(n, j, h),
        lambda _, found: (found[0] / n, found[1] / n),
    )


def _curie_weiss(n: int, j: float, h: float) -> ReferenceModel:
    off = 1.0 - np.eye(n)
    return ReferenceModel(
        f"complete-{n}",
        f"Curie-Weiss: {n} spins, every pair coupled by {j:g}, h = {h:g}: two phases of unequal weight",
        "sum over the number of spins that are up",
        lambda: Ising(j * off, np.full(n, h)),
        lambda: reference.complete_graph_sum(n, j, h),
        lambda _, found: (off * found[0] / (n * (n - 1)), found[1] / n),
    )


def _small_glass() -> ReferenceModel:
    rng = np.random.default_rng(12)
    couplings, fields = np.triu(0.5 * rng.normal(size=(12, 12)), 1), 0.3 * rng.normal(size=12)
    return ReferenceModel(
        "sherrington-kirkpatrick-12",
        "spin glass: 12 spins, Gaussian couplings between all pairs, Gaussian fields",
        "list of 4,096 states",
        lambda: Ising(couplings + couplings.T, fields),
        lambda: reference.ising_sum(couplings + couplings.T, fields),
        lambda _, found: found,
    )


def _rbm(name: str, title: str, parameters: Callable[[], tuple[np.ndarray, ...]]) -> ReferenceModel:
    return ReferenceModel(
        name,
        title,
        "sum over all states of the hidden layer",
        lambda: RBM.from_parameters(*parameters()),
        lambda: reference.rbm_sum(*parameters()),
        lambda _, found: found,
    )


def _patterns() -> tuple[np.ndarray, ...]:
    """Every hidden unit stores a pattern of ±1, and half of the states of each unit are as probable as the other half."""
    weights = 1.2 * np.random.default_rng(7).choice([-1.0, 1.0], size=(24, 6))
    return weights, -0.5 * weights.sum(axis=1), -0.5 * weights.sum(axis=0)


def _generic() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(30, 8)), rng.normal(size=30), rng.normal(size=8)


def _two_modes() -> tuple[np.ndarray, ...]:
    """Two modes, all units off and all units on: annealing from independent units finds one of them first."""
    return np.full((24, 6), 1.5), np.full(24, -4.5), np.full(6, -17.7)


def _hidden_mode() -> tuple[np.ndarray, ...]:
    """Two modes, units off with the larger entropy and all on with the larger weight: from independent units no chain reaches the latter."""
    return np.full((40, 8), 1.5), np.full(40, -2.28), np.full(8, -48.0)


def _needle(x: Any) -> Any:
    """-30 at the state 0101…, 0 at all others, so that no chain finds it."""
    return jnp.where(jnp.all(x == jnp.arange(40, dtype=x.dtype) % 2), -30.0, jnp.zeros(()))


# ---------------------------------------------------------------------------------------------------------- continuous


def _density(
    name: str, title: str, source: str, log_density: Any, space: Any, log_z: Callable[[], float]
) -> ReferenceModel:
    def build() -> Energy:
        return FunctionEnergy(functools.partial(_negative, log_density), space)

    return ReferenceModel(name, title, source, build, lambda: (log_z(), None))


def _negative(log_density: Any, x: Any) -> Any:
    return -log_density(x)


def _chain_energy(parameters: Any, x: Any) -> Any:
    mass_squared, quartic = parameters
    return -reference.phi4_chain_log_density(x, mass_squared=mass_squared, quartic=quartic)


def _field(name: str, mass_squared: float, quartic: float) -> ReferenceModel:
    n = 64

    def build() -> Energy:
        dtype = jnp.result_type(float)
        parameters = jnp.asarray(mass_squared, dtype), jnp.asarray(quartic, dtype)
        return FunctionEnergy(jax.tree_util.Partial(_chain_energy, parameters), Real(n))

    def free() -> tuple[float, float]:
        spectrum = mass_squared + 4 * np.sin(np.pi * np.arange(n) / n) ** 2
        return reference.gaussian_chain_log_z(n, mass_squared=mass_squared), float(np.mean(1 / spectrum))

    def interacting() -> tuple[float, None]:
        return reference.phi4_chain_log_z(n, mass_squared=mass_squared, quartic=quartic), None

    title = f"φ⁴ chain, N = {n}, m² = {mass_squared:g}, λ = {quartic:g}"
    if quartic == 0:  # E[φ²] is the variance, E[φ⁴] three times its square

        def slopes(_, v):
            return -0.5 * n * v, -3 * n * v * v

        return ReferenceModel(name, title, "Fourier modes of a Gaussian", build, free, slopes)
    return ReferenceModel(name, title, "transfer operator, Gauss-Legendre", build, interacting)


def _correlated(n: int) -> ReferenceModel:
    """A random mean, and a precision with a condition number of about 100."""

    def parameters() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(1)
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        precision = (q * np.geomspace(0.1, 10, n)) @ q.T
        return rng.normal(size=n), 0.5 * (precision + precision.T)

    def compute() -> tuple[float, Any]:
        _, precision = parameters()
        log_z = 0.5 * n * math.log(2 * math.pi) - 0.5 * float(np.linalg.slogdet(precision)[1])
        return log_z, (0.0, -0.5 * np.linalg.inv(precision))

    title = f"correlated Gaussian in {n} dimensions, variances from 0.1 to 10"
    return ReferenceModel(
        f"gaussian-{n}", title, "½ n log 2π - ½ log det Λ", lambda: Gaussian(*parameters()), compute, lambda _, g: g
    )


def _shells(d: int) -> ReferenceModel:
    return _density(
        f"shells-{d}",
        f"two Gaussian shells in {d} dimensions, prior U[-6, 6]^{d}",
        "radial quadrature; Feroz, Hobson and Bridges 2009",
        reference.gaussian_shells_log_density,
        Box(np.full(d, -6.0), np.full(d, 6.0)),
        functools.partial(reference.gaussian_shells_log_z, d),
    )


def _many_well(pairs: int) -> ReferenceModel:
    return _density(
        f"many-well-{2 * pairs}",
        f"many-well in {2 * pairs} dimensions, {2**pairs:,} modes of unequal weight",
        "product of one-dimensional quadratures; Midgley and others 2023",
        reference.many_well_log_density,
        Real(2 * pairs),
        functools.partial(reference.many_well_log_z, pairs),
    )


def _known_zero() -> float:
    return 0.0


_EVERYWHERE, _SCALE_40 = "normalised by construction", math.log(1 + math.e)

MODELS: tuple[ReferenceModel, ...] = (
    _torus(4, 0.3, "hot"),
    _torus(4, _CRITICAL, "critical"),
    _torus(8, 0.3, "hot"),
    _torus(8, _CRITICAL, "critical"),
    _torus(8, 0.6, "cold"),
    _torus(16, 0.2, "hot"),
    _torus(16, _CRITICAL, "critical"),
    _torus(16, 0.5, "cold"),
    _torus(64, _CRITICAL, "critical"),
    _disguised(8),
    _disguised(16),
    _glass(10),
    _glass(32),
    _potts(3, 4),
    _potts(4, 5),
    _counted(
        "hard-squares-6x6",
        "hard squares, free 6 x 6",
        "transfer matrix in integers; Baxter, Enting and Tsang 1980",
        _hard_squares,
        Binary((6, 6)),
        lambda: reference.hard_squares_count(6, 6),
    ),
    _counted(
        "colourings-4x4",
        "3-colourings, free 4 x 4",
        "transfer matrix in integers; Lieb 1967",
        _colourings,
        Categorical((4, 4), 3),
        lambda: reference.colourings_count(4, 4),
    ),
    _ring(),
    _curie_weiss(50, 0.024, 0.002),
    _small_glass(),
    _rbm("rbm-30x8", "RBM, 30 visible and 8 hidden units, standard normal parameters", _generic),
    _rbm("rbm-patterns-24x6", "RBM, 24 visible and 6 hidden units that store patterns: 64 modes", _patterns),
    _rbm("rbm-two-modes-24x6", "RBM, 24 visible and 6 hidden units: all off, or all on", _two_modes),
    _rbm(
        "rbm-hidden-mode-40x8",
        "RBM, 40 visible and 8 hidden units: two modes, of which annealing finds the lighter one alone",
        _hidden_mode,
    ),
    ReferenceModel(
        "needle-40",
        "one state of 2^40, 0101…, with energy -30, all others 0: most of the weight, and no chain finds it",
        "log(2^40 - 1 + e^30)",
        lambda: FunctionEnergy(_needle, Binary(40)),
        lambda: (math.log(2.0**40 - 1 + math.exp(30)), None),
    ),
    _correlated(20),
    _field("field-free-64", 1.0, 0.0),
    _field("field-quartic-64", -1.0, 0.25),
    _many_well(1),
    _many_well(16),
    _shells(2),
    _shells(5),
    _shells(10),
    _shells(30),
    _shells(100),
    _density(
        "eggbox",
        "eggbox, prior U[0, 10π]²: 18 equal peaks",
        "trapezoidal rule over a period; Feroz, Hobson and Bridges 2009",
        reference.eggbox_log_density,
        Box(np.zeros(2), np.full(2, 10 * math.pi)),
        reference.eggbox_log_z,
    ),
    _density(
        "rosenbrock",
        "Rosenbrock's valley on R²",
        "ln(π/10)",
        reference.rosenbrock_log_density,
        Real(2),
        reference.rosenbrock_log_z,
    ),
    _density(
        "rosenbrock-box",
        "Rosenbrock's valley, prior U[-5, 5]²",
        "Gauss-Legendre quadrature",
        functools.partial(reference.rosenbrock_log_density, half_width=5.0),
        Box(np.full(2, -5.0), np.full(2, 5.0)),
        functools.partial(reference.rosenbrock_log_z, half_width=5.0),
    ),
    _density(
        "binomial",
        "two-parameter binomial, n = 100, y = 50, prior U[0, 1]²: only the product is identified",
        "[ψ(n+2) - ψ(y+1)]/(n+1); Surjanovic and others 2023",
        reference.product_binomial_log_density,
        Box(np.zeros(2), np.ones(2)),
        reference.product_binomial_log_z,
    ),
    _density(
        "funnel-10",
        "Neal's funnel in 10 dimensions",
        f"{_EVERYWHERE}; Neal 2003",
        reference.funnel_log_density,
        Real(10),
        _known_zero,
    ),
    _density(
        "mixture-40",
        "40 Gaussians in the plane, means in [-40, 40]²",
        f"{_EVERYWHERE}; Midgley and others 2023",
        functools.partial(
            reference.gaussian_mixture_log_density, means=reference.mixture_means(40, 2), scale=_SCALE_40
        ),
        Real(2),
        _known_zero,
    ),
    _density(
        "apart-2",
        "two Gaussians of equal weight in the plane, 30 standard deviations apart",
        _EVERYWHERE,
        functools.partial(reference.gaussian_mixture_log_density, means=np.array([[0.0, 0.0], [30.0, 0.0]])),
        Real(2),
        _known_zero,
    ),
    _density(
        "student-10",
        "10 products of Student's t distributions with 2 degrees of freedom in the plane, means in [-10, 10]²",
        f"{_EVERYWHERE}; Blessing and others 2024",
        functools.partial(reference.student_mixture_log_density, means=reference.mixture_means(10, 2, half_width=10.0)),
        Real(2),
        _known_zero,
    ),
)
"""All models, from small to large within a family."""
