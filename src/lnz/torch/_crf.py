"""A linear-chain conditional random field as a layer, with pytorch-crf's names."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from torch import Tensor, nn

from lnz._core.numerics import check_whole_number
from lnz._models.linear_chain import Holes, LinearChain
from lnz._partition import log_partition
from lnz.crf._constraints import Constraints
from lnz.crf._queries import entropy, log_probability, marginals, partial_log_probability
from lnz.routes._exact.chain_paths import best_path, best_paths, sampled_paths
from lnz.routes._exact.forward_backward import chain_log_z
from lnz.torch._bridge import bucket, call, eager, padded, per_example
from lnz.torch._checks import as_mask, check_device, check_log_potentials, check_same_device, first_place

IGNORED = -100  # the tag of steps that are left out, as in PyTorch's cross_entropy
_REDUCTIONS = ("none", "sum", "mean", "token_mean")
_SHORTEST = 8  # sequences are padded to at least so many steps


class _Batch(NamedTuple):
    """A checked batch, sequences first.

    Attributes:
        floats: emissions (batch, length, K), then transitions, start and end, with -inf where constraints forbid them.
        exists: which steps exist, (batch, length); None where all do.
        sizes: batch and length of the compiled program, to which they are padded.
    """

    floats: tuple[Tensor, ...]
    exists: Tensor | None
    sizes: tuple[int, int]

    @property
    def batch(self) -> int:
        return self.floats[0].shape[0]

    @property
    def length(self) -> int:
        return self.floats[0].shape[1]

    def mask(self) -> Tensor:
        """Which steps exist, padded."""
        if self.exists is not None:
            return padded(self.exists, self.sizes)
        mask = torch.zeros(self.sizes, dtype=torch.bool, device=self.floats[0].device)
        mask[: self.batch, : self.length] = True
        return mask

    def per_example(self, function: Any, others: Any) -> Tensor:
        """A number for every sequence, differentiable."""
        return per_example(function, self.floats[:1], self.floats[1:], others, self.sizes)


class CRF(nn.Module):
    """A linear-chain conditional random field over tags y of a sequence, with the names, layouts and `state_dict` of pytorch-crf:

        log p(y|x) = start(y_1) + Σ_t emission_t(y_t) + Σ_t transition(y_{t-1}, y_t) + end(y_T) - log Z(x).

    `forward` returns log-likelihoods in nats (a loss is its negative). Value and gradient come from one compiled JAX call. Batches are padded to
    few sizes, so another length or a smaller last batch rarely compiles anew. Half precision is computed in float32, float64 in float64,
    whatever JAX's setting; log-likelihoods are float32 or float64.

    Beyond pytorch-crf: `marginals`, `n_best`, `sample`, `entropy` and `log_partition`, constraints, empty sequences, and masks with holes. Tags of
    -100 mark steps that are left out, as if the mask were off there. Partial labels are booleans (batch, length, num_tags): the tags that are
    possible at each step; the result is then the log-probability of that set of labellings.

    Args:
        num_tags: K.
        batch_first: whether tensors have shape (batch, length, …) rather than (length, batch, …).
        constraints: the transitions, first and last tags that are possible: `lnz.crf.bio_constraints(names)`, `lnz.crf.bioes_constraints(names)`,
            or any `lnz.crf.Constraints`. Whatever else occurs in `tags` has log-likelihood -inf and no gradient.
        holes: what a step that is off between others does. "link": its neighbours follow one another; "cut": each run of steps is a sequence of
            its own, with start and end. None is "link" too, but refuses masks whose first step is off while later ones are on, as pytorch-crf
            does: most of these belong to the other layout.

    Raises:
        ValueError: for shapes, dtypes or devices that do not match, tags out of range, NaN or +inf in log-potentials that count, and where no
            labelling is possible.

    Source: Lafferty, McCallum, Pereira 2001, "Conditional random fields"; the interface is that of pytorch-crf 0.7.

    Example:
        >>> import torch, lnz
        >>> crf = lnz.torch.CRF(3, batch_first=True, constraints=lnz.crf.bio_constraints(["O", "B", "I"]))
        >>> emissions, tags = torch.zeros(2, 4, 3, requires_grad=True), torch.tensor([[0, 1, 2, 2], [1, 0, -100, -100]])
        >>> loss = -crf(emissions, tags, reduction="token_mean")
        >>> loss.backward()
        >>> crf.marginals(emissions).shape
        torch.Size([2, 4, 3])
    """

    allowed_transitions: Tensor | None
    allowed_start: Tensor | None
    allowed_end: Tensor | None

    def __init__(
        self,
        num_tags: int,
        batch_first: bool = False,
        *,
        constraints: Constraints | None = None,
        holes: Holes | None = None,
    ):
        check_whole_number("num_tags", num_tags)
        if holes not in (None, "link", "cut"):
            raise ValueError(f'holes must be None, "link" or "cut", but is {holes!r}')
        super().__init__()
        self.num_tags = num_tags
        self.batch_first = batch_first
        self.holes: Holes | None = holes
        self.start_transitions = nn.Parameter(torch.empty(num_tags))
        self.end_transitions = nn.Parameter(torch.empty(num_tags))
        self.transitions = nn.Parameter(torch.empty(num_tags, num_tags))
        for name in Constraints._fields:
            # Not persistent: a state_dict has pytorch-crf's names alone.
            self.register_buffer(name, _allowed(name, constraints, num_tags), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters uniformly from [-0.1, 0.1]."""
        for values in self.parameters():
            nn.init.uniform_(values, -0.1, 0.1)

    def extra_repr(self) -> str:
        constrained = ", constrained" if self.allowed_transitions is not None else ""
        return f"num_tags={self.num_tags}, batch_first={self.batch_first}, holes={self.holes!r}{constrained}"

    @eager
    def forward(self, emissions: Tensor, tags: Tensor, mask: Tensor | None = None, reduction: str = "sum") -> Tensor:
        """The log-likelihood log p(tags|emissions) in nats.

        Args:
            emissions: log-potentials of every tag at every step, (batch, length, num_tags), or (length, batch, num_tags).
            tags: integers of that layout, -100 at steps to leave out; or booleans with an axis of num_tags more, the tags that are possible.
            mask: which steps exist, booleans or integers.
            reduction: "none" (one number per sequence), "sum", "mean" over sequences, or "token_mean" over the steps that count.
        """
        check_reduction(reduction)
        of_sets = tags.dtype == torch.bool
        batch = self._batch(emissions, mask, check=False)
        others = self._sets(batch, emissions, tags) if of_sets else self._labels(batch, emissions, tags)
        found = batch.per_example(partial_of(_log_likelihood, self._links, of_sets), others)
        if not found.sum() > -torch.inf:  # the sum over labels shows NaN in whatever counts, at no cost
            self._check_numbers(emissions, mask)
            if not of_sets:
                self._check_tags(batch, tags)
        return reduced(found, reduction, (batch.mask() if isinstance(others, tuple) else others.ne(IGNORED)))

    @eager
    def log_partition(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """log Z of every sequence in nats, (batch,), differentiable."""
        batch = self._batch(emissions, mask)
        found = batch.per_example(partial_of(_log_z, self._links), batch.mask())
        return _possible(found, found)

    @eager
    def entropy(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """The entropy -Σ_y p(y) log p(y) of every sequence's labellings in nats, (batch,), differentiable."""
        batch = self._batch(emissions, mask)
        found = batch.per_example(partial_of(_entropy, self._links), batch.mask())
        return _possible(found, torch.where(found.isfinite(), found.detach(), -torch.inf))

    @eager
    def decode(self, emissions: Tensor, mask: Tensor | None = None) -> list[list[int]]:
        """The most probable tags of every sequence (Viterbi): one list per sequence, an entry for every step that exists."""
        batch = self._batch(emissions, mask)
        labels, scores = self._query(_best, batch)
        _possible(labels, scores[: batch.batch])
        return _lists(labels, batch)

    @eager
    def n_best(self, emissions: Tensor, n: int, mask: Tensor | None = None) -> list[list[tuple[list[int], float]]]:
        """The n most probable labellings of every sequence, best first, each with its log-probability; fewer where fewer are possible."""
        check_whole_number("n", n)
        batch = self._batch(emissions, mask)
        labels, log_p = self._query(_several, batch, n)
        _possible(labels, log_p[: batch.batch, 0])
        found = [_lists(labels[:, i], batch) for i in range(n)]
        return [
            [(found[i][b], p) for i, p in enumerate(row) if p > -torch.inf]
            for b, row in enumerate(log_p[: batch.batch].tolist())
        ]

    @eager
    def marginals(self, emissions: Tensor, mask: Tensor | None = None) -> Tensor:
        """P(y_t = k | x) in the layout of the emissions; 0 at steps that are off. Without a gradient."""
        batch = self._batch(emissions, mask)
        found, scores = self._query(_marginals, batch)
        return self._laid_out(_possible(found, scores[: batch.batch]), batch)

    @eager
    def sample(
        self, emissions: Tensor, n: int, mask: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """n independent exact samples of the tags, in the layout of `tags` after an axis of n; -100 at steps that are off.

        Args:
            emissions, mask: as in `forward`.
            n: the number of samples of every sequence.
            generator: where random numbers come from; by default PyTorch's global generator.
        """
        check_whole_number("n", n)
        batch = self._batch(emissions, mask)
        device = None if generator is None else generator.device
        shape = (batch.sizes[0], 2)
        seeds = torch.randint(2**31 - 1, shape, generator=generator, device=device, dtype=torch.int32)
        labels, scores = self._query(_samples, batch, bucket(n), seeds.to(emissions.device))
        _possible(labels, scores[: batch.batch])
        labels = torch.where(batch.mask()[:, None], labels, IGNORED)[: batch.batch, :n, : batch.length]
        return labels.movedim(0, 1 if self.batch_first else 2).long()

    @property
    def _links(self) -> Holes:
        return self.holes or "link"

    def _query(self, function: Any, batch: _Batch, *static_and_more: Any) -> Any:
        """What a function without a gradient gives for every sequence: static arguments first, then at most one tensor."""
        more = [x for x in static_and_more if isinstance(x, Tensor)]
        static = [x for x in static_and_more if not isinstance(x, Tensor)]
        emissions, *tables = (x.detach() for x in batch.floats)
        floats = (padded(emissions, batch.sizes), *tables)
        return call(_query_program(function, self._links, *static), floats, (batch.mask(), *more))

    def _batch(self, emissions: Tensor, mask: Tensor | None, *, check: bool = True) -> _Batch:
        if emissions.ndim != 3 or emissions.shape[2] != self.num_tags or not emissions.is_floating_point():
            layout = "batch, length" if self.batch_first else "length, batch"
            raise ValueError(
                f"emissions must be floats of shape ({layout}, {self.num_tags}), but are {emissions.dtype} of shape {tuple(emissions.shape)}"
            )
        check_device("emissions", emissions)
        check_same_device("emissions", emissions, self.transitions)
        exists = None if mask is None else as_mask("mask", mask, emissions.shape[:2], emissions)
        if check:
            self._check_numbers(emissions, mask)
        if not self.batch_first:
            emissions, exists = emissions.transpose(0, 1), None if exists is None else exists.T
        batch, length = emissions.shape[:2]
        double = torch.float64 in (emissions.dtype, self.transitions.dtype)
        dtype = torch.float64 if double else torch.float32
        pairs = [
            (self.transitions, self.allowed_transitions),
            (self.start_transitions, self.allowed_start),
            (self.end_transitions, self.allowed_end),
        ]
        masked = [x if ok is None else x.masked_fill(~ok, -torch.inf) for x, ok in pairs]
        floats = tuple(x.to(dtype) for x in (emissions, *masked))
        if self.holes is None and exists is not None and length and bool((~exists[:, 0] & exists.any(1)).any()):
            layout = "(batch, length)" if self.batch_first else "(length, batch)"
            raise ValueError(
                f"the mask of the first step must be on in every sequence that is not empty. Check that the layout is {layout}, or allow holes "
                'everywhere: CRF(…, holes="link")'
            )
        return _Batch(floats, exists, (bucket(batch), bucket(length, _SHORTEST)))

    def _labels(self, batch: _Batch, emissions: Tensor, tags: Tensor) -> Tensor:
        """Tags (B, T) as int32, -100 where they do not count."""
        if tags.shape != emissions.shape[:2] or tags.is_floating_point():
            raise ValueError(
                f"tags must be integers of shape {tuple(emissions.shape[:2])}, or booleans of shape {tuple(emissions.shape)} where only sets of "
                f"tags are known, but are {tags.dtype} of shape {tuple(tags.shape)}"
            )
        check_same_device("tags", tags, emissions)
        # Whatever is out of range stays so as int32, and makes the log-likelihood NaN.
        labels = (tags if self.batch_first else tags.transpose(0, 1)).clamp(IGNORED - 1, self.num_tags).int()
        if batch.exists is not None:
            labels = torch.where(batch.exists, labels, IGNORED)
        return padded(labels, batch.sizes, IGNORED)

    def _check_tags(self, batch: _Batch, tags: Tensor) -> None:
        wrong = (tags >= self.num_tags) | ((tags < 0) & (tags != IGNORED))
        if batch.exists is not None:
            wrong &= batch.exists if self.batch_first else batch.exists.T
        if wrong.any():
            raise ValueError(
                f"tags[{first_place(wrong)}] is {tags[wrong][0].item()}, but tags are 0 to {self.num_tags - 1}, or {IGNORED} at steps to leave "
                "out. Partly known tags are booleans with an axis of num_tags"
            )

    def _check_numbers(self, emissions: Tensor, mask: Tensor | None) -> None:
        tables = dict(self.named_parameters())
        check_log_potentials({"emissions": emissions.detach(), **tables}, None if mask is None else mask.bool())

    def _sets(self, batch: _Batch, emissions: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
        """The mask, and the tags that are possible at every step (B, T, K)."""
        if tags.shape != emissions.shape:
            raise ValueError(
                f"sets of tags must be booleans of the shape of the emissions, {tuple(emissions.shape)}, but have shape {tuple(tags.shape)}"
            )
        check_same_device("tags", tags, emissions)
        sets = tags if self.batch_first else tags.transpose(0, 1)
        return batch.mask(), padded(sets, batch.sizes)

    def _laid_out(self, found: Tensor, batch: _Batch) -> Tensor:
        found = found[: batch.batch, : batch.length]
        return found if self.batch_first else found.transpose(0, 1)


def _allowed(name: str, constraints: Constraints | None, num_tags: int) -> Tensor | None:
    if constraints is None:
        return None
    if not isinstance(constraints, Constraints):
        raise ValueError(
            f"constraints must be an lnz.crf.Constraints, such as lnz.crf.bio_constraints(names), but are {type(constraints).__name__}"
        )
    allowed = torch.as_tensor(constraints._asdict()[name])
    shape = (num_tags, num_tags) if name == "allowed_transitions" else (num_tags,)
    if tuple(allowed.shape) != shape or allowed.dtype != torch.bool:
        raise ValueError(
            f"{name} of {num_tags} tags must be booleans of shape {shape}, but are {allowed.dtype} of shape {tuple(allowed.shape)}"
        )
    return allowed


def check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, but is {reduction!r}")


def reduced(found: Tensor, reduction: str, counts: Tensor) -> Tensor:
    """Log-likelihoods of examples, or their sum, or its mean over examples or over the nodes that count."""
    if reduction == "none":
        return found
    total = found.sum()
    if reduction == "sum":
        return total
    return total / (counts.sum().clamp(min=1) if reduction == "token_mean" else max(len(found), 1))


def _possible(found: Tensor, scores: Tensor) -> Tensor:
    """What was found, unless a sequence has the score -inf."""
    none = scores == -torch.inf
    if none.any():
        raise ValueError(
            f"no labelling of sequence {first_place(none)} is possible: Z = 0. Check that the constraints allow one of its length, and that no step "
            "has emissions of -inf alone"
        )
    return found


def _lists(labels: Tensor, batch: _Batch) -> list[list[int]]:
    rows, masks = (x[: batch.batch, : batch.length].tolist() for x in (labels, batch.mask()))
    return [[tag for tag, on in zip(row, mask, strict=True) if on] for row, mask in zip(rows, masks, strict=True)]


@functools.cache
def partial_of(function: Any, *static: Any) -> Any:
    """A function with its first arguments given: the same object for the same arguments, so that its program is found again."""
    return functools.partial(function, *static)


@functools.cache
def _query_program(function: Any, *static: Any) -> Any:
    return jax.jit(jax.vmap(functools.partial(function, *static), in_axes=((0, None, None, None), 0)))


# Functions of one sequence in JAX: `floats` are emissions, transitions, start and end.


def _chain(holes: Any, floats: Any, mask: jax.Array) -> LinearChain:
    emissions, transitions, start, end = floats
    return LinearChain(emissions, transitions, start=start, end=end, mask=mask, holes=holes)


def _log_likelihood(holes: Any, of_sets: bool, floats: Any, others: Any) -> jax.Array:
    if of_sets:
        mask, sets = others
        return partial_log_probability(_chain(holes, floats, mask), sets)
    return log_probability(_chain(holes, floats, others != IGNORED), others)


def _log_z(holes: Any, floats: Any, mask: jax.Array) -> jax.Array:
    return log_partition(_chain(holes, floats, mask)).value


def _entropy(holes: Any, floats: Any, mask: jax.Array) -> Any:
    return entropy(_chain(holes, floats, mask))


def _best(holes: Any, floats: Any, others: Any) -> tuple[jax.Array, jax.Array]:
    return best_path(_chain(holes, floats, *others).potentials())


def _several(holes: Any, n: int, floats: Any, others: Any) -> tuple[jax.Array, jax.Array]:
    p = _chain(holes, floats, *others).potentials()
    labels, scores = best_paths(p, n)
    return labels, scores - chain_log_z(p)


def _marginals(holes: Any, floats: Any, others: Any) -> tuple[jax.Array, jax.Array]:
    (mask,) = others
    found = marginals(_chain(holes, floats, mask))
    return found, jnp.where(jnp.any(mask) & ~jnp.any(found > 0), -jnp.inf, 0)


def _samples(holes: Any, n: int, floats: Any, others: Any) -> tuple[jax.Array, jax.Array]:
    mask, seed = others
    key = jax.random.wrap_key_data(seed.astype(jnp.uint32), impl="threefry2x32")
    p = _chain(holes, floats, mask).potentials()
    return sampled_paths(p, key, n), chain_log_z(p)
