"""Learning finds what there is to find: known parameters within sampling error, and the best likelihood that is possible."""

import math

import jax
import numpy as np
import optax
import pytest
from learning_cases import law, likelihood, model_mean, pairs, symmetric

import lnz

KEY = jax.random.key(51)


def samples(energy, n, seed):
    """Exact, independent samples, drawn in NumPy."""
    states, logits = law(energy)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    return states[np.random.default_rng(seed).choice(len(p), n, p=p)]


def test_the_parameters_of_a_known_ising_model_come_back_within_sampling_error():
    """The maximum-likelihood error is N(0, I⁻¹/n) with the Fisher information I of T7; here for 10 couplings and 5 fields."""
    n, sites = 20_000, 5
    i, j = np.triu_indices(sites, 1)
    truth = lnz.Ising.sparse(np.stack([i, j], 1), symmetric(sites, 8)[i, j], np.linspace(-0.5, 0.5, sites), n=sites)
    start = lnz.Ising.sparse(np.stack([i, j], 1), np.zeros(10), 0.0, n=sites)
    statistics = lambda s: np.concatenate([s[:, i] * s[:, j], s], axis=1)  # noqa: E731
    mean = model_mean(truth, statistics)
    second = model_mean(truth, lambda s: pairs(statistics(s)))
    information = second - np.outer(mean, mean)

    data = samples(truth, n, 1).astype(np.int8)
    fitted = lnz.fit(
        start, data, negative_phase=lnz.learning.ExactPhase(), optimizer=optax.sgd(0.4, momentum=0.8), epochs=150, batch_size=n,
        evaluate_every=150, key=KEY,
    )  # fmt: skip
    assert fitted.history[-1].figures["gradient_norm"] < 0.2  # the mean over the run; at its end:
    np.testing.assert_allclose(
        model_mean(fitted.energy, statistics), statistics(data.astype(float)).mean(axis=0), atol=1e-6
    )
    parameters = lambda e: np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(e)])  # noqa: E731
    error = parameters(fitted.energy) - parameters(truth)
    chi_square = n * error @ information @ error
    assert 15 - 5 * math.sqrt(30) < chi_square < 15 + 6 * math.sqrt(30)


def bars_and_stripes(side):
    """Every pattern of whole rows and every pattern of whole columns: all-on and all-off come twice."""
    lines = np.asarray(np.meshgrid(*[[0, 1]] * side, indexing="ij")).reshape(side, -1).T
    rows = np.repeat(lines[:, :, None], side, axis=2)
    return np.concatenate([rows, rows.transpose(0, 2, 1)]).reshape(2 * len(lines), -1).astype(np.uint8)


def test_bars_and_stripes_by_exact_maximum_likelihood():
    """The bound of the 32 patterns is -108.13 nats in all. 16 hidden units and L-BFGS reach -108.14 (REFERENCE_VALUES); this short run of
    Adam on 10 hidden units, whose sum has 1,024 terms, comes within 4. CD-1 peaks at -151, PCD-1 at -117.5.
    """
    data = bars_and_stripes(4)
    _, counts = np.unique(data, axis=0, return_counts=True)
    bound = float(np.sum(counts * np.log(counts / len(data))))
    assert bound == pytest.approx(-108.13096016735)
    energy = lnz.RBM.from_data(data, 10, key=KEY, scale=0.3)
    fitted = lnz.fit(
        energy, data, negative_phase=lnz.learning.ExactPhase(), optimizer=optax.adam(0.1), epochs=600, batch_size=len(data),
        evaluate_every=600, key=KEY,
    )  # fmt: skip
    assert bound - 4 < len(data) * lnz.log_likelihood(fitted.energy, data).value <= bound + 1e-3


def test_persistent_chains_learn_a_model_with_two_modes():
    """SML against the exact optimum of the same data, for spins that mostly agree."""
    truth = lnz.Ising(np.full((4, 4), 0.35) - 0.35 * np.eye(4), [0.1, -0.1, 0.2, 0.0])
    data = samples(truth, 2000, 2).astype(np.int8)
    fitted = lnz.fit(
        lnz.Ising(np.zeros((4, 4))), data, negative_phase=lnz.learning.PersistentChains(sweeps=2, chains=500),
        optimizer=optax.sgd(optax.exponential_decay(0.1, 100, 0.5)), epochs=20, batch_size=100, evaluate_every=20, key=KEY,
    )  # fmt: skip
    assert likelihood(fitted.energy, data) > likelihood(truth, data) - 0.005
    assert likelihood(truth, data) > -4 * math.log(2) + 0.3, "the data are far from independent fair coins"
