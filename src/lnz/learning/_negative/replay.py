"""Persistent replay: a buffer of chains, some of which move in every update."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from lnz._core.capabilities import Sweepable, observed_space
from lnz._core.energy import Energy
from lnz._core.numerics import check_whole_number
from lnz._core.random import fast_key
from lnz._core.spaces import Real, State
from lnz.kernels._continuous import UnadjustedLangevin
from lnz.kernels._kernels import Kernel, default_kernel, moved_chains
from lnz.kernels._local import GibbsWithGradients
from lnz.learning._negative.negative_phase import NegativePhase, base_samples, between


@dataclasses.dataclass(frozen=True)
class ReplayBuffer(NegativePhase):
    """Persistent replay: every update draws states from a buffer, restarts a share of them, moves them, and puts them back.

    A buffer that is much larger than the chains of an update keeps states of many past models, and fresh restarts let it forget. Both differ
    from persistent chains of the model (`PersistentChains`): the result depends on how far `sweeps` moves go from the base, and an energy
    fitted with short unadjusted chains can generate good samples and still be a poor density. Measure log Z; with `Langevin` as the kernel,
    rarer restarts and more sweeps the phase approaches persistent chains.

    Attributes:
        size: states in the buffer, rounded down to a multiple of the chains. They start at samples of the energy's base.
        sweeps: kernel steps per update.
        restart: the probability that a drawn state is replaced by a sample of the base, in (0, 1].
        chains: states drawn in an update, without replacement; by default one per example of a batch.
        kernel: the Markov kernel; by default the energy's own Gibbs sweeps, `UnadjustedLangevin()` moves of real states, Gibbs with
            gradients for other discrete energies, and the default of `PersistentChains` for energies that these do not support.

    Raises:
        ValueError: for numbers out of range, or a buffer smaller than the chains of an update.

    Example:
        >>> import equinox as eqx, jax, lnz
        >>> network = eqx.nn.MLP(2, "scalar", 16, 2, activation=jax.nn.silu, key=jax.random.key(0))
        >>> energy = lnz.Tilted(network, lnz.Gaussian([0.0, 0.0], [1.0, 1.0]))
        >>> data = 0.5 * jax.random.normal(jax.random.key(1), (200, 2))
        >>> fitted = lnz.fit(energy, data, negative_phase=lnz.learning.ReplayBuffer(size=500, sweeps=10), epochs=1, key=jax.random.key(2))
        >>> fitted.state.negative.shape  # chains, places of each, state
        (100, 5, 2)

    Source: Du & Mordatch 2019, "Implicit generation and modeling with energy-based models" (10,000 states, 60 steps, 5 % restarts).
    """

    size: int = 10_000
    sweeps: int = 60
    restart: float = 0.05
    chains: int | None = None
    kernel: Kernel | None = None

    def __post_init__(self) -> None:
        for name in ("size", "sweeps"):
            check_whole_number(name, getattr(self, name))
        between("restart", self.restart, 0, 1)
        if self.chains is not None:
            check_whole_number("chains", self.chains)
            self._places(self.chains)

    def unsupported_reason(self, energy: Energy) -> str | None:
        try:
            return self._kernel(energy).unsupported_reason(energy)
        except ValueError as error:
            return str(error)

    def init(self, energy: Energy, key: PRNGKeyArray, batch_size: int) -> State:
        n = self.chains or batch_size
        places = self._places(n)
        states = base_samples(energy, key, n * places)
        return jax.tree.map(lambda leaf: leaf.reshape(n, places, *leaf.shape[1:]), states)

    def draw(
        self, energy: Energy, state: State, data: State, weights: Array | None, key: PRNGKeyArray
    ) -> tuple[State, Array | None, State, dict[str, Array]]:
        n, places = jax.tree.leaves(state)[0].shape[:2]
        place_key, fresh_key, base_key, move_key = jax.random.split(fast_key(key), 4)
        # One position from every row: equivalent to a draw without replacement, without a permutation of the buffer.
        at = jnp.arange(n, dtype=jnp.int32), jax.random.randint(place_key, (n,), 0, places, jnp.int32)
        afresh = jax.random.uniform(fresh_key, (n,), jnp.float32) < self.restart
        fresh = base_samples(energy, base_key, n)

        def start(old: Array, new: Array) -> Array:
            return jnp.where(afresh.reshape(n, *(1,) * (new.ndim - 1)), new, old[at])

        v = jax.tree.map(start, state, fresh)
        v, figures = moved_chains(energy, self._kernel(energy), move_key, v, self.sweeps)
        return v, None, jax.tree.map(lambda buffer, new: buffer.at[at].set(new), state, v), figures

    def moves(self, energy: Energy, batch_size: int) -> float:
        return float(self.sweeps * (self.chains or batch_size))

    def figures(self, energy: Energy) -> tuple[str, ...]:
        return self._kernel(energy).figures

    def positions(self, energy: Energy, state: Any) -> State:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), state)

    def _places(self, chains: int) -> int:
        if self.size < chains:
            raise ValueError(
                f"a buffer of {self.size} states is too small for {chains} chains per update: raise size, or lower chains"
            )
        return self.size // chains

    def _kernel(self, energy: Energy) -> Kernel:
        if self.kernel is not None:
            return self.kernel
        if energy.offers(Sweepable) is None:
            kernel = UnadjustedLangevin() if isinstance(observed_space(energy), Real) else GibbsWithGradients()
            if kernel.unsupported_reason(energy) is None:
                return kernel
        return default_kernel(energy)
