"""How often `lnz.audit` raises an alarm over energies that are right, and which planted failures it finds.

    python benchmarks/audit.py [--energies 1000] [--seed 0]

The valid energies are drawn at random: networks of several architectures with a confining term, mixtures, Gaussians, Ising and Potts
models, RBMs, and conditional chains (CRFs) at random inputs. Every tenth is given samples of its own. A check alarms at
6 standard errors, so that a false alarm should be seen in fewer than one audit in a thousand. The audits run in float64 on one thread.
"""

import argparse
import itertools
import time
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lnz

Partial = jax.tree_util.Partial


def network(theta: Any, x: Any, activation: Any) -> Any:
    for w, b in theta[:-1]:
        x = activation(w @ x + b)
    return jnp.dot(theta[-1][0][0], x)


def tanh_energy(theta: Any, x: Any) -> Any:
    return network(theta, x, jnp.tanh) + 0.5 * jnp.sum(x**2)


def relu_energy(theta: Any, x: Any) -> Any:
    return network(theta, x, jax.nn.relu) + 0.5 * jnp.sum(x**2)


def softplus_energy(theta: Any, x: Any) -> Any:
    return network(theta, x, jax.nn.softplus) + 0.25 * jnp.sum(x**4)


def box_energy(theta: Any, x: Any) -> Any:
    return 2 * network(theta, x, jax.nn.silu)


def spin_energy(theta: Any, x: Any) -> Any:
    return network(theta, x.astype(theta[0][0].dtype), jnp.tanh)


def chain_energy(theta: Any, y: Any) -> Any:
    """A linear-chain CRF at one input: unary scores of the input's features, and a table of transitions."""
    weights, transitions, features = theta
    unary = features @ weights
    return -jnp.sum(unary[jnp.arange(len(features)), y]) - jnp.sum(transitions[y[:-1], y[1:]])


def layers(rng: np.random.Generator, *sizes: int) -> Any:
    return [
        (jnp.asarray(rng.normal(size=(b, a)) / np.sqrt(a)), jnp.asarray(rng.normal(size=b)))
        for a, b in itertools.pairwise(sizes)
    ]


def symmetric(rng: np.random.Generator, n: int) -> np.ndarray:
    j = np.triu(rng.normal(size=(n, n)), 1)
    return j + j.T


def mixture(rng: np.random.Generator) -> Any:
    """Three normals on a line, each with its own offset of energy."""
    return lnz.FunctionEnergy(Partial(mixture_energy, jnp.asarray(rng.normal(size=(3, 3)))), lnz.Real(1))


def mixture_energy(theta: Any, x: Any) -> Any:
    places, log_scales, offsets = 3 * theta[0], theta[1], theta[2]
    return -jax.nn.logsumexp(offsets - 0.5 * ((x[0] - places) * jnp.exp(log_scales)) ** 2)


def crf(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Weights (4, 3), transitions (3, 3) and the features (6, 4) of one input."""
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((4, 3), (3, 3), (6, 4)))  # pyright: ignore[reportReturnType]


def valid(rng: np.random.Generator, i: int) -> tuple[str, Any]:
    """One energy that is right, of the kind number i."""

    def function(f: Any, theta: Any, space: Any) -> Any:
        return lnz.FunctionEnergy(Partial(f, theta), space)

    kinds = {
        "tanh network, 1-D": lambda: function(tanh_energy, layers(rng, 1, 16, 1), lnz.Real(1)),
        "relu network, 1-D": lambda: function(relu_energy, layers(rng, 1, 12, 1), lnz.Real(1)),
        "softplus network, 2-D": lambda: function(softplus_energy, layers(rng, 2, 8, 1), lnz.Real(2)),
        "silu network, box": lambda: function(box_energy, layers(rng, 1, 8, 8, 1), lnz.Box(-1.0, 2.0, shape=1)),
        "tanh network, 6-D": lambda: function(tanh_energy, layers(rng, 6, 12, 1), lnz.Real(6)),
        "network of spins": lambda: function(spin_energy, layers(rng, 8, 6, 1), lnz.Spin(8)),
        "mixture": lambda: mixture(rng),
        "Gaussian": lambda: lnz.Gaussian(rng.normal(size=1), np.exp(rng.normal(size=1))),
        "Ising": lambda: lnz.Ising(symmetric(rng, 7), rng.normal(size=7)),
        "Potts": lambda: lnz.Potts.lattice((2, 3), rng.normal(), rng.normal(size=(2, 3, 3)), q=3, periodic=False),
        "RBM": lambda: lnz.RBM.from_parameters(rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=4)),
        "CRF": lambda: function(chain_energy, crf(rng), lnz.Categorical(6, k=3)),
    }  # fmt: skip
    name = list(kinds)[i % len(kinds)]
    return name, kinds[name]()


@eqx.filter_jit
def draw(energy: Any, key: Any) -> Any:
    """2,000 exact draws of a discrete energy."""
    states = energy.space.decode(jnp.arange(energy.space.count))
    index = jax.random.categorical(key, -jax.vmap(energy)(states), shape=(2000,))
    return energy.space.decode(index)


def falling_energy(t: Any, x: Any) -> Any:
    return 2 * jax.nn.relu(x[0]) + 2 * jax.nn.relu(x[1]) - t * jax.nn.relu(-x[0] - x[1])


def heavy_energy(t: Any, x: Any) -> Any:
    return t * jnp.abs(x[0]) + 2 * jnp.log1p(jnp.abs(x[0]))


def escape_energy(t: Any, x: Any) -> Any:
    return -jnp.log(jnp.exp(-x[0]) + t**3 * jnp.exp(-(t**2) * x[0]))


def failures() -> dict[str, tuple[Any, str]]:
    """Planted failures: the energy, and the check that must fail."""

    def one(f: Any, theta: float, space: Any) -> Any:
        return lnz.FunctionEnergy(Partial(f, jnp.asarray(theta)), space)

    line, half = lnz.Real(1), lnz.Box(0.0, np.inf, shape=1)
    gradient, finite = "gradient against difference", "finite Z"
    return {
        "moving support": (one(lambda t, x: jnp.where((x[0] >= 0) & (x[0] <= t), 0.0, jnp.inf), 1.3, line), gradient),
        "moving support, a slope": (one(lambda t, x: jnp.where((x[0] >= 0) & (x[0] <= t), x[0], jnp.inf), 1.3, line), gradient),
        "a step in θ": (one(lambda t, x: (x[0] < t).astype(float), 0.4, lnz.Box(0.0, 1.0, shape=1)), gradient),
        "mass that escapes": (one(escape_energy, 0.0, half), "one-sided derivatives"),
        "a gradient without a mean": (one(heavy_energy, 0.0, line), "mean and variance of ∂E"),
        "E = -θ x⁴": (one(lambda t, x: -t * x[0] ** 4, 1.0, line), finite),
        "a ReLU network with falling rays": (one(falling_energy, 1.0, lnz.Real(2)), finite),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energies", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    for name, (energy, check) in failures().items():
        report = lnz.audit(energy)
        z = report[check].z
        shown = "" if z is None else f"z = {z:.3g}"
        print(f"{name:36}{check:30}{report[check].status:9}{shown:14}{report.seconds:5.1f} s", flush=True)

    rng = np.random.default_rng(options.seed)
    alarms, warned, seen, began = Counter(), Counter(), Counter(), time.perf_counter()
    for i in range(options.energies):
        name, energy = valid(rng, i)
        samples = None
        if (
            i % 10 == 0
            and lnz.capabilities.observed_space(energy).discrete
            and lnz.capabilities.observed_space(energy) is energy.space
        ):
            samples = draw(energy, jax.random.key(i))
        report = lnz.audit(energy, samples=samples, key=jax.random.key(i))
        seen[name] += 1
        for line in report.checks:
            if line.status == "failed":
                alarms[name] += 1
                print(f"FALSE ALARM {i} {name}: {line}", flush=True)
            warned[name] += line.status == "warning"
    print(f"\n{'valid energies':26}{'audits':>8}{'alarms':>8}{'warnings':>10}")
    for name in seen:
        print(f"{name:26}{seen[name]:8}{alarms[name]:8}{warned[name]:10}")
    total = sum(seen.values())
    print(f"{'all':26}{total:8}{sum(alarms.values()):8}{sum(warned.values()):10}   rate {sum(alarms.values()) / max(total, 1):.2%}, "
          f"{(time.perf_counter() - began) / max(total, 1):.2f} s an audit")  # fmt: skip


if __name__ == "__main__":
    main()
