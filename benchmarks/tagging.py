"""Sequence tagging against python-crfsuite at equal features: training and tagging in process time, one thread, and the scores of both.

    python benchmarks/tagging.py train.txt.gz devtest.txt.gz [--features reference] [--sentences 1000]

Both get the same features of every token (ids made by lnz, as strings for crfsuite), the same weights (features and labels seen together,
all transitions), the same penalty (l2 = c2 = 1) and L-BFGS with the same rule to stop. The training time of lnz is that of all from tokens to
a tagger, features and compilation included; that of crfsuite is its trainer's, without the features. The tagging time of lnz is that of all
from words to tags, warm; that of crfsuite goes from features to tags.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from timing import one_thread


def strings(ids: np.ndarray, count: int, starts: np.ndarray) -> list[list[list[str]]]:
    """The features of every sentence as crfsuite takes them."""
    names = [str(i) for i in range(count)]
    rows = [[names[i] for i in row if i < count] for row in ids.tolist()]
    return [rows[a:b] for a, b in itertools.pairwise(starts)]


def crfsuite(features: Any, train: Any, test: Any) -> dict[str, Any]:
    """Train and tag by python-crfsuite."""
    import pycrfsuite

    labels = train.columns[-1].values
    inputs = strings(features.ids(train), features.count, train.starts)
    tags = np.split(np.asarray(labels, object)[train.columns[-1].codes], train.starts[1:-1])
    trainer = pycrfsuite.Trainer(verbose=False)
    trainer.set_params({"c1": 0.0, "c2": 1.0, "max_iterations": 1000, "feature.possible_transitions": True})
    began = time.process_time()
    for x, y in zip(inputs, tags, strict=True):
        trainer.append(x, list(y))
    losses: list[float] = []
    trainer.on_iteration = lambda _, info: losses.append(info["loss"])
    model = str(Path(tempfile.mkdtemp()) / "model")
    trainer.train(model)
    trained = time.process_time() - began
    tagger = pycrfsuite.Tagger()
    tagger.open(model)
    inputs = strings(features.ids(test), features.count, test.starts)
    began = time.process_time()
    found = [tagger.tag(x) for x in inputs]
    tagged = time.process_time() - began
    values = test.columns[-1].values
    gold = [[values[code] for code in part] for part in np.split(test.columns[-1].codes, test.starts[1:-1])]
    nll = 0.0
    for x, y in zip(inputs, gold, strict=True):
        tagger.set(x)
        nll -= np.log(tagger.probability(y))
    numbers = {label: i for i, label in enumerate(labels)}
    guesses = np.asarray([numbers[label] for part in found for label in part])
    objective = trainer.logparser.last_iteration["loss"]
    return {"train": trained, "tag": tagged, "tags": guesses, "nll": nll / len(test), "objective": objective}


def lnz_tagger(train: Any, test: Any, templates: list[str]) -> dict[str, Any]:
    """Train and tag by lnz."""
    import lnz

    began = time.process_time()
    fitted = lnz.apps.fit_tagger(train, templates=templates)
    trained = time.process_time() - began
    tagger, words = fitted.tagger, test.first_columns(len(test.columns) - 1)
    tagger.tag(words)  # compiles
    began = time.process_time()
    tags = tagger.tag(words)
    tagged = time.process_time() - began
    nll = tagger.negative_log_likelihood(test, tagger.gold(test)) / len(test)
    return {"train": trained, "tag": tagged, "tags": tags, "nll": nll, "objective": fitted.evaluations[-1][1]}


def main() -> None:
    one_thread()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--features", choices=("default", "reference"), default="default")
    parser.add_argument("--sentences", type=int, help="Train on the first so many.")
    options = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)  # as the command line does
    import lnz
    from lnz.apps._tagging.features import FeatureMap, default_templates, reference_templates

    train, test = lnz.io.read_conll(options.train), lnz.io.read_conll(options.test)
    train = train.take(np.arange(len(train))[: options.sentences])
    width = len(train.columns) - 1
    templates = (default_templates if options.features == "default" else reference_templates)(width)
    features = FeatureMap.fit(train.first_columns(width), templates)
    results = {"lnz": lnz_tagger(train, test, templates), "crfsuite": crfsuite(features, train, test)}
    labels = train.columns[-1].values
    numbers = {label: i for i, label in enumerate(labels)}
    gold = np.asarray([numbers.get(label, -1) for label in test.columns[-1].values])[test.columns[-1].codes]
    table = Table(title=f"{len(train):,} sentences, {features.count:,} features")
    for name in ("", "training, s", "objective", "F1", "accuracy", "nats/sentence", "sentences/s"):
        table.add_column(name, justify="right")
    for name, found in results.items():
        score = lnz.apps.chunk_score(found["tags"], gold, labels, test.starts)
        table.add_row(
            name,
            f"{found['train']:.1f}",
            f"{found['objective']:.2f}",
            f"{100 * score.f1:.2f}",
            f"{100 * (found['tags'] == gold).mean():.2f}",
            f"{found['nll']:.4f}",
            f"{len(test) / found['tag']:,.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
