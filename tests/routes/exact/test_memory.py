"""The large sums keep to blocks: 2^25 states and a 784x20 RBM, each under 200 MB more than the process had."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import lnz
rng = np.random.default_rng(0)
def spins(n):
    j = rng.normal(size=(n, n)) / n
    return lnz.Ising(np.triu(j, 1) + np.triu(j, 1).T, rng.normal(size=n))
def rbm(n):
    return lnz.RBM.from_parameters(0.1 * rng.normal(size=(784, n)), rng.normal(size=784), rng.normal(size=n))
make, small, large = {"spins": (spins, 4, 25), "rbm": (rbm, 3, 20)}[sys.argv[1]]
float(lnz.log_partition(make(small)).value)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
estimate = lnz.log_partition(make(large), route=lnz.routes.Enumeration())
assert np.isfinite(float(estimate.value)) and estimate.guarantee == "exact"
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("model", ["spins", "rbm"])
def test_the_peak(model):
    done = subprocess.run([sys.executable, "-c", SCRIPT, model], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 200
