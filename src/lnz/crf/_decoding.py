"""Labels from a model: the most probable ones, marginal decoding, samples."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from lnz._core.energy import ModelLike, as_energy
from lnz._core.frozen import is_traced
from lnz._core.route import Route
from lnz._core.spaces import State
from lnz._models.linear_chain import LinearChain
from lnz._models.random_field import RandomField
from lnz._models.semi_markov_chain import SemiMarkovChain
from lnz._models.structures import Chain
from lnz.crf._queries import marginals, refuse_impossible
from lnz.routes._bounds.belief_propagation import BeliefPropagation
from lnz.routes._bounds.parallel_propagation import decoded
from lnz.routes._exact.chain_paths import best_path, best_paths, sampled_paths
from lnz.routes._exact.elimination import Elimination
from lnz.routes._exact.forward_backward import chain_log_z
from lnz.routes._exact.semi_markov import SemiMarkov


def map_state(energy: ModelLike, *, route: Elimination | BeliefPropagation | None = None) -> State:
    """The most probable state of a discrete model with factors, argmax_x p(x), latent variables included; exact unless the route is not.

    Args:
        energy: a `LinearChain` or `SemiMarkovChain` (by Viterbi's algorithm), or any model with factors; under jit and vmap, too.
        route: for models other than chains, how they are summed. For a `RandomField` also `lnz.routes.BeliefPropagation(schedule="parallel", …)`:
            max-product with its damping and sweeps, in JAX, exact on a forest with enough sweeps. Elsewhere its labels are approximate: a
            labelling that no change of a single label improves.

    Returns:
        A state of the energy's space (one of them, where several are equally probable); for a chain integers (T,), 0 at masked nodes.

    Raises:
        ValueError: where no state is possible, or the model has no factors or is too expensive: see `Elimination`.

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> stay = lnz.LinearChain(jnp.asarray([[0.0, 1.0], [0.4, 0.0], [0.0, 0.1]]), jnp.asarray([[0.5, 0.0], [0.0, 0.5]]))
        >>> lnz.map_state(stay).tolist()
        [1, 1, 1]
    """
    energy = as_energy(energy)
    if isinstance(route, BeliefPropagation):
        route.require(energy, None)
        if route.schedule != "parallel" or not isinstance(energy, RandomField):
            raise ValueError('max-product needs a RandomField and lnz.routes.BeliefPropagation(schedule="parallel", …)')
        labels, weight = _by_max_product(energy, route)
        if not is_traced(weight) and weight == -jnp.inf:
            raise ValueError(
                "max-product found no possible labelling: increase the damping, or decode exactly by lnz.routes.Elimination()"
            )
        return labels
    if not _is_chain(energy) or route is not None:
        return _solver(energy, route).map_state(energy)
    labels, score = _best(energy)
    refuse_impossible(score)
    return labels


def mpm_state(energy: ModelLike, *, route: Route | None = None) -> Int[Array, "*nodes"]:
    """The most probable label of every variable by itself (maximum posterior marginals), which has the fewest expected label errors.

    The labels together can be improbable, or impossible. Returns integers in the shape of a labelling, 0 at masked nodes. The `route` is that
    of `lnz.marginals`: decode with the route that the model was trained with.
    """
    found = marginals(energy, route=route)
    return jnp.stack([jnp.argmax(p) for p in found]).astype(jnp.int32) if isinstance(found, list) else _argmax(found)


def _argmax(found: Array) -> Array:
    return jnp.argmax(found, axis=-1).astype(jnp.int32)


class NBest(NamedTuple):
    """The most probable states, the best first.

    Attributes:
        states: states of the energy's space along axis 0; for a chain labels (n, T), 0 at masked nodes and in rows beyond the number of
            possible labellings.
        log_weights: (n,), -E(x) = log p(x) + log Z in nats; -inf in rows beyond the number of possible labellings.
    """

    states: State
    log_weights: Any


def n_best(energy: ModelLike, n: int, *, route: Elimination | None = None) -> NBest:
    """The n most probable states of a discrete model with factors, exactly, latent variables included, all of them different.

    The order of states of equal weight, and which of them are left out at the end, is arbitrary. Where fewer than n states are possible, a
    chain gives rows of weight -inf, and so does any model under jit (n being static) and vmap; otherwise there are fewer rows.

    Args:
        energy: a `LinearChain`, or any model with factors.
        n: the number of states.
        route: for models other than chains, how they are summed.

    Raises:
        ValueError: where no state is possible, n is not an integer of at least 1, or the model has no factors or is too expensive: see
            `Elimination`.

    Source: Seshadri, Sundberg 1994, "List Viterbi decoding algorithms with applications".

    Example:
        >>> import jax.numpy as jnp, lnz
        >>> chain = lnz.LinearChain(jnp.asarray([[0.0, 1.0], [0.0, 0.0]]), jnp.asarray([[0.0, 0.0], [0.0, 0.5]]))
        >>> best = lnz.crf.n_best(chain, 3)
        >>> best.states.tolist(), best.log_weights.tolist()
        ([[1, 1], [1, 0], [0, 0]], [1.5, 1.0, 0.0])
        >>> lnz.crf.n_best(lnz.Ising.lattice((3,), 1.0, 0.5, periodic=False), 2).states.tolist()
        [[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]
    """
    energy = as_energy(energy)
    if not _is_chain(energy) or route is not None:
        return NBest(*_solver(energy, route).n_best(energy, n))
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer of at least 1, but is {n!r}")
    labels, scores = _several(energy, n)
    refuse_impossible(scores[0])
    return NBest(labels, scores)


def exact_samples(energy: ModelLike, key: PRNGKeyArray, n: int, *, route: Elimination | None = None) -> State:
    """n independent exact samples of a discrete model with factors, latent variables included: states of `energy.space` along axis 0.

    Args:
        energy: a `LinearChain`, a `SemiMarkovChain`, or any model with factors; under jit and vmap, too.
        key: a random key.
        n: the number of samples.
        route: for models other than chains, how they are summed.

    Raises:
        ValueError: where no state is possible, or the model has no factors or is too expensive: see `Elimination`.
    """
    energy = as_energy(energy)
    if not _is_chain(energy) or route is not None:
        return _solver(energy, route).sample(energy, key, n)
    labels, log_z = _samples(energy, key, n)
    refuse_impossible(log_z)
    return labels


def _is_chain(energy: Any) -> bool:
    """Whether an energy has a chain's `potentials()`."""
    return isinstance(energy, LinearChain) or (isinstance(energy, RandomField) and isinstance(energy.structure, Chain))


def _solver(energy: Any, route: Any) -> Any:
    """The route that decodes and samples a model other than a chain of labels."""
    return route or (SemiMarkov() if isinstance(energy, SemiMarkovChain) else Elimination())


@eqx.filter_jit
def _by_max_product(field: RandomField, route: BeliefPropagation) -> tuple[Array, Array]:
    return decoded(field, damping=route.damping, max_sweeps=route.max_sweeps, tolerance=route.tolerance)


@jax.jit
def _best(chain: LinearChain | RandomField) -> tuple[Array, Array]:
    return best_path(chain.potentials())


@functools.partial(jax.jit, static_argnums=1)
def _several(chain: LinearChain | RandomField, n: int) -> tuple[Array, Array]:
    return best_paths(chain.potentials(), n)


@functools.partial(jax.jit, static_argnums=2)
def _samples(chain: LinearChain | RandomField, key: PRNGKeyArray, n: int) -> tuple[Array, Array]:
    p = chain.potentials()
    return sampled_paths(p, key, n), chain_log_z(p)
