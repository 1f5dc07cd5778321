"""scikit-learn's own checks of every estimator, without expected failures."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils.estimator_checks import parametrize_with_checks

import lnz

ESTIMATORS = [
    lnz.sklearn.RBM(),
    lnz.sklearn.RBM(visible="gaussian", learning_rate=0.01),
    lnz.sklearn.RBM(visible="potts"),
    lnz.sklearn.MarkovNetwork(),
    lnz.sklearn.MarkovNetwork("ebic"),
    lnz.sklearn.Ising(),
    lnz.sklearn.Ising("ebic"),
]


@pytest.mark.filterwarnings("ignore:X has values from:sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(ESTIMATORS)
def test_check(estimator, check):
    check(estimator)
