"""Conditional models of segments and of grids and graphs as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

from lnz._core.numerics import check_whole_number
from lnz._core.route import Route
from lnz._models.random_field import RandomField as Field
from lnz._models.semi_markov_chain import SemiMarkovChain
from lnz._models.structures import Structure
from lnz._partition import log_partition
from lnz.crf._queries import log_probability
from lnz.torch._bridge import bucket, eager, padded, per_example
from lnz.torch._checks import as_mask, check_device, check_log_potentials, check_same_device, first_place
from lnz.torch._crf import IGNORED, check_reduction, partial_of, reduced


class SemiMarkovCRF(nn.Module):
    """A semi-Markov conditional random field: sequences cut into segments, each with a label and a duration of at most L steps,

        log p(y|x) = start(k_1) + Σ_i segment(t_i, d_i, k_i) + Σ_i transition(k_{i-1}, k_i) + end(k_n) - log Z(x).

    Args:
        num_labels: K.

    Raises:
        ValueError: for shapes, dtypes or devices that do not match, states that do not form a segmentation, and NaN or +inf in log-potentials.

    Source: Sarawagi, Cohen 2004, "Semi-Markov conditional random fields for information extraction".

    Example:
        >>> import torch, lnz
        >>> crf = lnz.torch.SemiMarkovCRF(2)
        >>> states = crf.encode([([2, 1], [0, 1]), ([1], [1])], 3)  # durations and labels of each sequence
        >>> loss = -crf(torch.zeros(2, 3, 2, 2), states, torch.tensor([3, 1]))
        >>> loss.backward()
    """

    def __init__(self, num_labels: int):
        check_whole_number("num_labels", num_labels)
        super().__init__()
        self.num_labels = num_labels
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        self.start_transitions = nn.Parameter(torch.zeros(num_labels))
        self.end_transitions = nn.Parameter(torch.zeros(num_labels))

    def encode(self, segments: Sequence[tuple[Sequence[int], Sequence[int]]], length: int) -> Tensor:
        """The states (batch, length) of sequences, each given by the durations and the labels of its segments.

        A state has 0 where no segment ends, and 1 + (d - 1) K + k where one of duration d and label k ends.
        """
        states = torch.zeros(len(segments), length, dtype=torch.int64)
        for row, (durations, labels) in zip(states, segments, strict=True):
            d, k = torch.tensor(durations, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)
            wrong = (
                d.shape != k.shape or bool(((d < 1) | (k < 0) | (k >= self.num_labels)).any()) or int(d.sum()) > length
            )
            if wrong:
                raise ValueError(
                    f"every segment needs a duration of at least 1 and a label from 0 to {self.num_labels - 1}, and all of a sequence at most "
                    f"{length} steps, but got durations {list(durations)} and labels {list(labels)}"
                )
            row[d.cumsum(0) - 1] = 1 + (d - 1) * self.num_labels + k
        return states

    @eager
    def forward(
        self, segments: Tensor, states: Tensor, lengths: Tensor | None = None, reduction: str = "sum"
    ) -> Tensor:
        """The log-likelihood in nats.

        Args:
            segments: log-potentials (batch, length, L, num_labels) of the segment of duration 1 … L that ends at each step.
            states: integers (batch, length), as from `encode`.
            lengths: the number of steps of every sequence, integers (batch,).
            reduction: "none", "sum", "mean" over sequences, or "token_mean" over steps.
        """
        check_reduction(reduction)
        if states.shape != segments.shape[:2] or states.is_floating_point():
            raise ValueError(
                f"states must be integers of shape {tuple(segments.shape[:2])}, but are {states.dtype} of shape {tuple(states.shape)}"
            )
        floats, steps, sizes = self._checked(segments, lengths)
        codes = padded(
            torch.where(torch.arange(states.shape[1], device=states.device) < steps[:, None], states, 0).int(), sizes
        )
        found = per_example(_segments_likelihood, floats[:1], floats[1:], (codes, padded(steps, sizes[:1])), sizes)
        wrong = found.detach() == -torch.inf
        if wrong.any():
            raise ValueError(
                f"the states of sequence {first_place(wrong)} are impossible: their durations must add up to its length, be at most "
                f"{segments.shape[2]}, and have segments above -inf. Make them by `encode`"
            )
        return reduced(found, reduction, steps)

    @eager
    def log_partition(self, segments: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log Z of every sequence in nats, (batch,), differentiable."""
        floats, steps, sizes = self._checked(segments, lengths)
        return per_example(_segments_log_z, floats[:1], floats[1:], padded(steps, sizes[:1]), sizes)

    @eager
    def marginals(self, segments: Tensor, lengths: Tensor | None = None) -> Tensor:
        """P(a segment of this duration and label ends at this step), in the shape of `segments`: the gradient of log Z (T1)."""
        with torch.enable_grad():
            leaf = segments.detach().requires_grad_()
            return torch.autograd.grad(self.log_partition(leaf, lengths).sum(), leaf)[0]

    def _checked(self, segments: Tensor, lengths: Tensor | None) -> tuple[tuple[Tensor, ...], Tensor, tuple[int, int]]:
        if segments.ndim != 4 or segments.shape[3] != self.num_labels or not segments.is_floating_point():
            raise ValueError(
                f"segments must be floats of shape (batch, length, durations, {self.num_labels}), but are {segments.dtype} of shape "
                f"{tuple(segments.shape)}"
            )
        check_device("segments", segments)
        check_same_device("segments", segments, self.transitions)
        batch, length = segments.shape[:2]
        whole = torch.full((batch,), length, device=segments.device)
        steps: Tensor = whole if lengths is None else lengths
        if steps.shape != (batch,) or bool(((steps < 0) | (steps > length)).any()):
            raise ValueError(
                f"lengths must be {batch} integers from 0 to {length}, one for each sequence, but are {steps.tolist()}"
            )
        check_log_potentials({"segments": segments.detach(), **dict(self.named_parameters())})
        dtype = torch.float64 if torch.float64 in (segments.dtype, self.transitions.dtype) else torch.float32
        tables = (self.transitions, self.start_transitions, self.end_transitions)
        return tuple(x.to(dtype) for x in (segments, *tables)), steps.int(), (bucket(batch), bucket(length, 8))


class RandomField(nn.Module):
    """A conditional random field over the nodes of a grid, a tree or a graph, with one learned table of label pairs per group of edges:

        log p(y|x) = Σ_i unary_i(y_i) + Σ_(i,j) pairwise(y_i, y_j) - log Z(x).

    Args:
        structure: `lnz.crf.Grid`, `lnz.crf.Tree`, `lnz.crf.Chain` or `lnz.crf.Graph` without further factors.
        num_labels: K.
        route: how log Z is computed; by default exactly, where the width allows. `lnz.routes.BeliefPropagation(…)` and the like are approximate,
            and so are likelihoods and marginals then.

    Raises:
        ValueError: for shapes, dtypes or devices that do not match, labels out of range, and NaN or +inf in log-potentials that count.

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields".

    Example:
        >>> import torch, lnz
        >>> field = lnz.torch.RandomField(lnz.crf.Grid((2, 3)), 4)
        >>> loss = -field(torch.zeros(5, 2, 3, 4), torch.zeros(5, 2, 3, dtype=torch.int64))
        >>> loss.backward()
        >>> field.marginals(torch.zeros(5, 2, 3, 4)).shape
        torch.Size([5, 2, 3, 4])
    """

    def __init__(self, structure: Structure, num_labels: int, *, route: Route | None = None):
        check_whole_number("num_labels", num_labels)
        super().__init__()
        self.structure = structure
        self.num_labels = num_labels
        self.route = route
        self.pairwise = nn.Parameter(torch.zeros(len(structure.groups), num_labels, num_labels))

    @eager
    def forward(self, unary: Tensor, labels: Tensor, mask: Tensor | None = None, reduction: str = "sum") -> Tensor:
        """The log-likelihood in nats.

        Args:
            unary: log-potentials of every label at every node, (batch, *structure.shape, num_labels).
            labels: integers (batch, *structure.shape), -100 at nodes to leave out.
            mask: which nodes exist, booleans or integers of that shape.
            reduction: "none", "sum", "mean" over examples, or "token_mean" over the nodes that count.
        """
        check_reduction(reduction)
        if labels.shape != unary.shape[:-1] or labels.is_floating_point():
            raise ValueError(
                f"labels must be integers of shape {tuple(unary.shape[:-1])}, but are {labels.dtype} of shape {tuple(labels.shape)}"
            )
        exists = as_mask("mask", mask, unary.shape[:-1], unary) & (labels != IGNORED)
        wrong = exists & ((labels < 0) | (labels >= self.num_labels))
        if wrong.any():
            raise ValueError(
                f"labels[{first_place(wrong)}] is {labels[wrong][0].item()}, but labels are 0 to {self.num_labels - 1}, or {IGNORED} at nodes to "
                "leave out"
            )
        codes = torch.where(exists, labels, 0).int()
        found = self._per_example(partial_of(_field_likelihood, self.structure, self.route), unary, exists, (codes,))
        return reduced(found, reduction, exists)

    @eager
    def log_partition(self, unary: Tensor, mask: Tensor | None = None) -> Tensor:
        """log Z of every example in nats, (batch,), differentiable."""
        exists = as_mask("mask", mask, unary.shape[:-1], unary)
        return self._per_example(partial_of(_field_log_z, self.structure, self.route), unary, exists, ())

    @eager
    def marginals(self, unary: Tensor, mask: Tensor | None = None) -> Tensor:
        """P(y_i = k | x), in the shape of `unary`: the gradient of log Z (T1); 0 at nodes that are off."""
        with torch.enable_grad():
            leaf = unary.detach().requires_grad_()
            return torch.autograd.grad(self.log_partition(leaf, mask).sum(), leaf)[0]

    def _per_example(self, function: Any, unary: Tensor, exists: Tensor, more: tuple[Tensor, ...]) -> Tensor:
        shape = (*self.structure.shape, self.num_labels)
        if unary.shape[1:] != shape or not unary.is_floating_point():
            raise ValueError(
                f"unary must be floats of shape (batch, *{shape}), but is {unary.dtype} of shape {tuple(unary.shape)}"
            )
        check_device("unary", unary)
        check_same_device("unary", unary, self.pairwise)
        check_log_potentials({"unary": unary.detach(), "pairwise": self.pairwise}, exists)
        # Elimination runs on the host, in a thread where JAX's own setting holds.
        wide = torch.float64 in (unary.dtype, self.pairwise.dtype) and jnp.result_type(float) == jnp.float64
        dtype = torch.float64 if wide else torch.float32
        sizes = (bucket(len(unary)),)
        others = tuple(padded(x, sizes) for x in (exists, *more))
        return per_example(function, (unary.to(dtype),), (self.pairwise.to(dtype),), others, sizes).to(dtype)


def _semi_markov(floats: Any, length: jax.Array) -> SemiMarkovChain:
    segments, transitions, start, end = floats
    return SemiMarkovChain(segments, transitions, length, start=start, end=end)


def _segments_likelihood(floats: Any, others: Any) -> jax.Array:
    codes, length = others
    return log_probability(_semi_markov(floats, length), codes)


def _segments_log_z(floats: Any, length: jax.Array) -> jax.Array:
    return log_partition(_semi_markov(floats, length)).value


def _field_likelihood(structure: Structure, route: Route | None, floats: Any, others: Any) -> jax.Array:
    mask, labels = others
    unary, pairwise = floats
    return log_probability(Field(structure, unary, pairwise, mask=mask), labels, route=route)


def _field_log_z(structure: Structure, route: Route | None, floats: Any, others: Any) -> jax.Array:
    (mask,) = others
    unary, pairwise = floats
    return log_partition(Field(structure, unary, pairwise, mask=mask), route=route).value
