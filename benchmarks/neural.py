"""Energies given by networks: planar laws with exact likelihood, and digits of 8x8 grey levels, in bits per dimension.

    python benchmarks/neural.py [--only rings checkerboard gaussians digits] [--methods NAME ...] [--folder FOLDER]

**Planar laws.** Rings, a checkerboard and eight Gaussians have a density, so the entropy is known: no model has a mean log-likelihood above
minus it, and the gap is KL(truth, model). The energy is a standard normal law, widened, tilted by a perceptron of 3 x 128 SiLU units. log Z is
by quadrature. There are 200,000 data, and 100,000 others to measure by.

**Digits.** scikit-learn's 1,797 images of 8x8 pixels with 17 grey levels, four fifths to learn from. Grey levels are dequantised by uniform noise,
x = (level + u) / 17, and taken to the line by the logit of 0.05 + 0.9 x; a Gaussian with all covariances is the base, in whose white coordinates
chains move, and a convolutional network tilts it. Bits per dimension are those of the grey levels' bins: an upper limit on the discrete image's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lnz
from timing import one_thread

CENTRES = 3 * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1)
SPREAD, RADII, WIDTH = 0.25, np.array([1.0, 2.0, 3.0]), 0.12
WIDE = 2.5  # standard deviation of the base
LEVELS, EDGE = 17, 0.05


@dataclasses.dataclass(frozen=True)
class Law:
    """A planar law: exact samples, and its density in logarithms."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]


def _gaussians() -> Law:
    def log_density(x: np.ndarray) -> np.ndarray:
        square = ((x[:, None] - CENTRES[None]) ** 2).sum(-1) / SPREAD**2
        return np.logaddexp.reduce(-0.5 * square, axis=1) - math.log(8 * 2 * math.pi * SPREAD**2)

    return Law(lambda rng, n: CENTRES[rng.integers(8, size=n)] + SPREAD * rng.normal(size=(n, 2)), log_density)


def _rings() -> Law:
    """A radius from a mixture of normal laws (mass below 0: 10^-16), in a direction without preference."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        radius, angle = RADII[rng.integers(3, size=n)] + WIDTH * rng.normal(size=n), rng.random(n) * 2 * math.pi
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def log_density(x: np.ndarray) -> np.ndarray:
        r = np.linalg.norm(x, axis=1)
        parts = -0.5 * ((r[:, None] - RADII[None]) / WIDTH) ** 2
        return (
            np.logaddexp.reduce(parts, axis=1) - math.log(3 * WIDTH * math.sqrt(2 * math.pi)) - np.log(2 * math.pi * r)
        )

    return Law(sample, log_density)


def _checkerboard() -> Law:
    """Uniform on 8 of the 16 squares of side 2 in [-4, 4]²."""

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        row, column = rng.integers(4, size=n), rng.integers(2, size=n)
        corner = np.stack([2 * (2 * column + row % 2), 2 * row], axis=1) - 4
        return corner + 2 * rng.random((n, 2))

    return Law(sample, lambda x: np.full(len(x), -math.log(32)))


LAWS = {"rings": _rings(), "checkerboard": _checkerboard(), "gaussians": _gaussians()}


class Perceptron(eqx.Module):
    """3 x 128 SiLU units of the point, magnified: networks learn edges sooner where their inputs are large."""

    network: eqx.nn.MLP
    magnified: float = eqx.field(static=True)

    def __call__(self, x: Any) -> Any:
        return self.network(self.magnified * x)


def planar(seed: int, magnified: float = 2.0) -> lnz.Energy:
    network = eqx.nn.MLP(2, "scalar", 128, 3, activation=jax.nn.silu, dtype=jnp.float32, key=jax.random.key(seed))
    return lnz.Tilted(Perceptron(network, magnified), lnz.Gaussian(np.zeros(2), np.full(2, 1 / WIDE**2)))


def adam(rate: float, updates: int) -> Any:
    return optax.adam(optax.cosine_decay_schedule(rate, updates))


class Convolutions(eqx.Module):
    """Three convolutions of 3x3 (the last two with stride 2) and a sum: 8x8 pixels to one number. Patches are slices, so that each is one product,
    which XLA's CPU compiles well inside a loop, unlike the gradient of its own convolutions.
    """

    layers: tuple[eqx.nn.Linear, ...]
    head: eqx.nn.Linear
    colour: Any  # from the white coordinates of the chains to pixels

    def __init__(self, colour: Any, key: Any):
        keys, widths = jax.random.split(key, 4), (1, 16, 32, 64)
        pairs = zip(widths[:-1], widths[1:], keys[:3], strict=True)
        self.layers = tuple(eqx.nn.Linear(9 * a, b, dtype=jnp.float32, key=k) for a, b, k in pairs)
        self.head = eqx.nn.Linear(256, "scalar", dtype=jnp.float32, key=keys[3])
        self.colour = colour

    def __call__(self, z: Any) -> Any:
        mean, root, scale = (jnp.asarray(a, z.dtype) for a in self.colour.value)
        x = ((mean + root @ z) / scale).reshape(8, 8, 1)
        for layer, stride in zip(self.layers, (1, 2, 2), strict=True):
            n = x.shape[0] // stride
            padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
            windows = [
                padded[i : i + stride * n : stride, j : j + stride * n : stride] for i in range(3) for j in range(3)
            ]
            x = jax.nn.silu(jnp.concatenate(windows, axis=-1) @ layer.weight.T + layer.bias[None, None])
        return self.head(x.reshape(-1))


METHODS = ("noise-contrastive", "replay")


class Plan(NamedTuple):
    """The energy to fit, what `fit` is told, data an update, updates, and the learning rate at the start."""

    energy: lnz.Energy
    told: dict[str, Any]
    batch: int
    updates: int
    rate: float


def plan(method: str, energy: lnz.Energy) -> Plan:
    if method == "noise-contrastive":
        objective = lnz.learning.NoiseContrastive(energy.base(), samples=2)
        return Plan(lnz.SelfNormalised(energy), {"objective": objective}, 200, 10_000, 2e-3)
    phase = lnz.learning.ReplayBuffer(
        size=10_000, chains=200, sweeps=10, restart=0.05, kernel=lnz.kernels.Langevin(0.005)
    )
    return Plan(energy, {"negative_phase": phase}, 200, 2500, 5e-4)


def learn(law: Law, method: str, seed: int = 0) -> tuple[dict[str, float], lnz.Energy]:
    """Fit, and measure exactly: nats per point, the gap to minus the entropy with its standard error, seconds of processor."""
    rng = np.random.default_rng(seed)
    data, test = law.sample(rng, 200_000).astype(np.float32), law.sample(rng, 100_000)
    energy, told, batch, updates, rate = plan(method, planar(seed))
    began = time.process_time()
    fitted = lnz.fit(
        energy, data, **told, optimizer=adam(rate, updates), batch_size=batch, epochs=updates * batch / len(data),
        evaluate_every=1000, key=jax.random.key(seed),
    )  # fmt: skip
    seconds = time.process_time() - began
    found = fitted.energy.energy if isinstance(fitted.energy, lnz.SelfNormalised) else fitted.energy
    likelihood = lnz.log_likelihood(found, test.astype(np.float32), route=lnz.routes.Quadrature())
    model = likelihood.value + 0.0
    own = -np.asarray(jax.jit(jax.vmap(found))(jnp.asarray(test, jnp.float32)), float) - float(likelihood.log_z.value)
    gap = law.log_density(test) - own
    figures = {
        "log_likelihood": model, "quadrature_error": likelihood.standard_error, "entropy": -float(law.log_density(test).mean()),
        "gap": float(gap.mean()), "gap_error": float(gap.std() / math.sqrt(len(gap))), "updates": updates, "seconds": seconds,
    }  # fmt: skip
    if isinstance(fitted.energy, lnz.SelfNormalised):
        figures["log_z_learned"] = float(fitted.energy.log_z) - float(likelihood.log_z.value)
    return figures, found


@dataclasses.dataclass(frozen=True)
class Digits:
    """The images in white coordinates, and the way back."""

    train: np.ndarray
    test: np.ndarray
    colour: tuple[np.ndarray, np.ndarray, np.ndarray]  # mean, root of the covariance, and 1: the network's scale
    log_volume: np.ndarray  # log |dz/dx| of every test image

    def pixels(self, z: np.ndarray) -> np.ndarray:
        mean, root, _ = self.colour
        return (1 / (1 + np.exp(-(mean + z @ root.T))) - EDGE) / (1 - 2 * EDGE)


def digits(seed: int = 0, copies: int = 30) -> Digits:
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    levels = rng.permutation(load_digits().data)
    parts = np.repeat(levels[:1437], copies, axis=0), np.repeat(levels[1437:], 5, axis=0)

    def line(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of dequantised images, and log |dy/dx|."""
        share = EDGE + (1 - 2 * EDGE) * (levels + rng.random(levels.shape)) / LEVELS
        y = np.log(share) - np.log1p(-share)
        return y, (math.log(1 - 2 * EDGE) - np.log(share) - np.log1p(-share)).sum(axis=1)

    train, (test, volume) = line(parts[0])[0], line(parts[1])
    mean, root = train.mean(axis=0), np.linalg.cholesky(np.cov(train.T))
    white = lambda y: np.linalg.solve(root, (y - mean).T).T  # noqa: E731
    return Digits(
        white(train).astype(np.float32), white(test).astype(np.float32), (mean, root, np.ones(64)),
        volume - np.log(np.diag(root)).sum(),
    )  # fmt: skip


def learn_digits(updates: int, seed: int = 0) -> tuple[dict[str, Any], np.ndarray]:
    """Fit, and measure: bits per dimension of held-out images with the limits of log Z, against the Gaussian alone; samples as pixels."""
    data = digits(seed)
    energy = lnz.Tilted(
        Convolutions(lnz._core.frozen.Frozen(data.colour), jax.random.key(seed)),
        lnz.Gaussian(np.zeros(64), np.ones(64)),
    )
    phase = lnz.learning.ReplayBuffer(size=2000, chains=100, sweeps=10, restart=0.02, kernel=lnz.kernels.Langevin(0.05))
    began = time.process_time()
    fitted = lnz.fit(
        energy, data.train, negative_phase=phase, optimizer=adam(3e-4, updates), batch_size=100, epochs=updates * 100 / len(data.train),
        evaluate_every=0.2, key=jax.random.key(seed), on_record=lambda r: print(r.step, r.figures, flush=True),
    )  # fmt: skip
    seconds = time.process_time() - began
    annealing = lnz.routes.AnnealedImportanceSampling(temperatures=500, chains=128)
    log_z = lnz.log_partition(fitted.energy, route=annealing, key=jax.random.key(seed + 1))
    found = lnz.log_likelihood(fitted.energy, data.test, log_z=log_z)
    measured = time.process_time() - began - seconds

    def bits(nats: float) -> float:
        return (-(nats + float(data.log_volume.mean())) / 64 + math.log(LEVELS)) / math.log(2)

    base = lnz.log_likelihood(energy.base(), data.test)
    log_weights, z, _ = annealing.anneal(fitted.energy, jax.random.key(seed + 2))
    weights = np.exp(np.asarray(log_weights, float) - float(np.max(log_weights)))
    chosen = np.random.default_rng(seed).choice(len(weights), 49, p=weights / weights.sum())
    figures = {
        "bits": bits(found.value), "least": bits(found.upper), "most": bits(found.lower), "gaussian": bits(base.value), "log_z": str(log_z),
        "data_error": found.data_standard_error * math.sqrt(5) / 64 / math.log(2), "updates": updates, "seconds": seconds, "measuring": measured,
    }  # fmt: skip
    return figures, data.pixels(np.asarray(z)[chosen])


def planar_picture(path: Path, name: str, models: dict[str, lnz.Energy]) -> None:
    """The density of a law (left) and of every model, on one scale."""
    import matplotlib.pyplot as plt

    line = np.linspace(-4.5, 4.5, 181)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    density = np.exp(LAWS[name].log_density(points))
    if name == "checkerboard":
        square = np.floor((points + 4) / 2)
        density = np.where((np.abs(points) < 4).all(axis=1) & (square.sum(axis=1) % 2 == 0), density, 0)
    shown = {"the law": density}
    for method, energy in models.items():
        e = np.asarray(jax.jit(jax.vmap(energy))(jnp.asarray(points, jnp.float32)), float)
        weights = np.exp(e.min() - e)
        shown[method] = weights / weights.sum() / (line[1] - line[0]) ** 2
    figure, axes = plt.subplots(1, len(shown), figsize=(2.6 * len(shown), 2.8))
    for axis, (title, values) in zip(axes, shown.items(), strict=True):
        axis.imshow(values.reshape(181, 181), origin="lower", vmin=0, vmax=np.quantile(density, 0.99), cmap="Blues")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def digits_picture(path: Path, drawn: np.ndarray) -> None:
    """Images of the data beside samples of the model."""
    import matplotlib.pyplot as plt
    from sklearn.datasets import load_digits

    figure, axes = plt.subplots(1, 2, figsize=(7, 3.7))
    real = np.random.default_rng(0).permutation(load_digits().data)[:49] / 16
    for axis, tiles, title in zip(axes, (real, drawn), ("Data", "Samples of the model"), strict=True):
        page = np.full((62, 62), np.nan)
        for i, tile in enumerate(tiles):
            top, left = i // 7 * 9, i % 7 * 9
            page[top : top + 8, left : left + 8] = np.clip(tile, 0, 1).reshape(8, 8)
        axis.imshow(page, cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    one_thread()
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*LAWS, "digits"], default=[*LAWS, "digits"])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS[:1])
    parser.add_argument("--digit-updates", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="for the pictures, neural-NAME.png")
    options = parser.parse_args()
    for name in options.only:
        if name == "digits":
            figures, drawn = learn_digits(options.digit_updates)
            print(name, json.dumps(figures), flush=True)
            if options.folder is not None:
                digits_picture(options.folder / "neural-digits.png", drawn)
            continue
        models = {}
        for method in options.methods:
            figures, models[method] = learn(LAWS[name], method)
            print(name, method, json.dumps(figures), flush=True)
        if options.folder is not None:
            planar_picture(options.folder / f"neural-{name}.png", name, models)


if __name__ == "__main__":
    main()
