"""Unbiased contrastive divergence by coupled chains, which correct the bias of finite runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import complete, free_energy_of
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import State
from lnz.kernels._coupled import Run, coupling_refusal, not_met, run_coupled
from lnz.kernels._kernels import Kernel, compact, default_kernel
from lnz.learning._gradients import cast, weighted_sum
from lnz.learning._negative.negative_phase import NegativePhase, base_samples


@dataclasses.dataclass(frozen=True)
class CoupledChains(NegativePhase):
    """Unbiased contrastive divergence by coupled chains: the mean of every update's gradient is exact, however short the chains.

    Each chain X has a twin Y, which begins at the same state, follows `lag` moves behind with the same random numbers, and so meets X after τ
    moves. The states of X from `burn_in` on give the gradient of CD, and the differences of X and Y until they meet correct its bias:
    `lnz.kernels._coupled.run_coupled` has the formula. Bias becomes variance: where chains leave a mode once in a thousand moves, the
    gradient is nearly that of CD, but once in a thousand times it has a term a thousand times as large. More chains, a lower learning rate
    and a kernel that mixes well help.

    An update lasts until its slowest pair has met. Its figures: `meeting`, the mean of τ; `longest`, the moves of the update; `unmet`, the share
    of pairs that had not met after `max_moves`. One such pair is an error, unless `cut`.

    Attributes:
        burn_in: k, at least 0; 1 is the counterpart of CD-1.
        length: number of states of X that are averaged, from the k-th on. A larger number makes corrections smaller.
        lag: L, the number of moves by which Y is behind X.
        start: where pairs begin: "data", at the batch, as in CD (hidden units are drawn by the energy's `complete`); or "chains", at the last
            X of the previous update.
        chains: number of pairs, with start="chains"; by default one per example of a batch. They first start at samples of the energy's base.
        max_moves: largest number of moves per update.
        cut: whether pairs that have not met by then are stopped, which causes a bias, with the alarm *unmet*, instead of an error.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states. See `coupled_step` for those that can be
            coupled.

    Raises:
        NotMet: by `fit`, `Trainer.step` and `phases`, where a pair has not met after `max_moves`.

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> rbm = lnz.RBM(visible=4, hidden=2, key=jax.random.key(0))
        >>> found = lnz.learning.gradient_error(rbm, jnp.ones((50, 4)), lnz.learning.CoupledChains(), draws=1, key=jax.random.key(1))
        >>> bool(found.cosine[-1] > 0.99)
        True

    Source: Qiu, Zhang & Wang 2020, "Unbiased contrastive divergence algorithm for training energy-based latent variable models", after Jacob,
    O'Leary & Atchadé 2020.
    """

    burn_in: int = 1
    length: int = 1
    lag: int = 1
    start: str = "data"
    chains: int | None = None
    max_moves: int = 10_000
    cut: bool = False
    kernel: Kernel | None = None

    by_states: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_whole_number("burn_in", self.burn_in, 0)
        for name in ("length", "lag", "max_moves"):
            check_whole_number(name, getattr(self, name))
        if self.start not in ("data", "chains"):
            raise ValueError(f'start must be "data" or "chains", but is {self.start!r}')
        if self.chains is not None:
            check_whole_number("chains", self.chains)
            if self.start == "data":
                raise ValueError('one pair starts at every example of a batch: leave chains out, or use start="chains"')
        least = max(self.burn_in + self.length - 1, self.lag)
        if self.max_moves < least:
            raise ValueError(
                f"max_moves must be at least {least}, for burn_in + length - 1 moves and the lag, but is {self.max_moves}"
            )

    def unsupported_reason(self, energy: Energy) -> str | None:
        try:
            return coupling_refusal(self.kernel or default_kernel(energy), energy)
        except ValueError as error:
            return str(error)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> Any:
        return () if self.start == "data" else base_samples(energy, key, self.chains or batch_size)

    def draw(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, Any, dict[str, Array]]:
        """The states of X after the last move, which follow p only in the limit of many moves; `gradient` is unbiased."""
        _, run, state, weights, figures = self._run(energy, state, data, weights, key)
        return cast(energy, run.last), weights, state, figures

    def gradient(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Array | None, Any, Any, dict[str, Array]]:
        found, _, state, _, figures = self._run(energy, state, data, weights, key)
        return found[0], jax.tree.map(jnp.negative, found[1]), state, figures

    def _run(
        self, energy: Energy, state: Any, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[Any, Run, Any, Array | None, dict[str, Array]]:
        """Unbiased means of F and ∂F, the run, the state for the next update, the pairs' weights, and the figures."""
        of_data = self.start == "data"
        begin = complete(energy, jax.random.fold_in(key, 1), data) if of_data else state
        n = jax.tree.leaves(begin)[0].shape[0]
        weights = weights if of_data else None
        share = jnp.full((n,), 1 / n) if weights is None else weights / jnp.sum(weights)

        def part(v: State, weights: Array) -> Any:
            def mean(e: Energy) -> Array:
                return weighted_sum(lambda v: jax.vmap(free_energy_of(e))(v), cast(energy, v), weights)

            return eqx.filter_value_and_grad(mean)(energy)

        def add(total: Any, v: State, signed: Array) -> Any:
            weights = signed * jnp.concatenate([share, share]).astype(signed.dtype)
            return jax.tree.map(jnp.add, total, part(v, weights))

        start = compact(energy, cast(energy, begin))
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, start, share))
        run = run_coupled(
            energy, self.kernel or default_kernel(energy), fast_key(key), start, start, burn_in=self.burn_in, length=self.length,
            lag=self.lag, max_moves=self.max_moves, total=nothing, add=add,
        )  # fmt: skip
        # Examples with zero weight (in a batch that is not full) have a pair, but do not contribute.
        counted = share > 0
        figures = {
            "meeting": jnp.mean(run.times.astype(jnp.float32), where=counted),
            "longest": run.moves.astype(jnp.float32),
            "unmet": jnp.mean((~run.met).astype(jnp.float32), where=counted),
        }
        after = () if of_data else cast(energy, run.last)
        return run.total, run, after, weights, figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        """The least cost; the number of moves until a pair has met is not known beforehand."""
        return 2.0 * (self.burn_in + self.length + self.lag) * (self.chains or batch_size)

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return ("meeting", "longest", "unmet")

    def problem(self, figures: Mapping[str, Array]) -> str | None:
        if self.cut or not float(figures["unmet"]) > 0:
            return None
        return f"{not_met(self.max_moves)}, use TemperedChains, or accept a bias by stopping them there (cut=True)"

    def positions(self, energy: Energy, state: Any) -> State | None:
        return None if self.start == "data" else state
