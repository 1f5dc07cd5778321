"""Negative phases in a PyTorch training loop: states of the model as tensors, kept between steps."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from lnz._core.energy import Energy
from lnz._core.spaces import Space, State
from lnz.kernels._kernels import Kernel
from lnz.learning._negative.persistent import PersistentChains as Phase
from lnz.torch._energy import as_energy, parameters_of


class PersistentChains:
    """Samples of a model in training, from chains that continue where the last step left them (SML, persistent CD; T12).

    The loss is the usual difference of mean energies; its gradient is that of the mean negative log-likelihood as far as the chains follow the
    model:

        ∇ [mean_data E - mean_samples E] ≈ -∇ mean log p(data).

    Args:
        model: an `nn.Module` that maps states (batch, *space.shape) to energies (batch,), in nats, as in `lnz.torch.as_energy`; its
            present parameters are read at every step. Or a function without arguments that returns an `lnz` energy of the present
            parameters, such as `lambda: lnz.RBM.from_parameters(weights.numpy(force=True), …)`: sweeps then run in JAX alone, which is much faster.
        space: the space of x, for a module.
        chains: the number of chains. They start at samples of a base that lnz chooses.
        sweeps: kernel steps per call.
        kernel: the Markov kernel; by default Gibbs sweeps, or Langevin moves for continuous states.
        generator: where the seed comes from; by default PyTorch's global generator.

    Attributes:
        states: the states of the chains, (chains, *space.shape).

    Raises:
        ValueError: if the kernel does not support the energy, or as in `lnz.torch.as_energy`.

    Source: Younes 1989; Tieleman 2008, "Training restricted Boltzmann machines using approximations to the likelihood gradient".

    Example:
        >>> import torch, lnz
        >>> class Field(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.field = torch.nn.Parameter(torch.zeros(3))
        ...     def forward(self, x):
        ...         return -x @ self.field
        >>> module, data = Field(), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
        >>> negative = lnz.torch.PersistentChains(module, lnz.Binary(3), chains=8)
        >>> loss = module(data).mean() - module(negative.step()).mean()
        >>> loss.backward()
    """

    states: Tensor

    def __init__(
        self,
        model: nn.Module | Callable[[], Energy],
        space: Space | None = None,
        *,
        chains: int = 64,
        sweeps: int = 1,
        kernel: Kernel | None = None,
        generator: torch.Generator | None = None,
    ):
        self._phase = Phase(sweeps, chains, kernel)
        self._model = model
        if isinstance(model, nn.Module):
            if space is None:
                raise ValueError("a module needs its space: PersistentChains(module, lnz.Binary(12))")
            self._fixed = as_energy(model, space)
        energy = self._energy()
        reason = self._phase.unsupported_reason(energy)
        if reason is not None:
            raise ValueError(f"PersistentChains does not support {type(energy).__name__}: {reason}")
        device = None if generator is None else generator.device
        self._key = jax.random.key(int(torch.randint(2**31 - 1, (), generator=generator, device=device)))
        self._count = 0
        self._state = self._phase.init(energy, jax.random.fold_in(self._key, 0), chains)
        self.states = self._tensor(self._phase.positions(energy, self._state))

    def step(self) -> Tensor:
        """Move the chains under the model's present parameters, and return their states."""
        self._count += 1
        energy = self._energy()
        key = jax.random.fold_in(self._key, self._count)
        found, self._state = _drawn(self._phase, energy, self._state, key)
        self.states = self._tensor(found)
        return self.states

    def _energy(self) -> Energy:
        if isinstance(self._model, nn.Module):
            return eqx.tree_at(lambda e: e.parameters, self._fixed, parameters_of(self._model))
        return self._model()

    def _tensor(self, states: State) -> Tensor:
        x = torch.tensor(np.asarray(states))
        if not isinstance(self._model, nn.Module):
            return x
        like = next(self._model.parameters(), x)
        return x.to(like.device, like.dtype) if x.is_floating_point() else x.long().to(like.device)


@eqx.filter_jit
def _drawn(phase: Phase, energy: Energy, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    states, _, state, _ = phase.draw(energy, state, jnp.zeros(()), None, key)
    return states, state
