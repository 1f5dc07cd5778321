"""log Z of continuous models whose truth is known, by the default route and by annealed importance sampling: error, coverage, warnings, seconds.

    python benchmarks/evidence.py [--seeds 10] [--route default|ais] [--data FOLDER] [funnel10 schools ...]

A row: the mean and the largest error over the seeds (nats), the mean width of the 99 % interval, in how many runs it held or a warning was given,
in how many there was a warning, the process seconds of the first call and of a later one.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

SCHOOLS = np.array([28, 8, -3, 7, -1, 1, 18, 12.0]), np.array([15, 10, 16, 11, 9, 11, 10, 18.0])  # Rubin 1981
LOG_2PI = math.log(2 * math.pi)


class Target(NamedTuple):
    """An energy of a vector of d reals, and log Z."""

    energy: Callable[[Any], Any]
    d: int
    log_z: float


def funnel(d: int) -> Target:
    import jax.numpy as jnp

    def energy(x: Any) -> Any:
        return (
            x[0] ** 2 / 18 + math.log(3) + jnp.sum(0.5 * x[1:] ** 2 * jnp.exp(-x[0]) + 0.5 * x[0]) + 0.5 * d * LOG_2PI
        )

    return Target(energy, d, 0.0)


def banana(d: int) -> Target:
    import jax.numpy as jnp

    def energy(x: Any) -> Any:
        return jnp.sum(100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2) / 20

    return Target(energy, d, 0.5 * d * LOG_2PI)


def rotated(d: int) -> Target:
    import jax.numpy as jnp

    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0]
    variances = 10.0 ** np.linspace(-3, 3, d)
    root = jnp.asarray(axes / np.sqrt(variances))
    return Target(lambda x: 0.5 * jnp.sum((x @ root) ** 2), d, 0.5 * d * LOG_2PI + 0.5 * np.log(variances).sum())


def schools(centred: bool) -> Target:
    """Eight schools, in (μ, log τ, θ): μ ~ N(0, 5²), τ half-Cauchy of scale 5, θ ~ N(μ, τ²)."""
    import jax.numpy as jnp

    y, sd = map(jnp.asarray, SCHOOLS)

    def energy(x: Any) -> Any:
        mean, log_tau, rest = x[0], x[1], x[2:]
        theta = rest if centred else mean + jnp.exp(log_tau) * rest
        z = (rest - mean) * jnp.exp(-log_tau) if centred else rest
        prior = (
            0.5 * (mean / 5) ** 2
            + math.log(5)
            - math.log(2 / math.pi / 5)
            + jnp.log1p(jnp.exp(2 * log_tau) / 25)
            - log_tau
        )
        each = 0.5 * z**2 + centred * log_tau + 0.5 * ((y - theta) / sd) ** 2 + jnp.log(sd)
        return prior + jnp.sum(each) + 8.5 * LOG_2PI

    return Target(energy, 10, -31.3113)


def two_normals(separation: float) -> Target:
    """Standard deviations 1 and 0.3, equal masses, in ten dimensions."""
    import jax.numpy as jnp

    def energy(x: Any) -> Any:
        narrow = -0.5 * jnp.sum(x.at[0].add(-separation) ** 2) / 0.09 - 10 * math.log(0.3)
        return 5 * LOG_2PI - jnp.logaddexp(-0.5 * jnp.sum(x**2), narrow)

    return Target(energy, 10, math.log(2))


def regression(columns: int) -> Target:
    """Bayesian linear regression with unit noise, standard normal coefficients and columns of widths from 0.1 to 10."""
    import jax.numpy as jnp

    rng = np.random.default_rng(columns)
    x = rng.normal(size=(3 * columns + 10, columns)) * 10.0 ** rng.uniform(-1, 1, columns)
    y = x @ rng.normal(size=columns) + rng.normal(size=len(x))
    covariance = np.eye(len(x)) + x @ x.T
    log_z = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(covariance)[1] + len(y) * LOG_2PI)
    rows, seen, constant = jnp.asarray(x), jnp.asarray(y), 0.5 * (len(y) + columns) * LOG_2PI
    return Target(lambda w: 0.5 * jnp.sum((seen - rows @ w) ** 2) + 0.5 * jnp.sum(w**2) + constant, columns, log_z)


def wells(d: int) -> Target:
    """A chain of double wells, each of which pulls at the next; log Z by quadrature, one coordinate after another."""
    import jax.numpy as jnp

    def energy(x: Any) -> Any:
        return jnp.sum((x**2 - 1) ** 2) - 0.5 * jnp.sum(x[1:] * x[:-1])

    nodes = np.linspace(-6, 6, 4001)
    well, pull = np.exp(-((nodes**2 - 1) ** 2)), np.exp(0.5 * np.outer(nodes, nodes) - 9)
    total = well
    for _ in range(d - 1):
        total = well * (pull @ total) * (nodes[1] - nodes[0])
    return Target(energy, d, float(np.log(total.sum() * (nodes[1] - nodes[0])) + 9 * (d - 1)))


def mixture(d: int, components: int, *, student: bool = False) -> Target:
    """Equal components at uniform random places: standard normals in [-40, 40]^d, or products of Student's t of two degrees in [-10, 10]^d."""
    import jax

    from lnz.reference import gaussian_mixture_log_density, student_mixture_log_density

    half = 10 if student else 40
    means = half * jax.random.uniform(jax.random.PRNGKey(0), (components, d), minval=-1, maxval=1)
    density = student_mixture_log_density if student else gaussian_mixture_log_density
    return Target(lambda x: -density(x, means), d, 0.0)


def many_well(d: int) -> Target:
    from lnz.reference import many_well_log_density, many_well_log_z

    return Target(lambda x: -many_well_log_density(x), d, many_well_log_z(d // 2))


def _columns(x: np.ndarray, *, centred: bool) -> np.ndarray:
    x = (x - x.mean(axis=0) if centred else x) / x.std(axis=0)
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _logistic(rows: np.ndarray, y: np.ndarray, prior: float | None, log_z: float) -> Target:
    """Logistic regression, with normal coefficients of this standard deviation, or without a prior."""
    import jax
    import jax.numpy as jnp

    d, signed = rows.shape[1], jnp.asarray(rows * np.where(y > 0, 1.0, -1.0)[:, None])

    def energy(w: Any) -> Any:
        given = jnp.sum(jax.nn.softplus(-(signed @ w)))
        return (
            given if prior is None else given + 0.5 * jnp.sum((w / prior) ** 2) + d * (math.log(prior) + 0.5 * LOG_2PI)
        )

    return Target(energy, d, log_z)


def sonar() -> Target:
    """Gorman and Sejnowski 1988; log Z by importance sampling of 200,000 draws, to 0.009."""
    data = np.load(DATA / "sonar.npz")
    return _logistic(_columns(data["x"], centred=True), data["y"], 1.0, -108.384)


def credit(prior: float | None) -> Target:
    """German credit; log Z by importance sampling, to 0.001."""
    data = np.load(DATA / "german_credit.npz")
    return _logistic(_columns(data["x"], centred=False), data["y"], prior, -504.4859 if prior is None else -585.099)


def brownian() -> Target:
    """Brownian motion of which two thirds are observed, with unknown scales of steps and noise, in 32 dimensions."""
    import jax.numpy as jnp

    y = np.load(DATA / "brownian.npz")["y"]
    seen = np.flatnonzero(~np.isnan(y))
    observed = jnp.asarray(y[seen])

    def energy(x: Any) -> Any:
        log_step, log_noise, path = x[0], x[1], x[2:]
        steps = jnp.concatenate([path[:1], path[1:] - path[:-1]])
        misses = observed - path[seen]
        prior = (log_step**2 + log_noise**2) / 8 + 2 * math.log(2)
        moves = 0.5 * jnp.sum(steps**2) * jnp.exp(-2 * log_step) + 30 * log_step
        noise = 0.5 * jnp.sum(misses**2) * jnp.exp(-2 * log_noise) + len(seen) * log_noise
        return prior + moves + noise + 0.5 * (32 + len(seen)) * LOG_2PI

    return Target(energy, 32, 1.18774898592045)


DATA = Path()
TARGETS: dict[str, Callable[[], Target]] = {
    "funnel10": lambda: funnel(10),
    "schools-centred": lambda: schools(True),
    "schools": lambda: schools(False),
    "banana10": lambda: banana(10),
    "banana50": lambda: banana(50),
    "rotated10": lambda: rotated(10),
    "two-normals-4": lambda: two_normals(4),
    "two-normals-8": lambda: two_normals(8),
    "two-normals-12": lambda: two_normals(12),
    "regression5": lambda: regression(5),
    "regression20": lambda: regression(20),
    "wells8": lambda: wells(8),
    "mixture2": lambda: mixture(2, 40),
    "mixture50": lambda: mixture(50, 40),
    "students10": lambda: mixture(10, 10, student=True),
    "many-well32": lambda: many_well(32),
    "many-well64": lambda: many_well(64),
}
# Data that are not ours to publish, in a folder that the user names: brownian.npz, german_credit.npz, sonar.npz.
WITH_DATA: dict[str, Callable[[], Target]] = {
    "brownian": brownian,
    "credit": lambda: credit(10.0),
    "credit-no-prior": lambda: credit(None),
    "sonar": sonar,
}


def main() -> None:
    global DATA
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS | WITH_DATA))
    parser.add_argument("--data", type=Path, help=f"a folder with the data of {', '.join(WITH_DATA)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--route", choices=("default", "ais"), default="default")
    options = parser.parse_args()
    DATA = options.data
    targets = TARGETS | (WITH_DATA if DATA else {})
    import jax

    import lnz

    route = None if options.route == "default" else lnz.routes.AnnealedImportanceSampling()
    table = Table("target", "mean error", "largest", "interval", "held or warned", "warned", "first s", "s")
    for name in options.targets or targets:
        target = targets[name]()
        energy, runs, seconds = lnz.FunctionEnergy(target.energy, lnz.Real(target.d)), [], []
        for seed in range(options.seeds):
            begun = time.process_time()
            runs.append(lnz.log_partition(energy, route=route, key=jax.random.key(seed)))
            seconds.append(time.process_time() - begun)
        errors = [float(run.value) - target.log_z for run in runs]
        honest = [bool(run.warnings) or bool(run.lower <= target.log_z <= run.upper) for run in runs]
        table.add_row(
            name,
            f"{np.mean(errors):+.3f}",
            f"{max(errors, key=abs):+.3f}",
            f"{np.median([float(run.upper - run.lower) for run in runs]):.2f}",
            f"{sum(honest)}/{len(runs)}",
            str(sum(bool(run.warnings) for run in runs)),
            f"{seconds[0]:.1f}",
            f"{np.median(seconds[1:] or seconds):.1f}",
        )
        Console().print(f"{name}: {np.round(errors, 3)}", highlight=False)
    Console().print(table)


if __name__ == "__main__":
    main()
