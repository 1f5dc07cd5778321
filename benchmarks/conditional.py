"""Every objective of conditional models on small public sets, in one table each.

    python benchmarks/conditional.py DATA [scene|snakes] [--only WORD]

DATA holds scene/scene_train.npz and scene/scene_devtest.npz, and snakes/snakes.npz. One thread; times are process times.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from timing import one_thread


def table(head: list[str], rows: Iterable[list[str]]) -> None:
    """A Markdown table, row by row as they come."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


# Scene: 6 binary labels, complete graph, 64 labellings. Features to unaries by a linear map; pairwise tables are constants.

UNARY_STRENGTH, STRENGTHS = 0.1, (1e-4, 1e-3, 1e-2)  # of L2, on the mean loss: of the unary weights, and of the pairs
MAX_ITERATIONS = 100


class Scored(NamedTuple):
    """Exact -log P in nats, labellings that MAP gets right, labels that MPM gets right."""

    nll: float
    match: float
    hamming: float


class Scene:
    """The data, standardised, and the model."""

    def __init__(self, folder: Path):
        import jax.numpy as jnp

        import lnz

        train, test = (np.load(folder / "scene" / f"scene_{name}.npz") for name in ("train", "devtest"))
        mean, deviation = train["X"].mean(0), train["X"].std(0)
        self.x, self.x_test = ((np.asarray(d["X"], float) - mean) / deviation for d in (train, test))
        self.y, self.y_test = (d["Y"].astype(np.int32) for d in (train, test))
        self.held = np.arange(len(self.x)) % 5 == 0
        self.structure = lnz.crf.Graph.complete(6)
        self.start = {
            "weight": jnp.zeros((self.x.shape[1], 6)),
            "bias": jnp.zeros(6),
            "pairwise": jnp.zeros((len(self.structure.edges), 2, 2)),
        }
        self.states = (np.arange(64)[:, None] >> np.arange(6)[::-1] & 1).astype(np.int32)

    def field(self, parameters: Any, x: Any) -> Any:
        import jax.numpy as jnp

        import lnz

        logits = x @ parameters["weight"] + parameters["bias"]
        return lnz.RandomField(self.structure, jnp.stack([jnp.zeros(6), logits], -1), parameters["pairwise"])

    def fit(self, objective: Any, x: Any, y: Any, strength: float) -> Any:
        """L-BFGS on the mean loss plus ½ (0.1 |weight|² + strength |pairwise|²); Adam where the loss is sampled."""
        import jax
        import scipy.optimize
        from jax.flatten_util import ravel_pytree

        flat, unflatten = ravel_pytree(self.start)

        def loss(v: Any, key: Any) -> Any:
            p, keys = unflatten(v), jax.random.split(key, len(x))
            nats = jax.vmap(lambda x, y, k: objective.loss(self.field(p, x), y, key=k))(x, y, keys)
            squares = UNARY_STRENGTH * (p["weight"] ** 2).sum() + strength * (p["pairwise"] ** 2).sum()
            return nats.mean() + squares / 2

        if hasattr(objective, "sweeps"):
            return unflatten(self.adam(loss, flat))
        gradient = jax.jit(jax.value_and_grad(loss))
        found = scipy.optimize.minimize(
            lambda v: tuple(np.asarray(part, float) for part in gradient(v, jax.random.key(0))),
            np.asarray(flat),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": MAX_ITERATIONS},
        )
        return unflatten(jax.numpy.asarray(found.x))

    def adam(self, loss: Callable[..., Any], v: Any, steps: int = 300) -> Any:
        """The whole set in every step, and a step size that falls to 0."""
        import jax
        import optax

        optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))

        def step(carry: Any, key: Any) -> Any:
            v, state = carry
            updates, state = optimizer.update(jax.grad(loss)(v, key), state)
            return (v + updates, state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.jit(lambda v: jax.lax.scan(step, (v, optimizer.init(v)), keys)[0][0])(v)

    def score(self, parameters: Any, x: Any, y: Any, scales: Any = lambda field: field) -> Scored:
        """By a list of all 64 labellings, without the library's sums."""
        import jax

        states = jax.numpy.asarray(self.states)
        scores = jax.jit(jax.vmap(lambda x: jax.vmap(lambda s: -scales(self.field(parameters, x))(s))(states)))(x)
        log_p = np.asarray(scores) - np.logaddexp.reduce(np.asarray(scores), axis=1)[:, None]
        number = y @ (1 << np.arange(6)[::-1])
        mpm = np.exp(log_p) @ self.states > 0.5
        nll = -log_p[np.arange(len(y)), number].mean()
        return Scored(float(nll), float((log_p.argmax(1) == number).mean()), float((mpm == y).mean()))


def scene_objectives() -> dict[str, Any]:
    import lnz

    return {
        "exact likelihood": lnz.crf.Likelihood(lnz.routes.Enumeration()),
        "pseudo-likelihood": lnz.crf.PseudoLikelihood(),
        "piecewise, unaries inside": lnz.crf.Piecewise(unaries="inside"),
        "piecewise, unaries apart": lnz.crf.Piecewise(),
        "unaries only": Apart(),
        "piecewise, unaries shared": lnz.crf.Piecewise(unaries="shared"),
        "piecewise pseudo-likelihood, apart": lnz.crf.PiecewisePseudoLikelihood(),
        "piecewise pseudo-likelihood, shared": lnz.crf.PiecewisePseudoLikelihood(unaries="shared"),
        "contrastive divergence, 5 sweeps": lnz.crf.SampledLikelihood(sweeps=5),
        "10 unrolled mean-field steps": lnz.crf.UnrolledMeanField(10),
        "Bethe likelihood": lnz.crf.Likelihood(bethe(60, 1e-6)),
    }


class Apart:
    """The unaries alone: a logistic regression of every label."""

    def loss(self, field: Any, labels: Any, *, key: Any = None) -> Any:
        import lnz

        return lnz.crf.Piecewise().loss(lnz.RandomField(lnz.crf.Graph(6, []), field.unary), labels)


def scene(folder: Path, only: str) -> Iterable[list[str]]:
    """The L2 strength is chosen on a fifth of the training rows, then all are used; scales are fitted on that fifth."""
    import lnz

    data = Scene(folder)
    x, y, held = data.x, data.y, data.held
    for name, objective in scene_objectives().items():
        if only not in name:
            continue
        start = time.process_time()
        fits = [data.fit(objective, x[~held], y[~held], strength) for strength in STRENGTHS]
        best = int(np.argmin([data.score(fitted, x[held], y[held]).nll for fitted in fits]))
        fitted = data.fit(objective, x, y, STRENGTHS[best])
        seconds = time.process_time() - start
        scales = lnz.crf.calibrate(
            lambda x, fitted=fits[best]: data.field(fitted, x), x[held], y[held], route=lnz.routes.Enumeration()
        )
        plain, scaled = (
            data.score(fitted, data.x_test, data.y_test),
            data.score(fitted, data.x_test, data.y_test, scales),
        )
        yield [
            name,
            *(f"{plain.nll:.3f}", f"{100 * plain.match:.1f}", f"{100 * plain.hamming:.1f}"),
            *(f"{scaled.nll:.3f}", f"{100 * scaled.match:.1f}"),
            f"{float(scales.unary):.2f}, {float(scales.groups[0]):.2f}",
            *(f"{STRENGTHS[best]:g}", f"{seconds:.0f}"),
        ]


# Snakes: grids of many shapes, padded to one. 3 x 3 windows of colours; unaries and ordered pairwise tables from small networks.

CLASSES, SIDE, COLOURS = 11, (11, 11), 6
STEPS, BATCH = 400, 20


def bethe(max_sweeps: int = 40, tolerance: float = 1e-4) -> Any:
    import lnz

    return lnz.routes.BeliefPropagation(schedule="parallel", damping=0.3, max_sweeps=max_sweeps, tolerance=tolerance)


def pictures(folder: Path, part: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Colours and labels of every grid. 1 is background; snakes go down in cells of colour 2, left in 3, up in 4, right in 5."""
    data = np.load(folder / "snakes" / "snakes.npz")
    numbers = np.unique(data["X_train"] @ np.array([4, 2, 1]))
    colours = np.searchsorted(numbers, data[f"X_{part}"] @ np.array([4, 2, 1])) + 1
    labels, shapes = data[f"Y_{part}"].astype(int), data[f"shape_{part}"].astype(int)
    ends = np.cumsum(shapes.prod(1))
    return [
        (colours[end - h * w : end].reshape(h, w), labels[end - h * w : end].reshape(h, w))
        for (h, w), end in zip(shapes, ends, strict=True)
    ]


def mirrored(picture: tuple[np.ndarray, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A grid under the eight symmetries of the square, whose directions, and so colours, change along."""
    found = [picture]
    for turn, swapped in (
        (np.fliplr, [0, 1, 2, 5, 4, 3]),
        (np.flipud, [0, 1, 4, 3, 2, 5]),
        (np.transpose, [0, 1, 5, 4, 3, 2]),
    ):
        found += [(np.array(swapped)[turn(colours)], turn(labels)) for colours, labels in found]
    return found


def padded(pictures: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of colours (n, 11, 11, 54), labels, and masks."""
    n = len(pictures)
    x = np.zeros((n, *SIDE, 9 * COLOURS), np.float32)
    y, mask = np.zeros((n, *SIDE), np.int32), np.zeros((n, *SIDE), bool)
    for i, (colours, labels) in enumerate(pictures):
        h, w = labels.shape
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(colours, 1), (3, 3)).reshape(h, w, 9)
        x[i, :h, :w] = np.eye(COLOURS, dtype=np.float32)[windows].reshape(h, w, -1)
        y[i, :h, :w], mask[i, :h, :w] = labels, True
    return x, y, mask


class Snakes:
    """The data and the model: two heads on the windows."""

    def __init__(self, folder: Path, held_out: bool = False):
        import lnz

        train, test = (pictures(folder, part) for part in ("train", "test"))
        held = [picture for i, picture in enumerate(train) if held_out and i % 5 == 0]
        used = [picture for i, picture in enumerate(train) if not held_out or i % 5]
        self.train = padded([turned for picture in used for turned in mirrored(picture)])
        self.test = padded(held or test)
        self.structure = lnz.crf.Grid(SIDE)

    def field(self, heads: Any, x: Any, mask: Any) -> Any:
        import lnz

        unary, pairwise = heads
        return lnz.RandomField(self.structure, unary(x, mask=mask), pairwise(x, self.structure, mask=mask), mask=mask)

    def fit(self, objective: Any, steps: int = STEPS, seed: int = 0) -> Any:
        import equinox as eqx
        import jax
        import jax.numpy as jnp
        import optax

        import lnz

        x, y, mask = map(jnp.asarray, self.train)
        one, two, key = jax.random.split(jax.random.key(seed), 3)
        heads = (
            lnz.crf.UnaryHead(x.shape[-1], CLASSES, key=one),
            lnz.crf.PairwiseHead(x.shape[-1], CLASSES, hidden=24, groups=2, key=two),
        )
        optimizer = optax.adam(optax.cosine_decay_schedule(0.005, steps))

        @eqx.filter_jit
        def step(heads: Any, state: Any, key: Any) -> Any:
            pick = jax.random.choice(key, len(x), (BATCH,), replace=False)

            def loss(heads: Any) -> Any:
                nats = jax.vmap(lambda x, y, m, k: objective.loss(self.field(heads, x, m), y, key=k))
                return nats(x[pick], y[pick], mask[pick], jax.random.split(key, BATCH)).sum() / mask[pick].sum()

            value, gradient = eqx.filter_value_and_grad(loss)(heads)
            updates, state = optimizer.update(gradient, state, heads)
            return eqx.apply_updates(heads, updates), state, value

        state = optimizer.init(heads)
        for t in range(steps):
            heads, state, _ = step(heads, state, jax.random.fold_in(key, t))
        return heads

    def accuracy(self, heads: Any, decode: Callable[[Any], Any]) -> tuple[float, float]:
        """Of all cells, and of those of a snake."""
        import equinox as eqx
        import jax

        x, y, mask = self.test
        labels = eqx.filter_jit(lambda heads: jax.vmap(lambda x, m: decode(self.field(heads, x, m)))(x, mask))(heads)
        right = np.asarray(labels).reshape(y.shape) == y
        return float(right[mask].mean()), float(right[mask & (y > 0)].mean())


def snake_objectives() -> dict[str, Any]:
    import lnz

    return {
        "Bethe likelihood": lnz.crf.Likelihood(bethe()),
        "piecewise, unaries inside": lnz.crf.Piecewise(unaries="inside"),
        "piecewise, unaries apart": lnz.crf.Piecewise(),
        "unaries only": Unaries(),
        "piecewise, unaries shared": lnz.crf.Piecewise(unaries="shared"),
        "pseudo-likelihood": lnz.crf.PseudoLikelihood(),
        "piecewise pseudo-likelihood, inside": lnz.crf.PiecewisePseudoLikelihood(unaries="inside"),
        "contrastive divergence, 3 sweeps": lnz.crf.SampledLikelihood(sweeps=3),
        "10 unrolled mean-field steps": lnz.crf.UnrolledMeanField(10),
    }


class Unaries:
    """The unaries alone."""

    def loss(self, field: Any, labels: Any, *, key: Any = None) -> Any:
        import lnz

        alone = lnz.RandomField(field.structure, field.unary, mask=field.mask)
        return lnz.crf.PseudoLikelihood().loss(alone, labels)


def by_belief_propagation(field: Any) -> Any:
    import lnz

    return lnz.crf.mpm_state(field, route=bethe(200))


def by_mean_field(field: Any) -> Any:
    import lnz

    return lnz.crf.UnrolledMeanField(10).logits(field).argmax(-1)


def snakes(folder: Path, only: str) -> Iterable[list[str]]:
    data = Snakes(folder)
    for name, objective in snake_objectives().items():
        if only not in name:
            continue
        start = time.process_time()
        heads = data.fit(objective)
        seconds = time.process_time() - start
        found = [data.accuracy(heads, decode) for decode in (by_belief_propagation, by_mean_field)]
        yield [name, *(f"{100 * share:.2f}" for shares in found for share in shares), f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="*", choices=["scene", "snakes"], default=["scene", "snakes"])
    parser.add_argument("--only", default="", help="objectives whose names hold this word")
    given = parser.parse_args()
    one_thread()
    import jax

    if "snakes" in given.sets:
        head = ["objective", "all cells", "snake cells", "by mean field: all", "snake", "training, s of CPU"]
        table(head, snakes(given.data, given.only))
    if "scene" in given.sets:
        jax.config.update("jax_enable_x64", True)
        head = ["objective", "NLL", "MAP exact match", "MPM Hamming", "NLL, calibrated", "match", "scales", "L2", "s"]
        table(head, scene(given.data, given.only))


if __name__ == "__main__":
    main()
