"""The moment-averaged path: members of an exponential family whose moments, not parameters, are interpolated from base to model."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Normalised, free_energy_of, observed_space, tempered
from lnz._core.energy import Energy
from lnz._core.frozen import is_traced
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.route import Route
from lnz._core.spaces import ArrayLike, State
from lnz._models.independent import Independent, base_of
from lnz._models.pairwise import Ising, Potts
from lnz._models.rbm import RBM
from lnz.kernels._kernels import default_kernel
from lnz.routes._annealing.annealed import annealed
from lnz.routes._annealing.path import Path, move, unwrapped
from lnz.routes._annealing.schedule import fixed_betas, fixed_ladder
from lnz.routes._annealing.user_path import AnnealingPath, KnownDistribution
from lnz.routes._exact.exact_routes import exact_route

_SUMMED = 2.0**16  # moments are exact where an exact sum takes at most so many evaluations


def moment_averaged_path(
    model: Energy,
    *,
    base: Energy | None = None,
    knots: int = 8,
    samples: ArrayLike = None,
    key: PRNGKeyArray | None = None,
    chains: int = 128,
    updates: int = 2000,
    learning_rate: float = 0.1,
) -> AnnealingPath:
    """The path whose distribution at β has the moments E_β[s] = (1 - β) E_0[s] + β E_1[s], fitted at some β and geometric between them.

    In an exponential family, E(x) = -θ · s(x), the geometric path interpolates θ, and where its ends disagree most its distributions are spread
    like neither end; averaged moments keep features of both. The member of the family with these moments is fitted at β = k / knots by gradient
    ascent of θ · m - log Z(θ): to the last digit where log Z is a short sum, otherwise by persistent chains. The fit need not be exact: Ẑ of
    the path has mean Z whatever its distributions are, because the chains of the estimate are independent of the fit.

    Args:
        model: an `Ising`, `Potts` or `RBM`, or `Independent` units.
        base: independent units; by default the model's own `base()`. The hidden units of an RBM start as fair coins.
        knots: the number of segments, each geometric.
        samples: observed states (n, *shape) of the model, for its moments, such as the ends of long chains, or the data that it was trained on;
            by default separate chains are annealed to the model and moved on. Exact moments need none.
        key: a random key; needed where moments are not exact.
        chains: the number of chains of each fit.
        updates: the number of updates of each fit, and of moves of the chains that estimate the model's moments.
        learning_rate: the initial learning rate of a fit by chains, which falls to 0.

    Raises:
        ValueError: for a model of no such family, a base outside of it, or a missing key.

    Example:
        >>> import jax, lnz
        >>> rbm = lnz.RBM(visible=6, hidden=4, key=jax.random.key(0), scale=2.0)
        >>> path = lnz.routes.moment_averaged_path(rbm, knots=4)
        >>> route = lnz.routes.AnnealedImportanceSampling.from_path(path, temperatures=200)
        >>> estimate = lnz.log_partition(rbm, route=route, key=jax.random.key(1))
        >>> bool(estimate.lower < lnz.log_partition(rbm).value < estimate.upper)
        True

    Source: Grosse, Maddison & Salakhutdinov 2013, "Annealing between distributions by averaging moments" (the path, its spline, RBMs).
    """
    check_whole_number("knots", knots)
    check_whole_number("chains", chains)
    check_whole_number("updates", updates)
    if not isinstance(model, Ising | Potts | RBM | Independent):
        raise ValueError(
            f"averaged moments need a family whose energy is linear in its parameters (Ising, Potts, RBM, Independent), but got a "
            f"{type(model).__name__}: pass the energies of a path instead (lnz.routes.AnnealingPath)"
        )
    if any(map(is_traced, jax.tree.leaves(model))):
        raise ValueError("the path is fitted when it is made, so its model cannot be traced: make it outside jit")
    if samples is not None:
        observed_space(model).validate(samples, batch=True)
    start = _member(model, base_of(model) if base is None else base)
    begin = unwrapped(start)
    route = _short_sum(model)
    if route is not None:
        target = _summed(model, route)[1] if samples is None else _mean_moments(model, jnp.asarray(samples))
        found, origin = [begin], _summed(begin, route)[1]
        for k in range(1, knots):
            found.append(_fitted_exactly(found[-1], _between(origin, target, k / knots), route))
    else:
        if key is None:
            raise ValueError("the moments of a model of this size are estimated by chains: pass key=jax.random.key(…)")
        size = {"chains": chains, "updates": updates}
        target_key, origin_key, fit_key = jax.random.split(fast_key(key), 3)
        v = start.sample(origin_key, 16 * chains)
        origin = _mean_moments(begin, v)
        target = None if samples is None else _mean_moments(model, jnp.asarray(samples))
        if target is None:
            target = _moments_by_chains(model, Path(model, base), target_key, **size)
        found, chain = [begin], v[:chains]
        for k in range(1, knots):
            rate = jnp.asarray(learning_rate, jnp.result_type(float))
            wanted = _between(origin, target, k / knots)
            member, chain = _fitted_by_chains(
                found[-1], wanted, chain, jax.random.fold_in(fit_key, k), rate, updates=updates
            )
            found.append(member)
    return AnnealingPath([start, *found[1:], model])


def _member(model: Any, base: Any) -> Normalised:
    """The base as a member of the model's family, with log Z and samples."""
    if not isinstance(base, Independent) or observed_space(base) != observed_space(model):
        raise ValueError(
            f"the base of averaged moments is independent units on {observed_space(model)}, but got a {type(base).__name__} on "
            f"{observed_space(base)}: lnz.routes.fitted_base(space, data) makes one"
        )
    if isinstance(model, Independent):
        return base
    log_z = base.log_normaliser()
    if isinstance(model, Ising | Potts):
        return KnownDistribution(tempered(model, base, jnp.zeros(())), base, log_z)
    bias = base.potentials.reshape(-1).astype(model.visible_bias.dtype)
    parts = (jnp.zeros_like(model.weights), bias, jnp.zeros_like(model.hidden_bias))
    machine = eqx.tree_at(lambda m: (m.weights, m.visible_bias, m.hidden_bias), model, parts)
    return KnownDistribution(machine, base, log_z + model.hidden_bias.size * math.log(2))


def _short_sum(model: Energy) -> Route | None:
    """An exact route that is quick enough to be run hundreds of times, or None."""
    choice, _ = exact_route(model, _SUMMED)
    return None if choice is None else choice.route


def _between(origin: Any, target: Any, beta: float) -> Any:
    return jax.tree.map(lambda a, b: (1 - beta) * a + beta * b.astype(a.dtype), origin, target)


def _fitted_exactly(member: Energy, wanted: Any, route: Route) -> Energy:
    """The member with these moments, fitted from a neighbouring one: the maximum of θ · m - log Z(θ), which is concave."""
    from scipy.optimize import minimize

    flat, unflat = jax.flatten_util.ravel_pytree(member)
    moments = np.asarray(jax.flatten_util.ravel_pytree(wanted)[0], np.float64)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, mean = _summed(unflat(jnp.asarray(theta, flat.dtype)), route)
        slope = np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(mean)])
        return float(value) - float(theta @ moments), slope - moments

    best = minimize(loss, np.asarray(flat, np.float64), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return unflat(jnp.asarray(best.x, flat.dtype))


@eqx.filter_jit
def _summed(member: Energy, route: Route) -> tuple[Array, Any]:
    """log Z and E[s], a pytree like the member's parameters."""
    estimate, mean = route.log_partition_and_mean_gradient(member, None)
    return estimate.value, mean


@eqx.filter_jit
def _mean_moments(member: Energy, v: State) -> Any:
    """The mean of s, with latent variables summed out, over states (n, *shape)."""
    v = jax.tree.map(lambda x, s: x.astype(s.dtype), v, observed_space(member).struct)
    return eqx.filter_grad(lambda e: -jnp.mean(jax.vmap(free_energy_of(e))(v)))(member)


@eqx.filter_jit
def _moments_by_chains(model: Energy, path: Path, key: PRNGKeyArray, *, chains: int, updates: int) -> Any:
    """The moments of the model from chains that are annealed to it along a path in `updates` moves, and then moved as often."""
    kernel, (start_key, key) = default_kernel(model), jax.random.split(key)
    no_step = jnp.zeros((), jnp.result_type(float))

    def watched(carry: tuple[State, Any], key: Array) -> tuple[tuple[State, Any], None]:
        v, total = carry
        v, _ = move(kernel, model, key, v, no_step)
        return (v, jax.tree.map(jnp.add, total, _mean_moments(model, v))), None

    forth, stay = jax.random.split(key)
    ladder = fixed_ladder(fixed_betas("linear", updates))
    v = annealed(path, kernel, forth, path.start(start_key, chains), ladder, sweeps=1).states
    nothing = jax.tree.map(jnp.zeros_like, model)
    (_, total), _ = jax.lax.scan(watched, (v, nothing), jax.random.split(stay, updates))
    return jax.tree.map(lambda x: x / updates, total)


@eqx.filter_jit
def _fitted_by_chains(
    member: Energy, wanted: Any, v: State, key: PRNGKeyArray, rate: Array, *, updates: int
) -> tuple[Energy, State]:
    """The member with these moments, by ascent along m - E[s] with persistent chains from the previous member; and the chains."""
    kernel, no_step = default_kernel(member), jnp.zeros((), jnp.result_type(float))

    def update(carry: tuple[Energy, State], inputs: tuple[Array, Array]) -> tuple[tuple[Energy, State], None]:
        member, v = carry
        size, key = inputs
        v, _ = move(kernel, member, key, v, no_step)
        seen = _mean_moments(member, v)
        member = jax.tree.map(lambda p, m, s: p + size.astype(p.dtype) * (m - s), member, wanted, seen)
        return (member, v), None

    sizes = rate * (1 - jnp.arange(updates, dtype=rate.dtype) / updates)
    return jax.lax.scan(update, (member, v), (sizes, jax.random.split(key, updates)))[0]
