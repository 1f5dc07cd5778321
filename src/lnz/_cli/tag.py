"""`lnz tag train | apply | evaluate`: sequence tagging by a chain CRF on column files."""

from __future__ import annotations

import enum
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lnz._cli.errors import BadInput

if TYPE_CHECKING:
    from lnz._cli.folder import RunFolder
    from lnz.apps import Tagger
    from lnz.io import Sentences

commands = typer.Typer(
    no_args_is_help=True,
    help="Tag sequences by a chain CRF, on CoNLL column files: a token a line, the word first, the label last.",
)

_MODEL, _STATE = "tagger.safetensors", "checkpoint.safetensors"
_FEATURES, _LEARNING, _RUN = "Features", "Learning", "Run"


class FeatureSet(enum.StrEnum):
    default = "default"
    reference = "reference"


class Solver(enum.StrEnum):
    lbfgs = "lbfgs"
    adam = "adam"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunArgument = Annotated[Path, typer.Argument(help="A run folder made by `lnz tag train`.", show_default=False)]
ColumnFile = Annotated[Path, typer.Argument(help="A column file, plain or .gz.", show_default=False)]


@commands.command()
def train(
    file: ColumnFile,
    out: Annotated[Path, typer.Option(rich_help_panel=_RUN, help="The run folder.", show_default=False)],
    features: Annotated[
        FeatureSet,
        typer.Option(
            rich_help_panel=_FEATURES,
            help="reference: words -2 to 2 and their bigrams, other columns -2 to 2 with bi- and trigrams; default: prefixes, suffixes and "
            "shapes as well.",
        ),
    ] = FeatureSet.default,
    template: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_FEATURES,
            help='One more, such as "suffix2[-1] column1[0]"; may be given often. Of word, lower, shape, kind, prefixN, suffixN, columnN.',
            show_default=False,
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(min=1, rich_help_panel=_FEATURES, help="Leave out features that come less often.")
    ] = 1,
    optimizer: Annotated[
        Solver, typer.Option(rich_help_panel=_LEARNING, help="L-BFGS on everything, or Adam on batches.")
    ] = Solver.lbfgs,
    l2: Annotated[
        float, typer.Option(rich_help_panel=_LEARNING, help="Times the squared length of the weights.")
    ] = 1.0,
    iterations: Annotated[int, typer.Option(min=1, rich_help_panel=_LEARNING, help="Of L-BFGS, at most.")] = 500,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=_LEARNING, help="Of Adam.")] = 20,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=_LEARNING, help="Of Adam, at the start.")] = 0.03,
    validation: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_LEARNING,
            help="Stop when these sentences gain no more, and keep the best.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_RUN, help="Of Adam's batches.")] = 0,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=_RUN, help="Replace a run of that name.")] = False,
    json: Json = False,
) -> None:
    """Train a tagger by exact likelihood, and leave a run folder.

    The tagger is saved every ten iterations, or every epoch: after Ctrl-C or a crash the run holds the last one.

    Examples:

    - lnz tag train train.txt.gz --out runs/chunks
    - lnz tag train train.txt --validation dev.txt --optimizer adam --out runs/quick
    - lnz tag train train.txt --template "suffix2[-1] suffix2[0]" --min-count 2 --out runs/mine
    """
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli.errors import refusing
    from lnz._cli.progress import Step
    from lnz.apps._tagging.features import default_templates, parse, reference_templates
    from lnz.apps._tagging.tag_training import check_labels
    from lnz.io import read_conll

    began = time.perf_counter()
    with Step(f"reading {file}"):
        sentences = read_conll(file)
        check_labels(sentences)
        held_out = None if validation is None else read_conll(validation)
    columns = len(sentences.columns) - 1
    templates = (reference_templates if features == FeatureSet.reference else default_templates)(columns)
    templates += [text for text in template or [] if text not in templates]
    with refusing():
        for text in templates:
            parse(text)
    settings = {
        "templates": templates,
        "min_count": min_count,
        "optimizer": str(optimizer),
        "l2": l2,
        "iterations": iterations,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    found = _train(sentences, held_out, out, file, settings, force=force)
    found["seconds"] = time.perf_counter() - began
    _folder(out).write_json("results.json", found)
    rows = [
        ("tagger", f"{found['features']:,} features, {found['labels']} labels, {found['weights']:,} weights"),
        ("trained on", f"{found['sentences']:,} sentences of {file}"),
        ("objective", f"{found['objective']:.3f} nats after {found['step']} {found['steps_are']}, {found['ended']}"),
    ]
    if found["validation_nll"] is not None:
        rows.append(("validation", f"{found['validation_nll']:.4f} nats per sentence"))
    _tell(found, [*rows, ("time", f"{found['seconds']:.0f} s"), ("run", str(out))], as_json=json)


def _train(
    sentences: Sentences, held_out: Sentences | None, out: Path, file: Path, settings: dict[str, Any], *, force: bool
) -> dict[str, Any]:
    """Fit, with a checkpoint at every look. Everything that can be refused is refused before the folder is touched."""
    from lnz._cli.errors import refusing
    from lnz._cli.folder import RunFolder, versions
    from lnz._cli.progress import Step
    from lnz.apps._tagging.tag_training import TaggerEvaluation, Training
    from lnz.learning._loop import Interrupted

    with refusing():
        training = Training(sentences, validation=held_out, **settings)
    folder = RunFolder.create(out, force=force, resumable=False)
    about = {"kind": "tagger", "command": ["lnz", *sys.argv[1:]], "data": str(file), "settings": settings}
    folder.write_json("config.json", about | {"versions": versions()})
    lines: list[dict[str, Any]] = []
    saved = 0

    def on_evaluation(look: TaggerEvaluation) -> None:
        nonlocal saved
        look.tagger.save(folder[_MODEL])
        saved = look.step
        lines.append({"step": look.step, "objective": look.objective, "validation_nll": look.validation})
        folder.write_lines("metrics.jsonl", lines)
        held_out = "" if look.validation is None else f"  held-out {look.validation:.4f} nats/sentence"
        progress.say(f"{steps[:-1]} {look.step} of at most {limit}  objective {look.objective:,.1f} nats{held_out}")

    steps = "iterations" if settings["optimizer"] == "lbfgs" else "epochs"
    limit = settings[steps]
    try:
        with Step("compiling") as progress:
            fitted = training.run(folder[_STATE], on_evaluation)
    except (Interrupted, KeyboardInterrupt):
        kept = f"the tagger of step {saved} is saved in {out}" if saved else "nothing was saved yet"
        raise Interrupted(f"interrupted; {kept}. Train anew with --force") from None
    step, objective, nll = next(look for look in fitted.evaluations if look[0] == fitted.step)
    return {
        "run": str(out),
        "sentences": len(sentences),
        "tokens": sentences.tokens,
        "features": fitted.tagger.features.count,
        "labels": len(fitted.tagger.labels),
        "weights": int((fitted.tagger.weights != 0).sum()),
        "step": step,
        "steps_are": steps,
        "ended": "converged" if fitted.finished else "at the limit",
        "objective": objective,
        "validation_nll": nll,
    }


@commands.command()
def apply(
    run: RunArgument,
    file: ColumnFile,
    out: Annotated[Path | None, typer.Option(help="Write there, .gz or not. [stdout]", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file.")] = False,
    json: Json = False,
) -> None:
    """Tag a file, with how sure the model is of every token and every chunk.

    Behind the file's columns (without its labels, if it has any) stand the tag, P(tag), and P(chunk): the probability that the tokens of
    the chunk have these tags and that it ends there; - outside of chunks. JSON has the same as one object.

    Examples:

    - lnz tag apply runs/chunks news.txt
    - lnz tag apply runs/chunks news.txt.gz --out tagged.txt.gz
    """
    from lnz._cli.output import emit_json
    from lnz.io import read_conll
    from lnz.io._conll import counted

    if out is not None and out.exists() and not force:
        raise BadInput(f"{out}: exists already. Choose another name, or replace it by --force")
    if out is not None and not out.parent.is_dir():
        raise BadInput(f"{out}: its folder does not exist. Create the folder first")
    tagger = _open(run)
    sentences = read_conll(file)
    width = tagger.features.columns
    if not width <= len(sentences.columns) <= width + 1:
        raise BadInput(
            f"{file}: has {counted(len(sentences.columns))}, and the run was trained on {width} and a label. Give the same columns"
        )
    sentences = sentences.first_columns(width)
    tagged = tagger.tag_with_confidence(sentences)
    if json:
        content = _as_json(tagger, sentences, tagged)
        if out is None:
            emit_json(content)
            return
    _write_tagged(out, tagger, sentences, tagged)
    if json:
        emit_json({"out": str(out), "sentences": len(sentences), "tokens": sentences.tokens})


@commands.command()
def evaluate(run: RunArgument, file: ColumnFile, json: Json = False) -> None:
    """Compare the most probable tags with those of a file: chunk F1 by seqeval's rule, token accuracy, and -log P in nats per sentence.

    The JSON object has f1, precision, recall and accuracy as fractions, nll in nats per sentence, and the counts. f1 is null where the tags
    are not those of chunks (B-, I-, O, ...).

    Examples:

    - lnz tag evaluate runs/chunks devtest.txt.gz --json
    """
    from lnz._cli.progress import Step
    from lnz.apps._tagging.chunk_metrics import chunk_score, is_chunking
    from lnz.io import read_conll

    tagger = _open(run)
    sentences = read_conll(file)
    gold = tagger.gold(sentences)
    began = time.perf_counter()
    with Step("tagging"):
        tags = tagger.tag(sentences)
    tagged = time.perf_counter() - began
    nll = tagger.negative_log_likelihood(sentences, gold) / len(sentences)
    score = chunk_score(tags, gold, tagger.labels, sentences.starts) if is_chunking(tagger.labels) else None
    found = {
        "f1": None if score is None else score.f1,
        "accuracy": float((tags == gold).mean()),
        "nll": nll,
        "precision": None if score is None else score.precision,
        "recall": None if score is None else score.recall,
        "chunks": None if score is None else score.there,
        "sentences": len(sentences),
        "tokens": sentences.tokens,
        "seconds": tagged,
    }
    rows = []
    if score is not None:
        how = f"precision {100 * score.precision:.2f}, recall {100 * score.recall:.2f}, {score.there:,} chunks"
        rows.append(("chunk F1", f"{100 * score.f1:.2f} % ({how})"))
    rows += [
        ("accuracy", f"{100 * found['accuracy']:.2f} % of {sentences.tokens:,} tokens"),
        ("−log P", f"{nll:.4f} nats per sentence, over {len(sentences):,}; exact, by forward-backward"),
    ]
    _tell(found, rows, as_json=json)


def _folder(path: Path) -> RunFolder:
    from lnz._cli.folder import RunFolder

    return RunFolder(path)


def _open(path: Path) -> Tagger:
    """The tagger of a run."""
    from lnz._cli.process import prepare_jax

    prepare_jax()
    import lnz
    from lnz._cli.folder import RunFolder
    from lnz._cli.output import note

    folder = RunFolder.open(path)
    folder.config_of("tagger")
    if not folder[_MODEL].is_file():
        raise BadInput(f"{path}: was interrupted before its first tagger was saved. Train anew")
    if not folder["results.json"].is_file():
        note(f"{path}: its training was interrupted; this is the last tagger that it saved")
    return lnz.apps.Tagger.load(folder[_MODEL])


def _tell(found: dict[str, Any], rows: list[tuple[str, str]], *, as_json: bool) -> None:
    from lnz._cli import output

    output.facts(found, rows, as_json=as_json)


def _write_tagged(out: Path | None, tagger: Tagger, sentences: Sentences, tagged: Any) -> None:
    """The columns with tag, P(tag) and P(chunk), sentences apart by blank lines."""
    import gzip

    from lnz.io import write_atomic

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
    lines = list(map(" ".join, zip(*columns, strict=True)))
    starts = sentences.starts.tolist()
    text = "\n\n".join("\n".join(lines[a:b]) for a, b in itertools.pairwise(starts)) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        content = text.encode()
        write_atomic(out, lambda file: file.write(gzip.compress(content, mtime=0) if out.suffix == ".gz" else content))


def _as_json(tagger: Tagger, sentences: Sentences, tagged: Any) -> dict[str, Any]:
    import numpy as np

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
