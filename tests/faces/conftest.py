"""What the tests of faces share."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def single_precision():
    """A function that runs a script as users do, with JAX's default settings, and returns what it prints."""

    def run(script: str) -> str:
        settings = {name: value for name, value in os.environ.items() if not name.startswith("JAX_ENABLE_X64")}
        settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
