"""Do intervals hold on models that nobody tuned? Every run of a stochastic route has a random model of its own, whose log Z is exact.

    python benchmarks/calibration.py [--runs 1000] [--kinds chain,walls,…] [--routes ais,smc,…] [--seed 0]

A kind draws its models from wide distributions: strengths over two decades, conditions up to a million, walls that leave a thousandth of a box.
A run is right where its 99 % interval holds the truth; where it does not, it must carry a warning. Asked of 1,000 runs: right or warned of in 985;
the certified lower bound below the truth in 998; of easy kinds at most 3 % warned of. Models that miss in silence are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import gammaln, logsumexp

import lnz

ROUTES: dict[str, lnz.Route] = {
    "ais": lnz.routes.AnnealedImportanceSampling(temperatures=100, chains=64, mode_probes=32),
    "smc": lnz.routes.SequentialMonteCarlo(particles=32, replicates=16, conditional=0.9),
    "tempering": lnz.routes.ParallelTempering(rungs=8, iterations=200, replicates=8),
    "both": lnz.routes.BidirectionalAIS(temperatures=50, chains=64),
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A distribution of models: the parameters of one, its energy, its log Z in nats, and whether annealing should find it easy."""

    draw: Callable[[np.random.Generator], Any]
    energy: Callable[[Any], Any]
    log_z: Callable[[Any], float]
    easy: bool = False


def _strength(rng: np.random.Generator, low: float = 0.05, high: float = 3.0) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _symmetric(couplings: np.ndarray, mask: np.ndarray) -> np.ndarray:
    upper = np.triu(couplings * mask, 1)
    return upper + upper.T


def _spins(n: int) -> np.ndarray:
    return 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1) - 1


_ALL_SPINS = {n: _spins(n) for n in (6, 8, 10)}


def _ising(mask: np.ndarray, *, most: float = 3.0, easy: bool = False) -> Kind:
    """Spins with normal couplings on the graph of a mask, and fields."""
    n = len(mask)

    def draw(rng: np.random.Generator) -> Any:
        scale = _strength(rng, high=most)
        return _symmetric(scale * rng.normal(size=(n, n)), mask), scale * rng.normal(size=n)

    def log_z(parameters: Any) -> float:
        couplings, fields = parameters
        states = _ALL_SPINS[n]
        return float(logsumexp(0.5 * np.einsum("si,ij,sj->s", states, couplings, states) + states @ fields))

    return Kind(draw, lambda p: lnz.Ising(*p), log_z, easy)


def _neighbours(n: int, distance: int = 1) -> np.ndarray:
    return np.abs(np.subtract.outer(np.arange(n), np.arange(n))) == distance


def _tree(n: int) -> np.ndarray:
    mask = np.zeros((n, n))
    for child in range(1, n):
        mask[(child - 1) // 2, child] = 1
    return mask


def _rbm(visible: int, hidden: int) -> Kind:
    def draw(rng: np.random.Generator) -> Any:
        scale = _strength(rng)
        return scale * rng.normal(size=(visible, hidden)), scale * rng.normal(size=visible), rng.normal(size=hidden)

    def energy(parameters: Any) -> Any:
        machine = lnz.RBM(lnz.Binary((visible,)), hidden, key=jax.random.key(0))
        return eqx.tree_at(lambda m: (m.weights, m.visible_bias, m.hidden_bias), machine, parameters)

    def log_z(parameters: Any) -> float:
        weights, bias, hidden_bias = parameters
        h = (_ALL_SPINS[hidden] + 1) / 2
        return float(logsumexp(h @ hidden_bias + np.logaddexp(0, h @ weights.T + bias).sum(axis=1)))

    return Kind(draw, energy, log_z)


def _function(draw: Any, energy: Callable[..., Any], log_z: Any, space: lnz.Space, *, easy: bool = False) -> Kind:
    """A kind of energies that are plain functions of their parameters and the state."""
    return Kind(draw, lambda p: lnz.FunctionEnergy(jax.tree_util.Partial(energy, p), space), log_z, easy)


def _gaussian(n: int, condition: float, *, easy: bool = False) -> Kind:
    """Normal distributions of any condition up to this one, in any direction, off the centre."""

    def draw(rng: np.random.Generator) -> Any:
        axes = np.linalg.qr(rng.normal(size=(n, n)))[0]
        scales = np.exp(rng.uniform(-0.5, 0.5, n) * math.log(condition) * 0.5)
        return axes / scales, 2 * rng.normal(size=n)

    def energy(parameters: Any, x: Any) -> Any:
        root, mean = parameters
        return 0.5 * jnp.sum(((x - mean) @ root) ** 2)

    def log_z(parameters: Any) -> float:
        return 0.5 * n * math.log(2 * math.pi) - float(np.linalg.slogdet(parameters[0])[1])

    return _function(draw, energy, log_z, lnz.Real((n,)), easy=easy)


def _student(n: int) -> Kind:
    """Products of Student distributions of 1.5 to 10 degrees of freedom with scales of their own."""

    def draw(rng: np.random.Generator) -> Any:
        return rng.uniform(1.5, 10, n), np.exp(rng.normal(size=n)), rng.normal(size=n)

    def energy(parameters: Any, x: Any) -> Any:
        degrees, scales, mean = parameters
        return jnp.sum(0.5 * (degrees + 1) * jnp.log1p(((x - mean) / scales) ** 2 / degrees))

    def log_z(parameters: Any) -> float:
        degrees, scales, _ = parameters
        each = gammaln(degrees / 2) - gammaln((degrees + 1) / 2) + 0.5 * np.log(degrees * math.pi) + np.log(scales)
        return float(each.sum())

    return _function(draw, energy, log_z, lnz.Real((n,)))


def _plateaus() -> Kind:
    """A disc of density e^a on a square of density 1."""

    def draw(rng: np.random.Generator) -> Any:
        return np.asarray(rng.uniform(-3, 6)), np.asarray(rng.uniform(0.5, 5))

    def energy(parameters: Any, x: Any) -> Any:
        height, radius = parameters
        return -jnp.where(jnp.sum(x**2) < radius**2, height, 0.0)

    def log_z(parameters: Any) -> float:
        height, radius = map(float, parameters)
        return math.log(400 + math.expm1(height) * math.pi * radius**2)

    return _function(draw, energy, log_z, lnz.Box([-10.0] * 2, [10.0] * 2))


def _walls(n: int, wall: float) -> Kind:
    """A corner of the unit cube, {Σ x < s}, with a slope inside and log-zero, infinite or a large number, outside."""

    def draw(rng: np.random.Generator) -> Any:
        return np.asarray(rng.uniform(0.4, 1.0)), np.asarray(_strength(rng))

    def energy(parameters: Any, x: Any) -> Any:
        size, slope = parameters
        return jnp.where(jnp.sum(x) < size, slope * jnp.sum(x), wall)

    def log_z(parameters: Any) -> float:
        # The sum of n uniform numbers below s ≤ 1 has density t^(n-1) / (n-1)!.
        size, slope = map(float, parameters)
        t = (np.arange(20000) + 0.5) / 20000 * size
        return math.log(np.mean(t ** (n - 1) * np.exp(-slope * t)) * size) - math.lgamma(n)

    return _function(draw, energy, log_z, lnz.Box([0.0] * n, [1.0] * n))


def _mixture(n: int) -> Kind:
    """Two normal distributions of unequal widths and weights, up to twelve apart."""

    def draw(rng: np.random.Generator) -> Any:
        return rng.uniform(-6, 6, (2, n)) / math.sqrt(n), np.exp(rng.uniform(-2, 1, 2)), 2 * rng.normal(size=2)

    def energy(parameters: Any, x: Any) -> Any:
        means, widths, log_weights = parameters
        squared = jnp.sum((x[None] - means) ** 2, axis=-1) / widths**2
        return -jax.nn.logsumexp(log_weights - 0.5 * squared - n * jnp.log(widths))

    def log_z(parameters: Any) -> float:
        return float(logsumexp(parameters[2])) + 0.5 * n * math.log(2 * math.pi)

    return _function(draw, energy, log_z, lnz.Real((n,)))


KINDS = {
    "chain": _ising(_neighbours(10), most=1.0, easy=True),
    "tree": _ising(_tree(10), most=1.0, easy=True),
    "ring": _ising(_neighbours(10) | _neighbours(10, 9)),
    "small graph": _ising(_neighbours(10) | _neighbours(10, 3)),
    "glass": _ising(np.ones((10, 10))),
    "rbm": _rbm(12, 6),
    "gaussian": _gaussian(5, 4.0, easy=True),
    "gaussian, ill-conditioned": _gaussian(5, 1e6),
    "student": _student(4),
    "plateaus": _plateaus(),
    "walls": _walls(3, math.inf),
    "walls of 1e30": _walls(3, 1e30),
    "mixture": _mixture(3),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What the runs of one kind by one route say: counts, and the parameters of the models that were missed in silence."""

    kind: str
    route: str
    runs: int
    held: int
    certified: int
    warned: int
    silent: list[Any]
    seconds: float

    def verdict(self) -> str:
        """What is asked and not met; empty where all is."""
        said = []
        if len(self.silent) > 0.015 * self.runs:
            said.append("silent")
        if self.certified < 0.998 * self.runs - 1:
            said.append("certificate")
        if KINDS[self.kind].easy and self.warned > 0.03 * self.runs:
            said.append("false warnings")
        return ", ".join(said)


def measure(kind: str, route: str, runs: int, seed: int = 0) -> Row | None:
    """So many models of a kind, each with one run of the route; None where the route does not support them."""
    of, how = KINDS[kind], ROUTES[route]
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    models = [of.draw(rng) for _ in range(runs)]
    if how.unsupported_reason(of.energy(jax.tree.map(jnp.asarray, models[0]))) is not None:
        return None

    def one(inputs: Any) -> Any:
        parameters, key = inputs
        found = lnz.log_partition(of.energy(parameters), route=how, key=key)
        flags = [jnp.any(jnp.asarray(flag)) for flag in found.flags.values()]
        certified = found.diagnostics.get("certified_lower", found.lower)
        return found.lower, found.upper, certified, jnp.any(jnp.stack(flags)) if flags else jnp.asarray(False)

    began = time.process_time()
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *models)
    keys = jax.random.split(jax.random.key(seed), runs)
    lower, upper, certified, warned = map(np.asarray, eqx.filter_jit(lambda x: jax.lax.map(one, x))((stacked, keys)))
    truth = np.array([of.log_z(model) for model in models])
    slack = 1e-6 * np.maximum(1, np.abs(truth))
    held = (lower <= truth + slack) & (truth <= upper + slack)
    silent = [models[i] for i in np.flatnonzero(~held & ~warned)]
    return Row(
        kind,
        route,
        runs,
        int(held.sum()),
        int((certified <= truth + slack).sum()),
        int(warned.sum()),
        silent,
        time.process_time() - began,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="models of each kind")
    parser.add_argument("--kinds", default=",".join(KINDS).replace(", ", "; "), help="kinds, separated by commas")
    parser.add_argument("--routes", default=",".join(ROUTES), help="routes, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="seed of the models and of the runs")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table = Table("kind", "route", "runs", "held", "certified", "warned of", "missed in silence", "CPU s", "fails")
    for kind in options.kinds.split(","):
        for route in options.routes.split(","):
            row = measure(kind.replace("; ", ", "), route, options.runs, options.seed)
            if row is None:
                continue
            counts = (row.runs, row.held, row.certified, row.warned, len(row.silent))
            table.add_row(row.kind, row.route, *map(str, counts), f"{row.seconds:.0f}", row.verdict())
            print(f"{row.kind}, {route}: {counts} {row.verdict()}", file=sys.stderr, flush=True)
            for model in row.silent[:3]:
                print(f"  missed in silence: {model}", file=sys.stderr)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
