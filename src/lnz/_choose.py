"""The choice of a route within a budget, with the reasons."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lnz._core.energy import Energy, ModelLike, as_energy
from lnz._core.frozen import is_traced, known_values
from lnz._core.route import Choice, Route
from lnz.routes._annealing.ais import AnnealedImportanceSampling
from lnz.routes._annealing.fitted_smc import FittedSMC
from lnz.routes._exact.exact_routes import exact_route, explained


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an exact answer may cost.

    Attributes:
        evaluations: energy evaluations that an exact route may use; elimination, whose time is predicted, may take 4.8 µs for each (20 s
            by default).
        temperatures: number of temperatures of annealed importance sampling, where neither an exact route nor a fitted base is possible.
        chains: number of annealed chains, likewise.
    """

    evaluations: float = 2.0**22
    temperatures: int = 1000
    chains: int = 256


def choose(energy: ModelLike, budget: Budget | None = None) -> Choice:
    """The first route that supports the energy within the budget, and why: those of `ROUTES` in order; sequential Monte Carlo from a fitted base, for
    real vectors of up to 64 dimensions; annealed importance sampling.

    Inside one `jax.grad` outside `jit` and `vmap` the choice is that of the plain call. Where values cannot be seen, routes that depend on
    them are passed over.

    Args:
        energy: an `Energy`, or any callable with a `space`.
        budget: what an exact answer may cost; beyond it, annealed importance sampling of the budget's size.

    Raises:
        ValueError: where no route supports the energy, with the reason of every route.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> print(lnz.choose(lnz.Ising(jnp.zeros((3, 3)))).why)
        Enumeration: 8 states. Passed over: ClosedForm (Ising has no closed form of log Z).
    """
    energy, budget = known_values(as_energy(energy)), budget or Budget()
    choice, passed = exact_route(energy, budget.evaluations)
    if choice is not None:
        return choice
    fitted = FittedSMC()
    reason = fitted.unsupported_reason(energy)
    if reason is None:
        size = f"{fitted.replicates:,} populations of {fitted.particles:,} particles; no exact route is affordable"
        return Choice(fitted, explained(fitted, size, passed))
    route = AnnealedImportanceSampling(temperatures=budget.temperatures, chains=budget.chains, mode_probes=32)
    reason = route.unsupported_reason(energy)
    if reason is not None:
        raise ValueError(f"no route supports this energy: {'; '.join([*passed, f'{type(route).__name__} ({reason})'])}")
    size = f"{route.temperatures:,} temperatures, {route.chains:,} chains; no exact route is affordable"
    return Choice(route, explained(route, size, passed))


def chosen_route(energy: Energy, key: Any) -> Route:
    """The route of `choose`. ValueError where it lacks a key, with the exact routes that were passed over for what is traced."""
    choice = choose(energy)
    hidden = [leaf for leaf in jax.tree.leaves(energy) if is_traced(leaf)]
    if choice.route.random and key is None:
        draws = f"{type(choice.route).__name__} draws samples: pass key=jax.random.key(…)"
        if hidden and "traced" in choice.why:
            raise ValueError(f"{draws}, or name an exact route. {choice.why}")
        raise ValueError(
            f"no exact route is affordable for this {type(energy).__name__} (lnz.choose(energy).why has the reasons), and {draws}"
        )
    return choice.route
