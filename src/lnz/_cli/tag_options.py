"""The options of `lnz tag`, and what it refuses before JAX is imported."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from lnz._cli.errors import BadInput, refuse_with_resume
from lnz._cli.folder import RunFolder
from lnz._cli.options import (
    Argument,
    Force,
    ForceRun,
    InLearning,
    InRun,
    Json,
    Option,
    Options,
    Resume,
    ResumeOrStart,
    not_negative,
    positive,
)
from lnz._cli.refusals import existing, new_file

MODEL = "tagger.safetensors"
PARTS = ("settings", "data", "validation")  # of config.json

_Features = functools.partial(Option, group="Features")

RunArgument = Annotated[Path, Argument(help="Run folder made by `lnz tag train`.")]
ColumnFile = Annotated[Path, Argument(help="Column file, plain or .gz.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that a tagger depends on, apart from the sentences and the templates: what `config.json` keeps with these."""

    min_count: Annotated[
        int, _Features(min=1, help="Minimum number of occurrences of a feature; rarer ones are left out.")
    ] = 1
    optimizer: Annotated[
        Literal["lbfgs", "adam"], InLearning(help="Optimiser: L-BFGS on all sentences, or Adam on batches.")
    ] = "lbfgs"
    l2: Annotated[float, InLearning(read=not_negative, help="L2 penalty on the squared length of the weights.")] = 1.0
    iterations: Annotated[int, InLearning(min=1, help="Maximum number of L-BFGS iterations.")] = 500
    epochs: Annotated[int, InLearning(min=1, help="Number of epochs of Adam.")] = 20
    learning_rate: Annotated[float, InLearning(read=positive, help="Initial learning rate of Adam.")] = 0.03
    seed: Annotated[int, InRun(min=0, help="Seed of Adam's batches.")] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Options):
    """Train a tagger by exact likelihood, and leave a run folder.

    Tagger and training state are saved every ten iterations, or every epoch, and at Ctrl-C: after a crash the run holds the last ones.

    Examples:

    - lnz tag train train.txt.gz --out runs/chunks
    - lnz tag train train.txt --validation dev.txt --optimizer adam --out runs/quick
    - lnz tag train train.txt --template "suffix2[-1] suffix2[0]" --min-count 2 --out runs/mine
    - lnz tag train --resume runs/chunks
    """

    file: Annotated[Path | None, Argument(help="Column file, plain or .gz.")] = None
    features: Annotated[
        Literal["default", "reference"],
        _Features(
            help="Set of features. reference: words at -2 to 2 and their bigrams, other columns at -2 to 2 with bi- and trigrams; default: "
            "prefixes, suffixes and shapes as well.",
        ),
    ] = "default"
    template: Annotated[
        list[str] | None,
        _Features(
            help='Additional feature, such as "suffix2[-1] column1[0]"; may be repeated. Made of word, lower, shape, kind, prefixN, suffixN, '
            "columnN.",
        ),
    ] = None
    settings: Settings = Settings()
    validation: Annotated[
        Path | None,
        InLearning(
            metavar="FILE",
            help="Column file of validation sentences: training stops when they no longer improve, and the best tagger is kept.",
        ),
    ] = None
    out: Annotated[Path | None, InRun(help="Run folder.")] = None
    force: ForceRun = False
    resume: Resume = None
    resume_or_start: ResumeOrStart = False
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        if self.resume is not None:
            refuse_with_resume(given)
            RunFolder.open(self.resume).resumable("tagger", *PARTS)
        elif self.file is None or self.out is None:
            raise BadInput(
                "tag train: name the data and a run folder, such as `lnz tag train train.txt --out runs/chunks`"
            )
        else:
            for file in filter(None, (self.file, self.validation)):
                existing(file)
            RunFolder(self.out).refuse_taken(force=self.force, resume_or_start=self.resume_or_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Apply(Options):
    """Tag a file, with the probability of every tag and every chunk.

    After the file's columns (without its labels, if it has any) come the tag, P(tag), and P(chunk): the probability that the tokens of
    the chunk have these tags and that it ends there; - outside of chunks. JSON has the same as one object.

    Examples:

    - lnz tag apply runs/chunks news.txt
    - lnz tag apply runs/chunks news.txt.gz --out tagged.txt.gz
    """

    run: RunArgument
    file: ColumnFile
    out: Annotated[Path | None, Option(help="Output file, .gz or not. [stdout]")] = None
    force: Force = False
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        if self.out is not None:
            new_file(self.out, force=self.force)
        _check_run(self.run, self.file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Compare the most probable tags with those of a file: chunk F1 by seqeval's rule, token accuracy, and -log P in nats per sentence.

    The JSON object has f1, precision, recall and accuracy as fractions, nll in nats per sentence, and the counts. f1 is null where the tags
    are not those of chunks (B-, I-, O, ...).

    Examples:

    - lnz tag evaluate runs/chunks devtest.txt.gz --json
    """

    run: RunArgument
    file: ColumnFile
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        _check_run(self.run, self.file)


def _check_run(path: Path, file: Path) -> None:
    folder = RunFolder.open(path)
    folder.config_of("tagger")
    if not folder[MODEL].is_file():
        raise BadInput(f"{path}: was interrupted before its first tagger was saved. Train anew")
    existing(file)
