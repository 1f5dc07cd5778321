"""Labels from a model: the most probable ones, marginal decoding, samples."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lnz.energies.chain import LinearChain
from lnz.energy import as_energy
from lnz.exact.chain_paths import best_path, best_paths, sampled_paths
from lnz.exact.elimination import Elimination
from lnz.exact.forward_backward import chain_log_z
from lnz.spaces import State
from lnz.structured.queries import marginals, refuse_impossible, require_chain


def map_state(energy: Any, *, route: Elimination | None = None) -> State:
    """The most probable state of a discrete model with factors, exactly: argmax_x p(x), latent variables included.

    Args:
        energy: a `LinearChain` (by Viterbi's algorithm, also under jit and vmap), or any model with factors.
        route: for models other than chains, how they are summed.

    Returns:
        A state of the energy's space (one of them, where several are equally probable): of a chain whole numbers (T,), 0 at masked nodes.

    Raises:
        ValueError: where no state is possible, or the model has no factors or is too dear: see `Elimination`.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> stay = lnz.LinearChain(jnp.asarray([[0.0, 1.0], [0.4, 0.0], [0.0, 0.1]]), jnp.asarray([[0.5, 0.0], [0.0, 0.5]]))
        >>> lnz.map_state(stay).tolist()
        [1, 1, 1]
    """
    energy = as_energy(energy)
    if not isinstance(energy, LinearChain) or route is not None:
        return (route or Elimination()).map_state(energy)
    labels, score = _best(energy)
    refuse_impossible(score)
    return labels


def mpm_state(energy: Any) -> Int[Array, " T"]:
    """The most probable label of every variable by itself (maximum posterior marginals): it errs on the fewest labels on average.

    The labels together may be improbable, or impossible. Whole numbers (T,), 0 at masked nodes.
    """
    found = marginals(energy)
    return jnp.stack([jnp.argmax(p) for p in found]).astype(jnp.int32) if isinstance(found, list) else _argmax(found)


def _argmax(found: Array) -> Array:
    return jnp.argmax(found, axis=-1).astype(jnp.int32)


class NBest(NamedTuple):
    """The most probable labellings, best first.

    Attributes:
        labels: shape (n, T); 0 at masked nodes, and in rows beyond the number of possible labellings.
        log_probabilities: log P(y|x), in nats; -inf in such rows.
    """

    labels: Int[Array, "n T"]
    log_probabilities: Float[Array, " n"]


def n_best(energy: LinearChain, n: int) -> NBest:
    """The n most probable labellings of a chain, exactly, with their probabilities. Works under jit (n being static), vmap.

    Raises:
        ValueError: where no labelling is possible, or n is no whole number of at least 1.

    Source: Seshadri, Sundberg 1994, "List Viterbi decoding algorithms with applications".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.log(jnp.asarray([[1.0, 3.0], [1.0, 1.0]])), jnp.log(jnp.asarray([[1.0, 1.0], [1.0, 2.0]])))
        >>> best = lnz.n_best(chain, 3)
        >>> best.labels.tolist()
        [[1, 1], [1, 0], [0, 0]]
        >>> jnp.exp(best.log_probabilities).round(3).tolist() == jnp.asarray([6 / 11, 3 / 11, 1 / 11]).round(3).tolist()
        True
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, but is {n!r}")
    labels, log_p, log_z = _several(require_chain(energy, "n_best"), n)
    refuse_impossible(log_z)
    return NBest(labels, log_p)


def exact_samples(energy: Any, key: PRNGKeyArray, n: int, *, route: Elimination | None = None) -> State:
    """n independent exact samples of a discrete model with factors, latent variables included: states of `energy.space` along axis 0.

    Args:
        energy: a `LinearChain` (also under jit and vmap), or any model with factors.
        key: a random key.
        n: the number of samples.
        route: for models other than chains, how they are summed.

    Raises:
        ValueError: where no state is possible, or the model has no factors or is too dear: see `Elimination`.
    """
    energy = as_energy(energy)
    if not isinstance(energy, LinearChain) or route is not None:
        return (route or Elimination()).sample(energy, key, n)
    labels, log_z = _samples(energy, key, n)
    refuse_impossible(log_z)
    return labels


@jax.jit
def _best(chain: LinearChain) -> tuple[Array, Array]:
    return best_path(chain.potentials())


@functools.partial(jax.jit, static_argnums=1)
def _several(chain: LinearChain, n: int) -> tuple[Array, Array, Array]:
    p = chain.potentials()
    labels, scores = best_paths(p, n)
    log_z = chain_log_z(p)
    return labels, jnp.where(scores > -jnp.inf, jnp.minimum(scores - log_z, 0), -jnp.inf), log_z


@functools.partial(jax.jit, static_argnums=2)
def _samples(chain: LinearChain, key: PRNGKeyArray, n: int) -> tuple[Array, Array]:
    p = chain.potentials()
    return sampled_paths(p, key, n), chain_log_z(p)
