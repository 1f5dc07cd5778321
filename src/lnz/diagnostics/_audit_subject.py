"""The subject of the checks: the energy in float64, states of it, directions in its parameters, and log Z around them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import FreeEnergy, Normalised, collapsed, free_energy_of, observed_space
from lnz._core.energy import Energy, widen
from lnz._core.route import Route
from lnz._core.spaces import Box, Real, Space
from lnz.routes._annealing.ais import AnnealedImportanceSampling
from lnz.routes._exact.enumeration import Enumeration
from lnz.routes._exact.quadrature import Quadrature
from lnz.routes._exact.quadrature_grid import Place, grids_of, no_values, states_of

STATES = 2**17  # largest number of states of a discrete space that is enumerated
POINTS = {1: 16385, 2: 257, 3: 41}  # of quadrature, per dimension
GRID = {1: 2**16 + 1, 2: 513, 3: 65}  # points per dimension of the grid that draws states of few real dimensions
REACH = 1e4  # range of that grid, beyond quadrature's
SAMPLES = 20_000
STEPS = 0.2 * 2.0 ** -np.arange(10)  # of the difference quotients
_DIRECTIONS = 3
_COORDINATES = 12


@contextlib.contextmanager
def plain_promotion() -> Any:
    """A context with JAX's default promotion, whatever the caller's setting, because the user's energy can rely on it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@dataclasses.dataclass
class Subject:
    """An energy under audit.

    Attributes:
        energy: with float64 parameters.
        route: an exact route or quadrature, or None where log Z must be sampled.
        theta: all parameters in one vector (p,).
        names: the path of every parameter in the pytree.
        directions: u, (d, p), the last of them coordinates.
        scales: the length of a step of 1 along each direction, (d,).
        labels: descriptions of the directions.
        states: draws of p_θ where available, else None.
        origin: how the states were drawn, or why there are none.
        broad: states spread over the whole space.
    """

    energy: Energy
    route: Route | None
    theta: Array
    names: list[str]
    directions: np.ndarray
    scales: np.ndarray
    labels: list[str]
    states: Any
    origin: str
    broad: Any
    key: PRNGKeyArray

    @property
    def size(self) -> int:
        """The number of real dimensions."""
        return math.prod(observed_space(self.energy).shape)

    @property
    def unbounded(self) -> bool:
        space = observed_space(self.energy)
        return isinstance(space, Real) or (isinstance(space, Box) and not space.bounded)

    @property
    def steps(self) -> np.ndarray:
        """The step lengths of the difference quotients, halving: (d, k)."""
        few = observed_space(self.energy).discrete or self.size == 1
        return self.scales[:, None] * (STEPS if few else STEPS[::2])[None]

    @property
    def around(self) -> np.ndarray:
        """θ, and θ ± step · u for every direction and step: (1 + 2 d k, p)."""
        steps, theta = self.steps, np.asarray(self.theta)
        shifts = steps[:, :, None, None] * np.asarray([1.0, -1.0])[:, None] * self.directions[:, None, None]
        return np.concatenate([theta[None], theta + shifts.reshape(2 * steps.size, theta.size)])

    @functools.cached_property
    def places(self) -> Place | None:
        """Where quadrature finds the mass at each of `around`; None for other routes."""
        return (
            _places(self.route, self.energy, jnp.asarray(self.around)) if isinstance(self.route, Quadrature) else None
        )

    @property
    def place(self) -> Place | None:
        """Where quadrature finds the mass at θ; None for other routes."""
        return jax.tree.map(lambda x: np.asarray(x)[0], self.places)

    @property
    def grid(self) -> tuple[Array, Array]:
        """States on a fine and wide grid where quadrature finds the mass, and their log probabilities (unnormalised)."""
        assert self.place is not None, "a grid is available only with quadrature"
        return grid_states(self.energy, self.place)

    @functools.cached_property
    def log_z(self) -> dict[str, np.ndarray]:
        """log Z and its error by the route at θ, and at θ ± step · u: (d, k, 2). Computed once, at the first use."""
        steps = self.steps
        assert self.route is not None, "log Z is available only with a route"
        found = log_partitions(self.route, self.energy, jnp.asarray(self.around), self.places)
        value, error = (np.asarray(x) for x in found)
        around = {"value": value[1:].reshape(*steps.shape, 2), "error": error[1:].reshape(*steps.shape, 2)}
        return {"centre": value[0], "centre_error": error[0]} | around


def subject(energy: Energy, *, states: Any, base: Energy | None, key: PRNGKeyArray) -> Subject:
    """The subject of an audit; `states` are the user's own draws, if any."""
    energy = widen(energy)
    theta, names = flat(energy)
    route = exact_route(energy)
    keys = jax.random.split(key, 4)
    quick = observed_space(energy).discrete or math.prod(observed_space(energy).shape) == 1
    directions, scales, labels = _directions(np.asarray(theta), names, keys[0], quick=quick)
    found = Subject(
        energy,
        route,
        theta,
        names,
        directions,
        scales,
        labels,
        states,
        "the samples given",
        broad_states(energy, base, keys[2]),
        keys[3],
    )
    if states is None:
        found.states, found.origin = draw(found, base, keys[1])
    return found


def flat(energy: Energy) -> tuple[Array, list[str]]:
    """The parameters in one vector, and the path of each."""
    parameters = eqx.filter(energy, eqx.is_inexact_array)
    names: list[str] = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        name = path_name(path)
        indices = np.ndindex(leaf.shape)
        names += [name + (f"[{', '.join(map(str, index))}]" if index else "") for index in indices]
    if not names:
        return jnp.zeros((0,)), names
    return ravel_pytree(parameters)[0], names


def path_name(path: Any) -> str:
    """A parameter's path in the pytree as the user knows it, without the internals of `FunctionEnergy` and `Partial`."""
    name = jax.tree_util.keystr(path)
    name = re.sub(r"^\.parameters\[<flat index 0>\]\[(\d+)\]", lambda found: f"argument {int(found[1]) + 1}", name)
    return re.sub(r"^\.parameters", "", name).lstrip(".") or "θ"


@eqx.filter_jit
def moved(energy: Energy, theta: Array) -> Energy:
    """The energy with these parameters."""
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)
    return eqx.combine(ravel_pytree(parameters)[1](theta), constants)


def exact_route(energy: Energy) -> Route | None:
    """A route without sampling that is cheap enough for many calls, or None."""
    space = observed_space(energy)
    if space.discrete:
        smallest = collapsed(energy).space
        return Enumeration() if smallest.discrete and smallest.count <= STATES else None
    route = Quadrature(points=POINTS.get(math.prod(space.shape)) if isinstance(space, Real | Box) else None)
    return route if route.unsupported_reason(energy) is None else None


def draw(subject: Subject, base: Energy | None, key: PRNGKeyArray) -> tuple[Any, str]:
    """Draws of p_θ: exact by enumeration, or from a fine and wide grid of few dimensions, or from annealed chains."""
    energy = subject.energy
    space = observed_space(energy)
    if space.discrete and space.count <= STATES:
        every = listed(space)
        return _drawn(every, -energies(energy, every), SAMPLES, key), "exact draws"
    if isinstance(subject.route, Quadrature):
        return _drawn(*subject.grid, SAMPLES, key), "draws from a fine grid"
    annealing = short_annealing(energy, base)
    if isinstance(annealing, str):
        return None, annealing
    log_w, v, _ = annealing.anneal(energy, key)
    share = np.exp(np.asarray(log_w) - np.max(log_w))
    share = share / share.sum()
    if not np.isfinite(share).all():
        return None, "annealing gave weights that are not finite"
    size = f"annealed chains, effective sample size {float(1 / np.sum(share**2)):.0f}"
    return _drawn(v, log_w, log_w.size, key), size


def _drawn(states: Any, log_p: Any, n: int, key: PRNGKeyArray) -> Any:
    """n draws of these states by their (unnormalised) probabilities, in NumPy; states with NaN energies are drawn, so that checks detect them."""
    p = np.exp(np.asarray(log_p) - np.nanmax(log_p))
    p = np.where(np.isnan(p), 1, p)
    cumulative = np.cumsum(p)
    index = np.searchsorted(cumulative, numpy_source(key).random(n) * cumulative[-1], side="right")
    index = np.minimum(index, p.size - 1)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[index]), states)


def numpy_source(key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's generator, seeded by a key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def short_annealing(energy: Energy, base: Energy | None) -> AnnealedImportanceSampling | str:
    options: Any = {"temperatures": 200, "chains": 2048}
    try:
        route = (
            AnnealedImportanceSampling(**options)
            if base is None
            else AnnealedImportanceSampling.from_base(base, **options)
        )
        reason = route.unsupported_reason(energy)
    except ValueError as error:
        reason, route = str(error), None
    return str(reason) if reason is not None or route is None else route


@eqx.filter_jit
def uniform(space: Space, key: PRNGKeyArray, n: int) -> Any:
    """n states from the uniform distribution."""
    return space.uniform(key, n)


@eqx.filter_jit
def listed(space: Space) -> Any:
    """Every state of a discrete space."""
    return space.decode(jnp.arange(space.count))


@eqx.filter_jit
def grid_states(energy: Energy, place: Place) -> tuple[Array, Array]:
    """States on a fine and wide grid at this place, and their log probabilities (unnormalised)."""
    energy, size = FreeEnergy(energy), math.prod(observed_space(energy).shape)
    rules = grids_of(energy.space, GRID[size], place, REACH)
    nodes = jnp.stack([g.reshape(-1) for g in jnp.meshgrid(*(rule.nodes for rule in rules), indexing="ij")], axis=-1)
    log_w = sum(g.reshape(-1) for g in jnp.meshgrid(*(rule.log_weights for rule in rules), indexing="ij"))
    states = states_of(energy.space, place, nodes)
    log_p = jnp.where(log_w > -jnp.inf, log_w - jax.vmap(energy)(states), -jnp.inf)
    return states, jnp.where(jnp.isnan(log_p), -jnp.inf, log_p)


def broad_states(energy: Energy, base: Energy | None, key: PRNGKeyArray) -> Any:
    """About 2,000 states from the whole space, by its uniform distribution or by heavy-tailed distributions of several widths."""
    space = observed_space(energy)
    known = None if base is None else base.offers(Normalised)
    if known is not None:
        return known.sample(key, 2048)
    if space.discrete or (isinstance(space, Box) and space.bounded):
        return uniform(space, key, 2048)
    if isinstance(space, Real | Box):
        wide = np.repeat(10.0 ** np.arange(-2, 2), 512)
        x = numpy_source(key).standard_t(2.0, (2048, *space.shape)) * wide.reshape(-1, *(1,) * len(space.shape))
        low, high = (np.asarray(bound) for bound in space.limits)
        x = np.where(x < low, 2 * np.where(np.isfinite(low), low, 0) - x, x)
        return jnp.asarray(np.where(x > high, 2 * np.where(np.isfinite(high), high, 0) - x, x))
    return None


def _directions(
    theta: np.ndarray, names: list[str], key: PRNGKeyArray, *, quick: bool
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Random directions in which every parameter moves in proportion to its size, and some coordinates."""
    p, few = len(names), _COORDINATES if quick else 2
    if p == 0:
        return np.zeros((0, 0)), np.zeros(0), []
    source = numpy_source(key)
    scale = np.maximum(np.abs(theta), 0.5)
    rows, sizes, labels = [], [], []
    if p > 1:
        for i in range(_DIRECTIONS if quick else 2):
            rows.append(scale * source.normal(size=p) / math.sqrt(p))
            sizes.append(1.0)
            labels.append(f"random direction {i + 1}")
    chosen = range(p) if p <= few else sorted(source.choice(p, (few + 1) // 2, replace=False))
    for i in chosen:
        rows.append(np.where(np.arange(p) == i, 1.0, 0))
        sizes.append(scale[i])
        labels.append(names[i])
    return np.stack(rows), np.asarray(sizes), labels


@eqx.filter_jit
def energies(energy: Energy, states: Any) -> Array:
    """F_θ of a batch of observed states."""
    return jax.lax.map(free_energy_of(energy), states, batch_size=4096)


@eqx.filter_jit
def along(energy: Energy, directions: Array, states: Any) -> Array:
    """u · ∂_θ F_θ of a batch of states, for every direction: (n, d)."""
    theta = flat(energy)[0]

    def one(v: Any) -> Array:
        gradient = jax.grad(lambda t: free_energy_of(moved(energy, t))(v))(theta)
        return directions @ gradient

    return jax.lax.map(one, states, batch_size=256)


@eqx.filter_jit
def norms(energy: Energy, states: Any) -> Array:
    """‖∂_θ F_θ‖ of every array of parameters, for a batch of states: (n, leaves)."""
    parameters, constants = eqx.partition(energy, eqx.is_inexact_array)

    def one(v: Any) -> Array:
        gradient = jax.grad(lambda p: free_energy_of(eqx.combine(p, constants))(v))(parameters)
        return jnp.stack([jnp.sqrt(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)])

    return jax.lax.map(one, states, batch_size=256)


@eqx.filter_jit
def _places(route: Quadrature, energy: Energy, thetas: Array) -> Place:
    return jax.lax.map(lambda theta: route.place(moved(energy, theta)), thetas)


@eqx.filter_jit
def log_partitions(route: Route, energy: Energy, thetas: Array, places: Place | None) -> tuple[Array, Array]:
    """log Z and its error at n parameter vectors (n, p): (n,) each; by quadrature, at places that are known."""

    def log_z(at: tuple[Array, Place]) -> tuple[Array, Array]:
        theta, place = at
        there = moved(energy, theta)
        estimate = (
            route.integrate(there, no_values, place)[0]
            if isinstance(route, Quadrature)
            else route.log_partition(there, None)
        )
        spread = jnp.maximum(estimate.upper - estimate.value, estimate.value - estimate.lower)
        return estimate.value, spread

    return jax.lax.map(log_z, (thetas, places))


def _derivatives(f: Callable[[Array], Array]) -> tuple[Array, Array]:
    """The first and the second derivative of f at 0."""

    def first(t: Array) -> Array:
        return jax.jvp(f, (t,), (jnp.ones_like(t),))[1]

    return jax.jvp(first, (jnp.zeros(()),), (jnp.ones(()),))


@eqx.filter_jit
def identity(
    route: Route, energy: Energy, directions: Array, place: Place | None, moments_too: bool
) -> dict[str, Array]:
    """The slopes u·E[-∂E] by the route, their errors, and second moments if those are asked for: (d,) each."""
    theta, found = flat(energy)[0], {}

    def moments(v: Any) -> tuple[Array, Array, Array, Array]:
        def at(t: Array, u: Array) -> Array:
            return -free_energy_of(moved(energy, theta + t * u))(v)

        backward = directions @ -jax.grad(lambda t: free_energy_of(moved(energy, t))(v))(theta)  # as in training
        slope, bend = jax.vmap(lambda u: _derivatives(lambda t: at(t, u)))(directions)
        return backward, slope, slope**2, bend

    noise: Any = 0.0
    if moments_too:
        by_place = isinstance(route, Quadrature)
        expected = route.integrate(energy, moments, place)[1] if by_place else route.expectation(energy, moments, None)
        slope, mean, square, bend = expected.value
        noise = expected.standard_error[0]
        found = {"variance": square - mean**2, "bend": bend}
    if not moments_too or observed_space(energy).moving:  # a moving box has a boundary term as well
        slope = directions @ ravel_pytree(route.mean_gradient(energy, None))[0]
    return found | {"slope": slope, "slope_error": 1e-12 * (1 + jnp.abs(slope)) + noise}
