"""What simple models score on the handwritten digits, split as `lnz train digits` splits them: nats per test image.

    python benchmarks/digits_baselines.py [--restarts 3]

A factorised Bernoulli model, and a mixture of Bernoullis fitted by EM with its number of components and its smoothing
chosen on the validation images. Both are normalised by construction, so these are exact likelihoods. NumPy only.
"""

import argparse
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lnz import io

COMPONENTS = (1, 10, 20, 40, 60, 80, 100, 120, 160, 200)
SMOOTHING = (0.05, 0.1, 0.2, 0.5)  # extra counts of each value of each pixel, in each component
ITERATIONS = 200

Array = NDArray[np.float64]


class Mixture(NamedTuple):
    """p(v) = Σ_k w_k Π_i p_ki^v_i (1 - p_ki)^(1 - v_i)."""

    log_weights: Array  # (K,)
    log_on: Array  # (K, pixels)
    log_off: Array

    def log_joint(self, images: Array) -> Array:
        """log w_k + log p(v | k), shape (n, K)."""
        return self.log_weights + images @ self.log_on.T + (1 - images) @ self.log_off.T

    def log_likelihood(self, images: Array) -> Array:
        """log p(v) of every image, in nats."""
        return np.logaddexp.reduce(self.log_joint(images), axis=1)


def maximise(images: Array, shares: Array, smoothing: float) -> Mixture:
    """The M step: smoothed counts of each component's share of the images."""
    counts = shares.sum(axis=0)
    on = (shares.T @ images + smoothing) / (counts[:, None] + 2 * smoothing)
    weights = (counts + smoothing) / (counts + smoothing).sum()
    return Mixture(np.log(weights), np.log(on), np.log1p(-on))


def fit(images: Array, components: int, smoothing: float, *, seed: int) -> Mixture:
    """EM from components that start at images drawn at random, mixed with the mean image."""
    rng = np.random.default_rng(seed)
    start = 0.5 * images[rng.choice(len(images), components, replace=False)] + 0.5 * images.mean(axis=0)
    start = np.clip(start, 0.05, 0.95)
    mixture = Mixture(np.full(components, -np.log(components)), np.log(start), np.log1p(-start))
    before = -np.inf
    for _ in range(ITERATIONS):
        joint = mixture.log_joint(images)
        total = np.logaddexp.reduce(joint, axis=1)
        mixture = maximise(images, np.exp(joint - total[:, None]), smoothing)
        if total.mean() - before < 1e-5:
            break
        before = total.mean()
    return mixture


def parts() -> list[Array]:
    """The training, validation and test images, as `lnz train digits` has them: 0 and 1, shape (n, 64)."""
    images = io.binarise(io.digits().rows).astype(float)
    return [images[part] for part in io.split(len(images), fractions=(0.7, 0.1, 0.2), seed=0)]


def factorised(train: Array) -> Mixture:
    """Independent pixels, each value counted once more than it occurs."""
    return maximise(train, np.ones((len(train), 1)), 1.0)


def best_mixture(train: Array, validation: Array, *, restarts: int) -> tuple[Mixture, str]:
    """The mixture that the validation images like best, and how it was chosen."""
    settings = list(itertools.product(COMPONENTS, SMOOTHING, range(restarts)))
    fitted = [fit(train, components, smoothing, seed=seed) for components, smoothing, seed in settings]
    best = int(np.argmax([mixture.log_likelihood(validation).mean() for mixture in fitted]))
    return fitted[best], f"smoothing {settings[best][1]:g}; the best of {len(fitted)} fits on the validation images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=3)
    restarts = parser.parse_args().restarts
    images = parts()
    mixture, choice = best_mixture(*images[:2], restarts=restarts)
    models = {
        "factorised Bernoulli model": factorised(images[0]),
        f"mixture of {len(mixture.log_weights)} Bernoullis": mixture,
    }
    print(f"{'nats per image':34}{'train':>9}{'validation':>12}{'test':>9}{'± by the data':>15}")
    for name, model in models.items():
        scores = [model.log_likelihood(part) for part in images]
        a, b, c = (score.mean() for score in scores)
        error = scores[2].std(ddof=1) / np.sqrt(len(scores[2]))
        print(f"{name:34}{a:9.2f}{b:12.2f}{c:9.2f}{error:15.2f}")
    print(f"({choice})")


if __name__ == "__main__":
    main()
