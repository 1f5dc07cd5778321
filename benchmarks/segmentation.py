"""Segmentation of horses and streets: the unary net, context by each objective, and the dense field; and what pieces save against exact sums.

    python benchmarks/segmentation.py DATA [--sets horses32 horses64 camvid] [--seeds 0 1 2] [--objectives piecewise ...] [--out results.jsonl]
    python benchmarks/segmentation.py DATA --efficiency

DATA is the folder that holds `weizmann_horses` and `camvid_small`. Of every seed, the trunk and the unary net are trained once; every objective
then trains the nets of nodes and pairs on that trunk. A tenth of the training images is held out, to choose how much each relation counts, and
from the unary net's labels the dense field, one for all; scores are of the development part. Times are process time, one thread.

IoU of horses is also given as the mean over images of that of the class horse, as the literature has it. The joint negative log-likelihood on the
coarse map is exact without context, and with it a Bethe estimate (log Z by belief propagation), over a few images.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread

_SAME = {"batch_size": 8, "learning_rate": 5e-3, "weight_decay": 1e-2}
SETS = {
    "horses32": _SAME | {"channels": 24, "epochs": 100, "context_epochs": 6},
    "horses64": _SAME | {"channels": 24, "epochs": 100, "context_epochs": 6},
    "camvid": _SAME | {"channels": 16, "epochs": 100, "context_epochs": 3},
}
OBJECTIVES = ("piecewise", "piecewise-inside", "mean-field", "pseudo-likelihood", "bethe")
JOINT = 8  # images whose joint likelihood is estimated


def halved(data: Any) -> Any:
    """Means of 2 x 2 pixels; a pixel is a horse where at least half of it is."""
    n, height, width, _ = data.images.shape
    images = data.images.reshape(n, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    labels = data.labels.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4)) >= 0.5
    return dataclasses.replace(data, images=np.rint(images).astype(np.uint8), labels=labels.astype(np.int32))


def load(folder: Path, name: str) -> tuple[Any, Any]:
    """The training and the development part of a set."""
    import lnz

    if name == "camvid":
        paths = [folder / f"camvid_small/camvid_{part}_labels.npz" for part in ("train", "val")]
        train, test = (lnz.apps.read_segmentation(path, classes=11, void=11) for path in paths)
        return train, test
    train, test = (
        lnz.apps.read_segmentation(folder / f"weizmann_horses/horses_{part}.npz") for part in ("train", "devtest")
    )
    return (halved(train), halved(test)) if name == "horses32" else (train, test)


def score(p: np.ndarray, data: Any) -> dict[str, float]:
    import lnz

    found = lnz.apps.confusion(data.labels, p.argmax(-1), data.classes)
    scores = {"accuracy": found.pixel_accuracy, "mean_iou": found.mean_iou}
    if data.classes == 2:
        here, there = p.argmax(-1) == 1, data.labels == 1
        scores["horse_iou"] = float(np.mean((here & there).sum((1, 2)) / np.maximum((here | there).sum((1, 2)), 1)))
    return scores


def joint(potentials: Any, data: Any, *, context: bool) -> float | None:
    """Mean of -log P(y|x) over some images, in nats: exact without context, otherwise by the Bethe log Z; None where one is impossible."""
    import jax.numpy as jnp

    import lnz
    from lnz.apps._segmentation.segment_training import coarse_labels

    a = potentials.architecture
    features = potentials.features(jnp.asarray(data.images[:JOINT]))
    labels = coarse_labels(jnp.asarray(data.labels[:JOINT], jnp.int32), a.stride, a.classes)
    objective = (
        lnz.crf.Likelihood(lnz.routes.BeliefPropagation(schedule="parallel")) if context else lnz.crf.PseudoLikelihood()
    )
    nats = [
        objective.loss(potentials.field(x, mask=y >= 0, context=context), y)
        for x, y in zip(features, labels, strict=True)
    ]
    return float(jnp.mean(jnp.stack(nats))) if min(nats) >= 0 else None


def trained(training: Any, state: Any, last: int) -> tuple[Any, float]:
    """The state once the stages up to `last` are done, and the process time that it took."""
    began = time.process_time()
    while int(state.state.stage) < last:
        state = training.step(state)
        state = training.close(state, training.evaluate(state))
    return state, time.process_time() - began


def rows_of(folder: Path, name: str, seed: int, objectives: tuple[str, ...], longer: float) -> Iterator[dict[str, Any]]:
    """A row for the unary net, and for every objective one with context and its refinement."""
    from lnz.apps._segmentation.segment_settings import Settings
    from lnz.apps._segmentation.segment_training import Training
    from lnz.apps._segmentation.segmenter import Segmenter
    from lnz.apps._segmentation.selection import fitted_scales

    train, test = load(folder, name)
    settings = SETS[name] | {stage: round(longer * SETS[name][stage]) for stage in ("epochs", "context_epochs")}
    base = Training(train, Settings(seed=seed, patience=1000, **settings))
    state, seconds = trained(base, base.init(), 1)

    def row(method: str, p: np.ndarray, took: float, **more: Any) -> dict[str, Any]:
        return {"set": name, "seed": seed, "method": method, **score(p, test), "seconds": took, **more}

    segmenter = Segmenter(state.state.model)
    unary, _ = segmenter.coarse(test.images)
    yield row("unary", unary, seconds, nll=joint(state.state.model, test, context=False))
    began = time.process_time()
    p, _ = segmenter.coarse(base.held_out.images)
    dense = segmenter.dense.fitted(base.held_out.images, p, base.held_out.labels)
    yield row("unary + dense", dense(test.images, unary), time.process_time() - began, dense=dataclasses.asdict(dense))
    for objective in objectives:
        training = Training(train, dataclasses.replace(base.settings, objective=objective))
        done, seconds = trained(training, state, 2)
        plain = Segmenter(done.state.model)
        alone, context = plain.coarse(test.images)
        nll = joint(done.state.model, test, context=True)
        yield row(objective, context, seconds, nll=nll, unary_part=score(alone, test))
        scaled = fitted_scales(plain, base.held_out, scales=(0.0, 0.3, 1.0))
        _, context = scaled.coarse(test.images)
        scales = np.round(scaled.potentials.scales, 3).tolist()
        yield row(f"{objective}, scaled", context, seconds, scales=scales)
        yield row(f"{objective}, scaled + dense", dense(test.images, context), seconds)


def efficiency(folder: Path, console: Console, *, side: int = 12, steps: int = 60) -> None:
    """Horses on maps of 12 x 12 nodes with neighbours down and right (treewidth 12): pieces against exact likelihood, from the same start."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import lnz
    from lnz.apps._segmentation.segment_training import coarse_labels

    def prepared(data: Any) -> tuple[Any, Any]:
        """Means of colours over blocks, with those of the 8 neighbours, as features; labels of blocks."""
        block = data.images.shape[1] // side
        images = data.images[:, : side * block, : side * block] / 128.0 - 1
        means = images.reshape(-1, side, block, side, block, 3).mean((2, 4))
        padded = np.pad(means, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
        near = [padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)]
        features = np.concatenate(
            [*near, np.broadcast_to(np.mgrid[:side, :side].transpose(1, 2, 0) / side, (*means.shape[:3], 2))], -1
        )
        labels = coarse_labels(jnp.asarray(data.labels[:, : side * block, : side * block], jnp.int32), block, 2)
        return jnp.asarray(features, jnp.float32), labels

    train, test = map(prepared, load(folder, "horses64"))
    grid = lnz.crf.Grid((side, side))
    keys = jax.random.split(jax.random.key(0))
    width = train[0].shape[-1]
    first = (
        lnz.crf.UnaryHead(width, 2, hidden=32, key=keys[0]),
        lnz.crf.PairwiseHead(width, 2, hidden=16, groups=2, key=keys[1]),
    )

    def field(nets: Any, x: Any) -> Any:
        unary, pairs = nets
        return lnz.RandomField(grid, unary(x), pairs(x, grid))

    @eqx.filter_jit
    def measured(nets: Any, x: Any, y: Any) -> tuple[Any, Any]:
        def one(x: Any, y: Any) -> tuple[Any, Any]:
            model = field(nets, x)
            return lnz.crf.negative_log_likelihood(model, y), jnp.mean(
                (jnp.argmax(lnz.marginals(model), -1) == y) * 1.0
            )

        return jax.vmap(one)(x, y)

    table = Table(title=f"{side} x {side} nodes, K = 2, {steps} steps of 20 images", box=None)
    for name in ("objective", "ms a step", "times cheaper", "-log P, nats an image", "accuracy"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    objectives: dict[str, Any] = {
        "exact likelihood": lnz.crf.Likelihood(),
        "piecewise": lnz.crf.Piecewise(),
        "piecewise-inside": lnz.crf.Piecewise(unaries="inside"),
        "piecewise-shared": lnz.crf.Piecewise(unaries="shared"),
        "pseudo-likelihood": lnz.crf.PseudoLikelihood(),
    }
    slowest = 0.0
    for name, objective in objectives.items():
        optimizer = optax.adam(1e-2)

        def loss(nets: Any, x: Any, y: Any, objective: Any = objective) -> Any:
            return jnp.mean(jax.vmap(lambda x, y: objective.loss(field(nets, x), y))(x, y))

        @eqx.filter_jit
        def step(
            nets: Any, state: Any, x: Any, y: Any, loss: Callable[..., Any] = loss, optimizer: Any = optimizer
        ) -> Any:
            change, state = optimizer.update(eqx.filter_grad(loss)(nets, x, y), state)
            return eqx.apply_updates(nets, change), state

        nets, state = first, optimizer.init(eqx.filter(first, eqx.is_inexact_array))
        rng, spent = np.random.default_rng(0), []
        for _ in range(steps):
            rows = rng.integers(0, len(train[0]), 20)
            began = time.process_time()
            nets, state = jax.block_until_ready(step(nets, state, train[0][rows], train[1][rows]))
            spent.append(time.process_time() - began)
        seconds = float(np.median(spent[2:]))
        slowest = slowest or seconds
        nll, right = measured(nets, *test)
        table.add_row(
            name,
            f"{1e3 * seconds:.1f}",
            f"{slowest / seconds:.1f}",
            f"{float(nll.mean()):.2f}",
            f"{100 * float(right.mean()):.2f} %",
        )
    console.print(table)


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """One table a set: means over seeds, with the spread between the smallest and the largest."""
    for name in dict.fromkeys(row["set"] for row in rows):
        those = [row for row in rows if row["set"] == name]
        columns = ["accuracy", "mean_iou", *(["horse_iou"] if "horse_iou" in those[0] else [])]
        table = Table(title=f"{name}, {len({row['seed'] for row in those})} seeds", box=None)
        for column in ("method", *columns, "-log P", "seconds"):
            table.add_column(column, justify="left" if column == "method" else "right")
        for method in dict.fromkeys(row["method"] for row in those):
            same = [row for row in those if row["method"] == method]
            cells = []
            for column in columns:
                values = [100 * row[column] for row in same]
                cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
            nll = [row["nll"] for row in same if row.get("nll") is not None]
            cells += [f"{np.mean(nll):.1f}" if nll else "", f"{np.mean([row['seconds'] for row in same]):.0f}"]
            table.add_row(method, *cells)
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the seeds themselves")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--longer", type=float, default=1.0, help="times the epochs")
    parser.add_argument("--out", type=Path, help="append a line of JSON a row")
    parser.add_argument("--efficiency", action="store_true")
    arguments = parser.parse_args()
    one_thread()
    console, rows = Console(width=130), []
    if arguments.efficiency:
        efficiency(arguments.data, console)
        return
    for name in arguments.sets:
        for seed in arguments.seeds:
            for row in rows_of(arguments.data, name, seed, tuple(arguments.objectives), arguments.longer):
                rows.append(row)
                console.print(json.dumps(row))
                if arguments.out is not None:
                    with open(arguments.out, "a") as file:
                        file.write(json.dumps(row) + "\n")
    show(console, rows)


if __name__ == "__main__":
    main()
