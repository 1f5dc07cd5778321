"""Annealed importance sampling: log Z of any energy with a base, from independent annealed chains."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from lnz.annealing.certificate import lower_limit, upper_limit
from lnz.energy import Energy
from lnz.estimate import Estimate
from lnz.frozen import Frozen
from lnz.mathematics import log_mean_exp
from lnz.random import fast_key
from lnz.route import Route
from lnz.sampling.kernels import Langevin, compact, default_kernel, langevin_step
from lnz.spaces import State

_ASSUMPTION = "the annealed chains reach every mode; the lower limit alone is certified"


@dataclasses.dataclass(frozen=True)
class AnnealedImportanceSampling(Route):
    """Annealed importance sampling (AIS) along the geometric path from a base with known log Z_0 and exact samples.

    Each chain starts at an exact sample of the base and passes the inverse temperatures 0 = β_0 < … < β_K = 1; before the move at β_k its
    log weight grows by F_{β_{k-1}}(v) - F_{β_k}(v). E[w] = Z / Z_0 exactly, so log Ẑ is low on average (Jensen).

    The moves are the energy's block Gibbs sweeps where it offers them, single-site Gibbs sweeps for other discrete energies, and
    Metropolis-adjusted Langevin moves for continuous ones, whose step sizes are fitted on separate pilot chains.

    The estimate's lower limit needs no assumption (see `certificate.lower_limit`); the upper one is conditional on the chains having
    reached every mode.

    Attributes:
        temperatures: K, the number of steps from 0 to 1.
        chains: the number of independent chains.
        sweeps: moves at each temperature.
        schedule: `linear` in β; `sigmoid`, finer towards both ends; or `quadratic`, finer towards 0.
        base: the reference, wrapped as `Frozen`; by default the energy's own `base()`. `AnnealedImportanceSampling.from_base` wraps it.
        confidence: of the limits.

    Source: Neal 2001, "Annealed importance sampling"; Salakhutdinov & Murray 2008 for RBMs.
    """

    temperatures: int = 1000
    chains: int = 256
    sweeps: int = 1
    schedule: Literal["linear", "sigmoid", "quadratic"] = "linear"
    base: Frozen | None = None
    confidence: float = 0.99

    def __post_init__(self) -> None:
        for name in ("temperatures", "chains", "sweeps"):
            n = getattr(self, name)
            if not isinstance(n, int | np.integer) or n < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but is {n!r}")
        if self.schedule not in ("linear", "sigmoid", "quadratic"):
            raise ValueError(f"unknown schedule {self.schedule!r}: choose linear, sigmoid or quadratic")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, but is {self.confidence}")

    @classmethod
    def from_base(cls, base: Energy, **options: Any) -> AnnealedImportanceSampling:
        """The route with a base of your own: an energy with `log_normaliser()` and `sample(key, n)`, such as `Independent.from_data`."""
        return cls(base=Frozen(base), **options)

    @property
    def random(self) -> bool:
        return True

    def refusal(self, energy: Energy) -> str | None:
        if energy.observed.moving:
            return "the limits of its box are parameters: chains do not see the boundary term of the derivative (T4). Use Quadrature"
        try:
            default_kernel(energy)
            base = self._base(energy)
        except ValueError as error:
            return str(error)
        if not (hasattr(base, "log_normaliser") and hasattr(base, "sample")):
            return f"the base {type(base).__name__} lacks a closed form or exact samples"
        if base.observed != energy.observed:
            return f"the base lives on {base.observed}, the energy's data on {energy.observed}"
        return None

    def cost(self, energy: Energy) -> float:
        return float(self.temperatures * self.sweeps * self.chains)

    def _base(self, energy: Energy) -> Energy:
        return energy.base() if self.base is None else jax.tree.map(jnp.asarray, self.base.value)

    def betas(self) -> Array:
        """The inverse temperatures β_0 = 0 … β_K = 1: shape (K + 1,)."""
        t = jnp.linspace(0, 1, self.temperatures + 1)
        if self.schedule == "quadratic":
            return t**2
        if self.schedule == "sigmoid":
            s = jax.nn.sigmoid(8 * (t - 0.5))
            return (s - s[0]) / (s[-1] - s[0])
        return t

    def log_partition(self, energy: Energy, key: Any) -> Estimate:
        log_weights, _, figures = self.anneal(energy, key)
        n, tail = self.chains, (1 - self.confidence) / 2
        value = log_mean_exp(log_weights)
        alive = value != -jnp.inf
        relative = jnp.where(alive, jnp.exp(log_weights - jnp.where(alive, value, 0)), 0)  # mean 1
        error = jnp.std(relative, ddof=1) / math.sqrt(n) if n > 1 else jnp.asarray(jnp.inf, value.dtype)
        error = jnp.where(alive, error, jnp.inf)
        return Estimate(
            value=value,
            standard_error=error,
            lower=lower_limit(log_weights, confidence=1 - tail),
            upper=upper_limit(log_weights, confidence=1 - tail),
            known="conditional",
            route=f"annealed importance sampling ({self.temperatures:,} temperatures, {n:,} chains)",
            confidence=self.confidence,
            assumption=_ASSUMPTION,
            diagnostics={
                "effective_sample_size": jnp.where(alive, n**2 / jnp.where(alive, jnp.sum(relative**2), 1), 0),
                "log_weight_sd": jnp.std(log_weights, where=log_weights > -jnp.inf),
                "certified_lower": lower_limit(log_weights, confidence=self.confidence),
                **figures,
            },
        )

    def expectation(self, energy: Energy, f: Callable[[State], Any], key: Any) -> Estimate:
        log_weights, v, figures = self.anneal(energy, key)
        share = jax.nn.softmax(log_weights)  # NaN where every weight is zero
        z = statistics.NormalDist().inv_cdf(0.5 + self.confidence / 2)

        def weighted(power: int, values: Array) -> Array:
            w = share.astype(values.dtype).reshape(-1, *(1,) * (values.ndim - 1))
            return jnp.sum(jnp.where(w == 0, 0, w**power * values), axis=0)

        values = jax.tree.map(
            lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(share.dtype), jax.vmap(f)(v)
        )
        mean = jax.tree.map(lambda x: weighted(1, x), values)
        error = jax.tree.map(lambda x, m: jnp.sqrt(weighted(2, jnp.square(x - m[None]))), values, mean)
        return Estimate(
            value=mean,
            standard_error=error,
            lower=jax.tree.map(lambda m, e: m - z * e, mean, error),
            upper=jax.tree.map(lambda m, e: m + z * e, mean, error),
            known="conditional",
            route=f"annealed importance sampling ({self.temperatures:,} temperatures, {self.chains:,} chains)",
            confidence=self.confidence,
            assumption="the annealed chains reach every mode, and their weights are many enough for a normal limit",
            diagnostics={"effective_sample_size": 1 / jnp.sum(share**2), **figures},
        )

    def mean_gradient(self, energy: Energy, key: Any) -> Any:
        log_weights, v, _ = jax.lax.stop_gradient(self.anneal(energy, key))
        share = jax.nn.softmax(log_weights)
        # States of weight zero are replaced by that of the largest, so that 0 · ∞ cannot arise in their gradient.
        best, dead = jnp.argmax(log_weights), share == 0
        v = jax.tree.map(lambda x: jnp.where(dead.reshape(-1, *(1,) * (x.ndim - 1)), x[best], x), v)
        return eqx.filter_grad(lambda e: -jnp.sum(share * jax.vmap(e.free_energy)(v).astype(share.dtype)))(energy)

    def anneal(self, energy: Energy, key: PRNGKeyArray) -> tuple[Array, State, dict[str, Array]]:
        """The chains: log weights (chains,) in nats whose mean of exp is unbiased for Z, the last states, and named figures."""
        main_key, pilot_key = jax.random.split(fast_key(key))
        if isinstance(default_kernel(energy), Langevin):
            steps = self._pilot(energy, pilot_key)
            log_weights, v, trace = self._run(energy, main_key, self.chains, steps)
            return log_weights, v, {"acceptance": jnp.mean(trace["acceptance"])}
        log_weights, v, _ = self._run(energy, main_key, self.chains, None)
        return log_weights, v, {}

    def _run(
        self, energy: Energy, key: PRNGKeyArray, n: int, steps: Array | None
    ) -> tuple[Array, State, dict[str, Array]]:
        base, kernel, betas = self._base(energy), default_kernel(energy), self.betas()
        start_key, chain_key = jax.random.split(key)
        sampled = base.sample(start_key, n)  # pyright: ignore[reportAttributeAccessIssue]
        v = compact(energy.tempered(base, betas[0]), sampled)
        log_z0 = base.log_normaliser() + energy.tempered(base, betas[0]).log_latent_volume  # pyright: ignore[reportAttributeAccessIssue]
        dtype = jnp.result_type(float)

        def step(carry: tuple[State, Array, Array], inputs: Any) -> tuple[tuple[State, Array, Array], dict[str, Array]]:
            v, log_w, lost = carry
            before, beta, step_size, key = inputs
            warm, cold = energy.tempered(base, before), energy.tempered(base, beta)
            gain = (jax.vmap(warm.free_energy)(v) - jax.vmap(cold.free_energy)(v)).astype(dtype) - lost
            # A chain of weight zero stays so: where p̃ = 0 at both temperatures, the gain would be ∞ - ∞.
            total = jnp.where(log_w == -jnp.inf, -jnp.inf, log_w + gain)
            lost = jnp.where(jnp.isfinite(total), (total - log_w) - gain, 0)  # Kahan: a thousand small float32 gains
            for sweep in range(self.sweeps):
                sweep_key = jax.random.fold_in(key, sweep)
                if step_size is None:
                    v, info = kernel.step(cold, sweep_key, v)
                else:
                    v, info = langevin_step(cold, sweep_key, v, step_size)
            return (v, total, lost), info

        inputs = (betas[:-1], betas[1:], steps, jax.random.split(chain_key, self.temperatures))
        zero = jnp.zeros((n,), dtype)
        (v, log_w, _), trace = jax.lax.scan(step, (v, zero, zero), inputs)
        v = jax.tree.map(lambda new, old: new.astype(old.dtype), v, sampled)
        return log_w + log_z0.astype(dtype), v, trace

    def _pilot(self, energy: Energy, key: PRNGKeyArray) -> Array:
        """A step size for every temperature, from 64 pilot chains: the main chains never see their own acceptance, so Ẑ stays unbiased."""
        base, betas, n = self._base(energy), self.betas(), 64
        start_key, chain_key = jax.random.split(key)
        v = base.sample(start_key, n)  # pyright: ignore[reportAttributeAccessIssue]
        size = sum(math.prod(s.shape) for s in jax.tree.leaves(energy.observed.struct))
        first = jnp.asarray(0.5 * size ** (-1 / 3), v.dtype)

        def adapt(carry: tuple[State, Array], inputs: Any) -> tuple[tuple[State, Array], Array]:
            v, log_step = carry
            beta, key = inputs
            v, info = langevin_step(energy.tempered(base, beta), key, v, jnp.exp(log_step))
            log_step = log_step + 0.3 * (info["acceptance"].astype(v.dtype) - 0.574)
            return (v, log_step), jnp.exp(log_step)

        # A few moves at β = 0 first, so that the early steps are fitted too.
        settle = jnp.concatenate([jnp.zeros((32,), betas.dtype), betas[1:]])
        _, steps = jax.lax.scan(adapt, (v, jnp.log(first)), (settle, jax.random.split(chain_key, settle.size)))
        return steps[32:]
