"""Every energy of the contract list passes its own audit; of those that are alike, one in the quick tests."""

import pytest

import lnz
from contracts.energies import CASES

TWINS = (
    "torus",
    "ring",
    "spins",
    "sparse tables",
    "potts grid",
    "uniform on",
    "equinox",
    "cylinder",
    "3d",
    "dense",
    "two sides",
    "many hidden",
    "diagonal",
    "of categories",
    "mixture",
    "gaussian",
    "flax",
    "linear chain",
    "semi-Markov",
)


def marked(case):
    alike = any(word in case.name for word in TWINS)
    return pytest.param(case, id=case.name.replace(" ", "_"), marks=[pytest.mark.slow] if alike else [])


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_it_passes(case):
    report = lnz.audit(case.energy)
    assert report.passed, str(report)
    assert not [c for c in report.checks if c.status == "warning"], str(report)
