"""Calibration of conditional models: one scale per group of factors, fitted on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lnz._core.given import given_array
from lnz._core.route import Route
from lnz._core.spaces import ArrayLike
from lnz._models.linear_chain import LinearChain
from lnz._models.random_field import RandomField
from lnz.crf._conditional_objectives import as_field, labelled
from lnz.crf._queries import negative_log_likelihood


class Scales(NamedTuple):
    """Scales of a model's log-potentials.

    Calling them with a field or a chain returns the scaled field. Impossible labels (log-potential -inf) stay impossible.

    Attributes:
        unary: scale of all unaries.
        groups: scales of the groups of edges, shape (G,).
        factors: scales of the further factors, one per arity, the smallest arity first.
    """

    unary: Float[Array, ""]
    groups: Float[Array, " G"]
    factors: Float[Array, " arities"]

    def __call__(self, field: RandomField | LinearChain) -> RandomField:
        model = as_field(field)[0].expanded()
        of_edges = np.repeat(np.arange(len(model.structure.groups)), model.structure.groups)
        return eqx.tree_at(
            lambda f: (f.unary, f.pairwise, f.higher),
            model,
            (
                _times(model.unary, self.unary),
                _times(model.pairwise, self.groups[of_edges]),
                tuple(_times(table, scale) for table, scale in zip(model.higher, self.factors, strict=True)),
            ),
        )


def calibrate(
    build: Callable[[Any], RandomField | LinearChain],
    inputs: ArrayLike,
    labels: Int[ArrayLike, "data ..."],
    *,
    route: Route | None = None,
    max_iterations: int = 100,
) -> Scales:
    """Fit the scales of unaries, groups of edges and factors of each arity that maximise the likelihood of held-out labels.

    Minimises Σ -log P(y|x; scales) by L-BFGS. With an exact route the problem is convex. It corrects how much each kind of factor counts
    (evidence counted twice gives scales below 1), not errors within a kind. Scales of 1 change nothing.

    Args:
        build: maps one input to its field or chain, as in training.
        inputs: held-out inputs, a pytree of arrays with the data along axis 0.
        labels: their labels.
        route: how log Z is computed; by default `lnz.choose` picks one. Use the route that you decode with.
        max_iterations: largest number of L-BFGS iterations.

    Raises:
        ValueError: where the numbers of labels and inputs differ or are 0, or a labelling is impossible under its model.

    Source: Platt 1999; Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks" (one temperature).

    Example:
        >>> import jax, jax.numpy as jnp, lnz
        >>> x = jax.random.normal(jax.random.key(0), (200, 4))
        >>> def build(x, scale=1.0):
        ...     unary = jnp.stack([jnp.zeros(4), 3 * x], -1)
        ...     return lnz.RandomField(lnz.crf.Chain(4), scale * unary, jnp.eye(2))
        >>> def drawn(x, key):
        ...     return lnz.exact_samples(build(x, 0.5), key, 1)[0]
        >>> labels = jax.vmap(drawn)(x, jax.random.split(jax.random.key(1), 200))
        >>> scales = lnz.crf.calibrate(build, x, labels)
        >>> bool(abs(scales.unary - 0.5) < 0.1)  # the unaries are twice too large
        True
    """
    import scipy.optimize

    labels, count = jnp.asarray(given_array(labels, "labels")), {len(leaf) for leaf in jax.tree.leaves(inputs)}
    if count != {len(labels)} or not len(labels):
        raise ValueError(
            f"calibration needs at least one input, and as many labels as inputs, but got {count} and {len(labels)}"
        )
    fields, y = jax.jit(jax.vmap(lambda x, y: labelled(build(x), y)))(inputs, labels)
    structure = fields.structure
    sizes = (1, len(structure.groups), len(fields.higher))

    def scales(v: Array) -> Scales:
        unary, groups, factors = jnp.split(v, np.cumsum(sizes)[:-1])
        return Scales(unary[0], groups, factors)

    @jax.jit
    @jax.value_and_grad
    def loss(v: Array) -> Array:
        return jnp.mean(jax.vmap(lambda f, y: negative_log_likelihood(scales(v)(f), y, route=route))(fields, y))

    start = np.ones(sum(sizes))
    value = float(loss(jnp.asarray(start))[0])
    if not np.isfinite(value):
        raise ValueError(
            f"the loss at scales of 1 is {value}: a held-out labelling is impossible under its model or out of range, or a log-potential is NaN"
        )
    found = scipy.optimize.minimize(
        lambda v: tuple(np.asarray(part, float) for part in loss(jnp.asarray(v))),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations},
    )
    return scales(jnp.asarray(found.x))


def _times(tables: Array, scale: Array) -> Array:
    """Tables times scales, one for all or one per table; -inf stays -inf."""
    possible = tables != -jnp.inf
    scale = scale.reshape(*scale.shape, *(1,) * (tables.ndim - scale.ndim)).astype(tables.dtype)
    return jnp.where(possible, jnp.where(possible, tables, 0) * scale, -jnp.inf)
