"""The commands, their options and their help. Nothing here imports JAX: `lnz --help` answers at once."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lnz._cli.errors import BadInput, refuse_with_resume
from lnz._cli.segment import commands as segment_commands
from lnz._cli.tag import commands as tag_commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help="""Unnormalised models p = exp(-E) / Z: train them, and read a likelihood you can trust.

All likelihoods are in nats per datum, and say how log Z is known.""",
    epilog="Try: lnz train digits · lnz evaluate runs/digits · lnz sample runs/digits -n 64 --out digits.png",
)


app.add_typer(segment_commands, name="segment")
app.add_typer(tag_commands, name="tag")
reference_commands = typer.Typer(
    no_args_is_help=True, help="Models whose log Z is known exactly: list them, or see how a route does on them."
)
app.add_typer(reference_commands, name="reference")


class Model(enum.StrEnum):
    rbm = "rbm"
    dbm = "dbm"
    gaussian_rbm = "gaussian-rbm"
    potts_rbm = "potts-rbm"
    ising = "ising"
    potts = "potts"


class Phase(enum.StrEnum):
    exact = "exact"
    cd = "cd"
    persistent = "persistent"
    fast_weights = "fast-weights"
    tempered = "tempered"
    trajectory = "trajectory"
    jarzynski = "jarzynski"
    replay = "replay"
    coupled = "coupled"
    coupled_annealing = "coupled-annealing"


class Learning(enum.StrEnum):
    likelihood = "likelihood"
    pseudo_likelihood = "pseudo-likelihood"
    ratio_matching = "ratio-matching"
    score_matching = "score-matching"
    sliced = "sliced"
    denoising = "denoising"
    noise_contrastive = "noise-contrastive"
    energy_discrepancy = "energy-discrepancy"


class Posterior(enum.StrEnum):
    mean_field = "mean-field"
    chains = "chains"


class Optimizer(enum.StrEnum):
    sgd = "sgd"
    momentum = "momentum"
    adam = "adam"


class Schedule(enum.StrEnum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class RouteKind(enum.StrEnum):
    auto = "auto"
    exact = "exact"
    ais = "ais"
    smc = "smc"
    tempering = "tempering"
    bidirectional = "bidirectional"


class PathKind(enum.StrEnum):
    geometric = "geometric"
    moments = "moments"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Temperatures = Annotated[
    int | None, typer.Option(min=1, help="Of annealing, if no exact route serves. [10,000; large models 4,000]")
]
Chains = Annotated[int | None, typer.Option(min=1, help="Of annealing, likewise. [512; large models 256]")]
Confidence = Annotated[float, typer.Option(help="Of the interval of log Z, between 0 and 1.")]
Kind = Annotated[RouteKind, typer.Option("--route", help="How log Z is taken; auto: exact where that is affordable.")]
Seed = Annotated[
    int | None, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of the random numbers. [the run's own]")
]

_DATA, _MODEL, _LEARNING, _RUN = "Data", "Model", "Learning", "Run"
_GRAPH = "Graphical models"


@app.callback(invoke_without_command=True)
def lnz(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import lnz as library

        typer.echo(f"lnz {library.__version__}")  # pyright: ignore[reportAttributeAccessIssue]
        raise typer.Exit()


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="**digits** (1,797 handwritten digits, 8x8), or a file: .npy, .npz, .csv, .tsv, .parquet, "
            "MNIST's idx, or a folder of images.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[Model, typer.Option(rich_help_panel=_MODEL, help="What to train.")] = Model.rbm,
    hidden: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_MODEL,
            metavar="N[,N…]",
            help="Hidden units. Several layers, as in 500,1000, make a deep Boltzmann machine (dbm). [twice the visible ones, 16 to 500]",
            show_default=False,
        ),
    ] = None,
    categories: Annotated[
        int | None,
        typer.Option(
            min=2, rich_help_panel=_MODEL, help="Of each variable, for the Potts models. [1 + the largest value]"
        ),
    ] = None,
    array: Annotated[
        str | None, typer.Option(rich_help_panel=_DATA, help="Which array of an .npz file.", show_default=False)
    ] = None,
    binarise: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DATA,
            help="How grey values become 0 and 1 where a model needs that: auto (half the scale 1, 16 or 255), a "
            "THRESHOLD, stochastic (drawn once), or never.",
        ),
    ] = "auto",
    validation: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_DATA,
            help="Short for a split into 1 - F, F and no test data.",
            show_default=False,
            metavar="F",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            rich_help_panel=_DATA,
            metavar="TRAIN,VALIDATION,TEST",
            help="Fractions. The best model on the validation data is kept.",
        ),
    ] = "0.7,0.1,0.2",
    split_seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=2**32 - 1, rich_help_panel=_DATA, help="Of the split alone.")
    ] = 0,
    objective: Annotated[
        Learning,
        typer.Option(
            rich_help_panel=_LEARNING,
            help="What is climbed: the likelihood, whose gradient has two phases, or an objective without log Z.",
        ),
    ] = Learning.likelihood,
    noise: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_LEARNING,
            help="Of denoising and energy-discrepancy: the standard deviation of a normal perturbation, in those of the data; "
            "of bits, spins and categories the probability that a unit changes. [0.3; one change a datum]",
            show_default=False,
        ),
    ] = None,
    negative_phase: Annotated[
        Phase | None,
        typer.Option(
            rich_help_panel=_LEARNING,
            help="Chains from the data (cd), chains that go on (persistent; fast-weights: pushed on), replicas on a ladder of temperatures "
            "(tempered) or of the run's own models (trajectory), weighted walkers that follow log Z (jarzynski), a buffer of chains "
            "(replay), pairs of chains, or of annealed populations, whose gradient has no bias (coupled, coupled-annealing), or no "
            "chains (exact). "
            "[persistent]",
            show_default=False,
        ),
    ] = None,
    positive_phase: Annotated[
        Posterior | None,
        typer.Option(
            rich_help_panel=_LEARNING,
            help="The hidden units of a dbm given the data: by mean field, or by chains with the data held. [mean-field]",
            show_default=False,
        ),
    ] = None,
    pretraining: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_LEARNING,
            metavar="EPOCHS",
            help="Of a dbm: layer by layer, before it learns as a whole. [0]",
            show_default=False,
        ),
    ] = None,
    sweeps: Annotated[
        int | None,
        typer.Option(
            "--sweeps",
            "--steps",
            min=1,
            rich_help_panel=_LEARNING,
            help="Gibbs sweeps an update. [1; digits 5; replay 60]",
        ),
    ] = None,
    chains: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_LEARNING, help="Persistent chains, or replicas a rung. [100]")
    ] = None,
    rungs: Annotated[
        int | None,
        typer.Option(min=2, rich_help_panel=_LEARNING, help="Of the ladder of tempered and trajectory chains. [10]"),
    ] = None,
    fast_rate: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_LEARNING, help="The learning rate of the fast weights. [0.05]", show_default=False
        ),
    ] = None,
    monitor: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_LEARNING, help="Watch the chains for about 5 % of the time, and say so when they fail."
        ),
    ] = True,
    optimizer: Annotated[
        Optimizer | None,
        typer.Option(rich_help_panel=_LEARNING, help="[sgd; gaussian-rbm adam]", show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_LEARNING, help="At the start. [sgd 0.05 (digits 0.2), momentum 0.01, adam 0.001]"
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        typer.Option(rich_help_panel=_LEARNING, help="Of the learning rate. [linear, to 0]", show_default=False),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(rich_help_panel=_LEARNING, help="L2, of weights and couplings. [0.0001; digits 0.001]"),
    ] = None,
    epochs: Annotated[
        float | None,
        typer.Option(rich_help_panel=_LEARNING, help="Passes over the training data. [as many as 20,000 updates take]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_LEARNING, help="Data an update. [100]")
    ] = None,
    evaluate_every: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=_LEARNING,
            help="Epochs between two looks at the validation data, each with a checkpoint. [20 looks a run; large models fewer, "
            "about 5 % of the work]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_RUN, help="The run folder. [runs/NAME OF THE DATA]", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", rich_help_panel=_RUN, help="Replace a run of that name.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=_RUN, metavar="RUN", help="Go on with an interrupted run, as if it had never stopped."
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=2**32 - 1,
            rich_help_panel=_RUN,
            help="Of the first weights, the chains and the measuring.",
        ),
    ] = 0,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_RUN, help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Train a model, measure its likelihood, and leave a run folder with a report.

    The defaults are 20,000 updates by stochastic maximum likelihood. Real data (gaussian-rbm) are standardised for learning; the model and
    its likelihood are in the data's own units. Bits become spins for the model ising.

    Examples:

    - lnz train digits
    - lnz train images.npz --hidden 500 --epochs 20 --out runs/mine
    - lnz train digits --hidden 128,64 --pretraining 20
    - lnz train measurements.csv --model gaussian-rbm --split 0.8,0.2,0
    - lnz train votes.csv --model ising --negative-phase exact
    - lnz train votes.csv --model ising --objective pseudo-likelihood
    - lnz train --resume runs/mine
    """
    if resume is not None:
        refuse_with_resume(ctx, "data")
    elif data is None:
        raise BadInput("train: no data were given. Name a file, or `digits`")
    given = {
        "data": data,
        "array": array,
        "binarise": binarise,
        "split": _fractions(ctx, split, validation),
        "split_seed": split_seed,
        "model": str(model),
        "hidden": _layers(hidden),
        "categories": categories,
        "objective": str(objective),
        "noise": _positive("--noise", noise),
        "negative_phase": negative_phase and str(negative_phase),
        "positive_phase": positive_phase and str(positive_phase),
        "pretraining": _not_negative("--pretraining", pretraining),
        "sweeps": sweeps,
        "chains": chains,
        "rungs": rungs,
        "fast_rate": _not_negative("--fast-rate", fast_rate),
        "monitor": monitor,
        "optimizer": optimizer and str(optimizer),
        "learning_rate": _positive("--learning-rate", learning_rate),
        "schedule": schedule and str(schedule),
        "weight_decay": _not_negative("--weight-decay", weight_decay),
        "epochs": _positive("--epochs", epochs),
        "batch_size": batch_size,
        "evaluate_every": _positive("--evaluate-every", evaluate_every),
        "seed": seed,
    }
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import show
    from lnz._cli.train import begin, reopen
    from lnz._cli.train import train as work

    run = reopen(resume) if resume is not None else begin(given, out=out, force=force)
    results = work(run)
    show.training(results, as_json=json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    file: Annotated[
        Path | None, typer.Argument(help="Data of the same kind. [the run's own test data]", show_default=False)
    ] = None,
    array: Annotated[str | None, typer.Option(help="Which array of an .npz file.", show_default=False)] = None,
    temperatures: Temperatures = None,
    chains: Chains = None,
    confidence: Confidence = 0.99,
    route: Kind = RouteKind.auto,
    seed: Seed = None,
    json: Json = False,
) -> None:
    """Measure the log-likelihood of data under a trained model, in nats per datum.

    The data are coded as the run's own were. Without a FILE they are the run's test data, split again as the run split them.

    The JSON object holds log_likelihood with its standard_error, lower and upper limit, all from the error of log Z alone;
    data_standard_error, of the data as a sample; and log_z with log_z_standard_error, log_z_lower and log_z_upper.

    Examples:

    - lnz evaluate runs/digits
    - lnz evaluate runs/mine test.npz --temperatures 20000 --json
    """
    effort = _effort(temperatures, chains, confidence, route)
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import evaluate as room
    from lnz._cli import show

    found = room.evaluate(run, file, effort, array=array, seed=seed)
    show.likelihood(found, unit=room.open_target(run).unit, name=file.name if file else found["split"], as_json=json)


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN|FILE.lnz", help="A run folder, or a saved energy.")],
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many samples.")] = 100,
    out: Annotated[Path, typer.Option(help="Where to: .npy, .npz, .csv, or .png for images.")] = Path("samples.npy"),
    temperatures: Annotated[
        int, typer.Option(min=1, help="Of the annealing that brings the chains to the model.")
    ] = 1000,
    sweeps: Annotated[int, typer.Option(min=0, help="That follow at the model itself.")] = 100,
    seed: Seed = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    json: Json = False,
) -> None:
    """Draw samples of a model: exact where that is affordable, otherwise from annealed chains.

    Examples:

    - lnz sample runs/digits -n 64 --out digits.png
    - lnz sample runs/mine -n 10000 --out drawn.npy --seed 1
    """
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import evaluate as room
    from lnz._cli import show

    found = room.sample(run, n, out, force=force, seed=seed, temperatures=temperatures, sweeps=sweeps)
    show.sampling(found, as_json=json)


@app.command()
def logz(
    ctx: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|FILE.lnz|FILE.uai", help="A run folder, a saved energy, or a graphical model."),
    ],
    temperatures: Temperatures = None,
    chains: Chains = None,
    confidence: Confidence = 0.99,
    route: Kind = RouteKind.auto,
    path: Annotated[
        PathKind,
        typer.Option(
            help="Of a named annealing route: the geometric path, or one along averaged moments (RBMs and Ising models), which is fitted first."
        ),
    ] = PathKind.geometric,
    seed: Seed = None,
    evidence: Annotated[
        Path | None,
        typer.Option(help="A .uai.evid file; none is read unless named.", rich_help_panel=_GRAPH, show_default=False),
    ] = None,
    marginals: Annotated[
        Path | None,
        typer.Option(help="Write p(x) of every variable there (.MAR).", rich_help_panel=_GRAPH, show_default=False),
    ] = None,
    map_: Annotated[bool, typer.Option("--map", help="Find the most probable state.", rich_help_panel=_GRAPH)] = False,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Draw so many exact samples.", rich_help_panel=_GRAPH, show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the samples go: .npy, .npz or .csv.", rich_help_panel=_GRAPH)] = Path(
        "samples.npy"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace files.", rich_help_panel=_GRAPH)] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of the tables, such as 8G. [half of the machine]", rich_help_panel=_GRAPH),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            help="Sum a graphical model exactly that is predicted to take no longer, otherwise tighten limits, or sample, for so long. "
            "[3600, and 60 of limits or sampling]",
        ),
    ] = None,
    within: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="Limits that near are good enough: work grows until they are. [0.1]"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep there what --within has drawn by --route ais or smc, and go on from it where the file exists.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw there (.png) the plan of the sum, or what annealed chains saw.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Log Z of a model, in nats, and how it is known.

    A graphical model in the UAI format is summed exactly; the width and the memory are known before the work begins. Where that is too
    dear, limits that always hold are tightened for as long as there is time. Samples are drawn by numpy.random.default_rng(SEED), with
    seed 0 if none is given.

    Examples:

    - lnz logz runs/digits
    - lnz logz ising.lnz --route ais --temperatures 5000 --json
    - lnz logz ising.lnz --route ais --within 0.1 --plot path.png
    - lnz logz runs/digits --route ais --path moments
    - lnz logz ising.lnz --route smc --within 0.02 --max-seconds 36000 --resume ising.runs
    - lnz logz grid.uai --evidence grid.uai.evid --marginals grid.MAR --map --max-memory 8G
    """
    max_seconds, within = _positive("--max-seconds", max_seconds), _positive("--within", within)
    from lnz._cli import graphical, output

    if graphical.is_uai(run):
        if route not in (RouteKind.auto, RouteKind.exact):
            raise BadInput(f"--route {route}: a graphical model is summed exactly. Leave it out")
        _refuse_given(
            ctx,
            ("temperatures", "chains", "confidence", "path", "resume"),
            "is for a run or a saved energy. Leave it out",
        )
        found = graphical.log_z(
            run,
            evidence=evidence,
            marginals=marginals,
            most_probable=map_,
            samples=samples,
            out=out,
            force=force,
            seed=seed,
            max_memory=max_memory,
            max_seconds=max_seconds,
            within=within,
            plot=plot,
        )
        output.facts(found, graphical.rows(found), as_json=json)
        return
    _refuse_given(
        ctx,
        ("evidence", "marginals", "map_", "samples", "out", "force", "max_memory"),
        "is for a graphical model (.uai). Leave it out",
    )
    effort = dataclasses.replace(_effort(temperatures, chains, confidence, route), path=str(path))
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import evaluate as room
    from lnz._cli import show

    found, sentence = room.log_z(
        run, effort, seed=seed, within=within, max_seconds=max_seconds, resume=resume, plot=plot, shown=not json
    )
    show.log_z(found, sentence, as_json=json)


@app.command()
def audit(
    target: Annotated[
        str,
        typer.Argument(metavar="FILE.py:NAME|FILE.lnz", help="Your own energy, or a saved one.", show_default=False),
    ],
    samples: Annotated[
        Path | None, typer.Option(help="Draws believed to be of p: .npy, (n, …) or (chains, n, …).", show_default=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with pictures, an .html file.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that page.")] = False,
    seed: Annotated[int, typer.Option(help="Of the directions and states looked at.")] = 0,
    json: Json = False,
) -> None:
    """Check whether ∇ log Z = E[-∇E] holds for an energy, and what it rests on: one line a check.

    FILE.py is your own code and **is run as such**: audit no file that you would not run. NAME in it is an energy: an
    lnz.Energy such as lnz.FunctionEnergy(function, lnz.Real(2)), or a callable with an attribute `space`.
    The exit code is 1 where a check failed.

    Examples:

    - lnz audit model.py:energy
    - lnz audit model.py:energy --samples chains.npy --report audit.html
    - lnz audit ising.lnz --json
    """
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import show
    from lnz._cli.audit_command import audit as work

    found = work(target, samples=samples, report=report, force=force, seed=seed)
    show.audit(found, as_json=json)
    if not found.passed:
        raise typer.Exit(1)


@reference_commands.command("list")
def reference_list(json: Json = False) -> None:
    """The models, with log Z in nats, whether ∇ log Z is known too, and the source."""
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import reference_command, show

    show.reference_models(reference_command.listed(), as_json=json)


@reference_commands.command("run")
def reference_run(
    route: Kind = RouteKind.auto,
    models: Annotated[str | None, typer.Option(metavar="NAME,…", help="Which. [all]", show_default=False)] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Of the random numbers.")] = 0,
    json: Json = False,
) -> None:
    """Take log Z of the models by a route, and compare with the truth: error, claimed error, interval, time.

    A model that the route cannot serve is listed with the reason. The routes have their default sizes. Your own estimator is scored in
    Python: lnz.reference.score_route(function).

    Examples:

    - lnz reference run --route ais --models torus-8x8-critical,funnel-10
    - lnz reference run --route tempering --seed 1 --json
    """
    from lnz._cli.process import prepare_jax

    prepare_jax()
    from lnz._cli import reference_command, show

    show.scores(reference_command.run(str(route), [] if models is None else models.split(","), seed), as_json=json)


def _refuse_given(ctx: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that do not apply, where they were given."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput(f"--{name.strip('_').replace('_', '-')} {why}")


def _effort(temperatures: int | None, chains: int | None, confidence: float, route: RouteKind) -> Any:
    if not 0 < confidence < 1:
        raise BadInput(f"--confidence: {confidence:g} is not between 0 and 1. Give, for example, 0.99")
    from lnz._cli.measuring import Effort

    return Effort(temperatures, chains, confidence, str(route))


def _fractions(ctx: typer.Context, split: str, validation: float | None) -> tuple[float, float, float]:
    if validation is not None:
        source = ctx.get_parameter_source("split")
        if source is not None and source.name == "COMMANDLINE":
            raise BadInput("--validation and --split say the same thing. Give one of them")
        if not 0 <= validation < 1:
            raise BadInput(f"--validation: {validation:g} is no fraction. Give, for example, 0.1")
        return (1 - validation, validation, 0.0)
    try:
        parts = tuple(float(part) for part in split.split(","))
    except ValueError:
        parts = ()
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts) or abs(sum(parts) - 1) > 1e-6:
        raise BadInput(f"--split: {split!r} are not three fractions that add up to 1. Give, for example, 0.7,0.1,0.2")
    return parts  # pyright: ignore[reportReturnType]


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    found = tuple(int(part) if part.strip().isdigit() else 0 for part in text.split(","))
    if not all(found):
        raise BadInput(
            f"--hidden: {text!r} is no number of units. Give one such as 500, or several for a deep machine, such as 500,1000"
        )
    return found


def _positive(name: str, value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise BadInput(f"{name}: {value:g} is not above 0. Give a positive number")
    return value


def _not_negative(name: str, value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise BadInput(f"{name}: {value:g} is below 0 or not finite. Give 0 or a positive number")
    return value
