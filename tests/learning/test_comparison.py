"""Comparing two models: against exact log-likelihoods, with the two kinds of error apart."""

import numpy as np
import pytest

import lnz


def data():
    rng = np.random.default_rng(4)
    return np.where(rng.random((60, 5)) < 0.7, 1, -1)


def models():
    rng = np.random.default_rng(5)
    couplings = np.triu(0.4 * rng.normal(size=(5, 5)), 1)
    return lnz.Ising(couplings + couplings.T, 0.4 * np.ones(5)), lnz.Independent(0.3 * np.ones(5), lnz.Spin(5))


def test_the_difference_is_that_of_the_exact_log_likelihoods():
    a, b = models()
    found = lnz.learning.compare(a, b, data())
    assert found.guarantee == "exact"
    assert found.confidence == 1
    assert found.value == pytest.approx(found.a.value - found.b.value, abs=1e-12)
    assert found.lower <= found.value <= found.upper
    s = ((np.arange(32)[:, None] >> np.arange(5)) & 1) * 2.0 - 1  # written out: a list of states and the data's sums
    weight = lambda x: 0.5 * np.einsum("ni,ij,nj->n", x, np.asarray(a.couplings.matrix()), x) + 0.4 * x.sum(axis=1)  # noqa: E731
    log_p = weight(data()) - np.logaddexp.reduce(weight(s))
    each = log_p - (0.3 * data().sum(axis=1) - 5 * np.log(2 * np.cosh(0.3)))
    assert found.value == pytest.approx(each.mean(), abs=1e-12)
    assert found.data_standard_error == pytest.approx(each.std(ddof=1) / np.sqrt(60), rel=1e-9)
    assert found.data_standard_error < np.hypot(found.a.data_standard_error, found.b.data_standard_error)
    back = lnz.learning.compare(b, a, data())
    assert (back.value, back.lower, back.upper) == pytest.approx((-found.value, -found.upper, -found.lower))


def known_to(value, error, width, confidence=0.99):
    class Given(lnz.routes.ClosedForm):
        def unsupported_reason(self, energy):
            return None

        def log_partition(self, energy, key):
            half = np.asarray(width / 2)
            value_ = np.asarray(value)
            return lnz.Estimate(
                value_, np.asarray(error), value_ - half, value_ + half, "conditional", "given", confidence
            )

    return Given()


def test_errors_and_confidence_add_up():
    a, b = models()
    routes = known_to(4.9, 0.03, 0.2), known_to(4.6, 0.04, 0.4, 0.98)
    found = lnz.learning.compare(a, b, data(), routes=routes)
    assert found.guarantee == "conditional"
    assert found.standard_error == pytest.approx(0.05)
    assert found.upper - found.lower == pytest.approx(0.6)
    assert found.confidence == pytest.approx(0.97)
    assert "with 97 % confidence" in str(found)
    wide = lnz.learning.compare(a, b, data(), routes=(known_to(4.9, 0.1, 9.0), None))
    assert "too large to decide which is better on these data" in str(wide)
    assert "is better on these data" in str(
        lnz.learning.compare(b, lnz.Independent(-3 * np.ones(5), lnz.Spin(5)), data())
    )


def test_what_cannot_be_compared():
    a, b = models()
    with pytest.raises(ValueError, match="cannot be compared: give two models of the same data"):
        lnz.learning.compare(a, lnz.Independent(np.zeros(4), lnz.Spin(4)), data())
    with pytest.raises(ValueError, match="give one of them"):
        lnz.learning.compare(a, b, data(), route=lnz.routes.Enumeration(), routes=(None, None))
    with pytest.raises(ValueError, match="an impossible likelihood"):
        lnz.learning.compare(a, b, data(), routes=(known_to(0.1, 0.0, 0.0), None))
