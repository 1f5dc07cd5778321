"""The commands on models and runs: their options, and what is refused before JAX is imported."""

from __future__ import annotations

import dataclasses
import functools
import json
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from lnz._cli import show
from lnz._cli.errors import BadInput, refuse_given, refuse_missing, refuse_with_resume, refusing
from lnz._cli.folder import RunFolder, held_out
from lnz._cli.options import (
    Argument,
    Force,
    ForceRun,
    InData,
    InRun,
    Json,
    Option,
    Options,
    Resume,
    ResumeOrStart,
    positive,
)
from lnz._cli.output import note
from lnz._cli.process import program
from lnz._cli.refusals import data_file, existing, model_file, new_file
from lnz._cli.settings import Settings
from lnz._cli.user_code import checked_target
from lnz.reference._names import check_names

_Graph = functools.partial(Option, group="Graphical models")
_ANNEALED = ("auto", "exact", "ais", "bidirectional")  # routes with temperatures and chains
_SAMPLES = (".npy", ".npz", ".csv")
_HEADERS = (b"MARKOV", b"BAYES")

Kind = Annotated[
    Literal["auto", "exact", "ais", "smc", "tempering", "bidirectional"],
    Option("--route", help="Method that computes log Z; auto is exact where that is affordable."),
]
Seed = Annotated[
    int | None,
    Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the random numbers. [the run's own]"),
]


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise BadInput(f"{value:g} is not between 0 and 1. Give, for example, 0.99")
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Options):
    """Train a model, measure its likelihood, and leave a run folder with a report.

    The defaults are 20,000 updates by stochastic maximum likelihood. Real data (gaussian-rbm) are standardised for training; the saved model
    and its likelihood are in the units of the data. Bits become spins for the model ising.

    Examples:

    - lnz train digits
    - lnz train images.npz --hidden 500 --epochs 20 --out runs/mine
    - lnz train digits --hidden 128,64 --pretraining 20
    - lnz train measurements.csv --model gaussian-rbm --split 0.8,0.2,0
    - lnz train votes.csv --model ising --negative-phase exact
    - lnz train votes.csv --model ising --objective pseudo-likelihood
    - lnz train --resume runs/mine
    - lnz train images.npz --out runs/queued --resume-or-start
    """

    needs = ("rich", "matplotlib", "PIL")

    settings: Settings
    validation: Annotated[
        float | None,
        InData(
            metavar="F",
            help="Validation fraction F: the same as --split 1-F,F,0, without test data.",
        ),
    ] = None
    out: Annotated[Path | None, InRun(help="Run folder. [runs/NAME OF THE DATA]")] = None
    force: ForceRun = False
    resume: Resume = None
    resume_or_start: ResumeOrStart = False
    json: Json = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        source = self.settings.data
        name = "digits" if source == "digits" else (Path(source).resolve().name.split(".")[0] or "run")
        return self.out or Path("runs") / name

    @property
    def chosen(self) -> Settings:
        """The settings, with --validation as the split that it stands for."""
        if self.validation is None:
            return self.settings
        return dataclasses.replace(self.settings, split=(1 - self.validation, self.validation, 0.0))

    def check(self, given: Mapping[str, str]) -> None:
        if self.resume is not None:
            refuse_with_resume(given)
            RunFolder.open(self.resume).config()
            return
        if self.settings.data is None:
            raise BadInput("train: no data were given. Name a file, or `digits`")
        if self.validation is not None and "split" in given:
            raise BadInput("--validation and --split say the same thing. Give one of them")
        if self.validation is not None and not 0 <= self.validation < 1:
            raise BadInput(f"--validation: {self.validation:g} is not a fraction. Give, for example, 0.1")
        self.settings.check()
        if self.settings.data != "digits":
            data_file(Path(self.settings.data))
        RunFolder(self.folder).refuse_taken(force=self.force, resume_or_start=self.resume_or_start)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much work log Z may take."""

    temperatures: Annotated[
        int | None,
        Option(
            min=1,
            help="Number of annealing temperatures, used only if no exact route is affordable. [10,000; large models 4,000]",
        ),
    ] = None
    chains: Annotated[
        int | None,
        Option(
            min=1, help="Number of annealed chains, used only if no exact route is affordable. [512; large models 256]"
        ),
    ] = None
    confidence: Annotated[
        float, Option(read=_share, help="Confidence level of the interval of log Z, between 0 and 1.")
    ] = 0.99
    route: Kind = "auto"

    def check(self) -> None:
        """Raise BadInput for options that conflict, whatever the model is."""
        if self.route not in _ANNEALED and (self.temperatures or self.chains):
            raise BadInput(
                f"--temperatures and --chains are for --route ais and bidirectional, not {self.route}. Leave them out"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Measure the log-likelihood of data under a trained model, in nats per example.

    The data are coded in the same way as the run's own. Without a FILE they are the run's test data, from the same split.

    The JSON object has log_likelihood with its standard_error, lower and upper bound, all from the error of log Z alone;
    data_standard_error, from the finite number of examples; and log_z with log_z_standard_error, log_z_lower and log_z_upper.

    Examples:

    - lnz evaluate runs/digits
    - lnz evaluate runs/mine test.npz --temperatures 20000 --json
    """

    run: Annotated[Path, Argument(help="Run folder.")]
    file: Annotated[Path | None, Argument(help="Data of the same kind. [the run's own test data]")] = None
    array: Annotated[str | None, Option(help="Name of the array to read from an .npz file.")] = None
    effort: Effort = Effort()
    seed: Seed = None
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        self.effort.check()
        if self.run.is_file():
            raise BadInput(
                f"{self.run}: is a file, but evaluate needs a run folder. For log Z alone use: {program()} logz {self.run}"
            )
        RunFolder.open(self.run).require_finished()
        if self.file is not None:
            data_file(self.file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Options):
    """Draw samples from a model: exact where that is affordable, otherwise from annealed chains.

    Examples:

    - lnz sample runs/digits -n 64 --out digits.png
    - lnz sample runs/mine -n 10000 --out drawn.npy --seed 1
    """

    run: Annotated[Path, Argument(metavar="RUN|FILE.lnz", help="Run folder, or a saved energy.")]
    n: Annotated[int, Option("-n --number", min=1, help="Number of samples.")] = 100
    out: Annotated[Path, Option(help="Output file: .npy, .npz, .csv, or .png for images.")] = Path("samples.npy")
    temperatures: Annotated[
        int,
        Option(min=1, help="Number of annealing temperatures, used only if exact samples are not affordable."),
    ] = 1000
    sweeps: Annotated[int, Option(min=0, help="Number of Gibbs sweeps after the annealing, at the model itself.")] = 100
    seed: Seed = None
    force: Force = False
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        new_file(self.out, force=self.force)
        if self.out.suffix.lower() == ".png":
            refuse_missing(("PIL",), "pictures")
        if self.out.suffix.lower() not in (*_SAMPLES, ".png"):
            raise BadInput(
                f"{self.out}: samples cannot be written as {self.out.suffix!r}. Choose one of .npy, .npz, .csv, .png"
            )
        _check_model(self.run)
        if self.run.is_dir() and not RunFolder(self.run).config()["data"]["coding"].get("image_shape"):
            self.refuse_picture()

    def refuse_picture(self) -> None:
        """Refuse a picture of samples that do not form images."""
        if self.out.suffix.lower() == ".png":
            raise BadInput(
                f"{self.out}: a picture needs the height and width of one sample, and those of {self.run} do not form images. Write .npy or .csv"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogZ(Options):
    """Compute log Z of a model, in nats, and say what guarantees it.

    A graphical model in the UAI format is summed exactly; the width and the memory are known before the work begins. Where that is too
    expensive, bounds that always hold are tightened for as long as there is time. Samples are drawn by numpy.random.default_rng(SEED), with
    seed 0 if none is given.

    Examples:

    - lnz logz runs/digits
    - lnz logz ising.lnz --route ais --temperatures 5000 --json
    - lnz logz ising.lnz --route ais --within 0.1 --plot path.png
    - lnz logz runs/digits --route ais --path moments
    - lnz logz ising.lnz --route smc --within 0.02 --max-seconds 36000 --resume ising.runs
    - lnz logz grid.uai --evidence grid.uai.evid --marginals grid.MAR --map --max-memory 8G
    """

    run: Annotated[
        Path,
        Argument(metavar="RUN|FILE.lnz|FILE.uai", help="Run folder, a saved energy, or a graphical model."),
    ]
    effort: Effort = Effort()
    path: Annotated[
        Literal["geometric", "moments"],
        Option(
            help="Annealing path of a route that is named: geometric, or moments (averaged moments, for RBMs and Ising models; fitted first)."
        ),
    ] = "geometric"
    seed: Seed = None
    max_seconds: Annotated[
        float | None,
        Option(
            read=positive,
            help="Time limit: predicted seconds of an exact sum of a graphical model, and seconds of tightening bounds or of sampling. "
            "[3600; bounds and sampling 60]",
        ),
    ] = None
    within: Annotated[
        float | None,
        Option(
            read=positive,
            metavar="NATS",
            help="Width of the interval to stop at, where log Z is bounded or sampled. [0.1]",
        ),
    ] = None
    resume: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="File that keeps the runs of --within by --route ais or smc; if it exists, the work continues from it.",
        ),
    ] = None
    plot: Annotated[
        Path | None,
        Option(help="Picture to draw (.png): the elimination plan, or diagnostics along the annealing path."),
    ] = None
    evidence: Annotated[
        Path | None,
        _Graph(help="Evidence file (.uai.evid); none is read unless named."),
    ] = None
    marginals: Annotated[
        Path | None,
        _Graph(help="Output file (.MAR) for the marginal p(x) of every variable."),
    ] = None
    map_: Annotated[bool, _Graph("--map", help="Find the most probable state (MAP).")] = False
    samples: Annotated[int | None, _Graph(min=1, help="Number of exact samples to draw.")] = None
    out: Annotated[Path, _Graph(help="Output file for the samples: .npy, .npz or .csv.")] = Path("samples.npy")
    force: Force = False
    max_memory: Annotated[
        str | None,
        _Graph(
            metavar="SIZE",
            help="Memory limit of the elimination tables, such as 8G. [half of the machine's]",
        ),
    ] = None
    json: Json = False

    @property
    def is_uai(self) -> bool:
        """Whether the path is to be read as a graphical model: by its name, or by its first word."""
        if self.run.name.lower().removesuffix(".gz").endswith(".uai"):
            return True
        try:
            with open(self.run, "rb") as file:
                return file.read(8).lstrip().startswith(_HEADERS)
        except OSError:
            return False

    @property
    def memory_bytes(self) -> float | None:
        """--max-memory in bytes (powers of 1000; GiB and MiB of 1024)."""
        if self.max_memory is None:
            return None
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", self.max_memory.strip().lower())
        if found is None or float(found[1]) == 0:
            raise BadInput(f"--max-memory: {self.max_memory!r} is not a size. Give, for example, 8G or 500M")
        power = "kmgt".find(found[2]) + 1 if found[2] else 0
        return float(found[1]) * (1024 if found[3] else 1000) ** power

    def check(self, given: Mapping[str, str]) -> None:
        route = self.effort.route
        if self.is_uai:
            if route not in ("auto", "exact"):
                raise BadInput(f"--route {route}: a graphical model is summed exactly. Leave it out")
            others = ("temperatures", "chains", "confidence", "path", "resume")
            refuse_given(given, others, "is for a run or a saved energy. Leave it out")
            _ = self.memory_bytes
            for file in filter(None, (self.marginals, self.plot, self.out if self.samples else None)):
                new_file(file, force=self.force)
            if self.samples and self.out.suffix.lower() not in _SAMPLES:
                raise BadInput(
                    f"--out: {self.out.suffix!r} is not a format for samples. Choose one of .npy, .npz, .csv"
                )
            for file in filter(None, (self.run, self.evidence)):
                existing(file)
        else:
            only = "is for a graphical model (.uai). Leave it out"
            for name, function in {"marginals": "marginals", "map_": "map_state"}.items():
                refuse_given(given, (name,), f"{only}; in Python: lnz.{function}(lnz.load({str(self.run)!r}))")
            refuse_given(given, ("samples", "out"), f"{only}; for samples use: {program()} sample {self.run}")
            refuse_given(given, ("evidence", "force", "max_memory"), only)
            self.effort.check()
            if self.path == "moments" and route in ("auto", "exact"):
                raise BadInput("--path moments applies to annealing. Name the route that anneals, such as --route ais")
            if self.resume is not None and self.within is None and self.max_seconds is None:
                raise BadInput(
                    "--resume keeps the runs that --within adds up. Add --within NATS and --route ais or smc"
                )
            if (self.within or self.max_seconds) and route in ("tempering", "bidirectional"):
                raise BadInput(
                    "--within and --max-seconds add up runs whose weights have mean Z. Choose --route ais or smc, or leave them out"
                )
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise BadInput(f"--plot: {self.plot} is not a .png file. Give a name that ends in .png")
        if self.plot is not None:
            refuse_missing(("matplotlib",), "pictures")
            new_file(self.plot, force=True)
        if not self.is_uai:
            _check_model(self.run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Options):
    """Check whether ∇ log Z = E[-∇E] holds for an energy, and the conditions that it needs: one line per check.

    FILE.py is your own code and **is run**: audit no file that you would not run. NAME in it is an energy: an
    lnz.Energy such as lnz.FunctionEnergy(function, lnz.Real(2)), or a callable with an attribute `space`.
    The exit code is 1 where a check failed.

    Examples:

    - lnz audit model.py:energy
    - lnz audit model.py:energy --samples chains.npy --report audit.html
    - lnz audit ising.lnz --json
    """

    target: Annotated[str, Argument(metavar="FILE.py:NAME|FILE.lnz", help="Your own energy, or a saved one.")]
    samples: Annotated[
        Path | None,
        Option(help="Samples (.npy) believed to come from p, of shape (n, …) or (chains, n, …)."),
    ] = None
    report: Annotated[Path | None, Option(help="Page with pictures to write, an .html file.")] = None
    force: Annotated[bool, Option("--force", help="Replace the page if it exists already.")] = False
    seed: Annotated[int, Option(help="Seed of the directions and states that are checked.")] = 0
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        if self.report is not None:
            refuse_missing(("matplotlib",), "pictures")
            if self.report.exists() and not self.force:
                raise BadInput(f"--report {self.report}: exists already. Give another name, or --force to replace it")
            if not self.report.parent.is_dir():
                raise BadInput(f"--report {self.report}: there is no folder {self.report.parent}. Create it first")
        if self.samples is not None and not self.samples.is_file():
            raise BadInput(
                f"--samples {self.samples}: there is no such file. Give an .npy file of shape (n, …) or (chains, n, …)"
            )
        if self.target.endswith(".lnz"):
            existing(Path(self.target))
            return
        checked_target(self.target, "energy", "model.py:energy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceList(Options):
    """List the models, with log Z in nats, whether ∇ log Z is known too, and the source."""

    json: Json = False


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceRun(Options):
    """Compute log Z of the models by a route, and compare it with the truth: error, reported error, interval, time.

    A model that the route does not support is listed with the reason. The routes have their default sizes. Score your own estimator in
    Python: lnz.reference.score_route(function).

    Examples:

    - lnz reference run --route ais --models torus-8x8-critical,funnel-10
    - lnz reference run --route tempering --seed 1 --json
    """

    route: Kind = "auto"
    models: Annotated[
        tuple[str, ...],
        Option(metavar="NAME,…", read=_names, help="Names of the models, with commas between them. [all]"),
    ] = ()
    seed: Annotated[int, Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the random numbers.")] = 0
    json: Json = False

    def check(self, given: Mapping[str, str]) -> None:
        if self.route == "exact":
            raise BadInput(
                "--route exact: which exact route applies depends on the model. Give auto, ais, smc, tempering or bidirectional"
            )
        with refusing():
            check_names(self.models)


def _check_model(path: Path) -> None:
    """Refuse what is neither a file nor the folder of a finished run."""
    if path.is_file():
        model_file(path)
    else:
        RunFolder.open(path).require_finished()


def evaluate(options: Evaluate) -> None:
    """What the run has measured already, at once; other data, or other effort, are measured."""
    results = known(options.run, options.effort, options.seed)
    if results is None or options.file is not None:
        pkgutil.resolve_name("lnz._cli.evaluate:evaluate")(options)
        return
    split = held_out(results["splits"])
    if split != "test":
        note(f"the run kept no test data; its {split} data are used instead")
    found = results["splits"][split] | {"seconds": results["seconds"]["measuring"]}
    show.likelihood(found, unit=results["unit"], name=split, as_json=options.json)
    _say_known(options.run)


def log_z(options: LogZ) -> None:
    """log Z of a graphical model, which needs no JAX, or of a run or a saved energy."""
    results = None
    more = options.within or options.max_seconds or options.resume or options.plot or options.path != "geometric"
    if not options.is_uai and options.run.is_dir() and not more:
        results = known(options.run, options.effort, options.seed)
    if results is None:
        pkgutil.resolve_name("lnz._cli.graphical:run" if options.is_uai else "lnz._cli.evaluate:log_z")(options)
        return
    found = results["log_z_estimate"]
    show.log_z(found, found["sentence"], as_json=options.json)
    _say_known(options.run)


def known(run: Path, effort: Effort, seed: int | None) -> dict[str, Any] | None:
    """The results of a finished run, where they are what a measurement of this effort would find again; else None."""
    if effort != Effort() or seed is not None or not RunFolder(run).finished:
        return None
    try:
        results = json.loads(RunFolder(run)["results.json"].read_text())
        return results if "sentence" in results["log_z_estimate"] else None  # version 0.1 had none
    except (ValueError, KeyError, TypeError):
        return None


def _say_known(run: Path) -> None:
    note(
        f"measured when {run} was trained. Measure again with other random numbers by --seed N, or with more --temperatures"
    )
