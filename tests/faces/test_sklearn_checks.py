"""scikit-learn's own checks of every estimator, without expected failures."""

import pytest

pytest.importorskip("sklearn")

from sklearn.utils import estimator_checks
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

pytestmark = pytest.mark.wrong_types  # scikit-learn's checks pass some on purpose


@pytest.mark.filterwarnings("ignore:X has values from:sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(ESTIMATORS)
def test_check(estimator, check):
    check(estimator)


# `CRF` takes lists of dictionaries, as its tags say: scikit-learn has checks of its interface alone.
INTERFACE = [
    "check_estimator_cloneable",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_set_params",
]


@pytest.mark.parametrize("name", INTERFACE)
def test_interface_of_crf(name):
    getattr(estimator_checks, name)("CRF", lnz.sklearn.CRF())
