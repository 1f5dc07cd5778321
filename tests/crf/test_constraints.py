"""Label schemes against their grammar, divergence and the slope of the entropy against the list."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lnz
from crf.chain_cases import Chain, listed

BIO = ["O", "B-A", "I-A", "B-B", "I-B"]
BIOES = ["O", "B-A", "I-A", "E-A", "S-A", "S-B", "E-B", "B-B"]


def grammatical(labels, scheme):
    """By a regular expression over whole sequences."""
    one = {"BIO": "B-{0} (?:I-{0} )*", "BIOES": "S-{0} |B-{0} (?:I-{0} )*E-{0} "}[scheme]
    chunks = "|".join(one.format(kind) for kind in "AB")
    return re.fullmatch(f"(?:O |{chunks})*", " ".join(labels) + " ") is not None


@pytest.mark.parametrize(
    ("scheme", "names", "build"), [("BIO", BIO, lnz.crf.bio_constraints), ("BIOES", BIOES, lnz.crf.bioes_constraints)]
)
def test_constraints_allow_what_the_grammar_does(scheme, names, build):
    found = build(names)
    for labels in itertools.product(range(len(names)), repeat=4):
        possible = found.allowed_start[labels[0]] & found.allowed_end[labels[-1]]
        possible &= all(found.allowed_transitions[a, b] for a, b in itertools.pairwise(labels))
        assert possible == grammatical([names[i] for i in labels], scheme), labels


def test_constraints_hold_in_training_and_decoding():
    rng, names = np.random.default_rng(0), BIO[:3]
    chain = lnz.LinearChain(
        rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), **lnz.crf.bio_constraints(names)._asdict()
    )
    slope = jax.grad(lambda c: lnz.crf.negative_log_likelihood(c, jnp.asarray([0, 1, 2, 2])))(chain)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slope))
    samples = np.asarray(lnz.exact_samples(chain, jax.random.key(0), 200))
    for labels in [np.asarray(lnz.map_state(chain)), *np.asarray(lnz.crf.n_best(chain, 6).states), *samples]:
        assert grammatical([names[i] for i in labels], "BIO")
    assert lnz.crf.log_probability(chain, jnp.asarray([0, 2, 0, 0])) == -np.inf


@pytest.mark.parametrize("names", [["O", "X-A"], ["O", "B-A", "B-A"], ["O", "BA"], ["O", "S-A"], ["O", ""]])
def test_unknown_labels_are_refused(names):
    with pytest.raises(ValueError, match=r"the label .* (is duplicated|is not of the BIO scheme)"):
        lnz.crf.bio_constraints(names)


def test_divergence_and_the_slope_of_the_entropy():
    rng = np.random.default_rng(1)
    mask = np.array([True, False, True, True])
    p = Chain(rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), mask=mask)
    q = Chain(rng.normal(size=(4, 3)), rng.normal(size=(3, 3, 3)), mask=mask)
    both = [listed(c) for c in (p, q)]
    wanted = both[0].p @ (np.log(both[0].p) - np.log(both[1].p))
    chains = [lnz.LinearChain(**c.arguments()) for c in (p, q)]

    def entropy_of(e):
        return lnz.crf.entropy(lnz.LinearChain(**{**p.arguments(), "emissions": e}))

    def truth(e):
        found = listed(p._replace(emissions=e))
        return -found.p @ np.log(found.p)

    divergence = jax.jit(lnz.crf.kl_divergence)
    kl, back = divergence(*chains), divergence(*chains[::-1])
    same, slope = jax.jit(lambda p, e: (lnz.crf.kl_divergence(p, p), jax.grad(entropy_of)(e)))(
        chains[0], jnp.asarray(p.emissions)
    )
    np.testing.assert_allclose(kl, wanted, rtol=1e-10)
    np.testing.assert_allclose(back, both[1].p @ (np.log(both[1].p) - np.log(both[0].p)), rtol=1e-10)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    direction, h = rng.normal(size=(4, 3)), 1e-5
    difference = (truth(p.emissions + h * direction) - truth(p.emissions - h * direction)) / (2 * h)
    np.testing.assert_allclose(np.sum(slope * direction), difference, rtol=1e-6)
    forbids = lnz.LinearChain(**{**q.arguments(), "allowed": np.arange(12).reshape(4, 3) != 7})
    assert divergence(chains[0], forbids) == np.inf
    assert np.isfinite(divergence(forbids, chains[0]))
    with pytest.raises(ValueError, match="two chains with the same nodes"):
        lnz.crf.kl_divergence(chains[0], lnz.LinearChain(**{**q.arguments(), "mask": ~mask}))
