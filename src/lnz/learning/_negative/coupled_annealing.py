"""Unbiased gradients where chains do not mix: coupled Metropolis-Hastings chains whose proposals are annealed populations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number, log_mean_exp
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._coupled import not_met
from lnz.learning._gradients import cast, mean_and_gradient
from lnz.learning._negative.negative_phase import NegativePhase
from lnz.routes._annealing.ais import AnnealedImportanceSampling


class Population(NamedTuple):
    """A population of annealed chains: log Ẑ, the effective share of their weights, and f, their weighted means of F and of -∂F."""

    log_z: Float[Array, ""]
    effective: Float[Array, ""]
    f: Any


@dataclasses.dataclass(frozen=True)
class CoupledAnnealing(NegativePhase):
    """Coupled chains of annealed populations, whose gradient is unbiased even where no chain leaves its mode.

    A proposal U is a population of chains annealed from the energy's base (AIS), with Ẑ(U) and f(U), the weighted mean of -∂F. A chain X that
    accepts it with probability min(1, Ẑ(U) / Ẑ(X)) has E[f(X)] = E_p[-∂F] in the limit. Its twin Y is one move behind with the same
    proposals, and meets X as soon as X accepts one, at τ; until then X remains at its first population U_0. With Y_0 = U_1,

        H = ½ [f(X_0) + f(X_1)] + Σ_{t=1}^{τ-1} min(t/2, 1) [f(U_0) - f(Y_{t-1})],   E[H] = E_p[-∂F].

    Where annealing is accurate, most updates consist of two populations alone: f(U_0) and f(U_1), whose small bias the other terms correct.

    Its figures: `meeting`, τ; `effective_share`, the effective sample size of a population over its number of chains: where it falls,
    meetings become rare and corrections large, and more temperatures help; `log_z`, log of the mean Ẑ of two populations in nats, whose
    exponential is unbiased; `unmet`, 1 where X had accepted no proposal after `max_moves`, which is an error.

    Attributes:
        chains: number of chains per population; by default one per example of a batch.
        temperatures: number of annealing temperatures.
        max_moves: largest number of proposals per update.

    Raises:
        NotMet: by `fit`, `Trainer.step` and `phases`, where an update has not ended after `max_moves`.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> magnet = lnz.Ising(2 * (1 - jnp.eye(4)), 0.1)  # two modes that no Gibbs sweep connects
        >>> found = lnz.learning.gradient_error(magnet, jnp.ones((50, 4)), lnz.learning.CoupledAnnealing(), draws=1, key=jax.random.key(1))
        >>> bool(found.cosine[-1] > 0.99)
        True

    Source: Middleton, Deligiannidis, Doucet & Jacob 2019, "Unbiased smoothing using particle independent Metropolis-Hastings"; Andrieu,
    Doucet & Holenstein 2010 for the chain.
    """

    chains: int | None = None
    temperatures: int = 50
    max_moves: int = 1000

    def __post_init__(self) -> None:
        for name in ("temperatures", "max_moves"):
            check_whole_number(name, getattr(self, name))
        if self.chains is not None:
            check_whole_number("chains", self.chains)

    def unsupported_reason(self, energy: Energy) -> str | None:
        return self._annealing(1).unsupported_reason(energy)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return ()

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        """One population and its weights, whose mean is slightly biased; `gradient` is unbiased."""
        log_weights, v = self._annealed(energy, data, fast_key(key))
        return (
            v,
            jax.nn.softmax(log_weights) * log_weights.size,
            (),
            self.gradient(energy, state, data, weights, key)[3],
        )

    def gradient(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Array | None, Any, Any, dict[str, Array]]:
        first_key, second_key, key = jax.random.split(fast_key(key), 3)
        both = jax.vmap(lambda key: self._population(energy, data, key))(jnp.stack([first_key, second_key]))
        first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1))

        def takes(here: Population, there: Population, key: PRNGKeyArray) -> Array:
            log_u = jnp.log(jax.random.uniform(key, (), here.log_z.dtype))
            return (here.log_z == -jnp.inf) | (log_u < there.log_z - here.log_z)

        def weighed(total: Any, weight: Any, f: Any) -> Any:
            return jax.tree.map(lambda a, b: a + jnp.asarray(weight, b.dtype) * b, total, f)

        took = takes(first, second, jax.random.fold_in(key, 0))
        half = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, first.f, second.f)
        # If X does not move: ½ [f(U_0) + f(U_0)] + ½ [f(U_0) - f(U_1)].
        stayed = weighed(weighed(jax.tree.map(jnp.zeros_like, first.f), 1.5, first.f), -0.5, second.f)
        total = jax.tree.map(lambda a, b: jnp.where(took, a, b), half, stayed)

        def going(carry: Any) -> Array:
            t, took, _, _ = carry
            return ~took & (t < self.max_moves)

        def move(carry: Any) -> Any:
            """The move from X_t = U_0 and Y_{t-1} to X_{t+1} and Y_t, with the correction at t + 1 if X does not move."""
            t, _, y, total = carry
            draw_key, take_key = jax.random.split(jax.random.fold_in(key, t))
            new = self._population(energy, data, draw_key)
            took, y_took = takes(first, new, take_key), takes(y, new, take_key)
            y = jax.tree.map(lambda a, b: jnp.where(y_took, a, b), new, y)
            paid = jnp.where(took, 0.0, 1.0)
            return t + 1, took, y, weighed(weighed(total, paid, first.f), -paid, y.f)

        one = jnp.asarray(1, jnp.int32)
        t, took, _, (mean, gradient) = jax.lax.while_loop(going, move, (one, took, second, total))
        figures = {
            "meeting": t.astype(jnp.float32),
            "effective_share": 0.5 * (first.effective + second.effective),
            "log_z": log_mean_exp(jnp.stack([first.log_z, second.log_z])),
            "unmet": 1 - took.astype(jnp.float32),
        }
        return mean, gradient, (), figures

    def _population(self, energy: Energy, data: State, key: PRNGKeyArray) -> Population:
        log_weights, v = self._annealed(energy, data, key)
        w = jax.nn.softmax(log_weights)
        possible = jnp.max(log_weights) > -jnp.inf
        f = mean_and_gradient(energy, v, jnp.where(possible, w, 1))
        # A population without weight is outside the support of p, so the value of f there does not change the mean in the limit.
        f = jax.tree.map(lambda leaf: jnp.where(possible, leaf, 0), f)
        effective = jnp.where(possible, 1 / (jnp.sum(w**2) * w.size), 0)
        return Population(log_mean_exp(log_weights), effective.astype(jnp.float32), f)

    def _annealed(self, energy: Energy, data: State, key: PRNGKeyArray) -> tuple[Array, State]:
        n = self.chains or jax.tree.leaves(data)[0].shape[0]
        log_weights, v, _ = self._annealing(n).anneal(energy, key)
        return log_weights, cast(energy, v)

    def _annealing(self, chains: int) -> AnnealedImportanceSampling:
        return AnnealedImportanceSampling(temperatures=self.temperatures, chains=chains)

    def moves(self, energy: Energy, batch_size: int) -> float:
        """The least cost, that of two populations."""
        return 2.0 * self.temperatures * (self.chains or batch_size)

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return ("meeting", "effective_share", "log_z", "unmet")

    def problem(self, figures: Mapping[str, Array]) -> str | None:
        if not float(figures["unmet"]) > 0:
            return None
        return f"{not_met(self.max_moves, 'a pair of annealed chains')}, or raise temperatures or chains"
