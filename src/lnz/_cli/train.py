"""`lnz train`: from data to a model, its likelihood, and a run folder that shows them."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lnz
from lnz import report
from lnz._cli import dataset, measuring, model_options, output, show
from lnz._cli.commands import Effort, Train
from lnz._cli.defaults import LARGE, evaluation_effort, fill, updates
from lnz._cli.draw import draw
from lnz._cli.errors import BadInput, in_options, refusing
from lnz._cli.folder import RunFolder, held_out
from lnz._cli.metrics import Metrics, resumable
from lnz._cli.process import prepare_jax
from lnz._cli.progress import Step, TrainingProgress
from lnz._cli.settings import Settings
from lnz._core.capabilities import data_space, observed_space, visible_part
from lnz._core.checkpoint import load_arrays
from lnz._core.energy import Energy
from lnz.learning._fit import Record
from lnz.learning._monitor import MonitorReport


@dataclasses.dataclass
class Run:
    """A run with all that it is made of."""

    folder: RunFolder
    settings: Settings
    dataset: dataset.Dataset

    def __post_init__(self) -> None:
        coding, train = self.dataset.coding, self.dataset.train
        self.standard = model_options.Standard(coding, train)
        self.base = model_options.factorised(coding.space, train)
        self.keys = dict(
            zip(
                ("init", "fit", "log_z", "samples"),
                jax.random.split(jax.random.key(self.settings.seed), 4),
                strict=True,
            )
        )

    @property
    def standard_base(self) -> Energy:
        """The independent units in the units that learning uses."""
        if not self.standard.real:
            return self.base
        shape = observed_space(self.base).shape
        return lnz.Gaussian(np.zeros(shape), np.ones(shape))


def run(options: Train) -> None:
    """The command."""
    prepare_jax()
    with Step("reading the data, and building the model"):
        chosen = begin(options) if options.resume is None else reopen(options.resume)
    results = chosen.folder.results() if options.resume_or_start else None
    if results is None:
        with resumable(chosen.folder, lambda: _done(chosen)), chosen.folder.divergence():
            results = train(chosen)
    show.training(results, as_json=options.json)


def _done(run: Run) -> str:
    checkpoint = run.folder["checkpoint.safetensors"]
    if run.folder["model.lnz"].is_file() or not checkpoint.is_file():
        return "; what was done is saved"
    step, total = load_arrays(checkpoint)[1]["step"], updates(run.settings, len(run.dataset.train))
    return f" after update {step:,} of {total:,}; the state is saved"


def begin(options: Train) -> Run:
    """A new run, or with --resume-or-start the same one begun earlier. Everything that can be refused is refused before the folder is touched."""
    given = options.chosen
    source, split_seed = given.data, given.split_seed
    data = dataset.load(source, given.array)
    notes: list[str] = []
    coding = dataset.choose_coding(data, given.model, binarise=given.binarise, categories=given.categories)
    found = dataset.divide(data, coding, fractions=given.split, split_seed=split_seed, seed=split_seed, notes=notes)
    given = dataclasses.replace(given, data=source if source == "digits" else str(Path(source).resolve()))
    settings = fill(given, rows=len(found.train), columns=coding.columns, categories=coding.categories)
    run = Run(RunFolder(options.folder), settings, found)
    with refusing():
        _refuse_unfit(run)
    if source != "digits":
        if coding.words:
            notes.insert(0, f"{data.source}: {coding.words}")
        for text in notes:
            output.note(text)
    run.folder = RunFolder.begin(
        options.folder,
        {"settings": dataclasses.asdict(settings), "data": found.about()},
        force=options.force,
        resume_or_start=options.resume_or_start,
    )
    run.folder.note_versions()
    return run


def _refuse_unfit(run: Run) -> None:
    """Raise where the model, its optimiser and its negative phase do not go together."""
    energy = model_options.build(run.settings, run.dataset, run.keys["init"])
    phase = model_options.negative_phase(run.settings)
    reason = None if phase is None else phase.unsupported_reason(energy)
    if reason is not None:
        raise BadInput(f"--negative-phase {run.settings.negative_phase}: {reason}")
    if phase is None:
        _refuse_objective(run, model_options.learner(run.settings, energy))
    model_options.optimiser(run.settings, updates(run.settings, len(run.dataset.train)))


def _refuse_objective(run: Run, learner: Energy) -> None:
    """Raise BadInput where an objective without Z does not support the model."""
    name = run.settings.objective
    if data_space(learner) != observed_space(learner):
        raise BadInput(
            f"--objective {name}: the data of a deep machine leave units open. Choose --model rbm, or leave it out"
        )
    objective = model_options.objective(run.settings, run.standard_base)
    assert objective is not None
    reason = objective.unsupported_reason(learner)
    if reason is not None:
        raise BadInput(f"--objective {name}: {reason}")


def reopen(path: Path) -> Run:
    """The run of a folder, with its data read again. Raises BadInput where they have changed."""
    folder = RunFolder.open(path)
    config = folder.config()
    settings, about = Settings.from_json(config["settings"]), config["data"]
    data = dataset.load(settings.data, settings.array)
    with refusing():
        found = dataset.divide(
            data,
            dataset.Coding.from_json(about["coding"]),
            fractions=settings.split,
            split_seed=settings.split_seed,
            seed=settings.split_seed,
            notes=[],
        )
    if found.sha256 != about["sha256"]:
        raise BadInput(f"{data.source}: has changed since {path} was begun. Bring the old data back, or train anew")
    folder.note_versions()
    return Run(folder, settings, found)


def train(run: Run, *, shown: bool = True) -> dict[str, Any]:
    """Fit the model, measure it, and fill the run folder. Goes on from the checkpoint where there is one."""
    folder, settings, data = run.folder, run.settings, run.dataset
    began = time.perf_counter()
    fresh = not folder["checkpoint.safetensors"].is_file()
    with Step("pretraining the layers" if settings.pretraining else "building the model", shown=shown):
        energy = (model_options.started if fresh else model_options.build)(settings, data, run.keys["init"])
        energy = model_options.learner(settings, energy, run.standard_base if fresh else None, run.keys["init"])
    rows, total = data.train, updates(settings, len(data.train))
    standard, unit = run.standard, data.coding.unit
    metrics, reports = Metrics(folder), Metrics(folder, "looks.jsonl")
    earlier = metrics.seconds
    look = _look_route(model_options.learned(energy), run)

    def on_record(record: Record) -> None:
        _refuse_diverged(record, energy)
        metrics.add(_record_json(record, earlier, standard.log_volume))
        progress.record(metrics.records[-1])

    def on_report(report: MonitorReport) -> None:
        found = dataclasses.asdict(report)
        for alarm in found["alarms"]:
            alarm["remedy"] = in_options(alarm["remedy"])
        reports.add(found)
        for alarm in found["alarms"]:
            progress.alarm("update {step:,}: {seen}. {remedy}".format(**alarm))

    per_epoch = -(-len(rows) // min(settings.batch_size, len(rows)))
    with TrainingProgress(updates=total, per_epoch=per_epoch, unit=unit, shown=shown) as progress:
        fitted = lnz.fit(
            energy,
            standard.data(rows),
            negative_phase=model_options.negative_phase(settings),
            positive_phase=model_options.positive_phase(settings),
            objective=model_options.objective(settings, run.standard_base),
            optimizer=model_options.optimiser(settings, total),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            validation=standard.data(data.validation) if len(data.validation) else None,
            evaluate_every=settings.evaluate_every,
            route=look,
            key=run.keys["fit"],
            checkpoint=folder["checkpoint.safetensors"],
            on_progress=progress.step,
            on_record=on_record,
            monitor=lnz.learning.Monitor() if settings.monitor else None,
            on_report=on_report,
        )
    trained = time.perf_counter()
    with Step("measuring the likelihood", shown=shown):
        model = standard.model(model_options.learned(fitted.best))
        base = model_options.annealing_base(model, run.base, rows)
        lnz.save(folder["base.lnz"], base)
        lnz.save(folder["model.lnz"], model)
        results = _measure(run, model, base)
    with Step("drawing samples and the report", shown=shown):
        results |= {"best_step": fitted.best_step, "updates": total}
        results["alarms"] = [alarm for report in reports.records for alarm in report["alarms"]]
        _illustrate(run, model, base, results, metrics.records)
    now = time.perf_counter()
    results["seconds"] = {"training": earlier + trained - began, "measuring": now - trained}
    _report(run, results, metrics.records)
    folder.write_json("results.json", results)
    return results


def _refuse_diverged(record: Record, energy: Energy) -> None:
    """Raise Diverged where the validation log-likelihood is thousands of times that of values drawn uniformly, so that learning was lost."""
    if record.validation is None:
        return
    space = observed_space(energy)
    uniform = -max(1.0, space.log_size if space.discrete else math.prod(space.shape))
    if not record.validation.value > 1000 * uniform:
        raise lnz.learning.Diverged(
            f"learning diverged: at step {record.step:,} the log-likelihood of the validation data is {record.validation.value:.3g} nats per "
            "example. Lower the learning rate"
        )


def _look_route(energy: Energy, run: Run) -> Any:
    """The quick route for log Z at each evaluation on the held-out data."""
    budget = lnz.Budget(evaluations=2.0**16)
    choice = lnz.choose(energy, budget)
    base = model_options.annealing_base(energy, run.standard_base, run.dataset.train)
    if not choice.route.random:
        return choice.route
    temperatures, chains = evaluation_effort(large=measuring.size(energy) > LARGE)
    return lnz.routes.AnnealedImportanceSampling.from_base(base, temperatures=temperatures, chains=chains)


def _record_json(record: Record, earlier: float, log_volume: float) -> dict[str, Any]:
    look = record.validation
    return {
        "step": record.step,
        "epoch": record.epoch,
        "seconds": earlier + record.seconds,
        "figures": dict(sorted(record.figures.items())),
        "validation": None
        if look is None
        else {
            "log_likelihood": look.value - log_volume,
            "lower": look.lower - log_volume,
            "upper": look.upper - log_volume,
            "standard_error": look.standard_error,
            "data_standard_error": look.data_standard_error,
            "log_z": float(look.log_z.value),
            "known": look.guarantee,
            "guarantee": look.guarantee,
            "is_bound": look.is_bound,
            "is_limit": look.is_bound,  # its name in version 0.1
            "n": look.n,
        },
    }


def _measure(run: Run, model: Energy, base: Energy) -> dict[str, Any]:
    """Log Z, and the log-likelihood of every part of the data, under the model and under independent units."""
    route = measuring.choose_route(model, base, Effort())
    log_z = lnz.log_partition(model, route=route, key=run.keys["log_z"])
    parts = run.dataset.parts()
    splits = {
        name: measuring.likelihood_json(lnz.log_likelihood(model, part, log_z=log_z), split=name)
        for name, part in parts.items()
    }
    alone = {
        name: measuring.likelihood_json(lnz.log_likelihood(run.base, part), split=name) for name, part in parts.items()
    }
    return {
        "run": str(run.folder.path),
        "model": model_options.words(run.settings, run.dataset.coding),
        "data": run.dataset.source,
        "unit": run.dataset.coding.unit,
        "log_z_estimate": measuring.estimate_json(log_z),
        "splits": splits,
        "factorised": alone,
    }


def _illustrate(run: Run, model: Energy, base: Energy, results: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Samples, the two phases on the whole of the training data, and the pictures."""
    data, image_shape = run.dataset, run.dataset.coding.image_shape
    large = measuring.size(model) > LARGE
    n, temperatures = (256, 500) if large else (1000, 1000)
    states, how = draw(model, base, n, run.keys["samples"], temperatures=temperatures)
    samples = visible_part(model, states)
    route = measuring.choose_route(model, base, Effort())
    results["phases"] = measuring.agreement(model, data.train, states, route)
    results["samples"] = how
    folder = run.folder
    lnz.io.write_atomic(folder["samples.npy"], lambda file: np.save(file, samples, allow_pickle=False))
    name = held_out(data.parts())
    units = (run.standard.mean, run.standard.scale) if run.standard.real else None
    title = f"Data ({name})"
    report.samples(folder["samples.png"], samples, data.parts()[name], image_shape, name=title, units=units)
    report.filters(folder["filters.png"], model, image_shape, units=units)
    report.moments(folder["moments.png"], samples, data.train, categories=data.coding.categories, units=units)
    levels = {name: found["log_likelihood"] for name, found in results["splits"].items()}
    baseline = results["factorised"][held_out(levels)]["log_likelihood"]
    report.curves(folder["curves.png"], records, levels=levels, baseline=baseline, unit=data.coding.unit)


def _report(run: Run, results: dict[str, Any], records: list[dict[str, Any]]) -> None:
    report.page(
        run.folder["report.html"],
        title=run.folder.path.name,
        results=results,
        config=run.folder.config(),
        pictures={name: run.folder[f"{name}.png"].read_bytes() for name in ("curves", "samples", "filters", "moments")},
    )
