"""Handwritten words: chains trained on fold 0 of the OCR letters and tested on folds 1 to 8, as others do; one thread.

    python benchmarks/ocr_letters.py DATA [--seeds 0 1 2] [--epochs 60] [--reach 0] [--only linear exact pieces]

DATA holds `ocr_letters.npz`: `pixels` (letters, 16) packed bits of 16x8 images, `labels`, `lengths` of the words and their `folds`. Models:

- linear: emissions linear in the pixels, one table of transitions; exact likelihood with L2.
- exact: a convolutional network of each letter, with a table of its own for every pair of letters from the features of the two; exact
  likelihood. With `--reach 2` the features take in those of the two letters on either side.
- pieces: the same network; each pair by a softmax over its K² labellings in which both letters' emissions take part.

A tenth of fold 0 is held out, to choose the L2 of the linear chain and the epoch of the networks. All are scored by the exact likelihood of
their chains, in nats a word, by the most probable word (Viterbi), and by the most probable letter at each place (MPM).
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lnz
from timing import one_thread

K, LONGEST, WORDS, LETTERS = 26, 14, 40, 256  # labels; letters a word at most; words and letters of a batch at most
FEATURES, HIDDEN = 128, 64


class Words(NamedTuple):
    """Words side by side: the letters of word i are `images[starts[i] : starts[i + 1]]`."""

    images: np.ndarray  # (letters, 16, 8), 0 or 1
    labels: np.ndarray  # (letters,)
    starts: np.ndarray  # (words + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, which: np.ndarray) -> "Words":
        places = np.concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in which])
        lengths = np.diff(self.starts)[which]
        return Words(self.images[places], self.labels[places], np.append(0, np.cumsum(lengths)))


class Batch(NamedTuple):
    """Letters packed together, and where those of each word are; what is beyond a word's length is padding."""

    images: Any  # (LETTERS, 16, 8)
    place: Any  # (WORDS, LONGEST)
    labels: Any  # (WORDS, LONGEST)
    lengths: Any  # (WORDS,)


def load(folder: Path) -> tuple[Words, Words]:
    """Fold 0, and folds 1 to 8."""
    with np.load(folder / "ocr_letters.npz") as file:
        images = np.unpackbits(file["pixels"], axis=1).reshape(-1, 16, 8).astype(np.float32)
        words = Words(images, file["labels"].astype(np.int32), np.append(0, np.cumsum(file["lengths"].astype(int))))
        folds = file["folds"]
    return words.take(np.flatnonzero(folds == 0)), words.take(np.flatnonzero((folds > 0) & (folds < 9)))


def batches(words: Words, order: np.ndarray) -> Iterator[Batch]:
    """As many words at a time as fit."""
    sizes, first = np.diff(words.starts)[order], 0
    while first < len(order):
        total = np.cumsum(sizes[first : first + WORDS])
        count = int((total <= LETTERS).sum())
        some = words.take(order[first : first + count])
        images = np.zeros((LETTERS, 16, 8), np.float32)
        images[: len(some.images)] = some.images
        lengths = np.zeros(WORDS, np.int32)
        lengths[:count] = np.diff(some.starts)
        place = np.zeros((WORDS, LONGEST), np.int32)
        place[:count] = np.minimum(some.starts[:-1, None] + np.arange(LONGEST), len(some.images) - 1)
        yield Batch(images, place, some.labels[place], lengths)
        first += count


class Linear(eqx.Module):
    """Emissions linear in the pixels, and one table of transitions."""

    weights: jax.Array
    bias: jax.Array
    transitions: jax.Array

    def __init__(self):
        self.weights, self.bias, self.transitions = jnp.zeros((128, K)), jnp.zeros(K), jnp.zeros((K, K))

    def __call__(self, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
        emissions = batch.images.reshape(-1, 128) @ self.weights + self.bias
        tables = jnp.broadcast_to(self.transitions, (WORDS, LONGEST - 1, K, K))
        return emissions[batch.place], tables


class Network(eqx.Module):
    """Letters through two layers of convolutions to features, which may take in those of neighbours; emissions, and a table for every pair.

    The first layer of the pairs' network is linear in the two letters' features, so that it is taken letter by letter: nothing of the
    size of the features is copied for a pair.
    """

    first: jax.Array
    second: jax.Array
    dense: eqx.nn.Linear
    beside: jax.Array | None
    emission: eqx.nn.Linear
    left: eqx.nn.Linear
    right: eqx.nn.Linear
    table: eqx.nn.Linear
    transitions: jax.Array
    dropout: eqx.nn.Dropout

    def __init__(self, key: Any, *, reach: int, dropout: float = 0.4):
        keys = jax.random.split(key, 8)
        normal = lambda key, *shape: jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))  # noqa: E731
        self.first, self.second = normal(keys[0], 3, 3, 1, 32), normal(keys[1], 3, 3, 32, 64)
        self.dense = eqx.nn.Linear(8 * 64, FEATURES, key=keys[2])
        self.beside = normal(keys[3], 2 * reach + 1, FEATURES, FEATURES) if reach else None
        self.emission = eqx.nn.Linear(FEATURES, K, key=keys[4])
        self.left = eqx.nn.Linear(FEATURES, HIDDEN, key=keys[5])
        self.right = eqx.nn.Linear(FEATURES, HIDDEN, use_bias=False, key=keys[6])
        table = eqx.nn.Linear(HIDDEN, K * K, use_bias=False, key=keys[7])
        self.table = eqx.tree_at(lambda m: m.weight, table, 0.1 * table.weight)
        self.transitions, self.dropout = jnp.zeros((K, K)), eqx.nn.Dropout(dropout)

    def __call__(self, batch: Batch, key: Any) -> tuple[jax.Array, jax.Array]:
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        drop = lambda x, key: self.dropout(x, key=key, inference=key is None)  # noqa: E731
        x = batch.images[..., None]
        for kernel in (self.first, self.second):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            n, h, w, c = x.shape
            x = jax.nn.relu(x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4)))
        x = jax.nn.relu(each(self.dense, x.reshape(len(x), -1)))
        there = jnp.arange(LONGEST) < batch.lengths[:, None]
        x = jnp.where(there[..., None], drop(x, keys[0])[batch.place], 0)
        if self.beside is not None:
            near = jax.lax.conv_general_dilated(x, self.beside, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
            x = drop(jax.nn.relu(x + near), keys[1])
        pair = jax.nn.relu(each(self.left, x)[:, :-1] + each(self.right, x)[:, 1:])
        tables = each(self.table, drop(pair, keys[2])).reshape(*pair.shape[:-1], K, K) + self.transitions
        return each(self.emission, x), tables


def each(layer: eqx.nn.Linear, x: jax.Array) -> jax.Array:
    """A layer of every row."""
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def exact_loss(emissions: jax.Array, tables: jax.Array, labels: Any, lengths: Any) -> jax.Array:
    """-log P(word), exactly."""
    one = lambda e, w, y, n: lnz.crf.negative_log_likelihood(lnz.LinearChain(e, w, n), y)  # noqa: E731
    return jax.vmap(one)(emissions, tables, labels, lengths)


def piecewise_loss(emissions: jax.Array, tables: jax.Array, labels: Any, lengths: Any) -> jax.Array:
    """-Σ log of a softmax over the labellings of each pair, with the emissions of both its letters; of a lone letter its own softmax."""
    pairs = emissions[:, :-1, :, None] + tables + emissions[:, 1:, None, :]
    log_p = jax.nn.log_softmax(pairs.reshape(*pairs.shape[:2], -1))
    of_pairs = jnp.take_along_axis(log_p, (labels[:, :-1] * K + labels[:, 1:])[..., None], -1)[..., 0]
    alone = jnp.take_along_axis(jax.nn.log_softmax(emissions[:, 0]), labels[:, :1], -1)[:, 0]
    joined = jnp.arange(1, LONGEST) < lengths[:, None]
    return jnp.where(lengths == 1, -alone, -jnp.where(joined, of_pairs, 0).sum(1))


LOSSES = {"exact": exact_loss, "pieces": piecewise_loss}


class Score(NamedTuple):
    letters: float  # share of letters right, by the most probable word
    words: float
    mpm: float  # share of letters right, each by its own marginal
    nll: float  # nats a word


@eqx.filter_jit
def judged(model: Any, batch: Batch) -> tuple[jax.Array, ...]:
    def one(emissions: jax.Array, tables: jax.Array, labels: Any, n: Any) -> tuple[jax.Array, ...]:
        chain, there = lnz.LinearChain(emissions, tables, n), jnp.arange(LONGEST) < n
        right = [jnp.sum((decode(chain) == labels) & there) for decode in (lnz.map_state, lnz.crf.mpm_state)]
        return *right, (right[0] == n) & (n > 0), lnz.crf.negative_log_likelihood(chain, labels)

    return jax.vmap(one)(*model(batch, None), batch.labels, batch.lengths)


def score(model: Any, words: Words) -> Score:
    found = [judged(model, batch) for batch in batches(words, np.arange(len(words)))]
    best, mpm, whole, nll = (float(sum(np.asarray(x[i], float).sum() for x in found)) for i in range(4))
    return Score(best / len(words.labels), whole / len(words), mpm / len(words.labels), nll / len(words))


def divided(words: Words, generator: np.random.Generator) -> tuple[Words, Words]:
    """Nine tenths, and one tenth."""
    order = generator.permutation(len(words))
    tenth = len(words) // 10
    return words.take(np.sort(order[tenth:])), words.take(np.sort(order[:tenth]))


def fit_linear(words: Words, l2: float) -> Linear:
    """The least -Σ log P + l2 ‖θ‖², by L-BFGS."""
    from jax.flatten_util import ravel_pytree
    from scipy.optimize import minimize

    start, rebuilt = ravel_pytree(Linear())
    everything = list(batches(words, np.arange(len(words))))
    of_batch = _linear_loss()

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        found = [of_batch(rebuilt(jnp.asarray(theta, jnp.float32)), batch) for batch in everything]
        value = sum(float(v) for v, _ in found) + l2 * float(theta @ theta)
        return value, sum(np.asarray(ravel_pytree(g)[0], float) for _, g in found) + 2 * l2 * theta

    found = minimize(objective, np.asarray(start, float), jac=True, method="L-BFGS-B", options={"maxiter": 150})
    return rebuilt(jnp.asarray(found.x, jnp.float32))


@functools.cache
def _linear_loss() -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(lambda m, b: exact_loss(*m(b, None), b.labels, b.lengths).sum()))


def train_linear(words: Words, seed: int) -> tuple[Linear, str]:
    """The L2 that is best on the tenth, and then all of fold 0."""
    most, tenth = divided(words, np.random.default_rng(seed))
    strengths = (0.5, 1.0, 2.0, 4.0)
    best = min(strengths, key=lambda l2: score(fit_linear(most, l2), tenth).nll)
    return fit_linear(words, best), f"L2 {best}"


def shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each letter moved by up to one pixel, across and along."""
    n = len(images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    down, right = generator.integers(0, 3, (2, n, 1, 1))
    return padded[np.arange(n)[:, None, None], down + np.arange(16)[:, None], right + np.arange(8)]


def train_network(
    words: Words, objective: str, seed: int, *, reach: int = 0, epochs: int = 60, log: bool = False
) -> tuple[Any, str]:
    """AdamW on words with shifted letters; the mean of the weights along the way, at the epoch that is best on the tenth."""
    generator = np.random.default_rng(seed)
    most, tenth = divided(words, generator)
    key, made = jax.random.split(jax.random.key(seed))
    model, loss = Network(made, reach=reach), LOSSES[objective]
    steps = epochs * (len(most.labels) // LETTERS + 2)
    optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(1e-4, 2e-3, steps // 20, steps, 1e-5), weight_decay=0.02)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(model: Any, mean: Any, state: Any, batch: Batch, key: Any, step: Any) -> tuple[Any, Any, Any]:
        def mean_loss(model: Any) -> jax.Array:
            return loss(*model(batch, key), batch.labels, batch.lengths).sum() / jnp.sum(batch.lengths > 0)

        gradient = eqx.filter_grad(mean_loss)(model)
        changes, state = optimizer.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        model = eqx.apply_updates(model, changes)
        keep = jnp.minimum(0.99, (1 + step) / (10 + step))
        moved = lambda m, x: keep * m + (1 - keep) * x if eqx.is_inexact_array(m) else m  # noqa: E731
        return model, jax.tree.map(moved, mean, model), state

    mean, step, best, best_epoch, least = model, 0, model, 0, np.inf
    for epoch in range(1, epochs + 1):
        for batch in batches(most, generator.permutation(len(most))):
            batch = batch._replace(images=shifted(batch.images, generator))
            now = jax.random.fold_in(key, step)
            model, mean, state = update(model, mean, state, batch, now, jnp.asarray(step, jnp.float32))
            step += 1
        if epoch % 3 == 0 or epoch == epochs:
            found = score(mean, tenth)
            if log:
                print(f"    epoch {epoch}: held out {found.letters:.4f}, {found.nll:.3f} nats", flush=True)
            if found.nll < least:
                best, best_epoch, least = mean, epoch, found.nll
    return best, f"epoch {best_epoch} of {epochs}"


def run(folder: Path, name: str, seed: int, **options: Any) -> tuple[Score, float, str]:
    """Train a model and test it; the score, the process time of training, and what the held-out tenth chose."""
    words, test = load(folder)
    begun = time.process_time()
    model, chosen = train_linear(words, seed) if name == "linear" else train_network(words, name, seed, **options)
    seconds = time.process_time() - begun
    return score(model, test), seconds, chosen


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--reach", type=int, default=0, help="letters on either side that features take in")
    parser.add_argument(
        "--only", nargs="*", choices=["linear", "exact", "pieces"], default=["linear", "exact", "pieces"]
    )
    parser.add_argument("--log", action="store_true", help="the held-out tenth along the way")
    parser.add_argument("--json", action="store_true", help="a line of JSON for every model")
    options = parser.parse_args()
    if not options.json:
        print("model    seed  letters   words   (MPM)  nats/word  CPU s")
    for name in options.only:
        for seed in options.seeds[:1] if name == "linear" else options.seeds:
            found, seconds, chosen = run(
                options.data, name, seed, reach=options.reach, epochs=options.epochs, log=options.log
            )
            if options.json:
                print(json.dumps({"model": name, "seed": seed, **found._asdict(), "seconds": seconds}), flush=True)
                continue
            shares = f"{100 * found.letters:6.2f} %  {100 * found.words:5.2f} %  {100 * found.mpm:5.2f} %"
            print(f"{name:8s} {seed:4d}  {shares}  {found.nll:7.3f}  {seconds:6.0f}  {chosen}", flush=True)


if __name__ == "__main__":
    main()
