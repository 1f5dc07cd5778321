"""Random chains with everything a user may throw at them, and every labelling of one listed in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from listing import log_sum, normalised, states

JUNK = np.array([np.nan, -100.0, np.inf, -np.inf, 1e30])


class Chain(NamedTuple):
    """The arguments of `lnz.LinearChain`, one chain (or with a leading axis many of them)."""

    emissions: np.ndarray
    transitions: np.ndarray
    lengths: Any = None
    start: Any = None
    end: Any = None
    mask: Any = None
    allowed: Any = None
    allowed_transitions: Any = None

    def arguments(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value is not None}


class Listed(NamedTuple):
    """Every labelling of a chain, with its log-weight."""

    labels: np.ndarray  # (n, T), 0 at masked nodes
    scores: np.ndarray
    joints: list[tuple[int, int]]  # which node follows which

    @property
    def log_z(self) -> float:
        return float(log_sum(self.scores))

    @property
    def p(self) -> np.ndarray:
        return normalised(self.scores)

    def nodes(self, k: int, live: np.ndarray) -> np.ndarray:
        """P(y_t = k), 0 at masked nodes."""
        return np.stack([self.p @ (self.labels == c) for c in range(k)], -1) * live[:, None]

    def pairs(self, k: int) -> np.ndarray:
        """P(y_before = j, y_t = k) at each node t that has one before it: (T, k, k)."""
        found = np.zeros((self.labels.shape[1], k, k))
        for i, j in self.joints:
            np.add.at(found[j], (self.labels[:, i], self.labels[:, j]), self.p)
        return found


def exists(chain: Chain) -> np.ndarray:
    t = len(chain.emissions)
    live = np.ones(t, bool) if chain.mask is None else chain.mask
    return live if chain.lengths is None else live & (np.arange(t) < chain.lengths)


def listed(chain: Chain, holes: str = "link") -> Listed:
    """Σ over labels written out: no recursion, no library."""
    t, k = chain.emissions.shape
    live = np.flatnonzero(exists(chain))
    emissions, transitions = chain.emissions[live], chain.transitions
    if chain.allowed is not None:
        emissions = np.where(chain.allowed[live], emissions, -np.inf)
    if transitions.ndim == 2:
        transitions = np.broadcast_to(transitions, (max(t - 1, 0), k, k))
    if chain.allowed_transitions is not None:
        transitions = np.where(chain.allowed_transitions, transitions, -np.inf)
    labellings, joints = states(range(k), len(live)), []
    labels = np.zeros((len(labellings), t), int)
    labels[:, live] = labellings
    scores = np.zeros(len(labellings))
    for place, j in enumerate(live):
        scores = scores + emissions[place][labellings[:, place]]
        follows = place > 0 and (holes == "link" or live[place - 1] == j - 1)
        if follows:
            scores = scores + transitions[j - 1][labellings[:, place - 1], labellings[:, place]]
            joints.append((int(live[place - 1]), int(j)))
        elif chain.start is not None:
            scores = scores + chain.start[labellings[:, place]]
        followed = place + 1 < len(live) and (holes == "link" or live[place + 1] == j + 1)
        if not followed and chain.end is not None:
            scores = scores + chain.end[labellings[:, place]]
    return Listed(labels, scores, joints)


def random_chain(rng: np.random.Generator, t: int, k: int, *, own: bool = False, hard: float = 0.15) -> Chain:
    """A chain with holes, a random length, forbidden labels and pairs, and junk where nothing exists; often with very unequal potentials."""
    scale = rng.choice([0.3, 1.0, 1.0, 5.0, 40.0])

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * scale

    emissions, transitions = draw(t, k), draw(max(t - 1, 0), k, k) if own else draw(k, k)
    mask = rng.random(t) < rng.choice([0.6, 0.9, 1.0])
    length = int(rng.integers(0, t + 1)) if rng.random() < 0.5 else t
    live = mask & (np.arange(t) < length)
    hard = hard * (rng.random() < 0.5)
    emissions[~live] = rng.choice(JUNK, size=(int((~live).sum()), k))
    start, end = draw(k), draw(k)
    start[rng.random(k) < hard], end[rng.random(k) < hard] = -np.inf, -np.inf
    emissions[live] = np.where(rng.random((int(live.sum()), k)) < 0.3 * hard, -np.inf, emissions[live])
    allowed = rng.random((t, k)) >= hard
    allowed |= rng.random((t, 1)) < 0.5
    if rng.random() < 0.5:
        allowed &= np.arange(k) < rng.integers(1, k + 1)  # fewer labels
    return Chain(emissions, transitions, np.int32(length), start, end, mask, allowed, rng.random((k, k)) >= hard)


def stacked(chains: list[Chain]) -> Chain:
    return Chain(*(np.stack(values) for values in zip(*chains, strict=True)))
