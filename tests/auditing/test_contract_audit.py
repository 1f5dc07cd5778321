"""Every energy of the contract list passes its own audit."""

import jax
import pytest

import lnz
from contracts.energies import CASES


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_it_passes(case):
    report = lnz.audit(case.energy)
    assert report.passed, str(report)
    assert not [c for c in report.checks if c.status == "warning"], str(report)
