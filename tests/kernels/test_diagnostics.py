"""Chains that agree, disagree, stand still; and an effective sample size that is known."""

import numpy as np
import pytest

import lnz


def test_the_effective_sample_size_of_a_chain_with_a_known_correlation():
    """x_t = a x_{t-1} + noise: n (1 - a) / (1 + a) independent draws for the mean."""
    rng, a, n = np.random.default_rng(1), 0.8, 2000
    x = np.zeros((4, n, 3))
    noise = rng.normal(size=x.shape)
    x[:, 0] = noise[:, 0] / np.sqrt(1 - a**2)
    for t in range(1, n):
        x[:, t] = a * x[:, t - 1] + noise[:, t]
    found = lnz.diagnose_chains(x, sweeps=4 * n, seconds=2.0, energy_calls=8 * n)
    assert found.r_hat.shape == found.effective_sample_size.shape == (3,)
    np.testing.assert_allclose(found.effective_sample_size.mean(), 4 * n * (1 - a) / (1 + a), rtol=0.25)
    np.testing.assert_allclose(found.r_hat, 1, atol=0.01)
    assert found.efficiency == {
        "sweeps": found.least / (4 * n),
        "seconds": found.least / 2,
        "energy_calls": found.least / (8 * n),
    }
    assert "per sweep" in str(found)
    assert "disagree" not in str(found)


def test_chains_that_disagree():
    noise = np.random.default_rng(2).normal(size=(4, 2000, 3))
    noise[3, :, 1] += 1  # another place
    noise[2, :, 2] *= 4  # the same place, another spread: only the folded ranks see it
    found = lnz.diagnose_chains(noise)
    assert found.r_hat[0] < 1.02
    assert (found.r_hat[1:] > 1.05).all()
    assert "The chains disagree at entry" in str(found)


def test_a_drift_shows_in_the_halves():
    assert (
        lnz.diagnose_chains(np.random.default_rng(3).normal(size=(4, 2000, 3)) + np.linspace(0, 4, 2000)[:, None]).worst
        > 1.2
    )


def test_chains_that_stand_still():
    same = lnz.diagnose_chains(np.ones((4, 2000, 3), bool))
    assert np.isnan(same.worst)
    assert np.isnan(same.least)
    assert "3 of 3 entries never changed" in str(same)
    apart = lnz.diagnose_chains(np.tile(np.arange(4.0)[:, None, None], (1, 2000, 3)))
    assert apart.worst == np.inf
    assert apart.least == 0


@pytest.mark.parametrize(
    ("samples", "cost", "words"),
    [
        (np.zeros(5), {}, "shape"),
        (np.zeros((2, 3)), {}, "at least 4 draws"),
        (np.full((2, 8), np.nan), {}, "finite"),
        (np.zeros((2, 8)), {"seconds": 0.0}, "seconds must be above 0"),
    ],
)
def test_what_is_refused(samples, cost, words):
    with pytest.raises(ValueError, match=words):
        lnz.diagnose_chains(samples, **cost)
