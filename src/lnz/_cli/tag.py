"""`lnz tag train | apply | evaluate`: sequence tagging by a chain CRF on column files."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import lnz
from lnz._cli.errors import BadInput, refusing
from lnz._cli.folder import RunFolder
from lnz._cli.metrics import Metrics, resumable
from lnz._cli.output import emit_json, facts, note
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step
from lnz._cli.tag_options import MODEL, PARTS, Apply, Evaluate, Train
from lnz.apps import Tagger
from lnz.apps._tagging.chunk_metrics import chunk_score, is_chunking
from lnz.apps._tagging.features import default_templates, parse, reference_templates
from lnz.apps._tagging.tag_training import TaggerEvaluation, Training, check_labels
from lnz.io import Sentences, read_conll, write_atomic
from lnz.io._conll import counted


def train(options: Train) -> None:
    """Train a tagger, and leave a run folder."""
    prepare_jax()
    began = time.perf_counter()
    if options.resume is not None:
        folder = RunFolder(options.resume)
        config = folder.config_of("tagger", *PARTS)
        folder.note_versions()
        training = _read(config, [])
    else:
        assert options.file is not None
        assert options.out is not None
        validation = options.validation and str(options.validation.resolve())
        config = {"kind": "tagger", "data": str(options.file.resolve()), "validation": validation}
        config["settings"] = dataclasses.asdict(options.settings)
        training = _read(config, options.template or [], options.features)
        folder = RunFolder.begin(options.out, config, force=options.force, resume_or_start=options.resume_or_start)
    found = folder.results() or _train(training, folder, config, began)
    rows = [
        ("Tagger", f"{found['features']:,} features, {found['labels']} labels, {found['weights']:,} weights"),
        ("Trained on", f"{found['sentences']:,} sentences of {config['data']}"),
        (
            "Objective",
            f"{found['objective']:.3f} nats after {found['step']} {found['steps_are']}{_of_all(found)}, {found['ended']}",
        ),
    ]
    if found["validation_nll"] is not None:
        rows.append(("Validation", f"{found['validation_nll']:.4f} nats per sentence"))
    rows += [("Time", f"{found['seconds']:.0f} s"), ("Run", str(folder.path))]
    facts(found, rows, as_json=options.json)


def _of_all(found: dict[str, Any]) -> str:
    """Of how many steps the one that is kept is the best."""
    run = found.get("steps_run", found["step"])
    return "" if run == found["step"] else f", the best of {run}"


def _read(config: dict[str, Any], more: list[str], features: str | None = None) -> Training:
    """The training of a configuration, to which the templates of `features` are added if it is new. Everything that can be refused is refused."""
    with Step(f"reading {config['data']}"):
        sentences = read_conll(config["data"])
        check_labels(sentences)
        validation = None if config["validation"] is None else read_conll(config["validation"])
    with refusing():
        if features is not None:
            columns = len(sentences.columns) - 1
            templates = (reference_templates if features == "reference" else default_templates)(columns)
            templates += [text for text in more if text not in templates]
            for text in templates:
                parse(text)
            config["settings"]["templates"] = templates
        return Training(sentences, validation=validation, **config["settings"])


def _train(training: Training, folder: RunFolder, config: dict[str, Any], began: float) -> dict[str, Any]:
    """Fit, with a checkpoint at every evaluation."""
    metrics = Metrics(folder)

    def on_evaluation(found: TaggerEvaluation) -> None:
        found.tagger.save(folder[MODEL])
        metrics.add({"step": found.step, "objective": found.objective, "validation_nll": found.validation})
        held_out = "" if found.validation is None else f"  held-out {found.validation:.4f} nats/sentence"
        progress.say(f"{steps[:-1]} {found.step} of at most {most}  objective {found.objective:,.1f} nats{held_out}")

    def done() -> str:
        if not metrics.records:
            return "; nothing was saved yet"
        return f"; the tagger of step {metrics.records[-1]['step']} is saved in {folder.path}"

    steps = "iterations" if config["settings"]["optimizer"] == "lbfgs" else "epochs"
    most = config["settings"][steps]
    with resumable(folder, done), Step("compiling") as progress:
        fitted = training.run(folder["checkpoint.safetensors"], on_evaluation)
        fitted.tagger.save(folder[MODEL])
    step, objective, nll = next(found for found in fitted.evaluations if found[0] == fitted.step)
    found = {
        "run": str(folder.path),
        "sentences": len(training.sentences),
        "tokens": training.sentences.tokens,
        "features": fitted.tagger.features.count,
        "labels": len(fitted.tagger.labels),
        "weights": int((fitted.tagger.weights != 0).sum()),
        "step": step,
        "steps_are": steps,
        "steps_run": fitted.evaluations[-1][0],
        "ended": "converged" if fitted.finished else "at the step limit",
        "objective": objective,
        "validation_nll": nll,
        "seconds": time.perf_counter() - began,
    }
    folder.write_json("results.json", found)
    return found


def apply(options: Apply) -> None:
    """Tag a file, with probabilities."""
    file, out = options.file, options.out
    tagger = _open(options.run)
    sentences = read_conll(file)
    width = tagger.features.columns
    if not width <= len(sentences.columns) <= width + 1:
        raise BadInput(
            f"{file}: has {counted(len(sentences.columns))}, and the run was trained on {width} and a label. Give the same columns"
        )
    sentences = sentences.first_columns(width)
    tagged = tagger.tag_with_confidence(sentences)
    if options.json:
        content = _as_json(tagger, sentences, tagged)
        if out is None:
            emit_json(content)
            return
    _write_tagged(out, tagger, sentences, tagged)
    if options.json:
        emit_json({"out": str(out), "sentences": len(sentences), "tokens": sentences.tokens})


def evaluate(options: Evaluate) -> None:
    """Compare the most probable tags with those of a file."""
    tagger = _open(options.run)
    sentences = read_conll(options.file)
    gold, unseen = _gold(tagger, sentences)
    began = time.perf_counter()
    with Step("tagging"):
        tags = tagger.tag(sentences)
    tagged = time.perf_counter() - began
    nll = None if unseen else tagger.negative_log_likelihood(sentences, gold) / len(sentences)
    labels = [*tagger.labels, *unseen]
    score = chunk_score(tags, gold, labels, sentences.starts) if is_chunking(labels) else None
    found = {
        "f1": None if score is None else score.f1,
        "accuracy": float((tags == gold).mean()),
        "nll": nll,
        "precision": None if score is None else score.precision,
        "recall": None if score is None else score.recall,
        "chunks": None if score is None else score.there,
        "unseen_tags": unseen,
        "sentences": len(sentences),
        "tokens": sentences.tokens,
        "seconds": tagged,
    }
    rows = []
    if score is not None:
        how = f"precision {100 * score.precision:.2f}, recall {100 * score.recall:.2f}, {score.there:,} chunks"
        rows.append(("Chunk F1", f"{100 * score.f1:.2f} % ({how})"))
    rows += [
        ("Accuracy", f"{100 * found['accuracy']:.2f} % of {sentences.tokens:,} tokens"),
    ]
    if nll is not None:
        rows.append(("-log P", f"{nll:.4f} nats per sentence, over {len(sentences):,}; exact, by forward-backward"))
    else:
        count = int((gold >= len(tagger.labels)).sum())
        rows.append(
            (
                "Not seen",
                f"{', '.join(unseen)} in training: {count:,} tokens, each an error; the file has probability 0",
            )
        )
    facts(found, rows, as_json=options.json)


def _gold(tagger: Tagger, sentences: Sentences) -> tuple[np.ndarray, list[str]]:
    """The file's tags as indices, those that training has not seen behind the tagger's, and these."""
    unseen: list[str] = []
    if len(sentences.columns) == tagger.features.columns + 1:
        unseen = [value for value in sentences.columns[-1].values if value not in tagger.labels]
    if not unseen:
        return tagger.gold(sentences), []
    numbers = {label: i for i, label in enumerate([*tagger.labels, *unseen])}
    codes, values = sentences.columns[-1]
    return np.asarray([numbers[value] for value in values], np.int32)[codes], unseen


def _open(path: Path) -> Tagger:
    """The tagger of a run."""
    prepare_jax()
    folder = RunFolder(path)
    if not folder["results.json"].is_file():
        note(f"{path}: its training was interrupted; this is the last tagger that it saved")
    return lnz.apps.Tagger.load(folder[MODEL])


def _write_tagged(out: Path | None, tagger: Tagger, sentences: Sentences, tagged: Any) -> None:
    """The columns with tag, P(tag) and P(chunk), sentences apart by blank lines; tabs between them where a column holds spaces."""
    columns = [[column.values[code] for code in column.codes.tolist()] for column in sentences.columns]
    columns.append([tagger.labels[tag] for tag in tagged.tags.tolist()])
    columns.append([f"{p:.4f}" for p in tagged.confidence.tolist()])
    sure = ["-"] * sentences.tokens
    spans = zip(
        tagged.chunks.starts.tolist(), tagged.chunks.ends.tolist(), tagged.chunk_confidence.tolist(), strict=True
    )
    for start, end, p in spans:
        sure[start : end + 1] = [f"{p:.4f}"] * (end + 1 - start)
    columns.append(sure)
    spaced = any(" " in value for column in sentences.columns for value in column.values)
    lines = list(map(("\t" if spaced else " ").join, zip(*columns, strict=True)))
    starts = sentences.starts.tolist()
    text = "\n\n".join("\n".join(lines[a:b]) for a, b in itertools.pairwise(starts)) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        content = text.encode()
        write_atomic(out, lambda file: file.write(gzip.compress(content, mtime=0) if out.suffix == ".gz" else content))


def _as_json(tagger: Tagger, sentences: Sentences, tagged: Any) -> dict[str, Any]:
    words = sentences.columns[0]
    spans: list[list[dict[str, Any]]] = [[] for _ in range(len(sentences))]
    of = np.searchsorted(sentences.starts, tagged.chunks.starts, side="right") - 1
    for i, (start, end, kind, p) in enumerate(zip(*tagged.chunks[:3], tagged.chunk_confidence.tolist(), strict=True)):
        first = int(sentences.starts[of[i]])
        about = {"type": tagged.chunks.names[kind], "start": int(start) - first, "end": int(end) - first, "p": p}
        spans[of[i]].append(about)
    found = []
    for i, (a, b) in enumerate(itertools.pairwise(sentences.starts.tolist())):
        found.append(
            {
                "words": [words.values[code] for code in words.codes[a:b].tolist()],
                "tags": [tagger.labels[tag] for tag in tagged.tags[a:b].tolist()],
                "confidence": tagged.confidence[a:b].tolist(),
                "chunks": spans[i],
            }
        )
    return {"sentences": found}
