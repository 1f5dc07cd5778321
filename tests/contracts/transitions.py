"""Exact transition matrices of kernels: their own code, with random draws that are given, one after the other, and weighted by their chances."""

from __future__ import annotations

import math
from unittest import mock

import jax
import numpy as np

KEY = jax.random.key(0)
EXACT = 1e-12


def forced(**draws):
    """Some functions of `jax.random` give these draws."""
    return mock.patch.multiple("jax.random", **draws)


def numbers(states, x):
    """The number of every x among states (m, sites) that are all combinations of values, the last site fastest."""
    number = np.zeros(len(x), int)
    for column, values in zip(np.asarray(x).T, map(np.unique, states.T), strict=True):
        number = number * len(values) + np.searchsorted(values, column)
    return number


def assert_invariant(law, matrix):
    """Rows of chances that sum to 1, π P = π, and every possible state is reached from every other."""
    possible = law > 0
    assert (matrix > -EXACT).all()
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=EXACT)
    np.testing.assert_allclose(law @ matrix, law, rtol=0, atol=EXACT)
    assert (np.linalg.matrix_power(matrix, 64)[np.ix_(possible, possible)] > 0).all()


class Dealt:
    """Draws that are dealt to chains: chain c has the outcomes that the digits of its number spell, and `chance` is their probability.

    A draw is decided when the program runs and its chance is known: so a sweep may be compiled, loop, and lie in any layout in which the
    chains are an axis of their own.
    """

    def __init__(self):
        self.given([0])

    def given(self, codes):
        """The next run's chains have these numbers."""
        self.left, self.chance, self.outcomes = np.asarray(codes).copy(), np.ones(len(codes)), 1

    def decide(self, chances):
        """Outcomes of units, from the chances of their values (values, *units): shape (*units,)."""
        k, *shape = chances.shape
        axis = shape.index(len(self.left))
        each = np.moveaxis(chances, axis + 1, 1).reshape(k, len(self.left), -1)
        drawn = np.empty(each.shape[1:], np.int32)
        for unit in range(each.shape[2]):
            self.left, drawn[:, unit] = np.divmod(self.left, k)
            self.chance = self.chance * each[drawn[:, unit], np.arange(len(self.left)), unit]
        self.outcomes *= k ** each.shape[2]
        return np.moveaxis(drawn.reshape(len(self.left), *shape[:axis], *shape[axis + 1 :]), 0, axis)

    def uniform(self, key, shape, dtype):
        """A number that can only be compared with a chance."""
        return _Uniform(self, key)

    def categorical(self, key, logits, axis=-1):
        def callback(key, logits):
            weights = np.exp(np.moveaxis(logits, axis, 0))
            weights[0] += weights.sum(axis=0) == 0  # nothing is possible: the chain began where the law is 0
            return self.decide(weights / weights.sum(axis=0))

        return self.called(callback, key, logits, np.delete(logits.shape, axis), np.int32)

    def sample_first_axis(self, key, potentials):
        return self.categorical(key, potentials, axis=0)

    @staticmethod
    def called(callback, key, x, shape, dtype):
        # The key is an argument because it is a chain's own under `vmap`, where the chances may not be.
        result = jax.ShapeDtypeStruct(tuple(map(int, shape)), dtype)
        host = lambda key, x: callback(key, np.asarray(x)).astype(dtype)  # noqa: E731
        return jax.pure_callback(host, result, jax.random.key_data(key), x, vmap_method="broadcast_all")


class _Uniform:
    def __init__(self, dealt, key):
        self.dealt, self.key = dealt, key

    def __lt__(self, chance):
        decide = lambda key, p: self.dealt.decide(np.stack([1 - p, p]))  # noqa: E731
        return Dealt.called(decide, self.key, chance, chance.shape, bool)


def dealt_transitions(moves, states, outcomes, chains=None):
    """P of every move, a function of a key and chains, summed over all its draws.

    Args:
        states: all of them (m, *shape).
        outcomes: the number of combinations of draws in one move.
        chains: in one run; by default all.
    """
    decks, m = [Dealt() for _ in moves], len(states)

    @jax.jit
    def run(v):
        found = []
        for move, deck in zip(moves, decks, strict=True):
            with (
                forced(uniform=deck.uniform, categorical=deck.categorical),
                mock.patch("lnz._models.units.sample_first_axis", deck.sample_first_axis),
            ):
                found.append(move(KEY, v))
        return found

    flat = np.asarray(states).reshape(m, -1)
    first, code = (part.ravel() for part in np.indices((m, outcomes)))
    matrices = np.zeros((len(moves), m, m))
    for rows in np.split(np.arange(m * outcomes), math.ceil(m * outcomes / (chains or m * outcomes))):
        for deck in decks:
            deck.given(code[rows])
        for y, deck, matrix in zip(run(states[first[rows]]), decks, matrices, strict=True):
            assert deck.outcomes == outcomes
            taken = deck.chance > 0
            y = np.asarray(y).reshape(len(rows), -1)[taken]
            np.add.at(matrix, (first[rows][taken], numbers(flat, y)), deck.chance[taken])
    return matrices
