"""The files of benchmarks/, whose own arithmetic is tested here."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    """From the name of a file of benchmarks/ to its module."""
    known = []

    def load(name):
        spec = importlib.util.spec_from_file_location(
            f"{name}_benchmark", Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
        known.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in known:
        del sys.modules[name]
