"""Calibration of conditional models: one scale a group of factors, fitted on data that were not trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lnz.energies.field import RandomField
from lnz.route import Route
from lnz.structured.objectives import as_field, labelled
from lnz.structured.queries import negative_log_likelihood


class Scales(NamedTuple):
    """Scales of a field's log-potentials; called with a field, they give the scaled field.

    Attributes:
        unary: the scale of all unaries.
        groups: one a group of edges, (G,).
        factors: one an arity of further factors, the smallest first, (arities,).
    """

    unary: Float[Array, ""]
    groups: Float[Array, " G"]
    factors: Float[Array, " arities"]

    def __call__(self, field: Any) -> RandomField:
        """The field with its log-potentials times these scales; what is impossible stays impossible."""
        field, _ = as_field(field)
        structure, shared = field.structure, len(field.pairwise)
        of_edges = np.repeat(np.arange(len(structure.groups)), structure.groups)
        # A table that serves edges of several groups cannot have the scale of each: then every group has its own.
        tables = field.pairwise
        if shared == 1 and len(structure.groups) > 1:
            tables = jnp.broadcast_to(tables, (len(structure.groups), *tables.shape[1:]))
        by = np.arange(len(tables)) if len(tables) == len(structure.groups) else of_edges[: len(tables)]
        by = of_edges if shared == len(structure.edges) else by
        groups = self.groups if len(structure.edges) else jnp.ones(1)
        higher = [_times(table, scale) for table, scale in zip(field.higher, self.factors, strict=True)]
        return eqx.tree_at(
            lambda f: (f.unary, f.pairwise, f.higher),
            field,
            (_times(field.unary, self.unary), _times(tables, groups[by][:, None, None]), tuple(higher)),
        )
